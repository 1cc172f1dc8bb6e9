//! safetensors headers: what is written reads back, hostile ones are refused.

use cairn_protocol::Dtype;
use cairn_protocol::safetensors::{HeaderError, parse_header};
use proptest::prelude::*;

use crate::{cases, mutations};

fn with_length(json: &str) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat()
}

const TWO: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[16,28]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"later":{"x":[1]}}}"#;

fn parse(json: &str) -> Result<cairn_protocol::safetensors::SafetensorsHeader, HeaderError> {
    let bytes = with_length(json);
    parse_header(&bytes, bytes.len() as u64 + 28)
}

#[test]
fn tensors_come_in_order_of_place_with_absolute_offsets() {
    let header = parse(TWO).unwrap();
    assert_eq!(header.header_bytes, 8 + TWO.len() as u64);
    assert_eq!(header.metadata, [("format".to_owned(), "pt".to_owned())]);
    let [a, b] = &header.tensors[..] else { panic!("{header:?}") };
    assert_eq!((a.name.as_str(), a.dtype, a.offset, a.length), ("a", Dtype::F32, header.header_bytes, 16));
    assert_eq!(
        (b.name.as_str(), b.dtype, b.offset, &b.shape[..]),
        ("b", Dtype::BF16, header.header_bytes + 16, &[2, 3][..])
    );
}

#[test]
fn the_built_in_models_header_fills_its_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny/model.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let header = parse_header(&bytes, bytes.len() as u64).unwrap();
    let last = header.tensors.last().unwrap();
    assert_eq!(last.offset + last.length, bytes.len() as u64);
    assert!(header.tensors.iter().any(|tensor| tensor.name == "model.embed_tokens.weight"));
}

#[test]
fn a_prefix_says_how_much_more_is_needed() {
    let bytes = with_length(TWO);
    let size = bytes.len() as u64 + 28;
    assert_eq!(parse_header(&[], size), Err(HeaderError::NeedMore(8)));
    assert_eq!(parse_header(&bytes[..7], size), Err(HeaderError::NeedMore(8)));
    assert_eq!(parse_header(&bytes[..50], size), Err(HeaderError::NeedMore(bytes.len() as u64)));
    assert!(parse_header(&bytes, size).is_ok());
}

#[test]
fn a_claim_of_a_hundred_gigabytes_is_refused_at_once() {
    let claim = [&100_000_000_000u64.to_le_bytes()[..], b"{"].concat();
    assert!(matches!(parse_header(&claim, u64::MAX), Err(HeaderError::TooLarge { max: 100_000_000, .. })));
    assert!(matches!(parse_header(&u64::MAX.to_le_bytes(), u64::MAX), Err(HeaderError::TooLarge { .. })));
    assert_eq!(parse_header(&1000u64.to_le_bytes(), 1007), Err(HeaderError::Truncated));
}

#[test]
fn tensors_that_lie_elsewhere_are_refused() {
    let one = |body: &str| parse(&format!(r#"{{"a":{{"dtype":"F32","shape":[4],"data_offsets":[0,16]}},"b":{body}}}"#));
    for (what, body) in [
        ("overlap", r#"{"dtype":"U8","shape":[12],"data_offsets":[15,27]}"#),
        ("past the end", r#"{"dtype":"U8","shape":[13],"data_offsets":[16,29]}"#),
        ("backwards", r#"{"dtype":"U8","shape":[0],"data_offsets":[20,16]}"#),
        ("overflow", r#"{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}"#),
        ("another length", r#"{"dtype":"F32","shape":[4],"data_offsets":[16,28]}"#),
        ("an endless shape", r#"{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[16,16]}"#),
        ("nine dimensions", r#"{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[16,17]}"#),
    ] {
        let error = one(body).unwrap_err();
        assert!(matches!(error, HeaderError::Tensor { .. } | HeaderError::Malformed(_)), "{what}: {error}");
    }
}

#[test]
fn duplicates_are_refused() {
    let tensor = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    assert!(matches!(parse(&format!(r#"{{"a":{tensor},"a":{tensor}}}"#)), Err(HeaderError::Tensor { .. })));
    assert!(parse(r#"{"__metadata__":{},"__metadata__":{}}"#).is_err());
    assert!(parse(r#"{"__metadata__":{"a":"1","a":"2"}}"#).is_err());
}

#[test]
fn what_is_not_the_format_is_refused() {
    for json in [
        "",
        "[]",
        "{",
        "null",
        " {}",
        r#"{"a":1}"#,
        r#"{"a":{"dtype":"F32"}}"#,
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}"#,
        "{}x",
    ] {
        assert!(parse(json).is_err(), "{json:?} was accepted");
    }
    assert!(parse(&format!("{{\"a\":{}", "[".repeat(100_000))).is_err());
    assert_eq!(parse_header(b"abc", 3), Err(HeaderError::Format("safetensors")));
}

#[test]
fn a_type_that_is_not_known_has_a_place_all_the_same() {
    let header = parse(r#"{"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}"#).unwrap();
    assert_eq!((header.tensors[0].dtype, header.tensors[0].length), (Dtype::Other, 4));
    let quantised = parse(r#"{"a":{"dtype":"Q4_0","shape":[8],"data_offsets":[0,4]}}"#).unwrap();
    assert_eq!(quantised.tensors[0].dtype, Dtype::Other);
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
        let _ = parse_header(&bytes, size);
        let _ = parse_header(&with_length(&String::from_utf8_lossy(&bytes)), size);
    }

    #[test]
    fn damaged_headers_are_refused_or_lie_inside(changes in mutations()) {
        let mut bytes = with_length(TWO);
        let size = bytes.len() as u64 + 28;
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if let Ok(header) = parse_header(&bytes, size) {
            prop_assert!(header.tensors.iter().all(|t| t.offset >= header.header_bytes && t.offset + t.length <= size));
        }
    }

    #[test]
    fn what_is_written_reads_back(lengths in prop::collection::vec(0u64..1000, 0..20)) {
        let mut at = 0;
        let mut parts = Vec::new();
        for (n, length) in lengths.iter().enumerate() {
            parts.push(format!(r#""t{n}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{at},{}]}}"#, at + length));
            at += length;
        }
        let bytes = with_length(&format!("{{{}}}", parts.join(",")));
        let header = parse_header(&bytes, bytes.len() as u64 + at).unwrap();
        let mut read: Vec<u64> = header.tensors.iter().map(|t| t.length).collect();
        let mut written = lengths;
        read.sort_unstable();
        written.sort_unstable();
        prop_assert_eq!(read, written);
    }
}
