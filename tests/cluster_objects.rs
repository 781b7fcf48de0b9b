//! What an object is to the cloud and to a node: its name, its UID, and what its definition allows.
//!
//! These run on the standalone API, and on a cluster's with `cargo xtask test --kubeconfig FILE`, where RBAC and the
//! definitions of KubeEdge's kinds are looked at as well.

use anyhow::{Context, Result, bail, ensure};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, cluster, wait_for},
};

fn pod(word: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: default}}
spec:
  nodeName: edge-1
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: none
      command: [sh, -c, "echo {word} > $CONTAINER_ROOT/word; sleep 100000"]
      volumeMounts: [{{name: greeting, mountPath: /greeting}}]
  volumes: [{{name: greeting, configMap: {{name: greeting}}}}]
"#
    )
}

fn greeting(word: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: greeting, namespace: default}}\ndata: {{word: {word}}}\n"
    )
}

fn device(setpoint: &str) -> String {
    format!(
        r#"
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {{name: thermometer, namespace: default}}
spec:
  protocol: thermometer
  properties: [{{name: setpoint, type: DOUBLE, accessMode: ReadWrite, minimum: "0", maximum: "40"}}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: room, namespace: default}}
spec:
  deviceModelRef: {{name: thermometer}}
  nodeName: edge-1
  protocol: {{protocolName: thermometer}}
  properties: [{{name: setpoint, reportToCloud: true, desired: {{value: "{setpoint}"}}}}]
"#
    )
}

struct Site {
    edge: Edge,
    cloud: Cloud,
    _folder: tempfile::TempDir,
}

fn site() -> Result<Site> {
    let (folder, binaries) = (tempfile::tempdir()?, binaries());
    let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
    let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &EdgeOptions::new("edge-1"))?;
    wait_for("the node to be Ready", || Ok(cloud.kubectl(&["get", "nodes"])?.contains(" Ready ")))
        .with_context(|| format!("{}{}", cloud.log(), edge.log()))?;
    Ok(Site { edge, cloud, _folder: folder })
}

impl Site {
    fn of(&self, object: &str, path: &str) -> Result<String> {
        self.cloud.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    fn logs(&self) -> String {
        format!("{}{}", self.cloud.log(), self.edge.log())
    }

    /// UID and container of the pod, once it is ready.
    fn ready_pod(&self) -> Result<(String, String)> {
        self.cloud
            .kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])
            .with_context(|| self.logs())?;
        Ok((
            self.of("pod/web", ".metadata.uid")?,
            self.of("pod/web", ".status.containerStatuses[0].containerID")?,
        ))
    }
}

#[test]
fn a_pod_that_was_replaced_under_its_name_is_another_pod_at_the_edge() -> Result<()> {
    let site = site()?;
    site.cloud.apply(&format!("{}---{}", greeting("hello"), pod("first")))?;
    let first = site.ready_pod()?;

    // Without waiting for the edge: the old pod is gone from the API before its container is.
    site.cloud.kubectl(&["delete", "pod", "web", "--grace-period=0", "--force"])?;
    site.cloud.apply(&pod("second"))?;
    let second = site.ready_pod()?;
    ensure!(first.0 != second.0 && first.1 != second.1, "{first:?} and {second:?}");
    Ok(())
}

#[test]
fn objects_that_were_replaced_while_a_node_was_away_are_others_when_it_is_back() -> Result<()> {
    let mut site = site()?;
    site.cloud.apply(&format!("{}---{}---{}", greeting("hello"), pod("first"), device("21")))?;
    let first = site.ready_pod()?;
    let reported = ".status.twins[0].reported.value";
    wait_for("the setpoint", || Ok(site.of("device/room", reported)? == "21"))
        .with_context(|| site.logs())?;

    site.edge.kill();
    site.cloud.kubectl(&["delete", "pod", "web", "--grace-period=0", "--force"])?;
    site.cloud.kubectl(&["delete", "configmap/greeting", "device/room"])?;
    site.cloud.apply(&format!("{}---{}---{}", greeting("bonjour"), pod("second"), device("22")))?;
    ensure!(site.of("device/room", ".status.twins")?.is_empty(), "the other device's status");
    site.edge.spawn()?;

    let second = site.ready_pod()?;
    ensure!(first.0 != second.0 && first.1 != second.1, "{first:?} and {second:?}");
    wait_for("the setpoint of the other device", || Ok(site.of("device/room", reported)? == "22"))
        .with_context(|| site.logs())?;
    Ok(())
}

