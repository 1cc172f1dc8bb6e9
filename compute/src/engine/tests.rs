//! The engine on tiny random models: right values, the reproducible-arithmetic law, sessions, refusals, panics.

use super::*;
use crate::{
    arch::{LayerRole, Projection, Role},
    choose::{Choice, Chooser, Demands},
    cpu::{
        cache::Cache,
        kv::KvFormat,
        pass::{Pass, Slot},
        work::{PASS_TOKENS_MAX, Work},
    },
    sample::Sampling,
    stage::{StepError, StepInput, StepOutput},
    tiny::{self, Tiny},
    weights::SourceError,
};
use cairn_protocol::{
    dtype::Dtype,
    layers::LayerRange,
    manifest::{Experts, Naming, RopeScaling, Variations},
};
use std::time::Duration;

/// A deadline that only a hang reaches.
const LONG: Duration = Duration::from_secs(120);

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

pub(super) fn engine(level: Level, threads: usize) -> Engine {
    engine_of(level, threads, 1 << 30)
}

pub(super) fn engine_of(level: Level, threads: usize, memory_max: u64) -> Engine {
    Engine::start(EngineConfig { threads, level: Some(level), memory_max }).expect("engine")
}

pub(super) fn try_load(
    engine: &Engine,
    tiny: &Tiny,
    part: StagePart,
    options: LoadOptions,
) -> Result<StageHandle, LoadError> {
    let (done, loaded) = sync_channel(1);
    let answer = Box::new(move |result| drop(done.send(result)));
    engine.load(tiny.model.clone(), tiny.tensors.clone(), part, options, tiny.source(), answer);
    loaded.recv_timeout(LONG).expect("an answer")
}

pub(super) fn load(engine: &Engine, tiny: &Tiny, part: StagePart, planes: u32) -> StageHandle {
    try_load(engine, tiny, part, LoadOptions { context: 300, planes }).expect("loads")
}

pub(super) fn step(stage: &StageHandle, input: StepInput) -> Result<StepOutput, StepError> {
    let (done, output) = sync_channel(1);
    stage.step(input, Box::new(move |result| drop(done.send(result))));
    output.recv_timeout(LONG).expect("an answer")
}

pub(super) fn tokens(first: usize, ids: &[u32], sample: bool) -> StepInput {
    StepInput::Tokens { first_position: first as u64, ids: ids.to_vec(), sample }
}

pub(super) fn hidden(stage: &StageHandle, first: usize, ids: &[u32]) -> Vec<f32> {
    match step(stage, tokens(first, ids, false)).expect("step") {
        StepOutput::Hidden { values, .. } => values,
        other => panic!("{other:?}"),
    }
}

/// Ids within a vocabulary, other ones for each salt.
pub(super) fn prompt(tiny: &Tiny, n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7 + i * i * 3 + salt * 11) % tiny.model.vocabulary as usize) as u32).collect()
}

