//! How a refusal looks on the wire: one table for every door, which is the reason's own.
//!
//! gRPC gets a `google.rpc.Status` whose one detail is the `cairn.v1.Refusal`; HTTP gets a status and an `error` object.

use cairn_protocol::refusal::Refusal;
use tonic::{Code, Status};

/// Headers of a response are bounded, so texts that quote a user's input are cut to this.
const TEXT_BYTES_MAX: usize = 1024;

/// The status of a refused call.
pub fn status(refusal: &Refusal) -> Status {
    let short =
        Refusal { reason: refusal.reason, what: cut(&refusal.what), why: cut(&refusal.why), try_: cut(&refusal.try_) };
    Status::with_details(Code::from(short.reason.grpc()), short.to_string(), short.to_details().into())
}

/// The body of a refused HTTP request.
pub fn body(refusal: &Refusal) -> serde_json::Value {
    serde_json::json!({"error": {
        "code": refusal.reason.code(), "what": refusal.what, "why": refusal.why, "try": refusal.try_,
    }})
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_protocol::refusal::Reason;

    #[test]
    fn a_refusal_survives_the_wire_whole() {
        let refusal = Refusal::new(Reason::NotFound, "acme/x", "nobody published it").try_this("cairn ls");
        let status = status(&refusal);
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(Refusal::from_details(status.details()), Some(refusal.clone()));
        assert_eq!(body(&refusal)["error"]["try"], "cairn ls");
    }

    #[test]
    fn a_text_that_quotes_much_input_is_cut_at_a_character() {
        let status = status(&Refusal::new(Reason::BadInput, "ü".repeat(100_000), "x").try_this("y"));
        assert!(status.details().len() < 8192);
    }
}
