//! What EdgeController decides: what goes down, what is written to the API next, what is acknowledged. Pure.

mod fetches;
mod kept;
mod nodes;
mod pods_kept;
mod questions;
mod reported;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kubeedge_core::{
    id::{NodeName, Uid},
    message::{
        Acked, ClockOffset, Delivered, Delivery, FromNode, NodeReport, Object, ObjectEvent, ObjectRef,
        PodReport, PodState, Report, ReportKey, SessionState, ToNode,
    },
};
use serde_json::Value;

use super::{
    Config,
    mirror::{self, Mirror},
    seen::Bounds,
    status,
};
use crate::{
    authorization::{Action, Denial, Denials, Graph as _, allows},
    controller::{
        Backoff, Change, Kind, Limits, Outcome, Packed, Placement, WORTH_A_WARNING, Writes, references,
    },
};
use kept::Kept;
use nodes::Nodes;
pub(super) use questions::Plan;
pub(super) use reported::Reported;

/// Pods.
pub(super) const PODS: Kind = Kind { api_version: "v1", kind: "Pod", plural: "pods", optional: false };
/// ConfigMaps.
pub(super) const CONFIG_MAPS: Kind =
    Kind { api_version: "v1", kind: "ConfigMap", plural: "configmaps", optional: false };
/// Secrets.
pub(super) const SECRETS: Kind =
    Kind { api_version: "v1", kind: "Secret", plural: "secrets", optional: false };
/// Nodes.
pub(super) const NODES: Kind = Kind { api_version: "v1", kind: "Node", plural: "nodes", optional: false };
/// Events.
pub(super) const EVENTS: Kind = Kind { api_version: "v1", kind: "Event", plural: "events", optional: false };
/// Service accounts.
pub(super) const SERVICE_ACCOUNTS: Kind =
    Kind { api_version: "v1", kind: "ServiceAccount", plural: "serviceaccounts", optional: false };
/// Requests for certificates.
pub(super) const CERTIFICATES: Kind = Kind {
    api_version: "certificates.k8s.io/v1",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    optional: true,
};
/// Claims of storage. Who does without them may do without the right to read them.
pub(super) const CLAIMS: Kind = Kind {
    api_version: "v1",
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    optional: true,
};
/// Storage.
pub(super) const VOLUMES: Kind =
    Kind { api_version: "v1", kind: "PersistentVolume", plural: "persistentvolumes", optional: true };
/// Runtime classes.
pub(super) const RUNTIME_CLASSES: Kind =
    Kind { api_version: "node.k8s.io/v1", kind: "RuntimeClass", plural: "runtimeclasses", optional: true };

/// Services, of which pods are told by their environment.
pub(super) const SERVICES: Kind =
    Kind { api_version: "v1", kind: "Service", plural: "services", optional: true };

/// The kinds that are watched.
pub(super) const WATCHED: [Kind; 7] =
    [PODS, SERVICES, CLAIMS, VOLUMES, RUNTIME_CLASSES, CONFIG_MAPS, SECRETS];

/// The kinds of which there may be far more than nodes need: what nothing refers to is not held. They are listed when it is
/// known what refers to them, so that few have to be fetched.
pub(super) const FETCHED: [Kind; 2] = [CONFIG_MAPS, SECRETS];

/// What a write to the API is about; at most one is in flight for each.
pub(super) type WriteKey = (NodeName, ReportKey);

/// What the API should be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What an edge reported.
    Report(Box<Reported>),
    /// What it had already been told last, should it have lost it.
    Again,
    /// That the node has no session since then.
    Away { since: Timestamp },
}

impl Wanted {
    /// What the edge is told when the API has it.
    fn delivery(&self) -> Option<Delivery> {
        match self {
            Self::Report(reported) => Some(reported.delivery),
            Self::Again | Self::Away { .. } => None,
        }
    }
}

