//! Generates text with a model whose layers may be on several nodes, and goes on when one of them dies.
//!
//! ```text
//! request ─ prompt: ids ─ drive ─▶ machine (pure) ─▶ effects: plan · open · send · emit
//!                          ▲                             │
//!                          └── what stages say ◀── Links ┘
//! ```
//!
//! Not here: the decisions, which are [`cairn_compute::session`]'s. Invariant: dropping the flow's future, or the
//! receiver of its events, ends every stage of the session.

mod asks;
mod drive;
mod openings;
mod prompt;
mod tellings;

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use cairn_compute::{
    choose::{Chooser, Demands},
    plan::Plan,
    session::{self, Session},
};
use cairn_protocol::{
    api,
    id::{RevisionId, SessionId},
    manifest::{Manifest, Model},
    refusal::{Reason, Refusal},
    resume::ResumeToken,
};
use tokio::sync::{mpsc, oneshot};

pub(crate) use prompt::{TextCache, texts};

use super::{holders, names, plan};
use crate::{data::fetch::Source, shell::Node, stages};

/// Prompt tokens in one frame: long enough for the engine's matrix kernels, short enough that stages overlap.
const CHUNK_TOKENS: usize = 128;

/// Smallest context a stage is opened with; contexts are powers of two, so that warm stages fit the next session.
const CONTEXT_MIN: u64 = 512;

/// Longest generation where the caller set no deadline.
const GENERATION_MS_MAX: u64 = 24 * 3600 * 1000;

/// Answers `Generate`: for each answer `Started` first, `Done` last. Each begins when the one before has its first token, so that
/// stages that keep a prompt's keys and values need not compute them again.
pub async fn generate(
    node: Arc<Node>,
    request: api::GenerateRequest,
    events: mpsc::Sender<api::GenerateEvent>,
) -> Result<(), Refusal> {
    let counted = node.clone();
    let _under_way = counted.counters.session();
    let choices = asks::choices(&request)?;
    let job = prepare(&node, request).await?;
    let mut before: Option<oneshot::Receiver<()>> = None;
    let drives = (0..choices).map(|choice| {
        let (begun, begins) = oneshot::channel();
        let (node, job, events) = (node.clone(), job.choice(choice), events.clone());
        let before = before.replace(begins);
        async move {
            if let Some(before) = before {
                // Dropped unsent where the one before ended without a token.
                let _ = before.await;
            }
            drive::drive(node, job, events, begun).await
        }
    });
    futures::future::try_join_all(drives).await.map(drop)
}

/// Everything a generation needs before its first plan.
#[derive(Clone)]
pub(crate) struct Job {
    pub path: String,
    pub repo: String,
    pub revision: RevisionId,
    pub manifest: Arc<Manifest>,
    pub session: SessionId,
    pub wish: plan::Wish,
    /// Which of several answers.
    pub choice: u32,
    pub demands: Demands,
    pub stops: Vec<String>,
    pub text: Arc<prompt::Texts>,
    pub machine: session::Config,
    pub resume_token: String,
    /// Who holds the revision or some of it, this node too if it does.
    pub sources: Vec<Source>,
    /// The first plan of the first answer, which the others take over.
    pub first_plan: Arc<OnceLock<Plan>>,
}

async fn prepare(node: &Arc<Node>, request: api::GenerateRequest) -> Result<Job, Refusal> {
    let privacy = stages::parse_privacy(&request.privacy)?;
    let seed = request.seed.unwrap_or_else(rand::random);
    let stops = asks::stops(&request)?;
    // What is wrong with numbers is said before anything is fetched.
    asks::sampling(&request, seed)?;
    let reference = names::parse(&request.repo)?;
    let resolved = names::resolve_anywhere(node, &reference).await?;
    let manifest = holders::manifest_of(node, &resolved).await?;
    let model = plan::served_model(&request.repo, &manifest)?.clone();
    let sources = sources(node, resolved.revision).await;
    names::remember(node, &reference, &resolved).await;
    let text = prompt::texts(node, resolved.revision, &manifest, &sources).await?;
    let ids = prompt::ids(&text, &request, model.vocabulary).await?;
    let demands = asks::demands(&request, seed, ids.len(), model.vocabulary)?;
    check_grammar(&text, &model, &demands, &ids).await?;
    let tokens_max = if request.max_tokens == 0 { plan::ANSWER_TOKENS as u32 } else { request.max_tokens };
    let context = context(ids.len() as u64, u64::from(tokens_max), u64::from(model.context_max))?;
    let cost = plan::cost(&model, &manifest.tensors)?;
    let machine = session::Config {
        tokens_max: u64::from(tokens_max),
        context,
        eos: text.eos(&model),
        vocabulary: model.vocabulary,
        chunk_tokens: CHUNK_TOKENS,
        stages: (request.stages > 0).then_some(request.stages as usize),
        deadline_ms: GENERATION_MS_MAX,
        coordinator: node.identity.node_id(),
        prompt: ids,
    };
    Ok(Job {
        resume_token: ResumeToken { revision: resolved.revision, seed, prompt: machine.prompt.clone() }.to_string(),
        wish: plan::Wish {
            cost,
            context,
            prompt_tokens: machine.prompt.len() as u64,
            answer_tokens: u64::from(tokens_max),
            privacy,
        },
        path: resolved.path,
        repo: request.repo,
        revision: resolved.revision,
        session: SessionId::from(rand::random::<[u8; 16]>()),
        manifest: Arc::new(manifest),
        choice: 0,
        demands,
        stops,
        sources,
        text,
        machine,
        first_plan: Arc::default(),
    })
}

