//! What a mirror does about each revision that its policies name: a pure decider. Times, peers and what lies where are arguments.
//!
//! Nodes that mirror agree without asking each other: for every revision, all of them put themselves in the same order (rendezvous
//! hashing, Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates"). Copies that are missing are
//! fetched by the first in that order who hold none; those behind stand by, and step in when a deficit lasts. Of copies that are too
//! many, the last in the order of those that may go goes, and the others look again when it has gone. Nobody fetches because the order
//! changed: what lies somewhere, stays.
//!
//! Invariant: a copy is let go only while enough others are known to hold the revision whole, never fewer than one, and never when a
//! person here wanted it; so two nodes that see the same holders never let the same last copies go at once.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use cairn_protocol::{
    id::{NodeId, RevisionId},
    name::{RepoId, RepoPath},
};

use super::{
    budget::Budget,
    policy::{Hours, Policy},
};

/// A revision that a ref stands for, as the decision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Whose.
    pub repo: RepoId,
    /// As people write it here.
    pub path: RepoPath,
    /// What the ref stands for.
    pub revision: RevisionId,
    /// The licence that its record names.
    pub license: String,
    /// The task that its card names.
    pub task: String,
    /// Its record's tags.
    pub tags: Vec<String>,
    /// Bytes of its files.
    pub bytes: u64,
    /// What is here.
    pub here: Here,
}

/// What this node has of a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// Not all of it, or it is not kept.
    Lacking,
    /// All, and a policy alone keeps it.
    Mirrored,
    /// All, since a person wanted it.
    Wanted,
}

/// Another node that holds a revision whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub node: NodeId,
    /// Whether it may be let go there: a policy alone keeps it, and not whatever others do.
    pub may_go: bool,
}

/// Who else is there.
#[derive(Debug, Clone, Copy)]
pub struct Mesh<'a> {
    /// This node.
    pub me: NodeId,
    /// Other nodes that mirror and were heard of within their lease.
    pub mirrors: &'a [NodeId],
    /// Others who were known, within their lease, to hold a revision whole.
    pub holders: &'a BTreeMap<RevisionId, Vec<Holder>>,
}

/// How long this node bears what it would rather change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A deficit that those before this node in the order should have made good; for each of them.
    pub deficit_ms: u64,
    /// A copy too many.
    pub surplus_ms: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { deficit_ms: 60_000, surplus_ms: 600_000 }
    }
}

/// When it is decided, and what this node may do now.
#[derive(Debug, Clone)]
pub struct Moment {
    /// By this node's clock, from any beginning.
    pub now_ms: u64,
    /// Of the day, UTC.
    pub minute: u16,
    /// What it bears.
    pub patience: Patience,
    /// What may still come today; `None` is anything.
    pub budget: Option<Budget>,
}

/// What is done about a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The revision.
    pub revision: RevisionId,
    /// Its repo.
    pub path: RepoPath,
    /// The pattern of the policy that governs it.
    pub pattern: String,
    /// What.
    pub action: Action,
    /// Why.
    pub why: Why,
    /// Others who have to hold it before this node may let it go.
    pub copies_needed: usize,
    /// Whether a copy here may go when enough others hold it: not if a person wanted it, or the policy wants it here.
    pub may_go: bool,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is here and stays.
    Keep,
    /// It is to be fetched.
    Fetch,
    /// It is not fetched now, and may be later.
    Wait,
    /// It is here and goes.
    LetGo,
}

/// Why. Displayed, it is what `cairn mirror status` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The policy wants a copy here.
    CopyHere,
    /// A person wanted it.
    Person,
    /// Too few copies are known.
    Deficit {
        /// Copies elsewhere.
        known: usize,
        /// Copies wanted.
        copies: usize,
    },
    /// Others before this node in the order are to fetch it.
    Others {
        /// How many are before this node.
        before: usize,
        /// After how long this node fetches it all the same.
        steps_in_ms: u64,
    },
    /// As many copies as are wanted are known.
    Enough {
        /// Copies elsewhere.
        known: usize,
        /// Copies wanted.
        copies: usize,
    },
    /// More copies are known than are wanted.
    Surplus {
        /// Copies elsewhere.
        known: usize,
        /// Copies wanted.
        copies: usize,
    },
    /// It is larger than the policy takes.
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// The policy's most.
        bytes_max: u64,
    },
    /// The policy's quota is used up by what comes before.
    Quota {
        /// The quota.
        quota_bytes: u64,
    },
    /// It would go, and too few other copies are known.
    LastCopy,
    /// Fetches begin at other hours.
    Hours(Hours),
    /// As many bytes as may come a day have come today.
    Budget {
        /// Bytes that came, or are to.
        spent: u64,
        /// Bytes that may come.
        bytes_per_day: u64,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CopyHere => f.write_str("the policy wants a copy here"),
            Self::Person => f.write_str("it was published or pulled here"),
            Self::Deficit { known, copies } => write!(f, "{known} of {copies} copies are known elsewhere"),
            Self::Others { before, steps_in_ms } => {
                write!(f, "{before} other mirrors are to fetch it; this one does in {} s", steps_in_ms.div_ceil(1000))
            }
            Self::Enough { known, copies } => write!(f, "{known} copies are known elsewhere, {copies} are wanted"),
            Self::Surplus { known, copies } => {
                write!(f, "{known} copies are known elsewhere, more than the {copies} that are wanted")
            }
            Self::TooLarge { bytes, bytes_max } => write!(f, "{bytes} bytes, the policy takes at most {bytes_max}"),
            Self::Quota { quota_bytes } => write!(f, "the policy's {quota_bytes} bytes are used up"),
            Self::LastCopy => f.write_str("the policy would let it go, and too few other copies are known"),
            Self::Hours(hours) => write!(f, "fetches begin at {hours} UTC"),
            Self::Budget { spent, bytes_per_day } => {
                write!(f, "{spent} of today's {bytes_per_day} bytes are spent; it waits for another day")
            }
        }
    }
}

