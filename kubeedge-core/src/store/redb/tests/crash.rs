//! A disk in memory that loses power, or fails, at any write or sync.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Mutex,
};

use ::redb::StorageBackend;

use super::{super::file, *};

/// What the disk does from its `at`th write, sync or change of length on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing goes wrong.
    None,
    /// The power goes: nothing works any more, and of what was not synced an arbitrary part is on the disk.
    Cut { at: u64 },
    /// That one operation fails, as a loose cable has it; a sync that fails has synced nothing.
    Once { at: u64 },
    /// Every operation that changes something fails, as on a disk that became read-only.
    Forever { at: u64 },
    /// As `Forever`, saying that the disk is full, and only for changes that would make the file longer.
    Full { at: u64 },
}

#[derive(Debug)]
struct Disk {
    /// What reads see.
    seen: Vec<u8>,
    /// What was there at the last sync.
    synced: Vec<u8>,
    /// Changes since the last sync, in order.
    loose: Vec<Change>,
    operations: u64,
    fault: Fault,
    dead: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

/// How much of a write that was not synced is on the disk after a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Whole,
    Sectors,
    Nothing,
}

/// Six ways in which a power cut treats the writes that were not synced.
fn pattern(number: u64, at: u64, loose: usize) -> impl Fn(usize) -> Kept {
    let either = |whole| if whole { Kept::Whole } else { Kept::Nothing };
    move |i| match number {
        0 => Kept::Whole,
        1 => Kept::Nothing,
        2 => either(i.is_multiple_of(2)),
        3 => either(i >= loose / 2),
        4 => Kept::Sectors,
        _ => match (i as u64 + 1).wrapping_mul(at + number).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 62 {
            0 => Kept::Nothing,
            1 => Kept::Sectors,
            _ => Kept::Whole,
        },
    }
}

fn change(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(offset, data) => bytes[*offset..offset + data.len()].copy_from_slice(data),
        Change::Length(length) => bytes.resize(*length, 0),
    }
}

impl Disk {
    fn new(bytes: Vec<u8>, fault: Fault) -> Arc<Mutex<Self>> {
        let synced = bytes.clone();
        Arc::new(Mutex::new(Self {
            seen: bytes,
            synced,
            loose: Vec::new(),
            operations: 0,
            fault,
            dead: false,
        }))
    }

    fn operate(&mut self, grows: bool) -> io::Result<()> {
        self.operations += 1;
        let now = self.operations;
        let failed = match self.fault {
            Fault::None => false,
            Fault::Cut { at } => {
                self.dead |= now >= at;
                self.dead
            }
            Fault::Once { at } => now == at,
            Fault::Forever { at } => now >= at,
            Fault::Full { at } => {
                if now >= at && grows {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                false
            }
        };
        if failed { Err(io::Error::other("injected")) } else { Ok(()) }
    }

    fn change(&mut self, new: Change, grows: bool) -> io::Result<()> {
        self.operate(grows)?;
        change(&mut self.seen, &new);
        self.loose.push(new);
        Ok(())
    }

    /// What a power cut leaves: everything synced, and of the rest what `kept` says. Lengths are kept
    /// up to the last kept write, because a file system orders them before data.
    fn after_power_cut(&self, kept: impl Fn(usize) -> Kept) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        let last = (0..self.loose.len()).rev().find(|i| kept(*i) != Kept::Nothing).map_or(0, |i| i + 1);
        for (i, loose) in self.loose[..last].iter().enumerate() {
            match (loose, kept(i)) {
                (Change::Length(_), _) | (_, Kept::Whole) => change(&mut bytes, loose),
                // Disks write sectors of 512 bytes whole.
                (Change::Write(offset, data), Kept::Sectors) => {
                    let half = (data.len() / 2).next_multiple_of(512).min(data.len());
                    change(&mut bytes, &Change::Write(*offset, data[..half].to_vec()));
                }
                (Change::Write(..), Kept::Nothing) => {}
            }
        }
        bytes
    }

    fn synced_only(&self) -> Vec<u8> {
        self.after_power_cut(|_| Kept::Nothing)
    }
}

#[derive(Debug, Clone)]
struct Backend(Arc<Mutex<Disk>>);

