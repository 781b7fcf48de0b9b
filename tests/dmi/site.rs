//! The site: a cloud, an edge, a broker, and two mappers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{
    binaries, example,
    site::{Cloud, Edge, EdgeOptions, free_port, wait_for},
};

/// What can be killed.
pub(crate) const EDGE: u64 = 0;
pub(crate) const CLOUD: u64 = 1;
pub(crate) const PYTHON: u64 = 2;
pub(crate) const RUST: u64 = 3;
pub(crate) const BROKER: u64 = 4;

/// A generator of numbers that a seed repeats.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Site {
    python: Option<Process>,
    rust: Option<Process>,
    broker: Option<(Process, u16)>,
    pub(crate) edge: Edge,
    cloud: Cloud,
    folder: tempfile::TempDir,
}

impl Site {
    /// Starts a cloud and an edge, with a broker inside edgecore or beside it.
    pub(crate) fn start(broker: Option<&str>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let cloud = Cloud::start(&binaries(), &folder.path().join("cloud"))?;
        let broker = broker.map(|_| start_broker(folder.path(), free_port()?)).transpose()?;
        let mut options = EdgeOptions::new("edge-1");
        if let Some((_, port)) = &broker {
            options.modules =
                format!("  eventBus: {{mqttMode: 2, mqttServerExternal: \"tcp://127.0.0.1:{port}\"}}\n");
        }
        let edge = Edge::start(&binaries(), &folder.path().join("edge"), &cloud, &options)?;
        cloud.apply(MODEL)?;
        Ok(Self { python: None, rust: None, broker, edge, cloud, folder })
    }

