//! A stage on a GPU, computed by candle: the same inputs and outputs as on the CPU, other arithmetic.
//!
//! Quantised weights stay quantised where candle has the type; keys and values are F32, preallocated. The
//! reproducible-arithmetic law is *not* promised here: candle picks kernels by shape. The code names no kind of device,
//! so tests run it on candle's CPU; on CUDA and Metal (features `cuda`, `metal`) it was never run.

use super::{Checked, Facts, Made, Run, StepError};
use crate::{
    arch::{self, LayerRole, Role, StageError, StagePart},
    cpu::model::Shape,
    quant,
    weights::{SourceError, TensorSource},
};
use cairn_protocol::{
    dtype::Dtype,
    manifest::{self, TensorEntry},
};
use candle_core::{
    DType, Device, Module, Tensor,
    quantized::{GgmlDType, QMatMul, QStorage, QTensor},
};
use std::{borrow::Cow, sync::Arc};

/// Why a stage could not be put on a device.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The index does not hold what the part needs.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A tensor could not be had.
    #[error("tensor {name} could not be read: {error}")]
    Source {
        /// Which.
        name: String,
        /// Why.
        error: SourceError,
    },
    /// The device refused.
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
}

struct Linear {
    weight: QMatMul,
    bias: Option<Tensor>,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: Option<Tensor>,
    key_norm: Option<Tensor>,
    out: Linear,
    feed_forward_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// Rows of the embedding, kept in the host's memory as they are stored.
struct Embedding {
    dtype: Dtype,
    bytes: Vec<u8>,
}

/// Weights on a device.
pub(crate) struct GpuWeights {
    shape: Shape,
    device: Device,
    context: usize,
    half_split: bool,
    embedding: Option<Embedding>,
    layers: Vec<Layer>,
    head: Option<(Tensor, Linear)>,
    cos: Tensor,
    sin: Tensor,
}

/// One session on them: keys and values of each layer, `[1, kv heads, context, head width]`.
pub(crate) struct GpuStage {
    weights: Arc<GpuWeights>,
    caches: Vec<(Tensor, Tensor)>,
}

impl GpuWeights {
    /// Reads what a part needs and puts it on the device.
    pub fn load(
        model: &manifest::Model,
        tensors: &[TensorEntry],
        part: &StagePart,
        context: usize,
        source: &mut dyn TensorSource,
        device: Device,
    ) -> Result<Arc<Self>, GpuError> {
        let shape = arch::shape(model).map_err(StageError::from)?;
        let wanted = arch::wanted(model, tensors, part)?;
        let mut loader = Loader { wanted: &wanted, source, device: &device };
        let embedding = loader.embedding()?;
        let layers = part.layers.iter().map(|l| loader.layer(l)).collect::<Result<_, _>>()?;
        let head = match (loader.find(Role::Norm), loader.find(Role::Head)) {
            (Some(norm), Some(head)) => Some((loader.vector(norm)?, loader.linear(head, None)?)),
            _ => None,
        };
        let factors = loader.rope_factors()?;
        let (cos, sin) = angles(&arch::frequencies(model, &factors), context, &device)?;
        let half_split = model.rope_half_split;
        Ok(Arc::new(Self { shape, context, half_split, embedding, layers, head, cos, sin, device }))
    }

    pub fn facts(&self) -> Facts {
        let s = &self.shape;
        Facts {
            width: s.width,
            vocabulary: s.vocabulary,
            has_embedding: self.embedding.is_some(),
            has_head: self.head.is_some(),
            context: self.context,
            position_bytes: (self.layers.len() * s.kv_heads * s.head_width * 2 * size_of::<f32>()) as u64,
        }
    }

    pub fn open(self: &Arc<Self>, context: usize) -> Result<GpuStage, StepError> {
        let size = (1, self.shape.kv_heads, context, self.shape.head_width);
        let zeros = || Tensor::zeros(size, DType::F32, &self.device);
        let cache = |_: &Layer| Ok((zeros()?, zeros()?));
        let caches = self.layers.iter().map(cache).collect::<candle_core::Result<_>>().map_err(|e| lost(&e))?;
        Ok(GpuStage { weights: self.clone(), caches })
    }

