//! Why something was not done, for people and for programs. Not an error of any one operation: those convert into this at
//! the edge. Invariant: one table says what a reason is called, and what gRPC, HTTP and the exit code make of it.

use std::fmt;

use prost::Message;

use crate::{api, rpc_pb};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident: $code:literal, $grpc:literal, $http:literal, $exit:literal;)*) => {
        /// Why, as a word that programs may match on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word in messages: `not_found`.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The gRPC status code.
            pub const fn grpc(self) -> i32 {
                match self { $(Self::$name => $grpc,)* }
            }

            /// The HTTP status.
            pub const fn http(self) -> u16 {
                match self { $(Self::$name => $http,)* }
            }

            /// The command line's exit code: 1 failed, 2 wrong usage, 3 not found, 4 refused, 5 unavailable.
            pub const fn exit(self) -> u8 {
                match self { $(Self::$name => $exit,)* }
            }
        }
    };
}

reasons! {
    /// The request is malformed.
    BadInput: "bad_input", 3, 400, 2;
    /// No such repo, ref, revision, file or session.
    NotFound: "not_found", 5, 404, 3;
    /// Several things have that name.
    Ambiguous: "ambiguous", 9, 409, 4;
    /// It is there already.
    Exists: "exists", 6, 409, 4;
    /// The node grants this to others.
    NoGrant: "no_grant", 7, 403, 4;
    /// Not enough memory for the stage.
    NoMemory: "no_memory", 8, 507, 4;
    /// Below what the plan needs.
    TooSlow: "too_slow", 9, 503, 5;
    /// No way to the node.
    Unreachable: "unreachable", 14, 503, 5;
    /// Bits would differ between its kernels and the others'.
    WrongInstructionSet: "wrong_instruction_set", 9, 503, 5;
    /// At its bound of sessions, loads or queued work.
    Busy: "busy", 8, 429, 5;
    /// The request's privacy class keeps the work from there.
    Privacy: "privacy", 7, 403, 4;
    /// Known, and not done here.
    Unsupported: "unsupported", 12, 501, 4;
    /// The call needs the API token.
    TokenRequired: "token_required", 16, 401, 4;
    /// The HTTP Host or Origin is not this node's.
    HostRefused: "host_refused", 7, 403, 4;
    /// Larger or more than a stated bound.
    Limit: "limit", 8, 413, 4;
    /// The publisher is not trusted for this.
    Untrusted: "untrusted", 7, 403, 4;
    /// The operator's policy refuses it: an advisory says why.
    Policy: "policy", 7, 403, 4;
    /// The scan found files that may run something by being opened.
    UnsafeFiles: "unsafe_files", 9, 422, 4;
    /// Bytes don't match their hash.
    Corrupt: "corrupt", 15, 500, 1;
    /// No reachable node holds the bytes.
    NoHolder: "no_holder", 14, 503, 5;
    /// Time ran out.
    Deadline: "deadline", 4, 504, 5;
    /// The caller went away.
    Cancelled: "cancelled", 1, 499, 1;
    /// A fault of this program.
    Internal: "internal", 13, 500, 1;
    /// The disk has no room.
    DiskFull: "disk_full", 8, 507, 1;
    /// Somebody else changed it first.
    Conflict: "conflict", 10, 409, 1;
    /// Not signed by its key.
    BadSignature: "bad_signature", 15, 502, 4;
    /// Fewer usable nodes than asked for.
    TooFewNodes: "too_few_nodes", 9, 503, 5;
    /// The daemon is not running, not ready, or stopping.
    Unavailable: "unavailable", 14, 503, 5;
}

impl Reason {
    /// From the word in a message.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

/// What was not done, why, and what to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// What it is about: `acme/tiny`.
    pub what: String,
    /// Why, as a phrase.
    pub why: String,
    /// What to try: a command or a change; may be empty.
    pub try_: String,
}

/// Longest text of a refusal that is taken from a peer or a server.
const TEXT_BYTES_MAX: usize = 4096;
const DETAIL_TYPE: &str = "type.googleapis.com/cairn.v1.Refusal";

impl Refusal {
    /// A refusal without advice.
    pub fn new(reason: Reason, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { reason, what: what.into(), why: why.into(), try_: String::new() }
    }

    /// The same with advice.
    pub fn try_this(self, advice: impl Into<String>) -> Self {
        Self { try_: advice.into(), ..self }
    }

    /// A fault of this program.
    pub fn internal(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(Reason::Internal, what, why.to_string())
    }

    /// The message of the public API.
    pub fn to_pb(&self) -> api::Refusal {
        api::Refusal {
            reason: self.reason.code().to_owned(),
            what: self.what.clone(),
            why: self.why.clone(),
            r#try: self.try_.clone(),
        }
    }

    /// From the message; a reason that is not known here becomes `internal`.
    pub fn from_pb(pb: api::Refusal) -> Self {
        Self {
            reason: Reason::from_code(&pb.reason).unwrap_or(Reason::Internal),
            what: cut(pb.what),
            why: cut(pb.why),
            try_: cut(pb.r#try),
        }
    }

    /// The encoded google.rpc.Status for `grpc-status-details-bin`.
    pub fn to_details(&self) -> Vec<u8> {
        let detail = prost_types::Any { type_url: DETAIL_TYPE.to_owned(), value: self.to_pb().encode_to_vec() };
        rpc_pb::Status { code: self.reason.grpc(), message: self.to_string(), details: vec![detail] }.encode_to_vec()
    }

    /// From the details of a failed call; `None` when they hold no refusal.
    pub fn from_details(details: &[u8]) -> Option<Self> {
        let status = rpc_pb::Status::decode(details).ok()?;
        let detail = status.details.into_iter().find(|detail| detail.type_url == DETAIL_TYPE)?;
        api::Refusal::decode(&detail.value[..]).ok().map(Self::from_pb)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what.is_empty() {
            true => f.write_str(&self.why)?,
            false => write!(f, "{}: {}", self.what, self.why)?,
        }
        match self.try_.is_empty() {
            true => Ok(()),
            false => write!(f, " (try: {})", self.try_),
        }
    }
}

impl std::error::Error for Refusal {}

/// Cuts at a character's edge.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word_and_sound_codes() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
            assert!(
                (1..=16).contains(&reason.grpc())
                    && (400..600).contains(&reason.http())
                    && (1..=5).contains(&reason.exit())
            );
        }
    }

    #[test]
    fn a_refusal_survives_the_details_of_a_call() {
        let refusal = Refusal::new(Reason::NoHolder, "acme/tiny", "no reachable node holds it").try_this("cairn peers");
        assert_eq!(Refusal::from_details(&refusal.to_details()), Some(refusal.clone()));
        assert_eq!(refusal.to_string(), "acme/tiny: no reachable node holds it (try: cairn peers)");
        assert_eq!(Refusal::from_details(b"\xff\xff"), None);
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let refusal = Refusal::from_pb(api::Refusal { what: "é".repeat(4000), ..Default::default() });
        assert!(refusal.what.len() <= TEXT_BYTES_MAX && refusal.what.ends_with('é'));
    }
}
