//! One connection, at either end.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};
use tokio_rustls::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as WsError, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    message::Lane,
    transport::{
        Connection, Peer, TransportError,
        lanes::{End, Fragment, Lanes, check_length},
    },
};

/// How many bytes of a frame one message carries. A heartbeat waits for no more than this.
pub(super) const FRAGMENT: usize = 16 << 10;

/// Added to the lane's number when more of the frame follows.
const MORE: u8 = 0x80;

/// How long `close` waits until the peer has what was sent and has said farewell, too.
const FLUSH: Duration = Duration::from_secs(1);

/// RFC 6455 §5.5: a close frame carries at most 125 bytes, of which two are the code.
const REASON_LIMIT: usize = 123;

type Stream = WebSocketStream<TlsStream<TcpStream>>;

/// A connection over WebSocket.
pub(super) struct WebSocketConnection {
    peer: Peer,
    identity_ends: Option<Duration>,
    remote: SocketAddr,
    outgoing: Arc<Lanes>,
    reader: tokio::sync::Mutex<Reader>,
    writer: Mutex<JoinSet<()>>,
    closed: CancellationToken,
}

impl WebSocketConnection {
    pub(super) fn new(
        stream: Stream,
        remote: SocketAddr,
        peer: Peer,
        identity_ends: Option<Duration>,
    ) -> Self {
        let outgoing = Arc::new(Lanes::default());
        let (sink, stream) = stream.split();
        let mut writer = JoinSet::new();
        writer.spawn(write(outgoing.clone(), sink));
        Self {
            peer,
            identity_ends,
            remote,
            outgoing,
            reader: tokio::sync::Mutex::new(Reader::new(stream)),
            writer: Mutex::new(writer),
            closed: CancellationToken::new(),
        }
    }

    async fn receive(&self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        let mut reader = self.reader.lock().await;
        let received = reader.next().await;
        if let Some(end) = &reader.ended {
            let (End::Orderly(reason) | End::Broken(reason)) = end;
            self.outgoing.end(End::Broken(reason.clone()));
        }
        received
    }
}

#[async_trait]
impl Connection for WebSocketConnection {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn identity_ends(&self) -> Option<Duration> {
        self.identity_ends
    }

    fn path(&self) -> String {
        format!("websocket {}", self.remote)
    }

    async fn send(&self, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        self.outgoing.push(lane, frame).await
    }

    async fn recv(&self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(TransportError::Closed("closed by this end".to_owned())),
            received = self.receive() => received,
        }
    }

    async fn close(&self, reason: &str) {
        self.closed.cancel();
        self.outgoing.end(End::Orderly(reason.to_owned()));
        let mut writer = std::mem::take(&mut *self.writer.lock().unwrap_or_else(PoisonError::into_inner));
        let farewell = async {
            writer.join_next().await;
            // The socket stays open until the peer has read everything: closing it earlier with bytes of the
            // peer unread makes the kernel reset the connection and throw away what is under way.
            self.reader.lock().await.drain().await;
        };
        drop(timeout(FLUSH, farewell).await);
        self.reader.lock().await.stream = None;
    }
}

impl fmt::Debug for WebSocketConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketConnection")
            .field("peer", &self.peer)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// Puts frames together. All progress is kept here, so a `recv` can be dropped at any time.
struct Reader {
    /// `None` once the connection is over, so that the socket is given back.
    stream: Option<SplitStream<Stream>>,
    partial: [BytesMut; Lane::ALL.len()],
    ended: Option<End>,
}

impl Reader {
    fn new(stream: SplitStream<Stream>) -> Self {
        Self { stream: Some(stream), partial: Default::default(), ended: None }
    }

    async fn next(&mut self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        loop {
            match (&self.ended, &mut self.stream) {
                (Some(end), stream) => {
                    if let Some(stream) = stream {
                        // Answers the peer's farewell, so that it need not wait.
                        drop(timeout(FLUSH / 4, stream.next()).await);
                    }
                    self.stream = None;
                    return match end {
                        End::Orderly(_) => Ok(None),
                        End::Broken(_) => Err(end.error()),
                    };
                }
                (None, Some(stream)) => match stream.next().await {
                    Some(Ok(message)) => {
                        if let Some(frame) = self.handle(message).inspect_err(|error| {
                            self.ended = Some(End::Broken(error.to_string()));
                        })? {
                            return Ok(Some(frame));
                        }
                    }
                    Some(Err(error)) => self.ended = Some(End::Broken(told(&error))),
                    None => self.ended = Some(End::Broken("the peer hung up".to_owned())),
                },
                (None, None) => self.ended = Some(End::Broken("closed by this end".to_owned())),
            }
        }
    }

