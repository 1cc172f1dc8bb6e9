//! Fetching between real endpoints and stores in this process.

use std::{io::Seek, io::SeekFrom, io::Write, net::Ipv4Addr, path::Path};

use cairn_protocol::{
    id::{PublisherKey, RealmId},
    name::{RepoId, RepoKind},
    record::Keypair,
};
use cairn_registry::{PrepareOptions, Prepared, Registry, TempPin};
use iroh::{
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler, Router},
};

use super::*;
use crate::data::rate::Rates;

const MIB: u64 = 1 << 20;

/// A store with an endpoint.
struct Peer {
    registry: Registry,
    data: DataHandle,
    identity: Keypair,
    _folder: tempfile::TempDir,
    prepared: Option<Prepared>,
}

impl Peer {
    async fn new(seed: u8) -> Peer {
        Peer::in_realm(seed, RealmId::PUBLIC).await
    }

    async fn in_realm(seed: u8, realm: RealmId) -> Peer {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(folder.path(), realm).await.unwrap();
        let identity = Keypair::from_seed([seed; 32]);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let data =
            DataHandle::bind(listen, realm, &identity, registry.blobs(), Rates::default(), vec![]).await.unwrap();
        Peer { registry, data, identity, _folder: folder, prepared: None }
    }

    /// The same home, under another realm.
    async fn moved_to(self, realm: RealmId) -> Peer {
        self.data.shutdown().await;
        drop(self.prepared);
        self.registry.close().await;
        let registry = Registry::open(self._folder.path(), realm).await.unwrap();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let data =
            DataHandle::bind(listen, realm, &self.identity, registry.blobs(), Rates::default(), vec![]).await.unwrap();
        Peer { registry, data, prepared: None, ..self }
    }

    async fn with_file(seed: u8, file: &Path) -> Peer {
        let mut peer = Peer::new(seed).await;
        let name = "x".parse().unwrap();
        let repo = RepoId { publisher: PublisherKey::from([1; 32]), kind: RepoKind::Model, name };
        let prepared = peer.registry.prepare(file.to_owned(), repo, PrepareOptions::default(), |_| {}).await;
        peer.prepared = Some(prepared.unwrap());
        peer
    }

    fn source(&self) -> Source {
        Source { node: self.identity.node_id(), addresses: self.data.addresses() }
    }

    async fn fetch(&self, blob: &Blob, ranges: &[Range<u64>], sources: &[Source]) -> Result<FetchReport, FetchError> {
        let fetch =
            Fetch { data: &self.data, blobs: self.registry.blobs(), net: None, hash: blob.hash, size: blob.size };
        fetch.run(ranges, sources, |_| {}).await
    }

    async fn pin(&self, blob: &Blob) -> TempPin {
        self.registry.blobs().temp_pin(blob.hash).await
    }

    async fn stop(self) {
        self.data.shutdown().await;
        self.registry.close().await;
    }
}

struct Blob {
    hash: BlobHash,
    size: u64,
    bytes: Vec<u8>,
    file: tempfile::NamedTempFile,
}

