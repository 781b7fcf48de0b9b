//! I want the node's metadata on my own flash chip.
//!
//! A store is three methods, and the published conformance suite says when they are right. This one keeps an
//! append-only log in one file, as a raw flash partition would be written: a record is length, checksum and
//! changes; a record that a power cut has torn is not there.
#![expect(clippy::print_stdout, reason = "an example speaks to people")]

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::Path,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use kubeedge_core::store::{Batch, Change, Key, MetaStore, Prefix, StoreError, conformance};

type Pairs = BTreeMap<Key, Bytes>;

/// A store on an append-only log.
#[derive(Debug)]
struct LogStore {
    state: Mutex<(File, Pairs)>,
}

impl LogStore {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).map_err(unavailable)?;
        let mut log = Vec::new();
        file.read_to_end(&mut log).map_err(unavailable)?;
        let mut pairs = Pairs::new();
        let mut whole = 0;
        while let Some(record) = next_record(&log[whole..]) {
            for change in
                serde_json::from_slice::<Vec<(String, Option<Vec<u8>>)>>(record).map_err(unavailable)?
            {
                let key = Key::from_text(change.0)?;
                match change.1 {
                    Some(value) => drop(pairs.insert(key, value.into())),
                    None => drop(pairs.remove(&key)),
                }
            }
            whole += HEADER + record.len();
        }
        file.set_len(whole as u64).map_err(unavailable)?;
        Ok(Self { state: Mutex::new((file, pairs)) })
    }
}

/// Length and checksum, four bytes each.
const HEADER: usize = 8;

fn next_record(log: &[u8]) -> Option<&[u8]> {
    let length = u32::from_be_bytes(log.get(..4)?.try_into().ok()?) as usize;
    let checksum = u32::from_be_bytes(log.get(4..HEADER)?.try_into().ok()?);
    let record = log.get(HEADER..HEADER + length)?;
    (checksum == adler(record)).then_some(record)
}

/// Adler-32, RFC 1950 §8.2.
fn adler(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    (b << 16) | a
}

#[async_trait]
impl MetaStore for LogStore {
    async fn get(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner).1.get(key).cloned())
    }

    fn scan(&self, prefix: &Prefix) -> BoxStream<'static, Result<(Key, Bytes), StoreError>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs: Vec<_> = state.1.iter().filter(|(key, _)| prefix.matches(key)).collect();
        let pairs: Vec<_> = pairs.into_iter().map(|(key, value)| Ok((key.clone(), value.clone()))).collect();
        futures::stream::iter(pairs).boxed()
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let changes: Vec<(&str, Option<&[u8]>)> = batch
            .changes()
            .iter()
            .map(|change| match change {
                Change::Put(key, value) => (key.as_str(), Some(&value[..])),
                Change::Delete(key) => (key.as_str(), None),
            })
            .collect();
        let record = serde_json::to_vec(&changes).map_err(unavailable)?;
        let length = u32::try_from(record.len()).map_err(unavailable)?;
        let mut entry = [length.to_be_bytes(), adler(&record).to_be_bytes()].concat();
        entry.extend_from_slice(&record);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.write_all(&entry).and_then(|()| state.0.sync_data()).map_err(unavailable)?;
        for change in batch.into_changes() {
            match change {
                Change::Put(key, value) => drop(state.1.insert(key, value)),
                Change::Delete(key) => drop(state.1.remove(&key)),
            }
        }
        Ok(())
    }
}

fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unavailable { what: "use the log".into(), source: Box::new(error) }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.log");
    let count = std::sync::atomic::AtomicUsize::new(0);
    conformance::run(async || {
        let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        LogStore::open(&folder.path().join(format!("{number}.log"))).expect("a fresh log opens")
    })
    .await;
    conformance::durable(|| LogStore::open(&path).expect("the log opens again")).await;
    println!("LogStore keeps the contract of MetaStore");
    Ok(())
}
