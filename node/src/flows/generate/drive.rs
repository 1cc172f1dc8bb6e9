//! Carries out what the session's machine decides, and tells it what happened.
//!
//! One task, which never waits for a stage or for the client: stages are written to through bounded queues, and what
//! the client has not read yet waits in an outbox that is no longer than the generation. Not here: any decision.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use cairn_compute::{
    plan::Plan,
    session::{Effect, Finish, Input, Recovery, Session},
    text,
};
use cairn_protocol::{
    api::{self, generate_event::Event},
    id::NodeId,
    machine::Machine,
    peer_pb::{self, stage_event},
    refusal::{Reason, Refusal},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    super::plan,
    Job, openings,
    tellings::{Story, WAITING},
};
use crate::{
    shell::Node,
    stages::{
        Use,
        links::{Links, News, What},
    },
    telemetry::Counters,
};

/// What stages have said and the session has not heard: beats of sixteen stages for a while, and one token.
const NEWS_MAX: usize = 256;
/// News heard before the client, its leaving and the clock get their turn.
const NEWS_IN_A_ROW_MAX: usize = 32;
/// Times that a session looks again at nodes it had given up: a node that is truly broken must not keep it busy.
const PARDONS_MAX: u32 = 3;

/// Told for a log-probability that is no number, as in the OpenAI API: JSON has no infinities.
const LOGPROB_NONE: f64 = -9999.0;

/// Runs a generation to its end. `begun` is sent with its first token, and dropped with its end.
pub(super) async fn drive(
    node: Arc<Node>,
    job: Job,
    events: mpsc::Sender<api::GenerateEvent>,
    begun: oneshot::Sender<()>,
) -> Result<(), Refusal> {
    let (teller, mut news) = mpsc::channel(NEWS_MAX);
    let mut session = job.session();
    let mut drive = Drive {
        links: Links::new(node.clone(), teller),
        stream: job.stream(),
        story: Story::new(&job),
        outbox: VecDeque::new(),
        started: Instant::now(),
        has_started: false,
        has_placed: false,
        _in_use: None,
        excluded: BTreeSet::new(),
        pardons: 0,
        begun: Some(begun),
        chosen: None,
        unchosen: None,
        node,
        job,
    };
    let mut turns = Turns::default();
    drive.turn(&mut session, Some(Input::Start));
    let ended = loop {
        if let Some(ended) = drive.story.ended.take() {
            break ended;
        }
        let due = sleep_until(drive.started, session.wake_at());
        let input = match turns.next(&mut news, &events, !drive.outbox.is_empty(), due).await {
            Turn::News(said) => said.and_then(|news| drive.hear(news)),
            Turn::Room(permit) => {
                if let Some(event) = drive.outbox.pop_front() {
                    permit.send(event);
                }
                continue;
            }
            Turn::Closed => Some(Input::Cancel),
            Turn::Due => None,
        };
        drive.turn(&mut session, input);
    };
    drive.end(ended, &session, events).await
}

/// Whose turn it is.
enum Turn<'a, N, E> {
    News(Option<N>),
    /// The client takes one more event.
    Room(mpsc::Permit<'a, E>),
    /// The client is gone.
    Closed,
    Due,
}

/// Takes turns: news first, since a beat that lies unread proves that a stage lives, but no more than [`NEWS_IN_A_ROW_MAX`]
/// of them before everything else was looked at, so that no flood of news keeps a session from its end.
#[derive(Default)]
struct Turns {
    in_a_row: usize,
}

impl Turns {
    /// Dropping the future loses nothing.
    async fn next<'a, N, E>(
        &mut self,
        news: &mut mpsc::Receiver<N>,
        events: &'a mpsc::Sender<E>,
        has_words: bool,
        due: impl Future<Output = ()>,
    ) -> Turn<'a, N, E> {
        let mut due = std::pin::pin!(due);
        loop {
            let turn = tokio::select! {
                biased;
                said = news.recv(), if self.in_a_row < NEWS_IN_A_ROW_MAX => {
                    self.in_a_row += 1;
                    return Turn::News(said);
                }
                () = events.closed() => Turn::Closed,
                permit = events.reserve(), if has_words => return permit.map_or(Turn::Closed, Turn::Room),
                () = &mut due => Turn::Due,
                // Ready only after the others were polled twice, the second time with the task's budget renewed.
                () = tokio::task::yield_now(), if self.in_a_row == NEWS_IN_A_ROW_MAX => {
                    self.in_a_row = 0;
                    continue;
                }
            };
            self.in_a_row = 0;
            return turn;
        }
    }
}

