//! Nodes that are told nothing, so that nothing of theirs is held.

use std::collections::{BTreeMap, VecDeque};

use kubeedge_core::id::NodeName;

/// So many of those that the API has no more are remembered: their pods outlive them by minutes, while machines that come
/// and go under ever other names would fill the memory over months.
const GONE_MAX: usize = 1024;

/// The nodes, each with what there is to know of it.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    nodes: BTreeMap<NodeName, Stranger>,
    /// Those that the API had no more at some time, the longest ago first.
    gone: VecDeque<NodeName>,
}

#[derive(Debug, Default)]
struct Stranger {
    /// Whether roots of it were passed over since they were listed last.
    passed_over: bool,
    is_gone: bool,
}

impl Strangers {
    pub(super) fn insert(&mut self, node: &NodeName, has_roots: bool) {
        let stranger = self.nodes.entry(node.clone()).or_default();
        stranger.passed_over |= has_roots;
        stranger.is_gone = false;
    }

    /// Whether roots of it were passed over.
    pub(super) fn remove(&mut self, node: &NodeName) -> bool {
        self.nodes.remove(node).unwrap_or_default().passed_over
    }

    /// Takes that the API has the node no more; it may have pods of it yet.
    #[cfg(any(test, feature = "edgecontroller"))]
    pub(super) fn handle_gone(&mut self, node: &NodeName) {
        let Some(stranger) = self.nodes.get_mut(node) else { return };
        stranger.is_gone = true;
        self.gone.push_back(node.clone());
        if self.gone.len() > GONE_MAX
            && let Some(oldest) = self.gone.pop_front()
            && self.nodes.get(&oldest).is_some_and(|stranger| stranger.is_gone)
        {
            self.nodes.remove(&oldest);
        }
    }

    /// Whether the node is one of them: then a root of it is passed over.
    pub(super) fn pass_over(&mut self, node: &NodeName) -> bool {
        self.nodes.get_mut(node).map(|stranger| stranger.passed_over = true).is_some()
    }

    /// All roots are told again.
    pub(super) fn handle_began(&mut self) {
        self.nodes.values_mut().for_each(|stranger| stranger.passed_over = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::testing::node;

    #[test]
    fn machines_that_come_and_go_under_ever_other_names_are_forgotten_and_those_that_are_there_are_not() {
        let mut strangers = Strangers::default();
        let stays = node("worker");
        strangers.insert(&stays, false);
        for number in 0..10_000 {
            let name = node(&format!("worker-{number}"));
            strangers.insert(&name, true);
            strangers.handle_gone(&name);
            assert!(strangers.pass_over(&name), "its pods are there for a while");
            strangers.handle_gone(&stays);
            strangers.insert(&stays, false);
        }
        assert!(strangers.nodes.len() <= GONE_MAX + 1 && strangers.gone.len() <= GONE_MAX);
        assert!(strangers.pass_over(&stays));
        assert!(
            strangers.remove(&node("worker-9999")),
            "if it comes back as the edge's, its pods are listed"
        );
    }
}
