//! A tokenizer from a GGUF's metadata: `tokenizer.ggml.*` and `tokenizer.chat_template`.
//!
//! Not a guesser: byte-pair models (`gpt2`) need a `tokenizer.ggml.pre` that is known, since a wrong cut gives wrong
//! ids without a word; of the others only SentencePiece's byte-pair kind (`llama`) is read. Invariant: ids are places
//! in `tokenizer.ggml.tokens`.

use super::chat::{ChatTemplate, SpecialNames};
use super::credulous;
use super::decode::{Pieces, Spelling, byte_token};
use super::pretokenize::{self, Cut};
use super::specials::{Special, Specials};
use super::spm::Spm;
use super::tokenizer::{Encoder, Tokenizer, TokenizerError, VOCABULARY_MAX};
use cairn_protocol::gguf::GgufHeader;
use serde_json::json;
use std::sync::Arc;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const TEMPLATE: &str = "tokenizer.chat_template";

/// Builds the tokenizer.
pub(super) fn read(header: &GgufHeader) -> Result<Tokenizer, TokenizerError> {
    let table = Table::read(header)?;
    match header.str("tokenizer.ggml.model") {
        Some("gpt2") => byte_pairs(header, &table),
        Some("llama") => sentence_pieces(header, &table),
        other => Err(unsupported("tokenizer.ggml.model", other, "gpt2, llama")),
    }
}

/// The same tokenizer as the files of a Hugging Face folder, by name. Only of a byte-pair model.
pub(super) fn hub_files(header: &GgufHeader) -> Result<Vec<(&'static str, String)>, TokenizerError> {
    let model = header.str("tokenizer.ggml.model");
    if model != Some("gpt2") {
        return Err(unsupported("tokenizer.ggml.model", model, "gpt2"));
    }
    let table = Table::read(header)?;
    let cut = known_cut(header)?;
    let tokenizer = hub(header, &table, &cut)?.to_string(false).map_err(|e| malformed(TOKENS, &e.to_string()))?;
    let names = names(header, &table);
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": adds_bos(header, cut.adds_bos),
        "bos_token": names.bos_token, "eos_token": names.eos_token, "unk_token": names.unk_token,
        "pad_token": names.pad_token, "chat_template": header.str(TEMPLATE),
    });
    let generation = json!({ "bos_token_id": id(header, BOS, &table), "eos_token_id": ends(header, &table) });
    Ok(vec![
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", config.to_string()),
        ("generation_config.json", generation.to_string()),
    ])
}

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    /// Special: control tokens and the unknown token.
    Control,
    /// Text that is matched as a whole.
    UserDefined,
    /// One byte.
    Byte,
}

/// The vocabulary as the file lists it.
struct Table<'a> {
    tokens: &'a [String],
    kinds: Vec<Kind>,
}

