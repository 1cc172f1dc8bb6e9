//! The language of Cairn: ids, names, records, manifests, adverts, frames, and the readers of safetensors and GGUF headers.
//! Not I/O, not async, no clocks, no dice. Invariant: every parser here is total (any bytes give a value or a typed error,
//! never a panic) and bounded (memory is at most a small multiple of the input, and the input is bounded by [`limits`]).

mod body;
mod generated;
mod header;
mod model;
mod path;
mod stored;
mod variations;
mod wire;

pub mod advert;
pub mod advisory;
pub mod attestation;
pub mod digest;
pub mod dtype;
pub mod frame;
pub mod gguf;
pub mod id;
pub mod key;
pub mod layers;
pub mod limits;
pub mod machine;
pub mod manifest;
pub mod name;
pub mod record;
pub mod refusal;
pub mod resume;
mod rope;
pub mod safetensors;
pub mod talk;

/// Messages of `cairn.peer.v1`, spoken between nodes.
pub use generated::cairn::peer::v1 as peer_pb;
/// Messages of `cairn.record.v1`, signed for ever.
pub use generated::cairn::record::v1 as record_pb;
/// Messages of `cairn.v1`, the public API.
pub use generated::cairn::v1 as api;
/// The status that failed gRPC calls carry.
pub use generated::google::rpc as rpc_pb;

/// The encoded descriptor of `cairn.v1`, for server reflection.
pub const API_DESCRIPTOR: &[u8] = include_bytes!("gen/cairn.v1.bin");

pub use digest::Digest;
pub use dtype::Dtype;
pub use id::{BlobHash, NodeId, PublisherKey, RealmId, RecordId, RevisionId, SessionId};
pub use key::Keypair;
pub use layers::LayerRange;
pub use machine::Machine;
pub use manifest::{Manifest, ManifestFile, Model, Naming, TensorEntry};
pub use name::{FilePath, Handle, Publisher, RefName, RefSpec, RepoId, RepoKind, RepoName, RepoPath, RepoRef};
pub use record::{Body, CardFacts, Head, Profile, Record, RecordError, RecordKind, Revision};
pub use refusal::{Reason, Refusal};
pub use resume::ResumeToken;
