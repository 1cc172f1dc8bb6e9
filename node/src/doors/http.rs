//! The HTTP door: a page that says what this is, metrics for Prometheus, and two probes.
//!
//! Invariant: a request is answered only if its Host header names this machine's loopback and our port, so that a web
//! page whose name was pointed at 127.0.0.1 learns nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use cairn_protocol::refusal::{Reason, Refusal};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::guard::{Guarded, Patience};
use super::status;
use crate::flows;
use crate::shell::Node;
use crate::telemetry::{self, Counters};

/// A request line comes at once; a kept-alive connection may rest between two scrapes.
const PATIENCE: Patience =
    Patience { hello_bytes: 1, hello: Duration::from_secs(10), idle: Some(Duration::from_secs(60)) };

/// No body is read here yet, so a request that is slower than this is stuck.
const REQUEST_PATIENCE: Duration = Duration::from_secs(30);

/// Serves the door until `closing`.
pub(super) async fn serve(node: Arc<Node>, listener: TcpListener, address: SocketAddr, closing: CancellationToken) {
    let door = Door { node: node.clone(), port: address.port() };
    let routes = Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(nothing_here)
        .layer(middleware::from_fn_with_state(door.clone(), admit))
        .with_state(door);
    let guarded = Guarded::new(listener, PATIENCE, node);
    if let Err(error) = axum::serve(guarded, routes).with_graceful_shutdown(closing.cancelled_owned()).await {
        tracing::error!(%error, "the HTTP door broke");
    }
}

#[derive(Clone)]
struct Door {
    node: Arc<Node>,
    port: u16,
}

async fn admit(State(door): State<Door>, request: Request, next: Next) -> Response {
    if is_grpc(request.headers()) {
        return another_door(&door);
    }
    if !is_our_host(request.headers(), door.port) {
        return refuse(
            &door,
            Refusal::new(
                Reason::HostRefused,
                "this request",
                "its Host header does not name this machine's loopback and this port",
            )
            .try_this(format!("http://127.0.0.1:{}", door.port)),
        );
    }
    match tokio::time::timeout(REQUEST_PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            refuse(&door, Refusal::new(Reason::Deadline, "this request", "it took too long").try_this("again later"))
        }
    }
}

/// `localhost` or a loopback address, with our port; the port may be missing only where it is HTTP's own.
fn is_our_host(headers: &HeaderMap, port: u16) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) else {
        return false;
    };
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback() && address.port() == port;
    }
    let (name, said_port) = match host.rsplit_once(':') {
        Some((name, digits)) if !name.contains(':') => (name, digits.parse().ok()),
        _ => (host, Some(80)),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    is_loopback && said_port == Some(port)
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whoever speaks gRPC here took one port for the other; answered in gRPC, which is what it understands.
fn another_door(door: &Door) -> Response {
    Counters::add(&door.node.counters.refusals_total, 1);
    let refusal = Refusal::new(Reason::Unsupported, "this port", "it is the node's HTTP door, not its gRPC API")
        .try_this(format!("--api {}", door.node.doors.api));
    status::status(&refusal).into_http::<axum::body::Body>()
}

fn refuse(door: &Door, refusal: Refusal) -> Response {
    Counters::add(&door.node.counters.refusals_total, 1);
    let code = StatusCode::from_u16(refusal.reason.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, axum::Json(status::body(&refusal))).into_response()
}

async fn page(State(door): State<Door>) -> Html<String> {
    Html(
        PAGE.replace("{node}", &door.node.identity.node_id().to_string())
            .replace("{api}", &door.node.doors.api.to_string()),
    )
}

async fn metrics(State(door): State<Door>) -> Response {
    let gauges = match flows::status::gauges(&door.node).await {
        Ok(gauges) => gauges,
        Err(refusal) => return refuse(&door, refusal),
    };
    let text = telemetry::prometheus(&door.node.counters, &gauges);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// The process answers.
async fn healthz() -> &'static str {
    "ok\n"
}

/// The node takes work: it has started, its catalogue answers, and it is not stopping.
async fn readyz(State(door): State<Door>) -> Response {
    if door.node.shutdown.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    match door.node.registry.stats().await {
        Ok(_) => "ready\n".into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the catalogue does not answer\n").into_response(),
    }
}

async fn nothing_here(State(door): State<Door>, request: Request) -> Response {
    let what = request.uri().path().chars().take(200).collect::<String>();
    refuse(
        &door,
        Refusal::new(Reason::NotFound, what, "this door has no such page").try_this("/, /metrics, /healthz or /readyz"),
    )
}

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cairn node</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto; padding: 0 1rem; color: #222; background: #fdfdfb }
  code { background: #eee; padding: .1em .3em; border-radius: 3px; overflow-wrap: anywhere }
  @media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } code { background: #333 } a { color: #9cf } }
</style>
<h1>This is a Cairn node</h1>
<p>Cairn is a peer-to-peer registry and compute mesh for models: this node keeps signed models, shares them with its
peers, and computes layers of them.</p>
<p>Node <code>{node}</code></p>
<ul>
  <li>Programs speak gRPC to <code>{api}</code> (package <code>cairn.v1</code>, with reflection).</li>
  <li>People type <code>cairn --help</code>.</li>
  <li>Operators look at <a href="/metrics">/metrics</a>, <a href="/healthz">/healthz</a> and <a href="/readyz">/readyz</a>.</li>
</ul>
</html>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ours(hosts: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        is_our_host(&headers, 4181)
    }

    #[test]
    fn loopback_names_with_our_port_are_ours() {
        for host in ["127.0.0.1:4181", "localhost:4181", "LocalHost:4181", "[::1]:4181", "127.8.8.8:4181"] {
            assert!(is_ours(&[host]), "{host}");
        }
    }

    #[test]
    fn any_other_host_is_refused() {
        for host in [
            "evil.example:4181",
            "127.0.0.1",
            "127.0.0.1:80",
            "localhost",
            "10.0.0.1:4181",
            "localhost.evil.example:4181",
            "127.0.0.1.evil.example:4181",
            "[::2]:4181",
            "",
            ":4181",
            "localhost:4181:4181",
        ] {
            assert!(!is_ours(&[host]), "{host}");
        }
        assert!(!is_ours(&[]));
        assert!(!is_ours(&["localhost:4181", "evil.example:4181"]));
    }
}
