//! `cairn bundle`: repos in one file, carried to where no network leads.
//!
//! Paths are the daemon's, so a terabyte is not sent through a socket to be written beside the socket; `-` streams through this process.

use std::path::{Path, PathBuf};

use cairn_client::{Client, api};
use cairn_protocol::limits::PIECE_BYTES_MAX;
use cairn_protocol::refusal::{Reason, Refusal};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::progress::Bar;
use super::publish::{absolute, unfinished};
use super::{Global, Outcome, output};
use crate::flows::bundle::apply_refusal;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bundle create acme/tiny -o tiny.cairn\n  cairn bundle apply tiny.cairn\n\nOnly what the other side lacks:\n  there:  cairn bundle summary -o there.summary\n  here:   cairn bundle create --all --since there.summary -o more.cairn\n  there:  cairn bundle apply more.cairn"
)]
pub(super) struct BundleArgs {
    #[command(subcommand)]
    command: BundleCommand,
}

#[derive(Subcommand)]
enum BundleCommand {
    /// Write repos into one file: their records, and the bytes of revisions that are kept here
    #[command(
        after_help = "Examples:\n  cairn bundle create acme/tiny acme/poems@v2 -o two.cairn\n  cairn bundle create --all -o all.cairn\n  cairn bundle create --all --since there.summary -o more.cairn\n  cairn bundle create acme/tiny -o - | ssh lab cairn bundle apply -"
    )]
    Create(CreateArgs),
    /// Verify a bundle and take it in; what is here already is skipped
    #[command(
        after_help = "Examples:\n  cairn bundle apply tiny.cairn\n  cairn bundle apply - < tiny.cairn\n\nNothing of it is visible before all of it is here. An apply that broke off goes on where it was."
    )]
    Apply {
        /// The bundle; - reads standard input
        file: PathBuf,
        /// Take in the rest when a record of it is refused
        #[arg(long)]
        keep_going: bool,
    },
    /// Verify a bundle and say what is in it; needs no daemon
    #[command(after_help = "Examples:\n  cairn bundle show tiny.cairn\n  cairn bundle show - --json < tiny.cairn")]
    Show {
        /// The bundle; - reads standard input
        file: PathBuf,
    },
    /// Write down what this node holds, for a bundle of what it lacks
    #[command(after_help = "Examples:\n  cairn bundle summary -o there.summary")]
    Summary {
        /// Where to; - writes to standard output
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

#[derive(Args)]
struct CreateArgs {
    /// REPO[@REF]; with a ref, only that revision's bytes go along
    #[arg(value_name = "REPO", required_unless_present_any = ["all", "kept"], conflicts_with_all = ["all", "kept"])]
    repos: Vec<String>,
    /// The whole catalogue, and every revision that is kept here
    #[arg(long, conflicts_with = "kept")]
    all: bool,
    /// Every repo of which a revision is kept here, and nothing of others
    #[arg(long)]
    kept: bool,
    /// Where to; - writes to standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Leave out what this summary of another node names
    #[arg(long, value_name = "SUMMARY")]
    since: Option<PathBuf>,
    /// Only records, no bytes of files
    #[arg(long)]
    no_blobs: bool,
}

pub(super) async fn run(global: &Global, args: BundleArgs) -> Outcome {
    match args.command {
        BundleCommand::Create(args) => create(global, args).await,
        BundleCommand::Apply { file, keep_going } => apply(global, &file, keep_going).await,
        BundleCommand::Show { file } => show(global, &file).await,
        BundleCommand::Summary { output } => summary(global, &output).await,
    }
}

async fn create(global: &Global, args: CreateArgs) -> Outcome {
    let is_piped = is_stream(&args.output);
    let ask = api::BundleCreateRequest {
        repos: args.repos,
        path: if is_piped { String::new() } else { absolute(&args.output)? },
        since: args.since.as_deref().map(absolute).transpose()?.unwrap_or_default(),
        records_only: args.no_blobs,
        catalogue: args.all,
    };
    let mut events = global.connect().await?.bundle_create(ask).await?;
    let bar = Bar::new(global.output());
    let mut stdout = tokio::io::stdout();
    while let Some(event) = events.next().await? {
        match event.event {
            Some(api::bundle_create_event::Event::Progress(progress)) => bar.show(&shown("bundle", &progress)),
            Some(api::bundle_create_event::Event::Piece(piece)) => {
                stdout.write_all(&piece).await.map_err(|error| output::failed("standard output", &error))?;
            }
            Some(api::bundle_create_event::Event::Done(done)) => {
                bar.clear();
                stdout.flush().await.map_err(|error| output::failed("standard output", &error))?;
                return created(global, &args.output, &done);
            }
            None => {}
        }
    }
    Err(unfinished("bundle create"))
}

/// The result; beside the bundle, if that went to standard output.
fn created(global: &Global, file: &Path, done: &api::Bundled) -> Outcome {
    let text = format!(
        "{}: {} records, {} revisions, {} blobs ({})",
        file.display(),
        done.records,
        done.revisions,
        done.blobs,
        HumanBytes(done.bytes)
    );
    if is_stream(file) {
        global.output().note(&text);
        return Ok(true);
    }
    let value = with(totals(done), json!({"path": file.display().to_string(), "file_bytes": done.file_bytes}));
    global.output().result(&value, || text);
    Ok(true)
}

async fn apply(global: &Global, file: &Path, keep_going: bool) -> Outcome {
    let client = global.connect().await?;
    let mut events = match is_stream(file) {
        true => apply_stdin(&client, keep_going).await?,
        false => {
            let ask = api::BundleApplyRequest { path: absolute(file)?, keep_going, piece: Vec::new() };
            client.bundle_apply(futures::stream::once(async { ask })).await?
        }
    };
    let bar = Bar::new(global.output());
    while let Some(event) = events.next().await? {
        match event.event {
            Some(api::bundle_apply_event::Event::Progress(progress)) => bar.show(&shown("apply", &progress)),
            Some(api::bundle_apply_event::Event::Done(done)) => {
                bar.clear();
                return applied(global, &done);
            }
            None => {}
        }
    }
    Err(unfinished("bundle apply"))
}

async fn apply_stdin(
    client: &Client,
    keep_going: bool,
) -> Result<cairn_client::Events<api::BundleApplyEvent>, Refusal> {
    let first = api::BundleApplyRequest { path: String::new(), keep_going, piece: Vec::new() };
    let pieces = futures::stream::unfold(Some(first), |ask| async {
        let ask = ask?;
        Some((ask, next_piece().await))
    });
    client.bundle_apply(pieces).await
}

/// The next bytes of standard input. One that breaks off ends the bundle early, which the daemon tells.
async fn next_piece() -> Option<api::BundleApplyRequest> {
    let mut piece = vec![0; PIECE_BYTES_MAX];
    let read = tokio::io::stdin().read(&mut piece).await.ok().filter(|read| *read > 0)?;
    piece.truncate(read);
    Some(api::BundleApplyRequest { piece, ..api::BundleApplyRequest::default() })
}

fn applied(global: &Global, done: &api::Bundled) -> Outcome {
    let new = json!({
        "new": done.new_records + done.new_blobs, "new_records": done.new_records, "new_blobs": done.new_blobs,
        "new_bytes": done.new_bytes, "refused": done.refused,
        "advisories": done.advisories.iter().map(super::advise::advisory).collect::<Vec<_>>(),
    });
    for refused in &done.refused {
        global.output().note(refused);
    }
    for advisory in &done.advisories {
        global.output().note(&super::advise::describe(advisory));
    }
    global.output().result(&with(totals(done), new), || {
        format!(
            "{} records, {} revisions, {} blobs ({}); new here: {} records, {} blobs ({})",
            done.records,
            done.revisions,
            done.blobs,
            HumanBytes(done.bytes),
            done.new_records,
            done.new_blobs,
            HumanBytes(done.new_bytes)
        )
    });
    Ok(true)
}

async fn show(global: &Global, file: &Path) -> Outcome {
    let bar = Bar::new(global.output());
    let tell = |read: cairn_registry::Progress| {
        let progress = api::BundleProgress { bytes_done: read.done, bytes_total: read.total };
        bar.show(&shown("verify", &progress));
    };
    let what = file.display().to_string();
    let shown = match is_stream(file) {
        true => cairn_registry::show_bundle(tokio::io::stdin(), tell).await,
        false => {
            let opened = tokio::fs::File::open(file).await.map_err(|error| unreadable(&what, &error))?;
            cairn_registry::show_bundle(tokio::io::BufReader::with_capacity(1 << 20, opened), tell).await
        }
    };
    let shown = shown.map_err(|error| apply_refusal(&what, error))?;
    bar.clear();
    let revisions: Vec<Value> = shown.revisions.iter().map(|one| json!({
        "repo": one.repo.to_string(), "revision": one.revision.to_string(), "files": one.files, "bytes": one.bytes,
        "bytes_inside": one.bytes_inside,
    })).collect();
    let value = json!({
        "realm": shown.realm.to_string(), "records": shown.totals.records, "blobs": shown.totals.blobs,
        "bytes": shown.totals.bytes, "new": null, "revisions": revisions,
    });
    global.output().result(&value, || {
        let mut lines = vec![format!(
            "sound; realm {}, {} records, {} blobs ({})",
            shown.realm,
            shown.totals.records,
            shown.totals.blobs,
            HumanBytes(shown.totals.bytes)
        )];
        lines.extend(shown.revisions.iter().map(|one| {
            let (bytes, inside) = (HumanBytes(one.bytes), HumanBytes(one.bytes_inside));
            format!("{}@{}  {} files, {bytes}, {inside} of it inside", one.repo, one.revision, one.files)
        }));
        lines.join("\n")
    });
    Ok(true)
}

async fn summary(global: &Global, file: &Path) -> Outcome {
    let mut events = global.connect().await?.bundle_summary().await?;
    let (mut bytes, mut records, mut blobs) = (Vec::new(), 0, 0);
    while let Some(piece) = events.next().await? {
        bytes.extend_from_slice(&piece.piece);
        (records, blobs) = (piece.records, piece.blobs);
    }
    if is_stream(file) {
        let mut stdout = tokio::io::stdout();
        let written = async { stdout.write_all(&bytes).await.and(stdout.flush().await) }.await;
        written.map_err(|error| output::failed("standard output", &error))?;
        return Ok(true);
    }
    let what = file.display().to_string();
    std::fs::write(file, &bytes).map_err(|error| unwritable(&what, &error))?;
    let value = json!({"path": what, "records": records, "blobs": blobs, "bytes": bytes.len(), "new": null});
    global.output().result(&value, || format!("{what}: {records} records, {blobs} blobs"));
    Ok(true)
}

fn totals(done: &api::Bundled) -> Value {
    json!({
        "records": done.records, "revisions": done.revisions, "blobs": done.blobs, "bytes": done.bytes, "new": null,
        "seconds": done.seconds,
    })
}

/// One object of both; the second counts.
fn with(mut first: Value, second: Value) -> Value {
    if let (Value::Object(first), Value::Object(second)) = (&mut first, second) {
        first.extend(second);
    }
    first
}

fn shown(phase: &str, progress: &api::BundleProgress) -> api::Progress {
    let api::BundleProgress { bytes_done, bytes_total } = *progress;
    api::Progress { phase: phase.to_owned(), bytes_done, bytes_total, ..api::Progress::default() }
}

fn is_stream(file: &Path) -> bool {
    file == Path::new("-")
}

fn unreadable(what: &str, error: &std::io::Error) -> Refusal {
    let reason = if error.kind() == std::io::ErrorKind::NotFound { Reason::NotFound } else { Reason::BadInput };
    Refusal::new(reason, what, error.to_string()).try_this("the path of a bundle")
}

fn unwritable(what: &str, error: &std::io::Error) -> Refusal {
    let is_full = error.kind() == std::io::ErrorKind::StorageFull;
    let reason = if is_full { Reason::DiskFull } else { Reason::BadInput };
    Refusal::new(reason, what, error.to_string()).try_this("another place for the file")
}
