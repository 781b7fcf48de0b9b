//! The Kubernetes API is gone, slow, or answers nonsense: nodes keep their sessions, and catch up afterwards.
//!
//! A proxy between cloudcore and the API, the standalone one's or a cluster's, does the harm.

#[path = "support/api_proxy.rs"]
mod api_proxy;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use api_proxy::{ApiProxy, Mood};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, wait_for, wait_within},
};

/// How long each trouble lasts at least: longer than the first attempts of cloudcore, which follow after 1 and 2 seconds.
const TROUBLE: Duration = Duration::from_secs(4);

/// The troubles, one after another.
const MOODS: [Mood; 6] =
    [Mood::Gone, Mood::Silent, Mood::Garbage, Mood::Refuses(410), Mood::Refuses(429), Mood::Refuses(403)];

/// After how long cloudcore says that it cannot write: well before a trouble ends.
const STALLED_AFTER: &str = "kubeedgeRs: {edgeController: {stalledAfter: 2s}}\n";

/// That the ConfigMaps cannot be watched. Each trouble begins after a change of one was seen, so that it is not left over from
/// the trouble before: kinds that nothing happens to are asked for again after up to 30 seconds.
const BROKEN: &str = "kubeedge_broken_watches{part=\"edgecontroller\",kind=\"ConfigMap\"}";

/// For how long what a node has reported waits.
const OLDEST: &str = "kubeedge_edgecontroller_oldest_write_seconds{what=\"reports\"}";

/// Reports that the API refuses for good.
const REFUSED: &str = "kubeedge_edgecontroller_writes_total{what=\"reports\",outcome=\"refused\"}";

/// Whether cloudcore says what is wrong, to who asks whether it is ready and by the figure that is about it. `refused` is
/// how many reports had been refused before.
fn is_told(cloud: &Cloud, mood: Mood, refused: u64) -> Result<bool> {
    let (status, text) = cloud.monitor("/readyz")?;
    let names = |check: &str| status == 503 && text.contains(check);
    let waits = || -> Result<bool> { Ok(names("edgecontroller-writes") && cloud.figure(OLDEST)? >= 2.0) };
    match mood {
        Mood::Helpful => Ok(false),
        Mood::Gone | Mood::Garbage | Mood::Refuses(403) => {
            let is_blind = names("edgecontroller-watches") && cloud.monitor("/metrics")?.1.contains(BROKEN);
            Ok(is_blind && waits()?)
        }
        // A watch that is not answered counts as broken after a minute, and kube's client itself asks again for longer than
        // that where it is told 429. What nodes report waits meanwhile.
        Mood::Silent | Mood::Refuses(429) => waits(),
        // By design no reason not to be ready: 410 says to a watch that it was left behind, as happens to the best, and a
        // report that was refused was answered. The figure shows it.
        Mood::Refuses(_) => Ok(cloud.metric(REFUSED)? > refused),
    }
}

fn greeting(word: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: greeting, namespace: default}}\ndata: {{word: \"{word}\"}}\n"
    )
}

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: default}
spec:
  nodeName: edge-1
  containers:
    - name: main
      image: none
      command: [sleep, "100000"]
      volumeMounts: [{name: greeting, mountPath: /greeting}]
  volumes: [{name: greeting, configMap: {name: greeting}}]
"#;

/// A pod that is ready in every other second, so that its node always has something to report.
const FICKLE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: fickle, namespace: default}
spec:
  nodeName: edge-1
  containers:
    - name: main
      image: none
      command: [sleep, "100000"]
      readinessProbe:
        exec: {command: [sh, -c, "test $(( $(date +%s) % 2 )) = 0"]}
        periodSeconds: 1
        failureThreshold: 1
