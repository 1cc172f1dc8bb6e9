//! The session's machine; the module above says what its inputs and effects mean and how to drive it.
//!
//! Not a place for I/O. Invariants: an input that names another epoch than the current one changes nothing; a token is
//! taken only if it is the one that was asked for; after `Finish` nothing comes out; every epoch that was opened is
//! closed once.

use super::laps::Laps;
use super::liveness::Liveness;
use super::{
    Config, EVICTIONS_WITHOUT_TOKEN_MAX, Effect, Finish, Input, PLANS_FAILED_MAX, RECOVERIES_WITHOUT_TOKEN_MAX,
    RETRY_MS, RETRY_MS_MAX, Recovery, SENDS_IN_FLIGHT,
};
use crate::plan::{Bound, Plan};
use cairn_protocol::id::NodeId;
use cairn_protocol::machine::Machine;
use cairn_protocol::refusal::{Reason, Refusal};
use std::collections::{BTreeSet, VecDeque};

/// One generation at its coordinator.
#[derive(Debug)]
pub struct Session {
    config: Config,
    state: State,
    epoch: u32,
    /// Prompt and generated ids: the ground truth of every recovery.
    tokens: Vec<u32>,
    excluded: BTreeSet<NodeId>,
    bound: Bound,
    /// The plan in force, once there is one.
    plan: Option<Plan>,
    laps: Laps,
    loss: Option<Loss>,
    /// Recoveries and refusals since the last token.
    fruitless: u32,
    recoveries: u32,
    evictions: u32,
    /// Evictions since the last token.
    fruitless_evictions: u32,
    /// Positions of the prompt that need not be computed for the first token; known once it is asked for.
    cached: Option<u64>,
    last_refusal: Option<Refusal>,
    /// Nodes that are excluded only because they were busy.
    busy: BTreeSet<NodeId>,
    /// All were busy: from now on stages may wait for places.
    waits: bool,
    started_ms: u64,
}

#[derive(Debug)]
enum State {
    New,
    /// Waiting for a plan, or (`Some`) for the moment to ask again.
    Planning {
        retry_at_ms: Option<u64>,
    },
    Opening {
        live: Liveness,
        /// Positions that all stages hold which are ready.
        held: u64,
    },
    /// Prompt (and what was generated before a loss) is on its way through, or a token is.
    Running {
        live: Liveness,
        flow: Flow,
    },
    /// The last permitted token was emitted; whether it completed a stop string is the driver's to say until the next
    /// wake-up, which is due at once.
    Full,
    Done,
}

/// What is under way in the current epoch.
#[derive(Debug)]
struct Flow {
    /// Sequence of the next `Send`.
    next_sequence: u64,
    /// Tokens that were sent in this epoch, or that stages held before.
    sent_tokens: usize,
    /// Sequences without their `Sent`.
    unwritten: VecDeque<u64>,
    /// The `Send` that asked for a token: its sequence, when it left, and whether it was one token long.
    asked: Option<Asked>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    sequence: u64,
    at_ms: u64,
    is_lap: bool,
}

/// What a recovery reports, gathered on the way.
#[derive(Debug)]
struct Loss {
    lost: Vec<(NodeId, String)>,
    alive_ms: u64,
    known_ms: u64,
    planned_ms: u64,
    ready_ms: u64,
    /// Plans that failed since the last death.
    failures: u32,
}

impl Session {
    /// A session that waits for [`Input::Start`].
    pub fn new(config: Config) -> Session {
        let bound = config.stages.map_or(Bound::Free, Bound::Exactly);
        Session {
            tokens: config.prompt.clone(),
            config,
            state: State::New,
            epoch: 0,
            excluded: BTreeSet::new(),
            bound,
            plan: None,
            laps: Laps::default(),
            loss: None,
            fruitless: 0,
            recoveries: 0,
            evictions: 0,
            fruitless_evictions: 0,
            cached: None,
            last_refusal: None,
            busy: BTreeSet::new(),
            waits: false,
            started_ms: 0,
        }
    }

