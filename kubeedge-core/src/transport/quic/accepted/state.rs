//! The lanes on the streams of one connection at the cloud's end.

use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes};
use quinn_proto::{ConnectionError, Dir, Event, ReadError, StreamEvent, StreamId, WriteError};

use super::super::{
    connection::reason,
    incoming::{Incoming, Reads},
    outgoing::priority,
};
use crate::{
    message::Lane,
    transport::lanes::{End, Lanes},
};

/// Quinn's machine, what is read from it and written to it, and what became of it.
pub(super) struct State {
    pub(super) machine: quinn_proto::Connection,
    pub(super) incoming: Incoming<StreamId>,
    outgoing: [Outgoing; Lane::ALL.len()],
    /// Who waits for the handshake, or for a frame.
    pub(super) reader: Option<Waker>,
    /// Who waits until the peer has everything.
    pub(super) closer: Option<Waker>,
    pub(super) connected: bool,
    /// Whether this end has begun to close the connection in order.
    pub(super) closing: bool,
    /// Whether the streams were finished, after all that was to be sent.
    finished: bool,
    pub(super) lost: Option<ConnectionError>,
    pub(super) drained: bool,
}

/// One lane towards the peer.
#[derive(Debug, Default)]
struct Outgoing {
    stream: Option<StreamId>,
    /// Whether the stream's first byte is written, which says whose lane it is.
    named: bool,
    /// The rest of a frame and of its length before it.
    frame: Option<[Bytes; 2]>,
}

impl State {
    pub(super) fn new(machine: quinn_proto::Connection) -> Self {
        Self {
            machine,
            incoming: Incoming::default(),
            outgoing: Default::default(),
            reader: None,
            closer: None,
            connected: false,
            closing: false,
            finished: false,
            lost: None,
            drained: false,
        }
    }

    /// Takes what the connection has to tell.
    pub(super) fn handle_events(&mut self, lanes: &Lanes) {
        let mut readable = false;
        while let Some(event) = self.machine.poll() {
            match event {
                Event::Connected => (self.connected, readable) = (true, true),
                Event::ConnectionLost { reason } => self.end(reason, lanes),
                Event::Stream(StreamEvent::Opened { .. } | StreamEvent::Readable { .. }) => readable = true,
                Event::Stream(StreamEvent::Finished { id } | StreamEvent::Stopped { id, .. }) => {
                    let lane = self.outgoing.iter_mut().find(|lane| lane.stream == Some(id));
                    if let Some(lane) = lane.filter(|_| self.finished) {
                        lane.stream = None;
                    }
                }
                // What waits for these is written whenever there was anything to do.
                Event::Stream(StreamEvent::Writable { .. } | StreamEvent::Available { .. })
                | Event::HandshakeDataReady
                | Event::DatagramReceived
                | Event::DatagramsUnblocked => {}
            }
        }
        if readable && let Some(reader) = self.reader.take() {
            reader.wake();
        }
        if self.is_flushed()
            && let Some(closer) = self.closer.take()
        {
            closer.wake();
        }
    }

    pub(super) fn end(&mut self, why: ConnectionError, lanes: &Lanes) {
        lanes.end(End::Broken(reason(&why)));
        self.lost.get_or_insert(why);
        for waiting in [self.reader.take(), self.closer.take()].into_iter().flatten() {
            waiting.wake();
        }
    }

    /// Whether nobody is left who has to be told of the end. QUIC keeps a connection that is over for some seconds more, in
    /// case the farewell was lost (RFC 9000 §10.2); but when all nodes come at once, most that are over are attempts whose
    /// clients have given up or come another way.
    pub(super) fn is_forgettable(&self) -> bool {
        use ConnectionError as Error;
        match &self.lost {
            // Of these the client has to hear.
            None | Some(Error::TransportError(_) | Error::VersionMismatch | Error::CidsExhausted) => false,
            Some(Error::LocallyClosed) => !self.connected,
            Some(
                Error::ConnectionClosed(_) | Error::ApplicationClosed(_) | Error::Reset | Error::TimedOut,
            ) => true,
        }
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.finished && self.outgoing.iter().all(|lane| lane.stream.is_none())
    }

