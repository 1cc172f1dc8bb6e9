//! Whether a node may use this one for a stage: grants, privacy, ceilings, trust. Pure.
//!
//! Not here: memory and disk, which need the manifest ([`super::load`]). Invariant: a request that passes breaks none of
//! the rules that this node's owner set, and one that does not is told which.

use cairn_compute::plan::Privacy;
use cairn_protocol::{
    advert::Grant,
    id::{NodeId, PublisherKey, RealmId},
    refusal::{Reason, Refusal},
};

use super::{bounds, request::StageRequest};
use crate::flows::tasks::TaskRequest;

/// The node that asks, as this one sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// Its key, which iroh has checked.
    pub node: NodeId,
    /// It is this node itself.
    pub is_self: bool,
    /// It talks over a loopback address.
    pub is_same_host: bool,
    /// The owner listed it.
    pub is_listed: bool,
}

impl Asker {
    /// Listed, on this host, or this node.
    pub fn is_trusted(&self) -> bool {
        self.is_self || self.is_same_host || self.is_listed
    }
}

/// The rules of this node.
#[derive(Debug, Clone)]
pub struct House {
    /// Who may compute here.
    pub grant: Grant,
    /// The realm this node is in.
    pub realm: RealmId,
    /// Its kernels' level.
    pub level: String,
    /// Most sessions of one peer.
    pub sessions_per_peer: usize,
    /// Most sessions of all peers and this node together.
    pub sessions_max: usize,
    /// Most sessions of one client that wait for a place.
    pub waiting_per_client: usize,
    /// Publishers whose revisions strangers may have loaded here.
    pub trusted: Vec<PublisherKey>,
}

impl House {
    /// Whether one more session of a client would find a place.
    pub fn has_place(&self, is_self: bool, sessions_of_peer: usize, sessions: usize) -> bool {
        sessions < self.sessions_max && (is_self || sessions_of_peer < self.sessions_per_peer)
    }
}

/// What is going on here already.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Sessions of the asker, the one asked for not counted.
    pub sessions_of_peer: usize,
    /// Sessions of everyone, the one asked for not counted.
    pub sessions: usize,
    /// The manifest or more of the revision is here.
    pub is_revision_held: bool,
    /// The same of the adapter's.
    pub is_adapter_held: bool,
}

/// What takes the memory of stages, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Pressure {
    /// The most.
    pub memory_max: u64,
    /// Held by weights and what else is no page.
    pub weights: u64,
    /// Held by pages that sessions use.
    pub pages: u64,
    /// Pages that sessions were let in for, whether they use them yet or not.
    pub promised: u64,
}

impl Pressure {
    /// Whether one more session begins that will use so many bytes of pages at once. One that would be alone is let in: nobody's
    /// leaving could help it.
    pub fn lets_in(&self, bytes: u64) -> bool {
        let taken = self.weights.saturating_add(self.pages.max(self.promised));
        self.promised == 0 || taken.saturating_add(bytes) <= self.memory_max
    }
}

/// Says yes, or why not.
pub fn admit(request: &StageRequest, asker: &Asker, house: &House, usage: Usage) -> Result<(), Refusal> {
    realm(request.realm, house)?;
    grant(asker, house)?;
    privacy(request.privacy, asker)?;
    level(request, house)?;
    let model = (request.publisher, usage.is_revision_held);
    let adapter = request.adapter.as_ref().map(|adapter| (adapter.publisher, usage.is_adapter_held));
    trust(std::iter::once(model).chain(adapter), asker, house)?;
    ceilings(asker, house.sessions_per_peer, house.sessions_max, usage)
}

/// The same for a task that is whole here; `usage` counts tasks. Results are the same bits at every level.
pub fn admit_task(request: &TaskRequest, asker: &Asker, house: &House, usage: Usage) -> Result<(), Refusal> {
    let rules = || {
        realm(request.realm, house)?;
        grant(asker, house)?;
        privacy(request.privacy, asker)?;
        trust(std::iter::once((request.publisher, usage.is_revision_held)), asker, house)?;
        ceilings(asker, house.sessions_per_peer, bounds::TASKS_MAX, usage)
    };
    rules().map_err(|refusal| Refusal { what: "a task".to_owned(), ..refusal })
}

