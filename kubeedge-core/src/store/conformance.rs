//! States what a [`MetaStore`] must do, and checks it: an adapter that passes can hold a node's metadata.
//!
//! Each function checks one sentence of the contract and panics with that sentence when it does not hold.
//! They run inside a tokio runtime, of either flavour.
//!
//! ```
//! use kubeedge_core::store::{conformance, memory::MemoryStore};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! conformance::run(|| async { MemoryStore::new() }).await;
//! # }
//! ```
//!
//! A store that keeps its content across restarts runs [`durable`] too. What no suite can check from outside is
//! power loss: use a fault-injecting disk, as the crash tests of the redb adapter do.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Waker},
};

use bytes::Bytes;
use futures_core::Stream;
use tokio::task::JoinSet;

use super::{Batch, Key, MetaStore, MetaStoreExt, Prefix, StoreError};

/// Checks everything that can be seen without a restart; `make` gives an empty store each time.
///
/// # Panics
/// If a sentence of the contract does not hold; the panic's message says which.
pub async fn run<S, F>(make: impl Fn() -> F)
where
    S: MetaStore,
    F: Future<Output = S>,
{
    a_key_that_was_never_written_is_absent(&make().await).await;
    a_commit_is_seen_by_every_later_read(&make().await).await;
    a_batch_is_applied_in_its_order(&make().await).await;
    deleting_what_is_absent_succeeds(&make().await).await;
    an_empty_batch_changes_nothing(&make().await).await;
    a_scan_is_in_key_order_and_matches_whole_parts(&make().await).await;
    parts_with_separators_cannot_be_confused(&make().await).await;
    a_scan_shows_the_moment_of_the_call(&make().await).await;
    a_scan_may_be_left_half_read(&make().await).await;
    a_value_of_any_size_and_content_comes_back(&make().await).await;
    a_dropped_commit_is_whole_or_absent(&make().await).await;
    a_dropped_commit_is_not_applied_after_a_later_one(&make().await).await;
    commits_at_once_are_each_whole(Arc::new(make().await)).await;
}

/// Checks that what was committed is there after the store was dropped and opened again.
///
/// `open` opens the same store each time; it is empty at first. The store before is dropped when it is called.
///
/// # Panics
/// If something is missing, or was not committed.
pub async fn durable<S: MetaStore>(open: impl Fn() -> S) {
    let mut model = std::collections::BTreeMap::new();
    for round in 0..4u32 {
        let store = open();
        let held = all(&store, &Prefix::all()).await;
        let expected: Vec<_> =
            model.iter().map(|(key, value)| (String::clone(key), Bytes::clone(value))).collect();
        assert!(held == expected, "what is committed survives a restart, and nothing else appears");
        for step in 0..8u32 {
            let mut batch = Batch::new();
            let (kept, replaced) = (format!("kept/{round}-{step}"), format!("replaced/{step}"));
            batch.put(text(&kept), "kept").put(text(&replaced), format!("{round}"));
            model.insert(kept, Bytes::from("kept"));
            model.insert(replaced, Bytes::from(format!("{round}")));
            if round > 0 {
                let gone = format!("kept/{}-{step}", round - 1);
                batch.delete(text(&gone));
                model.remove(&gone);
            }
            must(store.commit(batch).await, "a commit succeeds after a restart");
        }
    }
}

async fn a_key_that_was_never_written_is_absent(store: &impl MetaStore) {
    assert_eq!(read(store, "a").await, None, "a key that was never written is absent");
    assert!(all(store, &Prefix::all()).await.is_empty(), "the store begins empty");
}

async fn a_commit_is_seen_by_every_later_read(store: &impl MetaStore) {
    write(store, &[("a", "1")]).await;
    assert_eq!(read(store, "a").await.as_deref(), Some("1"), "get sees a commit that returned");
    write(store, &[("a", "2"), ("b", "1")]).await;
    assert_eq!(read(store, "a").await.as_deref(), Some("2"), "a write takes the place of an older one");
    assert_eq!(keys(store, &Prefix::all()).await, ["a", "b"], "scan sees a commit that returned");
    let mut batch = Batch::new();
    batch.delete(text("a"));
    must(store.commit(batch).await, "a delete commits");
    assert_eq!(read(store, "a").await, None, "get does not find what was deleted");
    assert_eq!(keys(store, &Prefix::all()).await, ["b"], "scan does not find what was deleted");
}

async fn a_batch_is_applied_in_its_order(store: &impl MetaStore) {
    let mut batch = Batch::new();
    batch.put(text("a"), "1").delete(text("a"));
    batch.delete(text("b")).put(text("b"), "1");
    batch.put(text("c"), "1").put(text("c"), "2");
    must(store.commit(batch).await, "a batch may name a key more than once");
    assert_eq!(read(store, "a").await, None, "put, then delete: absent");
    assert_eq!(read(store, "b").await.as_deref(), Some("1"), "delete, then put: there");
    assert_eq!(read(store, "c").await.as_deref(), Some("2"), "put, then put: the later one");
}

