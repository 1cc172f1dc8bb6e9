//! The client stubs that protobuf generates from `cairn/v1/cairn.proto`. Checked in, never edited by hand; messages live
//! in `cairn_protocol::api`.
#![allow(clippy::all, clippy::unwrap_used, missing_docs)]

include!("gen/cairn.v1.rs");
