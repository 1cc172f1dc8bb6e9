//! How much memory hostile input costs. Not speed. Invariant: a parser's memory is at most a small multiple of its input,
//! whatever the input claims.
#![allow(clippy::unwrap_used, clippy::panic, clippy::type_complexity)] // a test fails by panicking; its tables are typed once

mod counting;

use cairn_protocol::{Manifest, gguf, safetensors};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Bytes of memory for a byte of input, at most, beyond a fixed allowance.
const FACTOR: usize = 32;
const ALLOWANCE_BYTES: usize = 64 * 1024;

fn check(what: &str, bytes: &[u8], parse: impl FnOnce(&[u8])) {
    let before = counting::start();
    parse(bytes);
    let cost = counting::peak() - before;
    assert!(cost <= ALLOWANCE_BYTES + FACTOR * bytes.len(), "{what}: {cost} bytes for an input of {}", bytes.len());
}

#[test]
fn hostile_input_costs_a_small_multiple_of_its_length() {
    let gguf = |bytes: &[u8]| drop(gguf::parse_header(bytes, u64::MAX));
    let entry = |value: &[u8]| {
        [b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0k\x09\0\0\0", value].concat()
    };
    let list = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    check("a list of 2^27 numbers that are not there", &entry(&list(0, 1 << 27)), gguf);
    check("a list of 2^24 texts that are not there", &entry(&list(8, 1 << 24)), gguf);
    check("a million empty texts", &entry(&[list(8, 1 << 20), vec![0; 8 << 20]].concat()), gguf);
    check("empty lists in a list", &entry(&[list(9, 1 << 18), list(0, 0).repeat(1 << 18)].concat()), gguf);

    let safetensors = |bytes: &[u8]| drop(safetensors::parse_header(bytes, u64::MAX));
    let with_length = |json: String| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    check("a length that is not there", &99_000_000u64.to_le_bytes(), safetensors);
    check(
        "an endless shape",
        &with_length(format!("{{\"a\":{{\"shape\":[{}1]}}}}", "1,".repeat(1 << 20))),
        safetensors,
    );
    check("nested lists", &with_length(format!("{{\"a\":{}", "[".repeat(1 << 20))), safetensors);
    let key = |n: usize| format!("\"{n:x}\":\"\",");
    let keys: String = (0..60_000).map(key).collect();
    check("many keys", &with_length(format!("{{\"__metadata__\":{{{keys}\"x\":\"\"}}}}")), safetensors);

    let manifest = |bytes: &[u8]| drop(Manifest::parse(bytes));
    check("empty tensors", &[0x42, 0].repeat(1 << 20), manifest);
    check("empty files", &[0x3a, 0].repeat(1 << 20), manifest);
    check("empty parents", &[0x32, 0].repeat(1 << 20), manifest);
    let digests = [0x1a, 0].repeat(60);
    check("empty digests", &[&[0x3a, digests.len() as u8][..], &digests].concat().repeat(10_000), manifest);
}
