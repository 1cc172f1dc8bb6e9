//! How a GGUF's `tokenizer.ggml.pre` cuts text before byte-pair merging.
//!
//! Not complete on purpose: the names here are those whose cut is known; any other is refused by the caller. The
//! patterns are those of the tokenizers themselves (GPT-2, Llama 3, Qwen2, StarCoder), as llama.cpp names them.

/// Names accepted, for errors.
pub(super) const KNOWN: &str = "default, gpt-2, phi-2, olmo, mpt, smollm, starcoder, refact, command-r, llama-bpe, llama3, llama-v3, qwen2, deepseek-r1-qwen";

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Applied one after the other; every match and everything between matches is a piece.
    pub patterns: &'static [&'static str],
    /// A piece that is a token as it is is not merged up to it.
    pub whole_pieces: bool,
    /// Text is brought into Unicode's NFC first.
    pub nfc: bool,
    /// Whether BOS is added where the file does not say.
    pub adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The cut that a name stands for.
pub(super) fn cut(pre: &str) -> Option<Cut> {
    let plain = Cut { patterns: &[GPT2], whole_pieces: false, nfc: false, adds_bos: false };
    Some(match pre {
        "gpt-2" | "phi-2" | "olmo" | "mpt" => plain,
        "default" => Cut { patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], ..plain },
        "smollm" | "starcoder" | "refact" | "command-r" => Cut { patterns: &[r"\p{N}", GPT2], ..plain },
        "llama-bpe" | "llama3" | "llama-v3" => Cut { patterns: &[LLAMA3], whole_pieces: true, adds_bos: true, ..plain },
        "qwen2" | "deepseek-r1-qwen" => Cut { patterns: &[QWEN2], nfc: true, ..plain },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_has_a_cut_and_no_other() {
        assert!(KNOWN.split(", ").all(|name| cut(name).is_some()));
        assert_eq!(cut("deepseek-llm"), None);
        assert_eq!(cut(""), None);
    }
}
