//! What an operator does on a cluster: `keadm init`, the rights that it gives, and the admission webhook.
//!
//! There is nothing to see here without a cluster: `cargo xtask test --kubeconfig FILE` names one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, SPEAKER, cluster, free_port, wait_for},
};

/// Runs one of our programs and gives what it printed.
fn run(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(binaries().folder.join(program)).args(words).stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{program} {words:?}: {}{}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

/// A cluster without cloudcore, before the test and after it.
struct Cluster {
    admin: PathBuf,
}

impl Cluster {
    fn empty() -> Result<Option<Self>> {
        let Some(admin) = cluster::admin() else { return Ok(None) };
        let cluster = Self { admin };
        cluster.uninstall()?;
        Ok(Some(cluster))
    }

    fn kubectl(&self, words: &[&str], input: &str) -> Result<String> {
        cluster::kubectl(&self.admin, words, input.as_bytes())
    }

    fn uninstall(&self) -> Result<()> {
        cluster::forget_webhooks(&self.admin)?;
        cluster::clean(&self.admin)?;
        self.kubectl(&["delete", "namespace", "kubeedge", "--ignore-not-found", "--timeout=60s"], "")?;
        let bound = ["clusterrole/cloudcore", "clusterrolebinding/cloudcore"];
        self.kubectl(&[&["delete", "--ignore-not-found"], &bound[..]].concat(), "")?;
        Ok(())
    }

    fn init(&self, more: &[&str]) -> Result<String> {
        let admin = self.admin.to_string_lossy();
        let words = ["init", "--kube-config", &admin, "--advertise-address", "192.0.2.1"];
        run("keadm", &[&words[..], more].concat())
    }

    /// The authority that cloudcore's pods find in the file of `tlsStreamCAFile`.
    fn mounted_authority(&self) -> Result<String> {
        self.init(&[&IMAGE[..], &["--replicas", "0"]].concat())?;
        let volumes = "jsonpath={.spec.template.spec.volumes[?(@.name=='ca')].configMap}";
        let map = self.kubectl(&["-n", "kubeedge", "get", "deployment", "cloudcore", "-o", volumes], "")?;
        let map: serde_json::Value = serde_json::from_str(&map)?;
        let (name, key) = (&map["name"], &map["items"][0]["key"]);
        let name = name.as_str().context("a volume of the Deployment")?;
        let map = self.kubectl(&["-n", "kubeedge", "get", "configmap", name, "-o", "json"], "")?;
        let map: serde_json::Value = serde_json::from_str(&map)?;
        let pem = map["data"][key.as_str().unwrap_or_default()].as_str();
        Ok(pem.with_context(|| format!("{key} in {name}"))?.to_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.uninstall();
    }
}

/// No registry has it, and it need not run.
const IMAGE: [&str; 2] = ["--image", "registry.invalid/cloudcore:test"];

#[test]
fn keadm_init_brings_cloudcore_into_a_cluster_and_can_be_repeated() -> Result<()> {
    let Some(cluster) = Cluster::empty()? else { return Ok(()) };
    let with = [&IMAGE[..], &["--replicas", "2", "--admission"]].concat();
    let said = cluster.init(&with)?;
    ensure!(
        said.contains("everything may be created") && said.contains("applied deployments/cloudcore"),
        "{said}"
    );
    let of = |object: &str, path: &str| {
        cluster.kubectl(&["-n", "kubeedge", "get", object, "-o", &format!("jsonpath={{{path}}}")], "")
    };
    // The cluster makes pods of the template, under cloudcore's account and with its configuration.
    wait_for("the pods of cloudcore", || {
        Ok(of("pods", ".items[*].spec.serviceAccountName")? == "cloudcore cloudcore")
    })
    .with_context(|| {
        cluster.kubectl(&["-n", "kubeedge", "describe", "deployment,replicaset"], "").unwrap_or_default()
    })?;
    ensure!(of("pods", ".items[0].spec.containers[0].image")? == IMAGE[1]);
    let config = of("configmap/cloudcore", ".data.cloudcore\\.yaml")?;
    ensure!(config.contains("192.0.2.1") && config.contains("replicas: {enable: true}"), "{config}");
    ensure!(of("service/kubeedge-admission-service", ".spec.ports[0].port")? == "443");

    let before = of("deployment/cloudcore", ".metadata.generation")?;
    cluster.init(&with)?;
    ensure!(
        of("deployment/cloudcore", ".metadata.generation")? == before,
        "nothing was changed the second time"
    );
    // Without the option the right goes, too.
    cluster.init(&IMAGE)?;
    ensure!(!may(&cluster, "patch", WEBHOOK, "", "default"));
    Ok(())
}

#[test]
fn what_is_printed_passes_the_strictest_validation_of_kubectl() -> Result<()> {
    let Some(cluster) = Cluster::empty()? else { return Ok(()) };
    let printed = run("keadm", &["manifest", "--advertise-address", "192.0.2.1", "--admission"])?;
    let strict = ["apply", "--server-side", "--validate=strict", "-f", "-"];
    let said = cluster.kubectl(&strict, &printed)?;
    ensure!(said.contains("deployment.apps/cloudcore serverside-applied"), "{said}");
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], "")?;
    let said = cluster
        .kubectl(&["get", "crd", "-o", "jsonpath={.items[*].status.conditions[?(@.status=='False')]}"], "")?;
    ensure!(!said.contains("NonStructuralSchema"), "{said}");

    // Behind ports of the Service, cloudcore is as restricted as pods can be.
    let restrict = ["label", "namespace", "kubeedge", "pod-security.kubernetes.io/enforce=restricted"];
    cluster.kubectl(&restrict, "")?;
    cluster.kubectl(&["-n", "kubeedge", "delete", "deployment", "cloudcore", "--cascade=foreground"], "")?;
    let printed = run("cloudcore", &["manifests", "--advertise-address", "192.0.2.1", "--node-ports"])?;
    cluster.kubectl(&[&strict[..], &["--force-conflicts"]].concat(), &printed)?;
    wait_for("a pod of cloudcore", || {
        Ok(!cluster.kubectl(&["-n", "kubeedge", "get", "pods", "-o", "name"], "")?.is_empty())
    })
    .with_context(|| cluster.kubectl(&["-n", "kubeedge", "get", "events"], "").unwrap_or_default())
}

