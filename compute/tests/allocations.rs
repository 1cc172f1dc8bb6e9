//! Decoding allocates nothing on the engine's threads: a token costs its arithmetic and one answer.
//!
//! The allocator of this program counts what is asked of it on threads with the engine's names. Steps' inputs are made by who
//! asks and answers are taken by who asked, so they are not among it; a page of keys and values is taken every 64 positions.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)]

use cairn_compute::{
    Engine, EngineConfig, LoadOptions, StageHandle, StagePart, StepInput, StepOutput, engine::is_engine_thread,
    files::ModelFiles, sample::Sampling,
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

fn load(engine: &Engine) -> StageHandle {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let files = ModelFiles::open(&folder).expect("the built-in model");
    let (done, loaded) = sync_channel(1);
    let (part, source) = (StagePart::whole(files.model.layers), files.source().expect("its files"));
    let options = LoadOptions { context: 256, planes: 2 };
    engine.load(files.model, files.tensors, part, options, source, Box::new(move |result| drop(done.send(result))));
    loaded.recv().expect("an answer").expect("a stage")
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

#[test]
fn a_decoded_token_allocates_nothing_on_the_engine_s_threads() {
    let engine = Engine::start(EngineConfig { threads: 2, level: None, memory_max: u64::MAX }).expect("an engine");
    let base = load(&engine);
    let warm = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, seed: 7, ..Sampling::GREEDY };
    let hot = Sampling { temperature: 2.0, top_p: 0.9, min_p: 0.01, repetition_penalty: 1.1, ..warm };
    for (users, sampling) in [(1, Sampling::GREEDY), (8, Sampling::GREEDY), (1, warm), (16, hot)] {
        let sessions: Vec<StageHandle> = (0..users).map(|_| base.another(256).expect("opens")).collect();
        assert!(sessions.iter().all(|session| session.set_sampling(sampling)));
        let mut last = vec![1; users];
        (0..66).for_each(|position| tokens(&sessions, position, &mut last));
        COUNTED.store(0, SeqCst);
        COUNTS.store(true, SeqCst);
        (66..126).for_each(|position| tokens(&sessions, position, &mut last));
        COUNTS.store(false, SeqCst);
        assert_eq!(COUNTED.load(SeqCst), 0, "{users} users, {sampling:?}");
    }
    // The count counts: another session's first page is an allocation.
    COUNTS.store(true, SeqCst);
    tokens(&[base.another(256).expect("opens")], 0, &mut [1]);
    assert!(COUNTED.load(SeqCst) > 0);
}
