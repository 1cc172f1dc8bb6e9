//! What a node does when it is asked: one file a job, called alike by every door.
//!
//! A flow borrows the [`crate::shell::Node`], waits on its handles, and reports through a bounded channel. It is
//! cancelled by being dropped, so each one leaves nothing half done behind. Doors hold no logic; deciders hold no waiting.

pub(crate) mod adapters;
pub(crate) mod advisories;
mod agree;
pub mod announce;
pub(crate) mod attest;
pub mod bring;
pub mod bundle;
mod card;
mod catch_up;
pub mod diff;
mod disk;
pub mod export;
pub mod generate;
pub mod history;
pub mod holders;
pub mod import;
pub mod lineage;
pub mod mirror;
pub mod names;
mod origins;
pub mod plan;
pub mod publish;
pub mod publishers;
pub mod pull;
pub mod quantise;
pub mod records;
pub mod scan;
pub mod search;
pub mod show;
pub mod status;
pub mod tasks;
pub mod trust;
mod turns;
pub mod verify;