/// The machine: what it remembers is since when there is too much or too little of something.
#[derive(Debug, Default)]
pub struct Decider {
    deficits: BTreeMap<RevisionId, u64>,
    surpluses: BTreeMap<RevisionId, u64>,
}

/// A candidate and the policy that governs it.
type Governed<'a> = (&'a Candidate, &'a Policy);

impl Decider {
    /// One decision for every revision that a policy names.
    pub fn decide(
        &mut self,
        mut moment: Moment,
        policies: &[Policy],
        candidates: &[Candidate],
        mesh: Mesh<'_>,
    ) -> Vec<Decision> {
        let governed = governed(policies, candidates);
        let mut used: BTreeMap<String, u64> = BTreeMap::new();
        let mut decisions = Vec::with_capacity(governed.len());
        for (candidate, policy) in &governed {
            let view = View::of(candidate, policy, mesh);
            let taken = used.entry(policy.pattern.to_string()).or_default();
            let (action, why) = self.judge(&moment, &view, *taken);
            moment.note(action, candidate);
            if matches!(action, Action::Keep | Action::Fetch) {
                *taken = taken.saturating_add(candidate.bytes);
            }
            decisions.push(Decision {
                revision: candidate.revision,
                path: candidate.path.clone(),
                pattern: policy.pattern.to_string(),
                action,
                copies_needed: view.copies_needed(),
                may_go: !matches!(why, Why::Person | Why::CopyHere),
                why,
            });
        }
        let named: BTreeSet<RevisionId> = governed.iter().map(|(candidate, _)| candidate.revision).collect();
        self.deficits.retain(|revision, _| named.contains(revision));
        self.surpluses.retain(|revision, _| named.contains(revision));
        decisions
    }

    fn judge(&mut self, moment: &Moment, view: &View<'_>, taken: u64) -> (Action, Why) {
        let (now_ms, patience) = (moment.now_ms, moment.patience);
        let (candidate, rules) = (view.candidate, &view.policy.rules);
        if candidate.here == Here::Wanted {
            return (Action::Keep, Why::Person);
        }
        let is_here = candidate.here == Here::Mirrored;
        let refusal = if rules.bytes_max.is_some_and(|most| candidate.bytes > most) {
            Some(Why::TooLarge { bytes: candidate.bytes, bytes_max: rules.bytes_max.unwrap_or(0) })
        } else {
            let is_over = |quota: &u64| taken.saturating_add(candidate.bytes) > *quota;
            rules.quota_bytes.filter(is_over).map(|quota_bytes| Why::Quota { quota_bytes })
        };
        let (action, why) = match (refusal, is_here) {
            (Some(why), true) => return self.let_go(now_ms, 0, view, why),
            (Some(why), false) => return (Action::Wait, why),
            (None, true) => return self.stay(now_ms, patience, view),
            (None, false) => self.come(now_ms, patience, view),
        };
        match action {
            Action::Fetch => moment.hindrance(view).map_or((action, why), |hindrance| (Action::Wait, hindrance)),
            _ => (action, why),
        }
    }

    /// About a copy that is not here.
    fn come(&mut self, now_ms: u64, patience: Patience, view: &View<'_>) -> (Action, Why) {
        let Some(copies) = view.copies() else { return (Action::Fetch, Why::CopyHere) };
        let known = view.holders.len();
        let missing = copies.saturating_sub(known);
        if missing == 0 {
            self.deficits.remove(&view.candidate.revision);
            return (Action::Wait, Why::Enough { known, copies });
        }
        let since = *self.deficits.entry(view.candidate.revision).or_insert(now_ms);
        let before = view.before_me().saturating_sub(missing - 1);
        let steps_in = since.saturating_add(patience.deficit_ms.saturating_mul(before as u64));
        if now_ms >= steps_in {
            return (Action::Fetch, Why::Deficit { known, copies });
        }
        (Action::Wait, Why::Others { before, steps_in_ms: steps_in - now_ms })
    }

