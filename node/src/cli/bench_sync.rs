//! `cairn bench sync`: what it costs two catalogues of millions to agree.

use cairn_protocol::refusal::Refusal;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::{Global, Outcome, output};
use crate::bench_sync::{self, Compared};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn bench sync --records 100000\n  cairn bench sync --records 2500000 --differences 0,100,10000 --json"
)]
pub(super) struct SyncBenchArgs {
    /// Records of each side
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Records that only one side has, one comparison each
    #[arg(long, value_name = "N,N…", value_delimiter = ',', default_values_t = [0, 100, 10_000])]
    differences: Vec<u64>,
}

pub(super) async fn run(global: &Global, args: SyncBenchArgs) -> Outcome {
    let folder = tempfile::Builder::new()
        .prefix("cairn-bench-")
        .tempdir()
        .map_err(|e| output::failed("a temporary folder", &e))?;
    let (path, out, records) = (folder.path().to_owned(), global.output(), args.records);
    let measured = tokio::task::spawn_blocking(move || {
        let show = |stored: u64| {
            if out.is_watched() && stored.is_multiple_of(500_000) {
                out.note(&format!("{stored} records"));
            }
        };
        bench_sync::run(&path, records, &args.differences, show)
    });
    let (store_s, compared) = measured.await.map_err(|error| Refusal::internal("the measurement", error))??;
    let value = json!({"records": records, "store_s": store_s, "compared": compared});
    global.output().result(&value, || describe(records, store_s, &compared));
    Ok(true)
}

fn describe(records: u64, store_s: f64, compared: &[Compared]) -> String {
    let mut lines = vec![format!("{records} records a side, {store_s:.1} s to sum one up")];
    lines.extend(compared.iter().map(|one| {
        format!(
            "{:>8} differences: {} sent, {} heard, {} round trips, {:.0} ms, {:.0} ms of processor; all ids {}, {:.0} times that",
            one.differences,
            HumanBytes(one.sent_bytes),
            HumanBytes(one.heard_bytes),
            one.round_trips,
            one.seconds * 1e3,
            one.cpu_s * 1e3,
            HumanBytes(one.all_ids_bytes),
            one.ratio
        )
    }));
    lines.join("\n")
}
