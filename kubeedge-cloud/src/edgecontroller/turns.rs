//! Whose turn it is, when many nodes want something of the API. Pure.
//!
//! Each node has a queue of its own, and the nodes take turns. So a node that wants much waits for itself, and another
//! that wants one thing has it after one turn of each node that waits.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use kubeedge_core::id::NodeName;

/// What nodes want, in the order of their turns.
#[derive(Debug)]
pub(super) struct Turns<T> {
    at_once: usize,
    per_node: usize,
    nodes: BTreeMap<NodeName, Queue<T>>,
    /// The nodes that have something that may begin; the one whose turn is next stands first.
    ready: VecDeque<NodeName>,
    /// The nodes whose first has failed and is tried again then.
    later: BTreeSet<(Instant, NodeName)>,
    under_way: usize,
    held_back: u64,
}

#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<T>,
    under_way: usize,
    /// Whether the node stands in `ready` or `later`.
    stands: bool,
}

impl<T> Turns<T> {
    /// At most `at_once` are under way, and `per_node` of one node.
    pub(super) fn new(at_once: usize, per_node: usize) -> Self {
        Self {
            at_once,
            per_node,
            nodes: BTreeMap::new(),
            ready: VecDeque::new(),
            later: BTreeSet::new(),
            under_way: 0,
            held_back: 0,
        }
    }

    /// A node wants this, after what it has wanted before.
    pub(super) fn put(&mut self, node: NodeName, item: T) {
        let queue = self.nodes.entry(node.clone()).or_insert_with(|| Queue {
            waiting: VecDeque::new(),
            under_way: 0,
            stands: false,
        });
        if queue.under_way + queue.waiting.len() >= self.per_node {
            self.held_back += 1;
        }
        queue.waiting.push_back(item);
        self.arrange(&node);
    }

