//! Catalogues that speak to each other over loopback, without doors and without a byte stack.

use std::time::{Duration, Instant};

use cairn_protocol::{
    id::{RealmId, RevisionId},
    key::Keypair,
    record::{Advisory, Category, Head, Profile, RecordKind, Revision, Subject},
};

use super::{
    super::{
        agree::{Agreed, Agreeing},
        catch_up::read_pages,
    },
    *,
};
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
        running.spawn(run(registry.clone(), net.clone(), Arc::default(), inbox, stop.clone()));
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

async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_they_met(a: &Node, b: &Node) {
    let met = |x: &Node, y: &Node| x.net.connected().contains(&y.net.node_id());
    until("two nodes met", || met(a, b) && met(b, a)).await;
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
        publisher: None,
        number: 0,
        signing_key: None,
        members: Vec::new(),
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
        card: Default::default(),
        publisher: None,
        origins: Vec::new(),
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
        publisher: None,
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
    let whole = Holding { hash: pin.hash().to_vec(), complete: true, ..Holding::default() };
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
fn an_answer_counts_its_forgeries_and_keeps_the_rest() {
    let mut envelopes: Vec<record_pb::Envelope> = records(0..2).iter().map(|r| r.envelope().clone()).collect();
    envelopes[1].signature[5] ^= 1;
    envelopes[3].payload.push(0);
    let checked = verify_all(envelopes);
    assert_eq!((checked.good.len(), checked.forged, checked.unknown), (3, 2, 0));
}

/// As a later version might sign them.
fn newer() -> Vec<record_pb::Envelope> {
    let known = records(0..2).into_iter().map(|record| record.envelope().clone());
    let of_version = known.clone().map(|envelope| record_pb::Envelope { version: 9, ..envelope });
    of_version.chain(known.map(|envelope| record_pb::Envelope { kind: 77, ..envelope })).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_only_a_later_version_knows_are_counted_and_cost_their_sender_nothing() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    until_they_met(&a, &b).await;
    let (good, forged) = verify_answer(&b.net, a.net.node_id(), newer()).await;
    assert_eq!((good.len(), forged, b.net.unknown_records()), (0, 0, 10));
    b.net.ask(a.net.node_id(), ask_for("nothing"), PATIENCE).await.expect("it is not banned");
    let mut forged = newer();
    forged.iter_mut().for_each(|envelope| (envelope.version, envelope.kind) = (1, 2));
    verify_answer(&b.net, a.net.node_id(), forged).await;
    let error = b.net.ask(a.net.node_id(), ask_for("nothing"), PATIENCE).await.expect_err("banned");
    assert!(matches!(error, AskError::Unreachable { .. }), "{error:?}");
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gossiped_advisory_of_nonsense_is_not_kept_and_a_good_one_is() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    let nonsense = Record::sign(RecordKind::Advisory, RealmId::PUBLIC, vec![1, 2, 3], &publisher()).expect("signed");
    a.net.publish_record(nonsense.clone()).await;
    let advisory = Advisory {
        name: "1".to_owned(),
        number: 1,
        category: Category::Deprecated,
        is_withdrawn: false,
        subjects: vec![Subject::Publisher(publisher().public())],
        text: String::new(),
        url: String::new(),
        instead: String::new(),
        created_ms: 0,
    };
    let advisory = advisory.sign(RealmId::PUBLIC, &publisher()).expect("signed");
    a.publish(std::slice::from_ref(&advisory)).await;
    b.until_it_has(&[advisory]).await;
    assert!(b.registry.record(nonsense.kind(), nonsense.id()).await.expect("read").is_none());
    let published = records(0..1);
    a.publish(&published).await;
    b.until_it_has(&published).await;
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_a_catalogue_goes_on_where_it_stopped() {
    let a = Node::start(1, &[]).await;
    let records = records(0..700);
    a.registry.insert_page(records.clone()).await.expect("kept");
    let b = Node::start(2, &[&a]).await;
    until_they_met(&a, &b).await;
    // A catalogue that only this test fills; b's own catches up by itself.
    let home = tempfile::tempdir().expect("a folder");
    let late = Registry::open(home.path(), RealmId::PUBLIC).await.expect("the catalogue opens");
    let mut place = Vec::new();
    let mut looks = 0;
    while looks == 0 || !place.is_empty() {
        read_pages(&late, &b.net, a.net.node_id(), &mut place, 1).await;
        looks += 1;
        assert!(looks < 20, "it never came to the end");
    }
    assert!(looks > 1, "one page held everything, so this shows nothing");
    for record in &records {
        assert!(late.record(record.kind(), record.id()).await.expect("read").is_some(), "a record is missing");
    }
    late.close().await;
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_were_apart_fetch_only_what_they_lack_and_then_agree() {
    let a = Node::start(1, &[]).await;
    let all = records(0..900);
    a.registry.insert_page(all.clone()).await.expect("kept");
    let b = Node::start(2, &[&a]).await;
    until_they_met(&a, &b).await;
    // A catalogue that only this test fills; b's own catches up by itself.
    let home = tempfile::tempdir().expect("a folder");
    let late = Registry::open(home.path(), RealmId::PUBLIC).await.expect("the catalogue opens");
    let known: Vec<Record> = all.iter().step_by(3).cloned().collect();
    late.insert_page(known).await.expect("kept");
    let agreeing = Agreeing::default();
    let node = a.net.node_id();
    assert_eq!(agreeing.agree(&late, &b.net, node).await, Agreed::Yes);
    for record in &all {
        assert!(late.record(record.kind(), record.id()).await.expect("read").is_some(), "a record is missing");
    }
    let live = [late.live_records().await.expect("read"), a.registry.live_records().await.expect("read")];
    assert_eq!(live[0], live[1]);
    assert_eq!(agreeing.agree(&late, &b.net, node).await, Agreed::Yes, "nothing is left to say");
    late.close().await;
    for node in [a, b] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_compares_in_words_without_sense_is_refused_and_pays() {
    let a = Node::start(1, &[]).await;
    let b = Node::start(2, &[&a]).await;
    until_they_met(&a, &b).await;
    let senseless = || Question { ask: Some(Ask::Reconcile(Reconcile { items: Vec::new() })) };
    for _ in 0..20 {
        match b.net.ask(a.net.node_id(), senseless(), PATIENCE).await {
            Err(AskError::Refused { reason, .. }) => assert_eq!(reason, Reason::BadInput.code()),
            // Ten faults are a ban.
            _ => break,
        }
    }
    until("it is shut out", || !a.net.connected().contains(&b.net.node_id())).await;
    for node in [a, b] {
        node.stop().await;
    }
}
