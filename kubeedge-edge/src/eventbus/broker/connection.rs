//! One client's connection: packets between its socket and the state.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep_until, timeout},
};

use super::{
    Offer,
    codec::{self, Incoming, Malformed, Message, Outgoing},
    driver::{Seat, Shared},
    state::{Refusal, Violation},
};
use crate::eventbus::topic;

/// How often a message that the intake had no room for is offered again.
const OFFER_AGAIN: Duration = Duration::from_millis(25);

/// Messages of one connection that wait for the intake; then nothing more is read from it.
const HELD_MAX: usize = 32;

/// Packets are collected to about this many bytes for one write.
const WRITE_BYTES: usize = 64 << 10;

/// Where the timer of a client without keep-alive stands; it is switched off besides.
const FAR: Duration = Duration::from_secs(7 * 24 * 3600);

/// Messages that wait for the intake, with their packet identifiers.
type Held = VecDeque<(Message, u16)>;

/// Says why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client took leave")]
    Leave,
    #[error("the connection is gone: {0}")]
    Io(#[from] std::io::Error),
    #[error("the client closed the connection without taking leave")]
    Closed,
    #[error("malformed packet: {0}")]
    Malformed(#[from] Malformed),
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("no CONNECT came in time, or another packet came first")]
    NoConnect,
    #[error("the client was silent for one and a half times its keep-alive")]
    Silent,
    #[error("the client did not read for {0:?}")]
    Deaf(Duration),
}

impl Shared {
    /// Serves one connection, from its first packet to its end.
    pub(super) async fn serve(&self, socket: TcpStream, peer: SocketAddr) {
        let seat = self.seat();
        match self.converse(socket, &seat).await {
            end @ (End::Leave | End::Closed | End::Io(_)) => {
                seat.leave(matches!(end, End::Leave));
                tracing::trace!(%peer, %end, "MQTT connection ended");
            }
            end @ (End::Malformed(_)
            | End::Refused(_)
            | End::Violation(_)
            | End::NoConnect
            | End::Silent
            | End::Deaf(_)) => {
                seat.leave(false);
                tracing::warn!(%peer, %end, "MQTT connection ended by the broker");
            }
        }
    }

    async fn converse(&self, socket: TcpStream, seat: &Seat<'_>) -> End {
        // Messages are small and each one is somebody's answer.
        let _ = socket.set_nodelay(true);
        let (read, mut write) = socket.into_split();
        let mut packets = Packets { read, buffer: BytesMut::new(), limit: self.config.packet_bytes_max };
        let keep_alive = match self.welcome(&mut packets, &mut write, seat).await {
            Ok(keep_alive) => keep_alive,
            Err(end) => return end,
        };
        let end = tokio::select! {
            received = self.receive(&mut packets, seat, keep_alive) => received,
            sent = self.send(&mut write, seat) => sent,
            () = seat.line.close.cancelled() => Err(Violation::TakenOver.into()),
        };
        end.err().unwrap_or(End::Closed)
    }

    /// Waits for CONNECT and lets the client in. Returns how long it may be silent.
    async fn welcome(
        &self,
        packets: &mut Packets,
        write: &mut OwnedWriteHalf,
        seat: &Seat<'_>,
    ) -> Result<Option<Duration>, End> {
        let first = timeout(self.config.connect_deadline, packets.next());
        let Ok(Incoming::Connect(connect)) = first.await.map_err(|_| End::NoConnect)? else {
            return Err(End::NoConnect);
        };
        let keep_alive = Duration::from_secs(connect.keep_alive.into());
        match self.with(|state| state.handle_connect(seat.id, connect)) {
            Ok(will) => will.into_iter().for_each(|will| self.publish_will(will)),
            Err(refusal) => {
                let mut answer = BytesMut::new();
                codec::encode(
                    &Outgoing::ConnAck { session_present: false, code: refusal.code() },
                    &mut answer,
                );
                let _ = timeout(self.config.write_deadline, write.write_all(&answer)).await;
                return Err(refusal.into());
            }
        }
        // One and a half times: MQTT 3.1.1 §3.1.2.10.
        Ok((!keep_alive.is_zero()).then(|| keep_alive + keep_alive / 2))
    }

