//! One connection at the cloud's end.

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Instant,
};

use async_trait::async_trait;
use bytes::{BufMut, Bytes};
use quinn::{UdpPoller, VarInt};
use quinn_proto::{
    ConnectionError, ConnectionEvent, ConnectionHandle, Dir, EndpointEvent, Event, ReadError, StreamEvent,
    StreamId, Transmit, WriteError,
};
use tokio::time::{Instant as TokioInstant, sleep_until, timeout};

use super::{
    code,
    connection::{FLUSH, reason},
    endpoint::{Endpoint, Shared, now, outgoing},
    incoming::{Incoming, Reads, code_of},
    outgoing::priority,
};
use crate::{
    message::Lane,
    transport::{
        Connection, Peer, TransportError,
        lanes::{End, Lanes, check_length},
    },
};

/// How many packets a connection sends before others get a turn.
const PACKETS_IN_A_ROW: usize = 32;

/// How many datagrams wait for the connection's task, as in a socket's buffer: what the window of a lane holds.
const MAIL_MAX: usize = 1024;

/// How many packets the kernel is given at once, where it splits them.
const SEGMENTS_MAX: usize = 10;

/// A connection of a node that has proven who it is.
pub(super) struct AcceptedConnection {
    machine: Arc<Machine>,
    /// Keeps the socket and the machine's task.
    _endpoint: Arc<Endpoint>,
    peer: Peer,
}

impl AcceptedConnection {
    /// Waits for the end of the handshake, and tells the client that `identify` takes its certificate.
    pub(super) async fn shake_hands(
        endpoint: Arc<Endpoint>,
        attempt: quinn_proto::Incoming,
        identify: impl FnOnce(Option<Box<dyn Any>>) -> Result<Peer, String>,
    ) -> Result<Self, String> {
        let failed = |error: ConnectionError| reason(&error);
        let machine = endpoint.accept(attempt, Arc::default()).map_err(failed)?;
        // Ends the connection if the handshake is given up.
        let mut connection = Self { machine, _endpoint: endpoint, peer: Peer::Cloud };
        let machine = &connection.machine;
        poll_fn(|cx| machine.poll_connected(cx)).await.map_err(failed)?;
        let identity = machine.state().machine.crypto_session().peer_identity();
        let peer = identify(identity).inspect_err(|reason| machine.close(code::REFUSED, reason.clone()))?;
        if !machine.welcome() {
            return Err("the client allows no stream, or nothing on it".to_owned());
        }
        connection.peer = peer;
        Ok(connection)
    }

    fn closed_here() -> TransportError {
        TransportError::Closed("closed by this end".to_owned())
    }
}

#[async_trait]
impl Connection for AcceptedConnection {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn path(&self) -> String {
        format!("quic {}", self.machine.remote_address())
    }

    async fn send(&self, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        check_length(lane, frame.len())?;
        {
            let state = self.machine.state();
            if state.closing {
                return Err(Self::closed_here());
            }
            if let Some(error) = &state.lost {
                return Err(TransportError::Closed(reason(error)));
            }
        }
        self.machine.lanes.push(lane, frame).await
    }

    async fn recv(&self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        poll_fn(|cx| self.machine.poll_recv(cx)).await
    }

    async fn close(&self, reason: &str) {
        self.machine.begin_closing(reason);
        drop(timeout(FLUSH, poll_fn(|cx| self.machine.poll_flushed(cx))).await);
        self.machine.close(code::ORDERLY, reason.to_owned());
    }
}

impl Drop for AcceptedConnection {
    fn drop(&mut self) {
        self.machine.close(code::DROPPED, "the peer dropped the connection".to_owned());
    }
}

impl fmt::Debug for AcceptedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptedConnection")
            .field("peer", &self.peer)
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

/// Quinn's state machine of one connection with what it is fed from: datagrams, time, and the lanes.
pub(super) struct Machine {
    shared: Arc<Shared>,
    handle: ConnectionHandle,
    lanes: Arc<Lanes>,
    /// Apart from the state, so that whoever brings a datagram does not wait while another is deciphered.
    mail: Mutex<Mail>,
    state: Mutex<State>,
}

#[derive(Default)]
struct Mail {
    events: VecDeque<ConnectionEvent>,
    /// Whether the task has something to do.
    due: bool,
    task: Option<Waker>,
}

