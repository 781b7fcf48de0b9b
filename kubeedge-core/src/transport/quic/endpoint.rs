//! The cloud's end of many connections: one socket, and where its datagrams go.
//!
//! Quinn's state machine ([`quinn_proto`]) does the protocol. This is the I/O around it, made for thousands of connections
//! that are silent: an idle one has no queue and no buffer here, which is a third of what it would take with quinn's own.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSliceMut},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::BytesMut;
use quinn::{
    AsyncUdpSocket, EndpointConfig, Runtime as _, ServerConfig, TokioRuntime,
    udp::{self, BATCH_SIZE, EcnCodepoint, RecvMeta},
};
use quinn_proto::{ConnectionError, ConnectionHandle, DatagramEvent, Incoming, Transmit};
use tokio::{
    task::{JoinSet, yield_now},
    time::Instant as TokioInstant,
};
use tracing::warn;

use super::accepted::Machine;
use crate::transport::lanes::Lanes;

/// How many datagrams are asked of the system at once; each may be several that came together (GRO).
const BATCH: usize = if BATCH_SIZE < 8 { BATCH_SIZE } else { 8 };

/// How many batches are read before other tasks get a turn.
const BATCHES_IN_A_ROW: usize = 16;

/// The longest packet that peers may send here, and that quinn announces by default.
const PACKET_MAX: usize = 1472;

/// A socket with its connections. Dropping the last handle ends what still lingers of connections that were closed.
#[derive(Debug)]
pub(super) struct Endpoint {
    shared: Arc<Shared>,
    /// The task that receives, and one for each connection.
    tasks: Mutex<JoinSet<()>>,
}

/// What the endpoint shares with the tasks of its connections.
#[derive(Debug)]
pub(super) struct Shared {
    socket: Arc<dyn AsyncUdpSocket>,
    routes: Mutex<Routes>,
}

#[derive(Debug)]
struct Routes {
    machine: quinn_proto::Endpoint,
    connections: HashMap<ConnectionHandle, Weak<Machine>>,
    /// Attempts that nobody has looked at; quinn's machine bounds how many.
    incoming: VecDeque<Incoming>,
    acceptor: Option<Waker>,
    /// Why nothing is received any more.
    failed: Option<String>,
}

impl Endpoint {
    /// Binds nothing itself: takes a socket, and receives from it in a task of its own.
    pub(super) fn new(
        config: EndpointConfig,
        server: ServerConfig,
        socket: std::net::UdpSocket,
    ) -> io::Result<Self> {
        let socket = TokioRuntime.wrap_udp_socket(socket)?;
        let probes_path = !socket.may_fragment();
        let machine = quinn_proto::Endpoint::new(Arc::new(config), Some(Arc::new(server)), probes_path, None);
        let routes = Routes {
            machine,
            connections: HashMap::new(),
            incoming: VecDeque::new(),
            acceptor: None,
            failed: None,
        };
        let shared = Arc::new(Shared { socket, routes: Mutex::new(routes) });
        let mut tasks = JoinSet::new();
        tasks.spawn(receive(shared.clone()));
        Ok(Self { shared, tasks: Mutex::new(tasks) })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.socket.local_addr()
    }

