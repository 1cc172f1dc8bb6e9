//! Trains the built-in model: `cargo run --release -p cairn-compute --example train_builtin -- --text FILE --out DIR`.
//!
//! FILE is any plain text; the model in the repository was trained on Tiny Shakespeare (`models/tiny/README.md` has
//! its hash and the loss curve).

use std::{env, error::Error, fs, path::PathBuf};

use cairn_compute::train::{PretrainOptions, pretrain};

const USAGE: &str = "usage: train_builtin --text FILE --out DIR [--steps N] [--batch N] [--seed N]";

fn main() -> Result<(), Box<dyn Error>> {
    let (mut text, mut out, mut options) = (None, None, PretrainOptions::default());
    let mut args = env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        match flag.as_str() {
            "--text" => text = Some(fs::read_to_string(value)?),
            "--out" => out = Some(PathBuf::from(value)),
            "--steps" => options.steps = value.parse()?,
            "--batch" => options.batch = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    let (text, out) = (text.ok_or(USAGE)?, out.ok_or(USAGE)?);
    let made = pretrain(&text, &options, |r| {
        eprintln!("step {:5}  train {:.3}  held out {:.3}  {:.0} s", r.step, r.train_loss, r.held_out_loss, r.seconds);
    })?;
    made.write(&out)?;
    println!("{} parameters, written to {}", made.model.parameters(), out.display());
    Ok(())
}
