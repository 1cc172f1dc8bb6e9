//! A running node: everything it is made of, in the order in which it starts and stops.
//!
//! The one context that flows borrow; every field is a handle or a value. What to do is decided elsewhere: here things are
//! only brought to life and laid to rest.
//!
//! Start: home → registry → engine → stages → data → net → flows → doors → `ready.json`. Stop is the same backwards:
//! `ready.json` → doors → flows → net → data → engine → registry, under one deadline ([`STOP_PATIENCE`]).
//!
//! Invariant: `ready.json` exists only while every door is open, and the registry is closed last, so that whatever was
//! acknowledged is on disk.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cairn_compute::{Engine, EngineConfig};
use cairn_protocol::advert::{Capacity, Load};
use cairn_protocol::key::Keypair;
use cairn_protocol::refusal::{Reason, Refusal};
use cairn_registry::{Registry, RegistryOptions};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capacity;
use crate::config::Config;
use crate::data::{self, DataHandle};
use crate::doors::{Addresses, Bound, Doors};
use crate::flows;
use crate::home::{Home, Ready};
use crate::net::{self, NetConfig, NetHandle, Statement};
use crate::stages::{self, StageHost};
use crate::telemetry::Counters;

/// From the wish to stop to the last step, the registry's flush excepted. Service managers kill after 10 s or later.
pub const STOP_PATIENCE: Duration = Duration::from_secs(7);

/// How long calls under way may finish by themselves before they are cancelled.
const CALLS_PATIENCE: Duration = Duration::from_millis(1500);

/// The name that peers see.
const AGENT: &str = concat!("cairn/", env!("CARGO_PKG_VERSION"));

/// A node that runs. Used as `Arc<Node>`.
pub struct Node {
    /// What it was told to be.
    pub config: Config,
    /// Its locked folder.
    pub home: Home,
    /// Its one key, for both stacks.
    pub identity: Keypair,
    /// What it remembers.
    pub registry: Registry,
    /// Talk with peers.
    pub net: NetHandle,
    /// Bytes from and to peers.
    pub data: DataHandle,
    /// The threads that compute.
    pub engine: Engine,
    /// The stages it serves.
    pub stages: StageHost,
    /// What the machine can do, as measured at the start.
    pub capacity: Capacity,
    /// What models are for, as their files say.
    pub(crate) known_tasks: flows::tasks::KnownTasks,
    /// How mirroring stands.
    pub mirror: Arc<flows::mirror::Board>,
    /// Cancelled when flows must end.
    pub shutdown: CancellationToken,
    /// Everything that runs beside a call; awaited on stop.
    pub tasks: TaskTracker,
    /// What `/metrics` shows.
    pub counters: Counters,
    /// When it started.
    pub started: Instant,
    /// Where its doors are.
    pub doors: Addresses,
    /// Guards the open doors until someone takes them to close them; never held across an await.
    open_doors: Mutex<Option<Doors>>,
}

impl Node {
    /// Starts a node; returns when every door is open and `ready.json` is written. What was started before something
    /// failed is stopped again.
    pub async fn start(config: Config) -> Result<Arc<Node>, Refusal> {
        let home = Home::open(&config.home)?;
        let bound = Bound::bind(&config).await?;
        let options = RegistryOptions { catalog_bytes_max: config.catalog_bytes_max };
        let registry = Registry::open_with(home.root(), config.realm, options)
            .await
            .map_err(|error| failed("the catalogue", &error, "restore the home from a backup, or another --home"))?;
        match Node::assemble(config, home, bound, registry.clone()).await {
            Ok(node) => Ok(node),
            Err(refusal) => {
                registry.close().await;
                Err(refusal)
            }
        }
    }

