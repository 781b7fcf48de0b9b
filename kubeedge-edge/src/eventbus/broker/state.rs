//! The broker's decisions: who gets what, in which order, and what has to go when there is no room.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    QoS, Stats,
    codec::{Connect, Incoming, Message, Outgoing},
    session::Session,
};
use crate::eventbus::topic;

/// Numbers the connections; never used twice.
pub(super) type ConnectionId = u64;

/// How long a reader may be behind before messages for it are dropped; until then its writers are held up.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// What the broker keeps at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) clients_max: usize,
    pub(super) sessions_max: usize,
    pub(super) queue_max: usize,
    pub(super) queue_bytes_max: usize,
    pub(super) inflight_max: usize,
    pub(super) answers_max: usize,
    pub(super) filters_max: usize,
    pub(super) filter_bytes_max: usize,
    pub(super) retained_max: usize,
    pub(super) retained_bytes_max: usize,
}

/// Says why a client may not connect: the return code of its CONNACK (§3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("only MQTT 3.1.1 is spoken here")]
    Version,
    #[error("a session can be kept only for a client that names itself")]
    Identifier,
    #[error("there are as many clients as may be")]
    Full,
    #[error("the user name is unknown, or the password is wrong")]
    Credentials,
    #[error("the client says no user name, or has no right to its will")]
    Unauthorized,
}

impl Refusal {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Identifier => 2,
            Self::Full => 3,
            Self::Credentials => 4,
            Self::Unauthorized => 5,
        }
    }
}

/// Says why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("the client sent a second CONNECT")]
    SecondConnect,
    #[error("the client sends and does not read the answers")]
    Deaf,
    #[error("another connection has taken the client's session over")]
    TakenOver,
}

/// How a message was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// There is room for more.
    Delivered,
    /// It was taken as well, but somebody is behind with reading: its sender should pause for [`PATIENCE`], or until
    /// [`State::poll_relieved`].
    Crowded,
}

/// All clients, their sessions, and the retained messages.
#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    connections: BTreeMap<ConnectionId, String>,
    sessions: BTreeMap<String, Session>,
    retained: BTreeMap<String, Message>,
    retained_bytes: usize,
    woken: BTreeSet<ConnectionId>,
    relieved: bool,
    closing: VecDeque<ConnectionId>,
    /// Counts connects and disconnects.
    turns: u64,
    dropped: u64,
}