    /// What may begin; [`Turns::done`] or [`Turns::again`] must follow.
    pub(super) fn poll(&mut self, now: Instant) -> Option<(NodeName, T)> {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let due = self.later.pop_first();
            self.ready.extend(due.map(|(_, node)| node));
        }
        while self.under_way < self.at_once {
            let node = self.ready.pop_front()?;
            let Some(queue) = self.nodes.get_mut(&node) else { continue };
            queue.stands = false;
            let item = queue.waiting.pop_front();
            if item.is_some() {
                queue.under_way += 1;
                self.under_way += 1;
            }
            self.arrange(&node);
            if let Some(item) = item {
                return Some((node, item));
            }
        }
        None
    }

    /// One of the node's has ended.
    pub(super) fn done(&mut self, node: &NodeName) {
        if let Some(queue) = self.nodes.get_mut(node) {
            queue.under_way = queue.under_way.saturating_sub(1);
            self.under_way = self.under_way.saturating_sub(1);
            self.arrange(node);
        }
    }

    /// One of the node's has failed: it is the node's next, and the node's turn comes no sooner than `at`.
    pub(super) fn again(&mut self, node: &NodeName, item: T, at: Instant) {
        let Some(queue) = self.nodes.get_mut(node) else { return };
        queue.waiting.push_front(item);
        queue.under_way = queue.under_way.saturating_sub(1);
        self.under_way = self.under_way.saturating_sub(1);
        if !queue.stands {
            queue.stands = true;
            self.later.insert((at, node.clone()));
        }
    }

    /// Takes back what waits of a node and is not worth keeping.
    pub(super) fn retain(&mut self, node: &NodeName, keep: impl Fn(&T) -> bool) {
        if let Some(queue) = self.nodes.get_mut(node) {
            queue.waiting.retain(keep);
        }
    }

    /// How many wait of a node.
    pub(super) fn waiting_of(&self, node: &NodeName) -> usize {
        self.nodes.get(node).map_or(0, |queue| queue.waiting.len())
    }

    /// How many had to wait because their node had as many under way as it may.
    pub(super) fn held_back(&self) -> u64 {
        self.held_back
    }

    /// When [`Turns::poll`] may have something; `None` if only after another call.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (self.under_way < self.at_once).then(|| self.later.first().map(|(at, _)| *at)).flatten()
    }

    /// Gives the node its place behind all that wait, or forgets a node of which there is nothing.
    fn arrange(&mut self, node: &NodeName) {
        let Some(queue) = self.nodes.get_mut(node) else { return };
        if queue.waiting.is_empty() && queue.under_way == 0 && !queue.stands {
            self.nodes.remove(node);
        } else if !queue.waiting.is_empty() && queue.under_way < self.per_node && !queue.stands {
            queue.stands = true;
            self.ready.push_back(node.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::controller::testing::node;

    #[test]
    fn a_node_without_pause_makes_another_wait_for_one_turn() {
        let now = Instant::now();
        let mut turns = Turns::new(2, 1);
        (0..1000).for_each(|number| turns.put(node("busy"), number));
        assert_eq!(turns.poll(now), Some((node("busy"), 0)));
        assert_eq!(turns.poll(now), None, "a place is kept for others");
        turns.put(node("quiet"), 7);
        assert_eq!(turns.poll(now), Some((node("quiet"), 7)));
        turns.done(&node("busy"));
        turns.put(node("quiet"), 8);
        assert_eq!(turns.poll(now), Some((node("busy"), 1)));
        turns.done(&node("quiet"));
        turns.put(node("late"), 9);
        assert_eq!(turns.poll(now), Some((node("quiet"), 8)), "after one of the busy node's, not a thousand");
        assert_eq!(turns.held_back(), 1000, "999, and one of the quiet node's");
    }

    #[test]
    fn what_has_failed_is_the_nodes_next_and_holds_up_no_other_node() {
        let now = Instant::now();
        let at = now + Duration::from_secs(1);
        let mut turns = Turns::new(1, 1);
        turns.put(node("a"), 1);
        turns.put(node("a"), 2);
        turns.put(node("b"), 3);
        assert_eq!(turns.poll(now), Some((node("a"), 1)));
        turns.again(&node("a"), 1, at);
        assert_eq!(turns.poll(now), Some((node("b"), 3)));
        assert_eq!(turns.poll_timeout(), None);
        turns.done(&node("b"));
        assert_eq!((turns.poll(now), turns.poll_timeout()), (None, Some(at)));
        assert_eq!(turns.poll(at), Some((node("a"), 1)));
        turns.done(&node("a"));
        assert_eq!(turns.poll(at), Some((node("a"), 2)));
        turns.done(&node("a"));
        assert!(turns.nodes.is_empty(), "a node that wants nothing costs nothing");
    }

    proptest! {
        #[test]
        fn everything_has_its_turn_in_the_order_of_its_node_and_within_the_limits(
            wanted in prop::collection::vec(0..5u8, 1..80), at_once in 1..5usize, per_node in 1..3usize, seed: u64
        ) {
            let mut now = Instant::now();
            let mut turns = Turns::new(at_once, per_node);
            let mut under_way = Vec::new();
            let mut begun: BTreeMap<NodeName, Vec<usize>> = BTreeMap::new();
            let name = |number: u8| node(&format!("n{number}"));
            let (mut next, mut random) = (0, seed);
            while next < wanted.len() || !turns.nodes.is_empty() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                match (random >> 33) % 3 {
                    0 if next < wanted.len() => {
                        turns.put(name(wanted[next]), next);
                        next += 1;
                    }
                    1 if !under_way.is_empty() => {
                        let (of, item) = under_way.swap_remove(0);
                        if per_node == 1 && (random >> 40) % 4 == 0 {
                            begun.get_mut(&of).unwrap().pop();
                            turns.again(&of, item, now + Duration::from_secs(1));
                        } else {
                            turns.done(&of);
                        }
                    }
                    _ => {
                        now += Duration::from_millis(300);
                        if let Some((of, item)) = turns.poll(now) {
                            begun.entry(of.clone()).or_default().push(item);
                            under_way.push((of, item));
                        }
                    }
                }
                prop_assert!(under_way.len() <= at_once);
                for number in 0..5 {
                    prop_assert!(under_way.iter().filter(|(of, _)| *of == name(number)).count() <= per_node);
                }
            }
            prop_assert_eq!(begun.values().map(Vec::len).sum::<usize>(), wanted.len());
            prop_assert!(begun.values().all(|items| items.is_sorted()));
        }
    }
}
