//! What only a node can answer: logs of its pods, streams into them, and calls to HTTP servers on it.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderName, HeaderValue, Response, header, request::Parts};
use http_body_util::{BodyExt as _, StreamBody};
use kubeedge_core::message::{LogRequest, Request, Response as NodeResponse, ServiceRequest};
use serde_json::Value;

use super::{
    Body, Nodes,
    failure::Failure,
    json::{items, text},
    query::Query,
    respond,
};
use crate::node::{self, Failed, misanswered};

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

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Self::node(failed.code, failed.message)
    }
}

/// One node, and the way to it.
#[derive(Debug, Clone)]
pub(crate) struct Node(node::Node);

impl Node {
    /// The node of this name.
    pub(crate) fn new(nodes: Option<&Nodes>, name: &str, timeout: Duration) -> Result<Self, Failure> {
        let unreachable = || Failure::node(503, "this API has no way to its nodes");
        let name = name.parse().map_err(|error| Failure::bad_request(format!("{error}")))?;
        Ok(Self(node::Node::new(nodes.cloned().ok_or_else(unreachable)?, name, timeout)))
    }

    /// The node, for what is not only the API's.
    pub(crate) fn into_inner(self) -> node::Node {
        self.0
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
        let answer = match self.0.ask(Request::Service(request)).await? {
            NodeResponse::Service(answer) => answer,
            NodeResponse::Logs(_)
            | NodeResponse::Published
            | NodeResponse::Tunnel(_)
            | NodeResponse::Failed { .. } => {
                return Err(misanswered().into());
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
        let pieces = self.0.logs(log_request(pod, query)?, query.flag("follow")).await?;
        let frames = pieces.map(|piece| Ok(http_body::Frame::data(piece)));
        let mut response = Response::new(StreamBody::new(frames.boxed()).boxed_unsync());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
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

/// The kubelet's path for a stream into a pod.
pub(crate) fn stream_path(pod: &Value, what: &str, query: &Query) -> Result<String, Failure> {
    let (namespace, name) = (text(pod, &["metadata", "namespace"]), text(pod, &["metadata", "name"]));
    if what == "portforward" {
        return Ok(format!("/portForward/{namespace}/{name}"));
    }
    Ok(format!("/{what}/{namespace}/{name}/{}", container(pod, query.get("container"))?))
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
