//! The client of the broker beside the process.
//!
//! The client library is used in a narrow way: one future does nothing but poll it, requests are only tried
//! and never awaited, and after any error client and event loop are built from scratch. What has to outlive a
//! connection is in [`Pending`], not in the library.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kubeedge_core::message::Publish;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, SubscribeFilter,
    SubscribeReasonCode,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{
    broker::{Intake, Offer},
    config,
    outbox::{PACKET_BYTES_MAX, Pending},
    route::FILTERS,
};

/// The first pause after a failure.
const RETRY_MIN: Duration = Duration::from_millis(500);

/// The longest pause after a failure. A broker on the same node is back in seconds.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A connection that lasted so long was a good one: the next pause is short again.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// How often a message that its part had no room for is offered again.
const OFFER_AGAIN: Duration = Duration::from_millis(25);

/// Messages of QoS 1 that wait for their part. Brokers send about 20 without an acknowledgement; one that sends
/// more loses the connection, and sends again after.
const HELD_MAX: usize = 256;

/// Requests that wait in the client library: the window, one subscription, and acknowledgements.
const REQUESTS_MAX: usize = 64;

/// The connection to the external broker, and what waits for it.
#[derive(Debug)]
pub(super) struct Client {
    config: config::External,
    client_id: String,
    intake: Arc<dyn Intake>,
    pending: Mutex<Pending>,
    changed: Notify,
}

/// One connection: what it shares between the future that polls and the one that sends.
struct Session {
    client: AsyncClient,
    state: Mutex<SessionState>,
    held_changed: Notify,
}

#[derive(Default)]
struct SessionState {
    connected_at: Option<Instant>,
    held: VecDeque<rumqttc::Publish>,
}

/// Says why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Library(Box<ConnectionError>),
    #[error("the broker sent more than {HELD_MAX} messages without waiting for an acknowledgement")]
    Flooded,
    #[error("the client library takes no more requests")]
    Stuck,
}