    /// Creates a device, or gives it another limit.
    pub(crate) fn apply_device(&self, name: &str, protocol: &str, limit: &str) -> Result<()> {
        let (read, written) = if protocol == "stopwatch" { ("seconds", "label") } else { ("count", "limit") };
        self.cloud.apply(&format!(
            "apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: {name}, namespace: default}}
spec:
  deviceModelRef: {{name: {protocol}}}
  nodeName: edge-1
  protocol: {{protocolName: {protocol}, configData: {{address: x, port: 502}}}}
  properties:
    - {{name: {read}, reportToCloud: true, collectCycle: 100, reportCycle: 100}}
    - {{name: {written}, reportToCloud: true, collectCycle: 100, reportCycle: 100, desired: {{value: \"{limit}\"}}}}
"
        ))?;
        Ok(())
    }

    /// What the cloud has of a property; `limit` is the one that is written.
    pub(crate) fn value_in_cloud(&self, device: &str, property: &str) -> Option<String> {
        let property = if device == "watch" && property == "limit" { "label" } else { property };
        let path = format!("jsonpath={{.status.twins[?(@.propertyName==\"{property}\")].reported.value}}");
        self.cloud.kubectl(&["get", "device", device, "-o", &path]).ok().filter(|value| !value.is_empty())
    }

    pub(crate) fn count_in_cloud(&self, device: &str) -> u64 {
        self.value_in_cloud(device, "count").and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    // ------------------------------------------------------------------------------------------------- mappers

    pub(crate) fn start_python(&mut self) -> Result<()> {
        let dial = format!("unix:{}", self.edge.folder().join("dmi.sock").display());
        self.start_python_with(&dial, None)
    }

    /// Starts the mapper in Python, which dials so, with another authority than gRPC's own.
    pub(crate) fn start_python_with(&mut self, dial: &str, authority: Option<&str>) -> Result<()> {
        let mut command = Command::new(python()?);
        command
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/dmi/mapper.py"))
            .args(["--protocol", "counter", "--dial", dial])
            .arg("--socket")
            .arg(self.folder.path().join("python.sock"))
            .arg("--log")
            .arg(self.folder.path().join("python.jsonl"))
            .arg("--counter")
            .arg(self.folder.path().join("counter"));
        if let Some(authority) = authority {
            command.args(["--authority", authority]);
        }
        let errors = fs::File::create(self.folder.path().join("python.log"))?;
        self.python = Some(Process(command.stdin(Stdio::null()).stderr(errors).spawn().context("python")?));
        Ok(())
    }

    pub(crate) fn start_rust(&mut self) -> Result<()> {
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("rust.log"))?;
        let mapper = Command::new(example("my_sensor_over_dmi"))
            .arg("--edgecore")
            .arg(self.edge.folder().join("dmi.sock"))
            .arg("--socket")
            .arg(self.folder.path().join("rust.sock"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.rust = Some(Process(mapper));
        Ok(())
    }

    pub(crate) fn python_pid(&self) -> u32 {
        self.python.as_ref().map_or(0, |python| python.0.id())
    }

    /// What has happened to the mapper in Python.
    pub(crate) fn python_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("python.jsonl")).unwrap_or_default()
    }

    /// Ends the mapper in Python as a power cut would.
    pub(crate) fn kill_python(&mut self) {
        self.python = None;
    }

    /// Lets the mapper in Python count no further, and gives what it has come to.
    pub(crate) fn stop_counting(&self) -> Result<u64> {
        let counter = self.folder.path().join("counter");
        fs::write(counter.with_extension("stop"), "")?;
        let mut last = String::new();
        wait_for("the count to stand still", || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            let before = std::mem::replace(&mut last, fs::read_to_string(&counter)?);
            Ok(before == last)
        })?;
        Ok(last.parse()?)
    }

    // ------------------------------------------------------------------------------------------------ restarts

    pub(crate) fn kill(&mut self, what: u64) {
        match what {
            EDGE => self.edge.kill(),
            CLOUD => self.cloud.kill(),
            PYTHON => self.python = None,
            RUST => self.rust = None,
            _ => {
                if let Some((process, _)) = &mut self.broker {
                    let _ = process.0.kill();
                    let _ = process.0.wait();
                }
            }
        }
    }

    pub(crate) fn restart(&mut self, what: u64) -> Result<()> {
        match what {
            EDGE => self.edge.spawn(),
            CLOUD => self.cloud.spawn(),
            PYTHON => self.start_python(),
            RUST => self.start_rust(),
            BROKER => {
                if let Some((_, port)) = self.broker.take() {
                    self.broker = Some(start_broker(self.folder.path(), port)?);
                }
                Ok(())
            }
            other => anyhow::bail!("there is no process {other}"),
        }
    }

    /// What everybody has logged last.
    pub(crate) fn logs(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(40)..].join("\n")
        };
        let file = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        format!(
            "--- edgecore\n{}\n--- python\n{}\n{}\n--- rust\n{}",
            tail(self.edge.log()),
            tail(self.python_log()),
            tail(file("python.log")),
            tail(file("rust.log")),
        )
    }
}

fn start_broker(folder: &Path, port: u16) -> Result<(Process, u16)> {
    let config = folder.join("mosquitto.conf");
    fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"))?;
    let process = Command::new("mosquitto")
        .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
        .arg("-c")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("mosquitto cannot be started: is the package mosquitto installed?")?;
    Ok((Process(process), port))
}

/// A Python that has grpcio: `cargo xtask test` makes it beside the binaries.
fn python() -> Result<PathBuf> {
    let target = binaries().folder;
    let target = target.parent().context("the binaries are in a folder of the target folder")?;
    let python = target.join("python/grpc/bin/python");
    ensure!(python.exists(), "{} is missing: `cargo xtask test` makes it", python.display());
    Ok(python)
}

const MODEL: &str = r#"
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: counter, namespace: default}
spec:
  protocol: counter
  properties:
    - {name: count, type: INT, accessMode: ReadOnly}
    - {name: limit, type: INT, accessMode: ReadWrite}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: stopwatch, namespace: default}
spec:
  protocol: stopwatch
  properties:
    - {name: seconds, type: DOUBLE, accessMode: ReadOnly}
    - {name: label, type: STRING, accessMode: ReadWrite}
"#;