/// Every stored type, and two models where formats are mixed within fused matrices.
fn recipes() -> Vec<(&'static str, Tiny)> {
    let wide = || Model { width: 256, heads: 4, kv_heads: 2, head_width: 64, feed_forward: 256, ..tiny::llama() };
    let all = |dtype: Dtype| move |_: Role| dtype;
    let mixed = |role: Role| match role {
        Role::Layer(_, LayerRole::Value | LayerRole::Gate) => Dtype::Q8_0,
        Role::Layer(_, LayerRole::Key) => Dtype::F16,
        Role::Layer(_, LayerRole::Down) => Dtype::Q4_1,
        Role::Embedding => Dtype::Q5_0,
        _ => Dtype::Q4_0,
    };
    let mut all_types: Vec<(&'static str, Tiny)> = [
        Dtype::F32,
        Dtype::F16,
        Dtype::BF16,
        Dtype::Q8_0,
        Dtype::Q4_0,
        Dtype::Q4_1,
        Dtype::Q5_0,
        Dtype::Q5_1,
        Dtype::IQ4_NL,
    ]
    .into_iter()
    .map(|dtype| (dtype.name(), Tiny::new(tiny::llama(), 5, all(dtype))))
    .collect();
    for dtype in [Dtype::Q2_K, Dtype::Q3_K, Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K] {
        all_types.push((dtype.name(), Tiny::new(Model { layers: 1, ..wide() }, 6, all(dtype))));
    }
    all_types.push(("mixed", Tiny::new(tiny::llama(), 8, mixed)));
    all_types.push(("qwen2, mixed", Tiny::new(tiny::qwen2(), 9, mixed)));
    all_types.push(("qwen2, F32", Tiny::new(tiny::qwen2(), 9, all(Dtype::F32))));
    let odd =
        Model { width: 40, heads: 5, kv_heads: 1, head_width: 8, feed_forward: 172, vocabulary: 51, ..tiny::llama() };
    all_types.push(("odd sizes, F32", Tiny::new(odd.clone(), 10, all(Dtype::F32))));
    all_types.push(("odd sizes, BF16", Tiny::new(Model { head_width: 24, ..odd }, 11, all(Dtype::BF16))));
    let heads = Model { heads: 7, kv_heads: 1, head_width: 32, width: 224, ..tiny::llama() };
    all_types.push(("llama3, F32", Tiny::new(tiny::llama3(), 13, all(Dtype::F32))));
    let by_tensor = Model { naming: Naming::Gguf, rope_half_split: false, ..tiny::scaled(RopeScaling::Tensor) };
    all_types.push(("rope divisors, Q8_0", Tiny::new(by_tensor, 14, all(Dtype::Q8_0))));
    let linear = tiny::scaled(RopeScaling::Linear { factor: 4.0 });
    all_types.push(("linear rope, Q4_0", Tiny::new(linear, 15, all(Dtype::Q4_0))));
    all_types.push(("qwen3, F32", Tiny::new(tiny::qwen3(), 16, all(Dtype::F32))));
    let unpadded = Model { head_width: 24, naming: Naming::Gguf, ..tiny::qwen3() };
    all_types.push(("qwen3, heads of 24, Q8_0", Tiny::new(unpadded, 17, all(Dtype::Q8_0))));
    all_types.push(("mistral, F32", Tiny::new(tiny::mistral(20), 18, all(Dtype::F32))));
    all_types.push(("mistral, a window of one, Q4_0", Tiny::new(tiny::mistral(1), 19, all(Dtype::Q4_0))));
    all_types.push(("mistral over tiles, Q8_0", Tiny::new(tiny::mistral(100), 20, all(Dtype::Q8_0))));
    all_types.extend(later_families());
    all_types.push(("seven heads share, Q8_0", Tiny::new(heads, 12, all(Dtype::Q8_0))));
    all_types
}

/// Families whose layers differ from each other, or choose experts.
fn later_families() -> Vec<(&'static str, Tiny)> {
    let all = |dtype: Dtype| move |_: Role| dtype;
    let of_experts = |role: Role| match role {
        Role::Layer(_, LayerRole::Expert(1, Projection::Gate)) => Dtype::Q8_0,
        Role::Layer(_, LayerRole::Expert(2, _)) => Dtype::F16,
        Role::Layer(_, LayerRole::Router) => Dtype::F32,
        _ => Dtype::Q4_0,
    };
    let stacked = Model { naming: Naming::Gguf, ..tiny::qwen3moe(9, 4) };
    let loose = Model {
        variations: Variations {
            experts: Some(Experts { count: 5, used: 2, normalised: false }),
            ..Variations::default()
        },
        ..tiny::qwen3moe(5, 2)
    };
    let named = Model { naming: Naming::Gguf, ..tiny::gemma3() };
    let wide = Model { head_width: 256, heads: 2, kv_heads: 1, ..tiny::gemma3() };
    vec![
        ("gemma3, F32", Tiny::new(tiny::gemma3(), 30, all(Dtype::F32))),
        ("gemma3 as GGUF names it, Q8_0", Tiny::new(named, 31, all(Dtype::Q8_0))),
        ("gemma3, heads of 256, Q4_0", Tiny::new(wide, 32, all(Dtype::Q4_0))),
        ("phi3, F32", Tiny::new(tiny::phi3(), 33, all(Dtype::F32))),
        ("phi3, Q4_0", Tiny::new(tiny::phi3(), 34, all(Dtype::Q4_0))),
        ("phi3, rotated in part, Q8_0", Tiny::new(tiny::phi3_turned(12), 35, all(Dtype::Q8_0))),
        ("smollm3, F32", Tiny::new(tiny::smollm3(), 36, all(Dtype::F32))),
        ("qwen3moe, F32", Tiny::new(tiny::qwen3moe(8, 3), 47, all(Dtype::F32))),
        ("qwen3moe, stacked, Q8_0", Tiny::new(stacked, 38, all(Dtype::Q8_0))),
        ("qwen3moe, mixed", Tiny::new(tiny::qwen3moe(6, 2), 39, of_experts)),
        ("qwen3moe, weights as they are, BF16", Tiny::new(loose, 40, all(Dtype::BF16))),
    ]
}

