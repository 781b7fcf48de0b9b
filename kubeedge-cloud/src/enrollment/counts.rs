use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::Refused;

/// What has been granted and refused since the start.
#[derive(Debug, Default)]
pub struct Counts {
    joined: AtomicU64,
    renewed: AtomicU64,
    /// As many as there are reasons, whoever asks.
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counts {
    /// Certificates issued by token.
    pub fn joined(&self) -> u64 {
        self.joined.load(Ordering::Relaxed)
    }

    /// Certificates issued to nodes that had one.
    pub fn renewed(&self) -> u64 {
        self.renewed.load(Ordering::Relaxed)
    }

    /// Requests that were refused, by [`Refused::as_str`].
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn grant(&self, renewal: bool) {
        let count = if renewal { &self.renewed } else { &self.joined };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self, refused: Refused) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(refused.as_str()).or_default() +=
            1;
    }
}