/// How to tell it to the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Write {
    /// Create the Node or bring it up to the report, and to what was measured of its clock.
    Node(NodeReport, Option<ClockOffset>),
    /// Set the Node's conditions to Unknown, unless another cloud has the node: its Lease names that one, and is not at the
    /// version `stale`, at which it has been for as long as it holds.
    Away { since: Timestamp, stale: Option<String> },
    /// Set the pod's status; the pod as the API had it last comes along.
    PodStatus { pod: Object, report: PodReport, status: bytes::Bytes },
    /// Delete the pod, if it is being deleted.
    PodGone { pod: ObjectRef, uid: Uid, known_deleting: bool },
    /// Create or delete what stands for a pod of a file of the node.
    Mirror(Mirror),
}

/// A write that is to be done at once.
#[derive(Debug)]
pub(super) struct Job {
    /// What it is about.
    pub(super) key: WriteKey,
    /// What it is to tell, for [`State::handle_written`].
    pub(super) wanted: Wanted,
    /// What to do.
    pub(super) write: Write,
    /// The node has no session here. If it has one at another cloud by now, that one is told newer things.
    pub(super) is_offline: bool,
}

/// What became of a [`Job`].
#[derive(Debug)]
pub(super) enum Written {
    /// It was tried.
    Tried(Outcome),
    /// Another cloud has the node, by this version of its Lease, and nothing was written.
    Elsewhere(String),
}

/// What the driver is to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// An object for a node.
    Downstream(ToNode<ObjectEvent>),
    /// The API has what the node reported.
    Acked(ToNode<Acked<ReportKey>>),
}

/// What became of a node's session, and what waits for it.
#[derive(Debug)]
struct Session {
    online: bool,
    /// Whether another cloud has a newer one.
    lost: bool,
    /// A report that came after the session ended; it holds once there is a session again.
    held: Option<Box<Reported>>,
    /// What the API took last of the node in this session, a [`NodeReport`].
    taken: Option<Packed>,
    /// Whether the Node has changed in the API since it was last compared with that.
    changed: bool,
    /// How far its clock is off, once that was measured in this session.
    clock: Option<ClockOffset>,
}

/// The state.
#[derive(Debug)]
pub(super) struct State {
    placement: Placement,
    sessions: BTreeMap<NodeName, Session>,
    reports: Writes<WriteKey, Wanted>,
    leases: Writes<NodeName, ()>,
    /// The pods whose tolerations are to be as the policies of their nodes have them.
    tolerations: Writes<ObjectRef, ()>,
    intolerant: BTreeSet<ObjectRef>,
    /// The objects to be fetched, because something began to refer to them.
    fetches: Writes<ObjectRef, ()>,
    nodes: Nodes,
    kept: Kept,
    /// The nodes whose sessions have ended, and when: not each session that ends leaves a node that is away.
    leaving: Writes<NodeName, Timestamp>,
    /// The versions of the Leases by which other clouds have nodes, and when each was first seen. The times in a Lease are by
    /// the clock of another host.
    elsewhere: BTreeMap<NodeName, (String, Instant)>,
    lease_interval: Duration,
    lease_duration: Duration,
    away_grace: Duration,
    bounds: Bounds,
    outputs: VecDeque<Output>,
    denials: Denials,
}

impl State {
    pub(super) fn new(config: &Config) -> Self {
        let backoff = Backoff { first: config.retry_first, max: config.retry_max };
        let at_once = config.writes_at_once.get();
        let limits = Limits { at_once, interval: Duration::ZERO, per_second: None, backoff };
        Self {
            placement: Placement::new("Pod", &WATCHED, references::place).fetching(&FETCHED),
            sessions: BTreeMap::new(),
            reports: Writes::new(limits),
            leases: Writes::new(limits),
            tolerations: Writes::new(limits),
            intolerant: BTreeSet::new(),
            fetches: Writes::new(limits),
            nodes: Nodes::default(),
            kept: Kept::default(),
            leaving: Writes::new(limits),
            elsewhere: BTreeMap::new(),
            lease_interval: config.lease_interval,
            lease_duration: config.lease_duration,
            away_grace: config.away_grace,
            bounds: config.bounds(),
            outputs: VecDeque::new(),
            denials: Denials::default(),
        }
    }

