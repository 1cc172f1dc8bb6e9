//! `cairn scan`: what the files of a repo or of a folder would do to whoever opens them. A path that is here is scanned by the daemon of
//! this machine; what looks like a path is one.

use cairn_client::api;
use clap::Args;
use serde_json::{Value, json};

use super::publish::{absolute, found, unfinished};
use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn scan acme/tiny\n  cairn scan ./downloads/model --json\n  cairn scan pytorch_model.bin\n\nExit 0: clean, or code that clients may run; 1: unsafe. Pickles are read, never loaded."
)]
pub(super) struct ScanArgs {
    /// REPO[@REF], a file or a folder
    what: String,
}

pub(super) async fn scan(global: &Global, args: ScanArgs) -> Outcome {
    let path = std::path::Path::new(&args.what);
    let is_path = args.what.starts_with(['/', '.']) || path.exists();
    let client = global.connect().await?;
    let what = if is_path {
        found(&client, path)?;
        api::scan_request::What::Path(absolute(path)?)
    } else {
        api::scan_request::What::Repo(args.what.clone())
    };
    let mut events = client.scan(api::ScanRequest { what: Some(what) }).await?;
    let mut files = Vec::new();
    while let Some(event) = events.next().await? {
        match event.event {
            Some(api::scan_event::Event::File(file)) => files.push(file),
            Some(api::scan_event::Event::Done(done)) => {
                show(global, &args.what, &files, &done);
                return Ok(done.verdict != "unsafe");
            }
            None => {}
        }
    }
    Err(unfinished("scan"))
}

fn show(global: &Global, what: &str, files: &[api::ScannedFile], done: &api::Scanned) {
    let mut value = told(done);
    value["files"] = files.iter().map(file).collect::<Vec<_>>().into();
    global.output().result(&value, || {
        let lines = files.iter().map(|file| {
            let mut lines = format!("  {:<7}{:<13}{}", file.verdict, file.kind, file.path);
            for finding in &file.findings {
                lines.push_str(&format!("\n         {}", finding.what));
            }
            if file.left_out > 0 {
                lines.push_str(&format!("\n         and {} more findings", file.left_out));
            }
            lines
        });
        let name = if done.repo.is_empty() { what.to_owned() } else { format!("{} {:.10}", done.repo, done.revision) };
        let head = format!(
            "{name}: {} ({} files: {} clean, {} with code, {} unsafe)",
            done.verdict, done.files, done.clean, done.code, done.r#unsafe
        );
        std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
    });
}

/// The whole scan for programs.
pub(super) fn told(done: &api::Scanned) -> Value {
    json!({
        "verdict": done.verdict, "count": done.files, "clean": done.clean, "code": done.code, "unsafe": done.r#unsafe,
        "summary": done.summary, "scanner": done.scanner, "scanner_version": done.scanner_version, "repo": done.repo,
        "revision": done.revision,
    })
}

fn file(file: &api::ScannedFile) -> Value {
    let finding = |finding: &api::ScanFinding| json!({"verdict": finding.verdict, "what": finding.what});
    json!({
        "path": file.path, "kind": file.kind, "verdict": file.verdict, "left_out": file.left_out,
        "findings": file.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}
