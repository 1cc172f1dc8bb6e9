//! How this node is: what a person's `status` and a monitor's scrape are told. It only reads.

use std::sync::atomic::Ordering;

use cairn_protocol::{api, refusal::Refusal};
use cairn_registry::Stats;

use crate::{shell::Node, telemetry::Gauges};

/// Answers `Status`.
pub async fn status(node: &Node) -> Result<api::StatusResponse, Refusal> {
    let stats = stats(node).await?;
    let coordinated = u32::try_from(node.counters.sessions_active.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
    Ok(api::StatusResponse {
        node_id: node.identity.node_id().to_string(),
        peer_id: node.net.peer_id(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        realm: node.config.realm.to_string(),
        uptime_s: node.started.elapsed().as_secs_f64(),
        repos: stats.repos,
        bytes_stored: stats.bytes_stored,
        sessions: node.stages.occupancy().sessions.max(coordinated),
        peers: u32::try_from(node.net.connected().len()).unwrap_or(u32::MAX),
        listen: node.net.listen_addresses(),
        data: node.data.address().to_string(),
        http: node.doors.http.map(|address| address.to_string()).unwrap_or_default(),
        home: node.home.root().display().to_string(),
    })
}

/// What the exporter can't count by itself.
pub async fn gauges(node: &Node) -> Result<Gauges, Refusal> {
    let (stats, occupancy) = (stats(node).await?, node.stages.occupancy());
    Ok(Gauges {
        waiting: occupancy.waiting,
        waits: occupancy.waits,
        records: stats.records,
        repos: stats.repos,
        blob_bytes: stats.bytes_stored,
        peers: node.net.connected().len() as u64,
        unknown_records: node.net.unknown_records(),
        uptime_s: node.started.elapsed().as_secs_f64(),
        stage_memory_bytes: node.engine.memory().0,
        pages: node.engine.keys_and_values(),
    })
}

async fn stats(node: &Node) -> Result<Stats, Refusal> {
    let stats = node.registry.stats().await;
    stats.map_err(|error| Refusal::internal("the catalogue", error).try_this("the node's log"))
}
