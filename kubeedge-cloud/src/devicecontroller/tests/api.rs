//! DeviceController between its pipes and a real API server.

use std::time::Duration;

use kubeedge_core::{
    id::{DeviceId, Uid},
    message::{
        Acked, Delivered, Delivery, DeviceReport, FromNode, ObjectEvent, Report, ToNode, TwinReport,
        TwinValue,
    },
    pipe::CallError,
};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::super::{
    Config, DeviceController, Outside, pipes,
    state::{DEVICE_STATUSES, DEVICES, MODELS},
};
use crate::controller::testing::{Cluster, eventually, node};

const LONG: Duration = Duration::from_secs(10);

struct Running {
    outside: Outside,
    _stop: DropGuard,
}

fn run(client: kube::Client, status_interval: Duration) -> Running {
    let (inbox, outbox, outside) = pipes();
    let stop = CancellationToken::new();
    let config = Config { retry_first: Duration::from_millis(10), status_interval, ..Config::default() };
    tokio::spawn(DeviceController::new(config, client, inbox, outbox).run(stop.clone()));
    Running { outside, _stop: stop.drop_guard() }
}

impl Running {
    async fn told(&mut self) -> String {
        let told = tokio::time::timeout(LONG, self.outside.downstream.recv()).await;
        let ToNode { node, message } = told.expect("something goes down").unwrap();
        let sign = if matches!(message, ObjectEvent::Applied(_)) { '+' } else { '-' };
        format!("{node} {sign}{}", message.key())
    }

    fn report(&self, from: &str, number: u64, uid: &Uid, value: &str) {
        let value =
            TwinValue { value: value.to_owned(), version: 1, timestamp_ms: 1700, ..TwinValue::default() };
        let report = DeviceReport {
            device: DeviceId::new("default", "oven").unwrap(),
            uid: uid.clone(),
            twins: vec![TwinReport {
                property: "temperature".to_owned(),
                reported: Some(value.clone()),
                observed_desired: Some(value),
            }],
            state: Some("online".to_owned()),
            last_online: None,
        };
        let message =
            Delivered { delivery: Delivery { session: 1, number }, message: Report::Device(report) };
        self.outside.reports.send(FromNode { node: node(from), message }).unwrap();
    }

    async fn acked(&mut self) -> u64 {
        let acked = tokio::time::timeout(LONG, self.outside.acked.recv()).await.expect("an acknowledgement");
        let Acked { delivery, .. } = acked.unwrap().message;
        delivery.number
    }
}

fn device(on: &str) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": { "namespace": "default", "name": "oven" },
        "spec": { "nodeName": on, "deviceModelRef": { "name": "heater" } },
    })
}

fn model() -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel",
        "metadata": { "namespace": "default", "name": "heater" },
        "spec": { "properties": [{ "name": "temperature", "type": "INT", "accessMode": "ReadOnly" }] },
    })
}

fn uid(object: &Value) -> Uid {
    Uid::new(object["metadata"]["uid"].as_str().unwrap())
}

#[tokio::test]
async fn a_device_follows_its_node_name_together_with_its_model() {
    let cluster = Cluster::start().await;
    cluster.create(MODELS, &model()).await;
    let mut running = run(cluster.client(), Duration::ZERO);
    running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap();
    cluster.create(DEVICES, &device("edge-1")).await;
    assert_eq!(running.told().await, "edge-1 +DeviceModel default/heater");
    assert_eq!(running.told().await, "edge-1 +Device default/oven");
    assert_eq!(running.outside.snapshots.call(node("edge-1"), LONG).await.unwrap().objects.len(), 2);

    cluster.merge(DEVICES, "default", "oven", &json!({ "spec": { "nodeName": "edge-2" } })).await;
    let mut told =
        vec![running.told().await, running.told().await, running.told().await, running.told().await];
    told.sort();
    let expected = [
        "edge-1 -Device default/oven",
        "edge-1 -DeviceModel default/heater",
        "edge-2 +Device default/oven",
        "edge-2 +DeviceModel default/heater",
    ];
    assert_eq!(told, expected);
    cluster.delete(DEVICES, "default", "oven").await;
    assert_eq!(running.told().await, "edge-2 -Device default/oven");
    assert_eq!(running.told().await, "edge-2 -DeviceModel default/heater");
}

#[tokio::test]
async fn a_report_reaches_the_devices_status_and_does_not_come_back_down() {
    let cluster = Cluster::start().await;
    let (client, gate) = cluster.client_behind("/none");
    let oven = uid(&cluster.create(DEVICES, &device("edge-1")).await);
    let mut running = run(client, Duration::ZERO);
    assert_eq!(running.told().await, "edge-1 +Device default/oven");
    gate.fail(1);
    running.report("edge-1", 1, &oven, "180");
    assert_eq!(running.acked().await, 1);
    let status = cluster.get(DEVICES, "default", "oven").await.unwrap()["status"].clone();
    let metadata = json!({ "timestamp": "1700", "observedAt": "1970-01-01T00:00:01.700Z", "version": "1" });
    let value = json!({ "value": "180", "metadata": metadata });
    let twin = json!({ "propertyName": "temperature", "reported": value, "observedDesired": value });
    assert_eq!(status, json!({ "twins": [twin], "state": "online" }));
    let mirror = cluster.get(DEVICE_STATUSES, "default", "oven").await.unwrap();
    assert_eq!(mirror["status"], status);
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["uid"], oven.as_str());
    let echo = tokio::time::timeout(Duration::from_millis(50), running.outside.downstream.recv()).await;
    assert!(echo.is_err(), "{echo:?}");

    running.report("edge-2", 2, &oven, "0");
    assert_eq!(running.acked().await, 2);
    let kept = cluster.get(DEVICES, "default", "oven").await.unwrap();
    assert_eq!(kept["status"]["twins"][0]["reported"]["value"], "180", "another node's device");
}