    /// Writes what the lanes hold, as far as the peer takes it, and finishes the streams behind the last frame.
    pub(super) fn write(&mut self, lanes: &Lanes) -> Result<(), String> {
        if self.lost.is_some() || !self.connected {
            return Ok(());
        }
        loop {
            for lane in Lane::ALL {
                self.write_frame(lane)
                    .map_err(|error| format!("lane {lane:?} cannot be written: {error}"))?;
            }
            let idle = Lane::ALL.map(|lane| self.outgoing[lane.index()].frame.is_none());
            match lanes.try_pop_of(idle) {
                Some((lane, frame)) => {
                    // Frames are at most a few MiB long: `Lanes::push` checks.
                    let length = Bytes::copy_from_slice(&(frame.len() as u32).to_be_bytes());
                    self.outgoing[lane.index()].frame = Some([length, frame]);
                }
                None => break,
            }
        }
        let done = self.outgoing.iter().all(|lane| lane.frame.is_none()) && lanes.is_at_end();
        if done && !self.finished {
            self.finished = true;
            for lane in &mut self.outgoing {
                if let Some(stream) = lane.stream
                    && self.machine.send_stream(stream).finish().is_err()
                {
                    lane.stream = None;
                }
            }
            if self.is_flushed()
                && let Some(closer) = self.closer.take()
            {
                closer.wake();
            }
        }
        Ok(())
    }

    fn write_frame(&mut self, lane: Lane) -> Result<(), WriteError> {
        if self.outgoing[lane.index()].frame.is_none() {
            return Ok(());
        }
        let Some(stream) = self.open(lane)? else { return Ok(()) };
        let slot = &mut self.outgoing[lane.index()].frame;
        while let Some(frame) = slot {
            match self.machine.send_stream(stream).write_chunks(frame) {
                Ok(_) if frame.iter().all(Bytes::is_empty) => *slot = None,
                Ok(_) => {}
                Err(WriteError::Blocked) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The lane's stream, once its first byte is written; `None` as long as the peer has no room for that.
    pub(super) fn open(&mut self, lane: Lane) -> Result<Option<StreamId>, WriteError> {
        let Outgoing { stream, named, .. } = &mut self.outgoing[lane.index()];
        if stream.is_none()
            && let Some(opened) = self.machine.streams().open(Dir::Uni)
        {
            // A stream that was just opened takes a priority; it fails only on one that is closed.
            drop(self.machine.send_stream(opened).set_priority(priority(lane)));
            *stream = Some(opened);
        }
        let Some(stream) = *stream else { return Ok(None) };
        if !*named {
            match self.machine.send_stream(stream).write(&[lane.index() as u8]) {
                Ok(_) => *named = true,
                // What the other lanes have sent takes all that the peer has room for.
                Err(WriteError::Blocked) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(stream))
    }
}

/// The streams that the peer has opened.
pub(super) struct Streams<'a> {
    pub(super) machine: &'a mut quinn_proto::Connection,
    pub(super) lost: Option<&'a ConnectionError>,
    /// Whether the peer is to be told that there is room.
    pub(super) read: bool,
}

impl Reads<StreamId> for Streams<'_> {
    fn poll_read(
        &mut self,
        stream: &mut StreamId,
        _: &mut Context<'_>,
        mut into: impl BufMut,
    ) -> Poll<usize> {
        let mut stream = self.machine.recv_stream(*stream);
        let Ok(mut chunks) = stream.read(true) else { return Poll::Ready(0) };
        let mut count = 0;
        let mut blocked = false;
        while into.has_remaining_mut() {
            match chunks.next(into.remaining_mut()) {
                Ok(Some(chunk)) => {
                    count += chunk.bytes.len();
                    into.put(chunk.bytes);
                }
                Err(ReadError::Blocked) => {
                    blocked = true;
                    break;
                }
                Ok(None) | Err(ReadError::Reset(_)) => break,
            }
        }
        self.read |= chunks.finalize().should_transmit();
        // Nothing more comes on any stream of a connection that is over.
        if count == 0 && blocked && self.lost.is_none() { Poll::Pending } else { Poll::Ready(count) }
    }

    fn lost(&self) -> Option<ConnectionError> {
        self.lost.cloned()
    }
}
