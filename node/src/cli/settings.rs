//! `cairn config show`: every setting, its value, and who said so. Needs no daemon.

use cairn_protocol::refusal::Refusal;
use clap::{Args, Subcommand};
use serde_json::json;

use super::{Global, Outcome};
use crate::config::{Config, ConfigError, Flags};

#[derive(Args)]
#[command(after_help = "Examples:\n  cairn config show\n  CAIRN_MDNS=false cairn config show --json")]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print each value with its source: flag, environment, config.toml or default
    #[command(after_help = "Examples:\n  cairn config show\n  cairn config show --home /srv/cairn --json")]
    Show,
}

pub(super) fn run(global: &Global, args: ConfigArgs) -> Outcome {
    let ConfigCommand::Show = args.command;
    let mut flags = Flags::default();
    flags.set_some("api", global.api.clone());
    let config = Config::load(&global.home(), flags).map_err(|error| {
        let is_a_value = matches!(error, ConfigError::BadValue { .. });
        let refusal = Refusal::from(error);
        // Elsewhere this command is the advice.
        if is_a_value { refusal.try_this("another value, or none, where it is set") } else { refusal }
    })?;
    let settings: Vec<_> = config
        .settings
        .shown()
        .map(|(key, value, source)| json!({"key": key.name, "value": value, "source": source.to_string(), "means": key.means}))
        .collect();
    let value = json!({"home": config.home, "settings": settings});
    global.output().result(&value, || {
        let rows = config.settings.shown().map(|(key, value, source)| {
            let value = if value.is_empty() { "-".to_string() } else { value };
            format!("{:<20} {value:<28} {:<12} {}", key.name, source.to_string(), key.means)
        });
        std::iter::once(format!("home {}", config.home.display())).chain(rows).collect::<Vec<_>>().join("\n")
    });
    Ok(true)
}
