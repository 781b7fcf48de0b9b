//! A thousand devices that are read ten times a second.

use std::{
    convert::Infallible,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use kube::{Client, client::Body};
use kubeedge_cloud::{
    devicecontroller::{self, DeviceController},
    standalone::{self, ApiServer},
};
use kubeedge_core::{
    device::{
        DeviceAssignment, DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec, Reading,
        Sample,
    },
    message::{Connectivity, Delivered, Delivery, FromNode, ObjectEvent, Report},
    pipe,
    store::redb::{RedbConfig, RedbStore},
};
use kubeedge_device::{
    keeper::{self, Keeper},
    mapper::{self, Mapper},
};
use kubeedge_edge::devicetwin::{self, DeviceTwin};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::Service;

const DEVICES: usize = 1_000;
const PROPERTIES: usize = 10;
/// Until each device has used the credit that it has after a silence (three writes of 1,000 devices, 50 a second), every
/// device has a status in the API, and the bounded histories of Keeper and of the API are full.
const SETTLE: Duration = Duration::from_secs(90);
/// How long is measured.
const MEASURED: Duration = Duration::from_secs(180);
/// How often it is said how far it is.
const PROGRESS: Duration = Duration::from_secs(30);

/// What was measured.
pub(crate) struct Readings {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) per_second: f64,
    pub(crate) writes_per_second: f64,
    pub(crate) passed_over: u64,
    pub(crate) rss_kib_start: u64,
    pub(crate) rss_kib_end: u64,
}

pub(crate) async fn measure() -> Result<Readings> {
    let folder = tempfile::tempdir()?;
    let (patches, reads) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = CancellationToken::new();
    let site = Site::start(&folder, &patches, &reads, &stop).await?;
    let started = Instant::now();
    pass(SETTLE, "until all is in its stride").await?;
    let rss_kib_start = rss_kib()?;
    let (at, before) = (Instant::now(), patches.load(Ordering::Relaxed));
    pass(MEASURED, "of measuring").await?;
    let writes = patches.load(Ordering::Relaxed) - before;
    let writes_per_second = writes as f64 / at.elapsed().as_secs_f64();
    let rss_kib_end = rss_kib()?;
    // The mapper stops first, and all that it read becomes durable.
    site.mapper.cancel();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let sent = reads.load(Ordering::Relaxed);
    let per_second = sent as f64 / (started.elapsed() - Duration::from_secs(3)).as_secs_f64();
    let lost = sent - site.keeper.borrow().durable;
    let passed_over = site.counts.borrow().passed_over;
    stop.cancel();
    Ok(Readings { sent, lost, per_second, writes_per_second, passed_over, rss_kib_start, rss_kib_end })
}

/// Waits, and says how long still, and what the process has in memory.
async fn pass(time: Duration, what: &str) -> Result<()> {
    let mut left = time;
    while !left.is_zero() {
        eprintln!("readings: {} s {what}, {} KiB in memory", left.as_secs(), rss_kib()?);
        let step = left.min(PROGRESS);
        tokio::time::sleep(step).await;
        left -= step;
    }
    Ok(())
}

struct Site {
    mapper: CancellationToken,
    keeper: watch::Receiver<keeper::Stats>,
    counts: watch::Receiver<devicecontroller::Counts>,
    _online: watch::Sender<Connectivity>,
    _queries: pipe::Caller<keeper::Query, Result<Vec<keeper::Kept>, kubeedge_core::store::StoreError>>,
}