async fn sleep_until(started: Instant, at_ms: Option<u64>) {
    match at_ms {
        Some(ms) => tokio::time::sleep_until(started + Duration::from_millis(ms)).await,
        None => std::future::pending().await,
    }
}

struct Drive {
    node: Arc<Node>,
    job: Job,
    links: Links,
    stream: text::Stream,
    story: Story,
    outbox: VecDeque<api::GenerateEvent>,
    started: Instant,
    has_started: bool,
    /// The plan in force brought a token.
    has_placed: bool,
    /// The weights of the plan in force, as others of this node see them.
    _in_use: Option<Use>,
    /// Nodes that died or refused, as the last plan was told.
    excluded: BTreeSet<NodeId>,
    /// How often the excluded were looked at again.
    pardons: u32,
    begun: Option<oneshot::Sender<()>>,
    /// The token that was heard last, with what its stage said beside.
    chosen: Option<peer_pb::StageToken>,
    /// Why no token could be chosen, here or anywhere.
    unchosen: Option<Refusal>,
}

impl Drive {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// One input (or a wake-up) and everything that follows from it.
    fn turn(&mut self, session: &mut Session, input: Option<Input>) {
        let mut effects = Vec::new();
        let mut next = input;
        let now_ms = self.now_ms();
        match next.take() {
            Some(input) => session.step(now_ms, input, &mut effects),
            None => session.wake(now_ms, &mut effects),
        }
        let mut waiting: VecDeque<Effect> = effects.into();
        while let Some(effect) = waiting.pop_front() {
            if let Some(answer) = self.carry_out(session, effect) {
                let mut more = Vec::new();
                session.step(self.now_ms(), answer, &mut more);
                waiting.extend(more);
            }
        }
    }

    /// Plans without the excluded. A node may have been blamed for a neighbour's death: when nobody else is left, one that
    /// still talks to us gets another chance, a few times a session.
    fn plan(&mut self, session: &Session, asked: plan::Asked) -> Result<Plan, Refusal> {
        let (bound, may_wait, excluded) = (asked.bound, asked.may_wait, asked.excluded.clone());
        let planned = self.job.plan(&self.node, asked, session.plan());
        let has_lost = session.phase() == "recovering";
        if planned.is_ok() || excluded.is_empty() || !has_lost || self.pardons == PARDONS_MAX {
            return planned;
        }
        self.pardons += 1;
        let gone = |id: &NodeId| !self.node.net.peer(*id).is_some_and(|peer| peer.connected);
        self.excluded = excluded.into_iter().filter(gone).collect();
        let asked = plan::Asked { bound, may_wait, excluded: self.excluded.clone() };
        self.job.plan(&self.node, asked, session.plan())
    }

    /// Does what the machine wants; an answer goes back at once.
    fn carry_out(&mut self, session: &Session, effect: Effect) -> Option<Input> {
        match effect {
            Effect::MakePlan { epoch, excluded, bound, may_wait } => {
                self.excluded.clone_from(&excluded);
                Some(match self.plan(session, plan::Asked { bound, excluded, may_wait }) {
                    Ok(plan) => Input::PlanMade { epoch, plan },
                    Err(refusal) => Input::PlanFailed { epoch, refusal },
                })
            }
            Effect::Open { epoch, plan, history, wait_ms } => {
                self.open(epoch, &plan, &history, wait_ms);
                None
            }
            Effect::Send { epoch, sequence, first_position, tokens, sample } => {
                self.links.send(peer_pb::StageInput { epoch, sequence, first_position, tokens, sample });
                None
            }
            Effect::Emit { index, position, id } => {
                self.note_placement(session);
                self.emit(index, position, id)
            }
            Effect::Close { epoch } => {
                let closings = session.plan().map(|plan| openings::closings(plan, session.ids()));
                self.links.close(epoch, closings.unwrap_or_default());
                None
            }
            Effect::Recovered(recovery) => {
                self.recovered(&recovery);
                None
            }
            Effect::Finish(finish) => {
                self.story.ended = Some(finish);
                None
            }
        }
    }