    /// Counts there what nodes are refused.
    pub(super) fn counting(mut self, denials: Denials) -> Self {
        self.denials = denials;
        self
    }

    /// Takes what the API tells of pods and what they are made of.
    pub(super) fn handle_change(&mut self, change: Change) {
        let about = match &change {
            Change::Applied(object) | Change::Deleted(object) => Some(object.reference.clone()),
            Change::Began(_) | Change::Listed(_) => None,
        };
        let listed = matches!(change, Change::Listed(_));
        if matches!(change, Change::Listed(PODS)) {
            self.nodes.handle_pods_listed();
        }
        self.placement.handle_change(change);
        if let Some(reference) = about {
            self.kept.handle_change(&reference, &self.placement);
            self.want_tolerations(&reference);
        }
        if listed {
            self.kept.handle_listed(&self.placement);
        }
    }

    /// Takes what a node reports.
    pub(super) fn handle_report(&mut self, from: FromNode<Delivered<Report>>, now: Instant) {
        let FromNode { node, mut message } = from;
        if let Report::Pod(report) = &mut message.message
            && let Some((pod, _)) = self.placement.root(&report.reference)
            && pod.uid == report.uid
        {
            // The names that are here already, and not a copy for as long as the report waits.
            (report.reference, report.uid) = (pod.reference.clone(), pod.uid.clone());
        }
        let session = self.sessions.get_mut(&node).filter(|session| !session.online);
        if session.as_ref().is_some_and(|session| session.lost) {
            // Another cloud has the node, and is told of everything that is not acknowledged here.
            return;
        }
        match (&message.message, session) {
            (Report::Node(_), Some(session)) => session.held = Some(Box::new(Reported::new(message))),
            (Report::Node(_), None) | (Report::Pod(_) | Report::Mirror(_), _) => {
                let key = (node, message.message.key());
                self.reports.put(key, Wanted::Report(Box::new(Reported::new(message))), now);
            }
            (Report::Device(report), _) => {
                tracing::warn!(%node, device = %report.device, "a device report came to EdgeController");
            }
        }
    }

    /// Takes what became of a node's session, at the time `wall`.
    pub(super) fn handle_session(&mut self, from: FromNode<SessionState>, now: Instant, wall: Timestamp) {
        let FromNode { node, message } = from;
        let key = (node.clone(), ReportKey::Node);
        let waiting = self.reports.withdraw(&key);
        let session = self.sessions.entry(node.clone()).or_insert(Session {
            online: false,
            lost: false,
            held: None,
            taken: None,
            changed: false,
            clock: None,
        });
        match message {
            SessionState::Online => {
                // Of an earlier session, another cloud may have had newer.
                (session.online, session.lost, session.taken, session.clock) = (true, false, None, None);
                self.leaving.withdraw(&node);
                self.elsewhere.remove(&node);
                let held = session.held.take().map(Wanted::Report);
                // What an earlier session has left is said again, if it still holds.
                self.withdraw_reports(&node);
                let waiting = waiting.filter(|wanted| matches!(wanted, Wanted::Report(_)));
                if let Some(wanted) = waiting.or(held) {
                    self.reports.put(key, wanted, now);
                }
                self.forget_told(&node);
                self.judge(&node);
                // At once, however lately it was renewed: another cloud may have had the node since.
                self.leases.put_now(node, (), now);
            }
            SessionState::Offline if session.lost => {}
            SessionState::Offline => {
                session.online = false;
                session.taken = None;
                session.clock = None;
                if let Some(Wanted::Report(report)) = waiting {
                    session.held = Some(report);
                }
                self.leases.withdraw(&node);
                self.leaving.put_at(node, wall, now + self.away_grace, now);
            }
        }
    }

