//! What the runtime has.

use std::collections::BTreeMap;

use kubeedge_core::{
    id::Uid,
    message::ObjectRef,
    runtime::{ObservedSandbox, RuntimeError},
};
use tracing::{info, warn};

use super::{Entry, Moment, Stage, State};
use crate::edged::status;

impl State {
    /// Takes the outcome of an observation that was asked for by [`Output::Observe`].
    pub(crate) fn handle_observed(
        &mut self,
        observed: Result<Vec<ObservedSandbox>, RuntimeError>,
        now: Moment,
    ) {
        let began = self.observing.take().unwrap_or(self.epoch);
        let sandboxes = match observed {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                if !std::mem::replace(&mut self.blind, true) {
                    warn!(%error, "the runtime cannot be observed");
                }
                if self.observed_epoch.is_none() {
                    self.tell_blind(&error, now);
                }
                self.observe_at = now.at + self.config.observe_interval;
                return;
            }
        };
        if std::mem::replace(&mut self.blind, false) {
            info!("the runtime can be observed again");
            self.pods.values_mut().for_each(|entry| entry.retry_soon(now));
        }
        let mut by_pod: BTreeMap<Uid, Vec<ObservedSandbox>> = BTreeMap::new();
        for sandbox in sandboxes {
            by_pod.entry(sandbox.uid.clone()).or_default().push(sandbox);
        }
        for of_pod in by_pod.values_mut() {
            of_pod.sort_by_key(|sandbox| (sandbox.attempt, sandbox.created_at_ms));
        }
        let first = self.observed_epoch.is_none();
        self.observed_epoch = Some(began);
        for (uid, entry) in &mut self.pods {
            let before = entry.touched.len();
            entry.touched.retain(|_, ended| *ended > began);
            let seen = entry.touched.len() < before;
            entry.changed |= first || seen || self.observed.get(uid) != by_pod.get(uid);
        }
        for (uid, of_pod) in &by_pod {
            if !self.pods.contains_key(uid)
                && let Some(first) = of_pod.first()
            {
                let reference = ObjectRef::pod(&first.namespace, &first.name);
                let mut orphan = Entry::orphan(reference, uid.clone(), now);
                if let Some(record) = self.records.remove(uid) {
                    orphan.restore(record);
                }
                if self.is_stale_static(&orphan) {
                    orphan.delete();
                }
                self.pods.insert(uid.clone(), orphan);
            }
        }
        self.observed = by_pod;
        let stale = self.pods.values().any(|entry| !entry.touched.is_empty());
        let live = self.pods.values().any(|entry| entry.stage != Stage::Gone);
        self.observe_at = match (stale, live) {
            (true, _) => now.at,
            (false, true) => now.at + self.config.observe_interval,
            (false, false) => now.at + self.config.idle_interval,
        };
    }
    /// Says of pods that never ran why they do not, when the runtime has not said anything since the start. Nothing is
    /// said of others: they may run as they did.
    fn tell_blind(&mut self, error: &RuntimeError, now: Moment) {
        let message = error.to_string();
        let mut reports = Vec::new();
        for entry in self.pods.values_mut() {
            let ran = entry.ran || entry.verdict.is_some() || entry.is_ending() || entry.wanted().is_none();
            if ran || entry.unresolved.get("") == Some(&message) {
                continue;
            }
            entry.unresolved.insert(String::new(), message.clone());
            reports.extend(status::changed(entry, &[], &self.config, &self.runtime, now));
        }
        reports.into_iter().for_each(|report| self.report(report));
    }
}
