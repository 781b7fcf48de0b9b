//! What nonsense does to a site of real processes: it is refused with what and where, and nothing else is disturbed.

mod api;
mod certificates;
mod files;
mod link;
mod mqtt;
mod objects;
mod peer;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, free_port, wait_for},
};

const HEALTHY: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: greeting, namespace: default}
data: {word: start}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: default}
spec:
  nodeName: edge-1
  containers:
    - name: main
      image: none
      command: [sleep, "100000"]
      volumeMounts: [{name: config, mountPath: /etc/greeting}]
  volumes: [{name: config, configMap: {name: greeting}}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: thermometer, namespace: default}
spec:
  protocol: thermometer
  properties: [{name: setpoint, type: DOUBLE, accessMode: ReadWrite, minimum: "0", maximum: "1000"}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: room, namespace: default}
spec:
  deviceModelRef: {name: thermometer}
  nodeName: edge-1
  protocol: {protocolName: thermometer}
  properties: [{name: setpoint, reportToCloud: true, collectCycle: 100, desired: {value: "21"}}]
"#;

/// A cloud and its node edge-1, with a pod and a device that must go on whatever else happens.
struct Healthy {
    edge: Edge,
    cloud: Cloud,
    /// The port of the MQTT broker inside edgecore.
    mqtt: u16,
    container: String,
    changes: u32,
    folder: tempfile::TempDir,
}

impl Healthy {
    fn start() -> Result<Self> {
        let (folder, binaries, mqtt) = (tempfile::tempdir()?, binaries(), free_port()?);
        let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
        cloud.apply(HEALTHY)?;
        let modules =
            format!("  eventBus: {{mqttMode: 0, mqttServerInternal: \"tcp://127.0.0.1:{mqtt}\"}}\n");
        let options = EdgeOptions { modules, ..EdgeOptions::new("edge-1") };
        let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;
        cloud
            .kubectl(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=60s"])
            .with_context(|| edge.log())?;
        let mut healthy = Self { edge, cloud, mqtt, container: String::new(), changes: 0, folder };
        healthy.container = healthy.container_id()?;
        healthy.goes_on()?;
        Ok(healthy)
    }

    fn container_id(&self) -> Result<String> {
        let path = "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].ready}";
        self.cloud.kubectl(&["get", "pod", "reader", "-o", path])
    }

    /// Changes a ConfigMap and what the device shall be, and waits until the edge has followed: over the session
    /// that it has had all along, with the container that it has had all along.
    fn goes_on(&mut self) -> Result<()> {
        self.follows()?;
        let sessions = lines_with(&self.cloud.log(), &["a node has connected", "edge-1"]);
        ensure!(sessions == 1, "edge-1 has had {sessions} sessions: {}", self.cloud.log());
        Ok(())
    }

    /// As [`Healthy::goes_on`], of a node that may have had to connect again.
    fn follows(&mut self) -> Result<()> {
        self.changes += 1;
        let word = format!("word-{}", self.changes);
        let patch = format!(r#"{{"data":{{"word":"{word}"}}}}"#);
        self.cloud.kubectl(&["patch", "configmap", "greeting", "--type=merge", "-p", &patch])?;
        let setpoint = (100 + self.changes).to_string();
        let patch =
            format!(r#"[{{"op":"replace","path":"/spec/properties/0/desired/value","value":"{setpoint}"}}]"#);
        self.cloud.kubectl(&["patch", "device", "room", "--type=json", "-p", &patch])?;
        let root = self.edge.folder().join("root");
        wait_for("the changed ConfigMap at the edge", || {
            Ok(find(&root, "word").and_then(|file| fs::read_to_string(file).ok()) == Some(word.clone()))
        })
        .with_context(|| self.edge.log())?;
        wait_for("the device to be as desired", || Ok(self.device_value("room")? == setpoint))
            .with_context(|| self.edge.log())?;
        let container = self.container_id()?;
        ensure!(container == self.container, "the pod was disturbed: {} became {container}", self.container);
        ensure!(!self.edge.has_ended(), "edgecore has ended: {}", self.edge.log());
        Ok(())
    }

    fn device_value(&self, device: &str) -> Result<String> {
        self.cloud.kubectl(&["get", "device", device, "-o", "jsonpath={.status.twins[0].reported.value}"])
    }

    fn cloud_says(&self, words: &[&str]) -> Result<()> {
        says("the cloud", || self.cloud.log(), words)
    }

    fn edge_says(&self, words: &[&str]) -> Result<()> {
        says("the edge", || self.edge.log(), words)
    }

    fn cloud_memory(&self) -> Result<Memory> {
        Memory::of(self.cloud.pid().context("cloudcore runs")?)
    }

    fn edge_memory(&self) -> Result<Memory> {
        Memory::of(self.edge.pid().context("edgecore runs")?)
    }
}

/// Waits for a line of a log that has all these words.
fn says(who: &str, log: impl Fn() -> String, words: &[&str]) -> Result<()> {
    wait_for(&format!("{who} to say {words:?}"), || Ok(lines_with(&log(), words) > 0)).with_context(&log)
}

fn lines_with(log: &str, words: &[&str]) -> usize {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// How much memory a process had at a moment.
struct Memory {
    process: u32,
    kib: u64,
}

/// What the allocator may keep of what came and went. The nonsense of each test is several times as much.
const KEPT_KIB: u64 = 6 << 10;

impl Memory {
    fn of(process: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib = line.trim().trim_end_matches(" kB").parse()?;
        Ok(Self { process, kib })
    }

    /// Waits until the process has hardly more than it had.
    fn has_not_grown(&self) -> Result<()> {
        let mut now = self.kib;
        wait_for("the memory to be as before", || {
            now = Self::of(self.process)?.kib;
            Ok(now <= self.kib + KEPT_KIB)
        })
        .with_context(|| format!("{} KiB became {now} KiB", self.kib))
    }
}

/// The mounted file of this name below a folder.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        // The writer's own folders are reached through the link that makes a change atomic.
        if entry.file_name().to_string_lossy().starts_with("..") {
            continue;
        }
        if entry.file_name() == name && fs::metadata(&path).is_ok_and(|found| found.is_file()) {
            return Some(path);
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Some(found) = find(&path, name)
        {
            return Some(found);
        }
    }
    None
}
