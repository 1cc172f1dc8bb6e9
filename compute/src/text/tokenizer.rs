//! The tokenizer as the rest of the crate sees it.
//!
//! Not the algorithms: encoding is done by the `tokenizers` crate or by `spm`, with special tokens kept out of their
//! reach. Special tokens are found here, and only in text that may hold them. Invariants: [`Tokenizer::encode_plain`]
//! and what people wrote in [`Tokenizer::encode_chat`] never become a special token; where a text holds no special
//! token, all ways of encoding it agree.

use super::chat::{self, ChatError, ChatTemplate, Message, Moment};
use super::decode::Pieces;
use super::specials::{Part, Specials};
use super::spm::Spm;
use super::stream::Stream;
use super::{gguf, json};
use cairn_protocol::gguf::GgufHeader;
use std::sync::Arc;

/// Largest `tokenizer.json` that is read: twice the largest known (Gemma's).
pub(super) const TOKENIZER_BYTES_MAX: usize = 64 << 20;
/// Most ids of a vocabulary: eight times the largest known.
pub(super) const VOCABULARY_MAX: usize = 1 << 21;

/// Text to ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    pub(super) encoder: Encoder,
    pub(super) specials: Specials,
    pub(super) pieces: Arc<Pieces>,
    pub(super) bos: Option<u32>,
    pub(super) adds_bos: bool,
    pub(super) eos: Vec<u32>,
    pub(super) template: Option<ChatTemplate>,
}

/// Encodes a run of text that holds no special token.
#[derive(Debug)]
pub(super) enum Encoder {
    /// `later` is for runs after a special token, where that differs.
    Hub {
        first: Box<tokenizers::Tokenizer>,
        later: Option<Box<tokenizers::Tokenizer>>,
    },
    Spm(Spm),
}

/// The files of a model's folder that say how it reads and writes text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`: chat template, special tokens by role.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `special_tokens_map.json`.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `generation_config.json`: the ids that end a generation.
    pub generation_config: Option<&'a [u8]>,
    /// `config.json`: the same, older.
    pub config: Option<&'a [u8]>,
    /// `chat_template.jinja`, which goes before the config's.
    pub chat_template: Option<&'a [u8]>,
}

/// Why there is no tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A file or field is not what its format says.
    #[error("{file} is malformed: {why}")]
    Malformed {
        /// Which file, or which metadata key.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// More than is ever read.
    #[error("{what} is larger than anything known: {size}, at most {most}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Bytes or entries.
        size: usize,
        /// The bound.
        most: usize,
    },
    /// A kind of tokenizer that would give wrong ids if guessed at.
    #[error("{what} {name:?} is not supported, and guessing would give wrong tokens (known: {known})")]
    Unsupported {
        /// Which part.
        what: &'static str,
        /// Its name.
        name: String,
        /// What would be.
        known: &'static str,
    },
}

/// Why a text has no ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The tokenizer's own pattern failed on this text.
    #[error("the tokenizer can't encode this text: {0}")]
    Tokenizer(String),
    /// The chat template failed.
    #[error(transparent)]
    Chat(#[from] ChatError),
}

impl Tokenizer {
    /// From a `tokenizer.json` and the files beside it.
    pub fn from_files(files: &Files) -> Result<Tokenizer, TokenizerError> {
        json::read(files)
    }

    /// From a `tokenizer.json` and, if there is one, its `tokenizer_config.json`.
    pub fn from_json(tokenizer: &[u8], tokenizer_config: Option<&[u8]>) -> Result<Tokenizer, TokenizerError> {
        json::read(&Files { tokenizer, tokenizer_config, ..Files::default() })
    }

    /// From a GGUF's metadata.
    pub fn from_gguf(header: &GgufHeader) -> Result<Tokenizer, TokenizerError> {
        gguf::read(header)
    }

    /// The files of a Hugging Face folder, by name, that give the tokenizer of a GGUF's metadata. Refused for all but
    /// byte-pair models.
    pub fn hub_files(header: &GgufHeader) -> Result<Vec<(&'static str, String)>, TokenizerError> {
        gguf::hub_files(header)
    }

    /// A raw prompt: special tokens in it are parsed; BOS goes before it if the tokenizer says so (once, if the prompt
    /// begins with it already).
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let ids = self.encode_cut(text, &[])?;
        Ok(self.with_bos(ids))
    }

    /// Text as nothing but text: no special token is parsed, no BOS added.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::new();
        self.encode_run(text, &mut ids)?;
        Ok(ids)
    }

    /// A conversation through the model's chat template, ready for the assistant's answer. What the messages say never
    /// becomes a special token. A model without a template gets the messages' texts, one after the other.
    pub fn encode_chat(&self, messages: &[Message], now: Moment) -> Result<Vec<u32>, EncodeError> {
        chat::check(messages)?;
        let Some(template) = &self.template else {
            let texts: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
            let ids = self.encode_plain(&texts.join("\n\n"))?;
            return Ok(self.with_bos(ids));
        };
        let rendered = template.render(messages, now, &self.specials)?;
        let ids = self.encode_cut(&rendered.text, &rendered.forbidden)?;
        Ok(self.with_bos(ids))
    }

    /// The text of all ids; special tokens have none.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut stream = Stream::new(self.pieces.clone(), self.pieces.strips_leading_space, Vec::new());
        let mut text = String::new();
        for id in ids {
            text += &stream.push(*id).text;
        }
        text + &stream.finish()
    }

    /// An incremental decoder for what follows `prompt`. The leading space that some tokenizers add is taken away only
    /// where the text begins, that is where the prompt holds nothing but special tokens.
    pub fn stream(&self, prompt: &[u32], stops: Vec<String>) -> Stream {
        let begins = prompt.iter().all(|id| self.pieces.is_special(*id));
        Stream::new(self.pieces.clone(), begins && self.pieces.strips_leading_space, stops)
    }

    /// An incremental decoder of every character, the leading space too: for text that follows a grammar.
    pub fn stream_exactly(&self, stops: Vec<String>) -> Stream {
        Stream::new(self.pieces.clone(), false, stops)
    }

    /// Ids that end a generation, sorted; the model's own configuration may name more.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// The id that begins a text, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Number of ids.
    pub fn vocabulary(&self) -> usize {
        self.pieces.len()
    }

    /// Whether an id is a special token, which has no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The bytes that a token adds to a text; none of special tokens and of unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.pieces.bytes(id)
    }

    /// The model's chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    fn with_bos(&self, ids: Vec<u32>) -> Vec<u32> {
        match self.bos {
            Some(bos) if self.adds_bos && ids.first() != Some(&bos) => std::iter::once(bos).chain(ids).collect(),
            _ => ids,
        }
    }

    fn encode_cut(&self, text: &str, forbidden: &[usize]) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::new();
        for part in self.specials.cut(text, forbidden) {
            match part {
                Part::Special(id) => ids.push(id),
                Part::Run(run) => self.encode_run(run, &mut ids)?,
            }
        }
        Ok(ids)
    }

    fn encode_run(&self, run: &str, ids: &mut Vec<u32>) -> Result<(), EncodeError> {
        match &self.encoder {
            Encoder::Spm(spm) => spm.encode(run, ids),
            Encoder::Hub { first, later } => {
                let tokenizer = if ids.is_empty() { first } else { later.as_ref().unwrap_or(first) };
                let encoding = tokenizer.encode_fast(run, false).map_err(|e| EncodeError::Tokenizer(e.to_string()))?;
                ids.extend_from_slice(encoding.get_ids());
            }
        }
        Ok(())
    }
}
