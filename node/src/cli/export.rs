//! `cairn export`: a revision as files that other programs read, in a folder or in the cache of the Hub's own clients.

use std::path::PathBuf;

use cairn_client::api;
use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::progress::Bar;
use super::publish::{absolute, unfinished};
use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn export acme/tiny --to ./tiny\n  cairn export acme/tiny@v1 --to /srv/tiny --include '*.safetensors' --link\n  cairn export acme/tiny --hub-cache\n  cairn export acme/tiny --hub-cache=/srv/hub\n\nFrom a Hub cache, transformers and huggingface_hub load without a network: from_pretrained(\"acme/tiny\") with HF_HUB_OFFLINE=1."
)]
pub(super) struct ExportArgs {
    /// REPO[@REF]
    repo: String,
    /// The folder
    #[arg(long, value_name = "DIR", required_unless_present = "hub_cache", conflicts_with = "hub_cache")]
    to: Option<PathBuf>,
    /// As the Hub's own clients lay out their cache [default: HF_HUB_CACHE, HF_HOME/hub, else ~/.cache/huggingface/hub]
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true)]
    hub_cache: Option<Option<PathBuf>>,
    /// Only files that match; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Hard-link instead of copying; the files are read-only then
    #[arg(long)]
    link: bool,
}

pub(super) async fn export(global: &Global, args: ExportArgs) -> Outcome {
    let to = match (&args.to, &args.hub_cache) {
        (Some(to), _) | (None, Some(Some(to))) => to.clone(),
        (None, _) => usual_cache()?,
    };
    let ask = api::ExportRequest {
        repo: args.repo,
        to: absolute(&to)?,
        include: args.include,
        link: args.link,
        hub_cache: args.hub_cache.is_some(),
    };
    let mut events = global.connect().await?.export(ask).await?;
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
    Err(unfinished("export"))
}

/// Where the Hub's own clients look.
fn usual_cache() -> Result<PathBuf, Refusal> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    let found = folder("HF_HUB_CACHE")
        .or_else(|| folder("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| cache().map(|cache| cache.join("huggingface").join("hub")));
    found.ok_or_else(|| {
        Refusal::new(Reason::BadInput, "--hub-cache", "no home folder is known").try_this("--hub-cache=DIR")
    })
}

fn show(global: &Global, done: &api::Pulled) {
    let value = json!({
        "repo": done.repo, "revision": done.revision, "files": done.files, "bytes": done.bytes_needed,
        "bytes_fetched": done.bytes_fetched, "files_shared": done.files_shared, "path": done.path,
        "commit": if done.commit.is_empty() { json!(null) } else { json!(done.commit) }, "seconds": done.seconds,
    });
    global.output().result(&value, || {
        format!(
            "{} {:.10}: {} files, {}, in {} ({} share their bytes with the store)",
            done.repo,
            done.revision,
            done.files,
            HumanBytes(done.bytes_needed),
            done.path,
            done.files_shared
        )
    });
}
