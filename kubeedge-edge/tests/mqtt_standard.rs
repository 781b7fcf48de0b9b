//! The embedded broker against the normative statements of MQTT 3.1.1, by the bytes on the socket.
//!
//! Each test names the statements that it checks, as the standard numbers them. A second implementation's client says
//! the same in its own words, see `mqtt/paho_client.py`; it needs the Debian package `python3-paho-mqtt`.
#![cfg(feature = "eventbus")]
#![expect(clippy::unwrap_used, reason = "what a test stands on may panic")]

use std::{net::SocketAddr, process::Stdio, time::Duration};

use kubeedge_edge::eventbus::broker::{Access, Broker, Config, Rights, User};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Long enough for a slow machine; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

async fn start(config: Config) -> (Broker, SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let broker = Broker::new(config);
    let stop = CancellationToken::new();
    let (running, stopped) = (broker.clone(), stop.clone());
    tokio::spawn(async move { running.run(listener, stopped).await });
    (broker, address, stop.drop_guard())
}

/// A client that says and hears bytes.
struct Raw(TcpStream);

impl Raw {
    async fn open(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Connects, and checks CONNACK; `present` is its session-present flag.
    async fn connect(address: SocketAddr, name: &str, clean: bool, present: bool) -> Self {
        let mut raw = Self::open(address).await;
        raw.say(&connect(name, if clean { 0x02 } else { 0 }, &[])).await;
        raw.hears(&[0x20, 2, present.into(), 0]).await;
        raw
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn hears(&mut self, expected: &[u8]) {
        let mut heard = vec![0; expected.len()];
        let read = timeout(PATIENCE, self.0.read_exact(&mut heard)).await;
        read.unwrap_or_else(|_| panic!("nothing comes, not {expected:02x?}")).unwrap();
        assert_eq!(heard, expected, "{heard:02x?} instead of {expected:02x?}");
    }

    /// The broker answers a ping, and has sent nothing before.
    async fn hears_nothing(&mut self) {
        self.say(&[0xc0, 0]).await;
        self.hears(&[0xd0, 0]).await;
    }

    /// The broker ends the connection, and says nothing more.
    async fn ends(mut self) {
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection goes on");
        assert!(rest.is_empty(), "{rest:02x?}");
    }

    async fn subscribe(&mut self, filter: &str, qos: u8) {
        self.say(&subscribe(filter, qos)).await;
        self.hears(&[0x90, 3, 0, 1, qos.min(1)]).await;
    }
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first, u8::try_from(body.len()).unwrap()], body].concat()
}

fn connect(name: &str, flags: u8, rest: &[u8]) -> Vec<u8> {
    let head = [text("MQTT"), vec![4, flags, 0, 60], text(name)].concat();
    packet(0x10, &[&head, rest].concat())
}

fn publish(flags: u8, topic: &str, id: &[u8], payload: &str) -> Vec<u8> {
    packet(0x30 | flags, &[&text(topic), id, payload.as_bytes()].concat())
}

fn subscribe(filter: &str, qos: u8) -> Vec<u8> {
    packet(0x82, &[&[0, 1], &text(filter)[..], &[qos]].concat())
}

