//! `cairn search`: finds repos by words, phrases and fields, and counts what they are.

use cairn_client::api;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "A query is words, \"phrases\", -not, field:value and ranges (parameters:>=7B, size:<8GiB, parameters:1B..3B).\nFields: kind, task, library, license, language, publisher, base_model, architecture, quantisation, dataset, tag.\n\nExamples:\n  cairn search smollm2 instruct\n  cairn search '\"chat model\" -gguf license:apache-2.0' --language en --facets task,library\n  cairn search --kind dataset --sort newest --limit 50\n  cairn search --base-model acme/base --max-parameters 3000000000 --json | jq '.repos[].repo'"
)]
pub(super) struct SearchArgs {
    /// What to look for; nothing for everything that the options leave
    #[arg(allow_hyphen_values = false)]
    query: Vec<String>,
    /// model, dataset, adapter or space; of each such option several mean any of them
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<String>,
    /// What it is for, e.g. text-generation
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    task: Vec<String>,
    /// What loads it, e.g. transformers
    #[arg(long, value_name = "LIBRARY", value_delimiter = ',')]
    library: Vec<String>,
    /// The licence, e.g. apache-2.0
    #[arg(long, value_name = "LICENSE", alias = "licence", value_delimiter = ',')]
    license: Vec<String>,
    /// A language's code, e.g. en
    #[arg(long, value_name = "CODE", value_delimiter = ',')]
    language: Vec<String>,
    /// Whose it is: a handle or a key
    #[arg(long, value_name = "PUBLISHER", value_delimiter = ',')]
    publisher: Vec<String>,
    /// What it was made from, as its card names it
    #[arg(long, value_name = "REPO", value_delimiter = ',')]
    base_model: Vec<String>,
    /// e.g. llama
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    architecture: Vec<String>,
    /// e.g. Q4_K
    #[arg(long, value_name = "TYPE", alias = "quantization", value_delimiter = ',')]
    quantisation: Vec<String>,
    /// A tag of its card
    #[arg(long, value_name = "TAG", value_delimiter = ',')]
    tag: Vec<String>,
    /// At least so many parameters
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    min_parameters: u64,
    /// At most so many parameters
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_parameters: u64,
    /// At least so many bytes
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    min_bytes: u64,
    /// At most so many bytes
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_bytes: u64,
    /// Count the values of these fields over all that is found
    #[arg(long, value_name = "FIELDS", value_delimiter = ',')]
    facets: Vec<String>,
    /// relevance, newest, name, parameters or size [default: relevance with words, newest without]
    #[arg(long, value_name = "ORDER", default_value = "", hide_default_value = true)]
    sort: String,
    /// Repos of the page
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Where the page before ended: its next_cursor
    #[arg(long, value_name = "CURSOR", default_value = "", hide_default_value = true)]
    after: String,
}

pub(super) async fn run(global: &Global, args: SearchArgs) -> Outcome {
    let found = global.connect().await?.search(request(args)).await?;
    let value = json!({
        "repos": found.repos.iter().map(repo).collect::<Vec<_>>(),
        "total": found.total,
        "facets": found.facets.iter().map(|facet| (facet.field.clone(), counts(facet))).collect::<serde_json::Map<_, _>>(),
        "next_cursor": found.next_cursor,
        "pending": found.pending,
    });
    global.output().result(&value, || describe(&found));
    let output = global.output();
    if found.repos.is_empty() {
        output.note("nothing found (try: fewer words, or cairn ls)");
    } else if !found.next_cursor.is_empty() {
        output.note(&format!("{} of {} (more with --after {})", found.repos.len(), found.total, found.next_cursor));
    }
    if found.pending > 0 {
        output.note(&format!("{} new or changed repos are still being indexed", found.pending));
    }
    Ok(true)
}

fn request(args: SearchArgs) -> api::SearchRequest {
    let filters = [
        ("kind", args.kind),
        ("task", args.task),
        ("library", args.library),
        ("license", args.license),
        ("language", args.language),
        ("publisher", args.publisher),
        ("base_model", args.base_model),
        ("architecture", args.architecture),
        ("quantisation", args.quantisation),
        ("tag", args.tag),
    ];
    let filters = filters.into_iter().filter(|(_, values)| !values.is_empty());
    api::SearchRequest {
        query: args.query.join(" "),
        filters: filters.map(|(field, values)| api::SearchFilter { field: field.to_owned(), values }).collect(),
        min_parameters: args.min_parameters,
        max_parameters: args.max_parameters,
        min_bytes: args.min_bytes,
        max_bytes: args.max_bytes,
        facets: args.facets,
        facet_limit: 0,
        sort: args.sort,
        limit: args.limit,
        cursor: args.after,
    }
}

fn repo(repo: &api::FoundRepo) -> Value {
    json!({
        "repo": repo.repo, "kind": repo.kind, "publisher": repo.publisher, "handle": repo.handle, "name": repo.name,
        "revision": repo.revision, "bytes": repo.bytes, "files": repo.files, "architecture": repo.architecture,
        "parameters": repo.parameters, "quantisation": repo.quantisation, "license": repo.license,
        "created_ms": repo.created_ms, "held": repo.held, "task": repo.task, "library": repo.library,
        "languages": repo.languages, "base_models": repo.base_models, "tags": repo.tags,
    })
}

fn counts(facet: &api::Facet) -> Value {
    json!(facet.values.iter().map(|one| json!({"value": one.value, "count": one.count})).collect::<Vec<_>>())
}

fn describe(found: &api::SearchResponse) -> String {
    let mut lines: Vec<String> = found.repos.iter().map(row).collect();
    for facet in &found.facets {
        let values: Vec<String> = facet.values.iter().map(|one| format!("{} {}", one.value, one.count)).collect();
        lines.push(format!("{:<12} {}", facet.field, values.join(" · ")));
    }
    lines.join("\n")
}

fn row(repo: &api::FoundRepo) -> String {
    let held = if repo.held { "held" } else { "known" };
    let words = [&repo.kind, &repo.task, &repo.architecture, &repo.quantisation, &repo.license];
    let words = words.into_iter().filter(|word| !word.is_empty()).map(String::as_str).collect::<Vec<_>>().join(" ");
    format!("{:<40} {:.10}  {:>10}  {held:<5}  {words}", repo.repo, repo.revision, HumanBytes(repo.bytes).to_string())
}
