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

mod drive;
mod openings;
mod prompt;
mod tellings;

use std::{collections::BTreeSet, sync::Arc};

use cairn_compute::{
    sample::Sampling,
    session::{self, Session},
};
use cairn_protocol::{
    api,
    id::{RevisionId, SessionId},
    manifest::Manifest,
    refusal::{Reason, Refusal},
    resume::ResumeToken,
};
use tokio::sync::mpsc;

pub(crate) use prompt::TextCache;

use super::{holders, names, plan};
use crate::{data::fetch::Source, shell::Node, stages};

/// Prompt tokens in one frame: long enough for the engine's matrix kernels, short enough that stages overlap.
const CHUNK_TOKENS: usize = 128;

/// Smallest context a stage is opened with; contexts are powers of two, so that warm stages fit the next session.
const CONTEXT_MIN: u64 = 512;

/// Longest generation where the caller set no deadline.
const GENERATION_MS_MAX: u64 = 24 * 3600 * 1000;

/// Answers `Generate`: `Started` first, `Done` last.
pub async fn generate(
    node: Arc<Node>,
    request: api::GenerateRequest,
    events: mpsc::Sender<api::GenerateEvent>,
) -> Result<(), Refusal> {
    let counted = node.clone();
    let _under_way = counted.counters.session();
    let job = prepare(&node, request).await?;
    drive::drive(node, job, events).await
}

/// Everything a generation needs before its first plan.
pub(crate) struct Job {
    pub path: String,
    pub repo: String,
    pub revision: RevisionId,
    pub manifest: Manifest,
    pub session: SessionId,
    pub wish: plan::Wish,
    pub sampling: Sampling,
    pub stops: Vec<String>,
    pub text: Arc<prompt::Texts>,
    pub machine: session::Config,
    pub resume_token: String,
    /// Who holds the revision or some of it, this node too if it does.
    pub sources: Vec<Source>,
}

async fn prepare(node: &Arc<Node>, request: api::GenerateRequest) -> Result<Job, Refusal> {
    let privacy = stages::parse_privacy(&request.privacy)?;
    let seed = request.seed.unwrap_or_else(rand::random);
    let sampling = sampling(&request, seed)?;
    let reference = names::parse(&request.repo)?;
    let resolved = names::resolve_anywhere(node, &reference).await?;
    let manifest = holders::manifest_of(node, &resolved).await?;
    let model = plan::served_model(&request.repo, &manifest)?.clone();
    let sources = sources(node, resolved.revision).await;
    names::remember(node, &reference, &resolved).await;
    let text = prompt::texts(node, resolved.revision, &manifest, &sources).await?;
    let ids = prompt::ids(&text, &request, model.vocabulary).await?;
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
        manifest,
        sampling,
        stops: request.stop,
        sources,
        text,
        machine,
    })
}

/// Holders of the revision: this node first when it has all of it, last when it has some.
pub(crate) async fn sources(node: &Node, revision: RevisionId) -> Vec<Source> {
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

fn sampling(request: &api::GenerateRequest, seed: u64) -> Result<Sampling, Refusal> {
    let bad = |what: &str, why: &str, attempt: &str| Err(Refusal::new(Reason::BadInput, what, why).try_this(attempt));
    let temperature = request.temperature.unwrap_or(0.7);
    if !temperature.is_finite() || temperature < 0.0 {
        return bad("temperature", "it must be 0 or more", "0 for greedy, 0.7 for lively");
    }
    if !request.top_p.is_finite() || !(0.0..=1.0).contains(&request.top_p) {
        return bad("top_p", "it must be between 0 and 1", "0.9");
    }
    if !request.repetition_penalty.is_finite() || request.repetition_penalty < 0.0 {
        return bad("repetition_penalty", "it must be 0 (none) or more", "1.1");
    }
    let top_p = if request.top_p == 0.0 { 1.0 } else { request.top_p };
    let repetition_penalty = if request.repetition_penalty == 0.0 { 1.0 } else { request.repetition_penalty };
    Ok(Sampling {
        temperature: temperature as f32,
        top_k: request.top_k,
        top_p: top_p as f32,
        seed,
        repetition_penalty: repetition_penalty as f32,
    })
}

impl Job {
    /// The machine of this generation.
    fn session(&self) -> Session {
        Session::new(self.machine.clone())
    }

    /// Makes a plan as the machine asks for it.
    fn plan(
        &self,
        node: &Node,
        bound: cairn_compute::plan::Bound,
        excluded: BTreeSet<cairn_protocol::id::NodeId>,
        in_force: Option<&cairn_compute::plan::Plan>,
    ) -> Result<cairn_compute::plan::Plan, Refusal> {
        plan::make(node, self.revision, &self.wish, bound, excluded, in_force)
            .map_err(|error| plan::refusal(&self.repo, &error))
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

    #[test]
    fn sampling_that_means_nothing_is_refused() {
        let request = |temperature, top_p| api::GenerateRequest { temperature, top_p, ..Default::default() };
        assert!(sampling(&request(Some(f64::NAN), 0.0), 1).is_err());
        assert!(sampling(&request(Some(-1.0), 0.0), 1).is_err());
        assert!(sampling(&request(None, 1.5), 1).is_err());
        let plain = sampling(&request(None, 0.0), 1).unwrap();
        assert_eq!((plain.temperature, plain.top_p, plain.repetition_penalty), (0.7, 1.0, 1.0));
    }
}
