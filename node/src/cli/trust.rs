//! `cairn trust`: whose handles and warnings this node believes.

use cairn_client::api;
use cairn_protocol::refusal::{Reason, Refusal};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Global, Outcome};

#[derive(Args)]
#[command(
    after_help = "A handle is only a claim. It means here: a key of your own, else what you trust, else what you pulled first,\nelse the only key that claims it.\n\nExamples:\n  cairn trust ls\n  cairn trust add acme --key 5f3a…\n  cairn trust add lab --adviser\n  cairn trust rm acme"
)]
pub(super) struct TrustArgs {
    #[command(subcommand)]
    command: TrustCommand,
}

#[derive(Subcommand)]
enum TrustCommand {
    /// List the handles and advisers that were decided on
    #[command(after_help = "Examples:\n  cairn trust ls --json")]
    Ls,
    /// Let a handle mean a key, or heed a publisher's warnings
    #[command(after_help = "Examples:\n  cairn trust add acme --key 5f3a…\n  cairn trust add lab --adviser")]
    Add {
        /// A handle, or a key with --adviser
        publisher: String,
        /// The key that the handle is to mean [default: what it means now]
        #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
        key: String,
        /// Its advisories count here from now on
        #[arg(long)]
        adviser: bool,
    },
    /// Forget what was decided on a handle or publisher
    #[command(after_help = "Examples:\n  cairn trust rm acme\n  cairn trust rm lab --adviser")]
    Rm {
        /// A handle or key
        publisher: String,
        /// Only heed its advisories no longer
        #[arg(long)]
        adviser: bool,
    },
}

pub(super) async fn run(global: &Global, args: TrustArgs) -> Outcome {
    let client = global.connect().await?;
    let ask = match args.command {
        TrustCommand::Ls => return ls(global, &client).await,
        TrustCommand::Add { publisher, key, adviser } => {
            api::TrustSetRequest { handle: publisher, publisher: key, adviser, remove: false }
        }
        TrustCommand::Rm { publisher, adviser } => {
            api::TrustSetRequest { handle: publisher, publisher: String::new(), adviser, remove: true }
        }
    };
    let (named, is_removed, is_adviser) = (ask.handle.clone(), ask.remove, ask.adviser);
    let changed = client.trust_set(ask).await?.changed;
    if is_removed && !changed {
        let why = "nothing was decided on it";
        return Err(Refusal::new(Reason::NotFound, named, why).try_this("cairn trust ls"));
    }
    global.output().result(&json!({"publisher": named, "changed": changed}), || match (is_removed, is_adviser) {
        (true, _) => format!("forgot what was decided on {named}"),
        (false, true) => format!("heeding the advisories of {named}"),
        (false, false) => format!("trusting {named}"),
    });
    Ok(true)
}

async fn ls(global: &Global, client: &cairn_client::Client) -> Outcome {
    let trusted = client.trust_list().await?.trusted;
    let rows: Vec<_> = trusted
        .iter()
        .map(|t| json!({"handle": t.handle, "publisher": t.publisher, "adviser": t.adviser, "pinned": t.pinned}))
        .collect();
    global.output().result(&json!({"trusted": rows}), || match trusted.is_empty() {
        true => "nothing was decided on".to_owned(),
        false => trusted.iter().map(row).collect::<Vec<_>>().join("\n"),
    });
    Ok(true)
}

fn row(trusted: &api::Trusted) -> String {
    let handle = if trusted.handle.is_empty() { "-" } else { &trusted.handle };
    let how = match (trusted.handle.is_empty(), trusted.pinned) {
        (true, _) => "",
        (false, true) => " by a pull, run or publication",
        (false, false) => " trusted",
    };
    let adviser = if trusted.adviser { ", adviser" } else { "" };
    format!("{handle:<20} {}{how}{adviser}", trusted.publisher)
}
