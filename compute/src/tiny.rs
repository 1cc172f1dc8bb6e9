//! Tiny random models in memory, with their values in F32 and a slow F64 pass over them that shares no code with the
//! kernels: what tests hold the engine against.

use crate::{
    arch::{self, LayerRole, Projection, Role, StagePart},
    quant,
    weights::{SourceError, TensorSource},
};
use cairn_protocol::{
    dtype::Dtype,
    manifest::{Experts, Model, Naming, RopeScaling, TensorEntry, Variations},
};
use half::f16;
use std::{collections::BTreeMap, num::NonZeroU32};

/// xorshift; a test's seed is in its recipe.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// Within -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// A model and its bytes.
#[derive(Clone)]
pub struct Tiny {
    pub model: Model,
    pub tensors: Vec<TensorEntry>,
    pub bytes: BTreeMap<String, Vec<u8>>,
    pub values: BTreeMap<String, Vec<f32>>,
    /// What keeping a key or a value for later positions makes of it, in [`Tiny::reference`].
    pub kept: fn(f64) -> f64,
}

/// A small Llama in Hugging Face naming; tests change what they are about.
pub fn llama() -> Model {
    Model {
        architecture: "llama".into(),
        layers: 3,
        width: 64,
        heads: 4,
        kv_heads: 2,
        head_width: 16,
        feed_forward: 96,
        vocabulary: 50,
        norm_epsilon: 1e-5,
        rope_base: 10_000.0,
        context_max: 512,
        tied_embeddings: true,
        attention_bias: false,
        naming: Naming::HuggingFace,
        rope_half_split: true,
        eos_tokens: vec![2],
        bos_token: Some(1),
        rope_scaling: None,
        window: None,
        variations: Variations::default(),
    }
}

/// A Mistral that looks back over so many positions.
pub fn mistral(window: u32) -> Model {
    Model { architecture: "mistral".into(), window: NonZeroU32::new(window), ..llama() }
}

/// A Qwen3: heads wider than their share of the width, each normalised.
pub fn qwen3() -> Model {
    Model { architecture: "qwen3".into(), head_width: 32, tied_embeddings: false, ..llama() }
}

/// A Gemma 3: every third layer without its window, by other angles than the others; a scale of its queries.
pub fn gemma3() -> Model {
    let variations = Variations {
        full_attention_every: NonZeroU32::new(3),
        window_rope_base: Some(1_000.0),
        query_scalar: Some(24.0),
        ..Variations::default()
    };
    let (architecture, window) = ("gemma3".into(), NonZeroU32::new(24));
    Model { architecture, window, variations, head_width: 32, rope_base: 100_000.0, ..llama() }
}

/// A Phi-3: fused projections, and a window.
pub fn phi3() -> Model {
    Model { architecture: "phi3".into(), window: NonZeroU32::new(40), tied_embeddings: false, ..llama() }
}

/// A Phi-3 that rotates so many elements of its heads of 16.
pub fn phi3_turned(rotary_width: u32) -> Model {
    let variations = Variations { rotary_width: NonZeroU32::new(rotary_width), ..Variations::default() };
    Model { variations, window: None, ..phi3() }
}

/// A SmolLM3 whose middle layer does not rotate.
pub fn smollm3() -> Model {
    let variations = Variations { unrotated_every: NonZeroU32::new(2), ..Variations::default() };
    Model { architecture: "smollm3".into(), variations, ..llama() }
}

/// A Qwen3 of so many experts, of which each token goes through some.
pub fn qwen3moe(count: u32, used: u32) -> Model {
    let experts = Some(Experts { count, used, normalised: true });
    let variations = Variations { experts, ..Variations::default() };
    Model { architecture: "qwen3moe".into(), variations, feed_forward: 32, ..qwen3() }
}

/// A Llama 3.1: long wavelengths divided, the one between in part.
pub fn llama3() -> Model {
    let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original_context: 64 };
    scaled(scaling)
}

/// The small Llama with scaled rotary frequencies.
pub fn scaled(scaling: RopeScaling) -> Model {
    Model { architecture: "llama+scaled-rope".into(), rope_scaling: Some(scaling), ..llama() }
}

/// A Qwen2 with biases, as GGUF names it.
pub fn qwen2() -> Model {
    let naming = Naming::Gguf;
    Model { architecture: "qwen2".into(), attention_bias: true, tied_embeddings: false, naming, ..llama() }
}

