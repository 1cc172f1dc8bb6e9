//! Where a model's layers would go: the planner fed with what peers advertise, and its answer for clients.
//!
//! The choice itself is [`cairn_compute::plan`], which is pure. Not here: opening what was planned
//! ([`super::generate`]). Invariant: a plan and the generation that follows are made from the same inputs by the same
//! function, so `cairn plan` tells the truth.

use std::{collections::BTreeSet, sync::Arc};

use cairn_compute::{
    KvFormat,
    arch::{self, StagePart},
    plan::{self, Bound, Candidate, ModelCost, Plan, PlanError, PlanInput, Privacy, Rejection, Standing},
    quantise::{self, Target, as_loaded},
};
use cairn_protocol::{
    advert::{Advert, Grant},
    api,
    id::{NodeId, RealmId, RevisionId},
    manifest::{Manifest, Model, TensorEntry},
    refusal::{Reason, Refusal},
};

use super::{adapters, advisories, holders, names};
use crate::{net::PeerInfo, shell::Node, stages};

/// Prompt length assumed where no prompt is known yet.
const PROMPT_TOKENS: u64 = 128;

/// Answer's length assumed where none is asked for.
pub(crate) const ANSWER_TOKENS: u64 = 256;

/// A round trip between two processes of one machine takes less.
const SAME_HOST_RTT_US: u64 = 500;

/// Context assumed where none is asked for.
const CONTEXT: u32 = 2048;

/// Answers `Plan`.
pub async fn plan(node: Arc<Node>, request: api::PlanRequest) -> Result<api::PlanResponse, Refusal> {
    let reference = names::parse(&request.repo)?;
    let resolved = names::resolve_anywhere(&node, &reference).await?;
    let manifest = holders::manifest_of(&node, &resolved).await?;
    advisories::permit(&node, &resolved, &manifest, &[]).await?;
    let model = served_model(&request.repo, &manifest)?;
    let context = if request.context == 0 { CONTEXT.min(model.context_max) } else { request.context };
    let adapter = adapters::choose(&node, &request.adapter, model).await?;
    let quantise = parse_quantise(&request.quantise)?;
    let mut wish = Wish {
        quantise,
        cost: cost(model, &as_loaded(&manifest.tensors, quantise), parse_kv(&request.kv)?)?,
        context: u64::from(context),
        prompt_tokens: PROMPT_TOKENS,
        answer_tokens: ANSWER_TOKENS,
        privacy: stages::parse_privacy(&request.privacy)?,
    };
    if let Some(adapter) = adapter {
        adapter.weigh(&mut wish);
    }
    let bound = if request.stages == 0 { Bound::Free } else { Bound::Exactly(request.stages as usize) };
    let asked = Asked { bound, excluded: BTreeSet::new(), may_wait: false };
    let made = make(&node, resolved.revision, &wish, asked, None).map_err(|error| refusal(&request.repo, &error))?;
    Ok(to_api(&resolved.path, resolved.revision, &made))
}

/// What is asked of the nodes of a plan.
pub(crate) struct Asked {
    pub bound: Bound,
    pub excluded: BTreeSet<NodeId>,
    /// Those whose places are taken may be among them.
    pub may_wait: bool,
}

/// What is wished of a plan, beside the nodes.
#[derive(Clone)]
pub(crate) struct Wish {
    /// What stages hold matrices of more bits as.
    pub quantise: Option<Target>,
    pub cost: ModelCost,
    pub context: u64,
    pub prompt_tokens: u64,
    pub answer_tokens: u64,
    pub privacy: Privacy,
}

/// Plans with what is known of the peers now. `in_force` is the plan that is being replaced: what its stages take on
/// their nodes will be free.
pub(crate) fn make(
    node: &Node,
    revision: RevisionId,
    wish: &Wish,
    asked: Asked,
    in_force: Option<&Plan>,
) -> Result<Plan, PlanError> {
    let mut candidates = candidates(node, revision);
    if let Some(plan) = in_force {
        give_back(&mut candidates, plan);
    }
    let own = node.identity.node_id();
    plan::plan(&PlanInput {
        cost: wish.cost.clone(),
        context: wish.context,
        prompt_tokens: wish.prompt_tokens,
        answer_tokens: wish.answer_tokens,
        placed: node.stages.placements().of(revision),
        in_use: node.stages.placements().in_use(revision, wish.quantise),
        coordinator: own,
        level: node.engine.level().to_owned(),
        bound: asked.bound,
        privacy: wish.privacy,
        candidates,
        excluded: asked.excluded,
        may_wait: asked.may_wait,
    })
}

