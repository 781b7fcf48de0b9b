//! A thousand devices at ten values a second, through a mapper and a keeper to a real disk.
#![cfg(all(feature = "mapper", feature = "keeper"))]
#![expect(clippy::unwrap_used, reason = "what a test stands on may panic")]

use std::{sync::Arc, time::Duration};

use kubeedge_core::{
    device::{DeviceAssignment, DeviceSpec, memory::MemoryProtocol},
    id::DeviceId,
    store::redb::{RedbConfig, RedbStore},
};
use kubeedge_device::{
    keeper::{self, Keeper, Query},
    mapper::{self, Mapper},
};
use tokio_util::sync::CancellationToken;

fn id(number: usize) -> DeviceId {
    DeviceId::new("default", format!("device-{number}")).unwrap()
}

fn spec(number: usize) -> DeviceSpec {
    let device = format!(
        r#"{{"metadata":{{"namespace":"default","name":"{}"}},"spec":{{"protocol":{{"protocolName":"memory"}},
            "properties":[{{"name":"temperature","collectCycle":100,"reportCycle":10000}}]}}}}"#,
        id(number).name()
    );
    let model = r#"{"spec":{"properties":[{"name":"temperature","type":"DOUBLE"}]}}"#;
    DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
}

const DEVICES: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_devices_at_ten_values_a_second_every_value_that_was_read_is_durable_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("readings.redb");
    let history = keeper::History { count_max: 1_000_000, bytes_max: 64 << 20, ..keeper::History::default() };
    let config = keeper::Config { block_bytes: 256 << 10, history, ..keeper::Config::default() };
    let store = Arc::new(RedbStore::open(&file, RedbConfig::default()).unwrap());
    let (inbox, outbox, kept) = keeper::pipes();
    let stop_keeper = CancellationToken::new();
    let keeper = tokio::spawn(Keeper::new(config.clone(), store, inbox, outbox).run(stop_keeper.clone()));

    let protocol = MemoryProtocol::new("memory");
    let (inbox, mut outbox, outside) = mapper::pipes();
    outbox.samples = Some(kept.samples.clone());
    let stop_mapper = CancellationToken::new();
    let mapper = Mapper::new(mapper::Config::default(), Arc::new(protocol.clone()), inbox, outbox);
    let mapper = tokio::spawn(mapper.run(stop_mapper.clone()));
    for number in 0..DEVICES {
        outside.assignments.send(DeviceAssignment { device: id(number), spec: Some(spec(number)) }).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Devices away: what is under way ends before the mapper does, so that every read was handed on.
    for number in 0..DEVICES {
        outside.assignments.send(DeviceAssignment { device: id(number), spec: None }).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop_mapper.cancel();
    mapper.await.unwrap().unwrap();
    stop_keeper.cancel();
    keeper.await.unwrap().unwrap();
    let reads = (0..DEVICES).map(|number| protocol.reads(&id(number))).sum::<usize>();
    assert!(reads > DEVICES, "each device was read several times: {reads}");
    let stats = kept.stats.borrow().clone();
    assert_eq!(stats.lost, 0, "{stats:?}");

    // Another process finds them all.
    let store = Arc::new(RedbStore::open(&file, RedbConfig::default()).unwrap());
    let (inbox, outbox, kept) = keeper::pipes();
    let stop = CancellationToken::new();
    let keeper = tokio::spawn(Keeper::new(config, store, inbox, outbox).run(stop.clone()));
    let query = Query { limit: usize::MAX, ..Query::default() };
    let found = kept.queries.call(query, Duration::from_secs(60)).await.unwrap().unwrap();
    assert!(found.len() <= reads && found.len() + DEVICES >= reads, "{} of {reads}", found.len());
    assert_eq!(found.len() as u64, found[0].sequence, "no sequence number is missing");
    let bytes = kept.stats.borrow().stored_bytes;
    assert!(bytes < 30 * found.len() as u64, "{bytes} bytes for {} values", found.len());
    stop.cancel();
    keeper.await.unwrap().unwrap();
}