fn assert_near(name: &str, want: &[f64], got: &[f32], tolerance: f64) {
    assert_eq!(want.len(), got.len(), "{name}");
    let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
    let worst = want.iter().zip(got).fold(0f64, |m, (w, g)| m.max((w - *g as f64).abs()));
    assert!(worst <= tolerance * rms, "{name}: off by {worst} where the rms is {rms}");
}

pub(super) fn assert_same_bits(name: &str, want: &[f32], got: &[f32]) {
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(bits(want) == bits(got), "{name}: other bits");
}

/// How far a stored type may be from F32 arithmetic on its own values: keys and values are halves; types that are
/// quantised again lose up to 1/254 of a block's largest value, and random blocks are far from even.
fn tolerance(name: &str) -> f64 {
    let again = ["Q5_1", "Q2_K", "Q3_K", "Q5_K", "Q6_K"];
    if again.contains(&name) { 0.1 } else { 0.006 }
}

#[test]
fn every_stored_type_gives_the_values_of_f64_arithmetic() {
    let engine = engine(Level::best(), 2);
    for (name, tiny) in recipes() {
        let ids = prompt(&tiny, 20, 0);
        let (want, logits) = tiny.reference(&ids);
        let got = hidden(&load(&engine, &tiny, tiny.headless(), 2), 0, &ids);
        assert_near(name, &want.concat(), &got, tolerance(name));
        let whole = load(&engine, &tiny, StagePart::whole(tiny.model.layers), 2);
        let Ok(StepOutput::Token { token, .. }) = step(&whole, tokens(0, &ids, true)) else {
            panic!("{name}: no token")
        };
        let best = logits.iter().fold(f64::NEG_INFINITY, |m, l| m.max(*l));
        let rms = (logits.iter().map(|l| l * l).sum::<f64>() / logits.len() as f64).sqrt();
        assert!(
            best - logits[token as usize] <= 2.0 * tolerance(name) * rms,
            "{name}: token {token} is not the likeliest"
        );
    }
}

#[test]
fn conversions_are_reported() {
    let engine = engine(Level::best(), 1);
    let wide = Model { layers: 1, width: 256, head_width: 64, feed_forward: 256, ..tiny::llama() };
    for dtype in [Dtype::Q2_K, Dtype::Q3_K] {
        let tiny = Tiny::new(wide.clone(), 3, |_| dtype);
        let stage = load(&engine, &tiny, StagePart::whole(1), 2);
        let want = Conversion { from: dtype, to: Dtype::Q8_0, is_lossy: true, tensors: 8 };
        assert_eq!(stage.report().conversions, [want]);
    }
    for dtype in [Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::IQ4_NL, Dtype::Q4_K, Dtype::Q5_K, Dtype::Q6_K] {
        let tiny = Tiny::new(wide.clone(), 3, |_| dtype);
        assert_eq!(load(&engine, &tiny, StagePart::whole(1), 2).report().conversions, [], "{dtype}");
    }
}

#[test]
fn however_a_prompt_is_cut_its_hidden_states_are_the_same_bits_on_every_level() {
    for (name, tiny) in recipes() {
        let ids = prompt(&tiny, 150, 1);
        let mut whole: Option<Vec<f32>> = None;
        for level in levels() {
            for threads in [1, 3] {
                let engine = engine(level, threads);
                let stage = load(&engine, &tiny, tiny.headless(), 2);
                // Every cut is held with some number of threads; scalar is slow and holds a few.
                let cuts: &[usize] = match (level, threads) {
                    (Level::Scalar, 1) => &[7],
                    (Level::Scalar, _) => &[150],
                    (_, 1) => &[150, 1, 7, 64],
                    _ => &[150, 2, 5, 16, 33, 129],
                };
                for cut in cuts {
                    stage.truncate(0);
                    let mut got = Vec::new();
                    for piece in ids.chunks(*cut) {
                        got.extend(hidden(&stage, got.len() / tiny.model.width as usize, piece));
                    }
                    let want = whole.get_or_insert_with(|| got.clone());
                    assert_same_bits(&format!("{name}, {level}, {threads} threads, pieces of {cut}"), want, &got);
                }
            }
        }
    }
}

