//! Adapters on tiny random models: the values of merged weights and of PEFT, the reproducible-arithmetic law, refusals.

use super::*;
use crate::{
    Engine, EngineConfig, LoadError, LoadOptions, SourceError, StageHandle, StagePart, StepInput, StepOutput,
    TensorSource, WantedAdapter,
    arch::{self, LayerRole},
    cpu::{
        acts::Planes,
        adapters::Adapter,
        cache::Cache,
        kv::KvFormat,
        level::Level,
        model::Model as Loaded,
        pass::{Pass, Slot},
        pool::Pool,
        work::Work,
    },
    engine::{AdapterHandle, SetAdapterError},
    tiny::{self, Dice, Tiny},
    weights,
};
use cairn_protocol::{
    dtype::Dtype,
    id::RevisionId,
    layers::LayerRange,
    manifest::{Model, Naming, TensorEntry},
};
use half::{bf16, f16};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc::sync_channel},
    time::Duration,
};

/// A deadline that only a hang reaches.
const LONG: Duration = Duration::from_secs(120);
const MODULES: [(&str, LayerRole); 7] = [
    ("self_attn.q_proj", LayerRole::Query),
    ("self_attn.k_proj", LayerRole::Key),
    ("self_attn.v_proj", LayerRole::Value),
    ("self_attn.o_proj", LayerRole::Out),
    ("mlp.gate_proj", LayerRole::Gate),
    ("mlp.up_proj", LayerRole::Up),
    ("mlp.down_proj", LayerRole::Down),
];

/// An adapter in memory.
#[derive(Clone)]
struct TinyAdapter {
    config: Value,
    tensors: Vec<TensorEntry>,
    bytes: BTreeMap<String, Vec<u8>>,
    values: BTreeMap<String, Vec<f32>>,
}

struct Memory {
    bytes: BTreeMap<String, Vec<u8>>,
    read: Arc<Mutex<Vec<String>>>,
}

impl TensorSource for Memory {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        self.read.lock().expect("names").push(entry.name.clone());
        self.bytes.get(&entry.name).cloned().ok_or_else(|| SourceError("no such tensor".into()))
    }
}

fn config(rank: u64, alpha: f64) -> Value {
    json!({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "base_model_name_or_path": "acme/tiny",
           "init_lora_weights": true, "lora_dropout": 0.05, "modules_to_save": null, "use_dora": false, "loftq_config": {}})
}

fn tensor_name(layer: u32, module: &str, half: &str) -> String {
    format!("base_model.model.model.layers.{layer}.{module}.lora_{half}.weight")
}

impl TinyAdapter {
    /// Random values for the matrices that `wanted` names, of that rank.
    fn new(model: &Model, seed: u64, rank: u64, dtype: Dtype, wanted: impl Fn(u32, LayerRole) -> bool) -> Self {
        let mut dice = Dice(seed | 1);
        let shape = arch::shape(model).expect("a test's model");
        let mut adapter = Self {
            config: config(rank, 1.5 * rank as f64),
            tensors: Vec::new(),
            bytes: BTreeMap::new(),
            values: BTreeMap::new(),
        };
        for layer in 0..model.layers {
            for (module, role) in MODULES.iter().filter(|(_, role)| wanted(layer, *role)) {
                let base = arch::layer_dimensions(&shape, *role);
                for (half, dimensions) in [("A", vec![rank, base[1]]), ("B", vec![base[0], rank])] {
                    let spread = 0.7 / (dimensions[1] as f32).sqrt();
                    let values = (0..dimensions[0] * dimensions[1]).map(|_| dice.float() * spread).collect();
                    adapter.push(tensor_name(layer, module, half), dimensions, dtype, values);
                }
            }
        }
        adapter
    }

    fn all(model: &Model, seed: u64, rank: u64) -> Self {
        Self::new(model, seed, rank, Dtype::F32, |_, _| true)
    }

