//! What the API says of pods, seen by somebody who watches all the time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, ensure};
use futures::{StreamExt, pin_mut};
use kube::{
    Api,
    api::DynamicObject,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::load::is_ready;

/// Watches pods and keeps what was wrong with any state that was ever there.
pub(crate) struct Witness {
    seen: Arc<Mutex<Seen>>,
    _task: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Seen {
    pods: BTreeMap<String, Record>,
    /// How often each pod came to be ready, or not ready any more, by its name.
    turns: BTreeMap<String, u64>,
    states: usize,
    wrong: Vec<String>,
}

/// How far a pod has come.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Record {
    phase: u8,
    /// The ids of its containers, by their names.
    containers: BTreeMap<String, String>,
    /// Since when its conditions are as they are.
    since: BTreeMap<String, String>,
    ready: bool,
}

impl Witness {
    pub(crate) fn start(pods: Api<DynamicObject>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut task = JoinSet::new();
        task.spawn(watch(pods, seen.clone()));
        Self { seen, _task: task }
    }

    /// How many states of pods were seen.
    ///
    /// # Errors
    /// If any was wrong.
    pub(crate) fn verdict(&self) -> Result<usize> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(seen.wrong.is_empty(), "{:#?}", seen.wrong);
        Ok(seen.states)
    }

    /// Takes how often each pod had a reason to come to be ready, or not ready any more.
    ///
    /// # Errors
    /// If one has done so more often: a status of an earlier time was written again. Its times do not show that, because the
    /// cloud gives a condition that changes the time of the write.
    pub(crate) fn turned_only(&self, reasons: impl Iterator<Item = (String, u64)>) -> Result<()> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, reasons) in reasons {
            let turns = seen.turns.get(&name).copied().unwrap_or(0);
            ensure!(turns <= reasons, "{name} has turned {turns} times, for {reasons} reasons");
        }
        Ok(())
    }
}

async fn watch(pods: Api<DynamicObject>, seen: Arc<Mutex<Seen>>) {
    let events = watcher::watcher(pods, watcher::Config::default()).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        if let Ok(Event::Apply(pod) | Event::InitApply(pod)) = event {
            seen.lock().unwrap_or_else(PoisonError::into_inner).add(&pod);
        }
    }
}

impl Seen {
    fn add(&mut self, pod: &DynamicObject) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let before = self.pods.entry(uid).or_default();
        let after = Record::of(&pod.data["status"]);
        self.states += 1;
        let goes = pod.metadata.deletion_timestamp.is_some();
        *self.turns.entry(name.clone()).or_default() += u64::from(before.ready != after.ready);
        let wrong = before.wrong_in(&after).or_else(|| wrong_by_itself(&pod.data["status"], goes));
        self.wrong.extend(wrong.map(|wrong| format!("{name}: {wrong}")));
        *before = after;
    }
}

impl Record {
    fn of(status: &Value) -> Self {
        let phase = match status["phase"].as_str() {
            Some("Running") => 1,
            Some("Succeeded" | "Failed") => 2,
            _ => 0,
        };
        Self {
            phase,
            containers: texts(&status["containerStatuses"], "name", "containerID"),
            since: texts(&status["conditions"], "type", "lastTransitionTime"),
            ready: is_ready(status),
        }
    }

    /// What in a state that comes after this one is of an earlier one, or of another container.
    fn wrong_in(&self, after: &Self) -> Option<String> {
        if after.phase < self.phase {
            return Some(format!("phase {} after {}", after.phase, self.phase));
        }
        if let Some((name, id)) =
            self.containers.iter().find(|(name, id)| after.containers.get(*name) != Some(id))
        {
            return Some(format!("container {name}: {:?} after {id}", after.containers.get(name)));
        }
        // Times of one form have the order of their texts.
        let is_older =
            |(kind, since): &(&String, &String)| after.since.get(*kind).is_none_or(|later| later < *since);
        self.since
            .iter()
            .find(is_older)
            .map(|(kind, since)| format!("condition {kind}: as of {:?} after {since}", after.since.get(kind)))
    }
}

/// What no pod of this test is ever, unless it is to be deleted.
fn wrong_by_itself(status: &Value, goes: bool) -> Option<String> {
    let mut containers = status["containerStatuses"].as_array().into_iter().flatten();
    if let Some(again) = containers.find(|it| it["restartCount"].as_u64().is_some_and(|count| count > 0)) {
        return Some(format!("it was started again: {again}"));
    }
    (!goes && status["phase"] == "Failed").then(|| format!("it has failed: {status}"))
}

/// The texts of one member of the items of a list, by those of another; without those that are empty.
fn texts(list: &Value, key: &str, member: &str) -> BTreeMap<String, String> {
    let items = list.as_array().into_iter().flatten();
    let texts = items.filter_map(|item| Some((item[key].as_str()?, item[member].as_str()?)));
    texts.filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key.to_owned(), text.to_owned())).collect()
}

#[test]
fn a_state_that_is_older_or_of_another_container_is_noticed() {
    let status = |phase: &str, id: &str, since: &str| {
        Record::of(&serde_json::json!({
            "phase": phase,
            "containerStatuses": [{ "name": "main", "containerID": id }],
            "conditions": [{ "type": "Ready", "lastTransitionTime": since }],
        }))
    };
    let (before, later) = ("2026-01-01T00:00:09Z", "2026-01-01T00:00:10Z");
    let now = status("Running", "containerd://a", later);
    assert_eq!(Record::default().wrong_in(&now), None);
    assert_eq!(status("Pending", "", before).wrong_in(&now), None);
    assert_eq!(now.wrong_in(&now), None);
    for (older, about) in [
        (status("Pending", "containerd://a", later), "phase"),
        (status("Running", "containerd://b", later), "container"),
        (status("Running", "", later), "container"),
        (status("Running", "containerd://a", before), "condition"),
    ] {
        assert!(now.wrong_in(&older).is_some_and(|wrong| wrong.starts_with(about)), "{older:?}");
    }
}
