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

use std::sync::{Arc, OnceLock};

use cairn_compute::{
    KvFormat,
    choose::{Chooser, Demands},
    plan::Plan,
    quantise::{Target, as_loaded},
    session::{self, Session},
};
use cairn_protocol::{
    api,
    id::{RevisionId, SessionId},
    manifest::{Manifest, Model},
    peer_pb,
    refusal::{Reason, Refusal},
    resume::ResumeToken,
};
use tokio::sync::{mpsc, oneshot};

pub(crate) use prompt::{TextCache, texts};

use super::{adapters, advisories, holders, names, plan};
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
    generate_for(node, request, events, 0).await
}

/// The same for one of this node's clients, each of which has a number: they share the node fairly.
pub async fn generate_for(
    node: Arc<Node>,
    request: api::GenerateRequest,
    events: mpsc::Sender<api::GenerateEvent>,
    client: u64,
) -> Result<(), Refusal> {
    let counted = node.clone();
    let _under_way = counted.counters.session();
    let choices = asks::choices(&request)?;
    let job = Job { client, ..prepare(&node, request).await? };
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
    /// Which of this node's clients asks.
    pub client: u64,
    pub demands: Demands,
    pub stops: Vec<String>,
    pub text: Arc<prompt::Texts>,
    pub machine: session::Config,
    pub resume_token: String,
    /// Who holds the revision or some of it, this node too if it does.
    pub sources: Vec<Source>,
    /// What is computed on top of the model.
    pub adapter: Option<adapters::Chosen>,
    /// What stages hold matrices of more bits as.
    pub quantise: Option<Target>,
    /// What stages hold keys and values as.
    pub kv: KvFormat,
    /// The first plan of the first answer, which the others take over.
    pub first_plan: Arc<OnceLock<Plan>>,
}

