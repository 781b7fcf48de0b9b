//! Which pods are brought to the policies of their nodes, and when.

use std::time::Instant;

use kubeedge_core::message::ObjectRef;
use serde_json::Value;

use super::State;
use crate::{authorization::Graph as _, controller::Outcome, edgecontroller::autonomy};

impl State {
    /// Wants a pod's tolerations looked at, if the policy of its node is known.
    pub(super) fn want_tolerations(&mut self, reference: &ObjectRef) {
        if self.toleration(reference).is_some() {
            self.intolerant.insert(reference.clone());
        }
    }

    fn toleration(&self, reference: &ObjectRef) -> Option<Value> {
        let (pod, node) = self.placement.root(reference)?;
        let policy = self.nodes.policy(node)?;
        autonomy::patch(&pod.json(), policy)
    }

    /// Which pod to change next, and how, if it may be done at once.
    pub(in crate::edgecontroller) fn poll_toleration(&mut self, now: Instant) -> Option<(ObjectRef, Value)> {
        // A start lists first: many pods may have to be changed, and nodes wait for none of that.
        if !self.is_complete() {
            return None;
        }
        while let Some(pod) = self.intolerant.pop_first() {
            self.tolerations.put(pod, (), now);
        }
        loop {
            let (pod, ()) = self.tolerations.poll_write(now)?;
            match self.toleration(&pod) {
                Some(patch) => return Some((pod, patch)),
                None => self.tolerations.succeeded(&pod),
            }
        }
    }

    /// Takes what became of a change of a pod.
    pub(in crate::edgecontroller) fn handle_tolerated(
        &mut self,
        pod: ObjectRef,
        outcome: Outcome,
        now: Instant,
    ) {
        match outcome {
            Outcome::Done => self.tolerations.succeeded(&pod),
            Outcome::Refused(why) => {
                tracing::warn!(%pod, %why, "the pod may be evicted while its node is away: its tolerations cannot be changed");
                self.tolerations.succeeded(&pod);
            }
            Outcome::Retry(why) => {
                tracing::debug!(%pod, %why, "the pod's tolerations will be changed later");
                self.tolerations.failed(&pod, (), now);
            }
        }
    }
}
