//! An encoder's numbers, from `config.json`. Invariant: a [`Shape`] can be computed, if its tensors are as it says.

use cairn_protocol::limits::{CONTEXT_MAX, LAYERS_MAX, MODEL_NUMBER_MAX};
use serde_json::Value;

use super::{super::LoadError, lanes::Activation};
use crate::cpu::{kernels::HEAD_WIDTH_MAX, lines::LINE_BYTES, packed::LANES};

/// The families that are computed, each checked against transformers.
const FAMILIES: &str = "bert, roberta, xlm-roberta, camembert, distilbert, mpnet";

/// Which checkpoint layout and which embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Positions from 0, token types.
    Bert,
    /// Positions from the padding id on, token types.
    Roberta,
    /// Positions from 0, no token types.
    Distilbert,
    /// Positions from the padding id on, no token types, and a bias of scores by distance.
    Mpnet,
}

/// The numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Which layout.
    pub family: Family,
    /// Values of a hidden state.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Values of one head.
    pub head_width: usize,
    /// Values between the two products of a feed-forward.
    pub feed_forward: usize,
    /// Layers.
    pub layers: usize,
    /// Ids.
    pub vocabulary: usize,
    /// Rows of the position table.
    pub position_rows: usize,
    /// The row of the first position.
    pub first_position: usize,
    /// Token types; the first one is used.
    pub types: usize,
    /// Buckets of the bias by distance; 0 for none.
    pub buckets: usize,
    /// What a feed-forward does between its products.
    pub(super) activation: Activation,
    /// Added to variances.
    pub epsilon: f32,
}

impl Shape {
    /// Reads it.
    pub fn read(config: &[u8]) -> Result<Shape, LoadError> {
        let config: Value = serde_json::from_slice(config).map_err(|e| LoadError::malformed("config.json", e))?;
        let family = family(&config)?;
        let is_distil = family == Family::Distilbert;
        let name = |usual: &'static str, distil: &'static str| if is_distil { distil } else { usual };
        let (width, heads) = (
            number(&config, name("hidden_size", "dim"), None)?,
            number(&config, name("num_attention_heads", "n_heads"), None)?,
        );
        let padding = number(&config, "pad_token_id", Some(1))?;
        let has_offset = matches!(family, Family::Roberta | Family::Mpnet);
        let shape = Shape {
            family,
            width,
            heads,
            head_width: width / heads.max(1),
            feed_forward: number(&config, name("intermediate_size", "hidden_dim"), None)?,
            layers: number(&config, name("num_hidden_layers", "n_layers"), None)?,
            vocabulary: number(&config, "vocab_size", None)?,
            position_rows: number(&config, "max_position_embeddings", Some(512))?,
            first_position: if has_offset { padding + 1 } else { 0 },
            types: match family {
                Family::Bert | Family::Roberta => number(&config, "type_vocab_size", Some(2))?,
                Family::Distilbert | Family::Mpnet => 0,
            },
            buckets: match family {
                Family::Mpnet => number(&config, "relative_attention_num_buckets", Some(32))?,
                _ => 0,
            },
            activation: activation(&config, name("hidden_act", "activation"))?,
            epsilon: epsilon(&config, is_distil)?,
        };
        shape.checked()
    }

    fn checked(self) -> Result<Shape, LoadError> {
        let wrong = |why: String| Err(LoadError::malformed("config.json", why));
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) || self.head_width > HEAD_WIDTH_MAX {
            return wrong(format!("{} heads of a width of {}", self.heads, self.width));
        }
        if self.layers == 0 || self.layers > LAYERS_MAX as usize || self.vocabulary == 0 || self.feed_forward == 0 {
            return wrong(format!("{} layers over {} ids", self.layers, self.vocabulary));
        }
        if self.position_rows > CONTEXT_MAX as usize || self.positions() < 2 {
            return wrong(format!("{} positions", self.position_rows));
        }
        if self.buckets > 0 && (!self.buckets.is_multiple_of(4) || self.buckets > 1 << 12) {
            return wrong(format!("{} buckets of distances", self.buckets));
        }
        Ok(self)
    }

    /// Most tokens of a text.
    pub fn positions(&self) -> usize {
        self.position_rows.saturating_sub(self.first_position)
    }

    /// Memory of the weights and of a pass's buffers over `tokens` tokens, at most.
    pub fn memory(&self, tokens: usize) -> u64 {
        let padded = |n: usize| n.next_multiple_of(LANES) as u64;
        let (width, inner) = (padded(self.width), padded(self.feed_forward));
        let matrices = 4 * width * (width + LANES as u64) + 2 * (width + LANES as u64) * (inner + LANES as u64);
        let vectors = 9 * width + inner;
        let tables = (self.vocabulary + self.position_rows + self.types) as u64 * self.width as u64;
        let weights = (self.layers as u64).saturating_mul(matrices + vectors).saturating_add(tables);
        let rows = tokens as u64 * (7 * width + 2 * inner);
        let scores = 2 * padded(tokens) * padded(tokens) + 4 * padded(tokens) * HEAD_WIDTH_MAX as u64;
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        4 * weights.saturating_add(rows).saturating_add(scores * cores) + LINE_BYTES as u64
    }
}