#[tokio::test]
async fn what_breaks_the_standard_ends_its_connection() {
    let (broker, address, _stop) = start(Config::default()).await;
    let long = [0x30, 0xff, 0xff, 0xff, 0x7f];
    let cases: &[(&str, &[u8])] = &[
        ("1.5.3-1", &packet(0x30, b"\0\x02\xc3\x28x")),
        ("1.5.3-1 (surrogates)", &packet(0x30, b"\0\x03\xed\xa0\x80x")),
        ("1.5.3-2", &publish(0, "a\0b", &[], "x")),
        ("2.2.2-2 (PINGREQ)", &[0xc1, 0]),
        ("2.2.2-2 (DISCONNECT)", &[0xe1, 0]),
        ("2.2.2-2 (PUBACK)", &[0x41, 2, 0, 1]),
        ("2.2.3 (five bytes of length)", &[0x30, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ("2.3.1-1 (PUBLISH)", &publish(2, "a", &[0, 0], "x")),
        ("2.3.1-1 (SUBSCRIBE)", &packet(0x82, &[&[0, 0], &text("a")[..], &[0]].concat())),
        ("3.1.0-2", &connect("again", 2, &[])),
        ("3.3.1-2", &publish(8, "a", &[], "x")),
        ("3.3.1-4", &publish(6, "a", &[0, 1], "x")),
        ("3.3.2-2 (+)", &publish(0, "a/+", &[], "x")),
        ("3.3.2-2 (#)", &publish(0, "#", &[], "x")),
        ("4.7.3-1", &publish(0, "", &[], "x")),
        ("3.6.1-1", &[0x60, 2, 0, 1]),
        ("3.8.1-1", &packet(0x80, &[&[0, 1], &text("a")[..], &[0]].concat())),
        ("3.8.3-3", &packet(0x82, &[0, 1])),
        ("3.8.3-4 (QoS 3)", &subscribe("a", 3)),
        ("3.8.3-4 (reserved bits)", &subscribe("a", 0x81)),
        ("3.10.1-1", &packet(0xa0, &[&[0, 1], &text("a")[..]].concat())),
        ("3.10.3-2", &packet(0xa2, &[0, 1])),
        ("packets that only servers send", &[0x20, 2, 0, 0]),
        ("PUBREC without a message", &[0x50, 2, 0, 1]),
        ("type 0", &[0, 0]),
        ("type 15", &[0xf0, 0]),
        ("a length beyond the limit", &long),
        ("a packet shorter than it says", &packet(0x30, b"\0\x09a")),
    ];
    let mut witness = Raw::connect(address, "witness", true, false).await;
    for (number, (statement, bytes)) in cases.iter().enumerate() {
        let mut raw = Raw::connect(address, &format!("c{number}"), true, false).await;
        raw.say(bytes).await;
        let ended = timeout(PATIENCE, raw.ends()).await;
        assert!(ended.is_ok(), "{statement}: the connection goes on");
    }
    // Everybody else goes on.
    witness.hears_nothing().await;
    assert_eq!(broker.stats().sessions, 1);
}

#[tokio::test]
async fn a_connection_begins_with_a_valid_connect() {
    let (_broker, address, _stop) = start(Config::default()).await;
    let protocol = |name: &str, level: u8, flags: u8| {
        packet(0x10, &[text(name), vec![level, flags, 0, 60], text("c")].concat())
    };
    let ended: [(&str, Vec<u8>); 8] = [
        ("3.1.0-1", publish(0, "a", &[], "x")),
        ("3.1.0-1 (PINGREQ)", vec![0xc0, 0]),
        ("3.1.2-1", protocol("MQTTX", 4, 2)),
        ("3.1.2-3", protocol("MQTT", 4, 3)),
        ("3.1.2-14 (will QoS 3)", connect("c", 0x1e, &[text("t"), text("m")].concat())),
        ("3.1.2-13 (will QoS without a will)", protocol("MQTT", 4, 0x0a)),
        ("3.1.2-15 (will retain without a will)", protocol("MQTT", 4, 0x22)),
        ("3.1.2-22", connect("c", 0x42, &text("password"))),
    ];
    for (statement, bytes) in ended {
        let mut raw = Raw::open(address).await;
        raw.say(&bytes).await;
        assert!(timeout(PATIENCE, raw.ends()).await.is_ok(), "{statement}");
    }
    // 3.1.2-2: another version is told so, also one whose CONNECT looks different from then on.
    for (name, level, rest) in [("MQIsdp", 3, &[][..]), ("MQTT", 5, &[0x00, 0x11, 0x22][..])] {
        let mut raw = Raw::open(address).await;
        raw.say(&packet(0x10, &[&text(name)[..], &[level, 2, 0, 60], rest].concat())).await;
        raw.hears(&[0x20, 2, 0, 1]).await;
        raw.ends().await;
    }
    // 3.1.3-7, 3.1.3-8: no name is for clean sessions only.
    let mut raw = Raw::open(address).await;
    raw.say(&connect("", 0, &[])).await;
    raw.hears(&[0x20, 2, 0, 2]).await;
    raw.ends().await;
    let mut one = Raw::connect(address, "", true, false).await;
    let mut other = Raw::connect(address, "", true, false).await;
    one.hears_nothing().await;
    other.hears_nothing().await;
}

#[tokio::test]
async fn credentials_are_answered_with_their_codes() {
    let user = User { name: "ann".into(), password: secret("right"), rights: Rights::all() };
    let access = Access { users: vec![user], anonymous: None, anonymous_remote: None };
    let (_broker, address, _stop) = start(Config { access, ..Config::default() }).await;
    for (flags, rest, code) in [
        (0x02, Vec::new(), 5),
        (0x82, text("ann"), 4),
        (0xc2, [text("ann"), text("wrong")].concat(), 4),
        (0xc2, [text("ann"), text("right")].concat(), 0),
    ] {
        let mut raw = Raw::open(address).await;
        raw.say(&connect("c", flags, &rest)).await;
        raw.hears(&[0x20, 2, 0, code]).await;
        if code > 0 {
            // 3.2.2-5
            raw.ends().await;
        }
    }
}

fn secret(text: &str) -> kubeedge_edge::eventbus::Secret {
    kubeedge_edge::eventbus::Secret::new(text)
}

#[tokio::test]
async fn a_session_is_kept_or_begun_anew_as_its_client_says() {
    let (_broker, address, _stop) = start(Config::default()).await;
    // 3.1.2-6, 3.2.2-1: a clean session leaves nothing.
    let mut raw = Raw::connect(address, "c", true, false).await;
    raw.subscribe("t", 1).await;
    drop(raw);
    sleep(Duration::from_millis(50)).await;
    let mut raw = Raw::connect(address, "c", false, false).await;
    raw.subscribe("t", 1).await;
    // 3.1.4-2: a second connection under the name ends the first.
    let mut second = Raw::connect(address, "c", false, true).await;
    raw.ends().await;
    let mut writer = Raw::connect(address, "w", true, false).await;
    writer.say(&publish(2, "t", &[0, 9], "1")).await;
    writer.hears(&[0x40, 2, 0, 9]).await;
    second.hears(&publish(2, "t", &[0, 1], "1")).await;
    drop(second);
    sleep(Duration::from_millis(50)).await;
    // 3.1.2-5: what comes meanwhile waits; 4.4.0-1: what was not acknowledged comes again, 3.3.1-1: and says so.
    writer.say(&publish(2, "t", &[0, 10], "2")).await;
    writer.hears(&[0x40, 2, 0, 10]).await;
    let mut third = Raw::connect(address, "c", false, true).await;
    third.hears(&publish(10, "t", &[0, 1], "1")).await;
    third.hears(&publish(2, "t", &[0, 2], "2")).await;
    third.say(&[0x40, 2, 0, 1, 0x40, 2, 0, 2]).await;
    third.hears_nothing().await;
    drop(third);
    sleep(Duration::from_millis(50)).await;
    // 3.1.2-6: a clean session throws the kept one away.
    drop(Raw::connect(address, "c", true, false).await);
    sleep(Duration::from_millis(50)).await;
    Raw::connect(address, "c", false, false).await.hears_nothing().await;
}

#[tokio::test]
async fn a_will_is_published_unless_the_client_takes_leave() {
    let (_broker, address, _stop) = start(Config::default()).await;
    let mut reader = Raw::connect(address, "reader", true, false).await;
    reader.subscribe("will", 1).await;
    let will = [text("will"), text("gone")].concat();
    let mortal = async || {
        let mut raw = Raw::open(address).await;
        raw.say(&connect("mortal", 0x2e, &will)).await;
        raw.hears(&[0x20, 2, 0, 0]).await;
        raw
    };
    // 3.1.2-10, 3.14.4-3
    let mut raw = mortal().await;
    raw.say(&[0xe0, 0]).await;
    raw.ends().await;
    reader.hears_nothing().await;
    // 3.1.2-8
    drop(mortal().await);
    reader.hears(&publish(2, "will", &[0, 1], "gone")).await;
    reader.say(&[0x40, 2, 0, 1]).await;
    // 3.1.2-17: it asked to be retained.
    let mut late = Raw::connect(address, "late", true, false).await;
    late.subscribe("will", 0).await;
    late.hears(&publish(1, "will", &[], "gone")).await;
}

#[tokio::test]
async fn messages_are_retained_as_their_flag_says() {
    let (_broker, address, _stop) = start(Config::default()).await;
    let mut raw = Raw::connect(address, "c", true, false).await;
    raw.subscribe("a/#", 0).await;
    // 3.3.1-5, 3.3.1-9: kept, and passed on without the flag to who has subscribed already.
    raw.say(&publish(1, "a/b", &[], "1")).await;
    raw.hears(&publish(0, "a/b", &[], "1")).await;
    // 3.3.1-12: one without the flag replaces nothing.
    raw.say(&publish(0, "a/b", &[], "2")).await;
    raw.hears(&publish(0, "a/b", &[], "2")).await;
    // 3.3.1-6, 3.3.1-8, 3.8.4-3: a subscription, also a repeated one, brings what is kept, with the flag.
    raw.subscribe("a/#", 0).await;
    raw.hears(&publish(1, "a/b", &[], "1")).await;
    // 3.3.1-10, 3.3.1-11: an empty one removes it, and is not kept itself.
    raw.say(&publish(1, "a/b", &[], "")).await;
    raw.hears(&publish(0, "a/b", &[], "")).await;
    raw.subscribe("a/#", 0).await;
    raw.hears_nothing().await;
}

#[tokio::test]
async fn subscriptions_are_granted_matched_and_ended() {
    let (_broker, address, _stop) = start(Config::default()).await;
    let mut raw = Raw::connect(address, "c", true, false).await;
    // 3.8.4-1 to 3.8.4-6: one answer, one code per filter in order, the QoS at most what was asked for.
    let filters =
        [&text("a/+")[..], &[2], &text("b/#"), &[1], &text("c"), &[0], &text("d/#/e"), &[0]].concat();
    raw.say(&packet(0x82, &[&[0x12, 0x34], &filters[..]].concat())).await;
    raw.hears(&[0x90, 6, 0x12, 0x34, 1, 1, 0, 0x80]).await;
    // 3.3.5-1: with the lower of the two QoS; 4.7.1-2, 4.7.1-3: wildcards as the standard has them.
    for (topic, arrives) in [
        ("a/b", true),
        ("a/b/c", false),
        ("a", false),
        ("b", true),
        ("b/c/d", true),
        ("C", false),
        ("c", true),
    ] {
        raw.say(&publish(0, topic, &[], "x")).await;
        if arrives {
            raw.hears(&publish(0, topic, &[], "x")).await;
        }
    }
    raw.hears_nothing().await;
    // 4.7.2-1: a wildcard at the beginning leaves out topics that begin with $.
    raw.subscribe("#", 0).await;
    raw.say(&publish(0, "$hw/x", &[], "x")).await;
    raw.hears_nothing().await;
    // 3.10.4-4, 3.10.4-5: the answer comes also for what was not subscribed to.
    raw.say(&packet(0xa2, &[&[0, 7], &text("#")[..], &text("nothing")].concat())).await;
    raw.hears(&[0xb0, 2, 0, 7]).await;
    // 3.10.4-1, 3.10.4-2
    raw.say(&packet(0xa2, &[&[0, 8], &text("c")[..]].concat())).await;
    raw.hears(&[0xb0, 2, 0, 8]).await;
    raw.say(&publish(0, "c", &[], "x")).await;
    raw.hears_nothing().await;
}

#[tokio::test]
async fn acknowledgements_come_in_order_and_a_message_of_qos_2_arrives_once() {
    let (_broker, address, _stop) = start(Config::default()).await;
    let mut reader = Raw::connect(address, "reader", true, false).await;
    reader.subscribe("t", 2).await;
    let mut writer = Raw::connect(address, "writer", false, false).await;
    // 4.6.0-2, 3.3.4-1: PUBACK for QoS 1 and PUBREC for QoS 2, in the order of the messages.
    let three = [publish(2, "t", &[0, 1], "1"), publish(4, "t", &[0, 2], "2"), publish(2, "t", &[0, 3], "3")]
        .concat();
    writer.say(&three).await;
    writer.hears(&[0x40, 2, 0, 1, 0x50, 2, 0, 2, 0x40, 2, 0, 3]).await;
    for (id, payload) in [(1, "1"), (2, "2"), (3, "3")] {
        // 4.6.0-5: and in that order to the reader.
        reader.hears(&publish(2, "t", &[0, id], payload)).await;
        reader.say(&[0x40, 2, 0, id]).await;
    }
    // 4.3.3-2: until PUBREL the message under this identifier is not passed on again, over a new connection either.
    writer.say(&publish(12, "t", &[0, 2], "2")).await;
    writer.hears(&[0x50, 2, 0, 2]).await;
    drop(writer);
    sleep(Duration::from_millis(50)).await;
    let mut writer = Raw::connect(address, "writer", false, true).await;
    writer.say(&publish(12, "t", &[0, 2], "2")).await;
    writer.hears(&[0x50, 2, 0, 2]).await;
    writer.say(&[0x62, 2, 0, 2, 0x62, 2, 0, 2]).await;
    writer.hears(&[0x70, 2, 0, 2, 0x70, 2, 0, 2]).await;
    reader.hears_nothing().await;
    // From then on it is another message.
    writer.say(&publish(4, "t", &[0, 2], "new")).await;
    writer.hears(&[0x50, 2, 0, 2]).await;
    reader.hears(&publish(2, "t", &[0, 4], "new")).await;
}

#[tokio::test]
async fn a_client_keeps_its_word_about_its_signs_of_life() {
    let (_broker, address, _stop) = start(Config::default()).await;
    let alive =
        |name: &str, seconds: u8| packet(0x10, &[text("MQTT"), vec![4, 2, 0, seconds], text(name)].concat());
    // 3.1.2-24: one and a half times the keep-alive without a packet.
    let mut silent = Raw::open(address).await;
    silent.say(&alive("silent", 1)).await;
    silent.hears(&[0x20, 2, 0, 0]).await;
    let mut pinging = Raw::open(address).await;
    pinging.say(&alive("pinging", 1)).await;
    pinging.hears(&[0x20, 2, 0, 0]).await;
    let begun = std::time::Instant::now();
    let ended = tokio::spawn(silent.ends());
    // 3.12.4-1
    while begun.elapsed() < Duration::from_millis(2500) {
        pinging.hears_nothing().await;
        sleep(Duration::from_millis(250)).await;
    }
    ended.await.unwrap();
    assert!(begun.elapsed() > Duration::from_millis(1400));
    pinging.hears_nothing().await;
}

#[tokio::test]
async fn an_independent_client_finds_nothing_wrong() {
    let (_broker, address, _stop) = start(Config::default()).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mqtt/paho_client.py");
    let client = Command::new("/usr/bin/python3")
        .args([script, "127.0.0.1", &address.port().to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(60), client).await.expect("the client ends").unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.trim_end().ends_with("10 checks passed"), "{out}{err}");
}
