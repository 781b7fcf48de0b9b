//! Makes the calls.

use std::{convert::Infallible, error::Error as StdError, net::Ipv4Addr, sync::Arc};

use futures::{StreamExt, stream::FuturesUnordered};
use http::Request;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kubeedge_core::{
    message::{Response, ServiceRequest, ServiceResponse},
    pipe::Call,
};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    Config, ServiceBus,
    request::{failed, prepare, remove_hop_by_hop},
};

pub(super) async fn run(bus: ServiceBus, stop: CancellationToken) {
    let ServiceBus { config, mut inbox } = bus;
    let config = Arc::new(config);
    let mut calls = FuturesUnordered::new();
    let mut open = true;
    loop {
        let room = calls.len() < config.concurrency_max.max(1);
        tokio::select! {
            () = stop.cancelled() => return,
            Some(()) = calls.next() => {}
            call = inbox.services.recv(), if open && room => match call {
                Some(call) => calls.push(serve(config.clone(), call)),
                None => open = false,
            },
        }
    }
}

async fn serve(config: Arc<Config>, call: Call<ServiceRequest, Response>) {
    if call.is_withdrawn() {
        return;
    }
    let (question, replier) = call.split();
    let (port, path) = (question.port, question.path.clone());
    let answered = tokio::time::timeout(config.deadline, answer(&config, question));
    let answer = answered.await.unwrap_or_else(|_| {
        failed(504, format!("port {port} of the node did not answer within {:?}", config.deadline))
    });
    if let Response::Failed { code, message } = &answer {
        tracing::debug!(port, path, code, message, "a call of the cloud failed");
    }
    replier.answer(answer);
}

async fn answer(config: &Config, question: ServiceRequest) -> Response {
    let port = question.port;
    match prepare(config, question) {
        Ok(request) => exchange(port, request, config.response_bytes_max)
            .await
            .map_or_else(|error| failed(502, format!("port {port} of the node: {error}")), Response::Service),
        Err(refusal) => refusal,
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

/// One connection for one call: servers of the node are near, and nothing is left open between calls.
async fn exchange(
    port: u16,
    request: Request<Full<bytes::Bytes>>,
    bytes_max: usize,
) -> Result<ServiceResponse, BoxError> {
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let talk = async move {
        let response = sender.send_request(request).await?;
        let (mut head, body) = response.into_parts();
        let body =
            Limited::new(body, bytes_max).collect().await.map_err(|error| too_long(error, bytes_max))?;
        remove_hop_by_hop(&mut head.headers);
        let headers = head.headers.iter().map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        Ok(ServiceResponse {
            status: head.status.as_u16(),
            headers: headers.collect(),
            body: body.to_bytes(),
        })
    };
    // The connection has to be driven while the two talk; its error comes out of the talk as well.
    let drive = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        result = talk => result,
        never = drive => match never {},
    }
}

fn too_long(error: BoxError, bytes_max: usize) -> BoxError {
    if error.is::<LengthLimitError>() {
        format!("the answer is longer than {bytes_max} bytes").into()
    } else {
        error
    }
}
