//! Claim: a node takes twin updates from its applications faster than a site makes them, each durable before it is
//! answered; and a thousand devices that are read ten times a second load neither the API nor the node's memory.
//!
//! Workload 1, [`updates`]: applications update one property each of 100 devices with 10 properties over the embedded
//! MQTT broker, with QoS 1, on connections of their own; another application hears all results. The store is redb on a disk,
//! so that an update is durable when its result comes. First as fast as it goes, then 10,000 a second, at which the time
//! from an application's call to the result is measured. The clients are part of the process, and take their share of
//! its processors.
//!
//! Workload 2, [`readings`]: a mapper reads 10 properties each of 1,000 devices every second, and every value is another
//! one. Keeper keeps each in redb, DeviceTwin brings them to applications and to DeviceController, which writes statuses
//! into the standalone API. The link between both is left out. API writes are counted as requests at the API.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]

mod readings;
mod updates;

use anyhow::Result;
use serde::Serialize;

/// What is printed.
#[derive(Debug, Serialize)]
struct Figures {
    /// Updates whose results came in a second, all of them on the disk by then.
    durable_updates_per_s: f64,
    /// From an application's call to the result, at 10,000 updates a second.
    result_ms_p50_at_half_load: f64,
    result_ms_p99_at_half_load: f64,
    /// Values that the mapper read.
    readings_sent: u64,
    /// Those of them that are not in Keeper's store.
    readings_lost: u64,
    /// Values a second.
    readings_per_s: f64,
    /// PATCH requests at the API in a second, once the credit of devices that were quiet is used up.
    api_status_writes_per_s: f64,
    /// Reports that DeviceController passed over for newer ones.
    reports_passed_over: u64,
    /// The whole process, when every bounded history is full, and three minutes of readings later.
    rss_kib_start: u64,
    rss_kib_end: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    // First, so that its memory is not that which the updates have left to the allocator.
    let readings = readings::measure().await?;
    let updates = updates::measure().await?;
    let figures = Figures {
        durable_updates_per_s: updates.per_second,
        result_ms_p50_at_half_load: updates.p50_ms,
        result_ms_p99_at_half_load: updates.p99_ms,
        readings_sent: readings.sent,
        readings_lost: readings.lost,
        readings_per_s: readings.per_second,
        api_status_writes_per_s: readings.writes_per_second,
        reports_passed_over: readings.passed_over,
        rss_kib_start: readings.rss_kib_start,
        rss_kib_end: readings.rss_kib_end,
    };
    if std::env::args().any(|argument| argument == "--json") {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    }
    Ok(())
}
