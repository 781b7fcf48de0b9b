//! What the release binaries cost when nothing happens.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::release;
use crate::{
    Output,
    site::{Binaries, Cloud, Edge, EdgeOptions, wait_for},
};

/// What `footprint` measures.
#[derive(Debug, Serialize)]
pub(super) struct Footprint {
    edgecore_rss_kib: u64,
    edgecore_binary_bytes: u64,
    edgecore_write_bytes_per_minute: u64,
    edgecore_start_to_ready_ms: u64,
    cloudcore_standalone_rss_kib: u64,
    cloudcore_binary_bytes: u64,
}

impl Footprint {
    pub(super) fn print(&self) {
        println!("edgecore, idle with one pod and one device");
        println!("  resident memory     {:>8} KiB", self.edgecore_rss_kib);
        println!("  binary, stripped    {:>8} KiB", self.edgecore_binary_bytes >> 10);
        println!("  written to disk     {:>8} bytes a minute", self.edgecore_write_bytes_per_minute);
        println!("  start to Ready      {:>8} ms", self.edgecore_start_to_ready_ms);
        println!("cloudcore --standalone, idle");
        println!("  resident memory     {:>8} KiB", self.cloudcore_standalone_rss_kib);
        println!("  binary, stripped    {:>8} KiB", self.cloudcore_binary_bytes >> 10);
    }
}

/// 20 s: start-up work is over after one, and memory that grows shows within it.
const SETTLE: Duration = Duration::from_secs(20);

pub(super) fn footprint(output: Output) -> Result<Footprint> {
    let release = release(&["--package", "edgecore", "--package", "cloudcore"], output)?;
    let folder = tempfile::tempdir()?;
    let (cloudcore, edgecore, start_to_ready) = start(folder.path(), &release)?;
    let (cloud, edge) = (cloudcore.pid().context("no cloudcore")?, edgecore.pid().context("no edgecore")?);
    sleep(SETTLE);
    let written = written_bytes(edge)?;
    sleep(Duration::from_secs(60));
    Ok(Footprint {
        edgecore_rss_kib: rss_kib(edge)?,
        edgecore_binary_bytes: fs::metadata(release.join("edgecore"))?.len(),
        edgecore_write_bytes_per_minute: written_bytes(edge)? - written,
        edgecore_start_to_ready_ms: start_to_ready.as_millis().try_into()?,
        cloudcore_standalone_rss_kib: rss_kib(cloud)?,
        cloudcore_binary_bytes: fs::metadata(release.join("cloudcore"))?.len(),
    })
}

/// A cloudcore and an edgecore of the release build with one pod and one device.
fn start(folder: &Path, release: &Path) -> Result<(Cloud, Edge, Duration)> {
    let binaries = Binaries { folder: release.to_owned() };
    let cloud = Cloud::start_with_heartbeat(&binaries, &folder.join("cloud"), 15)?;
    cloud.apply(MANIFESTS)?;
    let options = EdgeOptions::new("edge-1");
    let mut edge = Edge::prepare(&binaries, &folder.join("edge"), &cloud, &options)?;
    // kubectl takes longer to start than the node to become Ready, so the watch is there first.
    let mut ready = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(cloud.kubeconfig())
        .args(["get", "nodes", "--watch", "--no-headers"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run kubectl")?;
    sleep(Duration::from_secs(2));
    let started = Instant::now();
    edge.spawn()?;
    let lines = BufReader::new(ready.stdout.take().context("kubectl has no output")?).lines();
    let seen = lines.map_while(Result::ok).find(|line| line.contains(" Ready "));
    let start_to_ready = started.elapsed();
    let _ = ready.kill();
    let _ = ready.wait();
    seen.context("kubectl saw no Ready node")?;
    wait_for("the pod to be Running", || Ok(cloud.kubectl(&["get", "pods"])?.contains("Running")))?;
    wait_for("the device to be reported", || {
        Ok(cloud.kubectl(&["get", "devices", "room", "-o", "yaml"])?.contains("reported"))
    })?;
    Ok((cloud, edge, start_to_ready))
}

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: idle, namespace: default}
spec:
  containers: [{name: main, image: none, command: [sleep, "100000"]}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: thermometer, namespace: default}
spec:
  protocol: thermometer
  properties:
    - {name: temperature, type: DOUBLE, accessMode: ReadOnly, unit: celsius}
    - {name: setpoint, type: DOUBLE, accessMode: ReadWrite, minimum: "0", maximum: "40"}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: room, namespace: default}
spec:
  deviceModelRef: {name: thermometer}
  nodeName: edge-1
  protocol: {protocolName: thermometer}
  properties:
    - {name: temperature, reportToCloud: true, collectCycle: 1000, reportCycle: 1000}
    - {name: setpoint, reportToCloud: true, desired: {value: "21"}}
"#;

fn rss_kib(pid: u32) -> Result<u64> {
    number(&format!("/proc/{pid}/status"), "VmRSS:")
}

fn written_bytes(pid: u32) -> Result<u64> {
    number(&format!("/proc/{pid}/io"), "write_bytes:")
}

fn number(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("{path}: the process has ended"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("{path} has no {name}"))?;
    Ok(line.split_whitespace().next().context("it is empty")?.parse()?)
}
