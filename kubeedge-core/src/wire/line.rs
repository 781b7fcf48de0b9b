use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::{Codec, WireError};
use crate::{
    hub::Frame,
    message::Lane,
    transport::{Connection, Peer, TransportError},
};

/// A connection that carries frames: what the drivers of both ends of the link hold.
///
/// On each lane at most one frame is on its way into the transport, so a lane that is slow holds up no other,
/// and what waits stays in the link's machine, where a newer state takes the place of an older one.
pub struct Line {
    connection: Arc<dyn Connection>,
    codec: Arc<dyn Codec>,
    receiving: Receiving,
    sending: [Option<Sending>; Lane::ALL.len()],
    carried: Carried,
    clock_ms: Option<u64>,
}

/// Bytes of frames that a [`Line`] has carried, by the lanes' numbers.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// Given to the transport.
    pub sent: [u64; Lane::ALL.len()],
    /// Taken from the transport.
    pub received: [u64; Lane::ALL.len()],
}

type Receiving = Pin<Box<dyn Future<Output = Result<Option<(Lane, Bytes)>, TransportError>> + Send>>;
type Sending = Pin<Box<dyn Future<Output = Result<(), TransportError>> + Send>>;

/// What happened on a [`Line`].
#[derive(Debug)]
pub enum LineEvent {
    /// A frame came.
    Frame(Frame),
    /// Something came that is no frame. The connection may live, but the session has to end.
    Garbled(WireError),
    /// The lane can take its next frame.
    Free(Lane),
    /// The peer announced a frame that is too long, or broke the framing rules: the connection is over. Nothing follows.
    Broken(TransportError),
    /// The connection is over, with the reason. Nothing follows.
    Lost(String),
}

/// The frame is longer than its lane allows, and was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frame is longer than its lane allows")]
pub struct TooLong;

impl Line {
    /// Speaks frames over a connection.
    pub fn new(connection: Box<dyn Connection>, codec: Arc<dyn Codec>) -> Self {
        let connection: Arc<dyn Connection> = connection.into();
        let receiving = receive(connection.clone());
        let carried = Carried::default();
        Self { connection, codec, receiving, sending: Default::default(), carried, clock_ms: None }
    }

    /// The peer as its certificate has proven it.
    pub fn peer(&self) -> &Peer {
        self.connection.peer()
    }

    /// When what proved the peer's identity ends, as [`Connection::identity_ends`] has it.
    pub fn identity_ends(&self) -> Option<Duration> {
        self.connection.identity_ends()
    }

    /// How the peer is reached, for logs.
    pub fn path(&self) -> String {
        self.connection.path()
    }

    /// What it has carried since this was asked last.
    pub fn take_carried(&mut self) -> Carried {
        std::mem::take(&mut self.carried)
    }

    /// What the peer's clock showed when it sent the last frame that came, in milliseconds since the Unix epoch, if it said
    /// so. Only frames about the session say it.
    pub fn take_clock(&mut self) -> Option<u64> {
        self.clock_ms.take()
    }

    /// Whether [`Line::send`] may be called with a frame of this lane.
    pub fn is_free(&self, lane: Lane) -> bool {
        self.sending[lane.index()].is_none()
    }

    /// Begins to send a frame, whose lane must be free; [`Line::next`] carries it out.
    ///
    /// # Errors
    /// If the frame is too long for its lane.
    pub fn send(&mut self, frame: &Frame) -> Result<(), TooLong> {
        self.send_bytes(frame.lane(), self.codec.encode(frame))
    }

    /// Begins to send a frame as [`Line::send`] does, and says with it what the clock of this side shows: milliseconds since
    /// the Unix epoch.
    ///
    /// # Errors
    /// If the frame is too long for its lane.
    pub fn send_with_clock(&mut self, frame: &Frame, clock_ms: u64) -> Result<(), TooLong> {
        self.send_bytes(frame.lane(), self.codec.encode_with_clock(frame, clock_ms))
    }

    fn send_bytes(&mut self, lane: Lane, bytes: Bytes) -> Result<(), TooLong> {
        if bytes.len() > lane.frame_limit() {
            return Err(TooLong);
        }
        self.carried.sent[lane.index()] += bytes.len() as u64;
        let connection = self.connection.clone();
        self.sending[lane.index()] = Some(Box::pin(async move { connection.send(lane, bytes).await }));
        Ok(())
    }

    /// Waits for the next event, and sends meanwhile. Cancel-safe.
    pub async fn next(&mut self) -> LineEvent {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<LineEvent> {
        for lane in Lane::ALL {
            let slot = &mut self.sending[lane.index()];
            let Some(sending) = slot else { continue };
            if let Poll::Ready(sent) = sending.as_mut().poll(context) {
                *slot = None;
                return Poll::Ready(match sent {
                    Ok(()) => LineEvent::Free(lane),
                    Err(error) => LineEvent::Lost(error.to_string()),
                });
            }
        }
        self.receiving.as_mut().poll(context).map(|received| {
            self.receiving = receive(self.connection.clone());
            match received {
                Ok(Some((lane, bytes))) => {
                    self.carried.received[lane.index()] += bytes.len() as u64;
                    self.clock_ms = None;
                    match self.codec.decode(lane, &bytes) {
                        Ok(frame) => {
                            // The two that say it; acknowledgements come by the thousand and are not looked at twice.
                            if matches!(frame, Frame::Synchronized | Frame::Ping(_)) {
                                self.clock_ms = self.codec.clock(&bytes);
                            }
                            LineEvent::Frame(frame)
                        }
                        Err(error) => LineEvent::Garbled(error),
                    }
                }
                Ok(None) => LineEvent::Lost("the peer closed the connection".to_owned()),
                Err(error @ (TransportError::TooLong { .. } | TransportError::Malformed(_))) => {
                    LineEvent::Broken(error)
                }
                Err(error) => LineEvent::Lost(error.to_string()),
            }
        })
    }

    /// Sends the last words behind what is on its way on their lane, and closes the connection. It may take as long
    /// as the peer likes; give it a deadline.
    pub async fn close(mut self, last_words: Vec<Frame>, reason: String) {
        if let Some(sending) = self.sending[Lane::Heartbeat.index()].take()
            && sending.await.is_err()
        {
            return;
        }
        for frame in last_words {
            if self.connection.send(frame.lane(), self.codec.encode(&frame)).await.is_err() {
                return;
            }
        }
        self.connection.close(&reason).await;
    }
}

fn receive(connection: Arc<dyn Connection>) -> Receiving {
    Box::pin(async move { connection.recv().await })
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("connection", &self.connection).finish_non_exhaustive()
    }
}