    fn rows(&self, run: &Run) -> candle_core::Result<Tensor> {
        let width = self.shape.width;
        let mut values = Vec::with_capacity(run.count * width);
        match (run.input, &self.embedding) {
            (Checked::Values(given), _) => values.extend_from_slice(given),
            (Checked::Ids(ids), Some(embedding)) => {
                let row = embedding.bytes.len() / self.shape.vocabulary;
                for id in ids {
                    let bytes = &embedding.bytes[*id as usize * row..][..row];
                    // Types that can't be read were refused when it was loaded.
                    let _ = quant::dequantise(embedding.dtype, bytes, &mut values);
                }
            }
            (Checked::Ids(_), None) => {}
        }
        Tensor::from_vec(values, (run.count, width), &self.device)
    }

    fn rotate(&self, x: &Tensor, held: usize, count: usize) -> candle_core::Result<Tensor> {
        let (cos, sin) = (self.cos.narrow(0, held, count)?, self.sin.narrow(0, held, count)?);
        let x = x.contiguous()?;
        if self.half_split {
            candle_nn::rotary_emb::rope(&x, &cos, &sin)
        } else {
            candle_nn::rotary_emb::rope_i(&x, &cos, &sin)
        }
    }

    fn attention(
        &self,
        layer: &Layer,
        cache: &(Tensor, Tensor),
        x: &Tensor,
        held: usize,
    ) -> candle_core::Result<Tensor> {
        let (s, count) = (&self.shape, x.dim(0)?);
        let (d, all, share) = (s.head_width, held + count, s.heads / s.kv_heads);
        let h = candle_nn::ops::rms_norm(x, &layer.attention_norm, s.epsilon)?;
        let by_heads = |x: Tensor, heads: usize| x.reshape((1, count, heads, d))?.transpose(1, 2)?.contiguous();
        let normed = |x: Tensor, norm: &Option<Tensor>| match norm {
            Some(norm) => candle_nn::ops::rms_norm(&x, norm, s.epsilon),
            None => Ok(x),
        };
        let query = normed(by_heads(layer.query.forward(&h)?, s.heads)?, &layer.query_norm)?;
        let key = normed(by_heads(layer.key.forward(&h)?, s.kv_heads)?, &layer.key_norm)?;
        let (query, key) = (self.rotate(&query, held, count)?, self.rotate(&key, held, count)?);
        let value = by_heads(layer.value.forward(&h)?, s.kv_heads)?;
        cache.0.slice_set(&key.contiguous()?, 2, held)?;
        cache.1.slice_set(&value, 2, held)?;
        let keys = cache.0.narrow(2, 0, all)?.squeeze(0)?.contiguous()?;
        let values = cache.1.narrow(2, 0, all)?.squeeze(0)?.contiguous()?;
        let query = (query.reshape((s.kv_heads, share * count, d))? / (d as f64).sqrt())?;
        let scores = query.matmul(&keys.transpose(1, 2)?.contiguous()?)?;
        let scores =
            scores.reshape((s.kv_heads, share, count, all))?.broadcast_add(&mask(s, held, count, &self.device)?)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.reshape((s.kv_heads, share * count, all))?;
        let mixed = weights.matmul(&values)?.reshape((s.heads, count, d))?.transpose(0, 1)?;
        layer.out.forward(&mixed.reshape((count, s.heads * d))?.contiguous()?)
    }

    fn feed_forward(&self, layer: &Layer, x: &Tensor) -> candle_core::Result<Tensor> {
        let h = candle_nn::ops::rms_norm(x, &layer.feed_forward_norm, self.shape.epsilon)?;
        let gate = candle_nn::ops::silu(&layer.gate.forward(&h)?)?;
        layer.down.forward(&(gate * layer.up.forward(&h)?)?)
    }
}

impl GpuStage {
    /// Computes `run.count` positions, overwriting what may be there. `choose` is given the logits of the last position.
    pub fn compute(&mut self, run: Run, choose: &mut dyn FnMut(&[f32]) -> u32) -> Result<Made, StepError> {
        let x = self.walk(&run).map_err(|e| lost(&e))?;
        match &self.weights.head {
            None => Ok(Made::Hidden(flat(&x).map_err(|e| lost(&e))?)),
            Some(_) if !run.sample => Ok(Made::Nothing),
            Some((norm, head)) => {
                let logits = self.logits(&x, norm, head).map_err(|e| lost(&e))?;
                Ok(Made::Token(choose(&logits)))
            }
        }
    }

