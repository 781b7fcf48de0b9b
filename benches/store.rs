//! Claim: a commit through `RedbStore` costs about what the same bytes cost in bare redb with the same durability,
//! and 32 commits at once cost about as much as a few, because they share their syncs.
//!
//! Workload: values of 2 KiB, the size of a small Pod, over 200 keys that are replaced again and again; each commit
//! is synced to the disk before it returns. `one` is a commit alone; `32` is 32 commits, by 32 tasks at once
//! through the store and one after another in bare redb; `32 in one transaction` is what no sharing can beat.
//! The files lie in cargo's target directory, whose disk is what is measured.

use std::{
    hint::black_box,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kubeedge_core::store::{
    Batch, Key, MetaStore,
    redb::{RedbConfig, RedbStore},
};
use redb::{Database, TableDefinition};
use tokio::task::JoinSet;

const TABLE: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
const KEYS: usize = 200;
const AT_ONCE: usize = 32;

fn key(count: &AtomicUsize) -> String {
    format!("objects/v1/Pod/default/pod-{:03}", count.fetch_add(1, Ordering::Relaxed) % KEYS)
}

fn value() -> Vec<u8> {
    (0..2048u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn batch(count: &AtomicUsize) -> Batch {
    let mut batch = Batch::new();
    batch.put(Key::from_text(key(count)).expect("the key is short"), value());
    batch
}

fn bare_commit(database: &Database, count: &AtomicUsize, objects: usize) {
    let transaction = database.begin_write().expect("begin");
    {
        let mut table = transaction.open_table(TABLE).expect("table");
        for _ in 0..objects {
            table.insert(key(count).as_str(), &value()[..]).expect("insert");
        }
    }
    transaction.commit().expect("commit");
}

fn bare(path: &Path) -> Database {
    let mut builder = Database::builder();
    builder.set_cache_size(RedbConfig::default().cache_bytes);
    builder.create(path).expect("create")
}

fn commits(criterion: &mut Criterion) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let store = RedbStore::open(directory.path().join("store.redb"), RedbConfig::default()).expect("open");
    let store = Arc::new(store);
    let database = bare(&directory.path().join("bare.redb"));
    let (ours, theirs) = (AtomicUsize::new(0), AtomicUsize::new(0));

    let mut group = criterion.benchmark_group("commit one");
    group.throughput(Throughput::Elements(1));
    group.bench_function("RedbStore", |bencher| {
        bencher.to_async(&runtime).iter(|| async { store.commit(batch(&ours)).await.expect("commit") });
    });
    group.bench_function("bare redb", |bencher| bencher.iter(|| bare_commit(&database, &theirs, 1)));
    group.finish();

    let mut group = criterion.benchmark_group("commit 32");
    group.throughput(Throughput::Elements(AT_ONCE as u64));
    group.bench_function("RedbStore, at once", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let mut commits = JoinSet::new();
            for _ in 0..AT_ONCE {
                let (store, batch) = (store.clone(), batch(&ours));
                commits.spawn(async move { store.commit(batch).await });
            }
            for outcome in commits.join_all().await {
                outcome.expect("commit");
            }
        });
    });
    group.bench_function("bare redb, one after another", |bencher| {
        bencher.iter(|| (0..AT_ONCE).for_each(|_| bare_commit(&database, &theirs, 1)));
    });
    group.bench_function("bare redb, in one transaction", |bencher| {
        bencher.iter(|| bare_commit(&database, &theirs, AT_ONCE));
    });
    group.finish();
}

fn reads(criterion: &mut Criterion) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let store = RedbStore::open(directory.path().join("store.redb"), RedbConfig::default()).expect("open");
    let count = AtomicUsize::new(0);
    runtime.block_on(async {
        for _ in 0..KEYS {
            store.commit(batch(&count)).await.expect("commit");
        }
    });
    criterion.bench_function("get one", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            let key = Key::from_text(key(&count)).expect("the key is short");
            black_box(store.get(&key).await.expect("get"))
        });
    });
}

criterion_group!(store, commits, reads);
criterion_main!(store);
