//! The families that are served: one block, and what each changes of it.
//!
//! A model's `architecture` is its family's name, then `+` and a word for each thing that goes beyond what the name said
//! when it was first served. A node that does not know one of the words refuses the model, where a field of its own
//! would be passed over by a node of an earlier version, which would then compute something else. What a family may have
//! is said here too: a field that it has not is refused, since nodes of before would not look at it.

use super::ShapeError;
use crate::cpu::model::Activation;
use cairn_protocol::manifest::{Model, Naming, RopeScaling};

/// What rotary frequencies other than those of the base add to an architecture's name.
const SCALED_ROPE: &str = "+scaled-rope";

/// One family of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// As `general.architecture` of GGUF calls it, and a manifest.
    pub name: &'static str,
    /// The `model_type` of the Hub's `config.json`.
    pub hub_type: &'static str,
    /// The class of transformers that computes it.
    pub hub_class: &'static str,
    /// Queries and keys are normalised head by head before they are rotated.
    pub head_norms: bool,
    /// What attention and feed-forward give is normalised before it is added.
    pub post_norms: bool,
    /// Files of the Hub hold norms less one (GGUF files always hold them whole).
    pub hub_norms_less_one: bool,
    /// Embeddings are multiplied by the square root of the width.
    pub scaled_embedding: bool,
    /// Queries, keys and values are one tensor, gate and up another.
    pub is_fused: bool,
    /// What the gate is passed through.
    pub activation: Activation,
    /// GGUF files hold this family under its own name.
    pub is_in_gguf: bool,
    /// GGUF files store query and key rows for half-split rotary pairs (files of the Hub always do).
    pub gguf_half_split: bool,
    /// What a model of it may have beside.
    may: &'static [Beside],
}

/// What models of some families have, and of others not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Window,
    FullAttention,
    WindowRopeBase,
    Unrotated,
    Experts,
    QueryScalar,
    RotaryWidth,
}

/// The block as the first family has it; the others say how they differ.
const LLAMA: Family = Family {
    name: "llama",
    hub_type: "llama",
    hub_class: "LlamaForCausalLM",
    head_norms: false,
    post_norms: false,
    hub_norms_less_one: false,
    scaled_embedding: false,
    is_fused: false,
    activation: Activation::Silu,
    is_in_gguf: true,
    gguf_half_split: false,
    may: &[],
};

const FAMILIES: [Family; 8] = [
    LLAMA,
    Family { name: "qwen2", hub_type: "qwen2", hub_class: "Qwen2ForCausalLM", gguf_half_split: true, ..LLAMA },
    Family {
        name: "qwen3",
        hub_type: "qwen3",
        hub_class: "Qwen3ForCausalLM",
        gguf_half_split: true,
        head_norms: true,
        ..LLAMA
    },
    Family {
        name: "qwen3moe",
        hub_type: "qwen3_moe",
        hub_class: "Qwen3MoeForCausalLM",
        gguf_half_split: true,
        head_norms: true,
        may: &[Beside::Experts],
        ..LLAMA
    },
    // GGUF files call a Mistral a llama, and leave its window out.
    Family {
        name: "mistral",
        hub_type: "mistral",
        hub_class: "MistralForCausalLM",
        is_in_gguf: false,
        may: &[Beside::Window],
        ..LLAMA
    },
    Family {
        name: "gemma3",
        hub_type: "gemma3_text",
        hub_class: "Gemma3ForCausalLM",
        gguf_half_split: true,
        head_norms: true,
        post_norms: true,
        hub_norms_less_one: true,
        scaled_embedding: true,
        activation: Activation::Gelu,
        may: &[Beside::Window, Beside::FullAttention, Beside::WindowRopeBase, Beside::QueryScalar],
        ..LLAMA
    },
    Family {
        name: "phi3",
        hub_type: "phi3",
        hub_class: "Phi3ForCausalLM",
        gguf_half_split: true,
        is_fused: true,
        may: &[Beside::Window, Beside::RotaryWidth],
        ..LLAMA
    },
    Family {
        name: "smollm3",
        hub_type: "smollm3",
        hub_class: "SmolLM3ForCausalLM",
        may: &[Beside::Unrotated],
        ..LLAMA
    },
];

/// The family of that very name.
pub(super) fn named(name: &str) -> Option<Family> {
    FAMILIES.into_iter().find(|family| family.name == name)
}

/// The family that the Hub's `config.json` calls by that `model_type`.
pub(super) fn of_hub_type(hub_type: &str) -> Option<Family> {
    FAMILIES.into_iter().find(|family| family.hub_type == hub_type)
}

/// The family of a model whose name says just what its other fields do.
pub(crate) fn of(model: &Model) -> Option<Family> {
    let name = model.architecture.split('+').next().unwrap_or_default();
    named(name).filter(|family| architecture(*family, model.rope_scaling) == model.architecture)
}

/// The class and the `model_type` of a served model in the Hub's `config.json`.
pub(crate) fn hub_names(model: &Model) -> (&'static str, &'static str) {
    of(model).map_or(("", ""), |family| (family.hub_class, family.hub_type))
}

/// Refuses a model that has what its family has not, or lacks what it can't do without.
pub(super) fn check(model: &Model, family: Family) -> Result<(), ShapeError> {
    use Beside::*;
    let v = &model.variations;
    for (is_there, part, words) in [
        (model.window.is_some(), Window, "a window"),
        (v.full_attention_every.is_some(), FullAttention, "layers without a window"),
        (v.window_rope_base.is_some(), WindowRopeBase, "a rope base for its window"),
        (v.unrotated_every.is_some(), Unrotated, "layers that do not rotate"),
        (v.experts.is_some(), Experts, "experts"),
        (v.query_scalar.is_some(), QueryScalar, "a scale of queries"),
        (v.rotary_width.is_some(), RotaryWidth, "heads rotated in part"),
    ] {
        if is_there && !family.may.contains(&part) {
            return Err(ShapeError::Foreign(words));
        }
    }
    let needs_window = v.full_attention_every.is_some() || v.window_rope_base.is_some();
    if needs_window && model.window.is_none() {
        return Err(ShapeError::Lacks("window"));
    }
    if family.may.contains(&Experts) && v.experts.is_none() {
        return Err(ShapeError::Lacks("experts"));
    }
    Ok(())
}

/// Whether the norms of a model's files lack the one that is added to them.
pub(crate) fn norms_lack_one(model: &Model) -> bool {
    model.naming == Naming::HuggingFace && of(model).is_some_and(|family| family.hub_norms_less_one)
}

/// What a model of a family is called.
pub(super) fn architecture(family: Family, rope_scaling: Option<RopeScaling>) -> String {
    let scaled = if rope_scaling.is_some() { SCALED_ROPE } else { "" };
    format!("{}{scaled}", family.name)
}

/// The names of all families, for saying what is served.
pub(super) fn names() -> String {
    FAMILIES.map(|family| family.name).join(", ")
}
