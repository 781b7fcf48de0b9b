//! Many nodes, each of which is its link alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kube::api::{ListParams, Patch, PatchParams};
use kubeedge_cloud::pki::Authority;
use kubeedge_core::message::{Connectivity, Object};
use kubeedge_tests::binaries;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    api,
    fleet::{ApiSite, Cloudcore, Node},
    seconds,
};

const NODES: usize = 20;
const PODS: usize = 3;

/// For how long there are faults.
const SECONDS: u64 = 16;
/// How many seconds lie between two of them.
const EVERY: u64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_move_to_another_replica_when_theirs_is_killed_and_nothing_is_lost() -> Result<()> {
    let (faulty, every) = (seconds("REPLICAS_SECONDS", SECONDS)?, seconds("REPLICAS_EVERY", EVERY)?);
    let folder = tempfile::tempdir()?;
    let api = api(folder.path()).await?;
    let authority = Authority::create()?;
    let program = binaries().folder.join("cloudcore");
    let mut replicas = Vec::new();
    for number in 0..3 {
        let folder = folder.path().join(format!("cloud-{number}"));
        let mut cloudcore = Cloudcore::prepare(program.clone(), &folder, &api, &authority, NODES, 4)?;
        cloudcore.spawn()?;
        replicas.push(cloudcore);
    }
    let names: Vec<String> = (0..NODES).map(|number| format!("node-{number}")).collect();
    api.create_pods(&names, PODS).await?;
    let ports: Vec<u16> = replicas.iter().map(|replica| replica.quic).collect();
    // Each begins at another cloud.
    let ports = |number: usize| [ports[number % 3], ports[(number + 1) % 3], ports[(number + 2) % 3]];
    let start = |(number, name): (usize, &String)| Node::start(name, &authority, &ports(number));
    let nodes: Vec<Node> = names.iter().enumerate().map(start).collect::<Result<_>>()?;
    in_sync(&nodes).await?;
    agree(&api, &nodes, &names).await?;

    let (began, mut killed, mut round) = (Instant::now(), Instant::now(), 0);
    let mut longest = Duration::ZERO;
    while began.elapsed() < faulty {
        change(&api, &names, round).await?;
        round += 1;
        if killed.elapsed() > every {
            let replica = &mut replicas[round % 3];
            replica.kill();
            killed = Instant::now();
            // While one is away, the other two have all nodes, and changes arrive.
            in_sync(&nodes).await?;
            agree(&api, &nodes, &names).await?;
            longest = longest.max(killed.elapsed());
            replicas[round % 3].spawn()?;
        }
        sleep(Duration::from_millis(50)).await;
    }
    in_sync(&nodes).await?;
    agree(&api, &nodes, &names).await?;
    println!("{NODES} nodes had another cloud, and all changes, within {longest:.1?} at the longest");
    ensure!(longest < Duration::from_secs(25), "nodes were without a cloud for {longest:?}");
    let taken: usize = nodes.iter().map(Node::deleted).sum();
    ensure!(taken == 0, "{taken} objects were taken from nodes, and none was deleted");

    // One that is told to end sends its nodes elsewhere, and says until then that it is well.
    ensure!(
        replicas[0].monitor("/healthz").is_some_and(|(status, _)| status == 200),
        "{}",
        replicas[0].log()
    );
    let (_, metrics) = replicas[1].monitor("/metrics").context("no metrics")?;
    ensure!(metrics.contains("kubeedge_cloudhub_sessions "), "{metrics}");
    replicas[0].terminate()?;
    change(&api, &names, round).await?;
    agree(&api, &nodes, &names).await
}

/// Changes a pod of every fourth node.
async fn change(api: &ApiSite, names: &[String], round: usize) -> Result<()> {
    for name in names.iter().skip(round % 4).step_by(4) {
        let patch = json!({ "metadata": { "annotations": { "round": round.to_string() } } });
        let pod = format!("{name}-{}", round % PODS);
        api.pods().patch(&pod, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    Ok(())
}

async fn in_sync(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        node.wait_until(|state| state == Connectivity::Synchronized).await?;
    }
    Ok(())
}

/// Waits until every node holds its pods as they are, and the API says of all that they run.
async fn agree(api: &ApiSite, nodes: &[Node], names: &[String]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let wrong = difference(api, nodes, names).await?;
        if wrong.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not within a minute: {wrong:?}");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn difference(api: &ApiSite, nodes: &[Node], names: &[String]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for pod in api.raw_pods().list(&ListParams::default()).await?.items {
        let object = Object::from_item("v1", "Pod", serde_json::to_vec(&pod)?)?;
        let on = pod.data["spec"]["nodeName"].as_str().context("a pod without a node")?;
        let node = names.iter().position(|name| name == on).context("a pod of an unknown node")?;
        if !nodes[node].holds(&object) {
            wrong.push(format!("{on} has another {}", object.reference));
        }
        let phase = pod.data["status"]["phase"].as_str().unwrap_or_default();
        if phase != "Running" {
            wrong.push(format!("{} is {phase:?}", object.reference));
        }
    }
    for node in api.nodes().list(&ListParams::default()).await?.items {
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
        if ready.is_none_or(|ready| ready.status != "True") {
            wrong.push(format!("{:?} is not ready", node.metadata.name));
        }
    }
    Ok(wrong)
}
