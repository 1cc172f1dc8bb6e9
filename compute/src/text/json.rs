//! A tokenizer from `tokenizer.json` and the files beside it.
//!
//! Not an encoder: the `tokenizers` crate does that, told to leave special tokens alone. Invariant: what is built
//! either decodes every id to known bytes or is refused; truncation, padding and post-processing that a file may ask for are off.

use super::chat::{ChatTemplate, SpecialNames};
use super::credulous::{self, Parts};
use super::decode::{Pieces, Spelling};
use super::specials::{Special, Specials};
use super::tokenizer::{Encoder, Files, TOKENIZER_BYTES_MAX, Tokenizer, TokenizerError, VOCABULARY_MAX};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// The parts of `tokenizer.json` that are looked at beside the library.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Value,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    model: Value,
    #[serde(default)]
    decoder: Value,
}

impl Outline {
    fn parts(&self) -> Parts<'_> {
        Parts {
            added_tokens: &self.added_tokens,
            normalizer: &self.normalizer,
            pre_tokenizer: &self.pre_tokenizer,
            model: &self.model,
        }
    }
}

/// Builds the tokenizer.
pub(super) fn read(files: &Files) -> Result<Tokenizer, TokenizerError> {
    let (mut hub, outline, bos_by_template) = checked(files.tokenizer)?;
    hub.with_truncation(None).map_err(|e| malformed("tokenizer.json", e))?;
    hub.with_padding(None);
    // What it would add is added here, and without it there is nothing that a file could make it do to a text.
    hub.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    let (spelling, strips_leading_space) = spelling(&outline.decoder)?;
    let pieces = Arc::new(pieces(&hub, spelling, strips_leading_space)?);
    let specials = Specials::new(specials(&hub));
    hub.set_encode_special_tokens(true);
    let later = for_later_runs(&hub, &outline.pre_tokenizer)?;
    let side = Side::read(files)?;
    let id = |name: &Option<String>| name.as_ref().and_then(|n| hub.token_to_id(n));
    let bos = bos_by_template.or_else(|| id(&side.names.bos_token));
    let mut eos: Vec<u32> = side
        .eos_ids
        .iter()
        .copied()
        .chain(id(&side.names.eos_token))
        .filter(|i| (*i as usize) < pieces.len())
        .collect();
    eos.sort_unstable();
    eos.dedup();
    let adds_bos = side.add_bos.unwrap_or(bos_by_template.is_some());
    let template = side.template.map(|source| ChatTemplate::new(source, side.names));
    let encoder = Encoder::Hub { first: Box::new(hub), later: later.map(Box::new) };
    Ok(Tokenizer { encoder, specials, pieces, bos, adds_bos, eos, template })
}

/// A whole tokenizer for models that read texts at once: special tokens, truncation and padding are the caller's affair.
pub(crate) fn checked_tokenizer(bytes: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    checked(bytes).map(|(hub, ..)| hub)
}

/// The library's tokenizer of a file that was looked through, what it was read from, and the token it puts first.
fn checked(bytes: &[u8]) -> Result<(tokenizers::Tokenizer, Outline, Option<u32>), TokenizerError> {
    if bytes.len() > TOKENIZER_BYTES_MAX {
        let (what, size) = ("tokenizer.json", bytes.len());
        return Err(TokenizerError::TooLarge { what, size, most: TOKENIZER_BYTES_MAX });
    }
    let outline: Outline = parse("tokenizer.json", bytes)?;
    credulous::check(&outline.parts()).map_err(|why| malformed("tokenizer.json", why))?;
    let first = credulous::first_token(&outline.post_processor).map_err(|why| malformed("tokenizer.json", why))?;
    let hub = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| malformed("tokenizer.json", e))?;
    Ok((hub, outline, first))
}

fn parse<T: serde::de::DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, TokenizerError> {
    serde_json::from_slice(bytes).map_err(|e| malformed(file, e))
}

fn malformed(file: &str, why: impl ToString) -> TokenizerError {
    TokenizerError::Malformed { file: file.to_string(), why: why.to_string() }
}

/// How token texts spell bytes, and whether decoding takes a leading space away.
fn spelling(decoder: &Value) -> Result<(Spelling, bool), TokenizerError> {
    let steps: Vec<&Value> = match decoder["decoders"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![decoder],
    };
    let kind = |step: &Value, name: &str| step["type"] == name;
    let strips = steps.iter().any(|s| {
        let strip = kind(s, "Strip") && s["content"] == " " && s["start"].as_u64().unwrap_or(0) > 0;
        let meta = kind(s, "Metaspace") && s["prepend_scheme"] != "never" && s["add_prefix_space"] != false;
        strip || meta
    });
    if steps.iter().any(|s| kind(s, "ByteLevel")) {
        return Ok((Spelling::ByteLevel, false));
    }
    let spm = |s: &&Value| {
        kind(s, "ByteFallback") || kind(s, "Metaspace") || (kind(s, "Replace") && s["pattern"]["String"] == "\u{2581}")
    };
    if steps.iter().any(spm) {
        return Ok((Spelling::Spm, strips));
    }
    let name = decoder["type"].as_str().unwrap_or("none").to_string();
    Err(TokenizerError::Unsupported { what: "the decoder", name, known: "ByteLevel, ByteFallback, Metaspace" })
}

