//! What a machine can check about this repository itself. Not about behaviour. Invariant: a law reads files and metadata only;
//! it builds nothing and needs no network.
#![allow(clippy::unwrap_used, clippy::panic, clippy::type_complexity)] // a test fails by panicking; its tables are typed once

mod docs;
mod imports;
mod schema;
mod tree;
