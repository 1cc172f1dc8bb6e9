//! Decoding allocates nothing on the engine's threads: a token costs its arithmetic and one answer.
//!
//! The allocator of this program counts what is asked of it on threads with the engine's names. Steps' inputs are made by who
//! asks and answers are taken by who asked, so they are not among it. What remains is rare, and bounded ([`allowed`]): a page of keys and values every 64
//! positions, and the list of a session's ids, whose room doubles.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

use cairn_compute::{
    Engine, EngineConfig, LoadOptions, SourceError, StageHandle, StagePart, StepInput, StepOutput, TensorSource,
    engine::is_engine_thread, files::ModelFiles, sample::Sampling,
};
use cairn_protocol::{
    dtype::Dtype,
    manifest::{Experts, Model, Naming, TensorEntry, Variations},
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc::sync_channel,
    },
};

/// Counts while it is told to.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static COUNTED: AtomicU64 = AtomicU64::new(0);

/// Whether this thread is one of the engine's, by the name that the system knows it by.
fn is_engine() -> bool {
    let mut name = [0u8; 16];
    // SAFETY: the call writes at most sixteen bytes, with a zero at their end.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    std::str::from_utf8(&name[..end]).is_ok_and(is_engine_thread)
}

fn count() {
    if COUNTS.load(SeqCst) && is_engine() {
        COUNTED.fetch_add(1, SeqCst);
    }
}

// SAFETY: everything is the system's allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the contract.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn load(engine: &Engine, model: Model, tensors: Vec<TensorEntry>, source: Box<dyn TensorSource>) -> StageHandle {
    let (done, loaded) = sync_channel(1);
    let (part, options) = (StagePart::whole(model.layers), LoadOptions { context: 256, ..LoadOptions::default() });
    engine.load(model, tensors, part, options, source, Box::new(move |result| drop(done.send(result))));
    loaded.recv().expect("an answer").expect("a stage")
}

fn built_in(engine: &Engine) -> StageHandle {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let files = ModelFiles::open(&folder).expect("the built-in model");
    let source = files.source().expect("its files");
    load(engine, files.model, files.tensors, source)
}

/// A small model whose tokens go through three of eight experts; the weights of those are not made to sum to one.
fn of_experts(engine: &Engine) -> StageHandle {
    let experts = Some(Experts { count: 8, used: 3, normalised: false });
    let model = Model {
        architecture: "qwen3moe".into(),
        layers: 2,
        width: 64,
        heads: 4,
        kv_heads: 2,
        head_width: 16,
        feed_forward: 32,
        vocabulary: 50,
        norm_epsilon: 1e-5,
        rope_base: 10_000.0,
        context_max: 512,
        tied_embeddings: true,
        attention_bias: false,
        naming: Naming::Gguf,
        rope_half_split: true,
        eos_tokens: vec![2],
        bos_token: Some(1),
        rope_scaling: None,
        window: None,
        variations: Variations { experts, ..Variations::default() },
    };
    let mut tensors = vec![entry("token_embd".into(), &[50, 64]), entry("output_norm".into(), &[64])];
    let of_a_layer: [(&str, &[u64]); 12] = [
        ("attn_norm", &[64]),
        ("attn_q", &[64, 64]),
        ("attn_k", &[32, 64]),
        ("attn_v", &[32, 64]),
        ("attn_q_norm", &[16]),
        ("attn_k_norm", &[16]),
        ("attn_output", &[64, 64]),
        ("ffn_norm", &[64]),
        ("ffn_gate_inp", &[8, 64]),
        ("ffn_gate_exps", &[8, 32, 64]),
        ("ffn_up_exps", &[8, 32, 64]),
        ("ffn_down_exps", &[8, 64, 32]),
    ];
    for layer in 0..model.layers {
        tensors.extend(of_a_layer.map(|(name, shape)| entry(format!("blk.{layer}.{name}"), shape)));
    }
    load(engine, model, tensors, Box::new(Waves))
}

fn entry(name: String, shape: &[u64]) -> TensorEntry {
    let (name, length) = (name + ".weight", shape.iter().product::<u64>() * 4);
    TensorEntry { name, file: 0, offset: 0, length, dtype: Dtype::F32, shape: shape.to_vec() }
}

/// Weights that differ; which they are does not matter here.
struct Waves;

impl TensorSource for Waves {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        Ok((0..entry.length / 4).flat_map(|i| (i as f32 * 0.7).sin().to_le_bytes()).collect())
    }
}

/// A token for each session, all asked for at once.
fn tokens(sessions: &[StageHandle], position: usize, last: &mut [u32]) {
    let (done, answers) = sync_channel(sessions.len());
    for (i, session) in sessions.iter().enumerate() {
        let input = StepInput::Tokens { first_position: position as u64, ids: vec![last[i]], sample: true };
        let done = done.clone();
        session.step(input, Box::new(move |result| drop(done.send((i, result)))));
    }
    for _ in sessions {
        let (i, output) = answers.recv().expect("an answer");
        let token = match output.expect("a step") {
            StepOutput::Token { token, .. } => Some(token),
            _ => None,
        };
        last[i] = token.expect("a token");
    }
}

/// What so many sessions may allocate together for the token of a position: of the page that begins there its lines, its count
/// and its place in the session; where their number doubles, the ids that a penalty reads, of each session and to be sorted.
fn allowed(position: u64, users: u64) -> u64 {
    let page = if position.is_multiple_of(64) { 3 * users } else { 0 };
    let ids = if position.is_power_of_two() || (position + 1).is_power_of_two() { users + 1 } else { 0 };
    page + ids
}

fn assert_allocates_nothing(base: &StageHandle, users: usize, sampling: Sampling) {
    let sessions: Vec<StageHandle> = (0..users).map(|_| base.another(256).expect("opens")).collect();
    assert!(sessions.iter().all(|session| session.set_sampling(sampling)));
    let mut last = vec![1; users];
    (0..66).for_each(|position| tokens(&sessions, position, &mut last));
    for position in 66..250 {
        COUNTED.store(0, SeqCst);
        COUNTS.store(true, SeqCst);
        tokens(&sessions, position, &mut last);
        COUNTS.store(false, SeqCst);
        let counted = COUNTED.load(SeqCst);
        let allowed = allowed(position as u64, users as u64);
        assert!(counted <= allowed, "{counted} at position {position}, {users} users, {sampling:?}");
    }
}

#[test]
fn a_decoded_token_allocates_nothing_on_the_engine_s_threads() {
    let engine = Engine::start(EngineConfig { threads: 2, level: None, memory_max: u64::MAX }).expect("an engine");
    let warm = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, seed: 7, ..Sampling::GREEDY };
    let hot = Sampling { temperature: 2.0, top_p: 0.9, min_p: 0.01, repetition_penalty: 1.1, ..warm };
    for base in [built_in(&engine), of_experts(&engine)] {
        for (users, sampling) in [(1, Sampling::GREEDY), (8, Sampling::GREEDY), (1, warm), (8, warm), (16, hot)] {
            assert_allocates_nothing(&base, users, sampling);
        }
        // The count counts: another session's first page is an allocation.
        COUNTED.store(0, SeqCst);
        COUNTS.store(true, SeqCst);
        tokens(&[base.another(256).expect("opens")], 0, &mut [1]);
        COUNTS.store(false, SeqCst);
        assert!(COUNTED.load(SeqCst) > 0);
    }
}