    fn open(&mut self, epoch: u32, plan: &Plan, history: &[u32], wait_ms: u64) {
        if !self.has_started {
            self.has_started = true;
            let started = self.story.started(&self.job, plan);
            self.tell(Event::Started(started));
        }
        self.has_placed = false;
        self._in_use = Some(self.node.stages.placements().uses(self.job.revision, self.job.quantise, plan));
        self.story.opened(epoch, plan);
        let asked = openings::Asked { epoch, plan, history, excluded: &self.excluded, wait_ms };
        self.links.open(epoch, openings::openings(&self.node, &self.job, asked));
    }

    /// Remembers once that the plan in force is loaded.
    fn note_placement(&mut self, session: &Session) {
        if let Some(plan) = session.plan().filter(|_| !self.has_placed) {
            self.has_placed = true;
            self.node.stages.placements().placed(self.job.revision, plan);
        }
    }

    fn emit(&mut self, index: u64, position: u64, id: u32) -> Option<Input> {
        if let Some(begun) = self.begun.take() {
            let _ = begun.send(());
        }
        let chosen = self.chosen.take().filter(|chosen| chosen.position == position && chosen.token == id);
        let logprobs = chosen.and_then(|chosen| chosen.logprobs).and_then(|said| self.logprobs(id, &said));
        let piece = self.stream.push(id);
        self.story.token(self.started.elapsed(), &piece.text);
        self.tell(Event::Token(api::Token { id, text: piece.text, index: index as u32, logprobs }));
        Counters::add(&self.node.counters.tokens_total, 1);
        piece.stopped.then_some(Input::StopMatched)
    }

    /// What a stage said of a token's likelihood, no more than was asked for.
    fn logprobs(&self, id: u32, said: &peer_pb::TokenLogprobs) -> Option<api::Logprobs> {
        let count = self.job.demands.logprobs? as usize;
        let number = |logprob: f32| if logprob.is_finite() { f64::from(logprob) } else { LOGPROB_NONE };
        let best = said.best.iter().zip(&said.best_logprobs).take(count).map(|(id, logprob)| api::Likely {
            id: *id,
            logprob: number(*logprob),
            bytes: self.job.text.token_bytes(*id),
        });
        Some(api::Logprobs {
            logprob: number(said.logprob),
            best: best.collect(),
            bytes: self.job.text.token_bytes(id),
        })
    }

    fn recovered(&mut self, recovery: &Recovery) {
        let told = self.story.recovered(recovery);
        Counters::add(&self.node.counters.recoveries_total, 1);
        self.tell(Event::Recovery(told));
    }

    fn tell(&mut self, event: Event) {
        self.outbox.push_back(api::GenerateEvent { event: Some(event), choice: self.job.choice });
    }

    /// What a stage's news are to the machine.
    fn hear(&mut self, news: News) -> Option<Input> {
        let (epoch, index) = (news.epoch, news.index);
        Some(match news.what {
            What::Sent(sequence) => Input::Sent { epoch, sequence },
            What::Closed(why) => Input::LinkClosed { epoch, index, why },
            What::Event(event) => match event {
                stage_event::Event::Beat(beat) => {
                    self.story.beat(epoch, index, &beat);
                    Input::Beat { epoch, index }
                }
                stage_event::Event::Token(token) => {
                    let (sequence, position, id) = (token.sequence, token.position, token.token);
                    let epoch = token.epoch.min(epoch);
                    self.chosen = Some(token);
                    Input::Token { epoch, sequence, position, id }
                }
                stage_event::Event::Progress(progress) => {
                    if let Some(told) = self.story.progress(epoch, index, &progress) {
                        self.tell(Event::Progress(told));
                    }
                    Input::StageProgress { epoch, index }
                }
                stage_event::Event::Ready(ready) => match super::not_as_asked(&self.job, &ready) {
                    Some(refused) => {
                        let refusal = self.refusal(index, refused);
                        Input::StageRefused { epoch, index, refusal }
                    }
                    None => {
                        self.story.ready(epoch, index, &ready);
                        Input::StageReady { epoch, index, held: ready.prefix_positions }
                    }
                },
                stage_event::Event::Refused(refused) => {
                    let refusal = self.refusal(index, refused);
                    Input::StageRefused { epoch, index, refusal }
                }
                stage_event::Event::Unchosen(refused) => {
                    // Stages of an epoch that is over may say what they like.
                    if epoch == self.story.epoch() {
                        self.unchosen = Some(self.refusal(index, refused));
                        return Some(Input::Cancel);
                    }
                    return None;
                }
                stage_event::Event::Waiting(waiting) => {
                    let told = self.story.waiting(epoch, index, waiting.place);
                    self.outbox.retain(|event| !is_waiting(event));
                    told.into_iter().for_each(|told| self.tell(Event::Progress(told)));
                    Input::Beat { epoch, index }
                }
                stage_event::Event::Evicted(peer_pb::StageEvicted {}) => Input::Evicted { epoch, index },
                stage_event::Event::Lost(lost) => match lost.node.as_slice().try_into() {
                    Ok(node) => Input::Lost { epoch, index, node, why: lost.why },
                    Err(_) => Input::LinkClosed { epoch, index, why: "it reported a loss of nobody".to_owned() },
                },
            },
        })
    }

