//! What both controllers stand on: watching the API as raw JSON, knowing which node needs which object, and
//! writing to the API without letting one slow object hold up the others.
//!
//! * [`watch`](mod@watch): list and watch of one kind; objects keep their bytes.
//! * [`Placement`]: which object goes to which node, pure.
//! * [`Sight`]: which kinds can be watched at present.
//! * [`Writes`]: which write is next, pure: newest wins, one at a time per key, retried with back-off.
//! * [`lease`]: what a node's Lease says of the cloud that has the node, pure.
//! * [`api`]: the few requests the controllers make, and what an answer of the API means for a write.

#![cfg_attr(
    not(all(feature = "edgecontroller", feature = "relay", feature = "router")),
    allow(
        dead_code,
        unused_imports,
        reason = "EdgeController, DeviceController, Election, Relay and Router need a part of it each"
    )
)]

pub(crate) mod api;
#[cfg(any(feature = "devicecontroller", feature = "edgecontroller", feature = "router"))]
mod held;
pub(crate) mod lease;
#[cfg(any(feature = "devicecontroller", feature = "edgecontroller", feature = "router"))]
mod placement;
mod pruned;
#[cfg(any(feature = "devicecontroller", feature = "edgecontroller", feature = "router"))]
pub(crate) mod references;
mod sight;
#[cfg(test)]
pub(crate) mod testing;
mod watch;
mod writes;

pub(crate) use api::Outcome;
#[cfg(any(feature = "devicecontroller", feature = "edgecontroller", feature = "router"))]
pub(crate) use held::{Held, Packed};
#[cfg(any(feature = "devicecontroller", feature = "edgecontroller", feature = "router"))]
pub(crate) use placement::{Goes, Placed, Placement};
pub(crate) use pruned::pruned;
pub(crate) use sight::Sight;
#[cfg(any(feature = "devicecontroller", feature = "edgecontroller"))]
pub(crate) use watch::watch_in;
#[cfg(any(test, feature = "edgecontroller"))]
pub(crate) use watch::watch_metadata_in;
pub(crate) use watch::{Change, Kind, Timing, watch};
pub(crate) use writes::{Backoff, Limits, Writes};

/// After so many failures in a row an operator should know: with the back-off of the controllers that is some
/// ten seconds, longer than a restart of one of several API servers is felt.
pub(crate) const WORTH_A_WARNING: u32 = 4;

use std::time::Instant;

/// Waits until `at`; for ever if there is nothing to wait for.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The time by tokio's clock, which tests can stop.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