    /// The next attempt to connect, or why there will be none. Cancel-safe.
    pub(super) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Incoming, String>> {
        let mut routes = self.shared.routes();
        if let Some(incoming) = routes.incoming.pop_front() {
            return Poll::Ready(Ok(incoming));
        }
        if let Some(failed) = &routes.failed {
            return Poll::Ready(Err(failed.clone()));
        }
        routes.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Has the client prove its address first. Only for an attempt that may be told so.
    pub(super) fn retry(&self, incoming: Incoming) {
        let mut answer = Vec::new();
        let mut routes = self.shared.routes();
        match routes.machine.retry(incoming, &mut answer) {
            Ok(transmit) => self.shared.answer(&transmit, &answer),
            Err(error) => routes.machine.ignore(error.into_incoming()),
        }
    }

    /// Begins the handshake.
    pub(super) fn accept(
        &self,
        incoming: Incoming,
        lanes: Arc<Lanes>,
    ) -> Result<Arc<Machine>, ConnectionError> {
        let mut answer = Vec::new();
        let machine = {
            let mut routes = self.shared.routes();
            let (handle, connection) =
                routes.machine.accept(incoming, now(), &mut answer, None).map_err(|refused| {
                    if let Some(transmit) = refused.response {
                        self.shared.answer(&transmit, &answer);
                    }
                    refused.cause
                })?;
            let machine = Arc::new(Machine::new(self.shared.clone(), handle, connection, lanes));
            routes.connections.insert(handle, Arc::downgrade(&machine));
            machine
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(machine.clone().drive());
        Ok(machine)
    }
}

impl Shared {
    pub(super) fn socket(&self) -> &Arc<dyn AsyncUdpSocket> {
        &self.socket
    }

    /// Tells the endpoint's machine what a connection has for it, and gives what it answers.
    pub(super) fn handle_event(
        &self,
        handle: ConnectionHandle,
        event: quinn_proto::EndpointEvent,
    ) -> Option<quinn_proto::ConnectionEvent> {
        let mut routes = self.routes();
        if event.is_drained() {
            routes.connections.remove(&handle);
        }
        routes.machine.handle_event(handle, event)
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        // No code of others runs under the lock but quinn's, which does not panic on what a peer sends.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a datagram that belongs to no connection. If the system has no room for the answer, it is as lost as on the
    /// way, and the peer asks again.
    fn answer(&self, transmit: &Transmit, contents: &[u8]) {
        drop(self.socket.try_send(&outgoing(transmit, contents)));
    }

    fn handle_datagram(&self, meta: &RecvMeta, datagram: &[u8], now: Instant, answer: &mut Vec<u8>) {
        answer.clear();
        let ecn = meta.ecn.and_then(|ecn| quinn_proto::EcnCodepoint::from_bits(ecn as u8));
        let mut routes = self.routes();
        let event = routes.machine.handle(now, meta.addr, meta.dst_ip, ecn, BytesMut::from(datagram), answer);
        match event {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let machine = routes.connections.get(&handle).and_then(Weak::upgrade);
                // A connection's task asks for the routes while it works.
                drop(routes);
                if let Some(machine) = machine {
                    machine.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                routes.incoming.push_back(incoming);
                if let Some(acceptor) = routes.acceptor.take() {
                    acceptor.wake();
                }
            }
            Some(DatagramEvent::Response(transmit)) => {
                drop(routes);
                self.answer(&transmit, answer);
            }
            None => {}
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let routes = self.routes.get_mut().unwrap_or_else(PoisonError::into_inner);
        for incoming in routes.incoming.drain(..) {
            routes.machine.ignore(incoming);
        }
    }
}

/// Receives for ever.
async fn receive(shared: Arc<Shared>) {
    let stride = PACKET_MAX * shared.socket.max_receive_segments();
    let mut buffer = vec![0; stride * BATCH];
    let mut answer = Vec::new();
    let failed = loop {
        match receive_some(&shared, &mut buffer, stride, &mut answer).await {
            Ok(()) => yield_now().await,
            // The system tells of an earlier datagram that nobody took.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => break error,
        }
    };
    warn!(error = %failed, "a UDP socket has failed");
    let mut routes = shared.routes();
    routes.failed = Some(failed.to_string());
    if let Some(acceptor) = routes.acceptor.take() {
        acceptor.wake();
    }
}

async fn receive_some(
    shared: &Shared,
    buffer: &mut [u8],
    stride: usize,
    answer: &mut Vec<u8>,
) -> io::Result<()> {
    for _ in 0..BATCHES_IN_A_ROW {
        let mut metas = [RecvMeta::default(); BATCH];
        let count = std::future::poll_fn(|cx| {
            let mut slices = buffer.chunks_mut(stride).map(IoSliceMut::new);
            let mut slices: [IoSliceMut<'_>; BATCH] =
                std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            Poll::Ready(ready!(shared.socket.poll_recv(cx, &mut slices, &mut metas)))
        })
        .await?;
        let now = now();
        for (meta, received) in metas.iter().zip(buffer.chunks(stride)).take(count) {
            let received = &received[..meta.len.min(received.len())];
            for datagram in received.chunks(meta.stride.max(1)) {
                shared.handle_datagram(meta, datagram, now, answer);
            }
        }
    }
    Ok(())
}

/// What the socket is to send.
pub(super) fn outgoing<'a>(transmit: &Transmit, contents: &'a [u8]) -> udp::Transmit<'a> {
    udp::Transmit {
        destination: transmit.destination,
        ecn: transmit.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
        contents: &contents[..transmit.size],
        segment_size: transmit.segment_size,
        src_ip: transmit.src_ip,
    }
}

/// The clock of the connections, which tests may stop.
pub(super) fn now() -> Instant {
    TokioInstant::now().into_std()
}
