//! Clients of a [`LocalMesh`], for what drives its processes through the gRPC API: the demo and the stage benchmark.
//!
//! Nothing here does what another client could not.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cairn_client::{Client, ConnectOptions, Events, api};
use cairn_protocol::refusal::{Reason, Refusal};

use crate::local_mesh::{LocalMesh, MeshOptions};

/// How long the nodes may take to know each other, or to do what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(50);

/// Starts so many nodes in a realm of their own, and waits until they know each other.
pub async fn start(program: PathBuf, count: usize) -> Result<(LocalMesh, Vec<Client>), Refusal> {
    let realm = blake3::hash(format!("{} {:?}", std::process::id(), std::time::SystemTime::now()).as_bytes());
    let options = MeshOptions {
        program,
        realm: realm.to_hex().to_string(),
        arguments: Vec::new(),
        environment: Vec::new(),
        configs: Vec::new(),
    };
    let mesh = LocalMesh::start(count, options).await.map_err(|e| failed("the nodes", e.to_string()))?;
    let mut clients = Vec::new();
    for node in mesh.nodes() {
        let options = ConnectOptions {
            api: Some(node.ready().api.clone()),
            home: Some(node.home().to_path_buf()),
            ..ConnectOptions::default()
        };
        clients.push(Client::connect(&options).await?);
    }
    wait_until("the nodes know each other", || async {
        for client in &clients {
            let known = client.peers().await?.peers.iter().filter(|p| p.connected && p.capacity.is_some()).count();
            if known + 1 < clients.len() {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    Ok((mesh, clients))
}

/// Publishes through the first of `clients`, and waits until all have heard of it.
pub async fn publish(clients: &[Client], path: &Path, repo: &str) -> Result<api::Published, Refusal> {
    let ask =
        api::PublishRequest { path: path.display().to_string(), repo: repo.into(), ..api::PublishRequest::default() };
    let mut events = clients[0].publish(ask).await?;
    let done = last(&mut events, |e| match e.event {
        Some(api::publish_event::Event::Done(done)) => Some(done),
        _ => None,
    })
    .await?;
    wait_until("every node heard of the revision", || async {
        for client in clients {
            if client.list(api::ListRequest::default()).await?.repos.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    Ok(done)
}

/// Reads a stream to its end and returns what `pick` finds.
pub async fn last<T, R>(events: &mut Events<T>, pick: impl Fn(T) -> Option<R>) -> Result<R, Refusal> {
    let mut found = None;
    while let Some(event) = events.next().await? {
        found = pick(event).or(found);
    }
    found.ok_or_else(|| failed("the daemon's answer", "it ended without a result".into()))
}

/// Looks until `holds` does, for a minute at most.
pub async fn wait_until<F: Future<Output = Result<bool, Refusal>>>(
    what: &str,
    holds: impl Fn() -> F,
) -> Result<(), Refusal> {
    let started = Instant::now();
    while !holds().await? {
        if started.elapsed() > PATIENCE {
            return Err(Refusal::new(Reason::Deadline, what, format!("not so after {} s", PATIENCE.as_secs()))
                .try_this("cairn demo --keep"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn failed(what: &str, why: String) -> Refusal {
    Refusal::new(Reason::Internal, what, why).try_this("cairn demo --keep, and look at the logs in the homes")
}
