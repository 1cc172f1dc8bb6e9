//! Whole nodes in this process, on loopback, in a realm of their own.

pub mod tiny;

use std::{path::Path, sync::Arc, time::Duration};

use cairn_node::{
    config::{Config, Flags},
    flows,
    shell::Node,
};
use cairn_protocol::{
    api::{self, generate_event, publish_event},
    refusal::Refusal,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::Instant};

/// The name the tiny model is published under.
pub const REPO: &str = "acme/tiny";

/// Nodes that know each other; the first has published the tiny model.
pub struct Mesh {
    pub nodes: Vec<Arc<Node>>,
    _home: TempDir,
}

impl Mesh {
    /// Starts one node for each of `settings`, which holds what that node is set to beside the usual.
    pub async fn start(settings: &[&[(&'static str, &str)]]) -> Mesh {
        let home = tempfile::tempdir().unwrap();
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for (index, more) in settings.iter().enumerate() {
            let bootstrap = nodes.first().map(|n| n.net.listen_addresses()).unwrap_or_default();
            nodes.push(start(&home.path().join(index.to_string()), bootstrap, more).await);
        }
        let model = home.path().join("model");
        std::fs::create_dir(&model).unwrap();
        tiny::write(&model, 7);
        publish(&nodes[0], &model).await;
        let mesh = Mesh { nodes, _home: home };
        mesh.acquainted().await;
        mesh
    }

    /// `count` nodes as they come.
    pub async fn plain(count: usize) -> Mesh {
        Mesh::start(&vec![&[][..]; count]).await
    }

    async fn acquainted(&self) {
        let others = self.nodes.len() - 1;
        for node in &self.nodes {
            let knows_all = || {
                let known = node.net.peers();
                let is_known = |p: &cairn_node::net::PeerInfo| p.connected && p.same_host && p.advert.is_some();
                known.iter().filter(|p| is_known(p)).count() >= others
            };
            until("every node knows the others", knows_all).await;
        }
    }

    pub async fn stop(self) {
        for node in &self.nodes {
            node.stop().await;
        }
    }
}

async fn start(home: &Path, bootstrap: Vec<String>, more: &[(&'static str, &str)]) -> Arc<Node> {
    let mut flags = Flags::default();
    flags.set("realm", "5a".repeat(32));
    flags.set("listen", "/ip4/127.0.0.1/tcp/0");
    flags.set("data_listen", "127.0.0.1:0");
    flags.set("api_listen", "127.0.0.1:0");
    flags.set("http_listen", "none");
    flags.set("mdns", "false");
    flags.set("threads", "1");
    flags.set("stage_memory_bytes", "256MiB");
    flags.set_list("bootstrap", bootstrap);
    more.iter().for_each(|(key, value)| flags.set(key, *value));
    std::fs::create_dir_all(home).unwrap();
    Node::start(Config::load(home, flags).unwrap()).await.unwrap()
}

async fn publish(node: &Arc<Node>, model: &Path) {
    let request = api::PublishRequest { path: model.display().to_string(), repo: REPO.into(), ..Default::default() };
    let (events, mut heard) = mpsc::channel(64);
    let (done, published) = tokio::join!(flows::publish::publish(node.clone(), request, events), async {
        let mut published = None;
        while let Some(event) = heard.recv().await {
            if let Some(publish_event::Event::Done(done)) = event.event {
                published = Some(done);
            }
        }
        published
    });
    done.unwrap();
    published.expect("a publish ends with what was published");
}

/// Waits for something to become true, at most 20 s.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "in 20 s it did not come true that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a generation said.
#[derive(Debug, Default)]
pub struct Heard {
    pub started: Option<api::Started>,
    pub ids: Vec<u32>,
    pub text: String,
    pub recoveries: Vec<api::Recovery>,
    pub done: Option<api::Done>,
}

/// A greedy generation of `max_tokens` over `stages` nodes (0: the planner chooses).
pub fn request(stages: u32, max_tokens: u32) -> api::GenerateRequest {
    api::GenerateRequest {
        repo: REPO.into(),
        prompt: "In the beginning there was a very long prompt, ".repeat(6),
        raw: true,
        temperature: Some(0.0),
        max_tokens,
        stages,
        ..Default::default()
    }
}

/// Runs a generation; `on_event` sees every event before it is counted.
pub async fn generate(
    node: &Arc<Node>,
    request: api::GenerateRequest,
    mut on_event: impl FnMut(&Heard, &generate_event::Event),
) -> Result<Heard, Refusal> {
    let (events, mut stream) = mpsc::channel(4);
    let flow = tokio::spawn(flows::generate::generate(node.clone(), request, events));
    let mut heard = Heard::default();
    while let Some(event) = stream.recv().await.and_then(|e| e.event) {
        on_event(&heard, &event);
        match event {
            generate_event::Event::Started(started) => heard.started = Some(started),
            generate_event::Event::Token(token) => {
                assert_eq!(token.index as usize, heard.ids.len(), "tokens come once and in order");
                heard.ids.push(token.id);
                heard.text.push_str(&token.text);
            }
            generate_event::Event::Recovery(recovery) => heard.recoveries.push(recovery),
            generate_event::Event::Done(done) => heard.done = Some(done),
            generate_event::Event::Progress(_) => {}
        }
    }
    flow.await.unwrap().map(|()| heard)
}
