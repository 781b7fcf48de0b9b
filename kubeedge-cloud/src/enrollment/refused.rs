//! Why a node gets no certificate.

use http::StatusCode;
use kubeedge_core::tls::Refusal;

use crate::pki::InvalidRequest;

/// The header of an answer that has the reason in one word.
pub const REASON_HEADER: &str = "kubeedge-reason";

/// Says why a node gets no certificate, or why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Neither a token nor a certificate was shown.
    #[error("neither a token (Authorization: Bearer) nor a certificate was shown")]
    NoCredentials,
    /// The token cannot be read.
    #[error("the token cannot be read; `keadm gettoken` prints a good one")]
    TokenMalformed,
    /// The token was not signed by this cloud, or by an authority that it has had.
    #[error("the token is not of this cloud; `keadm gettoken` prints a good one")]
    TokenForeign,
    /// The token has ended.
    #[error("the token has expired; `keadm gettoken` prints the one that is valid")]
    TokenExpired,
    /// The token is older than the Node that it is used for.
    #[error(
        "a node of this name has joined since the token was made; delete the Node, or take a token that is younger"
    )]
    TokenUsed,
    /// The node is connected, so whoever asks is somebody else.
    #[error("a node of this name is Ready; a second one cannot join under it")]
    NodeConnected,
    /// The Node is there, and the operator wants it to be deleted first.
    #[error("there is a Node of this name, which has to be deleted before it joins again with a token")]
    NodeExists,
    /// The Node is none of the edge: it does not have the label `node-role.kubernetes.io/edge`.
    #[error(
        "there is a Node of this name without the label node-role.kubernetes.io/edge: a machine of the cluster; join \
         under another name"
    )]
    NodeOfCluster,
    /// The certificate that was shown is not accepted.
    #[error("failed to verify the certificate: {0}")]
    Certificate(Refusal),
    /// The certificate that was shown is another node's.
    #[error("the certificate that was shown belongs to another node")]
    AnotherNode,
    /// The certificate ended too long ago.
    #[error("the certificate has expired too long ago to be renewed; join again with a token")]
    ExpiredTooLong,
    /// The certificate has ended, and the Node is not in the API any more.
    #[error("the certificate has expired and its Node has been deleted; join again with a token")]
    NodeDeleted,
    /// The Node has the annotation that shuts its node out.
    #[error("the node is shut out by its Node's annotation node.kubeedge.io/shut-out")]
    ShutOut,
    /// The name of the node is none.
    #[error("the header NodeName is not the name of a node (RFC 1123)")]
    NodeName,
    /// The certificate is wanted for what nodes do not do.
    #[error("nodes get certificates for clients only (ExtKeyUsages [2])")]
    Usage,
    /// The request for a certificate is not granted.
    #[error("{0}")]
    Request(InvalidRequest),
    /// The headers are too long or too many.
    #[error("the headers are too long")]
    HeaderTooLarge,
    /// The body is too long.
    #[error("the body is too long")]
    BodyTooLarge,
    /// The request or the handshake took too long.
    #[error("the request did not arrive in time")]
    TooSlow,
    /// No handshake, or no request.
    #[error("what was sent is no request over TLS")]
    Garbled,
    /// Too many ask.
    #[error("too many ask at once; try again")]
    TooMany,
    /// There is nothing at this path.
    #[error("there is nothing at this path")]
    NotFound,
    /// The path takes other methods.
    #[error("this path takes GET only")]
    Method,
    /// The API does not say what has to be known.
    #[error("the Kubernetes API does not answer; try again")]
    Unavailable,
}

impl Refused {
    /// The reason in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCredentials => "NoCredentials",
            Self::TokenMalformed => "TokenMalformed",
            Self::TokenForeign => "TokenForeign",
            Self::TokenExpired => "TokenExpired",
            Self::TokenUsed => "TokenUsed",
            Self::NodeConnected => "NodeConnected",
            Self::NodeExists => "NodeExists",
            Self::NodeOfCluster => "NodeOfCluster",
            Self::Certificate(refusal) => refusal.as_str(),
            Self::AnotherNode => "CertificateOfAnotherNode",
            Self::ExpiredTooLong => "CertificateExpiredTooLong",
            Self::NodeDeleted => "NodeDeleted",
            Self::ShutOut => "NodeShutOut",
            Self::NodeName => "NodeNameInvalid",
            Self::Usage => "UsageNotAllowed",
            Self::Request(InvalidRequest::Signature) => "RequestSignatureWrong",
            Self::Request(InvalidRequest::Subject) => "RequestSubjectWrong",
            Self::Request(InvalidRequest::Authority) => "RequestForAuthority",
            Self::Request(InvalidRequest::Key) => "RequestKeyNotP256",
            Self::Request(InvalidRequest::Malformed) => "RequestMalformed",
            Self::HeaderTooLarge => "HeaderTooLarge",
            Self::BodyTooLarge => "BodyTooLarge",
            Self::TooSlow => "TooSlow",
            Self::Garbled => "Garbled",
            Self::TooMany => "TooMany",
            Self::NotFound => "NotFound",
            Self::Method => "MethodNotAllowed",
            Self::Unavailable => "Unavailable",
        }
    }

    /// The status of the answer; KubeEdge's where it has one.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoCredentials
            | Self::TokenMalformed
            | Self::TokenForeign
            | Self::TokenExpired
            | Self::Certificate(_)
            | Self::AnotherNode
            | Self::ExpiredTooLong
            | Self::NodeDeleted => StatusCode::UNAUTHORIZED,
            Self::ShutOut
            | Self::TokenUsed
            | Self::NodeConnected
            | Self::NodeExists
            | Self::NodeOfCluster
            | Self::Usage => StatusCode::FORBIDDEN,
            Self::NodeName | Self::Request(_) | Self::Garbled => StatusCode::BAD_REQUEST,
            Self::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}