/// Compiles a grammar here, before a stage elsewhere is asked to: what is wrong with it is told to its author at once.
async fn check_grammar(
    text: &Arc<prompt::Texts>,
    model: &Model,
    demands: &Demands,
    ids: &[u32],
) -> Result<(), Refusal> {
    if demands.grammar.is_none() {
        return Ok(());
    }
    let (vocabulary, demands, ids) = (text.vocabulary(model).await?, demands.clone(), ids.to_vec());
    let checked = tokio::task::spawn_blocking(move || Chooser::start(demands, Some(vocabulary), ids).map(drop)).await;
    let checked = checked.map_err(|error| Refusal::internal("a grammar", error))?;
    checked.map_err(|error| stages::choosing::refusal(&error))
}

/// Holders of the revision: this node first when it has all of it, last when it has some.
async fn sources(node: &Node, revision: RevisionId) -> Vec<Source> {
    let own = Source { node: node.identity.node_id(), addresses: node.data.addresses() };
    let holding = node.registry.held(revision).await.unwrap_or_default();
    if holding.whole {
        return std::iter::once(own).chain(holders::holders(node, revision)).collect();
    }
    let mut sources = holders::find(node, revision).await;
    if holding.bytes_held > 0 {
        sources.push(own);
    }
    sources
}

/// Positions that stages keep: what prompt and output need, as a power of two, within what the model was made for.
fn context(prompt: u64, tokens_max: u64, context_max: u64) -> Result<u64, Refusal> {
    if prompt >= context_max {
        let why = format!("it is {prompt} tokens long, and the model holds {context_max}");
        return Err(Refusal::new(Reason::Limit, "the prompt", why).try_this("a shorter prompt"));
    }
    let needed = prompt.saturating_add(tokens_max).min(context_max);
    Ok(needed.next_power_of_two().max(CONTEXT_MIN).min(context_max))
}

impl Job {
    /// The same for another of several answers.
    fn choice(&self, choice: u32) -> Job {
        let mut job = self.clone();
        job.choice = choice;
        job.session = SessionId::from(rand::random::<[u8; 16]>());
        job.demands.sampling.index = self.demands.sampling.index.saturating_add(choice);
        job
    }

    /// Decodes what is generated.
    fn stream(&self) -> cairn_compute::text::Stream {
        match self.demands.grammar {
            Some(_) => self.text.stream_exactly(&self.stops),
            None => self.text.stream(&self.machine.prompt, &self.stops),
        }
    }

    /// The machine of this generation.
    fn session(&self) -> Session {
        Session::new(self.machine.clone())
    }

    /// Makes a plan as the machine asks for it; the first one is shared by all answers.
    fn plan(
        &self,
        node: &Node,
        bound: cairn_compute::plan::Bound,
        excluded: BTreeSet<cairn_protocol::id::NodeId>,
        in_force: Option<&Plan>,
    ) -> Result<Plan, Refusal> {
        let is_first = in_force.is_none() && excluded.is_empty();
        if let Some(plan) = self.first_plan.get().filter(|_| is_first) {
            return Ok(plan.clone());
        }
        let made = plan::make(node, self.revision, &self.wish, bound, excluded, in_force)
            .map_err(|error| plan::refusal(&self.repo, &error))?;
        if is_first {
            let _ = self.first_plan.set(made.clone());
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_a_power_of_two_that_holds_prompt_and_output_within_the_model() {
        assert_eq!(context(3, 5, 8192).unwrap(), 512);
        assert_eq!(context(500, 100, 8192).unwrap(), 1024);
        assert_eq!(context(3, 5, 256).unwrap(), 256);
        assert_eq!(context(5000, 5000, 8192).unwrap(), 8192);
        assert_eq!(context(512, 5, 512).unwrap_err().reason, Reason::Limit);
    }
}
