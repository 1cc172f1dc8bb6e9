//! An adapter as stages hold it: its weights, whose they are, and what they fit.
//!
//! Shared by all sessions that chose it. Invariant: it is used on weights of the very sizes that it was loaded for.

use crate::{
    cpu::{adapters, model::Shape},
    engine::Share,
};
use cairn_protocol::id::RevisionId;
use std::sync::Arc;

/// A loaded adapter.
pub(crate) struct Adapter {
    /// Which it is.
    pub revision: RevisionId,
    pub weights: Arc<adapters::Adapter>,
    /// Of the model that it was held against.
    pub shape: Shape,
    /// The memory that it takes, given back with it.
    pub share: Share,
}
