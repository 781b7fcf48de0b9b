//! Devices and destinations of other implementations: a Modbus server, and an MQTT broker with a device behind it.
//!
//! Needs the Debian package `mosquitto`, and Python with pymodbus where `cargo xtask test` installs it.
#![cfg(all(feature = "mapper", feature = "keeper", feature = "modbus", feature = "mqtt"))]
#![expect(clippy::unwrap_used, reason = "what a test stands on may panic")]

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use kubeedge_core::{
    device::{
        DeviceAssignment, DeviceError, DeviceProtocol, DeviceSpec, MqttPush, PushMethod, ReadingContent,
        Sample, conformance,
    },
    id::DeviceId,
    pipe,
    store::redb::{RedbConfig, RedbStore},
};
use kubeedge_device::{
    keeper::{self, Keeper},
    mapper::{self, Mapper},
    protocols::{modbus::Modbus, mqtt::Mqtt},
};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Long enough for a slow machine; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// A port that was free a moment ago.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

async fn listening(port: u16) {
    soon("a server that listens", async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// The Python in which `cargo xtask test` has installed pymodbus.
fn python() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().to_owned();
    let python = target.join("real-parts/python/bin/python");
    assert!(python.exists(), "{} is missing: `cargo xtask test` installs it", python.display());
    python
}

async fn modbus_server(port: u16, framer: &str) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/modbus_server.py");
    let mut command = Command::new(python());
    command.arg(script).arg(port.to_string()).arg(framer).kill_on_drop(true);
    let server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    listening(port).await;
    server
}

/// mosquitto on a port of its own, which anybody may use.
async fn mosquitto(port: u16, folder: &tempfile::TempDir) -> Child {
    let file = folder.path().join(format!("{port}.conf"));
    std::fs::write(&file, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).unwrap();
    let mut command = Command::new("mosquitto");
    command.arg("-c").arg(file).kill_on_drop(true).stdout(Stdio::null()).stderr(Stdio::null());
    let broker = command.spawn().expect("mosquitto is installed");
    listening(port).await;
    broker
}

fn modbus_spec(name: &str, port: u16, slave: u8, mode: &str, limit: &str) -> DeviceSpec {
    let device = format!(
        r#"{{"metadata":{{"namespace":"default","name":"{name}"}},"spec":{{"protocol":{{"protocolName":"modbus",
            "configData":{{"ip":"127.0.0.1","port":{port},"slaveID":{slave},"mode":"{mode}","timeout":500}}}},"properties":[
            {{"name":"limit","collectCycle":50,"desired":{{"value":"{limit}"}}}},
            {{"name":"temperature","collectCycle":50}},{{"name":"precise"}},{{"name":"below"}},{{"name":"name"}},
            {{"name":"alarm"}},{{"name":"pump"}}]}}}}"#
    );
    let model = r#"{"spec":{"properties":[
        {"name":"limit","type":"INT","visitors":{"protocolName":"modbus","configData":{"register":"HoldingRegister","offset":0,"limit":1}}},
        {"name":"temperature","type":"FLOAT","accessMode":"ReadOnly","visitors":{"protocolName":"modbus",
            "configData":{"register":"InputRegister","offset":0,"limit":1,"scale":0.1}}},
        {"name":"below","type":"INT","accessMode":"ReadOnly","visitors":{"protocolName":"modbus",
            "configData":{"register":"InputRegister","offset":1,"dataType":"int16"}}},
        {"name":"precise","type":"FLOAT","accessMode":"ReadOnly","visitors":{"protocolName":"modbus",
            "configData":{"register":"InputRegister","offset":2,"limit":2}}},
        {"name":"name","type":"STRING","accessMode":"ReadOnly","visitors":{"protocolName":"modbus",
            "configData":{"register":"InputRegister","offset":4,"limit":3}}},
        {"name":"alarm","type":"BOOLEAN","accessMode":"ReadOnly","visitors":{"protocolName":"modbus",
            "configData":{"register":"DiscreteInputRegister","offset":2}}},
        {"name":"pump","type":"BOOLEAN","visitors":{"protocolName":"modbus","configData":{"register":"CoilRegister","offset":9}}}]}}"#;
    DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
}