    /// The generated ids so far, in order.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.config.prompt.len()..]
    }

    /// The current epoch; streams of others are to be dropped.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The plan in force, or the last one that was.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Losses that were mended so far.
    pub fn recoveries(&self) -> u32 {
        self.recoveries
    }

    /// Times that a stage's keys and values made room for others'.
    pub fn evictions(&self) -> u32 {
        self.evictions
    }

    /// Positions of the prompt that stages held before it was sent.
    pub fn cached(&self) -> u64 {
        self.cached.unwrap_or(0)
    }

    /// Prompt and generated ids so far.
    pub fn ids(&self) -> &[u32] {
        &self.tokens
    }

    /// `Finish` has been said.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// "planning", "opening", "prefilling", "decoding", "recovering", "done": for status and logs.
    pub fn phase(&self) -> &'static str {
        match &self.state {
            State::New => "new",
            State::Done => "done",
            _ if self.loss.is_some() => "recovering",
            State::Planning { .. } => "planning",
            State::Opening { .. } => "opening",
            State::Running { .. } if self.generated().is_empty() => "prefilling",
            State::Running { .. } | State::Full => "decoding",
        }
    }
}

impl Machine for Session {
    type Input = Input;
    type Effect = Effect;

    fn step(&mut self, now_ms: u64, input: Input, effects: &mut Vec<Effect>) {
        if self.is_done() {
            return;
        }
        match input {
            Input::Start => self.start(now_ms, effects),
            Input::Cancel => self.finish(Finish::Cancelled, effects),
            Input::StopMatched => self.finish(Finish::Stop, effects),
            Input::PlanMade { epoch, plan } if epoch == self.epoch => self.plan_made(now_ms, plan, effects),
            Input::PlanFailed { epoch, refusal } if epoch == self.epoch => self.plan_failed(now_ms, refusal, effects),
            Input::StageProgress { epoch, index } | Input::Beat { epoch, index } if epoch == self.epoch => {
                self.heard(now_ms, index)
            }
            Input::StageReady { epoch, index, held } if epoch == self.epoch => {
                self.stage_ready(now_ms, index, held, effects)
            }
            Input::Evicted { epoch, index } if epoch == self.epoch => self.evicted(now_ms, index, effects),
            Input::StageRefused { epoch, index, refusal } if epoch == self.epoch => {
                self.stage_refused(now_ms, index, refusal, effects)
            }
            Input::LinkClosed { epoch, index, why } if epoch == self.epoch => {
                self.link_closed(now_ms, index, why, effects)
            }
            Input::Lost { epoch, index, node, why } if epoch == self.epoch => {
                self.reported(now_ms, index, node, why, effects)
            }
            Input::Sent { epoch, sequence } if epoch == self.epoch => self.sent(now_ms, sequence, effects),
            Input::Token { epoch, sequence, position, id } if epoch == self.epoch => {
                self.token(now_ms, sequence, position, id, effects)
            }
            _ => {}
        }
    }

    fn wake(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::New | State::Done) {
            return;
        }
        if matches!(self.state, State::Full) {
            return self.finish(Finish::Length, effects);
        }
        if now_ms >= self.config.deadline_ms {
            return self.fail(self.out_of_time(), effects);
        }
        let lap = self.laps.p99_ms();
        match &mut self.state {
            State::Planning { retry_at_ms } if retry_at_ms.is_some_and(|at| now_ms >= at) => {
                *retry_at_ms = None;
                self.ask_for_plan(effects);
            }
            State::Opening { live, .. } | State::Running { live, .. } => {
                let suspects = live.suspects(now_ms, lap);
                self.lose_silent(now_ms, &suspects, effects);
            }
            _ => {}
        }
    }

    fn wake_at(&self) -> Option<u64> {
        let own = match &self.state {
            State::New | State::Done => return None,
            State::Full => Some(0),
            State::Planning { retry_at_ms } => *retry_at_ms,
            State::Opening { live, .. } | State::Running { live, .. } => live.due_ms(self.laps.p99_ms()),
        };
        Some(own.unwrap_or(u64::MAX).min(self.config.deadline_ms))
    }
}

// Planning and opening.
impl Session {
    fn start(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if !matches!(self.state, State::New) {
            return;
        }
        if let Some(refusal) = impossible(&self.config, now_ms) {
            return self.fail(refusal, effects);
        }
        if self.config.tokens_max == 0 || self.tokens.len() as u64 >= self.config.context {
            return self.finish(Finish::Length, effects);
        }
        self.epoch = 1;
        self.started_ms = now_ms;
        self.state = State::Planning { retry_at_ms: None };
        self.ask_for_plan(effects);
    }

