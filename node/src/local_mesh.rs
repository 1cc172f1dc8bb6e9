//! Several real `cairn node` processes on this machine's loopback, for the demo and for tests.
//!
//! Not a simulator: the processes are those a person would start, with free ports, a realm and a home of their own and
//! no mDNS. Its invariant: when a [`LocalMesh`] is gone, so are its processes and its folder, unless it was told to
//! keep them; a process whose parent is killed notices that its standard input closed and stops. The nodes take no
//! setting from this process's environment but those of [`INHERITED`].

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// How long a node may take from its start to its ready line.
const READY_MS: u64 = 60_000;
/// How long a node may take to stop in order before it is killed.
const STOP_MS: u64 = 10_000;

/// Variables of ours that are about this machine and not about one node.
const INHERITED: [&str; 4] = ["CAIRN_LOG", "CAIRN_LEVEL", "CAIRN_DEVICE", "CAIRN_NVML"];

/// How long the system may take to end a killed process.
const KILL_MS: u64 = 5_000;

/// What a node prints when every door is open.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// Process id.
    pub pid: u32,
    /// Public key, lowercase hex.
    pub node_id: String,
    /// The same key as libp2p writes it.
    pub peer_id: String,
    /// Whole multiaddresses, fit for another node's `--bootstrap`.
    pub listen: Vec<String>,
    /// iroh's `IP:PORT`.
    pub data: String,
    /// gRPC's `IP:PORT`.
    pub api: String,
    /// HTTP's `IP:PORT`, where that door is open.
    pub http: Option<String>,
}

/// Why a node did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process could not be started, or its folder not be made.
    #[error("starting {what}: {source}")]
    Io {
        /// What was being started or made.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It ended or said nothing before its time.
    #[error("node {index} was not ready within {READY_MS} ms; its log is {log}")]
    NotReady {
        /// Which node of the mesh.
        index: usize,
        /// Where its messages went.
        log: String,
    },
}

/// What every node of a mesh is started with.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// The `cairn` program.
    pub program: PathBuf,
    /// Realm as 64 hex digits.
    pub realm: String,
    /// Further arguments of `cairn node`, for all of them.
    pub arguments: Vec<String>,
    /// Environment for all of them; of this process's own `CAIRN_*` they get only [`INHERITED`].
    pub environment: Vec<(String, String)>,
    /// Text of `config.toml` for node 0, 1, …; those after the last have none.
    pub configs: Vec<String>,
}

/// One running node.
#[derive(Debug)]
pub struct LocalNode {
    child: Leashed,
    // Held open: the node stops when it closes. The rest of its standard output is drained by nobody, for a node
    // prints one line there.
    _stdout: Lines<BufReader<ChildStdout>>,
    home: PathBuf,
    ready: Ready,
}

/// Running nodes and the folder of their homes.
#[derive(Debug)]
pub struct LocalMesh {
    nodes: Vec<LocalNode>,
    options: MeshOptions,
    folder: Option<TempDir>,
}

impl LocalMesh {
    /// Starts `count` nodes in a new folder: the first, then the others at once with the first as bootstrap.
    pub async fn start(count: usize, options: MeshOptions) -> Result<Self, StartError> {
        let folder = tempfile::Builder::new()
            .prefix("cairn-mesh-")
            .tempdir()
            .map_err(|source| StartError::Io { what: "a temporary folder".into(), source })?;
        let mut mesh = Self { nodes: Vec::new(), options, folder: Some(folder) };
        mesh.add(&[]).await?;
        let others = (1..count).map(|index| mesh.launch(index, &[]));
        let started: Vec<_> = futures::future::join_all(others).await;
        for node in started {
            mesh.nodes.push(node?);
        }
        Ok(mesh)
    }

    /// Starts one more node, with arguments of its own, and waits for its ready line.
    pub async fn add(&mut self, arguments: &[&str]) -> Result<&LocalNode, StartError> {
        let node = self.launch(self.nodes.len(), arguments).await?;
        self.nodes.push(node);
        Ok(&self.nodes[self.nodes.len() - 1])
    }

