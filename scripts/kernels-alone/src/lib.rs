//! The kernel files of `cairn-compute` and what they stand on, taken in where they lie.
//!
//! They compile in a minute where the whole engine, for another processor, takes several. Nothing of its own is here.
#![allow(dead_code)]

#[path = "../../../compute/src/cpu"]
mod cpu {
    pub mod acts;
    pub mod cache;
    pub mod kernels;
    pub mod kv;
    pub mod level;
    pub mod lines;
    pub mod packed;
    pub mod pages;
    pub mod plain;
}
#[path = "../../../compute/src/quant.rs"]
mod quant;
