//! The acts of the demo, one function each, in order: nodes, publish, plan, a generation on cold nodes, mirrors, and a
//! generation that loses a node.
//!
//! Each act asks the daemons and checks what they answer; a check that fails ends the demo with a refusal, so that exit
//! code 0 means that the story is true.

use std::path::{Path, PathBuf};
use std::time::Instant;

use cairn_client::{Client, api};
use cairn_protocol::refusal::{Reason, Refusal};
use serde_json::{Value, json};

use super::DemoArgs;
use super::teller::Teller;
use crate::builtin;
use crate::cli::Global;
use crate::local_clients::{self, last, wait_until};
use crate::local_mesh::LocalMesh;

/// The repo that the demo publishes.
const REPO: &str = "demo/tiny";
/// Tokens of each generation.
const TOKENS: u32 = 64;
/// The seed of both generations: they must agree.
const SEED: u64 = 11;
/// Fetched beyond what the layers need: headers, tokenizer, manifest, proofs.
const EXTRA_BYTES_MAX: u64 = 1 << 20;

/// A demo under way.
pub(super) struct Story {
    mesh: LocalMesh,
    clients: Vec<Client>,
    teller: Teller,
    work: tempfile::TempDir,
    figures: Figures,
}

/// What the last table and the result say.
#[derive(Default)]
struct Figures {
    cold: api::Done,
    lossy: api::Done,
    recovery: Option<api::Recovery>,
    mirrored_bytes: u64,
    mirror_seconds: f64,
}

/// What to generate from.
struct Prompt {
    text: String,
    raw: bool,
}

/// One generation as it was heard.
struct Heard {
    done: api::Done,
    recovery: Option<api::Recovery>,
}

impl Story {
    /// Starts the nodes.
    pub(super) async fn begin(args: &DemoArgs, program: PathBuf, mut teller: Teller) -> Result<Self, Refusal> {
        let started = Instant::now();
        let (mesh, clients) = local_clients::start(program, args.nodes as usize).await?;
        let work = tempfile::Builder::new().prefix("cairn-demo-").tempdir();
        let work = work.map_err(|e| failed("a temporary folder", e.to_string()))?;
        let ids: Vec<&str> = mesh.nodes().iter().map(|n| n.ready().node_id.as_str()).collect();
        let value = json!({ "event": "nodes", "nodes": ids, "realm": mesh.realm(), "seconds": seconds(started) });
        teller.step(&format!("{} nodes on this machine, in a realm of their own", ids.len()), seconds(started), &value);
        for (i, node) in mesh.nodes().iter().enumerate() {
            let ready = node.ready();
            teller.detail(&format!("node {}  {}…  pid {}  gRPC {}", i + 1, &ready.node_id[..10], ready.pid, ready.api));
        }
        Ok(Self { mesh, clients, teller, work, figures: Figures::default() })
    }

    /// All acts.
    pub(super) async fn tell(&mut self, global: &Global, args: &DemoArgs) -> Result<(), Refusal> {
        let (path, prompt) = self.model(global, args).await?;
        self.publish(&path).await?;
        self.plan().await?;
        self.cold_generation(&prompt).await?;
        self.mirrors().await?;
        self.lossy_generation(&prompt).await?;
        self.result();
        Ok(())
    }

    /// Stops the nodes and removes every file, unless they are to be kept; then says where.
    pub(super) async fn end(self, keep: bool) -> Option<PathBuf> {
        if keep {
            return Some(self.mesh.stop_and_keep().await);
        }
        self.mesh.stop().await;
        None
    }

    /// The files to publish and what to ask the model.
    async fn model(&self, global: &Global, args: &DemoArgs) -> Result<(PathBuf, Prompt), Refusal> {
        let question = Prompt { text: "Why is the sky blue?".into(), raw: false };
        let folder = self.work.path().join("model");
        match &args.model {
            None => {
                builtin::write(&folder).map_err(|e| failed("the built-in model", e.to_string()))?;
                Ok((folder, Prompt { text: builtin::PROMPT.into(), raw: true }))
            }
            Some(model) if Path::new(model).exists() => {
                let path = std::fs::canonicalize(model).map_err(|e| failed(model, e.to_string()))?;
                Ok((path, question))
            }
            Some(repo) => {
                pull_from_own_daemon(global, repo, &folder).await?;
                Ok((folder, question))
            }
        }
    }

