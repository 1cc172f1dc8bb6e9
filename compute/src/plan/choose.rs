//! Chooses the nodes, their order and the level, and writes the plan out.
//!
//! Not a search over all subsets: nodes are ranked by how long an answer would take if they carried everything, the best
//! are taken, and members are exchanged for others where memory forces it or the result gets better. What was placed
//! before stays unless that pays. Bounded by [`CANDIDATES_MAX`], and the same for the same input.

use super::admit::admit;
use super::split::{Goal, split};
use super::{
    Bound, CANDIDATES_MAX, Candidate, Death, GAIN_PERCENT_MIN, Placement, Plan, PlanError, PlanInput, PlannedStage,
    Predicted, RTT_UNKNOWN_US, RejectReason, Rejection, STAGES_MAX,
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

    fn ready_ns(&self, input: &PlanInput) -> u64 {
        self.nodes.iter().zip(&self.ranges).map(|(n, r)| input.ready_ns(*r, n)).fold(0, u64::saturating_add)
    }

    /// From the request to the last token.
    fn answer_ns(&self, input: &PlanInput) -> u64 {
        let stages = self.nodes.iter().zip(&self.ranges).map(|(n, r)| input.answer_ns(*r, n));
        let links = self.links_ns(input).saturating_mul(input.answer_tokens);
        stages.fold(links, u64::saturating_add)
    }
}

impl PlanInput {
    fn ready_ns(&self, layers: LayerRange, on: &Candidate) -> u64 {
        let all = self.placed.iter().chain(&self.in_use).flatten();
        let there = all.filter(|(node, _)| *node == on.node).map(|(_, layers)| *layers);
        there
            .map(|loaded| self.cost.ready_ns(layers, on, Some(loaded)))
            .min()
            .unwrap_or_else(|| self.cost.ready_ns(layers, on, None))
    }

    /// A stage's share of an answer: getting ready, the prompt, and all tokens.
    pub(super) fn answer_ns(&self, layers: LayerRange, on: &Candidate) -> u64 {
        let tokens = self.cost.decode_ns(layers, on).saturating_mul(self.answer_tokens);
        let prompt = self.cost.prefill_ns(layers, self.prompt_tokens, on);
        self.ready_ns(layers, on).saturating_add(prompt).saturating_add(tokens)
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
        .min_by_key(|d| d.answer_ns(input))
}

/// The candidates of one level, the best first.
fn of_level<'a>(input: &PlanInput, admitted: &[&'a Candidate], level: &str) -> Vec<&'a Candidate> {
    let whole = LayerRange { start: 0, end: input.cost.layer_count() as u32 };
    let mut ranked: Vec<&Candidate> = admitted.iter().copied().filter(|c| c.level == level).collect();
    ranked.sort_by_key(|c| {
        let links = rtt_ns(input, c).saturating_mul(input.answer_tokens);
        let alone = input.answer_ns(whole, c).saturating_add(links);
        (alone, c.node != input.coordinator, !c.holds, c.node)
    });
    ranked.truncate(CANDIDATES_MAX);
    ranked
}

fn draft_on<'a>(input: &PlanInput, bound: Bound, ranked: &[&'a Candidate]) -> Option<Draft<'a>> {
    let most = ranked.len().min(input.cost.layer_count()).min(STAGES_MAX);
    let made = match bound {
        Bound::Exactly(count) => pick(input, ranked, count, Goal::Slowest),
        Bound::AtMost(count) => (1..=count.min(most)).rev().find_map(|count| pick(input, ranked, count, Goal::Slowest)),
        Bound::Free => fastest(input, ranked, most),
    };
    let before =
        input.in_use.iter().chain(&input.placed).filter_map(|placement| as_before(input, bound, ranked, placement));
    match (made, before.min_by_key(|draft| draft.answer_ns(input))) {
        (Some(made), Some(before)) if made.answer_ns(input) < before.answer_ns(input) => Some(made),
        (made, before) => before.or(made),
    }
}

/// A placement that the model had before, if the same nodes can still carry it.
fn as_before<'a>(
    input: &PlanInput,
    bound: Bound,
    ranked: &[&'a Candidate],
    placement: &Placement,
) -> Option<Draft<'a>> {
    let count = placement.len();
    let is_bound = match bound {
        Bound::Exactly(wanted) => count == wanted,
        Bound::AtMost(most) => (1..=most).contains(&count),
        Bound::Free => (1..=STAGES_MAX).contains(&count),
    };
    let ranges: Vec<LayerRange> = placement.iter().map(|(_, layers)| *layers).collect();
    if !is_bound || !covers(&ranges, input.cost.layer_count()) {
        return None;
    }
    let found = placement.iter().map(|(node, _)| ranked.iter().find(|c| c.node == *node).copied());
    let nodes = found.collect::<Option<Vec<&Candidate>>>()?;
    let different: BTreeSet<NodeId> = nodes.iter().map(|c| c.node).collect();
    let fits = |(c, r): (&&Candidate, &LayerRange)| input.cost.stage_memory(*r, input.context) <= c.memory_free_bytes;
    let is_there = || input.in_use.contains(placement) || nodes.iter().zip(&ranges).all(fits);
    if different.len() != nodes.len() || !is_there() {
        return None;
    }
    Some(Draft { nodes, ranges })
}

/// Whether the ranges are all layers once, in order.
fn covers(ranges: &[LayerRange], layers: usize) -> bool {
    let mut next = 0;
    let in_order = ranges.iter().all(|r| r.start == std::mem::replace(&mut next, r.end) && r.start < r.end);
    in_order && next as usize == layers
}

fn fastest<'a>(input: &PlanInput, ranked: &[&'a Candidate], most: usize) -> Option<Draft<'a>> {
    let mut found: Option<Draft<'a>> = None;
    for count in 1..=most {
        let Some(next) = pick(input, ranked, count, Goal::Sum) else { continue };
        let gains = |known: &Draft| {
            let worth = u128::from(known.answer_ns(input)) * u128::from(100 - GAIN_PERCENT_MIN) / 100;
            u128::from(next.answer_ns(input)) < worth
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

/// One pass of exchanges that make the answer come sooner.
fn improve<'a>(input: &PlanInput, goal: Goal, spare: &[&'a Candidate], mut best: Draft<'a>) -> Option<Draft<'a>> {
    for outsider in spare.iter().take(OUTSIDERS_TRIED) {
        for place in 0..best.nodes.len() {
            let mut members = best.nodes.clone();
            members[place] = outsider;
            if let Some(other) = cut(input, &members, goal)
                && other.answer_ns(input) < best.answer_ns(input)
            {
                best = other;
                break;
            }
        }
    }
    Some(best)
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
        if let Some(ranges) = split(input, &order, goal) {
            return Some(Draft { nodes: order, ranges });
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
    let ready_ms = ms(draft.ready_ns(input));
    Predicted {
        ttft_ms: ready_ms + ms(prefill.fold(0, u64::saturating_add)) + token_ms,
        ready_ms,
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