const WEBHOOK: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io/kubeedge-crds-validate-webhook-configuration";

const REQUESTS: &str = "certificatesigningrequests.certificates.k8s.io";

/// What cloudcore's parts do: verb, resource, what is below it, and where.
const NEEDED: [(&str, &str, &str, &str); 32] = [
    ("watch", "pods", "", "default"),
    ("patch", "pods", "status", "default"),
    ("create", "pods", "", "default"),
    ("delete", "pods", "", "default"),
    ("watch", "configmaps", "", "default"),
    ("watch", "secrets", "", "default"),
    ("watch", "persistentvolumeclaims", "", "default"),
    ("watch", "persistentvolumes", "", "default"),
    ("watch", "services", "", "default"),
    ("watch", "runtimeclasses.node.k8s.io", "", "default"),
    ("create", "nodes", "", "default"),
    ("patch", "nodes", "", "default"),
    ("patch", "nodes", "status", "default"),
    ("create", "events", "", "default"),
    ("create", "serviceaccounts", "token", "default"),
    ("get", REQUESTS, "", "default"),
    ("create", REQUESTS, "", "default"),
    ("delete", REQUESTS, "", "default"),
    ("patch", REQUESTS, "approval", "default"),
    ("approve", "signers.certificates.k8s.io/kubernetes.io/kubelet-serving", "", "default"),
    ("watch", "devices.devices.kubeedge.io", "", "default"),
    ("patch", "devices.devices.kubeedge.io", "", "default"),
    ("watch", "devicemodels.devices.kubeedge.io", "", "default"),
    ("create", "devicestatuses.devices.kubeedge.io", "", "default"),
    ("patch", "devicestatuses.devices.kubeedge.io", "", "default"),
    ("watch", "rules.rules.kubeedge.io", "", "default"),
    ("patch", "rules.rules.kubeedge.io", "", "default"),
    ("patch", "leases.coordination.k8s.io", "", "kube-node-lease"),
    ("patch", "leases.coordination.k8s.io", "", "kubeedge"),
    ("create", "secrets", "", "kubeedge"),
    ("update", "secrets/casecret", "", "kubeedge"),
    ("patch", WEBHOOK, "", "default"),
];

