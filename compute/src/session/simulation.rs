//! Sessions on a simulated mesh: seeded deaths, refusals, duplicates and late messages at every moment.
//!
//! Not a network: messages are events in one queue, a "model" is a hash of the tokens that a last stage was given since
//! its epoch began. Invariant held here: the emitted ids are those of the undisturbed run, or the session ends with a
//! reason; one seed gives one history.

use super::*;
use crate::plan::{Candidate, ModelCost, PlanInput, Privacy, Standing};
use cairn_protocol::machine::Machine;
use cairn_protocol::refusal::Reason;
use proptest::prelude::*;
use std::collections::BTreeMap;

const VOCABULARY: u32 = 50_000;
const PROMPT: usize = 37;
const TOKENS: u64 = 24;

/// The token that a model gives after these ids.
fn next_token(ids: &[u32]) -> u32 {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let hash = blake3::hash(&bytes);
    u32::from_le_bytes(hash.as_bytes()[..4].try_into().unwrap()) % (VOCABULARY - 10) + 10
}

fn undisturbed(count: u64) -> Vec<u32> {
    let mut ids: Vec<u32> = (100..100 + PROMPT as u32).collect();
    for _ in 0..count {
        ids.push(next_token(&ids));
    }
    ids.split_off(PROMPT)
}

fn node(n: u8) -> NodeId {
    NodeId::from([n; 32])
}

/// SplitMix64 (Steele et al. 2014): small, seedable, enough for a simulator.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// What goes wrong in a run.
#[derive(Clone, Debug, Default)]
struct Trouble {
    /// (when, who) is killed. Node 0 is the coordinator and is never killed.
    deaths: Vec<(u64, u8)>,
    /// Kills are told by the transport at once instead of by silence.
    loud: bool,
    /// Percent of messages to the coordinator that come twice, the second late.
    duplicates: u64,
    /// Nodes that refuse to open.
    refusers: Vec<u8>,
    /// When those take a session that waits; never without.
    free_at_ms: Option<u64>,
    /// Percent of frames that find their stage evicted.
    evictions: u64,
    /// Stages hold what they say of the prompt, up to so many positions, each its own number.
    held_max: u64,
}

/// One thing that will happen.
#[derive(Clone, Debug)]
enum Event {
    Deliver(Input),
    Kill(u8),
    /// The network task of a stage beats.
    Beat {
        epoch: u32,
        index: usize,
        node: u8,
    },
    /// A frame reaches the last stage.
    Frame {
        epoch: u32,
        sequence: u64,
        first: u64,
        tokens: Vec<u32>,
        sample: bool,
        nodes: Vec<u8>,
    },
}

/// The mesh around one session.
struct Mesh {
    now: u64,
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
    dice: Dice,
    trouble: Trouble,
    dead: BTreeSet<u8>,
    nodes: u8,
    open: BTreeMap<u32, Vec<u8>>,
    seen: BTreeMap<u32, Vec<u32>>,
    /// What all stages of an epoch held when they were opened.
    held: BTreeMap<u32, u64>,
    /// When the last frame of an epoch arrives: links keep order.
    arrives: BTreeMap<u32, u64>,
    log: Vec<String>,
    emitted: Vec<u32>,
    recoveries: Vec<Recovery>,
    finish: Option<Finish>,
}

impl Mesh {
    fn new(seed: u64, nodes: u8, trouble: Trouble) -> Mesh {
        let mut mesh = Mesh {
            now: 1_000,
            events: BTreeMap::new(),
            count: 0,
            dice: Dice(seed),
            trouble,
            dead: BTreeSet::new(),
            nodes,
            open: BTreeMap::new(),
            seen: BTreeMap::new(),
            held: BTreeMap::new(),
            arrives: BTreeMap::new(),
            log: Vec::new(),
            emitted: Vec::new(),
            recoveries: Vec::new(),
            finish: None,
        };
        for (at, who) in mesh.trouble.deaths.clone() {
            mesh.after(at, Event::Kill(who));
        }
        mesh
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.count += 1;
        self.events.insert((self.now + delay, self.count), event);
    }

