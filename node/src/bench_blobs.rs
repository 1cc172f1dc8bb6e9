//! What moving blobs costs here: import, and a pull over loopback from one and from four providers, beside the limits that the same
//! machine shows in the same minute.
//!
//! Two limits: a plain TCP stream whose receiver hashes with BLAKE3 and writes to disk (no encryption, no ranges, no resume), and the
//! rate at which the disk takes synced bytes. Nodes are endpoints and stores in this process, with real sockets. It measures; it
//! promises nothing. Invariant: nothing is left behind in the folder, and every pulled byte was verified.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cairn_protocol::{
    id::{BlobHash, PublisherKey, RealmId},
    name::{RepoId, RepoKind},
    record::Keypair,
    refusal::{Reason, Refusal},
};
use cairn_registry::{PrepareOptions, Prepared, Registry};
use serde::Serialize;

use crate::data::{
    DataHandle,
    fetch::{Fetch, FetchReport, Source},
    rate::Rates,
};

/// Bytes written or read at once.
const PIECE: usize = 1 << 20;
/// Providers of the second pull.
const PROVIDERS: usize = 4;

/// What was measured. Rates in megabytes (10^6) a second.
#[derive(Clone, Debug, Serialize)]
pub struct BlobsReport {
    /// Size of the random file.
    pub bytes: u64,
    /// Import with BLAKE3, SHA-256 and git SHA-1.
    pub import_mb_per_s: f64,
    /// Pull from one provider, verified, on disk.
    pub pull_1_mb_per_s: f64,
    /// Pull from four providers at once.
    pub pull_4_mb_per_s: f64,
    /// Proof bytes of the first pull, as a part of its payload.
    pub overhead: f64,
    /// Bytes that each of the four sent.
    pub from: Vec<u64>,
    /// A plain TCP stream, hashed and written by the receiver.
    pub tcp_blake3_mb_per_s: f64,
    /// The disk, written and synced.
    pub disk_write_mb_per_s: f64,
    /// Pull from one, as a part of the plain stream.
    pub pull_1_to_tcp: f64,
    /// Pull from four, as a part of the plain stream.
    pub pull_4_to_tcp: f64,
    /// Pull from four, as a part of the disk's rate.
    pub pull_4_to_disk: f64,
}

/// Measures with a random file of so many MiB, in a temporary folder below `folder`.
pub async fn measure(mib: u64, folder: &Path) -> Result<BlobsReport, Refusal> {
    let folder =
        tempfile::Builder::new().prefix("cairn-bench-").tempdir_in(folder).map_err(failed("a temporary folder"))?;
    let file = folder.path().join("random.bin");
    let bytes = mib << 20;
    let (disk, hash) = blocking({
        let file = file.clone();
        move || write_random(&file, bytes)
    })
    .await?;
    let tcp = blocking({
        let (file, copy) = (file.clone(), folder.path().join("copy.bin"));
        move || stream_over_tcp(&file, &copy)
    })
    .await?;
    let mut providers = Vec::new();
    for index in 0..PROVIDERS {
        providers.push(Peer::provider(folder.path(), index, &file).await?);
    }
    let one = pull(folder.path(), 0, &providers[..1], hash, bytes).await;
    let four = pull(folder.path(), 1, &providers, hash, bytes).await;
    let import = providers.iter().map(|provider| provider.import).min().unwrap_or_default();
    for provider in &providers {
        provider.stop().await;
    }
    let ((one_took, one), (four_took, four)) = (one?, four?);
    let rate = |took: Duration| bytes as f64 / 1e6 / took.as_secs_f64().max(1e-9);
    Ok(BlobsReport {
        bytes,
        import_mb_per_s: rate(import),
        pull_1_mb_per_s: rate(one_took),
        pull_4_mb_per_s: rate(four_took),
        overhead: one.bytes_overhead as f64 / one.bytes_fetched.max(1) as f64,
        from: four.from.into_values().collect(),
        tcp_blake3_mb_per_s: rate(tcp),
        disk_write_mb_per_s: rate(disk),
        pull_1_to_tcp: tcp.as_secs_f64() / one_took.as_secs_f64().max(1e-9),
        pull_4_to_tcp: tcp.as_secs_f64() / four_took.as_secs_f64().max(1e-9),
        pull_4_to_disk: disk.as_secs_f64() / four_took.as_secs_f64().max(1e-9),
    })
}

