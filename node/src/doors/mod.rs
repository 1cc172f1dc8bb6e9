//! The front doors: gRPC for programs, HTTP for browsers, scrapers and probes.
//!
//! A door parses, calls a flow, converts, returns; it holds no logic. What is here is what every door needs: bounds on
//! connections ([`guard`]), who may call what ([`auth`]), how a refusal looks on the wire ([`status`]).
//!
//! Invariant: an address that is not loopback is opened only with TLS and a bearer token, or not at all.

pub mod auth;
mod call;
mod convert;
pub mod generated;
pub mod grpc;
pub mod guard;
pub mod http;
pub mod status;
mod tasks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_protocol::refusal::{Reason, Refusal};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::shell::Node;

/// Listeners that are bound but not yet served, so that a taken port is known before anything else starts.
pub struct Bound {
    api: TcpListener,
    http: Option<TcpListener>,
    addresses: Addresses,
}

/// Where the doors are.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The gRPC door.
    pub api: SocketAddr,
    /// The HTTP door.
    pub http: Option<SocketAddr>,
}

impl Bound {
    /// Checks that the addresses may be opened, and takes them.
    pub async fn bind(config: &Config) -> Result<Bound, Refusal> {
        if !config.api_listen.ip().is_loopback() && config.tls.is_none() {
            return Err(not_loopback(
                config.api_listen,
                "an address that others reach needs TLS; without it the token would cross the network in the clear",
                "--api-listen 127.0.0.1:4180, or tls_cert and tls_key in config.toml",
            ));
        }
        let api = bind(config.api_listen, "--api-listen").await?;
        let http = match config.http_listen {
            Some(address) if !address.ip().is_loopback() => {
                return Err(not_loopback(
                    address,
                    "the HTTP door speaks no TLS, so it opens on loopback only",
                    "--http-listen 127.0.0.1:4181, with a proxy that speaks TLS before it",
                ));
            }
            Some(address) => Some(bind(address, "--http-listen").await?),
            None => None,
        };
        let local = |listener: &TcpListener| listener.local_addr().map_err(|error| unbound(config.api_listen, &error));
        let addresses = Addresses { api: local(&api)?, http: http.as_ref().map(local).transpose()? };
        Ok(Bound { api, http, addresses })
    }

    /// Where the doors will be.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Opens the doors onto `node`.
    pub fn open(self, node: &Arc<Node>) -> Result<Doors, Refusal> {
        let closing = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let api = grpc::serve(node.clone(), self.api, closing.clone())?;
        tasks.spawn(api);
        if let (Some(listener), Some(address)) = (self.http, self.addresses.http) {
            tasks.spawn(http::serve(node.clone(), listener, address, closing.clone()));
        }
        Ok(Doors { closing, tasks })
    }
}

/// Doors that are open. Dropped, they slam; [`Doors::close`] lets answers under way finish.
pub struct Doors {
    closing: CancellationToken,
    tasks: JoinSet<()>,
}

impl Doors {
    /// Takes no new calls, and waits at most `patience` for those under way.
    pub async fn close(mut self, patience: Duration) {
        self.closing.cancel();
        let waiting = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, waiting).await.is_err() {
            tracing::warn!("calls were still under way when the doors closed");
            self.tasks.shutdown().await;
        }
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, Refusal> {
    TcpListener::bind(address).await.map_err(|error| {
        let mut refusal = unbound(address, &error);
        refusal.try_ = format!("{flag} {}:0", address.ip());
        refusal
    })
}

fn unbound(address: SocketAddr, error: &std::io::Error) -> Refusal {
    Refusal::new(Reason::Conflict, address.to_string(), format!("can't listen: {error}"))
        .try_this("another port".to_string())
}

fn not_loopback(address: SocketAddr, why: &str, tip: &str) -> Refusal {
    Refusal::new(Reason::BadInput, address.to_string(), why.to_string()).try_this(tip.to_string())
}
