//! The health check of gRPC (`grpc.health.v1.Health/Check`): one call with one string, so that no generated code
//! is needed for it.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use super::{address, connect};
use crate::edged::{state::ProbeResult, text::duration};

/// More than any answer to this question has.
const ANSWER_MAX: usize = 64 << 10;

pub(super) async fn check(host: &str, port: u16, service: &str, within: Duration) -> ProbeResult {
    let address = address(host, port);
    let late = || {
        let within = duration(within);
        let message = format!(
            "timeout: failed to connect service \"{address}\" within {within}: context deadline exceeded"
        );
        ProbeResult::Failure(message)
    };
    match timeout(within, call(host, port, service)).await {
        Err(_) => late(),
        Ok(Err(error)) => {
            ProbeResult::Failure(format!("error: failed to connect service \"{address}\": {error}"))
        }
        Ok(Ok(Answer::Status(1))) => ProbeResult::Success,
        Ok(Ok(Answer::Status(status))) => {
            let word = match status {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            ProbeResult::Failure(format!("service unhealthy (responded with \"{word}\")"))
        }
        // 12: unimplemented, 5: not found (gRPC status codes).
        Ok(Ok(Answer::Refused(code, message))) => {
            let what = match code.as_str() {
                "12" => "this server does not implement the grpc health protocol (grpc.health.v1.Health)",
                _ => "health rpc probe failed",
            };
            ProbeResult::Failure(format!("error: {what}: rpc error: code = {code} desc = {message}"))
        }
    }
}

enum Answer {
    Status(u64),
    Refused(String, String),
}

async fn call(host: &str, port: u16, service: &str) -> Result<Answer, String> {
    let stream = connect(host, port).await?;
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
    let request = Request::post(format!("http://{}/grpc.health.v1.Health/Check", address(host, port)))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", super::http::PROBE)
        .body(Full::new(question(service)))
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|error| error.to_string())?;
        // A refusal may stand in the headers, when there is nothing but it.
        let trailers = body.trailers().cloned().unwrap_or_default();
        let header = |name: &str| {
            let value = trailers.get(name).or_else(|| head.headers.get(name));
            value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let code = header("grpc-status");
        if !head.status.is_success() {
            return Err(format!("HTTP status {}", head.status));
        }
        if code == "0" {
            Ok(Answer::Status(status(&body.to_bytes()).ok_or("its answer is not a health check's")?))
        } else {
            Ok(Answer::Refused(code, header("grpc-message")))
        }
    };
    tokio::pin!(connection, answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end with the last byte of the answer.
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// A `HealthCheckRequest` in a gRPC frame: not compressed, its length, and field 1 with the service's name.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put_slice(&message);
    frame.freeze()
}

/// Field 1 of a `HealthCheckResponse` in a gRPC frame; absent is zero.
fn status(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    if head[0] != 0 || message.len() != length as usize {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, value, ..] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}
