//! Chooses from random logits by real grammars over a real vocabulary, and asks other libraries whether what came of it is valid.

use super::{chooser::Chooser, *};
use crate::{text::Tokenizer, tiny::Dice};
use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// The tokenizer of the built-in model: a byte-level BPE of 1,024 ids.
fn tokenizer() -> Tokenizer {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny");
    let read = |name: &str| std::fs::read(format!("{folder}/{name}")).expect(name);
    Tokenizer::from_json(&read("tokenizer.json"), Some(&read("tokenizer_config.json"))).expect("a tokenizer")
}

struct Bench {
    tokenizer: Tokenizer,
    vocabulary: Arc<Vocabulary>,
}

impl Bench {
    fn new() -> Bench {
        let tokenizer = tokenizer();
        let size = tokenizer.vocabulary() as u32;
        let vocabulary = Arc::new(Vocabulary::new(&tokenizer, tokenizer.eos(), size).expect("a vocabulary"));
        Bench { tokenizer, vocabulary }
    }

    fn state(&self, demands: &Demands, history: Vec<u32>) -> Result<state::State, GrammarError> {
        state::State::new(demands.clone(), Some(&self.vocabulary), history)
    }

    /// Logits as a model might give them that knows nothing: a function of the position, so that a text can be gone on with.
    /// The end is made likelier the longer it takes.
    fn logits(&self, seed: u64, position: u64) -> Vec<f32> {
        let mut dice =
            Dice((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ position.wrapping_mul(0xD134_2543_DE82_EF95) | 1);
        (0..64).for_each(|_| _ = dice.next());
        let mut logits: Vec<f32> = (0..self.tokenizer.vocabulary()).map(|_| dice.float() * 8.0).collect();
        for id in 0..logits.len() as u32 {
            // Closes strings, lists and objects now and then.
            if [&b"\""[..], b"}", b"]", b"0"].contains(&self.tokenizer.token_bytes(id)) {
                logits[id as usize] += position as f32 / 24.0;
            }
        }
        logits
    }

    /// Generates up to 400 tokens; whether it came to its end.
    fn generate(&self, demands: &Demands, seed: u64) -> (Vec<u32>, bool) {
        let mut state = self.state(demands, Vec::new()).expect("a grammar");
        let mut ids = Vec::new();
        while ids.len() < 400 {
            let choice = state.choose(ids.len() as u64, self.logits(seed, ids.len() as u64)).expect("a choice");
            ids.push(choice.token);
            if self.tokenizer.eos().contains(&choice.token) {
                return (ids, true);
            }
            state.prepare().expect("a mask");
        }
        (ids, false)
    }
}

fn demands(grammar: Grammar, seed: u64) -> Demands {
    let sampling = Sampling { temperature: 1.0, seed, ..Sampling::GREEDY };
    Demands { sampling, grammar: Some(grammar), ..Demands::default() }
}

const SCHEMAS: [&str; 8] = [
    r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}}, "required": ["name", "age"], "additionalProperties": false}"#,
    r#"{"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 4}"#,
    r#"{"anyOf": [{"type": "null"}, {"type": "number", "minimum": -1000, "maximum": 1000}, {"type": "boolean"}]}"#,
    r##"{"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"leaf": {"type": "boolean"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}, "required": ["leaf"], "additionalProperties": false}}}"##,
    r#"{"type": "string", "pattern": "^[a-z]{2,5}-[0-9]{3}$"}"#,
    r#"{"type": "string", "format": "date"}"#,
    r#"{"const": {"ok": true, "value": [1, 2.5, "x"]}}"#,
    r#"{"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3}"#,
];

#[test]
fn what_follows_a_schema_is_valid_whatever_the_model_says() {
    let bench = Bench::new();
    let mut ended = 0;
    for (at, schema) in SCHEMAS.iter().enumerate() {
        let validator = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
        for seed in 0..24 {
            let (ids, is_done) = bench.generate(&demands(Grammar::JsonSchema((*schema).into()), seed), seed);
            if is_done {
                let text = bench.tokenizer.decode(&ids);
                let value =
                    serde_json::from_str(&text).unwrap_or_else(|e| panic!("schema {at}, seed {seed}: {text:?}: {e}"));
                assert!(validator.is_valid(&value), "schema {at}, seed {seed}: {text}");
                ended += 1;
            }
        }
    }
    assert!(ended > SCHEMAS.len() * 24 * 8 / 10, "only {ended} came to an end");
}

