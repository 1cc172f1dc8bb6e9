//! The same model at several prompt lengths and numbers of users, each rate beside the bound that sets it.
//!
//! Two bounds hold for every pass: its weights and the keys and values it attends to come from memory once, and its
//! products take the time that they take when everything lies in the cache: int8 products of weights, and F32 products of
//! queries with keys and of weights with values. A rate's bound is the slower of the two; what is missing to it is
//! attention's exponentials, norms, quantising activations, and the waits between threads.

use super::{Bench, BenchError, BenchOptions, Opened, Spread};
use crate::{
    cpu::{
        model::{Layer, Model, attended},
        work::PASS_TOKENS_MAX,
    },
    measure,
};
use serde::Serialize;
use std::{ops::Range, panic::resume_unwind, path::Path, thread};

/// Lengths of the prompt of one user.
const LENGTHS: [usize; 5] = [32, 128, 512, 2000, 8000];
/// Users who decode together, after a prompt of [`USERS_PROMPT`] tokens each.
const USERS: [usize; 4] = [2, 4, 8, 16];
const USERS_PROMPT: usize = 128;
/// Tokens decoded for each user a round.
const DECODED: usize = 16;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepReport {
    /// Threads that computed.
    pub threads: usize,
    /// Instruction-set level.
    pub level: &'static str,
    /// Int8 planes.
    pub planes: usize,
    /// Bytes of weights that a step reads.
    pub step_bytes: u64,
    /// Bytes of keys and values of a position.
    pub position_bytes: u64,
    /// Products of a weight and an activation that a token takes.
    pub products_a_token: u64,
    /// Bytes a second that all cores read from memory.
    pub bandwidth_bytes_per_s: u64,
    /// Such products a second, weights and activations in the cache.
    pub products_per_s: u64,
    /// F32 products a second, both factors in the cache: what attention is made of.
    pub float_products_per_s: u64,
    /// Longer and longer prompts of one user, then more and more users.
    pub rows: Vec<SweepRow>,
}

/// One length and number of users. Rates are medians, tokens a second of all users together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepRow {
    /// Tokens of each user's prompt; what is decoded follows it.
    pub prompt_tokens: usize,
    /// Users who decode together.
    pub users: usize,
    /// F32 products of attention that a token of the prompts takes, on average.
    pub prefill_attention_products: f64,
    /// The same of a decoded token.
    pub decode_attention_products: f64,
    /// Prompts.
    pub prefill_tokens_per_s: f64,
    /// What its bound permits.
    pub prefill_bound_tokens_per_s: f64,
    /// Decoding.
    pub decode_tokens_per_s: f64,
    /// What its bound permits.
    pub decode_bound_tokens_per_s: f64,
    /// Whether products bound the decoding, and not memory.
    pub decode_bound_by_products: bool,
}

/// Measures a GGUF file or a folder of safetensors; of `options`, lengths and users are not looked at.
pub fn sweep(path: &Path, options: &BenchOptions) -> Result<SweepReport, BenchError> {
    let measured = thread::scope(|scope| scope.spawn(|| measured(path, options)).join());
    let mut report = measured.unwrap_or_else(|panic| resume_unwind(panic))?;
    // Not on that thread: those that it starts would be bound with it.
    report.bandwidth_bytes_per_s = measure::measure(super::BANDWIDTH_BUDGET).bandwidth_bytes_per_s;
    let bounds = Bounds::of(&report);
    report.rows.iter_mut().for_each(|row| bounds.set(row));
    Ok(report)
}

/// All but memory's bandwidth and the bounds.
fn measured(path: &Path, options: &BenchOptions) -> Result<SweepReport, BenchError> {
    let shape = |prompt_tokens, users| BenchOptions { prompt_tokens, users, decode_tokens: DECODED, ..*options };
    let context_max = super::ModelFiles::open(path)?.model.context_max as usize;
    let lengths = LENGTHS.into_iter().filter(|length| length + DECODED <= context_max);
    let rows: Vec<BenchOptions> =
        lengths.map(|length| shape(length, 1)).chain(USERS.map(|users| shape(USERS_PROMPT, users))).collect();
    let longest = rows.iter().map(|row| row.prompt_tokens).max().unwrap_or(USERS_PROMPT);
    let Opened { mut bench, .. } = super::open(path, &shape(longest, USERS[USERS.len() - 1]))?;
    Ok(SweepReport {
        threads: bench.pool.threads(),
        level: bench.level.name(),
        planes: bench.planes.count(),
        step_bytes: bench.model.bytes_a_token(),
        position_bytes: bench.model.page_shape(bench.kv).position_bytes(),
        products_a_token: products(&bench.model),
        bandwidth_bytes_per_s: 0,
        products_per_s: measure::products(&bench.pool, bench.level, bench.planes, super::BANDWIDTH_BUDGET),
        float_products_per_s: measure::float_products(&bench.pool, bench.level, super::BANDWIDTH_BUDGET),
        rows: rows.iter().map(|row| bench.row(row)).collect(),
    })
}

/// Weights that a token is multiplied with, the head's too.
fn products(model: &Model) -> u64 {
    let s = &model.shape;
    let (width, attended, kv) = (s.width, s.heads * s.head_width, s.kv_heads * s.head_width);
    let (routed, blocks) = s.routing.map_or((0, 1), |routing| (routing.experts, routing.used));
    let feed_forward = width * routed + 3 * width * s.feed_forward * blocks;
    let layer = |_: &Layer| width * (attended + 2 * kv) + attended * width + feed_forward;
    let head = model.head.as_ref().map_or(0, |_| s.vocabulary * width);
    (model.layers.iter().map(layer).sum::<usize>() + head) as u64
}

