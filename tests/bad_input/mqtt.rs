//! Nonsense on the MQTT broker inside edgecore, and in what applications say over it.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::time::timeout;

use crate::{Healthy, Memory};

/// A device without a driver: only applications speak for it.
const LAMP: &str = r#"
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: lamp, namespace: default}
spec:
  protocol: mqtt
  properties: [{name: power, type: STRING, accessMode: ReadWrite}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: lamp-1, namespace: default}
spec:
  deviceModelRef: {name: lamp}
  nodeName: edge-1
  protocol: {protocolName: mqtt}
  properties: [{name: power, reportToCloud: true, desired: {value: "off"}}]
"#;

const DEVICE: &str = "$hw/events/device/default/lamp-1";

/// What KubeEdge documents, and what it does not.
const TOPICS: [&str; 22] = [
    "$hw/events/device/default/lamp-1/twin/update",
    "$hw/events/device/default/lamp-1/twin/get",
    "$hw/events/device/default/lamp-1/twin/cloud_updated",
    "$hw/events/device/default/lamp-1/twin/update/result",
    "$hw/events/device/default/lamp-1/twin/update/delta",
    "$hw/events/device/default/lamp-1/twin/update/document",
    "$hw/events/device/default/lamp-1/twin/get/result",
    "$hw/events/device/default/lamp-1/state/update",
    "$hw/events/device/default/lamp-1/state/get",
    "$hw/events/device/default/lamp-1/updated",
    "$hw/events/device/default/never-was/twin/update",
    "$hw/events/device/default/never-was/twin/get",
    "$hw/events/device//twin/update",
    "$hw/events/device/twin/update",
    "$hw/events/device/Default/lämp!/twin/update",
    "$hw/events/node/edge-1/membership/get",
    "$hw/events/node/edge-2/membership/get",
    "$hw/events/upload/x",
    "SYS/dis/upload_records",
    "default/user/x",
    "/",
    "nobody/knows/this",
];

