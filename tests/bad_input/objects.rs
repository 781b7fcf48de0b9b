//! Objects that the API takes and an edge can make nothing of.

use anyhow::{Context, Result};
use kubeedge_tests::site::wait_for;

use crate::Healthy;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: lost, namespace: default}
spec:
  nodeName: edge-1
  containers: [{name: main, image: none, command: [/never/was], resources: {limits: {memory: 1Ki}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: without-config, namespace: default}
spec:
  nodeName: edge-1
  containers:
    - {name: main, image: none, command: [sleep, "1"], envFrom: [{configMapRef: {name: never-was}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: odd, namespace: default, annotations: {odd: "\u0000\u0001"}}
spec:
  nodeName: edge-1
  hostNetwork: true
  dnsPolicy: Nonsense
  schedulerName: nobody
  nodeSelector: {moon: full}
  runtimeClassName: magic
  containers:
    - name: main
      image: none
      command: [sleep, "100000"]
      workingDir: ../../..
      volumeMounts: [{name: never-was, mountPath: /x}]
      livenessProbe: {exec: {command: []}, periodSeconds: -1}
---
apiVersion: v1
kind: Pod
metadata: {name: volumes, namespace: default}
spec:
  nodeName: edge-1
  volumes: [{name: disk, nfs: {server: nowhere, path: /}}]
  containers: [{name: main, image: none, command: [sleep, "100000"], volumeMounts: [{name: disk, mountPath: /x}]}]
"#;

const DEVICES: &str = r#"
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: without-model, namespace: default}
spec:
  deviceModelRef: {name: never-was}
  nodeName: edge-1
  protocol: {protocolName: thermometer}
  properties: [{name: setpoint, desired: {value: "21"}}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: wrong-types, namespace: default}
spec:
  deviceModelRef: [thermometer]
  nodeName: edge-1
  protocol: 7
  properties: {name: setpoint}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: wrong-values, namespace: default}
spec:
  deviceModelRef: {name: thermometer}
  nodeName: edge-1
  protocol: {protocolName: magic}
  properties: [{name: setpoint, desired: {value: "warm"}, collectCycle: -1}, {name: setpoint}, {name: ""}, {}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: wrong-types, namespace: default}
spec: {protocol: [7], properties: "none"}
"#;

#[test]
fn objects_that_an_edge_can_make_nothing_of_hold_up_no_other() -> Result<()> {
    let mut site = Healthy::start()?;
    let mut refused = Vec::new();
    for object in PODS.split("---").chain(DEVICES.split("---")) {
        // What the API refuses, it refuses with the field; what it lets pass, the edge has to live with.
        if let Err(error) = site.cloud.apply(object) {
            let error = format!("{error:#}");
            let named = ["spec", "metadata", "RuntimeClass"].iter().any(|word| error.contains(word));
            assert!(named, "no field is named: {error}");
            refused.push(error);
        }
        site.goes_on().with_context(|| format!("after {object}\nrefused: {refused:#?}"))?;
    }
    let pods = || site.cloud.kubectl(&["get", "pods"]);
    wait_for("the pods to say what is wrong with them", || {
        let pods = pods()?;
        let bad = |name: &str| pods.lines().any(|line| line.starts_with(name) && !line.contains(" Running "));
        Ok(bad("lost") && bad("without-config"))
    })
    .with_context(|| format!("{:?}\n{}", pods(), site.edge.log()))?;
    wait_for("the reason in the pod's status", || {
        Ok(site.cloud.kubectl(&["get", "pod", "without-config", "-o", "yaml"])?.contains("never-was")
            && site
                .cloud
                .kubectl(&["get", "pod", "without-config", "-o", "yaml"])?
                .contains("CreateContainerConfigError"))
    })?;
    for device in ["without-model", "wrong-types"] {
        let applied = site.cloud.kubectl(&["get", "device", device]).is_ok();
        if applied {
            site.edge_says(&[device])?;
        }
    }
    site.goes_on()
}