fn realm(asked: RealmId, house: &House) -> Result<(), Refusal> {
    if asked == house.realm {
        return Ok(());
    }
    Err(refusal(Reason::NoGrant, format!("this node is in realm {}", house.realm.short()), "a node of your own realm"))
}

fn grant(asker: &Asker, house: &House) -> Result<(), Refusal> {
    let is_granted = asker.is_self
        || match house.grant {
            Grant::Nobody => false,
            Grant::Listed => asker.is_listed || asker.is_same_host,
            Grant::Realm | Grant::Anyone => true,
        };
    if is_granted {
        return Ok(());
    }
    let why = format!(
        "this node computes for {}, and node {} is not among them",
        grant_words(house.grant),
        asker.node.short()
    );
    Err(refusal(Reason::NoGrant, why, "ask its owner to list your node under [grant] in its config.toml"))
}

fn grant_words(grant: Grant) -> &'static str {
    match grant {
        Grant::Nobody => "nobody",
        Grant::Listed => "listed nodes and its own host",
        Grant::Realm => "its realm",
        Grant::Anyone => "anyone",
    }
}

fn privacy(privacy: Privacy, asker: &Asker) -> Result<(), Refusal> {
    if privacy != Privacy::Local || asker.is_self || asker.is_same_host {
        return Ok(());
    }
    Err(refusal(Reason::Privacy, "a local session stays on its own machine", "--privacy trusted"))
}

fn level(request: &StageRequest, house: &House) -> Result<(), Refusal> {
    if request.level.is_empty() || request.level == house.level {
        return Ok(());
    }
    let why = format!("this node's kernels are {}, the session's are {}", house.level, request.level);
    Err(refusal(Reason::WrongInstructionSet, why, "nodes of one instruction-set level"))
}

/// `all` are the publishers of what is to be computed, and whether their revisions are here.
fn trust(mut all: impl Iterator<Item = (PublisherKey, bool)>, asker: &Asker, house: &House) -> Result<(), Refusal> {
    let strange = all.find(|(publisher, is_held)| !is_held && !house.trusted.contains(publisher));
    let Some((publisher, _)) = strange.filter(|_| !asker.is_trusted()) else { return Ok(()) };
    let why = format!("its publisher {} is not trusted here and the revision is not held", publisher.short());
    Err(refusal(Reason::Untrusted, why, "ask its owner to trust the publisher or to mirror the repo"))
}

fn ceilings(asker: &Asker, per_peer: usize, all: usize, usage: Usage) -> Result<(), Refusal> {
    if usage.sessions >= all {
        return Err(refusal(Reason::Busy, format!("{} are under way here", usage.sessions), "again in a moment"));
    }
    if !asker.is_self && usage.sessions_of_peer >= per_peer {
        let why = format!("your node has {} under way here, the most it may have", usage.sessions_of_peer);
        return Err(refusal(Reason::Busy, why, "again when one of them ends"));
    }
    Ok(())
}

