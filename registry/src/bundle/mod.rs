//! Repos in one file, for nodes that no network connects: written here, carried by hand, applied there.
//!
//! `format` is the file, byte by byte; `wish` is what goes into it; `create` writes it; `check` is what may follow what when it is read, and what
//! is wanted of it (pure); `apply` takes it in; `show` only looks; `summary` is what a node holds, so that another can write only
//! what it lacks. It signs nothing and asks no peer.
//!
//! Invariant: what a bundle brings is visible at once and whole, or not at all: blobs become durable one by one, unseen, and one transaction
//! then takes in every record and pin.

mod apply;
mod check;
mod create;
mod format;
mod reader;
mod show;
mod summary;
mod wish;

use std::io;

use cairn_protocol::{
    id::{BlobHash, RealmId, RecordId, RevisionId},
    manifest::ManifestError,
    record::RecordError,
};

use crate::{blobs::BlobError, catalog::CatalogError, records::InsertError};

pub use apply::{Applied, Manner};
pub use create::CreateError;
pub use format::Totals;
pub use show::{Shown, ShownRevision, show_bundle};
pub use summary::{Summary, SummaryError};
pub use wish::{Selection, Wish};

/// Why a bundle could not be read or applied. Nothing of it is visible then; blobs that arrived stay for the next try.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It could not be read.
    #[error("the bundle can't be read: {0}")]
    Read(io::Error),
    /// It ends before its end.
    #[error("the bundle breaks off at byte {at}")]
    Truncated {
        /// Where.
        at: u64,
    },
    /// It is something else.
    #[error("this is no bundle")]
    NotABundle,
    /// Of a later version.
    #[error("the bundle is of version {0}, version {version} is understood", version = format::VERSION)]
    Version(u32),
    /// Made in another realm.
    #[error("the bundle is of realm {found}, this node is in {expected}")]
    Realm {
        /// This node's.
        expected: RealmId,
        /// The bundle's.
        found: RealmId,
    },
    /// A frame breaks a rule of the format.
    #[error("the bundle is damaged at byte {at}: {reason}")]
    Frame {
        /// Where the frame begins.
        at: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A record is malformed, or not signed by its key.
    #[error("the record at byte {at} of the bundle is not valid: {error}")]
    Record {
        /// Where.
        at: u64,
        /// What is wrong.
        error: RecordError,
    },
    /// The catalogue refuses a record.
    #[error("record {id} is refused: {error}")]
    Refused {
        /// Which.
        id: RecordId,
        /// Why.
        error: InsertError,
    },
    /// A manifest is not one, or is of another realm or repo than its record says.
    #[error("the manifest of revision {revision} is not valid: {error}")]
    Manifest {
        /// Whose.
        revision: RevisionId,
        /// What is wrong.
        error: ManifestError,
    },
    /// Bytes are not those that their hash names.
    #[error("blob {hash} is damaged in the bundle: its bytes {from}.. are not what the hash names")]
    Corrupt {
        /// Which.
        hash: BlobHash,
        /// Where the damaged part begins.
        from: u64,
    },
    /// A file is neither here nor in the bundle.
    #[error("blob {hash} of revision {revision} is neither here nor in the bundle")]
    Missing {
        /// The revision that needs it.
        revision: RevisionId,
        /// Which.
        hash: BlobHash,
    },
    /// The store failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The catalogue failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}