    fn push(&mut self, name: String, shape: Vec<u64>, dtype: Dtype, values: Vec<f32>) {
        let bytes: Vec<u8> = match dtype {
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let mut kept = Vec::new();
        assert!(crate::quant::dequantise(dtype, &bytes, &mut kept));
        let length = bytes.len() as u64;
        self.tensors.push(TensorEntry { name: name.clone(), file: 0, offset: 0, length, dtype, shape });
        self.bytes.insert(name.clone(), bytes);
        self.values.insert(name, kept);
    }

    fn spec(&self) -> AdapterSpec {
        let metadata = describe(self.config.to_string().as_bytes(), &self.tensors).expect("described");
        AdapterSpec::from_metadata(&metadata).expect("read")
    }

    fn described(&self) -> Result<Vec<(String, String)>, AdapterError> {
        describe(self.config.to_string().as_bytes(), &self.tensors)
    }

    fn source(&self) -> Memory {
        Memory { bytes: self.bytes.clone(), read: Arc::default() }
    }

    fn load(&self, model: &Model, part: StagePart) -> Arc<Adapter> {
        let spec = self.spec();
        let fitted = fit(model, &spec, &self.tensors, &part).expect("fits");
        Arc::new(load(&fitted, &spec, &part, &mut self.source()).expect("loads"))
    }

    /// The model with this adapter in its values.
    fn merged(&self, tiny: &Tiny) -> Tiny {
        let (mut merged, spec) = (tiny.clone(), self.spec());
        for pair in fit(&tiny.model, &spec, &self.tensors, &StagePart::whole(tiny.model.layers)).expect("fits").pairs {
            let scale = f64::from(spec.scale(&pair.module, pair.rank).expect("a scale"));
            let (a, b) = (&self.values[&pair.a.name], &self.values[&pair.b.name]);
            let (rank, k) = (pair.rank as usize, pair.a.shape[1] as usize);
            let name = arch::tensor_name(&tiny.model, arch::Role::Layer(pair.layer, pair.role));
            let values = merged.values.get_mut(&name).expect("a tensor");
            for (i, value) in values.iter_mut().enumerate() {
                let (row, column) = (i / k, i % k);
                let sum: f64 = (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * k + column])).sum();
                *value = (f64::from(*value) + scale * sum) as f32;
            }
        }
        merged
    }
}

fn engine(threads: usize) -> Engine {
    Engine::start(EngineConfig { threads, level: Some(Level::best()), memory_max: 1 << 30 }).expect("engine")
}

fn stage(engine: &Engine, tiny: &Tiny, part: StagePart) -> StageHandle {
    let (done, loaded) = sync_channel(1);
    let answer = Box::new(move |result| drop(done.send(result)));
    let options = LoadOptions { context: 300, planes: 2 };
    engine.load(tiny.model.clone(), tiny.tensors.clone(), part, options, tiny.source(), answer);
    loaded.recv_timeout(LONG).expect("an answer").expect("loads")
}

/// Some adapter for a part of a tiny model.
pub(crate) fn loaded(engine: &Engine, tiny: &Tiny, part: StagePart) -> AdapterHandle {
    try_adapter(engine, tiny, &TinyAdapter::all(&tiny.model, 2, 8), part).expect("loads")
}

fn try_adapter(
    engine: &Engine,
    tiny: &Tiny,
    adapter: &TinyAdapter,
    part: StagePart,
) -> Result<AdapterHandle, LoadError> {
    let (done, loaded) = sync_channel(1);
    let wanted = WantedAdapter {
        model: tiny.model.clone(),
        spec: adapter.spec(),
        revision: RevisionId::from([adapter.tensors.len() as u8; 32]),
        tensors: adapter.tensors.clone(),
        part,
    };
    engine.load_adapter(wanted, Box::new(adapter.source()), Box::new(move |result| drop(done.send(result))));
    loaded.recv_timeout(LONG).expect("an answer")
}