    fn withdraw_reports(&mut self, node: &NodeName) {
        // It is the first of a node's keys.
        self.reports.withdraw_while((node.clone(), ReportKey::Node), |(of, _)| of == node);
    }

    /// Takes how far a node's clock is off; the Node is told again if that changes what it says.
    pub(super) fn handle_clock(&mut self, from: &FromNode<ClockOffset>, now: Instant) {
        let Some(session) = self.sessions.get_mut(&from.node).filter(|session| session.online) else {
            return;
        };
        let before = session.clock.replace(from.message);
        let says = |offset| self.bounds.clock(offset);
        let key = (from.node.clone(), ReportKey::Node);
        // A report that is on its way says it, or the renewal of the Lease does.
        if before.map(says) != Some(says(from.message))
            && session.taken.is_some()
            && !self.reports.is_waiting(&key)
        {
            self.reports.put(key, Wanted::Again, now);
        }
    }

    pub(super) fn clock_of(&self, node: &NodeName) -> Option<ClockOffset> {
        self.sessions.get(node).and_then(|session| session.clock)
    }

    /// Takes that another cloud has a newer session of the node: nothing of it is written or acknowledged here any more. The
    /// end of the session here, which is still to come, says nothing about the node.
    pub(super) fn handle_lost(&mut self, node: &NodeName) {
        self.leases.withdraw(node);
        self.leases.succeeded(node);
        self.withdraw_reports(node);
        if let Some(session) = self.sessions.get_mut(node) {
            *session =
                Session { online: false, lost: true, held: None, taken: None, changed: false, clock: None };
        }
    }

    /// Takes that a renewal was for a session that has ended. If the node has another, its Lease is renewed at once.
    pub(super) fn handle_superseded(&mut self, node: &NodeName) {
        self.leases.succeeded(node);
    }

    /// Takes the names of all edge nodes: those that have had no session here are away since `since`, unless another
    /// cloud has them, which is looked up before that is written.
    pub(super) fn handle_edge_nodes(&mut self, nodes: Vec<NodeName>, since: Timestamp, now: Instant) {
        for node in nodes {
            if self.sessions.get(&node).is_none_or(|session| session.lost) {
                self.reports.put((node, ReportKey::Node), Wanted::Away { since }, now);
            }
        }
    }

    /// Takes what became of a [`Job`].
    pub(super) fn handle_written(&mut self, key: WriteKey, wanted: Wanted, written: Written, now: Instant) {
        let outcome = match written {
            Written::Tried(outcome) => outcome,
            Written::Elsewhere(version) => return self.handle_elsewhere(key, &wanted, version, now),
        };
        match outcome {
            Outcome::Done => {
                if matches!(wanted, Wanted::Away { .. }) {
                    self.elsewhere.remove(&key.0);
                }
                if key.1 == ReportKey::Node && self.is_online(&key.0) && self.leases.has_failed(&key.0) {
                    // The Lease of a new Node, to which it belongs. Others find the node by it.
                    self.leases.put_now(key.0.clone(), (), now);
                }
                let delivery = wanted.delivery();
                self.keep(&key.0, wanted);
                self.settle(key, delivery);
            }
            Outcome::Refused(why) => {
                tracing::warn!(node = %key.0, what = ?key.1, %why, "the API refuses what the edge reports");
                self.settle(key, wanted.delivery());
            }
            Outcome::Retry(why) => {
                let outdated = matches!(wanted, Wanted::Away { .. }) && self.is_online(&key.0)
                    || self.sessions.get(&key.0).is_some_and(|session| session.lost);
                if outdated {
                    self.reports.succeeded(&key);
                } else {
                    self.prefer(&key, &wanted, now);
                    let failures = self.reports.failed(&key, wanted, now);
                    let (node, what) = key;
                    if failures == WORTH_A_WARNING {
                        tracing::warn!(%node, ?what, %why, "what the edge reports cannot be written to the API");
                    } else {
                        tracing::debug!(%node, ?what, %why, "a write to the API will be tried again");
                    }
                }
            }
        }
    }

