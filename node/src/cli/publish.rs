//! `cairn publish` and `cairn quantise`: a file or folder of this machine, or what is made of another revision, becomes a signed
//! revision.

use std::path::{Path, PathBuf};

use cairn_client::{Client, Events, api};
use cairn_compute::quantise::Target;
use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::progress::Bar;
use super::{Global, Outcome, output};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn publish ./SmolLM2-135M-Instruct acme/smol\n  cairn publish model.gguf acme/tiny --tag v1 -m \"First light\"\n  cairn publish poems.txt datasets/acme/poems"
)]
pub(super) struct PublishArgs {
    /// File or folder
    path: PathBuf,
    /// PUBLISHER/NAME, or datasets/PUBLISHER/NAME and the like; a handle that nobody claims gets a new key
    repo: String,
    /// Also set this tag, which never moves; any name but main
    #[arg(long, value_name = "T", default_value = "", hide_default_value = true)]
    tag: String,
    /// What changed
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// Hard-link instead of copying; the files must not be edited afterwards
    #[arg(long)]
    link: bool,
    /// Publish also files that may run something by being opened (see cairn scan)
    #[arg(long)]
    allow_unsafe_files: bool,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn quantise acme/smol acme/smol-q4 --to q4_k\n  cairn quantise acme/smol@v1 acme/smol-q8 --to q8_0 --tag v1 -m \"For small machines\"\n\nThe embedding and the head keep 6 or 8 bits, and what takes no more bits than asked for stays as it is."
)]
pub(super) struct QuantiseArgs {
    /// The model: REPO[@REF]
    source: String,
    /// The repo that the result becomes a revision of
    repo: String,
    /// The type of its matrices: q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0
    #[arg(long, value_name = "TYPE")]
    to: Target,
    /// Also set this tag, which never moves; any name but main
    #[arg(long, value_name = "T", default_value = "", hide_default_value = true)]
    tag: String,
    /// What changed
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
}

pub(super) async fn quantise(global: &Global, args: QuantiseArgs) -> Outcome {
    let QuantiseArgs { source, repo, to, tag, message } = args;
    let ask = api::QuantiseRequest { source, repo, r#type: to.name().to_owned(), message, tag };
    follow(global, global.connect().await?.quantise(ask).await?).await
}

pub(super) async fn publish(global: &Global, args: PublishArgs) -> Outcome {
    let path = absolute(&args.path)?;
    let client = global.connect().await?;
    found(&client, &args.path)?;
    let PublishArgs { repo, tag, message, link, allow_unsafe_files, .. } = args;
    let ask = api::PublishRequest { path, repo, tag, message, link, allow_unsafe_files };
    follow(global, client.publish(ask).await?).await
}

pub(super) async fn follow(global: &Global, mut events: Events<api::PublishEvent>) -> Outcome {
    let output = global.output();
    let bar = Bar::new(output);
    while let Some(event) = events.next().await? {
        match event.event {
            Some(api::publish_event::Event::Progress(progress)) => bar.show(&progress),
            Some(api::publish_event::Event::Done(done)) => {
                bar.clear();
                show(global, &done);
                return Ok(true);
            }
            None => {}
        }
    }
    Err(unfinished("publish"))
}

fn show(global: &Global, done: &api::Published) {
    let value = json!({
        "repo": done.repo, "revision": done.revision, "ref": done.r#ref, "epoch": done.epoch, "number": done.number,
        "files": done.files, "bytes": done.bytes, "key_created": done.key_created, "publisher": done.publisher,
        "unserved": done.unserved,
        "scan": done.scan.as_ref().map(super::scan::told),
        "imported_from": done.imported_from, "unchanged": done.unchanged, "bytes_fetched": done.bytes_fetched,
        "card_problems": done.card_problems.iter().map(super::catalog::card_problem).collect::<Vec<_>>(),
    });
    for problem in &done.card_problems {
        global.output().note(&super::catalog::describe_problem(problem));
    }
    if let Some(scan) = done.scan.as_ref().filter(|scan| scan.verdict != "clean") {
        global.output().note(&format!("scan: {} ({})", scan.verdict, scan.summary));
    }
    global.output().result(&value, || {
        if done.unchanged {
            return format!("{}@{} is {} already: the same files", done.repo, done.r#ref, done.revision);
        }
        let key = if done.key_created && !global.quiet {
            "\na new key was made for this publisher; it is in HOME/keys: back it up"
        } else {
            ""
        };
        let unserved = match done.unserved.as_str() {
            "" => String::new(),
            why => format!("\nit is stored and shared, but no node computes it: {why}"),
        };
        format!(
            "{}@{} is {} ({} files, {}){unserved}{key}",
            done.repo,
            done.r#ref,
            done.revision,
            done.files,
            HumanBytes(done.bytes)
        )
    });
}

/// The daemon has another working folder, so paths travel whole.
pub(super) fn absolute(path: &Path) -> Result<String, Refusal> {
    let whole = std::path::absolute(path).map_err(|error| output::failed(&path.display().to_string(), &error))?;
    whole.into_os_string().into_string().map_err(|path| {
        Refusal::new(Reason::BadInput, path.to_string_lossy(), "the path is not UTF-8")
            .try_this("another name for the file")
    })
}

/// A path that is to be taken in is looked for before anything is asked. A daemon on another machine has other files.
pub(super) fn found(client: &Client, path: &Path) -> Result<(), Refusal> {
    if !client.found().is_local() || path.exists() {
        return Ok(());
    }
    Err(Refusal::new(Reason::NotFound, path.display().to_string(), "there is no such file or folder")
        .try_this("the path of a file or folder"))
}

/// The daemon ended a call without its last word.
pub(super) fn unfinished(what: &str) -> Refusal {
    Refusal::new(Reason::Internal, what, "the daemon ended the call without a result").try_this("the daemon's log")
}
