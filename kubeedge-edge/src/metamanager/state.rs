//! What MetaManager decides: which objects to store, when to acknowledge, whom to tell.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use kubeedge_core::{
    message::{Acked, Delivered, Delivery, Inventory, InventoryEntry, ObjectEvent, ObjectRef},
    store::{Batch, Key},
};

use super::record;

/// What the driver has to do, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Commit this, then call [`State::handle_committed`] or [`State::handle_commit_failed`].
    Persist(Batch),
    /// Tell EdgeHub.
    Ack(Acked<ObjectRef>),
    /// Tell the part that works with this kind.
    Notify(Audience, ObjectEvent),
}

/// Who works with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Edged.
    Workloads,
    /// DeviceTwin.
    Devices,
    /// EventBus.
    Rules,
}

impl Audience {
    /// Who works with objects of this kind; others are only stored and read.
    pub(super) fn of(reference: &ObjectRef) -> Option<Self> {
        match (reference.api_version(), reference.kind()) {
            (
                "v1",
                "Pod" | "ConfigMap" | "Secret" | "PersistentVolumeClaim" | "PersistentVolume" | "Service",
            )
            | ("node.k8s.io/v1", "RuntimeClass") => Some(Self::Workloads),
            (api, "Device" | "DeviceModel") if api.starts_with("devices.kubeedge.io/") => Some(Self::Devices),
            (api, "Rule") if api.starts_with("rules.kubeedge.io/") => Some(Self::Rules),
            _ => None,
        }
    }
}

/// Objects in one commit at most.
const COMMIT_OBJECTS: usize = 256;

/// Bytes of JSON after which a commit takes no further object: a commit is in memory twice while it is written.
const COMMIT_BYTES: usize = 1 << 20;

/// What is held, and what is on its way there.
#[derive(Debug)]
pub(super) struct State {
    /// What is durable. The bodies are in the store.
    held: Inventory,
    /// What is not durable yet, the newest event per object.
    waiting: BTreeMap<ObjectRef, Waiting>,
    /// The part of `waiting` that is being committed.
    committing: BTreeMap<ObjectRef, Waiting>,
    /// Damaged records, to be removed with the next commit.
    discarded: Vec<Key>,
    outputs: VecDeque<Output>,
    pause_min: Duration,
    pause_max: Duration,
    failures: u32,
    /// Commits wait until then, because the last one failed.
    retry_at: Option<Instant>,
}

/// An event whose effect is not durable yet.
#[derive(Debug, Clone)]
struct Waiting {
    key: Key,
    event: ObjectEvent,
    /// The newest delivery that is to be acknowledged with it.
    delivery: Delivery,
}

/// What an event means to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It changes what is held.
    Store,
    /// It says what is known, or less.
    Known,
    /// It cannot be stored at all: its names or UID are longer than anything Kubernetes has.
    Impossible,
}

impl State {
    /// Begins with what the store held, and the keys of records that could not be read. An object whose record
    /// is damaged is not in the inventory, so the cloud sends it again.
    pub(super) fn restore(
        held: impl IntoIterator<Item = InventoryEntry>,
        damaged: Vec<Key>,
        pause_min: Duration,
        pause_max: Duration,
    ) -> Self {
        Self {
            held: held.into_iter().collect(),
            waiting: BTreeMap::new(),
            committing: BTreeMap::new(),
            discarded: damaged,
            outputs: VecDeque::new(),
            pause_min,
            pause_max,
            failures: 0,
            retry_at: None,
        }
    }

    /// What is durable: what the cloud may rely on.
    pub(super) fn inventory(&self) -> &Inventory {
        &self.held
    }

    /// Whether another object may be given; else it is left in its pipe, where newer states replace older ones.
    pub(super) fn has_room(&self) -> bool {
        self.retry_at.is_none() && self.waiting.len() < COMMIT_OBJECTS
    }

    /// Takes what became of an object.
    pub(super) fn handle_object(&mut self, delivered: Delivered<ObjectEvent>) {
        let Delivered { delivery, message: event } = delivered;
        let reference = event.key().clone();
        match (self.judge(&event), record::key(&reference)) {
            (Verdict::Store, Ok(key)) => {
                self.waiting.insert(reference, Waiting { key, event, delivery });
            }
            (Verdict::Known, _) => self.acknowledge(reference, delivery),
            (Verdict::Store, Err(_)) | (Verdict::Impossible, _) => {
                // Without an acknowledgement the cloud would send it for ever.
                tracing::warn!(object = ?reference, "the object's names or UID are too long; it is not stored");
                self.acknowledge(reference, delivery);
            }
        }
    }

