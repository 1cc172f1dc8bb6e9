//! Generation over stages: whole nodes in one process, real endpoints, a tiny random model.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that can't set up its scene fails there and then"
)]

mod support;

use std::{sync::Arc, time::Duration};

use cairn_node::{
    data::link::{self, FrameWriter, Introduction, MessageReader, MessageWriter},
    shell::Node,
};
use cairn_protocol::{
    api::generate_event::Event,
    id::{NodeId, SessionId},
    peer_pb,
    refusal::Reason,
};
use iroh::{
    Endpoint, SecretKey,
    endpoint::{Builder, presets},
};
use support::{Mesh, generate, request, until};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_two_and_three_stages_say_the_same() {
    let mesh = Mesh::plain(3).await;
    let one = generate(&mesh.nodes[0], request(1, 24), |_, _| {}).await.unwrap();
    assert_eq!(one.ids.len(), 24);
    for stages in [2, 3] {
        let many = generate(&mesh.nodes[0], request(stages, 24), |_, _| {}).await.unwrap();
        let done = many.done.unwrap();
        assert_eq!(many.ids, one.ids, "{stages} stages");
        assert_eq!(done.stages.len(), stages as usize);
        assert_eq!((done.finish.as_str(), done.recoveries), ("length", 0));
        let cold = &done.stages[stages as usize - 1];
        assert!(cold.bytes_local + cold.bytes_fetched >= cold.bytes_needed, "{cold:?}");
        assert!(cold.bytes_fetched <= cold.bytes_needed + cold.bytes_needed / 100 + (1 << 20), "{cold:?}");
    }
    let elsewhere = generate(&mesh.nodes[2], request(3, 24), |_, _| {}).await.unwrap();
    assert_eq!(elsewhere.ids, one.ids, "from a node that never held the model");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_seed_gives_the_same_text_on_any_number_of_stages_with_a_penalty() {
    let mesh = Mesh::plain(2).await;
    let lively = |stages| cairn_protocol::api::GenerateRequest {
        temperature: Some(0.9),
        seed: Some(11),
        repetition_penalty: 1.3,
        ..request(stages, 16)
    };
    let one = generate(&mesh.nodes[0], lively(1), |_, _| {}).await.unwrap();
    let two = generate(&mesh.nodes[0], lively(2), |_, _| {}).await.unwrap();
    let other_seed = cairn_protocol::api::GenerateRequest { seed: Some(12), ..lively(1) };
    let other = generate(&mesh.nodes[0], other_seed, |_, _| {}).await.unwrap();
    assert_eq!(one.ids, two.ids);
    assert_ne!(one.ids, other.ids);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stage_that_is_lost_at_any_moment_changes_no_token() {
    let undisturbed = {
        let mesh = Mesh::plain(1).await;
        let heard = generate(&mesh.nodes[0], request(1, 20), |_, _| {}).await.unwrap();
        mesh.stop().await;
        heard.ids
    };
    for moment in [None, Some(0), Some(1), Some(10)] {
        let mesh = Mesh::plain(4).await;
        let mut is_lost = false;
        let nodes = mesh.nodes.clone();
        let heard = generate(&mesh.nodes[0], request(3, 20), |heard, event| {
            let is_now = match moment {
                None => matches!(event, Event::Started(_)),
                Some(count) => matches!(event, Event::Token(_)) && heard.ids.len() == count,
            };
            if is_now && !is_lost {
                is_lost = true;
                let planned = heard.started.as_ref().and_then(|s| s.plan.as_ref());
                let from_event = if let Event::Started(s) = event { s.plan.as_ref() } else { None };
                let victim = planned.or(from_event).unwrap().stages[1].node.clone();
                match moment {
                    None => abandon_when_open(&nodes, &victim),
                    Some(_) => abandon(&nodes, &victim),
                }
            }
        });
        let heard = timeout(PATIENCE, heard).await.unwrap().unwrap();
        assert_eq!(heard.ids, undisturbed, "lost at {moment:?}");
        let done = heard.done.unwrap();
        assert_eq!(done.replans.len(), 1, "lost at {moment:?}");
        if moment.is_none() && done.recoveries == 0 {
            // It refused to go on loading: a new plan, but nothing that ran was lost.
            mesh.stop().await;
            continue;
        }
        assert_eq!((done.recoveries, heard.recoveries.len()), (1, 1), "lost at {moment:?}");
        let recovery = &heard.recoveries[0];
        assert!(recovery.pause_ms <= 2000.0, "a pause of {} ms", recovery.pause_ms);
        mesh.stop().await;
    }
}

/// Ends every stage of a node at once, as if it stopped.
fn abandon(nodes: &[Arc<Node>], victim: &str) {
    node_of(nodes, victim).stages.close();
}

/// The same, as soon as a stage is open there: while it loads, or at the prompt.
fn abandon_when_open(nodes: &[Arc<Node>], victim: &str) {
    let node = node_of(nodes, victim).clone();
    std::thread::spawn(move || {
        let started = std::time::Instant::now();
        while node.stages.occupancy().sessions == 0 && started.elapsed() < PATIENCE {
            std::thread::yield_now();
        }
        node.stages.close();
    });
}

fn node_of<'a>(nodes: &'a [Arc<Node>], id: &str) -> &'a Arc<Node> {
    nodes.iter().find(|node| node.identity.node_id().to_string() == id).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_goes_away_frees_every_stage() {
    let mesh = Mesh::plain(2).await;
    let (events, mut stream) = tokio::sync::mpsc::channel(1);
    let flow = cairn_node::flows::generate::generate(mesh.nodes[0].clone(), request(2, 700), events);
    let flow = tokio::spawn(flow);
    while let Some(event) = stream.recv().await {
        if matches!(event.event, Some(Event::Token(_))) {
            break;
        }
    }
    assert!(mesh.nodes.iter().all(|n| n.stages.occupancy().sessions == 1));
    drop(stream);
    timeout(PATIENCE, flow).await.unwrap().unwrap().unwrap();
    let nodes = mesh.nodes.clone();
    until("no stage is left", || nodes.iter().all(|n| n.stages.occupancy().sessions == 0)).await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_grants_nothing_is_named_with_its_reason() {
    let mesh = Mesh::start(&[&[], &[("grant.compute", "nobody")]]).await;
    let refusal = generate(&mesh.nodes[0], request(2, 4), |_, _| {}).await.unwrap_err();
    assert!(refusal.to_string().contains("no_grant"), "{refusal}");
    assert!(generate(&mesh.nodes[0], request(1, 4), |_, _| {}).await.is_ok());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stage_request_without_a_grant_is_refused_in_words() {
    let mesh = Mesh::start(&[&[("grant.compute", "nobody")]]).await;
    let (stranger, me) = stranger().await;
    let node = &mesh.nodes[0];
    let connection = dial(&stranger, node).await;
    let (send, receive) = connection.open_bi().await.unwrap();
    MessageWriter::new(send).write(&open_stage(node, me)).await.unwrap();
    let mut reader = MessageReader::new(receive);
    let refused = loop {
        let event: peer_pb::StageEvent = timeout(PATIENCE, reader.read()).await.unwrap().unwrap();
        if let Some(peer_pb::stage_event::Event::Refused(refused)) = event.event {
            break refused;
        }
    };
    assert_eq!(refused.reason, Reason::NoGrant.code());
    stranger.close().await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn garbage_on_the_stage_door_closes_the_connection_and_nothing_else() {
    let mesh = Mesh::plain(1).await;
    let (stranger, _) = stranger().await;
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\x04\0\0\0\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", &[0; 4096]] {
        let connection = dial(&stranger, &mesh.nodes[0]).await;
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(garbage).await.unwrap();
        timeout(PATIENCE, connection.closed()).await.unwrap();
    }
    let connection = dial(&stranger, &mesh.nodes[0]).await;
    let mut send = connection.open_uni().await.unwrap();
    send.write_all(&[7; 64]).await.unwrap();
    timeout(PATIENCE, connection.closed()).await.unwrap();
    assert_eq!(generate(&mesh.nodes[0], request(1, 4), |_, _| {}).await.unwrap().ids.len(), 4);
    stranger.close().await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn frames_of_a_node_that_the_opener_did_not_name_are_not_taken() {
    let mesh = Mesh::plain(2).await;
    let undisturbed = generate(&mesh.nodes[0], request(2, 12), |_, _| {}).await.unwrap().ids;
    let (stranger, _) = stranger().await;
    let connection = dial(&stranger, &mesh.nodes[1]).await;
    let (told, session) = tokio::sync::oneshot::channel();
    let mut told = Some(told);
    let intruding = async {
        let session: SessionId = session.await.unwrap();
        let writer = FrameWriter::open(&connection, Introduction { session, epoch: 1 }).await.unwrap();
        timeout(PATIENCE, writer.stopped()).await.unwrap()
    };
    let generating = generate(&mesh.nodes[0], request(2, 12), |_, event| {
        if let (Event::Started(started), Some(told)) = (event, told.take()) {
            told.send(started.session.parse().unwrap()).unwrap();
        }
    });
    let (heard, _) = tokio::join!(generating, intruding);
    let refused = connection.close_reason().expect("the intruder's connection is closed").to_string();
    assert!(refused.contains("no session here expects this stream"), "{refused}");
    let heard = heard.unwrap();
    assert_eq!(heard.ids, undisturbed);
    assert_eq!(heard.done.unwrap().recoveries, 0, "the intruder disturbed the session");
    stranger.close().await;
    mesh.stop().await;
}

async fn stranger() -> (Endpoint, NodeId) {
    let key = SecretKey::from_bytes(&[9; 32]);
    let node = NodeId::from(*key.public().as_bytes());
    let endpoint = Builder::new(presets::Minimal).secret_key(key).bind_addr("127.0.0.1:0").unwrap();
    (endpoint.bind().await.unwrap(), node)
}

async fn dial(stranger: &Endpoint, node: &Node) -> iroh::endpoint::Connection {
    link::dial(stranger, node.identity.node_id(), &node.data.addresses(), PATIENCE).await.unwrap()
}

fn open_stage(node: &Node, me: NodeId) -> peer_pb::OpenStage {
    peer_pb::OpenStage {
        session: vec![1; 16],
        epoch: 1,
        realm: node.config.realm.to_vec(),
        revision: vec![2; 32],
        publisher: vec![3; 32],
        first_layer: 0,
        end_layer: 6,
        embedding: true,
        head: true,
        context: 512,
        planes: 2,
        previous_node: me.to_vec(),
        privacy: "trusted".into(),
        ..Default::default()
    }
}
