//! The Llama block as a differentiable candle program (Touvron et al. 2023, "LLaMA", section 2.2): RMS norm before
//! each part, rotary positions, grouped queries, SwiGLU, embeddings tied to the head.
//!
//! For training only: it has no cache and recomputes everything. Tensors are named as Hugging Face names them, so
//! that what is trained here is served, exported and read elsewhere without a conversion.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use serde::Serialize;

use super::corpus::draw;

/// Sizes of a model to train; serialises as a Hugging Face `config.json`.
#[derive(Debug, Clone, Serialize)]
pub struct LlamaConfig {
    /// Tokens known.
    pub vocab_size: usize,
    /// Numbers in a hidden state.
    pub hidden_size: usize,
    /// Numbers in the middle of the feed-forward part.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

/// Weights under training, by their Hugging Face names, `[rows, columns]`.
pub struct Llama {
    config: LlamaConfig,
    weights: BTreeMap<String, Var>,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
}

impl Llama {
    /// Random weights: normal with deviation 0.02, those that write into the residual scaled by 1/√(2 layers)
    /// (Radford et al. 2019, GPT-2, section 2.3); norms at one. `window` is the longest sequence trained on.
    pub fn new(config: LlamaConfig, window: usize, seed: u64) -> Result<Self> {
        let device = Device::Cpu;
        let mut weights = BTreeMap::new();
        for (stream, (name, shape)) in shapes(&config).into_iter().enumerate() {
            let tensor = match shape[..] {
                [n] => Tensor::ones(n, DType::F32, &device)?,
                _ => {
                    let residual = name.contains("o_proj") || name.contains("down_proj");
                    let scale = if residual { (2.0 * config.num_hidden_layers as f32).sqrt() } else { 1.0 };
                    Tensor::from_vec(normal(seed, stream as u64, shape.iter().product(), 0.02 / scale), shape, &device)?
                }
            };
            weights.insert(name, Var::from_tensor(&tensor)?);
        }
        let (cos, sin) = rotary(&config, window)?;
        let mask: Vec<f32> =
            (0..window * window).map(|i| if i % window > i / window { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (window, window), &device)?;
        Ok(Self { config, weights, cos, sin, mask })
    }

    /// The sizes.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Every weight, in order of name.
    pub fn weights(&self) -> &BTreeMap<String, Var> {
        &self.weights
    }

    /// Number of weights.
    pub fn parameters(&self) -> usize {
        self.weights.values().map(|w| w.elem_count()).sum()
    }

    /// Logits `[batch * window, vocabulary]` of token ids `[batch, window]`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, window) = ids.dims2()?;
        let embedding = self.weight("model.embed_tokens.weight")?;
        let mut x =
            embedding.index_select(&ids.flatten_all()?, 0)?.reshape((batch, window, self.config.hidden_size))?;
        for layer in 0..self.config.num_hidden_layers {
            x = (&x + self.attention(&x, layer)?)?;
            x = (&x + self.feed_forward(&x, layer)?)?;
        }
        let x = self.norm(&x, "model.norm.weight")?.flatten_to(1)?;
        x.matmul(&embedding.t()?)
    }

    fn attention(&self, x: &Tensor, layer: usize) -> Result<Tensor> {
        let (batch, window, width) = x.dims3()?;
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let head_width = width / heads;
        let x = self.norm(x, &format!("model.layers.{layer}.input_layernorm.weight"))?;
        let project = |name: &str, heads: usize| -> Result<Tensor> {
            let y = self.linear(&x, &format!("model.layers.{layer}.self_attn.{name}_proj.weight"))?;
            y.reshape((batch, window, heads, head_width))?.transpose(1, 2)?.contiguous()
        };
        let turn = |t: Tensor| candle_nn::rotary_emb::rope_slow(&t, &self.cos, &self.sin);
        let (q, k, v) = (turn(project("q", heads)?)?, turn(project("k", kv_heads)?)?, project("v", kv_heads)?);
        // The query heads that share a key head are stacked below each other: one product serves them all.
        let share = heads / kv_heads;
        let q = (q.reshape((batch, kv_heads, share * window, head_width))? * (head_width as f64).powf(-0.5))?;
        let scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?.reshape((batch, heads, window, window))?;
        let shares = candle_nn::ops::softmax(&scores.broadcast_add(&self.mask)?, D::Minus1)?;
        let mixed = shares.reshape((batch, kv_heads, share * window, window))?.matmul(&v)?;
        let mixed = mixed.reshape((batch, heads, window, head_width))?.transpose(1, 2)?.contiguous()?;
        self.linear(&mixed.reshape((batch, window, width))?, &format!("model.layers.{layer}.self_attn.o_proj.weight"))
    }

