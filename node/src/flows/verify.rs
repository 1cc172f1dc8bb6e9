//! Re-reading a kept revision: every byte, every signature. What turns out damaged is thrown away, so that a pull or a mirror
//! fetches it anew.
//!
//! The reading is the registry's. Invariant: `ok` is said only of what was read just now; a revision with damage is no longer
//! announced.

use std::sync::Arc;

use cairn_protocol::{
    api,
    id::RevisionId,
    refusal::{Reason, Refusal},
};
use cairn_registry::{BadFile, VerifyReport};
use tokio::sync::mpsc::Sender;

use super::{bring::hold_refusal, holders, names, pull};
use crate::shell::Node;

/// Answers `Verify`.
pub async fn verify(
    node: Arc<Node>,
    request: api::VerifyRequest,
    events: Sender<api::VerifyEvent>,
) -> Result<(), Refusal> {
    let name = names::parse(&request.repo)?;
    let resolved = names::resolve_anywhere(&node, &name).await?;
    if holders::local_manifest(&node, resolved.revision).await?.is_none() {
        return Err(Refusal::new(Reason::NotFound, resolved.path.clone(), "nothing of this revision is held here")
            .try_this(format!("cairn pull {}", resolved.path)));
    }
    let (item, sender) = (resolved.path.clone(), events.clone());
    let progress = move |read: cairn_registry::Progress| {
        let progress = api::Progress {
            phase: "verify".to_owned(),
            bytes_done: read.done,
            bytes_total: read.total,
            item: item.clone(),
            place: 0,
        };
        // A reader that lags sees fewer steps.
        let _ = sender.try_send(api::VerifyEvent { event: Some(api::verify_event::Event::Progress(progress)) });
    };
    let report = node.registry.verify(resolved.revision, progress).await;
    let report = report.map_err(|error| hold_refusal(resolved.revision, error))?;
    let bad = clear_up(&node, resolved.revision, &report).await;
    let done = api::Verified {
        repo: resolved.path,
        revision: resolved.revision.to_string(),
        ok: report.ok,
        files: report.files,
        bytes: report.bytes,
        bad,
    };
    // Whoever hung up has no use for the answer.
    let _ = events.send(api::VerifyEvent { event: Some(api::verify_event::Event::Done(done)) }).await;
    Ok(())
}

/// Throws damaged blobs away and says what is wrong with each file.
async fn clear_up(node: &Node, revision: RevisionId, report: &VerifyReport) -> Vec<api::BadFile> {
    let mut bad = Vec::new();
    for file in &report.bad {
        bad.push(api::BadFile {
            path: file.path.to_string(),
            why: clear_up_file(node, revision, file).await,
            bytes_missing: file.problem.bytes_missing(),
        });
    }
    let of_record = |why: &String| api::BadFile { path: String::new(), why: why.clone(), bytes_missing: 0 };
    bad.extend(report.bad_records.iter().map(of_record));
    if !report.bad.is_empty() {
        node.mirror.look_again();
    }
    bad
}

async fn clear_up_file(node: &Node, revision: RevisionId, file: &BadFile) -> String {
    if !file.problem.is_damage() {
        return file.problem.to_string();
    }
    tracing::warn!(path = %file.path, blob = %file.blob, problem = %file.problem, "a file is damaged on this disk");
    match pull::throw_away(node, revision, file.blob).await {
        Ok(()) => format!("{}; thrown away, a pull fetches it anew", file.problem),
        Err(refusal) => format!("{}; {}", file.problem, refusal.why),
    }
}
