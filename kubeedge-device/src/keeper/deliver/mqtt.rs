//! A publish for each value, over one connection for a block.
//!
//! The client library is used in a narrow way: requests are only tried and never awaited, it is polled and nothing
//! else is done meanwhile, and each block gets a client of its own. So nothing that it forgets with a connection
//! matters: what was not acknowledged is published again with the next.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use kubeedge_core::device::PushMethod;
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::time::{Instant, timeout};

use super::{Courier, Failure, Item, Progress, json, time};
use crate::keeper::Format;

/// Values published and not acknowledged. Below the library's own window, so that its requests never wait.
const WINDOW: usize = 16;

/// The longest packet in bytes.
const PACKET_BYTES_MAX: usize = 1 << 20;

/// What a packet has besides topic and payload, rounded up.
const PACKET_OVERHEAD: usize = 16;

/// A value that was handed to the library.
struct Sent {
    /// The packet identifier, once the library has told it; zero if there is none.
    packet: Option<u16>,
    qos: u8,
    done: bool,
}

struct Session<'a> {
    courier: &'a Courier,
    broker: String,
    client: AsyncClient,
    items: &'a [Item],
    /// How many of the items were handed to the library, or refused.
    handed: usize,
    /// The items from `progress.done` to `handed`.
    window: VecDeque<Sent>,
    connected: bool,
}

pub(super) async fn deliver(
    courier: &Courier,
    host: &str,
    port: u16,
    items: &[Item],
    progress: &mut Progress,
) -> Result<(), Failure> {
    let name = format!("keeper-{:016x}", RandomState::new().hash_one(Instant::now()));
    let mut options = MqttOptions::new(name, host.trim_start_matches('[').trim_end_matches(']'), port);
    options
        .set_keep_alive(Duration::from_secs(30))
        .set_clean_session(true)
        .set_inflight(20)
        .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    let (client, mut events) = AsyncClient::new(options, WINDOW * 2);
    let broker = format!("mqtt://{host}:{port}");
    let mut session =
        Session { courier, broker, client, items, handed: 0, window: VecDeque::new(), connected: false };
    while progress.done < items.len() {
        let event = timeout(courier.deadline, events.poll()).await;
        let event =
            event.map_err(|_| session.failure(&format!("no answer within {:?}", courier.deadline)))?;
        session.handle(event, progress)?;
    }
    session.leave(&mut events).await;
    Ok(())
}

impl Session<'_> {
    fn handle(
        &mut self,
        event: Result<Event, ConnectionError>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        match event {
            Err(error) => return Err(self.failure(&error.to_string())),
            Ok(Event::Incoming(Packet::ConnAck(_))) => self.connected = true,
            Ok(Event::Outgoing(Outgoing::Publish(packet))) => self.take_number(packet),
            Ok(Event::Incoming(Packet::PubAck(ack))) => self.take_answer(ack.pkid),
            Ok(Event::Incoming(Packet::PubComp(ack))) => self.take_answer(ack.pkid),
            Ok(_) => {}
        }
        while self.window.front().is_some_and(|sent| sent.done) {
            self.window.pop_front();
            progress.done += 1;
            progress.sent += 1;
        }
        if self.connected { self.fill(progress) } else { Ok(()) }
    }

    fn failure(&self, why: &str) -> Failure {
        let why = format!("{}: {why}", self.broker);
        if self.connected { Failure::Broke(why) } else { Failure::Away(why) }
    }

    fn take_number(&mut self, packet: u16) {
        if let Some(sent) = self.window.iter_mut().find(|sent| sent.packet.is_none()) {
            sent.packet = Some(packet);
            // Without an acknowledgement, being on its way is all that can be known.
            sent.done = sent.qos == 0;
        }
    }

    fn take_answer(&mut self, packet: u16) {
        let sent =
            self.window.iter_mut().find(|sent| sent.packet == Some(packet) && !sent.done && sent.qos > 0);
        if let Some(sent) = sent {
            sent.done = true;
        }
    }

    /// Hands values to the library, as far as the window allows.
    fn fill(&mut self, progress: &mut Progress) -> Result<(), Failure> {
        while self.window.len() < WINDOW
            && let Some(item) = self.items.get(self.handed)
        {
            let PushMethod::Mqtt(push) = &item.push else { return Ok(()) };
            let payload = match self.courier.format {
                Format::Mapper => {
                    let at = time(item.sample.timestamp_ms);
                    format!("time is {at}  {}: {}", push.topic, item.sample.value)
                }
                Format::Json => json(item),
            };
            if payload.len() + push.topic.len() + PACKET_OVERHEAD > PACKET_BYTES_MAX {
                if !self.window.is_empty() {
                    // What is done with is counted from the first on, so those before it are waited for.
                    return Ok(());
                }
                progress.refuse(item, &self.broker, "it is longer than a packet of 1 MiB");
                progress.done += 1;
                self.handed += 1;
                continue;
            }
            let qos = match push.qos {
                0 => QoS::AtMostOnce,
                1 => QoS::AtLeastOnce,
                _ => QoS::ExactlyOnce,
            };
            let handed = self.client.try_publish(push.topic.clone(), qos, push.retained, payload);
            handed.map_err(|error| self.failure(&error.to_string()))?;
            self.window.push_back(Sent { packet: None, qos: push.qos, done: false });
            self.handed += 1;
        }
        Ok(())
    }

    /// Says good-bye, which also brings what needs no acknowledgement on its way.
    async fn leave(self, events: &mut EventLoop) {
        if self.client.try_disconnect().is_err() {
            return;
        }
        let gone = async {
            while let Ok(event) = events.poll().await {
                if event == Event::Outgoing(Outgoing::Disconnect) {
                    return;
                }
            }
        };
        // A broker that does not let go has the values all the same.
        let _ = timeout(Duration::from_secs(1), gone).await;
    }
}
