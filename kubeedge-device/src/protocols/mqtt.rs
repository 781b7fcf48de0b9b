//! Devices that speak MQTT: they publish their values, and take new ones on topics of theirs.
//!
//! The device's protocol settings:
//!
//! | Key | Meaning |
//! |---|---|
//! | `broker` (or `address`) | such as `tcp://127.0.0.1:1883` |
//! | `clientID` | how the broker knows this device's driver; something that nobody else has unless it says otherwise |
//! | `username`, `password` | if the broker asks for them |
//! | `timeout` | how many milliseconds a value may be waited for, and a publish may take; 3000 unless it says otherwise |
//!
//! A property's visitor:
//!
//! | Key | Meaning |
//! |---|---|
//! | `topic` | where the device publishes the value |
//! | `pointer` | where the value is in a JSON message (RFC 6901); without it, the value is the whole message |
//! | `scale` | what a number is multiplied by |
//! | `staleAfter` | after how many milliseconds without a message the device counts as away; never unless it says otherwise |
//! | `writeTopic` | where the device takes a value, with quality of service 1 |
//! | `writeKey` | what is published is an object with the value under this key; without it, it is the value |
//!
//! Reading gives the newest message. After a write the next message is waited for, so that what is read back is what the
//! device made of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use kubeedge_core::device::{
    AccessMode, DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec,
};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS, SubscribeFilter};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{settings::Settings, text};

/// Drives devices that speak MQTT.
#[derive(Debug, Clone)]
pub struct Mqtt {
    name: String,
}

/// The longest message in bytes.
const PACKET_BYTES_MAX: usize = 256 << 10;

/// Requests that wait in the client library: a device has few topics, and one write at a time.
const REQUESTS_MAX: usize = 16;

impl Default for Mqtt {
    fn default() -> Self {
        Self::named("mqtt")
    }
}

impl Mqtt {
    /// Creates the protocol under a name; devices whose `spec.protocol.protocolName` is this are given to it.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }
}

#[async_trait]
impl DeviceProtocol for Mqtt {
    fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self, spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        let wrong = |why| DeviceError::Invalid(format!("spec.protocol.configData: {why}"));
        let settings = Settings(&spec.protocol_config);
        let patience = settings.whole(&["timeout"], 1, 60_000).map_err(wrong)?.unwrap_or(3_000);
        let patience = Duration::from_millis(patience.into());
        let options = options(settings).map_err(wrong)?;
        let broker = format!("{}:{}", options.broker_address().0, options.broker_address().1);
        let topics: BTreeSet<String> = spec
            .properties
            .iter()
            .filter_map(|property| Settings(&property.visitor).text(&["topic"]).ok().flatten())
            .filter(|topic| is_topic(topic))
            .map(str::to_owned)
            .collect();
        let (client, mut events) = AsyncClient::new(options, REQUESTS_MAX);
        let shared = Arc::new(Shared::default());
        let unreachable = |why: String| DeviceError::Unreachable(format!("{broker}: {why}"));
        let connected = async {
            connect(&client, &mut events, &topics, &shared).await.map_err(|why| unreachable(why.to_string()))
        };
        timeout(patience, connected)
            .await
            .map_err(|_| unreachable(format!("no answer within {patience:?}")))??;
        let task = AbortOnDropHandle::new(tokio::spawn(poll(events, shared.clone())));
        Ok(Box::new(Handle { broker, client, shared, patience, spec: spec.clone(), _task: task }))
    }
}

fn options(settings: Settings<'_>) -> Result<MqttOptions, String> {
    let address = settings.text(&["broker", "brokerURL", "address"])?;
    let address = address.ok_or("broker is missing: such as tcp://127.0.0.1:1883")?;
    let plain = ["tcp://", "mqtt://"].iter().find_map(|scheme| address.strip_prefix(scheme));
    let plain = plain.unwrap_or(address).trim_end_matches('/');
    if plain.contains("://") {
        return Err(format!("broker is {address:?}; tcp:// is spoken, to a broker on the node or near it"));
    }
    let (host, port) = plain.rsplit_once(':').unwrap_or((plain, "1883"));
    let port = port.parse::<u16>().map_err(|_| format!("broker is {address:?}: {port:?} is no port"))?;
    if host.is_empty() {
        return Err(format!("broker is {address:?}: it has no host"));
    }
    let id = match settings.text(&["clientID", "clientId"])? {
        Some(id) => id.to_owned(),
        None => format!("mapper-{:016x}", RandomState::new().hash_one(Instant::now())),
    };
    let mut options = MqttOptions::new(id, host.trim_start_matches('[').trim_end_matches(']'), port);
    options
        .set_keep_alive(Duration::from_secs(30))
        .set_clean_session(true)
        .set_inflight(REQUESTS_MAX as u16)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    if let Some(user) = settings.text(&["username"])? {
        options.set_credentials(user, settings.text(&["password"])?.unwrap_or_default());
    }
    Ok(options)
}

fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= 1_024 && !topic.contains(['+', '#', '\0'])
}

/// What the task that polls and the handle share.
#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    messages: BTreeMap<String, Message>,
    /// Publishes that the broker has acknowledged.
    acknowledged: u64,
    /// Why there is no connection any more.
    ended: Option<String>,
}

