//! Three clouds on one API, one of which fails again and again while everything changes.
//!
//! `REPLICAS_SECONDS` sets for how long, and `REPLICAS_EVERY` how many seconds lie between two failures, as `cargo xtask
//! soak replicas` does.

#[path = "../support/balancer.rs"]
mod balancer;
#[path = "../support/containerd.rs"]
mod containerd;
#[path = "../support/fleet/mod.rs"]
#[expect(dead_code, unreachable_pub, unused_imports, reason = "the measuring program uses the rest of it")]
mod fleet;
mod hubs;
mod load;
mod pods;
#[path = "../simulation/random.rs"]
mod random;
mod witness;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use fleet::ApiSite;
use kubeedge_tests::{api::client, binaries, site::cluster};

/// The API: in memory, or the cluster that tests run on.
async fn api(folder: &Path) -> Result<ApiSite> {
    let Some(admin) = cluster::admin() else { return ApiSite::start(folder).await };
    let account = folder.join("cloudcore.kubeconfig");
    cluster::prepare(&admin, &binaries().folder.join("cloudcore"), &account)?;
    Ok(ApiSite::of_cluster(client(&admin).await?, account))
}

/// A number of seconds that a variable may set.
fn seconds(variable: &str, otherwise: u64) -> Result<Duration> {
    let set =
        std::env::var(variable).ok().map(|text| text.parse().with_context(|| format!("{variable}={text}")));
    Ok(Duration::from_secs(set.transpose()?.unwrap_or(otherwise)))
}
