//! `cargo run -p cairn-compute --example full_precision -- MODEL.gguf FOLDER` makes a quantised model again in F16.

use std::{env, error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().collect();
    let [_, gguf, folder] = &args[..] else { return Err("usage: full_precision MODEL.gguf FOLDER".into()) };
    Ok(cairn_compute::full_precision::write(Path::new(gguf), Path::new(folder))?)
}
