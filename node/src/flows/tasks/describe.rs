//! What a name stands for as a task, and which nodes would do it: the part that asking and describing share.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use cairn_compute::plan::{Privacy, Standing};
use cairn_protocol::{
    api,
    id::{NodeId, PublisherKey, RevisionId},
    peer_pb,
    refusal::Refusal,
};

use super::{
    choose::{self, Candidate, Choice, Wish},
    known::{self, Known},
};
use crate::{
    data::fetch::Source,
    flows::{advisories, holders, names, plan},
    net::PeerInfo,
    shell::Node,
    stages::{self, bounds},
};

/// The task's name in adverts.
const EMBED: &str = "embed";

/// Answers `Describe`.
pub async fn describe(node: Arc<Node>, request: api::DescribeRequest) -> Result<api::DescribeResponse, Refusal> {
    let asked = Asked::prepare(&node, &request.repo, &request.privacy).await?;
    let choice = asked.choose(&node, &BTreeMap::new()).await;
    let recipe = &asked.known.recipe;
    let place = |c: &Candidate| api::TaskNode {
        node: c.node.to_string(),
        holds: c.holds,
        warm: c.is_warm,
        why: choose::why(c),
    };
    let rejected = |r: &choose::Rejection| api::RejectedNode {
        node: r.node.to_string(),
        reason: r.reason.code().to_owned(),
        why: r.why.clone(),
    };
    Ok(api::DescribeResponse {
        repo: asked.path.clone(),
        revision: asked.revision.to_string(),
        task: EMBED.to_owned(),
        width: recipe.width() as u32,
        tokens_max: recipe.tokens_max as u32,
        memory_bytes: recipe.memory(),
        prompts: recipe.prompts().map(str::to_owned).collect(),
        nodes: choice.order.iter().map(place).collect(),
        rejected: choice.rejected.iter().map(rejected).collect(),
    })
}

/// A model that is asked for its task.
pub(super) struct Asked {
    pub repo: String,
    pub path: String,
    pub revision: RevisionId,
    pub publisher: PublisherKey,
    pub known: Arc<Known>,
    pub privacy: Privacy,
    sources: Vec<Source>,
}

impl Asked {
    /// Resolves the name and reads what the model is for.
    pub async fn prepare(node: &Arc<Node>, repo: &str, privacy: &str) -> Result<Asked, Refusal> {
        let privacy = stages::parse_privacy(privacy)?;
        let reference = names::parse(repo)?;
        let resolved = names::resolve_anywhere(node, &reference).await?;
        let manifest = holders::manifest_of(node, &resolved).await?;
        advisories::permit(node, &resolved, &manifest, &[]).await?;
        let sources = holders::sources(node, resolved.revision).await;
        let known = known::known(node, repo, resolved.revision, &manifest, &sources).await?;
        names::remember(node, &reference, &resolved).await;
        Ok(Asked {
            repo: repo.to_owned(),
            path: resolved.path,
            revision: resolved.revision,
            publisher: manifest.repo.publisher,
            known,
            privacy,
            sources,
        })
    }

    /// The order of nodes as things stand now; `failed` are those that were asked in vain.
    pub async fn choose(&self, node: &Node, failed: &BTreeMap<NodeId, Refusal>) -> Choice {
        let wish = Wish { memory_bytes: self.known.recipe.memory(), privacy: self.privacy };
        choose::choose(&wish, candidates(node, self.revision).await, failed)
    }

    /// What a node is asked, but for the task itself. Holders that failed are not named.
    pub fn open(&self, node: &Node, failed: &BTreeMap<NodeId, Refusal>) -> peer_pb::OpenTask {
        let alive = self.sources.iter().filter(|s| !failed.contains_key(&s.node)).take(bounds::SOURCES_MAX);
        let wire = |s: &Source| peer_pb::Source {
            node: s.node.to_vec(),
            addresses: s.addresses.iter().take(bounds::ADDRESSES_MAX).map(SocketAddr::to_string).collect(),
        };
        peer_pb::OpenTask {
            realm: node.config.realm.to_vec(),
            revision: self.revision.to_vec(),
            publisher: self.publisher.to_vec(),
            privacy: stages::privacy_word(self.privacy).to_owned(),
            sources: alive.map(wire).collect(),
            task: None,
        }
    }
}

/// Every node that might do it, this one first.
async fn candidates(node: &Node, revision: RevisionId) -> Vec<Candidate> {
    let peers = node.net.peers();
    let own = own_candidate(node, revision).await;
    std::iter::once(own).chain(peers.iter().filter_map(|peer| candidate(node, revision, peer))).collect()
}

async fn own_candidate(node: &Node, revision: RevisionId) -> Candidate {
    let occupancy = node.stages.occupancy();
    let holding = node.registry.held(revision).await.unwrap_or_default();
    Candidate {
        node: node.identity.node_id(),
        standing: Standing::Own,
        is_reachable: true,
        is_granted: true,
        serves: true,
        holds: holding.whole,
        is_warm: node.stages.rooms().warm_tasks().contains(&revision),
        memory_free_bytes: occupancy.memory_free_bytes,
        macs_per_s: node.capacity.macs_per_s,
        rtt_us: Some(0),
        tasks: occupancy.tasks,
        tasks_max: bounds::TASKS_MAX as u32,
        sessions: occupancy.sessions,
    }
}

/// A peer that has said what it can do.
fn candidate(node: &Node, revision: RevisionId, peer: &PeerInfo) -> Option<Candidate> {
    let advert = peer.advert.as_ref()?;
    let is_listed = node.config.listed.contains(&peer.node_id);
    Some(Candidate {
        node: peer.node_id,
        standing: plan::standing(node.config.realm, peer.same_host, is_listed),
        is_reachable: peer.connected && !advert.data_addresses.is_empty(),
        is_granted: plan::is_granted(advert, peer.same_host, is_listed),
        serves: advert.tasks.iter().any(|task| task == EMBED),
        holds: advert.holds.contains(&revision),
        is_warm: advert.warm.contains(&revision),
        memory_free_bytes: advert.load.stage_memory_free_bytes,
        macs_per_s: advert.capacity.macs_per_s,
        rtt_us: plan::rtt_us(peer),
        tasks: advert.load.tasks,
        tasks_max: advert.load.tasks_max,
        sessions: advert.load.sessions,
    })
}
