//! One client's connection: packets between its socket and the state.

use std::{collections::VecDeque, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::BytesMut;
use kubeedge_core::pipe::{Closed, Receipt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep_until, timeout},
};

use super::{
    Offer, Rights,
    codec::{self, Incoming, Malformed, Message, Outgoing},
    driver::{Seat, Shared},
    state::{PATIENCE, Refusal, Taken, Violation},
};
use crate::eventbus::topic;

/// How often a message that the intake had no room for is offered again.
const OFFER_AGAIN: Duration = Duration::from_millis(25);

/// Messages of one connection that wait for the intake; then nothing more is read from it.
const HELD_MAX: usize = 32;

/// Acknowledgements that one connection waits for; then nothing more is read from it.
const OWED_MAX: usize = 1024;

/// Packets are collected to about this many bytes for one write.
const WRITE_BYTES: usize = 64 << 10;

/// So many bytes are read at once.
const READ_BYTES: usize = 16 << 10;

/// Where the timer of a client without keep-alive stands; it is switched off besides.
const FAR: Duration = Duration::from_secs(7 * 24 * 3600);

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
    #[error("a message of the client was not kept, so that it has to send it again: {0}")]
    NotKept(#[from] Closed),
}

/// What a client has sent and has not been told the end of.
struct Inbound {
    rights: Arc<Rights>,
    /// Messages that the intake had no room for.
    held: VecDeque<Certain>,
    /// Acknowledgements, in the order of the messages (§4.6).
    owed: VecDeque<Owed>,
    /// A reader of this client's messages is behind: nothing is read from the client until it has caught up.
    paused_until: Option<Instant>,
}

/// A message of QoS 1 or 2.
struct Certain {
    message: Message,
    id: u16,
    exactly_once: bool,
}

/// An acknowledgement that has not been given yet.
struct Owed {
    id: u16,
    exactly_once: bool,
    /// What has to settle before; `None` if only earlier ones have to.
    receipt: Option<Receipt>,
}

impl Inbound {
    fn reads(&self) -> bool {
        self.held.len() < HELD_MAX && self.owed.len() < OWED_MAX && self.paused_until.is_none()
    }
}

impl Shared {
    /// Serves one connection, from its first packet to its end.
    pub(super) async fn serve(&self, socket: TcpStream, peer: SocketAddr) {
        let seat = self.seat();
        match self.converse(socket, peer, &seat).await {
            end @ (End::Leave | End::Closed | End::Io(_)) => {
                seat.leave(matches!(end, End::Leave));
                tracing::trace!(%peer, %end, "MQTT connection ended");
            }
            end @ (End::Malformed(_)
            | End::Refused(_)
            | End::Violation(_)
            | End::NoConnect
            | End::Silent
            | End::Deaf(_)
            | End::NotKept(_)) => {
                seat.leave(false);
                tracing::warn!(%peer, %end, "MQTT connection ended by the broker");
            }
        }
    }

    async fn converse(&self, socket: TcpStream, peer: SocketAddr, seat: &Seat<'_>) -> End {
        // Messages are small and each one is somebody's answer.
        let _ = socket.set_nodelay(true);
        let (read, mut write) = socket.into_split();
        let mut packets = Packets { read, buffer: BytesMut::new(), limit: self.config.packet_bytes_max };
        let (rights, silence_max) = match self.welcome(&mut packets, &mut write, peer, seat).await {
            Ok(welcomed) => welcomed,
            Err(end) => return end,
        };
        let end = tokio::select! {
            received = self.receive(&mut packets, seat, rights, silence_max) => received,
            sent = self.send(&mut write, seat) => sent,
            () = seat.line.close.cancelled() => Err(Violation::TakenOver.into()),
        };
        end.err().unwrap_or(End::Closed)
    }

    /// Waits for CONNECT and lets the client in. Returns what it may, and how long it may be silent.
    async fn welcome(
        &self,
        packets: &mut Packets,
        write: &mut OwnedWriteHalf,
        peer: SocketAddr,
        seat: &Seat<'_>,
    ) -> Result<(Arc<Rights>, Option<Duration>), End> {
        let first = timeout(self.config.connect_deadline, packets.next());
        let Ok(Incoming::Connect(connect)) = first.await.map_err(|_| End::NoConnect)? else {
            return Err(End::NoConnect);
        };
        let keep_alive = Duration::from_secs(connect.keep_alive.into());
        let password = connect.password.clone().unwrap_or_default();
        let admitted = match connect.level {
            4 => self.gate.admit(connect.user.as_deref(), &password, peer.ip()),
            _ => Err(Refusal::Version),
        };
        let welcomed = admitted.and_then(|rights| {
            let will = connect.will.as_ref();
            if will.is_some_and(|will| !rights.may_publish(&will.topic)) {
                return Err(Refusal::Unauthorized);
            }
            Ok((rights, self.with(|state| state.handle_connect(seat.id, connect))?))
        });
        match welcomed {
            Ok((rights, will)) => {
                will.into_iter().for_each(|will| self.publish_will(will));
                // One and a half times: MQTT 3.1.1 §3.1.2.10.
                Ok((rights, (!keep_alive.is_zero()).then(|| keep_alive + keep_alive / 2)))
            }
            Err(refusal) => {
                let mut answer = BytesMut::new();
                codec::encode(
                    &Outgoing::ConnAck { session_present: false, code: refusal.code() },
                    &mut answer,
                );
                let _ = timeout(self.config.write_deadline, write.write_all(&answer)).await;
                Err(refusal.into())
            }
        }
    }

