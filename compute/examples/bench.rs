//! Prefill and decode of a model on disk, as JSON.
//!
//! `cargo run --release -p cairn-compute --example bench -- MODEL [USERS] [PLANES] [REPEAT] [PROMPT] [LEVEL]`; with
//! `sweep MODEL` it measures several lengths and numbers of users, with `quantise TYPE IN OUT.gguf` it makes a file to measure.

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
    if let [verb, path] = &args[..]
        && verb == "sweep"
    {
        let report = bench::sweep(Path::new(path), &BenchOptions { repeat: 1, ..BenchOptions::default() })?;
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    let path = args.first().ok_or("usage: bench MODEL [USERS] [PLANES] [REPEAT] [PROMPT] [LEVEL] [DECODE] [KV]")?;
    let number = |at: usize, or: usize| args.get(at).map_or(Ok(or), |text| text.parse::<usize>());
    let defaults = BenchOptions::default();
    let decode_tokens = number(6, defaults.decode_tokens)?;
    let (users, planes, repeat) = (number(1, 1)?, number(2, 2)? as u32, number(3, defaults.repeat)?);
    let prompt_tokens = number(4, defaults.prompt_tokens)?;
    let level = args.get(5).map(|level| level.parse()).transpose()?;
    let kv = args.get(7).map_or(Ok(defaults.kv), |kv| kv.parse())?;
    let options = BenchOptions { users, planes, kv, repeat, prompt_tokens, level, decode_tokens, ..defaults };
    let report = bench::run(Path::new(path), &options)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