#[tokio::test]
async fn modbus_keeps_the_contract_with_another_implementation_over_tcp_and_rtu() {
    for (mode, framer) in [("TCP", "socket"), ("RTU", "rtu")] {
        let port = free_port().await;
        let _server = modbus_server(port, framer).await;
        let spec = modbus_spec("m", port, 7, mode, "");
        let modbus = Modbus::default();
        conformance::run(&modbus, &spec, Some(("limit", "65535"))).await;
        conformance::run(&modbus, &spec, Some(("pump", "true"))).await;
        let mut handle = modbus.open(&spec).await.unwrap();
        for (property, value) in [
            ("temperature", "21.5"),
            ("below", "-2"),
            ("precise", "21.3"),
            ("name", "hello"),
            ("alarm", "true"),
        ] {
            assert_eq!(
                handle.read(spec.property(property).unwrap()).await.unwrap(),
                value,
                "{mode} {property}"
            );
        }
        let mut beyond = spec.property("limit").unwrap().clone();
        beyond.visitor.insert("offset".to_owned(), 5_000.into());
        let spec = DeviceSpec { properties: vec![beyond], ..spec };
        let mut other = modbus.open(&spec).await.unwrap();
        let read = other.read(&spec.properties[0]).await;
        assert!(
            matches!(&read, Err(DeviceError::Invalid(why)) if why.contains("no register of this offset")),
            "{read:?}"
        );
    }
}

struct Running {
    outside: mapper::Outside,
    /// The newest value of each property, and each device's connection under an empty name.
    seen: Arc<Mutex<BTreeMap<(String, String), String>>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), mapper::Error>>,
    _watch: JoinHandle<()>,
}

impl Running {
    fn start(protocol: impl DeviceProtocol) -> Self {
        let (inbox, outbox, mut outside) = mapper::pipes();
        let config = mapper::Config { retry_max: Duration::from_secs(1), ..mapper::Config::default() };
        let stop = CancellationToken::new();
        let task = tokio::spawn(Mapper::new(config, Arc::new(protocol), inbox, outbox).run(stop.clone()));
        let (_, nobody) = pipe::latest("readings", kubeedge_core::device::Reading::key);
        let mut readings = std::mem::replace(&mut outside.readings, nobody);
        let seen: Arc<Mutex<BTreeMap<_, _>>> = Arc::default();
        let known = seen.clone();
        let watch = tokio::spawn(async move {
            while let Some(reading) = readings.recv().await {
                let (property, value) = match reading.content {
                    ReadingContent::Property { property, value, .. } => (property, value),
                    ReadingContent::State(state) => (String::new(), state),
                };
                known.lock().unwrap().insert((reading.device.name().to_owned(), property), value);
            }
        });
        Self { outside, seen, stop, task, _watch: watch }
    }

    fn assign(&self, spec: DeviceSpec) {
        self.outside
            .assignments
            .send(DeviceAssignment { device: spec.device.clone(), spec: Some(spec) })
            .unwrap();
    }

    async fn until(&self, device: &str, property: &str, value: &str) {
        let key = (device.to_owned(), property.to_owned());
        soon(&format!("{device} {property:?} {value}"), async {
            while self.seen.lock().unwrap().get(&key).map(String::as_str) != Some(value) {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_of_rubbish_and_a_device_that_never_answers_hold_up_no_other() {
    let (good, gone) = (free_port().await, free_port().await);
    let _server = modbus_server(good, "socket").await;
    let rubbish = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ports = (rubbish.local_addr().unwrap().port(), silent.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = rubbish.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 260];
                while socket.read(&mut request).await.is_ok_and(|length| length > 0) {
                    let _ = socket.write_all(b"\x17\x03\x03 certainly not Modbus \xff\xff\0\0\0\x01").await;
                }
            });
        }
    });
    let running = Running::start(Modbus::default());
    for (name, port, slave) in [
        ("good", good, 1),
        ("rubbish", ports.0, 1),
        ("silent", ports.1, 1),
        ("gone", gone, 1),
        ("no-slave", good, 9),
    ] {
        running.assign(modbus_spec(name, port, slave, "TCP", "42"));
    }
    running.until("good", "limit", "42").await;
    running.until("good", "temperature", "21.5").await;
    running.until("good", "", "online").await;
    for name in ["rubbish", "silent", "gone", "no-slave"] {
        running.until(name, "", "offline").await;
    }
    // It still goes on.
    running.assign(modbus_spec("good", good, 1, "TCP", "43"));
    running.until("good", "limit", "43").await;
    running.stop().await;
}