fn refusal(reason: Reason, why: impl Into<String>, attempt: &str) -> Refusal {
    Refusal::new(reason, "a stage", why).try_this(attempt)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cairn_compute::{KvFormat, arch::StagePart, choose::Demands};
    use cairn_protocol::{
        id::{RevisionId, SessionId},
        layers::LayerRange,
    };

    use super::*;
    use crate::stages::request::AdapterRequest;

    fn request() -> StageRequest {
        StageRequest {
            session: SessionId::from([1; 16]),
            epoch: 0,
            realm: RealmId::PUBLIC,
            revision: RevisionId::from([2; 32]),
            publisher: PublisherKey::from([3; 32]),
            part: StagePart { layers: LayerRange { start: 0, end: 2 }, embedding: true, head: true },
            context: 64,
            planes: 2,
            next: None,
            previous: NodeId::from([4; 32]),
            demands: Demands::default(),
            history: Vec::new(),
            privacy: Privacy::Trusted,
            sources: Vec::new(),
            level: String::new(),
            adapter: None,
            quantise: None,
            kv: KvFormat::F16,
            prefix: Vec::new(),
            wait: Duration::ZERO,
            client: 0,
            positions: None,
        }
    }

    fn house(grant: Grant) -> House {
        let level = "scalar".to_owned();
        House {
            grant,
            realm: RealmId::PUBLIC,
            level,
            sessions_per_peer: 2,
            sessions_max: 8,
            waiting_per_client: 4,
            trusted: Vec::new(),
        }
    }

    fn stranger() -> Asker {
        Asker { node: NodeId::from([4; 32]), is_self: false, is_same_host: false, is_listed: false }
    }

    fn reason(asker: &Asker, house: &House, usage: Usage) -> Option<Reason> {
        admit(&request(), asker, house, usage).err().map(|r| r.reason)
    }

    #[test]
    fn a_stranger_is_refused_by_default_and_a_neighbour_on_the_same_host_is_not() {
        let near = Asker { is_same_host: true, ..stranger() };
        let listed = Asker { is_listed: true, ..stranger() };
        assert_eq!(reason(&stranger(), &house(Grant::Listed), Usage::default()), Some(Reason::NoGrant));
        assert_eq!(reason(&near, &house(Grant::Listed), Usage::default()), None);
        assert_eq!(reason(&listed, &house(Grant::Listed), Usage::default()), None);
        assert_eq!(reason(&near, &house(Grant::Nobody), Usage::default()), Some(Reason::NoGrant));
    }

    #[test]
    fn a_granted_stranger_loads_only_what_is_held_or_trusted() {
        let held = Usage { is_revision_held: true, ..Usage::default() };
        let mut house = house(Grant::Anyone);
        assert_eq!(reason(&stranger(), &house, Usage::default()), Some(Reason::Untrusted));
        assert_eq!(reason(&stranger(), &house, held), None);
        house.trusted.push(PublisherKey::from([3; 32]));
        assert_eq!(reason(&stranger(), &house, Usage::default()), None);
    }

    #[test]
    fn a_granted_stranger_needs_trust_for_the_adapter_as_for_the_model() {
        let adapter = AdapterRequest {
            revision: RevisionId::from([5; 32]),
            publisher: PublisherKey::from([6; 32]),
            sources: Vec::new(),
        };
        let request = StageRequest { adapter: Some(adapter), ..request() };
        let mut house = house(Grant::Anyone);
        house.trusted.push(PublisherKey::from([3; 32]));
        let ask = |asker: &Asker, house: &House, usage| admit(&request, asker, house, usage).err();
        let refused = ask(&stranger(), &house, Usage::default()).unwrap();
        assert!(refused.reason == Reason::Untrusted && refused.why.contains("0606"), "{refused}");
        let held = Usage { is_adapter_held: true, ..Usage::default() };
        assert_eq!(ask(&stranger(), &house, held), None);
        let listed = Asker { is_listed: true, ..stranger() };
        assert_eq!(ask(&listed, &house, Usage::default()), None);
        house.trusted.push(PublisherKey::from([6; 32]));
        assert_eq!(ask(&stranger(), &house, Usage::default()), None);
    }

    #[test]
    fn sessions_are_let_in_while_what_they_begin_with_fits_beside_the_others() {
        let pressure = |pages, promised| Pressure { memory_max: 100, weights: 40, pages, promised };
        assert!(pressure(0, 30).lets_in(30) && !pressure(0, 30).lets_in(31), "promises count before they are used");
        assert!(pressure(50, 10).lets_in(10) && !pressure(50, 10).lets_in(11), "as does what others have grown to");
        assert!(pressure(0, 0).lets_in(500), "alone it finds out by itself");
        assert!(!pressure(0, u64::MAX).lets_in(u64::MAX));
    }

    #[test]
    fn a_third_session_of_one_peer_is_told_busy() {
        let near = Asker { is_same_host: true, ..stranger() };
        let two = Usage { sessions_of_peer: 2, sessions: 2, ..Usage::default() };
        assert_eq!(reason(&near, &house(Grant::Listed), two), Some(Reason::Busy));
        let own = Asker { is_self: true, ..stranger() };
        assert_eq!(reason(&own, &house(Grant::Nobody), two), None);
    }

    #[test]
    fn a_local_session_and_another_level_are_refused_with_their_own_reasons() {
        let near = Asker { is_listed: true, ..stranger() };
        let local = StageRequest { privacy: Privacy::Local, ..request() };
        let other = StageRequest { level: "avx2".to_owned(), ..request() };
        let ask = |r: &StageRequest| admit(r, &near, &house(Grant::Listed), Usage::default()).unwrap_err().reason;
        assert_eq!(ask(&local), Reason::Privacy);
        assert_eq!(ask(&other), Reason::WrongInstructionSet);
    }
}
