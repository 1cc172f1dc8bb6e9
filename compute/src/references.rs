//! Logits of small random models, held against those of libraries that nobody here wrote.
//!
//! `references/*.json` come from `scripts/reference-logits`: a `config.json`, a prompt, and the logits after some of its
//! prefixes. The weights follow from tensor names. Three computations are held against each: the slow F64 pass that other
//! tests trust, the CPU engine, and candle's path for GPUs on its CPU device.

use crate::{
    adapter::{self, AdapterFiles, AdapterSpec},
    arch::{self, Description, StagePart},
    cpu::{
        acts::Planes,
        adapters::Adapter,
        cache::Cache,
        kv::KvFormat,
        level::Level,
        model::Model as Loaded,
        pass::{Pass, Slot},
        pool::Pool,
        work::{PASS_TOKENS_MAX, Work},
    },
    files::ModelFiles,
    stage::{Checked, GpuWeights, Run},
    tiny::{self, Tiny},
    weights::{self, SourceError, TensorSource},
};
use cairn_protocol::{
    dtype::Dtype,
    manifest::{Model, RopeScaling, TensorEntry, Variations},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

mod quants;
mod real;

/// What a reference says, and how far F32 arithmetic may be from it, relative to the logits' root mean square.
const F32_TOLERANCE: f64 = 1e-4;
/// The CPU engine keeps keys and values as halves, each rounded by up to 2⁻¹¹ of itself.
const HALVES_TOLERANCE: f64 = 2e-3;

/// The same on a real model of five layers, which without an adapter is off by 3.4e-3.
const REAL_TOLERANCE: f64 = 5e-3;

#[derive(Deserialize)]
struct Reference {
    by: String,
    config: serde_json::Value,
    ids: Vec<u32>,
    prefixes: Vec<usize>,
    logits: Vec<Vec<f64>>,
}

/// Each reference with the model that its config describes.
fn references() -> Vec<(Reference, Tiny)> {
    let linear = tiny::scaled(RopeScaling::Linear { factor: 4.0 });
    [
        (include_str!("references/linear.json"), linear),
        (include_str!("references/llama3.json"), tiny::llama3()),
        (include_str!("references/qwen3.json"), tiny::qwen3()),
        (include_str!("references/mistral.json"), tiny::mistral(24)),
        (include_str!("references/gemma3.json"), gemma3()),
        (include_str!("references/phi3.json"), tiny::phi3_turned(12)),
        (include_str!("references/smollm3.json"), tiny::smollm3()),
        (include_str!("references/qwen3moe.json"), tiny::qwen3moe(8, 3)),
    ]
    .into_iter()
    .map(|(text, model)| {
        let reference: Reference = serde_json::from_str(text).expect("a reference");
        let tied_embeddings = model.architecture == "gemma3";
        let model = Model { tied_embeddings, eos_tokens: Vec::new(), bos_token: None, ..model };
        (reference, Tiny::of_names(model))
    })
    .collect()
}

/// Queries are scaled by their width, since candle looks at no other scale.
fn gemma3() -> Model {
    let model = tiny::gemma3();
    Model { variations: Variations { query_scalar: None, ..model.variations }, ..model }
}

/// The largest difference, relative to the root mean square of what is wanted.
fn relative(want: &[f64], got: impl Iterator<Item = f64>) -> f64 {
    let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
    want.iter().zip(got).fold(0f64, |most, (w, g)| most.max((w - g).abs())) / rms
}

/// Holds what `logits` computes for every prefix of every reference against it.
fn check(what: &str, tolerance: f64, logits: impl Fn(&Tiny, &[u32]) -> Vec<f64>) {
    for (reference, tiny) in references() {
        let mut worst = 0f64;
        for (n, want) in reference.prefixes.iter().zip(&reference.logits) {
            let got = logits(&tiny, &reference.ids[..*n]);
            assert_eq!(got.len(), want.len());
            worst = worst.max(relative(want, got.into_iter()));
        }
        println!("{}, {what}: {worst:.1e} from {}", tiny.model.architecture, reference.by);
        assert!(worst <= tolerance, "{}, {what}: off by {worst} from {}", tiny.model.architecture, reference.by);
    }
}

#[test]
fn configs_of_references_describe_the_models_that_are_held_against_them() {
    for (reference, tiny) in references() {
        let config = reference.config.to_string();
        let described = arch::describe(Some(config.as_bytes()), None, None, &tiny.tensors);
        assert_eq!(described, Ok(Description::Model(Box::new(tiny.model))));
    }
}

#[test]
fn f64_arithmetic_gives_the_logits_of_the_reference() {
    check("F64", F32_TOLERANCE, |tiny, ids| tiny.reference(ids).1);
}

#[test]
fn the_cpu_engine_gives_the_logits_of_the_reference() {
    check("CPU", HALVES_TOLERANCE, on_cpu);
}

#[test]
fn what_the_cpu_engine_is_off_by_comes_of_keeping_keys_and_values_as_halves() {
    for (reference, tiny) in references() {
        let tiny = Tiny { kept: |x| half::f16::from_f64(x).to_f64(), ..tiny };
        for n in &reference.prefixes {
            let ids = &reference.ids[..*n];
            let off = relative(&tiny.reference(ids).1, on_cpu(&tiny, ids).into_iter());
            println!("{}, {n} positions: {off:.1e} from F64 over halves", tiny.model.architecture);
            assert!(off <= F32_TOLERANCE, "{}, {n} positions: off by {off}", tiny.model.architecture);
        }
    }
}

/// The logits after the last of `ids`, in one pass.
fn on_cpu(tiny: &Tiny, ids: &[u32]) -> Vec<f64> {
    computed(tiny, ids, None)
}

fn computed(tiny: &Tiny, ids: &[u32], adapter: Option<&Arc<Adapter>>) -> Vec<f64> {
    let whole = StagePart::whole(tiny.model.layers);
    let loaded = weights::load(&tiny.model, &tiny.tensors, &whole, 128, &mut *tiny.source()).expect("loads");
    pass(&loaded.model, ids, adapter)
}

/// The logits after the last of `ids`, in passes of at most 128.
fn pass(model: &Loaded, ids: &[u32], adapter: Option<&Arc<Adapter>>) -> Vec<f64> {
    let pool = Pool::new(1).expect("pool");
    let mut work = Work::new(model, Planes::Two, PASS_TOKENS_MAX, 1);
    let mut cache = Cache::new(model.page_shape(KvFormat::F16), 512);
    let mut last = Vec::new();
    for (piece, ids) in ids.chunks(PASS_TOKENS_MAX).enumerate() {
        let position = |i: usize| piece * PASS_TOKENS_MAX + i;
        let slots: Vec<Slot> = (0..ids.len()).map(|i| Slot { sequence: 0, position: position(i) }).collect();
        let pass = Pass { model, pool: &pool, level: Level::best(), planes: Planes::Two, slots: &slots };
        pass.embed(&mut work, ids.iter().copied());
        work.low.gather(&[adapter], &slots);
        pass.walk(&mut work, &mut [&mut cache]);
        pass.logits(&mut work, &[ids.len() - 1]);
        last = pass.column(&mut work, 0, 1).iter().map(|logit| f64::from(*logit)).collect();
    }
    last
}

#[derive(Deserialize)]
struct AdapterReference {
    #[serde(flatten)]
    base: Reference,
    adapter_config: serde_json::Value,
    adapter_tensors: BTreeMap<String, Vec<u64>>,
}

/// The tensors of an adapter whose values follow from their names.
struct Named(BTreeMap<String, Vec<u64>>);

impl Named {
    fn entries(&self) -> Vec<TensorEntry> {
        let entry = |(name, shape): (&String, &Vec<u64>)| {
            let length = shape.iter().product::<u64>() * 4;
            TensorEntry { name: name.clone(), file: 0, offset: 0, length, dtype: Dtype::F32, shape: shape.clone() }
        };
        self.0.iter().map(entry).collect()
    }
}

impl TensorSource for Named {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        Ok(tiny::named_values(&entry.name, &entry.shape).into_iter().flat_map(f32::to_le_bytes).collect())
    }
}

