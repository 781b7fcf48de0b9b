//! A log as one answer, piece by piece from Edged.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, stream};
use kubeedge_core::{
    message::{LogChunk, LogRequest, Response},
    pipe::Caller,
};

use super::route::Refused;

/// How long Edged may take for one piece.
const PIECE: Duration = Duration::from_secs(30);

/// How soon the log of a container that runs is looked at again.
const AGAIN: Duration = Duration::from_millis(300);

/// Asks for the first piece, so that what is wrong is told by the answer's status; the others follow as they are
/// taken.
pub(super) async fn open(
    logs: Caller<LogRequest, Response>,
    request: LogRequest,
    follow: bool,
) -> Result<impl Stream<Item = Bytes> + Send + 'static, Refused> {
    let first = Some(piece(&logs, request.clone()).await?);
    let reading = Reading { logs, request, follow, first, wait: false, ended: false };
    Ok(stream::unfold(reading, |mut reading| async { Some((reading.next().await?, reading)) }))
}

struct Reading {
    logs: Caller<LogRequest, Response>,
    request: LogRequest,
    follow: bool,
    first: Option<LogChunk>,
    /// There is no more, but there may be.
    wait: bool,
    ended: bool,
}

impl Reading {
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let chunk = match self.first.take() {
                Some(first) => first,
                None => {
                    if self.wait {
                        tokio::time::sleep(AGAIN).await;
                    }
                    piece(&self.logs, self.request.clone()).await.ok()?
                }
            };
            self.request.cursor = Some(chunk.cursor);
            if let Some(limit) = &mut self.request.limit_bytes {
                *limit = limit.saturating_sub(chunk.data.len() as u64);
                self.ended |= *limit == 0;
            }
            self.wait = chunk.end;
            self.ended |= chunk.end && !(self.follow && chunk.running);
            if !chunk.data.is_empty() {
                return Some(chunk.data);
            }
        }
        None
    }
}

async fn piece(logs: &Caller<LogRequest, Response>, request: LogRequest) -> Result<LogChunk, Refused> {
    match logs.call(request, PIECE).await {
        Ok(Response::Logs(chunk)) => Ok(chunk),
        Ok(Response::Failed { code, message }) => Err(Refused(code, message)),
        Ok(Response::Service(_) | Response::Published | Response::Tunnel(_)) => {
            Err(Refused(500, "the answer is not a piece of a log".to_owned()))
        }
        Err(error) => Err(Refused(503, error.to_string())),
    }
}