impl Tiny {
    /// Random tensors; `dtype` says how a role is stored (vectors have to be plain).
    pub fn new(model: Model, seed: u64, dtype: impl Fn(Role) -> Dtype) -> Self {
        let mut dice = Dice(seed | 1);
        Self::filled(model, |name, role, dimensions| {
            let elements = dimensions.iter().product::<u64>() as usize;
            let is_vector = dimensions.len() == 1;
            let dtype = if is_vector { Dtype::F32 } else { dtype(role) };
            let k = dimensions.last().copied().unwrap_or(1) as f32;
            let spread = if is_vector { 0.5 } else { 1.5 / k.sqrt() };
            let centre = if is_vector && !name.ends_with("bias") { 1.0 } else { 0.0 };
            (dtype, stored(&mut dice, dtype, elements, spread, centre))
        })
    }

    /// A model in the Hub's names whose F32 values follow from those names, as `scripts/reference-logits` makes them.
    pub fn of_names(model: Model) -> Self {
        Self::filled(model, |name, _, dimensions| {
            let values = named_values(name, dimensions);
            (Dtype::F32, values.into_iter().flat_map(f32::to_le_bytes).collect())
        })
    }

    fn filled(model: Model, mut fill: impl FnMut(&str, Role, &[u64]) -> (Dtype, Vec<u8>)) -> Self {
        let mut tiny =
            Self { model, tensors: Vec::new(), bytes: BTreeMap::new(), values: BTreeMap::new(), kept: |x| x };
        let mut offset = 0;
        for (role, dimensions) in arch::all_roles(&tiny.model) {
            let name = arch::tensor_name(&tiny.model, role);
            if tiny.bytes.contains_key(&name) {
                continue;
            }
            let (dtype, bytes) = fill(&name, role, &dimensions);
            let (elements, mut values) = (dimensions.iter().product::<u64>() as usize, Vec::new());
            assert!(quant::dequantise(dtype, &bytes, &mut values) && values.len() == elements, "{dtype}");
            let length = bytes.len() as u64;
            tiny.tensors.push(TensorEntry { name: name.clone(), file: 0, offset, length, dtype, shape: dimensions });
            offset += length;
            tiny.bytes.insert(name.clone(), bytes);
            tiny.values.insert(name, values);
        }
        tiny
    }

    pub fn source(&self) -> Box<dyn TensorSource> {
        Box::new(MemorySource(self.bytes.clone()))
    }

    /// Everything but the head, so that hidden states come out.
    pub fn headless(&self) -> StagePart {
        StagePart { head: false, ..StagePart::whole(self.model.layers) }
    }

    fn values(&self, role: Role) -> &[f32] {
        &self.values[&arch::tensor_name(&self.model, role)]
    }

    /// Hidden states after the last layer for each of `ids`, and the logits after the last of them, in F64.
    pub fn reference(&self, ids: &[u32]) -> (Vec<Vec<f64>>, Vec<f64>) {
        let width = self.model.width as usize;
        let scale = if self.is_gemma() { (width as f64).sqrt() } else { 1.0 };
        let row = |id: &u32| {
            let row = &self.values(Role::Embedding)[*id as usize * width..][..width];
            row.iter().map(|v| *v as f64 * scale).collect()
        };
        let mut x: Vec<Vec<f64>> = ids.iter().map(row).collect();
        for layer in 0..self.model.layers {
            self.reference_attention(&mut x, layer);
            for x in &mut x {
                let h = self.rms(x, self.values(Role::Layer(layer, LayerRole::FeedForwardNorm)));
                let given = match self.model.variations.experts {
                    Some(experts) => self.reference_experts(layer, experts, &h),
                    None => self.reference_block(&h, &self.block(layer)),
                };
                add(x, &self.post_norm(layer, LayerRole::PostFeedForwardNorm, given));
            }
        }
        let last = x.last().map(|x| times(self.values(Role::Head), &self.rms(x, self.values(Role::Norm))));
        (x, last.unwrap_or_default())
    }

    fn is_gemma(&self) -> bool {
        self.model.architecture == "gemma3"
    }

    fn has(&self, role: Role) -> bool {
        self.values.contains_key(&arch::tensor_name(&self.model, role))
    }

    /// Gate, up and down of a layer without experts.
    fn block(&self, layer: u32) -> [&[f32]; 3] {
        let weight = |role| self.values(Role::Layer(layer, role));
        if self.model.architecture == "phi3" {
            let both = weight(LayerRole::GateUp);
            let (gate, up) = both.split_at(both.len() / 2);
            return [gate, up, weight(LayerRole::Down)];
        }
        [weight(LayerRole::Gate), weight(LayerRole::Up), weight(LayerRole::Down)]
    }

