//! What goes to every node that has a root in its namespace, without being named by it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kubeedge_core::{
    id::NodeName,
    message::{ObjectEvent, ObjectRef},
};

use super::{Placement, deleted};

/// The objects that are shared, by namespace. A namespace that has none takes no memory, whatever roots it has.
#[derive(Debug, Default)]
pub(super) struct Shared {
    namespaces: BTreeMap<Box<str>, Namespace>,
    /// The roots that are given none of it: few, as they have to say so.
    apart: BTreeSet<ObjectRef>,
}

#[derive(Debug, Default)]
struct Namespace {
    objects: BTreeSet<ObjectRef>,
    /// The nodes with a root here that is given them.
    nodes: BTreeSet<NodeName>,
}

impl Shared {
    /// The nodes that have the object.
    pub(super) fn nodes_with(&self, reference: &ObjectRef) -> Option<&BTreeSet<NodeName>> {
        let namespace = self.namespaces.get(reference.namespace())?;
        namespace.objects.contains(reference).then_some(&namespace.nodes)
    }

    /// Whether the node has the object.
    pub(super) fn has(&self, node: &NodeName, reference: &ObjectRef) -> bool {
        self.nodes_with(reference).is_some_and(|nodes| nodes.contains(node))
    }

    /// Notes whether the root is given nothing.
    pub(super) fn set_apart(&mut self, root: &ObjectRef, is_apart: bool) {
        if is_apart {
            self.apart.insert(root.clone());
        } else {
            self.apart.remove(root);
        }
    }

    fn remove(&mut self, reference: &ObjectRef) {
        let Some(namespace) = self.namespaces.get_mut(reference.namespace()) else { return };
        if namespace.objects.remove(reference) && namespace.objects.is_empty() {
            self.namespaces.remove(reference.namespace());
        }
    }
}

impl Placement {
    /// The object is shared from here on; with the first of a namespace it is looked up who has roots there.
    pub(super) fn share(&mut self, reference: &ObjectRef) {
        let name = reference.namespace();
        if !self.shared.namespaces.contains_key(name) {
            let nodes = self.nodes.keys().filter(|node| self.shares_in(node, name)).cloned().collect();
            self.shared.namespaces.insert(name.into(), Namespace { objects: BTreeSet::new(), nodes });
        }
        if let Some(namespace) = self.shared.namespaces.get_mut(name) {
            namespace.objects.insert(reference.clone());
        }
    }

    /// The object is gone, or is no longer shared.
    pub(super) fn unshare(&mut self, reference: &ObjectRef) {
        self.shared.remove(reference);
    }

    /// The node has a root in the namespace: what is shared there comes to it with the first that is given it.
    pub(super) fn join(&mut self, node: &NodeName, namespace: &str) {
        if !self.shared.namespaces.contains_key(namespace) || !self.shares_in(node, namespace) {
            return;
        }
        let Some(here) = self.shared.namespaces.get_mut(namespace) else { return };
        if here.nodes.insert(node.clone()) {
            let objects = here.objects.iter().filter_map(|reference| self.others.get(reference));
            let events: Vec<_> = objects.map(|other| ObjectEvent::Applied(other.object.clone())).collect();
            events.into_iter().for_each(|event| self.tell(node, event));
        }
    }

    /// The node has lost a root in the namespace: what is shared there leaves it with the last that was given it.
    pub(super) fn part(&mut self, node: &NodeName, namespace: &str) {
        if !self.shared.namespaces.contains_key(namespace) || self.shares_in(node, namespace) {
            return;
        }
        let Some(here) = self.shared.namespaces.get_mut(namespace) else { return };
        if here.nodes.remove(node) {
            let objects = here.objects.iter().filter_map(|reference| self.others.get(reference));
            let events: Vec<_> =
                objects.map(|other| deleted(&other.object.reference, &other.object.uid)).collect();
            events.into_iter().for_each(|event| self.tell(node, event));
        }
    }

    /// What is shared with the node.
    pub(super) fn shared_with<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a ObjectRef> {
        let roots = self.nodes.get(node).into_iter().flat_map(|node| &node.roots);
        let mut last = None;
        // Roots are sorted by namespace.
        let namespaces =
            roots.map(ObjectRef::namespace).filter(move |name| last.replace(*name) != Some(*name));
        let shared = namespaces.filter_map(|name| self.shared.namespaces.get(name));
        shared.filter(|namespace| namespace.nodes.contains(node)).flat_map(|namespace| &namespace.objects)
    }

    /// Whether the node has a root in the namespace that is given what is shared there.
    fn shares_in(&self, node: &NodeName, namespace: &str) -> bool {
        let Some(node) = self.nodes.get(node) else { return false };
        let Some(first) = node.roots.first() else { return false };
        let start = ObjectRef::new(first.api_version(), first.kind(), namespace, "");
        let mut here = node.roots.range(start..).take_while(|root| root.namespace() == namespace);
        here.any(|root| !self.shared.apart.contains(root))
    }
}
