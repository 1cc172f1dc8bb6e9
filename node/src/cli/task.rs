//! `cairn task`: what a model does that is whole on one node.

use std::{
    io::{BufRead, IsTerminal, Read, Write},
    path::PathBuf,
};

use cairn_client::{
    Client,
    api::{self, embed_event::Event},
};
use cairn_protocol::{
    limits::{TASK_BYTES_MAX, TASK_TEXTS_MAX},
    refusal::{Reason, Refusal},
};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{Global, Outcome, output, progress::Bar, publish::unfinished};

/// Texts of one command: their vectors are held until the file is written.
const INPUT_BYTES_MAX: u64 = 64 << 20;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn task embed acme/minilm \"a sentence\" \"another\"\n  cairn task embed acme/minilm --file lines.txt --out vectors.npy\n  cairn task show acme/minilm"
)]
pub(super) struct TaskArgs {
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Subcommand)]
enum TaskCommand {
    /// Make vectors of texts
    Embed(EmbedArgs),
    /// Show what a model is for, and which nodes would do it
    Show(ShowArgs),
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn task embed acme/minilm \"a sentence\" \"another\" --json\n  cairn task embed acme/minilm --file lines.txt --out vectors.npy\n  cat lines.txt | cairn task embed acme/e5 --prompt query"
)]
struct EmbedArgs {
    /// REPO[@REF]
    repo: String,
    /// Texts; without any, each line of --file or of a pipe is one
    texts: Vec<String>,
    /// Each line of this file is a text
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// Write the vectors as a NumPy array (float32, one row a text) instead of printing them
    #[arg(long, value_name = "FILE.npy")]
    out: Option<PathBuf>,
    /// Put this prompt of the model before each text [default: the model's]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    prompt: String,
    /// Who may see the texts: local, trusted, realm or open
    #[arg(long, default_value = "trusted")]
    privacy: String,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn task show acme/minilm\n  cairn task show acme/minilm --privacy open --json")]
struct ShowArgs {
    /// REPO[@REF]
    repo: String,
    /// Who may see what is asked: local, trusted, realm or open
    #[arg(long, default_value = "trusted")]
    privacy: String,
}

pub(super) async fn run(global: &Global, args: TaskArgs) -> Outcome {
    match args.command {
        TaskCommand::Embed(args) => embed(global, args).await,
        TaskCommand::Show(args) => show(global, args).await,
    }
}

async fn embed(global: &Global, args: EmbedArgs) -> Outcome {
    let texts = texts(&args)?;
    let client = global.connect().await?;
    let mut run = Run::new(global, args.out.is_some());
    for part in parts(&texts) {
        let (repo, privacy, prompt) = (args.repo.clone(), args.privacy.clone(), args.prompt.clone());
        run.part(&client, api::EmbedRequest { repo, texts: part.to_vec(), privacy, prompt }).await?;
    }
    if let Some(path) = &args.out {
        let written = std::fs::File::create(path).and_then(|mut file| {
            write_npy(&mut file, run.all.width as usize, &run.values)?;
            file.sync_all()
        });
        written.map_err(|error| output::failed(&path.display().to_string(), &error))?;
    }
    run.show(args.out.as_ref());
    Ok(true)
}

/// The texts as they were given.
fn texts(args: &EmbedArgs) -> Result<Vec<String>, Refusal> {
    let texts = match (&args.file, args.texts.is_empty()) {
        (_, false) => args.texts.clone(),
        (Some(path), true) => {
            let name = path.display().to_string();
            let file = std::fs::File::open(path).map_err(|error| {
                Refusal::new(Reason::NotFound, &name, error.to_string()).try_this("a file with a text on each line")
            })?;
            lines(file, &name)?
        }
        (None, true) if std::io::stdin().is_terminal() => Vec::new(),
        (None, true) => lines(std::io::stdin(), "standard input")?,
    };
    match texts.is_empty() {
        true => {
            Err(Refusal::new(Reason::BadInput, "the texts", "there are none").try_this("cairn task embed REPO TEXT"))
        }
        false => Ok(texts),
    }
}

/// Lines that are not blank.
fn lines(source: impl Read, name: &str) -> Result<Vec<String>, Refusal> {
    let mut texts = Vec::new();
    let mut bytes = 0;
    for line in std::io::BufReader::new(source.take(INPUT_BYTES_MAX + 1)).lines() {
        let line =
            line.map_err(|error| Refusal::new(Reason::BadInput, name, error.to_string()).try_this("UTF-8 text"))?;
        bytes += line.len() as u64 + 1;
        if bytes > INPUT_BYTES_MAX {
            let why = format!("it is longer than {INPUT_BYTES_MAX} bytes");
            return Err(Refusal::new(Reason::Limit, name, why).try_this("several files"));
        }
        if !line.trim().is_empty() {
            texts.push(line);
        }
    }
    Ok(texts)
}

/// Cut so that each is one request.
fn parts(texts: &[String]) -> Vec<&[String]> {
    let (mut parts, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, text) in texts.iter().enumerate() {
        if at > from && (at - from == TASK_TEXTS_MAX || bytes + text.len() > TASK_BYTES_MAX) {
            parts.push(&texts[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += text.len();
    }
    if from < texts.len() {
        parts.push(&texts[from..]);
    }
    parts
}

/// All requests of one command.
struct Run<'a> {
    global: &'a Global,
    bar: Bar,
    keeps: bool,
    values: Vec<f32>,
    all: api::EmbedDone,
}

impl<'a> Run<'a> {
    fn new(global: &'a Global, keeps: bool) -> Run<'a> {
        Run { global, bar: Bar::new(global.output()), keeps, values: Vec::new(), all: api::EmbedDone::default() }
    }

    async fn part(&mut self, client: &Client, ask: api::EmbedRequest) -> Result<(), Refusal> {
        let mut events = client.embed(ask).await?;
        loop {
            match events.next().await?.ok_or_else(|| unfinished("embed"))?.event {
                Some(Event::Progress(progress)) => self.bar.show(&progress),
                Some(Event::Vectors(vectors)) => self.take(vectors),
                Some(Event::Lost(lost)) => self.tell_of(&lost),
                Some(Event::Done(done)) => {
                    self.add(done);
                    return Ok(());
                }
                Some(Event::Started(_)) | None => {}
            }
        }
    }

    fn take(&mut self, vectors: api::Vectors) {
        self.bar.clear();
        if self.keeps {
            return self.values.extend_from_slice(&vectors.values);
        }
        let output = self.global.output();
        for (at, vector) in vectors.values.chunks(vectors.width.max(1) as usize).enumerate() {
            let index = self.all.texts as usize + vectors.first as usize + at;
            output.event(&json!({"event": "vector", "index": index, "vector": vector, "node": vectors.node}));
            let words: Vec<String> = vector.iter().map(f32::to_string).collect();
            output.piece(&format!("{}\n", words.join(" ")));
        }
    }

    fn tell_of(&self, lost: &api::TaskLost) {
        let output = self.global.output();
        output.event(&json!({"event": "lost", "node": lost.node, "reason": lost.reason, "why": lost.why}));
        output.note(&format!("[node {:.10} failed ({}); another one goes on]", lost.node, lost.why));
    }

    fn add(&mut self, done: api::EmbedDone) {
        let all = &mut self.all;
        (all.repo, all.revision, all.width) = (done.repo, done.revision, done.width);
        all.texts += done.texts;
        all.tokens += done.tokens;
        all.truncated += done.truncated;
        all.seconds += done.seconds;
        all.lost.extend(done.lost);
        all.nodes.extend(done.nodes);
        all.nodes.dedup();
    }

    fn show(&self, out: Option<&PathBuf>) {
        let (done, output) = (&self.all, self.global.output());
        output.event(&json!({
            "event": "done", "repo": done.repo, "revision": done.revision, "texts": done.texts, "width": done.width,
            "tokens": done.tokens, "truncated": done.truncated, "nodes": done.nodes, "seconds": done.seconds,
            "lost": done.lost.iter().map(|lost| json!({
                "node": lost.node, "reason": lost.reason, "why": lost.why,
            })).collect::<Vec<_>>(),
            "out": out.map(|path| path.display().to_string()),
        }));
        let cut = if done.truncated > 0 { format!(", {} texts cut", done.truncated) } else { String::new() };
        let nodes: Vec<String> = done.nodes.iter().map(|node| format!("{node:.10}")).collect();
        output.note(&format!(
            "[{} vectors of {} values by {} in {:.2} s{cut}]",
            done.texts,
            done.width,
            nodes.join(", "),
            done.seconds
        ));
    }
}

/// A two-dimensional float32 array in NumPy's format, version 1.0.
fn write_npy(to: &mut impl Write, width: usize, values: &[f32]) -> std::io::Result<()> {
    let rows = values.len() / width.max(1);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    // Magic, version and length take ten bytes; data begins at a multiple of 64.
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    to.write_all(b"\x93NUMPY\x01\x00")?;
    to.write_all(&(header.len() as u16).to_le_bytes())?;
    to.write_all(header.as_bytes())?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    to.write_all(&bytes)
}

async fn show(global: &Global, args: ShowArgs) -> Outcome {
    let ShowArgs { repo, privacy } = args;
    let described = global.connect().await?.describe_task(api::DescribeRequest { repo, privacy }).await?;
    global.output().result(&value(&described), || describe(&described));
    Ok(true)
}

fn value(described: &api::DescribeResponse) -> Value {
    json!({
        "repo": described.repo, "revision": described.revision, "task": described.task, "width": described.width,
        "tokens_max": described.tokens_max, "memory_bytes": described.memory_bytes, "prompts": described.prompts,
        "nodes": described.nodes.iter().map(|node| json!({
            "node": node.node, "holds": node.holds, "warm": node.warm, "why": node.why,
        })).collect::<Vec<_>>(),
        "rejected": described.rejected.iter().map(|node| json!({
            "node": node.node, "reason": node.reason, "why": node.why,
        })).collect::<Vec<_>>(),
    })
}

fn describe(described: &api::DescribeResponse) -> String {
    let mut lines = vec![format!(
        "{} {:.10}: {}, vectors of {} values, texts of up to {} tokens, {} of memory",
        described.repo,
        described.revision,
        described.task,
        described.width,
        described.tokens_max,
        HumanBytes(described.memory_bytes)
    )];
    if !described.prompts.is_empty() {
        lines.push(format!("  prompts: {}", described.prompts.join(", ")));
    }
    lines.extend(described.nodes.iter().map(|node| format!("  {:.10}  {}", node.node, node.why)));
    lines.extend(
        described.rejected.iter().map(|node| format!("  not {:.10}: {} ({})", node.node, node.reason, node.why)),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_into_requests_that_are_taken() {
        let short = vec!["x".to_owned(); 2 * TASK_TEXTS_MAX + 1];
        let lengths = |texts: &[String]| parts(texts).iter().map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&short), [TASK_TEXTS_MAX, TASK_TEXTS_MAX, 1]);
        assert_eq!(lengths(&vec!["x".repeat(TASK_BYTES_MAX / 2); 5]), [2, 2, 1]);
        assert_eq!(lengths(&[]), [0; 0]);
    }

    #[test]
    fn an_array_is_as_numpy_writes_it() {
        let mut bytes = Vec::new();
        write_npy(&mut bytes, 2, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert_eq!(bytes.len(), 128 + 24);
        assert!(bytes[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }"));
        assert_eq!((bytes[127], &bytes[128..132]), (b'\n', &1f32.to_le_bytes()[..]));
    }
}