impl<'a> Table<'a> {
    fn read(header: &'a GgufHeader) -> Result<Table<'a>, TokenizerError> {
        let tokens =
            header.array(TOKENS).and_then(|a| a.strings()).ok_or_else(|| malformed(TOKENS, "it is missing"))?;
        if tokens.len() > VOCABULARY_MAX {
            return Err(TokenizerError::TooLarge { what: "the vocabulary", size: tokens.len(), most: VOCABULARY_MAX });
        }
        let kind = |number: &i64| match number {
            2 | 3 => Kind::Control,
            4 => Kind::UserDefined,
            6 => Kind::Byte,
            _ => Kind::Text,
        };
        const TYPES: &str = "tokenizer.ggml.token_type";
        let kinds: Vec<Kind> = match header.array(TYPES) {
            Some(types) => types
                .integers()
                .ok_or_else(|| malformed(TYPES, "not a list of whole numbers"))?
                .iter()
                .map(kind)
                .collect(),
            None => vec![Kind::Text; tokens.len()],
        };
        if kinds.len() != tokens.len() {
            return Err(malformed(TYPES, &format!("{} types for {} tokens", kinds.len(), tokens.len())));
        }
        Ok(Table { tokens, kinds })
    }

    fn rows(&self) -> impl Iterator<Item = (u32, &'a str, Kind)> {
        self.tokens.iter().zip(&self.kinds).enumerate().map(|(id, (token, kind))| (id as u32, token.as_str(), *kind))
    }

    fn of_kind(&self, wanted: Kind) -> Specials {
        let special = |(id, token, _): (u32, &str, Kind)| Special {
            content: token.to_string(),
            id,
            strip_left: false,
            strip_right: false,
            single_word: false,
        };
        Specials::new(self.rows().filter(|(_, _, kind)| *kind == wanted).map(special).collect())
    }

    fn pieces(&self, spelling: Spelling, strips_leading_space: bool) -> Pieces {
        let mut pieces = Pieces::new(strips_leading_space);
        for (_, token, kind) in self.rows() {
            match kind {
                Kind::Control => pieces.push(b"", true),
                Kind::UserDefined if spelling == Spelling::ByteLevel => pieces.push(token.as_bytes(), false),
                _ => pieces.push(&spelling.bytes(token), false),
            }
        }
        pieces
    }
}

fn byte_pairs(header: &GgufHeader, table: &Table) -> Result<Tokenizer, TokenizerError> {
    let cut = known_cut(header)?;
    let mut hub = hub(header, table, &cut)?;
    hub.set_encode_special_tokens(true);
    let encoder = Encoder::Hub { first: Box::new(hub), later: None };
    finished(header, table, encoder, table.pieces(Spelling::ByteLevel, false), cut.adds_bos)
}

fn known_cut(header: &GgufHeader) -> Result<Cut, TokenizerError> {
    let pre = header.str("tokenizer.ggml.pre");
    pre.and_then(pretokenize::cut).ok_or_else(|| unsupported("tokenizer.ggml.pre", pre, pretokenize::KNOWN))
}

/// The tokenizer as the `tokenizers` crate has it.
fn hub(header: &GgufHeader, table: &Table, cut: &Cut) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let vocabulary: Vocab = table.rows().map(|(id, token, _)| (token.to_string(), id)).collect();
    let model =
        BPE::builder().vocab_and_merges(vocabulary, merges(header, table)?).ignore_merges(cut.whole_pieces).build();
    let mut hub = tokenizers::Tokenizer::new(model.map_err(|e| malformed(MERGES, &e.to_string()))?);
    if cut.nfc {
        hub.with_normalizer(Some(NormalizerWrapper::NFC(NFC))).map_err(|e| malformed(TOKENS, &e.to_string()))?;
    }
    hub.with_pre_tokenizer(Some(pre_tokenizer(cut)?));
    hub.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())));
    let added = |(_, token, kind): (u32, &str, Kind)| match kind {
        Kind::UserDefined => Some(AddedToken::from(token, false).normalized(false)),
        Kind::Control => Some(AddedToken::from(token, true)),
        _ => None,
    };
    hub.add_tokens(table.rows().filter_map(added)).map_err(|e| malformed(TOKENS, &e.to_string()))?;
    Ok(hub)
}

/// Merges are written `left right`; neither half holds a space, since byte-level text has none.
fn merges(header: &GgufHeader, table: &Table) -> Result<Vec<(String, String)>, TokenizerError> {
    let lines = header.array(MERGES).and_then(|a| a.strings()).ok_or_else(|| malformed(MERGES, "it is missing"))?;
    let longest = table.tokens.iter().map(String::len).max().unwrap_or(0);
    let pair = |line: &String| {
        let (left, right) =
            line.split_once(' ').ok_or_else(|| malformed(MERGES, &format!("{line:?} is not a pair")))?;
        credulous::merge_fits(left, right, "", longest).map_err(|why| malformed(MERGES, &why))?;
        Ok((left.to_string(), right.to_string()))
    };
    lines.iter().map(pair).collect()
}

