//! `cairn advise` and `cairn attest`: what one signs about what is published.

use cairn_client::api;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "A warning counts where its signer is the publisher of what it is about, or one whom the operator heeds\n(cairn trust add KEY --adviser). What follows is in the settings advisories_refuse and advisories_warn.\n\nExamples:\n  cairn advise add yanked acme/tiny@v1 -m \"Wrong tokenizer\" --instead acme/tiny@v2\n  cairn advise add malware 8f3c… --as lab -m \"Its weights run code\" --url https://lab.example/2026-003\n  cairn advise rm yanked-1\n  cairn advise ls acme/tiny"
)]
pub(super) struct AdviseArgs {
    #[command(subcommand)]
    command: AdviseCommand,
}

#[derive(Subcommand)]
enum AdviseCommand {
    /// Sign a warning; one of the same name replaces the one before
    #[command(
        after_help = "Examples:\n  cairn advise add deprecated acme/tiny --instead acme/tiny-2\n  cairn advise add legal blob:8f3c… --as lab --name lab-2026-3"
    )]
    Add(AddArgs),
    /// Take a warning back
    #[command(after_help = "Examples:\n  cairn advise rm lab-2026-3 --as lab")]
    Rm {
        /// Its name
        name: String,
        /// The handle or key of this node that signed it
        #[arg(long = "as", value_name = "HANDLE", default_value = "", hide_default_value = true)]
        signer: String,
    },
    /// List what is said of a revision, or what you and those whom you heed say
    #[command(after_help = "Examples:\n  cairn advise ls\n  cairn advise ls acme/tiny@v1 --json")]
    Ls {
        /// REPO[@REF]
        #[arg(default_value = "", hide_default_value = true)]
        repo: String,
    },
}

#[derive(Args)]
struct AddArgs {
    /// malware, license, legal, deprecated or yanked
    category: String,
    /// REPO (all revisions), REPO@REF (one), a handle or key (all its repos), or blob:BLAKE3 (a file wherever it is)
    #[arg(required = true)]
    subjects: Vec<String>,
    /// What a person should know
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// Where more is to be read
    #[arg(long, value_name = "URL", default_value = "", hide_default_value = true)]
    url: String,
    /// What to use instead: REPO[@REF]
    #[arg(long, value_name = "REPO", default_value = "", hide_default_value = true)]
    instead: String,
    /// What it is called [default: the category and the time]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// The handle or key of this node that signs [default: the publisher's, if it is here]
    #[arg(long = "as", value_name = "HANDLE", default_value = "", hide_default_value = true)]
    signer: String,
}

#[derive(Args)]
#[command(
    after_help = "Examples:\n  cairn attest acme/tiny evaluation --tool lm-eval --measure perplexity=12.4:wikitext --verdict passed\n  cairn attest acme/tiny review --as lab -m \"Read its code; nothing runs\""
)]
pub(super) struct AttestArgs {
    /// REPO[@REF]
    repo: String,
    /// scan, evaluation, lineage, or a word of your own
    r#type: String,
    /// The program that found it out
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    tool: String,
    /// Its version
    #[arg(long, value_name = "VERSION", default_value = "", hide_default_value = true)]
    tool_version: String,
    /// The result in a word
    #[arg(long, value_name = "WORD", default_value = "", hide_default_value = true)]
    verdict: String,
    /// A number that it found, with what it was measured on; may be given several times
    #[arg(long = "measure", value_name = "NAME=VALUE[:ON]", value_parser = measurement)]
    measurements: Vec<api::Measurement>,
    /// For people
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    message: String,
    /// The handle or key of this node that signs [default: the publisher's, if it is here]
    #[arg(long = "as", value_name = "HANDLE", default_value = "", hide_default_value = true)]
    signer: String,
    /// Take back what this key attested of that type with that tool
    #[arg(long)]
    withdraw: bool,
}

fn measurement(text: &str) -> Result<api::Measurement, String> {
    let (name, rest) = text.split_once('=').ok_or("a measurement is NAME=VALUE or NAME=VALUE:ON")?;
    let (value, on) = rest.split_once(':').unwrap_or((rest, ""));
    let value: f64 = value.parse().map_err(|error| format!("{value}: {error}"))?;
    if !value.is_finite() {
        return Err(format!("{value} is not a finite number"));
    }
    Ok(api::Measurement { name: name.to_owned(), value, unit: String::new(), on: on.to_owned() })
}

