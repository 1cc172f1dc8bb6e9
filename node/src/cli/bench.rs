//! `cairn bench`: what this machine can do, measured here and now. Needs no daemon.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use cairn_compute::KvFormat;
use cairn_compute::bench::{self, BenchError, BenchOptions, BenchReport, PerplexityReport, SweepReport};
use cairn_compute::engine::Level;
use cairn_compute::quantise::{Existing, Target, quantise_file};
use cairn_protocol::refusal::{Reason, Refusal};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use super::bench_embed::EmbedBenchArgs;
use super::interruption::or_interrupted;
use super::{Global, Outcome, bench_catalog, bench_embed, bench_sync, output};
use super::{bench_catalog::CatalogBenchArgs, bench_sync::SyncBenchArgs};
use crate::bench_blobs::{self, BlobsReport};
use crate::bench_stages::{self, Side, StagesOptions, StagesReport};
use crate::bench_users::{self, Crowd, UsersOptions, UsersReport};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bench engine model.gguf\n  cairn bench blobs --json\n  cairn bench stages model.gguf\n  cairn bench users model.gguf --users 8\n  cairn bench perplexity model.gguf text.txt\n  cairn bench embed ./all-MiniLM-L6-v2\n  cairn bench catalog --repos 50000\n  cairn bench sync --records 100000"
)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Measure prefill and decode of a model
    Engine(EngineArgs),
    /// Measure import and verified transfer of blobs over loopback
    Blobs(BlobsArgs),
    /// Measure a model split over several processes against one
    Stages(StagesArgs),
    /// Measure many users at once against one
    Users(UsersArgs),
    /// Measure how well a model foretells a text
    Perplexity(PerplexityArgs),
    /// Measure texts to vectors
    Embed(EmbedBenchArgs),
    /// Measure a catalogue of many synthetic repos: loading, opening, searching
    Catalog(CatalogBenchArgs),
    /// Measure what it costs two catalogues to agree, against sending all ids
    Sync(SyncBenchArgs),
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bench engine SmolLM2-135M-Instruct.Q4_1.gguf\n  cairn bench engine ./SmolLM2-135M-Instruct --threads 2 --json\n  cairn bench engine model.Q4_1.gguf --as q8_0 --users 8\n  cairn bench engine model.gguf --sweep"
)]
struct EngineArgs {
    /// A .gguf file, or a folder with config.json and safetensors
    model: PathBuf,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt_tokens: usize,
    /// Tokens decoded for each user
    #[arg(long, value_name = "N", default_value_t = 64)]
    decode_tokens: usize,
    /// Users who decode together
    #[arg(long, value_name = "N", default_value_t = 1)]
    users: usize,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 5)]
    repeat: usize,
    /// Int8 planes of activations: 2 is exact to rounding, 1 is faster
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=2))]
    planes: u32,
    /// What keys and values are held as: f16, or int8 in half the bytes
    #[arg(long, value_name = "FORMAT", default_value_t = KvFormat::F16)]
    kv: KvFormat,
    /// Kernels: auto (`CAIRN_LEVEL`, else the best here), scalar, avx2, avx-vnni, avx512 or neon; refused where the processor lacks them
    #[arg(long, value_name = "LEVEL", default_value = "auto")]
    level: AskedLevel,
    /// Several prompt lengths and numbers of users instead, each beside its bound
    #[arg(long, conflicts_with_all = ["prompt_tokens", "decode_tokens", "users"])]
    sweep: bool,
    /// First make the model again in this format
    #[arg(long = "as", value_name = "FORMAT")]
    format: Option<Target>,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bench perplexity model.gguf book.txt\n  cairn bench perplexity model.gguf book.txt --windows 20 --as q5_k --json"
)]
struct PerplexityArgs {
    /// A .gguf file
    model: PathBuf,
    /// A file of UTF-8 text
    text: PathBuf,
    /// Tokens of a window, of which the second half is scored
    #[arg(long, value_name = "N", default_value_t = bench::WINDOW)]
    window: usize,
    /// Most windows [default: the whole text]
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    windows: usize,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Int8 planes of activations: 2 is exact to rounding, 1 is faster
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=2))]
    planes: u32,
    /// What keys and values are held as: f16, or int8 in half the bytes
    #[arg(long, value_name = "FORMAT", default_value_t = KvFormat::F16)]
    kv: KvFormat,
    /// Kernels, as for bench engine
    #[arg(long, value_name = "LEVEL", default_value = "auto")]
    level: AskedLevel,
    /// First make the model again in this format
    #[arg(long = "as", value_name = "FORMAT")]
    format: Option<Target>,
}