#[test]
fn one_plane_keeps_the_law_too() {
    let tiny = Tiny::new(tiny::llama(), 5, |_| Dtype::Q4_0);
    let ids = prompt(&tiny, 40, 1);
    let mut whole = Vec::new();
    for level in levels() {
        let stage = load(&engine(level, 2), &tiny, tiny.headless(), 1);
        for cut in [40, 3] {
            stage.truncate(0);
            let mut got = Vec::new();
            for piece in ids.chunks(cut) {
                got.extend(hidden(&stage, got.len() / tiny.model.width as usize, piece));
            }
            if whole.is_empty() {
                whole = got.clone();
            }
            assert_same_bits(&format!("{level} {cut}"), &whole, &got);
        }
    }
}

/// Runs ids through stages one after the other.
fn through(chain: &[StageHandle], first: usize, ids: &[u32]) -> u32 {
    let mut input = tokens(first, ids, true);
    for stage in chain {
        input = match step(stage, input).expect("step") {
            StepOutput::Hidden { values, .. } => {
                StepInput::Hidden { first_position: first as u64, count: ids.len() as u32, values, sample: true }
            }
            StepOutput::Token { token, .. } => return token,
            StepOutput::Logits { .. } | StepOutput::Nothing { .. } => panic!("asked to sample"),
        };
    }
    panic!("the last stage has no head")
}

pub(super) fn generated(chain: &[StageHandle], ids: &[u32], n: usize) -> Vec<u32> {
    let mut made = vec![through(chain, 0, ids)];
    while made.len() < n {
        made.push(through(chain, ids.len() + made.len() - 1, &made[made.len() - 1..]));
    }
    made
}

#[test]
fn one_two_and_three_stages_make_the_same_tokens() {
    for (name, tiny) in recipes().into_iter().filter(|(_, tiny)| tiny.model.layers == 3) {
        let (engine, ids) = (engine(Level::best(), 2), prompt(&tiny, 30, 2));
        let sampling = Sampling { temperature: 1.3, seed: 7, ..Sampling::GREEDY };
        let mut want: Option<Vec<u32>> = None;
        for cuts in [&[0, 3][..], &[0, 1, 3], &[0, 2, 3], &[0, 1, 2, 3], &[0, 0, 3, 3]] {
            let part = |w: &[u32]| StagePart {
                layers: LayerRange { start: w[0], end: w[1] },
                embedding: w[0] == 0 && (w[1] > 0 || cuts[0..2] == [0, 0]) && w[0..2] == cuts[0..2],
                head: w[0..2] == cuts[cuts.len() - 2..],
            };
            let chain: Vec<StageHandle> = cuts.windows(2).map(|w| load(&engine, &tiny, part(w), 2)).collect();
            assert!(chain.iter().all(|stage| stage.set_sampling(sampling)));
            let got = generated(&chain, &ids, 25);
            assert_eq!(want.get_or_insert_with(|| got.clone()), &got, "{name} cut at {cuts:?}");
        }
    }
}

#[test]
fn sessions_at_once_get_the_tokens_that_each_gets_alone_and_may_leave_at_any_time() {
    for (name, tiny) in recipes().into_iter().filter(|(_, tiny)| tiny.model.layers == 3) {
        let engine = engine(Level::best(), 2);
        let first = load(&engine, &tiny, StagePart::whole(3), 2);
        let prompts: Vec<Vec<u32>> = (0..20).map(|user| prompt(&tiny, 1 + user * 37 % 150, user)).collect();
        let another = |user: usize| {
            let session = first.another(300).expect("room");
            let seed = user as u64;
            let sampling = Sampling { temperature: 1.1, seed, repetition_penalty: 1.1, ..Sampling::GREEDY };
            assert!(session.set_sampling(sampling));
            session
        };
        let run = |user: usize| generated(&[another(user)], &prompts[user], 16);
        let alone: Vec<Vec<u32>> = (0..prompts.len()).map(run).collect();
        let together: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let users: Vec<_> = (0..prompts.len()).map(|user| scope.spawn(move || run(user))).collect();
            for (user, ids) in prompts.iter().enumerate() {
                let leaver = another(user);
                leaver.step(tokens(0, ids, true), Box::new(drop));
                drop(leaver);
            }
            users.into_iter().map(|user| user.join().expect("a user")).collect()
        });
        assert_eq!(alone, together, "{name}");
    }
}

