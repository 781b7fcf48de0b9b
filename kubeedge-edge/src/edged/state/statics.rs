//! Pods of files of the node, and the objects in the API that stand for them.
//!
//! The API's object has the pod's name, and a UID of its own: what is reported of the pod is reported under that
//! UID, and what becomes of the object never touches the pod.

use kubeedge_core::{
    id::Uid,
    message::{MirrorReport, Object, ObjectEvent, ObjectRef, PodReport, PodState, Report},
};
use serde::Deserialize;
use tracing::warn;

use super::{Entry, Moment, Output, Stage, State};
use crate::edged::statics::{self, Change, MIRROR};

/// A pod of a file.
#[derive(Debug)]
pub(super) struct Static {
    pod: Object,
    /// The UID of the API's object that stands for it, if there is one.
    mirror: Option<Uid>,
}

#[derive(Deserialize)]
struct Head {
    metadata: HeadMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMetadata {
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
    #[serde(default)]
    deletion_timestamp: Option<String>,
}

impl State {
    /// Takes what has become of the files.
    pub(crate) fn handle_static(&mut self, change: Change, now: Moment) {
        match change {
            Change::Applied(pod) => {
                self.apply_pod(&pod, now);
                let mirror = self.statics.remove(&pod.reference).and_then(|known| known.mirror);
                let reference = pod.reference.clone();
                self.statics.insert(reference.clone(), Static { pod, mirror });
                self.report_mirror(&reference);
            }
            Change::Removed(reference, uid) => {
                if self.statics.get(&reference).is_some_and(|known| known.pod.uid == uid) {
                    self.statics.remove(&reference);
                }
                match self.pods.get_mut(&uid) {
                    Some(entry) => entry.delete(),
                    None => self.report_mirror(&reference),
                }
            }
        }
    }

    /// Takes that the files were read.
    pub(crate) fn handle_statics_known(&mut self) {
        self.statics_known = true;
        let stale = |entry: &&Entry| entry.stage == Stage::Orphan && self.is_stale_static(entry);
        let stale: Vec<Uid> = self.pods.values().filter(stale).map(|entry| entry.uid.clone()).collect();
        for uid in stale {
            self.pods.entry(uid).and_modify(Entry::delete);
        }
    }

    /// Takes what has become of an object that stands for a static pod. Returns whether it was one.
    pub(super) fn handle_mirror(&mut self, event: &ObjectEvent) -> bool {
        let object = match event {
            ObjectEvent::Applied(object) => object,
            ObjectEvent::Deleted { reference, .. } => {
                let Some(known) = self.statics.get_mut(reference) else { return false };
                known.mirror = None;
                self.report_mirror(&reference.clone());
                return true;
            }
        };
        let head = serde_json::from_slice::<Head>(&object.json).map(|head| head.metadata).ok();
        let hash = head.as_ref().and_then(|head| head.annotations.as_ref()?.get(MIRROR));
        let reference = &object.reference;
        let Some(hash) = hash else {
            let taken = self.statics.contains_key(reference);
            if taken {
                warn!(pod = %reference, "a pod of the API has the name of a static one, and is not run");
            }
            return taken;
        };
        if head.as_ref().is_some_and(|head| head.deletion_timestamp.is_some()) {
            // Nothing of the object runs. When it is gone, another one takes its place.
            let report =
                PodReport { reference: reference.clone(), uid: object.uid.clone(), state: PodState::Gone };
            self.outputs.push_back(Output::Report(Report::Pod(report)));
            return true;
        }
        match self.statics.get_mut(reference) {
            Some(known) if known.pod.uid.as_str() == hash => {
                known.mirror = Some(object.uid.clone());
                let last = self.pods.get(&known.pod.uid).and_then(Entry::last_report);
                last.into_iter().for_each(|report| self.report(report));
            }
            // It stands for what was before, or for what is no more.
            Some(_) | None => self.report_mirror(reference),
        }
        true
    }

    /// Reports what a pod has come to: of a static one under the name of what stands for it, once that is there.
    pub(super) fn report(&mut self, mut report: PodReport) {
        if let Some(known) = self.statics.get(&report.reference).filter(|known| known.pod.uid == report.uid) {
            let Some(mirror) = &known.mirror else { return };
            report.uid = mirror.clone();
        } else if statics::is_hash(report.uid.as_str()) {
            return;
        }
        self.outputs.push_back(Output::Report(Report::Pod(report)));
    }

    /// Asks for all objects that should stand for pods of this node.
    pub(super) fn report_mirrors(&mut self) {
        let references: Vec<ObjectRef> = self.statics.keys().cloned().collect();
        references.iter().for_each(|reference| self.report_mirror(reference));
    }

    fn report_mirror(&mut self, reference: &ObjectRef) {
        let pod = self.statics.get(reference).map(|known| statics::mirror_of(&known.pod));
        let report = MirrorReport { reference: reference.clone(), pod };
        self.outputs.push_back(Output::Report(Report::Mirror(report)));
    }

    /// Takes that nothing is left of a pod: what stood for it goes too, unless the file has another pod.
    pub(super) fn forget_mirror(&mut self, reference: &ObjectRef, uid: &Uid) {
        if statics::is_hash(uid.as_str()) && !self.statics.contains_key(reference) {
            self.report_mirror(reference);
        }
    }

    /// Whether this is what runs of a static pod whose file has changed or gone while nobody looked.
    pub(super) fn is_stale_static(&self, entry: &Entry) -> bool {
        let known = self.statics.get(&entry.reference);
        let of_node = entry.reference.name().ends_with(self.config.node.as_str());
        self.statics_known
            && statics::is_hash(entry.uid.as_str())
            && of_node
            && known.is_none_or(|known| known.pod.uid != entry.uid)
    }

    /// Whether an earlier pod of the same file has to end first.
    pub(super) fn waits_for_older(&self, entry: &Entry) -> bool {
        let older = |other: &&Entry| other.reference == entry.reference && other.uid != entry.uid;
        let is_static = statics::is_hash(entry.uid.as_str());
        is_static && self.pods.values().filter(older).any(|other| other.stage != Stage::Gone)
    }
}
