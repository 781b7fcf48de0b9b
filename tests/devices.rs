//! Devices from kubectl to the wire and back, with real processes: a Modbus server of another implementation, a file of the
//! node, and a server that takes what is pushed.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, free_port, wait_for},
};

fn manifest(modbus: u16, push: u16, file: &Path) -> String {
    format!(
        r#"
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {{name: boiler, namespace: default}}
spec:
  protocol: modbus
  properties:
    - name: temperature
      type: FLOAT
      accessMode: ReadOnly
      visitors: {{protocolName: modbus, configData: {{register: InputRegister, offset: 0, limit: 1, scale: 0.1}}}}
    - name: limit
      type: INT
      accessMode: ReadWrite
      visitors: {{protocolName: modbus, configData: {{register: HoldingRegister, offset: 0, limit: 1}}}}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: boiler-1, namespace: default}}
spec:
  deviceModelRef: {{name: boiler}}
  nodeName: edge-1
  protocol: {{protocolName: modbus, configData: {{ip: 127.0.0.1, port: {modbus}, slaveID: 1, timeout: 500}}}}
  properties:
    - name: limit
      reportToCloud: true
      collectCycle: 200
      desired: {{value: "42"}}
    - name: temperature
      reportToCloud: true
      collectCycle: 200
      pushMethod: {{http: {{hostName: "http://127.0.0.1", port: {push}, requestPath: /values}}}}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {{name: board, namespace: default}}
spec:
  protocol: local
  properties: [{{name: serial, type: STRING, accessMode: ReadOnly}}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: board-1, namespace: default}}
spec:
  deviceModelRef: {{name: board}}
  nodeName: edge-1
  protocol: {{protocolName: local}}
  properties: [{{name: serial, reportToCloud: true, visitors: {{protocolName: local, configData: {{file: "{}"}}}}}}]
"#,
        file.display()
    )
}

/// The Modbus server; it ends with the test.
struct Server(Child);

impl Server {
    fn start(port: u16) -> Result<Self> {
        // Where `cargo xtask test` installs it.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().context("the target folder")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../kubeedge-device/tests/modbus_server.py");
        let mut command = Command::new(target.join("real-parts/python/bin/python"));
        command.args([script, &port.to_string(), "socket"]).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("python; `cargo xtask test` installs it")?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Takes what is pushed, one connection after the other.
fn take_pushes(port: u16) -> Result<Arc<Mutex<Vec<String>>>> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let taken: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = taken.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let mut reader = BufReader::new(socket);
            while let Some(body) = request(&mut reader) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(body);
                if reader.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_err() {
                    break;
                }
            }
        }
    });
    Ok(taken)
}

fn request(reader: &mut impl BufRead) -> Option<String> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    String::from_utf8(body).ok()
}

#[test]
fn devices_are_driven_from_kubectl_to_the_wire_and_what_they_say_is_pushed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let serial = folder.path().join("serial");
    std::fs::write(&serial, "SN-17\n")?;
    let (modbus, push) = (free_port()?, free_port()?);
    let server = Server::start(modbus)?;
    let binaries = binaries();
    let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
    let mappers = format!(
        "[modbus, mqtt, http, local, thermometer]\n  localDevices: {{files: [{}]}}",
        folder.path().display()
    );
    let options = EdgeOptions { mappers, ..EdgeOptions::new("edge-1") };
    let mut edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &options)?;
    cloud.apply(&manifest(modbus, push, &serial))?;
    let twin = |device: &str, property: &str, side: &str| {
        let path = format!(r#"jsonpath={{.status.twins[?(@.propertyName=="{property}")].{side}.value}}"#);
        cloud.kubectl(&["get", "device", device, "-o", &path])
    };
    wait_for("the temperature", || Ok(twin("boiler-1", "temperature", "reported")? == "21.5"))
        .with_context(|| edge.log())?;
    wait_for("what is desired", || Ok(twin("boiler-1", "limit", "observedDesired")? == "42"))
        .with_context(|| edge.log())?;
    wait_for("the file's value", || Ok(twin("board-1", "serial", "reported")? == "SN-17"))
        .with_context(|| edge.log())?;

    // Nobody has taken what was pushed. The power of the edge goes, and somebody comes.
    edge.kill();
    let taken = take_pushes(push)?;
    edge.spawn()?;
    wait_for("values that were read before", || {
        let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(taken.len() > 5)
    })
    .with_context(|| edge.log())?;
    let taken = taken.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(taken.iter().all(|body| body.starts_with("temperature=21.5&time=")), "{taken:?}");

    // A device that goes away is told.
    drop(server);
    wait_for("the boiler to be offline", || {
        Ok(cloud.kubectl(&["get", "device", "boiler-1", "-o", "jsonpath={.status.state}"])? == "offline")
    })
    .with_context(|| edge.log())
}