#[test]
fn sequences_that_share_a_pass_do_not_touch_each_other() {
    for (name, tiny) in recipes() {
        for level in levels() {
            let part = tiny.headless();
            let loaded =
                crate::weights::load(&tiny.model, &tiny.tensors, &part, 64, &mut *tiny.source()).expect("loads");
            let (model, pool) = (loaded.model, Pool::new(2).expect("pool"));
            let width = model.shape.width;
            let mut work = Work::new(&model, Planes::Two, PASS_TOKENS_MAX, 1);
            let mut run = |sequences: &[Vec<u32>]| {
                let mut caches: Vec<Cache> =
                    sequences.iter().map(|_| Cache::new(model.page_shape(KvFormat::F16), 64)).collect();
                let slots: Vec<Slot> = sequences
                    .iter()
                    .enumerate()
                    .flat_map(|(sequence, ids)| (0..ids.len()).map(move |position| Slot { sequence, position }))
                    .collect();
                let pass = Pass { model: &model, pool: &pool, level, planes: Planes::Two, slots: &slots };
                pass.embed(&mut work, sequences.concat().into_iter());
                pass.walk(&mut work, &mut caches.iter_mut().collect::<Vec<_>>());
                let mut out = vec![0.0; slots.len() * width];
                pass.send(&work, out.chunks_exact_mut(width));
                out
            };
            let all = [prompt(&tiny, 9, 3), prompt(&tiny, 1, 4), prompt(&tiny, 17, 5)];
            let alone: Vec<f32> = all.iter().flat_map(|ids| run(std::slice::from_ref(ids))).collect();
            assert_same_bits(&format!("{name} {level}"), &alone, &run(&all));
        }
    }
}

#[test]
fn experts_apart_and_stacked_are_the_same_model() {
    for dtype in [Dtype::F32, Dtype::Q4_0] {
        let apart = Tiny::new(tiny::qwen3moe(8, 3), 41, |_| dtype);
        let stacked = apart.stacked();
        assert!(stacked.tensors.len() + 3 * 7 * 3 == apart.tensors.len());
        let (engine, ids) = (engine(Level::best(), 2), prompt(&apart, 40, 1));
        let of = |tiny: &Tiny| hidden(&load(&engine, tiny, tiny.headless(), 2), 0, &ids);
        assert_same_bits(dtype.name(), &of(&apart), &of(&stacked));
    }
}

#[test]
fn a_token_reads_the_weights_of_the_experts_that_it_goes_through() {
    let bytes = |used: u32| {
        let tiny = Tiny::new(tiny::qwen3moe(8, used), 42, |_| Dtype::Q4_0);
        load(&engine(Level::best(), 1), &tiny, tiny.headless(), 2).report().bytes_a_token
    };
    let (expert, all) = (bytes(2) - bytes(1), bytes(8));
    assert!(expert > 0 && all == bytes(1) + 7 * expert, "{expert} of {all}");
}

#[test]
fn half_split_and_neighbouring_pairs_are_the_same_model() {
    for dtype in [Dtype::F32, Dtype::Q4_0] {
        let halves = Tiny::new(tiny::llama(), 21, |_| dtype);
        let neighbours = halves.interleaved();
        assert_eq!(neighbours.model.naming, Naming::Gguf);
        let (engine, ids) = (engine(Level::best(), 1), prompt(&halves, 12, 0));
        let [a, b] = [&halves, &neighbours].map(|tiny| hidden(&load(&engine, tiny, tiny.headless(), 2), 0, &ids));
        assert_same_bits("pairs", &a, &b);
    }
}

#[test]
fn a_truncated_session_repeats_itself() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::Q8_0);
    let stage = load(&engine(Level::best(), 2), &tiny, tiny.headless(), 2);
    let ids = prompt(&tiny, 40, 0);
    let first = hidden(&stage, 0, &ids);
    assert!(stage.truncate(25) && stage.truncate(25) && stage.truncate(30));
    let again = hidden(&stage, 25, &ids[25..]);
    assert_same_bits("replay", &first[25 * tiny.model.width as usize..], &again);
}

#[test]
fn sessions_on_the_same_weights_are_apart_and_give_their_memory_back() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::Q8_0);
    let engine = engine(Level::best(), 2);
    let stage = load(&engine, &tiny, tiny.headless(), 2);
    let loaded = engine.memory().0;
    let ids = prompt(&tiny, 10, 0);
    let want = hidden(&stage, 0, &ids);
    let other = stage.another(100).expect("opens");
    assert!(engine.memory().0 > loaded);
    assert_same_bits("sessions", &want, &hidden(&other, 0, &ids));
    assert!(matches!(stage.another(301), Err(LoadError::Context { asked: 301, loaded: 300 })));
    drop(stage);
    assert_eq!(hidden(&other, 10, &ids).len(), want.len(), "the weights stay while a session is on them");
    drop(other);
    wait_for(|| engine.memory().0 == 0);
}