struct State {
    machine: quinn_proto::Connection,
    incoming: Incoming<StreamId>,
    outgoing: [Outgoing; Lane::ALL.len()],
    /// Who waits for the handshake, or for a frame.
    reader: Option<Waker>,
    /// Who waits until the peer has everything.
    closer: Option<Waker>,
    connected: bool,
    /// Whether this end has begun to close the connection in order.
    closing: bool,
    /// Whether the streams were finished, after all that was to be sent.
    finished: bool,
    lost: Option<ConnectionError>,
    drained: bool,
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

/// What is left to do after some work.
struct Left {
    /// There is more that can be done at once.
    more: bool,
    /// The socket takes nothing just now; this comes next.
    unsent: Option<(Transmit, Vec<u8>)>,
    timeout: Option<Instant>,
    drained: bool,
}

impl Machine {
    pub(super) fn new(
        shared: Arc<Shared>,
        handle: ConnectionHandle,
        connection: quinn_proto::Connection,
        lanes: Arc<Lanes>,
    ) -> Self {
        let state = State {
            machine: connection,
            incoming: Incoming::default(),
            outgoing: Default::default(),
            reader: None,
            closer: None,
            connected: false,
            closing: false,
            finished: false,
            lost: None,
            drained: false,
        };
        Self { shared, handle, lanes, mail: Mutex::default(), state: Mutex::new(state) }
    }

    /// Takes a datagram that came for the connection; one too many is as lost as on the way.
    pub(super) fn handle_event(&self, event: ConnectionEvent) {
        let mut mail = self.mail();
        if mail.events.len() < MAIL_MAX {
            mail.events.push_back(event);
        }
        wake(&mut mail);
    }

    /// Brings the connection on until nothing is left of it, after its end too: the peer may not have heard of that.
    pub(super) async fn drive(self: Arc<Self>) {
        loop {
            let filled = self.lanes.filled();
            let left = self.work();
            if left.drained {
                return;
            }
            if let Some((transmit, contents)) = left.unsent {
                self.send_later(&transmit, &contents).await;
            } else if left.more {
                tokio::task::yield_now().await;
            } else {
                let until = left.timeout.map(TokioInstant::from_std);
                tokio::select! {
                    () = filled => {}
                    () = poll_fn(|cx| self.poll_due(cx)) => {}
                    () = async { sleep_until(until.unwrap_or_else(TokioInstant::now)).await }, if until.is_some() => {}
                }
            }
        }
    }

    /// Waits until the socket takes a packet. Should it never, time is left to the timers: a packet can be lost anyway.
    async fn send_later(&self, transmit: &Transmit, contents: &[u8]) {
        let mut poller: Pin<Box<dyn UdpPoller>> = self.shared.socket().clone().create_io_poller();
        let writable = poll_fn(|cx| poller.as_mut().poll_writable(cx));
        if let Ok(Ok(())) = timeout(FLUSH, writable).await {
            drop(self.shared.socket().try_send(&outgoing(transmit, contents)));
        }
    }

    fn work(&self) -> Left {
        let events = {
            let mut mail = self.mail();
            mail.due = false;
            std::mem::take(&mut mail.events)
        };
        let mut state = self.state();
        for event in events {
            state.machine.handle_event(event);
        }
        let now = now();
        if state.machine.poll_timeout().is_some_and(|timeout| timeout <= now) {
            state.machine.handle_timeout(now);
        }
        self.exchange(&mut state);
        state.handle_events(&self.lanes);
        if let Err(reason) = state.write(&self.lanes) {
            self.lanes.end(End::Broken(reason.clone()));
            state.machine.close(now, code::MALFORMED, reason.into());
            state.end(ConnectionError::LocallyClosed, &self.lanes);
        }
        let (more, unsent) = self.transmit(&mut state, now);
        let more = self.exchange(&mut state) || more;
        if !more && state.is_forgettable() {
            self.shared.handle_event(self.handle, EndpointEvent::drained());
            state.drained = true;
        }
        let timeout = state.machine.poll_timeout();
        Left { more, unsent, timeout, drained: state.drained }
    }

    /// Passes on what the connection and its endpoint have for each other; whether the endpoint had anything.
    fn exchange(&self, state: &mut State) -> bool {
        let mut answered = false;
        while let Some(event) = state.machine.poll_endpoint_events() {
            state.drained |= event.is_drained();
            if let Some(event) = self.shared.handle_event(self.handle, event) {
                state.machine.handle_event(event);
                answered = true;
            }
        }
        answered
    }

