//! What many users at once get of one node: tokens a second of all together and the time from token to token of each, against
//! one user alone, in one run.
//!
//! Real `cairn node` processes on this machine's loopback, asked through gRPC like by any client; rounds alternate, so that a
//! busy minute falls on both. The users' prompts differ. The bound of the gain is how much faster a pass computes many
//! tokens than one (`cairn bench engine --users N`). It measures; it promises nothing. Invariant: no process and no file is
//! left behind.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cairn_client::{
    Client,
    api::{self, generate_event::Event},
};
use cairn_protocol::refusal::{Reason, Refusal};
use futures::future::try_join_all;
use serde::Serialize;

use crate::{
    local_clients,
    order::{at, sorted},
};

/// The repo that is published.
const REPO: &str = "bench/model";
/// A prompt counts up to this, after the user's number, so that a model goes on counting and does not come to an end.
const COUNTED: u32 = 24;

/// How to measure.
#[derive(Clone, Debug)]
pub struct UsersOptions {
    /// PEFT folders: users take them in turn, and every so manieth takes none. Measured beside the same users without.
    pub adapters: Vec<PathBuf>,
    /// Users at once.
    pub users: u32,
    /// Processes, and stages, that serve them.
    pub nodes: u32,
    /// Tokens decoded for each user a round.
    pub decode_tokens: u32,
    /// Rounds that count.
    pub repeat: u32,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct UsersReport {
    /// Users at once.
    pub users: u32,
    /// Stages that served them.
    pub stages: u32,
    /// Tokens decoded for each a round.
    pub decode_tokens: u32,
    /// One user.
    pub one: Crowd,
    /// All.
    pub all: Crowd,
    /// All, with adapters, if there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapted: Option<Crowd>,
    /// Tokens a second of all together, as a multiple of the one's.
    pub total_ratio: f64,
    /// Tokens a second of all with adapters, as a multiple of theirs without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapted_ratio: Option<f64>,
    /// Every user got the tokens in company that it got alone.
    pub same_tokens: bool,
}

/// Medians over the rounds; times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Crowd {
    /// Tokens that a user got, the mean.
    pub tokens_each: f64,
    /// Tokens of all users over the time from the first request to the last token, prompts and all.
    pub tokens_per_s: f64,
    /// The slowest round.
    pub tokens_per_s_min: f64,
    /// The fastest round.
    pub tokens_per_s_max: f64,
    /// From a request to its first token: the user in the middle.
    pub ttft_ms: f64,
    /// From one token to the next: half were faster.
    pub gap_p50_ms: f64,
    /// From one token to the next: one in a hundred was slower.
    pub gap_p99_ms: f64,
}

/// What one user saw.
#[derive(Clone, Debug)]
struct Seen {
    ttft: Duration,
    gaps: Vec<Duration>,
    tokens: Vec<u32>,
}

/// What a round came to.
#[derive(Clone, Debug)]
struct Round {
    took: Duration,
    seen: Vec<Seen>,
}

/// Measures a model: a file or folder that `program` can publish.
pub async fn measure(program: PathBuf, model: &Path, options: &UsersOptions) -> Result<UsersReport, Refusal> {
    let (mesh, clients) = local_clients::start(program, options.nodes as usize).await?;
    let measured = rounds(&clients, model, options).await;
    mesh.stop().await;
    measured
}

async fn rounds(clients: &[Client], model: &Path, options: &UsersOptions) -> Result<UsersReport, Refusal> {
    local_clients::publish(clients, model, REPO).await?;
    for (index, adapter) in options.adapters.iter().enumerate() {
        local_clients::publish(clients, adapter, &adapter_name(index)).await?;
    }
    let (mut one, mut all, mut adapted) = (Vec::new(), Vec::new(), Vec::new());
    // Weights are loaded.
    for user in 0..options.users.min(options.adapters.len() as u32 + 1) {
        generate(&clients[0], Asked { round: 0, user, adapter: adapter_of(user, options) }, options).await?;
    }
    let mut same_tokens = true;
    for repeat in 0..options.repeat {
        // Each round has its own prompts: what was computed before is not computed again.
        let number = 1 + 3 * repeat;
        one.push(round(&clients[0], (number, 1), options, |_| None).await?);
        all.push(round(&clients[0], (number + 1, options.users), options, |_| None).await?);
        same_tokens &= is_alone(&clients[0], number + 1, all.last(), options, |_| None).await?;
        if !options.adapters.is_empty() {
            let adapter = |user| adapter_of(user, options);
            adapted.push(round(&clients[0], (number + 2, options.users), options, adapter).await?);
            same_tokens &= is_alone(&clients[0], number + 2, adapted.last(), options, adapter).await?;
        }
    }
    let (one, all) = (crowd(&one), crowd(&all));
    let adapted = (!adapted.is_empty()).then(|| crowd(&adapted));
    Ok(UsersReport {
        users: options.users,
        stages: options.nodes,
        decode_tokens: options.decode_tokens,
        total_ratio: all.tokens_per_s / one.tokens_per_s.max(1e-9),
        adapted_ratio: adapted.as_ref().map(|adapted| adapted.tokens_per_s / all.tokens_per_s.max(1e-9)),
        same_tokens,
        one,
        all,
        adapted,
    })
}

/// What an adapter is published as.
fn adapter_name(index: usize) -> String {
    format!("adapters/bench/adapter{index}")
}