/// Waits for what another thread does soon, with a deadline.
pub(super) fn wait_for(ready: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !ready() {
        assert!(start.elapsed() < LONG, "never came");
        thread::yield_now();
    }
}

#[test]
fn inputs_that_cannot_be_are_refused_and_the_session_goes_on() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::F32);
    let engine = engine(Level::best(), 1);
    let first = load(&engine, &tiny, tiny.headless(), 2);
    let last = load(&engine, &tiny, StagePart::of(LayerRange { start: 1, end: 3 }, 3), 2);
    let values = |count: u32, values| StepInput::Hidden { first_position: 0, count, values, sample: false };
    let refused = |stage: &StageHandle, input| step(stage, input).expect_err("refused");
    assert_eq!(refused(&first, tokens(1, &[1], false)), StepError::NotNext { held: 0, got: 1 });
    assert_eq!(refused(&first, tokens(0, &[1, 50], false)), StepError::UnknownToken { id: 50, vocabulary: 50 });
    assert_eq!(refused(&first, tokens(0, &[1; 301], false)), StepError::TooLong { needed: 301, context: 300 });
    assert!(matches!(refused(&first, tokens(0, &[], false)), StepError::WrongInput(_)));
    assert!(matches!(refused(&first, values(1, vec![0.0; 64])), StepError::WrongInput(_)));
    assert!(matches!(refused(&last, tokens(0, &[1], false)), StepError::WrongInput(_)));
    assert_eq!(refused(&last, values(2, vec![0.0; 64])), StepError::WrongSize { got: 64, count: 2, width: 64 });
    assert_eq!(refused(&last, values(1, vec![f32::NAN; 64])), StepError::NotFinite);
    assert!(matches!(refused(&last, values(u32::MAX, Vec::new())), StepError::TooLong { .. }));
    assert_eq!(hidden(&first, 0, &[1, 2, 3]).len(), 3 * 64);
    assert!(matches!(step(&last, values(1, vec![0.5; 64])), Ok(StepOutput::Nothing { .. })));
}

#[test]
fn a_penalty_reads_the_history_that_was_given_and_what_was_sampled() {
    let tiny = Tiny::new(tiny::llama(), 77, |_| Dtype::F32);
    let engine = engine(Level::best(), 1);
    let ids = prompt(&tiny, 6, 0);
    let strong = Sampling { repetition_penalty: 50.0, ..Sampling::GREEDY };
    let whole = vec![load(&engine, &tiny, StagePart::whole(3), 2)];
    let parts =
        [(0, 1), (1, 3)].map(|(start, end)| load(&engine, &tiny, StagePart::of(LayerRange { start, end }, 3), 2));
    assert!(whole[0].set_sampling(strong) && parts[1].set_sampling(strong) && parts[1].set_history(ids.clone()));
    let (one, two) = (generated(&whole, &ids, 20), generated(&parts, &ids, 20));
    assert_eq!(one, two);
    let plain = vec![load(&engine, &tiny, StagePart::whole(3), 2)];
    assert_ne!(one, generated(&plain, &ids, 20), "the penalty changes something");
}

#[test]
fn a_penalty_forgets_the_ids_of_forgotten_positions() {
    let tiny = Tiny::new(tiny::llama(), 77, |_| Dtype::F32);
    let engine = engine(Level::best(), 1);
    let strong = Sampling { repetition_penalty: 50.0, ..Sampling::GREEDY };
    let fresh = || {
        let stage = load(&engine, &tiny, StagePart::whole(3), 2);
        assert!(stage.set_sampling(strong));
        vec![stage]
    };
    let (old, new) = (prompt(&tiny, 12, 0), prompt(&tiny, 9, 5));
    let goes_on = |stage: &[StageHandle]| {
        let mut made = vec![through(stage, 3, &new)];
        while made.len() < 20 {
            made.push(through(stage, 11 + made.len(), &made[made.len() - 1..]));
        }
        made
    };
    let (turned, straight) = (fresh(), fresh());
    generated(&turned, &old, 4);
    assert!(turned[0].truncate(3));
    through(&straight, 0, &old[..3]);
    assert_eq!(goes_on(&turned), goes_on(&straight));
}

