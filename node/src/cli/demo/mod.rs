//! `cairn demo`: the whole story on one machine, with real processes.
//!
//! It starts `cairn node` processes on loopback, drives them through the gRPC API as any client would, and takes down what
//! it put up: no process and no file stays behind, also on Ctrl-C or SIGTERM. Nothing here is special to the demo but the
//! order of the calls.

mod story;
mod teller;

use std::path::PathBuf;

use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use self::story::Story;
use self::teller::Teller;

/// What `cairn demo` takes.
#[derive(Args, Debug, Clone)]
pub struct DemoArgs {
    /// How many nodes to start
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub nodes: u32,
    /// Another model: a folder, a .gguf file, or a repo that your running daemon can pull
    #[arg(long, value_name = "PATH|REPO")]
    pub model: Option<String>,
    /// Leave the nodes' homes behind and say where they are
    #[arg(long)]
    pub keep: bool,
}

/// Tells the story; `json` prints one object a step and the result last.
pub async fn run(args: DemoArgs, json: bool) -> Result<(), Refusal> {
    let program = std::env::current_exe().map_err(|error| {
        Refusal::new(Reason::Internal, "cairn demo", format!("can't find its own program: {error}"))
            .try_this("a path without links")
    })?;
    let mut story = Story::begin(&args, program, Teller::new(json)).await?;
    let told = tokio::select! {
        told = story.tell(&args) => told,
        () = interrupted() => Err(Refusal::new(Reason::Cancelled, "cairn demo", "interrupted; its nodes are stopped").try_this("cairn demo")),
    };
    let kept: Option<PathBuf> = story.end(args.keep).await;
    if let Some(folder) = kept {
        eprintln!("the nodes' homes are in {}", folder.display());
    }
    told
}

/// Returns on Ctrl-C or SIGTERM.
async fn interrupted() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => (),
        _ = terminate.recv() => (),
    }
}
