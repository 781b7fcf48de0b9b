//! The client of the broker beside the process.
//!
//! The client library is used in a narrow way: one future does nothing but poll it, requests are only tried
//! and never awaited, and after any error client and event loop are built from scratch. What has to outlive a
//! connection is in [`Pending`], not in the library.

use std::{
    collections::{BTreeSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kubeedge_core::{
    message::Publish,
    pipe::{Closed, Receipt},
};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, SubscribeFilter,
    SubscribeReasonCode, Transport,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::{
    QoS,
    broker::{Intake, Offer},
    config,
    driver::Asker,
    pending::{PACKET_BYTES_MAX, Pending},
    tls::Bridge,
};

/// The first pause after a failure.
const RETRY_MIN: Duration = Duration::from_millis(500);

/// The longest pause after a failure. A broker on the same node is back in seconds.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A connection that lasted so long was a good one: the next pause is short again.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// How often a message that its part had no room for is offered again.
const OFFER_AGAIN: Duration = Duration::from_millis(25);

/// Rules that change together are one subscription.
const SUBSCRIBE_EVERY: Duration = Duration::from_millis(500);

/// Messages of QoS 1 that wait for their part, or for what it has promised. Brokers send about 20 without an acknowledgement; one that sends
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
    filters: Vec<String>,
    /// Filters besides, which come and go.
    of_rules: watch::Receiver<BTreeSet<String>>,
    pending: Mutex<Pending>,
    changed: Notify,
}

/// One connection: what it shares between the future that polls and the one that sends.
struct Session {
    client: AsyncClient,
    state: Mutex<SessionState>,
    held_changed: Notify,
    owed_changed: Notify,
}

#[derive(Default)]
struct SessionState {
    connected_at: Option<Instant>,
    subscribed: BTreeSet<String>,
    /// Subscriptions that the broker has not answered, in order.
    asked: VecDeque<Vec<String>>,
    /// What its part had no room for.
    held: VecDeque<rumqttc::Publish>,
    /// What is to be acknowledged, in order, each when its receipt has come.
    owed: VecDeque<(rumqttc::Publish, Option<Receipt>)>,
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
    #[error("a message was not kept, so that the broker has to send it again: {0}")]
    NotKept(#[from] Closed),
    #[error("TLS: {0}")]
    Tls(#[from] kubeedge_core::tls::Error),
    #[error("TLS: {0}")]
    Bridge(std::io::Error),
}

impl Client {
    /// `client_id` is used if the configuration names none.
    pub(super) fn new(
        config: config::External,
        intake: Arc<dyn Intake>,
        filters: Vec<String>,
        of_rules: watch::Receiver<BTreeSet<String>>,
        client_id: String,
    ) -> Self {
        let pending = Pending::new(config.queue_max, config.queue_bytes_max);
        let client_id = config.client_id.clone().filter(|id| !id.is_empty()).unwrap_or(client_id);
        let pending = Mutex::new(pending);
        Self { config, client_id, intake, filters, of_rules, pending, changed: Notify::new() }
    }

    /// Takes a message for the broker. Never waits; the oldest goes when too many wait.
    pub(super) fn publish(&self, publish: Publish) {
        self.push(publish, None);
    }

    /// As [`Client::publish`]; the asker is told when the broker has it.
    pub(super) fn publish_for(&self, publish: Publish, asker: Asker) {
        self.push(publish, Some(asker));
    }

    fn push(&self, publish: Publish, asker: Option<Asker>) {
        let mut pending = self.pending();
        let before = pending.dropped();
        pending.push(publish, asker);
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
        let bridge = match self.bridge() {
            Ok(bridge) => bridge,
            Err(end) => return (end, None),
        };
        let (client, events) = AsyncClient::new(self.options(bridge.as_ref()), REQUESTS_MAX);
        let session = Session {
            client,
            state: Mutex::default(),
            held_changed: Notify::new(),
            owed_changed: Notify::new(),
        };
        let through_tls = async {
            match bridge {
                Some(bridge) => End::Bridge(bridge.run(&self.config.host, self.config.port).await),
                None => std::future::pending().await,
            }
        };
        let end = tokio::select! {
            end = self.poll(events, &session, address) => end,
            end = self.send(&session) => end,
            end = self.follow_rules(&session) => end,
            end = self.offer_held(&session) => end,
            end = acknowledge(&session) => end,
            end = through_tls => end,
        };
        let lasted = session.lock().connected_at.map(|at| at.elapsed());
        (end, lasted)
    }

    /// The way through TLS, if that is how the broker is spoken to.
    fn bridge(&self) -> Result<Option<Bridge>, End> {
        let Some(files) = &self.config.tls else { return Ok(None) };
        Bridge::new(files.client_config()?).map(Some).map_err(End::Bridge)
    }

    fn options(&self, bridge: Option<&Bridge>) -> MqttOptions {
        let host = bridge.map_or(&*self.config.host, Bridge::name).to_owned();
        let mut options = MqttOptions::new(self.client_id.clone(), host, self.config.port);
        if bridge.is_some() {
            options.set_transport(Transport::Unix);
        }
        // The broker keeps the session, and in it what applications say while this process restarts.
        options
            .set_keep_alive(Duration::from_secs(30))
            .set_clean_session(false)
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
                self.changed.notify_one();
                self.subscribe(session)
            }
            Packet::SubAck(answer) => {
                let asked = session.lock().asked.pop_front().unwrap_or_default();
                for (filter, code) in asked.iter().zip(answer.return_codes) {
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

    /// Subscribes to what is not subscribed to on this connection, and gives back what is not wanted any more.
    fn subscribe(&self, session: &Session) -> Result<(), End> {
        let mut wanted: BTreeSet<String> = self.filters.iter().cloned().collect();
        wanted.extend(self.of_rules.borrow().iter().cloned());
        let mut state = session.lock();
        for filter in state.subscribed.difference(&wanted) {
            session.client.try_unsubscribe(filter.clone()).map_err(|_| End::Stuck)?;
        }
        let missing: Vec<String> = wanted.difference(&state.subscribed).cloned().collect();
        state.subscribed = wanted;
        if !missing.is_empty() {
            let filters = missing.iter();
            let filters =
                filters.map(|filter| SubscribeFilter::new(filter.clone(), rumqttc::QoS::AtLeastOnce));
            session.client.try_subscribe_many(filters).map_err(|_| End::Stuck)?;
            state.asked.push_back(missing);
        }
        Ok(())
    }

    /// Follows the Rules while the connection is up.
    async fn follow_rules(&self, session: &Session) -> End {
        let mut of_rules = self.of_rules.clone();
        while of_rules.changed().await.is_ok() {
            // Not yet connected, all is subscribed to as soon as it is.
            if session.lock().connected_at.is_some()
                && let Err(end) = self.subscribe(session)
            {
                return end;
            }
            sleep(SUBSCRIBE_EVERY).await;
        }
        std::future::pending().await
    }

    /// Hands an application's message on, or holds it, unacknowledged, until its part has room.
    fn handle_publish(&self, publish: rumqttc::Publish, session: &Session) -> Result<(), End> {
        if publish.qos == rumqttc::QoS::AtMostOnce {
            if matches!(self.offer(&publish), Offer::Full) {
                tracing::debug!(topic = publish.topic, "no room for a message of QoS 0: it is dropped");
            }
            return Ok(());
        }
        let mut state = session.lock();
        if state.held.len() + state.owed.len() >= HELD_MAX {
            return Err(End::Flooded);
        }
        if !state.held.is_empty() || !self.place(&publish, session, &mut state) {
            state.held.push_back(publish);
            session.held_changed.notify_one();
        }
        Ok(())
    }

    /// Gives a message to its part; false if there is no room for it.
    fn place(&self, publish: &rumqttc::Publish, session: &Session, state: &mut SessionState) -> bool {
        let receipt = match self.offer(publish) {
            Offer::Full => return false,
            Offer::NotMine | Offer::Taken => None,
            Offer::Promised(receipt) => Some(receipt),
        };
        state.owed.push_back((publish.clone(), receipt));
        session.owed_changed.notify_one();
        true
    }

    fn offer(&self, publish: &rumqttc::Publish) -> Offer {
        let qos = match publish.qos {
            rumqttc::QoS::AtMostOnce => QoS::AtMostOnce,
            rumqttc::QoS::AtLeastOnce | rumqttc::QoS::ExactlyOnce => QoS::AtLeastOnce,
        };
        self.intake.offer(&publish.topic, &publish.payload, qos)
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

    /// Offers held messages again.
    async fn offer_held(&self, session: &Session) -> End {
        loop {
            if session.lock().held.is_empty() {
                session.held_changed.notified().await;
            }
            sleep(OFFER_AGAIN).await;
            let mut state = session.lock();
            while let Some(publish) = state.held.pop_front() {
                if !self.place(&publish, session, &mut state) {
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

/// Acknowledges messages in order, each when what was promised for it has come true.
async fn acknowledge(session: &Session) -> End {
    loop {
        let receipt = session.lock().owed.front_mut().map(|(_, receipt)| receipt.take());
        match receipt {
            None => session.owed_changed.notified().await,
            Some(receipt) => {
                if let Some(receipt) = receipt
                    && let Err(closed) = receipt.await
                {
                    return closed.into();
                }
                if !acknowledge_first(session) {
                    // The library is busy; it takes the next request as soon as it is polled.
                    sleep(OFFER_AGAIN).await;
                }
            }
        }
    }
}

/// Whether the library has taken the acknowledgement, so that there may be a next.
fn acknowledge_first(session: &Session) -> bool {
    let mut state = session.lock();
    let taken = state.owed.front().is_none_or(|(publish, _)| session.client.try_ack(publish).is_ok());
    if taken {
        state.owed.pop_front();
    }
    taken
}

/// Between half of the pause and all of it, so that the clients of one broker do not come back at once.
fn jittered(pause: Duration) -> Duration {
    let half = pause / 2;
    half + half.mul_f64((random() % 1024) as f64 / 1024.0)
}

/// The standard library seeds its hash maps at random; this is such a seed. Nothing secret hangs on it.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(Instant::now())
}
