//! How fast texts become vectors on this machine, without a daemon. Not a comparison: `scripts/compare-embeddings` sets a
//! reference beside it.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    time::Instant,
};

use super::{
    super::{LoadError, open_folder},
    Embedder, EncodeError,
};
use crate::{
    Engine, EngineConfig,
    engine::{StartError, WorkError},
    files::FilesError,
};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct EmbedOptions {
    /// Threads; 0 for all cores.
    pub threads: usize,
    /// Rounds that count, after one that does not.
    pub repeat: usize,
}

/// What came out; rates are medians.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedReport {
    /// Instruction-set level.
    pub level: &'static str,
    /// Threads.
    pub threads: usize,
    /// Texts of a round, and their tokens.
    pub texts: usize,
    /// Tokens of a round.
    pub tokens: u64,
    /// Texts a second, tokenised and computed.
    pub texts_per_s: f64,
    /// Tokens a second, the same.
    pub tokens_per_s: f64,
    /// The part of a round that tokenising took.
    pub tokenising_share: f64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum EmbedBenchError {
    /// The folder can't be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The model can't be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The engine did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A text has no ids.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A pass failed.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// No text to embed.
    #[error("there are no texts")]
    NoTexts,
}

/// Embeds all texts again and again.
pub fn run(folder: &Path, texts: &[String], options: &EmbedOptions) -> Result<EmbedReport, EmbedBenchError> {
    if texts.is_empty() {
        return Err(EmbedBenchError::NoTexts);
    }
    let (files, mut source) = open_folder(folder)?;
    let embedder = Arc::new(Embedder::load(&files, &mut *source, None)?);
    let engine = Engine::start(EngineConfig { threads: options.threads, level: None, memory_max: u64::MAX })?;
    let mut rounds = Vec::new();
    for _ in 0..=options.repeat.max(1) {
        rounds.push(round(&engine, &embedder, texts)?);
    }
    let mut counted = rounds.split_off(1);
    counted.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let median = &counted[counted.len() / 2];
    engine.stop();
    Ok(EmbedReport {
        level: engine.level(),
        threads: engine.threads(),
        texts: texts.len(),
        tokens: median.tokens,
        texts_per_s: texts.len() as f64 / median.seconds,
        tokens_per_s: median.tokens as f64 / median.seconds,
        tokenising_share: median.tokenising / median.seconds,
    })
}

struct Round {
    seconds: f64,
    tokenising: f64,
    tokens: u64,
}

fn round(engine: &Engine, embedder: &Arc<Embedder>, texts: &[String]) -> Result<Round, EmbedBenchError> {
    let started = Instant::now();
    let encoded = Arc::new(embedder.encode(texts, None)?);
    let tokenising = started.elapsed().as_secs_f64();
    for pass in embedder.passes(&encoded) {
        let (done, computed) = mpsc::sync_channel(1);
        embedder.compute(engine, &encoded, pass, move |result| drop(done.send(result)));
        computed.recv().unwrap_or(Err(WorkError::Stopped))?;
    }
    Ok(Round { seconds: started.elapsed().as_secs_f64(), tokenising, tokens: encoded.tokens() })
}
