//! I want my driver to run as a process of its own, beside edgecore.
//!
//! A driver knows nothing of where it runs: the mapper that runs it has two pipes. In edgecore they lead to DeviceTwin; here
//! they lead to `Dmi`, which speaks KubeEdge's Device Mapper Interface with any edgecore. That is one line, marked below.
//! This sensor counts the seconds since the program began, and has a label that can be written.
//!
//! ```sh
//! my_sensor_over_dmi --edgecore /etc/kubeedge/dmi.sock --socket /etc/kubeedge/my-sensor.sock
//! ```

use std::{path::PathBuf, sync::Arc, time::Instant};

use anyhow::Result;
use async_trait::async_trait;
use clap::Parser;
use kubeedge_core::{
    device::{DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec},
    group::Group,
};
use kubeedge_device::{
    dmi::{self, Dmi},
    mapper::{self, Mapper},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs devices of the protocol `stopwatch` for an edgecore.
#[derive(Debug, Parser)]
struct Cli {
    /// The socket of edgecore.
    #[arg(long, default_value = "/etc/kubeedge/dmi.sock")]
    edgecore: PathBuf,
    /// The socket of this mapper, on which edgecore calls it.
    #[arg(long, default_value = "/etc/kubeedge/my-sensor.sock")]
    socket: PathBuf,
}

/// Drives stopwatches.
#[derive(Debug)]
struct Stopwatch {
    began: Instant,
}

/// An open one.
#[derive(Debug)]
struct OpenStopwatch {
    began: Instant,
    label: String,
}

#[async_trait]
impl DeviceProtocol for Stopwatch {
    fn name(&self) -> &str {
        "stopwatch"
    }

    async fn open(&self, _spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        Ok(Box::new(OpenStopwatch { began: self.began, label: String::new() }))
    }
}

#[async_trait]
impl DeviceHandle for OpenStopwatch {
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError> {
        match property.name.as_str() {
            "seconds" => Ok(format!("{:.1}", self.began.elapsed().as_secs_f64())),
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();

    let (inbox, outbox, outside) = mapper::pipes();
    let stopwatch = Arc::new(Stopwatch { began: Instant::now() });
    let mapper = Mapper::new(mapper::Config::default(), stopwatch, inbox, outbox);

    let config =
        dmi::Config { edgecore: cli.edgecore, ..dmi::Config::new("my-sensor", "stopwatch", cli.socket) };
    let (inbox, outbox) =
        (dmi::Inbox { readings: outside.readings }, dmi::Outbox { assignments: outside.assignments });
    // The one line. In edgecore, DeviceTwin takes these two ends.
    let edgecore = Dmi::new(config, inbox, outbox);

    let stop = CancellationToken::new();
    let mut group = Group::new(stop.clone());
    group.spawn("mapper", mapper.run(stop.child_token()));
    group.spawn("dmi", edgecore.run(stop.child_token()));
    group.spawn("signals", until_signal(stop));
    Ok(group.join(std::time::Duration::from_secs(5)).await?)
}

async fn until_signal(stop: CancellationToken) -> Result<(), std::io::Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}
