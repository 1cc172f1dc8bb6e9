//! `cairn import`: a repo of a Hub, a folder or a .gguf file becomes a signed revision. The daemon does it; this says what and reads
//! the environment that the Hub's own clients read.
//!
//! Invariant: a token is read from a file or the environment, never from the words of the command, which others on the machine can see.

use std::path::{Path, PathBuf};

use cairn_client::api;
use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;

use super::publish::{absolute, follow, found};
use super::{Global, Outcome};

/// A token is some forty characters.
const TOKEN_BYTES_MAX: u64 = 4096;

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn import hf://HuggingFaceTB/SmolLM2-135M-Instruct acme/smol\n  cairn import hf://datasets/acme/poems@v2 datasets/acme/poems --endpoint http://127.0.0.1:4181\n  cairn import hf://acme/big acme/big --include '*.safetensors' --include '*.json' --token-file ~/hub.token\n  cairn import ./downloads/qwen acme/qwen\n  cairn import /models/SmolLM2-135M-Instruct.Q4_1.gguf acme/smol-q4\n\nAn import that was interrupted goes on where it stopped. HF_ENDPOINT and HF_TOKEN are honoured."
)]
pub(super) struct ImportArgs {
    /// hf://ORG/NAME[@REV], hf://datasets/ORG/NAME[@REV], a folder or a .gguf file
    source: String,
    /// The repo it becomes
    repo: String,
    /// What changed
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// Of hf://: the Hub, or another that speaks its API [default: HF_ENDPOINT, else https://huggingface.co]
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Of hf://: only files that match; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Of hf://: no files that match; may be given several times
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Of hf://: a file with a token for the Hub [default: HF_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Import also files that may run something by being opened (see cairn scan)
    #[arg(long)]
    allow_unsafe_files: bool,
}

pub(super) async fn import(global: &Global, args: ImportArgs) -> Outcome {
    let is_elsewhere = args.source.contains("://");
    let source = if is_elsewhere { args.source.clone() } else { absolute(Path::new(&args.source))? };
    let from_hub = |name: &str| std::env::var(name).ok().filter(|_| is_elsewhere).unwrap_or_default();
    let token = match &args.token_file {
        Some(path) => token(path)?,
        None => from_hub("HF_TOKEN"),
    };
    let client = global.connect().await?;
    if !is_elsewhere {
        found(&client, Path::new(&args.source))?;
    }
    let ask = api::ImportRequest {
        source,
        repo: args.repo,
        message: args.message,
        endpoint: args.endpoint.unwrap_or_else(|| from_hub("HF_ENDPOINT")),
        token,
        include: args.include,
        exclude: args.exclude,
        allow_unsafe_files: args.allow_unsafe_files,
    };
    follow(global, client.import(ask).await?).await
}

fn token(path: &Path) -> Result<String, Refusal> {
    let bad = |why: String| {
        Refusal::new(Reason::BadInput, path.display().to_string(), why)
            .try_this("a file with the token on its first line")
    };
    let size = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
    if size > TOKEN_BYTES_MAX {
        return Err(bad("it is too long for a token".to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    match text.lines().next().map(str::trim) {
        Some(token) if !token.is_empty() => Ok(token.to_owned()),
        _ => Err(bad("it is empty".to_owned())),
    }
}