    async fn publish(&mut self, path: &Path) -> Result<(), Refusal> {
        let started = Instant::now();
        let done = local_clients::publish(&self.clients, path, REPO).await?;
        let value = json!({
            "event": "published", "repo": REPO, "revision": done.revision, "publisher": done.publisher, "files": done.files,
            "bytes": done.bytes, "seconds": seconds(started),
        });
        self.teller.step(&format!("node 1 publishes {REPO}, signed; every node hears of it"), seconds(started), &value);
        self.teller.detail(&format!("revision  {}…  {} files, {}", &done.revision[..16], done.files, size(done.bytes)));
        self.teller.detail(&format!("publisher {}…", &done.publisher[..16]));
        Ok(())
    }

    async fn plan(&mut self) -> Result<(), Refusal> {
        let started = Instant::now();
        let ask =
            api::PlanRequest { repo: REPO.into(), stages: self.clients.len() as u32, ..api::PlanRequest::default() };
        let plan = self.clients[0].plan(ask).await?;
        let stages: Vec<Value> = plan
            .stages
            .iter()
            .map(|s| json!({ "node": s.node, "layers": [s.first_layer, s.end_layer], "bytes": s.bytes, "ms": s.ms }))
            .collect();
        let predicted = json!({ "ttft_ms": plan.predicted_ttft_ms, "tokens_per_s": plan.predicted_tokens_per_s });
        let value = json!({ "event": "plan", "stages": stages, "predicted": predicted });
        self.teller.step(&format!("the plan: its layers over {} nodes", plan.stages.len()), seconds(started), &value);
        for stage in &plan.stages {
            let ends = match (stage.embedding, stage.head) {
                (true, true) => "embedding + head + ",
                (true, false) => "embedding + ",
                (false, true) => "head + ",
                (false, false) => "",
            };
            let layers = format!("{ends}layers {}..{}", stage.first_layer, stage.end_layer);
            self.teller.detail(&format!("{}  {layers:28}  {}", self.node_name(&stage.node), size(stage.bytes)));
        }
        Ok(())
    }

    async fn cold_generation(&mut self, prompt: &Prompt) -> Result<(), Refusal> {
        let started = Instant::now();
        self.teller.step(
            "a generation, split over cold nodes: each fetches just its layers",
            0.0,
            &json!({ "event": "cold" }),
        );
        let heard = self.generate(prompt, None).await?;
        for stage in &heard.done.stages {
            if stage.bytes_fetched > stage.bytes_needed + stage.bytes_needed / 100 + EXTRA_BYTES_MAX {
                let why = format!("a stage needed {} and fetched {}", stage.bytes_needed, stage.bytes_fetched);
                return Err(failed("the cold generation", why));
            }
            self.teller.detail(&format!(
                "{}  layers {}..{}: needed {}, had {}, fetched {}",
                self.node_name(&stage.node),
                stage.first_layer,
                stage.end_layer,
                size(stage.bytes_needed),
                size(stage.bytes_local),
                size(stage.bytes_fetched),
            ));
        }
        self.teller.result(&json!({
            "event": "generated", "tokens": heard.done.tokens, "text": heard.done.text, "ttft_ms": heard.done.ttft_ms,
            "tokens_per_s": heard.done.tokens_per_s, "stages": stages_json(&heard.done.stages), "seconds": seconds(started),
        }));
        self.figures.cold = heard.done;
        Ok(())
    }

