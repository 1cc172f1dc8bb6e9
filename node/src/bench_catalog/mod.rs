//! What a catalogue of millions of repos costs here: to load, on disk, in memory, to open, and to search.
//!
//! The repos are synthetic ([`synthetic`]); their records are signed, stored and indexed as any. A process of its own opens what was
//! loaded and searches it, so that what loading left in memory is not counted. It measures; it promises nothing.

pub mod synthetic;

use std::{
    collections::HashSet,
    io::{BufRead, BufWriter, Write},
    path::Path,
    time::Instant,
};

use cairn_protocol::{
    id::RealmId,
    refusal::{Reason, Refusal},
};
use cairn_registry::{Field, Registry, RegistryOptions, Search, Sort};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::synthetic::Synthetic;

/// Repos whose records go into the catalogue together.
const PAGE: u64 = 10_000;
/// The dice of the repos.
pub const SEED: u64 = 20_260;

/// What loading cost.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    /// Repos that the catalogue holds.
    pub repos: u64,
    /// Making, signing and storing their records; 0 when they were there before.
    pub store_s: f64,
    /// From then until the index had all of them.
    pub index_s: f64,
    /// Of the catalogue's file.
    pub catalog_bytes: u64,
    /// Of the index's files.
    pub index_bytes: u64,
}

/// What searching cost, in a process of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Searched {
    /// Opening the home.
    pub open_s: f64,
    /// Opening and answering the first search.
    pub first_answer_s: f64,
    /// Resident memory that no file stands behind, after all searches.
    pub anonymous_bytes: u64,
    /// All resident memory.
    pub resident_bytes: u64,
    /// Over all queries together.
    pub p50_ms: f64,
    /// Over all queries together.
    pub p99_ms: f64,
    /// Each query.
    pub queries: Vec<QueryReport>,
}

/// One query's times.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueryReport {
    /// What was asked, for people.
    pub name: String,
    /// How many repos it finds.
    pub total: u64,
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
}

/// Ten searches as people make them.
pub fn queries() -> Vec<(&'static str, Search)> {
    let base = || Search { limit: 20, facet_limit: 10, ..Search::default() };
    let words = |query: &str| Search { query: query.to_owned(), ..base() };
    let is = |field: Field, value: &str| (field, vec![value.to_owned()]);
    let sidebar = vec![Field::Task, Field::Library, Field::License, Field::Language];
    vec![
        ("a name", words("smollm2 135m instruct")),
        ("the beginning of a name", words("tinyl")),
        ("one repo", words("unique4242")),
        ("a phrase", words("\"instruction following\" -gguf")),
        ("words of cards", words("medical summaries benchmark")),
        (
            "words with filters",
            Search {
                filters: vec![is(Field::Task, "text-generation"), is(Field::License, "apache-2.0")],
                ..words("llama chat")
            },
        ),
        ("words with facets", Search { facets: sidebar.clone(), ..words("qwen3 7b") }),
        (
            "filters, newest",
            Search {
                filters: vec![is(Field::Language, "de"), is(Field::Library, "peft")],
                sort: Some(Sort::Newest),
                facets: vec![Field::Task],
                ..base()
            },
        ),
        (
            "a range, most parameters",
            Search {
                parameters: Some((1_000_000_000, 3_000_000_000)),
                filters: vec![is(Field::Kind, "model"), is(Field::Task, "translation")],
                sort: Some(Sort::Parameters),
                ..base()
            },
        ),
        (
            "everything of a publisher",
            Search { filters: vec![(Field::Publisher, vec!["acme-2".to_owned()])], facets: sidebar, ..base() },
        ),
    ]
}

/// Loads so many repos into `home`, unless they are there.
pub async fn load(home: &Path, repos: u64, report: impl Fn(u64)) -> Result<Loaded, Refusal> {
    let registry = open(home).await?;
    let synthetic = Synthetic::new(SEED, repos);
    let started = Instant::now();
    let here = registry.stats().await.map_err(failed("the catalogue"))?.repos;
    if here < repos {
        let mut known = HashSet::new();
        for first in (here..repos).step_by(PAGE as usize) {
            let mut records = Vec::new();
            for number in first..(first + PAGE).min(repos) {
                let (publisher, both) = synthetic.records(number).map_err(failed("a record"))?;
                if known.insert(publisher) {
                    records.push(synthetic.profile(publisher).map_err(failed("a record"))?);
                }
                records.extend(both);
            }
            let verdicts = registry.insert_here(records).await.map_err(failed("the catalogue"))?;
            verdicts.into_iter().collect::<Result<Vec<_>, _>>().map_err(failed("a record"))?;
            report(first + PAGE);
        }
    }
    let store_s = started.elapsed().as_secs_f64();
    registry.indexed().await.map_err(failed("the catalogue"))?;
    let index_s = started.elapsed().as_secs_f64() - store_s;
    let repos = registry.stats().await.map_err(failed("the catalogue"))?.repos;
    registry.close().await;
    let (catalog_bytes, index_bytes) = (size(&home.join("catalog.redb")), size(&home.join("search")));
    Ok(Loaded { repos, store_s: if here < repos { store_s } else { 0.0 }, index_s, catalog_bytes, index_bytes })
}

