//! A mesh with a client for each node.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cairn_client::{Client, ConnectOptions, api};
use cairn_node::local_mesh::{LocalMesh, LocalNode, MeshOptions};

/// Longest wait for anything that should happen at once on an idle machine; generous, since tests share two cores.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Running nodes, each with a client.
#[derive(Debug)]
pub struct Testnet {
    mesh: LocalMesh,
    clients: Vec<Client>,
}

impl Testnet {
    /// Starts `count` nodes of `program`, with further `arguments` of `cairn node`, and waits until all know each other.
    pub async fn start(program: &str, count: usize, arguments: &[&str]) -> Result<Self> {
        Self::start_configured(program, count, arguments, &[]).await
    }

    /// The same, with a `config.toml` for the first nodes.
    pub async fn start_configured(program: &str, count: usize, arguments: &[&str], configs: &[&str]) -> Result<Self> {
        let realm: [u8; 32] = rand::random();
        let options = MeshOptions {
            program: PathBuf::from(program),
            realm: realm.iter().map(|b| format!("{b:02x}")).collect(),
            arguments: arguments.iter().map(|a| a.to_string()).collect(),
            environment: vec![("CAIRN_LOG".into(), "info".into())],
            configs: configs.iter().map(|c| c.to_string()).collect(),
        };
        let mesh = LocalMesh::start(count, options).await.context("start the nodes")?;
        let mut clients = Vec::new();
        for node in mesh.nodes() {
            clients.push(connect(node).await?);
        }
        let net = Self { mesh, clients };
        net.all_know_each_other().await?;
        Ok(net)
    }

    /// The client of node `index`.
    pub fn client(&self, index: usize) -> &Client {
        &self.clients[index]
    }

    /// Node `index` as a process.
    pub fn node(&self, index: usize) -> &LocalNode {
        &self.mesh.nodes()[index]
    }

    /// Node `index`, to kill or stop.
    pub fn node_mut(&mut self, index: usize) -> &mut LocalNode {
        self.mesh.node_mut(index)
    }

    /// The realm of all nodes, 64 hex digits.
    pub fn realm(&self) -> &str {
        self.mesh.realm()
    }

    /// Which node has this id.
    pub fn index_of(&self, node_id: &str) -> Option<usize> {
        self.mesh.nodes().iter().position(|n| n.ready().node_id == node_id)
    }

    /// Starts node `index` again on its home and connects to it.
    pub async fn restart(&mut self, index: usize) -> Result<()> {
        let node = self.mesh.restart(index).await.context("restart a node")?;
        self.clients[index] = connect(node).await?;
        Ok(())
    }

    /// Starts one more node and connects to it.
    pub async fn add(&mut self, arguments: &[&str]) -> Result<usize> {
        let node = self.mesh.add(arguments).await.context("add a node")?;
        self.clients.push(connect(node).await?);
        Ok(self.clients.len() - 1)
    }

    /// Publishes through node `index` and returns what it acknowledged.
    pub async fn publish(&self, index: usize, path: &Path, repo: &str) -> Result<api::Published> {
        publish(&self.clients[index], path, repo).await
    }

    /// Pulls through node `index` and returns what it says.
    pub async fn pull(&self, index: usize, ask: api::PullRequest) -> Result<api::Pulled> {
        pull(&self.clients[index], ask).await
    }

    /// Verifies through node `index`.
    pub async fn verify(&self, index: usize, repo: &str) -> Result<api::Verified> {
        let mut events = self.clients[index].verify(repo).await?;
        while let Some(event) = events.next().await? {
            if let Some(api::verify_event::Event::Done(done)) = event.event {
                return Ok(done);
            }
        }
        bail!("the verify ended without a result")
    }

    /// Waits until every node is connected to every other and has its advert.
    pub async fn all_know_each_other(&self) -> Result<()> {
        wait_until("the nodes know each other", || async {
            for client in &self.clients {
                let peers = client.peers().await?.peers;
                if peers.iter().filter(|p| p.connected && p.capacity.is_some()).count() + 1 < self.clients.len() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    /// Waits until node `index` knows `repo`.
    pub async fn knows(&self, index: usize, repo: &str) -> Result<()> {
        wait_until("the repo is known", || async { Ok(self.clients[index].resolve(repo).await.is_ok()) }).await
    }

    /// Stops every node in order and removes their homes.
    pub async fn stop(self) {
        self.mesh.stop().await;
    }
}

/// Publishes through a client and returns what was acknowledged.
pub async fn publish(client: &Client, path: &Path, repo: &str) -> Result<api::Published> {
    let path = path.display().to_string();
    let ask = api::PublishRequest { path, repo: repo.into(), ..api::PublishRequest::default() };
    let mut events = client.publish(ask).await?;
    while let Some(event) = events.next().await? {
        if let Some(api::publish_event::Event::Done(done)) = event.event {
            return Ok(done);
        }
    }
    bail!("the publish ended without a result")
}

/// Pulls through a client and returns what it says.
pub async fn pull(client: &Client, ask: api::PullRequest) -> Result<api::Pulled> {
    let mut events = client.pull(ask).await?;
    while let Some(event) = events.next().await? {
        if let Some(api::pull_event::Event::Done(done)) = event.event {
            return Ok(done);
        }
    }
    bail!("the pull ended without a result")
}

/// Looks until `holds` does; an error of the last look, or the time, ends it.
pub async fn wait_until<F: Future<Output = Result<bool>>>(what: &str, holds: impl Fn() -> F) -> Result<()> {
    let started = Instant::now();
    loop {
        let look = holds().await;
        if matches!(look, Ok(true)) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            look.with_context(|| format!("waiting until {what}"))?;
            bail!("not so after {} s: {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn connect(node: &LocalNode) -> Result<Client> {
    let options = ConnectOptions {
        api: Some(node.ready().api.clone()),
        home: Some(node.home().to_path_buf()),
        ..ConnectOptions::default()
    };
    Ok(Client::connect(&options).await?)
}
