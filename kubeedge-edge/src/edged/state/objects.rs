//! What becomes of Pods, and of what they are made of.

use kubeedge_core::message::{Object, ObjectEvent, ObjectRef};
use tracing::{debug, warn};

use super::{Entry, Moment, Stage, State, settling::Settled};
use crate::edged::pod::{Admission, Pod};

impl State {
    /// Takes what became of a Pod or of something that pods are made of.
    pub(crate) fn handle_object(&mut self, event: ObjectEvent, now: Moment) {
        if let Settled::Waiting { quiet_since, .. } = &mut self.settled {
            *quiet_since = now.at;
        }
        if event.key().kind() == "Pod" && self.handle_mirror(&event) {
            return;
        }
        match (event.key().kind(), &event) {
            ("Pod", ObjectEvent::Applied(object)) => self.apply_pod(object, now),
            ("Pod", ObjectEvent::Deleted { reference, .. }) => self.delete_pod(reference),
            (
                "ConfigMap"
                | "Secret"
                | "PersistentVolumeClaim"
                | "PersistentVolume"
                | "RuntimeClass"
                | "Service",
                _,
            ) => self.change_object(event),
            (kind, _) => debug!(kind, "an object that pods are not made of"),
        }
    }

    /// Takes that no more objects will come.
    pub(crate) fn handle_closed(&mut self) {
        self.settled = Settled::Never;
    }

    pub(super) fn apply_pod(&mut self, object: &Object, now: Moment) {
        let node = Admission {
            sysctls: &self.config.allowed_unsafe_sysctls,
            apparmor: self.host.apparmor,
            cgroups: self.config.cgroups.is_some(),
        };
        let parsed = Pod::parse(object).and_then(|pod| pod.forbidden(node).map_or(Ok(pod), Err));
        if let Ok(pod) = &parsed {
            self.tokens.want(pod, now.at);
        }
        if let Err(error) = &parsed {
            warn!(pod = %object.reference, %error, "a pod cannot be run");
        }
        // The API has one object of a name: another UID means that the earlier pod's object is gone.
        let replaced = |entry: &&mut Entry| entry.reference == object.reference && entry.uid != object.uid;
        for entry in self.pods.values_mut().filter(replaced) {
            entry.delete();
        }
        self.pods.retain(|_, entry| !(entry.deleted && entry.stage == Stage::Gone));
        match self.pods.get_mut(&object.uid) {
            Some(entry) => entry.apply(parsed),
            None => {
                let mut entry = Entry::orphan(object.reference.clone(), object.uid.clone(), now);
                self.remember(&mut entry);
                entry.apply(parsed);
                self.pods.insert(object.uid.clone(), entry);
            }
        }
        self.observe_at = self.observe_at.min(now.at + self.config.observe_interval);
    }

    fn remember(&mut self, entry: &mut Entry) {
        if let Some(record) = self.records.remove(&entry.uid) {
            entry.restore(record);
        }
    }

    /// Nothing of this name exists any more, whichever UID it had: the pipe keeps only the last event of a
    /// name, so the deletion of a pod may be all that is heard of it and of the end of the one before it.
    pub(super) fn delete_pod(&mut self, reference: &ObjectRef) {
        for entry in self.pods.values_mut().filter(|entry| entry.reference == *reference) {
            entry.delete();
        }
        self.pods.retain(|_, entry| !(entry.deleted && entry.stage == Stage::Gone));
    }

    fn change_object(&mut self, event: ObjectEvent) {
        let reference = event.key().clone();
        match event {
            ObjectEvent::Applied(object) => {
                let old = self.objects.insert(reference.clone(), object);
                let new = &self.objects[&reference];
                if old.is_some_and(|old| old.json == new.json) {
                    return;
                }
            }
            // Files of an object that is gone stay as they are, as the kubelet leaves them.
            ObjectEvent::Deleted { .. } => {
                if self.objects.remove(&reference).is_none() {
                    return;
                }
            }
        }
        for entry in self.pods.values_mut() {
            entry.object_changed(&reference);
        }
    }
}
