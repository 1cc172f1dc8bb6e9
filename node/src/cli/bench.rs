//! `cairn bench`: what this machine can do, measured here and now. Needs no daemon.

use clap::{Args, Subcommand};

use super::{Global, Outcome};

mod blobs;
mod engine;

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn bench engine model.gguf\n  cairn bench blobs --json")]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure prefill and decode of a model
    Engine(engine::EngineArgs),
    /// Measure import, transfer and export of blobs over loopback
    Blobs(blobs::BlobsArgs),
}

pub(super) async fn run(global: &Global, args: BenchArgs) -> Outcome {
    match args.command {
        BenchCommand::Engine(args) => engine::run(global, args).await,
        BenchCommand::Blobs(args) => blobs::run(global, args).await,
    }
}
