use bytes::Bytes;

use super::{Object, ObjectRef, Publish};

/// What the edge asks the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// The object of this name, if the node may read it.
    Get(ObjectRef),
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
    /// It could not be done.
    Failed {
        /// The HTTP status that says best what went wrong: 400, 403, 404, 500, 502, 503 or 504.
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
