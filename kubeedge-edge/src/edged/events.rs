//! Events about pods, as the kubelet records them: coalesced, bounded, and kept while there is no link. Pure.

mod note;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use kubeedge_core::message::{ObjectRef, UploadedEvent};
use serde_json::json;

pub(crate) use self::note::{Kind, Note};
use super::{state::Moment, text::rfc3339};
use kubeedge_core::id::Uid;

/// How many different events are remembered to be counted on, and may wait for the link.
const REMEMBERED_MAX: usize = 512;

/// Of one pod and reason, a burst of so many events is told, then one each [`REFILL`]: the kubelet's limit against a
/// pod that fails without end. The kubelet counts all reasons together; here a probe that keeps failing does not
/// hide that its container was killed.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// An event that happens again within this time counts on; later it is another one. 10 min: the kubelet's.
const SAME_WITHIN: Duration = Duration::from_secs(600);

/// Who is told of in events.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct About {
    pub(crate) reference: ObjectRef,
    pub(crate) uid: Uid,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    about: About,
    field_path: String,
    reason: Cow<'static, str>,
    message: String,
}

#[derive(Debug)]
struct Recorded {
    name: String,
    kind: Kind,
    first_ms: u64,
    last_ms: u64,
    last: Instant,
    count: u64,
}

#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

/// Counts events and hands them on.
#[derive(Debug)]
pub(crate) struct Recorder {
    node: String,
    recorded: BTreeMap<Key, Recorded>,
    allowances: BTreeMap<(Uid, Cow<'static, str>), Allowance>,
    /// What the cloud does not know yet, in order of its first change.
    waiting: VecDeque<Key>,
    queued: BTreeSet<Key>,
    /// Tells the names of events apart that begin in the same millisecond.
    serial: u32,
}

impl Recorder {
    pub(crate) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            recorded: BTreeMap::new(),
            allowances: BTreeMap::new(),
            waiting: VecDeque::new(),
            queued: BTreeSet::new(),
            serial: 0,
        }
    }

    /// Takes what has happened.
    pub(crate) fn record(&mut self, about: &About, note: Note, now: Moment) {
        if !self.allow((about.uid.clone(), note.reason.clone()), now.at) {
            return;
        }
        let field_path = note.field_path;
        let key = Key { about: about.clone(), field_path, reason: note.reason, message: note.message };
        let again = self.recorded.get_mut(&key).filter(|old| now.at.duration_since(old.last) < SAME_WITHIN);
        match again {
            Some(old) => {
                old.count += 1;
                (old.last, old.last_ms) = (now.at, now.unix_ms);
            }
            None => {
                self.serial = self.serial.wrapping_add(1);
                let name = event_name(about.reference.name(), now.unix_ms, self.serial);
                let recorded = Recorded {
                    name,
                    kind: note.kind,
                    first_ms: now.unix_ms,
                    last_ms: now.unix_ms,
                    last: now.at,
                    count: 1,
                };
                self.recorded.insert(key.clone(), recorded);
            }
        }
        if self.queued.insert(key.clone()) {
            self.waiting.push_back(key);
        }
        self.forget_surplus();
    }

    /// Whether the pod may tell one more for this reason.
    fn allow(&mut self, key: (Uid, Cow<'static, str>), now: Instant) -> bool {
        if self.allowances.len() >= REMEMBERED_MAX && !self.allowances.contains_key(&key) {
            let quietest =
                self.allowances.iter().max_by_key(|(_, it)| (it.left, now.duration_since(it.since)));
            if let Some(quietest) = quietest.map(|(key, _)| key.clone()) {
                self.allowances.remove(&quietest);
            }
        }
        let allowance = self.allowances.entry(key).or_insert_with(|| Allowance { left: BURST, since: now });
        let refilled = now.duration_since(allowance.since).as_secs() / REFILL.as_secs();
        if refilled > 0 {
            allowance.left = (u64::from(allowance.left) + refilled).min(u64::from(BURST)) as u32;
            allowance.since = now;
        }
        let allowed = allowance.left > 0;
        allowance.left = allowance.left.saturating_sub(1);
        allowed
    }

    /// The oldest go first, so that what happened last is what is known after a long time without a link.
    fn forget_surplus(&mut self) {
        while self.recorded.len() > REMEMBERED_MAX {
            let oldest = self.recorded.iter().min_by_key(|(_, recorded)| recorded.last);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { return };
            self.recorded.remove(&oldest);
            if self.queued.remove(&oldest) {
                self.waiting.retain(|key| *key != oldest);
            }
        }
    }

    /// Forgets a pod that nobody can ask about any more. What is to be told of it is still told.
    pub(crate) fn forget(&mut self, uid: &Uid) {
        self.allowances.retain(|(of, _), _| of != uid);
        let queued = &self.queued;
        self.recorded.retain(|key, _| key.about.uid != *uid || queued.contains(key));
    }

    /// The next event to be sent. [`Self::sent`] takes it off the list.
    pub(crate) fn next(&self) -> Option<UploadedEvent> {
        let key = self.waiting.front()?;
        let recorded = self.recorded.get(key)?;
        Some(UploadedEvent { json: self.json(key, recorded).to_string().into() })
    }

    /// The event that [`Self::next`] gave was taken.
    pub(crate) fn sent(&mut self) {
        if let Some(key) = self.waiting.pop_front() {
            self.queued.remove(&key);
        }
    }

    fn json(&self, key: &Key, recorded: &Recorded) -> serde_json::Value {
        let About { reference, uid } = &key.about;
        let mut involved = json!({
            "apiVersion": "v1",
            "kind": reference.kind(),
            "namespace": reference.namespace(),
            "name": reference.name(),
            "uid": uid.as_str(),
        });
        if !key.field_path.is_empty() {
            involved["fieldPath"] = json!(key.field_path);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "name": recorded.name, "namespace": reference.namespace() },
            "involvedObject": involved,
            "reason": key.reason,
            "message": key.message,
            "type": recorded.kind.word(),
            "count": recorded.count,
            "firstTimestamp": rfc3339(recorded.first_ms),
            "lastTimestamp": rfc3339(recorded.last_ms),
            "eventTime": null,
            "source": { "component": "kubelet", "host": self.node },
            "reportingComponent": "kubelet",
            "reportingInstance": self.node,
        })
    }
}