async fn deleting_what_is_absent_succeeds(store: &impl MetaStore) {
    let mut batch = Batch::new();
    batch.delete(text("never")).put(text("a"), "1");
    must(store.commit(batch).await, "deleting what is absent succeeds");
    assert_eq!(keys(store, &Prefix::all()).await, ["a"], "the rest of the batch is applied");
}

async fn an_empty_batch_changes_nothing(store: &impl MetaStore) {
    write(store, &[("a", "1")]).await;
    must(store.commit(Batch::new()).await, "an empty batch commits");
    assert_eq!(keys(store, &Prefix::all()).await, ["a"], "an empty batch changes nothing");
}

async fn a_scan_is_in_key_order_and_matches_whole_parts(store: &impl MetaStore) {
    write(
        store,
        &[("b/c", ""), ("a/b", ""), ("a/c", ""), ("a", ""), ("a/b/d", ""), ("a/bc/d", ""), ("a-", "")],
    )
    .await;
    let whole = keys(store, &Prefix::all()).await;
    let mut sorted = whole.clone();
    sorted.sort();
    assert_eq!(whole, sorted, "a scan is in key order");
    assert_eq!(whole.len(), 7, "a scan of every key leaves none out");
    let under = keys(store, &Prefix::new(["a", "b"])).await;
    assert_eq!(under, ["a/b/d"], "a prefix matches whole parts, and not the key that equals it");
    assert_eq!(keys(store, &Prefix::new(["a"])).await, ["a/b", "a/b/d", "a/bc/d", "a/c"]);
    assert!(keys(store, &Prefix::new(["c"])).await.is_empty(), "a prefix of no key gives nothing");
}

async fn parts_with_separators_cannot_be_confused(store: &impl MetaStore) {
    let odd = [["a/b", "c"], ["a", "b/c"], ["a%2Fb", "c"], ["ä ö", "\u{10FFFF}"]];
    let mut batch = Batch::new();
    for parts in odd {
        batch.put(must(Key::new(parts), "the key is valid"), parts.concat());
    }
    must(store.commit(batch).await, "keys with escaped parts commit");
    for parts in odd {
        let key = must(Key::new(parts), "the key is valid");
        let value = must(store.get(&key).await, "get");
        assert_eq!(value, Some(Bytes::from(parts.concat())), "each key has its own value");
    }
    let under = must(store.scan_all(&Prefix::new(["a/b"])).await, "scan");
    let parts: Vec<Vec<String>> = under.iter().map(|(key, _)| key.parts().collect()).collect();
    assert_eq!(parts, [["a/b", "c"]], "an escaped part is one part, also of a prefix");
}

async fn a_scan_shows_the_moment_of_the_call(store: &impl MetaStore) {
    let before: Vec<String> = (0..200).map(|i| format!("k/{i:03}")).collect();
    let pairs: Vec<_> = before.iter().map(|key| (key.as_str(), "old")).collect();
    write(store, &pairs).await;
    let untouched = store.scan(&Prefix::new(["k"]));
    let mut begun = store.scan(&Prefix::new(["k"]));
    let first = must(next(&mut begun).await, "the scan has pairs");
    must(first, "the scan reads");

    let mut batch = Batch::new();
    batch.delete(text("k/000")).delete(text("k/150")).put(text("k/100"), "new").put(text("k/100x"), "new");
    must(store.commit(batch).await, "a commit succeeds while a scan is under way");

    for (scan, skipped) in [(untouched, 0), (begun, 1)] {
        let seen = drain(scan).await;
        let names: Vec<_> = seen.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(names, before[skipped..], "a scan shows the keys of the moment of the call");
        let old = seen.iter().all(|(_, value)| value == "old");
        assert!(old, "a scan shows the values of the moment of the call");
    }
    assert_eq!(keys(store, &Prefix::new(["k"])).await.len(), 199, "a scan that begins later sees the commit");
}

async fn a_scan_may_be_left_half_read(store: &impl MetaStore) {
    write(store, &[("a", "1"), ("b", "1")]).await;
    let mut scan = store.scan(&Prefix::all());
    must(must(next(&mut scan).await, "the scan has pairs"), "the scan reads");
    drop(scan);
    write(store, &[("c", "1")]).await;
    assert_eq!(keys(store, &Prefix::all()).await, ["a", "b", "c"], "a scan that was dropped changes nothing");
}

async fn a_value_of_any_size_and_content_comes_back(store: &impl MetaStore) {
    // 4 MiB is the longest frame that a node takes from the cloud.
    for size in [0, 1, 4095, 4096, 4097, 4 << 20] {
        let value: Bytes = (0..size).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut batch = Batch::new();
        batch.put(text("large"), value.clone());
        must(store.commit(batch).await, "a large value commits");
        let back = must(store.get(&text("large")).await, "get");
        assert!(back.as_ref() == Some(&value), "a value of {size} bytes comes back as it was");
    }
    let long = "x".repeat(super::KEY_LIMIT);
    write(store, &[(&long, "long")]).await;
    assert_eq!(read(store, &long).await.as_deref(), Some("long"), "a key may have the longest length");
}