#[tokio::test]
async fn a_modbus_device_that_was_away_gets_what_is_desired_when_it_is_back() {
    let port = free_port().await;
    let mut server = modbus_server(port, "socket").await;
    let running = Running::start(Modbus::default());
    running.assign(modbus_spec("m", port, 1, "TCP", "7"));
    running.until("m", "limit", "7").await;
    server.kill().await.unwrap();
    running.until("m", "", "offline").await;
    running.assign(modbus_spec("m", port, 1, "TCP", "8"));
    let _server = modbus_server(port, "socket").await;
    running.until("m", "", "online").await;
    running.until("m", "limit", "8").await;
    running.stop().await;
}

/// A device behind the broker: it takes a limit on `d/set`, and publishes what it has on `d/state`.
async fn mqtt_device(port: u16) -> JoinHandle<()> {
    let mut options = MqttOptions::new("device", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 10);
    let task = tokio::spawn(async move {
        let mut limit = "5".to_owned();
        loop {
            let publish = match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    client.try_subscribe("d/set", QoS::AtLeastOnce).unwrap();
                    true
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let body: serde_json::Value = serde_json::from_slice(&publish.payload).unwrap();
                    limit = body["limit"].to_string();
                    true
                }
                Ok(_) => false,
                Err(_) => {
                    sleep(Duration::from_millis(50)).await;
                    false
                }
            };
            if publish {
                let state = format!(r#"{{"limit":{limit},"t":215}}"#);
                client.try_publish("d/state", QoS::AtLeastOnce, true, state).unwrap();
            }
        }
    });
    sleep(Duration::from_millis(200)).await;
    task
}

fn mqtt_spec(port: u16, limit: &str) -> DeviceSpec {
    let device = format!(
        r#"{{"metadata":{{"namespace":"default","name":"d"}},"spec":{{"protocol":{{"protocolName":"mqtt",
            "configData":{{"broker":"tcp://127.0.0.1:{port}","timeout":2000}}}},"properties":[
            {{"name":"limit","collectCycle":50,"desired":{{"value":"{limit}"}},"visitors":{{"configData":
                {{"topic":"d/state","pointer":"/limit","writeTopic":"d/set","writeKey":"limit"}}}}}},
            {{"name":"temperature","visitors":{{"configData":{{"topic":"d/state","pointer":"/t","scale":0.1}}}}}}]}}}}"#
    );
    let model = r#"{"spec":{"properties":[{"name":"limit","type":"INT"},
        {"name":"temperature","type":"DOUBLE","accessMode":"ReadOnly"}]}}"#;
    DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
}

#[tokio::test]
async fn mqtt_devices_keep_the_contract() {
    let (port, folder) = (free_port().await, tempfile::tempdir().unwrap());
    let _broker = mosquitto(port, &folder).await;
    let device = mqtt_device(port).await;
    conformance::run(&Mqtt::default(), &mqtt_spec(port, ""), Some(("limit", "7"))).await;
    device.abort();
}

#[tokio::test]
async fn an_mqtt_device_goes_on_after_its_broker_was_away() {
    let (port, folder) = (free_port().await, tempfile::tempdir().unwrap());
    let mut broker = mosquitto(port, &folder).await;
    let device = mqtt_device(port).await;
    let running = Running::start(Mqtt::default());
    running.assign(mqtt_spec(port, "7"));
    running.until("d", "limit", "7").await;
    running.until("d", "temperature", "21.5").await;
    broker.kill().await.unwrap();
    running.until("d", "", "offline").await;
    let _broker = mosquitto(port, &folder).await;
    running.until("d", "", "online").await;
    running.assign(mqtt_spec(port, "8"));
    running.until("d", "limit", "8").await;
    running.stop().await;
    device.abort();
}