/// The name of an event: its object's and the time of the first occurrence, as Kubernetes' own clients make it.
fn event_name(of: &str, unix_ms: u64, serial: u32) -> String {
    let nanoseconds = u128::from(unix_ms) * 1_000_000 + u128::from(serial % 1_000_000);
    let suffix = format!(".{nanoseconds:x}");
    // 253 characters: the longest name of an object.
    let room = 253 - suffix.len();
    let of: String = of.chars().take(room).collect();
    format!("{}{suffix}", of.trim_end_matches(['.', '-']))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn about(name: &str) -> About {
        About { reference: ObjectRef::pod("default", name), uid: Uid::new(name) }
    }

    fn moment() -> Moment {
        Moment { at: Instant::now(), unix_ms: 1_700_000_000_000 }
    }

    fn later(now: Moment, seconds: u64) -> Moment {
        Moment { at: now.at + Duration::from_secs(seconds), unix_ms: now.unix_ms + seconds * 1000 }
    }

    fn drain(recorder: &mut Recorder) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(event) = recorder.next() {
            all.push(serde_json::from_slice(&event.json).unwrap());
            recorder.sent();
        }
        all
    }

    #[test]
    fn an_event_that_happens_again_updates_the_same_object_and_keeps_its_own_times() {
        let (mut recorder, now) = (Recorder::new("edge-1"), moment());
        let note = || Note::back_off_restarting("app", "web", "default", "u");
        recorder.record(&about("web"), note(), now);
        let first = drain(&mut recorder).remove(0);
        // Both of these happen while there is no link.
        recorder.record(&about("web"), note(), later(now, 10));
        recorder.record(&about("web"), note(), later(now, 30));
        let second = drain(&mut recorder);
        assert_eq!(second.len(), 1);
        assert_eq!(first["metadata"]["name"], second[0]["metadata"]["name"]);
        assert_eq!((&first["count"], &second[0]["count"]), (&json!(1), &json!(3)));
        assert_eq!(second[0]["firstTimestamp"], first["firstTimestamp"]);
        assert_eq!(second[0]["lastTimestamp"], "2023-11-14T22:13:50Z");
        assert_eq!(second[0]["involvedObject"]["fieldPath"], "spec.containers{app}");
        assert_eq!(second[0]["source"]["component"], "kubelet");
        recorder.record(&about("web"), note(), later(now, 3600));
        assert_ne!(drain(&mut recorder)[0]["metadata"]["name"], first["metadata"]["name"]);
    }

    #[test]
    fn a_pod_that_fails_without_end_and_a_link_that_is_long_away_take_bounded_memory() {
        let (mut recorder, now) = (Recorder::new("edge-1"), moment());
        for number in 0..1000u64 {
            recorder.record(&about("web"), Note::created(&format!("c{number}")), later(now, 1));
        }
        assert_eq!(drain(&mut recorder).len(), BURST as usize);
        for number in 0..2000u64 {
            let pod = about(&format!("pod-{number}"));
            recorder.record(&pod, Note::created("app"), later(now, number));
        }
        assert!(recorder.allowances.len() <= REMEMBERED_MAX + 1, "{}", recorder.allowances.len());
        let told = drain(&mut recorder);
        assert_eq!(told.len(), REMEMBERED_MAX);
        assert_eq!(told.last().unwrap()["involvedObject"]["name"], "pod-1999", "the newest are kept");
    }
}