    /// A message to the coordinator, perhaps twice.
    fn tell(&mut self, delay: u64, input: Input) {
        if self.dice.percent(self.trouble.duplicates) {
            let late = delay + self.dice.below(3_000);
            self.after(late, Event::Deliver(input.clone()));
        }
        self.after(delay, Event::Deliver(input));
    }

    /// Runs until the session finishes; a session that never does fails the test.
    fn run(mut self, config: Config) -> Mesh {
        let mut session = Session::new(config);
        let mut effects = Vec::new();
        session.step(self.now, Input::Start, &mut effects);
        for _ in 0..200_000 {
            for effect in std::mem::take(&mut effects) {
                self.log.push(format!("{} {effect:?}", self.now));
                assert!(self.finish.is_none(), "an effect came after Finish");
                self.carry_out(effect);
            }
            if self.finish.is_some() {
                assert!(session.is_done() && session.wake_at().is_none());
                return self;
            }
            let event_at = self.events.keys().next().map_or(u64::MAX, |(at, _)| *at);
            let wake_at = session.wake_at().expect("a session that is not done waits for something");
            if wake_at < event_at {
                self.now = self.now.max(wake_at);
                session.wake(self.now, &mut effects);
                continue;
            }
            let ((at, _), event) = self.events.pop_first().expect("there is one");
            self.now = at;
            self.happen(event, &mut session, &mut effects);
        }
        panic!("the session neither finished nor failed:\n{}", self.log.join("\n"));
    }

    fn happen(&mut self, event: Event, session: &mut Session, effects: &mut Vec<Effect>) {
        match event {
            Event::Deliver(input) => session.step(self.now, input, effects),
            Event::Kill(who) => self.kill(who),
            Event::Beat { epoch, index, node } => self.beat(epoch, index, node),
            Event::Frame { epoch, sequence, first, tokens, sample, nodes } => {
                self.frame(epoch, sequence, first, tokens, sample, &nodes)
            }
        }
    }

    fn kill(&mut self, who: u8) {
        self.dead.insert(who);
        if !self.trouble.loud {
            return;
        }
        for (epoch, nodes) in self.open.clone() {
            if let Some(index) = nodes.iter().position(|n| *n == who) {
                self.tell(1, Input::LinkClosed { epoch, index, why: "reset".into() });
            }
        }
    }

    fn beat(&mut self, epoch: u32, index: usize, who: u8) {
        if self.dead.contains(&who) || !self.open.contains_key(&epoch) {
            return;
        }
        let jitter = self.dice.below(40);
        self.tell(jitter, Input::Beat { epoch, index });
        self.after(BEAT_MS, Event::Beat { epoch, index, node: who });
    }

    fn frame(&mut self, epoch: u32, sequence: u64, first: u64, tokens: Vec<u32>, sample: bool, nodes: &[u8]) {
        if nodes.iter().any(|n| self.dead.contains(n)) || !self.open.contains_key(&epoch) {
            return;
        }
        if self.dice.percent(self.trouble.evictions) {
            let index = self.dice.below(nodes.len() as u64) as usize;
            return self.tell(1, Input::Evicted { epoch, index });
        }
        let begins = !self.seen.contains_key(&epoch);
        let seen = self.seen.entry(epoch).or_default();
        if begins {
            // What every stage holds of the session already.
            assert!(first <= self.held.get(&epoch).copied().unwrap_or(0), "more than all hold was left out");
            seen.extend((100..100 + PROMPT as u32).chain(self.emitted.iter().copied()).take(first as usize));
        }
        assert_eq!(seen.len() as u64, first, "a frame left a gap or came twice");
        seen.extend(tokens);
        if sample {
            let (position, id) = (seen.len() as u64, next_token(seen));
            let back = 1 + self.dice.below(3);
            self.tell(back, Input::Token { epoch, sequence, position, id });
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::MakePlan { epoch, excluded, bound, may_wait } => self.plan(epoch, excluded, bound, may_wait),
            Effect::Open { epoch, plan, history, wait_ms } => self.open(epoch, &plan, &history, wait_ms),
            Effect::Send { epoch, sequence, first_position, tokens, sample } => {
                let nodes = self.open[&epoch].clone();
                let arrives = self.arrives.entry(epoch).or_default();
                *arrives = (*arrives).max(self.now) + 3 + tokens.len() as u64;
                let lap = *arrives - self.now;
                self.after(lap, Event::Frame { epoch, sequence, first: first_position, tokens, sample, nodes });
                self.tell(1, Input::Sent { epoch, sequence });
            }
            Effect::Emit { index, position, id } => {
                assert_eq!(index, self.emitted.len() as u64);
                assert_eq!(position, PROMPT as u64 + index);
                self.emitted.push(id);
            }
            Effect::Close { epoch } => {
                assert!(self.open.remove(&epoch).is_some(), "an epoch was closed twice or never opened")
            }
            Effect::Recovered(recovery) => self.recoveries.push(recovery),
            Effect::Finish(finish) => self.finish = Some(finish),
        }
    }

