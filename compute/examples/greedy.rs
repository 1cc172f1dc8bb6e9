//! Greedy tokens of a model on disk, for holding the engine against recorded tokens.
//!
//! `cargo run -p cairn-compute --example greedy -- MODEL IDS [TOKENS] [STAGES] [PIECE] [PLANES]` prints token ids:
//! MODEL is a GGUF file or a folder, IDS the prompt as `1,2,3`, STAGES how many parts the layers are cut into,
//! PIECE how many prompt tokens go at once. `CAIRN_LEVEL` forces an instruction-set level.

use cairn_compute::{
    Engine, EngineConfig, LoadOptions, StageHandle, StagePart, StepInput, StepOutput, files::ModelFiles,
};
use cairn_protocol::layers::LayerRange;
use std::{env, error::Error, path::Path, sync::mpsc::sync_channel};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().collect();
    let (Some(path), Some(prompt)) = (args.get(1), args.get(2)) else {
        return Err("usage: greedy MODEL IDS [TOKENS] [STAGES] [PIECE] [PLANES]".into());
    };
    let number = |at: usize, or: u32| args.get(at).map_or(Ok(or), |text| text.parse::<u32>());
    let (tokens, stages, piece) = (number(3, 24)?, number(4, 1)?.max(1), number(5, 128)?.max(1) as usize);
    let prompt = prompt.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    let chain = load(Path::new(path), stages, number(6, 2)?, prompt.len() as u32 + tokens)?;
    let (mut position, mut made, mut last) = (0, Vec::new(), None);
    let pieces = prompt.chunks(piece).count();
    for (i, piece) in prompt.chunks(piece).enumerate() {
        last = run(&chain, position, piece.to_vec(), i + 1 == pieces)?;
        position += piece.len() as u64;
    }
    while let Some(token) = last.filter(|_| made.len() < tokens as usize) {
        made.push(token);
        last = run(&chain, position, vec![token], true)?;
        position += 1;
    }
    println!("{made:?}");
    Ok(())
}

fn load(path: &Path, stages: u32, planes: u32, context: u32) -> Result<Vec<StageHandle>, Box<dyn Error>> {
    let files = ModelFiles::open(path)?;
    let engine = Engine::start(EngineConfig { threads: 0, level: None, memory_max: u64::MAX })?;
    let layers = files.model.layers;
    let mut chain = Vec::new();
    for i in 0..stages {
        let range = LayerRange { start: layers * i / stages, end: layers * (i + 1) / stages };
        let (done, loaded) = sync_channel(1);
        let options = LoadOptions { context, planes };
        let part = StagePart::of(range, layers);
        let answer = Box::new(move |result| drop(done.send(result)));
        engine.load(files.model.clone(), files.tensors.clone(), part, options, files.source()?, answer);
        let stage = loaded.recv()??;
        eprintln!("layers {range} on {}: {:?}", engine.level(), stage.report());
        chain.push(stage);
    }
    Ok(chain)
}

fn run(chain: &[StageHandle], first: u64, ids: Vec<u32>, sample: bool) -> Result<Option<u32>, Box<dyn Error>> {
    let count = ids.len() as u32;
    let mut input = StepInput::Tokens { first_position: first, ids, sample };
    for stage in chain {
        let (done, output) = sync_channel(1);
        stage.step(input, Box::new(move |result| drop(done.send(result))));
        input = match output.recv()?? {
            StepOutput::Hidden { values, .. } => StepInput::Hidden { first_position: first, count, values, sample },
            StepOutput::Token { token, .. } => return Ok(Some(token)),
            StepOutput::Logits { .. } | StepOutput::Nothing { .. } => return Ok(None),
        };
    }
    Err("the last stage gave a hidden state".into())
}