    fn walk(&self, run: &Run) -> candle_core::Result<Tensor> {
        let weights = &*self.weights;
        let mut x = weights.rows(run)?;
        for (layer, cache) in weights.layers.iter().zip(&self.caches) {
            x = (&x + weights.attention(layer, cache, &x, run.held)?)?;
            x = (&x + weights.feed_forward(layer, &x)?)?;
        }
        Ok(x)
    }

    fn logits(&self, x: &Tensor, norm: &Tensor, head: &Linear) -> candle_core::Result<Vec<f32>> {
        let last = x.narrow(0, x.dim(0)? - 1, 1)?.contiguous()?;
        flat(&head.forward(&candle_nn::ops::rms_norm(&last, norm, self.weights.shape.epsilon)?)?)
    }
}

fn lost(error: &candle_core::Error) -> StepError {
    StepError::Lost(format!("the device failed: {error}"))
}

fn flat(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

/// Minus infinity where a position would look ahead, or back beyond the window: `[count, held + count]`.
fn mask(s: &Shape, held: usize, count: usize, device: &Device) -> candle_core::Result<Tensor> {
    let all = held + count;
    let at = |i: usize| if s.attended(held + i / all).contains(&(i % all)) { 0.0 } else { f32::NEG_INFINITY };
    Tensor::from_vec((0..count * all).map(at).collect::<Vec<f32>>(), (count, all), device)
}

/// Cosines and sines, `[context, head width / 2]`.
fn angles(frequencies: &[f64], context: usize, device: &Device) -> candle_core::Result<(Tensor, Tensor)> {
    let half = frequencies.len();
    let angle = |i: usize| (i / half) as f64 * frequencies[i % half];
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> = (0..context * half).map(|i| f(angle(i)) as f32).collect();
        Tensor::from_vec(values, (context, half), device)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

struct Loader<'a> {
    wanted: &'a [arch::Wanted<'a>],
    source: &'a mut dyn TensorSource,
    device: &'a Device,
}

impl<'a> Loader<'a> {
    fn find(&self, role: Role) -> Option<&'a TensorEntry> {
        self.wanted.iter().find(|w| w.role == role).map(|w| w.entry)
    }

