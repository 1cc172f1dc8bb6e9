//! What a Cairn node remembers: a catalogue of signed records, the bytes that they name, and why they are kept.
//!
//! Start at [`Registry`]. It opens no connection, asks no peer and holds no key: records come in verified, bytes come in from a
//! person's folder here or from peers through [`Blobs::store`].
//!
//! Invariant: what was acknowledged is on disk, and every byte that leaves hashes to the name it was asked for by.

mod blobs;
mod catalog;
mod export;
mod folder;
mod hashing;
mod history;
mod holding;
mod import;
mod index;
mod listing;
mod look;
/// Which repos a mirror keeps, and what it fetches next.
pub mod mirror;
mod publish;
mod records;
mod registry;
mod resolve;
mod verify;

pub use blobs::{BlobError, Blobs, Stalled, TempPin, stage_cache::StageBlob};
pub use catalog::{CatalogError, migrate::MigrateError};
pub use export::{ExportError, ExportReport};
pub use folder::FolderError;
pub use hashing::{Sums, sums_of};
pub use history::{HeadRow, PassedOver, Standing};
pub use holding::{HoldError, Holding, PinClass};
pub use import::{ImportError, Transfer};
pub use index::IndexError;
pub use listing::{RefState, RepoSummary, Stats};
pub use publish::{Committed, Describe, ModelSources, NextHead, PrepareOptions, Prepared, Progress, PublishError};
pub use records::{InsertError, Inserted};
pub use registry::{OpenError, Registry};
pub use resolve::{ResolveError, Resolved};
pub use verify::{BadFile, Problem, VerifyReport};
