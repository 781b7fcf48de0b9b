//! Receiving: from streams to frames, without a task and without a buffer between.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::{Connection, ConnectionError, RecvStream, VarInt};
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

/// Reads the streams of one connection.
pub(super) trait Reads<S> {
    /// Reads what has come of a stream; 0 if nothing more will. It takes no more than there is room for.
    fn poll_read(&mut self, stream: &mut S, cx: &mut Context<'_>, into: impl BufMut) -> Poll<usize>;

    /// Why the connection is over, if it is.
    fn lost(&self) -> Option<ConnectionError>;
}

/// What has been read of each lane. All progress is kept here, so a `recv` can be dropped at any time.
#[derive(Debug)]
pub(super) struct Incoming<S> {
    lanes: [LaneReader<S>; Lane::ALL.len()],
    /// Streams whose first byte has not come yet. The peer may open as many as there are lanes.
    nameless: Vec<S>,
    streak: u8,
    turn: usize,
    ended: Option<Ended>,
}

#[derive(Debug, Clone)]
enum Ended {
    Orderly,
    Broken(String),
}

impl<S> Default for Incoming<S> {
    fn default() -> Self {
        Self { lanes: Default::default(), nameless: Vec::new(), streak: 0, turn: 0, ended: None }
    }
}

impl Incoming<RecvStream> {
    /// Waits for the next frame of any lane of a connection whose streams quinn reads.
    pub(super) async fn next(
        &mut self,
        connection: &Connection,
    ) -> Result<Option<(Lane, Bytes)>, TransportError> {
        let mut streams = connection;
        loop {
            let mut accept = pin!(connection.accept_uni());
            let next = poll_fn(|cx| {
                if let Poll::Ready(next) = self.poll_next(&mut streams, cx) {
                    return Poll::Ready(Some(next));
                }
                // Last, because it is what fails once the connection is over, and bytes that came before are still
                // to be read.
                match ready!(accept.as_mut().poll(cx)) {
                    Ok(stream) => self.take(stream),
                    Err(error) => self.end(&error),
                }
                Poll::Ready(None)
            });
            let Some(next) = next.await else { continue };
            if let Err(error) = &next
                && let Some(code) = code_of(error)
            {
                connection.close(code, error.to_string().as_bytes());
            }
            return next;
        }
    }
}

impl Reads<RecvStream> for &Connection {
    fn poll_read(
        &mut self,
        stream: &mut RecvStream,
        cx: &mut Context<'_>,
        mut into: impl BufMut,
    ) -> Poll<usize> {
        poll_read_buf(Pin::new(stream), cx, &mut into).map(|read| read.unwrap_or(0))
    }

    fn lost(&self) -> Option<ConnectionError> {
        self.close_reason()
    }
}

/// The code to close a connection with over what its peer did, if the peer did anything.
pub(super) fn code_of(error: &TransportError) -> Option<VarInt> {
    match error {
        TransportError::TooLong { .. } => Some(code::TOO_LONG),
        TransportError::Malformed(_) => Some(code::MALFORMED),
        TransportError::Unreachable { .. }
        | TransportError::Refused { .. }
        | TransportError::Closed(_)
        | TransportError::Config(_) => None,
    }
}

impl<S> Incoming<S> {
    /// Takes a stream that the peer has opened.
    pub(super) fn take(&mut self, stream: S) {
        self.nameless.push(stream);
    }

    /// Takes that the connection is over, and nothing more will come.
    pub(super) fn end(&mut self, error: &ConnectionError) {
        self.ended.get_or_insert_with(|| Ended::from(error));
    }

    /// The next frame of any lane; `None` after an orderly end.
    pub(super) fn poll_next(
        &mut self,
        streams: &mut impl Reads<S>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(Lane, Bytes)>, TransportError>> {
        match &self.ended {
            Some(Ended::Orderly) => return Poll::Ready(Ok(None)),
            Some(Ended::Broken(reason)) => {
                return Poll::Ready(Err(TransportError::Closed(reason.clone())));
            }
            None => {}
        }
        let frame = ready!(self.poll_frame(streams, cx));
        if let Err(error) = &frame {
            self.ended = Some(Ended::Broken(error.to_string()));
        }
        Poll::Ready(frame.map(Some))
    }

    /// How many bytes are allocated for frames that are being put together.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.lanes.iter().filter_map(|lane| lane.body.as_ref()).map(|body| body.bytes.capacity()).sum()
    }

    fn poll_frame(
        &mut self,
        streams: &mut impl Reads<S>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Lane, Bytes), TransportError>> {
        self.poll_names(streams, cx)?;
        for lane in self.order() {
            if let Poll::Ready(Some(frame)) = self.lanes[lane.index()].poll_frame(streams, lane, cx)? {
                self.took(lane);
                return Poll::Ready(Ok((lane, frame)));
            }
        }
        Poll::Pending
    }

    /// Reads the lane's number from streams that were opened.
    fn poll_names(
        &mut self,
        streams: &mut impl Reads<S>,
        cx: &mut Context<'_>,
    ) -> Result<(), TransportError> {
        let mut waiting = Vec::new();
        for mut stream in self.nameless.drain(..) {
            let mut number = [0];
            match streams.poll_read(&mut stream, cx, &mut number[..]) {
                Poll::Pending => waiting.push(stream),
                Poll::Ready(1) => {
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
#[derive(Debug)]
struct LaneReader<S> {
    stream: Option<S>,
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

impl<S> Default for LaneReader<S> {
    fn default() -> Self {
        Self { stream: None, opened: false, header: [0; 4], header_read: 0, body: None }
    }
}

impl<S> LaneReader<S> {
    fn open(&mut self, lane: Lane, stream: S) -> Result<(), TransportError> {
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
        streams: &mut impl Reads<S>,
        lane: Lane,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, TransportError>> {
        while let Some(stream) = &mut self.stream {
            let read = match &mut self.body {
                None => {
                    let rest = &mut self.header[self.header_read..];
                    let read = ready!(streams.poll_read(stream, cx, rest));
                    self.header_read += read;
                    read
                }
                Some(body) => ready!(streams.poll_read(stream, cx, body.room())),
            };
            if read == 0 {
                self.stream = None;
                // Lost with the connection is no fault of the peer.
                if self.header_read > 0 && streams.lost().is_none() {
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
    /// Where to put what comes next, and no more than belongs to the frame.
    fn room(&mut self) -> impl BufMut {
        let missing = self.length - self.bytes.len();
        if self.bytes.capacity() == self.bytes.len() {
            self.bytes.reserve(missing.min(self.bytes.len().max(FIRST_PIECE)));
        }
        // Not beyond what is allocated: the buffer would grow for it.
        let room = missing.min(self.bytes.capacity() - self.bytes.len());
        (&mut self.bytes).limit(room)
    }
}
