//! Twin updates of applications, by MQTT.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kubeedge_core::{
    device::{DeviceAssignment, Reading},
    message::{Connectivity, Object, ObjectEvent, Publish, Report, Upload, UploadId},
    pipe,
    store::redb::{RedbConfig, RedbStore},
};
use kubeedge_edge::{
    devicetwin::{self, DeviceTwin},
    eventbus::{self, EventBus, Mode},
};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::mpsc, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

const DEVICES: usize = 100;
const PROPERTIES: usize = 10;
/// Applications that publish.
const APPLICATIONS: usize = 4;
/// Updates as fast as they go, and at half load.
const UPDATES: usize = 200_000;
const PACED_UPDATES: usize = 100_000;
/// Half of 20,000 a second.
const HALF_LOAD_PER_MS: usize = 10;
/// A measurement that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was measured.
pub(crate) struct Updates {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

pub(crate) async fn measure() -> Result<Updates> {
    let stop = CancellationToken::new();
    let folder = tempfile::tempdir()?;
    let port = start_edge(&folder, &stop).await?;
    let mut clients = JoinSet::new();
    let mut results = listen(port, &mut clients).await?;
    let mut applications = Vec::new();
    for number in 0..APPLICATIONS {
        applications.push(connect(port, &format!("app-{number}"), &mut clients));
    }
    // All twins exist before anything is measured.
    run(&applications, &mut results, 0, DEVICES * PROPERTIES).await?;
    let started = Instant::now();
    run(&applications, &mut results, 1_000_000, UPDATES).await?;
    let per_second = UPDATES as f64 / started.elapsed().as_secs_f64();
    let mut times = run_paced(&applications, &mut results, 2_000_000, PACED_UPDATES).await?;
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1_000.0;
    // The clients go before their broker, since losing it is a failure to them.
    clients.abort_all();
    stop.cancel();
    Ok(Updates { per_second, p50_ms: at(0.5), p99_ms: at(0.99) })
}

/// EventBus with the embedded broker, and DeviceTwin on a disk. Gives the broker's port.
async fn start_edge(folder: &tempfile::TempDir, stop: &CancellationToken) -> Result<u16> {
    let store = Arc::new(RedbStore::open(folder.path().join("twins.redb"), RedbConfig::default())?);
    let (devices, devices_rx) = pipe::latest("devices", |event: &ObjectEvent| event.key().clone());
    let (messages, messages_rx) = pipe::weighed_events("device_messages", 1024, 4 << 20, Publish::size);
    let (publishes, publishes_rx) = pipe::weighed_events("publishes", 1024, 4 << 20, Publish::size);
    let (uploads, _) = pipe::weighed_events("uploads", 1024, 4 << 20, Upload::size);
    let (_, readings) = pipe::latest("readings", Reading::key);
    let (reports, _) = pipe::latest("reports", Report::key);
    let (assignments, _) = pipe::latest("assignments", DeviceAssignment::key);
    let (_, connectivity) = watch::channel(Connectivity::Offline);
    let (_, cloud_messages) = pipe::calls("cloud_messages", 16);
    let (_, uploaded) = pipe::latest("uploaded", |id: &UploadId| *id);
    let (_, rules) = pipe::latest("rules", |event: &ObjectEvent| event.key().clone());
    let twin = DeviceTwin::new(
        devicetwin::Config::new("edge-1".parse()?),
        store.clone(),
        devicetwin::Inbox { devices: devices_rx, device_messages: messages_rx, readings, connectivity },
        devicetwin::Outbox { reports, publishes, assignments },
    );
    let config = eventbus::Config { mode: Mode::Internal, ..eventbus::Config::default() };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let port = listener.local_addr()?.port();
    let bus = EventBus::new(
        config,
        store,
        eventbus::Inbox { publishes: publishes_rx, cloud_messages, uploaded, rules },
        eventbus::Outbox { device_messages: messages, uploads },
    );
    tokio::spawn(twin.run(stop.clone()));
    tokio::spawn(bus.with_listener(listener).run(stop.clone()));
    for number in 0..DEVICES {
        let json = format!(
            r#"{{"apiVersion":"devices.kubeedge.io/v1beta1","kind":"Device",
            "metadata":{{"namespace":"default","name":"d-{number}","uid":"u-{number}","resourceVersion":"1"}},
            "spec":{{"protocol":{{"protocolName":"none"}}}}}}"#
        );
        devices.send(ObjectEvent::Applied(Object::from_json(json)?))?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    Ok(port)
}