/// What would make cloudcore, or who has taken it over, more than the cloud of edge nodes.
const TOO_MUCH: [(&str, &str, &str, &str); 35] = [
    ("list", REQUESTS, "", "default"),
    ("patch", REQUESTS, "", "default"),
    ("patch", REQUESTS, "status", "default"),
    ("approve", "signers.certificates.k8s.io/kubernetes.io/kube-apiserver-client", "", "default"),
    ("create", "secrets", "", "default"),
    ("update", "secrets", "", "default"),
    ("delete", "secrets", "", "kubeedge"),
    ("update", "secrets/another", "", "kubeedge"),
    ("patch", "secrets", "", "kube-system"),
    ("update", "secrets/cloudcoresecret", "", "kubeedge"),
    ("patch", "secrets/casecret", "", "kubeedge"),
    ("list", "leases.coordination.k8s.io", "", "kubeedge"),
    ("delete", "leases.coordination.k8s.io", "", "kubeedge"),
    ("patch", "configmaps", "", "default"),
    ("patch", "services", "", "default"),
    ("update", "pods", "", "default"),
    ("create", "pods", "exec", "default"),
    ("create", "pods", "portforward", "default"),
    ("create", "pods", "binding", "default"),
    ("patch", "pods", "ephemeralcontainers", "default"),
    ("deletecollection", "pods", "", "default"),
    ("delete", "nodes", "", "default"),
    ("create", "nodes", "proxy", "default"),
    ("create", "deployments.apps", "", "default"),
    ("create", "daemonsets.apps", "", "kubeedge"),
    ("create", "serviceaccounts", "", "default"),
    ("impersonate", "users", "", "default"),
    ("escalate", "clusterroles.rbac.authorization.k8s.io", "", "default"),
    ("bind", "clusterroles.rbac.authorization.k8s.io", "", "default"),
    ("create", "clusterrolebindings.rbac.authorization.k8s.io", "", "default"),
    ("create", "rolebindings.rbac.authorization.k8s.io", "", "kubeedge"),
    ("patch", "customresourcedefinitions.apiextensions.k8s.io", "", "default"),
    ("patch", "leases.coordination.k8s.io", "", "kube-system"),
    ("create", "validatingwebhookconfigurations.admissionregistration.k8s.io", "", "default"),
    ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io/another", "", "default"),
];

/// Asks the API itself: kubectl knows no resource `signers`, which no server lists.
fn may(cluster: &Cluster, verb: &str, what: &str, below: &str, namespace: &str) -> bool {
    let (kind, name) = what.split_once('/').unwrap_or((what, ""));
    let (resource, group) = kind.split_once('.').unwrap_or((kind, ""));
    let review = serde_json::json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": { "user": "system:serviceaccount:kubeedge:cloudcore",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:kubeedge", "system:authenticated"],
            "resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "name": name, "subresource": below,
            "namespace": namespace,
        } },
    });
    let said =
        cluster.kubectl(&["create", "-f", "-", "-o", "jsonpath={.status.allowed}"], &review.to_string());
    said.is_ok_and(|said| said.trim() == "true")
}

#[test]
fn the_account_of_cloudcore_may_do_its_work_and_nothing_more() -> Result<()> {
    let Some(cluster) = Cluster::empty()? else { return Ok(()) };
    cluster.init(&[&IMAGE[..], &["--replicas", "0", "--admission"]].concat())?;
    for (verb, what, below, namespace) in NEEDED {
        ensure!(may(&cluster, verb, what, below, namespace), "may not {verb} {what} {below} in {namespace}");
    }
    for (verb, what, below, namespace) in TOO_MUCH {
        ensure!(!may(&cluster, verb, what, below, namespace), "may {verb} {what} {below} in {namespace}");
    }
    Ok(())
}

const DEVICE: &str = "apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {name: room, namespace: default}
spec: {nodeName: edge-1, protocol: {protocolName: thermometer}}
";

const RULE: &str = "apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata: {name: rule, namespace: default}
spec: {source: nowhere, sourceResource: {path: /a}, target: nowhere, targetResource: {topic: b}}
";

#[test]
fn what_kubeedge_would_not_admit_is_refused_by_kubectl_with_the_reason() -> Result<()> {
    let Some(cluster) = Cluster::empty()? else { return Ok(()) };
    cluster.init(&[&IMAGE[..], &["--replicas", "0", "--admission"]].concat())?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], "")?;
    // Nothing is asked before somebody answers.
    cluster.kubectl(&["apply", "--dry-run=server", "-f", "-"], DEVICE)?;
    let folder = tempfile::tempdir()?;
    let cloud = serving(folder.path())?;
    let hooks = ["get", WEBHOOK, "-o", "jsonpath={.webhooks[*].name}"];
    wait_for("the webhooks", || Ok(cluster.kubectl(&hooks, "")?.contains("validatedevice.kubeedge.io")))
        .with_context(|| cloud.log())?;
    let policies = cluster.kubectl(&["get", WEBHOOK, "-o", "jsonpath={.webhooks[*].failurePolicy}"], "")?;
    ensure!(policies == "Ignore Ignore Fail Fail Fail", "{policies}");

    let refused = |manifest: &str| cloud.apply(manifest).expect_err("it was taken").to_string();
    wait_for("the API server to ask", || {
        let said = cluster.kubectl(&["apply", "--dry-run=server", "-f", "-"], DEVICE);
        Ok(said.is_err_and(|error| error.to_string().contains("a device is of a model")))
    })
    .with_context(|| cloud.log())?;
    let said = refused(DEVICE);
    ensure!(said.contains("spec.deviceModelRef.name: Required value: a device is of a model"), "{said}");
    let said = refused(RULE);
    ensure!(said.contains("spec.source: Not found: \"nowhere\""), "{said}");
    cloud.apply(&DEVICE.replace("{nodeName", "{deviceModelRef: {name: any}, nodeName"))?;
    ensure!(!cloud.log().contains("forbidden"), "{}", cloud.log());
    Ok(())
}

