//! Chooses the nodes, their order and the level, and writes the plan out.
//!
//! Not a search over all subsets: nodes are ranked by how long a token would take if they carried everything, the best
//! are taken, and members are exchanged for others where memory forces it or the result gets better. Bounded by
//! [`CANDIDATES_MAX`], and the same for the same input.

use super::admit::admit;
use super::split::{Goal, Score, split};
use super::{
    Bound, CANDIDATES_MAX, Candidate, Death, GAIN_PERCENT_MIN, Plan, PlanError, PlanInput, PlannedStage, Predicted,
    RTT_UNKNOWN_US, RejectReason, Rejection, STAGES_MAX,
};
use cairn_protocol::id::NodeId;
use cairn_protocol::layers::LayerRange;
use std::collections::BTreeSet;

/// Outsiders that are tried in a member's place.
const OUTSIDERS_TRIED: usize = 8;

/// Places the layers, or says why it can't.
pub fn plan(input: &PlanInput) -> Result<Plan, PlanError> {
    refuse_impossible_bound(input)?;
    let (admitted, rejected) = admit(input, &BTreeSet::new());
    match draft(input, input.bound, &admitted) {
        Some(draft) => Ok(written_out(input, draft, &admitted, rejected)),
        None => Err(why_not(input, &admitted, rejected)),
    }
}

fn refuse_impossible_bound(input: &PlanInput) -> Result<(), PlanError> {
    let most = input.cost.layer_count().min(STAGES_MAX);
    match input.bound {
        Bound::Exactly(wanted) | Bound::AtMost(wanted) if wanted == 0 => Err(PlanError::TooManyStages { wanted, most }),
        Bound::Exactly(wanted) if wanted > most => Err(PlanError::TooManyStages { wanted, most }),
        _ => Ok(()),
    }
}

/// Nodes in order with their layers; all of one level.
struct Draft<'a> {
    nodes: Vec<&'a Candidate>,
    ranges: Vec<LayerRange>,
    score: Score,
}

impl Draft<'_> {
    fn compute_ns(&self, input: &PlanInput) -> u64 {
        self.nodes.iter().zip(&self.ranges).map(|(n, r)| input.cost.decode_ns(*r, n)).fold(0, u64::saturating_add)
    }

    fn links_ns(&self, input: &PlanInput) -> u64 {
        self.nodes.iter().map(|n| rtt_ns(input, n)).fold(0, u64::saturating_add)
    }

    fn token_ns(&self, input: &PlanInput) -> u64 {
        self.compute_ns(input).saturating_add(self.links_ns(input))
    }
}

/// The coordinator's level if it can carry the model, else the level that is fastest.
fn draft<'a>(input: &PlanInput, bound: Bound, admitted: &[&'a Candidate]) -> Option<Draft<'a>> {
    let levels: BTreeSet<&str> = admitted.iter().map(|c| c.level.as_str()).collect();
    if levels.contains(input.level.as_str())
        && let Some(found) = draft_on(input, bound, &of_level(input, admitted, &input.level))
    {
        return Some(found);
    }
    let others = levels.into_iter().filter(|level| *level != input.level);
    others
        .filter_map(|level| draft_on(input, bound, &of_level(input, admitted, level)))
        .min_by_key(|d| d.token_ns(input))
}

/// The candidates of one level, the best first.
fn of_level<'a>(input: &PlanInput, admitted: &[&'a Candidate], level: &str) -> Vec<&'a Candidate> {
    let whole = LayerRange { start: 0, end: input.cost.layer_count() as u32 };
    let mut ranked: Vec<&Candidate> = admitted.iter().copied().filter(|c| c.level == level).collect();
    ranked.sort_by_key(|c| {
        let alone = input.cost.decode_ns(whole, c).saturating_add(rtt_ns(input, c));
        (alone, c.node != input.coordinator, !c.holds, c.node)
    });
    ranked.truncate(CANDIDATES_MAX);
    ranked
}

fn draft_on<'a>(input: &PlanInput, bound: Bound, ranked: &[&'a Candidate]) -> Option<Draft<'a>> {
    let most = ranked.len().min(input.cost.layer_count()).min(STAGES_MAX);
    match bound {
        Bound::Exactly(count) => pick(input, ranked, count, Goal::Slowest),
        Bound::AtMost(count) => (1..=count.min(most)).rev().find_map(|count| pick(input, ranked, count, Goal::Slowest)),
        Bound::Free => fastest(input, ranked, most),
    }
}