#[test]
fn dice_depend_on_the_position_and_not_on_how_the_ids_before_it_were_cut() {
    let tiny = Tiny::new(tiny::llama(), 78, |_| Dtype::F32);
    let (engine, ids) = (engine(Level::best(), 1), prompt(&tiny, 40, 3));
    let sampled = |seed, piece: usize| -> Vec<u32> {
        let stage = vec![load(&engine, &tiny, StagePart::whole(3), 2)];
        assert!(stage[0].set_sampling(Sampling { temperature: 5.0, seed, ..Sampling::GREEDY }));
        ids.chunks(piece).enumerate().map(|(i, ids)| through(&stage, i * piece, ids)).collect()
    };
    let each = sampled(9, 1);
    for piece in [2, 4, 8, 40] {
        let ends: Vec<u32> = each.iter().skip(piece - 1).step_by(piece).copied().collect();
        assert_eq!(sampled(9, piece), ends, "in pieces of {piece}");
    }
    assert_ne!(sampled(10, 1), each);
}

#[test]
fn a_stage_loads_its_own_tensors_only() {
    struct Counting(Arc<std::sync::Mutex<Vec<String>>>, Box<dyn TensorSource>);
    impl TensorSource for Counting {
        fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
            self.0.lock().expect("names").push(entry.name.clone());
            self.1.tensor(entry)
        }
    }
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::Q8_0);
    let engine = engine(Level::best(), 1);
    for part in [tiny.headless(), StagePart::of(LayerRange { start: 1, end: 2 }, 3), StagePart::whole(3)] {
        let names = Arc::new(std::sync::Mutex::new(Vec::new()));
        let source = Box::new(Counting(names.clone(), tiny.source()));
        let (done, loaded) = sync_channel(1);
        let answer = Box::new(move |result| drop(done.send(result)));
        engine.load(tiny.model.clone(), tiny.tensors.clone(), part, LoadOptions::default(), source, answer);
        loaded.recv_timeout(LONG).expect("an answer").expect("loads");
        let mut read = names.lock().expect("names").clone();
        let wanted = arch::stage_tensors(&tiny.model, &tiny.tensors, &part).expect("wanted");
        let mut wanted: Vec<String> = wanted.into_iter().map(|t| t.name.clone()).collect();
        read.sort();
        wanted.sort();
        assert_eq!(read, wanted, "each once, no other");
    }
}

#[test]
fn broken_sources_and_small_ceilings_are_refused() {
    struct Broken(fn() -> Result<Vec<u8>, SourceError>);
    impl TensorSource for Broken {
        fn tensor(&mut self, _: &TensorEntry) -> Result<Vec<u8>, SourceError> {
            (self.0)()
        }
    }
    struct BadEnd;
    impl TensorSource for BadEnd {
        fn tensor(&mut self, _: &TensorEntry) -> Result<Vec<u8>, SourceError> {
            Err(SourceError("gone".into()))
        }
    }
    impl Drop for BadEnd {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::Q8_0);
    let engine = engine(Level::best(), 1);
    let from = |source: Box<dyn TensorSource>| {
        let (done, loaded) = sync_channel(1);
        let answer = Box::new(move |result| drop(done.send(result)));
        let part = StagePart::whole(3);
        let options = LoadOptions::default();
        engine.load(tiny.model.clone(), tiny.tensors.clone(), part, options, source, answer);
        loaded.recv_timeout(LONG).expect("an answer").expect_err("refused")
    };
    let with = |source| from(Box::new(Broken(source)));
    assert!(matches!(with(|| Err(SourceError("gone".into()))), LoadError::Weights(WeightsError::Source { .. })));
    assert!(matches!(with(|| Ok(vec![0; 3])), LoadError::Weights(WeightsError::Length { got: 3, .. })));
    assert!(matches!(with(|| panic!("planned")), LoadError::Panicked(why) if why == "planned"));
    assert!(matches!(from(Box::new(BadEnd)), LoadError::Panicked(why) if why == "dropped"));
    wait_for(|| engine.memory().0 == 0);
    let small = Engine::start(EngineConfig { threads: 1, level: None, memory_max: 10_000 }).expect("engine");
    let refused = try_load(&small, &tiny, StagePart::whole(3), LoadOptions::default());
    assert!(matches!(refused, Err(LoadError::Memory { max: 10_000, free: 10_000, .. })));
    assert!(try_load(&engine, &tiny, StagePart::whole(3), LoadOptions::default()).is_ok(), "the loader goes on");
}

