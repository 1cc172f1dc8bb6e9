//! Points at code that clients may run: Python beside the weights, `auto_map`, chat templates, Lambda layers. It runs and judges none,
//! save constructs in a template that no template needs.
//!
//! Invariant: it reads text; what does not parse as JSON is looked through as text.

use std::io::{self, Read};

use cairn_protocol::gguf::{GgufHeader, GgufValue};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{FileFindings, Kind, Verdict};

/// What a template reaches Python's insides by; known from attacks on programs that render templates.
const REACHES: [&str; 14] = [
    "__class__",
    "__globals__",
    "__subclasses__",
    "__builtins__",
    "__import__",
    "__mro__",
    "__base__",
    "__bases__",
    "__init__",
    "__getattribute__",
    "__dict__",
    "__code__",
    "__reduce__",
    "__loader__",
];
/// What a template seldom needs, and attacks often use.
const UNUSUAL: [&str; 6] = ["|attr(", "| attr(", "popen", "{% include", "{% import", "{%- import"];
/// How Keras writes a layer that is code.
const LAMBDAS: [&str; 2] = ["\"class_name\": \"Lambda\"", "\"class_name\":\"Lambda\""];
/// A piece of a large file that is looked through.
const PIECE: usize = 1 << 20;
/// Of a Keras file, what may hold its configuration.
const KERAS_BYTES_MAX: u64 = 256 << 20;

/// Scans a text file; `name` is its file name in small letters.
pub(super) fn text(kind: Kind, name: &str, bytes: &[u8], found: &mut FileFindings) {
    let text = String::from_utf8_lossy(bytes);
    match kind {
        Kind::Python => {
            let lines = text.lines().count();
            found.found(Verdict::Code, format!("{lines} lines of Python that clients may run (trust_remote_code)"));
        }
        Kind::Script => found.found(Verdict::Code, "a script"),
        Kind::Notebook => found.found(Verdict::Code, "a notebook, whose cells people may run"),
        Kind::Jinja => template("", &text, found),
        Kind::Json => json(name, &text, found),
        _ => {}
    }
}

/// Scans the metadata of a GGUF file.
pub(super) fn gguf(header: &GgufHeader, found: &mut FileFindings) {
    for (key, value) in &header.metadata {
        if let GgufValue::String(text) = value
            && (key == "tokenizer.chat_template" || key.starts_with("tokenizer.chat_template."))
        {
            template(key, text, found);
        }
    }
}

/// Looks for Lambda layers in a file of Keras.
pub(super) fn keras(reader: &mut impl Read, found: &mut FileFindings) -> io::Result<()> {
    let (mut reader, mut window) = (reader.take(KERAS_BYTES_MAX), Vec::new());
    loop {
        // The end of the last piece may be the beginning of a word.
        let kept = window.len().min(LAMBDAS[0].len());
        window.drain(..window.len() - kept);
        if reader.by_ref().take(PIECE as u64).read_to_end(&mut window)? == 0 {
            return Ok(());
        }
        if LAMBDAS.iter().any(|lambda| window.windows(lambda.len()).any(|window| window == lambda.as_bytes())) {
            lambda(found);
            return Ok(());
        }
    }
}

fn lambda(found: &mut FileFindings) {
    found.found(Verdict::Unsafe, "a Lambda layer, which is code that Keras may run when it loads the file");
}

fn json(name: &str, text: &str, found: &mut FileFindings) {
    if LAMBDAS.iter().any(|lambda| text.contains(lambda)) {
        lambda(found);
    }
    let is_interesting = ["auto_map", "chat_template", "trust_remote_code", "custom_pipelines"];
    if name != "modules.json" && !is_interesting.iter().any(|word| text.contains(word)) {
        return;
    }
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        found.found(Verdict::Code, "speaks of code that clients may run, and is not valid JSON");
        return;
    };
    auto_map(&value, found);
    templates(&value, found);
    if name == "modules.json" {
        modules(&value, found);
    }
}

/// `auto_map` names classes in files of Python, here or in another repo.
fn auto_map(value: &Value, found: &mut FileFindings) {
    let Value::Object(object) = value else { return };
    for (key, value) in object {
        match (key.as_str(), value) {
            ("auto_map" | "custom_pipelines", value) => {
                let what = format!("{key} names code that clients run with trust_remote_code: {value}");
                found.found(Verdict::Code, what);
            }
            ("trust_remote_code", Value::Bool(true)) => {
                found.found(Verdict::Code, "asks for trust_remote_code");
            }
            (_, Value::Object(_)) => auto_map(value, found),
            _ => {}
        }
    }
}

fn templates(value: &Value, found: &mut FileFindings) {
    match value.get("chat_template") {
        Some(Value::String(text)) => template("", text, found),
        Some(Value::Array(list)) => {
            for entry in list {
                let name = entry.get("name").and_then(Value::as_str).unwrap_or_default();
                let text = entry.get("template").and_then(Value::as_str).unwrap_or_default();
                template(name, text, found);
            }
        }
        _ => {}
    }
}

/// Sentence Transformers load the classes that are named here.
fn modules(value: &Value, found: &mut FileFindings) {
    let types = value.as_array().into_iter().flatten().filter_map(|module| module.get("type")?.as_str());
    for module in types.filter(|module| !module.starts_with("sentence_transformers.")) {
        found.found(Verdict::Code, format!("a module of its own, which clients run with trust_remote_code: {module}"));
    }
}

fn template(name: &str, text: &str, found: &mut FileFindings) {
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    let digest = hex::encode(&Sha256::digest(text.as_bytes())[..8]);
    found.found(Verdict::Clean, format!("chat template{name} of {} bytes, SHA-256 {digest}…", text.len()));
    for reach in REACHES.iter().filter(|reach| text.contains(**reach)) {
        found.found(Verdict::Unsafe, format!("the chat template{name} reaches for {reach}"));
    }
    let is_known = REACHES.iter().any(|reach| text.contains(reach));
    if !is_known && text.split("__").count() > 2 {
        found.found(Verdict::Code, format!("the chat template{name} uses names with two underscores"));
    }
    for unusual in UNUSUAL.iter().filter(|unusual| text.contains(**unusual)) {
        found.found(Verdict::Code, format!("the chat template{name} uses {unusual}"));
    }
}
