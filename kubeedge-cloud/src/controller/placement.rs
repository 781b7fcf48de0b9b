//! Which object goes to which node, and what a node is told when that changes. Pure.
//!
//! A *root* (a Pod, a Device) names the node it belongs to. It refers to others (ConfigMaps and Secrets, a
//! DeviceModel), which go to every node that has a root referring to them, for as long as it has one. Those may
//! refer to further ones (a claim to its storage), which go with them.
//!
//! Some come without being named (Services): they go to every node that has a root in their namespace.
//!
//! Of some kinds there are many more objects than nodes need. Of these only what is referred to is held, and is fetched when
//! something begins to refer to it.

mod missing;
mod shared;
mod strangers;
mod uses;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kubeedge_core::{
    id::{NodeName, Uid},
    message::{Object, ObjectEvent, ObjectRef, ToNode},
};

use super::{Change, Held, Kind};
use crate::authorization::Graph;
use missing::Missing;
use shared::Shared;
use strangers::Strangers;

/// What an object says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The node it belongs to, if it is a root and has one yet.
    pub(crate) node: Option<NodeName>,
    /// The objects it refers to, whether they exist or not.
    pub(crate) references: BTreeSet<ObjectRef>,
    /// Who is given it, if it is no root.
    pub(crate) goes: Goes,
    /// It is a root that is given nothing of what goes to its namespace.
    pub(crate) is_apart: bool,
}

/// Who is given an object that is no root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Goes {
    /// The nodes of what refers to it.
    #[default]
    ToUsers,
    /// The nodes with a root in its namespace.
    ToNamespace,
    /// Nobody: it is as good as absent.
    Nowhere,
}

/// All objects that may go to nodes, and who needs them.
///
/// Roots without a node are not kept. Others are kept even while nothing refers to them, because a root that
/// does may come at any time, unless their kind is one that is fetched. Their bodies are shared with the pipes, not copied, as
/// many nodes may have them; a root has one node, and is compressed.
#[derive(Debug)]
pub(crate) struct Placement {
    root_kind: &'static str,
    place: fn(&Object) -> Placed,
    fetched_kinds: Vec<Kind>,
    roots: BTreeMap<ObjectRef, Root>,
    others: BTreeMap<ObjectRef, Other>,
    nodes: BTreeMap<NodeName, Node>,
    users: BTreeMap<ObjectRef, BTreeSet<NodeName>>,
    shared: Shared,
    missing: Missing,
    strangers: Strangers,
    unlisted: Vec<Kind>,
    telling: Vec<(Kind, BTreeSet<ObjectRef>)>,
    outputs: VecDeque<ToNode<ObjectEvent>>,
}

#[derive(Debug)]
struct Root {
    object: Held,
    node: NodeName,
    references: Box<[ObjectRef]>,
}

#[derive(Debug)]
struct Other {
    object: Object,
    /// It was fetched, so that the watch may still tell of how it was before.
    ahead: bool,
    references: Box<[ObjectRef]>,
}

#[derive(Debug, Default)]
struct Node {
    roots: BTreeSet<ObjectRef>,
    /// How many objects on the node refer to each object.
    uses: BTreeMap<ObjectRef, usize>,
}