    /// Compares the event with what will be there once all that waits is durable.
    fn judge(&self, event: &ObjectEvent) -> Verdict {
        let reference = event.key();
        let entry = match self.waiting.get(reference).or_else(|| self.committing.get(reference)) {
            Some(Waiting { event: ObjectEvent::Applied(object), .. }) => Some(object.entry()),
            Some(Waiting { event: ObjectEvent::Deleted { .. }, .. }) => None,
            None => self.held.get(reference).cloned(),
        };
        match (event, entry) {
            (ObjectEvent::Applied(object), _) if !record::fits(&object.uid) => Verdict::Impossible,
            (ObjectEvent::Applied(object), Some(entry)) if object.uid == entry.uid => {
                let newer = object.resource_version > entry.resource_version;
                // Equal versions of unequal content are versions that are no numbers: the later delivery counts.
                let other = object.resource_version == entry.resource_version
                    && object.fingerprint != entry.fingerprint;
                if newer || other { Verdict::Store } else { Verdict::Known }
            }
            (ObjectEvent::Applied(_), _) => Verdict::Store,
            (ObjectEvent::Deleted { uid, .. }, Some(entry)) if *uid == entry.uid => Verdict::Store,
            (ObjectEvent::Deleted { .. }, _) => Verdict::Known,
        }
    }

    /// Acknowledges a delivery that changes nothing. Its acknowledgement covers earlier deliveries of the object
    /// too, so it has to wait for them.
    fn acknowledge(&mut self, key: ObjectRef, delivery: Delivery) {
        match self.waiting.get_mut(&key).or_else(|| self.committing.get_mut(&key)) {
            Some(waiting) => waiting.delivery = delivery,
            None => self.outputs.push_back(Output::Ack(Acked { key, delivery })),
        }
    }

    /// Takes that the batch of the last [`Output::Persist`] is durable.
    pub(super) fn handle_committed(&mut self) {
        self.failures = 0;
        self.discarded.clear();
        let committed = std::mem::take(&mut self.committing);
        for (reference, waiting) in &committed {
            match &waiting.event {
                ObjectEvent::Applied(object) => self.held.insert(object.entry()),
                ObjectEvent::Deleted { .. } => drop(self.held.remove(reference)),
            }
            let acked = Acked { key: reference.clone(), delivery: waiting.delivery };
            self.outputs.push_back(Output::Ack(acked));
        }
        // Pods come last, so that they find what they are given without naming it.
        let (pods, others): (Vec<_>, Vec<_>) =
            committed.into_iter().partition(|(reference, _)| reference.kind() == "Pod");
        for (reference, waiting) in others.into_iter().chain(pods) {
            if let Some(audience) = Audience::of(&reference) {
                self.outputs.push_back(Output::Notify(audience, waiting.event));
            }
        }
    }

    /// Takes that nothing of the last batch was applied. It is tried again after the returned pause.
    pub(super) fn handle_commit_failed(&mut self, now: Instant) -> Duration {
        for (reference, waiting) in std::mem::take(&mut self.committing) {
            // What came in the meantime is newer.
            self.waiting.entry(reference).or_insert(waiting);
        }
        let factor = 2u32.saturating_pow(self.failures.min(16));
        let pause = self.pause_min.saturating_mul(factor).min(self.pause_max);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause);
        pause
    }

    /// When [`State::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Takes that time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
    }

    /// What to do next.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let idle = self.waiting.is_empty() && self.discarded.is_empty();
        if idle || self.retry_at.is_some() || !self.committing.is_empty() {
            return None;
        }
        Some(Output::Persist(self.next_batch()))
    }

    /// What is committed next: pods when there is nothing else.
    fn take_next(&mut self) -> Option<(ObjectRef, Waiting)> {
        let next = self.waiting.keys().find(|reference| reference.kind() != "Pod");
        match next.cloned() {
            Some(reference) => self.waiting.remove_entry(&reference),
            None => self.waiting.pop_first(),
        }
    }

    fn next_batch(&mut self) -> Batch {
        let mut batch = Batch::new();
        for key in &self.discarded {
            batch.delete(key.clone());
        }
        let mut bytes = 0;
        while bytes < COMMIT_BYTES
            && self.committing.len() < COMMIT_OBJECTS
            && let Some((reference, waiting)) = self.take_next()
        {
            match &waiting.event {
                ObjectEvent::Applied(object) => {
                    bytes += object.json.len();
                    batch.put(waiting.key.clone(), record::encode(object));
                }
                ObjectEvent::Deleted { .. } => {
                    batch.delete(waiting.key.clone());
                }
            }
            self.committing.insert(reference, waiting);
        }
        batch
    }
}