    fn reference_block(&self, h: &[f64], [gate, up, down]: &[&[f32]; 3]) -> Vec<f64> {
        let (gate, up) = (times(gate, h), times(up, h));
        let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
        let active = |x: f64| if self.is_gemma() { gelu(x) } else { x / (1.0 + (-x).exp()) };
        times(down, &gate.iter().zip(&up).map(|(g, u)| active(*g) * u).collect::<Vec<f64>>())
    }

    fn reference_experts(&self, layer: u32, experts: Experts, h: &[f64]) -> Vec<f64> {
        let scores = times(self.values(Role::Layer(layer, LayerRole::Router)), h);
        let total: f64 = scores.iter().map(|score| score.exp()).sum();
        let mut chosen: Vec<(usize, f64)> = scores.iter().map(|score| score.exp() / total).enumerate().collect();
        chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        chosen.truncate(experts.used as usize);
        let sum: f64 = if experts.normalised { chosen.iter().map(|(_, weight)| weight).sum() } else { 1.0 };
        let mut given = vec![0.0; h.len()];
        for (expert, weight) in chosen {
            let parts = [Projection::Gate, Projection::Up, Projection::Down].map(|p| self.expert(layer, expert, p));
            let made = self.reference_block(h, &parts);
            add(&mut given, &made.iter().map(|v| v * weight / sum).collect::<Vec<_>>());
        }
        given
    }

    fn expert(&self, layer: u32, expert: usize, projection: Projection) -> &[f32] {
        let own = Role::Layer(layer, LayerRole::Expert(expert as u32, projection));
        if self.model.naming == Naming::HuggingFace {
            return self.values(own);
        }
        let all = self.values(Role::Layer(layer, LayerRole::Experts(projection)));
        let one = (self.model.width * self.model.feed_forward) as usize;
        &all[expert * one..][..one]
    }

    fn post_norm(&self, layer: u32, role: LayerRole, x: Vec<f64>) -> Vec<f64> {
        if self.is_gemma() { self.rms(&x, self.values(Role::Layer(layer, role))) } else { x }
    }

    /// Rows of queries, keys or values.
    fn projection(&self, layer: u32, role: LayerRole) -> &[f32] {
        if self.model.architecture != "phi3" {
            return self.values(Role::Layer(layer, role));
        }
        let (d, width) = (self.model.head_width, self.model.width);
        let (queries, keys) = ((self.model.heads * d * width) as usize, (self.model.kv_heads * d * width) as usize);
        let all = self.values(Role::Layer(layer, LayerRole::QueryKeyValue));
        match role {
            LayerRole::Query => &all[..queries],
            LayerRole::Key => &all[queries..][..keys],
            _ => &all[queries + keys..],
        }
    }

