//! I want DeviceTwin in my own gateway, over my own transport.
//!
//! DeviceTwin is one feature of one crate. It knows neither a cloud nor a broker: it has typed pipes, and what is
//! at their other ends is ours. Here the gateway hands it a device, a driver's reading and an application's
//! message, and takes what comes out.
//!
//! ```toml
//! kubeedge-edge = { version = "0.1", default-features = false, features = ["devicetwin"] }
//! ```
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use kubeedge_core::{
    device::{Reading, ReadingContent},
    id::DeviceId,
    message::{Object, ObjectEvent, Publish, Report},
    store::memory::MemoryStore,
};
use kubeedge_edge::devicetwin::{self, Config, DeviceTwin};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const MODEL: &str = r#"{"apiVersion":"devices.kubeedge.io/v1beta1","kind":"DeviceModel",
    "metadata":{"name":"boiler","namespace":"default","uid":"m-1","resourceVersion":"1"},
    "spec":{"protocol":"mine","properties":[{"name":"pressure","type":"DOUBLE","accessMode":"ReadOnly"},
                          {"name":"valve","type":"STRING","accessMode":"ReadWrite"}]}}"#;

const DEVICE: &str = r#"{"apiVersion":"devices.kubeedge.io/v1beta1","kind":"Device",
    "metadata":{"name":"boiler-7","namespace":"default","uid":"d-1","resourceVersion":"2"},
    "spec":{"deviceModelRef":{"name":"boiler"},"nodeName":"gateway","protocol":{"protocolName":"mine"},
    "properties":[{"name":"pressure","reportToCloud":true},
                  {"name":"valve","reportToCloud":true,"desired":{"value":"open"}}]}}"#;

#[tokio::main]
async fn main() -> Result<()> {
    let stop = CancellationToken::new();
    let (inbox, outbox, mut outside) = devicetwin::pipes();
    let twin = DeviceTwin::new(Config::new("gateway".parse()?), Arc::new(MemoryStore::new()), inbox, outbox);
    let running = tokio::spawn(twin.run(stop.clone()));

    // What the cloud wants, however it reached this gateway.
    for json in [MODEL, DEVICE] {
        outside.devices.send(ObjectEvent::Applied(Object::from_json(json)?))?;
    }
    let assignment = soon(outside.assignments.recv()).await?;
    let desired = assignment.spec.and_then(|spec| spec.property("valve")?.desired.clone());
    println!("the driver of {} should set valve to {desired:?}", assignment.device);

    // What the driver has found.
    let device: DeviceId = "default/boiler-7".parse()?;
    outside.readings.send(Reading {
        device,
        content: ReadingContent::Property {
            property: "pressure".into(),
            value: "1.8".into(),
            observed_desired: None,
            timestamp_ms: 1_700_000_000_000,
        },
    })?;
    loop {
        let Report::Device(report) = soon(outside.reports.recv()).await? else { continue };
        let Some(pressure) = report.twins.iter().find(|twin| twin.property == "pressure") else { continue };
        let Some(value) = &pressure.reported else { continue };
        println!("to the cloud: {} pressure {} (version {})", report.device, value.value, value.version);
        break;
    }

    // What an application on the gateway asks, by KubeEdge's MQTT topics.
    outside.device_messages.send(Publish {
        topic: "$hw/events/device/default/boiler-7/twin/get".into(),
        payload: r#"{"event_id":"1","timestamp":0}"#.into(),
    })?;
    loop {
        let answer = soon(outside.publishes.recv()).await?;
        if answer.topic.ends_with("/twin/get/result") {
            println!("to the application: {}", String::from_utf8_lossy(&answer.payload));
            break;
        }
    }

    stop.cancel();
    Ok(running.await??)
}

async fn soon<T>(message: impl Future<Output = Option<T>>) -> Result<T> {
    timeout(Duration::from_secs(5), message).await?.context("DeviceTwin has stopped")
}
