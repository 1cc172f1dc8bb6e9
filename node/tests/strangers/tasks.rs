//! Tasks: nodes that answer with lies, and strangers that ask for what they may not.

use anyhow::{Context, Result, ensure};
use cairn_client::{
    Reason,
    api::{self, embed_event::Event},
};
use cairn_node::data::link::{self, MessageReader, MessageWriter};
use cairn_protocol::{
    Keypair, RealmId,
    peer_pb::{self, task_event},
};
use cairn_testnet::{ENCODER_WIDTH, Testnet, encoder_model};
use prost::Message;

use crate::{
    CAIRN, SOON,
    hostile::{self, Lies},
    meet, withstand,
};

const REPO: &str = "honest/embed";

/// What a node says, as bytes on its stream.
fn said(events: &[task_event::Event]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events {
        let event = peer_pb::TaskEvent { event: Some(event.clone()) }.encode_to_vec();
        bytes.extend_from_slice(&(event.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&event);
    }
    bytes
}

fn vectors(first: u32, width: usize, values: Vec<f32>) -> task_event::Event {
    task_event::Event::Vectors(peer_pb::VectorsPiece { first, width: width as u32, values })
}

fn done() -> task_event::Event {
    task_event::Event::Done(peer_pb::TaskDone { tokens: 1, truncated: 0 })
}

/// Vectors of two texts, and what failed on the way.
async fn embed(net: &Testnet) -> Result<(Vec<f32>, api::EmbedDone)> {
    let texts = vec!["a stone".to_owned(), "a hill".to_owned()];
    let ask = api::EmbedRequest { repo: REPO.into(), texts, ..Default::default() };
    let mut events = net.client(0).embed(ask).await?;
    let mut values = Vec::new();
    while let Some(event) = events.next().await? {
        match event.event {
            Some(Event::Vectors(piece)) => values.extend(piece.values),
            Some(Event::Done(done)) => return Ok((values, done)),
            _ => {}
        }
    }
    anyhow::bail!("it ended without a result")
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_vectors_are_refused_asked_elsewhere_and_end_in_a_ban() -> Result<()> {
    let net = Testnet::start_configured(CAIRN, 2, &[], &["stage_memory_bytes = \"0\"\n"]).await?;
    let folder = tempfile::tempdir()?;
    let published = net.publish(1, &encoder_model(folder.path(), 2)?, REPO).await?;
    net.knows(0, REPO).await?;
    let (truth, _) = embed(&net).await?;
    let width = ENCODER_WIDTH;
    let lies = Lies { warm: vec![published.revision.parse().ok().context("a revision")?], ..Lies::default() };
    let liar = meet(&net, 7, lies.clone()).await?;
    let liar_id = liar.key.node_id().to_string();
    let whole = vec![0.5; 2 * width];
    let mut nan = whole.clone();
    nan[width + 3] = f32::NAN;
    let malformed = [
        ("values that are no numbers", said(&[vectors(0, width, nan), done()])),
        ("vectors of another width", said(&[vectors(0, width * 2, whole.clone()), done()])),
        ("vectors of no width", said(&[vectors(0, 0, Vec::new()), done()])),
        ("more vectors than texts", said(&[vectors(0, width, vec![0.5; 3 * width]), done()])),
        ("vectors from the wrong text on", said(&[vectors(1, width, vec![0.5; width]), done()])),
        ("an end before its time", said(&[done()])),
        ("bytes that are no message", vec![4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        ("a message of 4 GiB", vec![0xff; 8]),
    ];
    for (what, task) in &malformed {
        liar.lie(Lies { task: task.clone(), ..lies.clone() });
        withstand(&net, what, async || {
            let (values, done) = embed(&net).await?;
            ensure!(done.lost.len() == 1 && done.lost[0].node == liar_id, "nobody asked the liar: {done:?}");
            ensure!(done.lost[0].reason == Reason::Corrupt.code(), "{:?}", done.lost[0]);
            ensure!(values == truth && done.nodes == [net.node(1).ready().node_id.clone()], "the lie got through");
            Ok(())
        })
        .await?;
    }
    for (what, is_silent, reason) in
        [("silence", true, Reason::Unreachable), ("a closed door", false, Reason::Unreachable)]
    {
        liar.lie(Lies { task: Vec::new(), is_silent, ..lies.clone() });
        let (values, done) = embed(&net).await?;
        ensure!(values == truth && done.lost.len() == 1 && done.lost[0].reason == reason.code(), "{what}: {done:?}");
    }
    liar.lie(Lies { task: said(&[done()]), ..lies.clone() });
    // Points fade with time, so it takes one more than ten.
    for _ in malformed.len()..12 {
        embed(&net).await?;
    }
    liar.until("a dozen malformed answers end in a ban", |seen| !seen.is_connected).await?;
    net.stop().await;
    Ok(())
}

/// A task for node 0, as it would be asked by another node.
fn open(net: &Testnet, revision: &str) -> Result<peer_pb::OpenTask> {
    let embed = peer_pb::EmbedTexts { texts: vec!["a stone".into()], prompt: String::new() };
    Ok(peer_pb::OpenTask {
        realm: net.realm().parse::<RealmId>().ok().context("a realm")?.to_vec(),
        revision: hex(revision)?,
        publisher: vec![3; 32],
        task: Some(peer_pb::open_task::Task::Embed(embed)),
        ..Default::default()
    })
}

fn hex(text: &str) -> Result<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&text[at..at + 2], 16)?)).collect()
}