const PAYLOADS: [&[u8]; 9] = [
    b"",
    b"\xff\xfe\x00 no text",
    b"{",
    b"[]",
    b"null",
    br#"{"twin":{"power":7}}"#,
    br#"{"event_id":7,"timestamp":"now","twin":[]}"#,
    br#"{"twin":{"":{"actual":{"value":"x"}}},"state":{}}"#,
    br#"{"state":"on fire"}"#,
];

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_publishes_nonsense_is_told_so_and_the_devices_go_on() -> Result<()> {
    let mut site = Healthy::start()?;
    site.cloud.apply(LAMP)?;
    let mut client = Client::connect(site.mqtt, "app").await?;
    client
        .subscribe(&["$hw/events/device/+/+/twin/update/result", "$hw/events/device/+/+/twin/get/result"])
        .await?;
    client.knows_the_lamp().await?;
    client.nonsense().await?;
    client.lamp_answers("one").await?;

    // The place of a value without one is named.
    let half = r#"{"event_id":"x","twin":{"np":{"actual":{},"expected":{}}}}"#;
    let answer = client.ask(&format!("{DEVICE}/twin/update"), half, "twin/update/result", "\"x\"").await?;
    ensure!(answer.contains("\"code\":400"), "{answer}");

    let cold = site.edge_memory()?;
    client.much_nonsense().await?;
    client.lamp_answers("two").await?;
    // Some of it goes by way of the store, whose thread and cache keep what they once needed.
    let before = site.edge_memory()?;
    ensure!(before.kib < cold.kib + GROWN_KIB, "{} KiB became {}", cold.kib, before.kib);
    for _ in 0..3 {
        client.much_nonsense().await?;
    }
    client.lamp_answers("three").await?;
    site.edge_says(&["twin/cloud_updated"])?;
    before.has_not_grown()?;
    ensure!(site.device_value("lamp-1")? != "7");
    site.goes_on()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_application_says_without_end_while_the_cloud_is_away_takes_bounded_memory() -> Result<()> {
    let mut site = Healthy::start()?;
    site.cloud.apply(LAMP)?;
    let mut client = Client::connect(site.mqtt, "app").await?;
    client
        .subscribe(&["$hw/events/device/+/+/twin/update/result", "$hw/events/device/+/+/twin/get/result"])
        .await?;
    client.knows_the_lamp().await?;
    let cold = site.edge_memory()?;
    let grown = site.outlasts_the_cloud(&mut client).await?.kib.saturating_sub(cold.kib);
    ensure!(grown < GROWN_KIB, "the edge has grown by {grown} KiB");
    // Four times as much takes no more.
    let before = site.edge_memory()?;
    for _ in 0..4 {
        site.outlasts_the_cloud(&mut client).await?;
    }
    before.has_not_grown()
}

impl Healthy {
    /// Lets an application say 64 MiB while the cloud is away, and returns how much memory that took.
    async fn outlasts_the_cloud(&mut self, client: &mut Client) -> Result<Memory> {
        self.cloud.kill();
        let large = vec![b'7'; (1 << 20) - 200];
        for round in 0..64 {
            client.client.publish("default/user/x", QoS::AtMostOnce, false, large.as_slice()).await?;
            client.lamp_answers(&round.to_string()).await?;
        }
        let memory = self.edge_memory()?;
        self.cloud.spawn()?;
        self.follows()?;
        Ok(memory)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_speak_mqtt_is_hung_up_on_and_the_others_go_on() -> Result<()> {
    let mut site = Healthy::start()?;
    site.cloud.apply(LAMP)?;
    let mut client = Client::connect(site.mqtt, "app").await?;
    client
        .subscribe(&["$hw/events/device/+/+/twin/update/result", "$hw/events/device/+/+/twin/get/result"])
        .await?;
    client.knows_the_lamp().await?;
    let port = site.mqtt;
    let connect = [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'x'];
    let after_connect = |packet: &[u8]| [&connect[..], packet].concat();
    let noise = vec![0xff; 100_000];
    let mut too_long = vec![0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, b'a'];
    too_long.resize(1 << 20, b'x');
    let said: Vec<Vec<u8>> = vec![
        vec![],
        noise.clone(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // Half a CONNECT, one of another protocol, one with a client id longer than itself.
        connect[..6].to_vec(),
        vec![0x10, 13, 0, 4, b'M', b'Q', b'X', b'X', 4, 2, 0, 60, 0, 1, b'x'],
        vec![0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0xff, 0xff, b'x'],
        after_connect(&connect),
        after_connect(&noise),
        // A length of five bytes, an empty PUBLISH, a wildcard in its topic, QoS 3, an empty SUBSCRIBE.
        after_connect(&[0x30, 0xff, 0xff, 0xff, 0xff, 0x01]),
        after_connect(&[0x30, 0]),
        after_connect(&[0x30, 3, 0, 1, b'#']),
        after_connect(&[0x36, 5, 0, 1, b'a', 0, 1]),
        after_connect(&[0x82, 0]),
        // Half a PUBLISH, and one that announces 256 MiB.
        after_connect(&[0x30, 100, 0, 1, b'a']),
        after_connect(&too_long),
    ];
    let round = || -> Result<()> {
        for said in &said {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let _ = stream.write_all(said).and_then(|()| stream.shutdown(Shutdown::Write));
            let _ = stream.read_to_end(&mut Vec::new());
        }
        Ok(())
    };
    tokio::task::block_in_place(round)?;
    client.lamp_answers("one").await?;
    let before = site.edge_memory()?;
    tokio::task::block_in_place(|| (0..5).try_for_each(|_| round()))?;
    client.lamp_answers("two").await?;
    site.edge_says(&["MQTT connection ended by the broker", "127.0.0.1:", "malformed packet"])?;
    before.has_not_grown()?;
    site.goes_on()
}

/// 20 MiB: 4 in the link and 4 before it, 8 on the way into the store and out of it, and buffers.
const GROWN_KIB: u64 = 20 << 10;

/// An application's connection.
struct Client {
    client: AsyncClient,
    events: EventLoop,
}

/// A test that waits for longer has failed.
const PATIENCE: Duration = Duration::from_secs(15);

impl Client {
    async fn connect(port: u16, name: &str) -> Result<Self> {
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_max_packet_size(2 << 20, 2 << 20);
        let (client, events) = AsyncClient::new(options, 64);
        let mut client = Self { client, events };
        while !matches!(client.next().await?, Packet::ConnAck(_)) {}
        Ok(client)
    }

    async fn next(&mut self) -> Result<Packet> {
        loop {
            let event = timeout(PATIENCE, self.events.poll()).await.context("the broker says nothing")??;
            if let Event::Incoming(packet) = event {
                return Ok(packet);
            }
        }
    }

    async fn subscribe(&mut self, filters: &[&str]) -> Result<()> {
        for filter in filters {
            self.client.subscribe(*filter, QoS::AtMostOnce).await?;
            while !matches!(self.next().await?, Packet::SubAck(_)) {}
        }
        Ok(())
    }

    /// Publishes, and waits until the broker has it.
    async fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await?;
        while !matches!(self.next().await?, Packet::PubAck(_)) {}
        Ok(())
    }

    async fn nonsense(&mut self) -> Result<()> {
        for topic in TOPICS {
            for payload in PAYLOADS {
                self.publish(topic, payload).await.with_context(|| format!("{topic} {payload:?}"))?;
            }
        }
        Ok(())
    }

    /// All of it three times, and as much as the broker takes in one packet, which is not JSON.
    async fn much_nonsense(&mut self) -> Result<()> {
        for _ in 0..3 {
            self.nonsense().await?;
        }
        let large = vec![b'7'; (1 << 20) - 200];
        for topic in TOPICS {
            self.publish(topic, &large).await?;
        }
        Ok(())
    }

    /// Publishes, and waits for the answer that has these words.
    async fn ask(&mut self, topic: &str, payload: &str, on: &str, words: &str) -> Result<String> {
        self.client.publish(topic, QoS::AtMostOnce, false, payload).await?;
        let mut others = Vec::new();
        for _ in 0..10_000 {
            let packet = match self.next().await {
                Ok(packet) => packet,
                Err(error) => return Err(error.context(format!("no {words} came on {on}, but {others:?}"))),
            };
            if let Packet::Publish(publish) = packet {
                let text = String::from_utf8_lossy(&publish.payload).into_owned();
                if publish.topic.ends_with(on) && text.contains(words) {
                    return Ok(text);
                }
                others.push(format!("{} {text}", publish.topic));
                others.drain(..others.len().saturating_sub(5));
            }
        }
        bail!("no {words} came on {on}, but {others:?}")
    }

    /// Waits until the device has arrived at the edge.
    async fn knows_the_lamp(&mut self) -> Result<()> {
        for _ in 0..500 {
            let get = r#"{"event_id":"is it there"}"#;
            let answer =
                self.ask(&format!("{DEVICE}/twin/get"), get, "twin/get/result", "is it there").await?;
            if answer.contains("power") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the device does not arrive at the edge")
    }

    /// The device's twin is as alive as ever.
    async fn lamp_answers(&mut self, value: &str) -> Result<()> {
        let update =
            format!(r#"{{"event_id":"set-{value}","twin":{{"power":{{"actual":{{"value":"{value}"}}}}}}}}"#);
        let words = format!("set-{value}");
        let answer =
            self.ask(&format!("{DEVICE}/twin/update"), &update, "twin/update/result", &words).await?;
        ensure!(!answer.contains("\"code\""), "{answer}");
        let get = format!(r#"{{"event_id":"get-{value}"}}"#);
        let words = format!("get-{value}");
        let answer = self.ask(&format!("{DEVICE}/twin/get"), &get, "twin/get/result", &words).await?;
        ensure!(answer.contains(&format!("\"value\":\"{value}\"")), "{answer}");
        Ok(())
    }
}