fn step(stage: &StageHandle, input: StepInput) -> StepOutput {
    let (done, output) = sync_channel(1);
    stage.step(input, Box::new(move |result| drop(done.send(result))));
    output.recv_timeout(LONG).expect("an answer").expect("a step")
}

fn hidden(stage: &StageHandle, first: usize, ids: &[u32]) -> Vec<f32> {
    let input = StepInput::Tokens { first_position: first as u64, ids: ids.to_vec(), sample: false };
    match step(stage, input) {
        StepOutput::Hidden { values, .. } => values,
        other => panic!("{other:?}"),
    }
}

fn prompt(tiny: &Tiny, n: usize, salt: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7 + i * i * 3 + salt * 11) % tiny.model.vocabulary as usize) as u32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Models whose matrices are fused, paired and held in every way.
fn models() -> Vec<(&'static str, Tiny)> {
    let gguf = Model { naming: Naming::Gguf, rope_half_split: false, ..tiny::llama() };
    let odd =
        Model { width: 40, heads: 5, kv_heads: 1, head_width: 8, feed_forward: 172, vocabulary: 51, ..tiny::llama() };
    let mixed = |role: arch::Role| match role {
        arch::Role::Layer(_, LayerRole::Value | LayerRole::Gate) => Dtype::Q8_0,
        arch::Role::Layer(_, LayerRole::Key) => Dtype::F16,
        _ => Dtype::Q4_0,
    };
    vec![
        ("F32", Tiny::new(tiny::llama(), 5, |_| Dtype::F32)),
        ("Q8_0", Tiny::new(tiny::llama(), 6, |_| Dtype::Q8_0)),
        ("Q4_0, GGUF", Tiny::new(gguf, 7, |_| Dtype::Q4_0)),
        ("qwen2, mixed", Tiny::new(tiny::qwen2(), 8, mixed)),
        ("qwen3, BF16", Tiny::new(tiny::qwen3(), 9, |_| Dtype::BF16)),
        ("odd sizes, F32", Tiny::new(odd, 10, |_| Dtype::F32)),
        ("gemma3, F32", Tiny::new(tiny::gemma3(), 11, |_| Dtype::F32)),
        ("smollm3, Q8_0", Tiny::new(tiny::smollm3(), 12, |_| Dtype::Q8_0)),
    ]
}

#[test]
fn an_adapter_gives_the_values_of_its_merged_weights() {
    let engine = engine(2);
    // The reference merges rows in the Hub's order; the other order has a test of its own.
    for (name, tiny) in models().into_iter().filter(|(_, tiny)| tiny.model.rope_half_split) {
        for (rank, dtype) in [(1, Dtype::F32), (4, Dtype::F16), (19, Dtype::BF16)] {
            let mut adapter = TinyAdapter::new(&tiny.model, 3 + rank, rank, dtype, |_, _| true);
            adapter.config["use_rslora"] = json!(rank == 19);
            let merged = adapter.merged(&tiny);
            let ids = prompt(&tiny, 20, rank as usize);
            let (want, _) = merged.reference(&ids);
            let stage = stage(&engine, &tiny, tiny.headless());
            let loaded = try_adapter(&engine, &tiny, &adapter, tiny.headless()).expect("loads");
            stage.set_adapter(Some(&loaded)).expect("taken");
            let (got, want) = (hidden(&stage, 0, &ids), want.concat());
            let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
            let off = want.iter().zip(&got).fold(0f64, |m, (w, g)| m.max((w - f64::from(*g)).abs()));
            assert!(off <= 0.006 * rms, "{name}, rank {rank}: off by {off} where the rms is {rms}");
            stage.set_adapter(None).expect("taken");
            let plain = hidden(&stage, 0, &ids);
            let moved = plain.iter().zip(&got).fold(0f64, |m, (a, b)| m.max(f64::from((a - b).abs())));
            assert!(moved > 0.05 * rms, "{name}, rank {rank}: the adapter changes something");
        }
    }
}

