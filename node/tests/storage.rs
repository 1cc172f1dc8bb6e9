//! Bytes under attack and under SIGKILL: altered on a provider's disk, half pulled, half published.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cairn_client::api;
use cairn_testnet::{Testnet, wait_until};

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
const REPO: &str = "test/bytes";

/// Publishes of the crash test; each is killed at another moment.
const CRASHES: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_blob_is_noticed_and_fetched_from_another_provider() -> Result<()> {
    let net = Testnet::start(CAIRN, 3, &[]).await?;
    let work = tempfile::tempdir()?;
    net.publish(0, &random_file(work.path(), "weights.bin", 12 << 20)?, REPO).await?;
    net.knows(1, REPO).await?;
    net.pull(1, pull_ask(None)).await?;
    alter_the_largest_blob(net.node(0).home())?;
    net.knows(2, REPO).await?;
    let to = work.path().join("out");
    let pulled = net.pull(2, pull_ask(Some(&to))).await.context("node 1 still holds every byte")?;
    ensure!(pulled.bytes_fetched >= 12 << 20);
    ensure!(std::fs::read(to.join("weights.bin"))? == std::fs::read(work.path().join("weights.bin"))?);
    let found = net.verify(0, REPO).await?;
    ensure!(!found.ok && found.bad.len() == 1 && found.bad[0].path == "weights.bin", "{found:?}");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_provider_is_altered_the_puller_says_what_is_wrong() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    let work = tempfile::tempdir()?;
    net.publish(0, &random_file(work.path(), "weights.bin", 4 << 20)?, REPO).await?;
    net.knows(1, REPO).await?;
    alter_the_largest_blob(net.node(0).home())?;
    let refused = net.pull(1, pull_ask(None)).await.expect_err("no provider has good bytes");
    let text = format!("{refused:#}");
    ensure!(text.contains("weights.bin"), "it names the file: {text}");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_puller_killed_half_way_goes_on_from_what_it_has() -> Result<()> {
    let mut net = Testnet::start(CAIRN, 2, &[]).await?;
    let work = tempfile::tempdir()?;
    let size = 192u64 << 20;
    net.publish(0, &random_file(work.path(), "weights.bin", size as usize)?, REPO).await?;
    net.knows(1, REPO).await?;
    let mut events = net.client(1).pull(pull_ask(None)).await?;
    while let Some(event) = events.next().await? {
        if let Some(api::pull_event::Event::Progress(p)) = event.event
            && p.phase == "fetch"
            && p.bytes_done > size / 4
        {
            break;
        }
    }
    net.node_mut(1).kill().await?;
    net.restart(1).await?;
    net.all_know_each_other().await?;
    net.knows(1, REPO).await?;
    let pulled = net.pull(1, pull_ask(None)).await?;
    eprintln!("after the kill: {} of {size} bytes were there", pulled.bytes_local);
    ensure!(pulled.bytes_local > 0, "nothing was kept");
    ensure!(pulled.bytes_local + pulled.bytes_fetched >= size && pulled.bytes_fetched < size);
    ensure!(net.verify(1, REPO).await?.ok);
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_faster_than_the_rates_that_were_set() -> Result<()> {
    let configs = ["rate_up = \"2MiB\"\n", "", "", "rate_down = \"1MiB\"\n"];
    let net = Testnet::start_configured(CAIRN, 4, &[], &configs).await?;
    let work = tempfile::tempdir()?;
    let size = 3 << 20;
    net.publish(0, &random_file(work.path(), "weights.bin", size)?, REPO).await?;
    for puller in 1..=3 {
        net.knows(puller, REPO).await?;
    }
    // Two at once, of one publisher; each may fetch from the other what that has.
    let started = Instant::now();
    let (one, two) = tokio::try_join!(net.pull(1, pull_ask(None)), net.pull(2, pull_ask(None)))?;
    let publisher = &net.node(0).ready().node_id;
    let from = one.bytes_from.iter().chain(&two.bytes_from).filter(|from| from.node == *publisher);
    let sent = from.map(|from| from.bytes).sum();
    ensure_no_faster(sent, 2 << 20, started.elapsed())?;
    let started = Instant::now();
    let three = net.pull(3, pull_ask(None)).await?;
    ensure_no_faster(three.bytes_fetched, 1 << 20, started.elapsed())?;
    net.stop().await;
    Ok(())
}

/// A publisher whose line is the bound sends little more than one copy, however many fetch: they give to each other what they have
/// so far. One comes late, when the others hold parts only.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_fetch_at_the_same_time_give_to_each_other() -> Result<()> {
    let (rate, size) = (4 << 20, 40 << 20);
    let net = Testnet::start_configured(CAIRN, 4, &[], &["rate_up = \"4MiB\"\n", "", "", ""]).await?;
    let work = tempfile::tempdir()?;
    net.publish(0, &random_file(work.path(), "weights.bin", size)?, REPO).await?;
    for puller in 1..=3 {
        net.knows(puller, REPO).await?;
    }
    let started = Instant::now();
    let late = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        net.pull(3, pull_ask(None)).await
    };
    let pulled = tokio::try_join!(net.pull(1, pull_ask(None)), net.pull(2, pull_ask(None)), late)?;
    let (took, publisher) = (started.elapsed(), &net.node(0).ready().node_id);
    let from = [&pulled.0, &pulled.1, &pulled.2].map(|pulled| {
        let from = pulled.bytes_from.iter().find(|from| from.node == *publisher);
        from.map_or(0, |from| from.bytes)
    });
    let copies = from.iter().sum::<u64>() as f64 / size as f64;
    eprintln!(
        "3 copies in {took:?}, at the publisher's rate one takes {} s; it sent {copies:.2} copies: {from:?}",
        size / rate
    );
    ensure!(copies < 2.0, "the publisher sent {copies:.2} copies: {from:?}");
    for puller in 1..=3 {
        ensure!(net.verify(puller, REPO).await?.ok);
    }
    net.stop().await;
    Ok(())
}

