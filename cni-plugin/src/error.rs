//! Errors as the specification writes them, and which code a failed request to the daemon becomes.

use crate::config::Version;
use bulkhead_api::{
    client::ClientError,
    messages::{ErrorReply, code},
};
use serde_json::{Value, json};

/// `msg` is what is wrong in one line, `details` why and what to do.
pub fn new(code: u32, msg: impl Into<String>, details: impl ToString) -> ErrorReply {
    ErrorReply { code, msg: msg.into(), details: details.to_string() }
}

/// Specification, section "Error".
pub fn object(error: &ErrorReply, version: Version) -> Value {
    json!({
        "cniVersion": version.text(),
        "code": error.code,
        "msg": error.msg,
        "details": error.details,
    })
}

/// Whether the daemon gave no answer at all, so that the request may have been carried out or not.
pub fn is_unanswered(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { .. } | ClientError::Deadline(_) | ClientError::Io(_) => true,
        ClientError::Reply(_) | ClientError::Refused(_) => false,
    }
}

/// ADD, DEL, CHECK and GC.
pub fn from_client(error: ClientError) -> ErrorReply {
    match error {
        ClientError::Refused(reply) => reply,
        ClientError::Reply(_) => new(
            code::DECODE_FAILURE,
            "bulkheadd answered something that bulkhead-cni does not understand",
            format!("{error}; check that both are of the same version and that `socket` is bulkheadd's"),
        ),
        _ => new(code::TRY_AGAIN_LATER, "bulkheadd does not answer, try again later", what_to_do(&error)),
    }
}

/// STATUS: whatever is wrong, an ADD would not work now.
pub fn from_client_status(error: ClientError) -> ErrorReply {
    match error {
        ClientError::Refused(reply) => reply,
        _ => new(code::NOT_AVAILABLE, "bulkheadd does not answer, no pod can be added", what_to_do(&error)),
    }
}

fn what_to_do(error: &ClientError) -> String {
    format!(
        "{error}; check that bulkheadd runs on this node and see its log; pods that run keep their network"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io, time::Duration};

    fn failures() -> [ClientError; 5] {
        [
            ClientError::Connect {
                path: "/run/b.sock".into(),
                source: io::Error::from(io::ErrorKind::ConnectionRefused),
            },
            ClientError::Deadline(Duration::from_secs(30)),
            ClientError::Io(io::Error::from(io::ErrorKind::BrokenPipe)),
            ClientError::Reply("what?".into()),
            ClientError::Refused(new(100, "no free address", "enlarge podCIDRs")),
        ]
    }

    #[test]
    fn no_answer_is_try_again_later_and_a_refusal_passes_through() {
        assert_eq!(failures().map(|e| is_unanswered(&e)), [true, true, true, false, false]);
        assert_eq!(failures().map(|e| from_client(e).code), [11, 11, 11, 6, 100]);
        assert_eq!(failures().map(|e| from_client_status(e).code), [50, 50, 50, 50, 100]);
        let [.., refused] = failures();
        assert_eq!(from_client(refused), new(100, "no free address", "enlarge podCIDRs"));
    }

    #[test]
    fn an_error_says_what_happened_and_what_to_do() {
        let [down, ..] = failures();
        assert_eq!(
            object(&from_client(down), Version::V0_4_0),
            json!({
                "cniVersion": "0.4.0",
                "code": 11,
                "msg": "bulkheadd does not answer, try again later",
                "details": "cannot reach the daemon at /run/b.sock: connection refused; check that bulkheadd runs on \
                            this node and see its log; pods that run keep their network",
            })
        );
    }
}
