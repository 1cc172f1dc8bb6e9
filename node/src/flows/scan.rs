//! Scanning: what the files of a revision, or of a folder, would do to whoever opens them; and whether they may be published.
//!
//! The judgement is [`cairn_registry::scan`]'s. Invariant: what is refused or attested was scanned in the store, so nobody can change
//! a file between the scan and its publication.

use std::{ops::ControlFlow, path::PathBuf, sync::Arc};

use cairn_protocol::{
    api::{self, scan_event::Event},
    manifest::{Manifest, ManifestFile},
    record::Measurement,
    refusal::{Reason, Refusal},
};
use cairn_registry::scan::{FileFindings, SCANNER, SCANNER_VERSION, ScanError, ScanReport, Verdict, scan_path};
use tokio::sync::mpsc::Sender;

use super::{
    attest::Finding,
    bring::{self, Wanted},
    names, pull,
};
use crate::shell::Node;

/// Bytes of an attestation's text; a record holds more, and people read less.
const TEXT_BYTES_MAX: usize = 2000;

/// Whether files that the scan calls unsafe may be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnsafeFiles {
    Refuse,
    /// The publisher said so.
    Admit,
}

impl UnsafeFiles {
    pub(super) fn asked(is_admitted: bool) -> Self {
        if is_admitted { Self::Admit } else { Self::Refuse }
    }
}

/// Answers `Scan`.
pub async fn scan(node: Arc<Node>, request: api::ScanRequest, events: Sender<api::ScanEvent>) -> Result<(), Refusal> {
    let done = match request.what {
        Some(api::scan_request::What::Path(path)) => of_path(path, events.clone()).await?,
        Some(api::scan_request::What::Repo(repo)) => of_repo(&node, &repo, &events).await?,
        None => return Err(Refusal::new(Reason::BadInput, "scan", "neither a repo nor a path was named")),
    };
    // Whoever hung up has no use for the answer.
    let _ = events.send(api::ScanEvent { event: Some(Event::Done(done)) }).await;
    Ok(())
}

async fn of_path(path: String, events: Sender<api::ScanEvent>) -> Result<api::Scanned, Refusal> {
    let source = PathBuf::from(&path);
    let scanned = tokio::task::spawn_blocking(move || {
        scan_path(&source, |file| {
            let event = api::ScanEvent { event: Some(Event::File(told_file(file))) };
            if events.blocking_send(event).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
    });
    let report = scanned.await.map_err(|error| Refusal::internal(&path, error))?;
    report.map(|report| told(&report)).map_err(|error| refusal(&path, &error))
}

async fn of_repo(node: &Arc<Node>, repo: &str, events: &Sender<api::ScanEvent>) -> Result<api::Scanned, Refusal> {
    let resolved = names::resolve_newest(node, &names::parse(repo)?).await?;
    let manifest = pull::manifest_of(node, &resolved).await?;
    let wanted = whole(&manifest);
    let mut pins = Vec::with_capacity(wanted.len());
    for want in &wanted {
        pins.push(node.registry.blobs().temp_pin(want.hash).await);
    }
    bring::fetch_all(node, resolved.revision, &wanted, |_, _| {}).await?;
    let mut report = ScanReport::default();
    for file in &manifest.files {
        let found = node.registry.scan_file(file).await.map_err(|error| refusal(repo, &error))?;
        let event = api::ScanEvent { event: Some(Event::File(told_file(&found))) };
        if events.send(event).await.is_err() {
            break;
        }
        report.files.push(found);
    }
    drop(pins);
    Ok(api::Scanned { repo: resolved.path, revision: resolved.revision.to_string(), ..told(&report) })
}

fn whole(manifest: &Manifest) -> Vec<Wanted> {
    let wanted = |file: &ManifestFile| Wanted {
        path: file.path.to_string(),
        hash: file.blake3,
        size: file.size,
        ranges: vec![0..file.size],
    };
    manifest.files.iter().map(wanted).collect()
}

/// Scans what is about to be published as `what`, and refuses what is unsafe unless it is admitted.
pub(super) async fn judge(
    node: &Node,
    what: &str,
    files: &[ManifestFile],
    unsafe_files: UnsafeFiles,
) -> Result<ScanReport, Refusal> {
    let report = node.registry.scan(files).await.map_err(|error| refusal(what, &error))?;
    if report.verdict() < Verdict::Unsafe {
        return Ok(report);
    }
    if unsafe_files == UnsafeFiles::Admit {
        tracing::warn!(repo = what, summary = report.summary(), "unsafe files are published, as was asked for");
        return Ok(report);
    }
    let why = match report.gravest() {
        Some((path, finding)) => format!("{path}: {}", finding.what),
        None => report.summary(),
    };
    let count = report.count(Verdict::Unsafe);
    let why = if count > 1 { format!("{why} ({} more files are unsafe)", count - 1) } else { why };
    let attempt = "cairn scan PATH for all findings, or --allow-unsafe-files";
    Err(Refusal::new(Reason::UnsafeFiles, what, why).try_this(attempt))
}

/// What a scan of a revision attests. The revision's name covers the digests of its files.
pub(super) fn finding(report: &ScanReport) -> Finding {
    let count = |name: &str, verdict| Measurement {
        name: name.to_owned(),
        value: report.count(verdict) as f64,
        unit: "files".to_owned(),
        on: String::new(),
    };
    Finding {
        r#type: "scan".to_owned(),
        tool: SCANNER.to_owned(),
        tool_version: SCANNER_VERSION.to_owned(),
        verdict: report.verdict().name().to_owned(),
        measurements: vec![
            count("clean", Verdict::Clean),
            count("code", Verdict::Code),
            count("unsafe", Verdict::Unsafe),
        ],
        text: text(report),
    }
}

/// The summary, then what is not clean, a line each.
fn text(report: &ScanReport) -> String {
    let mut text = report.summary();
    for file in &report.files {
        for finding in file.findings.iter().filter(|finding| finding.verdict > Verdict::Clean) {
            text.push_str(&format!("\n{} {}: {}", finding.verdict, file.path, finding.what));
        }
    }
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

/// The whole scan, as the public API tells it.
pub(super) fn told(report: &ScanReport) -> api::Scanned {
    let count = |verdict| report.count(verdict) as u64;
    api::Scanned {
        verdict: report.verdict().name().to_owned(),
        files: report.files.len() as u64,
        clean: count(Verdict::Clean),
        code: count(Verdict::Code),
        r#unsafe: count(Verdict::Unsafe),
        summary: report.summary(),
        scanner: SCANNER.to_owned(),
        scanner_version: SCANNER_VERSION.to_owned(),
        ..api::Scanned::default()
    }
}

fn told_file(file: &FileFindings) -> api::ScannedFile {
    let finding = |finding: &cairn_registry::scan::Finding| api::ScanFinding {
        verdict: finding.verdict.name().to_owned(),
        what: finding.what.clone(),
    };
    api::ScannedFile {
        path: file.path.clone(),
        kind: file.kind.name().to_owned(),
        verdict: file.verdict().name().to_owned(),
        findings: file.findings.iter().map(finding).collect(),
        left_out: file.left_out,
    }
}

fn refusal(what: &str, error: &ScanError) -> Refusal {
    let (reason, attempt) = match error {
        ScanError::Folder(_) | ScanError::Read { .. } => (Reason::BadInput, "another file or folder"),
        ScanError::Blob { .. } => (Reason::Internal, "cairn verify, then the same again"),
    };
    Refusal::new(reason, what, error.to_string()).try_this(attempt)
}