#[test]
fn a_model_with_experts_takes_adapters_of_its_attention_and_no_others() {
    let (engine, tiny) = (engine(2), Tiny::new(tiny::qwen3moe(5, 2), 23, |_| Dtype::F32));
    let attends = |_, role| matches!(role, LayerRole::Query | LayerRole::Value | LayerRole::Out);
    let adapter = TinyAdapter::new(&tiny.model, 6, 4, Dtype::F32, attends);
    let (ids, stage) = (prompt(&tiny, 20, 1), stage(&engine, &tiny, tiny.headless()));
    stage.set_adapter(Some(&try_adapter(&engine, &tiny, &adapter, tiny.headless()).expect("loads"))).expect("taken");
    let (got, want) = (hidden(&stage, 0, &ids), adapter.merged(&tiny).reference(&ids).0.concat());
    let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
    let off = want.iter().zip(&got).fold(0f64, |m, (w, g)| m.max((w - f64::from(*g)).abs())) / rms;
    assert!(off <= 0.006, "off by {off} of the rms");
    let dense = TinyAdapter::new(&tiny.model, 6, 4, Dtype::F32, |_, role| role == LayerRole::Up);
    let refused = fit(&tiny.model, &dense.spec(), &dense.tensors, &StagePart::whole(tiny.model.layers)).map(drop);
    let why = refused.expect_err("an expert's matrix").to_string();
    assert!(why.contains("mlp.up_proj.lora_A"), "{why}");
}

#[test]
fn all_that_separates_an_adapter_from_exact_arithmetic_is_that_keys_and_values_are_kept_as_halves() {
    let (engine, tiny) = (engine(1), Tiny::new(tiny::llama(), 22, |_| Dtype::F32));
    let adapter = TinyAdapter::all(&tiny.model, 5, 6);
    let merged = Tiny { kept: |x| f16::from_f64(x).to_f64(), ..adapter.merged(&tiny) };
    let (ids, stage) = (prompt(&tiny, 40, 1), stage(&engine, &tiny, tiny.headless()));
    stage.set_adapter(Some(&try_adapter(&engine, &tiny, &adapter, tiny.headless()).expect("loads"))).expect("taken");
    let (got, want) = (hidden(&stage, 0, &ids), merged.reference(&ids).0.concat());
    let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
    let off = want.iter().zip(&got).fold(0f64, |m, (w, g)| m.max((w - f64::from(*g)).abs())) / rms;
    assert!(off <= 2e-4, "off by {off} of the rms");
}

#[test]
fn an_adapter_is_for_the_hubs_rotary_pairs_whatever_the_order_of_the_bases_rows() {
    let engine = engine(1);
    let halves = Tiny::new(tiny::llama(), 21, |_| Dtype::F32);
    let neighbours = halves.interleaved();
    let adapter = TinyAdapter::all(&halves.model, 4, 4);
    let made = [&halves, &neighbours].map(|tiny| {
        let stage = stage(&engine, tiny, tiny.headless());
        stage.set_adapter(Some(&try_adapter(&engine, tiny, &adapter, tiny.headless()).expect("loads"))).expect("taken");
        bits(&hidden(&stage, 0, &prompt(tiny, 30, 2)))
    });
    assert_eq!(made[0], made[1]);
}