    fn need(&self, layer: u32, role: LayerRole) -> Result<&'a TensorEntry, GpuError> {
        let missing = || StageError::Missing(format!("{role:?} of layer {layer}"));
        Ok(self.find(Role::Layer(layer, role)).ok_or_else(missing)?)
    }

    fn bytes(&mut self, entry: &TensorEntry) -> Result<Vec<u8>, GpuError> {
        let name = || entry.name.clone();
        let bytes = self.source.tensor(entry).map_err(|error| GpuError::Source { name: name(), error })?;
        if bytes.len() as u64 != entry.length {
            let error = SourceError(format!("{} bytes came, the index says {}", bytes.len(), entry.length));
            return Err(GpuError::Source { name: name(), error });
        }
        Ok(bytes)
    }

    fn embedding(&mut self) -> Result<Option<Embedding>, GpuError> {
        let Some(entry) = self.find(Role::Embedding) else { return Ok(None) };
        Ok(Some(Embedding { dtype: entry.dtype, bytes: self.bytes(entry)? }))
    }

    /// Divisors of rotary frequencies; none where the model has none.
    fn rope_factors(&mut self) -> Result<Vec<f32>, GpuError> {
        let Some(entry) = self.find(Role::RopeFactors) else { return Ok(Vec::new()) };
        let factors = self.vector(entry)?.to_vec1()?;
        if arch::are_factors(&factors) { Ok(factors) } else { Err(StageError::RopeFactors.into()) }
    }

    fn layer(&mut self, layer: u32) -> Result<Layer, GpuError> {
        use LayerRole::*;
        Ok(Layer {
            attention_norm: self.layer_vector(layer, AttentionNorm)?,
            query: self.layer_linear(layer, Query, Some(QueryBias))?,
            key: self.layer_linear(layer, Key, Some(KeyBias))?,
            value: self.layer_linear(layer, Value, Some(ValueBias))?,
            query_norm: self.optional_vector(layer, QueryNorm)?,
            key_norm: self.optional_vector(layer, KeyNorm)?,
            out: self.layer_linear(layer, Out, None)?,
            feed_forward_norm: self.layer_vector(layer, FeedForwardNorm)?,
            gate: self.layer_linear(layer, Gate, None)?,
            up: self.layer_linear(layer, Up, None)?,
            down: self.layer_linear(layer, Down, None)?,
        })
    }

    fn layer_vector(&mut self, layer: u32, role: LayerRole) -> Result<Tensor, GpuError> {
        let entry = self.need(layer, role)?;
        self.vector(entry)
    }

    fn optional_vector(&mut self, layer: u32, role: LayerRole) -> Result<Option<Tensor>, GpuError> {
        self.find(Role::Layer(layer, role)).map(|entry| self.vector(entry)).transpose()
    }

    fn layer_linear(&mut self, layer: u32, role: LayerRole, bias: Option<LayerRole>) -> Result<Linear, GpuError> {
        let entry = self.need(layer, role)?;
        let bias = bias.and_then(|bias| self.find(Role::Layer(layer, bias)));
        self.linear(entry, bias)
    }

    fn linear(&mut self, entry: &TensorEntry, bias: Option<&TensorEntry>) -> Result<Linear, GpuError> {
        let bytes = self.bytes(entry)?;
        let unread = || StageError::Type { name: entry.name.clone(), dtype: entry.dtype };
        let (dtype, bytes) = as_candle(entry.dtype, bytes).ok_or_else(unread)?;
        let shape = (entry.shape[0] as usize, entry.shape[1] as usize);
        let storage = QStorage::from_data(Cow::Owned(bytes), self.device, dtype)?;
        let weight = QMatMul::from_qtensor(QTensor::new(storage, shape)?)?;
        let bias = bias.map(|entry| self.vector(entry)).transpose()?;
        Ok(Linear { weight, bias })
    }

    fn vector(&mut self, entry: &TensorEntry) -> Result<Tensor, GpuError> {
        let (bytes, mut values) = (self.bytes(entry)?, Vec::new());
        if !quant::dequantise(entry.dtype, &bytes, &mut values) {
            return Err(StageError::Type { name: entry.name.clone(), dtype: entry.dtype }.into());
        }
        let elements = values.len();
        Ok(Tensor::from_vec(values, elements, self.device)?)
    }
}