/// A quarter of a second's worth may go at once, of proofs too.
fn ensure_no_faster(bytes: u64, rate: u64, took: Duration) -> Result<()> {
    let least = Duration::from_secs_f64((bytes as f64 - rate as f64 / 4.0).max(0.0) / rate as f64);
    eprintln!("{bytes} bytes in {took:?}, at the rate not under {least:?}");
    ensure!(took >= least, "{bytes} bytes in {took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_kill_is_whole_after_it() -> Result<()> {
    let mut net = Testnet::start(CAIRN, 1, &[]).await?;
    let work = tempfile::tempdir()?;
    let mut acknowledged = Vec::new();
    let times = std::env::var("CAIRN_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(CRASHES);
    for round in 0..times {
        let path = random_file(work.path(), &format!("part{round}.bin"), (1 << 20) + round * 77_777)?;
        let repo = format!("test/crash{round}");
        let killed_after_ms = (round * 7 % 90) as u64;
        let published = tokio::select! {
            done = net.publish(0, &path, &repo) => done.ok(),
            () = tokio::time::sleep(Duration::from_millis(killed_after_ms)) => None,
        };
        net.node_mut(0).kill().await?;
        if let Some(done) = published {
            acknowledged.push((repo, done.revision));
        }
        net.restart(0).await?;
        for (repo, revision) in &acknowledged {
            let found = net.client(0).resolve(repo.as_str()).await.with_context(|| format!("{repo} is gone"))?;
            ensure!(found.revision == *revision, "{repo} went back");
            let report = net.verify(0, repo).await?;
            ensure!(report.ok, "{repo}: {report:?}");
        }
    }
    eprintln!("{} of {times} publishes were acknowledged before the kill; all are whole", acknowledged.len());
    ensure!(!acknowledged.is_empty() && acknowledged.len() < times, "the kills missed the interesting moments");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_late_and_mirrors_everything_gets_everything() -> Result<()> {
    let mut net = Testnet::start(CAIRN, 2, &[]).await?;
    let work = tempfile::tempdir()?;
    for i in 0..5 {
        net.publish(
            i % 2,
            &random_file(work.path(), &format!("f{i}.bin"), 100_000 + i)?,
            &format!("p{}/repo{i}", i % 2),
        )
        .await?;
    }
    let late = net.add(&[]).await?;
    net.all_know_each_other().await?;
    net.client(late).mirror_add("*").await?;
    wait_until("the late node holds all five repos", || async {
        let repos = net.client(late).mirror_list().await?.repos;
        Ok(repos.len() == 5 && repos.iter().all(|r| r.state == "held"))
    })
    .await?;
    for i in 0..5 {
        ensure!(net.verify(late, &format!("p{}/repo{i}", i % 2)).await?.ok);
    }
    let gone = net.client(late).mirror_remove("*").await?;
    ensure!(gone.removed && gone.revisions == 5 && gone.bytes_freed >= 5 * 100_000, "{gone:?}");
    wait_until("the late node has freed the bytes of all five repos", || async {
        Ok(net.client(late).status().await?.bytes_stored == 0)
    })
    .await?;
    net.stop().await;
    Ok(())
}

fn pull_ask(to: Option<&Path>) -> api::PullRequest {
    let to = to.map(|path| path.display().to_string()).unwrap_or_default();
    api::PullRequest { repo: REPO.into(), to, ..api::PullRequest::default() }
}

/// A file whose bytes do not repeat.
fn random_file(folder: &Path, name: &str, bytes: usize) -> Result<PathBuf> {
    let mut data = vec![0; bytes];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut data);
    let path = folder.join(name);
    std::fs::write(&path, data)?;
    Ok(path)
}

/// Flips a byte in the middle of the largest file of a node's blob store, as a failing disk would.
fn alter_the_largest_blob(home: &Path) -> Result<()> {
    let mut largest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(home.join("blobs/data")).context("the blob store's data folder")? {
        let entry = entry?;
        let size = entry.metadata()?.len();
        if largest.as_ref().is_none_or(|(most, _)| size > *most) {
            largest = Some((size, entry.path()));
        }
    }
    let (size, path) = largest.context("a blob")?;
    let mut bytes = std::fs::read(&path)?;
    bytes[size as usize / 2] ^= 0x40;
    std::fs::write(&path, bytes)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_fails_leaves_no_key_and_a_claimed_handle_is_refused() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &[]).await?;
    let work = tempfile::tempdir()?;
    let keys = net.node(1).home().join("keys");
    net.publish(1, &work.path().join("missing"), "carl/foo").await.expect_err("there is no such file");
    let left = std::fs::read_dir(&keys).map(Iterator::count).unwrap_or(0);
    ensure!(left == 0, "{left} keys were made for nothing");
    let file = random_file(work.path(), "weights.bin", 1 << 16)?;
    net.publish(0, &file, "carl/foo").await?;
    net.knows(1, "carl/foo").await?;
    let refused = net.publish(1, &file, "carl/bar").await.expect_err("the handle is the other node's");
    ensure!(format!("{refused:#}").contains("is claimed by the key"), "{refused:#}");
    net.stop().await;
    Ok(())
}
