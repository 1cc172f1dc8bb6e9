//! The hostile list, against real daemons: whatever strangers send, the answer is a clear refusal, the daemon goes on
//! serving, and its memory rises by at most [`RISE_BYTES_MAX`] at the peak. `--nocapture` shows each rise.
//!
//! Here is the ground that every attack stands on. Not here: what a daemon's owner may ask (`doors`), stages that die
//! (`generation`), disks that lie (`storage`).
#![allow(clippy::unwrap_used, clippy::panic)]

mod calls;
#[path = "../daemon/mod.rs"]
mod daemon;
mod files;
mod grants;
mod held;
mod hostile;
mod manifests;
mod mirrors;
mod records;
mod signer;
mod tasks;

use std::{fs, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use cairn_testnet::{Memory, Testnet, tiny_model, wait_until};
use daemon::error_of;
use hostile::{Lies, Stranger};
use serde_json::Value;

const CAIRN: &str = env!("CARGO_BIN_EXE_cairn");
/// More memory than this for strangers' nonsense is a leak.
const RISE_BYTES_MAX: u64 = 64 << 20;
/// "Within a few seconds": a half-open connection's time, and one pause between two dials.
const SOON: Duration = Duration::from_secs(10);

/// Has `attack` done to node 0, and demands that the node serves afterwards and took little memory for it.
async fn withstand(net: &Testnet, what: &str, attack: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    // What a first call brings into memory is not the attack's.
    net.client(0).status().await?;
    let memory = Memory::watch(net.node(0).ready().pid)?;
    attack().await.with_context(|| what.to_owned())?;
    net.client(0).status().await.with_context(|| format!("after {what} it no longer serves"))?;
    let rise_bytes = memory.rise_bytes().with_context(|| format!("after {what} it is gone"))?;
    eprintln!("rise {:6.1} MiB  {what}", rise_bytes as f64 / f64::from(1 << 20));
    ensure!(rise_bytes <= RISE_BYTES_MAX, "{what} took {rise_bytes} bytes of memory");
    Ok(())
}

/// A daemon that has published the built-in model, and logs its decisions.
async fn serving() -> Result<(Testnet, tempfile::TempDir)> {
    let net = Testnet::start(CAIRN, 1, &["-v"]).await?;
    let folder = tempfile::tempdir()?;
    net.publish(0, &tiny_model(folder.path())?, "honest/tiny").await?;
    Ok((net, folder))
}

/// Runs a client command of node 0's owner to its end.
fn cairn(net: &Testnet, words: &[&str]) -> Output {
    tokio::task::block_in_place(|| daemon::cairn(net.node(0).home(), words))
}

/// The command failed with that exit code and that reason, in one line that says why and what to try.
fn refused(output: &Output, exit: i32, code: &str, why: &str) -> Result<Value> {
    ensure!(output.status.code() == Some(exit), "exit {:?}: {output:?}", output.status.code());
    let error = error_of(output);
    ensure!(error["code"] == code && error["why"].as_str().unwrap().contains(why), "{error}");
    ensure!(!error["try"].as_str().unwrap().is_empty(), "no advice: {error}");
    Ok(error)
}

/// Waits until node 0's log holds a line with all of these words.
async fn logged(net: &Testnet, words: &[&str]) -> Result<()> {
    let log = net.node(0).home().join("stderr.log");
    let is_there = || async {
        let text = fs::read_to_string(&log)?;
        Ok(text.lines().any(|line| words.iter().all(|word| line.contains(word))))
    };
    wait_until(&format!("the log says {words:?}"), is_there).await
}

async fn meet(net: &Testnet, seed: u8, lies: Lies) -> Result<Stranger> {
    let ready = net.node(0).ready();
    let tcp = ready.listen.iter().find(|address| address.contains("/tcp/")).context("a TCP address")?;
    Stranger::meet(seed, net.realm(), tcp, lies).await
}
