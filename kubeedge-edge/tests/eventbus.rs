//! EventBus with real MQTT on both sides: another implementation's client and broker.
//!
//! Needs the Debian packages `mosquitto` and `mosquitto-clients`.
#![cfg(feature = "eventbus")]
#![expect(clippy::unwrap_used, reason = "what a test stands on may panic")]

use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use bytes::Bytes;
use kubeedge_core::{
    message::{Publish, Upload, UploadId, UploadedPublish},
    pipe::{self, EventReceiver},
};
use kubeedge_edge::eventbus::{
    self, Config, EventBus, External, Inbox, Mode, Outbox, Outside,
    broker::{self, Broker},
};
use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Packet, QoS};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Long enough for a slow machine; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

const TWIN: &str = "$hw/events/device/default/sensor-1/twin/update";

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn upload(publish: Publish) -> Upload {
    Upload::Publish(UploadedPublish { id: UploadId::default(), publish })
}

fn message(topic: &str, text: &str) -> Publish {
    Publish { topic: topic.to_owned(), payload: Bytes::copy_from_slice(text.as_bytes()) }
}

// ---------------------------------------------------------------------------------------- what the tests stand on

/// A client of another implementation, with its packets.
struct Client {
    client: AsyncClient,
    packets: mpsc::UnboundedReceiver<Packet>,
    task: tokio::task::JoinHandle<()>,
}

impl Client {
    async fn connect(name: &str, address: SocketAddr) -> Self {
        Self::connect_with(MqttOptions::new(name, address.ip().to_string(), address.port())).await
    }

