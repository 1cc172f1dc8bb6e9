//! How surprised a model is by a text: what its weights' format and its arithmetic cost in quality.
//!
//! As llama.cpp's tool measures it, so that figures compare: the text's tokens are cut into windows, each begins with the
//! token that begins texts where the tokenizer has one (in the place of its first), and the second half of each window is
//! scored, since its tokens have at least half a window before them. A remainder shorter than a window is left out.

use super::{Bench, BenchError, BenchOptions, Opened};
use crate::{
    cpu::{
        packed::LANES,
        pass::Slot,
        work::{PASS_TOKENS_MAX, Work},
    },
    files,
    text::Tokenizer,
};
use cairn_protocol::gguf;
use serde::Serialize;
use std::{panic::resume_unwind, path::Path, thread, time::Instant};

/// Tokens of a window unless asked otherwise: llama.cpp's.
pub const WINDOW: usize = 512;
/// Fewest tokens of a window: one is scored.
const WINDOW_MIN: usize = 4;

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerplexityReport {
    /// e to the mean of minus the logarithms of the probabilities of all scored tokens.
    pub perplexity: f64,
    /// Tokens scored.
    pub scored: usize,
    /// Windows computed.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens computed a second, scores and all.
    pub tokens_per_s: f64,
    /// Instruction-set level.
    pub level: &'static str,
    /// Int8 planes.
    pub planes: usize,
    /// What keys and values are held as.
    pub kv: &'static str,
    /// Stored types held as others.
    pub conversions: Vec<String>,
}

/// Measures a GGUF file on a text, at most `windows_max` windows of it; of `options`, planes, keys and values, threads
/// and level are looked at.
pub fn perplexity(
    path: &Path,
    text: &str,
    window: usize,
    windows_max: usize,
    options: &BenchOptions,
) -> Result<PerplexityReport, BenchError> {
    let measured = thread::scope(|scope| scope.spawn(|| measured(path, text, window, windows_max, options)).join());
    measured.unwrap_or_else(|panic| resume_unwind(panic))
}

fn measured(
    path: &Path,
    text: &str,
    window: usize,
    windows_max: usize,
    options: &BenchOptions,
) -> Result<PerplexityReport, BenchError> {
    let refused = |why: String| BenchError::Options(why);
    if window < WINDOW_MIN {
        return Err(refused(format!("a window of {window} tokens is too short: at least {WINDOW_MIN} are needed")));
    }
    let tokenizer = Tokenizer::from_gguf(&files::header(path, gguf::parse_header)?)
        .map_err(|error| refused(format!("the file's tokenizer can't be used: {error}")))?;
    let ids = tokenizer.encode_plain(text).map_err(|error| refused(format!("the text can't be encoded: {error}")))?;
    let windows = (ids.len() / window).min(windows_max);
    if windows == 0 {
        return Err(refused(format!("the text has {} tokens, a window takes {window}", ids.len())));
    }
    let begins = tokenizer.encode_raw("").ok().and_then(|ids| ids.first().copied());
    let begun = |ids: &[u32]| begins.into_iter().chain(ids[begins.iter().len()..].iter().copied()).collect();
    let cut: Vec<Vec<u32>> = ids.chunks_exact(window).take(windows).map(begun).collect();
    Ok(PerplexityReport { tokens: ids.len(), ..of_windows(path, &cut, options)? })
}

/// The perplexity of windows of one length, of at least [`WINDOW_MIN`] tokens.
pub(crate) fn of_windows(
    path: &Path,
    windows: &[Vec<u32>],
    options: &BenchOptions,
) -> Result<PerplexityReport, BenchError> {
    let window = windows.first().map_or(0, Vec::len);
    let shape = BenchOptions { prompt_tokens: window - 1, decode_tokens: 1, users: 1, repeat: 1, ..*options };
    let Opened { mut bench, conversions, .. } = super::open(path, &shape)?;
    if let Some(id) = windows.iter().flatten().find(|id| **id as usize >= bench.model.shape.vocabulary) {
        return Err(BenchError::Options(format!("the tokenizer knows token {id}, the model does not")));
    }
    bench.work = Work::new(&bench.model, bench.planes, PASS_TOKENS_MAX, PASS_TOKENS_MAX);
    let start = Instant::now();
    let total: f64 = windows.iter().map(|ids| bench.surprise(ids)).sum();
    let scored = windows.len() * (window - 1 - window / 2);
    Ok(PerplexityReport {
        perplexity: (total / scored as f64).exp(),
        scored,
        windows: windows.len(),
        window,
        tokens: windows.len() * window,
        tokens_per_s: (windows.len() * window) as f64 / start.elapsed().as_secs_f64(),
        level: bench.level.name(),
        planes: bench.planes.count(),
        kv: bench.kv.name(),
        conversions: conversions.iter().map(super::told).collect(),
    })
}

impl Bench {
    /// Minus the logarithms of the probabilities of a window's second half, summed.
    fn surprise(&mut self, ids: &[u32]) -> f64 {
        self.seat(1, ids.len());
        let scored = ids.len() / 2..ids.len() - 1;
        let mut total = 0.0;
        for (piece, part) in ids.chunks(PASS_TOKENS_MAX).enumerate() {
            let from = piece * PASS_TOKENS_MAX;
            let slots: Vec<Slot> = (0..part.len()).map(|i| Slot { sequence: 0, position: from + i }).collect();
            let wanted: Vec<usize> = (0..part.len()).filter(|i| scored.contains(&(from + i))).collect();
            self.pass(&slots, part, &wanted);
            for (column, i) in wanted.iter().enumerate() {
                total += self.surprise_by(column, wanted.len(), ids[from + i + 1]);
            }
        }
        total
    }

    /// Minus the logarithm of the probability that one of `columns` columns of logits gives a token.
    fn surprise_by(&self, column: usize, columns: usize, token: u32) -> f64 {
        let chunks = self.work.logits.as_chunks::<LANES>().0.iter().skip(column).step_by(columns);
        let logits = chunks.flatten().copied().take(self.model.shape.vocabulary);
        let top = logits.clone().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.clone().map(|logit| ((logit - top) as f64).exp()).sum();
        let of_token = logits.clone().nth(token as usize).map_or(f64::NEG_INFINITY, f64::from);
        top as f64 + sum.ln() - of_token
    }
}
