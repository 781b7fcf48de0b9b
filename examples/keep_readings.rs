//! I want to keep what my devices say, and push it, and lose nothing while nobody listens.
//!
//! A mapper hands every value to the keeper, which stores it, answers questions about it, and pushes it where the Device
//! says. Here that is a server that is not there yet.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use kubeedge_core::{
    device::{DeviceAssignment, DeviceSpec},
    store::redb::{RedbConfig, RedbStore},
};
use kubeedge_device::{
    keeper::{self, Keeper, Query},
    mapper::{self, Mapper},
    protocols::thermometer::SimulatedThermometer,
};
use tokio_util::sync::CancellationToken;

const MODEL: &str =
    r#"{"spec":{"properties":[{"name":"temperature","type":"DOUBLE","accessMode":"ReadOnly"}]}}"#;
const DEVICE: &str = r#"{"metadata":{"namespace":"default","name":"oven"},
    "spec":{"protocol":{"protocolName":"thermometer"},"properties":[{"name":"temperature","collectCycle":20,
            "pushMethod":{"http":{"hostName":"http://127.0.0.1","port":9,"requestPath":"/values"}}}]}}"#;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Arc::new(RedbStore::open(folder.path().join("readings.redb"), RedbConfig::default())?);
    let config = keeper::Config { commit_within: Duration::from_millis(100), ..keeper::Config::default() };

    // The keeper, and a mapper whose samples go to it.
    let stop = CancellationToken::new();
    let (inbox, outbox, mut kept) = keeper::pipes();
    let keeper = tokio::spawn(Keeper::new(config, store, inbox, outbox).run(stop.clone()));
    let (inbox, mut outbox, devices) = mapper::pipes();
    outbox.samples = Some(kept.samples.clone());
    let protocol = Arc::new(SimulatedThermometer::default());
    let mapper =
        tokio::spawn(Mapper::new(mapper::Config::default(), protocol, inbox, outbox).run(stop.clone()));
    let spec = DeviceSpec::from_json(DEVICE.as_bytes(), MODEL.as_bytes())?;
    devices.assignments.send(DeviceAssignment { device: spec.device.clone(), spec: Some(spec.clone()) })?;

    let stats = kept.stats.wait_for(|stats| stats.durable >= 20).await?.clone();
    println!("{} values are durable, in {} bytes", stats.durable, stats.stored_bytes);
    for (destination, outbox) in &stats.destinations {
        println!("{destination}: {} wait, the oldest since {:?}", outbox.unsent, outbox.oldest_unsent_ms);
    }
    let query = Query { device: Some(spec.device), limit: 3, ..Query::default() };
    for found in kept.queries.call(query, Duration::from_secs(5)).await?? {
        println!("#{} {} = {}", found.sequence, found.sample.property, found.sample.value);
    }
    stop.cancel();
    mapper.await??;
    Ok(keeper.await??)
}
