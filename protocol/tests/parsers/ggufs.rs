//! GGUF headers: what is written reads back, hostile ones are refused.

use cairn_protocol::Dtype;
use cairn_protocol::gguf::{GgufArray, GgufHeader, GgufValue, HeaderError, parse_header};
use proptest::prelude::*;

use crate::{cases, mutations};

/// Writes headers as llama.cpp does.
#[derive(Clone)]
struct Writer {
    version: u32,
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    alignment: u64,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Writer {
    fn new() -> Self {
        Self { version: 3, entries: vec![], tensors: vec![], alignment: 32 }
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push([&text(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    /// `shape` innermost first, as the file has it.
    fn tensor(mut self, name: &str, shape: &[u64], ggml: u32, offset: u64) -> Self {
        let shape: Vec<u8> =
            [&(shape.len() as u32).to_le_bytes()[..], &shape.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>()]
                .concat();
        self.tensors.push([&text(name)[..], &shape, &ggml.to_le_bytes(), &offset.to_le_bytes()].concat());
        self
    }

    fn header(&self) -> Vec<u8> {
        let counts = [(self.tensors.len() as u64).to_le_bytes(), (self.entries.len() as u64).to_le_bytes()].concat();
        let mut bytes =
            [&b"GGUF"[..], &self.version.to_le_bytes(), &counts, &self.entries.concat(), &self.tensors.concat()]
                .concat();
        bytes.resize(bytes.len().next_multiple_of(self.alignment as usize), 0);
        bytes
    }

    fn parse(&self, data_bytes: u64) -> Result<GgufHeader, HeaderError> {
        let bytes = self.header();
        parse_header(&bytes, bytes.len() as u64 + data_bytes)
    }
}

fn list(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

fn sample() -> Writer {
    Writer::new()
        .entry("general.architecture", 8, &text("llama"))
        .entry("llama.block_count", 4, &2u32.to_le_bytes())
        .entry("llama.rope.freq_base", 6, &1e4f32.to_le_bytes())
        .entry("signed", 11, &(-3i64).to_le_bytes())
        .entry("flag", 7, &[1])
        .entry("tokenizer.ggml.tokens", 9, &list(8, 2, &[text("a"), text("é")].concat()))
        .entry("tokenizer.ggml.scores", 9, &list(6, 2, &[1f32.to_le_bytes(), (-2f32).to_le_bytes()].concat()))
        .entry("tokenizer.ggml.token_type", 9, &list(5, 2, &[1i32.to_le_bytes(), 3i32.to_le_bytes()].concat()))
        .tensor("blk.0.w", &[64, 2], 8, 0)
        .tensor("norm", &[3], 0, 160)
}

#[test]
fn values_lists_and_tensors_read_back() {
    let header = sample().parse(172).unwrap();
    assert_eq!((header.version, header.str("general.architecture")), (3, Some("llama")));
    assert_eq!((header.u64("llama.block_count"), header.f64("llama.rope.freq_base")), (Some(2), Some(1e4)));
    assert_eq!((header.get("signed"), header.u64("signed")), (Some(&GgufValue::Signed(-3)), None));
    assert_eq!((header.bool("flag"), header.str("flag"), header.get("none")), (Some(true), None, None));
    assert_eq!(header.strings("tokenizer.ggml.tokens"), Some(&["a".to_owned(), "é".to_owned()][..]));
    assert_eq!(header.array("tokenizer.ggml.scores").and_then(GgufArray::floats), Some(vec![1.0, -2.0]));
    assert_eq!(header.array("tokenizer.ggml.token_type").and_then(GgufArray::integers), Some(vec![1, 3]));
    let [w, norm] = &header.tensors[..] else { panic!("{header:?}") };
    // 64 columns of Q8_0 in 2 rows: four blocks of 34 bytes.
    assert_eq!((w.dtype, &w.shape[..], w.offset, w.length), (Dtype::Q8_0, &[2, 64][..], header.header_bytes, 136));
    assert_eq!((norm.dtype, norm.offset, norm.length), (Dtype::F32, header.header_bytes + 160, 12));
    assert_eq!(header.header_bytes % 32, 0);
}

#[test]
fn version_2_is_read_and_others_are_not() {
    assert_eq!(Writer { version: 2, ..sample() }.parse(172).unwrap().version, 2);
    for version in [0, 1, 4, 3u32.swap_bytes()] {
        assert!(matches!(Writer { version, ..sample() }.parse(172), Err(HeaderError::Unsupported(_))));
    }
    assert_eq!(parse_header(b"GGML\x03\0\0\0", 100), Err(HeaderError::Format("GGUF")));
}

#[test]
fn every_prefix_asks_for_more_and_is_satisfied_in_few_steps() {
    let bytes = sample().header();
    let size = bytes.len() as u64 + 172;
    let unpadded = bytes.len() - 31;
    for length in 0..unpadded {
        let error = parse_header(&bytes[..length], size).unwrap_err();
        assert!(matches!(error, HeaderError::NeedMore(n) if n > length as u64 && n <= size), "{length}: {error}");
    }
    // A header of many megabytes, read as a fetcher would.
    let tokens = list(8, 400_000, &text("token").repeat(400_000));
    let long = Writer::new().entry("tokens", 9, &tokens).header();
    let (mut have, mut steps) = (0, 0);
    while let Err(HeaderError::NeedMore(n)) = parse_header(&long[..have], long.len() as u64) {
        (have, steps) = (n as usize, steps + 1);
    }
    assert!(parse_header(&long[..have], long.len() as u64).is_ok());
    assert!(steps <= 12, "{steps} steps");
}

#[test]
fn a_file_that_ends_in_its_header_is_truncated() {
    let bytes = sample().header();
    let cut = &bytes[..bytes.len() / 2];
    assert_eq!(parse_header(cut, cut.len() as u64), Err(HeaderError::Truncated));
}

#[test]
fn claims_are_refused_before_anything_is_allocated() {
    let huge = u64::MAX.to_le_bytes();
    let counts = |tensors: [u8; 8], entries: [u8; 8]| [&b"GGUF\x03\0\0\0"[..], &tensors, &entries].concat();
    assert!(matches!(parse_header(&counts(huge, [0; 8]), u64::MAX), Err(HeaderError::TooLarge { .. })));
    assert!(matches!(parse_header(&counts([0; 8], huge), u64::MAX), Err(HeaderError::TooLarge { .. })));
    // Lists and texts that claim more than a header may have, or than the file has.
    for value in [list(4, u64::MAX, &[]), list(8, 1 << 40, &[]), list(7, 1 << 40, &[])] {
        let bytes = Writer::new().entry("k", 9, &value).header();
        assert!(matches!(parse_header(&bytes, u64::MAX), Err(HeaderError::TooLarge { .. } | HeaderError::Truncated)));
        assert_eq!(parse_header(&bytes, bytes.len() as u64), Err(HeaderError::Truncated));
    }
    let bytes = Writer::new().entry("k", 8, &(1u64 << 62).to_le_bytes()).header();
    assert!(matches!(parse_header(&bytes, u64::MAX), Err(HeaderError::TooLarge { .. })));
}

#[test]
fn tensors_that_lie_elsewhere_are_refused() {
    let base = || Writer::new().tensor("a", &[8], 0, 0);
    for (what, writer) in [
        ("overlap", base().tensor("b", &[8], 0, 0)),
        ("past the end", base().tensor("b", &[9], 0, 32)),
        ("not aligned", base().tensor("b", &[1], 0, 33)),
        ("overflow", base().tensor("b", &[1], 0, u64::MAX - 31)),
        ("endless shape", base().tensor("b", &[u64::MAX, u64::MAX], 0, 32)),
        ("half a block", base().tensor("b", &[16, 2], 2, 32)),
        ("no known type", base().tensor("b", &[1], 250, 32)),
        ("no name", base().tensor("", &[1], 0, 32)),
        ("one name twice", base().tensor("a", &[1], 0, 32)),
    ] {
        assert!(matches!(writer.parse(64), Err(HeaderError::Tensor { .. })), "{what}: {:?}", writer.parse(64));
    }
    assert!(matches!(base().tensor("b", &[1; 9], 0, 32).parse(64), Err(HeaderError::TooLarge { .. })));
    assert!(base().tensor("b", &[8], 0, 32).parse(64).is_ok());
}

#[test]
fn metadata_that_breaks_the_format_is_refused() {
    let deep = list(9, 1, &list(9, 1, &list(0, 0, &[])));
    for (what, writer) in [
        ("a key twice", Writer::new().entry("k", 7, &[0]).entry("k", 7, &[0])),
        ("a bool of 2", Writer::new().entry("k", 7, &[2])),
        ("type 13", Writer::new().entry("k", 13, &[0])),
        ("not UTF-8", Writer::new().entry("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])),
        ("three lists deep", Writer::new().entry("k", 9, &deep)),
        ("alignment 0", Writer::new().entry("general.alignment", 4, &0u32.to_le_bytes())),
        ("alignment 3", Writer::new().entry("general.alignment", 4, &3u32.to_le_bytes())),
    ] {
        let error = writer.parse(0).unwrap_err();
        assert!(matches!(error, HeaderError::Malformed(_) | HeaderError::Unsupported(_)), "{what}: {error}");
    }
    let nested = Writer::new().entry("k", 9, &list(9, 1, &list(0, 2, &[7, 8]))).parse(0).unwrap();
    assert_eq!(nested.array("k"), Some(&GgufArray::Array(vec![GgufArray::U8(vec![7, 8])])));
}

#[test]
fn a_stated_alignment_is_kept() {
    let writer = Writer { alignment: 64, ..Writer::new() };
    let writer = writer.entry("general.alignment", 4, &64u32.to_le_bytes()).tensor("a", &[1], 0, 64);
    let header = writer.parse(68).unwrap();
    assert_eq!((header.header_bytes % 64, header.tensors[0].offset), (0, header.header_bytes + 64));
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn any_bytes_are_a_header_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), size in any::<u64>()) {
        let _ = parse_header(&bytes, size);
        let behind_magic = [&b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"[..], &bytes].concat();
        let _ = parse_header(&behind_magic, size);
    }

    #[test]
    fn damaged_headers_are_refused_or_lie_inside(changes in mutations()) {
        let mut bytes = sample().header();
        let size = bytes.len() as u64 + 172;
        changes.iter().for_each(|change| change.apply(&mut bytes));
        if let Ok(header) = parse_header(&bytes, size) {
            prop_assert!(header.tensors.iter().all(|t| t.offset >= header.header_bytes && t.offset + t.length <= size));
        }
    }

    #[test]
    fn what_is_written_reads_back(words in prop::collection::vec(".{0,12}", 0..20), numbers in prop::collection::vec(any::<u64>(), 0..20)) {
        let words_list = list(8, words.len() as u64, &words.iter().map(|w| text(w)).collect::<Vec<_>>().concat());
        let numbers_list = list(10, numbers.len() as u64, &numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>());
        let header = Writer::new().entry("w", 9, &words_list).entry("n", 9, &numbers_list).parse(0).unwrap();
        prop_assert_eq!(header.strings("w"), Some(&words[..]));
        prop_assert_eq!(header.array("n"), Some(&GgufArray::U64(numbers)));
    }
}
