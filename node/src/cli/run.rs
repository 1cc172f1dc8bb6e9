//! `cairn run`: a generation as it comes, or a chat.

use std::io::{IsTerminal, Read, Write};
use std::time::Instant;

use cairn_client::api::{self, generate_event::Event};
use cairn_client::{Client, Events};
use cairn_compute::quantise::Target;
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
    after_help = "Examples:\n  cairn run acme/tiny \"Once upon a time\"\n  cairn run acme/tiny                       a chat, on a terminal\n  cairn run acme/tiny --raw --temperature 0 --max-tokens 64 --stages 3 --json \"Once\"\n  cairn run acme/tiny --adapter adapters/acme/pirate@v1 \"Once\"\n  cairn run acme/full --quantise q8_0 \"Once\"  in half the memory of F16\n  cat question.txt | cairn run acme/tiny"
)]
pub(super) struct RunArgs {
    /// REPO[@REF]
    repo: String,
    /// Add this adapter to the model: adapters/PUBLISHER/NAME[@REF]
    #[arg(long, value_name = "REPO")]
    adapter: Option<String>,
    /// Hold matrices of more bits as this type while they are loaded: q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0
    #[arg(long, value_name = "TYPE")]
    quantise: Option<Target>,
    /// What to go on from; read from a pipe if there is one
    prompt: Option<String>,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.7, allow_negative_numbers = true, value_parser = not_negative)]
    temperature: f64,
    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = not_negative)]
    top_p: Option<f64>,
    /// Choose among this many likeliest tokens
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,
    /// Makes tokens less likely that were there already
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = not_negative)]
    repetition_penalty: Option<f64>,
    /// Draws the same again [default: drawn and reported]
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = seed)]
    seed: Option<u64>,
    /// Split over exactly this many nodes [default: the planner chooses]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, allow_negative_numbers = true)]
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

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "it must be a number, 0 or more".to_string())
}

impl RunArgs {
    fn request(&self) -> api::GenerateRequest {
        api::GenerateRequest {
            repo: self.repo.clone(),
            adapter: self.adapter.clone().unwrap_or_default(),
            quantise: self.quantise.map(|target| target.name().to_owned()).unwrap_or_default(),
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
        if !global.json && !global.quiet {
            let _ = write!(std::io::stderr(), "> ");
        }
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

/// One generation on its way to the screen, and what is known of it so far.
struct Telling<'a> {
    global: &'a Global,
    bar: Bar,
    asked: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    so_far: api::Done,
}

impl<'a> Telling<'a> {
    fn new(global: &'a Global) -> Telling<'a> {
        let so_far = api::Done { finish: "cancelled".to_string(), ..api::Done::default() };
        let bar = Bar::new(global.output());
        Telling { global, bar, asked: Instant::now(), first: None, last: None, so_far }
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
                self.so_far.seed = started.seed;
                self.so_far.prompt_tokens = started.prompt_tokens;
                self.so_far.stages = started.plan.iter().flat_map(|plan| &plan.stages).map(planned).collect();
                output.event(&json!({
                    "event": "started", "session": started.session, "revision": started.revision, "seed": started.seed,
                    "prompt_tokens": started.prompt_tokens, "resume_token": started.resume_token, "adapter": started.adapter,
                    "plan": started.plan.as_ref().map(plan::plan_value),
                }));
            }
            Event::Token(token) => {
                self.bar.clear();
                self.last = Some(Instant::now());
                self.first = self.first.or(self.last);
                self.so_far.tokens.push(token.id);
                self.so_far.text.push_str(&token.text);
                output.event(&json!({"event": "token", "id": token.id, "text": token.text, "index": token.index}));
                output.piece(&token.text);
            }
            Event::Recovery(lost) => {
                output.event(&json!({
                    "event": "recovery", "node": lost.node, "why": lost.why, "pause_ms": lost.pause_ms,
                    "noticed_ms": lost.noticed_ms, "replanned_ms": lost.replanned_ms, "rebuilt_ms": lost.rebuilt_ms,
                    "stages": lost.stages.iter().map(stage).collect::<Vec<_>>(),
                }));
                self.tell_of(&lost);
                self.so_far.recoveries += 1;
                self.so_far.pauses_ms.push(lost.pause_ms);
                let stages = std::mem::replace(&mut self.so_far.stages, lost.stages);
                self.so_far.replans.push(api::Replan { stages });
            }
            Event::Done(_) => {}
        }
    }

    /// Says at once, to a person, why the text paused.
    fn tell_of(&self, lost: &api::Recovery) {
        self.bar.clear();
        let is_mid_line = !self.so_far.text.is_empty() && !self.so_far.text.ends_with('\n');
        let before = if is_mid_line { "\n" } else { "" };
        self.global.output().note(&format!(
            "{before}[node {:.10} was lost ({}); its layers went on elsewhere after {:.0} ms]",
            lost.node, lost.why, lost.pause_ms
        ));
    }

    /// What is known when the person has had enough; times are measured here.
    fn cancelled(self) -> api::Done {
        self.end_line();
        let mut done = self.so_far.clone();
        if let (Some(first), Some(last)) = (self.first, self.last) {
            done.ttft_ms = first.duration_since(self.asked).as_secs_f64() * 1e3;
            let seconds = last.duration_since(first).as_secs_f64();
            done.tokens_per_s = if seconds > 0.0 { (done.tokens.len() - 1) as f64 / seconds } else { 0.0 };
        }
        self.show_done(&done);
        done
    }

    fn end_line(&self) {
        self.bar.clear();
        if !self.so_far.text.is_empty() && !self.so_far.text.ends_with('\n') {
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

/// A stage of which only the plan is known.
fn planned(stage: &api::StagePlan) -> api::StageReport {
    api::StageReport {
        node: stage.node.clone(),
        first_layer: stage.first_layer,
        end_layer: stage.end_layer,
        bytes_needed: stage.bytes,
        ..api::StageReport::default()
    }
}

fn stage(stage: &api::StageReport) -> Value {
    json!({
        "node": stage.node, "layers": [stage.first_layer, stage.end_layer], "bytes_needed": stage.bytes_needed,
        "bytes_local": stage.bytes_local, "bytes_fetched": stage.bytes_fetched, "bytes_overhead": stage.bytes_overhead,
        "step_ms": stage.step_ms,
    })
}