/// Some sequences in one pass, each with an adapter or none, in pieces of at most `piece` positions a pass.
fn passes(
    (model, pool, level): (&Loaded, &Pool, Level),
    sequences: &[(Vec<u32>, Option<Arc<Adapter>>)],
    piece: usize,
) -> Vec<Vec<f32>> {
    let s = model.shape;
    let mut work = Work::new(model, Planes::Two, 128, 1);
    let mut caches: Vec<Cache> = sequences.iter().map(|_| Cache::new(model.page_shape(KvFormat::F16), 64)).collect();
    let mut made = vec![Vec::new(); sequences.len()];
    let longest = sequences.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0);
    for from in (0..longest).step_by(piece) {
        let of = |ids: &Vec<u32>| from.min(ids.len())..(from + piece).min(ids.len());
        let slot =
            |(sequence, (ids, _)): (usize, &(Vec<u32>, _))| of(ids).map(move |position| Slot { sequence, position });
        let slots: Vec<Slot> = sequences.iter().enumerate().flat_map(slot).collect();
        let pass = Pass { model, pool, level, planes: Planes::Two, slots: &slots };
        pass.embed(&mut work, slots.iter().map(|slot| sequences[slot.sequence].0[slot.position]));
        let adapters: Vec<_> = sequences.iter().map(|(_, adapter)| adapter.as_ref()).collect();
        work.low.gather(&adapters, &slots);
        pass.walk(&mut work, &mut caches.iter_mut().collect::<Vec<_>>());
        work.low.clear();
        let mut rows = vec![vec![0.0; s.width]; slots.len()];
        pass.send(&work, rows.iter_mut().map(|row| &mut row[..]));
        slots.iter().zip(rows).for_each(|(slot, row)| made[slot.sequence].extend(row));
    }
    made
}

#[test]
fn whoever_shares_a_pass_every_column_is_the_same_bits_on_every_level_and_number_of_threads() {
    for (name, tiny) in models() {
        let part = tiny.headless();
        let loaded = weights::load(&tiny.model, &tiny.tensors, &part, 64, &mut *tiny.source()).expect("loads").model;
        let every = TinyAdapter::all(&tiny.model, 2, 8).load(&tiny.model, part);
        let wide = TinyAdapter::new(&tiny.model, 3, 33, Dtype::F16, |_, _| true).load(&tiny.model, part);
        let some = |layer, role| layer == 1 && matches!(role, LayerRole::Value | LayerRole::Up);
        let few = TinyAdapter::new(&tiny.model, 4, 2, Dtype::BF16, some).load(&tiny.model, part);
        let adapters = [None, Some(every), None, Some(wide.clone()), Some(few), Some(wide)];
        let sequences: Vec<_> =
            adapters.into_iter().enumerate().map(|(i, a)| (prompt(&tiny, [17, 15, 9, 1, 14, 30][i], i), a)).collect();
        let mut alone: Option<Vec<Vec<f32>>> = None;
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            for threads in [1, 3] {
                let pool = Pool::new(threads).expect("pool");
                let on = (&loaded, &pool, level);
                let own = alone.get_or_insert_with(|| {
                    sequences.iter().flat_map(|one| passes(on, std::slice::from_ref(one), 1)).collect()
                });
                for piece in [1, 3, 64] {
                    let together = passes(on, &sequences, piece);
                    for (i, (alone, together)) in own.iter().zip(&together).enumerate() {
                        assert!(
                            bits(alone) == bits(together),
                            "{name}, {level}, {threads} threads, piece {piece}: {i}"
                        );
                    }
                }
            }
        }
        let plain = (sequences[1].0.clone(), None);
        let pool = Pool::new(1).expect("pool");
        let plain = passes((&loaded, &pool, Level::best()), &[plain], 64);
        assert_ne!(alone.map(|alone| bits(&alone[1])), Some(bits(&plain[0])), "{name}: an adapter changes something");
    }
}

/// A whole greedy generation of a chain of stages, its steps asked for one after the other.
fn tokens(chain: &[StageHandle], ids: &[u32], count: usize) -> Vec<u32> {
    let (mut made, mut position, mut next) = (Vec::new(), 0, ids.to_vec());
    while made.len() < count {
        let n = next.len() as u32;
        let first_position = position;
        let mut input = StepInput::Tokens { first_position, ids: next, sample: true };
        let token = chain.iter().find_map(|stage| match step(stage, input.clone()) {
            StepOutput::Hidden { values, .. } => {
                input = StepInput::Hidden { first_position, count: n, values, sample: true };
                None
            }
            StepOutput::Token { token, .. } => Some(token),
            StepOutput::Nothing { .. } | StepOutput::Logits { .. } => None,
        });
        let token = token.expect("a token");
        made.push(token);
        (position, next) = (position + u64::from(n), vec![token]);
    }
    made
}

