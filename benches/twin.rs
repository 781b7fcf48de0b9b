//! Claim: DeviceTwin takes more twin updates a second than a node's MQTT broker brings, and a store on flash is
//! spared because updates that wait together become one commit.
//!
//! Workload: applications update one property each of 100 devices with 10 properties, over the part's pipes; an update
//! counts when its result has come out, so it is durable by then. `waiting` is how many updates are under way at once.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kubeedge_core::{
    message::{Object, ObjectEvent, Publish},
    store::{
        MetaStore,
        memory::MemoryStore,
        redb::{RedbConfig, RedbStore},
    },
};
use kubeedge_edge::devicetwin::{self, Config, DeviceTwin, Outside};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const DEVICES: usize = 100;
const PROPERTIES: usize = 10;
/// Updates in one measurement.
const UPDATES: usize = 1_000;

fn device(number: usize) -> ObjectEvent {
    let json = format!(
        r#"{{"apiVersion":"devices.kubeedge.io/v1beta1","kind":"Device",
        "metadata":{{"namespace":"default","name":"d-{number}","uid":"u-{number}","resourceVersion":"1"}},
        "spec":{{"protocol":{{"protocolName":"none"}}}}}}"#
    );
    ObjectEvent::Applied(Object::from_json(json).expect("the text above is a Device"))
}

fn update(number: usize) -> Publish {
    let (device, property) = (number % DEVICES, number / DEVICES % PROPERTIES);
    let payload = format!(
        r#"{{"event_id":"{number}","timestamp":0,"twin":{{"p-{property}":{{"actual":{{"value":"{number}"}}}}}}}}"#
    );
    Publish { topic: format!("$hw/events/device/default/d-{device}/twin/update"), payload: payload.into() }
}

/// Sends updates, `waiting` of them at once, until the result of each has come.
async fn run(outside: &mut Outside, waiting: usize) {
    let (mut sent, mut done) = (0, 0);
    while done < UPDATES {
        while sent < UPDATES && sent - done < waiting {
            outside.device_messages.send(update(sent)).expect("no more wait than the pipe holds");
            sent += 1;
        }
        let publish = outside.publishes.recv().await.expect("the part runs");
        if publish.topic.ends_with("/twin/update/result") {
            done += 1;
            black_box(publish.payload);
        }
    }
}

fn measure(criterion: &mut Criterion, name: &str, store: Arc<dyn MetaStore>, waiting: &[usize]) {
    let runtime = Runtime::new().expect("a runtime starts");
    let stop = CancellationToken::new();
    let (inbox, outbox, mut outside) = devicetwin::pipes();
    let config = Config::new("edge-1".parse().expect("it is a node's name"));
    let part = runtime.spawn(DeviceTwin::new(config, store, inbox, outbox).run(stop.clone()));
    for number in 0..DEVICES {
        outside.devices.send(device(number)).expect("the part runs");
    }
    runtime.block_on(async {
        for _ in 0..DEVICES {
            outside.publishes.recv().await.expect("each device is told as a member");
        }
    });
    let mut group = criterion.benchmark_group("twin_updates");
    group
        .throughput(Throughput::Elements(UPDATES as u64))
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    for waiting in waiting {
        group.bench_function(BenchmarkId::new(name, format!("waiting_{waiting}")), |bencher| {
            bencher.iter(|| runtime.block_on(run(&mut outside, *waiting)));
        });
    }
    group.finish();
    stop.cancel();
    runtime.block_on(part).expect("the part does not panic").expect("the part ends well");
}

fn in_memory(criterion: &mut Criterion) {
    measure(criterion, "memory", Arc::new(MemoryStore::new()), &[1, 256]);
}

fn on_disk(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store =
        RedbStore::open(folder.path().join("twins.redb"), RedbConfig::default()).expect("the store opens");
    measure(criterion, "redb", Arc::new(store), &[1, 256]);
}

criterion_group!(benches, in_memory, on_disk);
criterion_main!(benches);
