//! Tasks: what a model does that is whole on one node, text in and an answer out, nothing kept between requests.
//!
//! | file | idea |
//! |---|---|
//! | [`card`] | which task a model is for, from what its own files say |
//! | [`SERVED`] | the tasks that are computed here: what each recognises, loads and needs |
//! | [`embed`] | texts to vectors |
//! | [`encoder`] | the transformers behind it, of BERT's kin, on the engine's kernels |
//!
//! A task is a row of [`SERVED`] and a module of its own; adding one touches no other. Not here: generation, whose layers
//! may be on several nodes (`session`), who is asked, and where bytes come from (the node's). Invariant: a model whose task
//! is not served is refused by that task's name, never computed as something else; and what comes out depends on the
//! request alone, the same bits whatever is computed beside it.

pub mod card;
pub mod embed;
mod encoder;
mod files;
mod folder;

pub use card::{Card, Task};
pub use files::{Files, LoadError, SMALL_FILES};
pub use folder::open_folder;

/// A task that is computed.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Its name, in requests and adverts.
    pub name: &'static str,
    /// What the hub calls models that do it.
    pub tags: &'static [&'static str],
    /// What it does, for people.
    pub does: &'static str,
    /// Memory that a model of this revision takes with its buffers; it fails where the model is not one of those.
    pub memory: fn(&Files) -> Result<u64, LoadError>,
}

/// Every task that is computed here.
pub const SERVED: [Served; 1] = [embed::SERVED];

/// The served task of this name.
pub fn served(name: &str) -> Option<&'static Served> {
    SERVED.iter().find(|task| task.name == name)
}

/// The served tasks in one line.
pub fn served_words() -> String {
    let words: Vec<String> = SERVED.iter().map(|task| format!("{} ({})", task.name, task.tags.join(", "))).collect();
    words.join("; ")
}
