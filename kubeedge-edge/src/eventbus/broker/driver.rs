//! Accepts connections, and lets them share one [`State`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use kubeedge_core::message::Publish;
use tokio::{
    net::TcpListener,
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    BadTopic, Config, Intake, Offer, QoS, Stats,
    access::Gate,
    codec::Message,
    state::{ConnectionId, Limits, State},
};
use crate::eventbus::topic;

/// Answers that wait for one client to read; a client with more is disconnected.
const ANSWERS_MAX: usize = 1024;

/// The pause after a failed accept: the process may be out of file descriptors for a moment.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long whoever waits for readers goes without looking again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What the connections of a broker share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) gate: Gate,
    /// Told when a reader who was behind has caught up.
    pub(super) room: Notify,
    intake: Option<Arc<dyn Intake>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) state: State,
    lines: BTreeMap<ConnectionId, Arc<Line>>,
    last_id: ConnectionId,
}

/// How the state reaches a connection.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) wake: Notify,
    pub(super) close: CancellationToken,
}

impl Shared {
    pub(super) fn new(config: Config, intake: Option<Arc<dyn Intake>>) -> Self {
        let limits = Limits {
            clients_max: config.clients_max,
            sessions_max: config.sessions_max,
            queue_max: config.queue_max,
            queue_bytes_max: config.queue_bytes_max,
            inflight_max: config.inflight_max.max(1),
            answers_max: ANSWERS_MAX,
            filters_max: config.filters_max,
            filter_bytes_max: 1024,
            retained_max: config.retained_max,
            retained_bytes_max: config.retained_bytes_max,
        };
        let inner = Inner { state: State::new(limits), lines: BTreeMap::new(), last_id: 0 };
        let gate = Gate::new(config.access.clone());
        Self { config, gate, room: Notify::new(), intake, inner: Mutex::new(inner) }
    }

    pub(super) fn publish(&self, publish: &Publish, qos: QoS, retain: bool) -> Result<(), BadTopic> {
        if !topic::is_name(&publish.topic) {
            return Err(BadTopic(publish.topic.chars().take(80).collect()));
        }
        let topic = publish.topic.as_str().into();
        let message = Message { topic, payload: publish.payload.clone(), qos, retain };
        self.with(|state| state.handle_publish(message, None));
        Ok(())
    }

    /// Waits while a reader is behind that may still catch up.
    pub(super) async fn wait_for_readers(&self) {
        while self.lock().state.is_crowded(Instant::now()) {
            // Who caught up between the look and the wait is seen at the next look.
            let _ = timeout(LOOK_AGAIN, self.room.notified()).await;
        }
    }

    pub(super) fn stats(&self) -> Stats {
        self.lock().state.stats()
    }

    /// Accepts connections and serves them, all in this one future.
    pub(super) async fn run(&self, listener: TcpListener, stop: CancellationToken) {
        let mut connections = FuturesUnordered::new();
        loop {
            // A few connections beyond the clients' limit are let in to be told that it is reached.
            let room = connections.len() < self.config.clients_max.saturating_add(16);
            tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = connections.next() => {}
                accepted = listener.accept(), if room => match accepted {
                    Ok((socket, peer)) => connections.push(self.serve(socket, peer)),
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
    }

    /// Takes a message of QoS 0, for which nobody waits.
    pub(super) fn take_uncertain(&self, message: Message) {
        let lost = matches!(self.offer(&message), Offer::Full);
        self.with(|state| {
            if lost {
                state.count_dropped();
            }
            state.handle_publish(message, None);
        });
    }

    pub(super) fn offer(&self, message: &Message) -> Offer {
        match &self.intake {
            None => Offer::NotMine,
            Some(intake) => intake.offer(&message.topic, &message.payload, message.qos),
        }
    }

    pub(super) fn publish_will(&self, will: Message) {
        if self.config.denied.iter().any(|filter| topic::matches(filter, &will.topic)) {
            tracing::warn!(topic = %will.topic, "a client's will is on a topic that is not for clients");
        } else {
            self.take_uncertain(will);
        }
    }

    /// Lets the state decide, and tells the connections that it names.
    pub(super) fn with<R>(&self, decide: impl FnOnce(&mut State) -> R) -> R {
        let mut inner = self.lock();
        let result = decide(&mut inner.state);
        while let Some(id) = inner.state.poll_wake() {
            inner.lines.get(&id).into_iter().for_each(|line| line.wake.notify_one());
        }
        while let Some(id) = inner.state.poll_close() {
            inner.lines.get(&id).into_iter().for_each(|line| line.close.cancel());
        }
        if inner.state.poll_relieved() {
            self.room.notify_waiters();
        }
        result
    }

    pub(super) fn seat(&self) -> Seat<'_> {
        let mut inner = self.lock();
        inner.last_id += 1;
        let (id, line) = (inner.last_id, Arc::new(Line::default()));
        inner.lines.insert(id, line.clone());
        Seat { shared: self, id, line }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code of others runs under the lock, so a poisoned state is still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place in the broker; dropping it gives the place back, also when the broker stops.
pub(super) struct Seat<'a> {
    shared: &'a Shared,
    pub(super) id: ConnectionId,
    pub(super) line: Arc<Line>,
}

impl Seat<'_> {
    /// Ends the connection in the state, and publishes its will if there is one to publish.
    pub(super) fn leave(&self, in_peace: bool) {
        let will = self.shared.with(|state| state.handle_end(self.id, in_peace));
        will.into_iter().for_each(|will| self.shared.publish_will(will));
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.shared.with(|state| state.handle_end(self.id, true));
        self.shared.lock().lines.remove(&self.id);
    }
}