fn family(config: &Value) -> Result<Family, LoadError> {
    let unserved = |what, name: &str, served| LoadError::Unserved { what, name: name.to_owned(), served };
    let name = config["model_type"].as_str().unwrap_or_default();
    let family = match name {
        "bert" => Family::Bert,
        "roberta" | "xlm-roberta" | "camembert" => Family::Roberta,
        "distilbert" => Family::Distilbert,
        "mpnet" => Family::Mpnet,
        other => return Err(unserved("the architecture", other, FAMILIES)),
    };
    if config["auto_map"].is_object() {
        return Err(unserved("the code that comes with the model", "auto_map", "the library's own architectures"));
    }
    match config["position_embedding_type"].as_str().unwrap_or("absolute") {
        "absolute" => {}
        other => return Err(unserved("position_embedding_type", other, "absolute")),
    }
    if config["is_decoder"] == true || config["sinusoidal_pos_embds"] == true {
        return Err(unserved(
            "the encoder",
            "as a decoder, or with computed positions",
            "encoders with learned positions",
        ));
    }
    Ok(family)
}

fn number(config: &Value, name: &str, usual: Option<usize>) -> Result<usize, LoadError> {
    let value = match (&config[name], usual) {
        (Value::Null, Some(usual)) => Some(usual),
        (value, _) => value.as_u64().filter(|n| *n <= u64::from(MODEL_NUMBER_MAX)).map(|n| n as usize),
    };
    value.ok_or_else(|| LoadError::malformed("config.json", format!("{name} is missing or not a number that fits")))
}

fn activation(config: &Value, name: &str) -> Result<Activation, LoadError> {
    let word = config[name].as_str().unwrap_or("gelu");
    Activation::named(word).ok_or_else(|| LoadError::Unserved {
        what: "the activation",
        name: word.to_owned(),
        served: "gelu, gelu_new, gelu_pytorch_tanh, relu",
    })
}

fn epsilon(config: &Value, is_distil: bool) -> Result<f32, LoadError> {
    // DistilBERT's is not in its configuration.
    let value = match &config["layer_norm_eps"] {
        Value::Null => 1e-12,
        _ if is_distil => 1e-12,
        value => value.as_f64().unwrap_or(f64::NAN),
    };
    match value > 0.0 && value < 1.0 {
        true => Ok(value as f32),
        false => Err(LoadError::malformed("config.json", "layer_norm_eps is not between 0 and 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MINILM: &str = r#"{"model_type":"bert","hidden_size":384,"num_attention_heads":12,"num_hidden_layers":6,
        "intermediate_size":1536,"vocab_size":30522,"max_position_embeddings":512,"layer_norm_eps":1e-12}"#;

    fn with(change: impl FnOnce(&mut Value)) -> Result<Shape, LoadError> {
        let mut config: Value = serde_json::from_str(MINILM).unwrap();
        change(&mut config);
        Shape::read(config.to_string().as_bytes())
    }

    #[test]
    fn what_is_not_computed_is_refused_by_its_name() {
        assert_eq!(with(|_| ()).unwrap().head_width, 32);
        for (key, value, said) in [
            ("model_type", json!("modernbert"), "modernbert"),
            ("auto_map", json!({"AutoModel": "x.py"}), "auto_map"),
            ("position_embedding_type", json!("relative_key"), "relative_key"),
            ("hidden_act", json!("mish"), "mish"),
            ("is_decoder", json!(true), "decoder"),
        ] {
            let error = with(|config| config[key] = value).unwrap_err();
            assert!(matches!(error, LoadError::Unserved { .. }) && error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn numbers_that_can_not_be_are_refused() {
        for (key, value) in [
            ("num_attention_heads", json!(0)),
            ("num_attention_heads", json!(7)),
            ("num_attention_heads", json!(1)),
            ("hidden_size", json!(-1)),
            ("hidden_size", json!(1u64 << 40)),
            ("num_hidden_layers", json!(0)),
            ("num_hidden_layers", json!(1_000_000)),
            ("vocab_size", json!(null)),
            ("max_position_embeddings", json!(1)),
            ("layer_norm_eps", json!("x")),
            ("intermediate_size", json!([1])),
        ] {
            let error = with(|config| config[key] = value.clone()).unwrap_err();
            assert!(matches!(error, LoadError::Malformed { .. }), "{key} {value}: {error}");
        }
        assert!(Shape::read(b"[").is_err() && Shape::read(b"[]").is_err());
    }
}