    fn ask_for_plan(&self, effects: &mut Vec<Effect>) {
        let (excluded, bound, may_wait) = (self.excluded.clone(), self.bound, self.waits);
        effects.push(Effect::MakePlan { epoch: self.epoch, excluded, bound, may_wait });
    }

    fn plan_made(&mut self, now_ms: u64, plan: Plan, effects: &mut Vec<Effect>) {
        if !matches!(self.state, State::Planning { retry_at_ms: None }) {
            return;
        }
        if let Some(loss) = &mut self.loss {
            loss.planned_ms = now_ms;
        }
        self.open(now_ms, plan, effects);
    }

    fn open(&mut self, now_ms: u64, plan: Plan, effects: &mut Vec<Effect>) {
        self.state = State::Opening { live: Liveness::new(now_ms, plan.stages.len()), held: u64::MAX };
        self.plan = Some(plan.clone());
        let wait_ms = if self.waits { self.wait_left_ms(now_ms) } else { 0 };
        effects.push(Effect::Open { epoch: self.epoch, plan, history: self.tokens.clone(), wait_ms });
    }

    /// The same stages once more: keys and values that made room are computed again.
    fn evicted(&mut self, now_ms: u64, index: usize, effects: &mut Vec<Effect>) {
        let (State::Opening { .. } | State::Running { .. }, Some(plan), Some(node)) =
            (&self.state, self.plan.clone(), self.node(index))
        else {
            return;
        };
        self.evictions += 1;
        self.fruitless_evictions += 1;
        if self.fruitless_evictions > EVICTIONS_WITHOUT_TOKEN_MAX {
            return self.lose(now_ms, index, node, "it evicted the session again and again".to_owned(), effects);
        }
        effects.push(Effect::Close { epoch: self.epoch });
        self.epoch += 1;
        self.open(now_ms, plan, effects);
    }

    /// The first plan's failure is the answer to the request. In a recovery nodes may come back, so it is tried again
    /// for a while.
    fn plan_failed(&mut self, now_ms: u64, refusal: Refusal, effects: &mut Vec<Effect>) {
        if !matches!(self.state, State::Planning { retry_at_ms: None }) || self.asks_the_busy(now_ms, effects) {
            return;
        }
        let State::Planning { retry_at_ms } = &mut self.state else { return };
        let Some(loss) = &mut self.loss else {
            let told = self.last_refusal.take().unwrap_or(refusal);
            return self.fail(told, effects);
        };
        let pause = (RETRY_MS << loss.failures.min(8)).min(RETRY_MS_MAX);
        loss.failures += 1;
        if loss.failures >= PLANS_FAILED_MAX {
            return self.fail(refusal, effects);
        }
        *retry_at_ms = Some(now_ms.saturating_add(pause));
        self.last_refusal = Some(refusal);
    }

    fn heard(&mut self, now_ms: u64, index: usize) {
        if let State::Opening { live, .. } | State::Running { live, .. } = &mut self.state {
            live.heard(now_ms, index);
        }
    }

    fn stage_ready(&mut self, now_ms: u64, index: usize, held: u64, effects: &mut Vec<Effect>) {
        let State::Opening { live, held: all } = &mut self.state else { return };
        live.ready(now_ms, index);
        *all = held.min(*all);
        if !live.all_ready() {
            return;
        }
        // The last position is computed whatever is held: a token comes of it.
        let start = usize::try_from(*all).unwrap_or(usize::MAX).min(self.tokens.len() - 1);
        self.cached.get_or_insert(start as u64);
        if let Some(loss) = &mut self.loss {
            loss.ready_ms = now_ms;
        }
        let State::Opening { live, .. } = std::mem::replace(&mut self.state, State::New) else { return };
        self.state = State::Running { live, flow: Flow::new(start) };
        self.send_more(now_ms, effects);
    }

    /// What is left of the time that the session waits for places.
    fn wait_left_ms(&self, now_ms: u64) -> u64 {
        self.started_ms.saturating_add(self.config.wait_ms).saturating_sub(now_ms)
    }