impl Placement {
    /// Creates it for roots of `root_kind`, read by `place`; it is complete once all of `kinds` were listed.
    pub(crate) fn new(root_kind: &'static str, kinds: &[Kind], place: fn(&Object) -> Placed) -> Self {
        Self {
            root_kind,
            place,
            fetched_kinds: Vec::new(),
            roots: BTreeMap::new(),
            others: BTreeMap::new(),
            nodes: BTreeMap::new(),
            users: BTreeMap::new(),
            shared: Shared::default(),
            missing: Missing::default(),
            strangers: Strangers::default(),
            unlisted: kinds.to_vec(),
            telling: Vec::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Holds of these kinds only what is referred to; see [`poll_fetch`](Self::poll_fetch).
    pub(crate) fn fetching(mut self, kinds: &[Kind]) -> Self {
        self.fetched_kinds = kinds.to_vec();
        self
    }

    /// Takes what the API tells.
    pub(crate) fn handle_change(&mut self, change: Change) {
        match change {
            Change::Began(kind) => {
                self.telling.retain(|(told, _)| *told != kind);
                self.telling.push((kind, BTreeSet::new()));
                if kind.kind == self.root_kind {
                    self.strangers.handle_began();
                }
                // A list is as new as what was fetched before it.
                let of_kind = self.others.values_mut().filter(|other| kind.is_of(&other.object.reference));
                of_kind.for_each(|other| other.ahead = false);
            }
            Change::Applied(object) => {
                let reference = object.reference.clone();
                self.apply(object);
                // Of a root that is not held nobody asks later whether it was told.
                if reference.kind() != self.root_kind || self.roots.contains_key(&reference) {
                    self.note_told(&reference);
                }
            }
            Change::Deleted(object) => {
                self.missing.note_gone(&object.reference, &object.uid);
                self.take_left_open(&object.reference, &object.uid);
                self.remove(&object.reference, Some(&object.uid));
            }
            Change::Listed(kind) => self.listed(kind),
        }
    }

    /// An object that something refers to and that has to be fetched; [`handle_fetched`](Self::handle_fetched) follows.
    pub(crate) fn poll_fetch(&mut self) -> Option<ObjectRef> {
        self.missing.poll_ask()
    }

    /// Whether the object is still needed and not held.
    pub(crate) fn is_missing(&self, reference: &ObjectRef) -> bool {
        self.missing.contains(reference)
    }

    /// Whether roots are held back until this is known.
    #[cfg(test)]
    pub(crate) fn is_awaited(&self, reference: &ObjectRef) -> bool {
        self.missing.is_awaited(reference)
    }

    /// Takes what the API answered for the object: how it is, or that there is none.
    pub(crate) fn handle_fetched(&mut self, reference: &ObjectRef, object: Option<Object>) {
        if !self.missing.contains(reference) {
            return;
        }
        match object.filter(|object| !self.missing.is_gone(reference, &object.uid)) {
            Some(object) => self.apply_other(object, true),
            None => {
                self.take_left_open(reference, &Uid::default());
                self.remove(reference, None);
                self.settle(reference);
            }
        }
    }

    /// Takes that the object cannot be fetched for long: what waits for it is told without it, and nodes keep what they have
    /// of it. Whether something waited until here.
    pub(crate) fn handle_unfetched(&mut self, reference: &ObjectRef) -> bool {
        let roots = self.missing.give_up_waiting(reference);
        let given_up = roots.is_some();
        self.release(roots.unwrap_or_default());
        given_up
    }

    /// Of an object that nodes were to keep as they have it, it is known by now that there is none.
    fn take_left_open(&mut self, reference: &ObjectRef, uid: &Uid) {
        if self.missing.is_late(reference) && !self.others.contains_key(reference) {
            for node in self.users.get(reference).cloned().unwrap_or_default() {
                self.tell(&node, deleted(reference, uid));
            }
        }
    }

    /// What the node needs and is not known, though it is [settled](Self::is_settled).
    pub(crate) fn unknown(&self, node: &NodeName) -> BTreeSet<ObjectRef> {
        let Some(node) = self.nodes.get(node).filter(|_| !self.missing.is_empty()) else {
            return BTreeSet::new();
        };
        node.uses.keys().filter(|used| self.missing.contains(used)).cloned().collect()
    }

    /// How many objects could not be fetched for so long that nothing waits for them.
    pub(crate) fn unread(&self) -> usize {
        self.missing.late()
    }

    /// Whether all that the node needs is known, or could not be fetched for long: its snapshot lacks nothing that it does
    /// not name as [unknown](Self::unknown).
    pub(crate) fn is_settled(&self, node: &NodeName) -> bool {
        self.missing.is_empty()
            || self
                .nodes
                .get(node)
                .is_none_or(|node| node.uses.keys().all(|used| !self.missing.is_awaited(used)))
    }

    /// Takes whether a node is none of those that are told anything: then what is its own is not held, and this cloud takes
    /// no more memory for a cluster than for the nodes that it has to do with.
    ///
    /// Returns whether the roots have to be listed again, because some of a node that is no stranger any more were passed
    /// over.
    #[cfg(any(test, feature = "edgecontroller"))]
    pub(crate) fn handle_stranger(&mut self, node: &NodeName, is_stranger: bool) -> bool {
        if !is_stranger {
            return self.strangers.remove(node);
        }
        let roots = self.nodes.get(node).map(|node| node.roots.clone()).unwrap_or_default();
        self.strangers.insert(node, !roots.is_empty());
        roots.iter().for_each(|root| self.remove_root(root));
        false
    }

    /// Takes that the API has no such node any more.
    #[cfg(any(test, feature = "edgecontroller"))]
    pub(crate) fn handle_node_gone(&mut self, node: &NodeName) {
        self.strangers.handle_gone(node);
    }

    /// What to tell a node next.
    pub(crate) fn poll_output(&mut self) -> Option<ToNode<ObjectEvent>> {
        self.outputs.pop_front()
    }

    /// Whether everything was listed once: before that, an object that is not known may exist all the same.
    pub(crate) fn is_complete(&self) -> bool {
        self.unlisted.is_empty()
    }

    /// All objects of the node; what its roots refer to comes before them.
    pub(crate) fn snapshot(&self, node: &NodeName) -> Vec<Object> {
        let shared = self.shared_with(node);
        let Some(node) = self.nodes.get(node) else { return Vec::new() };
        let others = node.uses.keys().chain(shared).filter_map(|reference| self.others.get(reference));
        let roots = node.roots.iter().filter_map(|reference| self.roots.get(reference));
        others.map(|other| other.object.clone()).chain(roots.map(|root| root.object.object())).collect()
    }

    /// The roots of the node.
    pub(crate) fn roots_of(&self, node: &NodeName) -> impl Iterator<Item = &Held> {
        let roots = self.nodes.get(node).into_iter().flat_map(|node| &node.roots);
        roots.filter_map(|reference| self.roots.get(reference)).map(|root| &root.object)
    }

    /// The object of this name, if it is known.
    pub(crate) fn get(&self, reference: &ObjectRef) -> Option<Object> {
        let root = self.roots.get(reference).map(|root| root.object.object());
        root.or_else(|| self.others.get(reference).map(|other| other.object.clone()))
    }

    fn uid(&self, reference: &ObjectRef) -> Option<&Uid> {
        let root = self.roots.get(reference).map(|root| &root.object.uid);
        root.or_else(|| self.others.get(reference).map(|other| &other.object.uid))
    }

    /// Whether all of its kind were listed once.
    pub(crate) fn is_listed(&self, kind: &Kind) -> bool {
        !self.unlisted.contains(kind)
    }

    fn note_told(&mut self, reference: &ObjectRef) {
        if let Some((_, told)) = self.telling.iter_mut().find(|(kind, _)| kind.is_of(reference)) {
            told.insert(reference.clone());
        }
    }

    fn listed(&mut self, kind: Kind) {
        self.unlisted.retain(|unlisted| *unlisted != kind);
        let Some(at) = self.telling.iter().position(|(told, _)| *told == kind) else { return };
        let (_, told) = self.telling.swap_remove(at);
        let known = self.roots.keys().chain(self.others.keys());
        let gone: Vec<ObjectRef> =
            known.filter(|r| r.kind() == kind.kind && !told.contains(*r)).cloned().collect();
        for reference in gone {
            if self.others.get(&reference).is_some_and(|other| other.ahead) {
                // It was fetched while the list was made, and which of both is newer is not known.
                self.missing.add(&reference, true);
            } else {
                self.remove(&reference, None);
            }
        }
        for reference in self.missing.of_kind(&kind) {
            if self.missing.is_asked(&reference) || told.contains(&reference) {
                // An answer on its way may be older than the list, and what has gone in between is told by no watch. Or
                // something began to refer to it after it was told, and nobody held it then.
                self.missing.ask_again(&reference);
            } else {
                self.settle(&reference);
            }
        }
    }

    fn apply(&mut self, object: Object) {
        if object.reference.kind() != self.root_kind {
            self.apply_other(object, false);
            return;
        }
        let Placed { node, references, is_apart, .. } = (self.place)(&object);
        match node.filter(|node| !self.strangers.pass_over(node)) {
            Some(node) => {
                let node = self.nodes.get_key_value(&node).map(|(known, _)| known.clone()).unwrap_or(node);
                let references = self.named(references);
                self.shared.set_apart(&object.reference, is_apart);
                self.apply_root(Root { object: Held::new(object), node, references });
            }
            None => self.remove_root(&object.reference),
        }
    }

    /// The names, each with the text that all others have of it.
    fn named(&self, names: BTreeSet<ObjectRef>) -> Box<[ObjectRef]> {
        let shared = names.into_iter().map(|name| match self.users.get_key_value(&name) {
            Some((known, _)) => known.clone(),
            None => name,
        });
        shared.collect()
    }

    /// References are added before the root is told and dropped after it, so that a node can start what it is
    /// told of, and what the old and the new root both refer to stays where it is.
    fn apply_root(&mut self, root: Root) {
        let reference = root.object.reference.clone();
        let old = self.roots.remove(&reference);
        for used in &root.references {
            self.add_use(&root.node, used);
        }
        let stays =
            old.as_ref().is_some_and(|old| old.node == root.node && old.object.uid == root.object.uid);
        if let Some(old) = old.as_ref().filter(|_| !stays) {
            self.leave(old);
        }
        self.nodes.entry(root.node.clone()).or_default().roots.insert(reference.clone());
        self.join(&root.node, reference.namespace());
        let changed =
            !stays || old.as_ref().is_some_and(|old| old.object.fingerprint != root.object.fingerprint);
        self.roots.insert(reference.clone(), root);
        if changed {
            self.tell_root(&reference);
        }
        if let Some(old) = old {
            self.drop_uses(&old);
            self.part(&old.node, reference.namespace());
        }
    }

    /// Tells a node of a root, once nothing is missing that it refers to.
    fn tell_root(&mut self, reference: &ObjectRef) {
        let Some(root) = self.roots.get(reference) else { return };
        if let Some(missing) = self.first_missing(&root.references) {
            return self.missing.hold(reference, &missing);
        }
        let (node, object) = (root.node.clone(), root.object.object());
        self.missing.let_go(reference);
        self.tell(&node, ObjectEvent::Applied(object));
    }

    fn first_missing(&self, references: &[ObjectRef]) -> Option<ObjectRef> {
        if self.missing.is_empty() {
            return None;
        }
        references.iter().find_map(|reference| {
            if self.missing.is_awaited(reference) {
                return Some(reference.clone());
            }
            self.others.get(reference).and_then(|other| self.first_missing(&other.references))
        })
    }

    /// The object is known, or needs not be any more.
    fn settle(&mut self, reference: &ObjectRef) {
        let roots = self.missing.settle(reference);
        self.release(roots);
    }

    fn release(&mut self, roots: BTreeSet<ObjectRef>) {
        roots.iter().for_each(|root| self.tell_root(root));
    }

    fn is_fetched(&self, reference: &ObjectRef) -> bool {
        self.fetched_kinds.iter().any(|kind| kind.is_of(reference))
    }

    fn add_missing(&mut self, reference: &ObjectRef) {
        if self.is_fetched(reference) {
            let listed = !self.unlisted.iter().any(|kind| kind.is_of(reference));
            self.missing.add(reference, listed);
        }
    }

    /// What it refers to is added before it is told and dropped after, as with a root.
    fn apply_other(&mut self, object: Object, ahead: bool) {
        let reference = object.reference.clone();
        if self.is_fetched(&reference) && !self.users.contains_key(&reference) {
            return;
        }
        let is_older = |other: &Other| other.ahead && other.object.resource_version > object.resource_version;
        if self.others.get(&reference).is_some_and(is_older) {
            return;
        }
        let Placed { references, goes, .. } = (self.place)(&object);
        match goes {
            Goes::ToUsers => {}
            Goes::ToNamespace => self.share(&reference),
            Goes::Nowhere => return self.remove(&reference, None),
        }
        let references = self.named(references);
        let old = self.others.remove(&reference);
        let replaced = old.as_ref().filter(|old| old.object.uid != object.uid);
        let same = replaced.is_none()
            && old.as_ref().is_some_and(|old| old.object.fingerprint == object.fingerprint);
        let nodes = self.nodes_with(&reference);
        for node in &nodes {
            for used in &references {
                self.add_use(node, used);
            }
            if let Some(old) = replaced {
                self.tell(node, deleted(&reference, &old.object.uid));
            }
            if !same {
                self.tell(node, ObjectEvent::Applied(object.clone()));
            }
        }
        self.others.insert(reference.clone(), Other { object, ahead, references });
        self.settle(&reference);
        for (node, used) in nodes
            .iter()
            .flat_map(|node| old.iter().flat_map(|old| &old.references).map(move |used| (node, used)))
        {
            self.drop_use(node, used);
        }
    }

    /// Removes the object, if it is the one of that UID.
    fn remove(&mut self, reference: &ObjectRef, uid: Option<&Uid>) {
        if self.uid(reference).is_none_or(|known| uid.is_some_and(|uid| known != uid)) {
            return;
        }
        if reference.kind() == self.root_kind {
            self.remove_root(reference);
        } else if let Some(old) = self.others.remove(reference) {
            for node in self.nodes_with(reference) {
                self.tell(&node, deleted(reference, &old.object.uid));
                for used in &old.references {
                    self.drop_use(&node, used);
                }
            }
            self.unshare(reference);
        }
    }

    /// The nodes that have the object, or would if it existed.
    fn nodes_with(&self, reference: &ObjectRef) -> BTreeSet<NodeName> {
        let nodes = self.users.get(reference).or_else(|| self.shared.nodes_with(reference));
        nodes.cloned().unwrap_or_default()
    }

    fn remove_root(&mut self, reference: &ObjectRef) {
        if let Some(old) = self.roots.remove(reference) {
            self.shared.set_apart(reference, false);
            self.leave(&old);
            self.drop_uses(&old);
            self.part(&old.node, reference.namespace());
        }
    }

    fn leave(&mut self, old: &Root) {
        self.missing.let_go(&old.object.reference);
        if let Some(node) = self.nodes.get_mut(&old.node) {
            node.roots.remove(&old.object.reference);
        }
        self.tell(&old.node, deleted(&old.object.reference, &old.object.uid));
    }

    fn tell(&mut self, node: &NodeName, message: ObjectEvent) {
        self.outputs.push_back(ToNode { node: node.clone(), message });
    }
}

impl Graph for Placement {
    fn root(&self, reference: &ObjectRef) -> Option<(&Held, &NodeName)> {
        self.roots.get(reference).map(|root| (&root.object, &root.node))
    }

    fn belongs(&self, node: &NodeName, reference: &ObjectRef) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|node| node.roots.contains(reference) || node.uses.contains_key(reference))
            || self.shared.has(node, reference)
    }
}

fn deleted(reference: &ObjectRef, uid: &Uid) -> ObjectEvent {
    ObjectEvent::Deleted { reference: reference.clone(), uid: uid.clone() }
}
