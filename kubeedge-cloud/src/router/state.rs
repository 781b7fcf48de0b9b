//! What becomes of a node's message: for which rules it is, when each is tried, and when the node need not keep it any
//! longer. Nothing here waits or writes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use kubeedge_core::{
    id::NodeName,
    message::{
        Delivered, Delivery, FromNode, Object, ObjectEvent, Publish, ToNode, UploadId, UploadedPublish,
    },
};

use super::{
    Limits,
    placed::Placed,
    rules::{Counters, Name, Rules},
    seen::Seen,
};
use crate::{
    authorization::Denials,
    controller::{Change, Kind},
};

/// A message, as a node names it.
type MessageKey = (NodeName, UploadId);

/// Messages of one node for one rule go one after the other, so that they stay in order.
type LaneKey = (NodeName, Name);

/// The messages on their way, and the rules.
#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    rules: Rules,
    placed: Placed,
    listed: BTreeSet<Kind>,
    kinds: usize,
    seen: Seen,
    messages: BTreeMap<MessageKey, Message>,
    bytes: usize,
    lanes: BTreeMap<LaneKey, Lane>,
    busy: usize,
    taken: VecDeque<ToNode<Delivery>>,
    /// What was counted and is not in the rules' statuses, to which other clouds add as well.
    counted: BTreeMap<Name, Counters>,
    without_rule: u64,
    denials: Denials,
}

#[derive(Debug)]
struct Message {
    /// The newest: after a new session the node has sent it again.
    delivery: Delivery,
    publish: Arc<Publish>,
    /// Rules that are not through with it.
    left: usize,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Item>,
    busy: bool,
    failures: u32,
    not_before: Option<Instant>,
    /// Since the last success no message was taken: when this is over, each is tried once and given up.
    give_up_at: Option<Instant>,
}

#[derive(Debug)]
struct Item {
    id: UploadId,
    url: String,
}

/// One attempt to deliver a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) lane: LaneKey,
    pub(super) id: UploadId,
    pub(super) url: String,
    pub(super) publish: Arc<Publish>,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Delivered,
    /// It may succeed later.
    Retry(String),
    /// It would be refused again.
    Refused(String),
}

impl State {
    pub(super) fn new(limits: Limits, kinds: usize) -> Self {
        Self {
            limits,
            rules: Rules::default(),
            placed: Placed::default(),
            listed: BTreeSet::new(),
            kinds,
            seen: Seen::default(),
            messages: BTreeMap::new(),
            bytes: 0,
            lanes: BTreeMap::new(),
            busy: 0,
            taken: VecDeque::new(),
            counted: BTreeMap::new(),
            without_rule: 0,
            denials: Denials::default(),
        }
    }

    /// Counts there what nodes are refused.
    pub(super) fn counting(mut self, denials: Denials) -> Self {
        self.denials = denials;
        self
    }

    /// Whether all rules are known, so that a message without one is one without.
    pub(super) fn takes_messages(&self) -> bool {
        let room = self.messages.len() < self.limits.messages_max && self.bytes < self.limits.bytes_max;
        self.is_complete() && room
    }

    /// Whether all rules are known.
    pub(super) fn is_complete(&self) -> bool {
        self.listed.len() == self.kinds
    }

    /// The Rules that a node should have.
    pub(super) fn snapshot(&mut self, node: &NodeName) -> Vec<Object> {
        self.placed.snapshot(node)
    }