struct Message {
    payload: Bytes,
    at: Instant,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code of others runs under the lock, so a poisoned state is still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, event: Event) {
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                let message = Message { payload: publish.payload, at: Instant::now() };
                self.lock().messages.insert(publish.topic, message);
            }
            Event::Incoming(Packet::PubAck(_)) => self.lock().acknowledged += 1,
            Event::Incoming(_) | Event::Outgoing(_) => return,
        }
        self.changed.notify_waiters();
    }

    /// Waits until `look` has found something, or the connection has ended.
    async fn until<T>(&self, look: impl Fn(&mut Inner) -> Option<T>) -> Result<T, String> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut inner = self.lock();
                if let Some(found) = look(&mut inner) {
                    return Ok(found);
                }
                if let Some(why) = &inner.ended {
                    return Err(why.clone());
                }
            }
            changed.await;
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connects and subscribes.
async fn connect(
    client: &AsyncClient,
    events: &mut EventLoop,
    topics: &BTreeSet<String>,
    shared: &Shared,
) -> Result<(), BoxError> {
    loop {
        match events.poll().await? {
            Event::Incoming(Packet::ConnAck(_)) if topics.is_empty() => return Ok(()),
            Event::Incoming(Packet::ConnAck(_)) => {
                let filter = |topic: &String| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce);
                client.try_subscribe_many(topics.iter().map(filter))?;
            }
            Event::Incoming(Packet::SubAck(answer)) => {
                let refused = |code: &_| matches!(code, rumqttc::SubscribeReasonCode::Failure);
                return match answer.return_codes.iter().position(refused) {
                    Some(place) => Err(format!(
                        "the broker refuses the subscription of {:?}",
                        topics.iter().nth(place).map_or("a topic", String::as_str)
                    )
                    .into()),
                    None => Ok(()),
                };
            }
            event @ (Event::Incoming(_) | Event::Outgoing(_)) => shared.handle(event),
        }
    }
}

/// Does nothing but poll, so that the library's requests never wait for it; ends with the connection.
async fn poll(mut events: EventLoop, shared: Arc<Shared>) {
    let why = loop {
        match events.poll().await {
            Ok(Event::Outgoing(Outgoing::Disconnect)) => break "it was ended".to_owned(),
            Ok(event) => shared.handle(event),
            Err(error) => break error.to_string(),
        }
    };
    shared.lock().ended = Some(why);
    shared.changed.notify_waiters();
}

struct Handle {
    broker: String,
    client: AsyncClient,
    shared: Arc<Shared>,
    patience: Duration,
    spec: DeviceSpec,
    _task: AbortOnDropHandle<()>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({}, {})", self.spec.device, self.broker)
    }
}

impl Handle {
    fn settings<'a>(&self, property: &'a PropertySpec) -> Result<Settings<'a>, DeviceError> {
        match self.spec.property(&property.name) {
            Some(_) => Ok(Settings(&property.visitor)),
            None => Err(DeviceError::Invalid(format!("the device has no property {:?}", property.name))),
        }
    }

    fn away(&self, why: impl fmt::Display) -> DeviceError {
        DeviceError::Unreachable(format!("{}: {why}", self.broker))
    }

    async fn wait<T>(&self, what: &str, look: impl Fn(&mut Inner) -> Option<T>) -> Result<T, DeviceError> {
        match timeout(self.patience, self.shared.until(look)).await {
            Ok(found) => found.map_err(|why| self.away(why)),
            Err(_) => Err(self.away(format!("{what} within {:?}", self.patience))),
        }
    }
}

fn visitor(why: impl fmt::Display) -> DeviceError {
    DeviceError::Invalid(format!("visitors.configData: {why}"))
}

fn topic<'a>(settings: Settings<'a>, key: &'static str) -> Result<&'a str, DeviceError> {
    match settings.text(&[key]).map_err(visitor)? {
        Some(topic) if is_topic(topic) => Ok(topic),
        Some(other) => Err(visitor(format!("{key} is {other:?}, and no topic without wildcards"))),
        None => Err(visitor(format!("{key} is missing"))),
    }
}

#[async_trait]
impl DeviceHandle for Handle {
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError> {
        let settings = self.settings(property)?;
        let topic = topic(settings, "topic")?;
        let stale = settings.whole(&["staleAfter"], 1, u32::MAX).map_err(visitor)?;
        let newest = |inner: &mut Inner| {
            // What came before the connection ended says nothing of a device that is away.
            let alive = inner.ended.is_none();
            inner.messages.get(topic).filter(|_| alive).map(|message| (message.payload.clone(), message.at))
        };
        let (payload, at) = self.wait(&format!("nothing came on {topic}"), newest).await?;
        if let Some(stale) = stale.map(|stale| Duration::from_millis(stale.into()))
            && at.elapsed() > stale
        {
            return Err(self.away(format!("nothing came on {topic} for {stale:?}")));
        }
        text::value(property, settings, &payload)
            .map_err(|why| DeviceError::Invalid(format!("{topic}: {why}")))
    }

    async fn write(&mut self, property: &PropertySpec, value: &str) -> Result<(), DeviceError> {
        let settings = self.settings(property)?;
        if property.access == AccessMode::ReadOnly {
            return Err(DeviceError::Rejected(format!("{:?} can only be read", property.name)));
        }
        let to = topic(settings, "writeTopic")?;
        let payload = text::payload(property, settings, value).map_err(DeviceError::Rejected)?;
        let before = {
            let mut inner = self.shared.lock();
            // What the device had before says nothing of what it makes of this.
            if let Ok(topic) = topic(settings, "topic") {
                inner.messages.remove(topic);
            }
            inner.acknowledged
        };
        let published = self.client.try_publish(to, QoS::AtLeastOnce, false, payload);
        published.map_err(|error| self.away(error))?;
        self.wait(&format!("no acknowledgement of what was published on {to}"), |inner| {
            (inner.acknowledged > before).then_some(())
        })
        .await
    }
}
