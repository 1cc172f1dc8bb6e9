//! `cairn run`: a generation as it comes, or a chat.

use std::io::{IsTerminal, Read, Write};

use cairn_client::api::{self, generate_event::Event};
use cairn_client::{Client, Events};
use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::progress::Bar;
use super::publish::unfinished;
use super::{Global, Outcome, output, plan};

/// A prompt from a pipe is a text that a person wrote, and must fit one call.
const PROMPT_BYTES_MAX: u64 = 512 << 10;

#[derive(Args, Clone)]
#[command(
    after_help = "Examples:\n  cairn run acme/tiny \"Once upon a time\"\n  cairn run acme/tiny                       a chat, on a terminal\n  cairn run acme/tiny --raw --temperature 0 --max-tokens 64 --stages 3 --json \"Once\"\n  cat question.txt | cairn run acme/tiny"
)]
pub(super) struct RunArgs {
    /// REPO[@REF]
    repo: String,
    /// What to go on from; read from a pipe if there is one
    prompt: Option<String>,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: u32,
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f64,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Choose among this many likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Makes tokens less likely that were there already
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Draws the same again [default: drawn and reported]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Split over exactly this many nodes [default: the planner chooses]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    stages: u32,
    /// Stop at this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// No chat template: special tokens in the prompt are parsed
    #[arg(long)]
    raw: bool,
    /// Who may see activations: local, trusted, realm or open
    #[arg(long, default_value = "trusted")]
    privacy: String,
}

impl RunArgs {
    fn request(&self) -> api::GenerateRequest {
        api::GenerateRequest {
            repo: self.repo.clone(),
            max_tokens: self.max_tokens,
            temperature: Some(self.temperature),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(0.0),
            seed: self.seed,
            stop: self.stop.clone(),
            stages: self.stages,
            raw: self.raw,
            privacy: self.privacy.clone(),
            repetition_penalty: self.repetition_penalty.unwrap_or(0.0),
            ..api::GenerateRequest::default()
        }
    }
}

pub(super) async fn run(global: &Global, args: RunArgs) -> Outcome {
    let prompt = match &args.prompt {
        Some(prompt) => Some(prompt.clone()),
        None if std::io::stdin().is_terminal() => None,
        None => Some(piped_prompt()?),
    };
    let client = global.connect().await?;
    match prompt {
        Some(prompt) => {
            let request = api::GenerateRequest { prompt, ..args.request() };
            let told = turn(global, &client, request).await?;
            Ok(told.finish != "cancelled")
        }
        None => chat(global, &client, &args).await,
    }
}

async fn turn(global: &Global, client: &Client, request: api::GenerateRequest) -> Result<api::Done, Refusal> {
    Telling::new(global).follow(client.generate(request).await?).await
}

fn piped_prompt() -> Result<String, Refusal> {
    let mut prompt = String::new();
    let read = std::io::stdin().take(PROMPT_BYTES_MAX + 1).read_to_string(&mut prompt);
    read.map_err(|error| output::failed("the prompt on standard input", &error))?;
    if prompt.len() as u64 > PROMPT_BYTES_MAX {
        let why = format!("it is longer than {PROMPT_BYTES_MAX} bytes");
        return Err(Refusal::new(Reason::Limit, "the prompt", why).try_this("a shorter prompt"));
    }
    Ok(prompt)
}

/// Turns until the person has had enough: an empty line is ignored, the end of input ends it.
async fn chat(global: &Global, client: &Client, args: &RunArgs) -> Outcome {
    let output = global.output();
    output.note("a chat: Ctrl-C cuts an answer short, Ctrl-D ends it");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut messages = Vec::new();
    loop {
        let _ = write!(std::io::stderr(), "> ");
        let line = tokio::select! {
            line = lines.next_line() => line.map_err(|error| output::failed("standard input", &error))?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(line) = line else { return Ok(true) };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(message("user", line));
        let request = api::GenerateRequest { messages: messages.clone(), ..args.request() };
        match turn(global, client, request).await {
            Ok(told) => messages.push(message("assistant", told.text)),
            // The person may go on, perhaps with a shorter question.
            Err(refusal) if refusal.reason != Reason::Unavailable => {
                output.refusal(&refusal);
                messages.pop();
            }
            Err(refusal) => return Err(refusal),
        }
    }
}

fn message(role: &str, content: String) -> api::ChatMessage {
    api::ChatMessage { role: role.to_string(), content }
}

/// One generation on its way to the screen.
struct Telling<'a> {
    global: &'a Global,
    bar: Bar,
    tokens: Vec<u32>,
    text: String,
    seed: u64,
}