/// Instructions to measure with; none is as an engine would choose.
#[derive(Clone, Copy)]
struct AskedLevel(Option<Level>);

impl FromStr for AskedLevel {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self(None)),
            name => name.parse().map(|level| Self(Some(level))).map_err(|error| format!("{error}, or auto")),
        }
    }
}

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn bench blobs\n  cairn bench blobs --mib 1024 --json")]
struct BlobsArgs {
    /// Size of the random file
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=65536))]
    mib: u32,
    /// Where the temporary stores are made [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bench stages model.gguf\n  cairn bench stages ./model --nodes 2 --repeat 9 --json"
)]
struct StagesArgs {
    /// A .gguf file, or a folder with config.json and safetensors
    model: PathBuf,
    /// Processes, and stages, of the split
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=16))]
    nodes: u32,
    /// Tokens decoded a round
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=4096))]
    decode_tokens: u32,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bench users model.gguf\n  cairn bench users ./model --users 16 --nodes 3 --repeat 9 --json\n  cairn bench users ./model --adapters ./lora-a,./lora-b"
)]
struct UsersArgs {
    /// A .gguf file, or a folder with config.json and safetensors
    model: PathBuf,
    /// Users at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=64))]
    users: u32,
    /// PEFT folders: users take them in turn, one of each turn none; measured beside the same users without
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    adapters: Vec<PathBuf>,
    /// Processes, and stages, that serve them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    nodes: u32,
    /// Tokens decoded for each user a round
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=4096))]
    decode_tokens: u32,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
}

pub(super) async fn run(global: &Global, args: BenchArgs) -> Outcome {
    match args.command {
        BenchCommand::Engine(args) => or_interrupted("cairn bench engine", engine(global, args)).await,
        BenchCommand::Blobs(args) => or_interrupted("cairn bench blobs", blobs(global, args)).await,
        BenchCommand::Stages(args) => or_interrupted("cairn bench stages", stages(global, args)).await,
        BenchCommand::Embed(args) => or_interrupted("cairn bench embed", bench_embed::run(global, args)).await,
        BenchCommand::Sync(args) => or_interrupted("cairn bench sync", bench_sync::run(global, args)).await,
        BenchCommand::Catalog(args) => or_interrupted("cairn bench catalog", bench_catalog::run(global, args)).await,
        BenchCommand::Users(args) => or_interrupted("cairn bench users", users(global, args)).await,
        BenchCommand::Perplexity(args) => or_interrupted("cairn bench perplexity", perplexity(global, args)).await,
    }
}

async fn engine(global: &Global, args: EngineArgs) -> Outcome {
    let name = args.model.display().to_string();
    found(&args.model)?;
    // Held here and not by the thread that measures: an interruption drops this future, and nobody waits for the thread.
    let folder = room_for(args.format)?;
    let remade = folder.as_ref().map(|folder| folder.path().join("model.gguf"));
    let measured = tokio::task::spawn_blocking(move || measure(&args, remade));
    let (value, text) = match measured.await.map_err(|error| output::failed(&name, &error))?? {
        Measured::One(report) => (serde_json::to_value(&report), describe_engine(&report)),
        Measured::Sweep(report) => (serde_json::to_value(&report), describe_sweep(&report)),
    };
    let value = value.map_err(|error| output::failed("the result", &error))?;
    global.output().result(&value, || text);
    Ok(true)
}

/// A folder for a model that is made again, if one is.
fn room_for(format: Option<Target>) -> Result<Option<tempfile::TempDir>, Refusal> {
    let folder = format.map(|_| tempfile::Builder::new().prefix("cairn-bench-").tempdir()).transpose();
    folder.map_err(|error| output::failed("a temporary folder", &error))
}