    fn plan(&mut self, epoch: u32, excluded: BTreeSet<NodeId>, bound: Bound, may_wait: bool) {
        let input = PlanInput { bound, excluded, may_wait, ..plan_input(self.nodes) };
        let delay = 1 + self.dice.below(10);
        match crate::plan::plan(&input) {
            Ok(plan) => self.tell(delay, Input::PlanMade { epoch, plan }),
            Err(error) => self.tell(delay, Input::PlanFailed { epoch, refusal: error.refusal("the generation") }),
        }
    }

    fn open(&mut self, epoch: u32, plan: &Plan, history: &[u32], wait_ms: u64) {
        assert_eq!(history[PROMPT..], self.emitted[..]);
        let nodes: Vec<u8> = plan.stages.iter().map(|s| s.node.as_bytes()[0]).collect();
        self.open.insert(epoch, nodes.clone());
        for (index, who) in nodes.into_iter().enumerate() {
            if self.dead.contains(&who) {
                if self.trouble.loud {
                    self.tell(5, Input::LinkClosed { epoch, index, why: "refused".into() });
                }
                continue;
            }
            // A place is free at some time, and the line before it is as long as the wait.
            let gets_in = self.trouble.free_at_ms.is_some_and(|at| self.now + wait_ms >= at && wait_ms > 0);
            if self.trouble.refusers.contains(&who) && !gets_in {
                let refusal = Refusal::new(Reason::Busy, "the stage", "2 of 2 sessions run there");
                if wait_ms > 0 {
                    self.after(2, Event::Beat { epoch, index, node: who });
                }
                self.tell(3 + wait_ms, Input::StageRefused { epoch, index, refusal });
                continue;
            }
            let load = 20 + self.dice.below(300);
            self.after(2, Event::Beat { epoch, index, node: who });
            self.tell(load / 2, Input::StageProgress { epoch, index });
            self.ready_unless_dead(load, epoch, index, who);
        }
    }

    /// A stage that is killed while it loads never says ready: the kill times are known, so it is decided here.
    fn ready_unless_dead(&mut self, load: u64, epoch: u32, index: usize, who: u8) {
        let ready_at = self.now + load;
        if !self.trouble.deaths.iter().any(|(at, dead)| *dead == who && 1_000 + at <= ready_at) {
            let held = if self.trouble.held_max == 0 { 0 } else { self.dice.below(self.trouble.held_max) };
            self.held.entry(epoch).and_modify(|all| *all = held.min(*all)).or_insert(held);
            self.tell(load, Input::StageReady { epoch, index, held });
        }
    }
}

fn plan_input(nodes: u8) -> PlanInput {
    let cost = ModelCost {
        layers: vec![1 << 20; 12],
        read: vec![1 << 20; 12],
        embedding: 1 << 20,
        head: 1 << 20,
        tied: true,
        kv_bytes_per_token: 64,
        layer_macs: 1 << 20,
        memory_percent: 100,
        angle_bytes_per_token: 0,
        buffer_bytes: 0,
    };
    let candidate = |n: u8| Candidate {
        node: node(n),
        reachable: true,
        granted: true,
        standing: if n == 0 { Standing::Own } else { Standing::SameHost },
        memory_free_bytes: 1 << 30,
        bandwidth_bytes_per_s: 20_000_000_000,
        macs_per_s: 100_000_000_000,
        rtt_us: Some(if n == 0 { 0 } else { 200 }),
        level: "avx2".into(),
        sessions: 0,
        sessions_max: 8,
        holds: true,
    };
    PlanInput {
        cost,
        context: 256,
        answer_tokens: 64,
        placed: Vec::new(),
        in_use: Vec::new(),
        prompt_tokens: PROMPT as u64,
        coordinator: node(0),
        level: "avx2".into(),
        bound: Bound::Free,
        privacy: Privacy::Trusted,
        candidates: (0..nodes).map(candidate).collect(),
        excluded: BTreeSet::new(),
        may_wait: false,
    }
}