/// F32 products that attention takes for a token at one of `positions`, on average: those of each key and each value that its
/// queries attend to.
fn attention(model: &Model, positions: Range<usize>) -> f64 {
    let attended: f64 = model.layers.iter().map(|layer| attended_mean(layer.window, positions.clone())).sum();
    (2 * model.shape.heads * model.shape.head_width) as f64 * attended
}

/// Positions that a query at one of `positions` attends to over a window, on average.
fn attended_mean(window: usize, positions: Range<usize>) -> f64 {
    let count = positions.len().max(1) as f64;
    positions.map(|position| attended(window, position).len()).sum::<usize>() as f64 / count
}

impl Bench {
    fn row(&mut self, options: &BenchOptions) -> SweepRow {
        let prompt = options.prompt_tokens;
        self.seat(options.users, prompt + DECODED);
        let rounds: Vec<_> = (0..=options.repeat).map(|round| self.round(round, options)).collect();
        SweepRow {
            prompt_tokens: prompt,
            users: options.users,
            prefill_attention_products: attention(&self.model, 0..prompt),
            decode_attention_products: attention(&self.model, prompt..prompt + DECODED),
            prefill_tokens_per_s: Spread::of(rounds[1..].iter().map(|round| round.prefill)).median,
            prefill_bound_tokens_per_s: 0.0,
            decode_tokens_per_s: Spread::of(rounds[1..].iter().map(|round| round.decode)).median,
            decode_bound_tokens_per_s: 0.0,
            decode_bound_by_products: false,
        }
    }
}

/// What a pass takes at least.
struct Bounds {
    step_bytes: f64,
    position_bytes: f64,
    products_a_token: f64,
    bytes_per_s: f64,
    products_per_s: f64,
    float_products_per_s: f64,
}

impl Bounds {
    fn of(report: &SweepReport) -> Self {
        Self {
            step_bytes: report.step_bytes as f64,
            position_bytes: report.position_bytes as f64,
            products_a_token: report.products_a_token as f64,
            bytes_per_s: report.bandwidth_bytes_per_s.max(1) as f64,
            products_per_s: report.products_per_s.max(1) as f64,
            float_products_per_s: report.float_products_per_s.max(1) as f64,
        }
    }

    fn set(&self, row: &mut SweepRow) {
        let (prompt, users) = (row.prompt_tokens as f64, row.users as f64);
        // A prompt's pieces attend to half of it on average; its last token alone is multiplied with the head.
        let passes = (prompt / PASS_TOKENS_MAX as f64).ceil();
        let prefill_bytes = passes * (self.step_bytes + self.position_bytes * prompt / 2.0);
        let prefill_s =
            (prefill_bytes / self.bytes_per_s).max(prompt * self.products_s(row.prefill_attention_products));
        row.prefill_bound_tokens_per_s = prompt / prefill_s;
        let decode_bytes = self.step_bytes + users * self.position_bytes * (prompt + DECODED as f64 / 2.0);
        let (bytes_s, products_s) =
            (decode_bytes / self.bytes_per_s, users * self.products_s(row.decode_attention_products));
        row.decode_bound_tokens_per_s = users / bytes_s.max(products_s);
        row.decode_bound_by_products = products_s > bytes_s;
    }

    /// What the products of a token take, with so many of attention: the same units compute both.
    fn products_s(&self, attention: f64) -> f64 {
        self.products_a_token / self.products_per_s + attention / self.float_products_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_is_bound_by_bytes_and_many_are_bound_by_products() {
        let bounds = Bounds {
            step_bytes: 1000.0,
            position_bytes: 1.0,
            products_a_token: 2000.0,
            bytes_per_s: 1e6,
            products_per_s: 1e7,
            float_products_per_s: 1e6,
        };
        let attending = |prompt_tokens, users, attention| {
            let mut row = SweepRow {
                prompt_tokens,
                users,
                prefill_attention_products: attention,
                decode_attention_products: attention,
                prefill_tokens_per_s: 0.0,
                prefill_bound_tokens_per_s: 0.0,
                decode_tokens_per_s: 0.0,
                decode_bound_tokens_per_s: 0.0,
                decode_bound_by_products: false,
            };
            bounds.set(&mut row);
            row
        };
        let row = |prompt_tokens, users| attending(prompt_tokens, users, 0.0);
        let one = row(92, 1);
        assert!((one.decode_bound_tokens_per_s - 1e6 / 1100.0).abs() < 1e-6 && !one.decode_bound_by_products);
        assert!((one.prefill_bound_tokens_per_s - 5000.0).abs() < 1e-6);
        let many = row(92, 100);
        assert!((many.decode_bound_tokens_per_s - 5000.0).abs() < 1e-6 && many.decode_bound_by_products);
        assert!(row(992, 1).decode_bound_tokens_per_s < one.decode_bound_tokens_per_s, "a longer context costs bytes");
        let attending = attending(92, 1, 800.0);
        assert!(
            (attending.prefill_bound_tokens_per_s - 1000.0).abs() < 1e-6,
            "attention's products take the same units"
        );
        assert!(!attending.decode_bound_by_products, "200 of weights and 800 of attention are less than 1100 of bytes");
    }

    #[test]
    fn a_window_is_the_most_that_a_token_attends_to() {
        assert_eq!(attended_mean(usize::MAX, 0..8), 4.5);
        assert_eq!(attended_mean(4, 0..8), 26.0 / 8.0);
        assert_eq!(attended_mean(4, 100..116), 4.0);
    }
}
