//! What the engine thread holds: the sessions, what each was asked in its order, and whose step waits for a pass.
//!
//! A session has at most one step under way; what it was asked after that waits, so its order is kept, while its
//! neighbours go on. Everybody with a step under way stands in one line and goes to its end after a turn; whose
//! weights are next is decided by client ([`super::turns`]).
//!
//! Sessions that decode ask for the next token a moment after they were given the last one. A pass that began at once
//! with who is there would leave that one behind, and two sessions would take turns with passes of one; so a pass waits
//! for those who are about to ask, if what that costs is small beside a pass ([`Sessions::worth_waiting`]).
//!
//! Before a pass everyone in it gets the pages that it will fill; where there are none left, somebody gives way
//! ([`super::preempt`]).
//!
//! Invariant: every step is answered exactly once; a panic in a pass loses the session that panics alone, and no other.

use super::{
    ClientId, Share,
    deal::{Waiting, deal},
    preempt::{Holder, Victim, victim},
    threads::{AdoptAnswer, Command, SessionId, StepAnswer, said},
    turns::Turns,
};
use crate::{
    cpu::kv::KvFormat,
    stage::{
        self, Adapter, Choosing, Hands, PageKey, SESSIONS_USUAL, Session, StepError, StepInput, Turn, UnderWay, Weights,
    },
};
use smallvec::SmallVec;
use std::{
    collections::{BTreeMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Orders that may wait behind steps under way; further ones stay in the engine's queue.
const ORDERS_MAX: usize = super::COMMANDS_MAX;
/// A pass waits for who is expected back within this part of the last pass' time.
const WAIT_PART: u32 = 4;
/// Who was answered longer ago is not expected to ask again soon: its client is slow, or has all it wants.
const ABSENT_MAX: Duration = Duration::from_millis(50);
/// What a thread takes to wake up is not held against who is late.
const WAKE: Duration = Duration::from_micros(60);

/// A session as the engine thread knows it.
struct Open {
    client: ClientId,
    /// What computes, or why it is lost.
    session: Result<Session, String>,
    step: Option<(UnderWay, StepAnswer)>,
    orders: VecDeque<Order>,
    /// When its last step was answered, if it has asked for none since.
    answered: Option<Instant>,
    /// How long it usually takes to ask again; none until it did.
    returns_in: Option<Duration>,
    closed: Arc<AtomicBool>,
    /// What a further session takes, given back with it; the first one's is with the weights.
    _share: Option<Share>,
}

/// What a session was asked.
enum Order {
    Step { input: StepInput, asked: Instant, answer: StepAnswer },
    Truncate(usize),
    Adopt { keys: Vec<PageKey>, answer: AdoptAnswer },
    Name(Vec<PageKey>),
    Choosing(Choosing),
    History(Vec<u32>),
    Adapter(Option<Arc<Adapter>>),
}

/// Sessions of a pass, each with so many positions.
type Dealt = SmallVec<[(SessionId, usize); SESSIONS_USUAL]>;

/// Why a pass came to nothing.
enum Broken {
    Refused(StepError),
    Panicked(String),
}

/// All sessions of the engine.
#[derive(Default)]
pub(super) struct Sessions {
    open: BTreeMap<SessionId, Open>,
    /// Whose weights are next.
    turns: Turns,
    /// Who has a step under way, the longest waiting first.
    line: VecDeque<SessionId>,
    /// Orders that wait.
    waiting: usize,
    /// What the last pass took.
    pass_time: Duration,
}

impl Sessions {
    /// Takes what the engine was asked.
    pub fn take(&mut self, command: Command) {
        match command {
            Command::Open { session, weights, client, context, kv, share, closed } => {
                self.turns.came(client);
                self.open.insert(session, Open::new(weights, client, (context, kv), share, closed));
            }
            Command::Step { session, input, asked, answer } => {
                self.order(session, Order::Step { input, asked, answer });
            }
            Command::Truncate { session, len } => self.order(session, Order::Truncate(len)),
            Command::Name { session, keys } => self.order(session, Order::Name(keys)),
            Command::Adopt { session, keys, answer } => self.order(session, Order::Adopt { keys, answer }),
            Command::Choosing { session, choosing } => self.order(session, Order::Choosing(choosing)),
            Command::History { session, ids } => self.order(session, Order::History(ids)),
            Command::Adapter { session, adapter } => self.order(session, Order::Adapter(adapter)),
            // Work is not the sessions'; a sweep only wakes.
            Command::Work(_) | Command::Sweep => {}
        }
    }

    fn order(&mut self, session: SessionId, order: Order) {
        let Some(open) = self.open.get_mut(&session) else { return order.refuse() };
        open.orders.push_back(order);
        self.waiting += 1;
        self.go_on(session);
    }

    /// Does what a session was asked, up to the next step that can be begun.
    fn go_on(&mut self, session: SessionId) {
        let Some(open) = self.open.get_mut(&session) else { return };
        while open.step.is_none()
            && let Some(order) = open.orders.pop_front()
        {
            self.waiting -= 1;
            open.follow(order);
        }
        if open.step.is_some() {
            self.line.push_back(session);
        }
    }

    /// Whether no more can be taken before a pass.
    pub fn is_full(&self) -> bool {
        self.waiting >= ORDERS_MAX
    }

    /// Whether a step is under way.
    pub fn has_work(&self) -> bool {
        !self.line.is_empty()
    }

    /// Forgets the sessions whose handles are gone, and answers what they were asked.
    pub fn sweep(&mut self) {
        let is_closed = |open: &Open| open.closed.load(Ordering::SeqCst);
        if !self.open.values().any(is_closed) {
            return;
        }
        let gone = self.open.extract_if(.., |_, open| is_closed(open)).collect::<Vec<_>>();
        for (_, open) in gone {
            self.waiting -= open.orders.len();
            if let Some((_, answer)) = open.step {
                answer.give(Err(closed()));
            }
            open.orders.into_iter().for_each(Order::refuse);
        }
        self.line.retain(|session| self.open.contains_key(session));
        self.turns.retain(|client| self.open.values().any(|open| open.client == client));
    }

    /// Where in the line the session stands whose weights are next.
    fn first(&self) -> Option<usize> {
        self.turns.next(self.line.iter().map(|session| client(&self.open, session)))
    }

    /// How long a pass that could begin now should wait for sessions of the same weights that were just answered.
    pub fn worth_waiting(&self, now: Instant) -> Option<Duration> {
        let weights = self.open.get(&self.line[self.first()?])?.weights().filter(|weights| weights.shares_passes())?;
        let patience = self.pass_time / WAIT_PART;
        let expected = self.open.values().filter(|open| open.weights().is_some_and(|w| Arc::ptr_eq(w, weights)));
        let until = expected.filter_map(|open| open.is_back_by(patience)).max()?;
        until.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// Computes one pass for those whose turn it is, and answers who is through.
    pub fn pass(&mut self, hands: &Hands) {
        let turns = self.next_turns();
        let turns = self.with_pages(turns);
        if turns.is_empty() {
            return;
        }
        let start = Instant::now();
        match self.compute(hands, &turns) {
            Ok(()) => self.after(&turns),
            Err(broken) => match turns[..] {
                [(session, _)] => self.broke(session, broken),
                // Whose fault it was shows when each is alone.
                _ => turns.iter().for_each(|turn| match self.compute(hands, std::slice::from_ref(turn)) {
                    Ok(()) => self.after(std::slice::from_ref(turn)),
                    Err(broken) => self.broke(turn.0, broken),
                }),
            },
        }
        self.pass_time = start.elapsed();
    }

    /// Takes those who are in the next pass out of the line.
    fn next_turns(&mut self) -> Dealt {
        if let Some(session) = self.first().and_then(|at| self.line.remove(at)) {
            self.line.push_front(session);
        }
        let Some(turns) = self.those_of_the_first() else {
            self.line.pop_front();
            return Dealt::new();
        };
        let is_in = |session: &SessionId| turns.iter().any(|(in_turn, _)| in_turn == session);
        self.turns.note(self.line.iter().map(|session| (client(&self.open, session), is_in(session))));
        self.line.retain(|session| !is_in(session));
        turns
    }

    /// Those who share a pass with the first in line. None where nothing of that one is under way.
    fn those_of_the_first(&self) -> Option<Dealt> {
        let under_way = |session: &SessionId| {
            self.open.get(session).and_then(|open| Some((open.weights()?, open.step.as_ref()?, open.client)))
        };
        let front = self.line.front()?;
        let (weights, (first, _), _) = under_way(front)?;
        if !weights.shares_passes() {
            return Some(Dealt::from_iter([(*front, first.left())]));
        }
        let (sessions, waiting): (SmallVec<[SessionId; SESSIONS_USUAL]>, SmallVec<[Waiting; SESSIONS_USUAL]>) = self
            .line
            .iter()
            .filter_map(|session| {
                let (_, (step, _), client) = under_way(session).filter(|(w, ..)| Arc::ptr_eq(w, weights))?;
                Some((*session, Waiting { left: step.left(), samples: step.samples(), client }))
            })
            .unzip();
        Some(sessions.into_iter().zip(deal(&waiting, self.absent(weights))).filter(|(_, count)| *count > 0).collect())
    }

    /// Those of `turns` that have pages for what they will compute. Others have made room, or been refused.
    fn with_pages(&mut self, mut turns: Dealt) -> Dealt {
        let mut ready = Dealt::new();
        while !turns.is_empty() {
            let (session, count) = turns.remove(0);
            let mut gone = Vec::new();
            if self.reserve(session, count, &mut gone) {
                ready.push((session, count));
            }
            turns.retain(|(id, _)| !gone.contains(id));
            ready.retain(|(id, _)| !gone.contains(id));
        }
        ready
    }

    /// Gets a session the pages for its next positions, if need be by evicting others, which are added to `gone`. False when
    /// it gave way itself.
    fn reserve(&mut self, session: SessionId, count: usize, gone: &mut Vec<SessionId>) -> bool {
        loop {
            let Some(Open { session: Ok(open), step: Some((step, _)), .. }) = self.open.get_mut(&session) else {
                return false;
            };
            let needed = open.held() + (step.done() + count) as u64;
            if open.reserve(step, count).is_ok() {
                return true;
            }
            match victim(&self.holders(), session) {
                Victim::Other(victim) => {
                    gone.push(victim);
                    self.evict(victim);
                }
                Victim::Itself => {
                    self.evict(session);
                    return false;
                }
                Victim::Nobody => {
                    self.broke(session, Broken::Refused(StepError::NoRoom { needed }));
                    return false;
                }
            }
        }
    }

    /// Who holds pages that evicting would free, the first come first.
    fn holders(&self) -> Vec<Holder> {
        let holder = |(id, open): (&SessionId, &Open)| {
            let bytes = open.session.as_ref().ok()?.own_bytes();
            (bytes > 0).then_some(Holder { session: *id, bytes })
        };
        self.open.iter().filter_map(holder).collect()
    }

    /// Frees what a session holds. It is told at its step, be it under way or the next.
    fn evict(&mut self, session: SessionId) {
        let Some(open) = self.open.get_mut(&session) else { return };
        tracing::debug!(session = ?session, "keys and values give way to another session's");
        open.change(Session::evict);
        if let Some((_, answer)) = open.step.take() {
            answer.give(Err(StepError::Evicted));
        }
        self.line.retain(|id| *id != session);
        self.go_on(session);
    }

    /// Sessions that were given a token a moment ago and have not asked for the next one yet.
    fn absent(&self, weights: &Arc<Weights>) -> usize {
        let is_absent = |open: &&Open| {
            open.weights().is_some_and(|w| Arc::ptr_eq(w, weights))
                && open.step.is_none()
                && open.answered.is_some_and(|answered| answered.elapsed() < ABSENT_MAX)
        };
        self.open.values().filter(is_absent).count()
    }

    fn compute(&mut self, hands: &Hands, dealt: &[(SessionId, usize)]) -> Result<(), Broken> {
        let count = |session: &SessionId| dealt.iter().find(|(in_turn, _)| in_turn == session).map(|(_, count)| *count);
        let mut turns: SmallVec<[Turn; SESSIONS_USUAL]> = self
            .open
            .iter_mut()
            .filter_map(|(id, open)| {
                let (Ok(session), Some((step, _))) = (&mut open.session, &mut open.step) else { return None };
                Some(Turn { session, step, count: count(id)? })
            })
            .collect();
        match catch_unwind(AssertUnwindSafe(|| stage::compute(hands, &mut turns))) {
            Ok(done) => done.map_err(Broken::Refused),
            Err(panic) => Err(Broken::Panicked(said(&*panic))),
        }
    }

    /// Answers steps of which nothing is left; the others stand in line again.
    fn after(&mut self, turns: &[(SessionId, usize)]) {
        for (session, _) in turns {
            let Some(open) = self.open.get_mut(session) else { continue };
            match open.step.take_if(|(step, _)| step.left() == 0) {
                Some((step, answer)) => {
                    let output = open.session.as_mut().map(|session| session.finish(step));
                    open.answered = Some(Instant::now());
                    answer.give(output.map_err(|why| StepError::Lost(why.clone())));
                    self.go_on(*session);
                }
                None => self.line.push_back(*session),
            }
        }
    }

    fn broke(&mut self, session: SessionId, broken: Broken) {
        let Some(open) = self.open.get_mut(&session) else { return };
        let error = match broken {
            Broken::Refused(error) => error,
            Broken::Panicked(why) => open.lose(why),
        };
        if let Some((_, answer)) = open.step.take() {
            answer.give(Err(error));
        }
        self.go_on(session);
    }
}

impl Open {
    fn new(
        weights: Arc<Weights>,
        client: ClientId,
        (context, kv): (usize, KvFormat),
        share: Option<Share>,
        closed: Arc<AtomicBool>,
    ) -> Self {
        let session = match catch_unwind(AssertUnwindSafe(|| Session::new(weights, context, kv))) {
            Ok(opened) => opened.map_err(|error| error.to_string()),
            Err(panic) => Err(said(&*panic)),
        };
        let (step, orders) = (None, VecDeque::new());
        Self { client, session, step, orders, answered: None, returns_in: None, closed, _share: share }
    }

    fn weights(&self) -> Option<&Arc<Weights>> {
        self.session.as_ref().ok().map(Session::weights)
    }

    fn follow(&mut self, order: Order) {
        match order {
            Order::Step { input, asked, answer } => {
                self.note_return(asked);
                match self.guarded(|session| session.begin(input)) {
                    Ok(step) => self.step = Some((step, answer)),
                    Err(error) => answer.give(Err(error)),
                }
            }
            Order::Truncate(len) => self.change(|session| session.truncate(len)),
            Order::Name(keys) => self.change(|session| session.name_pages(keys)),
            Order::Adopt { keys, answer } => answer.give(self.guarded(|session| Ok(session.adopt(keys) as u64))),
            Order::Choosing(choosing) => self.change(|session| session.set_choosing(choosing)),
            Order::Adapter(adapter) => self.change(|session| session.set_adapter(adapter)),
            Order::History(ids) => self.change(|session| session.set_history(ids)),
        }
    }

    /// Of a lost session there is nothing to change, and its next step says so.
    fn change(&mut self, act: impl FnOnce(&mut Session)) {
        let _ = self.guarded(|session| {
            act(session);
            Ok(())
        });
    }

    /// Does something with a session; a panic loses it.
    fn guarded<T>(&mut self, act: impl FnOnce(&mut Session) -> Result<T, StepError>) -> Result<T, StepError> {
        let session = self.session.as_mut().map_err(|why| StepError::Lost(why.clone()))?;
        match catch_unwind(AssertUnwindSafe(|| act(session))) {
            Ok(result) => result,
            Err(panic) => Err(self.lose(said(&*panic))),
        }
    }

    fn lose(&mut self, why: String) -> StepError {
        tracing::error!(why, "a stage panicked and is lost");
        self.session = Err(why.clone());
        StepError::Lost(why)
    }

    /// A running mean of the time from an answer to the next question.
    fn note_return(&mut self, asked: Instant) {
        let Some(answered) = self.answered.take() else { return };
        let took = asked.saturating_duration_since(answered);
        self.returns_in = Some(self.returns_in.map_or(took, |mean| (mean * 3 + took) / 4));
    }

    /// Until when it is expected to ask again, if it usually does so within `patience`.
    fn is_back_by(&self, patience: Duration) -> Option<Instant> {
        let returns_in = self.returns_in.filter(|usual| *usual <= patience)?;
        Some(self.answered? + 2 * returns_in + WAKE)
    }
}

impl Order {
    /// Answers what a session that is gone was asked.
    fn refuse(self) {
        match self {
            Self::Step { answer, .. } => answer.give(Err(closed())),
            Self::Adopt { answer, .. } => answer.give(Err(closed())),
            Self::Truncate(_) | Self::Name(_) | Self::Choosing(_) | Self::History(_) | Self::Adapter(_) => {}
        }
    }
}

fn client(open: &BTreeMap<SessionId, Open>, session: &SessionId) -> ClientId {
    open.get(session).map(|open| open.client).unwrap_or_default()
}

fn closed() -> StepError {
    StepError::Lost("it was closed".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        arch,
        cpu::{acts::Planes, level::Level, pool::Pool},
        engine::threads::Answer,
        stage::{CpuWeights, Kind, StepOutput},
        tiny::{self, Tiny},
        weights,
    };
    use cairn_protocol::dtype::Dtype;

    /// Weights that say a longer context than their table of angles has: a bug that panics in the middle of a pass.
    fn broken(tiny: &Tiny) -> Arc<Weights> {
        let loaded =
            weights::load(&tiny.model, &tiny.tensors, &tiny.headless(), 4, &mut *tiny.source()).expect("loads");
        Arc::new(Weights::new(Kind::Cpu(CpuWeights::new(loaded.model, Planes::Two, 64, None)), None))
    }

    fn ask(
        hands: &Hands,
        sessions: &mut Sessions,
        session: SessionId,
        first: u64,
        count: usize,
    ) -> Result<StepOutput, StepError> {
        let (said, heard) = std::sync::mpsc::sync_channel(1);
        let input = StepInput::Tokens { first_position: first, ids: vec![1; count], sample: false };
        let answer = Answer::new(Box::new(move |result| drop(said.send(result))), || StepError::Stopped);
        sessions.take(Command::Step { session, input, asked: Instant::now(), answer });
        while sessions.has_work() {
            sessions.pass(hands);
        }
        heard.recv().expect("an answer")
    }

    #[test]
    fn a_panic_while_a_session_is_changed_loses_that_session_only() {
        let tiny = Tiny::new(tiny::llama(), 3, |_| Dtype::F32);
        let hands = Hands { pool: Pool::new(1).expect("pool"), level: Level::best() };
        let (mut sessions, shared) = (Sessions::default(), broken(&tiny));
        let [bad, good] = [SessionId::fresh(), SessionId::fresh()];
        for session in [bad, good] {
            let (weights, closed) = (shared.clone(), Arc::new(AtomicBool::new(false)));
            sessions.take(Command::Open {
                session,
                weights,
                client: ClientId::default(),
                context: 64,
                kv: KvFormat::F16,
                share: None,
                closed,
            });
        }
        let open = sessions.open.get_mut(&bad).expect("open");
        assert!(open.guarded::<()>(|_| panic!("planned")).is_err());
        assert_eq!(ask(&hands, &mut sessions, bad, 0, 1), Err(StepError::Lost("planned".to_string())));
        sessions.take(Command::Truncate { session: bad, len: 0 });
        assert!(matches!(ask(&hands, &mut sessions, bad, 0, 1), Err(StepError::Lost(_))), "it stays lost");
        assert!(ask(&hands, &mut sessions, good, 0, 4).is_ok(), "the other goes on");
    }

    #[test]
    fn a_panic_in_a_pass_of_several_loses_the_one_whose_fault_it_is() {
        let tiny = Tiny::new(tiny::llama(), 3, |_| Dtype::F32);
        let hands = Hands { pool: Pool::new(2).expect("pool"), level: Level::best() };
        let (mut sessions, shared) = (Sessions::default(), broken(&tiny));
        let all = [SessionId::fresh(), SessionId::fresh(), SessionId::fresh()];
        let (said, heard) = std::sync::mpsc::sync_channel(3);
        for (i, session) in all.into_iter().enumerate() {
            let (weights, closed) = (shared.clone(), Arc::new(AtomicBool::new(false)));
            sessions.take(Command::Open {
                session,
                weights,
                client: ClientId::default(),
                context: 64,
                kv: KvFormat::F16,
                share: None,
                closed,
            });
            // The table of angles ends after four.
            let ids = vec![1; if i == 1 { 6 } else { 3 }];
            let input = StepInput::Tokens { first_position: 0, ids, sample: false };
            let said = said.clone();
            let answer = Answer::new(Box::new(move |result| drop(said.send((i, result)))), || StepError::Stopped);
            sessions.take(Command::Step { session, input, asked: Instant::now(), answer });
        }
        sessions.pass(&hands);
        assert!(!sessions.has_work(), "one pass was for all");
        let mut answers: Vec<(usize, Result<StepOutput, StepError>)> = heard.try_iter().collect();
        answers.sort_by_key(|(i, _)| *i);
        assert!(matches!(&answers[..], [(0, Ok(_)), (1, Err(StepError::Lost(_))), (2, Ok(_))]), "{answers:?}");
    }

    #[test]
    fn what_a_session_is_asked_behind_a_step_waits_for_it_and_is_bounded() {
        let tiny = Tiny::new(tiny::llama(), 3, |_| Dtype::F32);
        let hands = Hands { pool: Pool::new(1).expect("pool"), level: Level::best() };
        let mut sessions = Sessions::default();
        let session = SessionId::fresh();
        let (weights, closed) = (broken(&tiny), Arc::new(AtomicBool::new(false)));
        sessions.take(Command::Open {
            session,
            weights,
            client: ClientId::default(),
            context: 64,
            kv: KvFormat::F16,
            share: None,
            closed: closed.clone(),
        });
        let (said, heard) = std::sync::mpsc::sync_channel(ORDERS_MAX + 1);
        let step = |sessions: &mut Sessions, first_position| {
            let input = StepInput::Tokens { first_position, ids: vec![1; 2], sample: false };
            let said = said.clone();
            let answer = Answer::new(Box::new(move |result| drop(said.send(result))), || StepError::Stopped);
            sessions.take(Command::Step { session, input, asked: Instant::now(), answer });
        };
        step(&mut sessions, 0);
        sessions.take(Command::Truncate { session, len: 0 });
        step(&mut sessions, 0);
        sessions.pass(&hands);
        assert!(heard.try_recv().is_ok_and(|done| done.is_ok()) && heard.try_recv().is_err(), "one step a pass");
        sessions.pass(&hands);
        assert!(heard.try_recv().is_ok_and(|done| done.is_ok()), "it was forgotten in between, so it follows");
        step(&mut sessions, 2);
        while !sessions.is_full() {
            step(&mut sessions, 2);
        }
        closed.store(true, Ordering::SeqCst);
        sessions.sweep();
        assert!(!sessions.has_work() && !sessions.is_full());
        assert_eq!(heard.try_iter().filter(|done| matches!(done, Err(StepError::Lost(_)))).count(), ORDERS_MAX + 1);
    }

    #[test]
    fn a_client_with_many_prompts_on_one_model_holds_up_another_s_token_on_another_for_one_pass() {
        let tiny = Tiny::new(tiny::llama(), 3, |_| Dtype::F32);
        let hands = Hands { pool: Pool::new(1).expect("pool"), level: Level::best() };
        let mut sessions = Sessions::default();
        let loaded = || {
            let part = tiny.headless();
            let loaded = weights::load(&tiny.model, &tiny.tensors, &part, 300, &mut *tiny.source()).expect("loads");
            Arc::new(Weights::new(Kind::Cpu(CpuWeights::new(loaded.model, Planes::Two, 300, None)), None))
        };
        let (said, heard) = std::sync::mpsc::sync_channel(9);
        let mut asks = |weights: &Arc<Weights>, client: u64, count: usize| {
            let (session, closed) = (SessionId::fresh(), Arc::new(AtomicBool::new(false)));
            let (weights, client, kv) = (weights.clone(), ClientId(client), KvFormat::F16);
            sessions.take(Command::Open { session, weights, client, context: 300, kv, share: None, closed });
            let input = StepInput::Tokens { first_position: 0, ids: vec![1; count], sample: false };
            let said = said.clone();
            let answer = Answer::new(Box::new(move |result| drop(said.send((client, result)))), || StepError::Stopped);
            sessions.take(Command::Step { session, input, asked: Instant::now(), answer });
        };
        let (one, other) = (loaded(), loaded());
        (0..8).for_each(|_| asks(&one, 1, 300));
        asks(&other, 2, 1);
        sessions.pass(&hands);
        assert!(heard.try_recv().is_err(), "a pass holds 128 of 300");
        sessions.pass(&hands);
        assert!(matches!(heard.try_recv(), Ok((ClientId(2), Ok(_)))));
        while sessions.has_work() {
            sessions.pass(&hands);
        }
        assert_eq!(heard.try_iter().filter(|(_, result)| result.is_ok()).count(), 8, "and all of the others end");
    }

    #[test]
    fn a_panic_on_any_thread_in_a_pass_loses_that_session_only() {
        let tiny = Tiny::new(tiny::llama(), 3, |_| Dtype::F32);
        assert!(arch::is_served(&tiny.model));
        let hands = Hands { pool: Pool::new(3).expect("pool"), level: Level::best() };
        let (mut sessions, shared) = (Sessions::default(), broken(&tiny));
        let [bad, good] = [SessionId::fresh(), SessionId::fresh()];
        for session in [bad, good] {
            let (weights, closed) = (shared.clone(), Arc::new(AtomicBool::new(false)));
            sessions.take(Command::Open {
                session,
                weights,
                client: ClientId::default(),
                context: 64,
                kv: KvFormat::F16,
                share: None,
                closed,
            });
        }
        assert!(ask(&hands, &mut sessions, bad, 0, 4).is_ok());
        assert!(matches!(ask(&hands, &mut sessions, bad, 4, 20), Err(StepError::Lost(_))), "past the table");
        assert!(matches!(ask(&hands, &mut sessions, bad, 0, 1), Err(StepError::Lost(_))), "it stays lost");
        assert!(ask(&hands, &mut sessions, good, 0, 4).is_ok(), "the other goes on, on the same weights");
        assert!(matches!(ask(&hands, &mut sessions, SessionId::fresh(), 0, 1), Err(StepError::Lost(_))));
    }
}
