//! How many objects on each node refer to each object, and what comes and goes with the first and the last.

use kubeedge_core::{
    id::{NodeName, Uid},
    message::{ObjectEvent, ObjectRef},
};

use super::{Placement, Root, deleted};

impl Placement {
    /// Counts that something on the node refers to the object, which comes to the node with the first.
    pub(super) fn add_use(&mut self, node: &NodeName, used: &ObjectRef) {
        let count = self.nodes.entry(node.clone()).or_default().uses.entry(used.clone()).or_default();
        *count += 1;
        if *count > 1 {
            return;
        }
        let users = self.users.entry(used.clone()).or_default();
        let is_first = users.is_empty();
        users.insert(node.clone());
        let Some(other) = self.others.get(used) else {
            // If it was used before, it is known to be absent, or is asked for.
            if is_first {
                self.add_missing(used);
            }
            return;
        };
        let (object, references) = (other.object.clone(), other.references.clone());
        for further in &references {
            self.add_use(node, further);
        }
        self.tell(node, ObjectEvent::Applied(object));
    }

    /// Counts that a root refers to nothing any more.
    pub(super) fn drop_uses(&mut self, old: &Root) {
        for used in &old.references {
            self.drop_use(&old.node, used);
        }
        if self.nodes.get(&old.node).is_some_and(|node| node.roots.is_empty() && node.uses.is_empty()) {
            self.nodes.remove(&old.node);
        }
    }

    /// Counts that one thing less on the node refers to the object, which leaves the node with the last.
    pub(super) fn drop_use(&mut self, node: &NodeName, used: &ObjectRef) {
        let Some(uses) = self.nodes.get_mut(node).map(|node| &mut node.uses) else { return };
        let Some(count) = uses.get_mut(used) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        uses.remove(used);
        if let Some(users) = self.users.get_mut(used) {
            users.remove(node);
            if users.is_empty() {
                self.users.remove(used);
            }
        }
        let is_used = self.users.contains_key(used);
        let is_open = self.missing.is_late(used);
        if !is_used {
            self.settle(used);
        }
        let Some(other) = self.others.get(used) else {
            if is_open {
                self.tell(node, deleted(used, &Uid::default()));
            }
            return;
        };
        let (uid, references) = (other.object.uid.clone(), other.references.clone());
        self.tell(node, deleted(used, &uid));
        if !is_used && self.is_fetched(used) {
            self.others.remove(used);
        }
        for further in &references {
            self.drop_use(node, further);
        }
    }
}
