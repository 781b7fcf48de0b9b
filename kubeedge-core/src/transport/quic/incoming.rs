//! Receiving: from streams to frames, without a task and without a buffer between.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, ConnectionError, RecvStream};
use tokio_util::io::poll_read_buf;

use super::code;
use crate::{
    message::Lane,
    transport::{TransportError, lanes::check_length},
};

/// The first piece that is allocated for a long frame; it doubles as bytes arrive.
const FIRST_PIECE: usize = 4 << 10;

/// How many heartbeats pass in a row before another lane gets a turn.
const URGENT_STREAK: u8 = 8;

/// What has been read of each lane. All progress is kept here, so a `recv` can be dropped at any time.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    lanes: [LaneReader; Lane::ALL.len()],
    /// Streams whose first byte has not come yet. The peer may open as many as there are lanes.
    nameless: Vec<RecvStream>,
    streak: u8,
    turn: usize,
    ended: Option<Ended>,
}

#[derive(Debug, Clone)]
enum Ended {
    Orderly,
    Broken(String),
}

/// What a wait brought.
enum Event {
    Frame(Lane, Bytes),
    Stream(RecvStream),
    End(ConnectionError),
}

impl Incoming {
    /// Begins with a stream that was accepted before.
    pub(super) fn starting_with(stream: RecvStream) -> Self {
        Self { nameless: vec![stream], ..Self::default() }
    }

    /// Waits for the next frame of any lane.
    pub(super) async fn next(
        &mut self,
        connection: &Connection,
    ) -> Result<Option<(Lane, Bytes)>, TransportError> {
        loop {
            match &self.ended {
                Some(Ended::Orderly) => return Ok(None),
                Some(Ended::Broken(reason)) => return Err(TransportError::Closed(reason.clone())),
                None => {}
            }
            match self.wait(connection).await {
                Ok(Event::Frame(lane, frame)) => return Ok(Some((lane, frame))),
                Ok(Event::Stream(stream)) => self.nameless.push(stream),
                Ok(Event::End(error)) => self.ended = Some(Ended::from(&error)),
                Err(error) => {
                    let code = if matches!(error, TransportError::TooLong { .. }) {
                        code::TOO_LONG
                    } else {
                        code::MALFORMED
                    };
                    self.ended = Some(Ended::Broken(error.to_string()));
                    connection.close(code, error.to_string().as_bytes());
                    return Err(error);
                }
            }
        }
    }

    /// How many bytes are allocated for frames that are being put together.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.lanes.iter().filter_map(|lane| lane.body.as_ref()).map(|body| body.bytes.capacity()).sum()
    }

    async fn wait(&mut self, connection: &Connection) -> Result<Event, TransportError> {
        let mut accept = pin!(connection.accept_uni());
        poll_fn(|cx| {
            if let Poll::Ready(frame) = self.poll_frame(connection, cx) {
                let (lane, frame) = frame?;
                return Poll::Ready(Ok(Event::Frame(lane, frame)));
            }
            // Last, because it is what fails once the connection is over, and bytes that came before are still
            // to be read.
            Poll::Ready(Ok(match ready!(accept.as_mut().poll(cx)) {
                Ok(stream) => Event::Stream(stream),
                Err(error) => Event::End(error),
            }))
        })
        .await
    }

    fn poll_frame(
        &mut self,
        connection: &Connection,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Lane, Bytes), TransportError>> {
        self.poll_names(cx)?;
        for lane in self.order() {
            if let Poll::Ready(Some(frame)) = self.lanes[lane.index()].poll_frame(connection, lane, cx)? {
                self.took(lane);
                return Poll::Ready(Ok((lane, frame)));
            }
        }
        Poll::Pending
    }

    /// Reads the lane's number from streams that were opened.
    fn poll_names(&mut self, cx: &mut Context<'_>) -> Result<(), TransportError> {
        let mut waiting = Vec::new();
        for mut stream in self.nameless.drain(..) {
            let mut number = [0];
            match stream.poll_read(cx, &mut number) {
                Poll::Pending => waiting.push(stream),
                Poll::Ready(Ok(1)) => {
                    let lane = Lane::from_index(usize::from(number[0])).ok_or_else(|| {
                        TransportError::Malformed(format!("there is no lane {}", number[0]))
                    })?;
                    self.lanes[lane.index()].open(lane, stream)?;
                }
                // Ended before it began, or lost with the connection.
                Poll::Ready(_) => {}
            }
        }
        self.nameless = waiting;
        Ok(())
    }

    /// Heartbeat first, except after a long row of them; the others in turn.
    fn order(&self) -> [Lane; Lane::ALL.len()] {
        const OTHERS: usize = Lane::ALL.len() - 1;
        let mut order = Lane::ALL;
        for (n, place) in order[1..].iter_mut().enumerate() {
            *place = Lane::ALL[1 + (self.turn + n) % OTHERS];
        }
        if self.streak >= URGENT_STREAK {
            order.rotate_left(1);
        }
        order
    }

    fn took(&mut self, lane: Lane) {
        if lane == Lane::Heartbeat {
            self.streak = self.streak.saturating_add(1);
        } else {
            self.streak = 0;
            self.turn = lane.index() % (Lane::ALL.len() - 1);
        }
    }
}