    /// Nobody is left who is free: asks for a plan with those who were busy, at once the first time and after a pause then. False
    /// when that would be no use, or the session has waited long enough.
    fn asks_the_busy(&mut self, now_ms: u64, effects: &mut Vec<Effect>) -> bool {
        let is_new = self.waits && self.busy.is_empty();
        if self.loss.is_some() || is_new || self.wait_left_ms(now_ms) == 0 {
            return false;
        }
        let busy = std::mem::take(&mut self.busy);
        self.excluded.retain(|node| !busy.contains(node));
        match std::mem::replace(&mut self.waits, true) {
            false => self.ask_for_plan(effects),
            true => self.state = State::Planning { retry_at_ms: Some(now_ms.saturating_add(RETRY_MS)) },
        }
        true
    }

    /// A refusal is not a death: the next plan leaves the node out and binds as before. The coordinator can't be left
    /// out: its own refusal is the answer to the request, unless it is a passing one in the middle of a recovery.
    fn stage_refused(&mut self, now_ms: u64, index: usize, refusal: Refusal, effects: &mut Vec<Effect>) {
        let Some(node) = self.node(index) else { return };
        if !matches!(self.state, State::Opening { .. } | State::Running { .. }) {
            return;
        }
        let is_busy = refusal.reason == Reason::Busy && self.loss.is_none();
        if node == self.config.coordinator {
            if is_busy && self.wait_left_ms(now_ms) > 0 {
                return self.wait_at_home(now_ms, refusal, effects);
            }
            return match &self.loss {
                Some(_) if is_passing(refusal.reason) => self.later(now_ms, refusal, effects),
                _ => self.fail(refusal, effects),
            };
        }
        self.last_refusal = Some(refusal);
        if is_busy && self.excluded.insert(node) {
            self.busy.insert(node);
        }
        self.excluded.insert(node);
        self.replan(now_ms, effects);
    }

    /// The coordinator's own places are taken: it gets in line, or into another one after a pause.
    fn wait_at_home(&mut self, now_ms: u64, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.last_refusal = Some(refusal);
        let pause = std::mem::replace(&mut self.waits, true).then_some(now_ms.saturating_add(RETRY_MS));
        effects.push(Effect::Close { epoch: self.epoch });
        self.epoch += 1;
        self.state = State::Planning { retry_at_ms: pause };
        if pause.is_none() {
            self.ask_for_plan(effects);
        }
    }

    /// Gives up the epoch as if it had found no plan: what the coordinator lacks now may be free in a moment, such as the
    /// memory of the stage that was just closed.
    fn later(&mut self, now_ms: u64, refusal: Refusal, effects: &mut Vec<Effect>) {
        effects.push(Effect::Close { epoch: self.epoch });
        self.epoch += 1;
        self.state = State::Planning { retry_at_ms: None };
        self.plan_failed(now_ms, refusal, effects);
    }
}

/// Whether what refused may serve the same in a moment.
fn is_passing(reason: Reason) -> bool {
    matches!(reason, Reason::NoMemory | Reason::Busy | Reason::Cancelled)
}

// Losing stages.
impl Session {
    fn link_closed(&mut self, now_ms: u64, index: usize, why: String, effects: &mut Vec<Effect>) {
        if let Some(node) = self.node(index) {
            self.lose(now_ms, index, node, why, effects);
        }
    }

    /// A stage names itself or a neighbour. One that blames the coordinator or a stranger is the broken one.
    fn reported(&mut self, now_ms: u64, index: usize, node: NodeId, why: String, effects: &mut Vec<Effect>) {
        let Some(reporter) = self.node(index) else { return };
        match self.index(node) {
            Some(blamed) if node != self.config.coordinator => self.lose(now_ms, blamed, node, why, effects),
            _ => self.lose(now_ms, index, reporter, why, effects),
        }
    }

    fn lose_silent(&mut self, now_ms: u64, suspects: &[usize], effects: &mut Vec<Effect>) {
        // One at a time: the first loss ends the epoch, and the others are judged anew in the next.
        if let Some(&index) = suspects.first()
            && let Some(node) = self.node(index)
        {
            let silent_ms = now_ms.saturating_sub(self.heard_ms(index).unwrap_or(now_ms));
            for also in suspects.iter().skip(1).filter_map(|i| self.node(*i)).collect::<Vec<_>>() {
                self.exclude(also);
            }
            self.lose(now_ms, index, node, format!("silent for {silent_ms} ms"), effects);
        }
    }

