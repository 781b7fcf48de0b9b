//! Which messages of nodes have been delivered, so that those that come again are not delivered again.

use std::collections::BTreeMap;

use kubeedge_core::{id::NodeName, message::UploadId};

/// Runs of a node that are remembered: its current one, and those whose messages it still had.
const RUNS_MAX: usize = 4;

/// Stretches of numbers without a gap that are remembered of a run. Nodes send in order, so there are few.
const SPANS_MAX: usize = 256;

/// The ids that were delivered, by node.
#[derive(Debug, Default)]
pub(super) struct Seen {
    nodes: BTreeMap<NodeName, Vec<Run>>,
}

/// The newest run of a node stands last.
#[derive(Debug)]
struct Run {
    run: u64,
    /// The last number of each stretch, by its first.
    spans: BTreeMap<u64, u64>,
}

impl Seen {
    pub(super) fn contains(&self, node: &NodeName, id: UploadId) -> bool {
        let runs = self.nodes.get(node).into_iter().flatten();
        runs.filter(|run| run.run == id.run)
            .any(|run| run.spans.range(..=id.number).next_back().is_some_and(|(_, last)| id.number <= *last))
    }

    pub(super) fn insert(&mut self, node: &NodeName, id: UploadId) {
        if !self.nodes.contains_key(node) {
            self.nodes.insert(node.clone(), Vec::new());
        }
        let Some(runs) = self.nodes.get_mut(node) else { return };
        let at = match runs.iter().position(|run| run.run == id.run) {
            Some(at) => at,
            None => {
                runs.push(Run { run: id.run, spans: BTreeMap::new() });
                if runs.len() > RUNS_MAX {
                    runs.remove(0);
                }
                runs.len() - 1
            }
        };
        runs[at].insert(id.number);
    }
}

impl Run {
    fn insert(&mut self, number: u64) {
        let before = self.spans.range(..=number).next_back().map(|(first, last)| (*first, *last));
        let (first, mut last) = match before {
            Some((_, last)) if number <= last => return,
            Some((first, last)) if last + 1 == number => (first, number),
            Some(_) | None => (number, number),
        };
        if let Some(after) = number.checked_add(1).and_then(|next| self.spans.remove(&next)) {
            last = after;
        }
        self.spans.insert(first, last);
        if self.spans.len() > SPANS_MAX {
            self.spans.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_inserted_is_contained_and_nothing_else(numbers in proptest::collection::vec(0u64..100, 0..60)) {
            let node: NodeName = "edge-1".parse().unwrap();
            let mut seen = Seen::default();
            let mut model = BTreeSet::new();
            for number in numbers {
                seen.insert(&node, UploadId { run: 1, number });
                model.insert(number);
            }
            for number in 0..102 {
                prop_assert_eq!(seen.contains(&node, UploadId { run: 1, number }), model.contains(&number));
                let other = seen.contains(&node, UploadId { run: 2, number });
                prop_assert!(!other);
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let node: NodeName = "edge-1".parse().unwrap();
        let mut seen = Seen::default();
        for run in 0..100 {
            for number in 0..1000 {
                seen.insert(&node, UploadId { run, number: number * 2 });
            }
        }
        assert_eq!(seen.nodes[&node].len(), RUNS_MAX);
        assert!(seen.nodes[&node].iter().all(|run| run.spans.len() <= SPANS_MAX));
    }
}