pub(super) async fn run(global: &Global, args: AdviseArgs) -> Outcome {
    let client = global.connect().await?;
    let ask = match args.command {
        AdviseCommand::Ls { repo } => {
            let said = client.advisories(api::AdvisoriesRequest { repo }).await?.advisories;
            let value = json!({"advisories": said.iter().map(advisory).collect::<Vec<_>>()});
            global.output().result(&value, || match said.is_empty() {
                true => "no advisories".to_owned(),
                false => said.iter().map(describe).collect::<Vec<_>>().join("\n"),
            });
            return Ok(true);
        }
        AdviseCommand::Add(args) => api::AdviseRequest {
            name: args.name,
            category: args.category,
            subjects: args.subjects,
            text: args.message,
            url: args.url,
            instead: args.instead,
            signer: args.signer,
            withdraw: false,
        },
        AdviseCommand::Rm { name, signer } => {
            api::AdviseRequest { name, signer, withdraw: true, ..api::AdviseRequest::default() }
        }
    };
    let said = client.advise(ask).await?.advisory.unwrap_or_default();
    global.output().result(&advisory(&said), || match said.withdrawn {
        true => format!("advisory {} holds no more", said.name),
        false => format!("signed: {}", describe(&said)),
    });
    Ok(true)
}

pub(super) async fn attest(global: &Global, args: AttestArgs) -> Outcome {
    let ask = api::AttestRequest {
        repo: args.repo,
        r#type: args.r#type,
        tool: args.tool,
        tool_version: args.tool_version,
        verdict: args.verdict,
        measurements: args.measurements,
        text: args.message,
        signer: args.signer,
        withdraw: args.withdraw,
    };
    let said = global.connect().await?.attest(ask).await?.attestation.unwrap_or_default();
    global.output().result(&attestation(&said), || format!("signed: {}", describe_attestation(&said)));
    Ok(true)
}

/// An advisory, for programs.
pub(super) fn advisory(said: &api::Advisory) -> Value {
    json!({
        "name": said.name, "number": said.number, "category": said.category, "subjects": said.subjects, "text": said.text,
        "url": said.url, "instead": said.instead, "created_ms": said.created_ms, "signer": said.signer,
        "signer_handle": said.signer_handle, "weight": said.weight, "action": said.action, "withdrawn": said.withdrawn,
    })
}

/// The same for people.
pub(super) fn describe(said: &api::Advisory) -> String {
    let text = if said.text.is_empty() { String::new() } else { format!(": {}", said.text) };
    let instead = if said.instead.is_empty() { String::new() } else { format!("; use {} instead", said.instead) };
    let url = if said.url.is_empty() { String::new() } else { format!(" <{}>", said.url) };
    let withdrawn = if said.withdrawn { ", withdrawn" } else { "" };
    let standing = format!("{}, {}{withdrawn}", said.weight, action(&said.action));
    format!(
        "{} {} by {} ({standing}){text}{instead}{url}",
        said.category,
        said.name,
        signer(&said.signer, &said.signer_handle)
    )
}

fn action(action: &str) -> &'static str {
    match action {
        "refuse" => "refused here",
        "warn" => "warned of",
        _ => "changes nothing here",
    }
}

/// An attestation, for programs.
pub(super) fn attestation(said: &api::Attestation) -> Value {
    let measure = |m: &api::Measurement| json!({"name": m.name, "value": m.value, "unit": m.unit, "on": m.on});
    json!({
        "type": said.r#type, "tool": said.tool, "tool_version": said.tool_version, "number": said.number,
        "verdict": said.verdict, "measurements": said.measurements.iter().map(measure).collect::<Vec<_>>(), "text": said.text,
        "created_ms": said.created_ms, "signer": said.signer, "signer_handle": said.signer_handle, "weight": said.weight,
    })
}

/// The same for people.
pub(super) fn describe_attestation(said: &api::Attestation) -> String {
    let mut parts = vec![format!("{} by {} ({})", said.r#type, signer(&said.signer, &said.signer_handle), said.weight)];
    if !said.verdict.is_empty() {
        parts.push(said.verdict.clone());
    }
    parts.extend(said.measurements.iter().map(|m| {
        let on = if m.on.is_empty() { String::new() } else { format!(" on {}", m.on) };
        format!("{} {}{}{on}", m.name, m.value, m.unit)
    }));
    if !said.text.is_empty() {
        parts.push(said.text.lines().next().unwrap_or_default().to_owned());
    }
    parts.join("; ")
}

fn signer(key: &str, handle: &str) -> String {
    if handle.is_empty() { format!("{key:.10}") } else { format!("{handle} {key:.10}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_are_read() {
        let read = measurement("perplexity=12.5:wikitext").unwrap();
        assert_eq!((read.name.as_str(), read.value, read.on.as_str()), ("perplexity", 12.5, "wikitext"));
        assert!(measurement("perplexity").is_err() && measurement("a=b").is_err() && measurement("a=inf").is_err());
    }
}
