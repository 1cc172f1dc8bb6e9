//! Keeps this node's advert true about its stages and tasks: what runs, what is loaded, and free memory.

use std::sync::Arc;

use cairn_compute::tasks::SERVED;
use cairn_protocol::advert::Load;

use super::bounds;
use crate::shell::Node;

/// Tells the net whenever the occupancy changed, until the node stops.
pub async fn advertise(node: Arc<Node>) {
    let mut changes = node.stages.changes();
    let (mut told, mut told_warm) = (None, Vec::new());
    node.net.state(|statement| statement.tasks = SERVED.iter().map(|task| task.name.to_owned()).collect());
    loop {
        let warm = node.stages.rooms().warm_tasks();
        if warm != told_warm {
            node.net.state(|statement| statement.warm.clone_from(&warm));
            told_warm = warm;
        }
        let occupancy = node.stages.occupancy();
        if told != Some(occupancy) {
            told = Some(occupancy);
            node.net.set_load(Load {
                sessions: occupancy.sessions,
                sessions_max: bounds::SESSIONS_MAX as u32,
                stage_memory_free_bytes: occupancy.memory_free_bytes,
                loads: occupancy.loads,
                tasks: occupancy.tasks,
                tasks_max: bounds::TASKS_MAX as u32,
            });
        }
        tokio::select! {
            () = node.shutdown.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