async fn prepare(node: &Arc<Node>, request: api::GenerateRequest) -> Result<Job, Refusal> {
    let privacy = stages::parse_privacy(&request.privacy)?;
    let seed = request.seed.unwrap_or_else(rand::random);
    let stops = asks::stops(&request)?;
    // What is wrong with numbers is said before anything is fetched.
    asks::sampling(&request, seed)?;
    let (quantise, kv) = (plan::parse_quantise(&request.quantise)?, plan::parse_kv(&request.kv)?);
    let reference = names::parse(&request.repo)?;
    let resolved = names::resolve_anywhere(node, &reference).await?;
    let manifest = holders::manifest_of(node, &resolved).await?;
    advisories::permit(node, &resolved, &manifest, &[]).await?;
    let model = plan::served_model(&request.repo, &manifest)?.clone();
    let sources = holders::sources(node, resolved.revision).await;
    let adapter = adapters::choose(node, &request.adapter, &model).await?;
    names::remember(node, &reference, &resolved).await;
    if let Some(adapter) = &adapter {
        adapter.remember(node).await;
    }
    let text = prompt::texts(node, resolved.revision, &manifest, &sources).await?;
    let ids = prompt::ids(&text, &request, model.vocabulary).await?;
    let demands = asks::demands(&request, seed, ids.len(), model.vocabulary)?;
    check_grammar(&text, &model, &demands, &ids).await?;
    let tokens_max = if request.max_tokens == 0 { plan::ANSWER_TOKENS as u32 } else { request.max_tokens };
    let context = context(ids.len() as u64, u64::from(tokens_max), u64::from(model.context_max))?;
    let cost = plan::cost(&model, &as_loaded(&manifest.tensors, quantise), kv)?;
    let machine = session::Config {
        tokens_max: u64::from(tokens_max),
        context,
        eos: text.eos(&model),
        vocabulary: model.vocabulary,
        chunk_tokens: CHUNK_TOKENS,
        stages: (request.stages > 0).then_some(request.stages as usize),
        deadline_ms: GENERATION_MS_MAX,
        coordinator: node.identity.node_id(),
        wait_ms: node.config.wait_s.saturating_mul(1000),
        prompt: ids,
    };
    let mut wish = plan::Wish {
        quantise,
        cost,
        context,
        prompt_tokens: machine.prompt.len() as u64,
        answer_tokens: u64::from(tokens_max),
        privacy,
    };
    if let Some(adapter) = &adapter {
        adapter.weigh(&mut wish);
    }
    let prompt = machine.prompt.clone();
    let token = ResumeToken {
        revision: resolved.revision,
        seed,
        prompt,
        adapter: adapter.as_ref().map(|adapter| adapter.revision),
    };
    Ok(Job {
        resume_token: token.to_string(),
        wish,
        adapter,
        quantise,
        kv,
        path: resolved.path,
        repo: request.repo,
        revision: resolved.revision,
        session: SessionId::from(rand::random::<[u8; 16]>()),
        manifest: Arc::new(manifest),
        choice: 0,
        client: 0,
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
    /// The adapter's revision, if there is one.
    fn adapter_revision(&self) -> Option<RevisionId> {
        self.adapter.as_ref().map(|adapter| adapter.revision)
    }

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
    fn plan(&self, node: &Node, asked: plan::Asked, in_force: Option<&Plan>) -> Result<Plan, Refusal> {
        let is_first = in_force.is_none() && asked.excluded.is_empty() && !asked.may_wait;
        if let Some(plan) = self.first_plan.get().filter(|_| is_first) {
            return Ok(plan.clone());
        }
        let made = plan::make(node, self.revision, &self.wish, asked, in_force)
            .map_err(|error| plan::refusal(&self.repo, &error))?;
        if is_first {
            let _ = self.first_plan.set(made.clone());
        }
        Ok(made)
    }
}

/// Takes a stage that is ready, and not as it was asked to be, for one that refused.
fn not_as_asked(job: &Job, ready: &peer_pb::StageReady) -> Option<peer_pb::Refused> {
    without_adapter(job.adapter_revision(), ready)
        .or_else(|| unquantised(job.quantise, ready))
        .or_else(|| held_otherwise(job.kv, ready))
}

/// A stage of a node that does not know quantising while loading would hold the weights as they are stored.
fn unquantised(wanted: Option<Target>, ready: &peer_pb::StageReady) -> Option<peer_pb::Refused> {
    (ready.quantised != wanted.map_or("", Target::name)).then(|| peer_pb::Refused {
        reason: Reason::Unsupported.code().to_owned(),
        why: "it is ready with weights of another type than was asked for: its version does not quantise".to_owned(),
    })
}

/// A stage of a node that knows halves only would hold keys and values so.
fn held_otherwise(wanted: KvFormat, ready: &peer_pb::StageReady) -> Option<peer_pb::Refused> {
    (KvFormat::parse_wish(&ready.kv) != Ok(wanted)).then(|| peer_pb::Refused {
        reason: Reason::Unsupported.code().to_owned(),
        why: format!("it does not hold keys and values as {wanted}: its version does not know how"),
    })
}

/// Takes a stage that is ready without the session's adapter for one that refused: a node of before passes over what it does
/// not know of an opening, and would compute the model alone.
fn without_adapter(wanted: Option<RevisionId>, ready: &peer_pb::StageReady) -> Option<peer_pb::Refused> {
    let wanted = wanted.map_or_else(Vec::new, |revision| revision.to_vec());
    (ready.adapter != wanted).then(|| peer_pb::Refused {
        reason: Reason::Unsupported.code().to_owned(),
        why: "it is ready without the adapter that was asked for: its version does not know adapters".to_owned(),
    })
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
    fn a_stage_that_passed_over_the_adapter_is_taken_for_one_that_refused() {
        let wanted = Some(RevisionId::from([7; 32]));
        let ready = |adapter: &[u8]| peer_pb::StageReady { adapter: adapter.to_vec(), ..Default::default() };
        assert_eq!(without_adapter(wanted, &ready(&[7; 32])), None);
        assert_eq!(without_adapter(None, &ready(&[])), None);
        for (wanted, ready) in [(wanted, ready(&[])), (wanted, ready(&[8; 32])), (None, ready(&[7; 32]))] {
            let refused = without_adapter(wanted, &ready).unwrap();
            assert_eq!(refused.reason, Reason::Unsupported.code());
        }
    }

    #[test]
    fn a_stage_that_holds_keys_and_values_otherwise_is_taken_for_one_that_refused() {
        let ready = |kv: &str| peer_pb::StageReady { kv: kv.to_owned(), ..Default::default() };
        for (wanted, said, fits) in [
            (KvFormat::F16, "", true),
            (KvFormat::Int8, "int8", true),
            (KvFormat::Int8, "", false),
            (KvFormat::F16, "int8", false),
            (KvFormat::F16, "int4", false),
        ] {
            assert_eq!(held_otherwise(wanted, &ready(said)).is_none(), fits, "{wanted} {said}");
        }
    }

    #[test]
    fn a_stage_that_holds_another_type_is_taken_for_one_that_refused() {
        let ready = |quantised: &str| peer_pb::StageReady { quantised: quantised.to_owned(), ..Default::default() };
        let wanted: Option<Target> = Some("q8_0".parse().unwrap());
        assert_eq!(unquantised(wanted, &ready("q8_0")), None);
        assert_eq!(unquantised(None, &ready("")), None);
        assert!(unquantised(wanted, &ready("")).is_some() && unquantised(None, &ready("q8_0")).is_some());
    }
}
