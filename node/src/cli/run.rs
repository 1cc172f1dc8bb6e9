//! `cairn run`: a generation as it comes, or a chat. What is shown of it is [`super::telling`]'s.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use cairn_client::Client;
use cairn_client::api::{self, generate_request::Format};
use cairn_compute::{KvFormat, quantise::Target};
use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::telling::Telling;
use super::{Global, Outcome, output};

/// A prompt from a pipe is a text that a person wrote, and must fit one call.
const PROMPT_BYTES_MAX: u64 = 512 << 10;
/// More than the node takes of a grammar, so that it says what is wrong.
const GRAMMAR_BYTES_MAX: u64 = 1 << 20;

#[derive(Args, Clone)]
#[command(
    after_help = "Examples:\n  cairn run acme/tiny \"Once upon a time\"\n  cairn run acme/tiny                       a chat, on a terminal\n  cairn run acme/tiny --raw --temperature 0 --max-tokens 64 --stages 3 --json \"Once\"\n  cairn run acme/tiny --adapter adapters/acme/pirate@v1 \"Once\"\n  cairn run acme/full --quantise q8_0 \"Once\"  in half the memory of F16\n  cairn run acme/tiny --kv int8 \"Once\"          half the memory for keys and values\n  cat question.txt | cairn run acme/tiny\n  cairn run acme/tiny --json-schema person.json \"Who was Ada Lovelace?\"\n  cairn run acme/tiny --regex '(yes|no)' \"Is it raining?\"\n  cairn run acme/tiny -n 3 --seed 7 --logprobs 5 --json \"Once\""
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
    /// Hold keys and values as f16, or as int8 in half the memory: for long contexts and many users
    #[arg(long, value_name = "FORMAT", default_value_t = KvFormat::F16)]
    kv: KvFormat,
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
    /// How many answers, at most 8
    #[arg(short = 'n', long = "choices", value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    choices: u32,
    /// The answer is JSON that this JSON Schema accepts; - reads it from standard input
    #[arg(long, value_name = "FILE", group = "format")]
    json_schema: Option<PathBuf>,
    /// The answer follows this Lark grammar, from its rule start; - reads it from standard input
    #[arg(long, value_name = "FILE", group = "format")]
    grammar: Option<PathBuf>,
    /// The answer matches this regular expression as a whole
    #[arg(long, value_name = "PATTERN", group = "format")]
    regex: Option<String>,
    /// The answer is JSON, any
    #[arg(long, group = "format")]
    any_json: bool,
    /// Tell how likely each token was, and so many of the likeliest (with --json)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    logprobs: Option<u32>,
    /// Only tokens at least so likely as this part of the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = not_negative)]
    min_p: Option<f64>,
    /// Makes tokens less likely for each time that they were generated
    #[arg(long, value_name = "X", default_value_t = 0.0, hide_default_value = true, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// Makes tokens less likely that were generated
    #[arg(long, value_name = "X", default_value_t = 0.0, hide_default_value = true, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// Makes a token likelier or less likely, -100 to 100; may be given several times
    #[arg(long, value_name = "ID=BIAS", value_parser = logit_bias)]
    logit_bias: Vec<api::LogitBias>,
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

fn logit_bias(text: &str) -> Result<api::LogitBias, String> {
    let (id, bias) = text.split_once('=').unwrap_or((text, ""));
    let parsed = id.parse().ok().zip(bias.parse().ok());
    let (id, bias) = parsed.ok_or_else(|| "it must be an id and a number, such as 42=-100".to_string())?;
    Ok(api::LogitBias { id, bias })
}

impl RunArgs {
    /// What the answer follows, if anything.
    fn format(&self) -> Result<Option<Format>, Refusal> {
        Ok(match (&self.json_schema, &self.grammar, &self.regex, self.any_json) {
            (Some(file), ..) => Some(Format::JsonSchema(read(file)?)),
            (_, Some(file), ..) => Some(Format::Grammar(read(file)?)),
            (_, _, Some(pattern), _) => Some(Format::Regex(pattern.clone())),
            (.., true) => Some(Format::Json(true)),
            _ => None,
        })
    }

    /// Whether standard input holds the grammar, and so no prompt.
    fn reads_grammar(&self) -> bool {
        [&self.json_schema, &self.grammar].into_iter().flatten().any(|file| file.as_os_str() == "-")
    }

    fn request(&self, format: Option<Format>) -> api::GenerateRequest {
        api::GenerateRequest {
            repo: self.repo.clone(),
            adapter: self.adapter.clone().unwrap_or_default(),
            quantise: self.quantise.map(|target| target.name().to_owned()).unwrap_or_default(),
            kv: self.kv.name().to_owned(),
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
            n: self.choices,
            format,
            logprobs: self.logprobs,
            min_p: self.min_p.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
            ..api::GenerateRequest::default()
        }
    }
}

pub(super) async fn run(global: &Global, args: RunArgs) -> Outcome {
    let format = args.format()?;
    let prompt = match &args.prompt {
        Some(prompt) => Some(prompt.clone()),
        None if args.reads_grammar() => return Err(no_prompt()),
        None if std::io::stdin().is_terminal() => None,
        None => Some(piped_prompt()?),
    };
    let client = global.connect().await?;
    match prompt {
        Some(prompt) => {
            let request = api::GenerateRequest { prompt, ..args.request(format) };
            let told = turn(global, &client, request).await?;
            Ok(told.finish != "cancelled")
        }
        None => chat(global, &client, &args, format).await,
    }
}

fn no_prompt() -> Refusal {
    let why = "standard input holds the grammar, so it has to be an argument";
    Refusal::new(Reason::BadInput, "the prompt", why).try_this("cairn run REPO --json-schema - PROMPT")
}

/// The text of a file, or of standard input.
fn read(file: &std::path::Path) -> Result<String, Refusal> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().take(GRAMMAR_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(GRAMMAR_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| {
        let reason = if error.kind() == std::io::ErrorKind::NotFound { Reason::NotFound } else { Reason::BadInput };
        Refusal::new(reason, file.display().to_string(), error.to_string()).try_this("a file that holds the grammar")
    })?;
    Ok(text)
}

async fn turn(global: &Global, client: &Client, request: api::GenerateRequest) -> Result<api::Done, Refusal> {
    let telling = Telling::new(global, request.n);
    telling.follow(client.generate(request).await?).await
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
async fn chat(global: &Global, client: &Client, args: &RunArgs, format: Option<Format>) -> Outcome {
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
        let request = api::GenerateRequest { messages: messages.clone(), ..args.request(format.clone()) };
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