#[test]
fn any_json_is_json_and_a_regex_is_matched_as_a_whole() {
    let bench = Bench::new();
    let pattern = r"(\+49|0)[1-9][0-9]{3,6}( ext\. [0-9]{1,3})?";
    let whole = regex_of(pattern);
    let (mut jsons, mut numbers) = (0, 0);
    for seed in 0..40 {
        let (ids, is_done) = bench.generate(&demands(Grammar::Json, seed), seed);
        if is_done {
            let text = bench.tokenizer.decode(&ids);
            // JSON has numbers of any size, the library that reads it has not.
            let read = serde_json::from_str::<serde_json::Value>(&text);
            let read = read.or_else(|e| if e.to_string().contains("out of range") { Ok(0.into()) } else { Err(e) });
            read.unwrap_or_else(|e| panic!("seed {seed}: {text:?}: {e}"));
            jsons += 1;
        }
        let (ids, is_done) = bench.generate(&demands(Grammar::Regex(pattern.into()), seed), seed);
        assert!(is_done, "the pattern ends");
        let text = bench.tokenizer.decode(&ids);
        assert!(whole.is_valid(&serde_json::Value::String(text.clone())), "seed {seed}: {text:?}");
        numbers += 1;
    }
    assert!(jsons > 30 && numbers == 40, "{jsons} {numbers}");
}

/// Another library's opinion of a pattern.
fn regex_of(pattern: &str) -> jsonschema::Validator {
    let schema = serde_json::json!({ "type": "string", "pattern": format!("^(?:{pattern})$") });
    jsonschema::validator_for(&schema).unwrap()
}

const SUMS: &str = r#"start: sum
sum: term (("+" | "-") term)*
term: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/"#;

#[test]
fn a_lark_grammar_with_brackets_is_followed() {
    let bench = Bench::new();
    for seed in 0..20 {
        let (ids, is_done) = bench.generate(&demands(Grammar::Lark(SUMS.into()), seed), seed);
        let text = bench.tokenizer.decode(&ids);
        let mut depth = 0i32;
        for c in text.chars() {
            depth += i32::from(c == '(') - i32::from(c == ')');
            assert!(depth >= 0 && "0123456789+-()".contains(c), "seed {seed}: {text:?}");
        }
        assert!(!is_done || (depth == 0 && text.ends_with(|c: char| c == ')' || c.is_ascii_digit())), "{text:?}");
    }
}

#[test]
fn a_chooser_that_is_made_anew_anywhere_goes_on_as_the_first_would_have() {
    let bench = Bench::new();
    let demands = Demands {
        frequency_penalty: 0.3,
        presence_penalty: 0.2,
        logit_bias: vec![(40, 2.0)],
        logprobs: Some(3),
        prompt_tokens: 2,
        ..demands(Grammar::JsonSchema(SCHEMAS[0].into()), 5)
    };
    let mut whole = bench.state(&demands, vec![7, 8]).unwrap();
    let choices: Vec<Choice> = (2..14).map(|p| whole.choose(p, bench.logits(5, p)).unwrap()).collect();
    let ids: Vec<u32> = [7, 8].into_iter().chain(choices.iter().map(|c| c.token)).collect();
    for cut in 2..14u64 {
        let mut anew = bench.state(&demands, ids[..cut as usize].to_vec()).unwrap();
        for position in cut..14 {
            let choice = anew.choose(position, bench.logits(5, position)).unwrap();
            assert_eq!(choice, choices[position as usize - 2], "from {cut} at {position}");
        }
        // And the same one, sent back to there.
        let again = whole.choose(cut, bench.logits(5, cut)).unwrap();
        assert_eq!(again, choices[cut as usize - 2], "back to {cut}");
        (cut + 1..14).for_each(|p| drop(whole.choose(p, bench.logits(5, p)).unwrap()));
    }
    assert!(matches!(whole.choose(99, bench.logits(5, 99)), Err(ChooseError::UnknownPast { position: 99, .. })));
    assert!(matches!(bench.state(&demands, vec![7, 8, 9, 9, 9]), Err(GrammarError::NotFollowed(_))));
}