    fn reference_attention(&self, x: &mut [Vec<f64>], layer: u32) {
        let d = self.model.head_width as usize;
        let share = (self.model.heads / self.model.kv_heads) as usize;
        let scale = self.model.variations.query_scalar.unwrap_or(d as f64).sqrt();
        let is_full = self.model.variations.full_attention_every.is_some_and(|n| layer % n.get() == n.get() - 1);
        let window = self.model.window.filter(|_| !is_full).map_or(usize::MAX, |window| window.get() as usize);
        let project = |x: &[f64], role, bias| {
            let mut out = times(self.projection(layer, role), x);
            if self.model.attention_bias {
                add(&mut out, &self.values(Role::Layer(layer, bias)).iter().map(|v| *v as f64).collect::<Vec<_>>());
            }
            out
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (position, x) in x.iter_mut().enumerate() {
            let h = self.rms(x, self.values(Role::Layer(layer, LayerRole::AttentionNorm)));
            let mut q = project(&h, LayerRole::Query, LayerRole::QueryBias);
            let mut k = project(&h, LayerRole::Key, LayerRole::KeyBias);
            if self.has(Role::Layer(layer, LayerRole::QueryNorm)) {
                self.normalise_heads(&mut q, Role::Layer(layer, LayerRole::QueryNorm));
                self.normalise_heads(&mut k, Role::Layer(layer, LayerRole::KeyNorm));
            }
            self.rotate(&mut q, position, layer);
            self.rotate(&mut k, position, layer);
            let kept = |x: Vec<f64>| x.into_iter().map(self.kept).collect::<Vec<f64>>();
            keys.push(kept(k));
            values.push(kept(project(&h, LayerRole::Value, LayerRole::ValueBias)));
            let first = (position + 1).saturating_sub(window);
            let (keys, values) = (&keys[first..], &values[first..]);
            let mut mixed = vec![0.0; q.len()];
            for (head, (q, out)) in q.chunks_exact(d).zip(mixed.chunks_exact_mut(d)).enumerate() {
                let at = head / share * d..head / share * d + d;
                let scores: Vec<f64> = keys.iter().map(|k| dot(q, &k[at.clone()]) / scale).collect();
                let top = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
                let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                for (s, v) in scores.iter().zip(values) {
                    let weight = (s - top).exp() / total;
                    out.iter_mut().zip(&v[at.clone()]).for_each(|(o, v)| *o += weight * v);
                }
            }
            let given = times(self.values(Role::Layer(layer, LayerRole::Out)), &mixed);
            add(x, &self.post_norm(layer, LayerRole::PostAttentionNorm, given));
        }
    }

    fn normalise_heads(&self, x: &mut [f64], role: Role) {
        for head in x.chunks_exact_mut(self.model.head_width as usize) {
            head.copy_from_slice(&self.rms(head, self.values(role)));
        }
    }

    /// In the order of pairs that the model's files have.
    fn rotate(&self, x: &mut [f64], position: usize, layer: u32) {
        if self.model.variations.unrotated_every.is_some_and(|n| (layer + 1).is_multiple_of(n.get())) {
            return;
        }
        let r = self.rotary_width();
        for head in x.chunks_exact_mut(self.model.head_width as usize) {
            for i in 0..r / 2 {
                let (a, b) = if self.model.rope_half_split { (i, i + r / 2) } else { (2 * i, 2 * i + 1) };
                let angle = position as f64 * self.frequency(i, layer);
                let (sin, cos) = angle.sin_cos();
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
    }

    fn rotary_width(&self) -> usize {
        self.model.variations.rotary_width.map_or(self.model.head_width, NonZeroU32::get) as usize
    }

    /// As transformers' `modeling_rope_utils` says it: by wavelengths.
    fn frequency(&self, i: usize, layer: u32) -> f64 {
        let power = -2.0 * i as f64 / self.rotary_width() as f64;
        let is_full = self.model.variations.full_attention_every.is_some_and(|n| layer % n.get() == n.get() - 1);
        if let Some(base) = self.model.variations.window_rope_base.filter(|_| !is_full) {
            return base.powf(power);
        }
        let plain = self.model.rope_base.powf(power);
        match self.model.rope_scaling {
            None | Some(RopeScaling::Unknown) => plain,
            Some(RopeScaling::Linear { factor }) => plain / factor,
            Some(RopeScaling::Tensor) => plain / self.values(Role::RopeFactors)[i] as f64,
            Some(RopeScaling::Llama3 { factor, low, high, original_context }) => {
                let (wavelength, context) = (2.0 * std::f64::consts::PI / plain, original_context as f64);
                let smooth = (context / wavelength - low) / (high - low);
                match wavelength {
                    short if short < context / high => plain,
                    long if long > context / low => plain / factor,
                    _ => (1.0 - smooth) * plain / factor + smooth * plain,
                }
            }
        }
    }

    fn rms(&self, x: &[f64], weights: &[f32]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let inverse = 1.0 / (mean + self.model.norm_epsilon).sqrt();
        // Files of the Hub hold Gemma's norms less one.
        let more = if self.is_gemma() && self.model.naming == Naming::HuggingFace { 1.0 } else { 0.0 };
        x.iter().zip(weights).map(|(x, w)| x * inverse * (*w as f64 + more)).collect()
    }

    /// The same model in GGUF's names, with what files of the Hub hold apart stacked. Rows keep their order.
    pub fn stacked(&self) -> Tiny {
        let model = Model { naming: Naming::Gguf, ..self.model.clone() };
        let own = |role: Role| {
            let name = arch::tensor_name(&self.model, role);
            let entry = self.tensors.iter().find(|t| t.name == name).expect("a tensor");
            (entry.dtype, self.bytes[&name].clone())
        };
        let experts = self.model.variations.experts.map_or(0, |experts| experts.count);
        Self::filled(model, |_, role, _| match role {
            Role::Layer(layer, LayerRole::Experts(projection)) => {
                let one = |expert| own(Role::Layer(layer, LayerRole::Expert(expert, projection)));
                (one(0).0, (0..experts).flat_map(|expert| one(expert).1).collect())
            }
            role => own(role),
        })
    }

    /// The same model with query and key rows for neighbouring pairs, in GGUF's names.
    pub fn interleaved(&self) -> Tiny {
        let model = Model { naming: Naming::Gguf, rope_half_split: false, ..self.model.clone() };
        let mut tiny =
            Self { model, tensors: Vec::new(), bytes: BTreeMap::new(), values: BTreeMap::new(), kept: |x| x };
        let d = self.model.head_width as usize;
        for (role, dimensions) in arch::all_roles(&self.model) {
            let (from, to) = (arch::tensor_name(&self.model, role), arch::tensor_name(&tiny.model, role));
            let Some(old) = self.tensors.iter().find(|t| t.name == from) else { continue };
            let mut bytes = self.bytes[&from].clone();
            if matches!(role, Role::Layer(_, LayerRole::Query | LayerRole::Key)) {
                let size = bytes.len() / dimensions[0] as usize;
                let row = |r: usize| (r / d * d + r % d / 2 + r % 2 * d / 2) * size;
                bytes =
                    (0..dimensions[0] as usize).flat_map(|r| self.bytes[&from][row(r)..][..size].to_vec()).collect();
            }
            let mut values = Vec::new();
            assert!(quant::dequantise(old.dtype, &bytes, &mut values));
            tiny.values.insert(to.clone(), values);
            if tiny.bytes.insert(to.clone(), bytes).is_none() {
                tiny.tensors.push(TensorEntry { name: to, ..old.clone() });
            }
        }
        tiny
    }
}

/// FNV-1a of the name, then splitmix64 of that plus the index; sixteen bits, so that every language makes the same floats.
pub fn named_values(name: &str, dimensions: &[u64]) -> Vec<f32> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let (centre, spread) = match (dimensions.len(), name) {
        (1, _) => (1.0, 0.5),
        (_, "model.embed_tokens.weight") => (0.0, 1.0),
        _ => (0.0, 0.25),
    };
    let unit = |i: u64| (splitmix64(seed.wrapping_add(i)) >> 48) as f32 / 32768.0 - 1.0;
    (0..dimensions.iter().product()).map(|i| centre + spread * unit(i)).collect()
}

fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn times(matrix: &[f32], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| *w as f64 * x).sum()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Random values as a type stores them. Types without a quantiser here get random quants under sane scales.
fn stored(dice: &mut Dice, dtype: Dtype, elements: usize, spread: f32, centre: f32) -> Vec<u8> {
    let values: Vec<f32> = (0..elements).map(|_| centre + dice.float() * spread).collect();
    let mut out = Vec::new();
    match dtype {
        Dtype::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        Dtype::F16 => out.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
        Dtype::BF16 => out.extend(values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())),
        Dtype::Q8_0 => quant::quantise_q8_0(&values, &mut out),
        Dtype::Q4_0 => out = crate::quantise::blocks(values, dtype).expect("whole blocks"),
        _ => {
            let blocks = elements / dtype.block_elements() as usize;
            (0..blocks).for_each(|_| out.extend(noise_block(dice, dtype, spread)));
        }
    }
    out
}

fn noise_block(dice: &mut Dice, dtype: Dtype, spread: f32) -> Vec<u8> {
    // Where a scale lies, and the largest number of steps that it multiplies.
    let (halves, steps): (&[(usize, f32)], f32) = match dtype {
        Dtype::Q4_1 => (&[(0, 1.0), (2, -7.5)], 15.0),
        Dtype::Q8_1 => (&[(0, 1.0)], 128.0),
        Dtype::Q5_0 => (&[(0, 1.0)], 16.0),
        Dtype::Q5_1 => (&[(0, 1.0), (2, -15.5)], 31.0),
        Dtype::IQ4_NL => (&[(0, 1.0)], 127.0),
        Dtype::Q2_K => (&[(80, 1.0), (82, 1.5)], 45.0),
        Dtype::Q3_K => (&[(108, 1.0)], 128.0),
        Dtype::Q4_K => (&[(0, 1.0), (2, 7.5)], 945.0),
        Dtype::Q5_K => (&[(0, 1.0), (2, 15.5)], 1953.0),
        _ => (&[(208, 1.0)], 4096.0),
    };
    let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| (dice.next() >> 20) as u8).collect();
    for (at, factor) in halves {
        let scale = f16::from_f32(spread / steps * factor * (1.0 + 0.2 * dice.float()));
        block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
    }
    block
}

/// Tensors from memory.
pub struct MemorySource(pub BTreeMap<String, Vec<u8>>);

impl TensorSource for MemorySource {
    fn tensor(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, SourceError> {
        self.0.get(&entry.name).cloned().ok_or_else(|| SourceError("not in memory".to_string()))
    }
}
