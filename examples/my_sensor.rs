//! I want to drive my own sensor.
//!
//! A driver is two small traits: `DeviceProtocol` opens a device, `DeviceHandle` reads and writes its properties.
//! The mapper does the rest: schedules, checks by the device model, desired values, reconnecting. This sensor is
//! the machine's own load average, with a label that can be written.
//!
//! Given the path of a socket, it is a mapper of its own beside edgecore: `my_sensor /etc/kubeedge/my-sensor.sock`.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use async_trait::async_trait;
use kubeedge_core::device::{
    DeviceAssignment, DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec, ReadingContent,
};
use kubeedge_device::{
    dmi::{self, Dmi},
    mapper::{self, Mapper},
};
use tokio_util::sync::CancellationToken;

/// Drives load averages.
#[derive(Debug)]
struct LoadAverage;

/// An open one.
#[derive(Debug, Default)]
struct OpenLoadAverage {
    label: String,
}

#[async_trait]
impl DeviceProtocol for LoadAverage {
    fn name(&self) -> &str {
        "load-average"
    }

    async fn open(&self, _spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        Ok(Box::new(OpenLoadAverage::default()))
    }
}

#[async_trait]
impl DeviceHandle for OpenLoadAverage {
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError> {
        match property.name.as_str() {
            "load" => {
                let text = tokio::fs::read_to_string("/proc/loadavg").await;
                let text = text.map_err(|error| DeviceError::Unreachable(error.to_string()))?;
                Ok(text.split(' ').next().unwrap_or_default().to_owned())
            }
            "label" => Ok(self.label.clone()),
            other => Err(DeviceError::Invalid(format!("there is no property {other}"))),
        }
    }

    async fn write(&mut self, property: &PropertySpec, value: &str) -> Result<(), DeviceError> {
        match property.name.as_str() {
            "label" => {
                self.label = value.to_owned();
                Ok(())
            }
            other => Err(DeviceError::Rejected(format!("{other} cannot be written"))),
        }
    }
}

const MODEL: &str = r#"{"spec":{"properties":[{"name":"load","type":"FLOAT","accessMode":"ReadOnly","minimum":"0"},
                                              {"name":"label","type":"STRING"}]}}"#;
const DEVICE: &str = r#"{"metadata":{"namespace":"default","name":"host"},
    "spec":{"protocol":{"protocolName":"load-average"},"properties":[{"name":"load","collectCycle":100},
            {"name":"label","collectCycle":100,"desired":{"value":"kitchen"}}]}}"#;

#[tokio::main]
async fn main() -> Result<()> {
    let stop = CancellationToken::new();
    let (inbox, outbox, mut outside) = mapper::pipes();
    let mapper = Mapper::new(mapper::Config::default(), Arc::new(LoadAverage), inbox, outbox);
    let running = tokio::spawn(mapper.run(stop.clone()));
    if let Some(socket) = std::env::args().nth(1) {
        // The one line that makes it a process of its own: its pipes lead to DMI, and not to DeviceTwin.
        let (inbox, outbox) =
            (dmi::Inbox { readings: outside.readings }, dmi::Outbox { assignments: outside.assignments });
        return Ok(Dmi::new(dmi::Config::new("my-sensor", "load-average", socket), inbox, outbox)
            .run(stop)
            .await?);
    }

    // Inside edgecore the assignment comes from DeviceTwin, and the readings go there.
    let spec = DeviceSpec::from_json(DEVICE.as_bytes(), MODEL.as_bytes())?;
    outside.assignments.send(DeviceAssignment { device: spec.device.clone(), spec: Some(spec) })?;
    let (mut load, mut label) = (false, false);
    while !(load && label) {
        let reading = tokio::time::timeout(Duration::from_secs(5), outside.readings.recv()).await?;
        let reading = reading.context("the mapper has stopped")?;
        match reading.content {
            ReadingContent::Property { property, value, .. } => {
                println!("{} {property} = {value}", reading.device);
                load |= property == "load";
                label |= property == "label" && value == "kitchen";
            }
            ReadingContent::State(state) => println!("{} is {state}", reading.device),
        }
    }
    stop.cancel();
    Ok(running.await??)
}