#[test]
fn cloudcore_has_the_rights_that_it_needs_and_no_others() -> Result<()> {
    let Some(admin) = cluster::admin() else { return Ok(()) };
    let site = site()?;
    let may = |verb: &str, what: &str, below: &str, namespace: &str| {
        let account = "--as=system:serviceaccount:kubeedge:cloudcore";
        let below = format!("--subresource={below}");
        cluster::kubectl(&admin, &["auth", "can-i", verb, what, &below, account, "-n", namespace], b"")
            .is_ok()
    };
    for (verb, what, below) in
        [("watch", "pods", ""), ("patch", "nodes", "status"), ("patch", "devices.devices.kubeedge.io", "")]
    {
        ensure!(may(verb, what, below, "default"), "{verb} {what} {below}");
    }
    ensure!(may("patch", "leases.coordination.k8s.io", "", "kube-node-lease"));
    for (verb, what, below) in [
        ("update", "secrets", ""),
        ("create", "secrets", ""),
        ("delete", "nodes", ""),
        ("create", "clusterroles.rbac.authorization.k8s.io", ""),
        ("create", "pods", "exec"),
        ("update", "pods", "ephemeralcontainers"),
        ("patch", "leases.coordination.k8s.io", ""),
    ] {
        ensure!(!may(verb, what, below, "default"), "{verb} {what} {below}");
    }
    let log = site.cloud.log();
    ensure!(!log.contains("forbidden"), "{log}");
    Ok(())
}

/// A change to a valid device, and what the API must say of it.
const WRONG: [(&str, &str, &str); 6] = [
    ("name: setpoint, reportToCloud: true", "name: '', reportToCloud: true", "spec.properties[0].name"),
    ("reportToCloud: true", "reportToCloud: sometimes", "spec.properties[0].reportToCloud"),
    ("reportToCloud: true", "collectCycle: -1", "spec.properties[0].collectCycle"),
    ("type: DOUBLE", "type: COMPLEX", "spec.properties[0].type"),
    ("maximum: \"40\"", "maximum: hot", "must be a number in text"),
    ("[{name: setpoint, type: DOUBLE", "[{name: setpoint}, {name: setpoint, type: DOUBLE", "Duplicate value"),
];

#[test]
fn definitions_say_what_is_wrong_and_where() -> Result<()> {
    let Some(admin) = cluster::admin() else { return Ok(()) };
    let _site = site()?;
    let check = |manifest: &str| {
        cluster::kubectl(&admin, &["apply", "--dry-run=server", "-f", "-"], manifest.as_bytes())
    };
    check(&device("21"))?;
    for (right, wrong, said) in WRONG {
        let valid = device("21");
        ensure!(valid.contains(right), "{right}");
        match check(&valid.replacen(right, wrong, 1)) {
            Ok(taken) => bail!("{wrong} was taken: {taken}"),
            Err(error) => ensure!(error.to_string().contains(said), "{wrong}: {error:#}"),
        }
    }
    let endpoint = "apiVersion: rules.kubeedge.io/v1\nkind: RuleEndpoint\nmetadata: {name: service, namespace: default}\n\
                    spec: {ruleEndpointType: servicebus}\n";
    let refused = check(endpoint).expect_err("it has no port").to_string();
    ensure!(refused.contains("a servicebus needs properties.service_port"), "{refused}");
    check(&endpoint.replace("servicebus}", "servicebus, properties: {service_port: \"8080\"}}"))?;
    let job = "apiVersion: operations.kubeedge.io/v1alpha2\nkind: NodeUpgradeJob\nmetadata: {name: upgrade}\n\
               spec: {version: v1.23.0}\n";
    let refused = check(job).expect_err("it names no nodes").to_string();
    ensure!(refused.contains("exactly one of nodeNames and labelSelector"), "{refused}");
    check(&job.replace("v1.23.0}", "v1.23.0, nodeNames: [edge-1], imageDigestGatter: null}"))?;
    Ok(())
}
