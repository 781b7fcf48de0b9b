use std::{
    fs::File,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use redb::StorageBackend;
use serde_json::json;

use super::*;

/// Memory that can be told to fail as a worn-out disk does.
#[derive(Debug)]
struct Fragile {
    memory: InMemoryBackend,
    broken: Arc<AtomicBool>,
}

impl Fragile {
    fn check(&self) -> Result<(), io::Error> {
        if self.broken.load(Ordering::SeqCst) { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }
}

impl StorageBackend for Fragile {
    fn len(&self) -> Result<u64, io::Error> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.check()?;
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.check()?;
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check()?;
        self.memory.write(offset, data)
    }
}

fn map(name: &str) -> Value {
    json!({ "metadata": { "name": name, "namespace": "default" } })
}

#[tokio::test]
async fn a_write_that_could_not_be_committed_is_refused_unseen_and_ends_the_store() {
    let broken = Arc::new(AtomicBool::new(false));
    let backend = Fragile { memory: InMemoryBackend::new(), broken: broken.clone() };
    let database = Database::builder().create_with_backend(backend).unwrap();
    let store = Store::with(database, &Config::default(), true).unwrap();
    let maps = Resource::core("configmaps");
    store.write(false, |txn| txn.put(maps, map("a"))).await.unwrap();
    let published = store.history().published();
    broken.store(true, Ordering::SeqCst);
    assert_eq!(store.write(false, |txn| txn.put(maps, map("b"))).await.unwrap_err().code, 500);
    assert_eq!(store.history().published(), published);
    let (changes, _) = store.history().after(published, 10, |_| true).unwrap();
    assert!(changes.is_empty(), "{changes:?}");
    tokio::time::timeout(Duration::from_secs(10), store.failed()).await.expect("the failure is told");
}

#[tokio::test]
async fn a_decision_that_fails_half_way_changes_nothing() {
    let store = Store::open(None, &Config::default()).unwrap();
    let maps = Resource::core("configmaps");
    let version = store.read().unwrap().version;
    let failed = store.write(false, |txn| {
        txn.put(maps, map("a"))?;
        assert!(txn.get(maps, "default", "a")?.is_some(), "a write sees its own changes");
        Err::<(), _>(Failure::bad_request("second thoughts"))
    });
    assert_eq!(failed.await.unwrap_err().code, 400);
    let snapshot = store.read().unwrap();
    assert_eq!((snapshot.version, snapshot.get(maps, "default", "a").unwrap()), (version, None));
}

#[tokio::test]
async fn the_file_is_for_its_owner_only_and_what_is_no_store_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    drop(Store::open(Some(&path), &Config::default()).unwrap());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = File::open(&path).unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    let other = directory.path().join("other");
    std::fs::write(&other, "this is a letter, and no database at all").unwrap();
    assert!(Store::open(Some(&other), &Config::default()).is_err());
    assert!(std::fs::read_to_string(&other).unwrap().starts_with("this is a letter"));
}
