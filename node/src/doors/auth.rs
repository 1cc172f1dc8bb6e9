//! Who may call what at the gRPC door.
//!
//! On loopback, reads and generation need nothing; calls that take a path, sign or administer need the home's token. On
//! any other address every call needs it. Not here: grants, which are about peers and not about clients.
//!
//! Invariant: tokens are compared in constant time and never logged.

use cairn_protocol::refusal::{Reason, Refusal};
use tonic::metadata::MetadataMap;

/// The token's hash. blake3's equality takes the same time whatever differs, and the token itself need not be kept.
#[derive(Clone)]
pub struct Auth {
    token: blake3::Hash,
    everywhere: bool,
}

impl Auth {
    /// `everywhere`: each call needs the token, even one that only reads.
    pub fn new(token: &str, everywhere: bool) -> Auth {
        Auth { token: blake3::hash(token.as_bytes()), everywhere }
    }

    /// For calls that take a path, sign or administer; `call` names it to the person.
    pub fn require(&self, metadata: &MetadataMap, call: &str) -> Result<(), Refusal> {
        let Some(presented) = bearer(metadata) else {
            return Err(refused(call, "it needs the daemon's token, and none was sent"));
        };
        if blake3::hash(presented.as_bytes()) == self.token {
            Ok(())
        } else {
            Err(refused(call, "the token is not this daemon's"))
        }
    }

    /// For every call: passes on loopback.
    pub fn admit(&self, metadata: &MetadataMap) -> Result<(), Refusal> {
        if self.everywhere { self.require(metadata, "this door") } else { Ok(()) }
    }
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn refused(call: &str, why: &str) -> Refusal {
    Refusal::new(Reason::TokenRequired, call, why).try_this(
        "metadata `authorization: Bearer TOKEN` with the token in HOME/api.token; or the same --home as the daemon's",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", value.parse().unwrap());
        metadata
    }

    #[test]
    fn only_the_whole_token_opens() {
        let auth = Auth::new("abcd", false);
        assert!(auth.require(&metadata("Bearer abcd"), "publish").is_ok());
        assert!(auth.require(&metadata("bearer abcd"), "publish").is_ok());
        for wrong in ["Bearer abc", "Bearer abcde", "Bearer", "abcd", "Basic abcd", "Bearer "] {
            assert_eq!(auth.require(&metadata(wrong), "publish").unwrap_err().reason, Reason::TokenRequired, "{wrong}");
        }
        assert!(auth.require(&MetadataMap::new(), "publish").is_err());
    }

    #[test]
    fn off_loopback_every_call_needs_the_token() {
        assert!(Auth::new("abcd", false).admit(&MetadataMap::new()).is_ok());
        assert!(Auth::new("abcd", true).admit(&MetadataMap::new()).is_err());
        assert!(Auth::new("abcd", true).admit(&metadata("Bearer abcd")).is_ok());
    }
}