    async fn receive(
        &self,
        packets: &mut Packets,
        seat: &Seat<'_>,
        rights: Arc<Rights>,
        silence_max: Option<Duration>,
    ) -> Result<(), End> {
        let mut inbound =
            Inbound { rights, held: VecDeque::new(), owed: VecDeque::new(), paused_until: None };
        let mut heard = Instant::now();
        let mut offer_at = heard;
        let silence_max = silence_max.map(|max| (max, Box::pin(sleep_until(heard + max))));
        let (silence_max, mut silent) = match silence_max {
            Some((max, timer)) => (max, Some(timer)),
            None => (FAR, None),
        };
        loop {
            while inbound.reads()
                && let Some(packet) = packets.buffered()?
            {
                self.handle(packet, seat, &mut inbound, heard)?;
            }
            let reading = inbound.reads();
            let silence = async {
                match &mut silent {
                    Some(timer) => timer.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            let silence = pin!(silence);
            tokio::select! {
                read = packets.fill(), if reading => {
                    read?;
                    heard = Instant::now();
                }
                settled = settled(&mut inbound.owed), if !inbound.owed.is_empty() => {
                    settled?;
                    self.acknowledge_settled(seat, &mut inbound.owed)?;
                }
                () = sleep_until(offer_at), if !inbound.held.is_empty() => {
                    self.offer_held(seat, &mut inbound)?;
                    offer_at = Instant::now() + OFFER_AGAIN;
                }
                () = self.room.notified(), if inbound.paused_until.is_some() => inbound.paused_until = None,
                () = until(inbound.paused_until) => inbound.paused_until = None,
                () = silence, if reading => {
                    if heard.elapsed() >= silence_max {
                        return Err(End::Silent);
                    }
                    // The timer is not moved with each packet, which would cost more than the packet.
                    silent.iter_mut().for_each(|timer| timer.as_mut().reset(heard + silence_max));
                }
            }
            if !reading {
                // While the connection is not read, its silence is ours.
                heard = Instant::now();
            }
        }
    }

    fn handle(
        &self,
        packet: Incoming,
        seat: &Seat<'_>,
        inbound: &mut Inbound,
        now: Instant,
    ) -> Result<(), End> {
        match packet {
            Incoming::Publish { message, id: 0, .. } => {
                if self.may_publish(&inbound.rights, &message) {
                    self.take_uncertain(message);
                }
                Ok(())
            }
            Incoming::Publish { message, id, exactly_once } => {
                self.take(Certain { message, id, exactly_once }, seat, inbound, now)
            }
            Incoming::Disconnect => Err(End::Leave),
            Incoming::Subscribe { id, filters } => {
                let filters = filters.into_iter().map(|(filter, qos)| {
                    let allowed = inbound.rights.may_subscribe(&filter);
                    (filter, allowed.then_some(qos))
                });
                let filters: Vec<_> = filters.collect();
                Ok(self.with(|state| state.handle_subscribe(seat.id, id, &filters))?)
            }
            other @ (Incoming::Connect(_)
            | Incoming::PubAck(_)
            | Incoming::PubRel(_)
            | Incoming::Unsubscribe { .. }
            | Incoming::PingReq) => Ok(self.with(|state| state.handle_packet(seat.id, other))?),
        }
    }

    fn may_publish(&self, rights: &Rights, message: &Message) -> bool {
        let denied = self.config.denied.iter().any(|filter| topic::matches(filter, &message.topic));
        let may = !denied && rights.may_publish(&message.topic);
        if !may {
            tracing::warn!(topic = %message.topic, "a client published on a topic that is not for it");
        }
        may
    }

    /// Takes a client's message now, or holds it back until the intake has room.
    fn take(
        &self,
        certain: Certain,
        seat: &Seat<'_>,
        inbound: &mut Inbound,
        now: Instant,
    ) -> Result<(), End> {
        let Certain { id, exactly_once, .. } = certain;
        let pending = |owed: &Owed| owed.exactly_once && owed.id == id;
        let again = exactly_once
            && (inbound.owed.iter().any(pending) || self.with(|state| state.has_received(seat.id, id)));
        if again || !self.may_publish(&inbound.rights, &certain.message) {
            // MQTT 3.1.1 has no other way to refuse a message than to end the connection (§3.3.5).
            return self.owe(Owed { id, exactly_once, receipt: None }, seat, inbound);
        }
        // Behind a message that waits, all wait: acknowledgements go out in order (§4.6).
        if !inbound.held.is_empty() {
            inbound.held.push_back(certain);
            return Ok(());
        }
        self.place(certain, seat, inbound, now)
    }

    /// Gives a message to the intake and to those who subscribed.
    fn place(
        &self,
        certain: Certain,
        seat: &Seat<'_>,
        inbound: &mut Inbound,
        now: Instant,
    ) -> Result<(), End> {
        let receipt = match self.offer(&certain.message) {
            Offer::Full => {
                inbound.held.push_front(certain);
                return Ok(());
            }
            Offer::NotMine | Offer::Taken => None,
            Offer::Promised(receipt) => Some(receipt),
        };
        let Certain { message, id, exactly_once } = certain;
        match self.with(|state| state.handle_publish(message, Some((seat.id, now.into_std())))) {
            Taken::Delivered => {}
            Taken::Crowded => inbound.paused_until = Some(now + PATIENCE),
        }
        self.owe(Owed { id, exactly_once, receipt }, seat, inbound)
    }

    fn offer_held(&self, seat: &Seat<'_>, inbound: &mut Inbound) -> Result<(), End> {
        let now = Instant::now();
        let before = inbound.held.len();
        for _ in 0..before {
            let Some(certain) = inbound.held.pop_front() else { break };
            let left = inbound.held.len();
            self.place(certain, seat, inbound, now)?;
            if inbound.held.len() > left {
                break;
            }
        }
        Ok(())
    }

    fn owe(&self, owed: Owed, seat: &Seat<'_>, inbound: &mut Inbound) -> Result<(), End> {
        if inbound.owed.is_empty() && owed.receipt.is_none() {
            return self.acknowledge(&owed, seat);
        }
        inbound.owed.push_back(owed);
        Ok(())
    }

    /// Acknowledges from the first on what is settled by now.
    fn acknowledge_settled(&self, seat: &Seat<'_>, owed: &mut VecDeque<Owed>) -> Result<(), End> {
        while let Some(first) = owed.front_mut() {
            match first.receipt.as_mut().map(Receipt::try_settled) {
                Some(None) => break,
                Some(Some(settled)) => settled?,
                None => {}
            }
            if let Some(first) = owed.pop_front() {
                self.acknowledge(&first, seat)?;
            }
        }
        Ok(())
    }

    fn acknowledge(&self, owed: &Owed, seat: &Seat<'_>) -> Result<(), End> {
        Ok(self.with(|state| state.handle_taken(seat.id, owed.id, owed.exactly_once))?)
    }

    async fn send(&self, write: &mut OwnedWriteHalf, seat: &Seat<'_>) -> Result<(), End> {
        let mut buffer = BytesMut::new();
        loop {
            let wake = seat.line.wake.notified();
            buffer.clear();
            let relieved = {
                let mut inner = self.lock();
                while buffer.len() < WRITE_BYTES
                    && let Some(packet) = inner.state.poll_packet(seat.id)
                {
                    codec::encode(&packet, &mut buffer);
                }
                inner.state.poll_relieved()
            };
            if relieved {
                self.room.notify_waiters();
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

/// Waits until the first of the acknowledgements may be given. Cancel-safe.
async fn settled(owed: &mut VecDeque<Owed>) -> Result<(), Closed> {
    if let Some(first) = owed.front_mut()
        && let Some(receipt) = &mut first.receipt
    {
        receipt.await?;
        first.receipt = None;
    }
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Packets out of a socket. Memory grows with what has arrived, not with what a header announces.
struct Packets {
    read: OwnedReadHalf,
    buffer: BytesMut,
    limit: usize,
}

impl Packets {
    /// The next packet that has already arrived whole.
    fn buffered(&mut self) -> Result<Option<Incoming>, Malformed> {
        codec::decode(&mut self.buffer, self.limit)
    }

    /// Reads what has come. Cancel-safe: bytes read stay in the buffer.
    async fn fill(&mut self) -> Result<(), End> {
        self.buffer.reserve(READ_BYTES);
        if self.read.read_buf(&mut self.buffer).await? == 0 {
            return Err(End::Closed);
        }
        Ok(())
    }

    /// The next packet. Cancel-safe, as [`Packets::fill`].
    async fn next(&mut self) -> Result<Incoming, End> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(packet);
            }
            self.fill().await?;
        }
    }
}
