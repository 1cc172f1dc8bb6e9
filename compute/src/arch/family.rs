//! The families that are served: one block, and what each changes of it.
//!
//! A model's `architecture` is its family's name, then `+` and a word for each thing that goes beyond what the name said
//! when it was first served. A node that does not know one of the words refuses the model, where a field of its own
//! would be passed over by a node of an earlier version, which would then compute something else.

use cairn_protocol::manifest::{Model, RopeScaling};

/// What rotary frequencies other than those of the base add to an architecture's name.
const SCALED_ROPE: &str = "+scaled-rope";

/// One family of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// As `model_type` and `general.architecture` call it.
    pub name: &'static str,
    /// The class of transformers that computes it.
    pub hub_class: &'static str,
    /// Queries and keys are normalised head by head before they are rotated.
    pub head_norms: bool,
    /// Attention may look back over a window only.
    pub may_have_window: bool,
    /// GGUF files hold this family under its own name.
    pub is_in_gguf: bool,
    /// GGUF files store query and key rows for half-split rotary pairs (files of the Hub always do).
    pub gguf_half_split: bool,
}

/// The block as the first family has it; the others say how they differ.
const LLAMA: Family = Family {
    name: "llama",
    hub_class: "LlamaForCausalLM",
    head_norms: false,
    may_have_window: false,
    is_in_gguf: true,
    gguf_half_split: false,
};

const FAMILIES: [Family; 4] = [
    LLAMA,
    Family { name: "qwen2", hub_class: "Qwen2ForCausalLM", gguf_half_split: true, ..LLAMA },
    Family { name: "qwen3", hub_class: "Qwen3ForCausalLM", gguf_half_split: true, head_norms: true, ..LLAMA },
    // GGUF files call a Mistral a llama, and leave its window out.
    Family { name: "mistral", hub_class: "MistralForCausalLM", may_have_window: true, is_in_gguf: false, ..LLAMA },
];

/// The family of that very name.
pub(super) fn named(name: &str) -> Option<Family> {
    FAMILIES.into_iter().find(|family| family.name == name)
}

/// The family of a model whose name says just what its other fields do.
pub(crate) fn of(model: &Model) -> Option<Family> {
    let name = model.architecture.split('+').next().unwrap_or_default();
    named(name).filter(|family| architecture(*family, model.rope_scaling) == model.architecture)
}

/// The class and the `model_type` of a served model in the Hub's `config.json`.
pub(crate) fn hub_names(model: &Model) -> (&'static str, &'static str) {
    of(model).map_or(("", ""), |family| (family.hub_class, family.name))
}

/// Whether a model has a window where its family has none.
pub(super) fn has_foreign_window(model: &Model) -> bool {
    model.window.is_some() && of(model).is_none_or(|family| !family.may_have_window)
}

/// Whether a model has norms of queries and keys.
pub(super) fn has_head_norms(model: &Model) -> bool {
    of(model).is_some_and(|family| family.head_norms)
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