/// Opens `home` and searches it `rounds` times with each query.
pub async fn search(home: &Path, rounds: usize) -> Result<Searched, Refusal> {
    let started = Instant::now();
    let registry = open(home).await?;
    let open_s = started.elapsed().as_secs_f64();
    let asked = queries();
    registry.search(asked[0].1.clone()).await.map_err(failed("a search"))?;
    let first_answer_s = started.elapsed().as_secs_f64();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); asked.len()];
    let mut totals = vec![0; asked.len()];
    for _ in 0..rounds {
        for ((times, total), (_, search)) in times.iter_mut().zip(&mut totals).zip(&asked) {
            let started = Instant::now();
            *total = registry.search(search.clone()).await.map_err(failed("a search"))?.total;
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (anonymous_bytes, resident_bytes) = memory();
    registry.close().await;
    let mut all: Vec<f64> = times.iter().flatten().copied().collect();
    let queries = asked.iter().zip(&mut times).zip(totals).map(|(((name, _), times), total)| {
        let name = (*name).to_owned();
        QueryReport { name, total, p50_ms: percentile(times, 50), p99_ms: percentile(times, 99) }
    });
    let queries = queries.collect();
    Ok(Searched {
        open_s,
        first_answer_s,
        anonymous_bytes,
        resident_bytes,
        p50_ms: percentile(&mut all, 50),
        p99_ms: percentile(&mut all, 99),
        queries,
    })
}

/// Answers one search for each line of `input`, a query's number: its time in milliseconds and what it found. For who measures
/// something else in between.
pub async fn drive(home: &Path, input: impl BufRead, mut output: impl Write) -> Result<(), Refusal> {
    let registry = open(home).await?;
    let asked = queries();
    for line in input.lines() {
        let line = line.map_err(failed("the input"))?;
        let Some((_, search)) = line.trim().parse().ok().and_then(|number: usize| asked.get(number)) else { break };
        let started = Instant::now();
        let found = registry.search(search.clone()).await.map_err(failed("a search"))?;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        writeln!(output, "{}", json!({"ms": ms, "total": found.total}))
            .and_then(|()| output.flush())
            .map_err(failed("the output"))?;
    }
    registry.close().await;
    Ok(())
}

/// Writes the same repos as lines of JSON, for another search engine.
pub fn export(path: &Path, repos: u64) -> Result<(), Refusal> {
    let synthetic = Synthetic::new(SEED, repos);
    let mut file = BufWriter::new(std::fs::File::create(path).map_err(failed("the export"))?);
    for number in 0..repos {
        let (publisher, body) = synthetic.repo(number);
        let line = line(&synthetic.handle(publisher), &body);
        writeln!(file, "{line}").map_err(failed("the export"))?;
    }
    file.flush().map_err(failed("the export"))
}

fn line(handle: &str, body: &cairn_protocol::record::Revision) -> Value {
    json!({
        "publisher": handle, "name": body.name.to_string(), "kind": body.kind.to_string(), "task": body.card.task,
        "library": body.card.library, "license": body.license, "languages": body.card.languages, "tags": body.tags,
        "base_models": body.card.base_models, "architecture": body.architecture, "parameters": body.parameters,
        "bytes": body.bytes, "created_ms": body.created_ms, "text": body.card.text,
    })
}

async fn open(home: &Path) -> Result<Registry, Refusal> {
    let options = RegistryOptions { catalog_bytes_max: u64::MAX };
    Registry::open_with(home, RealmId::PUBLIC, options).await.map_err(failed("the home"))
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Refusal {
    move |error| Refusal::new(Reason::Internal, what, error.to_string()).try_this("another --home")
}

fn percentile(times: &mut [f64], percent: usize) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Bytes of a file, or of all files below a folder.
fn size(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return std::fs::metadata(path).map_or(0, |found| found.len()) };
    entries.filter_map(|entry| entry.ok()).map(|entry| size(&entry.path())).sum()
}

/// Anonymous and all resident bytes of this process; zeros where the system does not tell.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let read = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    (read("RssAnon:").unwrap_or(0) * 1024, read("VmRSS:").unwrap_or(0) * 1024)
}
