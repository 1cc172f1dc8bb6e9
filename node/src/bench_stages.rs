//! What splitting costs: decode and time to the first token of one model on one process, and over several, in one run.
//!
//! All are real `cairn node` processes on this machine's loopback. The one stage runs on the node that is asked, which has
//! no peers, so that its figures hold no hop; rounds alternate, so that a busy minute falls on both. On one machine the
//! stages share the cores and take turns, so the ratio says what splitting costs and not what more machines bring; the
//! bound is 1, less the links. It measures; it promises nothing. Invariant: no process and no file is left behind.

use std::path::{Path, PathBuf};

use cairn_client::{Client, api};
use cairn_protocol::refusal::{Reason, Refusal};
use serde::Serialize;

use crate::{
    local_clients,
    order::{at, sorted},
};

/// The repo that is published.
const REPO: &str = "bench/model";
/// Said again and again until the prompt is long enough for the matrix kernels: some 120 tokens.
const SENTENCE: &str = "The quick brown fox jumps over the lazy dog. ";
const SENTENCES: usize = 12;

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct StagesOptions {
    /// Processes, and stages, of the split.
    pub nodes: u32,
    /// Tokens decoded a round.
    pub decode_tokens: u32,
    /// Rounds that count.
    pub repeat: u32,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct StagesReport {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens decoded a round.
    pub decode_tokens: u32,
    /// On one process.
    pub one: Side,
    /// Over several.
    pub split: Side,
    /// Decode of the split, as a part of the one's.
    pub decode_ratio: f64,
    /// Time to the one's first token, as a part of the split's.
    pub prefill_ratio: f64,
    /// Both sides decoded the same tokens in all rounds.
    pub same_tokens: bool,
}

/// Medians over the rounds of one side; times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Layers of each stage, half open.
    pub layers: Vec<[u32; 2]>,
    /// Tokens a second after the first.
    pub decode_tokens_per_s: f64,
    /// The slowest round.
    pub decode_min: f64,
    /// The fastest round.
    pub decode_max: f64,
    /// From the request to the first token, weights loaded.
    pub ttft_ms: f64,
    /// From one token to the next, the mean of a round.
    pub lap_ms: f64,
    /// Of a lap, computing on each stage.
    pub step_ms: Vec<f64>,
    /// Of a lap, the rest: frames between the stages, the token home, waking up.
    pub links_ms: f64,
}

/// Measures a model: a file or folder that `program` can publish.
pub async fn measure(program: PathBuf, model: &Path, options: &StagesOptions) -> Result<StagesReport, Refusal> {
    let (alone, alone_clients) = local_clients::start(program.clone(), 1).await?;
    let measured = async {
        let (mesh, clients) = local_clients::start(program, options.nodes as usize).await?;
        let measured = rounds(&alone_clients, &clients, model, options).await;
        mesh.stop().await;
        measured
    }
    .await;
    alone.stop().await;
    measured
}

async fn rounds(
    alone: &[Client],
    clients: &[Client],
    model: &Path,
    options: &StagesOptions,
) -> Result<StagesReport, Refusal> {
    local_clients::publish(alone, model, REPO).await?;
    local_clients::publish(clients, model, REPO).await?;
    let (mut one, mut split) = (Vec::new(), Vec::new());
    for round in 0..=options.repeat {
        let first = generate(&alone[0], 1, options).await?;
        let second = generate(&clients[0], options.nodes, options).await?;
        // The first round loads the weights.
        if round > 0 {
            one.push(first);
            split.push(second);
        }
    }
    let same_tokens = one.iter().chain(&split).all(|done| done.tokens == one[0].tokens);
    let prompt_tokens = one[0].prompt_tokens;
    let (one, split) = (side(&one), side(&split));
    Ok(StagesReport {
        prompt_tokens,
        decode_tokens: options.decode_tokens,
        decode_ratio: split.decode_tokens_per_s / one.decode_tokens_per_s.max(1e-9),
        prefill_ratio: one.ttft_ms / split.ttft_ms.max(1e-9),
        same_tokens,
        one,
        split,
    })
}

async fn generate(client: &Client, stages: u32, options: &StagesOptions) -> Result<api::Done, Refusal> {
    let request = api::GenerateRequest {
        repo: REPO.into(),
        prompt: SENTENCE.repeat(SENTENCES),
        raw: true,
        max_tokens: options.decode_tokens + 1,
        temperature: Some(0.0),
        stages,
        ..api::GenerateRequest::default()
    };
    let mut events = client.generate(request).await?;
    let done = local_clients::last(&mut events, |e| match e.event {
        Some(api::generate_event::Event::Done(done)) => Some(done),
        _ => None,
    })
    .await?;
    if done.recoveries > 0 || done.tokens.len() < 2 {
        let why = format!("a round lost {} stages and made {} tokens", done.recoveries, done.tokens.len());
        return Err(Refusal::new(Reason::Unavailable, "the measurement", why).try_this("a quieter machine"));
    }
    Ok(done)
}

fn side(rounds: &[api::Done]) -> Side {
    let of = |value: fn(&api::Done) -> f64| sorted(rounds.iter().map(value));
    let decode = of(|done| done.tokens_per_s);
    let stages = rounds[0].stages.len();
    let step_ms: Vec<f64> =
        (0..stages).map(|i| middle(&sorted(rounds.iter().map(|done| done.stages[i].step_ms)))).collect();
    Side {
        layers: rounds[0].stages.iter().map(|stage| [stage.first_layer, stage.end_layer]).collect(),
        decode_tokens_per_s: middle(&decode),
        decode_min: decode[0],
        decode_max: decode[decode.len() - 1],
        ttft_ms: middle(&of(|done| done.ttft_ms)),
        lap_ms: middle(&of(lap_ms)),
        links_ms: middle(&of(|done| lap_ms(done) - done.stages.iter().map(|s| s.step_ms).sum::<f64>())),
        step_ms,
    }
}

/// The mean, as the stages' own times are means.
fn lap_ms(done: &api::Done) -> f64 {
    1e3 / done.tokens_per_s.max(1e-9)
}

fn middle(sorted: &[f64]) -> f64 {
    at(sorted, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_the_medians_of_its_rounds_and_links_are_what_stages_leave() {
        let round = |lap_ms: f64, steps: [f64; 2]| api::Done {
            tokens_per_s: 1e3 / lap_ms,
            stages: steps.map(|step_ms| api::StageReport { step_ms, end_layer: 3, ..Default::default() }).to_vec(),
            ..Default::default()
        };
        let side = side(&[round(10.0, [4.0, 3.0]), round(5.0, [1.0, 1.0]), round(8.0, [3.0, 4.0])]);
        assert_eq!((side.decode_tokens_per_s, side.decode_min, side.decode_max), (125.0, 100.0, 200.0));
        assert_eq!((side.lap_ms, side.step_ms.as_slice(), side.links_ms), (8.0, &[3.0, 3.0][..], 3.0));
        assert_eq!(side.layers, [[0, 3], [0, 3]]);
    }
}
