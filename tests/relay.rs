//! Two cloudcores on one API, and a node that is connected to one of them: what is asked of the other is answered too.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, SPEAKER, cluster, free_port, wait_for},
};

const RULES: &str = "apiVersion: rules.kubeedge.io/v1
kind: RuleEndpoint
metadata: {name: rest, namespace: default}
spec: {ruleEndpointType: rest, properties: {}}
---
apiVersion: rules.kubeedge.io/v1
kind: RuleEndpoint
metadata: {name: bus, namespace: default}
spec: {ruleEndpointType: eventbus, properties: {}}
---
apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata: {name: down, namespace: default}
spec: {source: rest, sourceResource: {path: /orders}, target: bus, targetResource: {topic: orders}}
";

struct Site {
    edge: Edge,
    /// Where people ask, and where the node is not connected.
    asked: Cloud,
    /// Where the node is connected.
    owner: Cloud,
    /// Where requests of applications are taken: at `asked`.
    rules: u16,
    /// Where `owner` is asked by others.
    relay: u16,
    _folder: tempfile::TempDir,
}

impl Site {
    fn start() -> Result<Self> {
        let (folder, binaries) = (tempfile::tempdir()?, binaries());
        let [rules, relay] = [free_port()?, free_port()?];
        let replicas = |port: u16| {
            format!(
                "kubeedgeRs:\n  replicas: {{enable: true, address: 127.0.0.1, port: {port}, advertiseAddress: 127.0.0.1}}\n"
            )
        };
        let router =
            format!("  router: {{enable: true, address: 127.0.0.1, port: {rules}, restTimeout: 20}}\n");
        let of_asked = router + &replicas(free_port()?);
        let asked = Cloud::start_with_modules(&binaries, &folder.path().join("asked"), 1, &of_asked)?;
        let account = fs::read_to_string(asked.account())?;
        let owner = asked.another_with_modules(&folder.path().join("owner"), &account, &replicas(relay))?;
        let edge = Edge::start(&binaries, &folder.path().join("edge"), &owner, &EdgeOptions::new("edge-1"))?;
        Ok(Self { edge, asked, owner, rules, relay, _folder: folder })
    }

    fn logs(&self) -> String {
        format!("asked:\n{}owner:\n{}node:\n{}", self.asked.log(), self.owner.log(), self.edge.log())
    }

