//! `cairn demo`: the whole story on one machine, with real processes.
//!
//! It starts `cairn node` processes on loopback, drives them through the gRPC API as any client would, and takes down what
//! it put up: no process and no file stays behind, also on Ctrl-C, SIGTERM, or when its reader goes away. Nothing here is
//! special to the demo but the order of the calls.

mod story;
mod teller;

use std::path::PathBuf;

use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;

use self::story::Story;
use self::teller::Teller;
use super::interruption::{Interruption, interrupted};
use super::{Global, Outcome};

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

/// Tells the story: with `--json` one object a step and the result last.
pub(super) async fn run(global: &Global, args: DemoArgs) -> Outcome {
    // Before the first process and folder, so that nothing that interrupts comes too early.
    let mut interruption = Interruption::listen()?;
    let program = std::env::current_exe().map_err(|error| {
        Refusal::new(Reason::Internal, "cairn demo", format!("can't find its own program: {error}"))
            .try_this("a path without links")
    })?;
    let (teller, mut broken) = Teller::new(global.output());
    let mut story = tokio::select! {
        story = Story::begin(&args, program, teller) => story?,
        () = interruption.comes() => return Err(interrupted("cairn demo")),
    };
    let told = tokio::select! {
        told = story.tell(global, &args) => told,
        () = interruption.comes() => Err(interrupted("cairn demo")),
        Some(error) = broken.recv() => global.output().unwritable(&error).map_or(Ok(()), Err),
    };
    let kept: Option<PathBuf> = tokio::select! {
        kept = story.end(args.keep) => kept,
        // Asked twice: the nodes are killed.
        () = interruption.comes() => return Err(interrupted("cairn demo")),
    };
    if let Some(folder) = kept {
        global.output().note(&format!("the nodes' homes are in {}", folder.display()));
    }
    told.map(|()| true)
}