    /// Starts node `index` again on its old home, after it was killed or stopped.
    pub async fn restart(&mut self, index: usize) -> Result<&LocalNode, StartError> {
        let node = self.launch(index, &[]).await?;
        self.nodes[index] = node;
        Ok(&self.nodes[index])
    }

    /// The nodes, in the order in which they were started.
    pub fn nodes(&self) -> &[LocalNode] {
        &self.nodes
    }

    /// The realm of all nodes, 64 hex digits.
    pub fn realm(&self) -> &str {
        &self.options.realm
    }

    /// One node, to kill or stop.
    pub fn node_mut(&mut self, index: usize) -> &mut LocalNode {
        &mut self.nodes[index]
    }

    /// The folder that holds every home.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().map_or(Path::new(""), |folder| folder.path())
    }

    /// Stops every node in order and removes the folder.
    pub async fn stop(mut self) {
        futures::future::join_all(self.nodes.iter_mut().map(LocalNode::stop)).await;
    }

    /// Stops every node and leaves the folder; returns where it is.
    pub async fn stop_and_keep(mut self) -> PathBuf {
        futures::future::join_all(self.nodes.iter_mut().map(LocalNode::stop)).await;
        self.folder.take().map(TempDir::keep).unwrap_or_default()
    }

    async fn launch(&self, index: usize, arguments: &[&str]) -> Result<LocalNode, StartError> {
        let home = self.folder().join(format!("node{}", index + 1));
        std::fs::create_dir_all(&home)
            .map_err(|source| StartError::Io { what: format!("{}", home.display()), source })?;
        if let Some(config) = self.options.configs.get(index) {
            let path = home.join("config.toml");
            std::fs::write(&path, config)
                .map_err(|source| StartError::Io { what: format!("{}", path.display()), source })?;
        }
        let log = home.join("stderr.log");
        let failed = |source| StartError::Io { what: format!("node {index}"), source };
        let log_file = std::fs::File::options().create(true).append(true).open(&log).map_err(failed)?;
        let mut command = Command::new(&self.options.program);
        command.args(["--home".as_ref(), home.as_os_str(), "--json".as_ref(), "node".as_ref()]);
        command.args(["--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1"]);
        command.args(["--data-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
        command.args(["--no-mdns", "--until-stdin-closes", "--realm", &self.options.realm]);
        if index > 0 {
            command.args(self.nodes[0].ready.listen.iter().flat_map(|address| ["--bootstrap", address]));
        }
        command.args(&self.options.arguments).args(arguments);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_a_setting(name)) {
            command.env_remove(name);
        }
        command.envs(self.options.environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file);
        let mut child = Leashed(command.spawn().map_err(failed)?);
        let stdout = child.0.stdout.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        let mut lines = BufReader::new(stdout).lines();
        let not_ready = || StartError::NotReady { index, log: tail(&log) };
        let line = timeout(Duration::from_millis(READY_MS), lines.next_line()).await.map_err(|_| not_ready())?;
        let line = line.ok().flatten().ok_or_else(not_ready)?;
        let ready = serde_json::from_str(&line).map_err(|_| not_ready())?;
        Ok(LocalNode { child, _stdout: lines, home, ready })
    }
}

impl LocalNode {
    /// What it said when it was ready.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Its home folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Kills it at once (SIGKILL) and waits until it is gone.
    pub async fn kill(&mut self) -> io::Result<()> {
        self.child.0.kill().await
    }

    /// Whether the process runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.0.try_wait(), Ok(None))
    }

    /// Asks it to stop in order (its standard input closes); kills it when that takes too long.
    pub async fn stop(&mut self) {
        drop(self.child.0.stdin.take());
        if timeout(Duration::from_millis(STOP_MS), self.child.0.wait()).await.is_err()
            && let Err(error) = self.child.0.kill().await
        {
            tracing::warn!(%error, "a node could not be killed");
        }
    }
}

/// A process that is gone when this is dropped, so that nobody writes to its home any more.
#[derive(Debug)]
struct Leashed(Child);

impl Drop for Leashed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.start_kill();
        let started = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && started.elapsed() < Duration::from_millis(KILL_MS) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether a variable would set something of a node.
fn is_a_setting(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with("CAIRN_") && !INHERITED.contains(&name))
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}
