//! What holds of every tokenizer and template, on small ones made here: 256 bytes, a few merges, three special tokens.
//!
//! The real models' tokenizers are compared in the tests that fetch them.

use super::*;
use cairn_protocol::gguf::{GgufArray, GgufHeader, GgufValue};
use proptest::prelude::*;
use serde_json::json;

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const SPECIAL: [&str; 3] = ["<|end|>", "<|im_start|>", "<|im_end|>"];
const NOW: Moment = Moment { seconds: 1_709_210_096 };

/// Byte-level spelling of all bytes, then merges' results.
fn vocabulary() -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = SPECIAL.iter().map(|s| s.to_string()).collect();
    let mut bytes: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    tokens.extend(bytes.iter().map(char::to_string));
    let merges =
        ["Ġ t", "h e", "Ġt he", "i n", "Ċ Ċ", "2 0", "20 2", "< |", "i m", "<| im"].map(str::to_string).to_vec();
    tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
    (tokens, merges)
}

fn from_json(template: &str) -> Tokenizer {
    let config = json!({"bos_token": "<|end|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": template});
    Tokenizer::from_json(tokenizer_json().to_string().as_bytes(), Some(config.to_string().as_bytes())).unwrap()
}

fn tokenizer_json() -> serde_json::Value {
    let (tokens, merges) = vocabulary();
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens.iter().enumerate().map(|(id, t)| (t.clone(), id.into())).collect();
    let added = |(id, content): (usize, &&str)| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "added_tokens": SPECIAL.iter().enumerate().map(added).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

/// The tokenizer that the files written from a GGUF's metadata give.
fn from_hub_files(header: &GgufHeader) -> Tokenizer {
    let files = Tokenizer::hub_files(header).unwrap();
    let file = |name: &str| files.iter().find(|(n, _)| *n == name).map(|(_, text)| text.as_bytes());
    let generation_config = file("generation_config.json");
    let tokenizer_config = file("tokenizer_config.json");
    let tokenizer = file("tokenizer.json").unwrap();
    Tokenizer::from_files(&Files { tokenizer, tokenizer_config, generation_config, ..Files::default() }).unwrap()
}

fn strings(list: Vec<String>) -> GgufValue {
    GgufValue::Array(GgufArray::String(list))
}

fn gguf(model: &str, pre: &str) -> GgufHeader {
    let (tokens, merges) = vocabulary();
    let kinds = (0..tokens.len()).map(|id| if id < SPECIAL.len() { 3 } else { 1 }).collect();
    let metadata = vec![
        ("tokenizer.ggml.model".to_string(), GgufValue::String(model.into())),
        ("tokenizer.ggml.pre".to_string(), GgufValue::String(pre.into())),
        ("tokenizer.ggml.tokens".to_string(), strings(tokens)),
        ("tokenizer.ggml.token_type".to_string(), GgufValue::Array(GgufArray::I32(kinds))),
        ("tokenizer.ggml.merges".to_string(), strings(merges)),
        ("tokenizer.ggml.bos_token_id".to_string(), GgufValue::Unsigned(0)),
        ("tokenizer.ggml.eos_token_id".to_string(), GgufValue::Unsigned(2)),
        ("tokenizer.chat_template".to_string(), GgufValue::String(CHATML.into())),
    ];
    GgufHeader { version: 3, metadata, tensors: Vec::new(), header_bytes: 0 }
}

fn sentence_pieces() -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_string).to_vec();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["\u{2581}", "a", "b", "\u{2581}a", "ab", "<", "s", "<s", ">"].map(str::to_string));
    let kinds: Vec<i32> =
        (0..tokens.len()).map(|id| [2, 3, 3].get(id).copied().unwrap_or(if id < 259 { 6 } else { 1 })).collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let metadata = vec![
        ("tokenizer.ggml.model".to_string(), GgufValue::String("llama".into())),
        ("tokenizer.ggml.tokens".to_string(), strings(tokens)),
        ("tokenizer.ggml.token_type".to_string(), GgufValue::Array(GgufArray::I32(kinds))),
        ("tokenizer.ggml.scores".to_string(), GgufValue::Array(GgufArray::F32(scores))),
        ("tokenizer.ggml.bos_token_id".to_string(), GgufValue::Unsigned(1)),
    ];
    Tokenizer::from_gguf(&GgufHeader { version: 3, metadata, tensors: Vec::new(), header_bytes: 0 }).unwrap()
}