    async fn connect_with(mut options: MqttOptions) -> Self {
        options.set_max_packet_size(1 << 20, 1 << 20).set_keep_alive(Duration::from_secs(5));
        let (client, mut events) = AsyncClient::new(options, 200);
        let (packets_tx, packets) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                if let Event::Incoming(packet) = event
                    && packets_tx.send(packet).is_err()
                {
                    return;
                }
            }
        });
        let mut client = Self { client, packets, task };
        assert!(matches!(client.next().await, Packet::ConnAck(_)));
        client
    }

    async fn next(&mut self) -> Packet {
        soon("a packet", self.packets.recv()).await.expect("the connection is open")
    }

    async fn subscribe(&mut self, filter: &str, qos: QoS) {
        self.client.subscribe(filter, qos).await.unwrap();
        while !matches!(self.next().await, Packet::SubAck(_)) {}
    }

    async fn publish(&self, topic: &str, qos: QoS, retain: bool, text: &str) {
        self.client.publish(topic, qos, retain, text).await.unwrap();
    }

    async fn received(&mut self) -> rumqttc::Publish {
        loop {
            if let Packet::Publish(publish) = self.next().await {
                return publish;
            }
        }
    }

    async fn received_text(&mut self) -> (String, String) {
        let publish = self.received().await;
        (publish.topic, String::from_utf8(publish.payload.to_vec()).unwrap())
    }

    /// How many acknowledgements of publishes have come by now.
    fn acknowledged(&mut self) -> usize {
        std::iter::from_fn(|| self.packets.try_recv().ok())
            .filter(|packet| matches!(packet, Packet::PubAck(_)))
            .count()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn broker(config: broker::Config) -> (Broker, SocketAddr, DropGuard) {
    let (listener, address) = listener().await;
    let broker = Broker::new(config);
    let stop = CancellationToken::new();
    let running = broker.clone();
    let stopped = stop.clone();
    tokio::spawn(async move { running.run(listener, stopped).await });
    (broker, address, stop.drop_guard())
}

/// EventBus with its embedded broker, and perhaps beside another one.
async fn bus(mode: Mode, external: Option<SocketAddr>) -> (Outside, SocketAddr, DropGuard) {
    let (inbox, outbox, outside) = eventbus::pipes();
    let (address, stop) = bus_on(mode, external, inbox, outbox).await;
    (outside, address, stop)
}

async fn bus_on(
    mode: Mode,
    external: Option<SocketAddr>,
    inbox: Inbox,
    outbox: Outbox,
) -> (SocketAddr, DropGuard) {
    let (listener, address) = listener().await;
    let port = external.map_or(1, |address| address.port());
    let external = External { port, ..External::default() };
    let config = Config { mode, external, ..Config::default() };
    let stop = CancellationToken::new();
    let bus = EventBus::new(config, inbox, outbox).with_listener(listener);
    tokio::spawn(bus.run(stop.clone()));
    (address, stop.drop_guard())
}

fn program(name: &str) -> PathBuf {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin", "/opt/homebrew/sbin"]
        .iter()
        .map(|folder| PathBuf::from(folder).join(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!("{name} is missing: this test needs the packages mosquitto and mosquitto-clients")
        })
}

/// A real broker on a private port.
struct Mosquitto {
    folder: tempfile::TempDir,
    address: SocketAddr,
    child: Child,
}

impl Mosquitto {
    async fn start() -> Self {
        let (free, address) = listener().await;
        drop(free);
        let folder = tempfile::tempdir().unwrap();
        let child = Self::spawn(&folder, address).await;
        Self { folder, address, child }
    }

    async fn spawn(folder: &tempfile::TempDir, address: SocketAddr) -> Child {
        let config = folder.path().join("mosquitto.conf");
        let text = format!("listener {} 127.0.0.1\nallow_anonymous true\n", address.port());
        tokio::fs::write(&config, text).await.unwrap();
        let child = Command::new(program("mosquitto"))
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        soon("mosquitto listening", async {
            while TcpStream::connect(address).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        child
    }

    async fn stop(&mut self) {
        self.child.kill().await.unwrap();
    }

    async fn start_again(&mut self) {
        self.child = Self::spawn(&self.folder, self.address).await;
    }
}

/// Publishes until the bus has subscribed at the broker and its part has the message.
async fn publish_until_taken(client: &Client, topic: &str, messages: &mut EventReceiver<Publish>) {
    soon("the bus hearing a message", async {
        loop {
            client.publish(topic, QoS::AtLeastOnce, false, "are you there").await;
            if timeout(Duration::from_millis(200), messages.recv()).await.is_ok() {
                return;
            }
        }
    })
    .await;
    sleep(Duration::from_millis(300)).await;
    while messages.try_recv().is_some() {}
}

// ------------------------------------------------------------------------------------------------ the broker alone

#[tokio::test]
async fn messages_pass_between_clients_with_qos_retained_and_large_payloads() {
    let (_broker, address, _stop) = broker(broker::Config::default()).await;
    let mut reader = Client::connect("reader", address).await;
    let writer = Client::connect("writer", address).await;
    reader.subscribe("room/+", QoS::AtLeastOnce).await;
    writer.publish("room/a", QoS::AtMostOnce, false, "zero").await;
    let large = "x".repeat(900 << 10);
    writer.publish("room/b", QoS::AtLeastOnce, true, &large).await;
    let first = reader.received().await;
    assert_eq!((first.qos, &first.payload[..]), (QoS::AtMostOnce, &b"zero"[..]));
    let second = reader.received().await;
    assert_eq!((second.qos, second.retain, second.payload.len()), (QoS::AtLeastOnce, false, large.len()));
    let mut late = Client::connect("late", address).await;
    late.subscribe("room/#", QoS::AtLeastOnce).await;
    let kept = late.received().await;
    assert!(kept.retain);
    assert_eq!(kept.payload.len(), large.len());
}

#[tokio::test]
async fn many_messages_arrive_complete_and_in_order() {
    let (_broker, address, _stop) = broker(broker::Config { queue_max: 1000, ..Default::default() }).await;
    let mut reader = Client::connect("reader", address).await;
    reader.subscribe("t", QoS::AtLeastOnce).await;
    let writer = Client::connect("writer", address).await;
    for number in 0..150 {
        writer.publish("t", QoS::AtLeastOnce, false, &number.to_string()).await;
    }
    for number in 0..150 {
        assert_eq!(reader.received_text().await.1, number.to_string());
    }
}

#[tokio::test]
async fn a_will_is_published_when_a_client_vanishes() {
    let (broker, address, _stop) = broker(broker::Config::default()).await;
    let mut reader = Client::connect("reader", address).await;
    reader.subscribe("gone", QoS::AtLeastOnce).await;
    let mut options = MqttOptions::new("mortal", "127.0.0.1", address.port());
    options.set_last_will(LastWill::new("gone", "mortal", QoS::AtLeastOnce, false));
    drop(Client::connect_with(options).await);
    assert_eq!(reader.received_text().await, ("gone".to_owned(), "mortal".to_owned()));
    until("the client's end", || broker.stats().clients == 1).await;
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let (broker, address, _stop) =
        broker(broker::Config { connect_deadline: Duration::from_millis(100), ..Default::default() }).await;
    let mut client = Client::connect("good", address).await;
    client.subscribe("t", QoS::AtMostOnce).await;
    let connect = b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x00\x00\x03bad";
    let huge = [&connect[..], b"\x30\xff\xff\xff\x7f"].concat();
    let twice = [&connect[..], connect].concat();
    let certain = [&connect[..], b"\x34\x05\x00\x01a\x00\x01"].concat();
    let cases: [&[u8]; 6] = [b"GET / HTTP/1.1\r\n\r\n", b"", b"\xc0\x00", &huge, &twice, &certain];
    for garbage in cases {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("the end of the connection", socket.read_to_end(&mut answer)).await;
    }
    until("only the good client", || broker.stats().clients == 1).await;
    client.publish("t", QoS::AtMostOnce, false, "still here").await;
    assert_eq!(client.received_text().await.1, "still here");
}

#[tokio::test]
async fn a_client_that_falls_silent_is_ended_after_one_and_a_half_times_its_keep_alive() {
    let (broker, address, _stop) = broker(broker::Config::default()).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x01\x00\x03abc").await.unwrap();
    let mut answer = Vec::new();
    soon("the end of the connection", socket.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"\x20\x02\x00\x00");
    until("the client's end", || broker.stats().clients == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let (broker, address, _stop) = broker(broker::Config::default()).await;
    let mut deaf = TcpStream::connect(address).await.unwrap();
    deaf.write_all(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04deaf").await.unwrap();
    deaf.write_all(b"\x82\x06\x00\x01\x00\x01#\x00").await.unwrap();
    let mut answer = [0; 9];
    soon("CONNACK and SUBACK", deaf.read_exact(&mut answer)).await.unwrap();
    let mut client = Client::connect("good", address).await;
    client.subscribe("t", QoS::AtLeastOnce).await;
    let text = "x".repeat(100_000);
    for _ in 0..200 {
        client.publish("t", QoS::AtLeastOnce, false, &text).await;
        assert_eq!(client.received_text().await.1.len(), text.len());
    }
    assert!(broker.stats().dropped > 0, "{:?}", broker.stats());
}

#[tokio::test]
async fn the_stock_command_line_clients_understand_the_broker() {
    let (broker, address, _stop) = broker(broker::Config::default()).await;
    let port = address.port().to_string();
    let sub = Command::new(program("mosquitto_sub"))
        .args(["-h", "127.0.0.1", "-p", &port, "-q", "2", "-t", "#", "-C", "2", "-v"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    until("mosquitto_sub connected", || broker.stats().clients == 1).await;
    sleep(Duration::from_millis(200)).await;
    for (qos, text) in [("0", "hello"), ("1", "world")] {
        let pub_ = Command::new(program("mosquitto_pub"))
            .args(["-h", "127.0.0.1", "-p", &port, "-q", qos, "-t", "room/t", "-m", text])
            .kill_on_drop(true)
            .status();
        assert!(soon("mosquitto_pub", pub_).await.unwrap().success());
    }
    let output = soon("mosquitto_sub", sub.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "room/t hello\nroom/t world\n");
    let refused = Command::new(program("mosquitto_pub"))
        .args(["-h", "127.0.0.1", "-p", &port, "-V", "mqttv31", "-t", "t", "-m", "x"])
        .stderr(Stdio::null())
        .status();
    assert!(!soon("MQTT 3.1 being refused", refused).await.unwrap().success());
}

// --------------------------------------------------------------------------------------- the bus inside the process

#[tokio::test]
async fn messages_reach_their_parts_and_the_parts_reach_clients() {
    let (mut outside, address, _stop) = bus(Mode::Internal, None).await;
    let mut client = Client::connect("app", address).await;
    client.subscribe("$hw/events/#", QoS::AtLeastOnce).await;
    client.publish(TWIN, QoS::AtLeastOnce, false, "{}").await;
    assert_eq!(outside.device_messages.recv().await, Some(message(TWIN, "{}")));
    client.publish("default/user/x", QoS::AtMostOnce, false, "hi").await;
    assert_eq!(outside.uploads.recv().await, Some(upload(message("default/user/x", "hi"))));
    assert_eq!(client.received_text().await.0, TWIN);
    let result = format!("{TWIN}/result");
    outside.publishes.send(message(&result, "done")).unwrap();
    assert_eq!(client.received_text().await, (result, "done".to_owned()));
}

#[tokio::test]
async fn nobody_speaks_for_the_cloud() {
    let (mut outside, address, _stop) = bus(Mode::Internal, None).await;
    let mut client = Client::connect("app", address).await;
    client.subscribe("$hw/#", QoS::AtLeastOnce).await;
    let forbidden = "$hw/events/device/default/sensor-1/twin/cloud_updated";
    client.publish(forbidden, QoS::AtLeastOnce, true, "{}").await;
    client.publish(TWIN, QoS::AtLeastOnce, false, "{}").await;
    assert_eq!(outside.device_messages.recv().await, Some(message(TWIN, "{}")));
    assert_eq!(client.received_text().await.0, TWIN);
}

#[tokio::test]
async fn an_acknowledgement_waits_until_the_part_has_taken_the_message() {
    let (publishes_tx, publishes) = pipe::events("publishes", 1);
    let (device_messages, _device_messages_rx) = pipe::events("device_messages", 1);
    let (uploads, mut uploads_rx) = pipe::events("uploads", 1);
    let outbox = Outbox { device_messages, uploads };
    let (address, _stop) = bus_on(Mode::Internal, None, Inbox { publishes }, outbox).await;
    let mut client = Client::connect("app", address).await;
    for number in 0..50 {
        client.publish("a/user/b", QoS::AtLeastOnce, false, &number.to_string()).await;
    }
    let mut acknowledged = 0;
    for number in 0..50 {
        sleep(Duration::from_millis(10)).await;
        acknowledged += client.acknowledged();
        // What was received, and the one that fits in the pipe.
        assert!(acknowledged <= number + 1, "{acknowledged} acknowledged, {number} received");
        let expected = upload(message("a/user/b", &number.to_string()));
        assert_eq!(soon("an upload", uploads_rx.recv()).await, Some(expected));
    }
    soon("all acknowledgements", async {
        while acknowledged < 50 {
            acknowledged += client.acknowledged();
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(publishes_tx);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let (taken, address) = listener().await;
    let (inbox, outbox, _outside) = eventbus::pipes();
    let mut config = Config { mode: Mode::Internal, ..Config::default() };
    config.internal.listen = address;
    let error = EventBus::new(config, inbox, outbox).run(CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    drop(taken);
}

// ------------------------------------------------------------------------------------ the bus beside a real broker

#[tokio::test]
async fn a_real_broker_carries_messages_both_ways() {
    let mosquitto = Mosquitto::start().await;
    let (mut outside, _address, _stop) = bus(Mode::External, Some(mosquitto.address)).await;
    let mut client = Client::connect("app", mosquitto.address).await;
    publish_until_taken(&client, TWIN, &mut outside.device_messages).await;
    let large = "x".repeat(900 << 10);
    client.publish("a/user/b", QoS::AtLeastOnce, false, &large).await;
    let received = soon("an upload", outside.uploads.recv()).await;
    assert_eq!(received, Some(upload(message("a/user/b", &large))));
    client.subscribe("results/#", QoS::AtLeastOnce).await;
    for number in 0..100 {
        outside.publishes.send(message("results/r", &number.to_string())).unwrap();
    }
    outside.publishes.send(message("results/r", &large)).unwrap();
    for number in 0..100 {
        assert_eq!(client.received_text().await.1, number.to_string());
    }
    assert_eq!(client.received_text().await.1.len(), large.len());
}

#[tokio::test]
async fn a_real_broker_that_restarts_is_found_again_in_both_directions() {
    let mut mosquitto = Mosquitto::start().await;
    let (mut outside, _address, _stop) = bus(Mode::External, Some(mosquitto.address)).await;
    let client = Client::connect("app", mosquitto.address).await;
    publish_until_taken(&client, TWIN, &mut outside.device_messages).await;
    mosquitto.stop().await;
    sleep(Duration::from_millis(100)).await;
    mosquitto.start_again().await;
    let mut client = Client::connect("app", mosquitto.address).await;
    client.subscribe("results/#", QoS::AtLeastOnce).await;
    publish_until_taken(&client, TWIN, &mut outside.device_messages).await;
    outside.publishes.send(message("results/r", "x")).unwrap();
    while client.received_text().await.1 != "x" {}
}

#[tokio::test]
async fn what_the_parts_say_while_the_external_broker_is_away_arrives_later_in_order() {
    // A broker that keeps the application's session over its restart shows every message, and any loss.
    let external = Broker::new(broker::Config::default());
    let (first, address) = listener().await;
    let stop = CancellationToken::new();
    let (running, stopped) = (external.clone(), stop.clone());
    let run = tokio::spawn(async move { running.run(first, stopped).await });
    let mut options = MqttOptions::new("app", "127.0.0.1", address.port());
    options.set_clean_session(false);
    let mut client = Client::connect_with(options.clone()).await;
    client.subscribe("results/#", QoS::AtLeastOnce).await;
    let (outside, _address, _stop) = bus(Mode::External, Some(address)).await;
    until("the bus at the broker", || external.stats().clients == 2).await;
    outside.publishes.send(message("results/r", "0")).unwrap();
    assert_eq!(client.received_text().await.1, "0");
    stop.cancel();
    run.await.unwrap();
    for number in 1..60 {
        outside.publishes.send(message("results/r", &number.to_string())).unwrap();
    }
    let again = TcpListener::bind(address).await.unwrap();
    let running = external.clone();
    let run = tokio::spawn(async move { running.run(again, CancellationToken::new()).await });
    let mut client = Client::connect_with(options).await;
    // The first may come once more: its acknowledgement may have been lost with the connection.
    let mut next = client.received_text().await.1;
    if next == "0" {
        next = client.received_text().await.1;
    }
    for number in 1..60 {
        assert_eq!(next, number.to_string());
        if number < 59 {
            next = client.received_text().await.1;
        }
    }
    run.abort();
}

#[tokio::test]
async fn a_full_pipe_holds_a_real_broker_back_and_nothing_is_lost() {
    let mosquitto = Mosquitto::start().await;
    let (_publishes_tx, publishes) = pipe::events("publishes", 1);
    let (device_messages, mut device_messages_rx) = pipe::events("device_messages", 1);
    let (uploads, mut uploads_rx) = pipe::events("uploads", 1);
    let outbox = Outbox { device_messages, uploads };
    let inbox = Inbox { publishes };
    let (_address, _stop) = bus_on(Mode::External, Some(mosquitto.address), inbox, outbox).await;
    let client = Client::connect("app", mosquitto.address).await;
    publish_until_taken(&client, TWIN, &mut device_messages_rx).await;
    for number in 0..60 {
        client.publish("a/user/b", QoS::AtLeastOnce, false, &number.to_string()).await;
    }
    for number in 0..60 {
        sleep(Duration::from_millis(5)).await;
        let expected = upload(message("a/user/b", &number.to_string()));
        assert_eq!(soon("an upload", uploads_rx.recv()).await, Some(expected));
    }
}

#[tokio::test]
async fn with_both_brokers_parts_hear_both_and_are_heard_by_both() {
    let mosquitto = Mosquitto::start().await;
    let (mut outside, address, _stop) = bus(Mode::Both, Some(mosquitto.address)).await;
    let mut beside = Client::connect("app", mosquitto.address).await;
    let mut inside = Client::connect("app", address).await;
    publish_until_taken(&beside, TWIN, &mut outside.device_messages).await;
    inside.publish(TWIN, QoS::AtLeastOnce, false, "inside").await;
    let heard = soon("a message", outside.device_messages.recv()).await;
    assert_eq!(heard, Some(message(TWIN, "inside")));
    for client in [&mut beside, &mut inside] {
        client.subscribe("results/#", QoS::AtLeastOnce).await;
    }
    outside.publishes.send(message("results/r", "x")).unwrap();
    for client in [&mut beside, &mut inside] {
        assert_eq!(client.received_text().await, ("results/r".to_owned(), "x".to_owned()));
    }
}

#[tokio::test]
async fn an_external_broker_that_is_not_there_stops_nothing() {
    let (free, nowhere) = listener().await;
    drop(free);
    let (mut outside, address, _stop) = bus(Mode::Both, Some(nowhere)).await;
    let client = Client::connect("app", address).await;
    client.publish(TWIN, QoS::AtLeastOnce, false, "{}").await;
    assert_eq!(soon("a message", outside.device_messages.recv()).await, Some(message(TWIN, "{}")));
}
