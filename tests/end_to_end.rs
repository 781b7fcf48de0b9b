//! The main job with real parts: kubectl, containerd and mosquitto.

#[path = "support/containerd.rs"]
mod containerd;

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use kubeedge_tests::{
    binaries, example,
    site::{Cloud, Edge, EdgeOptions, cluster, free_port, wait_for},
};

const DEVICE: &str = r#"
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
    - {name: temperature, reportToCloud: true}
    - {name: setpoint, reportToCloud: true, desired: {value: "21"}}
"#;

/// A device without a driver: an application on the node reports for it over MQTT.
const MQTT_DEVICE: &str = r#"
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: lamp, namespace: default}
spec:
  protocol: mqtt
  properties: [{name: power, type: STRING, accessMode: ReadWrite}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: lamp-1, namespace: default}
spec:
  deviceModelRef: {name: lamp}
  nodeName: edge-1
  protocol: {protocolName: mqtt}
  properties: [{name: power, reportToCloud: true, desired: {value: "off"}}]
"#;

fn pod(image: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: greeting, namespace: default}}
data: {{word: hello}}
---
apiVersion: v1
kind: Secret
metadata: {{name: key, namespace: default}}
stringData: {{token: s3cret}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: default, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {image}
      imagePullPolicy: IfNotPresent
      command: [sh, -c, "while true; do echo word=$WORD file=$(cat $CONTAINER_ROOT/etc/greeting/word) token=$TOKEN; sleep 1; done"]
      env:
        - {{name: WORD, valueFrom: {{configMapKeyRef: {{name: greeting, key: word}}}}}}
        - {{name: TOKEN, valueFrom: {{secretKeyRef: {{name: key, key: token}}}}}}
      volumeMounts: [{{name: config, mountPath: /etc/greeting}}]
  volumes: [{{name: config, configMap: {{name: greeting}}}}]
"#
    )
}

#[test]
fn a_pod_on_containerd_lives_from_apply_to_delete_under_a_stock_kubectl() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let containerd = containerd::Containerd::start();
    let binaries = binaries();
    let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
    let options = EdgeOptions { containerd: Some(containerd.socket()), ..EdgeOptions::new("edge-1") };
    let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;

    wait_for("the node to be Ready", || Ok(cloud.kubectl(&["get", "nodes"])?.contains(" Ready ")))
        .with_context(|| edge.log())?;
    let applied = cloud.apply(&format!("{}---{DEVICE}", pod(containerd::IMAGE)))?;
    assert!(
        applied.contains("pod/web created") && applied.contains("device.devices.kubeedge.io/room created"),
        "{applied}"
    );
    cloud
        .kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])
        .with_context(|| edge.log())?;

    wait_for("the log", || {
        Ok(cloud.pod_log(&edge, "web", "main")?.contains("word=hello file=hello token=s3cret"))
    })?;
    let table = cloud.kubectl(&["get", "nodes,pods,devices", "-o", "wide"])?;
    assert!(table.contains("edge-1") && table.contains("Running") && table.contains("room"), "{table}");
    let described = cloud.kubectl(&["describe", "pod", "web"])?;
    for wanted in ["Node:", "edge-1", "containerd://", "State:", "Running", "Ready", "True", "QoS Class:"] {
        assert!(described.contains(wanted), "{wanted} is missing in:\n{described}");
    }
    // A cluster adds a volume with a token to the pod, and kubectl calls it a change that there are more than in the manifest.
    let again = if cluster::admin().is_some() { "pod/web configured" } else { "pod/web unchanged" };
    assert!(cloud.apply(&pod(containerd::IMAGE))?.contains(again));

    cloud.kubectl(&[
        "patch",
        "configmap",
        "greeting",
        "--type=merge",
        "-p",
        r#"{"data":{"word":"bonjour"}}"#,
    ])?;
    wait_for("the changed file in the container", || {
        let log = cloud.pod_log(&edge, "web", "main")?;
        Ok(log.lines().next_back().is_some_and(|last| last.contains("word=hello file=bonjour")))
    })?;
    wait_for("a temperature in the Device", || {
        Ok(cloud.kubectl(&["get", "device", "room", "-o", "yaml"])?.contains("temperature"))
    })?;

    cloud.kubectl(&["delete", "pod", "web", "--timeout=60s"]).with_context(|| edge.log())?;
    assert!(!cloud.kubectl(&["get", "pods"])?.contains("web"));
    wait_for("containerd to have no container left", || {
        Ok(containerd.ctr(&["containers", "ls", "-q"]).map_err(anyhow::Error::msg)?.is_empty())
    })?;
    Ok(())
}