    /// Takes that nothing was written, because another cloud has the node. One that lives renews the Lease: if its version is
    /// the same for as long as it holds, the node is away all the same.
    fn handle_elsewhere(&mut self, key: WriteKey, wanted: &Wanted, version: String, now: Instant) {
        tracing::debug!(node = %key.0, what = ?key.1, "the node has its session with another cloud");
        self.reports.succeeded(&key);
        let (node, _) = key;
        let Wanted::Away { since } = *wanted else { return };
        if self.is_online(&node) {
            return;
        }
        let seen = self.elsewhere.get(&node);
        let lives = seen.is_some_and(|(before, _)| *before != version);
        let first = seen.filter(|_| !lives).map_or(now, |(_, first)| *first);
        self.elsewhere.insert(node.clone(), (version, first));
        if !lives {
            self.leaving.put_at(node, since, first + self.lease_duration, now);
        }
    }

    /// Takes what became of a renewal.
    ///
    /// Whatever became of it, the node's state is told again: a Lease cannot be created while its Node is missing.
    pub(super) fn handle_renewed(&mut self, node: NodeName, outcome: Outcome, now: Instant) {
        self.tell_again(&node, now);
        match outcome {
            Outcome::Done => self.renew_again(node, now),
            Outcome::Refused(why) => {
                tracing::warn!(%node, %why, "the API refuses the node's lease");
                self.renew_again(node, now);
            }
            Outcome::Retry(why) if self.is_online(&node) => {
                if self.leases.failed(&node, (), now) == WORTH_A_WARNING {
                    tracing::warn!(%node, %why, "the node's lease cannot be renewed");
                } else {
                    tracing::debug!(%node, %why, "the node's lease will be tried again");
                }
            }
            Outcome::Retry(_) => self.leases.succeeded(&node),
        }
    }

