//! What Nodes say of themselves in the API: which are the edge's, which changed, and what becomes of their pods.
//!
//! Of a Node whose label does not make it the edge's, and that has had no session here, nothing is held: in many clusters
//! most pods are none of the edge's. A node may become the edge's later; its pods were passed over by then, so that all
//! pods are listed again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kubeedge_core::{
    id::{NodeName, ResourceVersion},
    message::{Object, Ruling, ToNode},
};
use serde_json::Value;

use super::State;
use crate::{
    controller::Change,
    edgecontroller::{autonomy::Policy, status::EDGE_LABEL},
};

/// The Nodes of the API.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    known: BTreeMap<NodeName, Known>,
    /// Whether all were listed once.
    listed: bool,
    /// Those that were told of since all began to be told again.
    telling: BTreeSet<NodeName>,
    /// Those whose pods are not known, because they were passed over.
    unlisted: BTreeSet<NodeName>,
    /// Those of them that became so after the list began that is under way.
    late: BTreeSet<NodeName>,
    /// Which nodes are shut out, and which no longer.
    rulings: VecDeque<ToNode<Ruling>>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    version: ResourceVersion,
    is_edge: bool,
    policy: Policy,
    shut_out: bool,
}

/// The annotation of a Node that shuts its node out of the cloud, whatever it says: the reason, for people. A node cannot set
/// it, nor take it away.
const SHUT_OUT: &str = "node.kubeedge.io/shut-out";

impl Nodes {
    /// What becomes of a node's pods while it is away, if that is known.
    pub(super) fn policy(&self, node: &NodeName) -> Option<Policy> {
        self.known.get(node).filter(|known| known.is_edge).map(|known| known.policy)
    }

    /// Whether the node's pods are to be listed first.
    pub(super) fn is_unlisted(&self, node: &NodeName) -> bool {
        self.unlisted.contains(node) || self.late.contains(node)
    }

    /// Whether all were listed once: before that, any may be shut out.
    pub(super) fn are_listed(&self) -> bool {
        self.listed
    }

    /// Whether there are nodes whose pods are not known.
    pub(super) fn lists(&self) -> bool {
        !(self.unlisted.is_empty() && self.late.is_empty())
    }

    /// Takes that all pods were listed.
    pub(super) fn handle_pods_listed(&mut self) {
        self.unlisted.clear();
    }
}

impl State {
    /// Takes what the API tells of Nodes.
    pub(in crate::edgecontroller) fn handle_node(&mut self, change: Change) {
        match change {
            Change::Began(_) => self.nodes.telling.clear(),
            Change::Applied(object) => {
                if let Ok(node) = object.reference.name().parse() {
                    self.note_node(&node, &object);
                }
            }
            Change::Deleted(object) => {
                if let Ok(node) = object.reference.name().parse() {
                    self.forget_node(&node);
                }
            }
            Change::Listed(_) => {
                let gone = self.nodes.known.keys().filter(|node| !self.nodes.telling.contains(*node));
                let gone: Vec<NodeName> = gone.cloned().collect();
                gone.iter().for_each(|node| self.forget_node(node));
                self.nodes.telling.clear();
                self.nodes.listed = true;
            }
        }
    }

    /// Whether the Node says that its node is shut out.
    pub(in crate::edgecontroller) fn is_shut_out(&self, node: &NodeName) -> bool {
        self.nodes.known.get(node).is_some_and(|known| known.shut_out)
    }

    /// Which node is shut out, or no longer.
    pub(in crate::edgecontroller) fn poll_ruling(&mut self) -> Option<ToNode<Ruling>> {
        self.nodes.rulings.pop_front()
    }

    fn note_node(&mut self, node: &NodeName, object: &Object) {
        self.nodes.telling.insert(node.clone());
        let json: Value = serde_json::from_slice(&object.json).unwrap_or_default();
        let known = Known {
            version: object.resource_version,
            is_edge: !json["metadata"]["labels"][EDGE_LABEL].is_null(),
            policy: Policy::of(&json),
            shut_out: !json["metadata"]["annotations"][SHUT_OUT].is_null(),
        };
        let (node, before) = match self.nodes.known.get_key_value(node) {
            Some((node, known)) => (node.clone(), Some(*known)),
            None => (self.name_of(node), None),
        };
        self.nodes.known.insert(node.clone(), known);
        if before.is_some_and(|before| before.shut_out) != known.shut_out {
            let message = if known.shut_out { Ruling::ShutOut } else { Ruling::LetIn };
            self.nodes.rulings.push_back(ToNode { node: node.clone(), message });
        }
        if before.is_none_or(|before| before.version != known.version) {
            self.note_changed(&node);
        }
        self.judge(&node);
        let policy = self.nodes.policy(&node);
        if policy.is_some() && before.filter(|before| before.is_edge).map(|before| before.policy) != policy {
            let pods: Vec<_> = self.placement.roots_of(&node).map(|pod| pod.reference.clone()).collect();
            pods.iter().for_each(|pod| self.want_tolerations(pod));
        }
    }

    fn forget_node(&mut self, node: &NodeName) {
        if let Some(known) = self.nodes.known.remove(node) {
            self.placement.handle_node_gone(node);
            if self.is_online(node) {
                self.note_changed(node);
            } else {
                self.sessions.remove(node);
                self.elsewhere.remove(node);
            }
            if known.shut_out {
                self.nodes.rulings.push_back(ToNode { node: node.clone(), message: Ruling::LetIn });
            }
        }
    }

    /// The text of the name that a session has already, if there is one.
    fn name_of(&self, node: &NodeName) -> NodeName {
        self.sessions.get_key_value(node).map_or(node, |(node, _)| node).clone()
    }

    fn note_changed(&mut self, node: &NodeName) {
        if let Some(session) = self.sessions.get_mut(node) {
            session.changed = true;
        }
    }

    /// Decides whether what is the node's own is held.
    pub(super) fn judge(&mut self, node: &NodeName) {
        let known = self.nodes.known.get(node);
        let is_stranger = known.is_some_and(|known| !known.is_edge) && !self.sessions.contains_key(node);
        // Of one that the API does not know, nobody can say what it will be.
        if is_stranger || known.is_some_and(|known| known.is_edge) || self.sessions.contains_key(node) {
            let passed_over = self.placement.handle_stranger(node, is_stranger);
            if passed_over {
                self.nodes.late.insert(node.clone());
            }
        }
    }

    /// Whether all pods are to be listed again now.
    pub(in crate::edgecontroller) fn poll_list_pods(&mut self) -> bool {
        if self.nodes.late.is_empty() || !self.nodes.unlisted.is_empty() {
            return false;
        }
        self.nodes.unlisted = std::mem::take(&mut self.nodes.late);
        tracing::info!(nodes = ?self.nodes.unlisted, "nodes became the edge's: listing the pods again");
        true
    }
}
