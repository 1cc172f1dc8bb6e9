//! A text as training data: a byte-pair tokenizer learnt from it, and windows of its tokens.
//!
//! Not a dataset library: one text, one split, windows drawn by a counter-based generator, so that step `n` of a run
//! sees the same windows however the run was interrupted.

use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer, TokenizerBuilder,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    normalizers::NormalizerWrapper,
    pre_tokenizers::byte_level::ByteLevel,
};

/// The one special token: the end of a text.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Share of a text, from its end, that is held out: one token in this many.
const HELD_OUT_ONE_IN: usize = 20;

/// Why a text can't be trained on.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The tokenizer library failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Too little text for one window to train on and one to hold out.
    #[error("the text has {tokens} tokens, fewer than the {needed} that windows of this length need")]
    TooShort {
        /// Tokens in the text.
        tokens: usize,
        /// Tokens needed.
        needed: usize,
    },
}

/// Token ids of a text, the last part held out.
#[derive(Debug, Clone)]
pub struct Corpus {
    train: Vec<u32>,
    held_out: Vec<u32>,
}

/// Learns a byte-level BPE tokenizer of `vocabulary` entries from `text`.
///
/// Byte-pair encoding after Sennrich et al. 2016 ("Neural Machine Translation of Rare Words with Subword Units",
/// section 3.2), over bytes, so that any text can be encoded.
pub fn learn_tokenizer(text: &str, vocabulary: usize) -> Result<Tokenizer, CorpusError> {
    let failed = |e: tokenizers::Error| CorpusError::Tokenizer(e.to_string());
    let mut trainer = TrainerWrapper::from(
        BpeTrainerBuilder::new()
            .vocab_size(vocabulary)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build(),
    );
    let bytes = ByteLevel::new(false, false, true);
    let mut tokenizer = TokenizerBuilder::<
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default().into())
    .with_pre_tokenizer(Some(bytes.into()))
    .with_decoder(Some(ByteLevel::default().into()))
    .build()
    .map_err(failed)?;
    tokenizer.train(&mut trainer, text.split_inclusive('\n')).map_err(failed)?;
    serde_json::to_vec(&tokenizer)
        .map_err(|e| CorpusError::Tokenizer(e.to_string()))
        .and_then(|json| Tokenizer::from_bytes(json).map_err(failed))
}

impl Corpus {
    /// Encodes `text` and holds out its end; both parts must have room for a window of `window + 1` tokens.
    pub fn new(text: &str, tokenizer: &Tokenizer, window: usize) -> Result<Self, CorpusError> {
        let encoded = tokenizer.encode(text, false).map_err(|e| CorpusError::Tokenizer(e.to_string()))?;
        let ids = encoded.get_ids();
        let cut = ids.len() - ids.len() / HELD_OUT_ONE_IN;
        if ids.len() - cut < window + 1 || cut < window + 1 {
            return Err(CorpusError::TooShort { tokens: ids.len(), needed: (window + 1) * HELD_OUT_ONE_IN });
        }
        Ok(Self { train: ids[..cut].to_vec(), held_out: ids[cut..].to_vec() })
    }

    /// Tokens to train on.
    pub fn train_tokens(&self) -> usize {
        self.train.len()
    }

    /// `count` windows of `window + 1` tokens for `step`, drawn with `seed`.
    pub fn windows(&self, seed: u64, step: u64, count: usize, window: usize) -> Vec<&[u32]> {
        let room = (self.train.len() - window) as u64;
        let at = |i: usize| (draw(seed, step, i as u64) % room) as usize;
        (0..count).map(|i| &self.train[at(i)..at(i) + window + 1]).collect()
    }

    /// The held-out part as whole windows, one after the other.
    pub fn held_out_windows(&self, window: usize) -> Vec<&[u32]> {
        (0..(self.held_out.len() - 1) / window).map(|i| &self.held_out[i * window..i * window + window + 1]).collect()
    }
}

/// A number for (seed, stream, index): SplitMix64's finaliser (Steele et al. 2014, "Fast Splittable Pseudorandom
/// Number Generators") over the three, so that any draw can be made without those before it.
pub fn draw(seed: u64, stream: u64, index: u64) -> u64 {
    let mixed = mix(seed ^ 0x9E37_79B9_7F4A_7C15);
    mix(mix(mixed ^ stream).wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "To be, or not to be, that is the question.\nWhether 'tis nobler in the mind to suffer.\n";

    #[test]
    fn a_learnt_tokenizer_gives_any_text_back() {
        let tokenizer = learn_tokenizer(&TEXT.repeat(30), 300).expect("learn");
        for text in ["to be question", "naïve Ωmega 🦀", "\n\n  two  spaces\t", ""] {
            let ids = tokenizer.encode(text, false).expect("encode");
            assert_eq!(tokenizer.decode(ids.get_ids(), false).expect("decode"), text);
        }
    }

    #[test]
    fn a_step_sees_the_same_windows_twice_and_another_step_sees_others() {
        let text = TEXT.repeat(60);
        let tokenizer = learn_tokenizer(&text, 300).expect("learn");
        let corpus = Corpus::new(&text, &tokenizer, 8).expect("corpus");
        assert_eq!(corpus.windows(1, 5, 4, 8), corpus.windows(1, 5, 4, 8));
        assert_ne!(corpus.windows(1, 5, 4, 8), corpus.windows(1, 6, 4, 8));
    }

    #[test]
    fn a_text_shorter_than_a_window_is_refused() {
        let tokenizer = learn_tokenizer(&TEXT.repeat(30), 300).expect("learn");
        assert!(matches!(Corpus::new(TEXT, &tokenizer, 64), Err(CorpusError::TooShort { .. })));
    }
}