/// Each adapter in turn, then none.
fn adapter_of(user: u32, options: &UsersOptions) -> Option<usize> {
    let turn = user as usize % (options.adapters.len() + 1);
    (turn < options.adapters.len()).then_some(turn)
}

async fn round(
    client: &Client,
    (round, users): (u32, u32),
    options: &UsersOptions,
    adapter: impl Fn(u32) -> Option<usize>,
) -> Result<Round, Refusal> {
    let start = Instant::now();
    let ask = |user| generate(client, Asked { round, user, adapter: adapter(user) }, options);
    let seen = try_join_all((0..users).map(ask)).await?;
    Ok(Round { took: start.elapsed(), seen })
}

/// Whether each user of a round got what it gets alone.
async fn is_alone(
    client: &Client,
    round: u32,
    made: Option<&Round>,
    options: &UsersOptions,
    adapter: impl Fn(u32) -> Option<usize>,
) -> Result<bool, Refusal> {
    let mut is_same = true;
    for (user, seen) in (0..).zip(made.into_iter().flat_map(|made| &made.seen)) {
        let alone = generate(client, Asked { round, user, adapter: adapter(user) }, options).await?;
        is_same &= alone.tokens == seen.tokens;
    }
    Ok(is_same)
}

/// What a user asks in a round.
struct Asked {
    round: u32,
    user: u32,
    adapter: Option<usize>,
}

/// Begins with the round and the user, so that no two begin alike.
fn prompt(round: u32, user: u32) -> String {
    (0..=COUNTED).fold(format!("{round}.{user}:"), |text, n| format!("{text} {},", user + n))
}

async fn generate(client: &Client, asked: Asked, options: &UsersOptions) -> Result<Seen, Refusal> {
    let request = api::GenerateRequest {
        repo: REPO.into(),
        adapter: asked.adapter.map(adapter_name).unwrap_or_default(),
        prompt: prompt(asked.round, asked.user),
        raw: true,
        max_tokens: options.decode_tokens,
        temperature: Some(0.0),
        stages: options.nodes,
        ..api::GenerateRequest::default()
    };
    let start = Instant::now();
    let mut events = client.generate(request).await?;
    let (mut came, mut seen) = (None, Seen { ttft: Duration::ZERO, gaps: Vec::new(), tokens: Vec::new() });
    while let Some(event) = events.next().await? {
        let Some(Event::Token(token)) = event.event else { continue };
        let now = Instant::now();
        match came.replace(now) {
            None => seen.ttft = now - start,
            Some(before) => seen.gaps.push(now - before),
        }
        seen.tokens.push(token.id);
    }
    match seen.gaps.is_empty() {
        false => Ok(seen),
        true => Err(Refusal::new(Reason::Unsupported, "the measurement", "the model ended at once")
            .try_this("a model that goes on after an English sentence")),
    }
}

fn crowd(rounds: &[Round]) -> Crowd {
    let rate = |round: &Round| {
        round.seen.iter().map(|seen| seen.tokens.len()).sum::<usize>() as f64 / round.took.as_secs_f64().max(1e-9)
    };
    let rates = sorted(rounds.iter().map(rate));
    let seen = || rounds.iter().flat_map(|round| &round.seen);
    let gaps = sorted(seen().flat_map(|seen| &seen.gaps).map(ms));
    Crowd {
        tokens_each: seen().map(|seen| seen.tokens.len()).sum::<usize>() as f64 / seen().count().max(1) as f64,
        tokens_per_s: at(&rates, 0.5),
        tokens_per_s_min: at(&rates, 0.0),
        tokens_per_s_max: at(&rates, 1.0),
        ttft_ms: at(&sorted(seen().map(|seen| ms(&seen.ttft))), 0.5),
        gap_p50_ms: at(&gaps, 0.5),
        gap_p99_ms: at(&gaps, 0.99),
    }
}

fn ms(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_take_adapters_in_turn_and_one_of_each_turn_takes_none() {
        let options = |adapters: usize| UsersOptions {
            adapters: vec![PathBuf::new(); adapters],
            users: 8,
            nodes: 1,
            decode_tokens: 8,
            repeat: 1,
        };
        let turns = |adapters| (0..5).map(|user| adapter_of(user, &options(adapters))).collect::<Vec<_>>();
        assert_eq!(turns(2), [Some(0), Some(1), None, Some(0), Some(1)]);
        assert_eq!(turns(0), [None; 5]);
    }

    #[test]
    fn a_crowd_is_all_its_tokens_over_the_whole_round_and_its_gaps_together() {
        let seen = |gaps: &[u64]| Seen {
            ttft: Duration::from_millis(7),
            gaps: gaps.iter().map(|ms| Duration::from_millis(*ms)).collect(),
            tokens: vec![1; gaps.len() + 1],
        };
        let round = |took, seen| Round { took: Duration::from_millis(took), seen };
        let crowd = crowd(&[
            round(1000, vec![seen(&[1, 2]), seen(&[3])]),
            round(500, vec![seen(&[4, 5]), seen(&[6])]),
            round(250, vec![seen(&[7, 8]), seen(&[90])]),
        ]);
        assert_eq!((crowd.tokens_per_s_min, crowd.tokens_per_s, crowd.tokens_per_s_max), (5.0, 10.0, 20.0));
        assert_eq!((crowd.gap_p50_ms, crowd.gap_p99_ms, crowd.ttft_ms), (5.0, 90.0, 7.0));
    }
}