fn fastest<'a>(input: &PlanInput, ranked: &[&'a Candidate], most: usize) -> Option<Draft<'a>> {
    let mut found: Option<Draft<'a>> = None;
    for count in 1..=most {
        let Some(next) = pick(input, ranked, count, Goal::Sum) else { continue };
        let gains = |known: &Draft| {
            let worth = u128::from(known.token_ns(input)) * u128::from(100 - GAIN_PERCENT_MIN) / 100;
            u128::from(next.token_ns(input)) < worth
        };
        if found.as_ref().is_none_or(gains) {
            found = Some(next);
        }
    }
    found
}

/// The best `count` nodes that were found.
fn pick<'a>(input: &PlanInput, ranked: &[&'a Candidate], count: usize, goal: Goal) -> Option<Draft<'a>> {
    if count == 0 || ranked.len() < count {
        return None;
    }
    let mut members = ranked[..count].to_vec();
    let mut spare = ranked[count..].to_vec();
    let mut best = cut(input, &members, goal);
    while best.is_none() {
        exchange_smallest(&mut members, &mut spare)?;
        best = cut(input, &members, goal);
    }
    improve(input, goal, &spare, best?)
}

/// Swaps the member with the least memory for the outsider with the most, if that is more.
fn exchange_smallest<'a>(members: &mut [&'a Candidate], spare: &mut [&'a Candidate]) -> Option<()> {
    let memory = |c: &Candidate| (c.memory_free_bytes, std::cmp::Reverse(c.node));
    let (out, smallest) =
        members.iter().enumerate().min_by_key(|(_, c)| memory(c)).map(|(i, c)| (i, c.memory_free_bytes))?;
    let (into, largest) =
        spare.iter().enumerate().max_by_key(|(_, c)| memory(c)).map(|(i, c)| (i, c.memory_free_bytes))?;
    if largest <= smallest {
        return None;
    }
    std::mem::swap(&mut members[out], &mut spare[into]);
    Some(())
}

/// One pass of exchanges that make the draft better.
fn improve<'a>(input: &PlanInput, goal: Goal, spare: &[&'a Candidate], mut best: Draft<'a>) -> Option<Draft<'a>> {
    for outsider in spare.iter().take(OUTSIDERS_TRIED) {
        for place in 0..best.nodes.len() {
            let mut members = best.nodes.clone();
            members[place] = outsider;
            if let Some(other) = cut(input, &members, goal)
                && better(input, goal, &other, &best)
            {
                best = other;
                break;
            }
        }
    }
    Some(best)
}

fn better(input: &PlanInput, goal: Goal, a: &Draft, b: &Draft) -> bool {
    match goal {
        Goal::Slowest => (a.score, a.links_ns(input)) < (b.score, b.links_ns(input)),
        Goal::Sum => a.token_ns(input) < b.token_ns(input),
    }
}

/// Orders the members (the coordinator first, since it has the tokens) and cuts; where that does not fit, other nodes
/// go last, because the head weighs most.
fn cut<'a>(input: &PlanInput, members: &[&'a Candidate], goal: Goal) -> Option<Draft<'a>> {
    let mut nodes = members.to_vec();
    nodes.sort_by_key(|c| (c.node != input.coordinator, rtt_ns(input, c), c.node));
    for turn in 0..nodes.len() {
        let mut order = nodes.clone();
        let last = order.remove(nodes.len() - 1 - turn);
        order.push(last);
        if let Some((ranges, score)) = split(&input.cost, input.context, &order, goal) {
            return Some(Draft { nodes: order, ranges, score });
        }
    }
    None
}

fn rtt_ns(input: &PlanInput, c: &Candidate) -> u64 {
    if c.node == input.coordinator { 0 } else { c.rtt_us.unwrap_or(RTT_UNKNOWN_US).saturating_mul(1000) }
}

fn written_out(input: &PlanInput, draft: Draft, admitted: &[&Candidate], mut rejected: Vec<Rejection>) -> Plan {
    let level = draft.nodes[0].level.clone();
    let stages: Vec<PlannedStage> =
        draft.nodes.iter().zip(&draft.ranges).map(|(node, range)| stage(input, node, *range)).collect();
    rejected.extend(admitted.iter().filter(|c| !stages.iter().any(|s| s.node == c.node)).map(|c| left_out(c, &level)));
    rejected.sort_by_key(|r| r.node);
    let deaths = stages.iter().map(|s| death(input, s.node, stages.len())).collect();
    Plan { predicted: predict(input, &draft), stages, rejected, deaths, level }
}

