//! A Cairn node: the daemon, its doors, and the command line that talks to them.
//!
//! Reading order: [`shell`] holds everything a running node is made of; [`doors`] let clients in; [`flows`] do the work;
//! [`net`] talks to peers in small messages; [`data`] moves bytes; [`stages`] serve layers; [`cli`] is the one binary.
//! The library exists so that tests can run a node in their own process; programs use the `cairn-client` crate.

pub mod bench_blobs;
pub mod bench_catalog;
pub mod bench_stages;
pub mod bench_sync;
pub mod bench_users;
pub mod builtin;
pub mod capacity;
pub mod cli;
pub mod config;
pub mod data;
pub mod doors;
pub mod flows;
pub mod home;
pub mod local_clients;
pub mod local_mesh;
pub mod net;
mod order;
mod panics;
pub mod shell;
pub mod stages;
pub mod telemetry;
