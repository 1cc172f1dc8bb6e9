//! What each family's checkpoints call a weight. Invariant: a name here is one that transformers writes; older names of
//! norms (`gamma`, `beta`) are tried after the newer ones.

use super::shape::Family;

/// A part of the model, of which a layer has one each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Query,
    Key,
    Value,
    Out,
    AttentionNorm,
    Up,
    Down,
    OutputNorm,
}

/// Prefixes that a checkpoint of the family may put before every name: none, and that of a model with a head.
pub fn prefixes(family: Family) -> [&'static str; 2] {
    match family {
        Family::Bert => ["", "bert."],
        Family::Roberta => ["", "roberta."],
        Family::Distilbert => ["", "distilbert."],
        Family::Mpnet => ["", "mpnet."],
    }
}

/// The tables of words, positions and token types.
pub const WORDS: &str = "embeddings.word_embeddings.weight";
pub const POSITIONS: &str = "embeddings.position_embeddings.weight";
pub const TYPES: &str = "embeddings.token_type_embeddings.weight";
/// The norm of their sum.
pub const EMBEDDINGS_NORM: &str = "embeddings.LayerNorm";
/// MPNet's bias by bucket and head.
pub const DISTANCES: &str = "encoder.relative_attention_bias.weight";

/// A part of a layer, without `.weight` and `.bias`.
pub fn layer(family: Family, layer: usize, part: Part) -> String {
    let (stem, name) = match family {
        Family::Bert | Family::Roberta => ("encoder.layer", bert(part)),
        Family::Mpnet => ("encoder.layer", mpnet(part)),
        Family::Distilbert => ("transformer.layer", distilbert(part)),
    };
    format!("{stem}.{layer}.{name}")
}

fn bert(part: Part) -> &'static str {
    match part {
        Part::Query => "attention.self.query",
        Part::Key => "attention.self.key",
        Part::Value => "attention.self.value",
        Part::Out => "attention.output.dense",
        Part::AttentionNorm => "attention.output.LayerNorm",
        Part::Up => "intermediate.dense",
        Part::Down => "output.dense",
        Part::OutputNorm => "output.LayerNorm",
    }
}

fn mpnet(part: Part) -> &'static str {
    match part {
        Part::Query => "attention.attn.q",
        Part::Key => "attention.attn.k",
        Part::Value => "attention.attn.v",
        Part::Out => "attention.attn.o",
        Part::AttentionNorm => "attention.LayerNorm",
        part => bert(part),
    }
}

fn distilbert(part: Part) -> &'static str {
    match part {
        Part::Query => "attention.q_lin",
        Part::Key => "attention.k_lin",
        Part::Value => "attention.v_lin",
        Part::Out => "attention.out_lin",
        Part::AttentionNorm => "sa_layer_norm",
        Part::Up => "ffn.lin1",
        Part::Down => "ffn.lin2",
        Part::OutputNorm => "output_layer_norm",
    }
}
