//! What a write sees and changes, and what a reader sees.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use redb::{ReadTransaction, ReadableTable, Table};
use serde_json::Value;

use super::{OBJECTS, broken, decode, key, prefix};
use crate::standalone::{failure::Failure, history::Change, json, resource::Resource};

/// The largest object in bytes. etcd refuses what is larger, and so does every link to an edge.
const OBJECT_BYTES_MAX: usize = 3 << 19;

/// The objects while one write decides: what is stored, below what the write has changed so far.
pub(crate) struct Txn<'a, 'txn> {
    pub(super) table: &'a Table<'txn, &'static [u8], &'static [u8]>,
    pub(super) overlay: BTreeMap<Vec<u8>, Option<Bytes>>,
    pub(super) changes: Vec<Change>,
    pub(super) version: u64,
    /// The time of the write.
    pub(crate) now: Timestamp,
}

impl Txn<'_, '_> {
    /// The object of this name.
    pub(crate) fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Failure> {
        self.bytes(&key(resource, namespace, name))?.map(|bytes| decode(&bytes)).transpose()
    }

    fn bytes(&self, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        if let Some(changed) = self.overlay.get(key) {
            return Ok(changed.clone());
        }
        let stored = self.table.get(key).map_err(broken)?;
        Ok(stored.map(|stored| Bytes::copy_from_slice(stored.value())))
    }

    /// The object with this key.
    pub(crate) fn get_key(&self, key: &[u8]) -> Result<Option<Value>, Failure> {
        self.bytes(key)?.map(|bytes| decode(&bytes)).transpose()
    }

    /// All objects of a resource, or those of one namespace.
    pub(crate) fn list(&self, resource: &Resource, namespace: Option<&str>) -> Result<Vec<Value>, Failure> {
        Ok(self.entries(resource, namespace)?.into_iter().map(|(_, object)| object).collect())
    }

    /// The same, each with its key.
    pub(crate) fn entries(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
    ) -> Result<Vec<(Vec<u8>, Value)>, Failure> {
        let prefix = prefix(resource, namespace);
        let mut found = BTreeMap::new();
        for entry in self.table.range(prefix.as_slice()..).map_err(broken)? {
            let (key, value) = entry.map_err(broken)?;
            if !key.value().starts_with(&prefix) {
                break;
            }
            found.insert(key.value().to_vec(), Some(decode(value.value())?));
        }
        for (key, value) in
            self.overlay.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix))
        {
            found.insert(key.clone(), value.as_deref().map(decode).transpose()?);
        }
        Ok(found.into_iter().filter_map(|(key, object)| Some((key, object?))).collect())
    }

    /// Stores the object under its own names with the next version, and returns it with that.
    pub(crate) fn put(&mut self, resource: &'static Resource, object: Value) -> Result<Value, Failure> {
        self.change(resource, object, false)
    }

    /// Removes the object, and returns its last state.
    pub(crate) fn remove(&mut self, resource: &'static Resource, object: Value) -> Result<Value, Failure> {
        self.change(resource, object, true)
    }

    fn change(
        &mut self,
        resource: &'static Resource,
        mut object: Value,
        deleted: bool,
    ) -> Result<Value, Failure> {
        self.version += 1;
        json::metadata(&mut object).insert("resourceVersion".into(), self.version.to_string().into());
        let names =
            (json::text(&object, &["metadata", "namespace"]), json::text(&object, &["metadata", "name"]));
        let key = key(resource, names.0, names.1);
        let new = Bytes::from(serde_json::to_vec(&object).map_err(broken)?);
        if new.len() > OBJECT_BYTES_MAX && !deleted {
            return Err(Failure::too_large(OBJECT_BYTES_MAX));
        }
        let old = self.bytes(&key)?;
        self.overlay.insert(key.clone(), (!deleted).then(|| new.clone()));
        self.changes.push(Change { version: self.version, resource, key, old, new, deleted });
        Ok(object)
    }
}

/// The objects as of one moment.
pub(crate) struct Snapshot {
    pub(super) transaction: ReadTransaction,
    /// The version of that moment.
    pub(crate) version: u64,
}

impl Snapshot {
    /// The JSON of the object of this name.
    pub(crate) fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Bytes>, Failure> {
        let table = self.transaction.open_table(OBJECTS).map_err(broken)?;
        let stored = table.get(key(resource, namespace, name).as_slice()).map_err(broken)?;
        Ok(stored.map(|stored| Bytes::copy_from_slice(stored.value())))
    }

    /// Visits key and JSON of every object whose key begins with `prefix` and comes after `after`, in order,
    /// until `visit` returns false.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let table = self.transaction.open_table(OBJECTS).map_err(broken)?;
        for entry in table.range(after.unwrap_or(prefix)..).map_err(broken)? {
            let (key, value) = entry.map_err(broken)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            if after != Some(key.value()) && !visit(key.value(), value.value())? {
                break;
            }
        }
        Ok(())
    }
}