#[test]
fn ids_that_a_stage_is_given_take_the_place_of_what_was_chosen() {
    let bench = Bench::new();
    let demands = Demands { frequency_penalty: 2.0, ..Demands::default() };
    let flat = || vec![1.0f32, 0.9, 0.0];
    let mut state = bench.state(&demands, Vec::new()).unwrap();
    assert_eq!(state.choose(0, flat()).unwrap().token, 0);
    assert_eq!(state.choose(1, flat()).unwrap().token, 1, "0 was generated");
    state.see(0, &[1, 1]);
    assert_eq!(state.choose(2, flat()).unwrap().token, 0, "1 was given instead");
}

/// Texts that no grammar is, and texts that would take for ever.
fn hostile() -> Vec<(&'static str, Grammar)> {
    let nested = |open: &str, close: &str, n: usize| format!("{}{}{}", open.repeat(n), "a", close.repeat(n));
    let choices = |n: usize| {
        let any =
            r#"{"anyOf": [{"properties": {"aN": {"type": "string"}}}, {"properties": {"bN": {"type": "number"}}}]}"#;
        let all: Vec<String> = (0..n).map(|i| any.replace('N', &i.to_string())).collect();
        format!(r#"{{"allOf": [{}]}}"#, all.join(","))
    };
    let chain = |n: usize| {
        let rules: Vec<String> = (0..n).map(|i| format!("r{i}: r{}", i + 1)).collect();
        format!("start: r0\n{}\nr{n}: \"a\"", rules.join("\n"))
    };
    let terminals = |n: usize| {
        let rules: Vec<String> = (0..n).map(|i| format!("T{i}: T{}", i + 1)).collect();
        format!("start: T0\n{}\nT{n}: \"a\"", rules.join("\n"))
    };
    let doubling = |n: usize| {
        let rules: Vec<String> = (0..n).map(|i| format!("T{i}: T{} T{}", i + 1, i + 1)).collect();
        format!("start: T0\n{}\nT{n}: \"a\"", rules.join("\n"))
    };
    let refs = |n: usize| {
        let defs: Vec<String> = (0..n).map(|i| format!(r##""d{i}": {{"$ref": "#/$defs/d{}"}}"##, i + 1)).collect();
        format!(r##"{{"$ref": "#/$defs/d0", "$defs": {{{}, "d{n}": {{"type": "null"}}}}}}"##, defs.join(","))
    };
    vec![
        ("an empty regex class", Grammar::Regex("[".into())),
        ("brackets in a regex", Grammar::Regex(nested("(", ")", 30_000))),
        ("brackets just allowed", Grammar::Regex(nested("(", ")", 96))),
        ("brackets in lark", Grammar::Lark(format!("start: {}", nested("(", ")", 20_000)))),
        ("brackets in a schema", Grammar::JsonSchema(nested("{\"items\":", "}", 5_000))),
        ("repeats of repeats", Grammar::Regex("((a{1,1000}){1,1000}){1,1000}".into())),
        ("an exponential automaton", Grammar::Regex("(.*a.{40})|(.*b.{40})".into())),
        ("classes", Grammar::Regex(r"(\p{L}|\p{N}|\PM){1,5000}".into())),
        ("a schema of choices", Grammar::JsonSchema(choices(24))),
        ("a schema of many choices", Grammar::JsonSchema(choices(400))),
        ("a chain of rules", Grammar::Lark(chain(1_900))),
        ("a chain of terminals", Grammar::Lark(terminals(1_900))),
        ("doubling terminals", Grammar::Lark(doubling(60))),
        ("a chain of references", Grammar::JsonSchema(refs(1_500))),
        ("left recursion", Grammar::Lark("start: start start | \"a\" | ".into())),
        ("ambiguity", Grammar::Lark("start: e\ne: e e e | e e | \"a\" | \"aa\" | ".into())),
        ("no start", Grammar::Lark("begin: \"a\"".into())),
        ("itself", Grammar::JsonSchema(r##"{"$ref": "#"}"##.into())),
        (
            "two that refer to each other",
            Grammar::JsonSchema(
                r##"{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}"##.into(),
            ),
        ),
        ("a far reference", Grammar::JsonSchema(r#"{"$ref": "http://127.0.0.1:9/x.json"}"#.into())),
        ("what nothing is", Grammar::JsonSchema(r#"{"type": "string", "minLength": 5, "maxLength": 2}"#.into())),
        (
            "huge bounds",
            Grammar::JsonSchema(
                r#"{"type": "array", "items": {"type": "string", "maxLength": 100000000}, "minItems": 100000000}"#
                    .into(),
            ),
        ),
        ("a number", Grammar::JsonSchema("7".into())),
        ("nothing", Grammar::Lark(String::new())),
        ("too long", Grammar::Regex("a".repeat(GRAMMAR_BYTES_MAX + 1))),
        ("bytes", Grammar::Lark("start: /[\\x80-\\xff]+/\n%llguidance {\"allow_invalid_utf8\": true}".into())),
        ("questions", Grammar::Regex(format!("a{}", "?".repeat(60_000)))),
        ("stars", Grammar::Lark(format!("start: \"a\"{}", "*".repeat(60_000)))),
        ("negations", Grammar::Lark(format!("start: T\nT: {}/a/", "~".repeat(60_000)))),
        ("alternatives", Grammar::Regex("a|".repeat(30_000))),
        ("alternatives in lark", Grammar::Lark(format!("start: {}\"a\"", "\"a\" | ".repeat(8_000)))),
        ("intersections", Grammar::Lark(format!("start: T\nT: {}/a/", "/a/ & ".repeat(9_000)))),
        ("a million", Grammar::Lark("start: \"a\"{1,1000000} (\"b\"{1,1000000}){1,1000000}".into())),
        (
            "many names",
            Grammar::JsonSchema(format!(
                r#"{{"enum": [{}1]}}"#,
                (0..8_000).map(|i| format!("\"{i}\",")).collect::<String>()
            )),
        ),
        (
            "an unknown option",
            Grammar::JsonSchema(r#"{"x-guidance": {"whitespace_pattern": "((a{1,900}){1,900}){1,900}"}}"#.into()),
        ),
    ]
}

#[test]
fn a_hostile_grammar_is_refused_or_followed_within_bounds() {
    let bench = Bench::new();
    for (what, grammar) in hostile() {
        let began = Instant::now();
        let made = Chooser::start(demands(grammar, 1), Some(bench.vocabulary.clone()), Vec::new());
        let prepared = began.elapsed();
        let mut slowest = Duration::ZERO;
        let mut said = made.as_ref().err().map(ToString::to_string);
        if let Ok(chooser) = made {
            for position in 0..24 {
                let (done, chosen) = mpsc::sync_channel(1);
                let began = Instant::now();
                chooser.choose(position, bench.logits(1, position), Box::new(move |choice| drop(done.send(choice))));
                let chosen = chosen.recv_timeout(Duration::from_secs(20)).expect(what);
                slowest = slowest.max(began.elapsed());
                match chosen {
                    Ok(choice) if bench.tokenizer.eos().contains(&choice.token) => break,
                    Ok(_) => {}
                    Err(error) => {
                        said = Some(error.to_string());
                        break;
                    }
                }
            }
        }
        println!("{what}: ready after {prepared:.1?}, a choice {slowest:.1?} at most, {said:?}");
        assert!(prepared < Duration::from_secs(9), "{what} took {prepared:?}");
        assert!(slowest < Duration::from_secs(2), "{what}: a choice took {slowest:?}");
        assert!(said.is_none_or(|said| !said.contains('\n') && said.len() < 500), "{what}");
    }
}

#[test]
fn a_refusal_says_why() {
    let bench = Bench::new();
    let why = |grammar| bench.state(&demands(grammar, 1), Vec::new()).err().expect("refused").to_string();
    assert!(why(Grammar::JsonSchema("{".into())).contains("no JSON"));
    assert!(why(Grammar::Regex("(".into())).contains("unclosed"));
    assert!(why(Grammar::JsonSchema(r##"{"$ref": "#"}"##.into())).contains("no text follows"));
    assert!(why(Grammar::Lark("start: missing".into())).contains("missing"));
    assert!(why(Grammar::Regex("x".repeat(GRAMMAR_BYTES_MAX + 1))).contains("bytes long"));
    let unknown = r#"{"type": "object", "propertyNames": {"pattern": "^a"}, "if": {"minProperties": 1}}"#;
    assert!(why(Grammar::JsonSchema(unknown.into())).to_lowercase().contains("unimplemented"));
    let endless = Vocabulary::new(&bench.tokenizer, &[], 10).expect_err("refused");
    assert_eq!(endless, GrammarError::NoEnd);
}