impl Client {
    pub(super) fn new(config: config::External, intake: Arc<dyn Intake>) -> Self {
        let pending = Pending::new(config.queue_max, config.queue_bytes_max);
        let client_id = config
            .client_id
            .clone()
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| format!("hub-client-{:010}", random() % 10_000_000_000));
        Self { config, client_id, intake, pending: Mutex::new(pending), changed: Notify::new() }
    }

    /// Takes a message for the broker. Never waits; the oldest goes when too many wait.
    pub(super) fn publish(&self, publish: Publish) {
        let mut pending = self.pending();
        let before = pending.dropped();
        pending.push(publish);
        let dropped = pending.dropped();
        drop(pending);
        if dropped > before {
            tracing::debug!(dropped, "the external MQTT broker is behind: an older message was dropped");
        }
        self.changed.notify_one();
    }

    /// Connects, again and again.
    pub(super) async fn run(&self) {
        let address = format!("{}:{}", self.config.host, self.config.port);
        let mut pause = RETRY_MIN;
        let mut told = false;
        loop {
            let (end, lasted) = self.session(&address).await;
            self.pending().handle_disconnected();
            if lasted.is_some() || !told {
                let (waiting, dropped) = self.waiting();
                tracing::warn!(
                    broker = address, %end, waiting, dropped,
                    "the external MQTT broker is not reachable; trying until it is"
                );
                told = true;
            } else {
                tracing::debug!(broker = address, %end, "the external MQTT broker is still not reachable");
            }
            pause = match lasted {
                Some(lasted) if lasted >= GOOD_AFTER => RETRY_MIN,
                Some(_) | None => pause,
            };
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn waiting(&self) -> (usize, u64) {
        let pending = self.pending();
        (pending.len(), pending.dropped())
    }

    /// One connection, from its beginning to its end; returns how long it was up, if it ever was.
    async fn session(&self, address: &str) -> (End, Option<Duration>) {
        let (client, events) = AsyncClient::new(self.options(), REQUESTS_MAX);
        let session = Session { client, state: Mutex::default(), held_changed: Notify::new() };
        let end = tokio::select! {
            end = self.poll(events, &session, address) => end,
            end = self.send(&session) => end,
            end = self.offer_held(&session) => end,
        };
        let lasted = session.lock().connected_at.map(|at| at.elapsed());
        (end, lasted)
    }

    fn options(&self) -> MqttOptions {
        let mut options =
            MqttOptions::new(self.client_id.clone(), self.config.host.clone(), self.config.port);
        options
            .set_keep_alive(Duration::from_secs(30))
            .set_clean_session(true)
            .set_manual_acks(true)
            .set_inflight(20)
            .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
        if let Some(user) = &self.config.username {
            let password = self.config.password.as_ref().map_or("", |password| password.expose());
            options.set_credentials(user.clone(), password);
        }
        options
    }

    /// Polls the library. It is never cancelled but by the connection's end.
    async fn poll(&self, mut events: EventLoop, session: &Session, address: &str) -> End {
        loop {
            let handled = match events.poll().await {
                Ok(Event::Incoming(packet)) => self.handle_packet(packet, session, address),
                Ok(Event::Outgoing(Outgoing::Publish(packet))) => {
                    self.pending().handle_sent(packet);
                    Ok(())
                }
                Ok(Event::Outgoing(_)) => Ok(()),
                Err(error) => Err(End::Library(Box::new(error))),
            };
            if let Err(end) = handled {
                return end;
            }
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's packets: the others need no answer of ours"
    )]
    fn handle_packet(&self, packet: Packet, session: &Session, address: &str) -> Result<(), End> {
        match packet {
            Packet::ConnAck(_) => {
                tracing::info!(broker = address, "connected to the external MQTT broker");
                session.lock().connected_at = Some(Instant::now());
                let filters =
                    FILTERS.map(|filter| SubscribeFilter::new(filter.to_owned(), rumqttc::QoS::AtLeastOnce));
                session.client.try_subscribe_many(filters).map_err(|_| End::Stuck)?;
                self.changed.notify_one();
                Ok(())
            }
            Packet::SubAck(answer) => {
                for (filter, code) in FILTERS.iter().zip(answer.return_codes) {
                    if code == SubscribeReasonCode::Failure {
                        tracing::warn!(broker = address, filter, "the MQTT broker refuses a subscription");
                    }
                }
                Ok(())
            }
            Packet::PubAck(answer) => {
                self.pending().handle_acknowledged(answer.pkid);
                self.changed.notify_one();
                Ok(())
            }
            Packet::Publish(publish) => self.handle_publish(publish, session),
            _ => Ok(()),
        }
    }

    /// Hands an application's message on, or holds it, unacknowledged, until its part has room.
    fn handle_publish(&self, publish: rumqttc::Publish, session: &Session) -> Result<(), End> {
        let certain = publish.qos != rumqttc::QoS::AtMostOnce;
        let mut state = session.lock();
        let behind = certain && !state.held.is_empty();
        if !behind && self.offer(&publish) != Offer::Full {
            // A request that does not fit waits with the held ones; its message is then offered twice,
            // which QoS 1 allows.
            if session.client.try_ack(&publish).is_ok() {
                return Ok(());
            }
        } else if !certain {
            tracing::debug!(topic = publish.topic, "no room for a message of QoS 0: it is dropped");
            return Ok(());
        }
        if state.held.len() >= HELD_MAX {
            return Err(End::Flooded);
        }
        state.held.push_back(publish);
        session.held_changed.notify_one();
        Ok(())
    }

    fn offer(&self, publish: &rumqttc::Publish) -> Offer {
        let publish = Publish { topic: publish.topic.clone(), payload: publish.payload.clone() };
        self.intake.offer(&publish)
    }

    /// Sends what waits, as far as the window allows.
    async fn send(&self, session: &Session) -> End {
        loop {
            let changed = self.changed.notified();
            if session.lock().connected_at.is_some()
                && let Err(end) = self.fill_window(session)
            {
                return end;
            }
            changed.await;
        }
    }

    fn fill_window(&self, session: &Session) -> Result<(), End> {
        let mut pending = self.pending();
        while let Some(publish) = pending.poll_publish() {
            let qos = rumqttc::QoS::AtLeastOnce;
            session.client.try_publish(publish.topic, qos, false, publish.payload).map_err(|_| End::Stuck)?;
        }
        Ok(())
    }

    /// Offers held messages again, and acknowledges those that were taken.
    async fn offer_held(&self, session: &Session) -> End {
        loop {
            if session.lock().held.is_empty() {
                session.held_changed.notified().await;
            }
            sleep(OFFER_AGAIN).await;
            let mut state = session.lock();
            while let Some(publish) = state.held.pop_front() {
                let taken = self.offer(&publish) != Offer::Full;
                if !taken || session.client.try_ack(&publish).is_err() {
                    state.held.push_front(publish);
                    break;
                }
            }
        }
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // No code of others runs under the lock, so a poisoned state is still whole.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between half of the pause and all of it, so that the clients of one broker do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let half = pause / 2;
    half + half.mul_f64((random() % 1024) as f64 / 1024.0)
}

/// The standard library seeds its hash maps at random; this is such a seed. Nothing secret hangs on it.
fn random() -> u64 {
    RandomState::new().hash_one(Instant::now())
}
