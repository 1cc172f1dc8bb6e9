//! Prefill and decode of a model on disk, as JSON.
//!
//! `cargo run --release -p cairn-compute --example bench -- MODEL [USERS] [PLANES] [REPEAT]`; with
//! `quantise TYPE IN OUT.gguf` it makes a file to measure.

use cairn_compute::{
    bench::{self, BenchOptions},
    quantise::{Existing, quantise_file},
};
use std::{env, error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [verb, target, from, to] = &args[..]
        && verb == "quantise"
    {
        return Ok(quantise_file(Path::new(from), Path::new(to), target.parse()?, Existing::Convert)?);
    }
    let path = args.first().ok_or("usage: bench MODEL [USERS] [PLANES] [REPEAT]")?;
    let number = |at: usize, or: usize| args.get(at).map_or(Ok(or), |text| text.parse::<usize>());
    let defaults = BenchOptions::default();
    let (users, planes, repeat) = (number(1, 1)?, number(2, 2)? as u32, number(3, defaults.repeat)?);
    let report = bench::run(Path::new(path), &BenchOptions { users, planes, repeat, ..defaults })?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
