//! `cairn pull`: fetch what is missing, verify it, and put it into a folder if asked.

use std::path::PathBuf;

use cairn_client::api;
use cairn_protocol::layers::LayerRange;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Map, json};

use super::progress::Bar;
use super::publish::{absolute, unfinished};
use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn pull acme/tiny\n  cairn pull acme/tiny@v1 --to ./tiny --include '*.json' --include '*.safetensors'\n  cairn pull acme/tiny --layers 0..10"
)]
pub(super) struct PullArgs {
    /// REPO[@REF]
    repo: String,
    /// Also put the files into this folder
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Only files that match; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Only the tensors of these layers, half-open
    #[arg(long, value_name = "A..B", value_parser = some_layers)]
    layers: Option<LayerRange>,
    /// Pull it although this advisory refuses it; may be given several times
    #[arg(long, value_name = "ADVISORY")]
    despite: Vec<String>,
    /// Hard-link instead of copying; the files are read-only then
    #[arg(long)]
    link: bool,
}

/// None at all would be understood as all of them.
fn some_layers(text: &str) -> Result<LayerRange, String> {
    let layers: LayerRange = text.parse().map_err(|error| format!("{error}"))?;
    if layers.is_empty() { Err("it holds no layer".to_owned()) } else { Ok(layers) }
}

pub(super) async fn run(global: &Global, args: PullArgs) -> Outcome {
    let to = args.to.as_deref().map(absolute).transpose()?.unwrap_or_default();
    let (layers_from, layers_to) = args.layers.map_or((0, 0), |layers| (layers.start, layers.end));
    let PullArgs { repo, include, link, despite, .. } = args;
    let ask = api::PullRequest { repo, to, include, layers_from, layers_to, link, despite };
    let mut events = global.connect().await?.pull(ask).await?;
    let bar = Bar::new(global.output());
    while let Some(event) = events.next().await? {
        match event.event {
            Some(api::pull_event::Event::Progress(progress)) => bar.show(&progress),
            Some(api::pull_event::Event::Done(done)) => {
                bar.clear();
                show(global, &done);
                return Ok(true);
            }
            None => {}
        }
    }
    Err(unfinished("pull"))
}

fn show(global: &Global, done: &api::Pulled) {
    let from: Map<_, _> = done.bytes_from.iter().map(|from| (from.node.clone(), json!(from.bytes))).collect();
    let value = json!({
        "repo": done.repo, "revision": done.revision, "bytes_total": done.bytes_total, "bytes_needed": done.bytes_needed,
        "bytes_local": done.bytes_local, "bytes_fetched": done.bytes_fetched, "bytes_overhead": done.bytes_overhead,
        "bytes_from": from, "seconds": done.seconds, "files": done.files,
        "advisories": done.advisories.iter().map(super::advise::advisory).collect::<Vec<_>>(),
        "path": if done.path.is_empty() { json!(null) } else { json!(done.path) },
    });
    for advisory in &done.advisories {
        global.output().note(&super::advise::describe(advisory));
    }
    global.output().result(&value, || {
        let place =
            if done.path.is_empty() { String::new() } else { format!("\n{} files in {}", done.files, done.path) };
        let sources: Vec<String> =
            done.bytes_from.iter().map(|from| format!("{} from {:.10}", HumanBytes(from.bytes), from.node)).collect();
        let sources = if sources.is_empty() { String::new() } else { format!(" ({})", sources.join(", ")) };
        format!(
            "{} {:.10}: {} needed, {} were here, {} fetched in {:.1} s{sources}{place}",
            done.repo,
            done.revision,
            HumanBytes(done.bytes_needed),
            HumanBytes(done.bytes_local),
            HumanBytes(done.bytes_fetched),
            done.seconds
        )
    });
}
