//! `cairn history`, `diff`, `branch`, `tag`, and the lineage that `cairn show --lineage` prints.

use cairn_client::api;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "A head is a signed, numbered statement that a ref is a revision; a later number follows the one before it.\nTwo heads with one number contradict each other and do not count until a later one decides.\n\nExamples:\n  cairn history acme/tiny\n  cairn history acme/tiny@dev --limit 10 --json"
)]
pub(super) struct HistoryArgs {
    /// REPO[@REF]; without a ref, main
    repo: String,
    /// Revisions at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Where the page before ended
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    page: String,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn diff acme/tiny v1 main\n  cairn diff acme/tiny 5f3a91c0 main --bytes\n  cairn diff acme/tiny main other/tiny@main --json"
)]
pub(super) struct DiffArgs {
    /// The repo
    repo: String,
    /// A ref, a hash prefix, or another REPO@REF
    from: String,
    /// The same
    to: String,
    /// Compare the bytes of tensors too, as far as both are here; it reads them
    #[arg(long)]
    bytes: bool,
}

#[derive(Args)]
#[command(
    after_help = "A branch moves by a signed head that follows the one before, also back to an older revision.\n'cairn publish PATH REPO@BRANCH' publishes to a branch.\n\nExamples:\n  cairn branch acme/tiny dev\n  cairn branch acme/tiny@v1 main"
)]
pub(super) struct BranchArgs {
    /// What it is to stand for: REPO[@REF]
    repo: String,
    /// The branch
    branch: String,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn tag acme/tiny v1\n  cairn tag acme/tiny@5f3a91c0 first-light")]
pub(super) struct TagArgs {
    /// What it is to stand for: REPO[@REF]
    repo: String,
    /// The tag; it never moves
    tag: String,
}

pub(super) async fn history(global: &Global, args: HistoryArgs) -> Outcome {
    let ask = api::HistoryRequest { repo: args.repo, limit: args.limit, page_token: args.page };
    let history = global.connect().await?.history(ask).await?;
    let revisions: Vec<_> = history.revisions.iter().map(past).collect();
    let value = json!({
        "repo": history.repo, "ref": history.r#ref, "revisions": revisions, "next_page_token": history.next_page_token,
        "warning": history.warning,
    });
    global.output().result(&value, || {
        let mut lines = vec![format!("{}@{}", history.repo, history.r#ref)];
        lines.extend(history.revisions.iter().map(describe_past));
        if !history.next_page_token.is_empty() {
            lines.push(format!("  (more: --page {})", history.next_page_token));
        }
        if !history.warning.is_empty() {
            lines.push(format!("  warning: {}", history.warning));
        }
        lines.join("\n")
    });
    Ok(true)
}

fn past(past: &api::PastRevision) -> Value {
    json!({
        "revision": past.revision, "epoch": past.epoch, "number": past.number, "state": past.state, "signer": past.signer,
        "message": past.message, "created_ms": past.created_ms, "files": past.files, "bytes": past.bytes,
        "parents": past.parents, "refs": past.refs, "held": past.held,
    })
}

fn describe_past(past: &api::PastRevision) -> String {
    let state = if past.state == "past" { String::new() } else { format!(", {}", past.state) };
    let refs = if past.refs.is_empty() { String::new() } else { format!(" ({})", past.refs.join(", ")) };
    let held = if past.held { ", held" } else { "" };
    let message = past.message.lines().next().unwrap_or_default();
    format!(
        "  {}.{:<4} {:.10}  {:>10}  {}{refs}{state}{held}  {message}",
        past.epoch,
        past.number,
        past.revision,
        HumanBytes(past.bytes).to_string(),
        date(past.created_ms),
    )
}

/// The day, by the signer's clock, in UTC.
pub(super) fn date(created_ms: i64) -> String {
    // Days since 1970 to a date: H. Hinnant, "chrono-compatible low-level date algorithms", civil_from_days.
    let days = created_ms.div_euclid(86_400_000) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

pub(super) async fn diff(global: &Global, args: DiffArgs) -> Outcome {
    let ask = api::DiffRequest { repo: args.repo, from: args.from, to: args.to, bytes: args.bytes };
    let diff = global.connect().await?.diff(ask).await?;
    let files: Vec<_> = diff.files.iter().map(file).collect();
    let tensors: Vec<_> = diff.tensors.iter().map(tensor).collect();
    let value = json!({
        "repo": diff.repo, "from": diff.from, "to": diff.to, "files": files, "tensors": tensors,
        "tensors_same": diff.tensors_same, "bytes_new": diff.bytes_new, "bytes_shared": diff.bytes_shared,
        "metadata": diff.metadata,
    });
    global.output().result(&value, || describe_diff(&diff));
    Ok(true)
}

fn file(file: &api::FileChange) -> Value {
    json!({
        "path": file.path, "change": file.change, "size_before": file.size_before, "size_after": file.size_after,
        "path_before": file.path_before,
    })
}

fn tensor(tensor: &api::TensorChange) -> Value {
    json!({"name": tensor.name, "change": tensor.change, "before": tensor.before, "after": tensor.after})
}

fn describe_diff(diff: &api::DiffResponse) -> String {
    let mut lines = vec![format!(
        "{} {:.10} to {:.10}: {} new, {} shared",
        diff.repo,
        diff.from,
        diff.to,
        HumanBytes(diff.bytes_new),
        HumanBytes(diff.bytes_shared)
    )];
    lines.extend(diff.files.iter().map(describe_file));
    lines.extend(diff.tensors.iter().map(|tensor| {
        let sides = [tensor.before.as_str(), tensor.after.as_str()];
        let sides: Vec<&str> = sides.into_iter().filter(|side| !side.is_empty()).collect();
        let shape = if sides.first() == sides.last() {
            sides.first().copied().unwrap_or_default().to_owned()
        } else {
            sides.join(" to ")
        };
        format!("  tensor {:<9} {}  {shape}", tensor.change, tensor.name)
    }));
    if diff.tensors_same > 0 {
        lines.push(format!("  {} tensors are the same", diff.tensors_same));
    }
    lines.extend(diff.metadata.iter().map(|line| format!("  {line}")));
    lines.join("\n")
}

fn describe_file(file: &api::FileChange) -> String {
    let sizes = match file.change.as_str() {
        "added" => HumanBytes(file.size_after).to_string(),
        "removed" => HumanBytes(file.size_before).to_string(),
        "renamed" => format!("from {}", file.path_before),
        _ => format!("{} to {}", HumanBytes(file.size_before), HumanBytes(file.size_after)),
    };
    format!("  file   {:<9} {}  {sizes}", file.change, file.path)
}

pub(super) async fn branch(global: &Global, args: BranchArgs) -> Outcome {
    set(global, api::SetRefRequest { repo: args.repo, r#ref: args.branch, tag: false }).await
}

pub(super) async fn tag(global: &Global, args: TagArgs) -> Outcome {
    set(global, api::SetRefRequest { repo: args.repo, r#ref: args.tag, tag: true }).await
}

async fn set(global: &Global, ask: api::SetRefRequest) -> Outcome {
    let set = global.connect().await?.set_ref(ask).await?;
    let value = json!({
        "repo": set.repo, "ref": set.r#ref, "revision": set.revision, "epoch": set.epoch, "number": set.number,
    });
    global.output().result(&value, || {
        format!("{}@{} is {:.10} ({}.{})", set.repo, set.r#ref, set.revision, set.epoch, set.number)
    });
    Ok(true)
}

pub(super) async fn lineage(global: &Global, repo: String, depth: u32) -> Outcome {
    let lineage = global.connect().await?.lineage(api::LineageRequest { repo, depth }).await?;
    let edges = |edges: &[api::LineageEdge]| edges.iter().map(edge).collect::<Vec<_>>();
    let value = json!({
        "repo": lineage.repo, "revision": lineage.revision, "origins": edges(&lineage.origins),
        "descendants": edges(&lineage.descendants), "cut": lineage.cut,
    });
    global.output().result(&value, || describe_lineage(&lineage));
    Ok(true)
}

fn edge(edge: &api::LineageEdge) -> Value {
    let place = |place: &Option<api::LineagePlace>| {
        place.as_ref().map(|place| json!({"repo": place.repo, "revision": place.revision, "known": place.known}))
    };
    json!({
        "depth": edge.depth, "relation": edge.relation, "child": place(&edge.child), "origin": place(&edge.origin),
    })
}

fn describe_lineage(lineage: &api::LineageResponse) -> String {
    let mut lines = vec![format!("{} {:.10}", lineage.repo, lineage.revision)];
    for edge in &lineage.origins {
        lines.push(line(edge, "from", edge.origin.as_ref()));
    }
    for edge in &lineage.descendants {
        lines.push(line(edge, "into", edge.child.as_ref()));
    }
    if lines.len() == 1 {
        lines.push("  nothing is known of what it was made from or what was made from it".to_owned());
    }
    if lineage.cut {
        lines.push("  (and more)".to_owned());
    }
    lines.join("\n")
}

fn line(edge: &api::LineageEdge, way: &str, place: Option<&api::LineagePlace>) -> String {
    let indent = "  ".repeat(edge.depth as usize);
    let place = place.map(|place| {
        let revision = if place.revision.is_empty() { String::new() } else { format!(" {:.10}", place.revision) };
        let known = if place.known { "" } else { " (not known here)" };
        format!("{}{revision}{known}", place.repo)
    });
    format!("{indent}{way} {} ({})", place.unwrap_or_default(), edge.relation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        let day = 86_400_000;
        for (days, written) in [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (-1, "1969-12-31")] {
            assert_eq!(date(days * day), written);
        }
        assert_eq!(date(20_779 * day + day - 1), "2026-11-22");
    }
}