    async fn mirrors(&mut self) -> Result<(), Refusal> {
        let started = Instant::now();
        for client in &self.clients[1..] {
            client.mirror_add("*").await?;
        }
        wait_until("the mirrors hold the model", || async {
            for client in &self.clients[1..] {
                let listed = client.mirror_list().await?;
                if listed.repos.is_empty() || listed.repos.iter().any(|r| r.state != "held") {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?;
        self.figures.mirror_seconds = seconds(started);
        let (mut lines, mut mirrors) = (Vec::new(), Vec::new());
        for (i, client) in self.clients.iter().enumerate().skip(1) {
            let listed = client.mirror_list().await?.repos;
            let verified = verify(client).await?;
            let from: Vec<_> = listed.iter().flat_map(|r| &r.bytes_from).collect();
            self.figures.mirrored_bytes += from.iter().map(|f| f.bytes).sum::<u64>();
            let sources: Vec<String> =
                from.iter().map(|f| format!("{} from {}", size(f.bytes), self.node_name(&f.node))).collect();
            lines.push(format!("node {}  {}; verified, {} files", i + 1, sources.join(", "), verified.files));
            let from: serde_json::Map<_, _> = from.iter().map(|f| (f.node.clone(), json!(f.bytes))).collect();
            mirrors
                .push(json!({ "node": self.mesh.nodes()[i].ready().node_id, "bytes_from": from, "ok": verified.ok }));
        }
        let value = json!({ "event": "mirrored", "mirrors": mirrors, "seconds": self.figures.mirror_seconds });
        self.teller.step(
            "the others mirror it: what they lack, from all who have it",
            self.figures.mirror_seconds,
            &value,
        );
        lines.iter().for_each(|line| self.teller.detail(line));
        Ok(())
    }

    async fn lossy_generation(&mut self, prompt: &Prompt) -> Result<(), Refusal> {
        let started = Instant::now();
        // The last node of the pipeline that is not the one we asked: the worst to lose, since it samples.
        let own = &self.mesh.nodes()[0].ready().node_id;
        let victim = self.figures.cold.stages.iter().rev().find(|s| s.node != *own).map(|s| s.node.clone());
        let Some(victim) = victim else { return Ok(()) };
        let index = self.mesh.nodes().iter().position(|n| n.ready().node_id == victim).unwrap_or_default();
        let heading = format!("again, and node {} is killed half way", index + 1);
        self.teller.step(&heading, 0.0, &json!({ "event": "lossy", "victim": victim }));
        let heard = self.generate(prompt, Some(index)).await?;
        if heard.done.tokens != self.figures.cold.tokens {
            return Err(failed("the recovered text", "it differs from the undisturbed one".into()));
        }
        if heard.done.recoveries == 0 {
            return Err(failed("the recovery", "a stage was killed and nobody noticed".into()));
        }
        self.teller.detail("the same text, token for token");
        if let Some(r) = &heard.recovery {
            self.teller.detail(&format!(
                "pause {:.0} ms = noticed after {:.0} + new plan {:.0} + rebuilt {:.0}",
                r.pause_ms, r.noticed_ms, r.replanned_ms, r.rebuilt_ms
            ));
        }
        self.teller.result(&json!({
            "event": "recovered", "victim": victim, "same_text": true, "recoveries": heard.done.recoveries,
            "pauses_ms": heard.done.pauses_ms, "seconds": seconds(started),
        }));
        (self.figures.lossy, self.figures.recovery) = (heard.done, heard.recovery);
        Ok(())
    }

    /// Streams a generation over all nodes; kills node `victim` when half of the tokens are there.
    async fn generate(&mut self, prompt: &Prompt, victim: Option<usize>) -> Result<Heard, Refusal> {
        let alive = self.clients.len() as u32;
        let ask = api::GenerateRequest {
            repo: REPO.into(),
            prompt: prompt.text.clone(),
            raw: prompt.raw,
            max_tokens: TOKENS,
            temperature: Some(0.7),
            top_p: 0.95,
            seed: Some(SEED),
            stages: alive,
            ..api::GenerateRequest::default()
        };
        let mut events = self.clients[0].generate(ask).await?;
        self.teller.open_text(&prompt.text);
        let (mut recovery, mut killed) = (None, false);
        while let Some(event) = events.next().await? {
            match event.event {
                Some(api::generate_event::Event::Token(token)) => {
                    self.teller.text(&token.text);
                    if let (false, Some(index), true) = (killed, victim, token.index + 1 >= self.half()) {
                        self.teller.mark("✗");
                        killed = true;
                        let node = self.mesh.node_mut(index);
                        node.kill().await.map_err(|e| failed("killing a node", e.to_string()))?;
                    }
                }
                Some(api::generate_event::Event::Recovery(r)) => recovery = Some(r),
                Some(api::generate_event::Event::Done(done)) => {
                    self.teller.close_text();
                    return Ok(Heard { done, recovery });
                }
                _ => (),
            }
        }
        Err(failed("the generation", "it ended without a result".into()))
    }

    /// Half of the tokens of the undisturbed run.
    fn half(&self) -> u32 {
        (self.figures.cold.tokens.len() as u32 / 2).max(1)
    }

    fn result(&mut self) {
        let (cold, lossy) = (&self.figures.cold, &self.figures.lossy);
        let nodes: Vec<&str> = self.mesh.nodes().iter().map(|n| n.ready().node_id.as_str()).collect();
        let value = json!({
            "event": "done", "nodes": nodes, "tokens": cold.tokens, "text": cold.text, "stages": stages_json(&cold.stages),
            "tokens_per_s": cold.tokens_per_s, "ttft_ms": cold.ttft_ms, "recoveries": lossy.recoveries,
            "pauses_ms": lossy.pauses_ms, "loss_before": Value::Null, "loss_after": Value::Null,
        });
        self.teller.step("what was measured", 0.0, &value);
        let rows = [
            ("first token, nodes cold", format!("{:.0} ms", cold.ttft_ms)),
            ("decode over the nodes", format!("{:.0} tokens/s", cold.tokens_per_s)),
            ("mirrored", format!("{} in {:.2} s", size(self.figures.mirrored_bytes), self.figures.mirror_seconds)),
            ("nodes lost, tokens lost", format!("{}, 0", lossy.recoveries)),
            ("pause", lossy.pauses_ms.first().map_or("none".into(), |ms| format!("{ms:.0} ms"))),
        ];
        rows.iter().for_each(|(what, figure)| self.teller.figure(what, figure));
    }

    fn node_name(&self, id: &str) -> String {
        let index = self.mesh.nodes().iter().position(|n| n.ready().node_id == id);
        index.map_or_else(|| id[..id.len().min(10)].to_string(), |i| format!("node {}", i + 1))
    }
}

/// Pulls `repo` through the daemon that this person runs, into `folder`.
async fn pull_from_own_daemon(global: &Global, repo: &str, folder: &Path) -> Result<(), Refusal> {
    let client = global.connect().await?;
    let ask = api::PullRequest { repo: repo.into(), to: folder.display().to_string(), ..api::PullRequest::default() };
    let mut events = client.pull(ask).await?;
    last(&mut events, |e| match e.event {
        Some(api::pull_event::Event::Done(done)) => Some(done),
        _ => None,
    })
    .await
    .map(drop)
}

async fn verify(client: &Client) -> Result<api::Verified, Refusal> {
    let mut events = client.verify(REPO).await?;
    let verified = last(&mut events, |e| match e.event {
        Some(api::verify_event::Event::Done(done)) => Some(done),
        _ => None,
    })
    .await?;
    if verified.ok { Ok(verified) } else { Err(failed("a mirror", format!("{} bad files", verified.bad.len()))) }
}

fn stages_json(stages: &[api::StageReport]) -> Vec<Value> {
    stages
        .iter()
        .map(|s| {
            json!({
                "node": s.node, "layers": [s.first_layer, s.end_layer], "bytes_needed": s.bytes_needed,
                "bytes_local": s.bytes_local, "bytes_fetched": s.bytes_fetched, "bytes_overhead": s.bytes_overhead,
            })
        })
        .collect()
}

fn seconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1000.0).round() / 1000.0
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn failed(what: &str, why: String) -> Refusal {
    Refusal::new(Reason::Internal, what, why).try_this("cairn demo --keep, and look at the logs in the homes")
}