fn stage(input: &PlanInput, node: &Candidate, layers: LayerRange) -> PlannedStage {
    PlannedStage {
        node: node.node,
        layers,
        embedding: layers.start == 0,
        head: layers.end as usize == input.cost.layer_count(),
        bytes: input.cost.stage_bytes(layers),
        memory_bytes: input.cost.stage_memory(layers, input.context),
        ms: ms(input.cost.decode_ns(layers, node)),
    }
}

fn left_out(c: &Candidate, level: &str) -> Rejection {
    if c.level == level {
        let why = "the plan is at least as fast without it".to_string();
        return Rejection { node: c.node, reason: RejectReason::NotNeeded, why };
    }
    let why = format!("it computes with {}, the plan with {level}, and only one level gives the same bits", c.level);
    Rejection { node: c.node, reason: RejectReason::WrongInstructionSet, why }
}

fn predict(input: &PlanInput, draft: &Draft) -> Predicted {
    let (compute, links) = (draft.compute_ns(input), draft.links_ns(input));
    let prefill = draft.nodes.iter().zip(&draft.ranges).map(|(n, r)| input.cost.prefill_ns(*r, input.prompt_tokens, n));
    let token_ms = ms(compute.saturating_add(links)).max(1e-6);
    Predicted {
        ttft_ms: ms(prefill.fold(0, u64::saturating_add)) + token_ms,
        token_ms,
        compute_ms: ms(compute),
        links_ms: ms(links),
        tokens_per_s: 1000.0 / token_ms,
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// What is left when `node` dies, planned as the session would plan it.
fn death(input: &PlanInput, node: NodeId, stages: usize) -> Death {
    if node == input.coordinator {
        return Death {
            node,
            survivable: false,
            with: Vec::new(),
            what: "the coordinator: the generation ends with it".into(),
        };
    }
    let (admitted, _) = admit(input, &BTreeSet::from([node]));
    let Some(left) = draft(input, input.bound.after_a_death(stages), &admitted) else {
        return Death {
            node,
            survivable: false,
            with: Vec::new(),
            what: "the nodes left can't hold the model: the generation fails".into(),
        };
    };
    let with: Vec<NodeId> = left.nodes.iter().map(|c| c.node).collect();
    let what = format!(
        "it goes on with {} node{}, {:.1} ms a token",
        with.len(),
        if with.len() == 1 { "" } else { "s" },
        ms(left.token_ns(input))
    );
    Death { node, survivable: true, with, what }
}

/// Names what is missing: nodes, or memory.
fn why_not(input: &PlanInput, admitted: &[&Candidate], mut rejected: Vec<Rejection>) -> PlanError {
    let levels: BTreeSet<&str> = admitted.iter().map(|c| c.level.as_str()).collect();
    let count = |level: &str| admitted.iter().filter(|c| c.level == level).count();
    let level = levels.into_iter().max_by_key(|l| (count(l), *l == input.level)).unwrap_or(&input.level).to_string();
    let usable: Vec<&&Candidate> = admitted.iter().filter(|c| c.level == level).collect();
    rejected.extend(admitted.iter().filter(|c| c.level != level).map(|c| left_out(c, &level)));
    let wanted = if let Bound::Exactly(n) = input.bound { n } else { 1 };
    if usable.len() >= wanted {
        let whole = LayerRange { start: 0, end: input.cost.layer_count() as u32 };
        let needed_bytes = input.cost.stage_memory(whole, input.context);
        let offered_bytes = usable.iter().map(|c| c.memory_free_bytes).fold(0, u64::saturating_add);
        let short = |c: &&&Candidate| Rejection {
            node: c.node,
            reason: RejectReason::NoMemory,
            why: format!("it offers {} bytes, and no split over the usable nodes fits", c.memory_free_bytes),
        };
        rejected.extend(usable.iter().map(short));
        rejected.sort_by_key(|r| r.node);
        return PlanError::NoMemory { needed_bytes, offered_bytes, usable: usable.len(), rejected };
    }
    rejected.sort_by_key(|r| r.node);
    PlanError::TooFewNodes { wanted, usable: usable.len(), rejected }
}

impl Bound {
    /// How many nodes the plan after a death may have, when the one before had `stages`.
    pub fn after_a_death(self, stages: usize) -> Bound {
        match self {
            Bound::Free => Bound::Free,
            Bound::Exactly(_) | Bound::AtMost(_) => Bound::AtMost(stages.max(1)),
        }
    }
}
