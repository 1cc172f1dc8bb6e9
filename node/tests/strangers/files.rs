//! Model files that are cut short or claim what they do not have.

use std::fs;

use anyhow::{Result, ensure};

use crate::{cairn, refused, serving, withstand};

/// A GGUF file with one tensor of 32 singles; `counts` are tensors and metadata entries, `entries` follow them.
fn gguf(counts: (u64, u64), entries: &[u8]) -> Vec<u8> {
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(counts.0.to_le_bytes());
    file.extend(counts.1.to_le_bytes());
    file.extend(entries);
    file.extend(tensor_info(1, 32));
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend([0; 128]);
    file
}

fn tensor_info(name_bytes: u64, elements: u64) -> Vec<u8> {
    [&name_bytes.to_le_bytes()[..], b"t", &1u32.to_le_bytes(), &elements.to_le_bytes(), &0u32.to_le_bytes(), &[0; 8]]
        .concat()
}

/// A key, and the beginning of its value: the type, and what follows it.
fn entry(kind: u32, value: &[u8]) -> Vec<u8> {
    [&1u64.to_le_bytes()[..], b"k", &kind.to_le_bytes(), value].concat()
}

/// A safetensors file: what its header says, how long it says the header is, and bytes after it.
fn safetensors(header: &str, length: u64, data: usize) -> Vec<u8> {
    [&length.to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// Publishes each of these files, and demands that none is taken.
async fn refuse_files(extension: &str, sound: &[u8], bad: &[(&str, Vec<u8>)]) -> Result<()> {
    let (net, folder) = serving().await?;
    let path = folder.path().join(format!("file.{extension}"));
    let words = |repo: &'static str| ["publish", path.to_str().unwrap(), repo, "--json"];
    fs::write(&path, sound)?;
    let output = cairn(&net, &words("honest/sound"));
    ensure!(output.status.success(), "the sound file: {output:?}");
    let stored = net.client(0).status().await?.bytes_stored;
    for (what, bytes) in bad {
        fs::write(&path, bytes)?;
        withstand(&net, &format!("{extension}: {what}"), async || {
            let error = refused(&cairn(&net, &words("honest/bad")), 2, "bad_input", "")?;
            ensure!(error["why"].as_str().unwrap().contains(&format!("file.{extension}")), "which file? {error}");
            Ok(())
        })
        .await?;
    }
    refused(&cairn(&net, &["show", "honest/bad", "--json"]), 3, "not_found", "")?;
    ensure!(net.client(0).status().await?.bytes_stored == stored, "bytes of a refused file were kept");
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gguf_that_is_cut_or_lies_about_its_counts_is_refused() -> Result<()> {
    let sound = gguf((1, 0), &[]);
    let (many, max) = (u64::MAX, u64::MAX.to_le_bytes());
    let string = entry(8, &max);
    let array = entry(9, &[&4u32.to_le_bytes()[..], &max].concat());
    let texts = entry(9, &[&8u32.to_le_bytes()[..], &max].concat());
    let mut huge_tensor = gguf((1, 0), &[]);
    huge_tensor.splice(24.., tensor_info(1, u64::MAX));
    let mut long_name = gguf((1, 0), &[]);
    long_name.splice(24.., tensor_info(u64::MAX, 32));
    let bad = [
        ("cut inside its header", sound[..40].to_vec()),
        ("cut inside its tensors", sound[..sound.len() - 64].to_vec()),
        ("cut after its magic", sound[..4].to_vec()),
        ("u64::MAX tensors", gguf((many, 0), &[])),
        ("u64::MAX metadata entries", gguf((1, many), &[])),
        ("a text of u64::MAX bytes", gguf((1, 1), &string)),
        ("a list of u64::MAX numbers", gguf((1, 1), &array)),
        ("a list of u64::MAX texts", gguf((1, 1), &texts)),
        ("a tensor of u64::MAX elements", huge_tensor),
        ("a tensor's name of u64::MAX bytes", long_name),
    ];
    refuse_files("gguf", &sound, &bad).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_safetensors_file_that_claims_what_it_does_not_have_is_refused() -> Result<()> {
    let header = |end: u64| format!(r#"{{"t":{{"dtype":"F32","shape":[32],"data_offsets":[{},{end}]}}}}"#, end - 128);
    let file = |end: u64| safetensors(&header(end), header(end).len() as u64, 128);
    let bad = [
        ("a header of 100 GB", safetensors(&header(128), 100_000_000_000, 128)),
        ("a header of u64::MAX bytes", safetensors(&header(128), u64::MAX, 128)),
        ("a header as long as is permitted, and a short file", safetensors(&header(128), 99_999_999, 128)),
        ("a tensor after the file's end", file(1 << 40)),
        ("a tensor at the end of all numbers", file(u64::MAX)),
        ("a header that is no JSON", safetensors("{{{{", 4, 128)),
        ("deep nesting", safetensors(&"{\"a\":".repeat(100_000), 500_000, 128)),
    ];
    refuse_files("safetensors", &file(128), &bad).await
}
