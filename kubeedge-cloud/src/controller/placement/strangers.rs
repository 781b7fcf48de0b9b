//! Nodes that are told nothing, so that nothing of theirs is held.

use std::collections::BTreeMap;

use kubeedge_core::id::NodeName;

/// The nodes, each with whether roots of it were passed over since they were listed last.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    nodes: BTreeMap<NodeName, bool>,
}

impl Strangers {
    pub(super) fn insert(&mut self, node: &NodeName, has_roots: bool) {
        let passed_over = self.nodes.entry(node.clone()).or_default();
        *passed_over |= has_roots;
    }

    /// Whether roots of it were passed over.
    pub(super) fn remove(&mut self, node: &NodeName) -> bool {
        self.nodes.remove(node).unwrap_or_default()
    }

    /// Whether the node is one of them: then a root of it is passed over.
    pub(super) fn pass_over(&mut self, node: &NodeName) -> bool {
        self.nodes.get_mut(node).map(|passed_over| *passed_over = true).is_some()
    }

    /// All roots are told again.
    pub(super) fn handle_began(&mut self) {
        self.nodes.values_mut().for_each(|passed_over| *passed_over = false);
    }
}
