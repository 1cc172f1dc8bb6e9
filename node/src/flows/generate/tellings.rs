//! What a client is told of a generation: which stages, how fast, what was lost and mended.
//!
//! Book-keeping only. Invariant: `Done` counts every token once and reports the stages of the plan in force at the end.

use std::time::Duration;

use cairn_compute::{
    plan::Plan,
    session::{Finish, Recovery, Session},
};
use cairn_protocol::{api, id::NodeId, peer_pb};

use super::{super::plan, Job};

/// The phase of a session that is in line.
pub(super) const WAITING: &str = "wait";

/// Progress is told when this much more has come, or all of it.
const PROGRESS_BYTES: u64 = 4 << 20;

/// The story of one generation so far.
pub(super) struct Story {
    /// Set by the machine's last effect.
    pub ended: Option<Finish>,
    nodes: Vec<NodeId>,
    reports: Vec<api::StageReport>,
    told_bytes: Vec<u64>,
    epoch: u32,
    earlier: Vec<api::Replan>,
    pauses_ms: Vec<f64>,
    prompt_tokens: u32,
    text: String,
    first_token: Option<Duration>,
    last_token: Option<Duration>,
    laps_ms: Vec<f64>,
    tokens: u64,
}

impl Story {
    /// Before anything happened.
    pub fn new(job: &Job) -> Story {
        Story {
            ended: None,
            nodes: Vec::new(),
            reports: Vec::new(),
            told_bytes: Vec::new(),
            epoch: 0,
            earlier: Vec::new(),
            pauses_ms: Vec::new(),
            prompt_tokens: job.machine.prompt.len() as u32,
            text: String::new(),
            first_token: None,
            last_token: None,
            laps_ms: Vec::new(),
            tokens: 0,
        }
    }

    /// Of the plan in force.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The node of a stage of the plan in force.
    pub fn node(&self, index: usize) -> Option<NodeId> {
        self.nodes.get(index).copied()
    }

    /// The first message.
    pub fn started(&self, job: &Job, made: &Plan) -> api::Started {
        api::Started {
            session: job.session.to_string(),
            revision: job.revision.to_string(),
            seed: job.demands.sampling.seed,
            plan: Some(plan::to_api(&job.path, job.revision, made)),
            resume_token: job.resume_token.clone(),
            prompt_tokens: self.prompt_tokens,
            adapter: job.adapter_revision().map(|revision| revision.to_string()).unwrap_or_default(),
        }
    }

    /// A plan came into force.
    pub fn opened(&mut self, epoch: u32, made: &Plan) {
        if !self.reports.is_empty() {
            self.earlier.push(api::Replan { stages: std::mem::take(&mut self.reports) });
        }
        self.epoch = epoch;
        self.nodes = made.stages.iter().map(|s| s.node).collect();
        self.told_bytes = vec![0; made.stages.len()];
        self.reports = made.stages.iter().map(|s| report(s.node, s.layers.start, s.layers.end)).collect();
    }

    /// A stage loads; sometimes worth telling.
    pub fn progress(&mut self, epoch: u32, index: usize, said: &peer_pb::StageProgress) -> Option<api::Progress> {
        let node = self.node(index).filter(|_| epoch == self.epoch)?;
        let told = self.told_bytes.get_mut(index)?;
        if said.bytes_done < *told + PROGRESS_BYTES && said.bytes_done < said.bytes_needed {
            return None;
        }
        *told = said.bytes_done;
        Some(api::Progress {
            phase: "load".to_owned(),
            bytes_done: said.bytes_done,
            bytes_total: said.bytes_needed,
            item: node.to_string(),
            place: 0,
        })
    }

    /// A stage has the session in line.
    pub fn waiting(&self, epoch: u32, index: usize, place: u32) -> Option<api::Progress> {
        let node = self.node(index).filter(|_| epoch == self.epoch)?;
        let (phase, item) = (WAITING.to_owned(), node.to_string());
        Some(api::Progress { phase, item, place, bytes_done: 0, bytes_total: 0 })
    }

    /// A stage is ready.
    pub fn ready(&mut self, epoch: u32, index: usize, said: &peer_pb::StageReady) {
        if let Some(report) = self.reports.get_mut(index).filter(|_| epoch == self.epoch) {
            report.bytes_needed = said.bytes_needed;
            report.bytes_local = said.bytes_local;
            report.bytes_fetched = said.bytes_fetched;
            report.bytes_overhead = said.bytes_overhead;
        }
    }

    /// A stage lives, and says how long it computes for a token.
    pub fn beat(&mut self, epoch: u32, index: usize, said: &peer_pb::StageBeat) {
        if let Some(report) = self.reports.get_mut(index).filter(|_| epoch == self.epoch && said.decode_steps > 0) {
            report.step_ms = said.decode_ns as f64 / said.decode_steps as f64 / 1e6;
        }
    }

    /// A token was emitted.
    pub fn token(&mut self, at: Duration, text: &str) {
        self.tokens += 1;
        self.first_token.get_or_insert(at);
        if let Some(before) = self.last_token.replace(at) {
            self.laps_ms.push((at - before).as_secs_f64() * 1e3);
        }
        self.text.push_str(text);
    }

    /// A loss was mended.
    pub fn recovered(&mut self, recovery: &Recovery) -> api::Recovery {
        self.pauses_ms.push(recovery.pause_ms as f64);
        let why: Vec<String> = recovery.lost.iter().map(|(node, why)| format!("{}: {why}", node.short())).collect();
        api::Recovery {
            node: recovery.lost.first().map(|(node, _)| node.to_string()).unwrap_or_default(),
            why: why.join("; "),
            stages: self.reports.clone(),
            pause_ms: recovery.pause_ms as f64,
            noticed_ms: recovery.noticed_ms as f64,
            replanned_ms: recovery.replanned_ms as f64,
            rebuilt_ms: recovery.rebuilt_ms() as f64,
        }
    }

    /// The last message; `rest` is text that was held back.
    pub fn done(&mut self, job: &Job, session: &Session, finish: &str, rest: &str) -> api::Done {
        self.text.push_str(rest);
        api::Done {
            tokens: session.generated().to_vec(),
            text: std::mem::take(&mut self.text),
            finish: finish.to_owned(),
            seed: job.demands.sampling.seed,
            ttft_ms: self.first_token.map_or(0.0, |d| d.as_secs_f64() * 1e3),
            tokens_per_s: self.tokens_per_s(),
            stages: std::mem::take(&mut self.reports),
            replans: std::mem::take(&mut self.earlier),
            recoveries: session.recoveries(),
            pauses_ms: std::mem::take(&mut self.pauses_ms),
            prompt_tokens: self.prompt_tokens,
            lap_ms: median(&mut self.laps_ms),
            cached_tokens: session.cached() as u32,
            evictions: session.evictions(),
        }
    }

    /// Tokens after the first, by the time they took.
    fn tokens_per_s(&self) -> f64 {
        match (self.first_token, self.last_token) {
            (Some(first), Some(last)) if last > first => (self.tokens - 1) as f64 / (last - first).as_secs_f64(),
            _ => 0.0,
        }
    }
}

/// 0 of nothing.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn report(node: NodeId, first_layer: u32, end_layer: u32) -> api::StageReport {
    api::StageReport { node: node.to_string(), first_layer, end_layer, ..Default::default() }
}