#[test]
fn an_application_reports_for_a_device_over_a_real_mosquitto() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let binaries = binaries();
    let mosquitto = Mosquitto::start(folder.path())?;
    let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
    let modules =
        format!("  eventBus: {{mqttMode: 2, mqttServerExternal: \"tcp://127.0.0.1:{}\"}}\n", mosquitto.port);
    let edge = Edge::start(
        &binaries,
        &folder.path().join("edge"),
        &cloud,
        &EdgeOptions { modules, ..EdgeOptions::new("edge-1") },
    )?;
    cloud.apply(MQTT_DEVICE)?;
    let power = r#"{"event_id":"e1","timestamp":1,"twin":{"power":{"actual":{"value":"on"}}}}"#;
    wait_for("the reported value in the Device", || {
        mosquitto.publish("$hw/events/device/default/lamp-1/twin/update", power)?;
        let device = cloud.kubectl(&[
            "get",
            "device",
            "lamp-1",
            "-o",
            "jsonpath={.status.twins[0].reported.value}",
        ])?;
        Ok(device == "on")
    })
    .with_context(|| edge.log())?;

    // What the cloud desires reaches an application that speaks nothing but MQTT.
    let mut delta = mosquitto.subscribe("$hw/events/device/default/lamp-1/twin/update/delta")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let patch = r#"[{"op":"replace","path":"/spec/properties/0/desired/value","value":"dimmed"}]"#;
    cloud.kubectl(&["patch", "device", "lamp-1", "--type=json", "-p", patch])?;
    let mut text = String::new();
    delta.stdout.take().context("mosquitto_sub has no output")?.read_to_string(&mut text)?;
    delta.wait()?;
    assert!(text.contains("dimmed"), "{text}");
    Ok(())
}

#[test]
fn the_quickstart_runs_its_pod_on_a_real_containerd() -> Result<()> {
    let containerd = containerd::Containerd::start();
    let output = Command::new(example("quickstart"))
        .args(["-o", "json", "--image", containerd::IMAGE, "--containerd"])
        .arg(containerd.socket())
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let left = containerd.ctr(&["containers", "ls", "-q"]).map_err(anyhow::Error::msg)?;
    assert!(left.is_empty(), "the quickstart left its pod behind: {left}");
    Ok(())
}

/// A real broker on a port of its own.
struct Mosquitto {
    process: Child,
    port: u16,
}

impl Mosquitto {
    fn start(folder: &Path) -> Result<Self> {
        let port = free_port()?;
        let config = folder.join("mosquitto.conf");
        std::fs::write(
            &config,
            format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"),
        )?;
        let process = Command::new("mosquitto")
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("mosquitto cannot be started: is the package mosquitto installed?")?;
        wait_for("mosquitto", || Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()))?;
        Ok(Self { process, port })
    }

    fn publish(&self, topic: &str, payload: &str) -> Result<()> {
        let status = Command::new("mosquitto_pub")
            .args(["-p", &self.port.to_string(), "-q", "1", "-t", topic, "-m", payload])
            .status()
            .context("mosquitto_pub cannot be started: is the package mosquitto-clients installed?")?;
        anyhow::ensure!(status.success(), "mosquitto_pub ended with {status}");
        Ok(())
    }

    /// Takes one message, for at most ten seconds.
    fn subscribe(&self, topic: &str) -> Result<Child> {
        Command::new("mosquitto_sub")
            .args(["-p", &self.port.to_string(), "-q", "1", "-C", "1", "-W", "10", "-t", topic])
            .stdout(Stdio::piped())
            .spawn()
            .context("mosquitto_sub cannot be started: is the package mosquitto-clients installed?")
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
