//! Every parser of the protocol against ordinary, hostile and random input. Not the meaning of what they parse. Invariant of
//! all of them: any bytes give a value or a typed error, and what is written reads back.
#![allow(clippy::unwrap_used, clippy::panic, clippy::type_complexity)] // a test fails by panicking; its tables are typed once

mod adverts;
mod frames;
mod ggufs;
mod manifests;
mod names;
mod records;
mod safetensors;
mod talks;

use proptest::test_runner::Config;

/// Cases of a property: few enough that all of them take seconds; `PROPTEST_CASES` asks for more.
fn cases(cases: u32) -> Config {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    Config { cases: asked.unwrap_or(cases), failure_persistence: None, ..Config::default() }
}

/// One change to valid bytes: a flipped byte, a cut, or a byte put in.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, u8),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match *self {
            _ if bytes.is_empty() => {}
            Self::Flip(at, with) => {
                let at = at % bytes.len();
                bytes[at] ^= with.max(1);
            }
            Self::Cut(at) => bytes.truncate(at % bytes.len()),
            Self::Insert(at, byte) => bytes.insert(at % bytes.len(), byte),
        }
    }
}

/// One to four changes.
fn mutations() -> impl proptest::strategy::Strategy<Value = Vec<Mutation>> {
    use proptest::prelude::*;
    let one = prop_oneof![
        4 => (any::<usize>(), any::<u8>()).prop_map(|(at, with)| Mutation::Flip(at, with)),
        1 => any::<usize>().prop_map(Mutation::Cut),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Insert(at, byte)),
    ];
    prop::collection::vec(one, 1..5)
}
