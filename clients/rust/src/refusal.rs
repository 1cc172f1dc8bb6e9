//! From gRPC's status back to the refusal that the daemon meant.
//!
//! A daemon puts a `google.rpc.Status` with one `cairn.v1.Refusal` in the details; a proxy, an older daemon or the library
//! itself does not, and then the code alone has to do.

use cairn_protocol::refusal::{Reason, Refusal};
use tonic::{Code, Status};

/// What a failed call says.
pub fn from_status(status: &Status) -> Refusal {
    Refusal::from_details(status.details()).unwrap_or_else(|| match std::error::Error::source(status) {
        Some(cause) => broken(cause),
        None => by_code(status),
    })
}

/// The library has no answer at all: the connection broke, whatever code it chose for that.
fn broken(mut cause: &dyn std::error::Error) -> Refusal {
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let why = format!("the connection to the daemon broke: {cause}");
    Refusal::new(Reason::Unavailable, "the call", why).try_this("cairn status")
}

fn by_code(status: &Status) -> Refusal {
    let why = match status.message() {
        "" => status.code().description().to_string(),
        message => message.to_string(),
    };
    let tip = match status.code() {
        Code::Unavailable => "cairn status",
        Code::ResourceExhausted | Code::OutOfRange => "a smaller request",
        Code::Unimplemented => "a daemon of this client's version",
        _ => "the daemon's log",
    };
    Refusal::new(reason(status.code()), "the call", why).try_this(tip)
}

fn reason(code: Code) -> Reason {
    match code {
        Code::InvalidArgument | Code::FailedPrecondition => Reason::BadInput,
        Code::OutOfRange | Code::ResourceExhausted => Reason::Limit,
        Code::NotFound => Reason::NotFound,
        Code::AlreadyExists => Reason::Exists,
        Code::Unauthenticated | Code::PermissionDenied => Reason::TokenRequired,
        Code::DeadlineExceeded => Reason::Deadline,
        Code::Cancelled => Reason::Cancelled,
        Code::Unavailable => Reason::Unavailable,
        Code::Unimplemented => Reason::Unsupported,
        Code::DataLoss => Reason::Corrupt,
        Code::Aborted => Reason::Conflict,
        Code::Ok | Code::Unknown | Code::Internal => Reason::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_without_details_still_has_a_reason() {
        let refusal = from_status(&Status::unavailable("connection closed"));
        assert_eq!(refusal.reason, Reason::Unavailable);
        assert_eq!(refusal.why, "connection closed");
    }

    #[test]
    fn garbage_in_the_details_is_no_refusal() {
        let status = Status::with_details(Code::NotFound, "gone", vec![0xff; 40].into());
        assert_eq!(from_status(&status).reason, Reason::NotFound);
    }
}