    /// What a node should be told of its Rules.
    pub(super) fn poll_downstream(&mut self) -> Option<ToNode<ObjectEvent>> {
        self.placed.poll_event()
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The API says something of the rules.
    pub(super) fn handle_change(&mut self, change: Change) {
        match change {
            Change::Began(kind) => self.rules.begin(kind),
            Change::Applied(object) => {
                if let Err(why) = self.rules.apply(&object) {
                    tracing::warn!(why, "a rule cannot be read");
                }
            }
            Change::Deleted(object) => {
                self.rules.delete(&object);
                let rules = &self.rules;
                self.lanes.retain(|(_, rule), lane| {
                    lane.busy || !lane.waiting.is_empty() || rules.counters(rule).is_some()
                });
            }
            Change::Listed(kind) => {
                self.rules.finish(kind);
                self.listed.insert(kind);
            }
        }
        // Before all are known, what is missing is not what is gone.
        if self.is_complete() {
            self.placed.update(self.rules.on_nodes());
        }
    }

    /// A node's message has come, perhaps again.
    pub(super) fn handle_message(&mut self, from: FromNode<Delivered<UploadedPublish>>) {
        let FromNode { node, message: Delivered { delivery, message } } = from;
        let key = (node.clone(), message.id);
        if let Some(known) = self.messages.get_mut(&key) {
            known.delivery = delivery;
            return;
        }
        if self.seen.contains(&node, message.id) {
            return self.taken.push_back(ToNode { node, message: delivery });
        }
        let rules = self.rules.of_message(&node, &message.publish.topic).unwrap_or_else(|denial| {
            // It is dropped like one without a rule: sending it again would help nobody.
            self.denials.note(&node, format_args!("a message on {:?}", message.publish.topic), denial);
            Vec::new()
        });
        if rules.is_empty() {
            self.without_rule += 1;
            tracing::trace!(%node, topic = message.publish.topic, "no rule for a message of a node");
        }
        let publish = Arc::new(message.publish);
        self.bytes += publish.size();
        self.messages.insert(key, Message { delivery, publish, left: rules.len().max(1) });
        for (rule, url) in &rules {
            let lane = self.lanes.entry((node.clone(), rule.clone())).or_default();
            lane.waiting.push_back(Item { id: message.id, url: url.clone() });
        }
        if rules.is_empty() {
            self.finish(&node, message.id);
        }
    }

    /// The next attempt; [`State::handle_outcome`] follows.
    pub(super) fn poll_job(&mut self, now: Instant) -> Option<Job> {
        if self.busy >= self.limits.at_once {
            return None;
        }
        let due = |lane: &Lane| {
            !lane.busy && !lane.waiting.is_empty() && lane.not_before.is_none_or(|at| at <= now)
        };
        let (key, lane) = self.lanes.iter_mut().find(|(_, lane)| due(lane))?;
        let item = lane.waiting.front()?;
        let publish = self.messages.get(&(key.0.clone(), item.id))?.publish.clone();
        lane.busy = true;
        lane.give_up_at.get_or_insert(now + self.limits.give_up_after);
        self.busy += 1;
        Some(Job { lane: key.clone(), id: item.id, url: item.url.clone(), publish })
    }

    /// An attempt has ended.
    pub(super) fn handle_outcome(&mut self, job: &Job, outcome: Outcome, now: Instant) {
        self.busy -= 1;
        let Some(lane) = self.lanes.get_mut(&job.lane) else { return };
        lane.busy = false;
        let failure = match outcome {
            Outcome::Delivered => {
                lane.give_up_at = None;
                None
            }
            Outcome::Retry(why) if lane.give_up_at.is_none_or(|at| now < at) => {
                tracing::debug!(rule = job.lane.1.1, url = job.url, why, "a message is tried again");
                lane.not_before = Some(now + self.limits.backoff(lane.failures));
                lane.failures = lane.failures.saturating_add(1);
                return;
            }
            Outcome::Retry(why) => Some(why),
            Outcome::Refused(why) => {
                lane.give_up_at = None;
                Some(why)
            }
        };
        lane.waiting.pop_front();
        (lane.failures, lane.not_before) = (0, None);
        if lane.waiting.is_empty() && lane.give_up_at.is_none() {
            self.lanes.remove(&job.lane);
        }
        self.count(&job.lane.1, failure);
        self.finish(&job.lane.0, job.id);
    }

    /// A message, or a request, has gone through a rule, or has failed to.
    pub(super) fn count(&mut self, rule: &Name, failure: Option<String>) {
        let counters = self.counted.entry(rule.clone()).or_default();
        match failure {
            None => counters.success_messages += 1,
            Some(why) => {
                tracing::warn!(namespace = rule.0, rule = rule.1, why, "a message could not be delivered");
                counters.fail_messages += 1;
                // As KubeEdge has it: the last one.
                counters.errors = vec![why];
            }
        }
    }

    /// What was counted of a rule and is not in its status.
    pub(super) fn uncounted(&self, rule: &Name) -> Option<&Counters> {
        self.counted.get(rule)
    }

    /// So much of it is in the rule's status.
    pub(super) fn handle_counted(&mut self, rule: &Name, counted: &Counters) {
        let Some(left) = self.counted.get_mut(rule) else { return };
        left.success_messages = left.success_messages.saturating_sub(counted.success_messages);
        left.fail_messages = left.fail_messages.saturating_sub(counted.fail_messages);
        if left.fail_messages == 0 {
            left.errors = Vec::new();
        }
        if *left == Counters::default() {
            self.counted.remove(rule);
        }
    }

    fn finish(&mut self, node: &NodeName, id: UploadId) {
        let key = (node.clone(), id);
        let Some(message) = self.messages.get_mut(&key) else { return };
        message.left -= 1;
        if message.left == 0 {
            self.taken.push_back(ToNode { node: node.clone(), message: message.delivery });
            self.bytes -= message.publish.size();
            self.messages.remove(&key);
            self.seen.insert(node, id);
        }
    }

    /// A message that the node need not keep any longer.
    pub(super) fn poll_taken(&mut self) -> Option<ToNode<Delivery>> {
        self.taken.pop_front()
    }

    /// When [`State::poll_job`] may have something, unless something else happens before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        if self.busy >= self.limits.at_once {
            return None;
        }
        self.lanes.values().filter(|lane| !lane.busy).filter_map(|lane| lane.not_before).min()
    }

    /// Messages of nodes for which there was no rule.
    #[cfg(test)]
    pub(super) fn without_rule(&self) -> u64 {
        self.without_rule
    }
}

impl Limits {
    fn backoff(&self, failures: u32) -> Duration {
        self.retry_first.saturating_mul(1 << failures.min(16)).min(self.retry_max)
    }
}