impl Backend {
    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        if disk.dead {
            return Err(io::Error::other("no power"));
        }
        let offset = offset as usize;
        let bytes = disk.seen.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk();
        let grows = len as usize > disk.seen.len();
        disk.change(Change::Length(len as usize), grows)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk();
        disk.operate(false)?;
        disk.synced = disk.seen.clone();
        disk.loose.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk().change(Change::Write(offset as usize, data.to_vec()), false)
    }
}

fn open_disk(disk: &Arc<Mutex<Disk>>, config: &RedbConfig) -> Result<RedbStore, ::redb::Error> {
    let (backend, opener_config) = (Backend(disk.clone()), config.clone());
    let opener: Opener = Box::new(move || {
        let database = file::builder(&opener_config).create_with_backend(backend.clone())?;
        file::ensure_table(&database)?;
        Ok(database)
    });
    let database = opener()?;
    Ok(RedbStore::run("disk".to_owned(), database, Recovery::Clean, opener, config).unwrap())
}

type Content = BTreeMap<String, String>;

async fn content(store: &RedbStore) -> Content {
    let pairs = store.scan_all(&Prefix::all()).await.unwrap();
    pairs.into_iter().map(|(k, v)| (k.to_string(), String::from_utf8(v.to_vec()).unwrap())).collect()
}

/// Step `i` of the workload: writes, replaces and deletes, small and larger than a page.
fn step(i: usize) -> Vec<(String, Option<String>)> {
    let value = format!("{i}-").repeat(if i.is_multiple_of(3) { 2500 } else { 40 });
    let mut changes = vec![
        (format!("new/{i}"), Some(value.clone())),
        ("same/left".to_owned(), Some(value.clone())),
        ("same/right".to_owned(), Some(value)),
    ];
    if i >= 2 {
        changes.push((format!("new/{}", i - 2), None));
    }
    changes
}

fn as_batch(changes: &[(String, Option<String>)]) -> Batch {
    let mut batch = Batch::new();
    for (key, value) in changes {
        let key = Key::from_text(key.as_str()).unwrap();
        match value {
            Some(value) => batch.put(key, value.clone()),
            None => batch.delete(key),
        };
    }
    batch
}