impl State {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            retained: BTreeMap::new(),
            retained_bytes: 0,
            woken: BTreeSet::new(),
            relieved: false,
            closing: VecDeque::new(),
            turns: 0,
            dropped: 0,
        }
    }

    /// Lets a client in. The answer is in line for it; returned is the will of a connection that it took over.
    pub(super) fn handle_connect(
        &mut self,
        id: ConnectionId,
        connect: Connect,
    ) -> Result<Option<Message>, Refusal> {
        let name = self.admit(id, &connect)?;
        let mut will = None;
        let mut kept = self.sessions.remove(&name);
        if let Some(old) = kept.as_mut().and_then(|session| session.connection.take()) {
            will = self.detach(old, kept.as_mut());
        }
        // Whoever only knows another's client id does not get the messages for it.
        let kept = kept.filter(|session| !connect.clean && !session.clean && session.user == connect.user);
        let session_present = kept.is_some();
        let mut session = kept.unwrap_or_default();
        self.turns += 1;
        session.connection = Some(id);
        session.clean = connect.clean;
        session.user = connect.user;
        session.will = connect.will;
        session.used = self.turns;
        session.answer(Outgoing::ConnAck { session_present, code: 0 }, &self.limits);
        self.sessions.insert(name.clone(), session);
        self.connections.insert(id, name);
        self.woken.insert(id);
        self.forget_sessions();
        Ok(will)
    }

    fn admit(&self, id: ConnectionId, connect: &Connect) -> Result<String, Refusal> {
        if connect.level != 4 {
            return Err(Refusal::Version);
        }
        if connect.client.is_empty() && !connect.clean {
            return Err(Refusal::Identifier);
        }
        // No text of a client has the zero character, so a made-up name never meets one that was given.
        let name = if connect.client.is_empty() { format!("\0{id}") } else { connect.client.clone() };
        let takes_over = self.sessions.get(&name).is_some_and(|session| session.connection.is_some());
        if self.connections.len() >= self.limits.clients_max && !takes_over {
            return Err(Refusal::Full);
        }
        Ok(name)
    }

    /// Ends the connection `old` of a session that another connection takes over.
    fn detach(&mut self, old: ConnectionId, session: Option<&mut Session>) -> Option<Message> {
        self.connections.remove(&old);
        self.woken.remove(&old);
        self.closing.push_back(old);
        let session = session?;
        let will = session.will.take();
        session.detach();
        self.relieved = true;
        will
    }

    /// Keeps the number of absent clients' sessions in bounds: the one unused for longest goes.
    fn forget_sessions(&mut self) {
        let absent = |session: &&Session| session.connection.is_none();
        while self.sessions.values().filter(absent).count() > self.limits.sessions_max {
            let oldest = self
                .sessions
                .iter()
                .filter(|(_, session)| absent(session))
                .min_by_key(|(_, session)| session.used)
                .map(|(name, _)| name.clone());
            let Some(oldest) = oldest else { return };
            tracing::warn!(client = %oldest, "too many absent clients: a session is forgotten");
            self.sessions.remove(&oldest);
        }
    }

    /// Takes a client's packet, but for those that need a decision before: [`State::handle_publish`] and
    /// [`State::handle_subscribe`].
    pub(super) fn handle_packet(&mut self, id: ConnectionId, packet: Incoming) -> Result<(), Violation> {
        match packet {
            Incoming::Connect(_) => Err(Violation::SecondConnect),
            Incoming::PubRel(packet) => {
                if let Some(session) = self.session(id) {
                    session.received.remove(&packet);
                }
                self.answer(id, Outgoing::PubComp(packet))
            }
            Incoming::Unsubscribe { id: packet, filters } => {
                if let Some(session) = self.session(id) {
                    filters.iter().for_each(|filter| session.unsubscribe(filter));
                }
                self.answer(id, Outgoing::UnsubAck(packet))
            }
            Incoming::PubAck(packet) => {
                if let Some(session) = self.session(id) {
                    session.acknowledge(packet);
                }
                self.woken.insert(id);
                Ok(())
            }
            Incoming::PingReq => self.answer(id, Outgoing::PingResp),
            Incoming::Publish { .. } | Incoming::Subscribe { .. } | Incoming::Disconnect => Ok(()),
        }
    }

    /// Tells the client that its message was taken.
    pub(super) fn handle_taken(
        &mut self,
        id: ConnectionId,
        packet: u16,
        exactly_once: bool,
    ) -> Result<(), Violation> {
        if !exactly_once {
            return self.answer(id, Outgoing::PubAck(packet));
        }
        if let Some(session) = self.session(id) {
            session.received.insert(packet);
        }
        self.answer(id, Outgoing::PubRec(packet))
    }

    /// Whether the client's message of QoS 2 with this packet identifier has been taken, and is not released yet.
    pub(super) fn has_received(&mut self, id: ConnectionId, packet: u16) -> bool {
        self.session(id).is_some_and(|session| session.received.contains(&packet))
    }

    /// Subscribes to filters; one without a QoS is refused.
    pub(super) fn handle_subscribe(
        &mut self,
        id: ConnectionId,
        packet: u16,
        filters: &[(String, Option<QoS>)],
    ) -> Result<(), Violation> {
        let limits = self.limits;
        let Some(session) = self.session(id) else { return Ok(()) };
        let granted: Vec<_> =
            filters.iter().map(|(filter, qos)| session.subscribe(filter, (*qos)?, &limits)).collect();
        // 0x80 says that a subscription failed (§3.9.3).
        let codes = granted.iter().map(|granted| granted.map_or(0x80, QoS::level)).collect();
        self.answer(id, Outgoing::SubAck { id: packet, codes })?;
        for ((filter, _), granted) in filters.iter().zip(granted) {
            if let Some(qos) = granted {
                self.send_retained(id, filter, qos);
            }
        }
        Ok(())
    }

    fn send_retained(&mut self, id: ConnectionId, filter: &str, qos: QoS) {
        let matching: Vec<_> = self
            .retained
            .iter()
            .filter(|(name, _)| topic::matches(filter, name))
            .map(|(_, message)| Message { qos: message.qos.min(qos), ..message.clone() })
            .collect();
        let limits = self.limits;
        let mut dropped = 0;
        if let Some(session) = self.session(id) {
            dropped = matching.into_iter().map(|message| session.push(message, &limits, None).dropped).sum();
        }
        self.dropped += dropped;
    }

    /// Delivers a message to all who want it, and keeps it if it is to be retained. `from` is who can be held up for
    /// it, and the time.
    pub(super) fn handle_publish(
        &mut self,
        message: Message,
        from: Option<(ConnectionId, Instant)>,
    ) -> Taken {
        let mut taken = Taken::Delivered;
        if message.retain {
            self.retain(message.clone());
        }
        let name = message.topic.clone();
        for (client, session) in &mut self.sessions {
            let Some(wanted) = session.wants(&name) else { continue };
            let copy = Message { qos: message.qos.min(wanted), retain: false, ..message.clone() };
            // Who reads what it writes would wait for itself.
            let patience = from.filter(|(from, _)| session.connection != Some(*from)).map(|(_, now)| now);
            let pushed = session.push(copy, &self.limits, patience);
            if pushed.crowded {
                taken = Taken::Crowded;
            }
            if pushed.dropped > 0 {
                tracing::debug!(client, topic = %name, "client is slow: older messages were dropped");
            }
            self.dropped += pushed.dropped;
            self.woken.extend(session.connection);
        }
        taken
    }

    /// Whether a reader is behind that may still catch up, so that a sender with time should wait.
    pub(super) fn is_crowded(&mut self, now: Instant) -> bool {
        let limits = self.limits;
        self.sessions.values_mut().any(|session| session.is_behind(&limits, now))
    }

    fn retain(&mut self, message: Message) {
        let name = message.topic.to_string();
        if let Some(old) = self.retained.remove(&name) {
            self.retained_bytes -= old.size();
        }
        if message.payload.is_empty() {
            return;
        }
        let fits = self.retained.len() < self.limits.retained_max
            && self.retained_bytes + message.size() <= self.limits.retained_bytes_max;
        if fits {
            self.retained_bytes += message.size();
            self.retained.insert(name, message);
        } else {
            tracing::warn!(topic = %name, "too many retained messages: this one is not kept");
            self.dropped += 1;
        }
    }

    /// The connection is over; returned is the will, unless the client took leave.
    pub(super) fn handle_end(&mut self, id: ConnectionId, leave: bool) -> Option<Message> {
        self.woken.remove(&id);
        let name = self.connections.remove(&id)?;
        self.relieved = true;
        let session = self.sessions.get_mut(&name)?;
        let will = session.will.take();
        session.detach();
        self.turns += 1;
        session.used = self.turns;
        if session.clean {
            self.sessions.remove(&name);
        }
        self.forget_sessions();
        will.filter(|_| !leave)
    }

    /// The next packet for a connection.
    pub(super) fn poll_packet(&mut self, id: ConnectionId) -> Option<Outgoing> {
        let limits = self.limits;
        let session = self.session(id)?;
        let packet = session.poll_packet(&limits);
        let relieved = session.is_relieved(&limits);
        self.relieved |= relieved;
        packet
    }

    /// Whether somebody who was behind has caught up since this was asked last.
    pub(super) fn poll_relieved(&mut self) -> bool {
        std::mem::take(&mut self.relieved)
    }

    /// A connection that may have packets to send.
    pub(super) fn poll_wake(&mut self) -> Option<ConnectionId> {
        self.woken.pop_first()
    }

    /// A connection that has to end because another took its session over.
    pub(super) fn poll_close(&mut self) -> Option<ConnectionId> {
        self.closing.pop_front()
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            clients: self.connections.len(),
            sessions: self.sessions.len(),
            retained: self.retained.len(),
            dropped: self.dropped,
        }
    }

    pub(super) fn count_dropped(&mut self) {
        self.dropped += 1;
    }

    fn session(&mut self, id: ConnectionId) -> Option<&mut Session> {
        self.sessions.get_mut(self.connections.get(&id)?)
    }

    fn answer(&mut self, id: ConnectionId, packet: Outgoing) -> Result<(), Violation> {
        let limits = self.limits;
        self.woken.insert(id);
        let reads = self.session(id).is_none_or(|session| session.answer(packet, &limits));
        if reads { Ok(()) } else { Err(Violation::Deaf) }
    }
}
