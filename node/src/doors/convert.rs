//! From this node's words to the API's: the only place where the gRPC door converts.

use cairn_protocol::advert::{Advert, Capacity, Grant, Grants};
use cairn_protocol::api;

use crate::net::PeerInfo;

/// A peer as `cairn peers` shows it.
pub(super) fn peer(info: PeerInfo) -> api::Peer {
    let advert: Option<&Advert> = info.advert.as_ref();
    api::Peer {
        node_id: info.node_id.to_string(),
        peer_id: info.peer_id,
        addresses: info.addresses,
        last_seen_ms: info.last_seen_ms,
        connected: info.connected,
        rtt_ms: info.rtt.map_or(0.0, |rtt| rtt.as_secs_f64() * 1e3),
        agent: advert.map(|advert| advert.agent.clone()).unwrap_or_default(),
        capacity: advert.map(|advert| capacity(&advert.capacity)),
        grants: advert.map(|advert| grants(&advert.grants)),
    }
}

/// What a machine can do.
pub(super) fn capacity(capacity: &Capacity) -> api::CapacityResponse {
    api::CapacityResponse {
        cpu: capacity.cpu.clone(),
        cores: capacity.cores,
        memory_bytes: capacity.memory_bytes,
        level: capacity.level.clone(),
        gpus: capacity
            .gpus
            .iter()
            .map(|gpu| api::Gpu { name: gpu.name.clone(), memory_bytes: gpu.memory_bytes, driver: gpu.driver.clone() })
            .collect(),
        measured: Some(api::Measured {
            bandwidth_gb_per_s: capacity.bandwidth_bytes_per_s as f64 / 1e9,
            gmacs_per_s: capacity.macs_per_s as f64 / 1e9,
        }),
        stage_memory_bytes: capacity.stage_memory_bytes,
    }
}

fn grants(grants: &Grants) -> api::Grants {
    api::Grants {
        store: grant(grants.store).to_string(),
        compute: grant(grants.compute).to_string(),
        train: grant(grants.train).to_string(),
    }
}

fn grant(grant: Grant) -> &'static str {
    match grant {
        Grant::Nobody => "nobody",
        Grant::Listed => "listed",
        Grant::Realm => "realm",
        Grant::Anyone => "anyone",
    }
}
