//! From gRPC's codes to what a caller can do.

use tonic::{Code, Status};

use crate::runtime::RuntimeError;

/// Words in messages of containerd's resolver that say what a code of `Unknown` does not.
const UNREACHABLE: [&str; 13] = [
    "429 Too Many Requests",
    "500 Internal Server Error",
    "502 Bad Gateway",
    "503 Service Unavailable",
    "504 Gateway Timeout",
    "no such host",
    "connection refused",
    "connection reset",
    "i/o timeout",
    "TLS handshake timeout",
    "network is unreachable",
    "no route to host",
    "server misbehaving",
];
const FORBIDDEN: [&str; 4] =
    ["authorization failed", "pull access denied", "401 Unauthorized", "403 Forbidden"];

const FULL: [&str; 3] = ["no space left on device", "disk quota exceeded", "not enough space"];
const MALFORMED: [&str; 7] = [
    "no runtime for",
    "failed to find runtime handler",
    "invalid reference format",
    "failed to parse image reference",
    "is not a shared",
    "cannot load seccomp profile",
    "is not supported",
];
const ABSENT: [&str; 2] = ["manifest unknown", "404 Not Found"];

/// What containerd says for a moment after it was started.
const STARTING: &str = "server is not initialized yet";

/// What it says of a container whose start it has not ended, though who asked for it has gone.
const UNDER_WAY: &str = "is already in starting state";

/// Turns a status into an error that says what was being done.
#[expect(clippy::wildcard_enum_match_arm, reason = "the codes are gRPC's: what is not named is a failure")]
pub(super) fn explain(what: String, status: &Status) -> RuntimeError {
    let mut message = status.message().to_owned();
    if let Some(source) = std::error::Error::source(status) {
        message = format!("{message}: {source}");
    }
    if message.contains("can't get final child's PID") {
        message.push_str(
            " (this often means that the kernel refused a negative oom_score_adj because the runtime lacks \
             CAP_SYS_RESOURCE; containerd has `restrict_oom_score_adj = true` for that)",
        );
    }
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match status.code() {
        _ if says(&FULL) => RuntimeError::NoSpace { what, message },
        Code::NotFound => RuntimeError::NotFound { what, message },
        Code::InvalidArgument | Code::OutOfRange => RuntimeError::Invalid { what, message },
        Code::PermissionDenied | Code::Unauthenticated => RuntimeError::Refused { what, message },
        _ if says(&FORBIDDEN) => RuntimeError::Refused { what, message },
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
            RuntimeError::Unavailable { what, message }
        }
        _ if says(&UNREACHABLE) || says(&[STARTING]) => RuntimeError::Unavailable { what, message },
        _ if says(&[UNDER_WAY]) => RuntimeError::UnderWay { what, message },
        _ if says(&MALFORMED) => RuntimeError::Invalid { what, message },
        _ if says(&ABSENT) => RuntimeError::NotFound { what, message },
        _ => RuntimeError::Failed { what, message },
    }
}

/// The same for a pull, which may fail for want of an answer from the registry while the runtime itself is well.
pub(super) fn explain_pull(what: String, status: &Status) -> RuntimeError {
    // What the runtime itself has said has no source; what kept it from being asked has one.
    let answered = std::error::Error::source(status).is_none() && !status.message().contains(STARTING);
    let error = explain(what, status);
    if answered && let RuntimeError::Unavailable { what, message } = error {
        return RuntimeError::RegistryUnavailable { what, message };
    }
    error
}

/// Stopping or removing what is gone is success.
pub(super) fn gone_is_success<T>(outcome: Result<T, RuntimeError>) -> Result<(), RuntimeError> {
    match outcome {
        Ok(_) | Err(RuntimeError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_cannot_be_reached_is_told_from_one_that_refuses() {
        let explain = |message: &str| explain_pull("pull".into(), &Status::unknown(message));
        let away = explain("failed to do request: dial tcp: lookup r: no such host");
        assert!(matches!(away, RuntimeError::RegistryUnavailable { .. }));
        let refused = explain("server message: insufficient_scope: authorization failed");
        assert!(matches!(refused, RuntimeError::Refused { .. }));
    }

    #[test]
    fn a_start_that_has_not_ended_is_told_from_one_that_failed() {
        let status = Status::unknown(
            "failed to set starting state for container \"c\": container is already in starting state",
        );
        assert!(matches!(explain("start".into(), &status), RuntimeError::UnderWay { .. }));
    }

    #[test]
    fn the_misleading_message_of_runc_is_explained() {
        let error = explain("run".into(), &Status::unknown("can't get final child's PID from pipe: EOF"));
        assert!(error.to_string().contains("oom_score_adj"), "{error}");
    }
}