#[test]
fn kubectl_logs_reads_pods_of_edge_nodes_and_nobody_else_does() -> Result<()> {
    let Some(cluster) = Cluster::empty()? else { return Ok(()) };
    let (folder, port) = (tempfile::tempdir()?, free_port()?);
    let ca = folder.path().join("streamCA.crt");
    std::fs::write(&ca, cluster.mounted_authority()?)?;
    let modules =
        format!("  cloudStream: {{enable: true, streamPort: {port}, tlsStreamCAFile: {}}}\n", ca.display());
    let common = format!(", tunnelPort: {port}");
    let cloud = Cloud::start_with_config(&binaries(), &folder.path().join("cloud"), 1, &common, &modules)?;
    let edge = Edge::start(&binaries(), &folder.path().join("edge"), &cloud, &EdgeOptions::new("edge-1"))?;
    // An API server looks for the pod's node by the address in the Node's status.
    wait_for("the node to be Ready", || Ok(cloud.kubectl(&["get", "nodes"])?.contains(" Ready ")))
        .with_context(|| edge.log())?;
    cloud.apply(SPEAKER)?;
    cloud
        .kubectl(&["wait", "--for=condition=Ready", "pod/speaker", "--timeout=60s"])
        .with_context(|| edge.log())?;
    ensure!(cloud.kubectl(&["logs", "speaker"])?.starts_with("one\ntwo\n"));
    let followed = cloud.kubectl(&["logs", "speaker", "-f", "--limit-bytes=14"])?;
    ensure!(followed == "one\ntwo\nthree\n", "{followed:?}");
    ensure!(cloud.kubectl(&["logs", "speaker", "--tail=1"])? == "three\n");
    // It is the node that answers, and its processes have no streams.
    let refused = cloud.kubectl(&["exec", "speaker", "--", "true"]).expect_err("there is no way").to_string();
    ensure!(refused.contains("this container runtime has no streams"), "{refused}");

    // Whoever comes without the certificate of an API server is refused, a node too.
    let url = format!("https://127.0.0.1:{port}/containerLogs/default/speaker/main");
    let at = |name: &str| edge.folder().join("certificates").join(name).to_string_lossy().into_owned();
    let (cert, key) = (at("server.crt"), at("server.key"));
    for more in [&[][..], &["--cert", &cert, "--key", &key]] {
        let output = Command::new("curl").args(["-sk", &url]).args(more).output()?;
        ensure!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
    Ok(())
}

#[test]
fn the_deployment_tells_the_kubelet_where_cloudcore_answers() -> Result<()> {
    let Some(cluster) = Cluster::empty()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let drain = "kubeedgeRs: {cloudHub: {drain: 15s}}\n";
    let cloud = Cloud::start_with_modules(&binaries(), &folder.path().join("cloud"), 1, drain)?;
    let config = folder.path().join("cloud/cloudcore.yaml");
    // What the account of the cloudcore above needs is there already, and kubectl's.
    let with = ["--replicas", "0", "--force", "--config", &config.to_string_lossy()];
    cluster.init(&[&IMAGE[..], &with].concat())?;
    let pod = ["-n", "kubeedge", "get", "deployment", "cloudcore", "-o", "jsonpath={.spec.template.spec}"];
    let pod: serde_json::Value = serde_json::from_str(&cluster.kubectl(&pod, "")?)?;
    for probe in ["livenessProbe", "readinessProbe"] {
        let asked = &pod["containers"][0][probe]["httpGet"];
        let text = |member: &str| asked[member].as_str().unwrap_or_default().to_owned();
        let url = format!("http://{}:{}{}", text("host"), asked["port"], text("path"));
        wait_for(&format!("{probe} to be answered"), || {
            let output =
                Command::new("curl").args(["-sS", "--fail-with-body", "--max-time", "5", &url]).output()?;
            ensure!(output.status.success(), "{url}: {output:?}");
            Ok(true)
        })
        .with_context(|| cloud.log())?;
    }
    let grace = &pod["terminationGracePeriodSeconds"];
    ensure!(grace.as_u64().is_some_and(|seconds| seconds > 15 + 10), "{grace}");
    ensure!(cloud.metric("kubeedge_cloudhub_sessions")? == 0);
    Ok(())
}

/// A cloudcore with the webhook, as its account may have it.
fn serving(folder: &Path) -> Result<Cloud> {
    let port = free_port()?;
    let admission = format!(
        "kubeedgeRs:\n  admission: {{enable: true, address: 127.0.0.1, port: {port}, url: \"https://127.0.0.1:{port}\"}}\n"
    );
    Cloud::start_with_modules(&binaries(), &folder.join("cloud"), 1, &admission)
}
