//! Which Rules each node is told of, so that it takes messages on their topics. Nothing here waits or writes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kubeedge_core::{
    id::NodeName,
    message::{Object, ObjectEvent, ObjectRef, ToNode},
};

/// A Rule, and the node that it is for; without a node it is for every one.
pub(super) type Placement = (Option<NodeName>, Object);

/// What the nodes know.
#[derive(Debug, Default)]
pub(super) struct Placed {
    /// Nodes that have asked. What changes is told to them; another asks when it connects.
    nodes: BTreeSet<NodeName>,
    rules: BTreeMap<ObjectRef, Placement>,
    events: VecDeque<ToNode<ObjectEvent>>,
}

impl Placed {
    /// The Rules that begin on nodes are these.
    pub(super) fn update(&mut self, rules: BTreeMap<ObjectRef, Placement>) {
        let before = std::mem::replace(&mut self.rules, rules);
        for (reference, (node, object)) in &before {
            let event = || ObjectEvent::Deleted { reference: reference.clone(), uid: object.uid.clone() };
            let now = self.rules.get(reference);
            let gone = |of: &&NodeName| now.is_none_or(|(node, _)| !is_for(node.as_ref(), of));
            let nodes = self.nodes.iter().filter(|of| is_for(node.as_ref(), of)).filter(gone);
            self.events.extend(nodes.map(|node| ToNode { node: node.clone(), message: event() }));
        }
        for (reference, (node, object)) in &self.rules {
            let same = |of: &NodeName| {
                before.get(reference).is_some_and(|(node, before)| {
                    // The counters in a Rule's status are none of the nodes' business.
                    let alike = (&before.uid, &before.fingerprint) == (&object.uid, &object.fingerprint);
                    alike && is_for(node.as_ref(), of)
                })
            };
            let nodes = self.nodes.iter().filter(|of| is_for(node.as_ref(), of) && !same(of));
            let event = || ObjectEvent::Applied(object.clone());
            self.events.extend(nodes.map(|node| ToNode { node: node.clone(), message: event() }));
        }
    }

    /// All Rules that the node should have. From then on it is told what changes.
    pub(super) fn snapshot(&mut self, node: &NodeName) -> Vec<Object> {
        self.nodes.insert(node.clone());
        let placed = self.rules.values().filter(|(of, _)| is_for(of.as_ref(), node));
        placed.map(|(_, object)| object.clone()).collect()
    }

    /// What a node should be told.
    pub(super) fn poll_event(&mut self) -> Option<ToNode<ObjectEvent>> {
        self.events.pop_front()
    }
}

fn is_for(rule: Option<&NodeName>, node: &NodeName) -> bool {
    rule.is_none_or(|rule| rule == node)
}