#[test]
fn eight_sessions_with_three_adapters_and_none_get_what_each_gets_alone_on_one_and_three_stages() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::Q8_0);
    let adapters = [2, 5, 16].map(|rank| TinyAdapter::all(&tiny.model, 40 + rank, rank));
    let engine = engine(2);
    let whole = vec![StagePart::whole(3)];
    let thirds = (0..3).map(|start| StagePart::of(LayerRange { start, end: start + 1 }, 3)).collect::<Vec<_>>();
    let mut first = None;
    for parts in [whole, thirds] {
        let bases: Vec<StageHandle> = parts.iter().map(|part| stage(&engine, &tiny, *part)).collect();
        let loaded: Vec<Vec<AdapterHandle>> = adapters
            .iter()
            .map(|one| parts.iter().map(|part| try_adapter(&engine, &tiny, one, *part).expect("loads")).collect())
            .collect();
        let chain = |user: usize| -> Vec<StageHandle> {
            let open = |(i, base): (usize, &StageHandle)| {
                let session = base.another(300).expect("a session");
                session.set_adapter(loaded.get(user % 4).map(|adapter| &adapter[i])).expect("taken");
                session
            };
            bases.iter().enumerate().map(open).collect()
        };
        let ids = |user: usize| prompt(&tiny, 3 + 5 * user, user);
        let alone: Vec<Vec<u32>> = (0..8).map(|user| tokens(&chain(user), &ids(user), 24)).collect();
        let together: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let users: Vec<_> = (0..8)
                .map(|user| {
                    let (chain, ids) = (chain(user), ids(user));
                    scope.spawn(move || tokens(&chain, &ids, 24))
                })
                .collect();
            users.into_iter().map(|user| user.join().expect("a user")).collect()
        });
        assert_eq!(alone, together);
        assert_eq!(*first.get_or_insert(alone.clone()), alone, "on {} stages", parts.len());
        let plain = tokens(&chain(3), &ids(0), 24);
        assert_ne!(plain, alone[0], "an adapter changes something");
    }
}

#[test]
fn a_session_that_changes_its_adapter_forgets_what_the_other_computed() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::F32);
    let engine = engine(1);
    let (adapter, stage) = (TinyAdapter::all(&tiny.model, 1, 4), stage(&engine, &tiny, tiny.headless()));
    let loaded = try_adapter(&engine, &tiny, &adapter, tiny.headless()).expect("loads");
    assert_eq!(loaded.revision(), RevisionId::from([adapter.tensors.len() as u8; 32]));
    let ids = prompt(&tiny, 9, 0);
    let plain = hidden(&stage, 0, &ids);
    stage.set_adapter(Some(&loaded)).expect("taken");
    let adapted = hidden(&stage, 0, &ids);
    stage.set_adapter(Some(&loaded)).expect("taken");
    assert_eq!(hidden(&stage, 9, &ids).len(), plain.len(), "the same adapter forgets nothing");
    stage.set_adapter(None).expect("taken");
    assert_eq!(bits(&hidden(&stage, 0, &ids)), bits(&plain));
    assert_ne!(bits(&adapted), bits(&plain));
}