async fn perplexity(global: &Global, args: PerplexityArgs) -> Outcome {
    let name = args.model.display().to_string();
    found(&args.model)?;
    let text = std::fs::read_to_string(&args.text).map_err(|error| {
        Refusal::new(Reason::BadInput, args.text.display().to_string(), error.to_string())
            .try_this("a file of UTF-8 text")
    })?;
    let folder = room_for(args.format)?;
    let remade = folder.as_ref().map(|folder| folder.path().join("model.gguf"));
    let measured = tokio::task::spawn_blocking(move || {
        if let (Some(format), Some(remade)) = (args.format, &remade) {
            remake(&args.model, format, remade)?;
        }
        let model = remade.as_deref().unwrap_or(&args.model);
        let (threads, planes, kv, level) = (args.threads, args.planes, args.kv, args.level.0);
        let options = BenchOptions { threads, planes, kv, level, ..BenchOptions::default() };
        bench::perplexity(model, &text, args.window, args.windows, &options)
            .map_err(|error| refused(&args.model, &error))
    });
    let report = measured.await.map_err(|error| output::failed(&name, &error))??;
    let value = serde_json::to_value(&report).map_err(|error| output::failed("the result", &error))?;
    global.output().result(&value, || describe_perplexity(&report));
    Ok(true)
}

fn describe_perplexity(report: &PerplexityReport) -> String {
    let mut lines = vec![
        format!("perplexity {:.4}", report.perplexity),
        format!("  {} tokens scored in {} windows of {}", report.scored, report.windows, report.window),
        format!(
            "  {:.1} tokens/s, {} kernels, {} planes, keys and values as {}",
            report.tokens_per_s, report.level, report.planes, report.kv
        ),
    ];
    lines.extend(report.conversions.iter().map(|conversion| format!("  held {conversion}")));
    lines.join("\n")
}

/// What `bench engine` measures.
enum Measured {
    One(BenchReport),
    Sweep(SweepReport),
}

fn measure(args: &EngineArgs, remade: Option<PathBuf>) -> Result<Measured, Refusal> {
    let options = BenchOptions {
        prompt_tokens: args.prompt_tokens,
        decode_tokens: args.decode_tokens,
        users: args.users,
        threads: args.threads,
        repeat: args.repeat,
        planes: args.planes,
        kv: args.kv,
        level: args.level.0,
    };
    if let (Some(format), Some(remade)) = (args.format, &remade) {
        remake(&args.model, format, remade)?;
    }
    let model = remade.as_deref().unwrap_or(&args.model);
    let measured = match args.sweep {
        true => bench::sweep(model, &options).map(Measured::Sweep),
        false => bench::run(model, &options).map(Measured::One),
    };
    measured.map_err(|error| refused(&args.model, &error))
}

/// Writes the model in another format to `path`.
fn remake(model: &Path, format: Target, path: &Path) -> Result<(), Refusal> {
    quantise_file(model, path, format, Existing::Convert).map_err(|error| {
        Refusal::new(Reason::BadInput, model.display().to_string(), error.to_string())
            .try_this("cairn bench engine --help")
    })
}

/// A model that is there, with its whole path.
fn found(model: &Path) -> Result<PathBuf, Refusal> {
    std::fs::canonicalize(model).map_err(|error| {
        let reason = if error.kind() == std::io::ErrorKind::NotFound { Reason::NotFound } else { Reason::BadInput };
        Refusal::new(reason, model.display().to_string(), error.to_string())
            .try_this("a .gguf file or a model's folder")
    })
}

fn refused(model: &Path, error: &BenchError) -> Refusal {
    let reason = match error {
        BenchError::Files(_) | BenchError::Options(_) => Reason::BadInput,
        BenchError::MissingLevel(_) => Reason::WrongInstructionSet,
        BenchError::Weights(_) => Reason::Unsupported,
        BenchError::Thread(_) => Reason::Internal,
    };
    Refusal::new(reason, model.display().to_string(), error.to_string()).try_this("cairn bench engine --help")
}

