//! Keeps this node's advert true about its stages: sessions, loads and free memory.

use std::sync::Arc;

use cairn_protocol::advert::Load;

use super::bounds;
use crate::shell::Node;

/// Tells the net whenever the occupancy changed, until the node stops.
pub async fn advertise(node: Arc<Node>) {
    let mut changes = node.stages.changes();
    let mut told = None;
    loop {
        let occupancy = node.stages.occupancy();
        if told != Some(occupancy) {
            told = Some(occupancy);
            node.net.set_load(Load {
                sessions: occupancy.sessions,
                sessions_max: bounds::SESSIONS_MAX as u32,
                stage_memory_free_bytes: occupancy.memory_free_bytes,
                loads: occupancy.loads,
            });
        }
        tokio::select! {
            () = node.shutdown.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