fn config(stages: Option<usize>) -> Config {
    Config {
        prompt: (100..100 + PROMPT as u32).collect(),
        tokens_max: TOKENS,
        context: 256,
        eos: vec![2],
        vocabulary: VOCABULARY,
        chunk_tokens: 8,
        stages,
        deadline_ms: 121_000,
        coordinator: node(0),
        wait_ms: 0,
    }
}

#[test]
fn an_undisturbed_run_emits_the_models_tokens_and_stops_at_its_length() {
    let mesh = Mesh::new(1, 3, Trouble::default()).run(config(Some(3)));
    assert_eq!(mesh.emitted, undisturbed(TOKENS));
    assert_eq!(mesh.finish, Some(Finish::Length));
    assert!(mesh.recoveries.is_empty());
}

#[test]
fn a_death_at_every_moment_leaves_the_same_tokens_and_one_recovery() {
    let length = Mesh::new(7, 3, Trouble::default()).run(config(Some(3))).now - 1_000;
    for who in [1u8, 2] {
        for at in (0..length).step_by(3) {
            let trouble = Trouble { deaths: vec![(at, who)], ..Trouble::default() };
            let mesh = Mesh::new(7, 3, trouble).run(config(Some(3)));
            assert_eq!(mesh.emitted, undisturbed(TOKENS), "node {who} killed at {at} ms");
            assert_eq!(mesh.finish, Some(Finish::Length));
            // Killed within its last round trip, nobody misses it.
            assert!(
                mesh.recoveries.len() == 1 || at + 8 > length,
                "node {who} killed at {at} of {length} ms: {}",
                mesh.log.join("\n")
            );
        }
    }
}

#[test]
fn a_pause_on_a_quiet_mesh_is_under_two_seconds_and_is_the_sum_of_its_parts() {
    let mut pauses = Vec::new();
    for at in (250..500).step_by(2) {
        let trouble = Trouble { deaths: vec![(at, 1)], ..Trouble::default() };
        for r in Mesh::new(at, 3, trouble).run(config(Some(3))).recoveries {
            assert_eq!(r.pause_ms, r.noticed_ms + r.replanned_ms + r.rebuilt_ms());
            pauses.push(r.pause_ms);
        }
    }
    pauses.sort_unstable();
    assert!(pauses.len() > 10 && *pauses.last().unwrap() <= 2_000, "{pauses:?}");
}

#[test]
fn a_refusal_leaves_the_bound_as_it_is_and_the_request_fails_with_the_reason() {
    let trouble = Trouble { refusers: vec![2], ..Trouble::default() };
    let mesh = Mesh::new(3, 4, trouble.clone()).run(config(Some(3)));
    assert_eq!(mesh.emitted, undisturbed(TOKENS), "a fourth node takes its place");
    let Some(Finish::Failed(refusal)) = Mesh::new(3, 3, trouble).run(config(Some(3))).finish else {
        panic!("three of three are impossible")
    };
    assert_eq!(refusal.reason, Reason::Busy);
}