    /// A stage's refusal, with the name of its node.
    fn refusal(&self, index: usize, refused: peer_pb::Refused) -> Refusal {
        let reason = Reason::from_code(&refused.reason).unwrap_or(Reason::Unavailable);
        let who = self.story.node(index).map_or_else(String::new, |node| node.short());
        Refusal::new(reason, format!("a stage on node {who}"), refused.why)
            .try_this("cairn plan, which says who may compute")
    }

    /// Says the last words, once the client has read the others.
    async fn end(
        mut self,
        finish: Finish,
        session: &Session,
        events: mpsc::Sender<api::GenerateEvent>,
    ) -> Result<(), Refusal> {
        let stages = session.plan().into_iter().flat_map(|plan| &plan.stages);
        self.node.stages.placements().ended(stages.map(|stage| stage.node));
        let word = match finish {
            Finish::Failed(refusal) => return Err(refusal),
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => match self.unchosen {
                Some(refusal) => return Err(refusal),
                None => "cancelled",
            },
        };
        let rest = self.stream.clone().finish();
        let done = self.story.done(&self.job, session, word, &rest);
        self.tell(Event::Done(done));
        let (closing, outbox) = (self.links.finish(), self.outbox);
        let telling = async {
            for event in outbox {
                if events.send(event).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(closing, telling);
        Ok(())
    }
}

/// News of a place in line, which the next news replace.
fn is_waiting(event: &api::GenerateEvent) -> bool {
    matches!(&event.event, Some(Event::Progress(progress)) if progress.phase == WAITING)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes turns, as many as a full queue has news and some more, while a stage fills the queue again before each;
    /// says whether `wanted` came up.
    async fn comes_up(
        events: &mpsc::Sender<u8>,
        has_words: bool,
        is_due: bool,
        wanted: fn(&Turn<'_, u8, u8>) -> bool,
    ) -> bool {
        let (flood, mut news) = mpsc::channel(NEWS_MAX);
        let mut turns = Turns::default();
        for _ in 0..NEWS_MAX {
            while flood.try_send(0).is_ok() {}
            let due = async move {
                if !is_due {
                    std::future::pending().await
                }
            };
            if wanted(&turns.next(&mut news, events, has_words, due).await) {
                return true;
            }
        }
        false
    }

    #[tokio::test]
    async fn a_flood_of_news_keeps_nobody_from_the_deadline_the_client_or_its_leaving() {
        let (events, client) = mpsc::channel(4);
        assert!(comes_up(&events, false, true, |turn| matches!(turn, Turn::Due)).await, "the clock");
        assert!(comes_up(&events, true, false, |turn| matches!(turn, Turn::Room(_))).await, "a word to the client");
        drop(client);
        assert!(comes_up(&events, false, false, |turn| matches!(turn, Turn::Closed)).await, "the client's leaving");
        let (events, _client) = mpsc::channel(4);
        assert!(comes_up(&events, false, false, |turn| matches!(turn, Turn::News(_))).await, "and the news");
    }
}