    fn handle(&mut self, message: Message) -> Result<Option<(Lane, Bytes)>, TransportError> {
        match message {
            Message::Binary(bytes) => self.put_together(&bytes),
            Message::Close(farewell) => {
                self.ended = Some(match farewell {
                    Some(frame) if frame.code == CloseCode::Normal => End::Orderly(frame.reason.to_string()),
                    Some(frame) => End::Broken(frame.reason.to_string()),
                    None => End::Broken("the peer closed without a reason".to_owned()),
                });
                Ok(None)
            }
            // Tungstenite answers pings by itself.
            Message::Ping(_) | Message::Pong(_) => Ok(None),
            Message::Text(_) | Message::Frame(_) => {
                Err(TransportError::Malformed("a message that is not binary".to_owned()))
            }
        }
    }

    fn put_together(&mut self, message: &[u8]) -> Result<Option<(Lane, Bytes)>, TransportError> {
        let (head, bytes) =
            message.split_first().ok_or_else(|| TransportError::Malformed("an empty message".to_owned()))?;
        let lane = Lane::from_index(usize::from(head & !MORE))
            .ok_or_else(|| TransportError::Malformed(format!("there is no lane {}", head & !MORE)))?;
        let partial = &mut self.partial[lane.index()];
        check_length(lane, partial.len() + bytes.len())?;
        if head & MORE != 0 {
            partial.extend_from_slice(bytes);
            return Ok(None);
        }
        if partial.is_empty() {
            // Copied: a slice would keep the whole read buffer alive for as long as the frame lives.
            return Ok(Some((lane, Bytes::copy_from_slice(bytes))));
        }
        let mut frame = std::mem::take(partial);
        frame.extend_from_slice(bytes);
        Ok(Some((lane, frame.freeze())))
    }

    /// Reads on without looking until the peer has closed, too.
    async fn drain(&mut self) {
        while let (None, Some(stream)) = (&self.ended, &mut self.stream) {
            match stream.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    }
}

/// Writes what the lanes hold, piece by piece, until they end; then says farewell.
async fn write(lanes: Arc<Lanes>, mut sink: SplitSink<Stream, Message>) {
    let farewell = loop {
        match lanes.pop_fragment(FRAGMENT).await {
            Ok(Some(fragment)) => {
                if let Err(error) = write_fragment(&lanes, &mut sink, fragment).await {
                    return lanes.end(End::Broken(told(&error)));
                }
            }
            Ok(None) => break (CloseCode::Normal, lanes.ended()),
            Err(_) => break (CloseCode::Protocol, lanes.ended()),
        }
    };
    let (code, Some(End::Orderly(reason) | End::Broken(reason))) = farewell else { return };
    let close = CloseFrame { code, reason: cut(&reason).into() };
    // If the peer no longer takes it, it has nothing to learn.
    drop(timeout(FLUSH, sink.send(Message::Close(Some(close)))).await);
}

async fn write_fragment(
    lanes: &Lanes,
    sink: &mut SplitSink<Stream, Message>,
    fragment: Fragment,
) -> Result<(), WsError> {
    let mut message = BytesMut::with_capacity(1 + fragment.bytes.len());
    message.put_u8(fragment.lane.index() as u8 | if fragment.more { MORE } else { 0 });
    message.put(fragment.bytes);
    sink.feed(Message::Binary(message.freeze())).await?;
    if lanes.is_empty() { sink.flush().await } else { Ok(()) }
}

/// Cuts a reason to what a close frame carries.
fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_LIMIT)]
}

fn told(error: &WsError) -> String {
    if let WsError::Capacity(error) = error {
        return format!("the peer sent what is no frame: {error}");
    }
    error.to_string()
}