#[test]
fn a_session_waits_only_when_nobody_is_free_and_no_longer_than_it_may() {
    let busy = |refusers: &[u8], free_at_ms| Trouble { refusers: refusers.to_vec(), free_at_ms, ..Trouble::default() };
    let patient = || Config { wait_ms: 20_000, ..config(Some(3)) };
    let opens = |mesh: &Mesh| mesh.log.iter().filter(|line| line.contains("Open {")).cloned().collect::<Vec<_>>();
    let mesh = Mesh::new(3, 4, busy(&[2], Some(0))).run(patient());
    assert_eq!(mesh.emitted, undisturbed(TOKENS));
    assert!(opens(&mesh).iter().all(|line| line.ends_with("wait_ms: 0 }")), "a fourth node was free");
    let mesh = Mesh::new(3, 3, busy(&[1, 2], Some(9_000))).run(patient());
    assert_eq!((mesh.emitted.clone(), mesh.recoveries.len()), (undisturbed(TOKENS), 0));
    assert!(!opens(&mesh).last().unwrap().ends_with("wait_ms: 0 }"), "it waited");
    let own = Mesh::new(3, 3, busy(&[0], Some(5_000))).run(patient());
    assert_eq!(own.emitted, undisturbed(TOKENS), "the coordinator's own places, too");
    let mesh = Mesh::new(3, 3, busy(&[1, 2], None)).run(patient());
    let Some(Finish::Failed(refusal)) = &mesh.finish else { panic!("nobody ever has a place: {:?}", mesh.finish) };
    assert!(refusal.reason == Reason::Busy && (21_000..32_000).contains(&mesh.now), "{refusal} at {}", mesh.now);
}

#[test]
fn when_all_others_die_the_coordinator_goes_on_alone() {
    let trouble = Trouble { deaths: vec![(450, 1), (460, 2)], ..Trouble::default() };
    let mesh = Mesh::new(5, 3, trouble).run(config(Some(3)));
    assert_eq!(mesh.emitted, undisturbed(TOKENS));
    let lost: BTreeSet<NodeId> = mesh.recoveries.iter().flat_map(|r| &r.lost).map(|(node, _)| *node).collect();
    assert_eq!(lost, BTreeSet::from([node(1), node(2)]), "{}", mesh.log.join("\n"));
}

#[test]
fn evictions_cost_time_and_are_no_recoveries() {
    let trouble = Trouble { evictions: 20, ..Trouble::default() };
    let mesh = Mesh::new(11, 3, trouble).run(config(Some(3)));
    assert_eq!((mesh.emitted, mesh.finish), (undisturbed(TOKENS), Some(Finish::Length)));
    assert!(mesh.recoveries.is_empty() && mesh.log.iter().filter(|line| line.contains("Open {")).count() > 2);
    assert_eq!(mesh.log.iter().filter(|line| line.contains("MakePlan")).count(), 1, "the plan stays");
}

#[test]
fn a_stage_that_evicts_for_ever_is_taken_for_lost() {
    let mut session = running(config(Some(1)));
    let mut effects = Vec::new();
    for epoch in 1..=EVICTIONS_WITHOUT_TOKEN_MAX {
        session.step(3, Input::Evicted { epoch, index: 0 }, &mut effects);
        assert!(matches!(effects[..], [Effect::Close { .. }, Effect::Open { .. }]), "{effects:?}");
        effects.clear();
    }
    session.step(3, Input::Evicted { epoch: EVICTIONS_WITHOUT_TOKEN_MAX + 1, index: 0 }, &mut effects);
    assert!(matches!(effects[..], [Effect::Close { .. }, Effect::MakePlan { .. }]), "{effects:?}");
}

#[test]
fn what_all_stages_hold_is_not_sent_and_the_last_position_always_is() {
    for (held, first) in [(0, 0), (20, 20), (PROMPT as u64, PROMPT as u64 - 1), (u64::MAX, PROMPT as u64 - 1)] {
        let mut session = Session::new(Config { chunk_tokens: PROMPT, ..config(Some(2)) });
        let mut effects = Vec::new();
        session.step(0, Input::Start, &mut effects);
        let plan = crate::plan::plan(&PlanInput { bound: Bound::Exactly(2), ..plan_input(2) }).unwrap();
        session.step(1, Input::PlanMade { epoch: 1, plan }, &mut effects);
        session.step(2, Input::StageReady { epoch: 1, index: 0, held: u64::MAX }, &mut effects);
        effects.clear();
        session.step(2, Input::StageReady { epoch: 1, index: 1, held }, &mut effects);
        let [Effect::Send { first_position, tokens, sample: true, .. }] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!((*first_position, tokens.len() as u64), (first, PROMPT as u64 - first));
        assert_eq!(session.cached(), first);
    }
}

