//! What a machine can check about this repository itself. Not about behaviour. Invariant: a law reads files and metadata only;
//! it builds nothing and needs no network.

mod docs;
mod imports;
mod schema;
mod tree;