    /// Publishes on the node by way of the Rule: status and body of the answer.
    fn publish(&self) -> Result<(u16, String)> {
        let url = format!("http://127.0.0.1:{}/edge-1/default/orders/1", self.rules);
        let output = Command::new("curl").args(["-s", "-d", "go", "-w", "\n%{http_code}", &url]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').with_context(|| format!("{output:?}"))?;
        Ok((status.parse()?, body.to_owned()))
    }
}

#[test]
fn what_is_asked_of_a_cloudcore_without_the_nodes_session_is_answered_through_the_one_that_has_it()
-> Result<()> {
    let mut site = Site::start()?;
    wait_for("the node to be Ready", || Ok(site.asked.kubectl(&["get", "nodes"])?.contains(" Ready ")))
        .with_context(|| site.logs())?;
    let lease = ["get", "lease", "edge-1", "-n", "kube-node-lease", "-o"];
    let address = "jsonpath={.metadata.annotations.kubeedge\\.io/cloud-address}";
    // It is written after the Node.
    wait_for("the Lease to say where the node is", || {
        let said = site.asked.kubectl(&[&lease[..], &[address]].concat());
        Ok(said.is_ok_and(|said| said == format!("127.0.0.1:{}", site.relay)))
    })
    .with_context(|| site.logs())?;

    // A call of a rule.
    site.asked.apply(RULES)?;
    wait_for("the Rule to be followed", || Ok(site.publish()?.0 == 200)).with_context(|| site.logs())?;
    // The log of a pod, also one that is followed. A cluster's API server would ask another way.
    if cluster::admin().is_none() {
        site.asked.apply(SPEAKER)?;
        let waited = ["wait", "--for=condition=Ready", "pod/speaker", "--timeout=60s"];
        site.asked.kubectl(&waited).with_context(|| site.logs())?;
        ensure!(site.asked.kubectl(&["logs", "speaker"])?.starts_with("one\ntwo\n"));
        let followed = site.asked.kubectl(&["logs", "speaker", "-f", "--limit-bytes=14"])?;
        ensure!(followed == "one\ntwo\nthree\n", "{followed:?}");
        ensure!(site.asked.kubectl(&["logs", "speaker", "--tail=1"])? == "three\n");
        let refused = site.asked.kubectl(&["logs", "speaker", "-c", "nobody"]).expect_err("there is none");
        ensure!(refused.to_string().contains("nobody"), "what the node says is what is told: {refused}");
    }
    let passed_on = site.asked.metric("kubeedge_relay_passed_on_total")?;
    let answered = site.owner.metric("kubeedge_relay_answered_total")?;
    ensure!(passed_on > 0 && passed_on == answered, "{passed_on} were passed on, and {answered} answered");

    every_figure_is_there(&site.owner).with_context(|| site.logs())?;

    // A node's certificate is of the same authority, and is none of a cloud's.
    let (refused, told) = show(&site.edge.folder().join("certificates"), site.relay)?;
    ensure!(refused && told.is_empty(), "{told}");
    let counted = "kubeedge_relay_certificates_refused_total{reason=\"NotACloud\"}";
    ensure!(site.owner.metric(counted)? == 1, "{}", site.owner.log());
    ensure!(site.owner.metric("kubeedge_relay_answered_total")? == answered);

    // When the owner is gone, whoever asks is told so at once.
    site.owner.kill();
    let began = Instant::now();
    let (status, text) = site.publish()?;
    ensure!(status == 502 && text.contains("cannot be reached"), "{status} {text}");
    ensure!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    let unreachable = "kubeedge_relay_failed_total{reason=\"OwnerUnreachable\"}";
    ensure!(site.asked.metric(unreachable)? >= 1);
    Ok(())
}

/// All that cloudcore tells of itself when others serve the same API.
const FIGURES: &[&str] = &[
    "kubeedge_authorization_denials_total",
    "kubeedge_broken_watches",
    "kubeedge_certificates_issued_total",
    "kubeedge_cloudhub_certificates_refused_total",
    "kubeedge_cloudhub_memory_bytes",
    "kubeedge_cloudhub_memory_max_bytes",
    "kubeedge_cloudhub_offences_total",
    "kubeedge_cloudhub_queue_age_seconds",
    "kubeedge_cloudhub_queue_depth",
    "kubeedge_cloudhub_received_bytes_total",
    "kubeedge_cloudhub_refused_total",
    "kubeedge_cloudhub_resends_total",
    "kubeedge_cloudhub_sent_bytes_total",
    "kubeedge_cloudhub_sessions",
    "kubeedge_devicecontroller_passed_over_total",
    "kubeedge_devicecontroller_writes_total",
    "kubeedge_edgecontroller_events_dropped_total",
    "kubeedge_edgecontroller_events_recorded_total",
    "kubeedge_edgecontroller_events_retried_total",
    "kubeedge_edgecontroller_events_waiting",
    "kubeedge_edgecontroller_held_back_total",
    "kubeedge_edgecontroller_oldest_write_seconds",
    "kubeedge_edgecontroller_unread_objects",
    "kubeedge_edgecontroller_writes_total",
    "kubeedge_joins_refused_total",
    "kubeedge_relay_answered_total",
    "kubeedge_relay_certificates_refused_total",
    "kubeedge_relay_failed_total",
    "kubeedge_relay_passed_on_total",
];

const LANES: [&str; 5] = ["heartbeat", "pods", "config", "devices", "bulk"];

/// Looks at the figures of a cloudcore that one node is connected to.
fn every_figure_is_there(cloud: &Cloud) -> Result<()> {
    let (status, page) = cloud.monitor("/metrics")?;
    ensure!(status == 200, "{status}: {page}");
    for name in FIGURES {
        ensure!(page.contains(&format!("# HELP {name} ")), "{name} is not in {page}");
        ensure!(page.contains(&format!("# TYPE {name} ")), "{name} is not in {page}");
    }
    let told: BTreeSet<_> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let more: Vec<_> = told.iter().filter(|name| !FIGURES.contains(name)).collect();
    ensure!(more.is_empty(), "a figure that no test knows: {more:?}");

    let of_lanes = |name: &str| -> Result<f64> {
        LANES.iter().map(|lane| cloud.figure(&format!("{name}{{lane=\"{lane}\"}}"))).sum()
    };
    let sent = of_lanes("kubeedge_cloudhub_sent_bytes_total")?;
    let received = of_lanes("kubeedge_cloudhub_received_bytes_total")?;
    ensure!(sent > 0.0 && received > 0.0, "{sent} bytes sent, {received} received");
    // How much waits is a matter of the moment; a link on one machine is quick.
    let (depth, age) =
        (of_lanes("kubeedge_cloudhub_queue_depth")?, of_lanes("kubeedge_cloudhub_queue_age_seconds")?);
    ensure!(depth >= 0.0 && (0.0..60.0).contains(&age), "{depth} wait, for {age} s");

    let memory = cloud.metric("kubeedge_cloudhub_memory_bytes")?;
    let most = cloud.metric("kubeedge_cloudhub_memory_max_bytes")?;
    ensure!(memory > 0 && memory < most, "{memory} of {most} bytes");
    ensure!(cloud.metric("kubeedge_cloudhub_sessions")? == 1);
    ensure!(cloud.metric("kubeedge_cloudhub_refused_total")? == 0, "there was room for the node");
    // These are about luck with the link and the pace of devices: that they are numbers is all that is sure.
    for name in ["kubeedge_cloudhub_resends_total", "kubeedge_devicecontroller_passed_over_total"] {
        cloud.metric(name)?;
    }
    // Each part that judges nodes has each reason, also those that it has not met.
    for part in ["edgecontroller", "devicecontroller"] {
        for reason in ["not-referenced", "other-node", "unreadable"] {
            let name = format!("kubeedge_authorization_denials_total{{part=\"{part}\",reason=\"{reason}\"}}");
            cloud.metric(&name)?;
        }
    }
    Ok(())
}

/// Asks a cloudcore for its node with the node's own certificate: whether it was refused, and what was told.
fn show(certificates: &Path, port: u16) -> Result<(bool, String)> {
    let at = |name: &str| certificates.join(name).to_string_lossy().into_owned();
    let url = format!("https://127.0.0.1:{port}/v1/nodes/edge-1/request");
    let output = Command::new("curl")
        .args(["-s", "--cacert", &at("rootCA.crt"), "--cert", &at("server.crt"), "--key", &at("server.key")])
        .args(["-d", "x", &url])
        .output()?;
    Ok((!output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()))
}
