//! What each stage of a plan is told when it is opened. Pure but for the addresses, which the peer table knows.

use std::{collections::BTreeSet, net::SocketAddr};

use cairn_compute::{KvFormat, plan::Plan};
use cairn_protocol::{id::NodeId, peer_pb};

use super::Job;
use crate::{
    data::fetch::Source,
    shell::Node,
    stages::{self, bounds, choosing, links::Opening, prefix},
};

/// Int8 planes of activations: two, since one changes the best token at 8-20 % of positions on a small model.
const PLANES: u32 = 2;

/// What is opened.
pub(super) struct Asked<'a> {
    pub epoch: u32,
    pub plan: &'a Plan,
    /// Ids so far.
    pub history: &'a [u32],
    /// Nodes that are lost.
    pub excluded: &'a BTreeSet<NodeId>,
    /// How long stages may wait for their places.
    pub wait_ms: u64,
}

/// One opening a stage, in the order of the plan.
pub(super) fn openings(node: &Node, job: &Job, asked: Asked) -> Vec<Opening> {
    let Asked { epoch, plan, history, excluded, wait_ms } = asked;
    // While one stage of several waits the others hold their places: not for long, so that no two sessions wait for each other.
    let wait_ms = if plan.stages.len() > 1 { wait_ms.min(bounds::WAIT_AMONG_OTHERS_MS) } else { wait_ms };
    let own = node.identity.node_id();
    let adapter = job.adapter.as_ref().map(|adapter| peer_pb::Adapter {
        revision: adapter.revision.to_vec(),
        publisher: adapter.publisher.to_vec(),
        sources: sources(&adapter.sources, excluded),
    });
    let sources = sources(&job.sources, excluded);
    let (sampling, choosing) = choosing::to_wire(&job.demands);
    let pages = prefix::chain(history);
    let opening = |index: usize| {
        let stage = &plan.stages[index];
        let next = plan.stages.get(index + 1);
        let previous = if index == 0 { own } else { plan.stages[index - 1].node };
        let open = peer_pb::OpenStage {
            session: job.session.to_vec(),
            epoch,
            realm: node.config.realm.to_vec(),
            revision: job.revision.to_vec(),
            publisher: job.manifest.repo.publisher.to_vec(),
            first_layer: stage.layers.start,
            end_layer: stage.layers.end,
            embedding: stage.embedding,
            head: stage.head,
            context: job.machine.context as u32,
            planes: PLANES,
            next_node: next.map(|s| s.node.to_vec()).unwrap_or_default(),
            next_addresses: next.map(|s| addresses_as_text(node, s.node)).unwrap_or_default(),
            previous_node: previous.to_vec(),
            // No other stage chooses anything.
            sampling: stage.head.then_some(sampling),
            choosing: choosing.clone().filter(|_| stage.head),
            privacy: stages::privacy_word(job.wish.privacy).to_owned(),
            deadline_ms: 0,
            sources: sources.clone(),
            index: index as u32,
            level: plan.level.clone(),
            adapter: adapter.clone(),
            quantise: job.quantise.map(|target| target.name().to_owned()).unwrap_or_default(),
            kv: if job.kv == KvFormat::F16 { String::new() } else { job.kv.name().to_owned() },
            prefix: prefix::for_stage(&pages, plan, index),
            positions: history.len() as u64,
            wait_ms,
            client: if stage.node == own { job.client } else { 0 },
            history: if stage.head && job.demands.needs_history() { history.to_vec() } else { Vec::new() },
        };
        Opening { node: stage.node, addresses: addresses(node, stage.node), open }
    };
    (0..plan.stages.len()).map(opening).collect()
}

/// What each stage of a plan is told at its end: what pages of all ids of the session are known by.
pub(super) fn closings(plan: &Plan, ids: &[u32]) -> Vec<Vec<u8>> {
    let pages = prefix::chain(ids);
    (0..plan.stages.len()).map(|index| prefix::for_stage(&pages, plan, index)).collect()
}

/// Who holds the revision, but for the lost: waiting for them would cost a dial each.
fn sources(holders: &[Source], excluded: &BTreeSet<NodeId>) -> Vec<peer_pb::Source> {
    let alive = holders.iter().filter(|s| !excluded.contains(&s.node)).take(bounds::SOURCES_MAX);
    let wire = |s: &Source| peer_pb::Source {
        node: s.node.to_vec(),
        addresses: s.addresses.iter().take(bounds::ADDRESSES_MAX).map(SocketAddr::to_string).collect(),
    };
    alive.map(wire).collect()
}

/// Where a node takes data connections: its advert says; this node's own are its statement's.
fn addresses(node: &Node, other: NodeId) -> Vec<SocketAddr> {
    if other == node.identity.node_id() {
        return node.data.addresses();
    }
    let advert = node.net.peer(other).and_then(|peer| peer.advert);
    advert.map(|a| a.data_addresses).unwrap_or_default()
}

fn addresses_as_text(node: &Node, other: NodeId) -> Vec<String> {
    addresses(node, other).iter().take(bounds::ADDRESSES_MAX).map(SocketAddr::to_string).collect()
}
