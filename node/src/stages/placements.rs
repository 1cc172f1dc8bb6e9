//! Where this node, as a coordinator, had models loaded lately: the planner prefers what is loaded to what is a little
//! faster on paper, and repeated requests do not wander from node to node.
//!
//! A memory, not a promise: a node may have dropped the weights, and then loads them again. Invariant: bounded by
//! [`bounds::PLACED_MODELS_MAX`] models of [`bounds::PLACEMENTS_MAX`] placements each; the one used longest ago goes first.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use cairn_compute::{
    plan::{Placement, Plan},
    quantise::Target,
};
use cairn_protocol::id::{NodeId, RevisionId};

use super::bounds;

/// What was placed where, the last used at the end.
#[derive(Debug, Default)]
pub(crate) struct Placements {
    /// Guards both memories for look-ups; never held across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    models: VecDeque<(RevisionId, VecDeque<Placement>)>,
    /// Weights that sessions of ours use now, once for each.
    in_use: Vec<InUse>,
    /// When a session of ours on that node ended.
    ended: BTreeMap<NodeId, Instant>,
}

/// What a session uses: a revision, held as some type, on these nodes.
type InUse = (RevisionId, Option<Target>, Placement);

fn placement(plan: &Plan) -> Placement {
    plan.stages.iter().map(|stage| (stage.node, stage.layers)).collect()
}

impl Placements {
    /// A session of ours opens this plan; its weights are in use until what is returned goes.
    pub fn uses(self: &Arc<Self>, revision: RevisionId, quantise: Option<Target>, plan: &Plan) -> Use {
        let what = (revision, quantise, placement(plan));
        self.state().in_use.push(what.clone());
        Use { placements: self.clone(), what }
    }

    /// Where sessions of ours use a model now.
    pub fn in_use(&self, revision: RevisionId, quantise: Option<Target>) -> Vec<Placement> {
        let state = self.state();
        let of = state.in_use.iter().filter(|(r, q, _)| (*r, *q) == (revision, quantise));
        let mut found: Vec<Placement> = of.map(|(.., placement)| placement.clone()).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A plan of this model brought a token: its weights are loaded.
    pub fn placed(&self, revision: RevisionId, plan: &Plan) {
        let placement = placement(plan);
        let models = &mut self.state().models;
        let at = models.iter().position(|(known, _)| *known == revision);
        let (_, mut placements) = at.and_then(|at| models.remove(at)).unwrap_or((revision, VecDeque::new()));
        placements.retain(|other| *other != placement);
        placements.push_back(placement);
        if placements.len() > bounds::PLACEMENTS_MAX {
            placements.pop_front();
        }
        models.push_back((revision, placements));
        if models.len() > bounds::PLACED_MODELS_MAX {
            models.pop_front();
        }
    }

    /// The placements that a model had, the last used first.
    pub fn of(&self, revision: RevisionId) -> Vec<Placement> {
        let state = self.state();
        let found = state.models.iter().find(|(known, _)| *known == revision);
        found.map_or_else(Vec::new, |(_, placements)| placements.iter().rev().cloned().collect())
    }

    /// A session of ours ended on these nodes.
    pub fn ended(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let ended = &mut self.state().ended;
        ended.retain(|_, at| at.elapsed() < bounds::ADVERT_LAG);
        ended.extend(nodes.into_iter().map(|node| (node, Instant::now())));
    }

    /// Whether a node's advert may still count a session of ours that is over.
    pub fn has_just_ended(&self, node: NodeId) -> bool {
        self.state().ended.get(&node).is_some_and(|at| at.elapsed() < bounds::ADVERT_LAG)
    }
}

/// A session's use of weights.
#[derive(Debug)]
pub(crate) struct Use {
    placements: Arc<Placements>,
    what: InUse,
}

impl Drop for Use {
    fn drop(&mut self) {
        let in_use = &mut self.placements.state().in_use;
        if let Some(at) = in_use.iter().position(|what| *what == self.what) {
            in_use.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use cairn_compute::plan::{PlannedStage, Predicted};
    use cairn_protocol::layers::LayerRange;

    use super::*;

    fn plan(nodes: &[u8]) -> Plan {
        let stage = |(i, n): (usize, &u8)| PlannedStage {
            node: NodeId::from([*n; 32]),
            layers: LayerRange { start: i as u32, end: i as u32 + 1 },
            embedding: false,
            head: false,
            bytes: 1,
            memory_bytes: 1,
            ms: 1.0,
        };
        let predicted =
            Predicted { ttft_ms: 1.0, ready_ms: 0.0, token_ms: 1.0, compute_ms: 1.0, links_ms: 0.0, tokens_per_s: 1.0 };
        let stages = nodes.iter().enumerate().map(stage).collect();
        Plan { stages, rejected: Vec::new(), predicted, deaths: Vec::new(), level: "scalar".to_owned() }
    }

    fn model(n: u8) -> RevisionId {
        RevisionId::from([n; 32])
    }

    fn first_nodes(placements: &Placements, revision: RevisionId) -> Vec<u8> {
        placements.of(revision).iter().map(|p| p[0].0.as_bytes()[0]).collect()
    }

    #[test]
    fn weights_are_in_use_while_a_session_has_them() {
        let placements = Arc::new(Placements::default());
        let (one, same) = (placements.uses(model(7), None, &plan(&[1])), placements.uses(model(7), None, &plan(&[1])));
        let other = placements.uses(model(7), Some("q8_0".parse().unwrap()), &plan(&[2]));
        drop(one);
        let nodes =
            |quantise| placements.in_use(model(7), quantise).iter().map(|p| p[0].0.as_bytes()[0]).collect::<Vec<_>>();
        assert_eq!((nodes(None), nodes(Some("q8_0".parse().unwrap()))), (vec![1], vec![2]));
        drop((same, other));
        assert!(nodes(None).is_empty() && placements.in_use(model(8), None).is_empty());
    }

    #[test]
    fn the_last_used_placements_of_a_model_are_remembered_once_each() {
        let placements = Placements::default();
        for n in [1, 2, 1, 3, 4, 5, 1] {
            placements.placed(model(7), &plan(&[n]));
        }
        assert_eq!(first_nodes(&placements, model(7)), [1, 5, 4, 3]);
        assert!(placements.of(model(8)).is_empty());
    }

    #[test]
    fn the_model_used_longest_ago_is_forgotten_first() {
        let placements = Placements::default();
        for n in 0..bounds::PLACED_MODELS_MAX as u8 {
            placements.placed(model(n), &plan(&[1]));
        }
        placements.placed(model(0), &plan(&[2]));
        placements.placed(model(255), &plan(&[1]));
        assert_eq!(first_nodes(&placements, model(0)), [2, 1]);
        assert!(placements.of(model(1)).is_empty());
    }

    #[test]
    fn only_nodes_whose_session_just_ended_are_said_to() {
        let placements = Placements::default();
        placements.ended([NodeId::from([1; 32])]);
        assert!(placements.has_just_ended(NodeId::from([1; 32])));
        assert!(!placements.has_just_ended(NodeId::from([2; 32])));
    }
}