#[test]
fn an_eos_token_is_emitted_and_ends_the_generation() {
    let sixth = undisturbed(6)[5];
    let mesh = Mesh::new(1, 2, Trouble::default()).run(Config { eos: vec![sixth], ..config(Some(2)) });
    assert_eq!((mesh.emitted, mesh.finish), (undisturbed(6), Some(Finish::Stop)));
}

/// A session of one stage on the coordinator itself, which has been sent the whole prompt in one piece.
fn running(config: Config) -> Session {
    let mut session = Session::new(Config { chunk_tokens: PROMPT, ..config });
    let mut effects = Vec::new();
    session.step(0, Input::Start, &mut effects);
    session.step(1, Input::PlanMade { epoch: 1, plan: alone() }, &mut effects);
    session.step(2, Input::StageReady { epoch: 1, index: 0, held: 0 }, &mut effects);
    session
}

fn alone() -> Plan {
    crate::plan::plan(&PlanInput { bound: Bound::Exactly(1), ..plan_input(1) }).unwrap()
}

#[test]
fn a_stop_string_that_the_last_permitted_token_completes_is_a_stop_and_not_the_length() {
    let token = Input::Token { epoch: 1, sequence: 0, position: PROMPT as u64, id: 11 };
    for (matched, finish) in [(true, Finish::Stop), (false, Finish::Length)] {
        let (mut session, mut effects) = (running(Config { tokens_max: 1, ..config(Some(1)) }), Vec::new());
        session.step(3, token.clone(), &mut effects);
        if matched {
            session.step(3, Input::StopMatched, &mut effects);
        } else {
            assert!(session.wake_at().unwrap() <= 3, "nothing else is waited for");
            session.step(3, Input::LinkClosed { epoch: 1, index: 0, why: "reset".into() }, &mut effects);
            session.wake(3, &mut effects);
        }
        let emitted = Effect::Emit { index: 0, position: PROMPT as u64, id: 11 };
        assert_eq!(effects, [emitted, Effect::Close { epoch: 1 }, Effect::Finish(finish)]);
    }
}

