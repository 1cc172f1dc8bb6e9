//! `cairn node`: the daemon in the foreground, until SIGTERM, Ctrl-C, or its parent lets go.

use std::io::Write;

use cairn_protocol::refusal::{Reason, Refusal};
use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use super::{Global, Outcome, output};
use crate::config::{Config, Flags};
use crate::home::Ready;
use crate::net;
use crate::shell::Node;

/// Flags of the daemon; each beats the environment and config.toml.
#[derive(Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:\n  cairn node\n  cairn node --home /srv/cairn --no-mdns --bootstrap /ip4/10.0.0.7/tcp/4177/p2p/12D3KooW…\n  cairn --json node --listen /ip4/127.0.0.1/tcp/0 --api-listen 127.0.0.1:0 --http-listen none\n\nWhat is set, and by whom: cairn config show"
)]
pub(super) struct NodeArgs {
    /// libp2p address to listen on; may be given several times [default: TCP and QUIC on port 4177]
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<String>,
    /// UDP address of the data endpoint [default: 0.0.0.0:4178]
    #[arg(long, value_name = "IP:PORT")]
    data_listen: Option<String>,
    /// Address of the gRPC door [default: 127.0.0.1:4180]
    #[arg(long, value_name = "IP:PORT")]
    api_listen: Option<String>,
    /// Address of the HTTP door, or none [default: 127.0.0.1:4181]
    #[arg(long, value_name = "IP:PORT|none")]
    http_listen: Option<String>,
    /// Node to greet first; may be given several times
    #[arg(long, value_name = "MULTIADDR")]
    bootstrap: Vec<String>,
    /// Don't look for nodes on the local network
    #[arg(long)]
    no_mdns: bool,
    /// The closed mesh to join, 64 hex digits [default: the public realm]
    #[arg(long, value_name = "HEX")]
    realm: Option<String>,
    /// Engine threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Stop when standard input closes, so that the daemon does not outlive whoever started it
    #[arg(long)]
    until_stdin_closes: bool,
}

impl NodeArgs {
    fn flags(self) -> Flags {
        let mut flags = Flags::default();
        flags.set_list("listen", self.listen);
        flags.set_some("data_listen", self.data_listen);
        flags.set_some("api_listen", self.api_listen);
        flags.set_some("http_listen", self.http_listen);
        flags.set_list("bootstrap", self.bootstrap);
        if self.no_mdns {
            flags.set("mdns", "false");
        }
        flags.set_some("realm", self.realm);
        flags.set_some("threads", self.threads);
        flags
    }
}

pub(super) async fn run(global: &Global, args: NodeArgs) -> Outcome {
    let is_leashed = args.until_stdin_closes;
    let config = Config::load(&global.home(), args.flags())?;
    are_multiaddresses("--listen", &config.listen, "/ip4/0.0.0.0/tcp/4177")?;
    are_multiaddresses("--bootstrap", &config.bootstrap, "/ip4/10.0.0.7/tcp/4177/p2p/12D3KooW…")?;
    // Before the start, so that a signal during a slow start is not lost.
    let mut stop = Stop::listen(is_leashed)?;
    let node = tokio::select! {
        node = Node::start(config) => node?,
        why = stop.wished() => {
            tracing::info!(why, "stopped before it was ready");
            return Ok(true);
        }
    };
    announce(global, &node.ready());
    let why = stop.wished().await;
    tracing::info!(why, "stopping");
    let hurry = tokio::select! {
        () = node.stop() => None,
        why = stop.wished() => Some(why),
    };
    if let Some(why) = hurry {
        tracing::warn!(why, "asked twice to stop: leaving at once");
    }
    Ok(true)
}

/// Before a home is made: `option` and the setting of that name take multiaddresses, such as `example`.
fn are_multiaddresses(option: &str, addresses: &[String], example: &str) -> Result<(), Refusal> {
    for address in addresses {
        net::check_address(address).map_err(|error| {
            Refusal::new(Reason::BadInput, option, error.to_string()).try_this(format!("{option} {example}"))
        })?;
    }
    Ok(())
}

/// One line on stdout. Nobody needs to read it: a closed pipe does not stop a daemon.
fn announce(global: &Global, ready: &Ready) {
    let line = if global.json {
        serde_json::to_string(ready).expect("a struct of texts and numbers is always JSON")
    } else {
        let http = ready.http.as_deref().unwrap_or("none");
        format!("node {} is ready: api {}, http {http}, data {}", &ready.node_id[..10], ready.api, ready.data)
    };
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// The ways in which a daemon is asked to stop.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    is_leashed: bool,
}

impl Stop {
    fn listen(is_leashed: bool) -> Result<Stop, Refusal> {
        let listen = |kind| signal(kind).map_err(|error| output::failed("signals", &error));
        Ok(Stop {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            is_leashed,
        })
    }

    /// Waits for a wish, and says which. Asked again, it waits for the next.
    async fn wished(&mut self) -> &'static str {
        let is_leashed = self.is_leashed;
        let why = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "Ctrl-C",
            () = input_closes(), if is_leashed => "standard input closed",
        };
        if why == "standard input closed" {
            self.is_leashed = false;
        }
        why
    }
}

async fn input_closes() {
    let mut input = tokio::io::stdin();
    let mut sink = [0; 256];
    while matches!(input.read(&mut sink).await, Ok(bytes) if bytes > 0) {}
}