    fn lose(&mut self, now_ms: u64, index: usize, node: NodeId, why: String, effects: &mut Vec<Effect>) {
        let (State::Opening { .. } | State::Running { .. }) = &self.state else { return };
        let alive_ms = self.heard_ms(index).unwrap_or(now_ms);
        self.fruitless += 1;
        self.exclude(node);
        let stages = self.plan.as_ref().map_or(1, |p| p.stages.len());
        self.bound = self.bound.after_a_death(stages);
        match &mut self.loss {
            Some(loss) => {
                loss.lost.push((node, why));
                loss.failures = 0;
            }
            None => {
                let lost = vec![(node, why)];
                let (planned_ms, ready_ms) = (now_ms, now_ms);
                self.loss = Some(Loss { lost, alive_ms, known_ms: now_ms, planned_ms, ready_ms, failures: 0 });
            }
        }
        self.replan(now_ms, effects);
    }

    /// The coordinator's own stage may fail and be tried again: without it there is no session anyway.
    fn exclude(&mut self, node: NodeId) {
        if node != self.config.coordinator {
            self.excluded.insert(node);
        }
    }

    fn replan(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        effects.push(Effect::Close { epoch: self.epoch });
        self.epoch += 1;
        self.state = State::Planning { retry_at_ms: None };
        if now_ms >= self.config.deadline_ms {
            return self.fail(self.out_of_time(), effects);
        }
        if self.fruitless > RECOVERIES_WITHOUT_TOKEN_MAX {
            return self.fail(self.given_up(), effects);
        }
        self.ask_for_plan(effects);
    }

    fn heard_ms(&self, index: usize) -> Option<u64> {
        match &self.state {
            State::Opening { live, .. } | State::Running { live, .. } => live.heard_ms(index),
            _ => None,
        }
    }

    fn node(&self, index: usize) -> Option<NodeId> {
        self.plan.as_ref().and_then(|p| p.stages.get(index)).map(|s| s.node)
    }

    fn index(&self, node: NodeId) -> Option<usize> {
        self.plan.as_ref().and_then(|p| p.stages.iter().position(|s| s.node == node))
    }
}

// Tokens.
impl Session {
    fn sent(&mut self, now_ms: u64, sequence: u64, effects: &mut Vec<Effect>) {
        if let State::Running { flow, .. } = &mut self.state {
            flow.unwritten.retain(|s| *s != sequence);
            self.send_more(now_ms, effects);
        }
    }

    /// Sends what the stages have not been sent in this epoch, as far as the window allows.
    fn send_more(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let State::Running { flow, .. } = &mut self.state else { return };
        while flow.sent_tokens < self.tokens.len() && flow.unwritten.len() < SENDS_IN_FLIGHT {
            let end = self.tokens.len().min(flow.sent_tokens + self.config.chunk_tokens.max(1));
            effects.push(flow.send(self.epoch, now_ms, &self.tokens, end));
        }
    }

    fn token(&mut self, now_ms: u64, sequence: u64, position: u64, id: u32, effects: &mut Vec<Effect>) {
        let State::Running { live, flow } = &mut self.state else { return };
        let Some(asked) = flow.asked.filter(|a| a.sequence == sequence) else { return };
        let last = self.plan.as_ref().map_or(0, |p| p.stages.len().saturating_sub(1));
        if position != self.tokens.len() as u64 || id >= self.config.vocabulary {
            return self.link_closed(now_ms, last, format!("it answered token {id} for position {position}"), effects);
        }
        flow.asked = None;
        live.heard(now_ms, last);
        if asked.is_lap {
            self.laps.add(now_ms.saturating_sub(asked.at_ms));
        }
        self.fruitless = 0;
        self.fruitless_evictions = 0;
        self.last_refusal = None;
        self.report_recovery(now_ms, effects);
        self.tokens.push(id);
        let index = (self.generated().len() - 1) as u64;
        effects.push(Effect::Emit { index, position, id });
        self.go_on(now_ms, id, effects);
    }

