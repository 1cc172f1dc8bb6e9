//! Many clients at one node: who is over the quota waits in line, nobody waits for another's many, and a full line says so.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use cairn_client::{Client, Reason, Refusal, api, api::generate_event::Event};
use cairn_testnet::{Generation, PATIENCE, Testnet, greedy, metric, tiny_model, wait_until};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const REPO: &str = "test/model";
const PROMPT: &str = "JULIET:\nWhat's in a name? ";

/// Node 0 asks and keeps no layers; node 1 computes for one session of each node at a time.
async fn narrow(line: u32, wait_s: u32) -> Result<(Testnet, tempfile::TempDir)> {
    let asks = format!("stage_memory_bytes = \"0\"\nwait_s = {wait_s}\n");
    let computes = format!("sessions_per_peer = 1\nwaiting_per_peer = {line}\n");
    let net = Testnet::start_configured(CAIRN, 2, &[], &[&asks, &computes]).await?;
    let folder = tempfile::tempdir()?;
    net.publish(0, &tiny_model(folder.path())?, REPO).await?;
    Ok((net, folder))
}

/// A generation and the places in line that it was told of.
async fn heard(client: &Client, ask: api::GenerateRequest) -> Result<(Generation, Vec<u32>)> {
    let mut places = Vec::new();
    let made = Generation::run(client, ask, async |event| {
        if let Event::Progress(progress) = event
            && progress.phase == "wait"
        {
            places.push(progress.place);
        }
        Ok(())
    })
    .await?;
    Ok((made, places))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_over_the_quota_waits_in_line_and_gets_what_it_gets_alone() -> Result<()> {
    let (net, _model) = narrow(8, 60).await?;
    let client = net.client(0);
    let alone = Generation::of(client, greedy(REPO, PROMPT, 30, 1)).await?;
    let all = futures::future::try_join_all((0..5).map(|_| heard(client, greedy(REPO, PROMPT, 30, 1)))).await?;
    for (made, places) in &all {
        ensure!(made.tokens == alone.tokens && made.done.recoveries == 0, "{:?}", made.text);
        ensure!(places.is_sorted_by(|a, b| a > b), "a place in line only gets nearer: {places:?}");
    }
    let waited = all.iter().filter(|(_, places)| !places.is_empty()).count();
    ensure!(waited >= 3, "one had the place, the others were told of theirs: {waited}");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_line_is_gone_at_once_and_a_full_line_turns_the_next_away() -> Result<()> {
    let (net, _model) = narrow(1, 60).await?;
    let (client, computes) = (net.client(0), net.client(1));
    let mut runs = client.generate(greedy(REPO, PROMPT, 300, 1)).await?;
    until_token(&mut runs).await?;
    let mut waits = client.generate(greedy(REPO, PROMPT, 3, 1)).await?;
    until_wait(&mut waits).await?;
    drop(waits);
    wait_until("the line is empty", async || Ok(metric(computes, "cairn_stage_waiting").await? == 0.0)).await?;
    ensure!(metric(computes, "cairn_stage_waits_total").await? == 0.0, "it was never let in");
    // The line holds one: of three who come now, one is turned away and comes back.
    let asks = (0..3).map(|_| Generation::of(client, greedy(REPO, PROMPT, 20, 1)));
    let all = futures::future::try_join_all(asks).await?;
    ensure!(all.iter().all(|made| made.tokens == all[0].tokens && made.tokens.len() == 20));
    ensure!(metric(computes, "cairn_stage_wait_refusals_total").await? >= 1.0);
    ensure!(metric(computes, "cairn_stage_waits_total").await? >= 1.0);
    drop(runs);
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_patience_a_busy_node_is_said_to_be_busy() -> Result<()> {
    let (net, _model) = narrow(4, 0).await?;
    let client = net.client(0);
    let mut runs = client.generate(greedy(REPO, PROMPT, 300, 1)).await?;
    until_token(&mut runs).await?;
    let refused = Generation::of(client, greedy(REPO, PROMPT, 3, 1)).await.expect_err("its one place is taken");
    let error = refused.downcast_ref::<Refusal>().context("a refusal")?;
    ensure!(error.reason == Reason::Busy, "{refused}");
    drop(runs);
    wait_until("the place is free again", async || {
        Ok(Generation::of(client, greedy(REPO, PROMPT, 3, 1)).await.is_ok())
    })
    .await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_told_its_place_in_line() -> Result<()> {
    let (net, _model) = narrow(4, 60).await?;
    // One of them has the place and the other is before whoever comes, so that it is never free.
    let mut others = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let client = net.client(0).clone();
        others.spawn(async move { while Generation::of(&client, greedy(REPO, PROMPT, 300, 1)).await.is_ok() {} });
    }
    wait_until("one is in line", async || Ok(metric(net.client(1), "cairn_stage_waiting").await? > 0.0)).await?;
    let mut command = tokio::process::Command::new(CAIRN);
    command.args(["run", REPO, PROMPT, "--raw", "--max-tokens", "3", "--json", "--api", &net.node(0).ready().api]);
    let waits = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(waits.stdout.context("its output")?).lines();
    let mut line = async || -> Result<Value> {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await??;
        Ok(serde_json::from_str(&line.context("it ended")?)?)
    };
    ensure!(line().await?["event"] == "started", "a plan was made");
    let told = line().await?;
    let node = net.node(1).ready().node_id.as_str();
    ensure!(told["event"] == "progress" && told["phase"] == "wait", "{told}");
    ensure!(told["place"].as_u64() > Some(0) && told["item"] == node && told["choice"] == 0, "{told}");
    drop(others);
    let mut last = told;
    while last["event"] != "done" {
        last = line().await?;
    }
    ensure!(last["tokens"].as_array().is_some_and(|tokens| tokens.len() == 3), "{last}");
    net.stop().await;
    Ok(())
}

async fn until_token(events: &mut cairn_client::Events<api::GenerateEvent>) -> Result<()> {
    while let Some(event) = events.next().await? {
        if matches!(event.event, Some(Event::Token(_))) {
            return Ok(());
        }
    }
    anyhow::bail!("it ended without a token")
}

async fn until_wait(events: &mut cairn_client::Events<api::GenerateEvent>) -> Result<()> {
    while let Some(event) = events.next().await? {
        if matches!(&event.event, Some(Event::Progress(progress)) if progress.phase == "wait") {
            return Ok(());
        }
    }
    anyhow::bail!("it ended without waiting")
}
