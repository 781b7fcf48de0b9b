//! The port `MetaStore`: what a node keeps across restarts and power loss.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use serde::{Serialize, de::DeserializeOwned};

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod memory;
#[cfg(feature = "redb")]
pub mod redb;

/// Keeps the node's metadata across restarts and power loss.
#[async_trait]
pub trait MetaStore: fmt::Debug + Send + Sync + 'static {
    /// Returns the value under `key`, or `None` if it was never written or was deleted.
    ///
    /// # Errors
    /// If the store cannot be read.
    async fn get(&self, key: &Key) -> Result<Option<Bytes>, StoreError>;

    /// Streams every pair whose key starts with `prefix`, in key order, as of the moment of the call: commits
    /// that follow do not show.
    fn scan(&self, prefix: &Prefix) -> BoxStream<'static, Result<(Key, Bytes), StoreError>>;

    /// Applies all changes or none, in the batch's order. When this returns `Ok`, they survive power loss, and
    /// every later `get` and `scan` sees them. If the future is dropped, they are applied whole or not at all, and
    /// never after those of a commit that was called later.
    ///
    /// # Errors
    /// If nothing was applied: the store is full, read-only, or broken.
    async fn commit(&self, batch: Batch) -> Result<(), StoreError>;
}

/// The longest key in bytes: five names of a Kubernetes object with their separators fit.
pub const KEY_LIMIT: usize = 1024;

/// A key: parts joined by `/`. Parts cannot be confused, because `/` inside a part is escaped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Joins parts to a key; `/` and `%` in a part are written `%2F` and `%25`.
    ///
    /// # Errors
    /// If there is no part, a part is empty, or the key is longer than [`KEY_LIMIT`].
    pub fn new<'a>(parts: impl IntoIterator<Item = &'a str>) -> Result<Self, StoreError> {
        let mut key = String::new();
        for part in parts {
            if part.is_empty() {
                return Err(StoreError::InvalidKey(format!("{key:?} is followed by an empty part")));
            }
            if !key.is_empty() {
                key.push('/');
            }
            push_escaped(&mut key, part);
        }
        Self::from_text(key)
    }

    /// Takes a key as [`Key::as_str`] gave it.
    ///
    /// # Errors
    /// If it is empty or longer than [`KEY_LIMIT`].
    pub fn from_text(text: impl Into<String>) -> Result<Self, StoreError> {
        let text = text.into();
        if text.is_empty() || text.len() > KEY_LIMIT {
            return Err(StoreError::InvalidKey(format!(
                "its length is {} bytes; 1 to {KEY_LIMIT} are allowed",
                text.len()
            )));
        }
        Ok(Self(text))
    }

    /// The key as text, as adapters write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The parts from which the key was joined.
    pub fn parts(&self) -> impl Iterator<Item = String> + '_ {
        self.0.split('/').map(|part| part.replace("%2F", "/").replace("%25", "%"))
    }
}

fn push_escaped(key: &mut String, part: &str) {
    for c in part.chars() {
        match c {
            '/' => key.push_str("%2F"),
            '%' => key.push_str("%25"),
            c => key.push(c),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The beginning of keys: whole parts, so that `a/b` does not match `a/bc`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    /// The prefix of every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// Joins parts to the prefix of all keys that begin with them and have more parts.
    pub fn new<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut prefix = String::new();
        for part in parts {
            push_escaped(&mut prefix, part);
            prefix.push('/');
        }
        Self(prefix)
    }

    /// The prefix as text: empty, or ending with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the key begins with this prefix.
    pub fn matches(&self, key: &Key) -> bool {
        key.0.starts_with(&self.0)
    }
}

/// Changes that belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    changes: Vec<Change>,
}

/// One change of a [`Batch`].
#[derive(Clone, PartialEq, Eq)]
pub enum Change {
    /// Writes the value under the key, in place of what was there.
    Put(Key, Bytes),
    /// Removes the key; it need not exist.
    Delete(Key),
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values stay out: they may be Secrets.
        match self {
            Self::Put(key, value) => write!(f, "Put({key}, {} bytes)", value.len()),
            Self::Delete(key) => write!(f, "Delete({key})"),
        }
    }
}

impl Batch {
    /// Creates an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a write.
    pub fn put(&mut self, key: Key, value: impl Into<Bytes>) -> &mut Self {
        self.changes.push(Change::Put(key, value.into()));
        self
    }

    /// Adds a removal.
    pub fn delete(&mut self, key: Key) -> &mut Self {
        self.changes.push(Change::Delete(key));
        self
    }

    /// The changes, in order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Gives the changes, in order.
    pub fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Says why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The key is empty or too long.
    #[error("the key is invalid: {0}")]
    InvalidKey(String),
    /// There is no room: free some, and try again.
    #[error("{what}: the store is full")]
    Full {
        /// What was being done.
        what: String,
        /// What the store says.
        #[source]
        source: crate::transport::BoxError,
    },
    /// The store cannot be used now: a failed disk, another process that has it, a read-only file system.
    #[error("{what}: the store is unavailable: {source}")]
    Unavailable {
        /// What was being done.
        what: String,
        /// What the store says.
        source: crate::transport::BoxError,
    },
    /// What is stored is not what was written.
    #[error("{what}: what is stored is damaged: {source}")]
    Corrupt {
        /// What was being read.
        what: String,
        /// What is wrong with it.
        source: crate::transport::BoxError,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unavailable { .. })
    }
}

/// Conveniences on every [`MetaStore`].
#[async_trait]
pub trait MetaStoreExt: MetaStore {
    /// Reads a value that was written as JSON.
    ///
    /// # Errors
    /// As [`MetaStore::get`]; [`StoreError::Corrupt`] if the value is not a `T`.
    async fn get_as<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<T>, StoreError> {
        match self.get(key).await? {
            None => Ok(None),
            Some(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| StoreError::Corrupt {
                what: format!("read {key}"),
                source: Box::new(error),
            }),
        }
    }

    /// Writes one value as JSON.
    ///
    /// # Errors
    /// As [`MetaStore::commit`].
    async fn put_as<T: Serialize + Sync>(&self, key: Key, value: &T) -> Result<(), StoreError> {
        let json = serde_json::to_vec(value)
            .map_err(|error| StoreError::Corrupt { what: format!("write {key}"), source: Box::new(error) })?;
        let mut batch = Batch::new();
        batch.put(key, json);
        self.commit(batch).await
    }

    /// Reads everything under `prefix`.
    ///
    /// # Errors
    /// As the items of [`MetaStore::scan`].
    async fn scan_all(&self, prefix: &Prefix) -> Result<Vec<(Key, Bytes)>, StoreError> {
        let mut stream = self.scan(prefix);
        let mut pairs = Vec::new();
        while let Some(pair) = std::future::poll_fn(|context| stream.as_mut().poll_next(context)).await {
            pairs.push(pair?);
        }
        Ok(pairs)
    }
}

impl<T: MetaStore + ?Sized> MetaStoreExt for T {}

macro_rules! forward {
    ($($outer:ty),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: MetaStore + ?Sized> MetaStore for $outer {
            async fn get(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
                (**self).get(key).await
            }
            fn scan(&self, prefix: &Prefix) -> BoxStream<'static, Result<(Key, Bytes), StoreError>> {
                (**self).scan(prefix)
            }
            async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
                (**self).commit(batch).await
            }
        }
    )*};
}
forward!(Arc<T>, Box<T>);