/// The model of a manifest, if this version serves it.
pub(crate) fn served_model<'a>(repo: &str, manifest: &'a Manifest) -> Result<&'a Model, Refusal> {
    manifest.model.as_ref().filter(|m| arch::is_served(m)).ok_or_else(|| {
        let why = match &manifest.model {
            Some(model) => format!("its architecture is {}, which is not served", model.architecture),
            None => "it holds no model that is served (publishing it says why)".to_owned(),
        };
        Refusal::new(Reason::Unsupported, repo, why)
            .try_this("a model of a family that docs/operations.md lists, in safetensors or GGUF")
    })
}

/// The type that matrices are to be held as, where a request names one.
pub(crate) fn parse_quantise(name: &str) -> Result<Option<Target>, Refusal> {
    quantise::parse_wish(name)
        .map_err(|error| Refusal::new(Reason::BadInput, "quantise", error.to_string()).try_this("q8_0"))
}

/// What keys and values are to be held as.
pub(crate) fn parse_kv(name: &str) -> Result<KvFormat, Refusal> {
    KvFormat::parse_wish(name).map_err(|error| Refusal::new(Reason::BadInput, "kv", error.to_string()).try_this("int8"))
}

/// What the parts of a model cost, with keys and values held as `kv`.
pub(crate) fn cost(model: &Model, tensors: &[TensorEntry], kv: KvFormat) -> Result<ModelCost, Refusal> {
    let unusable =
        |e: arch::StageError| Refusal::new(Reason::Unsupported, "the model", e.to_string()).try_this("another model");
    let bytes = arch::layer_bytes(model, tensors).map_err(unusable)?;
    let whole = StagePart::whole(model.layers);
    let in_memory = arch::stage_memory(model, tensors, &whole, 1).map_err(unusable)?;
    let stored = bytes.layers.iter().sum::<u64>() + bytes.embedding + bytes.head;
    let mut cost = ModelCost::new(model, bytes.layers, bytes.embedding, bytes.head);
    cost.read = bytes.read;
    cost.kv_bytes_per_token = plan::kv_bytes_per_token(model, kv);
    cost.memory_percent = in_memory.weights.saturating_mul(100).div_ceil(stored.max(1)).max(cost.memory_percent);
    cost.buffer_bytes = in_memory.buffers;
    cost.angle_bytes_per_token = in_memory.angles;
    Ok(cost)
}

/// Every node that might carry a stage, this one first.
fn candidates(node: &Node, revision: RevisionId) -> Vec<Candidate> {
    let peers = node.net.peers();
    let own = own_candidate(node, revision);
    std::iter::once(own).chain(peers.iter().filter_map(|peer| candidate(node, revision, peer))).collect()
}

fn own_candidate(node: &Node, revision: RevisionId) -> Candidate {
    let statement = node.net.statement();
    let occupancy = node.stages.occupancy();
    Candidate {
        node: node.identity.node_id(),
        reachable: true,
        granted: true,
        standing: Standing::Own,
        memory_free_bytes: occupancy.memory_free_bytes,
        bandwidth_bytes_per_s: statement.capacity.bandwidth_bytes_per_s,
        macs_per_s: statement.capacity.macs_per_s,
        rtt_us: Some(0),
        level: node.engine.level().to_owned(),
        sessions: occupancy.sessions,
        sessions_max: stages::bounds::SESSIONS_MAX as u32,
        holds: statement.holds.contains(&revision),
    }
}

/// A peer that has said what it can do; one that has not can't be planned with.
fn candidate(node: &Node, revision: RevisionId, peer: &PeerInfo) -> Option<Candidate> {
    let advert = peer.advert.as_ref()?;
    let is_listed = node.config.listed.contains(&peer.node_id);
    Some(Candidate {
        node: peer.node_id,
        reachable: peer.connected,
        granted: is_granted(advert, peer.same_host, is_listed),
        standing: standing(node.config.realm, peer.same_host, is_listed),
        memory_free_bytes: advert.load.stage_memory_free_bytes,
        bandwidth_bytes_per_s: advert.capacity.bandwidth_bytes_per_s,
        macs_per_s: advert.capacity.macs_per_s,
        rtt_us: rtt_us(peer),
        level: advert.capacity.level.clone(),
        sessions: advert.load.sessions.saturating_sub(u32::from(node.stages.placements().has_just_ended(peer.node_id))),
        sessions_max: advert.load.sessions_max,
        holds: advert.holds.contains(&revision),
    })
}

/// The round trip to a peer. On one host a longer ping measures how busy its scheduler is, not a distance.
pub(crate) fn rtt_us(peer: &PeerInfo) -> Option<u64> {
    let measured = peer.rtt.map(|rtt| rtt.as_micros() as u64);
    if peer.same_host { Some(measured.unwrap_or(SAME_HOST_RTT_US).min(SAME_HOST_RTT_US)) } else { measured }
}