impl<'a> Telling<'a> {
    fn new(global: &'a Global) -> Telling<'a> {
        Telling { global, bar: Bar::new(global.output()), tokens: Vec::new(), text: String::new(), seed: 0 }
    }

    /// Shows events until the last. Ctrl-C drops the call, which cancels the work, and what came so far is the result.
    async fn follow(mut self, mut events: Events<api::GenerateEvent>) -> Result<api::Done, Refusal> {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = tokio::signal::ctrl_c() => return Ok(self.cancelled()),
            };
            let event = match event {
                Ok(event) => event.ok_or_else(|| unfinished("run"))?.event,
                Err(refusal) => {
                    self.end_line();
                    return Err(refusal);
                }
            };
            match event {
                Some(Event::Done(done)) => {
                    self.end_line();
                    self.show_done(&done);
                    return Ok(done);
                }
                Some(event) => self.show(event),
                None => {}
            }
        }
    }

    fn show(&mut self, event: Event) {
        let output = self.global.output();
        match event {
            Event::Progress(progress) => self.bar.show(&progress),
            Event::Started(started) => {
                self.bar.clear();
                self.seed = started.seed;
                output.event(&json!({
                    "event": "started", "session": started.session, "revision": started.revision, "seed": started.seed,
                    "prompt_tokens": started.prompt_tokens, "resume_token": started.resume_token,
                    "plan": started.plan.as_ref().map(plan::plan_value),
                }));
            }
            Event::Token(token) => {
                self.bar.clear();
                self.tokens.push(token.id);
                self.text.push_str(&token.text);
                output.event(&json!({"event": "token", "id": token.id, "text": token.text, "index": token.index}));
                output.piece(&token.text);
            }
            Event::Recovery(lost) => {
                output.event(&json!({
                    "event": "recovery", "node": lost.node, "why": lost.why, "pause_ms": lost.pause_ms,
                    "noticed_ms": lost.noticed_ms, "replanned_ms": lost.replanned_ms, "rebuilt_ms": lost.rebuilt_ms,
                    "stages": lost.stages.iter().map(stage).collect::<Vec<_>>(),
                }));
                tracing::info!(
                    node = lost.node,
                    why = lost.why,
                    pause_ms = lost.pause_ms,
                    "a stage was lost and replaced"
                );
            }
            Event::Done(_) => {}
        }
    }

    fn cancelled(self) -> api::Done {
        self.end_line();
        let done = api::Done {
            tokens: self.tokens.clone(),
            text: self.text.clone(),
            finish: "cancelled".to_string(),
            seed: self.seed,
            ..api::Done::default()
        };
        self.show_done(&done);
        done
    }

    fn end_line(&self) {
        self.bar.clear();
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            self.global.output().piece("\n");
        }
    }

    fn show_done(&self, done: &api::Done) {
        self.global.output().event(&json!({
            "event": "done", "tokens": done.tokens, "text": done.text, "finish": done.finish, "seed": done.seed,
            "prompt_tokens": done.prompt_tokens, "ttft_ms": done.ttft_ms, "tokens_per_s": done.tokens_per_s,
            "stages": done.stages.iter().map(stage).collect::<Vec<_>>(),
            "replans": done.replans.iter().map(|replan| {
                json!({"stages": replan.stages.iter().map(stage).collect::<Vec<_>>()})
            }).collect::<Vec<_>>(),
            "recoveries": done.recoveries, "pauses_ms": done.pauses_ms, "lap_ms": done.lap_ms,
        }));
        if std::io::stderr().is_terminal() {
            let lost = if done.recoveries > 0 {
                format!(", {} stages lost and replaced", done.recoveries)
            } else {
                String::new()
            };
            self.global.output().note(&format!(
                "[{} tokens, {:.1}/s, first after {:.0} ms, {} stages, seed {}{lost}]",
                done.tokens.len(),
                done.tokens_per_s,
                done.ttft_ms,
                done.stages.len(),
                done.seed
            ));
        }
    }
}

fn stage(stage: &api::StageReport) -> Value {
    json!({
        "node": stage.node, "layers": [stage.first_layer, stage.end_layer], "bytes_needed": stage.bytes_needed,
        "bytes_local": stage.bytes_local, "bytes_fetched": stage.bytes_fetched, "bytes_overhead": stage.bytes_overhead,
        "step_ms": stage.step_ms,
    })
}
