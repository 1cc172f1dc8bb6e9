//! Files made here are read back by the parser that reads everyone's, and hold the model that they were made of.

use super::*;
use crate::{
    files::tests::{folder, gguf_file, named_llama, read, tiny_of},
    tiny::{self, Tiny},
    weights,
};
use cairn_protocol::gguf::GgufValue;
use std::fs;

const FOUR: Target = Target(Dtype::Q4_0);

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut values = Vec::new();
    assert!(quant::dequantise(dtype, bytes, &mut values));
    values
}

#[test]
fn a_file_made_again_holds_the_same_model_in_other_quants() {
    let tiny = Tiny::new(named_llama(), 43, |_| Dtype::Q4_1);
    let (dir, path) = gguf_file(&tiny);
    for (target, parts) in [("q8_0", 200.0), ("q4_0", 6.0), ("Q5_1", 24.0)] {
        let target: Target = target.parse().expect("known");
        let made = dir.path().join(target.name());
        quantise_file(&path, &made, target, Existing::Convert).expect("made");
        let (old, new) = (ModelFiles::open(&path).expect("opens"), ModelFiles::open(&made).expect("opens"));
        assert_eq!(old.model, new.model, "metadata is kept");
        let (a, b) = (read(&old), read(&new));
        for (was, is) in old.tensors.iter().zip(&new.tensors) {
            let want = if was.shape.len() == 2 { target.dtype() } else { was.dtype };
            assert_eq!((&was.name, want, &was.shape), (&is.name, is.dtype, &is.shape));
            let (was, is) = (values(was.dtype, &a[&was.name]), values(is.dtype, &b[&is.name]));
            let step = was.iter().fold(0f32, |m, v| m.max(v.abs())) / parts;
            assert!(was.iter().zip(&is).all(|(w, i)| (w - i).abs() <= step), "as {}", target.name());
        }
        let mut source = new.source().expect("opens");
        assert!(weights::load(&new.model, &new.tensors, &StagePart::whole(3), 8, &mut *source).is_ok());
    }
}

#[test]
fn what_takes_no_more_bits_stays_as_it_is() {
    let tiny = Tiny::new(named_llama(), 43, |role| {
        let is_feed_forward = matches!(role, Role::Layer(_, LayerRole::Gate | LayerRole::Up | LayerRole::Down));
        if is_feed_forward { Dtype::Q8_0 } else { Dtype::Q4_0 }
    });
    let (dir, path) = gguf_file(&tiny);
    let made = dir.path().join("made");
    quantise_file(&path, &made, "q5_0".parse().expect("known"), Existing::Keep).expect("made");
    let (old, new) = (ModelFiles::open(&path).expect("opens"), ModelFiles::open(&made).expect("opens"));
    let (a, b) = (read(&old), read(&new));
    for (was, is) in old.tensors.iter().zip(&new.tensors).filter(|(was, _)| was.shape.len() == 2) {
        if was.name.contains("ffn") {
            assert_eq!(is.dtype, Dtype::Q5_0);
        } else {
            assert_eq!((was.dtype, &a[&was.name]), (is.dtype, &b[&is.name]));
        }
    }
    let nothing = quantise_file(&made, &dir.path().join("again"), "q8_0".parse().expect("known"), Existing::Keep);
    assert!(matches!(nothing, Err(QuantiseError::Nothing("q8_0"))));
}

#[test]
fn a_folder_becomes_a_gguf_file_that_computes_the_same() {
    for model in [tiny::llama(), tiny::qwen2()] {
        let full =
            folder(&Tiny::new(Model { naming: Naming::HuggingFace, rope_half_split: true, ..model }, 45, |_| {
                Dtype::F32
            }));
        let made = full.path().join("made.gguf");
        quantise_file(full.path(), &made, "q8_0".parse().expect("known"), Existing::Keep).expect("made");
        let (was, is) = (ModelFiles::open(full.path()).expect("opens"), ModelFiles::open(&made).expect("opens"));
        assert_eq!(is.model.naming, Naming::Gguf);
        let back = Model {
            naming: was.model.naming,
            rope_half_split: was.model.rope_half_split,
            norm_epsilon: was.model.norm_epsilon,
            ..is.model.clone()
        };
        assert_eq!(back, was.model);
        let (_, want) = tiny_of(&was).reference(&[3, 1, 4, 1, 5]);
        let (_, got) = tiny_of(&is).reference(&[3, 1, 4, 1, 5]);
        let worst = want.iter().zip(&got).map(|(w, g)| (w - g).abs()).fold(0.0, f64::max);
        let top = want.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        assert!(want.len() == got.len() && worst < top / 20.0, "{worst} of {top}");
    }
}

#[test]
fn scaled_frequencies_go_into_the_file() {
    let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 64 };
    let model = Model {
        naming: Naming::HuggingFace,
        rope_half_split: true,
        rope_scaling: Some(scaling),
        architecture: "llama+scaled-rope".to_string(),
        ..tiny::llama()
    };
    let tiny = Tiny::new(model, 47, |_| Dtype::F32);
    let recipe = Recipe::of_folder(&tiny.model, &tiny.tensors, FOUR).expect("a recipe");
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("made.gguf");
    let mut out = fs::File::create(&path).expect("created");
    recipe.write(&mut *tiny.source(), &mut out, &mut |_| ControlFlow::Continue(())).expect("written");
    assert_eq!(fs::metadata(&path).expect("there").len(), recipe.bytes());
    let made = ModelFiles::open(&path).expect("opens");
    assert_eq!(made.model.rope_scaling, Some(RopeScaling::Tensor));
    let factors = values(Dtype::F32, &read(&made)[arch::ROPE_FACTORS]);
    let frequencies = |model, factors| arch::frequencies(model, factors, arch::Angles::Model);
    let (want, got) = (frequencies(&tiny.model, &[]), frequencies(&made.model, &factors));
    assert!(want.iter().zip(&got).all(|(w, g)| (w - g).abs() <= w * 1e-6), "{want:?} {got:?}");
}

