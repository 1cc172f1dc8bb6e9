//! Tasks that are whole on one node: which node that is, asking it, and asking another when it fails.
//!
//! ```text
//! request ─ known: what the model is for ─ choose (pure): in which order nodes are asked
//!              ─ ask ──iroh──▶ data::task_door ─ serve: admitted, loaded (model), computed on the engine's thread
//!              ◀─ pieces of the answer, in order; what is missing when a node fails is asked of the next
//! ```
//!
//! | file | idea |
//! |---|---|
//! | [`known`] | what a revision's small files say: its task, its recipe, its memory |
//! | [`choose`] | the order of nodes, and why the others are not asked; pure |
//! | [`ask`] | one node's answer, held against what was asked |
//! | [`embed`] | the flow behind the API, with its retries |
//! | [`request`] | what a node asks of another, parsed |
//! | `serve` `model` | doing it here, for this node's clients and for peers |
//!
//! Invariant: a task is a function of its request, so that asking again elsewhere is safe; nothing of it is kept.

mod ask;
mod choose;
mod describe;
mod embed;
mod known;
mod model;
mod request;
mod serve;

pub use describe::describe;
pub use embed::embed;
pub(crate) use known::KnownTasks;
pub(crate) use model::TaskModel;
pub(crate) use request::TaskRequest;
pub(crate) use serve::serve;

use std::time::Duration;

/// How often a node that computes says that it lives.
pub(crate) const BEAT: Duration = Duration::from_millis(200);
/// Silence after which a node is taken for lost. A busy machine delays beats; a dead one is noticed sooner by its closed
/// connections.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