impl Site {
    async fn start(
        folder: &tempfile::TempDir,
        patches: &Arc<AtomicU64>,
        reads: &Arc<AtomicU64>,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let store = |name: &str| RedbStore::open(folder.path().join(name), RedbConfig::default());
        let api = ApiServer::open(None, standalone::Config::default()).await?;
        create(&api).await?;
        let client = counting(&api, patches);

        let (device_inbox, device_outbox, mut cloud) = devicecontroller::pipes();
        let controller =
            DeviceController::new(devicecontroller::Config::default(), client, device_inbox, device_outbox);
        let counts = controller.counts();
        let (devices, devices_rx) = pipe::latest("devices", |event: &ObjectEvent| event.key().clone());
        let (_, device_messages) = pipe::events("device_messages", 16);
        let (readings, readings_rx) = pipe::latest("readings", Reading::key);
        let (reports, mut reports_rx) = pipe::latest("reports", Report::key);
        let (publishes, mut publishes_rx) = pipe::events("publishes", 1_024);
        let (assignments, assignments_rx) = pipe::latest("assignments", DeviceAssignment::key);
        let (samples, samples_rx) = pipe::weighed_events("samples", 8_192, 4 << 20, Sample::size);
        let (online, connectivity) = watch::channel(Connectivity::Synchronized);
        let (queries, queries_rx) = pipe::calls("queries", 16);
        let (stats, stats_rx) = watch::channel(keeper::Stats::default());

        let twin = DeviceTwin::new(
            devicetwin::Config::new("edge-1".parse()?),
            Arc::new(store("twins.redb")?),
            devicetwin::Inbox { devices: devices_rx, device_messages, readings: readings_rx, connectivity },
            devicetwin::Outbox { reports, publishes, assignments },
        );
        let keeper = Keeper::new(
            keeper::Config { block_bytes: 256 << 10, ..keeper::Config::default() },
            Arc::new(store("readings.redb")?),
            keeper::Inbox { samples: samples_rx, queries: queries_rx },
            keeper::Outbox { stats },
        );
        let mapper = Mapper::new(
            mapper::Config::default(),
            Arc::new(Counting { reads: reads.clone() }),
            mapper::Inbox { assignments: assignments_rx },
            mapper::Outbox { readings, samples: Some(samples) },
        );
        let mapper_stop = stop.child_token();
        tokio::spawn(controller.run(stop.clone()));
        tokio::spawn(twin.run(stop.clone()));
        tokio::spawn(keeper.run(stop.clone()));
        tokio::spawn(mapper.run(mapper_stop.clone()));
        // In place of the link: objects down, reports up, acknowledgements to nobody.
        tokio::spawn(async move {
            let mut number = 0;
            loop {
                tokio::select! {
                    Some(event) = cloud.downstream.recv() => { let _ = devices.send(event.message); }
                    Some(message) = reports_rx.recv() => {
                        number += 1;
                        let message = Delivered { delivery: Delivery { session: 1, number }, message };
                        let node = "edge-1".parse().expect("it is a name");
                        let _ = cloud.reports.send(FromNode { node, message });
                    }
                    Some(_) = cloud.acked.recv() => {}
                    Some(_) = publishes_rx.recv() => {}
                    else => return,
                }
            }
        });
        Ok(Self { mapper: mapper_stop, keeper: stats_rx, counts, _online: online, _queries: queries })
    }
}

/// Creates the devices and their model.
async fn create(api: &ApiServer) -> Result<()> {
    let (client, path) = (api.client(), "/apis/devices.kubeedge.io/v1beta1/namespaces/default");
    let names: Vec<String> = (0..PROPERTIES).map(|number| format!("p-{number}")).collect();
    let model: Vec<_> =
        names.iter().map(|name| json!({"name": name, "type": "INT", "accessMode": "ReadOnly"})).collect();
    let post = async |plural: &str, body: serde_json::Value| {
        let request =
            http::Request::post(format!("{path}/{plural}")).header("content-type", "application/json");
        client.request_text(request.body(body.to_string().into_bytes())?).await?;
        anyhow::Ok(())
    };
    let meta = |kind: &str, name: &str| {
        json!({
            "apiVersion": "devices.kubeedge.io/v1beta1", "kind": kind,
            "metadata": {"namespace": "default", "name": name},
        })
    };
    let mut body = meta("DeviceModel", "meter");
    body["spec"] = json!({"properties": model});
    post("devicemodels", body).await?;
    let properties: Vec<_> = names
        .iter()
        .map(|name| json!({"name": name, "collectCycle": 1_000, "reportCycle": 1_000, "reportToCloud": true}))
        .collect();
    for number in 0..DEVICES {
        let mut body = meta("Device", &format!("d-{number}"));
        body["spec"] = json!({
            "deviceModelRef": {"name": "meter"}, "nodeName": "edge-1",
            "protocol": {"protocolName": "counting"}, "properties": properties,
        });
        post("devices", body).await?;
    }
    Ok(())
}

/// A client whose patches are counted.
fn counting(api: &ApiServer, patches: &Arc<AtomicU64>) -> Client {
    let (service, patches) = (api.service(), patches.clone());
    let service = tower::service_fn(move |request: http::Request<Body>| {
        if request.method() == http::Method::PATCH {
            patches.fetch_add(1, Ordering::Relaxed);
        }
        let mut service = service.clone();
        async move { service.call(request).await as Result<_, Infallible> }
    });
    Client::new(service, "default")
}

/// Devices of which every read is another value.
#[derive(Debug)]
struct Counting {
    reads: Arc<AtomicU64>,
}

#[async_trait]
impl DeviceProtocol for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    async fn open(&self, _: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        Ok(Box::new(Self { reads: self.reads.clone() }))
    }
}

#[async_trait]
impl DeviceHandle for Counting {
    async fn read(&mut self, _: &PropertySpec) -> Result<String, DeviceError> {
        Ok(self.reads.fetch_add(1, Ordering::Relaxed).to_string())
    }

    async fn write(&mut self, _: &PropertySpec, _: &str) -> Result<(), DeviceError> {
        Err(DeviceError::Rejected("it only counts".to_owned()))
    }
}

/// What the process has in memory.
fn rss_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