    async fn assemble(config: Config, home: Home, bound: Bound, registry: Registry) -> Result<Arc<Node>, Refusal> {
        let identity = home.identity()?;
        let shutdown = CancellationToken::new();
        let engine =
            Engine::start(EngineConfig { threads: config.threads, level: None, memory_max: config.stage_memory_bytes })
                .map_err(|error| failed("the engine", &error, "--threads 1"))?;
        let capacity = measure(&home, config.stage_memory_bytes).await?;
        let stages = StageHost::new(&config, &engine);
        let data = data::start(&config, &identity, &registry, stages.clone()).await?;
        let statement = Statement {
            capacity: capacity.clone(),
            grants: config.grants,
            load: Load { stage_memory_free_bytes: config.stage_memory_bytes, ..Load::default() },
            data_addresses: data.addresses(),
            ..Statement::default()
        };
        let (net, inbox) = match net::start(&identity, net_config(&config), statement).await {
            Ok(started) => started,
            Err(error) => {
                data.shutdown().await;
                engine.stop();
                let refusal = Refusal::new(Reason::Conflict, "the network", error.to_string());
                return Err(refusal.try_this("--listen /ip4/0.0.0.0/tcp/0"));
            }
        };
        let node = Arc::new(Node {
            doors: bound.addresses(),
            config,
            home,
            identity,
            registry,
            net,
            data,
            engine,
            stages,
            capacity,
            known_tasks: flows::tasks::KnownTasks::default(),
            mirror: Arc::default(),
            shutdown,
            tasks: TaskTracker::new(),
            counters: Counters::default(),
            started: Instant::now(),
            open_doors: Mutex::new(None),
        });
        node.stages.attach(&node);
        node.data.attach(&node);
        let heard = flows::records::run(
            node.registry.clone(),
            node.net.clone(),
            node.mirror.clone(),
            inbox,
            node.shutdown.clone(),
        );
        node.tasks.spawn(heard);
        node.tasks.spawn(flows::mirror::run(node.clone()));
        node.tasks.spawn(stages::advertise(node.clone()));
        if let Err(refusal) = node.open_doors(bound) {
            node.stop().await;
            return Err(refusal);
        }
        Ok(node)
    }

    fn open_doors(self: &Arc<Self>, bound: Bound) -> Result<(), Refusal> {
        let doors = bound.open(self)?;
        *self.open_doors.lock().unwrap_or_else(PoisonError::into_inner) = Some(doors);
        self.home.write_ready(&self.ready())?;
        Ok(())
    }

    /// Where this node can be reached.
    pub fn ready(&self) -> Ready {
        Ready {
            event: "ready".to_string(),
            pid: std::process::id(),
            node_id: self.identity.node_id().to_string(),
            peer_id: self.net.peer_id(),
            listen: self.net.listen_addresses(),
            data: self.data.address().to_string(),
            api: self.doors.api.to_string(),
            http: self.doors.http.map(|address| address.to_string()),
        }
    }

    /// Stops in order. Calls under way get a moment to finish; whatever outlasts the deadline is abandoned, except the
    /// registry, which is always given the time to write what it knows.
    pub async fn stop(&self) {
        if tokio::time::timeout(STOP_PATIENCE, self.stop_all_but_registry()).await.is_err() {
            tracing::warn!("some parts did not stop in {STOP_PATIENCE:?} and were abandoned");
        }
        self.registry.close().await;
        tracing::info!("stopped");
    }

    async fn stop_all_but_registry(&self) {
        if let Err(error) = self.home.remove_ready() {
            tracing::warn!(%error, "ready.json stays behind");
        }
        let doors = self.open_doors.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(doors) = doors {
            self.close_doors(doors).await;
            tracing::debug!("doors are closed");
        }
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        tracing::debug!("flows have ended");
        self.net.shutdown().await;
        tracing::debug!("net has ended");
        self.data.shutdown().await;
        tracing::debug!("data has ended");
        self.engine.stop();
        tracing::debug!("engine has ended");
    }

    /// No new calls; those under way may finish for a moment, then they are cancelled.
    async fn close_doors(&self, doors: Doors) {
        let mut closing = std::pin::pin!(doors.close(CALLS_PATIENCE * 2));
        tokio::select! {
            () = &mut closing => return,
            () = tokio::time::sleep(CALLS_PATIENCE) => self.shutdown.cancel(),
        }
        closing.await;
    }
}

async fn measure(home: &Home, stage_memory_bytes: u64) -> Result<Capacity, Refusal> {
    let folder = home.root().to_path_buf();
    tokio::task::spawn_blocking(move || capacity::measure(&folder, stage_memory_bytes))
        .await
        .map_err(|error| failed("measuring this machine", &error, "the node's log"))
}

fn net_config(config: &Config) -> NetConfig {
    NetConfig {
        realm: config.realm,
        listen: config.listen.clone(),
        bootstrap: config.bootstrap.clone(),
        mdns: config.mdns,
        agent: AGENT.to_string(),
        home: config.home.clone(),
    }
}

fn failed(what: &str, error: &dyn std::fmt::Display, tip: &str) -> Refusal {
    Refusal::new(Reason::Internal, what, error.to_string()).try_this(tip)
}
