//! Text to token ids and back, exactly as the model's own tokenizer does it.
//!
//! * [`Tokenizer`]: from `tokenizer.json` and the files beside it, or from a GGUF's metadata; an unknown kind is
//!   refused, never guessed.
//! * [`ChatTemplate`]: the model's Jinja template, rendered so that what people write can't become control tokens.
//! * [`Stream`]: ids to text as they come: whole characters only, stop strings across token borders.
//!
//! Not here: choosing tokens (`sample`) and knowing what a stage is.

mod bounded;
mod chat;
mod credulous;
mod decode;
mod gguf;
mod json;
#[cfg(test)]
mod laws;
mod pretokenize;
mod specials;
mod spm;
mod stream;
mod tokenizer;

pub use chat::{ChatError, ChatTemplate, Message, Moment};
pub(crate) use json::checked_tokenizer;
pub use stream::{Piece, Stream};
pub use tokenizer::{EncodeError, Files, Tokenizer, TokenizerError};