#[test]
fn a_stage_reads_the_tensors_of_its_layers_only_and_gives_their_memory_back() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::F32);
    let engine = engine(1);
    let adapter = TinyAdapter::all(&tiny.model, 1, 4);
    let part = StagePart::of(LayerRange { start: 1, end: 2 }, 3);
    let spec = adapter.spec();
    let fitted = fit(&tiny.model, &spec, &adapter.tensors, &part).expect("fits");
    let source = adapter.source();
    let read = source.read.clone();
    let wanted = WantedAdapter {
        model: tiny.model.clone(),
        spec: spec.clone(),
        revision: RevisionId::from([1; 32]),
        tensors: adapter.tensors.clone(),
        part,
    };
    let (done, loaded) = sync_channel(1);
    engine.load_adapter(wanted, Box::new(source), Box::new(move |result| drop(done.send(result))));
    let loaded = loaded.recv_timeout(LONG).expect("an answer").expect("loads");
    let read = read.lock().expect("names").clone();
    assert_eq!(read.len(), 14);
    assert!(read.iter().all(|name| name.contains("layers.1.")), "{read:?}");
    assert_eq!((engine.memory().0, loaded.bytes()), (fitted.memory(), fitted.memory()));
    let held = fitted.layer_memory(3);
    assert!(held[0] == 0 && held[1] > 0 && held[2] == 0 && held[1] < fitted.memory());
    let other = stage(&engine, &tiny, StagePart::of(LayerRange { start: 0, end: 2 }, 3));
    assert_eq!(other.set_adapter(Some(&loaded)), Err(SetAdapterError::OtherWeights));
    drop((loaded, other));
    let deadline = std::time::Instant::now() + LONG;
    while engine.memory().0 > 0 {
        assert!(std::time::Instant::now() < deadline, "{} bytes are still reserved", engine.memory().0);
        std::thread::yield_now();
    }
    let small = Engine::start(EngineConfig { threads: 1, level: None, memory_max: 10_000 }).expect("engine");
    assert!(matches!(try_adapter(&small, &tiny, &adapter, part), Err(LoadError::Memory { max: 10_000, .. })));
    let mut broken = adapter.clone();
    broken.bytes.clear();
    assert!(matches!(try_adapter(&engine, &tiny, &broken, part), Err(LoadError::Adapter(AdapterError::Weights(_)))));
}

#[test]
fn what_is_described_is_read_again_as_it_was() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::F32);
    let mut adapter = TinyAdapter::all(&tiny.model, 1, 4);
    adapter.config["use_rslora"] = json!(true);
    adapter.config["alpha_pattern"] = json!({"layers.1.self_attn.q_proj": 3.25, "down_proj": 7});
    adapter.config["rank_pattern"] = json!({"k_proj": 4});
    let spec = adapter.spec();
    assert_eq!((spec.base_model.as_str(), spec.rank, spec.alpha), ("acme/tiny", 4, 6.0));
    let scale = |module: &str| spec.scale(module, 4).expect("a scale");
    assert_eq!(scale("model.layers.1.self_attn.q_proj"), 1.625);
    assert_eq!(scale("model.layers.11.self_attn.q_proj"), 3.0, "another layer");
    assert_eq!(scale("model.layers.0.mlp.down_proj"), 3.5);
    assert_eq!(scale("model.layers.0.mlp.updown_proj"), 3.0, "a name ends at a dot");
    assert_eq!(spec.modules, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]);
    assert_eq!(AdapterSpec::from_metadata(&[]), Err(AdapterError::Undescribed));
    let later = [("adapter".to_owned(), "lora+dora".to_owned())];
    assert_eq!(AdapterSpec::from_metadata(&later), Err(AdapterError::Format("lora+dora".into())));
}

