//! A broker, an edge beside it, and an application that hears everything.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use kubeedge_core::{
    device::{DeviceAssignment, Reading},
    message::{Connectivity, ObjectEvent, ObjectRef, Publish, Report, Upload, UploadId},
    pipe::{self, LatestSender},
    store::memory::MemoryStore,
};
use kubeedge_edge::{
    devicetwin::{self, DeviceTwin},
    eventbus::{self, EventBus, External, Mode},
};
use kubeedge_tests::site::{free_port, wait_for};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What happens.
#[derive(Debug)]
pub(crate) enum Act {
    /// An application publishes.
    Publish(String, Vec<u8>),
    /// The cloud says something of a device or model.
    Hear(ObjectEvent),
    /// A driver has found something.
    Read(Reading),
}

/// What the device topics of an edge answer on.
const ANSWERS: [&str; 7] = [
    "$hw/events/device/+/+/twin/update/+",
    "$hw/events/device/+/twin/update/result",
    "$hw/events/device/+/+/twin/get/result",
    "$hw/events/device/+/+/state/update/result",
    "$hw/events/device/+/+/updated",
    "$hw/events/node/+/membership/get/result",
    "$hw/events/node/+/membership/updated",
];

/// Nothing takes longer on a machine that works.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Site {
    port: u16,
    heard: mpsc::Receiver<(String, String)>,
    devices: LatestSender<ObjectRef, ObjectEvent>,
    readings: LatestSender<(kubeedge_core::id::DeviceId, Option<String>), Reading>,
    barriers: u32,
    /// Asks, a line at a time, over one connection.
    asking: ChildStdin,
    // In the order in which they end.
    _edge: DropGuard,
    _asker: Process,
    _listener: Process,
    _broker: Process,
    _folder: tempfile::TempDir,
    _connectivity: watch::Sender<Connectivity>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Site {
    /// Starts all of it, on the runtime of the caller.
    pub(crate) fn start() -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port().expect("a port"));
        let config = folder.path().join("mosquitto.conf");
        let settings = format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n");
        std::fs::write(&config, settings).expect("a file");
        let broker = Process(
            Command::new("mosquitto")
                .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
                .arg("-c")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the package mosquitto is installed"),
        );
        wait_for("mosquitto", || Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()))
            .expect("it listens");
        let (listener, heard) = listen(port);
        let mut asker = Command::new("mosquitto_pub")
            .args(["-p", &port.to_string(), "-q", "1", "-t", BARRIER, "-l"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("the package mosquitto-clients is installed");
        let asking = asker.stdin.take().expect("it was asked for");

        let (devices, devices_rx) = pipe::latest("devices", |event: &ObjectEvent| event.key().clone());
        let (messages, messages_rx) = pipe::weighed_events("device_messages", 1024, 4 << 20, Publish::size);
        let (publishes, publishes_rx) = pipe::weighed_events("publishes", 1024, 4 << 20, Publish::size);
        let (uploads, _) = pipe::weighed_events("uploads", 1024, 4 << 20, Upload::size);
        let (readings, readings_rx) = pipe::latest("readings", Reading::key);
        let (reports, _) = pipe::latest("reports", Report::key);
        let (assignments, _) = pipe::latest("assignments", DeviceAssignment::key);
        let (connectivity, connectivity_rx) = watch::channel(Connectivity::Offline);
        let (_, cloud_messages) = pipe::calls("cloud_messages", 16);
        let (_, uploaded) = pipe::latest("uploaded", |id: &UploadId| *id);
        let (_, rules) = pipe::latest("rules", |event: &ObjectEvent| event.key().clone());
        let store = Arc::new(MemoryStore::new());
        let twin = DeviceTwin::new(
            devicetwin::Config::new("edge-1".parse().expect("a name")),
            store.clone(),
            devicetwin::Inbox {
                devices: devices_rx,
                device_messages: messages_rx,
                readings: readings_rx,
                connectivity: connectivity_rx,
            },
            devicetwin::Outbox { reports, publishes, assignments },
        );
        let bus = EventBus::new(
            eventbus::Config {
                mode: Mode::External,
                external: External { port, ..External::default() },
                ..eventbus::Config::default()
            },
            store.clone(),
            eventbus::Inbox { publishes: publishes_rx, cloud_messages, uploaded, rules },
            eventbus::Outbox { device_messages: messages, uploads },
        );
        let stop = CancellationToken::new();
        tokio::spawn(twin.run(stop.clone()));
        tokio::spawn(bus.run(stop.clone()));
        let mut site = Self {
            port,
            heard,
            devices,
            readings,
            barriers: 0,
            asking,
            _edge: stop.drop_guard(),
            _asker: Process(asker),
            _listener: listener,
            _broker: broker,
            _folder: folder,
            _connectivity: connectivity,
        };
        site.wait_until_connected();
        site
    }

    /// Asks until there is an answer.
    fn wait_until_connected(&mut self) {
        for _ in 0..100 {
            self.barrier();
            if self.heard.recv_timeout(Duration::from_millis(200)).is_ok() {
                self.answers();
                return;
            }
        }
        panic!("the edge does not answer over the broker");
    }

    pub(crate) fn act(&mut self, act: &Act) {
        match act {
            Act::Publish(topic, payload) => self.publish(topic, payload),
            Act::Hear(event) => {
                self.devices.send(event.clone()).expect("DeviceTwin runs");
                wait_until_taken(&self.devices);
            }
            Act::Read(reading) => {
                self.readings.send(reading.clone()).expect("DeviceTwin runs");
                wait_until_taken(&self.readings);
            }
        }
    }

    fn publish(&self, topic: &str, payload: &[u8]) {
        let mut command = Command::new("mosquitto_pub");
        command.args(["-p", &self.port.to_string(), "-q", "1", "-t", topic]);
        // From its input, so that any bytes can be published.
        command.arg(if payload.is_empty() { "-n" } else { "-s" }).stdin(Stdio::piped());
        let mut process = command.spawn().expect("the package mosquitto-clients is installed");
        let mut stdin = process.stdin.take().expect("it was asked for");
        stdin.write_all(payload).expect("it reads");
        drop(stdin);
        let status = process.wait().expect("it ends");
        assert!(status.success(), "mosquitto_pub {topic} ended with {status}");
    }

    fn barrier(&mut self) -> String {
        self.barriers += 1;
        let event = format!("barrier-{}", self.barriers);
        writeln!(self.asking, r#"{{"event_id":"{event}"}}"#).expect("mosquitto_pub reads");
        event
    }

    /// All that came, before the answer to a question that is asked at the end.
    pub(crate) fn answers(&mut self) -> Vec<(String, String)> {
        let event = self.barrier();
        let mut came = Vec::new();
        loop {
            let (topic, payload) = self.heard.recv_timeout(PATIENCE).expect("the edge answers");
            if topic != format!("{BARRIER}/result") {
                came.push((topic, payload));
            } else if payload.contains(&format!("\"{event}\"")) {
                return came;
            }
        }
    }
}

/// Only within one pipe is there an order: a question that is asked now could be answered before what still waits in
/// another.
fn wait_until_taken<K: Ord + Clone, T>(pipe: &LatestSender<K, T>) {
    wait_for("DeviceTwin to take it", || Ok(pipe.depth_and_coalesced().0 == 0)).expect("it runs");
}

/// Where it is asked whether all answers are there: the edge answers in order.
const BARRIER: &str = "$hw/events/device/default/no-such-device/twin/get";

/// Starts the application that hears everything.
fn listen(port: u16) -> (Process, mpsc::Receiver<(String, String)>) {
    let mut command = Command::new("mosquitto_sub");
    command.args(["-p", &port.to_string(), "-q", "1", "-F", "%t %p"]);
    for filter in ANSWERS {
        command.args(["-t", filter]);
    }
    let mut process =
        command.stdout(Stdio::piped()).spawn().expect("the package mosquitto-clients is installed");
    let stdout = process.stdout.take().expect("it was asked for");
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let Some((topic, payload)) = line.split_once(' ') else { continue };
            if tx.send((topic.to_owned(), payload.to_owned())).is_err() {
                return;
            }
        }
    });
    (Process(process), rx)
}
