//! The contract over a real file, what opening does about what it finds, and crashes at every write.

use std::fs;

use super::*;
use crate::store::MetaStoreExt;

mod crash;

fn batch(pairs: &[(&str, &str)]) -> Batch {
    let mut batch = Batch::new();
    for (key, value) in pairs {
        batch.put(Key::from_text(*key).unwrap(), (*value).to_owned());
    }
    batch
}

fn open(path: &Path) -> RedbStore {
    RedbStore::open(path, RedbConfig::default()).unwrap()
}

#[cfg(feature = "conformance")]
#[tokio::test]
async fn it_does_what_the_contract_says() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    crate::store::conformance::run(|| async {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        open(&directory.path().join(format!("{number}.redb")))
    })
    .await;
}

#[cfg(feature = "conformance")]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_does_what_the_contract_says_on_many_threads_and_with_a_queue_of_one() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicU32::new(0);
    crate::store::conformance::run(|| async {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let config = RedbConfig { queue: 1, quick_repair: true, ..RedbConfig::default() };
        RedbStore::open(directory.path().join(format!("{number}.redb")), config).unwrap()
    })
    .await;
}

#[cfg(feature = "conformance")]
#[tokio::test]
async fn what_is_committed_survives_restarts() {
    let directory = tempfile::tempdir().unwrap();
    crate::store::conformance::durable(|| open(&directory.path().join("store.redb"))).await;
}

#[tokio::test]
async fn opening_says_whether_the_store_is_new_was_closed_or_was_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/in/a/directory/store.redb");
    let store = open(&path);
    assert_eq!(*store.recovery(), Recovery::Created);
    store.commit(batch(&[("a", "1")])).await.unwrap();
    let killed = directory.path().join("killed.redb");
    fs::copy(&path, &killed).unwrap();
    drop(store);
    assert_eq!(*open(&path).recovery(), Recovery::Clean);

    let store = open(&killed);
    assert_eq!(*store.recovery(), Recovery::Repaired);
    assert!(store.get(&Key::from_text("a").unwrap()).await.unwrap().is_some());
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    drop(open(&path));
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(&path));
    assert_eq!(mode(), 0o600);
}

#[test]
fn a_file_of_somebody_else_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("edgecore.db");
    for (content, what) in [
        (&b"SQLite format 3\0\x10\x00\x01\x01"[..], "an SQLite database"),
        (b"apiVersion: v1\nkind: Config\n", "a text file"),
    ] {
        fs::write(&path, content).unwrap();
        let error = RedbStore::open(&path, RedbConfig::default()).unwrap_err();
        assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains(path.to_str().unwrap()) && message.contains(what), "{message}");
        assert!(message.contains("move it away"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    let error = RedbStore::open(directory.path(), RedbConfig::default()).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error:?}");
}

#[tokio::test]
async fn a_damaged_file_is_renamed_and_an_empty_store_begins() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let mut names = std::collections::BTreeSet::new();
    for damage in [vec![0; 8192], b"redb\x1A\x0A\xA9\x0D\x0A cut off here".to_vec(), vec![0xA5; 4096]] {
        fs::write(&path, &damage).unwrap();
        let store = open(&path);
        let Recovery::SetAside { renamed_to, why } = store.recovery().clone() else {
            panic!("{:?}", store.recovery())
        };
        assert!(!why.is_empty());
        assert_eq!(fs::read(&renamed_to).unwrap(), damage);
        assert!(renamed_to.to_str().unwrap().contains("store.redb.corrupt-"), "{renamed_to:?}");
        assert!(names.insert(renamed_to), "a damaged file never replaces another");
        store.commit(batch(&[("a", "1")])).await.unwrap();
        assert_eq!(store.scan_all(&Prefix::all()).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_store_with_a_page_that_has_rotted_is_set_aside_or_whole_but_never_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let value = "v".repeat(300);
    let store = open(&path);
    for i in 0..200 {
        store.commit(batch(&[(&format!("k/{i:03}"), &value)])).await.unwrap();
    }
    let expected = store.scan_all(&Prefix::all()).await.unwrap();
    drop(store);
    let sound = fs::read(&path).unwrap();
    let mut set_aside = 0;
    for at in (64..sound.len()).step_by(sound.len() / 60) {
        let mut rotten = sound.clone();
        rotten[at] ^= 0x40;
        fs::write(&path, rotten).unwrap();
        let store = open(&path);
        match store.recovery() {
            Recovery::SetAside { .. } => set_aside += 1,
            Recovery::Created | Recovery::Clean | Recovery::Repaired => {
                assert!(store.scan_all(&Prefix::all()).await.unwrap() == expected, "byte {at}");
            }
        }
    }
    assert!(set_aside > 10, "{set_aside}");
}

#[test]
fn a_store_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let first = open(&path);
    let error = RedbStore::open(&path, RedbConfig::default()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
    drop(first);
    drop(open(&path));
}

#[tokio::test]
async fn a_store_that_nobody_writes_to_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = open(&path);
    store.commit(batch(&[("a", "1")])).await.unwrap();
    let before = fs::read(&path).unwrap();
    for _ in 0..10 {
        store.get(&Key::from_text("a").unwrap()).await.unwrap();
        store.scan_all(&Prefix::all()).await.unwrap();
        store.commit(Batch::new()).await.unwrap();
    }
    assert!(fs::read(&path).unwrap() == before);
}

#[tokio::test]
async fn a_scan_that_outlives_its_store_ends_and_does_not_keep_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = open(&path);
    store.commit(batch(&[("a", "1")])).await.unwrap();
    let scan = store.scan(&Prefix::all());
    drop(store);
    drop(open(&path));
    drop(scan);
}

#[tokio::test]
async fn commits_that_wait_are_done_before_the_store_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = open(&path);
    let keys: Vec<_> = (0..20).map(|i| format!("k/{i}")).collect();
    for key in &keys {
        // One poll puts it in the queue; nobody waits for the answer.
        let mut commit = std::pin::pin!(store.commit(batch(&[(key, "1")])));
        let _ = commit.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
    }
    drop(store);
    assert_eq!(open(&path).scan_all(&Prefix::all()).await.unwrap().len(), keys.len());
}