#[test]
fn what_would_change_the_computation_is_refused_by_name() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::F32);
    let adapter = TinyAdapter::all(&tiny.model, 1, 4);
    let refused = |name: &str, value: Value| {
        let mut changed = adapter.clone();
        changed.config[name] = value;
        changed.described().expect_err(name).to_string()
    };
    for (name, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("lora_bias", json!(true)),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([1])),
        ("some_later_thing", json!(1)),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("peft_type", json!("LOHA")),
        ("alpha_pattern", json!({".*q_proj": 4})),
        ("rank_pattern", json!("all")),
        ("lora_alpha", json!("8")),
    ] {
        let why = refused(name, value);
        assert!(why.contains(name) && !why.contains('\n'), "{name}: {why}");
    }
    let wrong_rank = refused("r", json!(5));
    assert!(wrong_rank.contains("lora_A") && wrong_rank.contains('5') && wrong_rank.contains('4'), "{wrong_rank}");
    assert!(refused("r", json!(0)).contains("rank"));
    assert!(matches!(describe(b"{", &adapter.tensors), Err(AdapterError::Json(_))));
    assert!(matches!(describe(b"[]", &adapter.tensors), Err(AdapterError::Json(_))));
    let huge = TinyAdapter::new(&tiny.model, 1, 513, Dtype::F32, |l, r| l == 0 && r == LayerRole::Key);
    assert!(matches!(huge.described(), Err(AdapterError::Limit { got: 513, max: 512, .. })));
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_the_tensor() {
    let tiny = Tiny::new(tiny::llama(), 31, |_| Dtype::F32);
    let adapter = TinyAdapter::all(&tiny.model, 1, 4);
    let whole = StagePart::whole(3);
    let fitting = |model: &Model, tensors: &[TensorEntry]| {
        fit(model, &adapter.spec(), tensors, &whole).map(|fitted| fitted.tensors().len())
    };
    assert_eq!(fitting(&tiny.model, &adapter.tensors), Ok(42));
    let changed = |change: &dyn Fn(&mut Vec<TensorEntry>)| {
        let mut tensors = adapter.tensors.clone();
        change(&mut tensors);
        fitting(&tiny.model, &tensors).expect_err("refused").to_string()
    };
    let first = &adapter.tensors[0].name;
    for why in [
        changed(&|t| t[0].shape[1] = 65),
        changed(&|t| drop(t.remove(1))),
        changed(&|t| t[0].dtype = Dtype::Q8_0),
        changed(&|t| t[0].length += 1),
        changed(&|t| t[0].shape = vec![0, 64]),
        changed(&|t| t[0].shape = vec![256]),
        changed(&|t| t[0].shape = vec![u64::MAX, u64::MAX]),
    ] {
        assert!(why.contains(first) && !why.contains('\n'), "{why}");
    }
    for name in [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.gate.lora_A.weight",
        "q_proj.lora_A.weight",
    ] {
        assert!(changed(&|t| t[0].name = name.into()).contains(name), "{name}");
    }
    let twice = changed(&|t| {
        t.push(TensorEntry { name: first.replacen("model.model.model", "model.model", 1), ..t[0].clone() })
    });
    assert!(twice.contains("another name"), "{twice}");
    let wider = fitting(&Model { width: 128, ..tiny.model.clone() }, &adapter.tensors).expect_err("wider");
    assert!(wider.to_string().contains(first) && wider.to_string().contains("[4, 128]"), "{wider}");
    let shorter = fitting(&Model { layers: 2, ..tiny.model.clone() }, &adapter.tensors).expect_err("shorter");
    assert!(shorter.to_string().contains("layers.2.") && shorter.to_string().contains("it has 2"), "{shorter}");
    assert_eq!(fitting(&tiny.model, &[]), Err(AdapterError::Empty));
}

proptest! {
    #[test]
    fn any_bytes_are_described_or_refused(text in ".{0,200}", name in "(base_model\\.model\\.)?(model\\.)?layers\\.[0-9]{0,12}\\.[a-z_.]{0,24}lora_[AB]\\.weight") {
        let entry = TensorEntry { name, file: 0, offset: 0, length: 64, dtype: Dtype::F32, shape: vec![4, 4] };
        prop_assert!(describe(text.as_bytes(), std::slice::from_ref(&entry)).is_err());
        prop_assert!(describe(config(4, 8.0).to_string().as_bytes(), &[entry]).is_err(), "half a pair at most");
    }

    #[test]
    fn any_metadata_is_read_or_refused(entries in prop::collection::vec(("adapter(\\.(rank|alpha|rslora|alpha\\.q_proj))?", "lora|-?[0-9.e]{0,9}|true|nan|inf"), 0..8)) {
        if let Ok(spec) = AdapterSpec::from_metadata(&entries) {
            prop_assert!(spec.rank >= 1 && spec.alpha.is_finite());
        }
    }
}
