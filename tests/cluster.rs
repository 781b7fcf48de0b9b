//! A real Kubernetes API in place of the standalone one, for a `Cloud` of the tests.
//!
//! `cargo xtask test --kubeconfig FILE` names the cluster. FILE must be an administrator's: each site applies the
//! manifests that users apply, and cloudcore gets no more than the account in them. The tests own all edge nodes and
//! the objects of the namespace `default`, and run one after another.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// What names the administrator's kubeconfig.
pub const VARIABLE: &str = "KUBEEDGE_TEST_KUBECONFIG";

/// Namespaces that are the cluster's own, or cloudcore's.
const KEPT: [&str; 5] = ["default", "kube-system", "kube-public", "kube-node-lease", "kubeedge"];

/// The administrator's kubeconfig, if tests run on a real API.
pub fn admin() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|file| !file.is_empty()).map(PathBuf::from)
}

/// Applies what cloudcore needs, takes away what an earlier test left, and writes the kubeconfig of cloudcore's own
/// account to `file`.
pub fn prepare(admin: &Path, cloudcore: &Path, file: &Path) -> Result<()> {
    forget_webhooks(admin)?;
    let manifests = Command::new(cloudcore).args(["manifests", "--no-deployment", "--admission"]).output()?;
    if !manifests.status.success() {
        bail!("cloudcore manifests: {}", String::from_utf8_lossy(&manifests.stderr));
    }
    kubectl(admin, &["apply", "--server-side", "--force-conflicts", "-f", "-"], &manifests.stdout)?;
    kubectl(admin, &["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], b"")?;
    clean(admin)?;
    let view = kubectl(admin, &["config", "view", "--raw", "--flatten", "--minify", "-o", "json"], b"")?;
    let view: Value = serde_json::from_str(&view)?;
    let token = kubectl(admin, &["create", "token", "cloudcore", "-n", "kubeedge", "--duration=2h"], b"")?;
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "cloudcore",
        "clusters": [{ "name": "cloudcore", "cluster": view["clusters"][0]["cluster"] }],
        "users": [{ "name": "cloudcore", "user": { "token": token.trim() } }],
        "contexts": [{ "name": "cloudcore", "context": { "cluster": "cloudcore", "user": "cloudcore" } }],
    });
    fs::write(file, kubeconfig.to_string()).with_context(|| file.display().to_string())
}

/// Takes away the webhooks of an earlier test: where nobody serves them, rules would be refused.
pub fn forget_webhooks(admin: &Path) -> Result<()> {
    let configurations = "validatingwebhookconfigurations,mutatingwebhookconfigurations";
    kubectl(admin, &["delete", configurations, "-l", "kubeedge=cloudcore"], b"").map(drop)
}

/// Takes away all edge nodes and what tests create.
pub fn clean(admin: &Path) -> Result<()> {
    let delete = |args: &[&str]| {
        kubectl(admin, &[&["delete", "--ignore-not-found", "--wait=true"], args].concat(), b"")
    };
    delete(&["deployments", "--all", "-n", "kubeedge"])?;
    // Without its node nobody would say that a pod has ended.
    delete(&["pods", "--all", "--all-namespaces", "--grace-period=0", "--force"])?;
    delete(&["nodes", "-l", "node-role.kubernetes.io/edge"])?;
    for namespace in kubectl(admin, &["get", "namespaces", "-o", "name"], b"")?.lines() {
        let name = namespace.trim_start_matches("namespace/");
        if !KEPT.contains(&name) {
            delete(&["namespace", name, "--timeout=60s"])?;
        }
    }
    let defined =
        kubectl(admin, &["get", "crd", "rules.rules.kubeedge.io", "--ignore-not-found", "-o", "name"], b"")?;
    if !defined.is_empty() {
        delete(&["devices,devicemodels,devicestatuses,rules,ruleendpoints", "--all", "-n", "default"])?;
    }
    let maps = kubectl(admin, &["get", "configmaps", "-n", "default", "-o", "name"], b"")?;
    // The certificates that a cluster gives every namespace, such as kube-root-ca.crt, come back only with delay.
    for map in maps.lines().filter(|map| !map.ends_with("ca.crt")) {
        delete(&[map, "-n", "default"])?;
    }
    delete(&["secrets,persistentvolumeclaims", "--all", "-n", "default"])?;
    delete(&["services", "-n", "default", "--field-selector", "metadata.name!=kubernetes"])?;
    // All at once: there are hundreds, which kubectl would delete one after another.
    kubectl(admin, &["delete", "--raw", "/api/v1/namespaces/default/events"], b"")?;
    // The authority of an earlier test, and its token for joining.
    delete(&["secrets", "--all", "-n", "kubeedge"])?;
    delete(&["serviceaccounts", "-n", "default", "--field-selector", "metadata.name!=default"])?;
    delete(&["persistentvolumes,runtimeclasses", "--all"])?;
    Ok(())
}

/// The authority of the certificates that API servers show to kubelets, and to what answers in the place of one.
pub fn kubelet_clients(admin: &Path) -> Result<String> {
    let map = ["-n", "kube-system", "get", "configmap", "extension-apiserver-authentication"];
    let authority = kubectl(admin, &[&map[..], &["-o", "jsonpath={.data.client-ca-file}"]].concat(), b"")?;
    if !authority.contains("BEGIN CERTIFICATE") {
        bail!("the cluster does not say what its API servers' certificates are issued by");
    }
    Ok(authority)
}

/// Runs kubectl as the administrator and gives what it printed.
pub fn kubectl(admin: &Path, args: &[&str], input: &[u8]) -> Result<String> {
    let mut process = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(admin)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run kubectl")?;
    // It is closed at the end of this statement, which is what kubectl waits for.
    process.stdin.take().context("the pipe was asked for")?.write_all(input)?;
    let output = process.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("kubectl {}: {}{}", args.join(" "), text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}