#[tokio::test]
async fn a_device_status_goes_with_its_device_and_is_taken_over_by_the_next_of_the_name() {
    let cluster = Cluster::start().await;
    let first = uid(&cluster.create(DEVICES, &device("edge-1")).await);
    let mut running = run(cluster.client(), Duration::ZERO);
    running.told().await;
    running.report("edge-1", 1, &first, "180");
    running.acked().await;
    assert!(cluster.get(DEVICE_STATUSES, "default", "oven").await.is_some());
    cluster.delete(DEVICES, "default", "oven").await;
    assert_eq!(running.told().await, "edge-1 -Device default/oven");
    assert_eq!(cluster.get(DEVICE_STATUSES, "default", "oven").await, None);

    // One that another program has left, of a device that is no more.
    let left = json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceStatus",
        "metadata": {
            "namespace": "default", "name": "oven",
            "ownerReferences": [{ "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "name": "oven",
                "uid": first.as_str(), "controller": true }],
        },
        "spec": {}, "status": { "state": "offline" },
    });
    cluster.create(DEVICE_STATUSES, &left).await;
    let second = uid(&cluster.create(DEVICES, &device("edge-1")).await);
    assert_eq!(running.told().await, "edge-1 +Device default/oven");
    running.report("edge-1", 2, &second, "200");
    while running.acked().await < 2 {}
    let taken = cluster.get(DEVICE_STATUSES, "default", "oven").await.unwrap();
    assert_eq!(taken["metadata"]["ownerReferences"][0]["uid"], second.as_str());
    assert_eq!(taken["metadata"]["ownerReferences"][1], Value::Null);
    assert_eq!(taken["status"]["twins"][0]["reported"]["value"], "200");
}

#[tokio::test]
async fn a_status_reaches_the_device_where_device_statuses_are_refused() {
    let cluster = Cluster::start().await;
    let oven = uid(&cluster.create(DEVICES, &device("edge-1")).await);
    let refusal = r#"{"kind":"Status","status":"Failure","reason":"Forbidden","message":"no","code":403}"#;
    let (client, _refuses) = cluster.client_without("/devicestatuses/oven", (403, refusal));
    let mut running = run(client, Duration::ZERO);
    assert_eq!(running.told().await, "edge-1 +Device default/oven");
    running.report("edge-1", 1, &oven, "180");
    assert_eq!(running.acked().await, 1);
    let status = cluster.get(DEVICES, "default", "oven").await.unwrap()["status"].clone();
    assert_eq!(status["twins"][0]["reported"]["value"], "180");
    assert_eq!(cluster.get(DEVICE_STATUSES, "default", "oven").await, None);
}

#[tokio::test]
async fn a_fast_device_is_written_rarely_and_ends_with_its_newest_value() {
    let cluster = Cluster::start().await;
    let oven = uid(&cluster.create(DEVICES, &device("edge-1")).await);
    let (client, gate) = cluster.client_behind("/none");
    let mut running = run(client, Duration::from_millis(300));
    running.told().await;
    for number in 0..100 {
        running.report("edge-1", number, &oven, &number.to_string());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    while running.acked().await < 99 {}
    let last = cluster.get(DEVICES, "default", "oven").await.unwrap();
    assert_eq!(last["status"]["twins"][0]["reported"]["value"], "99");
    // Of the Device and of its DeviceStatus.
    assert!(gate.writes() <= 20, "100 reports became {} writes", gate.writes());
}

#[tokio::test]
async fn a_snapshot_is_given_only_when_devices_and_models_were_listed() {
    let cluster = Cluster::start().await;
    cluster.create(DEVICES, &device("edge-1")).await;
    let (client, gate) = cluster.client_behind("/apis/devices.kubeedge.io/v1beta1/devicemodels");
    let mut running = run(client, Duration::ZERO);
    running.told().await;
    let soon = running.outside.snapshots.call(node("edge-1"), Duration::from_millis(50)).await;
    assert!(matches!(soon, Err(CallError::Late(..))), "{soon:?}");
    gate.open();
    let snapshot =
        eventually("a snapshot", async || running.outside.snapshots.call(node("edge-1"), LONG).await.ok());
    assert_eq!(snapshot.await.objects.len(), 1);
}

#[tokio::test]
async fn a_device_replaced_without_its_status_gets_it_back() {
    let cluster = Cluster::start().await;
    let oven = uid(&cluster.create(DEVICES, &device("edge-1")).await);
    let mut running = run(cluster.client(), Duration::ZERO);
    running.told().await;
    running.report("edge-1", 1, &oven, "180");
    running.acked().await;
    cluster.merge(DEVICES, "default", "oven", &json!({ "status": null })).await;
    let back = async || {
        let oven = cluster.get(DEVICES, "default", "oven").await?;
        (oven["status"]["twins"][0]["reported"]["value"] == "180").then_some(())
    };
    eventually("the status", back).await;
}
