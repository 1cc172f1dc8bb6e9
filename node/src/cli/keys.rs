//! `cairn key` and `cairn profile`: the keys that sign, and what publishers say of themselves.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use cairn_client::api;
use cairn_protocol::{
    Keypair,
    refusal::{Reason, Refusal},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Global, Outcome, publish::absolute};

#[derive(Args)]
#[command(
    after_help = "A publisher is the key that it began with, for ever. Whoever holds its recovery key can give it a new signing key,\nwhatever a thief of the old one signed; keep that file away from this machine.\n\nExamples:\n  cairn key ls\n  cairn key new acme --recovery-key-file acme.recovery\n  cairn key rotate acme\n  cairn key rotate acme --recovery acme.recovery"
)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// List the publishers that this node signs for
    #[command(after_help = "Examples:\n  cairn key ls --json")]
    Ls,
    /// Make a key and claim a handle for it
    #[command(
        after_help = "Examples:\n  cairn key new acme\n  cairn key new acme --name \"Acme Research\" --recovery-key-file acme.recovery"
    )]
    New {
        /// The handle
        handle: String,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        name: String,
        /// Make a recovery key too, and write it into this new file
        #[arg(long, value_name = "FILE")]
        recovery_key_file: Option<PathBuf>,
    },
    /// Give a publisher a new signing key; what it signs from then on needs that key
    #[command(
        after_help = "Its refs are signed anew, so that they go on standing for what they stand for.\n\nExamples:\n  cairn key rotate acme\n  cairn key rotate acme --recovery acme.recovery\n  cairn key rotate acme --new-recovery-key-file acme.recovery-2 --remove-member bob"
    )]
    Rotate {
        /// A handle or key
        publisher: String,
        /// The file with its recovery key [default: the key that signs now]
        #[arg(long, value_name = "FILE")]
        recovery: Option<PathBuf>,
        /// Make a new recovery key, and write it into this new file
        #[arg(long, value_name = "FILE")]
        new_recovery_key_file: Option<PathBuf>,
        /// A member that signs no more; may be given several times
        #[arg(long = "remove-member", value_name = "HANDLE")]
        remove_members: Vec<String>,
    },
}

#[derive(Args)]
#[command(
    after_help = "An organisation is a publisher with members: their keys may sign its revisions.\n\nExamples:\n  cairn profile acme\n  cairn profile acme --name \"Acme Research\" --add-member bob"
)]
pub(super) struct ProfileArgs {
    /// A handle or key
    publisher: String,
    /// Set the name for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    name: String,
    /// Let this handle or key sign for it; may be given several times
    #[arg(long = "add-member", value_name = "HANDLE")]
    add_members: Vec<String>,
}

pub(super) async fn run(global: &Global, args: KeyArgs) -> Outcome {
    let client = global.connect().await?;
    match args.command {
        KeyCommand::Ls => {
            let publishers = client.key_list().await?.publishers;
            let value = json!({"publishers": publishers.iter().map(publisher).collect::<Vec<_>>()});
            global.output().result(&value, || match publishers.is_empty() {
                true => "no keys yet; the first publication under a handle makes one".to_owned(),
                false => publishers.iter().map(describe).collect::<Vec<_>>().join("\n"),
            });
        }
        KeyCommand::New { handle, name, recovery_key_file } => {
            let recovery_key = recovery_key_file.as_deref().map(make_key).transpose()?.unwrap_or_default();
            let made = client.key_new(api::KeyNewRequest { handle, display_name: name, recovery_key }).await;
            let made = made.inspect_err(|_| discard(recovery_key_file.as_deref()))?;
            global.output().result(&publisher(&made), || describe(&made));
        }
        KeyCommand::Rotate { publisher: named, recovery, new_recovery_key_file, remove_members } => {
            let recovery_file = recovery.as_deref().map(absolute).transpose()?.unwrap_or_default();
            let recovery_key = new_recovery_key_file.as_deref().map(make_key).transpose()?.unwrap_or_default();
            let ask = api::KeyRotateRequest { publisher: named, recovery_file, recovery_key, remove_members };
            let rotated = client.key_rotate(ask).await;
            let rotated = rotated.inspect_err(|_| discard(new_recovery_key_file.as_deref()))?;
            let shown = rotated.publisher.unwrap_or_default();
            let value = json!({"publisher": publisher(&shown), "refs": rotated.refs});
            global
                .output()
                .result(&value, || format!("{}\n  {} refs signed anew", describe(&shown), rotated.refs.len()));
        }
    }
    Ok(true)
}

pub(super) async fn profile(global: &Global, args: ProfileArgs) -> Outcome {
    let client = global.connect().await?;
    let ProfileArgs { publisher: named, name, add_members } = args;
    let shown = match name.is_empty() && add_members.is_empty() {
        true => client.publisher(api::PublisherRequest { publisher: named }).await?,
        false => {
            let ask = api::ProfileSetRequest { publisher: named, display_name: name, add_members };
            client.profile_set(ask).await?
        }
    };
    global.output().result(&publisher(&shown), || describe(&shown));
    Ok(true)
}

/// Writes a new key into a new file that only its owner reads; its public half.
fn make_key(path: &Path) -> Result<String, Refusal> {
    let key = Keypair::from_seed(rand::random());
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
        file.write_all(format!("{}\n", hex::encode(key.seed())).as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| {
        Refusal::new(Reason::BadInput, path.display().to_string(), error.to_string())
            .try_this("a file that is not there")
    })?;
    Ok(key.public().to_string())
}

/// Nothing names the key in this file.
fn discard(path: Option<&Path>) {
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
}

fn publisher(shown: &api::PublisherResponse) -> Value {
    json!({
        "publisher": shown.publisher, "handle": shown.handle, "display_name": shown.display_name, "epoch": shown.epoch,
        "signing_key": shown.signing_key, "recovery_key": shown.recovery_key, "members": shown.members, "own": shown.own,
        "claimants": shown.claimants, "resolved_by": shown.resolved_by, "adviser": shown.adviser,
        "contested_epochs": shown.contested_epochs,
    })
}

fn describe(shown: &api::PublisherResponse) -> String {
    let name = if shown.display_name.is_empty() { String::new() } else { format!("  {}", shown.display_name) };
    let handle = if shown.handle.is_empty() { "(no handle)" } else { &shown.handle };
    let mut lines = vec![format!("{handle}{name}"), format!("  publisher  {}", shown.publisher)];
    let own = if shown.own { " (a key of this node signs)" } else { "" };
    lines.push(format!("  signs      {}, epoch {}{own}", shown.signing_key, shown.epoch));
    lines.push(match shown.recovery_key.is_empty() {
        true => "  recovery   none: whoever steals the key can keep it".to_owned(),
        false => format!("  recovery   {}", shown.recovery_key),
    });
    lines.extend(shown.members.iter().map(|member| format!("  member     {member}")));
    lines.extend(shown.claimants.iter().map(|other| format!("  warning    {other} claims the handle too")));
    lines.extend(
        shown
            .contested_epochs
            .iter()
            .map(|epoch| format!("  warning    its profiles contradict each other about the keys of epoch {epoch}")),
    );
    lines.join("\n")
}
