//! Gemma 3's real weights, held against what llama.cpp says of the same file: tokens of pieces of a text, the likeliest next
//! tokens after each with their log-probabilities, and greedy continuations. The text is longer than the model's window.
//!
//! `gemma3-270m.json` comes from `scripts/reference-logits/llama-cpp-log-probabilities.py`, which gives llama.cpp the weights
//! in F32: on the quantised file itself it is further from them than Cairn is. The weights are brought by
//! `scripts/fetch-model gemma3`, and the test says loudly when they are not there.

use crate::{
    arch::StagePart,
    cpu::{
        acts::Planes,
        cache::Cache,
        kv::KvFormat,
        level::Level,
        model::Model,
        pass::{Pass, Slot},
        pool::Pool,
        work::{PASS_TOKENS_MAX, Work},
    },
    files::{self, ModelFiles},
    text::Tokenizer,
    weights,
};
use cairn_protocol::gguf;
use serde::Deserialize;
use std::path::PathBuf;

const CONTEXT: usize = 1024;
/// How far log-probabilities of likely tokens may be from those of F32 arithmetic: Cairn quantises activations, and keeps
/// keys and values as halves.
const APART: f64 = 0.05;
/// How far they may be on average.
const APART_MEAN: f64 = 0.01;

#[derive(Deserialize)]
struct Said {
    text: String,
    pieces: Vec<Piece>,
    greedy: Vec<Greedy>,
}

#[derive(Deserialize)]
struct Piece {
    characters: usize,
    tokens: usize,
    top: Vec<(u32, f64)>,
}

#[derive(Deserialize)]
struct Greedy {
    prompt: String,
    ids: Vec<u32>,
}

/// The file, if it was fetched; where `CAIRN_REQUIRE_MODELS` is set, it has to be.
fn fetched() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    let models = folder("CAIRN_TEST_MODELS").or_else(|| cache.map(|cache| cache.join("cairn-test-models")));
    let path = models.unwrap_or_default().join("gemma3/gemma-3-270m.Q4_K_M.gguf");
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var_os("CAIRN_REQUIRE_MODELS").is_none(), "run scripts/fetch-model gemma3");
    eprintln!("NOT TESTED: {} is missing; run scripts/fetch-model gemma3 and test again", path.display());
    None
}

struct Runner {
    model: Model,
    pool: Pool,
    work: Work,
    cache: Cache,
    held: usize,
}

impl Runner {
    fn new(path: &std::path::Path) -> Self {
        let files = ModelFiles::open(path).expect("opens");
        let whole = StagePart::whole(files.model.layers);
        let mut source = files.source().expect("opens");
        let loaded = weights::load(&files.model, &files.tensors, &whole, CONTEXT, &mut *source).expect("loads");
        let (model, pool) = (loaded.model, Pool::new(2).expect("pool"));
        let work = Work::new(&model, Planes::Two, PASS_TOKENS_MAX, 1);
        let cache = Cache::new(model.page_shape(KvFormat::F16), CONTEXT);
        Self { model, pool, work, cache, held: 0 }
    }

    /// Log-probabilities of what follows the ids, which follow those of before.
    fn next(&mut self, ids: &[u32]) -> Vec<f64> {
        for piece in ids.chunks(PASS_TOKENS_MAX) {
            let slots: Vec<Slot> = (0..piece.len()).map(|i| Slot { sequence: 0, position: self.held + i }).collect();
            let (model, pool) = (&self.model, &self.pool);
            let pass = Pass { model, pool, level: Level::best(), planes: Planes::Two, slots: &slots };
            pass.embed(&mut self.work, piece.iter().copied());
            pass.walk(&mut self.work, &mut [&mut self.cache]);
            pass.logits(&mut self.work, &[piece.len() - 1]);
            self.held += piece.len();
        }
        let logits = &self.work.logits[..self.model.shape.vocabulary];
        let top = logits.iter().fold(f32::NEG_INFINITY, |top, logit| top.max(*logit));
        let total: f64 = logits.iter().map(|logit| f64::from(logit - top).exp()).sum();
        logits.iter().map(|logit| f64::from(logit - top) - total.ln()).collect()
    }
}

#[test]
fn gemma_3_gives_the_tokens_and_log_probabilities_of_llama_cpp() {
    let Some(path) = fetched() else { return };
    let said: Said = serde_json::from_str(include_str!("gemma3-270m.json")).expect("a reference");
    let header = files::header(&path, gguf::parse_header).expect("a header");
    let tokenizer = Tokenizer::from_gguf(&header).expect("a tokenizer");
    let mut runner = Runner::new(&path);
    let (mut worst, mut sum, mut count, mut same_best) = (0f64, 0.0, 0, 0);
    for piece in &said.pieces {
        let text: String = said.text.chars().take(piece.characters).collect();
        let ids = tokenizer.encode_raw(&text).expect("encodes");
        assert_eq!(ids.len(), piece.tokens, "tokens of {text:?}");
        runner.held = 0;
        let got = runner.next(&ids);
        let best = (0..got.len()).max_by(|a, b| got[*a].total_cmp(&got[*b])).expect("some");
        same_best += usize::from(best as u32 == piece.top[0].0);
        for (id, want) in &piece.top {
            let apart = (got[*id as usize] - want).abs();
            (worst, sum, count) = (worst.max(apart), sum + apart, count + 1);
        }
        println!("{} tokens: best {best}, want {:?}, got {:?}", ids.len(), piece.top, got[best]);
    }
    let mean = sum / f64::from(count);
    println!("log-probabilities: {worst:.4} apart at most, {mean:.4} on average; best alike {same_best}");
    assert!(worst <= APART && mean <= APART_MEAN, "{worst} apart at most, {mean} on average");
    let (mut steps, mut alike, mut behind) = (0, 0, 0f64);
    for greedy in &said.greedy {
        runner.held = 0;
        let mut input = tokenizer.encode_raw(&greedy.prompt).expect("encodes");
        for id in &greedy.ids {
            let got = runner.next(&input);
            let best = got.iter().fold(f64::NEG_INFINITY, |best, p| best.max(*p));
            behind = behind.max(best - got[*id as usize]);
            (steps, alike) = (steps + 1, alike + usize::from(got[*id as usize] == best));
            input = vec![*id];
        }
    }
    println!("greedy: {alike} of {steps} tokens alike, the others {behind:.4} behind at most");
    assert!(behind <= APART, "a token of llama.cpp's is {behind} behind the best");
}
