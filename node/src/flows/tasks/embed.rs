//! Answers `Embed`: asks the best node, passes its vectors on as they come, and asks the next for what is missing when one
//! fails.
//!
//! Invariant: every text gets exactly one vector, in order; dropping the flow's future ends the task wherever it runs.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use cairn_protocol::{
    api::{self, embed_event::Event},
    id::NodeId,
    peer_pb,
    refusal::{Reason, Refusal},
};
use tokio::sync::mpsc;

use super::{
    ask::{self, Answer, Failure, Said, Target},
    choose,
    describe::Asked,
    request,
};
use crate::{net::Severity, shell::Node, telemetry::Counters};

/// Nodes that are asked for one request: each that fails silently costs the time to notice.
const ATTEMPTS_MAX: usize = 8;
/// Pieces between a node's answer and the client.
const PIECES_MAX: usize = 2;

/// Answers `Embed`.
pub async fn embed(
    node: Arc<Node>,
    request: api::EmbedRequest,
    events: mpsc::Sender<api::EmbedEvent>,
) -> Result<(), Refusal> {
    request::check_texts(&request.texts, &request.prompt)?;
    let asked = Asked::prepare(&node, &request.repo, &request.privacy).await?;
    let prompt = request::prompt_name(&request.prompt);
    asked.known.recipe.prompt(prompt.as_deref()).map_err(|error| {
        Refusal::new(Reason::BadInput, &request.repo, error.to_string()).try_this("cairn task show")
    })?;
    Counters::add(&node.counters.tasks_total, 1);
    let job = Job { node, asked, texts: request.texts, prompt: request.prompt, events, started: Instant::now() };
    job.run().await
}

struct Job {
    node: Arc<Node>,
    asked: Asked,
    texts: Vec<String>,
    prompt: String,
    events: mpsc::Sender<api::EmbedEvent>,
    started: Instant,
}

/// What was done so far.
#[derive(Default)]
struct Progress {
    answered: usize,
    tokens: u64,
    truncated: u32,
    nodes: Vec<NodeId>,
    failed: BTreeMap<NodeId, Refusal>,
    lost: Vec<api::TaskLost>,
}

impl Job {
    async fn run(self) -> Result<(), Refusal> {
        let mut so_far = Progress::default();
        while so_far.answered < self.texts.len() {
            let choice = self.asked.choose(&self.node, &so_far.failed).await;
            let best = choice.order.first().filter(|_| so_far.failed.len() < ATTEMPTS_MAX);
            let Some(best) = best else { return Err(choose::nobody(&self.asked.repo, &choice.rejected)) };
            if so_far.failed.is_empty() {
                self.say(Event::Started(self.started_on(best.node))).await?;
            }
            let before = so_far.answered;
            match self.attempt(best.node, &mut so_far).await {
                Ok(()) => {}
                Err(Failure::Unwanted) => return Err(unwanted()),
                Err(failure) => self.note(best.node, failure, &mut so_far).await?,
            }
            if so_far.answered > before {
                so_far.nodes.push(best.node);
            }
        }
        self.say(Event::Done(self.done(so_far))).await
    }

    /// Asks a node for what is missing.
    async fn attempt(&self, target: NodeId, so_far: &mut Progress) -> Result<(), Failure> {
        let missing = &self.texts[so_far.answered..];
        let embed = peer_pb::EmbedTexts { texts: missing.to_vec(), prompt: self.prompt.clone() };
        let task = Some(peer_pb::open_task::Task::Embed(embed));
        let open = peer_pb::OpenTask { task, ..self.asked.open(&self.node, &so_far.failed) };
        let width = self.asked.known.recipe.width();
        let mut answer = Answer::to(missing.len(), width);
        let (said, heard) = mpsc::channel(PIECES_MAX);
        let place = Target { node: target, addresses: self.addresses(target) };
        let asking = async {
            let done = ask::ask(&self.node, &place, open, &mut answer, &said).await;
            drop(said);
            done
        };
        let (done, ()) = tokio::join!(asking, self.pass_on(heard, so_far.answered as u32, target));
        so_far.answered += answer.answered();
        // Of a node that failed, what its pieces cost is not known: tokens are those of whole answers.
        let done = done?;
        so_far.tokens += done.tokens;
        so_far.truncated += done.truncated;
        Ok(())
    }

    /// Gives the client what a node said. When the client is gone, so is the receiver, and asking ends.
    async fn pass_on(&self, mut heard: mpsc::Receiver<Said>, answered: u32, node: NodeId) {
        while let Some(said) = heard.recv().await {
            let event = match said {
                Said::Progress(progress) => Event::Progress(progress),
                Said::Vectors(piece) => Event::Vectors(api::Vectors {
                    first: answered + piece.first,
                    width: piece.width,
                    values: piece.values,
                    node: node.to_string(),
                }),
            };
            if self.say(event).await.is_err() {
                return;
            }
        }
    }

    /// Remembers a failure and tells the client.
    async fn note(&self, target: NodeId, failure: Failure, so_far: &mut Progress) -> Result<(), Refusal> {
        let refusal = match failure {
            Failure::Lost(why) => Refusal::new(Reason::Unreachable, "a task", why),
            Failure::Refused(refusal) => refusal,
            Failure::Malformed(why) => {
                self.node.net.report(target, Severity::Fault, "a malformed answer to a task").await;
                Refusal::new(Reason::Corrupt, "a task", format!("a malformed answer: {why}"))
            }
            Failure::Unwanted => return Err(unwanted()),
        };
        tracing::info!(peer = %target.short(), reason = refusal.reason.code(), why = %refusal.why, "task failed there");
        Counters::add(&self.node.counters.tasks_lost_total, 1);
        let (reason, why) = (refusal.reason.code().to_owned(), refusal.why.clone());
        let lost = api::TaskLost { node: target.to_string(), reason, why };
        so_far.lost.push(lost.clone());
        so_far.failed.insert(target, refusal);
        self.say(Event::Lost(lost)).await
    }

    fn addresses(&self, target: NodeId) -> Vec<std::net::SocketAddr> {
        let advert = self.node.net.peer(target).and_then(|peer| peer.advert);
        advert.map(|advert| advert.data_addresses).unwrap_or_default()
    }

    fn started_on(&self, node: NodeId) -> api::EmbedStarted {
        api::EmbedStarted {
            repo: self.asked.path.clone(),
            revision: self.asked.revision.to_string(),
            node: node.to_string(),
        }
    }

    fn done(&self, so_far: Progress) -> api::EmbedDone {
        api::EmbedDone {
            repo: self.asked.path.clone(),
            revision: self.asked.revision.to_string(),
            texts: self.texts.len() as u32,
            width: self.asked.known.recipe.width() as u32,
            tokens: so_far.tokens,
            truncated: so_far.truncated,
            nodes: so_far.nodes.iter().map(NodeId::to_string).collect(),
            lost: so_far.lost,
            seconds: self.started.elapsed().as_secs_f64(),
        }
    }

    async fn say(&self, event: Event) -> Result<(), Refusal> {
        self.events.send(api::EmbedEvent { event: Some(event) }).await.map_err(|_| unwanted())
    }
}

fn unwanted() -> Refusal {
    Refusal::new(Reason::Cancelled, "the task", "the client went away")
}
