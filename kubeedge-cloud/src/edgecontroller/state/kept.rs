//! What the API has taken of nodes and pods, kept so that it can be told again if others undo it.
//!
//! An edge does not repeat what was acknowledged. But while the cloud side cannot reach the API, the node lifecycle
//! controller sets a node's conditions to Unknown and its pods to not ready, and an operator may delete a Node
//! whose edge is connected. So with each renewal of a Lease the state of the node is compared again, and that of
//! its pods that changed in the API since the last renewal. What an earlier session has told says nothing any more: the
//! node may have been with another cloud meanwhile, and tells everything anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use kubeedge_core::{
    id::{NodeName, Uid},
    message::{NodeReport, ObjectRef, PodReport, PodState, Report, ReportKey},
};

use super::{Reported, State, Wanted, Write, WriteKey};
use crate::{
    authorization::Graph as _,
    controller::{Packed, Placement},
    edgecontroller::status,
};

/// The last status that the API took of each pod: of no more pods than there are on nodes.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pods: BTreeMap<ObjectRef, Taken>,
    /// The pods that changed in the API since they were compared.
    changed: BTreeMap<NodeName, BTreeSet<ObjectRef>>,
}

#[derive(Debug)]
struct Taken {
    node: NodeName,
    uid: Uid,
    status: Packed,
}

impl Kept {
    /// Takes that `reference`, which may be a pod, has changed.
    pub(super) fn handle_change(&mut self, reference: &ObjectRef, placement: &Placement) {
        let Some(taken) = self.pods.get(reference) else { return };
        if is_current(placement, &taken.node, reference, &taken.uid) {
            self.changed.entry(taken.node.clone()).or_default().insert(reference.clone());
        } else {
            self.forget(reference);
        }
    }

    /// Takes that everything was listed: pods may have gone unseen.
    pub(super) fn handle_listed(&mut self, placement: &Placement) {
        let is_gone = |pod: &ObjectRef, taken: &Taken| !is_current(placement, &taken.node, pod, &taken.uid);
        let gone = self.pods.iter().filter(|(pod, taken)| is_gone(pod, taken));
        let gone: Vec<ObjectRef> = gone.map(|(pod, _)| pod.clone()).collect();
        for reference in gone {
            self.forget(&reference);
        }
    }

    fn keep(&mut self, node: &NodeName, report: &PodReport, status: Option<Packed>, placement: &Placement) {
        let current = placement.root(&report.reference);
        let current = current.filter(|(pod, placed)| pod.uid == report.uid && *placed == node);
        let (Some((pod, node)), Some(status)) = (current, status) else {
            return self.forget(&report.reference);
        };
        // The names are those of the pod, so that they are there once.
        let taken = Taken { node: node.clone(), uid: pod.uid.clone(), status };
        self.pods.insert(pod.reference.clone(), taken);
    }

    fn forget(&mut self, reference: &ObjectRef) {
        let Some(taken) = self.pods.remove(reference) else { return };
        if let Some(changed) = self.changed.get_mut(&taken.node) {
            changed.remove(reference);
            if changed.is_empty() {
                self.changed.remove(&taken.node);
            }
        }
    }
}

impl State {
    /// Takes that the node has another session: what it told in an earlier one may have been overtaken in another cloud.
    pub(super) fn forget_told(&mut self, node: &NodeName) {
        let Self { placement, kept, .. } = self;
        placement.roots_of(node).for_each(|pod| kept.forget(&pod.reference));
    }

    /// Keeps what the API has taken.
    pub(super) fn keep(&mut self, node: &NodeName, wanted: Wanted) {
        let Wanted::Report(reported) = wanted else { return };
        let Reported { head, text, .. } = *reported;
        match head {
            Report::Node(_) => {
                if let Some(session) = self.sessions.get_mut(node).filter(|session| session.online) {
                    session.taken = text;
                }
            }
            Report::Pod(report) => self.kept.keep(node, &report, text, &self.placement),
            Report::Mirror(_) | Report::Device(_) => {}
        }
    }

    /// Wants the state of a node that has a session told again, and that of its pods that changed. What waits to be
    /// told is newer and stays.
    pub(super) fn tell_again(&mut self, node: &NodeName, now: Instant) {
        let Some(session) = self.sessions.get_mut(node).filter(|session| session.online) else { return };
        let is_due = session.taken.is_some() && std::mem::take(&mut session.changed);
        let of_node = is_due.then_some(ReportKey::Node);
        let changed = self.kept.changed.remove(node).unwrap_or_default();
        let of_pods = changed.into_iter().filter_map(|pod| {
            let uid = self.kept.pods.get(&pod)?.uid.clone();
            Some(ReportKey::Pod(pod, uid))
        });
        for what in of_node.into_iter().chain(of_pods) {
            let key = (node.clone(), what);
            if !self.reports.is_waiting(&key) {
                self.reports.put(key, Wanted::Again, now);
            }
        }
    }

    /// A report that failed is newer than what was to be told again behind it.
    pub(super) fn prefer(&mut self, key: &WriteKey, failed: &Wanted, now: Instant) {
        if *failed == Wanted::Again {
            return;
        }
        if let Some(waiting) = self.reports.withdraw(key).filter(|waiting| *waiting != Wanted::Again) {
            self.reports.put(key.clone(), waiting, now);
        }
    }

    /// Decides how to tell what is known by now; `Err` says why there is no need.
    pub(super) fn decide_again(&self, node: &NodeName, what: &ReportKey) -> Result<Write, &'static str> {
        match what {
            ReportKey::Node => {
                let taken = self.sessions.get(node).and_then(|session| session.taken.as_ref());
                let report = NodeReport { json: taken.ok_or("the session has ended")?.text() };
                Ok(Write::Node(report, self.clock_of(node)))
            }
            ReportKey::Pod(reference, _) => {
                let Taken { uid, status, .. } = self.kept.pods.get(reference).ok_or("the pod is gone")?;
                let state = PodState::Status(status.text());
                let report = PodReport { reference: reference.clone(), uid: uid.clone(), state };
                let write = self.decide_pod(node, &report)?;
                let lost = matches!(&write, Write::PodStatus { pod, status, .. } if status::lacks(&pod.json, status));
                if lost { Ok(write) } else { Err("the API still has it") }
            }
            // It came down as a pod, and the node sees itself when it is gone.
            ReportKey::Mirror(_) => Err("the node asks for it itself"),
            ReportKey::Device(_) => Err("devices are DeviceController's"),
        }
    }
}

/// Whether the pod that is reported is still the one of its name, and on that node.
fn is_current(placement: &Placement, node: &NodeName, pod: &ObjectRef, uid: &Uid) -> bool {
    placement.root(pod).is_some_and(|(pod, placed)| pod.uid == *uid && placed == node)
}