    async fn receive(
        &self,
        packets: &mut Packets,
        seat: &Seat<'_>,
        silence_max: Option<Duration>,
    ) -> Result<(), End> {
        let mut held = VecDeque::new();
        let mut heard = Instant::now();
        let mut offer_at = heard;
        loop {
            // While the connection is not read, its silence is ours.
            let reading = held.len() < HELD_MAX;
            let silent_at = heard + silence_max.unwrap_or(FAR);
            tokio::select! {
                packet = packets.next(), if reading => {
                    heard = Instant::now();
                    self.handle(packet?, seat, &mut held)?;
                }
                () = sleep_until(offer_at), if !held.is_empty() => {
                    self.offer_held(seat, &mut held)?;
                    offer_at = Instant::now() + OFFER_AGAIN;
                    if !reading {
                        heard = Instant::now();
                    }
                }
                () = sleep_until(silent_at), if reading && silence_max.is_some() => return Err(End::Silent),
            }
        }
    }

    fn handle(&self, packet: Incoming, seat: &Seat<'_>, held: &mut Held) -> Result<(), End> {
        match packet {
            Incoming::Publish { message, id } => self.take(message, id, seat, held),
            Incoming::Disconnect => Err(End::Leave),
            other @ (Incoming::Connect(_)
            | Incoming::PubAck(_)
            | Incoming::Subscribe { .. }
            | Incoming::Unsubscribe { .. }
            | Incoming::PingReq) => Ok(self.with(|state| state.handle_packet(seat.id, other))?),
        }
    }

    /// Takes a client's message now, or holds it back until the intake has room.
    fn take(&self, message: Message, id: u16, seat: &Seat<'_>, held: &mut Held) -> Result<(), End> {
        if self.config.denied.iter().any(|filter| topic::matches(filter, &message.topic)) {
            tracing::warn!(topic = %message.topic, "a client published on a topic that is not for clients");
            return if id > 0 { self.acknowledge(id, seat) } else { Ok(()) };
        }
        if id == 0 {
            self.take_uncertain(message);
            return Ok(());
        }
        // Behind a message that waits, all wait: acknowledgements go out in order (§4.6).
        if !held.is_empty() || self.offer(&message) == Offer::Full {
            held.push_back((message, id));
            return Ok(());
        }
        self.with(|state| state.handle_publish(message));
        self.acknowledge(id, seat)
    }

    fn offer_held(&self, seat: &Seat<'_>, held: &mut Held) -> Result<(), End> {
        while let Some((message, id)) = held.pop_front() {
            if self.offer(&message) == Offer::Full {
                held.push_front((message, id));
                break;
            }
            self.with(|state| state.handle_publish(message));
            self.acknowledge(id, seat)?;
        }
        Ok(())
    }

    fn acknowledge(&self, id: u16, seat: &Seat<'_>) -> Result<(), End> {
        Ok(self.with(|state| state.handle_taken(seat.id, id))?)
    }

    async fn send(&self, write: &mut OwnedWriteHalf, seat: &Seat<'_>) -> Result<(), End> {
        let mut buffer = BytesMut::new();
        loop {
            let wake = seat.line.wake.notified();
            buffer.clear();
            {
                let mut inner = self.lock();
                while buffer.len() < WRITE_BYTES
                    && let Some(packet) = inner.state.poll_packet(seat.id)
                {
                    codec::encode(&packet, &mut buffer);
                }
            }
            if buffer.is_empty() {
                wake.await;
                continue;
            }
            let deadline = self.config.write_deadline;
            timeout(deadline, write.write_all(&buffer)).await.map_err(|_| End::Deaf(deadline))??;
            if buffer.capacity() > 4 * WRITE_BYTES {
                buffer = BytesMut::new();
            }
        }
    }
}

/// Packets out of a socket. Memory grows with what has arrived, not with what a header announces.
struct Packets {
    read: OwnedReadHalf,
    buffer: BytesMut,
    limit: usize,
}

impl Packets {
    /// The next packet. Cancel-safe: bytes read stay in the buffer.
    async fn next(&mut self) -> Result<Incoming, End> {
        loop {
            if let Some(packet) = codec::decode(&mut self.buffer, self.limit)? {
                return Ok(packet);
            }
            self.buffer.reserve(4096);
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Err(End::Closed);
            }
        }
    }
}
