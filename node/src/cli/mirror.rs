//! `cairn mirror`: which repos of others this node keeps.

use cairn_client::api;
use cairn_protocol::refusal::{Reason, Refusal};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::{Map, Value, json};

use super::{Global, Outcome};

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn mirror add acme/tiny\n  cairn mirror add 'acme/*'\n  cairn mirror status")]
pub(super) struct MirrorArgs {
    #[command(subcommand)]
    command: MirrorCommand,
}

#[derive(Subcommand)]
enum MirrorCommand {
    /// Keep what the pattern names, now and as it changes
    #[command(after_help = "Examples:\n  cairn mirror add acme/tiny\n  cairn mirror add '*'")]
    Add {
        /// A repo, PUBLISHER/* or *
        pattern: String,
    },
    /// List the patterns
    #[command(after_help = "Examples:\n  cairn mirror ls\n  cairn mirror ls --json")]
    Ls,
    /// Stop keeping what the pattern names, and free the bytes that only it kept
    #[command(
        after_help = "What was pulled or published here stays, and so does what another pattern names;\n'cairn pull REPO' before keeps a repo's bytes.\n\nExamples:\n  cairn mirror rm acme/tiny"
    )]
    Rm {
        /// As it was added
        pattern: String,
    },
    /// Show how far each mirrored repo is
    #[command(after_help = "Examples:\n  cairn mirror status\n  cairn mirror status --json")]
    Status,
}

pub(super) async fn run(global: &Global, args: MirrorArgs) -> Outcome {
    let client = global.connect().await?;
    let output = global.output();
    match args.command {
        MirrorCommand::Add { pattern } => {
            client.mirror_add(&pattern).await?;
            output.result(&json!({"pattern": pattern, "added": true}), || format!("keeping {pattern}"));
        }
        MirrorCommand::Rm { pattern } => {
            let gone = client.mirror_remove(&pattern).await?;
            if !gone.removed {
                return Err(
                    Refusal::new(Reason::NotFound, pattern, "no mirror has this pattern").try_this("cairn mirror ls")
                );
            }
            let result = json!({
                "pattern": pattern, "removed": true, "revisions": gone.revisions, "bytes_freed": gone.bytes_freed,
            });
            output.result(&result, || removed(&pattern, &gone));
        }
        MirrorCommand::Ls => {
            let list = client.mirror_list().await?;
            output.result(&json!({"patterns": list.patterns}), || list.patterns.join("\n"));
        }
        MirrorCommand::Status => {
            let list = client.mirror_list().await?;
            let repos: Vec<_> = list.repos.iter().map(mirrored).collect();
            output.result(&json!({"patterns": list.patterns, "repos": repos}), || {
                list.repos.iter().map(row).collect::<Vec<_>>().join("\n")
            });
        }
    }
    Ok(true)
}

fn removed(pattern: &str, gone: &api::MirrorRemoveResponse) -> String {
    let bytes = HumanBytes(gone.bytes_freed);
    match gone.revisions {
        0 => format!("no longer keeping {pattern}; it alone kept nothing here"),
        1 => format!("no longer keeping {pattern}: 1 revision, {bytes} are being freed"),
        many => format!("no longer keeping {pattern}: {many} revisions, {bytes} are being freed"),
    }
}

fn mirrored(repo: &api::MirroredRepo) -> Value {
    let from: Map<_, _> = repo.bytes_from.iter().map(|from| (from.node.clone(), json!(from.bytes))).collect();
    json!({
        "repo": repo.repo, "revision": repo.revision, "state": repo.state, "why": repo.why,
        "bytes_total": repo.bytes_total, "bytes_held": repo.bytes_held, "bytes_from": from,
    })
}

fn row(repo: &api::MirroredRepo) -> String {
    let why = if repo.why.is_empty() { String::new() } else { format!("  ({})", repo.why) };
    format!(
        "{:<40} {:.10}  {:<8} {} of {}{why}",
        repo.repo,
        repo.revision,
        repo.state,
        HumanBytes(repo.bytes_held),
        HumanBytes(repo.bytes_total)
    )
}
