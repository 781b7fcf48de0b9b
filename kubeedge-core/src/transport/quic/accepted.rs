//! One connection at the cloud's end.

mod state;

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{UdpPoller, VarInt};
use quinn_proto::{ConnectionError, ConnectionEvent, ConnectionHandle, Dir, EndpointEvent, Transmit};
use tokio::time::{Instant as TokioInstant, sleep_until, timeout};

use super::{
    code,
    connection::{FLUSH, reason},
    endpoint::{Endpoint, Shared, now, outgoing},
    incoming::code_of,
};
use crate::{
    message::Lane,
    transport::{
        Connection, Peer, TransportError,
        lanes::{End, Lanes, check_length},
    },
};
use state::{State, Streams};

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
    identity_ends: Duration,
}

impl AcceptedConnection {
    /// Waits for the end of the handshake, and tells the client that `identify` takes its certificate.
    pub(super) async fn shake_hands(
        endpoint: Arc<Endpoint>,
        attempt: quinn_proto::Incoming,
        identify: impl FnOnce(Option<Box<dyn Any>>) -> Result<(Peer, Duration), String>,
    ) -> Result<Self, String> {
        let failed = |error: ConnectionError| reason(&error);
        let machine = endpoint.accept(attempt, Arc::default()).map_err(failed)?;
        // Ends the connection if the handshake is given up.
        let mut connection =
            Self { machine, _endpoint: endpoint, peer: Peer::Cloud, identity_ends: Duration::ZERO };
        let machine = &connection.machine;
        poll_fn(|cx| machine.poll_connected(cx)).await.map_err(failed)?;
        let identity = machine.state().machine.crypto_session().peer_identity();
        let (peer, identity_ends) =
            identify(identity).inspect_err(|reason| machine.close(code::REFUSED, reason.clone()))?;
        if !machine.welcome() {
            return Err("the client allows no stream, or nothing on it".to_owned());
        }
        (connection.peer, connection.identity_ends) = (peer, identity_ends);
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

    fn identity_ends(&self) -> Option<Duration> {
        Some(self.identity_ends)
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
        Self { shared, handle, lanes, mail: Mutex::default(), state: Mutex::new(State::new(connection)) }
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