fn pre_tokenizer(cut: &Cut) -> Result<PreTokenizerWrapper, TokenizerError> {
    let split = |pattern: &&str| {
        let split = Split::new(SplitPattern::Regex(pattern.to_string()), SplitDelimiterBehavior::Isolated, false);
        split.map(PreTokenizerWrapper::Split).map_err(|e| malformed("tokenizer.ggml.pre", &e.to_string()))
    };
    let mut steps = cut.patterns.iter().map(split).collect::<Result<Vec<_>, _>>()?;
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
}

fn sentence_pieces(header: &GgufHeader, table: &Table) -> Result<Tokenizer, TokenizerError> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = header.array(SCORES).and_then(|a| a.floats()).ok_or_else(|| malformed(SCORES, "it is missing"))?;
    if scores.len() != table.tokens.len() {
        return Err(malformed(SCORES, &format!("{} scores for {} tokens", scores.len(), table.tokens.len())));
    }
    let adds_space = header.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let mut spm =
        Spm { bytes: vec![None; 256], user_defined: table.of_kind(Kind::UserDefined), adds_space, ..Spm::default() };
    spm.unknown = id(header, "tokenizer.ggml.unknown_token_id", table);
    for ((id, token, kind), score) in table.rows().zip(scores) {
        match kind {
            Kind::Text | Kind::UserDefined => {
                spm.pieces.entry(token.to_string()).or_insert((id, score as f32));
            }
            Kind::Byte => {
                if let Some(byte) = byte_token(token) {
                    spm.bytes[byte as usize] = Some(id);
                }
            }
            Kind::Control => {}
        }
    }
    finished(header, table, Encoder::Spm(spm), table.pieces(Spelling::Spm, adds_space), true)
}

/// What both kinds share: special tokens, begin and end, template.
fn finished(
    header: &GgufHeader,
    table: &Table,
    encoder: Encoder,
    pieces: Pieces,
    bos_by_default: bool,
) -> Result<Tokenizer, TokenizerError> {
    let template = header.str(TEMPLATE).map(|source| ChatTemplate::new(source.to_string(), names(header, table)));
    Ok(Tokenizer {
        encoder,
        specials: table.of_kind(Kind::Control),
        pieces: Arc::new(pieces),
        bos: id(header, BOS, table),
        adds_bos: adds_bos(header, bos_by_default),
        eos: ends(header, table),
        template,
    })
}

fn adds_bos(header: &GgufHeader, by_default: bool) -> bool {
    header.bool("tokenizer.ggml.add_bos_token").unwrap_or(by_default)
}

/// Ids that end a generation, sorted.
fn ends(header: &GgufHeader, table: &Table) -> Vec<u32> {
    let keys = [EOS, "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let mut ends: Vec<u32> = keys.into_iter().filter_map(|key| id(header, key, table)).collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

fn names(header: &GgufHeader, table: &Table) -> SpecialNames {
    let name = |key: &str| id(header, key, table).map(|id| table.tokens[id as usize].clone());
    SpecialNames {
        bos_token: name(BOS),
        eos_token: name(EOS),
        unk_token: name("tokenizer.ggml.unknown_token_id"),
        pad_token: name("tokenizer.ggml.padding_token_id"),
    }
}

fn id(header: &GgufHeader, key: &str, table: &Table) -> Option<u32> {
    header.u64(key).filter(|id| (*id as usize) < table.tokens.len()).map(|id| id as u32)
}

fn malformed(key: &str, why: &str) -> TokenizerError {
    TokenizerError::Malformed { file: key.to_string(), why: why.to_string() }
}

fn unsupported(what: &'static str, name: Option<&str>, known: &'static str) -> TokenizerError {
    TokenizerError::Unsupported { what, name: name.unwrap_or("none").to_string(), known }
}
