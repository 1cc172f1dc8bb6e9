//! Where a model's layers go: a pure planner over what the peers advertised.
//!
//! [`plan()`] takes the model's costs and the candidates and returns stages, a typed reason for every peer that is not
//! among them, the predicted speed, and what each node's death would leave; or a [`PlanError`] with the same reasons.
//! It is *not* the place where adverts are gathered or trust is judged (the caller says each candidate's [`Standing`]
//! and whether its grant covers us), and it asks nobody.
//!
//! Invariants of every plan: the stages cover all layers exactly once and in order; the embedding is on the first and
//! the head on the last; no stage needs more memory than its node offers, unless its weights are in use there; the nodes differ from each other; all are of
//! one instruction-set level, because only on one level are the bits of a position's hidden state the same wherever it
//! is computed, so that a recovery continues exactly. Equal inputs give equal plans, in whatever order the candidates
//! come.
//!
//! The model of time, for one stream of tokens: a stage reads its weights once a token (bytes ÷ bandwidth, times one
//! more than the sessions already there) and multiplies once a prompt token (macs ÷ rate); each remote stage costs its
//! round trip once a lap, half to reach it and half to leave it; and before all that, a node fetches and loads what it
//! has not. An answer takes the sum: getting ready, the prompt, and a lap for each token expected. A free plan minimises
//! that, since one token passes all stages in turn; a plan bound to N nodes takes the nodes that minimise it too, but cuts
//! so that the slowest stage is as fast as can be (dynamic programming over cut points), which is what pipelining many
//! sessions wants and what keeps every node's load small.
//! The placement that this model had before, whose weights are loaded, is kept while an answer from it comes no later.

mod admit;
mod choose;
mod cost;
#[cfg(test)]
mod laws;
mod split;

use cairn_protocol::id::NodeId;
use cairn_protocol::layers::LayerRange;
use cairn_protocol::refusal::{Reason, Refusal};
use std::collections::BTreeSet;
use std::fmt;

pub use choose::plan;
pub use cost::{ModelCost, kv_bytes_per_token};

/// Round trips above this make a stage pointless: at 12 laps a second nobody reads along. (Mesh-LLM draws the line at
/// the same place.)
pub const STAGE_RTT_US_MAX: u64 = 80_000;
/// What is assumed of a peer whose round trip is not known yet.
pub const RTT_UNKNOWN_US: u64 = 2_000;
/// A node this many times slower than the fastest usable one is refused as too slow.
pub const SLOWER_THAN_FASTEST_MAX: u64 = 20;
/// Whoever computes all layers of a token in this time is too slow for nobody, however fast others are.
pub const FAST_ENOUGH_NS: u64 = 10_000_000;
/// A free plan takes one node more only if that makes a token this much faster (parts of 100): every node more is one
/// more that can die.
pub const GAIN_PERCENT_MIN: u64 = 5;
/// Candidates looked at for one plan, the fastest first; bounds the planner's time.
pub const CANDIDATES_MAX: usize = 64;
/// Most stages of one plan.
pub const STAGES_MAX: usize = 16;

/// Everything a plan depends on.
#[derive(Clone, Debug)]
pub struct PlanInput {
    /// What the model's parts cost.
    pub cost: ModelCost,
    /// Positions whose keys and values must fit.
    pub context: u64,
    /// Prompt tokens assumed for the time to the first token.
    pub prompt_tokens: u64,
    /// Tokens of the answer, as far as they can be known: what getting ready is weighed against.
    pub answer_tokens: u64,
    /// Where this coordinator had the model loaded before, the last first. Weights may still be there.
    pub placed: Vec<Placement>,
    /// Where sessions of this coordinator use the model now: its weights are there, and further sessions share them. Their keys and
    /// values share the memory page by page.
    pub in_use: Vec<Placement>,
    /// The node that tokenises, sends and streams; usually a candidate as well.
    pub coordinator: NodeId,
    /// The coordinator's instruction-set level, preferred when it can carry the model.
    pub level: String,
    /// How many nodes.
    pub bound: Bound,
    /// Whom the request may be shown to.
    pub privacy: Privacy,
    /// The peers, and the coordinator itself.
    pub candidates: Vec<Candidate>,
    /// Nodes that died or refused in this session.
    pub excluded: BTreeSet<NodeId>,
    /// The session would wait for a place: a node whose places are all taken may be planned with.
    pub may_wait: bool,
}