    fn report_recovery(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(loss) = self.loss.take() else { return };
        self.recoveries += 1;
        effects.push(Effect::Recovered(Recovery {
            lost: loss.lost,
            epoch: self.epoch,
            noticed_ms: loss.known_ms.saturating_sub(loss.alive_ms),
            replanned_ms: loss.planned_ms.saturating_sub(loss.known_ms),
            opened_ms: loss.ready_ms.saturating_sub(loss.planned_ms),
            replayed_ms: now_ms.saturating_sub(loss.ready_ms),
            pause_ms: now_ms.saturating_sub(loss.alive_ms),
        }));
    }

    fn go_on(&mut self, now_ms: u64, id: u32, effects: &mut Vec<Effect>) {
        if self.config.eos.contains(&id) {
            self.finish(Finish::Stop, effects);
        } else if self.generated().len() as u64 >= self.config.tokens_max
            || self.tokens.len() as u64 >= self.config.context
        {
            self.state = State::Full;
        } else {
            self.send_more(now_ms, effects);
        }
    }
}

impl Flow {
    /// Of which so many ids need not be sent.
    fn new(start: usize) -> Flow {
        Flow { next_sequence: 0, sent_tokens: start, unwritten: VecDeque::with_capacity(SENDS_IN_FLIGHT), asked: None }
    }

    fn send(&mut self, epoch: u32, now_ms: u64, tokens: &[u32], end: usize) -> Effect {
        let (sequence, start) = (self.next_sequence, self.sent_tokens);
        let sample = end == tokens.len();
        self.next_sequence += 1;
        self.sent_tokens = end;
        self.unwritten.push_back(sequence);
        if sample {
            self.asked = Some(Asked { sequence, at_ms: now_ms, is_lap: end - start == 1 });
        }
        Effect::Send { epoch, sequence, first_position: start as u64, tokens: tokens[start..end].to_vec(), sample }
    }
}

// The end.
impl Session {
    fn finish(&mut self, how: Finish, effects: &mut Vec<Effect>) {
        if matches!(self.state, State::Opening { .. } | State::Running { .. } | State::Full) {
            effects.push(Effect::Close { epoch: self.epoch });
        }
        self.state = State::Done;
        effects.push(Effect::Finish(how));
    }

    fn fail(&mut self, refusal: Refusal, effects: &mut Vec<Effect>) {
        self.finish(Finish::Failed(refusal), effects);
    }

    fn out_of_time(&self) -> Refusal {
        let doing = self.phase();
        let why = match (&self.last_refusal, &self.loss) {
            (Some(refusal), _) => format!("its deadline passed while {doing}; the last refusal was: {}", refusal.why),
            (None, Some(loss)) => format!("its deadline passed while {doing}; lost: {}", names(&loss.lost)),
            (None, None) => format!("its deadline passed while {doing}"),
        };
        Refusal::new(Reason::Deadline, "the generation", why).try_this("a longer deadline, or fewer tokens")
    }

    fn given_up(&self) -> Refusal {
        if let (Some(refusal), None) = (&self.last_refusal, &self.loss) {
            return refusal.clone();
        }
        let lost = self.loss.as_ref().map_or_else(String::new, |l| names(&l.lost));
        let why = format!("{} stages in a row were lost without one new token: {lost}", self.fruitless);
        Refusal::new(Reason::Unreachable, "the generation", why).try_this("cairn peers")
    }
}

fn names(lost: &[(NodeId, String)]) -> String {
    let each: Vec<String> = lost.iter().map(|(node, why)| format!("{} ({why})", node.short())).collect();
    each.join(", ")
}

fn impossible(config: &Config, now_ms: u64) -> Option<Refusal> {
    if config.prompt.is_empty() {
        return Some(
            Refusal::new(Reason::BadInput, "the prompt", "it holds no token").try_this("a prompt that is not empty"),
        );
    }
    if config.prompt.len() as u64 > config.context {
        let why = format!("it is {} tokens long and the context holds {}", config.prompt.len(), config.context);
        return Some(Refusal::new(Reason::Limit, "the prompt", why).try_this("a shorter prompt"));
    }
    if now_ms >= config.deadline_ms {
        return Some(
            Refusal::new(Reason::Deadline, "the generation", "its deadline had passed before it began")
                .try_this("a longer deadline"),
        );
    }
    None
}