fn apply(model: &mut Content, changes: &[(String, Option<String>)]) {
    for (key, value) in changes {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
}

const STEPS: usize = 7;

/// Runs the workload until a commit fails; returns what was acknowledged, and what may be there too.
async fn run_until_failure(store: &RedbStore) -> (Content, Option<Content>) {
    let mut model = Content::new();
    for i in 0..STEPS {
        let changes = step(i);
        let before = model.clone();
        apply(&mut model, &changes);
        if store.commit(as_batch(&changes)).await.is_err() {
            return (before, Some(model));
        }
    }
    (model, None)
}

/// How many operations the workload takes, with those of opening and closing.
async fn operations(config: &RedbConfig) -> u64 {
    let disk = Disk::new(Vec::new(), Fault::None);
    let store = open_disk(&disk, config).unwrap();
    assert!(run_until_failure(&store).await.1.is_none());
    drop(store);
    let operations = disk.lock().unwrap().operations;
    assert!(operations > 40, "{operations}");
    operations
}

#[tokio::test]
async fn a_power_cut_at_any_operation_loses_nothing_acknowledged_and_halves_no_batch() {
    for quick_repair in [false, true] {
        let config = RedbConfig { quick_repair, ..RedbConfig::default() };
        let mut survived = BTreeSet::new();
        for at in 1..=operations(&config).await + 1 {
            let disk = Disk::new(Vec::new(), Fault::Cut { at });
            let (acked, in_flight) = match open_disk(&disk, &config) {
                Ok(store) => run_until_failure(&store).await,
                Err(_) => (Content::new(), Some(Content::new())),
            };
            for number in 0..6 {
                let bytes = {
                    let disk = disk.lock().unwrap();
                    disk.after_power_cut(pattern(number, at, disk.loose.len()))
                };
                // A file without its first page is what creating leaves, which is set aside when it is a file.
                let begun = bytes.iter().take(9).any(|byte| *byte != 0);
                if !begun {
                    assert!(acked.is_empty(), "cut at {at}, pattern {number}");
                    continue;
                }
                let disk = Disk::new(bytes, Fault::None);
                let store = match open_disk(&disk, &config) {
                    Ok(store) => store,
                    Err(error) => panic!("cut at {at}, pattern {number}: {error}"),
                };
                let found = content(&store).await;
                assert!(
                    found == acked || Some(&found) == in_flight.as_ref(),
                    "cut at {at}, pattern {number}: found {:?}, acknowledged {:?}",
                    found.keys(),
                    acked.keys()
                );
                survived.insert(found.get("same/left").cloned());
                // The store that was repaired goes on.
                store.commit(batch(&[("after", "1")])).await.unwrap();
            }
        }
        assert_eq!(survived.len(), STEPS + 1, "the cuts hit every moment between commits");
    }
}

#[tokio::test]
async fn one_failing_operation_is_healed_by_opening_again_and_nobody_notices() {
    let config = RedbConfig::default();
    let begun = {
        let disk = Disk::new(Vec::new(), Fault::None);
        let _store = open_disk(&disk, &config).unwrap();
        disk.lock().unwrap().operations
    };
    let mut model = Content::new();
    (0..STEPS).for_each(|i| apply(&mut model, &step(i)));
    for at in begun + 1..=operations(&config).await {
        let disk = Disk::new(Vec::new(), Fault::Once { at });
        let store = open_disk(&disk, &config).unwrap();
        let (acked, failed) = run_until_failure(&store).await;
        assert!(failed.is_none(), "failure at {at} was not healed");
        assert!(content(&store).await == acked && acked == model, "failure at {at}");
        drop(store);
        let bytes = disk.lock().unwrap().synced_only();
        let store = open_disk(&Disk::new(bytes, Fault::None), &config).unwrap();
        assert!(content(&store).await == model, "failure at {at}, then power cut");
    }
}

#[tokio::test]
async fn a_disk_that_became_read_only_fails_commits_visibly_and_keeps_what_was_acknowledged() {
    let config = RedbConfig::default();
    for at in (20..=operations(&config).await).step_by(7) {
        let disk = Disk::new(Vec::new(), Fault::Forever { at });
        let Ok(store) = open_disk(&disk, &config) else { continue };
        let (acked, _) = run_until_failure(&store).await;
        let failed = store.commit(batch(&[("later", "1")])).await;
        assert!(failed.unwrap_err().is_retryable());
        drop(store);
        let bytes = disk.lock().unwrap().synced_only();
        let store = open_disk(&Disk::new(bytes, Fault::None), &config).unwrap();
        let found = content(&store).await;
        assert!(acked.iter().all(|(key, value)| found.get(key) == Some(value)), "failure at {at}");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_what_needs_room_and_goes_on_when_there_is_some() {
    let config = RedbConfig::default();
    let disk = Disk::new(Vec::new(), Fault::None);
    let store = open_disk(&disk, &config).unwrap();
    store.commit(batch(&[("a", "1")])).await.unwrap();
    disk.lock().unwrap().fault = Fault::Full { at: 0 };
    let large = "x".repeat(1 << 20);
    let error = store.commit(batch(&[("a", "2"), ("large", &large)])).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert_eq!(content(&store).await, Content::from([("a".to_owned(), "1".to_owned())]));
    store.commit(batch(&[("b", "1")])).await.unwrap();
    disk.lock().unwrap().fault = Fault::None;
    store.commit(batch(&[("large", &large)])).await.unwrap();
    assert_eq!(content(&store).await.len(), 3);
}

#[tokio::test]
async fn commits_that_wait_together_are_synced_together() {
    let config = RedbConfig::default();
    let disk = Disk::new(Vec::new(), Fault::None);
    let store = open_disk(&disk, &config).unwrap();
    let one = {
        let before = disk.lock().unwrap().operations;
        store.commit(batch(&[("warm", "1")])).await.unwrap();
        disk.lock().unwrap().operations - before
    };
    let before = disk.lock().unwrap().operations;
    {
        // The writing thread stands still as long as the disk does.
        let held = disk.lock().unwrap();
        let batches: Vec<_> = (0..32).map(|i| batch(&[(&format!("k/{i}"), "1")])).collect();
        for batch in batches {
            let mut commit = std::pin::pin!(store.commit(batch));
            let _ = commit.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        }
        drop(held);
    }
    store.commit(batch(&[("last", "1")])).await.unwrap();
    let all = disk.lock().unwrap().operations - before;
    assert!(all <= one * 6, "33 commits took {all} operations, one takes {one}");
    assert_eq!(content(&store).await.len(), 34);
}

#[tokio::test]
async fn a_power_cut_while_a_crash_is_being_repaired_loses_nothing_either() {
    let config = RedbConfig::default();
    let disk = Disk::new(Vec::new(), Fault::None);
    let store = open_disk(&disk, &config).unwrap();
    let (model, _) = run_until_failure(&store).await;
    let crashed = disk.lock().unwrap().synced_only();
    drop(store);
    let disk = Disk::new(crashed.clone(), Fault::None);
    drop(open_disk(&disk, &config).unwrap());
    let operations = disk.lock().unwrap().operations;
    for at in 1..=operations {
        for number in 0..6 {
            let disk = Disk::new(crashed.clone(), Fault::Cut { at });
            drop(open_disk(&disk, &config));
            let bytes = {
                let disk = disk.lock().unwrap();
                disk.after_power_cut(pattern(number, at, disk.loose.len()))
            };
            let store = open_disk(&Disk::new(bytes, Fault::None), &config).unwrap();
            assert!(content(&store).await == model, "cut at {at}, pattern {number}");
        }
    }
}

#[tokio::test]
async fn a_store_that_could_not_be_opened_again_comes_back_for_readers_too() {
    let config = RedbConfig::default();
    let disk = Disk::new(Vec::new(), Fault::None);
    let store = open_disk(&disk, &config).unwrap();
    store.commit(batch(&[("a", "1")])).await.unwrap();
    disk.lock().unwrap().dead = true;
    disk.lock().unwrap().fault = Fault::Forever { at: 0 };
    let key = Key::from_text("a").unwrap();
    assert!(store.commit(batch(&[("a", "2")])).await.unwrap_err().is_retryable());
    assert!(store.get(&key).await.unwrap_err().is_retryable());
    assert!(store.scan_all(&Prefix::all()).await.unwrap_err().is_retryable());
    disk.lock().unwrap().dead = false;
    disk.lock().unwrap().fault = Fault::None;
    // Nobody commits; the reads themselves have the file opened again.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let value = loop {
        match store.get(&key).await {
            Ok(value) => break value,
            Err(error) => assert!(std::time::Instant::now() < patience, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(value.as_deref(), Some(&b"1"[..]));
}

#[tokio::test]
async fn the_file_does_not_grow_with_the_number_of_commits() {
    for quick_repair in [false, true] {
        let config = RedbConfig { quick_repair, ..RedbConfig::default() };
        let disk = Disk::new(Vec::new(), Fault::None);
        let store = open_disk(&disk, &config).unwrap();
        let value = "v".repeat(2000);
        for i in 0..600 {
            store.commit(batch(&[(&format!("k/{:02}", i % 50), &value)])).await.unwrap();
        }
        let length = disk.lock().unwrap().seen.len();
        assert!(length < 2 << 20, "100 kB of content took {length} bytes");
    }
}

#[tokio::test]
async fn a_power_cut_loses_no_commit_of_a_group_that_was_acknowledged_and_halves_none() {
    let config = RedbConfig::default();
    let mut groups_cut = 0;
    for at in (10..120).step_by(3) {
        let disk = Disk::new(Vec::new(), Fault::Cut { at });
        let Ok(store) = open_disk(&disk, &config) else { continue };
        let store = Arc::new(store);
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8 {
            let store = store.clone();
            tasks.spawn(async move {
                let mut acked = Vec::new();
                for step in 0..6 {
                    let (left, right) = (format!("left/{task}-{step}"), format!("right/{task}-{step}"));
                    if store.commit(batch(&[(&left, "1"), (&right, "1")])).await.is_err() {
                        break;
                    }
                    acked.extend([left, right]);
                }
                acked
            });
        }
        let acked: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
        groups_cut += usize::from(!acked.is_empty() && acked.len() < 8 * 6 * 2);
        drop(store);
        let bytes = {
            let disk = disk.lock().unwrap();
            disk.after_power_cut(pattern(5, at, disk.loose.len()))
        };
        if bytes.iter().take(9).all(|byte| *byte == 0) {
            assert!(acked.is_empty(), "cut at {at}");
            continue;
        }
        let store = open_disk(&Disk::new(bytes, Fault::None), &config).unwrap();
        let found = content(&store).await;
        assert!(acked.iter().all(|key| found.contains_key(key)), "cut at {at}");
        let sides = |side| found.keys().filter_map(move |key| key.strip_prefix(side)).collect::<Vec<_>>();
        assert_eq!(sides("left/"), sides("right/"), "cut at {at}");
    }
    assert!(groups_cut > 3, "{groups_cut}");
}