/// Which layers a model had on which node, in their order.
pub type Placement = Vec<(NodeId, LayerRange)>;

/// How many nodes a plan has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// As many as make it fastest, often one.
    Free,
    /// Exactly this many different nodes, or an error.
    Exactly(usize),
    /// As many as possible up to this: the plan after a death, so that no survivor has more to load than it must.
    AtMost(usize),
}

/// Whom a request's text may be shown to, as hidden states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Privacy {
    /// This machine.
    Local,
    /// Listed nodes and this machine.
    #[default]
    Trusted,
    /// Every member of the realm.
    Realm,
    /// Anyone.
    Open,
}

/// What a candidate is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Ourselves.
    Own,
    /// Another node on this machine.
    SameHost,
    /// On our list.
    Listed,
    /// A member of our realm.
    Realm,
    /// None of these.
    Stranger,
}

/// A node that might carry a stage.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who.
    pub node: NodeId,
    /// Connected now, or known to answer. True for ourselves.
    pub reachable: bool,
    /// Its compute grant covers us. True for ourselves.
    pub granted: bool,
    /// What it is to us.
    pub standing: Standing,
    /// Memory that stages may still take there.
    pub memory_free_bytes: u64,
    /// Measured read bandwidth.
    pub bandwidth_bytes_per_s: u64,
    /// Measured multiply-adds of the packed product.
    pub macs_per_s: u64,
    /// Round trip from the coordinator; `None` if unknown. 0 for ourselves.
    pub rtt_us: Option<u64>,
    /// Instruction-set level, as its engine names it.
    pub level: String,
    /// Stage sessions running there.
    pub sessions: u32,
    /// Most that it takes at once.
    pub sessions_max: u32,
    /// It has the revision's bytes and need not fetch.
    pub holds: bool,
}

/// Where the layers go.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the order of the layers.
    pub stages: Vec<PlannedStage>,
    /// Every candidate that carries none, with the reason.
    pub rejected: Vec<Rejection>,
    /// How fast it should be.
    pub predicted: Predicted,
    /// What the death of each node would do.
    pub deaths: Vec<Death>,
    /// The instruction-set level of all stages.
    pub level: String,
}

/// One stage of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedStage {
    /// Who carries it.
    pub node: NodeId,
    /// Which layers.
    pub layers: LayerRange,
    /// It turns token ids into hidden states.
    pub embedding: bool,
    /// It turns hidden states into tokens.
    pub head: bool,
    /// Bytes of its weights as stored.
    pub bytes: u64,
    /// Bytes of memory it is expected to take, keys and values included.
    pub memory_bytes: u64,
    /// Predicted time a token spends computing there.
    pub ms: f64,
}

/// What speed to expect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicted {
    /// Getting ready, the prompt through all stages, and the first token home.
    pub ttft_ms: f64,
    /// Fetching and loading what the nodes do not have, before the prompt.
    pub ready_ms: f64,
    /// One token's lap: `compute_ms + links_ms`.
    pub token_ms: f64,
    /// Sum over the stages.
    pub compute_ms: f64,
    /// Sum over the links.
    pub links_ms: f64,
    /// 1000 ÷ `token_ms`.
    pub tokens_per_s: f64,
}

/// What one node's death leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Death {
    /// Who dies.
    pub node: NodeId,
    /// The generation can go on.
    pub survivable: bool,
    /// The nodes it would go on with, in order; empty if it can't.
    pub with: Vec<NodeId>,
    /// For a person.
    pub what: String,
}

/// A candidate that is not in the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Who.
    pub node: NodeId,
    /// Why, as a type.
    pub reason: RejectReason,
    /// Why, with the figures.
    pub why: String,
}

