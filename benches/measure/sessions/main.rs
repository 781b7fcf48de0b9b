//! Claim: a connected node that has nothing to say costs the cloud next to nothing, and thousands that come back at once
//! are in sync again within seconds and within bounds.
//!
//! Workload: `--nodes` nodes (2,000), each EdgeHub itself over QUIC with a certificate of its own, with five pods and its
//! inventory in memory, against a cloudcore in a process of its own. The Kubernetes API is in this process, in memory, and
//! served to cloudcore over TLS on the loopback address; so cloudcore's memory is that of a cloudcore of a cluster.
//!
//! * Memory: a cloudcore that has listed all Nodes and Pods is left alone until it has settled, and its resident memory
//!   read; then all nodes connect, report and are in sync, and after the same pause it is read again. The difference is
//!   divided by the sessions. What listing has left free in the process may be used again by sessions, which would flatter
//!   them: so the difference to a cloudcore that serves an empty API is printed too, in which the copies of five Pods a
//!   node are counted.
//! * Traffic: the bytes of all UDP packets that the nodes' sockets sent and received, without IP and UDP headers (28 bytes
//!   a packet, which are counted beside), while nothing happened.
//! * Changes: 200 pods a second are changed in the API, each of another node, for 20 s; the delay of each is counted until
//!   its node has acknowledged it. Twice, which shows the noise; then once more while one node reads nothing that it is
//!   sent, and its own pods are changed as often.
//! * Storm: cloudcore is ended by SIGTERM, which sends all nodes away, and started again, and they come back at once. The
//!   time is from the start of the process to the last node that is in sync; the memory is the highest of the process's
//!   life. Then it is killed, which the nodes notice with their next heartbeat or a probe of their own.
//! * Ready: from the start of the process to the first 200 of `/readyz`, with all Nodes and Pods to be listed; once with
//!   nobody connecting, once in the storm.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

#[path = "../../../tests/support/fleet/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "written for the tests, which use all of it")]
mod fleet;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::future::try_join_all;
use kubeedge_cloud::pki::Authority;
use kubeedge_core::message::Connectivity;
use serde::Serialize;
use tokio::time::{interval, sleep, timeout};

use fleet::{ApiSite, Cloudcore, Node, Traffic};

#[derive(Debug, Parser)]
struct Options {
    /// How many nodes connect.
    #[arg(long, default_value_t = 2_000)]
    nodes: usize,
    /// How long memory settles and traffic is counted, in seconds.
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Pods of each node.
const PODS: usize = 5;

/// How many pods are changed for the figure of delays, and how often.
const CHANGES: usize = 4_000;
const CHANGE_EVERY: Duration = Duration::from_millis(5);

/// What is printed.
#[derive(Debug, Default, Serialize)]
struct Figures {
    sessions: usize,
    /// Against a cloudcore of an empty API: a session, its node and its pods.
    rss_kib_per_session: f64,
    /// Against the same process that has listed the same Nodes and Pods: the session alone.
    rss_kib_per_session_alone: f64,
    rss_kib_empty: u64,
    rss_kib_listed: u64,
    rss_kib_connected: u64,
    /// UDP payload, both ways together.
    idle_bytes_per_s_per_node: f64,
    /// The same with the headers of IPv4 and UDP.
    idle_bytes_per_s_per_node_with_headers: f64,
    /// From the start of cloudcore to the first 200 of `/readyz`.
    ready_ms: u64,
    /// The same while all nodes come back at once.
    ready_in_storm_ms: u64,
    /// From a change in the API to the node's acknowledgement.
    change_ms_p99: f64,
    change_ms_p99_again: f64,
    change_ms_p99_beside_a_stalled_node: f64,
    /// From nothing to all in sync, which registers all nodes.
    first_connect_seconds: f64,
    storm_seconds: f64,
    storm_peak_rss_kib: u64,
    /// As `storm_seconds`, but the process was killed.
    after_kill_seconds: f64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let options = Options::parse();
    let figures = measure(&options).await?;
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    }
    Ok(())
}