#[test]
fn an_adapter_on_the_cpu_engine_gives_the_logits_of_peft() {
    let reference: AdapterReference = serde_json::from_str(include_str!("references/lora.json")).expect("a reference");
    let model = Model { tied_embeddings: false, eos_tokens: Vec::new(), bos_token: None, ..tiny::llama() };
    let tiny = Tiny::of_names(model);
    let (mut named, whole) = (Named(reference.adapter_tensors), StagePart::whole(tiny.model.layers));
    let entries = named.entries();
    let metadata = adapter::describe(reference.adapter_config.to_string().as_bytes(), &entries).expect("described");
    let spec = AdapterSpec::from_metadata(&metadata).expect("read");
    let fitted = adapter::fit(&tiny.model, &spec, &entries, &whole).expect("fits");
    let loaded = Arc::new(adapter::load(&fitted, &spec, &whole, &mut named).expect("loads"));
    for (n, want) in reference.base.prefixes.iter().zip(&reference.base.logits) {
        let ids = &reference.base.ids[..*n];
        let off = relative(want, computed(&tiny, ids, Some(&loaded)).into_iter());
        println!("an adapter, {n} positions: {off:.1e} from {}", reference.base.by);
        assert!(off <= HALVES_TOLERANCE, "{n} positions: off by {off} from {}", reference.base.by);
        let without = relative(want, on_cpu(&tiny, ids).into_iter());
        assert!(without > 0.1, "{n} positions: without the adapter only {without} off");
    }
}

