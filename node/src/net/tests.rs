//! Two, three and four networks in one process on loopback, with free ports and without mDNS. No catalogue: the tests
//! hold the inbox and judge by themselves.

mod raw;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Instant,
};

use cairn_protocol::{
    advert::Load,
    peer_pb::{Heads, HeadsPage, answer::Say, question::Ask},
    record::Profile,
};
use futures::future::join_all;

use super::*;

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    net: NetHandle,
    inbox: Inbox,
    _home: tempfile::TempDir,
}

async fn node_on(listen: &[&str], seed: u8, realm: RealmId, others: &[&Node]) -> Node {
    let home = tempfile::tempdir().expect("a folder");
    let config = NetConfig {
        realm,
        listen: listen.iter().map(ToString::to_string).collect(),
        bootstrap: others.iter().map(|other| other.net.listen_addresses().remove(0)).collect(),
        mdns: false,
        agent: "cairn/test".to_owned(),
        home: home.path().to_path_buf(),
    };
    let identity = Keypair::from_seed([seed; 32]);
    let (net, inbox) = start(&identity, config, Statement::default()).await.expect("the network starts");
    Node { net, inbox, _home: home }
}

async fn node(seed: u8, others: &[&Node]) -> Node {
    node_on(&[TCP], seed, RealmId::PUBLIC, others).await
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_they_met(a: &Node, b: &Node) {
    let met =
        |x: &Node, y: &Node| x.net.peer(y.net.node_id()).is_some_and(|peer| peer.connected && peer.advert.is_some());
    until("two nodes met", || met(a, b) && met(b, a)).await;
}

/// All of `others` listen to what `node` gossips.
async fn until_they_listen(node: &mut Node, others: &[NodeId]) {
    let mut missing: Vec<NodeId> = others.to_vec();
    let arrivals = async {
        while !missing.is_empty() {
            let arrival = node.inbox.arrivals.recv().await.expect("open");
            missing.retain(|other| *other != arrival);
        }
    };
    tokio::time::timeout(PATIENCE, arrivals).await.expect("the others subscribe");
}

fn a_record(seed: u8) -> Record {
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
    profile.sign(RealmId::PUBLIC, &Keypair::from_seed([seed; 32])).expect("signed")
}

fn heads() -> Question {
    Question { ask: Some(Ask::Heads(Heads { after: Vec::new(), limit: 10 })) }
}

async fn next_record(node: &mut Node) -> GossipedRecord {
    tokio::time::timeout(PATIENCE, node.inbox.records.recv()).await.expect("a record in time").expect("open")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_tell_each_other_who_they_are_over_tcp_and_over_quic() {
    for transport in [TCP, QUIC] {
        let a = node_on(&[transport], 1, RealmId::PUBLIC, &[]).await;
        let b = node_on(&[transport], 2, RealmId::PUBLIC, &[&a]).await;
        until_they_met(&a, &b).await;
        let seen = a.net.peer(b.net.node_id()).expect("known");
        assert!(seen.same_host, "{seen:?}");
        assert_eq!(seen.peer_id, b.net.peer_id());
        let advert = seen.advert.expect("told");
        assert_eq!((advert.incarnation, advert.agent.as_str()), (1, "cairn/test"));
        until("a ping came back", || a.net.peer(b.net.node_id()).is_some_and(|peer| peer.rtt.is_some())).await;
        join_all([a.net.shutdown(), b.net.shutdown()]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_another_node_listens_on_is_refused() {
    let a = node_on(&[TCP], 1, RealmId::PUBLIC, &[]).await;
    let address = a.net.listen_addresses()[0].clone();
    let refused = super::swarm::refuse_taken_port(&address, &address.parse().expect("a multiaddress"));
    assert!(refused.is_err(), "{address} is taken");
    assert!(super::swarm::refuse_taken_port(TCP, &TCP.parse().expect("a multiaddress")).is_ok(), "any free port");
    a.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listen_addresses_are_whole_and_one_for_each_listener() {
    let a = node_on(&[TCP, QUIC], 1, RealmId::PUBLIC, &[]).await;
    let addresses = a.net.listen_addresses();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for address in addresses {
        assert!(address.ends_with(&format!("/p2p/{}", a.net.peer_id())) && !address.contains("/0/"), "{address}");
    }
    a.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_only_the_first_find_each_other_within_seconds() {
    let first = node(1, &[]).await;
    let start = Instant::now();
    let others = [node(2, &[&first]).await, node(3, &[&first]).await, node(4, &[&first]).await];
    for a in &others {
        for b in others.iter().filter(|b| b.net.node_id() != a.net.node_id()) {
            until_they_met(a, b).await;
        }
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    println!("a mesh of four was complete after {:?}", start.elapsed());
    join_all(others.iter().chain([&first]).map(|node| node.net.shutdown())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_finds_the_mesh_again_without_a_bootstrap_list() {
    let a = node(1, &[]).await;
    let home = tempfile::tempdir().expect("a folder");
    let config = |bootstrap: Vec<String>| NetConfig {
        realm: RealmId::PUBLIC,
        listen: vec![TCP.to_owned()],
        bootstrap,
        mdns: false,
        agent: "cairn/test".to_owned(),
        home: home.path().to_path_buf(),
    };
    let identity = Keypair::from_seed([2; 32]);
    for bootstrap in [a.net.listen_addresses(), Vec::new()] {
        let (net, _inbox) = start(&identity, config(bootstrap), Statement::default()).await.expect("it starts");
        until("it met the other", || net.peer(a.net.node_id()).is_some_and(|peer| peer.connected)).await;
        net.shutdown().await;
    }
    let incarnation = || a.net.peer(identity.node_id()).and_then(|peer| peer.advert).map(|advert| advert.incarnation);
    until("the second run is believed", || incarnation() == Some(2)).await;
    a.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_load_is_heard_by_the_others_and_a_stop_is_noticed() {
    let a = node(1, &[]).await;
    let b = node(2, &[&a]).await;
    let mut events = a.net.peer_events();
    until_they_met(&a, &b).await;
    b.net.set_load(Load { sessions: 3, ..Load::default() });
    let told = || a.net.peer(b.net.node_id()).and_then(|peer| peer.advert).is_some_and(|ad| ad.load.sessions == 3);
    until("the load was heard", told).await;
    b.net.shutdown().await;
    let gone = async { while events.recv().await != Ok(PeerEvent::Gone(b.net.node_id())) {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("the stop is noticed");
    assert!(!a.net.peer(b.net.node_id()).expect("remembered").connected);
    a.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_is_answered_and_an_unknown_node_is_unreachable() {
    let a = node(1, &[]).await;
    let mut b = node(2, &[&a]).await;
    until_they_met(&a, &b).await;
    let answering = async {
        let asked = b.inbox.questions.recv().await.expect("open");
        assert_eq!(asked.from, a.net.node_id());
        asked.reply.send(Say::Heads(HeadsPage { records: Vec::new(), next: vec![7] })).await;
    };
    let (answer, ()) = tokio::join!(a.net.ask(b.net.node_id(), heads(), PATIENCE), answering);
    let Some(Say::Heads(page)) = answer.expect("answered").say else { panic!("another answer") };
    assert_eq!(page.next, [7]);
    let stranger = Keypair::from_seed([9; 32]).node_id();
    let error = a.net.ask(stranger, heads(), PATIENCE).await.expect_err("nobody there");
    assert!(matches!(error, AskError::Unreachable { .. }), "{error:?}");
    join_all([a.net.shutdown(), b.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_question_ends_at_its_deadline() {
    let a = node(1, &[]).await;
    let b = node(2, &[&a]).await;
    until_they_met(&a, &b).await;
    let start = Instant::now();
    let error = a.net.ask(b.net.node_id(), heads(), Duration::from_millis(300)).await.expect_err("nobody answers");
    assert!(matches!(error, AskError::Deadline { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    join_all([a.net.shutdown(), b.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_questions_is_told_busy_at_once() {
    let a = node(1, &[]).await;
    let b = node(2, &[&a]).await;
    until_they_met(&a, &b).await;
    let count = bounds::QUESTIONS_PER_PEER_MAX + 10;
    let asks = (0..count).map(|_| a.net.ask(b.net.node_id(), heads(), Duration::from_secs(3)));
    let answers = join_all(asks).await;
    let is_busy = |e: &AskError| matches!(e, AskError::Refused { reason, .. } if reason == Reason::Busy.code());
    let busy = answers.iter().filter(|answer| answer.as_ref().is_err_and(is_busy)).count();
    assert_eq!(busy, 10, "{answers:?}");
    join_all([a.net.shutdown(), b.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_reaches_a_third_node_after_the_second_accepted_it() {
    let mut a = node(1, &[]).await;
    let mut b = node(2, &[&a]).await;
    let mut c = node(3, &[&b]).await;
    // No way around b.
    c.net.report(a.net.node_id(), Severity::Attack, "the test has no way around").await;
    a.net.report(c.net.node_id(), Severity::Attack, "the test has no way around").await;
    until_they_listen(&mut a, &[b.net.node_id()]).await;
    until_they_listen(&mut b, &[a.net.node_id(), c.net.node_id()]).await;
    let record = a_record(7);
    a.net.publish_record(record.clone()).await;
    let heard = next_record(&mut b).await;
    assert_eq!((heard.from, &heard.bytes), (a.net.node_id(), &record.to_bytes()));
    heard.judge(Verdict::Accept).await;
    let heard = next_record(&mut c).await;
    assert_eq!((heard.from, &heard.bytes), (b.net.node_id(), &record.to_bytes()));
    join_all([a.net.shutdown(), b.net.shutdown(), c.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_records_go_no_further_and_three_of_them_get_their_sender_banned() {
    let mut forger = node(1, &[]).await;
    let mut b = node(2, &[&forger]).await;
    let mut c = node(3, &[&b]).await;
    c.net.report(forger.net.node_id(), Severity::Attack, "the test has no way around").await;
    until_they_listen(&mut forger, &[b.net.node_id()]).await;
    until_they_listen(&mut b, &[forger.net.node_id(), c.net.node_id()]).await;
    for n in 0..3u8 {
        let forged = Command::Publish(vec![n; 100]);
        forger.net.commands.send(forged).await.expect("open");
        next_record(&mut b).await.judge(Verdict::Reject).await;
    }
    let is_cut_off = || b.net.peer(forger.net.node_id()).is_some_and(|peer| !peer.connected);
    until("the forger is cut off", is_cut_off).await;
    let record = a_record(7);
    b.net.publish_record(record.clone()).await;
    assert_eq!(next_record(&mut c).await.bytes, record.to_bytes());
    let error = b.net.ask(forger.net.node_id(), heads(), PATIENCE).await.expect_err("banned");
    assert!(matches!(error, AskError::Unreachable { .. }), "{error:?}");
    join_all([forger.net.shutdown(), b.net.shutdown(), c.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_nobody_heard_is_told_to_the_next_who_comes() {
    let a = node(1, &[]).await;
    let record = a_record(7);
    a.net.publish_record(record.clone()).await;
    let mut b = node(2, &[&a]).await;
    assert_eq!(next_record(&mut b).await.bytes, record.to_bytes());
    join_all([a.net.shutdown(), b.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_two_realms_find_nothing_in_common() {
    let a = node(1, &[]).await;
    let b = node_on(&[TCP], 2, RealmId::from([5; 32]), &[&a]).await;
    let c = node(3, &[&a]).await;
    until_they_met(&a, &c).await;
    let error = b.net.ask(a.net.node_id(), heads(), Duration::from_secs(5)).await.expect_err("another realm");
    assert!(matches!(error, AskError::Unreachable { .. }), "{error:?}");
    assert!(a.net.peer(b.net.node_id()).is_none());
    join_all([a.net.shutdown(), b.net.shutdown(), c.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_is_found_at_the_node_that_provides_it() {
    let a = node(1, &[]).await;
    let b = node(2, &[&a]).await;
    let c = node(3, &[&a]).await;
    until_they_met(&a, &b).await;
    until_they_met(&a, &c).await;
    let revision = RevisionId::from([42; 32]);
    b.net.provide(revision).await;
    let start = Instant::now();
    while c.net.providers(revision, Duration::from_secs(2)).await != [b.net.node_id()] {
        assert!(start.elapsed() < PATIENCE, "not found");
    }
    join_all([a.net.shutdown(), b.net.shutdown(), c.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_announced_is_remembered_by_another() {
    let a = node(1, &[]).await;
    let b = node(2, &[&a]).await;
    until_they_met(&a, &b).await;
    let revision = RevisionId::from([42; 32]);
    let start = Instant::now();
    // Once it is withdrawn, the announcer itself says nothing: who is found is what the other remembers.
    while a.net.providers(revision, Duration::from_secs(2)).await != [b.net.node_id()] {
        assert!(start.elapsed() < PATIENCE, "not found");
        b.net.provide(revision).await;
        b.net.withdraw(revision).await;
    }
    join_all([a.net.shutdown(), b.net.shutdown()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_silence_on_both_ports_keep_nobody_out() {
    let a = node_on(&[TCP, QUIC], 1, RealmId::PUBLIC, &[]).await;
    let port = |kind: &str| {
        let addresses = a.net.listen_addresses();
        socket(addresses.iter().find(|address| address.contains(kind)).expect("listened on"))
    };
    let (tcp, quic) = (port("/tcp/"), port("/udp/"));
    let mut silent = Vec::new();
    for n in 0..40u8 {
        let mut stream = TcpStream::connect(tcp).expect("the port is open");
        if n % 2 == 0 {
            // The node may have hung up already: that is what it should do.
            let _ = stream.write_all(&[n; 65_536]);
        }
        silent.push(stream);
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        for size in [1, 100, 1200] {
            udp.send_to(&vec![n.wrapping_mul(37) | 0xc0; size], quic).expect("sent");
        }
    }
    let b = node_on(&[TCP], 2, RealmId::PUBLIC, &[&a]).await;
    until_they_met(&a, &b).await;
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut bytes = Vec::new();
        let end = tokio::task::spawn_blocking(move || stream.read_to_end(&mut bytes)).await.expect("read");
        let hung_up = !matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
        assert!(hung_up, "an idle connection was kept for {PATIENCE:?}");
    }
    join_all([a.net.shutdown(), b.net.shutdown()]).await;
}

/// The socket address of a multiaddress like `/ip4/127.0.0.1/tcp/4177/…`.
fn socket(address: &str) -> SocketAddr {
    let parts: Vec<&str> = address.split('/').collect();
    format!("{}:{}", parts[2], parts[4]).parse().expect("an address")
}