/// What node 0 answers to a task: its refusal's reason, or nothing when it cuts the stream.
async fn answer(net: &Testnet, open: &peer_pb::OpenTask) -> Result<Option<String>> {
    let endpoint = hostile::endpoint(&Keypair::from_seed([9; 32])).await?;
    let (node, data) = (net.node(0).ready().node_id.parse()?, net.node(0).ready().data.parse()?);
    let connection = link::dial_for(link::TASK_ALPN, &endpoint, node, &[data], SOON).await?;
    let (send, receive) = connection.open_bi().await?;
    let _ = MessageWriter::new(send).write(open).await;
    let mut reader = MessageReader::new(receive);
    let reason = async {
        loop {
            match reader.read::<peer_pb::TaskEvent>().await.ok()?.event {
                Some(task_event::Event::Refused(refused)) => return Some(refused.reason),
                Some(task_event::Event::Beat(_)) => {}
                other => return Some(format!("{other:?}")),
            }
        }
    };
    let reason = tokio::time::timeout(SOON, reason).await.context("no answer")?;
    endpoint.close().await;
    Ok(reason)
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_may_not_be_are_refused_by_reason_and_cost_little() -> Result<()> {
    for (grant, expected) in [("nobody", Reason::NoGrant), ("listed", Reason::BadInput)] {
        let config = format!("[grant]\ncompute = \"{grant}\"\n");
        let net = Testnet::start_configured(CAIRN, 1, &[], &[&config]).await?;
        let folder = tempfile::tempdir()?;
        let published = net.publish(0, &encoder_model(folder.path(), 1)?, REPO).await?;
        withstand(&net, &format!("30 tasks where {grant} may compute"), async || {
            for _ in 0..30 {
                // Of another publisher than it says: the only fault that a neighbour's task has.
                let reason = answer(&net, &open(&net, &published.revision)?).await?;
                ensure!(reason.as_deref() == Some(expected.code()), "{reason:?}");
            }
            Ok(())
        })
        .await?;
        withstand(&net, "tasks beyond their limits", async || {
            let honest = open(&net, &published.revision)?;
            let texts = |texts| {
                let embed = peer_pb::EmbedTexts { texts, prompt: String::new() };
                peer_pb::OpenTask { task: Some(peer_pb::open_task::Task::Embed(embed)), ..honest.clone() }
            };
            for (asked, reason) in [
                (texts(Vec::new()), Some(Reason::BadInput)),
                (texts(vec![String::new(); 1025]), Some(Reason::Limit)),
                (texts(vec!["x".repeat(100_000)]), Some(Reason::Limit)),
                (texts(vec!["x".repeat(60_000); 10]), Some(Reason::Limit)),
                (peer_pb::OpenTask { task: None, ..honest.clone() }, Some(Reason::Unsupported)),
                (peer_pb::OpenTask { realm: vec![1; 31], ..honest.clone() }, Some(Reason::BadInput)),
            ] {
                ensure!(answer(&net, &asked).await? == reason.map(|reason| reason.code().to_owned()));
            }
            Ok(())
        })
        .await?;
        net.stop().await;
    }
    Ok(())
}
