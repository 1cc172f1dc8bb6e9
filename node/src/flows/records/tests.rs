//! Catalogues that speak to each other over loopback, without doors and without a byte stack.

use std::time::Instant;

use cairn_protocol::{
    id::{RealmId, RevisionId},
    key::Keypair,
    record::{Head, Profile, Revision},
};

use super::*;
use crate::net::{self, AskError, NetConfig, Statement};

const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    net: NetHandle,
    registry: Registry,
    stop: CancellationToken,
    running: JoinSet<()>,
    _home: tempfile::TempDir,
}

impl Node {
    async fn start(seed: u8, others: &[&Node]) -> Node {
        let home = tempfile::tempdir().expect("a folder");
        let config = NetConfig {
            realm: RealmId::PUBLIC,
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            bootstrap: others.iter().map(|other| other.net.listen_addresses().remove(0)).collect(),
            mdns: false,
            agent: "cairn/test".to_owned(),
            home: home.path().to_path_buf(),
        };
        let identity = Keypair::from_seed([seed; 32]);
        let (net, inbox) = net::start(&identity, config, Statement::default()).await.expect("the network starts");
        let registry = Registry::open(home.path(), RealmId::PUBLIC).await.expect("the catalogue opens");
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        running.spawn(run(registry.clone(), net.clone(), inbox, stop.clone()));
        Node { net, registry, stop, running, _home: home }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while self.running.join_next().await.is_some() {}
        self.net.shutdown().await;
        self.registry.close().await;
    }

    /// Keeps and tells it, as publishing does.
    async fn publish(&self, records: &[Record]) {
        for record in records {
            self.registry.insert(record.clone()).await.expect("kept");
            self.net.publish_record(record.clone()).await;
        }
    }

    async fn until_it_has(&self, records: &[Record]) {
        let start = Instant::now();
        for record in records {
            while self.registry.record(record.kind(), record.id()).await.expect("read").is_none() {
                assert!(start.elapsed() < PATIENCE, "a record never came");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

fn publisher() -> Keypair {
    Keypair::from_seed([77; 32])
}

/// A profile, and a revision with its head for every name.
fn records(names: std::ops::Range<usize>) -> Vec<Record> {
    let key = publisher();
    let profile = Profile {
        handle: "acme".parse().expect("a handle"),
        display_name: String::new(),
        epoch: 0,
        recovery_key: None,
        previous: None,
        created_ms: 0,
    };
    let mut all = vec![profile.sign(RealmId::PUBLIC, &key).expect("signed")];
    for n in names {
        let name: RepoName = format!("model-{n}").parse().expect("a name");
        let revision = RevisionId::from(*blake3::hash(&n.to_be_bytes()).as_bytes());
        all.push(a_revision(revision, name.clone()).sign(RealmId::PUBLIC, &key).expect("signed"));
        all.push(a_head(revision, name).sign(RealmId::PUBLIC, &key).expect("signed"));
    }
    all
}

fn a_revision(revision: RevisionId, name: RepoName) -> Revision {
    Revision {
        revision,
        manifest_bytes: 100,
        kind: RepoKind::Model,
        name,
        parents: vec![],
        files: 1,
        bytes: 1,
        message: String::new(),
        created_ms: 0,
        architecture: String::new(),
        parameters: 0,
        license: String::new(),
        quantisation: String::new(),
        tags: vec![],
    }
}

fn a_head(revision: RevisionId, name: RepoName) -> Head {
    Head {
        kind: RepoKind::Model,
        name,
        ref_name: RefName::main(),
        epoch: 0,
        number: 1,
        revision,
        previous: None,
        created_ms: 0,
        tag: false,
    }
}

fn ask_for(name: &str) -> Question {
    let resolve = Resolve {
        kind: 1,
        publisher_key: Vec::new(),
        publisher_handle: "acme".to_owned(),
        name: name.to_owned(),
        r#ref: String::new(),
    };
    Question { ask: Some(Ask::Resolve(resolve)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_record_reaches_every_catalogue_of_a_chain() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    let c = Node::start(3, &[&b]).await;
    let published = records(0..3);
    a.publish(&published).await;
    b.until_it_has(&published).await;
    c.until_it_has(&published).await;
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_records_published_at_once_all_arrive() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    let published = records(0..150);
    let start = Instant::now();
    a.publish(&published).await;
    let told = start.elapsed();
    b.until_it_has(&published).await;
    println!("{} records: published in {told:?}, all there after {:?}", published.len(), start.elapsed());
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_late_catches_up_over_several_pages() {
    let a = Node::start(1, &[]).await;
    let published = records(0..1500);
    for page in published.chunks(500) {
        let verdicts = a.registry.insert_page(page.to_vec()).await.expect("kept");
        assert!(verdicts.iter().all(Result::is_ok));
    }
    let start = Instant::now();
    let b = Node::start(2, &[&a]).await;
    b.until_it_has(&published).await;
    println!("{} records caught up with in {:?}", published.len(), start.elapsed());
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_resolved_by_asking_a_peer_and_an_unknown_one_gives_no_records() {
    let a = Node::start(1, &[]).await;
    let published = records(0..2);
    a.publish(&published).await;
    let b = Node::start(2, &[&a]).await;
    b.until_it_has(&published).await;
    for (name, count) in [("model-1", 3), ("nothing", 1)] {
        let answer = b.net.ask(a.net.node_id(), ask_for(name), PATIENCE).await.expect("answered");
        let Some(Say::Records(told)) = answer.say else { panic!("another answer") };
        assert!(told.records.len() <= count, "{name}: {}", told.records.len());
        let is_head = |e: &record_pb::Envelope| Record::from_envelope(e.clone()).is_ok_and(|r| r.kind() as u32 == 3);
        assert_eq!(told.records.iter().any(is_head), count == 3, "{name}");
    }
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_of_a_blob_is_told_and_a_bad_question_is_refused() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    let pin = a.registry.blobs().add(vec![7u8; 100_000]).await.expect("kept");
    let absent = BlobHash::of(b"absent");
    let ask = |hashes: Vec<Vec<u8>>| Question { ask: Some(Ask::Holds(Holds { hashes })) };
    let hashes = vec![pin.hash().to_vec(), absent.to_vec()];
    let answer = loop {
        // The first connection may still be under way.
        match b.net.ask(a.net.node_id(), ask(hashes.clone()), PATIENCE).await {
            Err(AskError::Unreachable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            answer => break answer.expect("answered"),
        }
    };
    let Some(Say::Held(held)) = answer.say else { panic!("another answer") };
    let whole = Holding { hash: pin.hash().to_vec(), complete: true, ranges: vec![] };
    assert_eq!(held.holdings, [whole]);
    let mut nameless = ask_for("model-1");
    if let Some(Ask::Resolve(resolve)) = &mut nameless.ask {
        resolve.publisher_handle = "../etc".to_owned();
    }
    let error = b.net.ask(a.net.node_id(), nameless, PATIENCE).await.expect_err("refused");
    assert!(matches!(&error, AskError::Refused { reason, .. } if reason == "bad_input"), "{error:?}");
    for node in [a, b] {
        node.stop().await;
    }
}

#[test]
fn a_page_counts_its_forgeries_and_keeps_the_rest() {
    let mut envelopes: Vec<record_pb::Envelope> = records(0..2).iter().map(|r| r.envelope().clone()).collect();
    envelopes[1].signature[5] ^= 1;
    envelopes[3].payload.push(0);
    let (kept, took) = verify_page(envelopes);
    assert_eq!((kept.len(), took.forged), (3, 2));
}
