//! Trains a small Llama from nothing on one text and writes it as a Hugging Face folder.
//!
//! This is how the built-in model was made; it is not the fine-tuning engine. The folder is written whole at the end
//! of a run: weights in BF16, tokenizer, configs, and the loss curve as CSV.

use std::{fs, io, path::Path, time::Instant};

use candle_core::{DType, Device, Tensor, backprop::GradStore};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use serde_json::json;
use tokenizers::Tokenizer;

use super::{
    corpus::{Corpus, CorpusError, END_OF_TEXT, learn_tokenizer},
    llama::{Llama, LlamaConfig},
};

/// What to train, for how long.
#[derive(Debug, Clone)]
pub struct PretrainOptions {
    /// Entries of the tokenizer.
    pub vocabulary: usize,
    /// Numbers in a hidden state.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers in the middle of the feed-forward part.
    pub feed_forward: usize,
    /// Tokens of a sequence.
    pub window: usize,
    /// Sequences a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
    /// Highest learning rate, reached after the warm-up, then falling as a cosine to a twentieth.
    pub learning_rate: f64,
    /// Decides the first weights and the windows.
    pub seed: u64,
}

impl Default for PretrainOptions {
    /// The built-in model.
    fn default() -> Self {
        Self {
            vocabulary: 1024,
            width: 128,
            layers: 9,
            heads: 2,
            kv_heads: 1,
            feed_forward: 352,
            window: 192,
            batch: 12,
            steps: 800,
            learning_rate: 3e-3,
            seed: 7,
        }
    }
}

/// Steps over which the learning rate rises from nothing.
const WARM_UP_STEPS: u64 = 100;
/// Gradients longer than this (Euclidean norm over all weights) are shortened to it.
const GRADIENT_NORM_MAX: f64 = 1.0;
/// Steps between two lines of the loss curve.
const REPORT_STEPS: u64 = 50;
/// Held-out windows that a line of the curve looks at; the last line looks at all.
const REPORT_WINDOWS: usize = 12;

/// One line of the loss curve; losses are nats a token.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Steps done.
    pub step: u64,
    /// Mean loss since the last line.
    pub train_loss: f64,
    /// Loss on text that was held out.
    pub held_out_loss: f64,
    /// Seconds since the start.
    pub seconds: f64,
}

/// What a run made.
pub struct Pretrained {
    /// The model, in F32.
    pub model: Llama,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The loss curve.
    pub curve: Vec<Report>,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// The text can't be trained on.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// candle failed.
    #[error("training: {0}")]
    Candle(#[from] candle_core::Error),
    /// A file could not be written.
    #[error("writing the model: {0}")]
    Io(#[from] io::Error),
}

/// Trains on `text`; `report` hears each line of the loss curve.
pub fn pretrain(
    text: &str,
    options: &PretrainOptions,
    mut report: impl FnMut(Report),
) -> Result<Pretrained, PretrainError> {
    let tokenizer = learn_tokenizer(text, options.vocabulary)?;
    let corpus = Corpus::new(text, &tokenizer, options.window)?;
    let model = Llama::new(config(options, &tokenizer), options.window, options.seed)?;
    let mut optimiser = AdamW::new(model.weights().values().cloned().collect(), adamw(options, 0))?;
    let (started, mut curve, mut losses) = (Instant::now(), Vec::new(), Vec::new());
    for step in 0..options.steps {
        optimiser.set_params(adamw(options, step));
        losses.push(train_step(&model, &mut optimiser, &corpus, options, step)?);
        let last = step + 1 == options.steps;
        if (step + 1).is_multiple_of(REPORT_STEPS) || last {
            let line = Report {
                step: step + 1,
                train_loss: losses.iter().sum::<f64>() / losses.len() as f64,
                held_out_loss: held_out(&model, &corpus, options, if last { usize::MAX } else { REPORT_WINDOWS })?,
                seconds: started.elapsed().as_secs_f64(),
            };
            losses.clear();
            report(line);
            curve.push(line);
        }
    }
    Ok(Pretrained { model, tokenizer, curve })
}

impl Pretrained {
    /// Writes `model.safetensors` (BF16), `config.json`, `generation_config.json`, `tokenizer.json`,
    /// `tokenizer_config.json` and `loss.csv` into `folder`.
    pub fn write(&self, folder: &Path) -> Result<(), PretrainError> {
        fs::create_dir_all(folder)?;
        let weights = self
            .model
            .weights()
            .iter()
            .map(|(name, w)| Ok((name.clone(), w.as_tensor().to_dtype(DType::BF16)?)))
            .collect::<Result<std::collections::HashMap<_, _>, candle_core::Error>>()?;
        candle_core::safetensors::save(&weights, folder.join("model.safetensors"))?;
        let pretty = |name: &str, value: serde_json::Value| {
            fs::write(folder.join(name), format!("{value:#}\n")).map_err(PretrainError::from)
        };
        pretty("config.json", self.config_json())?;
        let end = self.tokenizer.token_to_id(END_OF_TEXT);
        pretty("generation_config.json", json!({ "eos_token_id": end, "bos_token_id": end }))?;
        pretty(
            "tokenizer_config.json",
            json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT, "add_bos_token": false }),
        )?;
        self.tokenizer.save(folder.join("tokenizer.json"), true).map_err(|e| CorpusError::Tokenizer(e.to_string()))?;
        fs::write(folder.join("loss.csv"), self.curve_csv())?;
        Ok(())
    }