fn pieces(hub: &tokenizers::Tokenizer, spelling: Spelling, strips: bool) -> Result<Pieces, TokenizerError> {
    let added = hub.get_added_tokens_decoder();
    let most = hub.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
    if most > VOCABULARY_MAX {
        return Err(TokenizerError::TooLarge { what: "the vocabulary", size: most, most: VOCABULARY_MAX });
    }
    let mut pieces = Pieces::new(strips);
    for id in 0..most as u32 {
        match (added.get(&id), hub.id_to_token(id)) {
            (Some(token), _) => pieces.push(token.content.as_bytes(), token.special),
            (None, Some(text)) => pieces.push(&spelling.bytes(&text), false),
            (None, None) => pieces.push(b"", false),
        }
    }
    Ok(pieces)
}

fn specials(hub: &tokenizers::Tokenizer) -> Vec<Special> {
    let added = hub.get_added_tokens_decoder();
    let special = |(id, token): (u32, tokenizers::AddedToken)| Special {
        content: token.content,
        id,
        strip_left: token.lstrip,
        strip_right: token.rstrip,
        single_word: token.single_word,
    };
    added.into_iter().filter(|(_, token)| token.special).map(special).collect()
}

/// A `Metaspace` with the scheme "first" puts its space only where the whole text begins, so runs after a special token
/// need their own tokenizer.
fn for_later_runs(
    hub: &tokenizers::Tokenizer,
    pre_tokenizer: &Value,
) -> Result<Option<tokenizers::Tokenizer>, TokenizerError> {
    let mut changed = pre_tokenizer.clone();
    if !never_prepend(&mut changed) {
        return Ok(None);
    }
    let pre: tokenizers::PreTokenizerWrapper =
        serde_json::from_value(changed).map_err(|e| malformed("tokenizer.json", e))?;
    let mut later = hub.clone();
    later.with_pre_tokenizer(Some(pre));
    Ok(Some(later))
}

fn never_prepend(pre_tokenizer: &mut Value) -> bool {
    if pre_tokenizer["type"] == "Metaspace" && pre_tokenizer["prepend_scheme"] == "first" {
        pre_tokenizer["prepend_scheme"] = "never".into();
        return true;
    }
    let Some(steps) = pre_tokenizer.get_mut("pretokenizers").and_then(Value::as_array_mut) else { return false };
    // Every step is changed, not only the first that can be.
    steps.iter_mut().filter_map(|step| never_prepend(step).then_some(())).count() > 0
}

/// What the files beside `tokenizer.json` say.
#[derive(Default)]
struct Side {
    names: SpecialNames,
    add_bos: Option<bool>,
    eos_ids: Vec<u32>,
    template: Option<String>,
}

impl Side {
    fn read(files: &Files) -> Result<Side, TokenizerError> {
        let mut side = Side::default();
        for (file, bytes) in
            [("special_tokens_map.json", files.special_tokens_map), ("tokenizer_config.json", files.tokenizer_config)]
        {
            if let Some(bytes) = bytes {
                side.take_names(&parse::<Value>(file, bytes)?);
            }
        }
        for (file, bytes) in [("generation_config.json", files.generation_config), ("config.json", files.config)] {
            if let Some(bytes) = bytes {
                side.eos_ids.extend(ids(&parse::<Value>(file, bytes)?["eos_token_id"]));
            }
        }
        if let Some(bytes) = files.chat_template {
            let text = std::str::from_utf8(bytes).map_err(|e| malformed("chat_template.jinja", e))?;
            side.template = Some(text.to_string());
        }
        Ok(side)
    }

    fn take_names(&mut self, config: &Value) {
        let names = &mut self.names;
        for (key, name) in [
            ("bos_token", &mut names.bos_token),
            ("eos_token", &mut names.eos_token),
            ("unk_token", &mut names.unk_token),
            ("pad_token", &mut names.pad_token),
        ] {
            let value = &config[key];
            if let Some(text) = value.as_str().or_else(|| value["content"].as_str()) {
                *name = Some(text.to_string());
            }
        }
        self.add_bos = config["add_bos_token"].as_bool().or(self.add_bos);
        self.template = template(&config["chat_template"]).or(self.template.take());
    }
}

/// A template, or the one named "default" of several.
fn template(value: &Value) -> Option<String> {
    let named = || value.as_array()?.iter().find(|t| t["name"] == "default")?["template"].as_str();
    value.as_str().or_else(named).map(str::to_string)
}

/// One id or a list of ids.
fn ids(value: &Value) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(list) => list.iter().filter_map(one).collect(),
        None => one(value).into_iter().collect(),
    }
}