/// An endpoint with a store.
struct Peer {
    registry: Registry,
    data: DataHandle,
    identity: Keypair,
    import: Duration,
    /// Keeps the imported bytes.
    _prepared: Option<Prepared>,
}

impl Peer {
    async fn start(home: PathBuf) -> Result<Peer, Refusal> {
        let registry = Registry::open(&home, RealmId::PUBLIC).await.map_err(failed("a store"))?;
        let identity = Keypair::generate(rand::random());
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let data = DataHandle::bind(listen, RealmId::PUBLIC, &identity, registry.blobs(), Rates::default(), Vec::new())
            .await?;
        Ok(Peer { registry, data, identity, import: Duration::ZERO, _prepared: None })
    }

    async fn provider(folder: &Path, index: usize, file: &Path) -> Result<Peer, Refusal> {
        let mut peer = Peer::start(folder.join(format!("provider{index}"))).await?;
        let name = "bench".parse().map_err(failed("a name"))?;
        let repo = RepoId { publisher: PublisherKey::from([1; 32]), kind: RepoKind::Dataset, name };
        let started = Instant::now();
        let prepared = peer.registry.prepare(file.to_owned(), repo, PrepareOptions::default(), |_| {}).await;
        peer._prepared = Some(prepared.map_err(failed("the import"))?);
        peer.import = started.elapsed();
        Ok(peer)
    }

    fn source(&self) -> Source {
        Source { node: self.identity.node_id(), addresses: self.data.addresses() }
    }

    async fn stop(&self) {
        self.data.shutdown().await;
        self.registry.close().await;
    }
}

async fn pull(
    folder: &Path,
    index: usize,
    providers: &[Peer],
    hash: BlobHash,
    size: u64,
) -> Result<(Duration, FetchReport), Refusal> {
    let puller = Peer::start(folder.join(format!("puller{index}"))).await?;
    let sources: Vec<Source> = providers.iter().map(Peer::source).collect();
    let started = Instant::now();
    let fetch = Fetch { data: &puller.data, blobs: puller.registry.blobs(), net: None, hash, size };
    let whole = 0..size;
    let fetched = fetch.run(std::slice::from_ref(&whole), &sources, |_| {}).await;
    let took = started.elapsed();
    puller.stop().await;
    Ok((took, fetched?))
}

/// Random bytes, so that no layer compresses them; with the time that writing and syncing took.
fn write_random(path: &Path, bytes: u64) -> std::io::Result<(Duration, BlobHash)> {
    let mut pieces = Vec::with_capacity(16);
    for _ in 0..16 {
        pieces.push((0..PIECE / 8).flat_map(|_| rand::random::<u64>().to_le_bytes()).collect::<Vec<u8>>());
    }
    let mut hasher = blake3::Hasher::new();
    let mut took = Duration::ZERO;
    let mut file = std::fs::File::create(path)?;
    for index in 0..bytes / PIECE as u64 {
        let piece = &mut pieces[index as usize % 16];
        piece[..8].copy_from_slice(&index.to_le_bytes());
        hasher.update(piece);
        let started = Instant::now();
        file.write_all(piece)?;
        took += started.elapsed();
    }
    let started = Instant::now();
    file.sync_all()?;
    Ok((took + started.elapsed(), BlobHash::from(*hasher.finalize().as_bytes())))
}

/// Sends a file over loopback TCP; the receiver hashes and writes it, and does not sync, as a pull does not before its pin.
fn stream_over_tcp(from: &Path, to: &Path) -> std::io::Result<Duration> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(address)?;
            let mut file = std::fs::File::open(from)?;
            let mut piece = vec![0; PIECE];
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(()),
                    read => stream.write_all(&piece[..read])?,
                }
            }
        });
        let (mut stream, _) = listener.accept()?;
        let (mut file, mut hasher) = (std::fs::File::create(to)?, blake3::Hasher::new());
        let mut piece = vec![0; PIECE];
        loop {
            match stream.read(&mut piece)? {
                0 => break,
                read => {
                    hasher.update(&piece[..read]);
                    file.write_all(&piece[..read])?;
                }
            }
        }
        hasher.finalize();
        sending.join().map_err(|_| std::io::Error::other("the sender broke"))?
    })?;
    let took = started.elapsed();
    std::fs::remove_file(to)?;
    Ok(took)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other).and_then(|done| done);
    done.map_err(failed("the measurement"))
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| Refusal::new(Reason::Internal, what, error.to_string()).try_this("another --home or a smaller --mib")
}