async fn measure(options: &Options) -> Result<Figures> {
    let settle = Duration::from_secs(options.idle);
    let folder = tempfile::tempdir()?;
    let api = ApiSite::start(folder.path()).await?;
    let authority = Authority::create()?;
    let program = std::env::current_exe()?.with_file_name("cloudcore");
    // KubeEdge's default: a heartbeat every 15 s.
    let mut cloudcore = Cloudcore::prepare(program, folder.path(), &api, &authority, options.nodes, 30)?;

    cloudcore.spawn()?;
    sleep(settle).await;
    let rss_kib_empty = cloudcore.rss_kib()?;
    cloudcore.kill();
    eprintln!("{rss_kib_empty} KiB with an empty API");

    let names: Vec<String> = (0..options.nodes).map(|number| format!("node-{number}")).collect();
    api.create_pods(&names, PODS).await?;
    api.create_nodes(&names).await?;
    let began = Instant::now();
    cloudcore.spawn()?;
    let ready_ms = ready(&cloudcore, began).await?;
    sleep(settle).await;
    let rss_kib_listed = cloudcore.rss_kib()?;
    eprintln!("ready after {ready_ms} ms with {} pods listed, {rss_kib_listed} KiB", options.nodes * PODS);

    let began = Instant::now();
    let mut nodes: Vec<Node> =
        names.iter().map(|name| Node::start(name, &authority, &[cloudcore.quic])).collect::<Result<_>>()?;
    all_in_sync(&nodes).await?;
    let first_connect_seconds = began.elapsed().as_secs_f64();
    eprintln!("{} nodes connected after {first_connect_seconds:.1} s", options.nodes);
    api.wait_for_running(options.nodes * PODS).await?;
    sleep(settle).await;
    let before = traffic(&nodes);
    sleep(settle).await;
    let idle = traffic(&nodes).since(&before);
    let rss_kib_connected = cloudcore.rss_kib()?;
    eprintln!("{rss_kib_connected} KiB with all of them; pods are changed, three times");

    let change_ms_p99 = changes(&api, &names, &nodes, false).await?;
    let change_ms_p99_again = changes(&api, &names, &nodes, false).await?;
    nodes[0].stall();
    let change_ms_p99_beside_a_stalled_node = changes(&api, &names, &nodes, true).await?;
    nodes.swap_remove(0);

    eprintln!("cloudcore is restarted, then killed");
    cloudcore.terminate()?;
    let (storm_seconds, ready_in_storm_ms) = come_back(&mut cloudcore, &nodes).await?;
    let storm_peak_rss_kib = cloudcore.peak_rss_kib()?;
    cloudcore.kill();
    let (after_kill_seconds, _) = come_back(&mut cloudcore, &nodes).await?;

    let per_node = |bytes: u64| round(bytes as f64 / settle.as_secs_f64() / options.nodes as f64);
    let per_session =
        |without: u64| round((rss_kib_connected as f64 - without as f64) / options.nodes as f64);
    Ok(Figures {
        sessions: options.nodes,
        rss_kib_per_session: per_session(rss_kib_empty),
        rss_kib_per_session_alone: per_session(rss_kib_listed),
        rss_kib_empty,
        rss_kib_listed,
        rss_kib_connected,
        idle_bytes_per_s_per_node: per_node(idle.bytes),
        idle_bytes_per_s_per_node_with_headers: per_node(idle.bytes + 28 * idle.packets),
        ready_ms,
        ready_in_storm_ms,
        change_ms_p99,
        change_ms_p99_again,
        change_ms_p99_beside_a_stalled_node,
        first_connect_seconds: round(first_connect_seconds),
        storm_seconds: round(storm_seconds),
        storm_peak_rss_kib,
        after_kill_seconds: round(after_kill_seconds),
    })
}

/// Changes pods of all nodes but the first, and of the first too if it is stalled, and returns the 99th percentile of the
/// delays at the others, in milliseconds.
async fn changes(api: &ApiSite, names: &[String], nodes: &[Node], stalled: bool) -> Result<f64> {
    let healthy = 1..names.len();
    for node in nodes {
        node.take_delays();
    }
    let mut every = interval(CHANGE_EVERY);
    for (number, node) in healthy.clone().cycle().take(CHANGES).enumerate() {
        every.tick().await;
        let its_pod = number / healthy.len() % PODS;
        if stalled {
            let (one, other) =
                tokio::join!(api.change_pod(&names[node], its_pod), api.change_pod(&names[0], number % PODS));
            one.and(other)?;
        } else {
            api.change_pod(&names[node], its_pod).await?;
        }
    }
    let mut delays = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while delays.len() < CHANGES {
        ensure!(Instant::now() < deadline, "{} of {CHANGES} changes were acknowledged", delays.len());
        sleep(Duration::from_millis(100)).await;
        delays.extend(nodes[healthy.clone()].iter().flat_map(Node::take_delays));
    }
    delays.sort_unstable();
    Ok(round(delays[CHANGES * 99 / 100].as_secs_f64() * 1000.0))
}

/// Starts cloudcore, and returns after how many seconds all nodes are in sync and after how many milliseconds it was ready.
async fn come_back(cloudcore: &mut Cloudcore, nodes: &[Node]) -> Result<(f64, u64)> {
    let began = Instant::now();
    cloudcore.spawn()?;
    let ready_ms = ready(cloudcore, began).await?;
    // Those that have not noticed yet call themselves in sync: so each has to come to it anew.
    try_join_all(nodes.iter().map(|node| node.wait_for_sync_since(began))).await?;
    let last = nodes.iter().filter_map(Node::last_sync).max().context("a node that was in sync")?;
    Ok(((last - began).as_secs_f64(), ready_ms))
}

/// After how many milliseconds a cloudcore that began at `began` is ready.
async fn ready(cloudcore: &Cloudcore, began: Instant) -> Result<u64> {
    let ready = async {
        loop {
            if let Some((200, _)) = cloudcore.monitor("/readyz") {
                return began.elapsed();
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let ready =
        timeout(Duration::from_secs(60), ready).await.context("cloudcore is not ready after a minute")?;
    Ok(u64::try_from(ready.as_millis())?)
}

async fn all_in_sync(nodes: &[Node]) -> Result<()> {
    let synchronized = |state| state == Connectivity::Synchronized;
    try_join_all(nodes.iter().map(|node| node.wait_until(synchronized))).await.map(drop)
}

fn traffic(nodes: &[Node]) -> Traffic {
    nodes.iter().map(Node::traffic).fold(Traffic::default(), Traffic::and)
}

fn round(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}