/// candle's name of a type, and its bytes; types that it has not become Q8_0 without loss.
fn as_candle(dtype: Dtype, bytes: Vec<u8>) -> Option<(GgmlDType, Vec<u8>)> {
    let kept = match dtype {
        Dtype::F32 => GgmlDType::F32,
        Dtype::F16 => GgmlDType::F16,
        Dtype::BF16 => GgmlDType::BF16,
        Dtype::Q4_0 => GgmlDType::Q4_0,
        Dtype::Q4_1 => GgmlDType::Q4_1,
        Dtype::Q5_0 => GgmlDType::Q5_0,
        Dtype::Q5_1 => GgmlDType::Q5_1,
        Dtype::Q8_0 => GgmlDType::Q8_0,
        Dtype::Q2_K => GgmlDType::Q2K,
        Dtype::Q3_K => GgmlDType::Q3K,
        Dtype::Q4_K => GgmlDType::Q4K,
        Dtype::Q5_K => GgmlDType::Q5K,
        Dtype::Q6_K => GgmlDType::Q6K,
        Dtype::IQ4_NL | Dtype::Q8_1 => {
            let mut wide = Vec::new();
            quant::widen_exactly(dtype, &bytes, &mut wide);
            return Some((GgmlDType::Q8_0, wide));
        }
        _ => return None,
    };
    Some((kept, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cpu::{level::Level, pool::Pool},
        stage::{Hands, Kind, Session, StepInput, StepOutput, Weights},
        tiny::{self, Tiny},
    };
    use cairn_protocol::{
        layers::LayerRange,
        manifest::{Model, RopeScaling},
    };

    fn session(tiny: &Tiny, part: StagePart) -> Session {
        let weights = GpuWeights::load(&tiny.model, &tiny.tensors, &part, 64, &mut *tiny.source(), Device::Cpu);
        Session::new(Arc::new(Weights::new(Kind::Gpu(weights.expect("loads")), None)), 64).expect("opens")
    }

    fn hands() -> Hands {
        Hands { pool: Pool::new(1).expect("pool"), level: Level::Scalar }
    }

    fn recipes() -> Vec<Tiny> {
        let neighbours = Tiny::new(tiny::llama(), 4, |_| Dtype::F32).interleaved();
        let wide = Model { layers: 1, width: 256, feed_forward: 256, head_width: 64, ..tiny::llama() };
        vec![
            Tiny::new(tiny::llama(), 4, |_| Dtype::F32),
            neighbours,
            Tiny::new(tiny::qwen2(), 5, |_| Dtype::F32),
            Tiny::new(tiny::llama3(), 9, |_| Dtype::F32),
            Tiny::new(tiny::scaled(RopeScaling::Tensor), 10, |_| Dtype::F32),
            Tiny::new(tiny::qwen3(), 11, |_| Dtype::F32),
            Tiny::new(tiny::mistral(7), 12, |_| Dtype::F32),
            Tiny::new(tiny::qwen2(), 6, |_| Dtype::Q8_0),
            Tiny::new(tiny::llama(), 7, |_| Dtype::IQ4_NL),
            Tiny::new(wide, 8, |_| Dtype::Q6_K),
        ]
    }

    #[test]
    fn hidden_states_are_those_of_f64_arithmetic_however_the_prompt_is_cut() {
        for (i, tiny) in recipes().iter().enumerate() {
            let ids: Vec<u32> = (0..20).map(|i| i * 7 % 50).collect();
            let want = tiny.reference(&ids).0.concat();
            // candle quantises activations to one int8 plane for quantised weights.
            let tolerance = if i < 7 { 1e-3 } else { 0.15 };
            for cut in [20, 6, 1] {
                let (mut session, mut got) = (session(tiny, tiny.headless()), Vec::new());
                for (piece, ids) in ids.chunks(cut).enumerate() {
                    let first_position = (piece * cut) as u64;
                    let input = StepInput::Tokens { first_position, ids: ids.to_vec(), sample: false };
                    let Ok(StepOutput::Hidden { values, .. }) = session.step(&hands(), &input) else {
                        panic!("no hidden")
                    };
                    got.extend(values);
                }
                let rms = (want.iter().map(|w| w * w).sum::<f64>() / want.len() as f64).sqrt();
                let worst = want.iter().zip(&got).fold(0f64, |m, (w, g)| m.max((w - *g as f64).abs()));
                assert!(worst <= tolerance * rms && want.len() == got.len(), "{i}: off by {worst} of {rms}");
            }
        }
    }

    #[test]
    fn two_stages_sample_what_one_does_and_a_truncated_one_repeats_itself() {
        let tiny = Tiny::new(tiny::llama(), 9, |_| Dtype::F32);
        let ids: Vec<u32> = (0..12).map(|i| i * 5 % 50).collect();
        let (mut whole, best) = (session(&tiny, StagePart::whole(3)), tiny.reference(&ids).1);
        let tokens =
            |first: u64, ids: &[u32]| StepInput::Tokens { first_position: first, ids: ids.to_vec(), sample: true };
        let Ok(StepOutput::Token { token, .. }) = whole.step(&hands(), &tokens(0, &ids)) else { panic!("no token") };
        assert!(best.iter().all(|l| *l <= best[token as usize] + 1e-3), "the likeliest");
        whole.truncate(8);
        let Ok(StepOutput::Token { token: again, .. }) = whole.step(&hands(), &tokens(8, &ids[8..])) else {
            panic!("no token")
        };
        assert_eq!(token, again);
        let [mut first, mut last] =
            [(0, 1), (1, 3)].map(|(start, end)| session(&tiny, StagePart::of(LayerRange { start, end }, 3)));
        let Ok(StepOutput::Hidden { values, .. }) = first.step(&hands(), &tokens(0, &ids)) else { panic!("no hidden") };
        let input = StepInput::Hidden { first_position: 0, count: 12, values, sample: true };
        let Ok(StepOutput::Token { token: split, .. }) = last.step(&hands(), &input) else { panic!("no token") };
        assert_eq!(token, split);
    }
}