/// Bytes that differ everywhere, from a seed.
fn blob(seed: u64, size: u64) -> Blob {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(size as usize + 8);
    while (bytes.len() as u64) < size {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(size as usize);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    Blob { hash: BlobHash::of(&bytes), size, bytes, file }
}

async fn assert_held(peer: &Peer, blob: &Blob, range: Range<u64>) {
    let held = peer.registry.blobs().read(blob.hash, range.clone()).await.unwrap();
    assert!(held[..] == blob.bytes[range.start as usize..range.end as usize], "bytes {range:?} differ");
}

/// Overwrites bytes of a stored blob on disk.
async fn damage(peer: &Peer, blob: &Blob, at: u64) {
    let path = peer.registry.blobs().path(blob.hash).await.expect("a large blob lies in a file");
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(b"altered by someone").unwrap();
    file.sync_all().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_wanted_ranges_travel_and_they_are_the_right_bytes() {
    let blob = blob(1, 20 * MIB + 777);
    let (provider, puller) = (Peer::with_file(1, blob.file.path()).await, Peer::new(2).await);
    let _pin = puller.pin(&blob).await;
    let ranges = [5 * MIB + 3..6 * MIB + 5, 20 * MIB..20 * MIB + 777];
    let report = puller.fetch(&blob, &ranges, &[provider.source()]).await.unwrap();
    for range in ranges.clone() {
        assert_held(&puller, &blob, range).await;
    }
    assert_eq!(report.bytes_needed, MIB + 2 + 777);
    assert_eq!(report.bytes_local, 0);
    assert!(report.bytes_fetched >= report.bytes_needed && report.bytes_fetched <= report.bytes_needed + 32 * 1024);
    assert!(report.bytes_overhead > 0 && report.bytes_overhead < 64 * 1024, "{report:?}");
    assert_eq!(report.from.values().sum::<u64>(), report.bytes_fetched);
    assert!(!puller.registry.blobs().has(blob.hash).await.unwrap());
    let again = puller.fetch(&blob, &ranges, &[provider.source()]).await.unwrap();
    assert_eq!((again.bytes_local, again.bytes_fetched), (again.bytes_needed, 0));
    provider.stop().await;
    puller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_providers_give_one_blob_together() {
    let blob = blob(2, 48 * MIB + 5);
    let mut providers = Vec::new();
    for seed in 1..=3 {
        providers.push(Peer::with_file(seed, blob.file.path()).await);
    }
    let puller = Peer::new(9).await;
    let _pin = puller.pin(&blob).await;
    let sources: Vec<Source> = providers.iter().map(Peer::source).collect();
    let report = puller.fetch(&blob, &[0..blob.size], &sources).await.unwrap();
    assert_held(&puller, &blob, 0..blob.size).await;
    assert_eq!(report.from.len(), 3, "{report:?}");
    assert_eq!(report.bytes_fetched, blob.size);
    assert!(puller.registry.blobs().has(blob.hash).await.unwrap());
    puller.stop().await;
    for provider in providers {
        provider.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_fetch_goes_on_where_it_was() {
    let blob = blob(3, 64 * MIB);
    let (provider, puller) = (Peer::with_file(1, blob.file.path()).await, Peer::new(2).await);
    let _pin = puller.pin(&blob).await;
    let stop = CancellationToken::new();
    let fetch =
        Fetch { data: &puller.data, blobs: puller.registry.blobs(), net: None, hash: blob.hash, size: blob.size };
    let cancel = |bytes: u64| {
        if bytes > 8 * MIB {
            stop.cancel();
        }
    };
    let sources = [provider.source()];
    let ranges = [0..blob.size];
    let first = stop.run_until_cancelled(fetch.run(&ranges, &sources, cancel)).await;
    assert!(first.is_none(), "the fetch was over before it could be cancelled");
    let report = puller.fetch(&blob, &ranges, &sources).await.unwrap();
    assert!(report.bytes_local > 4 * MIB, "{report:?}");
    assert!(report.bytes_fetched < blob.size, "{report:?}");
    assert_held(&puller, &blob, 0..blob.size).await;
    puller.stop().await;
    provider.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_altered_on_a_providers_disk_come_from_another() {
    let blob = blob(4, 24 * MIB);
    let (bad, good) = (Peer::with_file(1, blob.file.path()).await, Peer::with_file(2, blob.file.path()).await);
    damage(&bad, &blob, 9 * MIB).await;
    let puller = Peer::new(3).await;
    let _pin = puller.pin(&blob).await;
    let alone = puller.fetch(&blob, &[0..blob.size], &[bad.source()]).await.unwrap_err();
    let FetchError::Undelivered { failures, .. } = &alone else { panic!("{alone}") };
    assert_eq!(failures[0].0, bad.identity.node_id());
    let report = puller.fetch(&blob, &[0..blob.size], &[bad.source(), good.source()]).await.unwrap();
    assert_held(&puller, &blob, 0..blob.size).await;
    assert!(report.from[&good.identity.node_id()] > 0);
    for peer in [bad, good, puller] {
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_of_a_part_gives_its_part() {
    let blob = blob(5, 16 * MIB);
    let (whole, part) = (Peer::with_file(1, blob.file.path()).await, Peer::new(2).await);
    let _pin = part.pin(&blob).await;
    part.fetch(&blob, &[0..4 * MIB], &[whole.source()]).await.unwrap();
    let puller = Peer::new(3).await;
    let _pin_too = puller.pin(&blob).await;
    let report = puller.fetch(&blob, &[0..4 * MIB], &[part.source()]).await.unwrap();
    assert_eq!(report.from[&part.identity.node_id()], 4 * MIB);
    let refused = puller.fetch(&blob, &[0..blob.size], &[part.source()]).await.unwrap_err();
    assert!(matches!(refused, FetchError::Undelivered { bytes_missing, .. } if bytes_missing == 12 * MIB), "{refused}");
    puller.fetch(&blob, &[0..blob.size], &[part.source(), whole.source()]).await.unwrap();
    assert_held(&puller, &blob, 0..blob.size).await;
    for peer in [whole, part, puller] {
        peer.stop().await;
    }
}

/// Accepts requests and never answers.
#[derive(Clone, Debug)]
struct Silent;

impl ProtocolHandler for Silent {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let mut held = Vec::new();
        while let Ok(streams) = connection.accept_bi().await {
            held.push(streams);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_provider_and_a_dead_one_do_not_stop_the_others() {
    let blob = blob(6, 8 * MIB);
    let good = Peer::with_file(1, blob.file.path()).await;
    let endpoint = iroh::endpoint::Builder::new(iroh::endpoint::presets::Minimal)
        .secret_key(iroh::SecretKey::from_bytes(&[7; 32]))
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .unwrap()
        .bind()
        .await
        .unwrap();
    let silent = Source { node: Keypair::from_seed([7; 32]).node_id(), addresses: endpoint.bound_sockets() };
    let router = Router::builder(endpoint).accept(iroh_blobs::ALPN, Silent).spawn();
    let dead = Source { node: Keypair::from_seed([8; 32]).node_id(), addresses: vec![] };
    let puller = Peer::new(3).await;
    let _pin = puller.pin(&blob).await;
    let started = Instant::now();
    let report = puller.fetch(&blob, &[0..blob.size], &[silent.clone(), dead.clone(), good.source()]).await.unwrap();
    assert_held(&puller, &blob, 0..blob.size).await;
    assert!(started.elapsed() < Duration::from_secs(30), "took {:?}", started.elapsed());
    assert_eq!(report.from.keys().copied().collect::<Vec<_>>(), [good.identity.node_id()]);
    let bad: Vec<NodeId> = report.bad_sources.iter().map(|(node, _)| *node).collect();
    assert!(bad.contains(&dead.node), "{:?}", report.bad_sources);
    router.shutdown().await.unwrap();
    good.stop().await;
    puller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_realm_serves_members_only() {
    let realm = RealmId::from([5; 32]);
    let blob = blob(7, 2 * MIB);
    let mut provider = Peer::in_realm(1, realm).await;
    let repo = RepoId { publisher: PublisherKey::from([1; 32]), kind: RepoKind::Model, name: "x".parse().unwrap() };
    let file = blob.file.path().to_owned();
    provider.prepared = Some(provider.registry.prepare(file, repo, PrepareOptions::default(), |_| {}).await.unwrap());
    let (member, stranger) = (Peer::in_realm(2, realm).await, Peer::in_realm(3, realm).await);
    let member_id = member.identity.node_id();
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    provider.data.attach_to(super::super::blobs::Surroundings {
        is_member: Box::new(move |node| node == member_id),
        served: Box::new(move |bytes| {
            count.fetch_add(bytes, Ordering::Relaxed);
        }),
    });
    let refused = stranger.fetch(&blob, &[0..blob.size], &[provider.source()]).await.unwrap_err();
    assert!(
        matches!(&refused, FetchError::Undelivered { failures, .. } if failures[0].1 == Failure::Refused),
        "{refused}"
    );
    assert_eq!(Refusal::from(refused).reason, Reason::NoGrant);
    member.fetch(&blob, &[0..blob.size], &[provider.source()]).await.unwrap();
    assert_held(&member, &blob, 0..blob.size).await;
    for peer in [member, stranger, provider] {
        peer.stop().await;
    }
    assert_eq!(sent.load(Ordering::Relaxed), blob.size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_a_private_realm_are_not_served_by_the_same_home_in_public() {
    let realm = RealmId::from([5; 32]);
    let mut secret = Peer::in_realm(1, realm).await;
    let private = blob(12, MIB);
    let repo = RepoId { publisher: PublisherKey::from([1; 32]), kind: RepoKind::Model, name: "x".parse().unwrap() };
    let file = private.file.path().to_owned();
    secret.prepared = Some(secret.registry.prepare(file, repo, PrepareOptions::default(), |_| {}).await.unwrap());
    secret.registry.blobs().protect_stage(&[private.hash], 1, 1 << 30).await.unwrap();
    let home = secret.moved_to(RealmId::PUBLIC).await;
    assert!(home.registry.blobs().has(private.hash).await.unwrap(), "the bytes are still in this home");
    let stranger = Peer::new(2).await;
    let refused = stranger.fetch(&private, &[0..private.size], &[home.source()]).await.unwrap_err();
    assert!(
        matches!(&refused, FetchError::Undelivered { failures, .. } if failures[0].1 == Failure::Refused),
        "{refused}"
    );
    home.registry.blobs().protect_stage(&[private.hash], 1, 1 << 30).await.unwrap();
    stranger.fetch(&private, &[0..private.size], &[home.source()]).await.unwrap();
    assert_held(&stranger, &private, 0..private.size).await;
    stranger.stop().await;
    home.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_blob_and_a_tiny_one_arrive() {
    let tiny = blob(8, 3);
    let (provider, puller) = (Peer::with_file(1, tiny.file.path()).await, Peer::new(2).await);
    puller.fetch(&tiny, &[0..3], &[provider.source()]).await.unwrap();
    assert_held(&puller, &tiny, 0..3).await;
    let size = puller.data.blob_size(&provider.source(), tiny.hash).await.unwrap();
    assert_eq!(size, 3);
    let empty = Blob { hash: BlobHash::of(b""), size: 0, ..blob(9, 0) };
    puller.fetch(&empty, &[], &[]).await.unwrap();
    assert!(puller.registry.blobs().has(empty.hash).await.unwrap());
    let nobody = puller.fetch(&blob(10, 5), &[0..5], &[]).await.unwrap_err();
    assert!(matches!(nobody, FetchError::NoSource { .. }));
    puller.stop().await;
    provider.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_overstates_a_size_is_told_so() {
    let blob = blob(11, 3 * MIB);
    let (provider, puller) = (Peer::with_file(1, blob.file.path()).await, Peer::new(2).await);
    let _pin = puller.pin(&blob).await;
    let false_size = Blob { size: 5 * MIB, ..blob };
    let refused = puller.fetch(&false_size, &[0..5 * MIB], &[provider.source()]).await.unwrap_err();
    assert!(matches!(refused, FetchError::WrongSize { .. }), "{refused}");
    assert_eq!(Refusal::from(refused).reason, Reason::Corrupt);
    puller.stop().await;
    provider.stop().await;
}