fn says(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn specials_in(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u32> {
    ids.iter().copied().filter(|id| tokenizer.is_special(*id)).collect()
}

#[test]
fn special_tokens_are_parsed_in_a_raw_prompt_and_nowhere_else() {
    let tokenizer = from_json(CHATML);
    let text = "a<|im_end|>b";
    assert_eq!(specials_in(&tokenizer, &tokenizer.encode_raw(text).unwrap()), [2]);
    assert_eq!(specials_in(&tokenizer, &tokenizer.encode_plain(text).unwrap()), Vec::<u32>::new());
    let chat = tokenizer.encode_chat(&[says("user", text)], NOW).unwrap();
    assert_eq!(specials_in(&tokenizer, &chat), [1, 2, 1]);
    assert!(tokenizer.decode(&chat).contains(text));
}

#[test]
fn a_file_that_asks_for_truncation_is_not_obeyed() {
    assert_eq!(from_json(CHATML).encode_plain("abcdefgh").unwrap().len(), 8);
}

#[test]
fn digits_stand_alone_where_the_pre_tokenizer_says_so() {
    let smollm = Tokenizer::from_gguf(&gguf("gpt2", "smollm")).unwrap();
    let gpt2 = Tokenizer::from_gguf(&gguf("gpt2", "gpt-2")).unwrap();
    assert_eq!((smollm.encode_plain("2024").unwrap().len(), gpt2.encode_plain("2024").unwrap().len()), (4, 2));
}

#[test]
fn an_unknown_model_or_pre_tokenizer_is_refused_by_name() {
    for (model, pre, named) in [("gpt2", "deepseek-llm", "deepseek-llm"), ("t5", "default", "t5")] {
        let error = Tokenizer::from_gguf(&gguf(model, pre)).unwrap_err();
        assert!(matches!(&error, TokenizerError::Unsupported { name, .. } if name == named), "{error}");
    }
    let mut silent = gguf("gpt2", "smollm");
    silent.metadata.retain(|(key, _)| key != "tokenizer.ggml.pre");
    assert!(Tokenizer::from_gguf(&silent).is_err());
}

#[test]
fn tables_of_different_lengths_are_refused() {
    let mut header = gguf("gpt2", "smollm");
    for (key, value) in &mut header.metadata {
        if key == "tokenizer.ggml.token_type" {
            *value = GgufValue::Array(GgufArray::I32(vec![1; 5]));
        }
    }
    assert!(matches!(Tokenizer::from_gguf(&header), Err(TokenizerError::Malformed { .. })));
}

#[test]
fn sentence_pieces_add_bos_and_a_space_and_take_the_space_away_again() {
    let tokenizer = sentence_pieces();
    let ids = tokenizer.encode_raw("ab").unwrap();
    assert_eq!(ids, [1, 262, 261]);
    assert_eq!(tokenizer.decode(&ids), "ab");
    assert_eq!(tokenizer.encode_raw("<s>ab").unwrap(), ids, "BOS is not doubled");
    assert_eq!(specials_in(&tokenizer, &tokenizer.encode_plain("<s>").unwrap()), Vec::<u32>::new());
    let mut goes_on = tokenizer.stream(&ids, vec![]);
    assert_eq!(goes_on.push(262).text, " a", "a continuation keeps its space");
    let mut begins = tokenizer.stream(&[1], vec![]);
    assert_eq!(begins.push(262).text, "a");
}

#[test]
fn what_is_written_for_a_hub_folder_is_the_tokenizer_of_the_metadata() {
    for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2", "default"] {
        let mut header = gguf("gpt2", pre);
        header.metadata.push(("tokenizer.ggml.eot_token_id".to_string(), GgufValue::Unsigned(0)));
        let (was, is) = (Tokenizer::from_gguf(&header).unwrap(), from_hub_files(&header));
        assert_eq!((is.eos(), is.bos(), is.vocabulary()), (&[0, 2][..], Some(0), was.vocabulary()), "{pre}");
        for text in ["in the year 2024\n\n", "e\u{301}<|im_end|> the", "  <|end|>\u{1f600}", ""] {
            let ids = was.encode_raw(text).unwrap();
            assert_eq!(is.encode_raw(text).unwrap(), ids, "{pre}: {text:?}");
            assert_eq!(is.encode_plain(text).unwrap(), was.encode_plain(text).unwrap(), "{pre}: {text:?}");
            assert_eq!(is.decode(&ids), was.decode(&ids), "{pre}: {text:?}");
        }
        let chat = [says("user", "the 2024")];
        assert_eq!(is.encode_chat(&chat, NOW).unwrap(), was.encode_chat(&chat, NOW).unwrap(), "{pre}");
    }
    assert!(matches!(Tokenizer::hub_files(&gguf("llama", "default")), Err(TokenizerError::Unsupported { .. })));
}

#[test]
fn a_template_may_refuse_print_the_date_and_write_json() {
    let chat = |template: &str| from_json(template).encode_chat(&[says("user", "x \"y\" <é>")], NOW);
    let raised = chat("{{ raise_exception('only system here') }}").unwrap_err();
    assert_eq!(raised, EncodeError::Chat(ChatError::Raised("only system here".into())));
    let text = |template: &str| from_json(template).decode(&chat(template).unwrap());
    assert_eq!(text("{{ strftime_now('%d %b %Y, %A %H:%M') }}"), "29 Feb 2024, Thursday 12:34");
    assert_eq!(text("{{ messages | tojson }}"), r#"[{"role": "user", "content": "x \"y\" <é>"}]"#);
    assert_eq!(text("{{ {'a': [1]} | tojson(indent=2) }}"), "{\n  \"a\": [\n    1\n  ]\n}");
    assert_eq!(text("{{ messages[0].content.split('\"')[1].upper() }}"), "Y");
}

#[test]
fn a_template_that_never_ends_runs_out_of_fuel() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    let error = from_json(endless).encode_chat(&[says("user", "x")], NOW).unwrap_err();
    assert!(matches!(error, EncodeError::Chat(ChatError::Template(_))), "{error}");
}

/// What a template says when it is rendered with one short message.
fn said(template: &str) -> Result<String, EncodeError> {
    let tokenizer = from_json(template);
    tokenizer.encode_chat(&[says("user", "x y")], NOW).map(|ids| tokenizer.decode(&ids))
}

#[test]
fn no_template_makes_more_than_it_may() {
    let doubled = |step: &str| {
        format!(
            "{{% set ns = namespace(a='x' * n | default(1000)) %}}{{% set ns.l = ['x'] %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.a | length }}}}"
        )
    };
    let long = "z".repeat(4000);
    for template in [
        "{% set ns=namespace(a='x'*100000000) %}{% for i in range(20) %}{% set ns.a=ns.a~ns.a %}{% endfor %}".to_string(),
        "{% set n = 100000000 %}{% set ns=namespace(a='x'*n) %}{% for i in range(20) %}{% set ns.a=ns.a~ns.a %}{% endfor %}".to_string(),
        "{{ [1] * 1000000000000 | list }}".to_string(),
        "{{ (1, 2) * 1000000000000 }}".to_string(),
        "{{ 1000000000000 * [1] }}".to_string(),
        "{{ 'x' * 100000000 }}".to_string(),
        "{{ 'x' * (100000000) }}".to_string(),
        "{{ 'x' * (none or 100000000) }}".to_string(),
        doubled("{% set ns.a = ns.a + ns.a %}"),
        doubled("{% set ns.a = ns.a ~ ns.a %}"),
        doubled("{% set ns.a = ns.a * (messages | length + 1) %}"),
        doubled("{% set ns.a = [ns.a, ns.a] | join('-') %}"),
        doubled("{% set ns.a = ns.a | replace('x', 'xx') %}"),
        doubled("{% set ns.a = ns.a.replace('', ns.a) %}"),
        doubled("{% set ns.a = ns.a.join([ns.a, ns.a]) %}"),
        doubled("{% set ns.a = '{0}{0}'.format(ns.a) %}"),
        doubled("{% set ns.a = '%s%s' | format(ns.a, ns.a) %}"),
        doubled("{% set ns.a = (ns.a ~ '\n') | indent(1000000000) %}"),
        doubled("{% set ns.a = [ns.a, ns.a] | tojson %}"),
        doubled("{% set ns.a %}{{ ns.a }}{{ ns.a }}{% endset %}"),
        doubled("{% set ns.l = ns.l + ns.l %}"),
        doubled("{% set ns.l = [ns.l, ns.l] %}"),
        doubled("{% set ns.l = {'a': ns.l, 'b': ns.l} %}"),
        doubled("{% set ns.l = ns.l | chain(ns.l) %}"),
        doubled("{% set ns.l = [1, 2, 3] | batch(1000000000, 0) | list %}"),
        "{{ '%999999999d' | format(1) }}".to_string(),
        "{{ '{:999999999}'.format(1) }}".to_string(),
        "{% macro m(a) %}{{ a }}{{ a }}{% endmacro %}".to_string() + &doubled("{% set ns.a = m(ns.a) %}"),
        format!("{{% set x %}}{{% for a in range(9999) %}}{{% for b in range(99) %}}{long}{{% endfor %}}{{% endfor %}}{{% endset %}}"),
        format!("{{% for a in range(9999) %}}{{% for b in range(99) %}}{long}{{% endfor %}}{{% endfor %}}"),
    ] {
        let error = said(&template).expect_err(&template);
        assert!(matches!(error, EncodeError::Chat(ChatError::Template(_))), "{template}: {error}");
        assert!(!error.to_string().contains("syntax error"), "{template}: {error}");
    }
}

#[test]
fn no_template_nests_until_the_stack_is_gone() {
    let each = |step: &str| {
        format!(
            "{{% set ns = namespace(l=[]) %}}{{% for a in range(900) %}}{{% for b in range(100) %}}{step}{{% endfor %}}{{% endfor %}}"
        )
    };
    for template in [
        each("{% set ns.l = [ns.l] %}"),
        each("{% set ns.l = {'a': ns.l} %}"),
        each("{% set ns.l = ns.l[0:] %}{% set ns.l = [ns.l] %}"),
        each("{% set m = namespace(l=ns.l) %}{% set ns.l = m %}"),
        each("{% set ns.l = [ns] %}"),
        each("{% set ns = namespace(l=ns) %}"),
        "{% set ns = namespace(l=1) %}{% set ns.l = ns %}".to_string(),
        "{% set x = [1] %}".to_string() + &"{% set x = [x] %}".repeat(5000),
        format!("{{{{ 1{} }}}}", "+1".repeat(50_000)),
        format!("{{{{ [1]{} }}}}", "|list".repeat(10_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(10_000), "]".repeat(10_000)),
        "{% if 1 %}".repeat(5_000),
        "{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(1) }}".to_string(),
        "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}".to_string(),
    ] {
        let error = said(&template).expect_err(&template[..template.len().min(100)]);
        assert!(matches!(error, EncodeError::Chat(ChatError::Template(_))), "{error}");
    }
}

#[test]
fn a_bounded_template_means_what_it_did() {
    for (template, text) in [
        ("a\\b \"q\" 'r' {# no #}{{ 1 }}\n", "a\\b \"q\" 'r' 1"),
        ("{%- set x = 'a' -%}\n  {%- if x %}\n  {{- x }} b\n  {%- endif %}\n c", "a b c"),
        ("{% raw %}{{ x }}{% endraw %}{{ '{{' }}", "{{ x }}{{"),
        ("{% set a, b = 1, 2 %}{{ a + b }} {{ a ~ b }} {{ 3 * b }} {{ 1 + 0.5 }} {{ 2 * 1.5 }}", "3 12 6 1.5 3.0"),
        (
            "{% set ns = namespace(x=[]) %}{% for i in range(3) %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x }}",
            "[0, 1, 2]",
        ),
        (
            "{% set m = messages[0:] %}{{ m[0]['content'] }}{{ m | length }}{% set o = namespace(m=m) %}{{ o.m[0].role }}",
            "x y1user",
        ),
        ("{% set x %}<{{ 1 }}>{% endset %}{{ x * 2 ~ undefined_one }}", "<1><1>"),
        (
            "{% set x = {'a': {'b': [1, none, true]}} %}{{ x | tojson }}{{ x.a.b is sequence }}",
            "{\"a\": {\"b\": [1, null, true]}}True",
        ),
        (
            "{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{% set f = m %}{{ f('z') }}{{ '  ' * (b | default(1)) }}|",
            "z2  |",
        ),
        ("{{ messages | map(attribute='content') | join(', ') }}{{ ['b', 'a'] | sort | join }}", "x yab"),
        ("{{ messages[0].content.split(' ')[-1] }}{{ 'a-b'.replace('-', '+') }}{{ '%s!' | format('a') }}", "ya+ba!"),
        (
            "{{ ['a', 'b'] | list + ['c'] }}{{ 'abc'[::-1] }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
            "[\"a\", \"b\", \"c\"]cba1",
        ),
        (
            "{% filter upper %}a{{ 'b' }}{% endfilter %}{% for a in [1, 2] if a > 1 %}{{ loop.index }}{{ a }}{% else %}no{% endfor %}",
            "AB12",
        ),
    ] {
        assert_eq!(said(template).unwrap(), text, "{template}");
    }
}

#[test]
fn a_role_that_no_template_knows_is_refused() {
    let error = from_json(CHATML).encode_chat(&[says("user<|im_end|>", "x")], NOW).unwrap_err();
    assert_eq!(error, EncodeError::Chat(ChatError::Role("user<|im_end|>".into())));
    assert_eq!(from_json(CHATML).encode_chat(&[], NOW).unwrap_err(), EncodeError::Chat(ChatError::Empty));
}

#[test]
fn garbage_is_an_error_and_no_panic() {
    for bytes in [&b""[..], b"{}", b"[1]", b"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4294967295},\"merges\":[]},\"decoder\":{\"type\":\"ByteLevel\"}}"] {
        assert!(Tokenizer::from_json(bytes, None).is_err());
    }
}

/// A template whose special token exists, or not.
fn post_processor(named: &str) -> serde_json::Value {
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": named, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]}}})
}

#[test]
fn what_the_library_takes_on_trust_is_refused_in_words() {
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let blank = |id: u32, content: &str, left: bool| json!({"id": id, "content": content, "single_word": false, "lstrip": left, "rstrip": !left, "normalized": false, "special": false});
    for (part, value, why) in [
        ("post_processor", post_processor("nobody"), "special tokens"),
        ("post_processor", json!({"type": "Sequence", "processors": [post_processor("nobody")]}), "special tokens"),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "no length"),
        ("normalizer", json!({"type": "Sequence", "normalizers": vec![doubling; 30]}), "bytes of one"),
        ("model", json!({"type": "BPE", "vocab": {"aa": 0, "ab": 1}, "merges": ["aa ab"]}), "no token"),
        (
            "model",
            json!({"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "continuing_subword_prefix": "####"}),
            "no token",
        ),
        ("added_tokens", json!([blank(0, "x", false), blank(1, " ", true)]), "white space"),
    ] {
        let mut tokenizer = tokenizer_json();
        tokenizer[part] = value;
        let error = Tokenizer::from_json(tokenizer.to_string().as_bytes(), None).unwrap_err();
        assert!(error.to_string().contains(why), "{part}: {error}");
    }
    let mut header = gguf("gpt2", "smollm");
    header.metadata.retain(|(key, _)| key != "tokenizer.ggml.merges");
    let long = "Ġthe ".repeat(2).trim_end().to_string();
    header
        .metadata
        .push(("tokenizer.ggml.merges".to_string(), strings(vec![long, "<|im_start|> <|im_start|>".into()])));
    assert!(matches!(Tokenizer::from_gguf(&header), Err(TokenizerError::Malformed { .. })));
}

#[test]
fn the_post_processors_bos_goes_before_a_raw_prompt() {
    let mut tokenizer = tokenizer_json();
    tokenizer["post_processor"] = post_processor("<|end|>");
    let tokenizer = Tokenizer::from_json(tokenizer.to_string().as_bytes(), None).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.encode_raw("a").unwrap()[0]), (Some(0), 0));
    assert_eq!(tokenizer.encode_plain("a").unwrap().len(), 1);
}

/// Texts that come near special tokens.
fn near_specials() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("<|im_start|>".to_string()),
        Just("<|im_end|>".to_string()),
        Just("<|".to_string()),
        Just("im_end|>".to_string()),
        Just("\n\n".to_string()),
        Just(" the 2024 ".to_string()),
        "\\PC{0,6}",
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn what_people_write_never_becomes_a_special_token(texts in prop::collection::vec(near_specials(), 1..4)) {
        let tokenizer = from_json(CHATML);
        let messages: Vec<Message> = texts.iter().map(|t| says("user", t)).collect();
        let ids = tokenizer.encode_chat(&messages, NOW).unwrap();
        let expected: Vec<u32> = messages.iter().flat_map(|_| [1, 2]).chain([1]).collect();
        prop_assert_eq!(specials_in(&tokenizer, &ids), expected);
        for text in &texts {
            prop_assert_eq!(specials_in(&tokenizer, &tokenizer.encode_plain(text).unwrap()), Vec::<u32>::new());
        }
    }

    #[test]
    fn a_chat_without_special_words_is_encoded_as_its_rendered_text(content in "[a-z 0-9\n.]{0,30}") {
        let tokenizer = from_json(CHATML);
        let rendered = format!("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", content.trim());
        prop_assert_eq!(tokenizer.encode_chat(&[says("user", &content)], NOW).unwrap(), tokenizer.encode_raw(&rendered).unwrap());
    }

    #[test]
    fn gguf_and_json_give_the_same_ids_and_decode_to_the_text(text in near_specials()) {
        let header = gguf("gpt2", "smollm");
        let (json, gguf) = (from_json(CHATML), Tokenizer::from_gguf(&header).unwrap());
        let ids = json.encode_plain(&text).unwrap();
        prop_assert_eq!(&ids, &gguf.encode_plain(&text).unwrap());
        prop_assert_eq!(json.encode_raw(&text).unwrap(), gguf.encode_raw(&text).unwrap());
        let written = from_hub_files(&header);
        prop_assert_eq!(written.encode_plain(&text).unwrap(), ids.clone());
        prop_assert_eq!(written.encode_raw(&text).unwrap(), gguf.encode_raw(&text).unwrap());
        prop_assert_eq!(&json.decode(&ids), &text);
        prop_assert_eq!(&gguf.decode(&ids), &text);
    }

    #[test]
    fn sentence_pieces_decode_to_the_text_with_or_without_stream(text in "[ab <>sé☃]{0,20}") {
        let tokenizer = sentence_pieces();
        let ids = tokenizer.encode_plain(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), text);
        prop_assert_eq!(specials_in(&tokenizer, &ids), Vec::<u32>::new());
    }
}
