//! What a node tells its operator: log lines on stderr, and counters for `/metrics`.
//!
//! Not for people at a terminal (that is `cli::output`), and never for secrets: tokens, keys and prompts are in no log line.
//!
//! Invariant: a counter only rises, a gauge says how it is now; names stay, dashboards hold on to them.

use cairn_compute::engine::KeysAndValues;

use crate::stages::Waits;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;

/// Sets up logging to stderr: `CAIRN_LOG` if it is set, else a level by the number of `-v`.
/// `usual` is the filter of a quiet command. Called once; a second call changes nothing.
pub fn log_to_stderr(usual: &str, verbosity: u8) {
    let by_flag = match verbosity {
        0 => usual,
        1 => "warn,cairn=debug,cairn_node=debug,cairn_registry=debug,cairn_compute=debug",
        _ => "info,cairn=trace,cairn_node=trace,cairn_registry=trace,cairn_compute=trace",
    };
    let filter = match std::env::var("CAIRN_LOG") {
        Ok(wish) if !wish.is_empty() && verbosity == 0 => EnvFilter::new(wish),
        _ => EnvFilter::new(by_flag),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true);
    let _ = lines.try_init();
}

/// Counts of one node. Relaxed atomics: each number is true by itself, no two are read at one instant.
#[derive(Debug, Default)]
pub struct Counters {
    /// Generations under way here as coordinator.
    pub sessions_active: AtomicU64,
    /// Generations begun.
    pub sessions_total: AtomicU64,
    /// Tokens that this coordinator sent to clients.
    pub tokens_total: AtomicU64,
    /// Stages lost and replaced.
    pub recoveries_total: AtomicU64,
    /// Tasks that clients asked for.
    pub tasks_total: AtomicU64,
    /// Nodes that failed while they did one.
    pub tasks_lost_total: AtomicU64,
    /// Calls refused at any door.
    pub refusals_total: AtomicU64,
    /// Calls admitted at the gRPC door.
    pub calls_total: AtomicU64,
    /// Connections turned away because a door was full.
    pub connections_refused_total: AtomicU64,
    /// Verified blob bytes fetched from peers.
    pub blob_bytes_in: AtomicU64,
    /// Blob bytes served to peers.
    pub blob_bytes_out: AtomicU64,
}

impl Counters {
    /// Raises a counter.
    pub fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }

    /// Counts a generation; it is under way until what is returned goes.
    pub fn session(&self) -> Session<'_> {
        Counters::add(&self.sessions_total, 1);
        Counters::add(&self.sessions_active, 1);
        Session(self)
    }
}

/// A generation under way, for the gauge.
#[derive(Debug)]
pub struct Session<'a>(&'a Counters);

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.0.sessions_active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the exporter can't count by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// Records in the catalogue.
    pub records: u64,
    /// Repos in the catalogue.
    pub repos: u64,
    /// Bytes of blobs on disk.
    pub blob_bytes: u64,
    /// Peers connected now.
    pub peers: u64,
    /// Records of unknown kinds or versions that came in.
    pub unknown_records: u64,
    /// Seconds since start.
    pub uptime_s: f64,
    /// Bytes that stages hold, weights and all.
    pub stage_memory_bytes: u64,
    /// Keys and values.
    pub pages: KeysAndValues,
    /// Sessions in line for a place.
    pub waiting: u32,
    /// What waiting there was.
    pub waits: Waits,
}

/// Prometheus' text format, version 0.0.4.
pub fn prometheus(counters: &Counters, gauges: &Gauges) -> String {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let rows: [(&str, &str, &str, f64); 26] = [
        ("cairn_records", "gauge", "Records in the catalogue", gauges.records as f64),
        ("cairn_repos", "gauge", "Repos in the catalogue", gauges.repos as f64),
        ("cairn_blob_bytes", "gauge", "Bytes of blobs on disk", gauges.blob_bytes as f64),
        ("cairn_peers", "gauge", "Peers connected now", gauges.peers as f64),
        (
            "cairn_unknown_records_total",
            "counter",
            "Records of kinds or versions unknown here",
            gauges.unknown_records as f64,
        ),
        ("cairn_uptime_seconds", "gauge", "Seconds since start", gauges.uptime_s),
        ("cairn_stage_memory_bytes", "gauge", "Memory that stages hold", gauges.stage_memory_bytes as f64),
        ("cairn_kv_pages_bytes", "gauge", "Of that, pages of keys and values", gauges.pages.bytes as f64),
        (
            "cairn_kv_idle_bytes",
            "gauge",
            "Of those, pages kept for prompts that begin alike",
            gauges.pages.idle_bytes as f64,
        ),
        (
            "cairn_kv_evictions_total",
            "counter",
            "Sessions that made room for older ones",
            gauges.pages.evictions as f64,
        ),
        (
            "cairn_kv_found_positions_total",
            "counter",
            "Positions that were found computed",
            gauges.pages.adopted_positions as f64,
        ),
        ("cairn_stage_waiting", "gauge", "Sessions in line for a place", f64::from(gauges.waiting)),
        (
            "cairn_stage_waits_total",
            "counter",
            "Sessions that waited for a place and got it",
            gauges.waits.let_in as f64,
        ),
        ("cairn_stage_wait_seconds_total", "counter", "How long those waited", gauges.waits.waited.as_secs_f64()),
        ("cairn_stage_wait_refusals_total", "counter", "Sessions that waited in vain", gauges.waits.refused as f64),
        ("cairn_sessions", "gauge", "Generations under way", read(&counters.sessions_active)),
        ("cairn_sessions_total", "counter", "Generations begun", read(&counters.sessions_total)),
        ("cairn_tokens_total", "counter", "Tokens sent to clients", read(&counters.tokens_total)),
        ("cairn_recoveries_total", "counter", "Stages lost and replaced", read(&counters.recoveries_total)),
        ("cairn_tasks_total", "counter", "Tasks that clients asked for", read(&counters.tasks_total)),
        ("cairn_tasks_lost_total", "counter", "Nodes that failed at a task", read(&counters.tasks_lost_total)),
        ("cairn_calls_total", "counter", "Calls admitted at the gRPC door", read(&counters.calls_total)),
        ("cairn_refusals_total", "counter", "Calls refused at any door", read(&counters.refusals_total)),
        (
            "cairn_connections_refused_total",
            "counter",
            "Connections turned away by a full door",
            read(&counters.connections_refused_total),
        ),
        ("cairn_blob_received_bytes_total", "counter", "Blob bytes fetched from peers", read(&counters.blob_bytes_in)),
        ("cairn_blob_sent_bytes_total", "counter", "Blob bytes served to peers", read(&counters.blob_bytes_out)),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in rows {
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}").expect("a String takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_help_a_type_and_a_number() {
        let counters = Counters::default();
        Counters::add(&counters.tokens_total, 7);
        let text = prometheus(&counters, &Gauges { peers: 3, ..Gauges::default() });
        assert!(text.contains("\ncairn_tokens_total 7\n"));
        assert!(text.contains("\ncairn_peers 3\n"));
        let values = text.lines().filter(|line| !line.starts_with('#'));
        for line in values {
            let (name, value) = line.split_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(text.contains(&format!("# TYPE {name} ")), "{name} has no type");
            assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        }
    }
}