    /// What to send next.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.placement.poll_output().map(Output::Downstream).or_else(|| self.outputs.pop_front())
    }

    /// What to write next, if it may be written at once.
    pub(super) fn poll_write(&mut self, now: Instant) -> Option<Job> {
        while let Some((node, since)) = self.leaving.poll_write(now) {
            self.leaving.succeeded(&node);
            self.reports.put((node, ReportKey::Node), Wanted::Away { since }, now);
        }
        // Before everything is listed, a pod that is not known may exist all the same.
        while self.is_complete() && !self.nodes.lists() {
            let (key, wanted) = self.reports.poll_write(now)?;
            match self.decide(&key, &wanted, now) {
                Ok(write) => {
                    let is_offline = !self.is_online(&key.0);
                    return Some(Job { key, wanted, write, is_offline });
                }
                Err(why) => {
                    tracing::debug!(node = %key.0, what = ?key.1, why, "a report is dropped");
                    self.settle(key, wanted.delivery());
                }
            }
        }
        None
    }

    /// Whose lease to renew next, if it may be done at once.
    pub(super) fn poll_renewal(&mut self, now: Instant) -> Option<NodeName> {
        self.leases.poll_write(now).map(|(node, ())| node)
    }

    /// When to ask [`poll_write`](Self::poll_write) and [`poll_renewal`](Self::poll_renewal) again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let writes = self.is_complete() && !self.nodes.lists();
        let reports = if writes { self.reports.poll_timeout() } else { None };
        let others = [
            self.leases.poll_timeout(),
            self.leaving.poll_timeout(),
            self.tolerations.poll_timeout(),
            self.fetches.poll_timeout(),
        ];
        others.into_iter().chain([reports]).flatten().min()
    }

    /// Since when the report, and the renewal of a Lease, that waits for longest is to be written.
    pub(super) fn oldest(&self) -> (Option<Instant>, Option<Instant>) {
        (self.reports.oldest(), self.leases.oldest())
    }

    /// Whether it is known what exists, and who is shut out.
    pub(super) fn is_complete(&self) -> bool {
        self.placement.is_complete() && self.nodes.are_listed()
    }

    /// All objects of a node, as far as known.
    pub(super) fn snapshot(&self, node: &NodeName) -> Vec<Object> {
        self.placement.snapshot(node)
    }

    /// Decides how to write what is wanted; `Err` says why it is not written at all.
    fn decide(&self, (node, what): &WriteKey, wanted: &Wanted, now: Instant) -> Result<Write, &'static str> {
        let report = match wanted {
            Wanted::Away { since } => {
                let held = self.elsewhere.get(node);
                let stale = held.filter(|(_, first)| now.duration_since(*first) >= self.lease_duration);
                return Ok(Write::Away { since: *since, stale: stale.map(|(version, _)| version.clone()) });
            }
            Wanted::Again => return self.decide_again(node, what),
            Wanted::Report(reported) => reported.report(),
        };
        match &report {
            Report::Node(report) => {
                let Some(name) = status::name_of(&report.json) else {
                    self.denials.note(node, "a report of a node", Denial::Unreadable);
                    return Err(Denial::Unreadable.reason());
                };
                self.authorize(node, Action::WriteNode(&name), &name)?;
                Ok(Write::Node(report.clone(), self.clock_of(node)))
            }
            Report::Pod(report) => self.decide_pod(node, report),
            Report::Mirror(report) => {
                self.authorize(node, Action::Mirror(report), &report.reference)?;
                Ok(Write::Mirror(mirror::read(report)))
            }
            Report::Device(_) => Err("devices are DeviceController's"),
        }
    }

    fn decide_pod(&self, node: &NodeName, report: &PodReport) -> Result<Write, &'static str> {
        let action = Action::WritePod { pod: &report.reference, uid: &report.uid };
        self.authorize(node, action, &report.reference)?;
        let (pod, _) = self.placement.root(&report.reference).ok_or("the pod does not exist")?;
        Ok(match &report.state {
            PodState::Status(status) => {
                Write::PodStatus { pod: pod.object(), report: report.clone(), status: status.clone() }
            }
            PodState::Gone => Write::PodGone {
                pod: report.reference.clone(),
                uid: report.uid.clone(),
                known_deleting: is_deleting(&pod.json()),
            },
        })
    }

    /// Whether the node may. One that is shut out may nothing, also until its session has ended.
    fn judged(&self, node: &NodeName, action: Action<'_>) -> Result<(), Denial> {
        if self.is_shut_out(node) { Err(Denial::ShutOut) } else { allows(node, action, &self.placement) }
    }

    /// Whether the node may; what it may not is counted.
    fn authorize(
        &self,
        node: &NodeName,
        action: Action<'_>,
        what: &impl std::fmt::Display,
    ) -> Result<(), &'static str> {
        self.judged(node, action).map_err(|denial| {
            self.denials.note(node, what, denial);
            denial.reason()
        })
    }

    fn settle(&mut self, key: WriteKey, delivery: Option<Delivery>) {
        self.reports.succeeded(&key);
        if let Some(delivery) = delivery {
            let (node, key) = key;
            self.outputs.push_back(Output::Acked(ToNode { node, message: Acked { key, delivery } }));
        }
    }

    fn renew_again(&mut self, node: NodeName, now: Instant) {
        self.leases.succeeded(&node);
        if self.is_online(&node) {
            self.leases.put_at(node, (), now + self.lease_interval, now);
        }
    }

    fn is_online(&self, node: &NodeName) -> bool {
        self.sessions.get(node).is_some_and(|session| session.online)
    }
}

/// Whether the API was asked to delete the object of this text.
pub(super) fn is_deleting(json: &[u8]) -> bool {
    let json: Result<Value, _> = serde_json::from_slice(json);
    json.is_ok_and(|json| json["metadata"]["deletionTimestamp"].is_string())
}
