//! `cairn ls`, `cairn show`, `cairn verify`: what the catalogue knows, and whether the bytes still hold it.

use cairn_client::api;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::progress::Bar;
use super::publish::unfinished;
use super::{Global, Outcome};

/// Bytes of a card's text that people are shown.
const CARD_LINE: usize = 240;

/// Repos asked for at once.
const PAGE: u32 = 200;

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn ls\n  cairn ls acme/\n  cairn ls --json | jq '.repos[].repo'")]
pub(super) struct LsArgs {
    /// Only names that begin with this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn show acme/tiny\n  cairn show acme/tiny@v1 --json\n  cairn show acme/tiny --lineage"
)]
pub(super) struct ShowArgs {
    /// REPO[@REF]
    repo: String,
    /// Show what it was made from and what was made from it, instead
    #[arg(long)]
    lineage: bool,
    /// Steps of the lineage in each direction
    #[arg(long, value_name = "N", default_value_t = 8, requires = "lineage")]
    depth: u32,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn verify acme/tiny\n  cairn verify acme/tiny@v1 --json")]
pub(super) struct VerifyArgs {
    /// REPO[@REF]
    repo: String,
}

pub(super) async fn ls(global: &Global, args: LsArgs) -> Outcome {
    let client = global.connect().await?;
    let mut repos = Vec::new();
    let mut page_token = String::new();
    loop {
        let limit = PAGE.min(u32::try_from(args.limit - repos.len()).unwrap_or(PAGE));
        if limit == 0 {
            break;
        }
        let page = client.list(api::ListRequest { prefix: args.prefix.clone(), limit, page_token }).await?;
        repos.extend(page.repos);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let value = json!({"repos": repos.iter().map(repo).collect::<Vec<_>>(), "is_complete": page_token.is_empty()});
    global.output().result(&value, || repos.iter().map(row).collect::<Vec<_>>().join("\n"));
    if repos.is_empty() && !args.prefix.is_empty() {
        global.output().note(&format!("no repo begins with {} (try: cairn ls)", args.prefix));
    } else if repos.is_empty() {
        global.output().note("no repos yet (try: cairn publish PATH PUBLISHER/NAME)");
    }
    Ok(true)
}

fn row(repo: &api::Repo) -> String {
    let held = if repo.held { "held" } else { "known" };
    format!("{:<40} {:.10}  {:>10}  {held:<5}  {}", repo.repo, repo.revision, HumanBytes(repo.bytes), kind_of(repo))
}

fn kind_of(repo: &api::Repo) -> String {
    let words = [repo.kind.as_str(), repo.architecture.as_str(), repo.quantisation.as_str()];
    words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn repo(repo: &api::Repo) -> Value {
    json!({
        "repo": repo.repo, "kind": repo.kind, "publisher": repo.publisher, "handle": repo.handle, "name": repo.name,
        "revision": repo.revision, "bytes": repo.bytes, "files": repo.files, "architecture": repo.architecture,
        "parameters": repo.parameters, "quantisation": repo.quantisation, "license": repo.license,
        "created_ms": repo.created_ms, "held": repo.held,
    })
}

pub(super) async fn show(global: &Global, args: ShowArgs) -> Outcome {
    if args.lineage {
        return super::history::lineage(global, args.repo, args.depth).await;
    }
    let shown = global.connect().await?.show(args.repo).await?;
    let value = json!({
        "repo": shown.repo.as_ref().map(repo),
        "refs": shown.refs.iter().map(|r| json!({
            "name": r.name, "revision": r.revision, "epoch": r.epoch, "number": r.number, "tag": r.tag, "ambiguous": r.ambiguous,
        })).collect::<Vec<_>>(),
        "files": shown.files.iter().map(file).collect::<Vec<_>>(),
        "model": shown.model.as_ref().map(model),
        "adapter": shown.adapter.as_ref().map(adapter),
        "holders": shown.holders, "message": shown.message, "parents": shown.parents, "warning": shown.warning,
        "tensors": shown.tensors,
        "card": shown.card.as_ref().map(card),
        "advisories": shown.advisories.iter().map(super::advise::advisory).collect::<Vec<_>>(),
        "attestations": shown.attestations.iter().map(super::advise::attestation).collect::<Vec<_>>(),
        "metadata": shown.metadata.iter().map(|e| (e.key.clone(), json!(e.value))).collect::<serde_json::Map<_, _>>(),
    });
    global.output().result(&value, || describe(&shown));
    Ok(true)
}

fn card(card: &api::Card) -> Value {
    json!({
        "task": card.task, "library": card.library, "license": card.license, "languages": card.languages,
        "base_models": card.base_models, "base_model_relation": card.base_model_relation, "datasets": card.datasets,
        "tags": card.tags, "text": card.text, "problems": card.problems.iter().map(card_problem).collect::<Vec<_>>(),
    })
}

/// Something wrong with a card, for programs.
pub(super) fn card_problem(problem: &api::CardProblem) -> Value {
    json!({"line": problem.line, "field": problem.field, "what": problem.what, "error": problem.error})
}

/// The same for people.
pub(super) fn describe_problem(problem: &api::CardProblem) -> String {
    let severity = if problem.error { "error" } else { "warning" };
    let separator = if problem.field.is_empty() { "" } else { ": " };
    format!("{severity}: README.md:{}: {}{separator}{}", problem.line, problem.field, problem.what)
}

fn describe_card(card: &api::Card, lines: &mut Vec<String>) {
    let base = [card.base_model_relation.clone(), card.base_models.join(" ")].join(" ");
    for (name, value) in [
        ("task", card.task.clone()),
        ("library", card.library.clone()),
        ("license", card.license.clone()),
        ("languages", card.languages.join(" ")),
        ("base model", base.trim().to_owned()),
        ("datasets", card.datasets.join(" ")),
        ("tags", card.tags.join(" ")),
        ("card", card.text[..card.text.floor_char_boundary(CARD_LINE)].to_owned()),
    ] {
        if !value.is_empty() {
            lines.push(format!("  {name:<10} {value}"));
        }
    }
    lines.extend(card.problems.iter().map(|problem| format!("  card       {}", describe_problem(problem))));
}

fn file(file: &api::File) -> Value {
    let digests: serde_json::Map<_, _> =
        file.digests.iter().map(|digest| (digest.algorithm.clone(), json!(digest.hex))).collect();
    json!({"path": file.path, "size": file.size, "digests": digests})
}

fn model(model: &api::Model) -> Value {
    json!({
        "architecture": model.architecture, "layers": model.layers, "width": model.width, "heads": model.heads,
        "kv_heads": model.kv_heads, "vocabulary": model.vocabulary, "context_max": model.context_max, "served": model.served,
    })
}

fn adapter(adapter: &api::Adapter) -> Value {
    json!({
        "base_model": adapter.base_model, "rank": adapter.rank, "alpha": adapter.alpha,
        "rank_stabilised": adapter.rank_stabilised, "modules": adapter.modules, "served": adapter.served,
    })
}

fn describe(shown: &api::ShowResponse) -> String {
    let mut lines = Vec::new();
    if let Some(repo) = &shown.repo {
        lines.push(format!("{}  {}", repo.repo, kind_of(repo)));
        lines.push(format!("  revision   {}", repo.revision));
        lines.push(format!("  publisher  {} {}", repo.publisher, repo.handle));
        lines.push(format!("  size       {} in {} files", HumanBytes(repo.bytes), repo.files));
    }
    if let Some(model) = &shown.model {
        let served = if model.served { "" } else { " (not served by this build)" };
        lines.push(format!(
            "  model      {}, {} layers of width {}, context {}{served}",
            model.architecture, model.layers, model.width, model.context_max
        ));
    }
    if let Some(adapter) = &shown.adapter {
        lines.push(match adapter.served {
            true => format!(
                "  adapter    of {}, rank {}, alpha {}, on {}",
                if adapter.base_model.is_empty() { "an unnamed model" } else { &adapter.base_model },
                adapter.rank,
                adapter.alpha,
                adapter.modules.join(" ")
            ),
            false => "  adapter    of a format that is not served by this build".to_owned(),
        });
    }
    if let Some(card) = &shown.card {
        describe_card(card, &mut lines);
    }
    if !shown.message.is_empty() {
        lines.push(format!("  message    {}", shown.message));
    }
    lines.extend(shown.metadata.iter().map(|entry| format!("  {:<10} {}", entry.key, entry.value)));
    lines.extend(shown.parents.iter().map(|parent| format!("  made from  {parent:.10}")));
    if !shown.warning.is_empty() {
        lines.push(format!("  warning    {}", shown.warning));
    }
    lines.extend(shown.advisories.iter().map(|advisory| format!("  advisory   {}", super::advise::describe(advisory))));
    lines.extend(shown.attestations.iter().map(|a| format!("  attested   {}", super::advise::describe_attestation(a))));
    lines.extend(
        shown.refs.iter().map(|r| format!("  ref        {} is {:.10} ({}.{})", r.name, r.revision, r.epoch, r.number)),
    );
    lines.extend(
        shown.files.iter().map(|file| format!("  file       {:>10}  {}", HumanBytes(file.size).to_string(), file.path)),
    );
    lines.extend(shown.holders.iter().map(|node| format!("  held by    {node}")));
    lines.join("\n")
}

pub(super) async fn verify(global: &Global, args: VerifyArgs) -> Outcome {
    let mut events = global.connect().await?.verify(args.repo).await?;
    let bar = Bar::new(global.output());
    while let Some(event) = events.next().await? {
        match event.event {
            Some(api::verify_event::Event::Progress(progress)) => bar.show(&progress),
            Some(api::verify_event::Event::Done(done)) => {
                bar.clear();
                show_verified(global, &done);
                return Ok(done.ok);
            }
            None => {}
        }
    }
    Err(unfinished("verify"))
}

fn show_verified(global: &Global, done: &api::Verified) {
    let bad: Vec<_> = done
        .bad
        .iter()
        .map(|bad| json!({"path": bad.path, "why": bad.why, "bytes_missing": bad.bytes_missing}))
        .collect();
    let value = json!({
        "repo": done.repo, "revision": done.revision, "ok": done.ok, "files": done.files, "bytes": done.bytes, "bad": bad,
    });
    global.output().result(&value, || {
        let head = format!(
            "{} {:.10}: {} files, {} read: {}",
            done.repo,
            done.revision,
            done.files,
            HumanBytes(done.bytes),
            verdict(done)
        );
        std::iter::once(head)
            .chain(done.bad.iter().map(|bad| format!("  {}: {}", bad.path, bad.why)))
            .collect::<Vec<_>>()
            .join("\n")
    });
}

fn verdict(done: &api::Verified) -> String {
    let missing: u64 = done.bad.iter().map(|bad| bad.bytes_missing).sum();
    if done.ok {
        "every byte and signature is right".to_owned()
    } else if done.bad.iter().any(|bad| bad.bytes_missing == 0) {
        "NOT what was signed".to_owned()
    } else {
        format!("what is here is right, {} are missing (try: cairn pull {})", HumanBytes(missing), done.repo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(bad: Vec<api::BadFile>) -> api::Verified {
        api::Verified { repo: "acme/tiny".to_owned(), ok: bad.is_empty(), bad, ..Default::default() }
    }

    fn bad(why: &str, bytes_missing: u64) -> api::BadFile {
        api::BadFile { path: "weights.bin".to_owned(), why: why.to_owned(), bytes_missing }
    }

    #[test]
    fn a_repo_that_was_pulled_in_part_is_not_called_altered() {
        let part = verdict(&verified(vec![bad("1 of 3 bytes are here", 2)]));
        assert_eq!(part, "what is here is right, 2 B are missing (try: cairn pull acme/tiny)");
        let altered = verdict(&verified(vec![bad("1 of 3 bytes are here", 2), bad("the bytes on disk are others", 0)]));
        assert_eq!(altered, "NOT what was signed");
        assert_eq!(verdict(&verified(Vec::new())), "every byte and signature is right");
    }
}