/// Why a candidate carries no stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RejectReason {
    /// Its compute grant does not cover us.
    NoGrant,
    /// Not even its smallest possible share fits, or the shares that fit leave layers over.
    NoMemory,
    /// Its speed or its distance would hold everything up.
    TooSlow,
    /// Not connected, or it died in this session.
    Unreachable,
    /// Another instruction-set level than the plan's.
    WrongInstructionSet,
    /// It runs as many sessions as it takes.
    Busy,
    /// The request may not be shown to it.
    Privacy,
    /// Usable, and the plan is at least as fast without it.
    NotNeeded,
}

impl RejectReason {
    /// The word in the API and in `--json`.
    pub fn code(self) -> &'static str {
        match self {
            RejectReason::NoGrant => "no_grant",
            RejectReason::NoMemory => "no_memory",
            RejectReason::TooSlow => "too_slow",
            RejectReason::Unreachable => "unreachable",
            RejectReason::WrongInstructionSet => "wrong_instruction_set",
            RejectReason::Busy => "busy",
            RejectReason::Privacy => "privacy",
            RejectReason::NotNeeded => "not_needed",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Fewer nodes may be used than the request binds to.
    #[error("{wanted} different nodes are wanted and {usable} of {} can be used{}", rejected.len() + usable, reasons(rejected))]
    TooFewNodes {
        /// As bound.
        wanted: usize,
        /// How many could carry a stage.
        usable: usize,
        /// The others.
        rejected: Vec<Rejection>,
    },
    /// The nodes that may be used can't hold the model.
    #[error(
        "the model needs {needed_bytes} bytes of memory and the {usable} usable nodes offer {offered_bytes}{}",
        reasons(rejected)
    )]
    NoMemory {
        /// Of weights, keys and values.
        needed_bytes: u64,
        /// Of the usable nodes together.
        offered_bytes: u64,
        /// How many.
        usable: usize,
        /// The others, and these.
        rejected: Vec<Rejection>,
    },
    /// More stages than there are layers, or than a plan may have.
    #[error("{wanted} stages are wanted; this model can be split into 1 to {most}")]
    TooManyStages {
        /// As bound.
        wanted: usize,
        /// What is possible.
        most: usize,
    },
}

impl PlanError {
    /// Every candidate that could not be used.
    pub fn rejected(&self) -> &[Rejection] {
        match self {
            PlanError::TooFewNodes { rejected, .. } | PlanError::NoMemory { rejected, .. } => rejected,
            PlanError::TooManyStages { .. } => &[],
        }
    }

    /// How many candidates could be used.
    pub fn usable(&self) -> usize {
        match self {
            PlanError::TooFewNodes { usable, .. } | PlanError::NoMemory { usable, .. } => *usable,
            PlanError::TooManyStages { .. } => 0,
        }
    }
}

impl PlanError {
    /// For the person who asked; `what` is the repo or the generation.
    pub fn refusal(&self, what: &str) -> Refusal {
        let (reason, advice) = match self {
            PlanError::TooFewNodes { .. } => {
                (Reason::TooFewNodes, "cairn peers, fewer --stages, or a grant on those nodes")
            }
            PlanError::NoMemory { .. } => (Reason::NoMemory, "more nodes, or a shorter context"),
            PlanError::TooManyStages { .. } => (Reason::BadInput, "fewer --stages"),
        };
        Refusal::new(reason, what, self.to_string()).try_this(advice)
    }
}

fn reasons(rejected: &[Rejection]) -> String {
    let mut said = String::new();
    for (i, rejection) in rejected.iter().take(8).enumerate() {
        let gap = if i == 0 { ": " } else { ", " };
        said += &format!("{gap}{} {} ({})", rejection.node.short(), rejection.reason, rejection.why);
    }
    if rejected.len() > 8 {
        said += &format!(" and {} more", rejected.len() - 8);
    }
    said
}

impl Privacy {
    /// Whether a node of this standing may see the request.
    pub fn allows(self, standing: Standing) -> bool {
        match self {
            Privacy::Local => standing <= Standing::SameHost,
            Privacy::Trusted => standing <= Standing::Listed,
            Privacy::Realm => standing <= Standing::Realm,
            Privacy::Open => true,
        }
    }
}
