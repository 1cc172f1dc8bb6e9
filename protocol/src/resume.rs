//! What a client needs to let another node go on with a generation whose node died. Not the tokens that it received: those it
//! has. Invariant: any text is a token or a typed error.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;

use crate::api::{GenerateRequest, Token};
use crate::id::RevisionId;

/// Revision and seed stand before the prompt's ids.
const HEAD_BYTES: usize = 32 + 8;
/// Ends a token that names an adapter, whose revision stands before it; no other token's length is one more than whole words.
const WITH_ADAPTER: u8 = 1;

/// A generation's revision, seed, prompt and adapter. As a text: base64url without padding of 32 bytes of revision, 8 bytes of
/// seed and 4 bytes for each id of the prompt, numbers little-endian; with an adapter, then its revision's 32 bytes and a byte 1
/// (which a reader that knows no adapters refuses).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeToken {
    /// The revision.
    pub revision: RevisionId,
    /// The seed of its dice.
    pub seed: u64,
    /// The prompt as the model reads it.
    pub prompt: Vec<u32>,
    /// The adapter's revision, if there was one.
    pub adapter: Option<RevisionId>,
}

/// The text is not a resume token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a resume token")]
pub struct NoResumeToken;

impl ResumeToken {
    /// The request that goes on after `received`, made of the one that was begun. What follows is what would have followed. Of several
    /// answers it goes on with the first; set `sample_index` to go on with another.
    pub fn request(&self, begun: GenerateRequest, received: &[Token]) -> GenerateRequest {
        let at = |name: &str, revision: RevisionId| {
            format!("{}@{revision}", name.split_once('@').map_or(name, |(repo, _)| repo))
        };
        GenerateRequest {
            repo: at(&begun.repo, self.revision),
            adapter: self.adapter.map_or_else(String::new, |revision| at(&begun.adapter, revision)),
            prompt: String::new(),
            messages: Vec::new(),
            token_ids: self.prompt.iter().copied().chain(received.iter().map(|token| token.id)).collect(),
            seed: Some(self.seed),
            n: 1,
            generated: begun.generated.saturating_add(u32::try_from(received.len()).unwrap_or(u32::MAX)),
            max_tokens: begun.max_tokens.saturating_sub(u32::try_from(received.len()).unwrap_or(u32::MAX)),
            ..begun
        }
    }
}

impl fmt::Display for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.revision.as_bytes().to_vec();
        bytes.extend_from_slice(&self.seed.to_le_bytes());
        bytes.extend(self.prompt.iter().flat_map(|id| id.to_le_bytes()));
        if let Some(adapter) = self.adapter {
            bytes.extend_from_slice(adapter.as_bytes());
            bytes.push(WITH_ADAPTER);
        }
        f.write_str(&BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for ResumeToken {
    type Err = NoResumeToken;

    fn from_str(text: &str) -> Result<Self, NoResumeToken> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| NoResumeToken)?;
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or(NoResumeToken)?;
        let (prompt, adapter) = match rest.split_last() {
            Some((&WITH_ADAPTER, rest)) if rest.len().is_multiple_of(4) => {
                let (prompt, adapter) = rest.split_last_chunk::<32>().ok_or(NoResumeToken)?;
                (prompt, Some(RevisionId::from(*adapter)))
            }
            _ => (rest, None),
        };
        let (ids, rest) = prompt.as_chunks::<4>();
        let (revision, seed) = head.split_first_chunk::<32>().ok_or(NoResumeToken)?;
        let seed = seed.try_into().map_err(|_| NoResumeToken)?;
        if !rest.is_empty() {
            return Err(NoResumeToken);
        }
        Ok(Self {
            revision: RevisionId::from(*revision),
            seed: u64::from_le_bytes(seed),
            prompt: ids.iter().map(|id| u32::from_le_bytes(*id)).collect(),
            adapter,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_token_reads_as_what_was_written(
            revision in any::<[u8; 32]>(), seed in any::<u64>(), prompt in prop::collection::vec(any::<u32>(), 0..40),
            adapter in any::<Option<[u8; 32]>>()
        ) {
            let adapter = adapter.map(RevisionId::from);
            let token = ResumeToken { revision: RevisionId::from(revision), seed, prompt, adapter };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn any_text_is_a_token_or_an_error(text in "[A-Za-z0-9_=-]{0,80}|.{0,40}") {
            if let Ok(token) = text.parse::<ResumeToken>() {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }

    #[test]
    fn what_was_received_is_not_made_again() {
        let token = ResumeToken { revision: RevisionId::from([7; 32]), seed: 3, prompt: vec![1, 2], adapter: None };
        let begun = GenerateRequest {
            repo: "acme/tiny@main".into(),
            prompt: "Once".into(),
            max_tokens: 10,
            top_k: 5,
            ..Default::default()
        };
        let on = token.request(GenerateRequest { n: 3, ..begun }, &[Token { id: 9, ..Default::default() }]);
        assert_eq!(on.repo, format!("acme/tiny@{}", token.revision));
        assert_eq!((on.token_ids, on.max_tokens, on.seed, on.top_k), (vec![1, 2, 9], 9, Some(3), 5));
        assert!(on.prompt.is_empty() && on.adapter.is_empty());
        assert_eq!((on.n, on.generated), (1, 1), "a grammar goes on from what was received");
    }

    #[test]
    fn an_adapter_goes_on_at_its_revision() {
        let adapter = Some(RevisionId::from([8; 32]));
        let token = ResumeToken { revision: RevisionId::from([7; 32]), seed: 3, prompt: vec![1], adapter };
        let begun =
            GenerateRequest { repo: "acme/tiny".into(), adapter: "adapters/acme/x@v1".into(), ..Default::default() };
        assert_eq!(token.request(begun, &[]).adapter, format!("adapters/acme/x@{}", RevisionId::from([8; 32])));
    }
}