impl From<&ConnectionError> for Ended {
    fn from(error: &ConnectionError) -> Self {
        if let ConnectionError::ApplicationClosed(close) = error
            && close.error_code == code::ORDERLY
        {
            return Self::Orderly;
        }
        Self::Broken(super::connection::reason(error))
    }
}

/// What has been read of one lane.
#[derive(Debug, Default)]
struct LaneReader {
    stream: Option<RecvStream>,
    opened: bool,
    header: [u8; 4],
    header_read: usize,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    length: usize,
    bytes: BytesMut,
}

impl LaneReader {
    fn open(&mut self, lane: Lane, stream: RecvStream) -> Result<(), TransportError> {
        if self.opened {
            return Err(TransportError::Malformed(format!("lane {lane:?} was opened twice")));
        }
        self.opened = true;
        self.stream = Some(stream);
        Ok(())
    }

    /// The next frame; `Ready(None)` if the lane is closed or not open.
    fn poll_frame(
        &mut self,
        connection: &Connection,
        lane: Lane,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, TransportError>> {
        while let Some(stream) = &mut self.stream {
            let read = match &mut self.body {
                None => {
                    let read = ready!(stream.poll_read(cx, &mut self.header[self.header_read..]));
                    self.header_read += *read.as_ref().unwrap_or(&0);
                    read.is_ok_and(|read| read > 0)
                }
                Some(body) => ready!(body.poll_read(stream, cx)),
            };
            if !read {
                self.stream = None;
                // Lost with the connection is no fault of the peer; `accept_uni` tells what happened to it.
                if self.header_read > 0 && connection.close_reason().is_none() {
                    let reason = format!("lane {lane:?} ended within a frame");
                    return Poll::Ready(Err(TransportError::Malformed(reason)));
                }
            } else if let Some(frame) = self.advance(lane)? {
                return Poll::Ready(Ok(Some(frame)));
            }
        }
        Poll::Ready(Ok(None))
    }

    fn advance(&mut self, lane: Lane) -> Result<Option<Bytes>, TransportError> {
        if self.header_read < self.header.len() {
            return Ok(None);
        }
        let length = u32::from_be_bytes(self.header) as usize;
        check_length(lane, length)?;
        let body = self.body.get_or_insert_with(|| Body { length, bytes: BytesMut::new() });
        if body.bytes.len() < body.length {
            return Ok(None);
        }
        self.header_read = 0;
        Ok(self.body.take().map(|body| body.bytes.freeze()))
    }
}

impl Body {
    /// Reads on; whether anything came.
    fn poll_read(&mut self, stream: &mut RecvStream, cx: &mut Context<'_>) -> Poll<bool> {
        let missing = self.length - self.bytes.len();
        if self.bytes.capacity() == self.bytes.len() {
            self.bytes.reserve(missing.min(self.bytes.len().max(FIRST_PIECE)));
        }
        let mut room = (&mut self.bytes).limit(missing);
        poll_read_buf(Pin::new(stream), cx, &mut room).map(|read| read.is_ok_and(|read| read > 0))
    }
}
