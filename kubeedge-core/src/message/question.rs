use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Object, ObjectRef, Publish, TunnelRequest, TunnelResponse};
use crate::id::Uid;

/// What the edge asks the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The object of this name, if the node may read it.
    Get(ObjectRef),
    /// A token of the service account of one of the node's pods.
    Token(TokenRequest),
    /// A certificate for a server on the node, signed by the cluster.
    Certificate(CertificateRequest),
}

/// Asks for a token of a pod's service account, as a volume of the pod does.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TokenRequest {
    /// The namespace of the pod and the account.
    pub namespace: String,
    /// The account.
    pub service_account: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID: the token ends with the pod.
    pub pod_uid: Uid,
    /// Whom the token is for; empty means the API server.
    pub audience: String,
    /// How long it should be good for, in seconds.
    pub expiration_seconds: u64,
}

/// Asks for a certificate that the cluster signs for servers on the node, as the kubelet does with
/// `serverTLSBootstrap`: the signer is `kubernetes.io/kubelet-serving`.
///
/// The answer is [`Answer::Object`]: the CertificateSigningRequest `metaserver-csr-<node>`, approved. Whoever asks asks again,
/// with the same bytes and every few seconds, until its `status.certificate` is there, since the cluster signs in its own
/// time; asking again changes nothing. Another request takes the place of the one before: a node has one at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateRequest {
    /// The request, PKCS#10 in DER (RFC 2986), at most [`CertificateRequest::MAX`] bytes. Its subject is CN
    /// `system:node:<node>`, O `system:nodes`, and its names are addresses of the node.
    pub pkcs10: Bytes,
}

impl CertificateRequest {
    /// 8 KiB: a request of an RSA key of 8192 bits has 2 KiB and a half, and room for a hundred names.
    pub const MAX: usize = 8 << 10;

    /// Whether it is longer than [`CertificateRequest::MAX`].
    pub(crate) fn is_too_long(&self) -> bool {
        self.pkcs10.len() > Self::MAX
    }
}

/// A token of a service account.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The token itself.
    pub token: String,
    /// When it ends, milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
    /// How long it is good for from its issue to its end, in milliseconds.
    pub lifetime_ms: u64,
}

impl Token {
    /// When it should be renewed, milliseconds since the Unix epoch: after four fifths of its life, and after a day
    /// at the latest (kubernetes.io/docs/tasks/configure-pod-container/configure-service-account).
    pub fn renew_at_ms(&self) -> u64 {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let issued = self.expires_at_ms.saturating_sub(self.lifetime_ms);
        issued.saturating_add((self.lifetime_ms / 5 * 4).min(DAY_MS))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires_at_ms", &self.expires_at_ms).finish_non_exhaustive()
    }
}

/// What the cloud answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The object.
    Object(Object),
    /// There is no such object.
    NotFound,
    /// The node may not have it, or the cloud cannot say; with the reason.
    Refused(String),
    /// The token.
    Token(Token),
}

/// What the cloud asks the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A piece of a container's log.
    Logs(LogRequest),
    /// A call to an HTTP server on the node.
    Service(ServiceRequest),
    /// A message to be published on the node.
    Publish(Publish),
    /// A step of a connection to the kubelet's interface of the node.
    Tunnel(TunnelRequest),
}

/// What the edge answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The piece of the log.
    Logs(LogChunk),
    /// The HTTP server's answer.
    Service(ServiceResponse),
    /// The node's MQTT broker has the message.
    Published,
    /// What became of the step of a tunnel.
    Tunnel(TunnelResponse),
    /// It could not be done.
    Failed {
        /// The HTTP status that says best what went wrong: 400, 403, 404, 409, 500, 501, 502, 503 or
        /// 504.
        code: u16,
        /// Why, for people.
        message: String,
    },
}

/// Asks for a piece of a container's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container; empty means the pod's only one.
    pub container: String,
    /// Begin this many lines before the end.
    pub tail_lines: Option<u64>,
    /// Leave out lines older than this, milliseconds since the Unix epoch.
    pub since_ms: Option<u64>,
    /// At most this many bytes in all.
    pub limit_bytes: Option<u64>,
    /// Begin each line with its time, RFC 3339.
    pub timestamps: bool,
    /// The log of the container's previous instance.
    pub previous: bool,
    /// Go on where an earlier chunk ended: its [`LogChunk::cursor`].
    pub cursor: Option<u64>,
}

/// A piece of a container's log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogChunk {
    /// Whole lines, at most 256 KiB.
    pub data: Bytes,
    /// Where the next chunk begins.
    pub cursor: u64,
    /// Whether this is all that there is now.
    pub end: bool,
    /// Whether the container may still write more.
    pub running: bool,
}

/// A call to an HTTP server on the node's loopback address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRequest {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// The method, such as `GET`.
    pub method: String,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Header fields.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

/// The HTTP server's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceResponse {
    /// The HTTP status.
    pub status: u16,
    /// Header fields.
    pub headers: Vec<(String, String)>,
    /// The body, at most 3 MiB.
    pub body: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_after_four_fifths_of_its_life_and_after_a_day_at_the_latest() {
        let token = |lifetime_s: u64| Token {
            token: "t".to_owned(),
            expires_at_ms: 1_000_000_000 + lifetime_s * 1000,
            lifetime_ms: lifetime_s * 1000,
        };
        assert_eq!(token(3600).renew_at_ms(), 1_000_000_000 + 2880 * 1000);
        assert_eq!(token(365 * 86_400).renew_at_ms(), 1_000_000_000 + 86_400 * 1000);
        assert!(!format!("{:?}", token(1)).contains("\"t\""), "a token is not printed");
    }
}
