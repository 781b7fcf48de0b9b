//! A POST for each value, over one connection for a block.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use kubeedge_core::device::{HttpPush, PushMethod};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{Courier, Failure, Item, Progress, json, time};
use crate::keeper::Format;

/// An answer says yes or no; what is longer is somebody else's page.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A connection, and the task that drives it.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

pub(super) async fn deliver(
    courier: &Courier,
    host: &str,
    port: u16,
    items: &[Item],
    progress: &mut Progress,
) -> Result<(), Failure> {
    let mut connection: Option<Connection> = None;
    for item in items {
        let PushMethod::Http(push) = &item.push else { continue };
        let deadline = push.timeout_ms.map_or(courier.deadline, Duration::from_millis);
        let authority = format!("{host}:{port}");
        let exchange = async {
            // A server may end the connection after any answer.
            let usable = match connection.as_mut() {
                Some(open) => open.sender.ready().await.is_ok(),
                None => false,
            };
            if !usable {
                connection = Some(connect(host, port).await?);
            }
            let Some(open) = connection.as_mut() else {
                return Err(Failure::Away("no connection".to_owned()));
            };
            post(open, request(&authority, push, item, courier.format)?).await
        };
        let late = || Failure::Away(format!("{authority} did not answer within {deadline:?}"));
        let status = timeout(deadline, exchange).await.map_err(|_| late())??;
        match status {
            status if status.is_success() => progress.sent += 1,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                return Err(Failure::Away(format!("{authority} answers {status}")));
            }
            status if status.is_server_error() => {
                return Err(Failure::Away(format!("{authority} answers {status}")));
            }
            status => progress.refuse(item, &authority, &format!("it answers {status}")),
        }
        progress.done += 1;
    }
    Ok(())
}

async fn connect(host: &str, port: u16) -> Result<Connection, Failure> {
    let away = |error: &dyn std::error::Error| Failure::Away(format!("{host}:{port}: {error}"));
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((name, port)).await.map_err(|error| away(&error))?;
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(|error| away(&error))?;
    let task = tokio::spawn(async move {
        // Its error comes out of the exchange as well.
        let _ = connection.await;
    });
    Ok(Connection { sender, _task: AbortOnDropHandle::new(task) })
}

fn request(
    authority: &str,
    push: &HttpPush,
    item: &Item,
    format: Format,
) -> Result<Request<Full<Bytes>>, Failure> {
    let (kind, body) = match format {
        Format::Mapper => ("application/x-www-form-urlencoded", form(item)),
        Format::Json => ("application/json", json(item)),
    };
    let request = Request::post(&push.path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, kind)
        // A value may come twice; its sequence number tells.
        .header(
            "Idempotency-Key",
            format!("{}/{}/{}", item.sample.device, item.sample.property, item.sequence),
        )
        .body(Full::new(Bytes::from(body)));
    request.map_err(|error| Failure::Broke(error.to_string()))
}

async fn post(connection: &mut Connection, request: Request<Full<Bytes>>) -> Result<StatusCode, Failure> {
    let broke = |error: &dyn std::fmt::Display| Failure::Away(format!("the connection broke: {error}"));
    let response = connection.sender.send_request(request).await.map_err(|error| broke(&error))?;
    let status = response.status();
    // It is read to its end so that the connection can be used again.
    Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| broke(&error))?;
    Ok(status)
}

/// `<property>=<value>&time=<time>`.
fn form(item: &Item) -> String {
    let mut form = String::new();
    push_encoded(&mut form, &item.sample.property);
    form.push('=');
    push_encoded(&mut form, &item.sample.value);
    form.push_str("&time=");
    push_encoded(&mut form, &time(item.sample.timestamp_ms));
    form
}

/// The encoding of HTML's forms.
fn push_encoded(form: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => form.push(byte.into()),
            b' ' => form.push('+'),
            other => form.push_str(&format!("%{other:02X}")),
        }
    }
}
