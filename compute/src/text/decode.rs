//! What bytes each token stands for.
//!
//! Not a stream: joining the bytes into characters is `stream`'s. Invariant: the text of a list of ids is the
//! concatenation of their bytes, read as UTF-8 with U+FFFD for what is not, less the one leading space that some
//! tokenizers put there themselves.

/// The bytes of every id, in one allocation.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    special: Vec<bool>,
    /// The tokenizer puts a space before a text, and decoding takes it away.
    pub(super) strips_leading_space: bool,
}

/// How a tokenizer writes bytes as token text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's: every byte has a printable character.
    ByteLevel,
    /// SentencePiece's: U+2581 is a space, `<0xAB>` a byte.
    Spm,
}

impl Pieces {
    pub(super) fn new(strips_leading_space: bool) -> Pieces {
        Pieces { strips_leading_space, ..Pieces::default() }
    }

    /// Adds the next id's piece; a special one has no text.
    pub(super) fn push(&mut self, bytes: &[u8], special: bool) {
        if !special {
            self.bytes.extend_from_slice(bytes);
        }
        self.ends.push(self.bytes.len() as u32);
        self.special.push(special);
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Empty for special and unknown ids.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..*end as usize]
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }
}

impl Spelling {
    /// The bytes that a token's text stands for.
    pub(super) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Spelling::ByteLevel => byte_level(token).unwrap_or_else(|| token.as_bytes().to_vec()),
            Spelling::Spm => byte_token(token).map_or_else(|| token.replace('\u{2581}', " ").into_bytes(), |b| vec![b]),
        }
    }
}

/// `<0xAB>` → 0xAB.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn byte_level(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

/// Inverse of GPT-2's `bytes_to_unicode`: printable Latin-1 stands for itself, the 68 others are moved up to U+0100 in
/// order.
fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_characters_cover_every_byte_once() {
        let mut seen: Vec<u8> = (0u32..0x200).filter_map(char::from_u32).filter_map(byte_of).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert_eq!(Spelling::ByteLevel.bytes("Ġthe"), b" the");
        assert_eq!(Spelling::ByteLevel.bytes("Ċ"), b"\n");
    }

    #[test]
    fn spm_pieces_are_spaces_bytes_and_text() {
        assert_eq!(Spelling::Spm.bytes("\u{2581}the"), b" the");
        assert_eq!(Spelling::Spm.bytes("<0x0A>"), b"\n");
        assert_eq!(Spelling::Spm.bytes("<0x0>"), b"<0x0>");
    }
}
