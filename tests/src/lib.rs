//! Turns the `.proto` files into the Rust code that is checked in, without a system `protoc`. Not a build script: nobody
//! who builds Cairn runs it, only who changes a `.proto` file (`cargo run -p cairn-tests --bin generate`). Invariant: the
//! output depends on the `.proto` files and the locked generators alone, so a law can compare it with what is checked in.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use prost::Message;
use prost_types::FileDescriptorSet;

const RECORD: &str = "cairn/record/v1/record.proto";
const PEER: &str = "cairn/peer/v1/peer.proto";
const API: &str = "cairn/v1/cairn.proto";
const BUNDLE: &str = "cairn/v1/bundle.proto";
const CATALOGUE: &str = "cairn/v1/catalogue.proto";
const HISTORY: &str = "cairn/v1/history.proto";
const IMPORT: &str = "cairn/v1/import.proto";
const TASKS: &str = "cairn/v1/tasks.proto";
const PEER_TASK: &str = "cairn/peer/v1/task.proto";
const STATUS: &str = "google/rpc/status.proto";

/// Reads the `.proto` files under `root` (the workspace) and returns every generated file as (path from `root`, contents).
pub fn generate(root: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let all = descriptors(root, &[RECORD, PEER, PEER_TASK, API, BUNDLE, CATALOGUE, HISTORY, IMPORT, TASKS, STATUS])?;
    let api = descriptors(root, &[API, BUNDLE, CATALOGUE, HISTORY, IMPORT, TASKS])?;
    let mut files = vec![("protocol/src/gen/cairn.v1.bin".to_owned(), without_comments(api.clone()).encode_to_vec())];
    collect(&mut files, "protocol/src/gen", |out| Ok(prost_build::Config::new().out_dir(out).compile_fds(all)?))?;
    collect(&mut files, "node/src/doors/gen", |out| Ok(stubs(out, Side::Server).compile_fds(api.clone())?))?;
    collect(&mut files, "clients/rust/src/gen", |out| Ok(stubs(out, Side::Client).compile_fds(api)?))?;
    files.sort();
    Ok(files)
}

/// What the three packages of ours look like, without comments: kept of every release, since numbers are never reused.
pub fn shapes(root: &Path) -> Result<FileDescriptorSet> {
    descriptors(root, &[RECORD, PEER, PEER_TASK, API, BUNDLE, CATALOGUE, HISTORY, IMPORT, TASKS]).map(without_comments)
}

fn descriptors(root: &Path, protos: &[&str]) -> Result<FileDescriptorSet> {
    let mut compiler = protox::Compiler::new([root.join("protocol/proto")])?;
    compiler.include_source_info(true).include_imports(true);
    compiler.open_files(protos).context("the .proto files don't compile")?;
    Ok(compiler.file_descriptor_set())
}

fn without_comments(mut set: FileDescriptorSet) -> FileDescriptorSet {
    set.file.iter_mut().for_each(|file| file.source_code_info = None);
    set
}

enum Side {
    Server,
    Client,
}

fn stubs(out: &Path, side: Side) -> tonic_prost_build::Builder {
    tonic_prost_build::configure()
        .build_server(matches!(side, Side::Server))
        .build_client(matches!(side, Side::Client))
        .extern_path(".cairn.v1", "::cairn_protocol::api")
        .out_dir(out)
}

/// Runs a generator on an empty folder and takes what it wrote.
fn collect(files: &mut Vec<(String, Vec<u8>)>, to: &str, run: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let out = tempfile::tempdir()?;
    run(out.path())?;
    for entry in std::fs::read_dir(out.path())? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|name| anyhow!("{name:?} is no UTF-8"))?;
        files.push((format!("{to}/{name}"), std::fs::read(entry.path())?));
    }
    Ok(())
}
