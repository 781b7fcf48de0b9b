//! Claim: a node that is far away is brought up to date as fast as the bytes go, not one round trip for each object.
//!
//! Workload: a node, which is EdgeHub itself over QUIC, reaches a cloudcore in a process of its own through a relay that holds
//! back each packet for half of the round trip, 200 ms, in both directions. 1,000 of its pods are changed in the API, 64 at a
//! time. Each is counted from its change until the node has said that it holds it, and that word is half a round trip away
//! from the cloud. The same is done without a relay, which shows how long the API itself takes for so many changes.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

#[path = "../../../tests/support/fleet/mod.rs"]
#[expect(dead_code, unreachable_pub, unused_imports, reason = "written for the tests, which use all of it")]
mod fleet;
mod relay;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use kubeedge_cloud::pki::Authority;
use kubeedge_core::message::Connectivity;
use serde::Serialize;
use tokio::time::sleep;

use fleet::{ApiSite, Cloudcore, Node};
use relay::Relay;

#[derive(Debug, Parser)]
struct Options {
    /// How many objects are changed.
    #[arg(long, default_value_t = 1_000)]
    objects: usize,
    /// The round trip, in milliseconds.
    #[arg(long, default_value_t = 200)]
    round_trip_ms: u64,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed. All of it includes the way of the last acknowledgement.
#[derive(Debug, Serialize)]
struct Figures {
    objects: usize,
    round_trip_ms: u64,
    /// UDP payload of all these changes, both ways together.
    kib: u64,
    /// From the first change until the cloud has the acknowledgement of the last one.
    all_acknowledged_seconds: f64,
    /// The same without a distance.
    all_acknowledged_seconds_at_no_distance: f64,
    /// From one change until its own acknowledgement.
    change_ms_p50: f64,
    change_ms_max: f64,
    /// From its start to being in sync, for a node that has nothing yet: the handshakes, and all objects.
    first_sync_seconds: f64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let options = Options::parse();
    let half = Duration::from_millis(options.round_trip_ms) / 2;
    let folder = tempfile::tempdir()?;
    let api = ApiSite::start(folder.path()).await?;
    let authority = Authority::create()?;
    let program = std::env::current_exe()?.with_file_name("cloudcore");
    let mut cloudcore = Cloudcore::prepare(program, folder.path(), &api, &authority, 10, 30)?;
    let names = ["near".to_owned(), "far".to_owned()];
    api.create_nodes(&names).await?;
    api.create_pods(&names, options.objects).await?;
    cloudcore.spawn()?;

    let near = Node::start("near", &authority, &[cloudcore.quic])?;
    in_sync(&near, Instant::now()).await?;
    let relay = Relay::start(cloudcore.quic, half).await?;
    let far = Node::start("far", &authority, &[relay.port])?;
    let first_sync = in_sync(&far, Instant::now()).await?;
    api.wait_for_running(2 * options.objects).await?;
    eprintln!("both nodes are in sync, the far one after {:.1} s", first_sync.as_secs_f64());

    let at_no_distance = change_all(&api, "near", &near, options.objects).await?;
    let before = far.traffic();
    let at_distance = change_all(&api, "far", &far, options.objects).await?;
    let delays = &at_distance.delays;
    let figures = Figures {
        objects: options.objects,
        round_trip_ms: options.round_trip_ms,
        kib: far.traffic().since(&before).bytes >> 10,
        all_acknowledged_seconds: seconds(at_distance.all + half),
        all_acknowledged_seconds_at_no_distance: seconds(at_no_distance.all),
        change_ms_p50: seconds(delays[delays.len() / 2] + half) * 1000.0,
        change_ms_max: seconds(delays[delays.len() - 1] + half) * 1000.0,
        first_sync_seconds: seconds(first_sync),
    };
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    }
    Ok(())
}

async fn in_sync(node: &Node, began: Instant) -> Result<Duration> {
    node.wait_until(|state| state == Connectivity::Synchronized).await?;
    Ok(node.last_sync().context("it is in sync")?.saturating_duration_since(began))
}

struct Changes {
    /// From the first change until the node has the last.
    all: Duration,
    /// Of each, in ascending order.
    delays: Vec<Duration>,
}

async fn change_all(api: &ApiSite, name: &str, node: &Node, count: usize) -> Result<Changes> {
    node.take_delays();
    let began = Instant::now();
    stream::iter(0..count)
        .map(|number| api.change_pod(name, number))
        .buffer_unordered(64)
        .try_collect::<()>()
        .await?;
    let mut delays = Vec::new();
    while delays.len() < count {
        ensure!(began.elapsed() < Duration::from_secs(120), "{} of {count} changes arrived", delays.len());
        sleep(Duration::from_millis(2)).await;
        delays.extend(node.take_delays());
    }
    let all = began.elapsed();
    delays.sort_unstable();
    Ok(Changes { all, delays })
}

fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}