"#;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_keep_their_sessions_whatever_the_api_does_and_catch_up_and_cloudcore_says_what_is_wrong()
-> Result<()> {
    let (folder, binaries) = (tempfile::tempdir()?, binaries());
    let api = Cloud::start(&binaries, &folder.path().join("api"))?;
    let proxy = ApiProxy::start(&api.account()).await?;
    let cloud = api.another_with_modules(&folder.path().join("cloud"), &proxy.kubeconfig(), STALLED_AFTER)?;
    let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &EdgeOptions::new("edge-1"))?;
    let logs = || format!("{}{}", cloud.log(), edge.log());
    wait_for("the node to be Ready", || Ok(api.kubectl(&["get", "nodes"])?.contains(" Ready ")))
        .with_context(logs)?;
    api.apply(&format!("{}---{POD}---{FICKLE}", greeting("start")))?;
    api.kubectl(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=60s"]).with_context(logs)?;

    let is_well = || -> Result<bool> {
        let is_written = !cloud.monitor("/readyz")?.1.contains("edgecontroller-writes");
        Ok(is_written && !cloud.monitor("/metrics")?.1.contains(BROKEN))
    };
    for mood in MOODS {
        let word = format!("{mood:?}");
        wait_for(&format!("cloudcore to be well before {mood:?}"), is_well).with_context(logs)?;
        let (refused, began) = (cloud.metric(REFUSED)?, Instant::now());
        proxy.set(mood);
        api.apply(&greeting(&word))?;
        wait_for(&format!("cloudcore to say what is wrong, the API being {mood:?}"), || {
            is_told(&cloud, mood, refused)
        })
        .with_context(|| format!("{:?}{}", cloud.monitor("/readyz"), logs()))?;
        tokio::time::sleep(TROUBLE.saturating_sub(began.elapsed())).await;
        ensure!(!mounted(&edge).contains(&word), "the proxy did no harm: {mood:?}");
        proxy.set(Mood::Helpful);
        // Troubles that follow each other count as one: cloudcore asks again after 30 seconds at the latest.
        let caught_up = || Ok(mounted(&edge).contains(&word));
        wait_within(Duration::from_secs(60), &format!("the node to catch up after {mood:?}"), caught_up)
            .with_context(logs)?;
        ensure!(!cloud.log().contains("the node's session is over"), "{mood:?}: {}", cloud.log());
    }
    let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    // The cloudcore that only lends its API has no session with the node, and says so once.
    wait_for("the node to be Ready", || Ok(api.kubectl(&["get", "node", "edge-1", "-o", ready])? == "True"))
        .with_context(logs)?;
    ensure!(
        api.kubectl(&["get", "pod", "reader", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"])?
            == "0"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_reports_while_the_api_is_gone_is_there_when_it_is_back() -> Result<()> {
    let (folder, binaries) = (tempfile::tempdir()?, binaries());
    let api = Cloud::start(&binaries, &folder.path().join("api"))?;
    let proxy = ApiProxy::start(&api.account()).await?;
    let cloud = api.another_with_modules(&folder.path().join("cloud"), &proxy.kubeconfig(), STALLED_AFTER)?;
    let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &EdgeOptions::new("edge-1"))?;
    let logs = || format!("{}{}", cloud.log(), edge.log());
    let pod = POD.replace(r#"[sleep, "100000"]"#, r#"[sh, -c, "sleep 3; exit 7"]"#);
    let pod = pod.replace("nodeName: edge-1", "nodeName: edge-1\n  restartPolicy: Never");
    let probe = "image: none\n      livenessProbe: {exec: {command: [\"false\"]}, initialDelaySeconds: 2, periodSeconds: 1, failureThreshold: 100}";
    let pod = pod.replace("image: none", probe);
    api.apply(&format!("{}---{pod}", greeting("start")))?;
    let phase = || api.kubectl(&["get", "pod", "reader", "-o", "jsonpath={.status.phase}"]);
    wait_for("the pod to run", || Ok(phase()? == "Running")).with_context(logs)?;

    wait_for("cloudcore to be ready", || Ok(cloud.monitor("/readyz")?.0 == 200)).with_context(logs)?;
    let figure = |name: &str| cloud.metric(name);
    let retried = "kubeedge_edgecontroller_writes_total{what=\"reports\",outcome=\"retried\"}";
    let broken = "kubeedge_broken_watches{part=\"edgecontroller\",kind=\"Pod\"}";
    ensure!(figure(broken).is_err(), "nothing is broken yet");

    proxy.set(Mood::Gone);
    // The pod ends, and what its node reports waits; the watches begin again after 1 and 2 seconds.
    wait_for("cloudcore to say what is wrong", || {
        let (status, text) = cloud.monitor("/readyz")?;
        Ok(status == 503 && text.contains("edgecontroller-watches") && text.contains("edgecontroller-writes"))
    })
    .with_context(logs)?;
    ensure!(figure(broken)? == 1 && figure(retried)? > 0);
    ensure!(figure("kubeedge_edgecontroller_events_waiting")? > 0, "a probe that fails is an event");
    ensure!(phase()? == "Running", "the proxy did no harm");
    proxy.set(Mood::Helpful);
    wait_for("the pod's end", || Ok(phase()? == "Failed")).with_context(logs)?;
    wait_within(Duration::from_secs(60), "cloudcore to be ready again", || {
        Ok(cloud.monitor("/readyz")?.0 == 200 && figure("kubeedge_edgecontroller_events_waiting")? == 0)
    })
    .with_context(logs)?;
    ensure!(figure(broken).is_err(), "the watches are whole again");
    let events = api.kubectl(&["get", "events"])?;
    ensure!(events.contains("Unhealthy"), "what happened while the API was gone is lost: {events}");
    let code = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
    ensure!(api.kubectl(&["get", "pod", "reader", "-o", code])? == "7");
    Ok(())
}

/// What the node's pod finds in its mounted file.
fn mounted(edge: &Edge) -> String {
    fn find(folder: &Path) -> Option<String> {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            // The writer's own folders are reached through the link that makes a change atomic.
            if entry.file_name().to_string_lossy().starts_with("..") {
                continue;
            }
            let path = entry.path();
            if entry.file_name() == "word" {
                return fs::read_to_string(path).ok();
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Some(found) = find(&path)
            {
                return Some(found);
            }
        }
        None
    }
    find(&edge.folder().join("root")).unwrap_or_default()
}