/// What `scripts/reference-logits/peft-adapter.py` writes beside PEFT's files.
#[derive(Deserialize)]
struct Golden {
    by: String,
    model: String,
    ids: Vec<u32>,
    prefixes: Vec<usize>,
    logits: Vec<Vec<f64>>,
}

#[test]
fn a_folder_that_peft_wrote_gives_its_logits_and_greedy_tokens() {
    let Some(folder) = std::env::var_os("CAIRN_ADAPTER_REFERENCE").map(PathBuf::from) else {
        return eprintln!(
            "NOT TESTED: CAIRN_ADAPTER_REFERENCE names no folder (scripts/reference-logits/peft-adapter.py)"
        );
    };
    let golden = std::fs::read(folder.join("golden.json")).expect("golden.json");
    let golden: Golden = serde_json::from_slice(&golden).expect("a reference");
    let (base, adapter) = (ModelFiles::open(Path::new(&golden.model)), AdapterFiles::open(&folder));
    let (base, adapter) = (base.expect("a model"), adapter.expect("an adapter"));
    let whole = StagePart::whole(base.model.layers);
    let loaded = weights::load(&base.model, &base.tensors, &whole, 512, &mut *base.source().expect("files"));
    let fitted = adapter::fit(&base.model, &adapter.spec, &adapter.tensors, &whole).expect("fits");
    let source = &mut *adapter.source().expect("files");
    let added = Arc::new(adapter::load(&fitted, &adapter.spec, &whole, source).expect("loads"));
    let model = loaded.expect("loads").model;
    let (mut worst, mut greedy) = (0f64, Vec::new());
    for n in 1..golden.ids.len() {
        let made = pass(&model, &golden.ids[..n], Some(&added));
        if let Some(at) = golden.prefixes.iter().position(|prefix| *prefix == n) {
            worst = worst.max(relative(&golden.logits[at], made.iter().copied()));
        }
        greedy.extend(made.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id as u32));
    }
    let same = greedy.iter().zip(&golden.ids[1..]).take_while(|(a, b)| a == b).count();
    println!("{worst:.1e} off the logits of {}, {same} of {} greedy tokens", golden.by, greedy.len());
    assert!(same == greedy.len() && worst <= REAL_TOLERANCE, "off by {worst}, {same} of {} tokens", greedy.len());
}

#[test]
fn candles_path_gives_the_logits_of_the_reference() {
    check("candle", F32_TOLERANCE, |tiny, ids| {
        let whole = StagePart::whole(tiny.model.layers);
        let device = candle_core::Device::Cpu;
        let weights = GpuWeights::load(&tiny.model, &tiny.tensors, &whole, 128, &mut *tiny.source(), device);
        let mut stage = weights.expect("loads").open(128).expect("opens");
        let mut all = Vec::new();
        let run = Run { input: Checked::Ids(ids), held: 0, count: ids.len(), sample: true };
        let mut choose = |logits: &[f32]| {
            all = logits.iter().map(|logit| f64::from(*logit)).collect();
            0
        };
        assert!(stage.compute(run, &mut choose).is_ok());
        all
    });
}
