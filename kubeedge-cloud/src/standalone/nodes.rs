//! What only a node can answer: logs of its pods, and calls to HTTP servers on it.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderName, HeaderValue, Response, header, request::Parts};
use http_body_util::{BodyExt as _, StreamBody};
use kubeedge_core::{
    message::{LogChunk, LogRequest, Request, Response as NodeResponse, ServiceRequest, ToNode},
    pipe::CallError,
};
use serde_json::Value;

use super::{
    Body, Nodes,
    failure::Failure,
    json::{items, text},
    query::Query,
    respond,
};

/// How soon a followed log is asked for again when it had nothing to tell. Each time is a question over the
/// link, and people do not notice half a second.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Header fields that belong to one connection and are not passed on, RFC 9110 §7.6.1; and the token, which
/// is for this API and for nobody behind it.
const NOT_PASSED_ON: [HeaderName; 8] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// One node, and the way to it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    nodes: Nodes,
    name: kubeedge_core::id::NodeName,
    timeout: Duration,
}

impl Node {
    /// The node of this name.
    pub(crate) fn new(nodes: Option<&Nodes>, name: &str, timeout: Duration) -> Result<Self, Failure> {
        let unreachable = || Failure::node(503, "this API has no way to its nodes");
        let name = name.parse().map_err(|error| Failure::bad_request(format!("{error}")))?;
        Ok(Self { nodes: nodes.cloned().ok_or_else(unreachable)?, name, timeout })
    }

    async fn ask(&self, request: Request) -> Result<NodeResponse, Failure> {
        let question = ToNode { node: self.name.clone(), message: request };
        match self.nodes.call(question, self.timeout).await {
            Ok(NodeResponse::Failed { code, message }) => Err(Failure::node(code, message)),
            Ok(response) => Ok(response),
            Err(CallError::Late(..)) => Err(Failure::node(
                504,
                format!("node {} did not answer within {:?}", self.name, self.timeout),
            )),
            Err(error) => Err(Failure::node(503, format!("node {} cannot be asked: {error}", self.name))),
        }
    }

    async fn log(&self, request: LogRequest) -> Result<LogChunk, Failure> {
        match self.ask(Request::Logs(request)).await? {
            NodeResponse::Logs(chunk) => Ok(chunk),
            NodeResponse::Service(_) | NodeResponse::Published | NodeResponse::Failed { .. } => {
                Err(misanswered())
            }
        }
    }

    /// Calls an HTTP server on the node.
    pub(crate) async fn call(
        &self,
        port: u16,
        path: String,
        parts: &Parts,
        body: Bytes,
    ) -> Result<Response<Body>, Failure> {
        let path = match parts.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let headers = parts.headers.iter().filter(|(name, _)| !NOT_PASSED_ON.contains(name));
        let headers =
            headers.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
        let request =
            ServiceRequest { port, method: parts.method.to_string(), path, headers: headers.collect(), body };
        let answer = match self.ask(Request::Service(request)).await? {
            NodeResponse::Service(answer) => answer,
            NodeResponse::Logs(_) | NodeResponse::Published | NodeResponse::Failed { .. } => {
                return Err(misanswered());
            }
        };
        let mut response = respond::bytes(answer.status, "application/octet-stream", answer.body);
        for (name, value) in answer.headers {
            let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(&value)) else {
                continue;
            };
            if !NOT_PASSED_ON.contains(&name) {
                response.headers_mut().insert(name, value);
            }
        }
        Ok(response)
    }

    /// The log of a container as plain text, which grows while it is read if it is followed.
    pub(crate) async fn logs(self, pod: &Value, query: &Query) -> Result<Response<Body>, Failure> {
        let request = log_request(pod, query)?;
        let follow = query.flag("follow");
        // The first piece comes before the answer begins, so that a failure still has its status.
        let first = self.log(request.clone()).await?;
        let mut log = Log { node: self, request, follow, idle: false, ended: false, ready: VecDeque::new() };
        log.take(first);
        let pieces = futures::stream::unfold(log, |mut log| async move {
            let piece = log.next().await?;
            Some((Ok(http_body::Frame::data(piece)), log))
        });
        let mut response = Response::new(StreamBody::new(pieces.boxed()).boxed_unsync());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }
}

