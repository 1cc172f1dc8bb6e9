//! Bytes between nodes over iroh: blobs by hash, and streams between stages.
//!
//! Nothing outside this module and the registry's blob store names iroh; peers' addresses come from their adverts, over
//! libp2p, so there is no relay, no public look-up and no DNS. Talk is [`crate::net`]'s.
//!
//! | file | idea |
//! |---|---|
//! | [`endpoint`] | the socket, its router, connections to peers |
//! | [`blobs`] `patient` | serving blobs: to whom, how much at once, and how long a peer may take |
//! | [`fetch`] `schedule` `ranges` | one blob's ranges from several peers at once, verified on arrival |
//! | `scout` | who else has come by parts of it meanwhile |
//! | [`rate`] | how fast, out and in, in all and for one peer |
//! | [`link`] [`stage_door`] `silent` | streams between stages |
//! | [`task_door`] | the accepting end of tasks |

pub mod blobs;
mod connections;
pub mod endpoint;
pub mod fetch;
pub mod link;
mod patient;
mod ranges;
pub mod rate;
mod schedule;
mod scout;
mod silent;
pub mod stage_door;
pub mod task_door;

pub use endpoint::{DataError, DataHandle, start};