fn client(port: u16, name: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_inflight(200);
    AsyncClient::new(options, 1_024)
}

fn connect(port: u16, name: &str, clients: &mut JoinSet<()>) -> AsyncClient {
    let (client, mut events) = client(port, name);
    clients.spawn(async move {
        loop {
            if let Err(error) = events.poll().await {
                panic!("an application has lost the broker: {error}");
            }
        }
    });
    client
}

/// Hears results: the number of each, and when it came.
async fn listen(port: u16, clients: &mut JoinSet<()>) -> Result<mpsc::UnboundedReceiver<(usize, Instant)>> {
    let (client, mut events) = client(port, "listener");
    client.subscribe("$hw/events/device/+/+/twin/update/result", QoS::AtMostOnce).await?;
    let (tx, rx) = mpsc::unbounded_channel();
    let (ready_tx, mut ready) = mpsc::channel(1);
    clients.spawn(async move {
        let _client = client;
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let answer: Answer<'_> =
                        serde_json::from_slice(&publish.payload).expect("an answer is JSON");
                    assert!(answer.code.is_none(), "an update was refused");
                    let number = answer.event_id.parse().expect("the id is a number of ours");
                    let _ = tx.send((number, Instant::now()));
                }
                Ok(Event::Incoming(Packet::SubAck(_))) => drop(ready_tx.try_send(())),
                Ok(_) => {}
                Err(error) => panic!("the listener has lost the broker: {error}"),
            }
        }
    });
    ready.recv().await.context("no subscription")?;
    Ok(rx)
}

#[derive(Deserialize)]
struct Answer<'a> {
    event_id: &'a str,
    code: Option<u16>,
}

async fn publish(application: &AsyncClient, event: usize) -> Result<()> {
    let (device, property) = (event % DEVICES, event / DEVICES % PROPERTIES);
    let payload = format!(
        r#"{{"event_id":"{event}","timestamp":0,"twin":{{"p-{property}":{{"actual":{{"value":"{event}"}}}}}}}}"#
    );
    let topic = format!("$hw/events/device/default/d-{device}/twin/update");
    Ok(application.publish(topic, QoS::AtLeastOnce, false, payload).await?)
}

type Results = mpsc::UnboundedReceiver<(usize, Instant)>;

/// As fast as it goes, until all results have come.
async fn run(applications: &[AsyncClient], results: &mut Results, first: usize, count: usize) -> Result<()> {
    let mut tasks = Vec::new();
    for (number, application) in applications.iter().cloned().enumerate() {
        tasks.push(tokio::spawn(async move {
            for event in (first..first + count).skip(number).step_by(APPLICATIONS) {
                publish(&application, event).await?;
            }
            anyhow::Ok(())
        }));
    }
    for come in 0..count {
        let result = timeout(PATIENCE, results.recv()).await;
        result.with_context(|| format!("{come} of {count} results have come"))?;
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// At half load. Gives how long each result took.
async fn run_paced(
    applications: &[AsyncClient],
    results: &mut Results,
    first: usize,
    count: usize,
) -> Result<Vec<Duration>> {
    let mut sent = Vec::with_capacity(count);
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    while sent.len() < count {
        ticks.tick().await;
        for _ in 0..HALF_LOAD_PER_MS {
            let event = first + sent.len();
            sent.push(Instant::now());
            publish(&applications[event % APPLICATIONS], event).await?;
        }
    }
    let mut times = Vec::with_capacity(count);
    while times.len() < count {
        let result = timeout(PATIENCE, results.recv()).await;
        let (event, at) =
            result.with_context(|| format!("{} of {count} results", times.len()))?.context("end")?;
        ensure!(event >= first, "a result of an earlier run");
        times.push(at.duration_since(sent[event - first]));
    }
    Ok(times)
}
