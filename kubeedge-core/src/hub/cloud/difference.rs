use std::collections::{BTreeMap, BTreeSet};

use crate::{
    hub::InventoryPart,
    id::Uid,
    message::{Inventory, InventoryEntry, Object, ObjectEvent, ObjectRef, Snapshot},
};

/// About how much memory one object's name and numbers take in a map.
pub(super) const ENTRY: usize = 192;

/// What the node should hold, as far as the cloud knows: the controllers' snapshot, and what changed since the
/// session began.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    known: BTreeMap<ObjectRef, ObjectEvent>,
    unknown: BTreeSet<ObjectRef>,
}

impl Wanted {
    /// A change that came while the session is not in sync.
    pub(super) fn change(&mut self, event: ObjectEvent) {
        self.known.insert(event.key().clone(), event);
    }

    /// Adds the snapshot to the changes that came before it.
    ///
    /// A change may be older than the snapshot, or newer: it waited in a pipe while the snapshot was taken. So the
    /// versions decide about two of the same object. A deletion always stays: if it is older than the snapshot's
    /// object, then the change that made that object is still to come.
    pub(super) fn merge(&mut self, snapshot: Snapshot) {
        self.unknown = snapshot.unknown;
        for object in snapshot.objects {
            let stays = self.known.get(&object.reference).is_some_and(|change| match change {
                ObjectEvent::Applied(changed) => changed.resource_version >= object.resource_version,
                ObjectEvent::Deleted { .. } => true,
            });
            if !stays {
                self.change(ObjectEvent::Applied(object));
            }
        }
    }

    /// About how much memory this takes that is not shared with the controllers' objects.
    pub(super) fn memory(&self) -> usize {
        (self.known.len() + self.unknown.len()) * ENTRY
    }

    /// The digest of an edge that holds exactly this.
    pub(super) fn digest(&self) -> [u8; 32] {
        let entry = |event: &ObjectEvent| match event {
            ObjectEvent::Applied(object) => Some(object.entry()),
            ObjectEvent::Deleted { .. } => None,
        };
        self.known.values().filter_map(entry).collect::<Inventory>().digest()
    }

    /// What the edge holds of the objects of which it is not known how they are: it stays with it until that is known.
    pub(super) fn left_open(&self, held: &Inventory) -> BTreeMap<ObjectRef, Uid> {
        let open = held.iter().filter(|entry| self.is_open(&entry.reference));
        open.map(|entry| (entry.reference.clone(), entry.uid.clone())).collect()
    }

    fn is_open(&self, reference: &ObjectRef) -> bool {
        self.unknown.contains(reference) && !self.known.contains_key(reference)
    }

    /// What has to be sent to an edge that holds `held`; objects of the kinds `left_alone`, and those of which it is not
    /// known how they are, stay with it.
    pub(super) fn difference(self, held: &Inventory, left_alone: &[String]) -> Vec<ObjectEvent> {
        let surplus: Vec<ObjectEvent> = held
            .iter()
            .filter(|entry| !left_alone.iter().any(|kind| kind == entry.reference.kind()))
            .filter(|entry| !self.is_open(&entry.reference))
            .filter(|entry| !matches!(self.known.get(&entry.reference), Some(ObjectEvent::Applied(_))))
            .map(|entry| ObjectEvent::Deleted { reference: entry.reference.clone(), uid: entry.uid.clone() })
            .collect();
        let lacking = self.known.into_values().filter(|event| match event {
            ObjectEvent::Applied(object) => {
                held.get(&object.reference).is_none_or(|entry| is_better(object, entry))
            }
            ObjectEvent::Deleted { .. } => false,
        });
        surplus.into_iter().chain(lacking).collect()
    }
}

/// Whether the edge should take `object` in place of what it holds. A cloud that has just started may read from
/// a cache that is older than what the edge has: that must not take the edge back.
fn is_better(object: &Object, held: &InventoryEntry) -> bool {
    object.uid != held.uid
        || object.fingerprint != held.fingerprint && object.resource_version >= held.resource_version
}

/// What the edge holds, as far as its parts have come.
#[derive(Debug, Default)]
pub(super) struct Held {
    inventory: Inventory,
    next_part: u32,
}

/// The edge names more objects than it said it has, or than the cloud takes.
#[derive(Debug)]
pub(super) struct TooMany;

impl Held {
    /// The first part that has not come.
    pub(super) fn next_part(&self) -> u32 {
        self.next_part
    }

    /// Takes a part if it is the next one: whether it is the last, or `None` if it is not the next.
    pub(super) fn take(&mut self, part: InventoryPart, max: u32) -> Result<Option<bool>, TooMany> {
        if part.part != self.next_part {
            return Ok(None);
        }
        if self.inventory.len() + part.entries.len() > max as usize || part.entries.is_empty() && !part.last {
            return Err(TooMany);
        }
        for entry in part.entries {
            self.inventory.insert(entry);
        }
        self.next_part += 1;
        Ok(Some(part.last))
    }

    /// About how much memory this takes.
    pub(super) fn memory(&self) -> usize {
        self.inventory.len() * ENTRY
    }

    /// All of it, when the last part has come.
    pub(super) fn inventory(&self) -> &Inventory {
        &self.inventory
    }
}
