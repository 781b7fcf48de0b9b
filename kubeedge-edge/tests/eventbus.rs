//! EventBus with real MQTT on both sides: another implementation's client and broker.
//!
//! Needs the Debian packages `mosquitto` and `mosquitto-clients`.
#![cfg(feature = "eventbus")]
#![expect(clippy::unwrap_used, reason = "what a test stands on may panic")]

use std::{net::SocketAddr, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use bytes::Bytes;
use kubeedge_core::{
    message::{Publish, Response, Upload, UploadedPublish},
    pipe::{self, EventReceiver},
    store::memory::MemoryStore,
};
use kubeedge_edge::eventbus::{
    self, Config, EventBus, External, Inbox, Mode, Outbox, Outside, Secret, TlsFiles,
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

/// The message of the next upload.
async fn uploaded(uploads: &mut EventReceiver<Upload>) -> Publish {
    match soon("an upload", uploads.recv()).await {
        Some(Upload::Publish(UploadedPublish { publish, .. })) => publish,
        other => panic!("{other:?}"),
    }
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
    let (address, stop) = bus_with(mode, external, MemoryStore::new(), inbox, outbox).await;
    (outside, address, stop)
}

async fn bus_with(
    mode: Mode,
    external: Option<SocketAddr>,
    store: MemoryStore,
    inbox: Inbox,
    outbox: Outbox,
) -> (SocketAddr, DropGuard) {
    let (listener, address) = listener().await;
    let port = external.map_or(1, |address| address.port());
    let external = External { port, ..External::default() };
    let config = Config { mode, external, ..Config::default() };
    let stop = CancellationToken::new();
    let bus = EventBus::new(config, Arc::new(store), inbox, outbox).with_listener(listener);
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
        let config = format!("listener {} 127.0.0.1\nallow_anonymous true\n", address.port());
        std::fs::write(folder.path().join("mosquitto.conf"), config).unwrap();
        let child = Self::spawn(&folder, address).await;
        Self { folder, address, child }
    }

    /// A broker with a certificate of an authority of its own, which asks for the password of `edge`.
    async fn start_with_tls() -> Self {
        let (free, address) = listener().await;
        drop(free);
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let (issuer, ca) = authority("ours");
        let key = rcgen::KeyPair::generate().unwrap();
        let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let server = server.signed_by(&key, &issuer).unwrap();
        std::fs::write(file("ca.crt"), ca).unwrap();
        std::fs::write(file("server.crt"), server.pem()).unwrap();
        std::fs::write(file("server.key"), key.serialize_pem()).unwrap();
        let mut passwords = Command::new(program("mosquitto_passwd"));
        passwords.arg("-c").arg("-b").arg(file("passwords")).args(["edge", "secret"]);
        assert!(passwords.status().await.unwrap().success());
        // Started by root, the broker would otherwise become a user who cannot read the folder.
        let mut config = format!("user root\nlistener {} 127.0.0.1\nallow_anonymous false\n", address.port());
        for (option, name) in [
            ("certfile", "server.crt"),
            ("keyfile", "server.key"),
            ("cafile", "ca.crt"),
            ("password_file", "passwords"),
        ] {
            config += &format!("{option} {}\n", file(name).display());
        }
        std::fs::write(file("mosquitto.conf"), config).unwrap();
        let child = Self::spawn(&folder, address).await;
        Self { folder, address, child }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn spawn(folder: &tempfile::TempDir, address: SocketAddr) -> Child {
        let config = folder.path().join("mosquitto.conf");
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

/// A certificate authority, and its certificate in PEM.
fn authority(name: &str) -> (rcgen::Issuer<'static, rcgen::KeyPair>, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    (rcgen::Issuer::new(params, key), pem)
}

/// Publishes until the bus has subscribed at the broker and its part has the message.
async fn publish_until_taken(client: &Client, topic: &str, messages: &mut EventReceiver<Publish>) {
    soon("the bus hearing a message", async {
        loop {
            client.publish(topic, QoS::AtLeastOnce, false, "are you there").await;
            if timeout(Duration::from_millis(200), messages.recv()).await.is_ok() {
                messages.settle();
                return;
            }
        }
    })
    .await;
    sleep(Duration::from_millis(300)).await;
    while messages.try_recv().is_some() {}
    messages.settle();
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
    let certain = [&connect[..], b"\x36\x05\x00\x01a\x00\x01"].concat();
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
    assert_eq!(uploaded(&mut outside.uploads).await, message("default/user/x", "hi"));
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
async fn an_acknowledgement_waits_until_the_part_has_made_the_message_safe() {
    let (mut outside, address, _stop) = bus(Mode::Internal, None).await;
    let mut client = Client::connect("app", address).await;
    for number in 0..50 {
        client.publish(TWIN, QoS::AtLeastOnce, false, &number.to_string()).await;
    }
    let mut acknowledged = 0;
    for number in 0..50 {
        let received = soon("a message", outside.device_messages.recv()).await;
        assert_eq!(received, Some(message(TWIN, &number.to_string())));
        sleep(Duration::from_millis(2)).await;
        acknowledged += client.acknowledged();
        assert_eq!(acknowledged, number, "acknowledged before it was settled");
        outside.device_messages.settle();
        while acknowledged <= number {
            acknowledged += client.acknowledged();
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn what_a_part_lost_is_not_acknowledged_and_the_client_learns_it() {
    let (outside, address, _stop) = bus(Mode::Internal, None).await;
    let mut client = Client::connect("app", address).await;
    client.publish(TWIN, QoS::AtLeastOnce, false, "{}").await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(client.acknowledged(), 0);
    drop(outside);
    // The connection ends, so that the client sends it again.
    soon("the connection's end", async { while client.packets.recv().await.is_some() {} }).await;
}

#[tokio::test]
async fn an_acknowledged_upload_survives_the_power_and_goes_up_once_the_cloud_is_there() {
    let store = MemoryStore::new();
    let (inbox, outbox, mut outside) = eventbus::pipes();
    let (address, stop) = bus_with(Mode::Internal, None, store.clone(), inbox, outbox).await;
    let mut client = Client::connect("app", address).await;
    // More than the pipe to the link holds: nobody reads it.
    for number in 0..600 {
        client.publish("default/t", QoS::AtLeastOnce, false, &number.to_string()).await;
    }
    let mut acknowledged = 0;
    until("all acknowledgements", || {
        acknowledged += client.acknowledged();
        acknowledged == 600
    })
    .await;
    for number in 0..10 {
        assert_eq!(uploaded(&mut outside.uploads).await.payload, number.to_string());
    }
    let store = store.cut_power();
    drop(stop);
    let (inbox, outbox, mut outside) = eventbus::pipes();
    let (_address, _stop) = bus_with(Mode::Internal, None, store, inbox, outbox).await;
    for number in 0..600 {
        let upload = soon("an upload", outside.uploads.recv()).await;
        let Some(Upload::Publish(UploadedPublish { id, publish })) = upload else { panic!("{upload:?}") };
        assert_eq!(publish.payload, number.to_string());
        outside.uploaded.send(id).unwrap();
    }
}

#[tokio::test]
async fn a_full_store_of_uploads_holds_certain_messages_back_and_counts_the_others() {
    let (inbox, outbox, outside) = eventbus::pipes();
    let mut config = Config { mode: Mode::Internal, ..Config::default() };
    config.uploads.count_max = 3;
    let (listener, address) = listener().await;
    let bus = EventBus::new(config, Arc::new(MemoryStore::new()), inbox, outbox).with_listener(listener);
    let backlog = bus.backlog();
    let stop = CancellationToken::new();
    tokio::spawn(bus.run(stop.clone()));
    let _stop = stop.drop_guard();
    let mut client = Client::connect("app", address).await;
    for number in 0..5 {
        client.publish("default/t", QoS::AtLeastOnce, false, &number.to_string()).await;
    }
    let mut acknowledged = 0;
    until("what fits", || {
        acknowledged += client.acknowledged();
        acknowledged == 3
    })
    .await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(client.acknowledged(), 0);
    assert_eq!(backlog.borrow().messages, 3);
    let mut uploads = outside.uploads;
    for number in 0..5 {
        let upload = soon("an upload", uploads.recv()).await;
        let Some(Upload::Publish(UploadedPublish { id, publish })) = upload else { panic!("{upload:?}") };
        assert_eq!(publish.payload, number.to_string());
        outside.uploaded.send(id).unwrap();
    }
    until("the rest", || {
        acknowledged += client.acknowledged();
        acknowledged == 5
    })
    .await;
    assert!(backlog.borrow().refused > 0);
}

#[tokio::test]
async fn the_cloud_publishes_on_the_node() {
    let (outside, address, _stop) = bus(Mode::Internal, None).await;
    let mut client = Client::connect("app", address).await;
    client.subscribe("orders/#", QoS::AtLeastOnce).await;
    let publish = |topic: &str| outside.cloud_messages.call(message(topic, "go"), PATIENCE);
    assert_eq!(publish("orders/1").await.unwrap(), Response::Published);
    assert_eq!(client.received_text().await, ("orders/1".to_owned(), "go".to_owned()));
    let refused = publish("orders/#").await.unwrap();
    assert!(matches!(refused, Response::Failed { code: 400, .. }), "{refused:?}");
}

#[tokio::test]
async fn a_writer_goes_as_fast_as_its_reader_and_nothing_is_lost() {
    let (broker, address, _stop) = broker(broker::Config::default()).await;
    let mut reader = Client::connect("reader", address).await;
    reader.subscribe("t", QoS::AtLeastOnce).await;
    let writer = Client::connect("writer", address).await;
    let write = async {
        for number in 0..5000 {
            writer.publish("t", QoS::AtLeastOnce, false, &number.to_string()).await;
        }
    };
    let read = async {
        for number in 0..5000 {
            assert_eq!(reader.received_text().await.1, number.to_string());
        }
    };
    tokio::join!(write, read);
    assert_eq!(broker.stats().dropped, 0);
}

#[tokio::test]
async fn users_are_let_in_by_their_passwords_and_kept_to_their_topics() {
    let rights = broker::Rights { publish: vec!["a/#".into()], subscribe: vec!["a/#".into()] };
    let user = broker::User { name: "ann".into(), password: Secret::new("secret"), rights };
    let access = broker::Access { users: vec![user], anonymous: None, anonymous_remote: None };
    let (_broker, address, _stop) = broker(broker::Config { access, ..Default::default() }).await;
    for (user, password) in [(None, ""), (Some("ann"), "wrong"), (Some("bob"), "secret")] {
        let mut options = MqttOptions::new("app", "127.0.0.1", address.port());
        if let Some(user) = user {
            options.set_credentials(user, password);
        }
        let (_client, mut events) = AsyncClient::new(options, 10);
        let refused = soon("the refusal", events.poll()).await.unwrap_err();
        let code = if user.is_some() { "BadUserNamePassword" } else { "NotAuthorized" };
        assert!(format!("{refused:?}").contains(code), "{refused:?}");
    }
    let mut options = MqttOptions::new("app", "127.0.0.1", address.port());
    options.set_credentials("ann", "secret");
    let mut client = Client::connect_with(options).await;
    client.client.subscribe("#", QoS::AtLeastOnce).await.unwrap();
    loop {
        if let Packet::SubAck(answer) = client.next().await {
            assert_eq!(answer.return_codes, [rumqttc::SubscribeReasonCode::Failure]);
            break;
        }
    }
    client.subscribe("a/+", QoS::AtLeastOnce).await;
    client.publish("b", QoS::AtLeastOnce, false, "not allowed").await;
    client.publish("a/b", QoS::AtLeastOnce, false, "allowed").await;
    assert_eq!(client.received_text().await, ("a/b".to_owned(), "allowed".to_owned()));
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let (taken, address) = listener().await;
    let (inbox, outbox, _outside) = eventbus::pipes();
    let mut config = Config { mode: Mode::Internal, ..Config::default() };
    config.internal.listen = address;
    let error = EventBus::new(config, Arc::new(MemoryStore::new()), inbox, outbox)
        .run(CancellationToken::new())
        .await
        .unwrap_err();
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
    assert_eq!(uploaded(&mut outside.uploads).await, message("a/user/b", &large));
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
    let (inbox, mut outbox, mut outside) = eventbus::pipes();
    let (device_messages, device_messages_rx) = pipe::events("device_messages", 1);
    outbox.device_messages = device_messages;
    outside.device_messages = device_messages_rx;
    let (_address, _stop) =
        bus_with(Mode::External, Some(mosquitto.address), MemoryStore::new(), inbox, outbox).await;
    let client = Client::connect("app", mosquitto.address).await;
    publish_until_taken(&client, TWIN, &mut outside.device_messages).await;
    for number in 0..60 {
        client.publish(TWIN, QoS::AtLeastOnce, false, &number.to_string()).await;
    }
    for number in 0..60 {
        sleep(Duration::from_millis(5)).await;
        let received = soon("a message", outside.device_messages.recv()).await;
        assert_eq!(received, Some(message(TWIN, &number.to_string())));
        outside.device_messages.settle();
    }
}

#[tokio::test]
async fn what_a_real_broker_has_taken_is_not_lost_when_the_bus_restarts() {
    let mosquitto = Mosquitto::start().await;
    let store = MemoryStore::new();
    let client = Client::connect("app", mosquitto.address).await;
    let (inbox, outbox, mut outside) = eventbus::pipes();
    let (_, stop) = bus_with(Mode::External, Some(mosquitto.address), store.clone(), inbox, outbox).await;
    publish_until_taken(&client, TWIN, &mut outside.device_messages).await;
    // DeviceTwin does not come to its commit before the process ends.
    client.publish(TWIN, QoS::AtLeastOnce, false, "unsettled").await;
    assert_eq!(soon("a message", outside.device_messages.recv()).await, Some(message(TWIN, "unsettled")));
    let store = store.cut_power();
    drop((stop, outside));
    sleep(Duration::from_millis(200)).await;
    client.publish(TWIN, QoS::AtLeastOnce, false, "meanwhile").await;
    client.publish("default/t", QoS::AtLeastOnce, false, "up").await;
    sleep(Duration::from_millis(100)).await;
    let (inbox, outbox, mut outside) = eventbus::pipes();
    let (_, _stop) = bus_with(Mode::External, Some(mosquitto.address), store, inbox, outbox).await;
    for text in ["unsettled", "meanwhile"] {
        assert_eq!(soon("a message", outside.device_messages.recv()).await, Some(message(TWIN, text)));
        outside.device_messages.settle();
    }
    assert_eq!(uploaded(&mut outside.uploads).await, message("default/t", "up"));
}

#[tokio::test]
async fn a_real_broker_is_spoken_to_with_tls_a_user_name_and_a_password() {
    let mosquitto = Mosquitto::start_with_tls().await;
    let (inbox, outbox, mut outside) = eventbus::pipes();
    let tls = TlsFiles { ca: mosquitto.file("ca.crt"), identity: None };
    let mut config = Config { mode: Mode::External, ..Config::default() };
    config.external = External {
        host: "localhost".to_owned(),
        port: mosquitto.address.port(),
        username: Some("edge".to_owned()),
        password: Some(Secret::new("secret")),
        tls: Some(tls),
        ..External::default()
    };
    let stop = CancellationToken::new();
    let bus = EventBus::new(config, Arc::new(MemoryStore::new()), inbox, outbox);
    tokio::spawn(bus.run(stop.clone()));
    let _stop = stop.drop_guard();
    let publish = || {
        let mut command = Command::new(program("mosquitto_pub"));
        command.args(["-h", "localhost", "-p", &mosquitto.address.port().to_string(), "--cafile"]);
        command.arg(mosquitto.file("ca.crt")).args(["-u", "edge", "-P", "secret", "-q", "1"]);
        command.args(["-t", TWIN, "-m", "{}"]).kill_on_drop(true);
        command
    };
    soon("the message through TLS", async {
        loop {
            assert!(publish().status().await.unwrap().success());
            if let Ok(received) = timeout(Duration::from_millis(300), outside.device_messages.recv()).await {
                assert_eq!(received, Some(message(TWIN, "{}")));
                return;
            }
        }
    })
    .await;
    outside.device_messages.settle();
    let answer = outside.cloud_messages.call(message("orders/1", "go"), PATIENCE).await.unwrap();
    assert_eq!(answer, Response::Published);
}

#[tokio::test]
async fn a_broker_whose_certificate_is_of_another_authority_is_not_spoken_to() {
    let mosquitto = Mosquitto::start_with_tls().await;
    std::fs::write(mosquitto.file("other.crt"), authority("another").1).unwrap();
    let (inbox, outbox, outside) = eventbus::pipes();
    let mut config = Config { mode: Mode::External, ..Config::default() };
    config.external = External {
        host: "localhost".to_owned(),
        port: mosquitto.address.port(),
        username: Some("edge".to_owned()),
        password: Some(Secret::new("secret")),
        tls: Some(TlsFiles { ca: mosquitto.file("other.crt"), identity: None }),
        ..External::default()
    };
    let stop = CancellationToken::new();
    tokio::spawn(EventBus::new(config, Arc::new(MemoryStore::new()), inbox, outbox).run(stop.clone()));
    let _stop = stop.drop_guard();
    let answer = outside.cloud_messages.call(message("orders/1", "go"), Duration::from_secs(2)).await;
    assert!(answer.is_err(), "{answer:?}");
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