#[test]
fn a_callback_that_panics_does_not_end_the_engine() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::F32);
    let stage = load(&engine(Level::best(), 2), &tiny, tiny.headless(), 2);
    stage.step(tokens(0, &[1], false), Box::new(|_| panic!("planned")));
    assert_eq!(hidden(&stage, 1, &[2]).len(), 64);
}

#[test]
fn a_stopped_engine_answers_every_step() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::F32);
    let engine = engine(Level::best(), 2);
    let stage = load(&engine, &tiny, tiny.headless(), 2);
    engine.stop();
    for _ in 0..20 {
        match step(&stage, tokens(0, &[1], false)) {
            Err(StepError::Stopped) => return,
            // Stopping does not wait: a step may come before it.
            Ok(_) | Err(StepError::NotNext { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(step(&stage, tokens(0, &[1], false)), Err(StepError::Stopped));
    assert!(!stage.truncate(0), "nothing can be truncated any more");
}

#[test]
fn a_level_that_the_processor_has_not_is_refused() {
    for level in Level::ALL {
        let started = Engine::start(EngineConfig { threads: 1, level: Some(level), memory_max: 0 });
        assert_eq!(started.is_ok(), level.is_available());
        assert_eq!(level.name().parse::<Level>(), Ok(level));
    }
    assert!("avx9".parse::<Level>().is_err());
}

/// Tokens of a session whose logits are handed out to a chooser, and what it said of them.
fn chosen(stage: &StageHandle, demands: Demands, ids: &[u32], n: usize) -> Vec<Choice> {
    assert!(stage.hand_out_logits());
    let chooser = Chooser::start(demands, None, ids.to_vec()).expect("no grammar");
    let (mut first, mut input, mut made) = (0, ids.to_vec(), Vec::new());
    while made.len() < n {
        let output = step(stage, tokens(first, &input, true)).expect("step");
        let StepOutput::Logits { values, .. } = output else { panic!("{output:?} instead of logits") };
        first += input.len();
        let (done, choice) = std::sync::mpsc::sync_channel(1);
        chooser.choose(first as u64, values, Box::new(move |chosen| drop(done.send(chosen))));
        let choice: Choice = choice.recv().expect("an answer").expect("a choice");
        input = vec![choice.token];
        made.push(choice);
    }
    made
}

#[test]
fn a_chooser_that_adds_nothing_makes_the_tokens_that_the_engine_makes() {
    let tiny = Tiny::new(tiny::llama(), 3, |_| Dtype::Q8_0);
    let (engine, ids) = (engine(Level::best(), 2), prompt(&tiny, 30, 2));
    let stage = load(&engine, &tiny, StagePart::whole(3), 2);
    for sampling in [
        Sampling::GREEDY,
        Sampling { temperature: 1.3, seed: 7, min_p: 0.01, index: 2, repetition_penalty: 1.2, ..Sampling::GREEDY },
    ] {
        assert!(stage.truncate(0) && stage.set_sampling(sampling));
        let want = generated(std::slice::from_ref(&stage), &ids, 20);
        assert!(stage.truncate(0));
        let demands = Demands { sampling, logprobs: Some(2), prompt_tokens: ids.len(), ..Demands::default() };
        let got = chosen(&stage, demands, &ids, 20);
        assert_eq!(want, got.iter().map(|choice| choice.token).collect::<Vec<_>>());
    }
}

#[test]
fn logprobs_are_those_of_the_full_precision_reference() {
    for (name, tiny) in [("llama", tiny::llama()), ("qwen3", tiny::qwen3())] {
        let tiny = Tiny::new(tiny, 3, |_| Dtype::F32);
        let (engine, mut ids) = (engine(Level::best(), 2), prompt(&tiny, 12, 2));
        let stage = load(&engine, &tiny, StagePart::whole(tiny.model.layers), 2);
        let demands = Demands { logprobs: Some(5), prompt_tokens: ids.len(), ..Demands::default() };
        for choice in chosen(&stage, demands, &ids, 12) {
            let logits = tiny.reference(&ids).1;
            let top = logits.iter().copied().fold(f64::MIN, f64::max);
            let normaliser = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
            let said = choice.logprobs.expect("they were asked for");
            assert_eq!(said.best.len(), 5);
            for (id, logprob) in said.best.iter().chain([&(choice.token, said.chosen)]) {
                let want = logits[*id as usize] - normaliser;
                assert!(
                    (f64::from(*logprob) - want).abs() < 5e-3,
                    "{name}: {logprob} against {want} after {}",
                    ids.len()
                );
            }
            ids.push(choice.token);
        }
    }
}
