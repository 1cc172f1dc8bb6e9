//! `cairn bench catalog`: what a catalogue of millions of repos costs here.

use std::{io, path::PathBuf, process::Stdio};

use cairn_protocol::refusal::Refusal;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::{Global, Outcome, output};
use crate::bench_catalog::{self, Loaded, Searched};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bench catalog --repos 50000\n  cairn bench catalog --repos 2500000 --catalog-home /data/bench --json\n  cairn bench catalog --repos 50000 --export repos.jsonl"
)]
pub(super) struct CatalogBenchArgs {
    /// Synthetic repos
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    repos: u64,
    /// Where they are kept and found again [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    catalog_home: Option<PathBuf>,
    /// Searches with each query
    #[arg(long, value_name = "N", default_value_t = 100)]
    rounds: usize,
    /// Write the repos as lines of JSON to this file, too, for another search engine
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Only search what is there
    #[arg(long, hide = true)]
    only_search: bool,
    /// Search once for each line on standard input
    #[arg(long, hide = true)]
    drive: bool,
}

pub(super) async fn run(global: &Global, args: CatalogBenchArgs) -> Outcome {
    let folder = tempfile::Builder::new()
        .prefix("cairn-bench-")
        .tempdir()
        .map_err(|e| output::failed("a temporary folder", &e))?;
    let home = args.catalog_home.clone().unwrap_or_else(|| folder.path().to_owned());
    if args.drive {
        bench_catalog::drive(&home, io::stdin().lock(), io::stdout()).await?;
        return Ok(true);
    }
    if args.only_search {
        let searched = bench_catalog::search(&home, args.rounds).await?;
        println!("{}", json!(searched));
        return Ok(true);
    }
    if let Some(path) = &args.export {
        bench_catalog::export(path, args.repos)?;
    }
    let show = |done: u64| {
        if global.output().is_watched() && done.is_multiple_of(100_000) {
            global.output().note(&format!("{done} repos"));
        }
    };
    let loaded = bench_catalog::load(&home, args.repos, show).await?;
    let searched = search_apart(&home, args.rounds).await?;
    let value = json!({"loaded": loaded, "searched": searched});
    global.output().result(&value, || describe(&loaded, &searched));
    Ok(true)
}

/// In a process of its own, whose memory is the search's alone.
async fn search_apart(home: &std::path::Path, rounds: usize) -> Result<Searched, Refusal> {
    let program = std::env::current_exe().map_err(|error| output::failed("the cairn program", &error))?;
    let mut command = tokio::process::Command::new(program);
    command.args(["bench", "catalog", "--only-search", "--rounds", &rounds.to_string(), "--catalog-home"]).arg(home);
    let child = command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output().await;
    let output = child.map_err(|error| output::failed("the cairn program", &error))?;
    serde_json::from_slice(&output.stdout).map_err(|error| output::failed("the searching process", &error))
}

fn describe(loaded: &Loaded, searched: &Searched) -> String {
    let mut lines = vec![
        format!(
            "{} repos: stored in {:.1} s, indexed {:.1} s later; catalogue {}, index {}",
            loaded.repos,
            loaded.store_s,
            loaded.index_s,
            HumanBytes(loaded.catalog_bytes),
            HumanBytes(loaded.index_bytes)
        ),
        format!(
            "open in {:.2} s, first answer after {:.2} s; memory {} anonymous, {} resident",
            searched.open_s,
            searched.first_answer_s,
            HumanBytes(searched.anonymous_bytes),
            HumanBytes(searched.resident_bytes)
        ),
        format!("all searches: p50 {:.2} ms, p99 {:.2} ms", searched.p50_ms, searched.p99_ms),
    ];
    lines.extend(searched.queries.iter().map(|query| {
        format!(
            "  {:<28} p50 {:>8.2} ms  p99 {:>8.2} ms  {:>9} found",
            query.name, query.p50_ms, query.p99_ms, query.total
        )
    }));
    lines.join("\n")
}