/// Collects what is published under a topic; the set of values.
async fn subscriber(port: u16, topic: &'static str) -> (Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let mut options = MqttOptions::new("subscriber", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(5)).set_clean_session(true);
    let (client, mut events) = AsyncClient::new(options, 10);
    let taken: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = taken.clone();
    let (subscribed_tx, subscribed) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let mut subscribed = Some(subscribed_tx);
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    client.try_subscribe(topic, QoS::AtLeastOnce).unwrap();
                }
                Ok(Event::Incoming(Packet::SubAck(_))) => drop(subscribed.take().map(|it| it.send(()))),
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    kept.lock().unwrap().push(String::from_utf8(publish.payload.to_vec()).unwrap());
                }
                Ok(_) => {}
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    });
    soon("a subscription", subscribed).await.unwrap();
    (taken, task)
}

#[tokio::test]
async fn values_pushed_by_mqtt_survive_a_broker_that_is_away_and_a_restart() {
    let (port, folder) = (free_port().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("readings.redb");
    let config = || keeper::Config {
        commit_within: Duration::from_millis(20),
        history: keeper::History { age_max: Duration::MAX, ..keeper::History::default() },
        outgoing: keeper::Outgoing {
            age_max: Duration::MAX,
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_millis(500),
            ..keeper::Outgoing::default()
        },
        ..keeper::Config::default()
    };
    let start = |file: &PathBuf| {
        let store = Arc::new(RedbStore::open(file, RedbConfig::default()).unwrap());
        let (inbox, outbox, outside) = keeper::pipes();
        let stop = CancellationToken::new();
        let task = tokio::spawn(Keeper::new(config(), store, inbox, outbox).run(stop.clone()));
        (outside, stop, task)
    };
    let sample = |number: u64, qos: u8| {
        let topic = "plant/boiler".to_owned();
        let push = MqttPush { host: "127.0.0.1".to_owned(), port, topic, qos, retained: false };
        Sample {
            device: DeviceId::new("default", "boiler").unwrap(),
            property: "pressure".to_owned(),
            value: number.to_string(),
            timestamp_ms: number,
            push: [PushMethod::Mqtt(push)].into(),
        }
    };
    // There is no broker yet.
    let (mut outside, stop, task) = start(&file);
    for number in 0..500 {
        outside.samples.send(sample(number, 1)).unwrap();
    }
    soon("being durable", outside.stats.wait_for(|stats| stats.durable == 500)).await.unwrap();
    stop.cancel();
    task.await.unwrap().unwrap();
    // The broker comes, and the keeper again.
    let mut broker = mosquitto(port, &folder).await;
    let (taken, _subscriber) = subscriber(port, "plant/boiler").await;
    let (mut outside, stop, task) = start(&file);
    soon("sending", outside.stats.wait_for(|stats| stats.destinations.values().any(|it| it.sent >= 500)))
        .await
        .unwrap();
    // Order holds within a quality of service, so each has its turn.
    for (qos, numbers) in [(2, 500..550), (0, 550..600)] {
        let end = numbers.end;
        for number in numbers {
            outside.samples.send(sample(number, qos)).unwrap();
        }
        let sent = outside.stats.wait_for(|stats| stats.destinations.values().any(|it| it.sent >= end));
        soon("sending", sent).await.unwrap();
        soon("the last value", async {
            while (taken.lock().unwrap().len() as u64) < end {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    let value = |number: u64| format!("time is 1970-01-01 00:00:00  plant/boiler: {number}");
    let expected: Vec<_> = (0..600).map(value).collect();
    assert!(*taken.lock().unwrap() == expected, "in order, and nothing lost");
    broker.kill().await.unwrap();
    stop.cancel();
    task.await.unwrap().unwrap();
}
