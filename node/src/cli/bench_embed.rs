//! `cairn bench embed`: how fast texts become vectors here.

use std::path::PathBuf;

use cairn_compute::tasks::embed::bench::{self, EmbedBenchError, EmbedOptions, EmbedReport};
use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;
use serde_json::json;

use super::{Global, Outcome, output};

/// Words of the texts that are made when none are given.
const WORDS: [&str; 24] = [
    "a",
    "stone",
    "on",
    "the",
    "hill",
    "marks",
    "where",
    "path",
    "is",
    "lost",
    "in",
    "fog",
    "and",
    "every",
    "traveller",
    "who",
    "passes",
    "adds",
    "another",
    "so",
    "that",
    "nobody",
    "loses",
    "way",
];
/// How many, and of how many words: most are sentences, some are paragraphs.
const TEXTS: usize = 256;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bench embed ./all-MiniLM-L6-v2\n  cairn bench embed ./all-MiniLM-L6-v2 --texts lines.txt --threads 2 --json"
)]
pub(super) struct EmbedBenchArgs {
    /// A folder with config.json, tokenizer.json and safetensors
    model: PathBuf,
    /// Each line of this file is a text [default: 256 made ones of 4 to 60 words]
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
}

pub(super) async fn run(global: &Global, args: EmbedBenchArgs) -> Outcome {
    let name = args.model.display().to_string();
    let texts = match &args.texts {
        None => made(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Refusal::new(Reason::BadInput, path.display().to_string(), error.to_string())
                    .try_this("a file of lines")
            })?;
            text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
        }
    };
    let options = EmbedOptions { threads: args.threads, repeat: args.repeat };
    let measured = tokio::task::spawn_blocking(move || bench::run(&args.model, &texts, &options)).await;
    let measured = measured.map_err(|error| output::failed(&name, &error))?;
    let report = measured.map_err(|error| refused(&name, &error))?;
    let value = json!({
        "level": report.level, "threads": report.threads, "texts": report.texts, "tokens": report.tokens,
        "texts_per_s": report.texts_per_s, "tokens_per_s": report.tokens_per_s,
        "tokenising_share": report.tokenising_share,
    });
    global.output().result(&value, || describe(&report));
    Ok(true)
}

fn made() -> Vec<String> {
    let length = |n: usize| if n.is_multiple_of(8) { 30 + n * 11 % 31 } else { 4 + n * 7 % 21 };
    let word = |n: usize, i: usize| WORDS[(n * 5 + i * 7 + i * i) % WORDS.len()];
    (0..TEXTS).map(|n| (0..length(n)).map(|i| word(n, i)).collect::<Vec<_>>().join(" ")).collect()
}

fn refused(name: &str, error: &EmbedBenchError) -> Refusal {
    let reason = match error {
        EmbedBenchError::Files(_) | EmbedBenchError::NoTexts | EmbedBenchError::Encode(_) => Reason::BadInput,
        EmbedBenchError::Load(_) => Reason::Unsupported,
        EmbedBenchError::Start(_) | EmbedBenchError::Work(_) => Reason::Internal,
    };
    Refusal::new(reason, name, error.to_string()).try_this("cairn bench embed --help")
}

fn describe(report: &EmbedReport) -> String {
    format!(
        "{} threads, {} kernels: {} texts of {} tokens\n  {:>9.1} texts/s\n  {:>9.0} tokens/s, {:.0} % of the time spent on tokenising",
        report.threads,
        report.level,
        report.texts,
        report.tokens,
        report.texts_per_s,
        report.tokens_per_s,
        report.tokenising_share * 100.0
    )
}