/// Loses the coordinator's own stage; every new try to open it is refused for this reason. Says how it ended, after how
/// many plans and when.
fn refused_at_home(reason: Reason, deadline_ms: u64) -> (Refusal, u32, u64) {
    let mut session = running(Config { deadline_ms, ..config(Some(1)) });
    let (mut effects, mut now, mut asked) = (Vec::new(), 3, 0);
    session.step(now, Input::Lost { epoch: 1, index: 0, node: node(0), why: "a step failed".into() }, &mut effects);
    loop {
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::MakePlan { epoch, .. } => {
                    asked += 1;
                    session.step(now, Input::PlanMade { epoch, plan: alone() }, &mut effects);
                }
                Effect::Open { epoch, .. } => {
                    let refusal = Refusal::new(reason, "the stage", "not now");
                    session.step(now, Input::StageRefused { epoch, index: 0, refusal }, &mut effects);
                }
                Effect::Finish(Finish::Failed(refusal)) => return (refusal, asked, now),
                Effect::Close { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        if effects.is_empty() {
            now = session.wake_at().unwrap();
            session.wake(now, &mut effects);
        }
    }
}

#[test]
fn a_passing_refusal_of_the_coordinators_own_stage_is_tried_again_in_a_recovery_until_it_gives_up() {
    for reason in [Reason::NoMemory, Reason::Busy, Reason::Cancelled] {
        let (refusal, asked, at) = refused_at_home(reason, u64::MAX);
        assert_eq!((refusal.reason, asked), (reason, PLANS_FAILED_MAX));
        assert!(at > RETRY_MS_MAX, "pauses lie between the tries: {at} ms");
        let (refusal, asked, at) = refused_at_home(reason, 3_000);
        assert!(refusal.reason == Reason::Deadline && asked > 2 && at == 3_000, "{refusal} after {asked} at {at}");
    }
    let (refusal, asked, _) = refused_at_home(Reason::Unsupported, u64::MAX);
    assert_eq!((refusal.reason, asked), (Reason::Unsupported, 1));
}

#[test]
fn a_prompt_is_sent_in_chunks_with_a_bounded_number_under_way() {
    let mut session = Session::new(Config { chunk_tokens: 4, ..config(Some(1)) });
    let mut effects = Vec::new();
    session.step(0, Input::Start, &mut effects);
    let plan = crate::plan::plan(&PlanInput { bound: Bound::Exactly(1), ..plan_input(1) }).unwrap();
    session.step(1, Input::PlanMade { epoch: 1, plan }, &mut effects);
    effects.clear();
    session.step(2, Input::StageReady { epoch: 1, index: 0, held: 0 }, &mut effects);
    let mut sent = 0;
    let mut sampled = 0;
    let mut sequence = 0;
    while sampled == 0 {
        let sends: Vec<Effect> = std::mem::take(&mut effects);
        assert!(sends.len() <= SENDS_IN_FLIGHT);
        for effect in sends {
            let Effect::Send { tokens, first_position, sample, .. } = effect else { panic!("{effect:?}") };
            assert_eq!(first_position, sent);
            sent += tokens.len() as u64;
            sampled += usize::from(sample);
        }
        session.step(3, Input::Sent { epoch: 1, sequence }, &mut effects);
        sequence += 1;
    }
    assert_eq!(sent, PROMPT as u64);
}

#[test]
fn a_deadline_ends_a_session_whose_stage_never_answers() {
    let mut session = Session::new(config(None));
    let mut effects = Vec::new();
    session.step(0, Input::Start, &mut effects);
    assert_eq!(session.wake_at(), Some(121_000));
    effects.clear();
    session.wake(121_000, &mut effects);
    let [Effect::Finish(Finish::Failed(refusal))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(refusal.reason, Reason::Deadline);
}

/// Loses the only node that may compute, answers every `MakePlan` with a failure, and says how it ended and after how
/// many plans.
fn with_nobody_left(deadline_ms: u64) -> (Refusal, u32) {
    let mut session = Session::new(Config { deadline_ms, ..config(Some(1)) });
    let (mut effects, mut now, mut asked) = (Vec::new(), 2, 0);
    session.step(0, Input::Start, &mut effects);
    let plan =
        crate::plan::plan(&PlanInput { bound: Bound::Exactly(1), coordinator: node(9), ..plan_input(1) }).unwrap();
    session.step(1, Input::PlanMade { epoch: 1, plan }, &mut effects);
    effects.clear();
    session.step(now, Input::LinkClosed { epoch: 1, index: 0, why: "reset".into() }, &mut effects);
    loop {
        if let Some(Effect::Finish(Finish::Failed(refusal))) = effects.last() {
            return (refusal.clone(), asked);
        }
        if effects.drain(..).any(|e| matches!(e, Effect::MakePlan { epoch: 2, .. })) {
            asked += 1;
            let refusal = Refusal::new(Reason::TooFewNodes, "the generation", "nobody is left");
            session.step(now, Input::PlanFailed { epoch: 2, refusal }, &mut effects);
        } else {
            now = session.wake_at().unwrap();
            session.wake(now, &mut effects);
        }
    }
}

#[test]
fn a_recovery_without_any_node_gives_up_after_its_tries_or_at_the_deadline() {
    let (refusal, asked) = with_nobody_left(u64::MAX);
    assert_eq!((refusal.reason, asked), (Reason::TooFewNodes, PLANS_FAILED_MAX));
    let (refusal, asked) = with_nobody_left(3_000);
    assert_eq!(refusal.reason, Reason::Deadline);
    assert!(refusal.why.contains("nobody is left") && asked > 2 && asked < PLANS_FAILED_MAX, "{refusal} after {asked}");
}

#[test]
fn a_token_that_was_not_asked_for_is_ignored_and_an_impossible_one_costs_the_stage_its_place() {
    let mut session = Session::new(config(Some(2)));
    let mut effects = Vec::new();
    session.step(0, Input::Start, &mut effects);
    let plan = crate::plan::plan(&PlanInput { bound: Bound::Exactly(2), ..plan_input(2) }).unwrap();
    session.step(1, Input::PlanMade { epoch: 1, plan }, &mut effects);
    session.step(2, Input::StageReady { epoch: 1, index: 0, held: 0 }, &mut effects);
    session.step(2, Input::StageReady { epoch: 1, index: 1, held: 0 }, &mut effects);
    for sequence in 0..4 {
        session.step(3, Input::Sent { epoch: 1, sequence }, &mut effects);
    }
    effects.clear();
    for (epoch, sequence) in [(0, 4), (1, 3), (1, 5), (2, 4)] {
        session.step(4, Input::Token { epoch, sequence, position: PROMPT as u64, id: 11 }, &mut effects);
    }
    assert_eq!(effects, []);
    session.step(5, Input::Token { epoch: 1, sequence: 4, position: PROMPT as u64, id: VOCABULARY }, &mut effects);
    let [Effect::Close { epoch: 1 }, Effect::MakePlan { epoch: 2, excluded, bound, .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((excluded, *bound), (&BTreeSet::from([node(1)]), Bound::AtMost(2)));
}

#[test]
fn a_token_that_comes_twice_counts_once_even_before_the_next_can_be_sent() {
    // Four chunks, so that the window is full when the token comes.
    let mut session = Session::new(Config { chunk_tokens: PROMPT.div_ceil(SENDS_IN_FLIGHT), ..config(Some(1)) });
    let mut effects = Vec::new();
    session.step(0, Input::Start, &mut effects);
    let plan = crate::plan::plan(&PlanInput { bound: Bound::Exactly(1), ..plan_input(1) }).unwrap();
    session.step(1, Input::PlanMade { epoch: 1, plan }, &mut effects);
    session.step(2, Input::StageReady { epoch: 1, index: 0, held: 0 }, &mut effects);
    effects.clear();
    let (sequence, position) = (SENDS_IN_FLIGHT as u64 - 1, PROMPT as u64);
    for now in [3, 4] {
        session.step(now, Input::Token { epoch: 1, sequence, position, id: 11 }, &mut effects);
    }
    assert_eq!(effects, [Effect::Emit { index: 0, position, id: 11 }]);
}

#[test]
fn cancelling_closes_the_stages_and_says_so_once() {
    let mut session = Session::new(config(Some(1)));
    let mut effects = Vec::new();
    session.step(0, Input::Start, &mut effects);
    let plan = crate::plan::plan(&PlanInput { bound: Bound::Exactly(1), ..plan_input(1) }).unwrap();
    session.step(1, Input::PlanMade { epoch: 1, plan }, &mut effects);
    effects.clear();
    session.step(2, Input::Cancel, &mut effects);
    session.step(2, Input::Cancel, &mut effects);
    assert_eq!(effects, [Effect::Close { epoch: 1 }, Effect::Finish(Finish::Cancelled)]);
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let death = (0u64..2_500, 1u8..5);
    let pages = (prop_oneof![Just(0u64), 1u64..10], prop_oneof![Just(0u64), 1u64..60]);
    (prop::collection::vec(death, 0..4), any::<bool>(), 0u64..40, prop::collection::vec(1u8..5, 0..2), pages).prop_map(
        |(deaths, loud, duplicates, refusers, (evictions, held_max))| Trouble {
            free_at_ms: None,
            deaths,
            loud,
            duplicates,
            refusers,
            evictions,
            held_max,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_tokens_are_the_undisturbed_ones_and_one_seed_gives_one_history(
        seed: u64, nodes in 2u8..6, stages in prop::option::of(1usize..4), trouble in trouble(),
    ) {
        let run = || Mesh::new(seed, nodes, trouble.clone()).run(config(stages));
        let (mesh, again) = (run(), run());
        prop_assert_eq!(&mesh.log, &again.log);
        let expected = undisturbed(TOKENS);
        prop_assert_eq!(&mesh.emitted[..], &expected[..mesh.emitted.len()]);
        match &mesh.finish {
            Some(Finish::Length) => prop_assert_eq!(mesh.emitted.len() as u64, TOKENS),
            // Only a first plan that can't be made, or that refusals made impossible, may fail: the coordinator can
            // always go on alone.
            Some(Finish::Failed(refusal)) => prop_assert!(mesh.emitted.is_empty() && stages.is_some(), "{}\n{}", refusal, mesh.log.join("\n")),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