    /// Sends what there is to send; whether there is more, and what the socket did not take.
    fn transmit(&self, state: &mut State, now: Instant) -> (bool, Option<(Transmit, Vec<u8>)>) {
        let socket = self.shared.socket();
        let segments = socket.max_transmit_segments().clamp(1, SEGMENTS_MAX);
        let mut contents = Vec::new();
        for _ in 0..PACKETS_IN_A_ROW {
            contents.clear();
            let Some(transmit) = state.machine.poll_transmit(now, segments, &mut contents) else {
                return (false, None);
            };
            match socket.try_send(&outgoing(&transmit, &contents)) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return (true, Some((transmit, contents)));
                }
                // The system cannot send it, as when there is no route: as good as lost on the way.
                Err(error) => tracing::debug!(%error, to = %transmit.destination, "a packet was not sent"),
            }
        }
        (true, None)
    }

    fn poll_due(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut mail = self.mail();
        if mail.due {
            return Poll::Ready(());
        }
        mail.task = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let mut state = self.state();
        if let Some(lost) = &state.lost {
            return Poll::Ready(Err(lost.clone()));
        }
        if state.connected {
            return Poll::Ready(Ok(()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Opens the Heartbeat lane, which tells the client that it was let in.
    fn welcome(&self) -> bool {
        let mut state = self.state();
        let opened = matches!(state.open(Lane::Heartbeat), Ok(Some(_)));
        drop(state);
        wake(&mut self.mail());
        opened
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Result<Option<(Lane, Bytes)>, TransportError>> {
        let mut state = self.state();
        if state.closing {
            return Poll::Ready(Err(AcceptedConnection::closed_here()));
        }
        let State { machine, incoming, lost, reader, .. } = &mut *state;
        let mut streams = Streams { machine, lost: lost.as_ref(), read: false };
        while let Some(stream) = streams.machine.streams().accept(Dir::Uni) {
            incoming.take(stream);
        }
        let mut polled = incoming.poll_next(&mut streams, cx);
        if polled.is_pending()
            && let Some(lost) = streams.lost
        {
            incoming.end(lost);
            polled = incoming.poll_next(&mut streams, cx);
        }
        let read = streams.read;
        if read {
            // The peer may send more.
            wake(&mut self.mail());
        }
        match polled {
            Poll::Ready(Ok(frame)) => Poll::Ready(Ok(frame)),
            Poll::Ready(Err(error)) => {
                drop(state);
                if let Some(code) = code_of(&error) {
                    self.close(code, error.to_string());
                }
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                *reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn begin_closing(&self, reason: &str) {
        let mut state = self.state();
        state.closing = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        drop(state);
        self.lanes.end(End::Orderly(reason.to_owned()));
    }

    /// Until the peer has acknowledged all that was sent before the end.
    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.lost.is_some() || state.is_flushed() {
            return Poll::Ready(());
        }
        state.closer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ends the connection, if it has not ended, and tells the peer at once, should the process end right after.
    fn close(&self, code: VarInt, reason: String) {
        let mut state = self.state();
        if state.lost.is_some() {
            return;
        }
        let now = now();
        state.machine.close(now, code, reason.into());
        state.end(ConnectionError::LocallyClosed, &self.lanes);
        let _ = self.transmit(&mut state, now);
        drop(state);
        wake(&mut self.mail());
    }

    fn remote_address(&self) -> SocketAddr {
        self.state().machine.remote_address()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("handle", &self.handle).finish_non_exhaustive()
    }
}

/// Says to a machine's task that there is something to do.
fn wake(mail: &mut Mail) {
    mail.due = true;
    if let Some(task) = mail.task.take() {
        task.wake();
    }
}

impl State {
    /// Takes what the connection has to tell.
    fn handle_events(&mut self, lanes: &Lanes) {
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

    fn end(&mut self, why: ConnectionError, lanes: &Lanes) {
        lanes.end(End::Broken(reason(&why)));
        self.lost.get_or_insert(why);
        for waiting in [self.reader.take(), self.closer.take()].into_iter().flatten() {
            waiting.wake();
        }
    }

    /// Whether nobody is left who has to be told of the end. QUIC keeps a connection that is over for some seconds more, in
    /// case the farewell was lost (RFC 9000 §10.2); but when all nodes come at once, most that are over are attempts whose
    /// clients have given up or come another way.
    fn is_forgettable(&self) -> bool {
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

    fn is_flushed(&self) -> bool {
        self.finished && self.outgoing.iter().all(|lane| lane.stream.is_none())
    }

    /// Writes what the lanes hold, as far as the peer takes it, and finishes the streams behind the last frame.
    fn write(&mut self, lanes: &Lanes) -> Result<(), String> {
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
    fn open(&mut self, lane: Lane) -> Result<Option<StreamId>, WriteError> {
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
struct Streams<'a> {
    machine: &'a mut quinn_proto::Connection,
    lost: Option<&'a ConnectionError>,
    /// Whether the peer is to be told that there is room.
    read: bool,
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