fn misanswered() -> Failure {
    Failure::node(502, "the node gave another answer than was asked for")
}

struct Log {
    node: Node,
    request: LogRequest,
    follow: bool,
    /// Whether the last piece was all that there was.
    idle: bool,
    ended: bool,
    ready: VecDeque<Bytes>,
}

impl Log {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            if self.ended {
                return None;
            }
            if std::mem::take(&mut self.idle) {
                tokio::time::sleep(FOLLOW_EVERY).await;
            }
            match self.node.log(self.request.clone()).await {
                Ok(chunk) => self.take(chunk),
                Err(failure) => {
                    // The status has been sent already: all that is left is to say it in the text.
                    self.ended = true;
                    self.ready.push_back(format!("{failure}\n").into());
                }
            }
        }
    }

    fn take(&mut self, chunk: LogChunk) {
        // A node that neither moves on nor says that it is done would be asked for ever.
        let stuck = self.request.cursor == Some(chunk.cursor) && chunk.data.is_empty() && !chunk.end;
        (self.request.cursor, self.request.tail_lines) = (Some(chunk.cursor), None);
        if let Some(left) = &mut self.request.limit_bytes {
            *left = left.saturating_sub(chunk.data.len() as u64);
            self.ended |= *left == 0;
        }
        self.ended |= chunk.end && !(self.follow && chunk.running);
        self.idle = chunk.end || stuck;
        if !chunk.data.is_empty() {
            self.ready.push_back(chunk.data);
        }
    }
}

fn log_request(pod: &Value, query: &Query) -> Result<LogRequest, Failure> {
    let (namespace, name) = (text(pod, &["metadata", "namespace"]), text(pod, &["metadata", "name"]));
    let since = match (query.get("sinceTime"), query.number("sinceSeconds")?) {
        (Some(time), None) => {
            let time: jiff::Timestamp =
                time.parse().map_err(|_| Failure::bad_request("sinceTime must be a time as in RFC 3339"))?;
            Some(time.as_millisecond())
        }
        (None, Some(seconds)) => {
            let ago = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000);
            Some(jiff::Timestamp::now().as_millisecond().saturating_sub(ago))
        }
        (None, None) => None,
        (Some(_), Some(_)) => {
            return Err(Failure::bad_request(
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
    };
    Ok(LogRequest {
        namespace: namespace.into(),
        pod: name.into(),
        container: container(pod, query.get("container"))?,
        tail_lines: query.number("tailLines")?,
        since_ms: since.map(|since| u64::try_from(since).unwrap_or_default()),
        limit_bytes: query.number("limitBytes")?,
        timestamps: query.flag("timestamps"),
        previous: query.flag("previous"),
        cursor: None,
    })
}

/// The container that is meant: the one named, or the only one.
fn container(pod: &Value, wanted: Option<&str>) -> Result<String, Failure> {
    let name = text(pod, &["metadata", "name"]);
    let names = |list| items(pod, &["spec", list]).iter().map(|container| text(container, &["name"]));
    match (wanted, names("containers").collect::<Vec<_>>().as_slice()) {
        (Some(wanted), main) if main.contains(&wanted) || names("initContainers").any(|n| n == wanted) => {
            Ok(wanted.to_owned())
        }
        (Some(wanted), _) => {
            Err(Failure::bad_request(format!("container {wanted} is not valid for pod {name}")))
        }
        (None, [only]) => Ok((*only).to_owned()),
        (None, several) => {
            let several = several.join(" ");
            let message =
                format!("a container name must be specified for pod {name}, choose one of: [{several}]");
            Err(Failure::bad_request(message))
        }
    }
}