async fn a_dropped_commit_is_whole_or_absent(store: &impl MetaStore) {
    for polls in 0..8 {
        let (left, right) = (format!("pair/{polls}/left"), format!("pair/{polls}/right"));
        let mut batch = Batch::new();
        batch.put(text(&left), "1").put(text(&right), "1");
        let mut finished = false;
        {
            let mut commit = pin!(store.commit(batch));
            for _ in 0..polls {
                if commit.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    finished = true;
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // What is committed next comes after whatever became of the dropped one.
        write(store, &[("after", "1")]).await;
        let seen = (read(store, &left).await.is_some(), read(store, &right).await.is_some());
        assert_eq!(seen.0, seen.1, "a dropped commit is applied whole or not at all");
        assert!(!finished || seen.0, "a commit that returned is applied");
    }
}

async fn a_dropped_commit_is_not_applied_after_a_later_one(store: &impl MetaStore) {
    for _ in 0..300 {
        let mut batch = Batch::new();
        batch.put(text("a"), "dropped");
        let mut commit = pin!(store.commit(batch));
        let _ = commit.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    write(store, &[("a", "last")]).await;
    assert_eq!(
        read(store, "a").await.as_deref(),
        Some("last"),
        "commits take effect in the order of their calls"
    );
}

async fn commits_at_once_are_each_whole(store: Arc<impl MetaStore>) {
    let mut tasks = JoinSet::new();
    for writer in 0..16u32 {
        let store = store.clone();
        tasks.spawn(async move {
            for step in 0..8u32 {
                let mark = format!("{writer}-{step}");
                let own = format!("own/{writer}/{step}");
                write(&*store, &[("pair/left", &mark), (&own, "1"), ("pair/right", &mark)]).await;
                assert!(read(&*store, &own).await.is_some(), "a commit is seen as soon as it returns");
            }
        });
    }
    let reader = store.clone();
    tasks.spawn(async move {
        for _ in 0..64 {
            let pair = all(&*reader, &Prefix::new(["pair"])).await;
            let same = pair.windows(2).all(|two| two[0].1 == two[1].1);
            assert!(same && pair.len() != 1, "a scan sees each commit whole or not at all");
            tokio::task::yield_now().await;
        }
    });
    while let Some(ended) = tasks.join_next().await {
        must(ended, "commits at once all succeed");
    }
    assert_eq!(keys(&*store, &Prefix::new(["own"])).await.len(), 16 * 8, "no commit is lost");
}

// ------------------------------------------------------------------------------------------------- shorthands

trait Outcome<T> {
    fn ok_or_text(self) -> Result<T, String>;
}

impl<T, E: std::fmt::Debug> Outcome<T> for Result<T, E> {
    fn ok_or_text(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

impl<T> Outcome<T> for Option<T> {
    fn ok_or_text(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

#[track_caller]
fn must<T>(outcome: impl Outcome<T>, sentence: &str) -> T {
    match outcome.ok_or_text() {
        Ok(value) => value,
        Err(error) => panic!("{sentence}, but: {error}"),
    }
}

fn text(key: &str) -> Key {
    must(Key::from_text(key), "the key is valid")
}

async fn write(store: &impl MetaStore, pairs: &[(&str, &str)]) {
    let mut batch = Batch::new();
    for (key, value) in pairs {
        batch.put(text(key), (*value).to_owned());
    }
    must(store.commit(batch).await, "a commit succeeds");
}

async fn read(store: &impl MetaStore, key: &str) -> Option<String> {
    let value = must(store.get(&text(key)).await, "get succeeds")?;
    Some(must(String::from_utf8(value.to_vec()), "the value is the text that was written"))
}

async fn all(store: &impl MetaStore, prefix: &Prefix) -> Vec<(String, Bytes)> {
    let pairs = must(store.scan_all(prefix).await, "scan succeeds");
    pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

async fn keys(store: &impl MetaStore, prefix: &Prefix) -> Vec<String> {
    all(store, prefix).await.into_iter().map(|(key, _)| key).collect()
}

type Scan = Pin<Box<dyn Stream<Item = Result<(Key, Bytes), StoreError>> + Send>>;

async fn next(scan: &mut Scan) -> Option<Result<(Key, Bytes), StoreError>> {
    std::future::poll_fn(|context| scan.as_mut().poll_next(context)).await
}

async fn drain(mut scan: Scan) -> Vec<(String, Bytes)> {
    let mut pairs = Vec::new();
    while let Some(pair) = next(&mut scan).await {
        let (key, value) = must(pair, "the scan reads");
        pairs.push((key.to_string(), value));
    }
    pairs
}