    fn config_json(&self) -> serde_json::Value {
        let end = self.tokenizer.token_to_id(END_OF_TEXT);
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "tie_word_embeddings": true, "attention_bias": false, "torch_dtype": "bfloat16",
            "bos_token_id": end, "eos_token_id": end,
        });
        if let (Some(config), Ok(serde_json::Value::Object(sizes))) =
            (config.as_object_mut(), serde_json::to_value(self.model.config()))
        {
            config.extend(sizes);
        }
        config
    }

    fn curve_csv(&self) -> String {
        let lines = self
            .curve
            .iter()
            .map(|r| format!("{},{:.4},{:.4},{:.0}\n", r.step, r.train_loss, r.held_out_loss, r.seconds));
        std::iter::once("step,train_loss,held_out_loss,seconds\n".to_string()).chain(lines).collect()
    }
}

fn config(o: &PretrainOptions, tokenizer: &Tokenizer) -> LlamaConfig {
    LlamaConfig {
        vocab_size: tokenizer.get_vocab_size(true),
        hidden_size: o.width,
        intermediate_size: o.feed_forward,
        num_hidden_layers: o.layers,
        num_attention_heads: o.heads,
        num_key_value_heads: o.kv_heads,
        max_position_embeddings: 2 * o.window,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
    }
}

/// AdamW (Loshchilov and Hutter 2019) with a linear warm-up and a cosine after it.
fn adamw(o: &PretrainOptions, step: u64) -> ParamsAdamW {
    let lr = if step < WARM_UP_STEPS {
        o.learning_rate * (step + 1) as f64 / WARM_UP_STEPS as f64
    } else {
        let done = (step - WARM_UP_STEPS) as f64 / (o.steps.max(WARM_UP_STEPS + 1) - WARM_UP_STEPS) as f64;
        o.learning_rate * (0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
    };
    ParamsAdamW { lr, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
}

fn train_step(
    model: &Llama,
    optimiser: &mut AdamW,
    corpus: &Corpus,
    o: &PretrainOptions,
    step: u64,
) -> Result<f64, PretrainError> {
    let loss = loss(model, &corpus.windows(o.seed, step, o.batch, o.window))?;
    let mut gradients = loss.backward()?;
    clip(model, &mut gradients)?;
    optimiser.step(&gradients)?;
    Ok(loss.to_scalar::<f32>()? as f64)
}

/// Shortens the gradient to [`GRADIENT_NORM_MAX`].
fn clip(model: &Llama, gradients: &mut GradStore) -> Result<(), candle_core::Error> {
    let mut square = 0.0;
    for weight in model.weights().values() {
        if let Some(g) = gradients.get(weight) {
            square += g.sqr()?.sum_all()?.to_scalar::<f32>()? as f64;
        }
    }
    let norm = square.sqrt();
    if norm <= GRADIENT_NORM_MAX {
        return Ok(());
    }
    for weight in model.weights().values() {
        if let Some(g) = gradients.remove(weight) {
            gradients.insert(weight, (g * (GRADIENT_NORM_MAX / norm))?);
        }
    }
    Ok(())
}

fn held_out(model: &Llama, corpus: &Corpus, o: &PretrainOptions, most: usize) -> Result<f64, PretrainError> {
    let windows = corpus.held_out_windows(o.window);
    let (mut sum, mut count) = (0.0, 0);
    for part in windows[..most.min(windows.len())].chunks(o.batch) {
        sum += loss(model, part)?.detach().to_scalar::<f32>()? as f64 * part.len() as f64;
        count += part.len();
    }
    Ok(sum / count as f64)
}

/// Mean cross entropy of each window's next tokens, in nats.
fn loss(model: &Llama, windows: &[&[u32]]) -> Result<Tensor, candle_core::Error> {
    let window = windows[0].len() - 1;
    let part = |from: usize| {
        let ids: Vec<u32> = windows.iter().flat_map(|w| &w[from..from + window]).copied().collect();
        Tensor::from_vec(ids, (windows.len(), window), &Device::Cpu)
    };
    candle_nn::loss::cross_entropy(&model.forward(&part(0)?)?, &part(1)?.flatten_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_model_learns_a_tiny_text_and_its_folder_is_whole() {
        let text = "the cat sat on the mat; the dog sat on the log.\n".repeat(80);
        let options = PretrainOptions {
            vocabulary: 280,
            width: 32,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            feed_forward: 64,
            window: 16,
            batch: 4,
            steps: 60,
            learning_rate: 1e-2,
            seed: 3,
        };
        let mut lines = 0;
        let made = pretrain(&text, &options, |_| lines += 1).expect("train");
        assert_eq!(lines, made.curve.len());
        let last = made.curve.last().expect("a line").held_out_loss;
        assert!(last < 2.0, "held-out loss {last} against {:.2} of a uniform guess", 280f64.ln());
        let folder = tempfile::tempdir().expect("folder");
        made.write(folder.path()).expect("write");
        for file in ["model.safetensors", "config.json", "tokenizer.json", "loss.csv"] {
            assert!(folder.path().join(file).metadata().expect(file).len() > 0);
        }
    }
}