fn describe_engine(report: &BenchReport) -> String {
    let rate = |name: &str, median: f64, min: f64, max: f64| {
        format!("  {name:<9} {median:>9.1} tokens/s   ({min:.1} to {max:.1})")
    };
    let mut lines = vec![
        format!(
            "{} threads, {} kernels, {} planes, keys and values as {}, {} users",
            report.threads, report.level, report.planes, report.kv, report.users
        ),
        rate("prefill", report.prefill_tokens_per_s, report.prefill_min, report.prefill_max),
        rate("decode", report.decode_tokens_per_s, report.decode_min, report.decode_max),
        format!(
            "  bound     {:>9.1} tokens/s   (a step reads {} at {:.1} GB/s)",
            report.decode_bound_tokens_per_s,
            HumanBytes(report.step_bytes),
            report.bandwidth_bytes_per_s as f64 / 1e9
        ),
        format!("  weights   {} loaded in {:.2} s", HumanBytes(report.weights_bytes), report.load_s),
    ];
    lines.extend(report.conversions.iter().map(|conversion| format!("  held      {conversion}")));
    lines.join("\n")
}

fn describe_sweep(report: &SweepReport) -> String {
    let mut lines = vec![
        format!("{} threads, {} kernels, {} planes", report.threads, report.level, report.planes),
        format!(
            "a step reads {} of weights and {} a position, at {:.1} GB/s; a token takes {:.0} million products, at {:.0} a second",
            HumanBytes(report.step_bytes),
            HumanBytes(report.position_bytes),
            report.bandwidth_bytes_per_s as f64 / 1e9,
            report.products_a_token as f64 / 1e6,
            report.products_per_s as f64 / 1e6
        ),
        format!(
            "attention's products, at {:.0} million a second, are counted with them",
            report.float_products_per_s as f64 / 1e6
        ),
        "prompt  users    prefill     bound  part     decode     bound  part".to_owned(),
    ];
    lines.extend(report.rows.iter().map(|row| {
        let part = |rate: f64, bound: f64| 100.0 * rate / bound.max(1e-9);
        format!(
            "{:>6} {:>6} {:>10.0} {:>9.0} {:>4.0}% {:>10.0} {:>9.0} {:>4.0}%  {}",
            row.prompt_tokens,
            row.users,
            row.prefill_tokens_per_s,
            row.prefill_bound_tokens_per_s,
            part(row.prefill_tokens_per_s, row.prefill_bound_tokens_per_s),
            row.decode_tokens_per_s,
            row.decode_bound_tokens_per_s,
            part(row.decode_tokens_per_s, row.decode_bound_tokens_per_s),
            if row.decode_bound_by_products { "products" } else { "memory" },
        )
    }));
    lines.join("\n")
}

async fn blobs(global: &Global, args: BlobsArgs) -> Outcome {
    let folder = args.folder.unwrap_or_else(std::env::temp_dir);
    let report = bench_blobs::measure(args.mib.into(), &folder).await?;
    let value = serde_json::to_value(&report).map_err(|error| output::failed("the result", &error))?;
    global.output().result(&value, || describe_blobs(&report));
    Ok(true)
}

fn describe_blobs(report: &BlobsReport) -> String {
    let rate = |name: &str, value: f64| format!("  {name:<28} {value:>8.0} MB/s");
    [
        format!("{} over loopback", HumanBytes(report.bytes)),
        rate("import, three digests", report.import_mb_per_s),
        rate("pull from one, verified", report.pull_1_mb_per_s),
        rate("pull from four, verified", report.pull_4_mb_per_s),
        rate("plain TCP, hashed", report.tcp_blake3_mb_per_s),
        rate("disk, written and synced", report.disk_write_mb_per_s),
    ]
    .join("\n")
}

async fn stages(global: &Global, args: StagesArgs) -> Outcome {
    let StagesArgs { model, nodes, decode_tokens, repeat } = args;
    let model = found(&model)?;
    let program = std::env::current_exe().map_err(|error| output::failed("the cairn program", &error))?;
    let report = bench_stages::measure(program, &model, &StagesOptions { nodes, decode_tokens, repeat }).await?;
    let value = serde_json::to_value(&report).map_err(|error| output::failed("the result", &error))?;
    global.output().result(&value, || describe_stages(&report));
    Ok(true)
}

