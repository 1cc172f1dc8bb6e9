//! What a Cairn node remembers: a catalogue of signed records, the bytes that they name, and why they are kept.
//!
//! Start at [`Registry`]. It opens no connection, asks no peer and holds no key: records come in verified, bytes come in from a
//! person's folder here or from peers through [`Blobs::store`].
//!
//! A publication, from a folder to a resolved name:
//!
//! ```
//! use cairn_protocol::{Keypair, RealmId, RefName, RepoId, RepoKind};
//! use cairn_registry::{PrepareOptions, Registry};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let (home, source) = (folder.path().join("home"), folder.path().join("tiny"));
//! std::fs::create_dir(&source)?;
//! std::fs::write(source.join("readme.md"), "A folder with one file is enough.")?;
//!
//! let registry = Registry::open(&home, RealmId::PUBLIC).await?;
//! let key = Keypair::from_seed([7; 32]);
//! let repo = RepoId { publisher: key.public(), kind: RepoKind::Model, name: "tiny".parse()? };
//! let prepared = registry.prepare(source, repo.clone(), PrepareOptions::default(), |_| {}).await?;
//!
//! let next = registry.next_head(&repo, &RefName::main()).await?;
//! let revision = prepared.statement().sign(RealmId::PUBLIC, &key)?;
//! let head = prepared.head(RefName::main(), next, false).sign(RealmId::PUBLIC, &key)?;
//! let published = registry.commit(prepared, vec![revision, head]).await?;
//!
//! let resolved = registry.resolve(&format!("{repo}").parse()?, &[]).await?;
//! assert_eq!(resolved.revision, published.revision);
//! registry.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Invariant: what was acknowledged is on disk, and every byte that leaves hashes to the name it was asked for by.

mod advisories;
mod attestations;
pub mod authority;
mod blobs;
mod bundle;
mod card;
mod catalog;
mod commit;
mod damage;
mod export;
mod folder;
mod hashing;
mod history;
mod holding;
mod hub_cache;
mod import;
mod index;
/// Where revisions come from and what was made from them.
pub mod lineage;
mod listing;
mod look;
/// Which repos a mirror keeps, and what it fetches next.
pub mod mirror;
mod paging;
mod prepare;
mod publishers;
pub mod ranges;
mod records;
mod registry;
mod resolve;
mod ring;
pub mod scan;
mod search;
mod statements;
pub mod sync;
mod verify;

pub use advisories::{About, Judgement, Notice, Policy, Weight};
pub use attestations::Attested;
pub use blobs::{BlobError, Blobs, ComingNote, DISK_RESERVE, Stalled, TempPin, stage_cache::StageBlob};
pub use bundle::{
    Applied, BundleError, CreateError, Manner, Selection, Shown, ShownRevision, Summary, SummaryError, Totals, Wish,
    show_bundle,
};
pub use card::{CARD_BYTES_MAX, Card, CardProblem};
pub use catalog::{CatalogError, migrate::MigrateError};
pub use commit::{Committed, NextHead, PublishError};
pub use damage::is_guarded;
pub use export::{ExportError, ExportReport};
pub use folder::FolderError;
pub use hashing::{Sums, sums_of};
pub use history::{HeadRow, PassedOver, Standing};
pub use holding::{HoldError, Holding, PinClass};
pub use hub_cache::{HubName, hub_commit, hub_etag};
pub use import::{ImportError, Transfer};
pub use index::IndexError;
pub use listing::{RefState, RepoSummary, Stats};
pub use prepare::{Describe, Description, ModelSources, PrepareOptions, Prepared, Progress};
pub use publishers::PublisherState;
pub use records::{InsertError, Inserted};
pub use registry::{CATALOG_BYTES_DEFAULT, OpenError, Registry, RegistryOptions};
pub use resolve::{ResolveError, Resolved};
pub use search::{
    FACET_VALUES_MAX, Field, Found, QUERY_BYTES_MAX, QueryError, SEARCH_PAGE_MAX, Search, SearchError, Sort,
};
pub use statements::Decided;
pub use verify::{BadFile, Problem, VerifyReport};