    /// About a copy that is here and fits.
    fn stay(&mut self, now_ms: u64, patience: Patience, view: &View<'_>) -> (Action, Why) {
        let known = view.holders.len();
        match view.copies() {
            None => {
                self.surpluses.remove(&view.candidate.revision);
                (Action::Keep, Why::CopyHere)
            }
            Some(copies) if known < copies => {
                self.surpluses.remove(&view.candidate.revision);
                (Action::Keep, Why::Deficit { known, copies })
            }
            Some(copies) => self.let_go(now_ms, patience.surplus_ms, view, Why::Surplus { known, copies }),
        }
    }

    /// A copy that should go, goes once that has been so for a while, if it is the last in the order of enough holders.
    fn let_go(&mut self, now_ms: u64, patience_ms: u64, view: &View<'_>, why: Why) -> (Action, Why) {
        let since = *self.surpluses.entry(view.candidate.revision).or_insert(now_ms);
        let needed = view.copies_needed();
        if view.holders.len() < needed || !view.am_last_holder() {
            return (Action::Keep, if view.holders.len() < needed { Why::LastCopy } else { why });
        }
        let is_ripe = now_ms >= since.saturating_add(patience_ms);
        (if is_ripe { Action::LetGo } else { Action::Keep }, why)
    }
}

impl Moment {
    /// Why a fetch may not begin now.
    fn hindrance(&self, view: &View<'_>) -> Option<Why> {
        if let Some(hours) = view.policy.rules.hours.filter(|hours| !hours.contain(self.minute)) {
            return Some(Why::Hours(hours));
        }
        let budget = self.budget.as_ref()?;
        let is_over = !budget.begun.contains(&view.candidate.revision) && !budget.allows(view.candidate.bytes);
        is_over.then_some(Why::Budget { spent: budget.spent, bytes_per_day: budget.bytes_per_day })
    }

    /// What is to be fetched leaves less for the others.
    fn note(&mut self, action: Action, candidate: &Candidate) {
        if let Some(budget) = self.budget.as_mut()
            && action == Action::Fetch
            && !budget.begun.contains(&candidate.revision)
        {
            budget.spent = budget.spent.saturating_add(candidate.bytes);
        }
    }
}

/// A revision, its policy, and who holds it.
struct View<'a> {
    candidate: &'a Candidate,
    policy: &'a Policy,
    mesh: Mesh<'a>,
    holders: &'a [Holder],
}

impl<'a> View<'a> {
    fn of(candidate: &'a Candidate, policy: &'a Policy, mesh: Mesh<'a>) -> Self {
        let holders = mesh.holders.get(&candidate.revision).map_or(&[][..], Vec::as_slice);
        Self { candidate, policy, mesh, holders }
    }

    fn copies(&self) -> Option<usize> {
        self.policy.rules.copies.map(|copies| copies.get() as usize)
    }

    /// Others who have to hold it before this node may let it go: never none.
    fn copies_needed(&self) -> usize {
        self.copies().unwrap_or(1).max(1)
    }

    /// Other mirrors without a copy that come before this node in the order.
    fn before_me(&self) -> usize {
        let revision = self.candidate.revision;
        let mine = rank(revision, self.mesh.me);
        let others = self.mesh.mirrors.iter().filter(|node| !self.holders.iter().any(|holder| holder.node == **node));
        others.filter(|node| rank(revision, **node) < mine).count()
    }

    fn am_last_holder(&self) -> bool {
        is_last(self.candidate.revision, self.mesh.me, self.holders)
    }
}

/// Whether every other holder that may let the revision go comes before this node.
pub fn is_last(revision: RevisionId, me: NodeId, holders: &[Holder]) -> bool {
    let mine = rank(revision, me);
    holders.iter().all(|holder| !holder.may_go || rank(revision, holder.node) < mine)
}

/// A node's place in the order of a revision's mirrors; smaller comes first.
fn rank(revision: RevisionId, node: NodeId) -> [u8; 32] {
    *blake3::Hasher::new_derive_key("cairn mirror order 1")
        .update(revision.as_bytes())
        .update(node.as_bytes())
        .finalize()
        .as_bytes()
}

/// Each revision once, with the policy that governs it: of several that name it the one of the highest priority, of equals the one that
/// wants most copies. In the order in which they get room: by priority, what is here first.
fn governed<'a>(policies: &'a [Policy], candidates: &'a [Candidate]) -> Vec<Governed<'a>> {
    let strength =
        |policy: &Policy| (policy.rules.priority, policy.rules.copies.map_or(u32::MAX, |copies| copies.get()));
    let mut chosen: BTreeMap<RevisionId, Governed<'a>> = BTreeMap::new();
    for candidate in candidates {
        for policy in policies.iter().filter(|policy| policy.names(candidate)) {
            let rival = chosen.get(&candidate.revision);
            if rival.is_none_or(|(_, rival)| strength(policy) > strength(rival)) {
                chosen.insert(candidate.revision, (candidate, policy));
            }
        }
    }
    let mut governed: Vec<_> = chosen.into_values().collect();
    governed.sort_by_key(|(candidate, policy)| {
        (Reverse(policy.rules.priority), candidate.here == Here::Lacking, candidate.bytes, candidate.revision)
    });
    governed
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