    fn feed_forward(&self, x: &Tensor, layer: usize) -> Result<Tensor> {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let x = self.norm(x, &name("post_attention_layernorm"))?;
        let gate = self.linear(&x, &name("mlp.gate_proj"))?.silu()?;
        let hidden = (gate * self.linear(&x, &name("mlp.up_proj"))?)?;
        self.linear(&hidden, &name("mlp.down_proj"))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let scaled = x.broadcast_div(&(mean_square + self.config.rms_norm_eps)?.sqrt()?)?;
        scaled.broadcast_mul(self.weight(name)?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (batch, window, width) = x.dims3()?;
        let y = x.reshape((batch * window, width))?.matmul(&self.weight(name)?.t()?)?;
        let rows = y.dim(1)?;
        y.reshape((batch, window, rows))
    }

    fn weight(&self, name: &str) -> Result<&Tensor> {
        self.weights
            .get(name)
            .map(|w| w.as_tensor())
            .ok_or_else(|| candle_core::Error::Msg(format!("no weight {name}")))
    }
}

/// Names and shapes of all weights.
fn shapes(c: &LlamaConfig) -> Vec<(String, Vec<usize>)> {
    let kv_width = c.hidden_size / c.num_attention_heads * c.num_key_value_heads;
    let mut all = vec![
        ("model.embed_tokens.weight".to_string(), vec![c.vocab_size, c.hidden_size]),
        ("model.norm.weight".to_string(), vec![c.hidden_size]),
    ];
    for layer in 0..c.num_hidden_layers {
        let parts: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![c.hidden_size]),
            ("self_attn.q_proj", vec![c.hidden_size, c.hidden_size]),
            ("self_attn.k_proj", vec![kv_width, c.hidden_size]),
            ("self_attn.v_proj", vec![kv_width, c.hidden_size]),
            ("self_attn.o_proj", vec![c.hidden_size, c.hidden_size]),
            ("post_attention_layernorm", vec![c.hidden_size]),
            ("mlp.gate_proj", vec![c.intermediate_size, c.hidden_size]),
            ("mlp.up_proj", vec![c.intermediate_size, c.hidden_size]),
            ("mlp.down_proj", vec![c.hidden_size, c.intermediate_size]),
        ];
        all.extend(parts.into_iter().map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape)));
    }
    all
}

/// Cosines and sines `[window, head width / 2]` (Su et al. 2021, "RoFormer", section 3.2).
fn rotary(c: &LlamaConfig, window: usize) -> Result<(Tensor, Tensor)> {
    let half = c.hidden_size / c.num_attention_heads / 2;
    let angle = |i: usize| (i / half) as f64 * c.rope_theta.powf(-((i % half) as f64) / half as f64);
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> = (0..window * half).map(|i| f(angle(i)) as f32).collect();
        Tensor::from_vec(values, (window, half), &Device::Cpu)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

/// `n` normal numbers (Box and Muller 1958) that depend on (seed, stream) alone.
fn normal(seed: u64, stream: u64, n: usize, deviation: f32) -> Vec<f32> {
    let uniform = |i: u64| ((draw(seed, stream, i) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (0..n as u64)
        .map(|i| {
            let (a, b) = (uniform(2 * i), uniform(2 * i + 1));
            ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32 * deviation
        })
        .collect()
}
