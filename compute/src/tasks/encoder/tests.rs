//! Small random encoders of every family: hidden states as transformers computes them, and the same bits in any company.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use cairn_protocol::{dtype::Dtype, manifest::TensorEntry};
use serde::Deserialize;
use serde_json::Value;

use super::{Encoder, Shape};
use crate::{
    SourceError, TensorSource,
    cpu::{level::Level, pool::Pool},
    stage::Hands,
};

/// What `scripts/reference-embeddings families` wrote.
#[derive(Deserialize)]
struct Reference {
    config: Value,
    tensors: BTreeMap<String, Vec<u64>>,
    texts: Vec<Vec<u32>>,
    hidden: Vec<Vec<f32>>,
}

fn references() -> BTreeMap<String, Reference> {
    serde_json::from_str(include_str!("references.json")).unwrap()
}

/// Tensors as the script's generator makes them.
struct Random(BTreeMap<String, Vec<u8>>);

impl Random {
    fn of(tensors: &BTreeMap<String, Vec<u64>>) -> (Random, Vec<TensorEntry>) {
        let (mut state, mut made, mut entries) = (0x9E37_79B9_7F4A_7C15u64, BTreeMap::new(), Vec::new());
        for (name, shape) in tensors {
            let is_norm = name.to_lowercase().contains("norm") && name.ends_with("weight");
            let (scale, shift) = if is_norm { (0.1, 1.0) } else { (0.3, 0.0) };
            let mut bytes = Vec::new();
            for _ in 0..shape.iter().product::<u64>() {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let uniform = (state >> 40) as f64 / f64::from(1 << 24) * 2.0 - 1.0;
                bytes.extend_from_slice(&((uniform * scale + shift) as f32).to_le_bytes());
            }
            let length = bytes.len() as u64;
            let entry =
                TensorEntry { name: name.clone(), file: 0, offset: 0, length, dtype: Dtype::F32, shape: shape.clone() };
            entries.push(entry);
            made.insert(name.clone(), bytes);
        }
        (Random(made), entries)
    }
}

impl TensorSource for Random {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        self.0.get(&entry.name).cloned().ok_or_else(|| SourceError("no such tensor".to_owned()))
    }
}

fn encoder(reference: &Reference) -> Encoder {
    let (mut source, entries) = Random::of(&reference.tensors);
    Encoder::load(Shape::read(reference.config.to_string().as_bytes()).unwrap(), &entries, &mut source).unwrap()
}

fn hands(threads: usize, level: Level) -> Hands {
    Hands { pool: Pool::new(threads).unwrap(), level }
}

/// Hidden states without the padding of rows.
fn hidden(encoder: &Encoder, hands: &Hands, texts: &[&[u32]]) -> Vec<f32> {
    let hidden = encoder.pass(hands, texts);
    hidden.values.chunks_exact(hidden.stride).flat_map(|row| row[..hidden.width].to_vec()).collect()
}

#[test]
fn every_family_computes_what_transformers_computes() {
    for (family, reference) in references() {
        let encoder = encoder(&reference);
        for (ids, wanted) in reference.texts.iter().zip(&reference.hidden) {
            let got = hidden(&encoder, &hands(2, Level::best()), &[ids]);
            assert_eq!(got.len(), wanted.len());
            let worst = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 5e-6, "{family}, {} tokens: off by {worst}", ids.len());
        }
    }
}

#[test]
fn a_text_has_the_same_bits_in_any_company_on_any_threads_at_any_level() {
    for (family, reference) in references() {
        let encoder = encoder(&reference);
        let texts: Vec<&[u32]> = reference.texts.iter().map(Vec::as_slice).collect();
        let alone: Vec<Vec<f32>> = texts.iter().map(|ids| hidden(&encoder, &hands(1, Level::Scalar), &[ids])).collect();
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            for threads in 1..=3 {
                let hands = hands(threads, level);
                for order in [[0, 1, 2, 1], [2, 2, 0, 1], [1, 0, 2, 0]] {
                    let company: Vec<&[u32]> = order.map(|i| texts[i]).to_vec();
                    let expected: Vec<f32> = order.iter().flat_map(|i| alone[*i].clone()).collect();
                    let got = hidden(&encoder, &hands, &company);
                    let is_same = got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(is_same, "{family}, {level:?}, {threads} threads, {order:?}");
                }
            }
        }
    }
}

#[test]
fn tensors_that_are_not_as_the_configuration_says_are_refused_by_name() {
    let references = references();
    let reference = &references["bert"];
    let shape = Shape::read(reference.config.to_string().as_bytes()).unwrap();
    let name = "encoder.layer.1.output.dense.weight";
    let refused = |change: fn(&mut Vec<TensorEntry>, usize), also: fn(&mut Random)| {
        let (mut source, mut entries) = Random::of(&reference.tensors);
        let at = entries.iter().position(|entry| entry.name == name).unwrap();
        change(&mut entries, at);
        also(&mut source);
        Encoder::load(shape, &entries, &mut source).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let nothing = |_: &mut Random| ();
    assert!(refused(|entries, at| drop(entries.remove(at)), nothing).contains(name));
    assert!(refused(|entries, at| entries[at].shape.reverse(), nothing).contains("[40, 24]"));
    assert!(refused(|entries, at| entries[at].dtype = Dtype::I64, nothing).contains("I64"));
    let cut = |source: &mut Random| source.0.get_mut("encoder.layer.1.output.dense.weight").unwrap().truncate(8);
    assert!(refused(|_, _| (), cut).contains("8 bytes"));
    let gone = |source: &mut Random| drop(source.0.remove("encoder.layer.1.output.dense.weight"));
    assert!(refused(|_, _| (), gone).contains("no such tensor"));
}

#[test]
fn a_checkpoint_of_a_model_with_a_head_and_old_names_is_the_same_encoder() {
    let references = references();
    let reference = &references["bert"];
    let wanted = hidden(&encoder(reference), &hands(1, Level::best()), &[&reference.texts[1]]);
    let renamed = |name: &str| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        format!("bert.{name}")
    };
    let (source, mut entries) = Random::of(&reference.tensors);
    let mut source = Random(source.0.into_iter().map(|(name, bytes)| (renamed(&name), bytes)).collect());
    entries.iter_mut().for_each(|entry| entry.name = renamed(&entry.name));
    let shape = Shape::read(reference.config.to_string().as_bytes()).unwrap();
    let encoder = Encoder::load(shape, &entries, &mut source).unwrap();
    assert_eq!(hidden(&encoder, &hands(1, Level::best()), &[&reference.texts[1]]), wanted);
}