/// Whether a peer will probably serve this node. Whom it lists it does not say; owners who list each other's nodes do
/// so on both sides, so one that is not listed here is not asked.
pub(crate) fn is_granted(advert: &Advert, is_same_host: bool, is_listed: bool) -> bool {
    match advert.grants.compute {
        Grant::Nobody => false,
        Grant::Listed => is_same_host || is_listed,
        Grant::Realm | Grant::Anyone => true,
    }
}

pub(crate) fn standing(realm: RealmId, is_same_host: bool, is_listed: bool) -> Standing {
    match (is_same_host, is_listed) {
        (true, _) => Standing::SameHost,
        (_, true) => Standing::Listed,
        _ if realm != RealmId::PUBLIC => Standing::Realm,
        _ => Standing::Stranger,
    }
}

/// A plan that is being replaced frees its memory and its sessions, which adverts do not know yet.
fn give_back(candidates: &mut [Candidate], plan: &Plan) {
    for stage in &plan.stages {
        if let Some(candidate) = candidates.iter_mut().find(|c| c.node == stage.node) {
            candidate.memory_free_bytes = candidate.memory_free_bytes.saturating_add(stage.memory_bytes);
            candidate.sessions = candidate.sessions.saturating_sub(1);
        }
    }
}

/// A plan as clients see it.
pub(crate) fn to_api(repo: &str, revision: RevisionId, made: &Plan) -> api::PlanResponse {
    api::PlanResponse {
        repo: repo.to_owned(),
        revision: revision.to_string(),
        stages: made.stages.iter().map(stage_to_api).collect(),
        rejected: made.rejected.iter().map(rejected_to_api).collect(),
        predicted_ttft_ms: made.predicted.ttft_ms,
        predicted_tokens_per_s: made.predicted.tokens_per_s,
        predicted_ready_ms: made.predicted.ready_ms,
        deaths: made.deaths.iter().map(death_to_api).collect(),
    }
}

fn stage_to_api(stage: &plan::PlannedStage) -> api::StagePlan {
    api::StagePlan {
        node: stage.node.to_string(),
        first_layer: stage.layers.start,
        end_layer: stage.layers.end,
        bytes: stage.bytes,
        ms: stage.ms,
        embedding: stage.embedding,
        head: stage.head,
    }
}

fn rejected_to_api(rejection: &Rejection) -> api::RejectedNode {
    api::RejectedNode {
        node: rejection.node.to_string(),
        reason: rejection.reason.code().to_owned(),
        why: rejection.why.clone(),
    }
}

fn death_to_api(death: &plan::Death) -> api::DeathOutcome {
    api::DeathOutcome { node: death.node.to_string(), survivable: death.survivable, what: death.what.clone() }
}

/// Why there is no plan, for the person who asked. When every node was turned down for one reason, that is the reason.
pub(crate) fn refusal(repo: &str, error: &PlanError) -> Refusal {
    let mut reasons = error.rejected().iter().map(|r| r.reason.code());
    let first = reasons.next();
    let common = first.filter(|first| error.usable() == 0 && reasons.all(|r| r == *first)).and_then(Reason::from_code);
    let reason = common.unwrap_or(match error {
        PlanError::TooFewNodes { .. } => Reason::TooFewNodes,
        PlanError::NoMemory { .. } => Reason::NoMemory,
        PlanError::TooManyStages { .. } => Reason::BadInput,
    });
    let attempt = match error {
        _ if reason == Reason::NoMemory => "more nodes, a smaller model, quantising it, or a shorter context",
        PlanError::TooManyStages { .. } => "fewer stages",
        _ => "cairn peers, or fewer stages",
    };
    Refusal::new(reason, repo, error.to_string()).try_this(attempt)
}

#[cfg(test)]
mod tests {
    use cairn_compute::files::ModelFiles;
    use cairn_protocol::layers::LayerRange;

    use super::*;

    #[test]
    fn the_planner_expects_at_least_the_memory_that_a_stage_takes_and_not_much_more() {
        let folder = tempfile::tempdir().unwrap();
        crate::builtin::write(folder.path()).unwrap();
        let files = ModelFiles::open(folder.path()).unwrap();
        let cost = cost(&files.model, &files.tensors, KvFormat::F16).unwrap();
        let layers = files.model.layers;
        for (start, end) in [(0, layers), (0, 3), (3, 6), (6, layers), (4, 5)] {
            let part = StagePart { layers: LayerRange { start, end }, embedding: start == 0, head: end == layers };
            for context in [1, 100, files.model.context_max] {
                let taken = arch::stage_memory(&files.model, &files.tensors, &part, context).unwrap().total();
                let expected = cost.stage_memory(part.layers, u64::from(context));
                assert!(taken <= expected, "{start}..{end} of {context}: {taken} taken, {expected} expected");
                assert!(expected <= 2 * taken + (16 << 20), "{start}..{end} of {context}: {taken}, {expected}");
            }
        }
    }
}