#[test]
fn the_file_says_what_it_mostly_is() {
    let (dir, path) = gguf_file(&Tiny::new(named_llama(), 43, |_| Dtype::Q8_0));
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    // The first has no such statement, as its source has none; a folder's file has.
    quantise_file(&path, &first, FOUR, Existing::Keep).expect("made");
    assert!(files::header(&first, gguf::parse_header).expect("parses").u64("general.file_type").is_none());
    let full =
        folder(&Tiny::new(Model { naming: Naming::HuggingFace, rope_half_split: true, ..tiny::llama() }, 45, |_| {
            Dtype::F32
        }));
    let (eight, four) = (full.path().join("eight.gguf"), full.path().join("four.gguf"));
    quantise_file(full.path(), &eight, "q8_0".parse().expect("known"), Existing::Keep).expect("made");
    quantise_file(&eight, &four, FOUR, Existing::Keep).expect("made");
    for (path, want) in [(eight, 7), (four, 2)] {
        let header = files::header(&path, gguf::parse_header).expect("parses");
        assert_eq!(header.u64("general.file_type"), Some(want));
        assert!(matches!(header.metadata[0], (_, GgufValue::String(_))));
    }
    assert!(!second.exists());
}

#[test]
fn what_can_not_be_quantised_is_refused_in_a_sentence() {
    assert_eq!(
        "q3_k".parse::<Target>().map_err(|e| e.to_string()).unwrap_err(),
        format!("\"q3_k\" is not made, only {} are", Target::names())
    );
    let mut tiny =
        Tiny::new(Model { naming: Naming::HuggingFace, rope_half_split: true, ..tiny::llama() }, 45, |_| Dtype::F32);
    let name = "model.layers.1.mlp.up_proj.weight";
    tiny.bytes.get_mut(name).expect("there")[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let recipe = Recipe::of_folder(&tiny.model, &tiny.tensors, FOUR).expect("a recipe");
    let refused = recipe.write(&mut *tiny.source(), &mut io::sink(), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(&refused, Err(QuantiseError::NotFinite(which)) if which == name), "{refused:?}");
    let given_up = recipe.write(&mut *tiny.source(), &mut io::sink(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(given_up, Err(QuantiseError::Cancelled)));
    let mistral =
        Model { window: std::num::NonZeroU32::new(8), architecture: "mistral".to_string(), ..tiny.model.clone() };
    assert!(matches!(Recipe::of_folder(&mistral, &tiny.tensors, FOUR), Err(QuantiseError::NoContainer(_))));
}

#[test]
fn a_tensor_is_cut_at_whole_heads_and_loses_nothing() {
    let entry = TensorEntry {
        name: "x".to_string(),
        file: 3,
        offset: 100,
        length: 5 * 4 * 8_000_000,
        dtype: Dtype::F32,
        shape: vec![5, 8_000_000],
    };
    let cut = pieces(&entry, 1);
    assert_eq!(cut.iter().map(|p| p.shape[0]).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(
        cut.iter().map(|p| (p.offset, p.length)).collect::<Vec<_>>(),
        [(100, 64_000_000), (64_000_100, 64_000_000), (128_000_100, 32_000_000)]
    );
    assert_eq!(pieces(&entry, 4).iter().map(|p| p.shape[0]).collect::<Vec<_>>(), [4, 1]);
    assert_eq!(paired_rows(&[0, 1, 2, 3, 10, 11, 12, 13], 8, 4), [0, 2, 1, 3, 10, 12, 11, 13]);
}

#[test]
fn a_model_quantised_while_it_loads_is_the_one_that_was_quantised_before() {
    let model = Model { naming: Naming::Gguf, rope_half_split: false, ..named_llama() };
    let tiny = Tiny::new(model, 49, |_| Dtype::F16);
    let (dir, path) = gguf_file(&tiny);
    for target in ["q8_0", "q4_0", "q5_1"] {
        let target: Target = target.parse().expect("known");
        let made = dir.path().join(target.name());
        quantise_file(&path, &made, target, Existing::Keep).expect("made");
        let (full, quantised) = (ModelFiles::open(&path).expect("opens"), ModelFiles::open(&made).expect("opens"));
        let whole = StagePart::whole(3);
        let tensors = as_loaded(&full.tensors, Some(target));
        let memory = |tensors: &[TensorEntry]| arch::stage_memory(&full.model, tensors, &whole, 64).expect("memory");
        assert_eq!(memory(&tensors), memory(&quantised.tensors));
        assert!(memory(&tensors).weights < memory(&full.tensors).weights);

        let stored = FileSourceOf(full.source().expect("opens"));
        let mut while_loading = Quantising::new(stored, full.tensors.clone());
        let loaded = weights::load(&full.model, &tensors, &whole, 8, &mut while_loading).expect("loads");
        let mut source = quantised.source().expect("opens");
        let before = weights::load(&quantised.model, &quantised.tensors, &whole, 8, &mut *source).expect("loads");
        assert!(loaded.model.store.lines() > 0 && loaded.model.store.lines() == before.model.store.lines());
        let lines = |loaded: &weights::Loaded| {
            let store = &loaded.model.store;
            crate::cpu::lines::Line::bytes(store.slice(0, store.lines())).to_vec()
        };
        assert!(lines(&loaded) == lines(&before), "{}", target.name());
    }
}

/// A boxed source as a source.
struct FileSourceOf(Box<dyn TensorSource>);

impl TensorSource for FileSourceOf {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        self.0.tensor(entry)
    }
}
