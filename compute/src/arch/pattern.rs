//! What layers of one model differ in: how far they look back, and by which angles they rotate.

use cairn_protocol::manifest::Model;
use std::num::NonZeroU32;

/// By which angles a layer rotates queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Angles {
    /// Those of the model's base, scaled as it says.
    Model,
    /// Those of the base for layers with a window.
    Window,
    /// It rotates nothing.
    Still,
}

/// Positions that a layer looks back over, the position itself among them; all where there is none.
pub(crate) fn window(model: &Model, layer: u32) -> Option<NonZeroU32> {
    model.window.filter(|_| !is_last_of(model.variations.full_attention_every, layer))
}

/// By which angles a layer rotates.
pub(crate) fn angles(model: &Model, layer: u32) -> Angles {
    let has_own_base = model.variations.window_rope_base.is_some() && window(model, layer).is_some();
    match () {
        () if is_last_of(model.variations.unrotated_every, layer) => Angles::Still,
        () if has_own_base => Angles::Window,
        () => Angles::Model,
    }
}

/// The kinds of angles that some layers rotate by, each once.
pub(crate) fn kinds(model: &Model, layers: impl Iterator<Item = u32>) -> Vec<Angles> {
    let mut kinds = Vec::new();
    for layer in layers {
        let kind = angles(model, layer);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

fn is_last_of(every: Option<NonZeroU32>, layer: u32) -> bool {
    every.is_some_and(|every| (layer + 1).is_multiple_of(every.get()))
}
