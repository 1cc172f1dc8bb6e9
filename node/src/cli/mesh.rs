//! `cairn peers`, `cairn status`, `cairn capacity`: the mesh as this node sees it.

use cairn_client::api;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn peers\n  cairn peers --json | jq '.peers[] | select(.connected) | .node_id'"
)]
pub(super) struct PeersArgs {}

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn status\n  cairn status --api 127.0.0.1:4180 --json")]
pub(super) struct StatusArgs {}

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn capacity\n  cairn capacity --json | jq .measured")]
pub(super) struct CapacityArgs {}

pub(super) async fn peers(global: &Global) -> Outcome {
    let peers = global.connect().await?.peers().await?.peers;
    global.output().result(&json!({"peers": peers.iter().map(peer).collect::<Vec<_>>()}), || {
        peers.iter().map(row).collect::<Vec<_>>().join("\n")
    });
    if peers.is_empty() {
        global.output().note("no peers yet (try: cairn node --bootstrap MULTIADDR)");
    }
    Ok(true)
}

fn peer(peer: &api::Peer) -> Value {
    let grants = peer.grants.as_ref().map(|grants| {
        json!({
            "store": grants.store, "compute": grants.compute, "train": grants.train,
        })
    });
    json!({
        "node_id": peer.node_id, "peer_id": peer.peer_id, "addresses": peer.addresses, "last_seen_ms": peer.last_seen_ms,
        "connected": peer.connected, "rtt_ms": peer.rtt_ms, "agent": peer.agent,
        "capacity": peer.capacity.as_ref().map(capacity_value), "grants": grants,
    })
}

fn row(peer: &api::Peer) -> String {
    let state = if peer.connected {
        format!("connected, {:.1} ms", peer.rtt_ms)
    } else {
        format!("last seen {:.0} s ago", peer.last_seen_ms as f64 / 1e3)
    };
    let compute = peer.grants.as_ref().map(|grants| format!("computes for {}", grants.compute)).unwrap_or_default();
    let address = peer.addresses.first().map(String::as_str).unwrap_or("no address");
    format!("{:.10}  {state:<24} {compute:<22} {address}", peer.node_id)
}

pub(super) async fn status(global: &Global) -> Outcome {
    let status = global.connect().await?.status().await?;
    let value = json!({
        "node_id": status.node_id, "peer_id": status.peer_id, "version": status.version, "realm": status.realm,
        "uptime_s": status.uptime_s, "repos": status.repos, "bytes_stored": status.bytes_stored,
        "sessions": status.sessions, "peers": status.peers, "listen": status.listen, "data": status.data,
        "http": status.http, "home": status.home,
    });
    global.output().result(&value, || {
        let listen = status.listen.join("\n  listen     ");
        format!(
            "node {}\n  version    {}, up {:.0} s\n  home       {}\n  realm      {}\n  holds      {} repos, {}\n  sessions   {}\n  peers      {}\n  data       {}\n  http       {}\n  listen     {listen}",
            status.node_id, status.version, status.uptime_s, status.home, status.realm, status.repos,
            HumanBytes(status.bytes_stored), status.sessions, status.peers, status.data, status.http,
        )
    });
    Ok(true)
}

pub(super) async fn capacity(global: &Global) -> Outcome {
    let capacity = global.connect().await?.capacity().await?;
    global.output().result(&capacity_value(&capacity), || {
        let measured = capacity.measured.unwrap_or_default();
        let mut lines = vec![
            format!("{}, {} cores, {} kernels", capacity.cpu, capacity.cores, capacity.level),
            format!(
                "  memory     {}, of which {} for stages",
                HumanBytes(capacity.memory_bytes),
                HumanBytes(capacity.stage_memory_bytes)
            ),
            format!("  measured   {:.1} GB/s read, {:.1} GMAC/s", measured.bandwidth_gb_per_s, measured.gmacs_per_s),
        ];
        lines.extend(
            capacity.gpus.iter().map(|gpu| format!("  gpu        {}, {}", gpu.name, HumanBytes(gpu.memory_bytes))),
        );
        lines.join("\n")
    });
    Ok(true)
}

fn capacity_value(capacity: &api::CapacityResponse) -> Value {
    let measured = capacity.measured.unwrap_or_default();
    json!({
        "cpu": capacity.cpu, "cores": capacity.cores, "memory_bytes": capacity.memory_bytes, "level": capacity.level,
        "stage_memory_bytes": capacity.stage_memory_bytes,
        "gpus": capacity.gpus.iter().map(|gpu| json!({
            "name": gpu.name, "memory_bytes": gpu.memory_bytes, "driver": gpu.driver,
        })).collect::<Vec<_>>(),
        "measured": {"bandwidth_gb_per_s": measured.bandwidth_gb_per_s, "gmacs_per_s": measured.gmacs_per_s},
    })
}
