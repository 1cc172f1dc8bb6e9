//! Prefill and decode of a model on disk, as JSON.
//!
//! `cargo run --release -p cairn-compute --example bench -- MODEL [USERS] [PLANES] [REPEAT] [PROMPT] [DECODE]`; with
//! `requantise FORMAT IN.gguf OUT.gguf` it makes a file to measure (Q8_0, Q5_K and so on).

use cairn_compute::bench::{self, BenchOptions};
use cairn_protocol::dtype::Dtype;
use std::{env, error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [verb, target, from, to] = &args[..]
        && verb == "requantise"
    {
        let named = |dtype: &Dtype| dtype.name() == target;
        let dtype = bench::TARGETS.into_iter().find(named).ok_or("no format of that name is made")?;
        return Ok(bench::requantise(Path::new(from), Path::new(to), dtype)?);
    }
    let path = args.first().ok_or("usage: bench MODEL [USERS] [PLANES] [REPEAT] [PROMPT] [DECODE]")?;
    let number = |at: usize, or: usize| args.get(at).map_or(Ok(or), |text| text.parse::<usize>());
    let defaults = BenchOptions::default();
    let (users, planes, repeat) = (number(1, 1)?, number(2, 2)? as u32, number(3, defaults.repeat)?);
    let (prompt_tokens, decode_tokens) = (number(4, defaults.prompt_tokens)?, number(5, defaults.decode_tokens)?);
    let options = BenchOptions { users, planes, repeat, prompt_tokens, decode_tokens, ..defaults };
    let report = bench::run(Path::new(path), &options)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