async fn users(global: &Global, args: UsersArgs) -> Outcome {
    let UsersArgs { model, users, adapters, nodes, decode_tokens, repeat } = args;
    let model = found(&model)?;
    let adapters = adapters.iter().map(|adapter| found(adapter)).collect::<Result<_, _>>()?;
    let program = std::env::current_exe().map_err(|error| output::failed("the cairn program", &error))?;
    let options = UsersOptions { adapters, users, nodes, decode_tokens, repeat };
    let report = bench_users::measure(program, &model, &options).await?;
    let value = serde_json::to_value(&report).map_err(|error| output::failed("the result", &error))?;
    global.output().result(&value, || describe_users(&report));
    Ok(true)
}

fn describe_users(report: &UsersReport) -> String {
    let crowd = |name: &str, crowd: &Crowd| {
        format!(
            "{name:<9} {:8.1} tokens/s ({:.1} to {:.1}), {:.0} each, first after {:.0} ms, then one each {:.1} ms (p99 {:.1})",
            crowd.tokens_per_s,
            crowd.tokens_per_s_min,
            crowd.tokens_per_s_max,
            crowd.tokens_each,
            crowd.ttft_ms,
            crowd.gap_p50_ms,
            crowd.gap_p99_ms
        )
    };
    let adapted = report.adapted.as_ref().zip(report.adapted_ratio).map(|(adapted, ratio)| {
        format!("{}\nwith adapters {ratio:.2} of their tokens without", crowd("adapted", adapted))
    });
    let same = if report.same_tokens { "the same tokens as alone" } else { "NOT the tokens that each gets alone" };
    [crowd("one user", &report.one), crowd(&format!("{} users", report.users), &report.all)]
        .into_iter()
        .chain(adapted)
        .chain([format!("together {:.2} times the one's tokens, {same}", report.total_ratio)])
        .collect::<Vec<_>>()
        .join("\n")
}

fn describe_stages(report: &StagesReport) -> String {
    let side = |name: &str, side: &Side| {
        let steps: Vec<String> = side.step_ms.iter().map(|ms| format!("{ms:.2}")).collect();
        [
            format!(
                "{name}: {:.1} tokens/s ({:.1} to {:.1}), first after {:.0} ms",
                side.decode_tokens_per_s, side.decode_min, side.decode_max, side.ttft_ms
            ),
            format!("  a lap {:.2} ms: stages {}, links {:.2}", side.lap_ms, steps.join(" + "), side.links_ms),
        ]
    };
    let mut lines = vec![format!("a prompt of {} tokens, {} decoded", report.prompt_tokens, report.decode_tokens)];
    lines.extend(side("one process", &report.one));
    lines.extend(side(&format!("{} processes", report.split.layers.len()), &report.split));
    lines.push(format!("decode {:.2}, prefill {:.2} of one process", report.decode_ratio, report.prefill_ratio));
    if !report.same_tokens {
        lines.push("the tokens differ: that is a defect".to_string());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_auto_or_one_that_the_engine_has() {
        let asked = |name: &str| name.parse::<AskedLevel>().map(|asked| asked.0);
        assert_eq!(asked("auto"), Ok(None));
        for level in Level::ALL {
            assert_eq!(asked(level.name()), Ok(Some(level)));
        }
        let refused = asked("avx512vnni").expect_err("no such level");
        assert!(
            ["scalar", "avx2", "avx-vnni", "avx512", "neon", "auto"].iter().all(|name| refused.contains(name)),
            "{refused}"
        );
    }

    #[test]
    fn a_level_that_the_processor_lacks_is_refused_as_such() {
        let refusal = refused(Path::new("m.gguf"), &BenchError::MissingLevel(Level::Avx512));
        assert_eq!(refusal.reason, Reason::WrongInstructionSet);
        assert!(refusal.to_string().contains("this processor has no avx512 instructions"), "{refusal}");
    }
}
