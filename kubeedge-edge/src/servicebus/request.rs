//! Which calls are made, and what goes over with them.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};
use http_body_util::Full;
use kubeedge_core::message::{Response, ServiceRequest};

use super::{Allowed, Config};

/// Header fields that concern one connection only (RFC 9110 §7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 5] = [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// More of them, older than the rule.
const HOP_BY_HOP_OLD: [&str; 4] =
    ["keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"];

/// An answer that says why there is none.
pub(super) fn failed(code: u16, message: impl Into<String>) -> Response {
    Response::Failed { code, message: message.into() }
}

/// Turns the question into the request that goes to the server, or into the reason why it does not.
pub(super) fn prepare(
    config: &Config,
    question: ServiceRequest,
) -> Result<Request<Full<bytes::Bytes>>, Response> {
    let invalid = |what: &str| failed(400, format!("the call has an invalid {what}"));
    let method = Method::from_bytes(question.method.as_bytes()).map_err(|_| invalid("method"))?;
    if method == Method::CONNECT {
        return Err(failed(400, "CONNECT is not a call"));
    }
    if !question.path.starts_with('/') {
        return Err(failed(400, "the path of a call begins with /"));
    }
    let uri: Uri = question.path.parse().map_err(|_| invalid("path"))?;
    if !allowed(config, question.port, uri.path()) {
        return Err(forbidden(question.port, uri.path()));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &question.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid("header name"))?;
        let value = HeaderValue::from_str(value).map_err(|_| invalid("header value"))?;
        headers.append(name, value);
    }
    remove_hop_by_hop(&mut headers);
    // The length is that of the body that came, and the host the one that is called.
    headers.remove(CONTENT_LENGTH);
    let host = format!("127.0.0.1:{}", question.port);
    headers.insert(HOST, HeaderValue::from_str(&host).map_err(|_| invalid("port"))?);
    let mut request = Request::new(Full::new(question.body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn forbidden(port: u16, path: &str) -> Response {
    failed(
        403,
        format!(
            "this node does not let the cloud call port {port} at {path}: add them to \
             kubeedgeRs.serviceBus.allow in edgecore.yaml, or set kubeedgeRs.serviceBus.allowAllPorts"
        ),
    )
}

/// Whether the configuration lets the path on the port be called.
pub(super) fn allowed(config: &Config, port: u16, path: &str) -> bool {
    config.allow_all_ports || config.allow.iter().any(|entry| entry.port == port && entry.covers(path))
}

impl Allowed {
    fn covers(&self, path: &str) -> bool {
        let prefix = self.path.trim_end_matches('/');
        if prefix.is_empty() {
            return true;
        }
        // A server may resolve `..`, and so leave what was allowed.
        let below = path.strip_prefix(prefix);
        below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) && !has_dot_segments(path)
    }
}

/// Whether a segment is `.` or `..`, also percent-encoded, and also behind a backslash, which some servers
/// read as a slash.
fn has_dot_segments(path: &str) -> bool {
    let lower = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
    lower.split(['/', '\\']).any(|segment| segment == "." || segment == "..")
}

/// Removes what concerns one connection only.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    for name in HOP_BY_HOP_OLD {
        headers.remove(name);
    }
}
