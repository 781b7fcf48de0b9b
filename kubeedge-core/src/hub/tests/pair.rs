use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::Random;
use crate::{
    hub::{EdgeConfig, EdgeLink, EdgeOutput, Frame, NodeConfig, NodeLink, NodeOutput},
    id::NodeName,
    message::{
        Acked, Answer, Connectivity, Delivered, Inventory, Lane, Object, ObjectEvent, ObjectRef, Report,
        ReportKey, Response, Upload, UploadId,
    },
    wire::{Codec, Native},
};

/// How the network, and the parts around the link, behave.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// Frames that vanish, of a thousand.
    pub(super) lost: u64,
    /// Frames that come twice, of a thousand.
    pub(super) twice: u64,
    /// How long every frame takes at least beyond five milliseconds, in milliseconds.
    pub(super) distance_ms: u64,
    /// The most that a frame takes beyond the least, in milliseconds. Without reordering, lanes stay in order.
    pub(super) jitter_ms: u64,
    pub(super) reorder: bool,
    /// Nothing comes through, and nobody can connect.
    pub(super) partition: bool,
    /// The most that a part needs to make something durable, in milliseconds.
    pub(super) storing_ms: u64,
}

/// Both ends of the link with a model of what is around each of them, a virtual clock, and a simulated network.
///
/// The edge's model is a store that survives restarts; the cloud's is an API server that does.
#[derive(Debug)]
pub(super) struct Pair {
    start: Instant,
    now: Instant,
    random: Random,
    pub(super) faults: Faults,
    pub(super) edge: EdgeLink,
    pub(super) cloud: Option<NodeLink>,
    edge_config: EdgeConfig,
    node_config: NodeConfig,
    /// The connection that each side believes to have.
    edge_connection: Option<u64>,
    cloud_connection: Option<u64>,
    connections: u64,
    /// Dials up to this one ended with the edge that made them.
    forgotten: u64,
    sessions: u64,
    events: BTreeMap<(Instant, u64), Event>,
    events_made: u64,
    lanes: BTreeMap<(u64, bool, Lane), Instant>,
    pub(super) stored: BTreeMap<ObjectRef, Object>,
    pub(super) api: BTreeMap<ObjectRef, Object>,
    pub(super) api_reports: BTreeMap<ReportKey, Report>,
    pub(super) api_uploads: Vec<Upload>,
    /// What the edge was told that the cloud has.
    pub(super) uploaded: BTreeSet<UploadId>,
    /// Pipes to the parts: the newest message of each key.
    objects: BTreeMap<ObjectRef, Delivered<ObjectEvent>>,
    reports: BTreeMap<ReportKey, Delivered<Report>>,
    downstream: BTreeMap<ObjectRef, ObjectEvent>,
    /// Deliveries that happened, for tests that count.
    pub(super) delivered: Vec<ObjectEvent>,
    pub(super) delivered_reports: Vec<Report>,
    pub(super) connectivity: Vec<(Duration, Connectivity)>,
    pub(super) answers: Vec<(u64, Answer)>,
    pub(super) asked: Vec<u64>,
    pub(super) queried: Vec<u64>,
    pub(super) responses: Vec<(u64, Response)>,
    pub(super) closed: Vec<String>,
    pub(super) undeliverable: Vec<String>,
    /// Frames sent by both sides, with what they weighed.
    pub(super) sent: Vec<(Duration, &'static str, usize)>,
    /// While set, parts store nothing of this key.
    pub(super) stuck: BTreeSet<ObjectRef>,
    pub(super) cloud_down: bool,
    /// While false, the controllers do not answer with a snapshot.
    pub(super) snapshots: bool,
    /// While false, events are not taken: the cloud cannot write them to the API.
    pub(super) writes_events: bool,
    /// Objects the stale cache of a cloud that has just started has in place of the API's.
    pub(super) stale: Option<Vec<Object>>,
}

#[derive(Debug)]
enum Event {
    Connected { connection: u64 },
    DialFailed { connection: u64 },
    ToEdge { connection: u64, lane: Lane, bytes: Bytes },
    ToCloud { connection: u64, lane: Lane, bytes: Bytes },
    EdgeBroken { connection: u64 },
    CloudBroken { connection: u64 },
    Stored { reference: ObjectRef },
    ReportWritten { key: ReportKey },
    Snapshot { session: u64, objects: Option<Vec<Object>> },
    Downstream { reference: ObjectRef },
    Inventory { connection: u64 },
}

impl Pair {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(seed, EdgeConfig::default(), NodeConfig::default())
    }

    pub(super) fn with(seed: u64, edge_config: EdgeConfig, node_config: NodeConfig) -> Self {
        let start = Instant::now();
        let edge = EdgeLink::new(edge_config.clone(), node(), seed, start);
        Self {
            start,
            now: start,
            random: Random(seed),
            faults: Faults::default(),
            edge,
            cloud: None,
            edge_config,
            node_config,
            edge_connection: None,
            cloud_connection: None,
            connections: 0,
            forgotten: 0,
            sessions: 0,
            events: BTreeMap::new(),
            events_made: 0,
            lanes: BTreeMap::new(),
            stored: BTreeMap::new(),
            api: BTreeMap::new(),
            api_reports: BTreeMap::new(),
            api_uploads: Vec::new(),
            uploaded: BTreeSet::new(),
            objects: BTreeMap::new(),
            reports: BTreeMap::new(),
            downstream: BTreeMap::new(),
            delivered: Vec::new(),
            delivered_reports: Vec::new(),
            connectivity: Vec::new(),
            answers: Vec::new(),
            asked: Vec::new(),
            queried: Vec::new(),
            responses: Vec::new(),
            closed: Vec::new(),
            undeliverable: Vec::new(),
            sent: Vec::new(),
            stuck: BTreeSet::new(),
            cloud_down: false,
            snapshots: true,
            writes_events: true,
            stale: None,
        }
    }

    /// How many items of the cloud are not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.cloud.as_ref().map_or(0, |cloud| cloud.waiting().iter().map(|(_, waiting, _)| waiting).sum())
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub(super) fn state(&self) -> Connectivity {
        self.connectivity.last().map_or(Connectivity::Offline, |(_, state)| *state)
    }

    // ---------------------------------------------------------------------------------- what a test does

    /// The API has an object, like this.
    pub(super) fn apply(&mut self, object: Object) {
        self.api.insert(object.reference.clone(), object.clone());
        self.change(ObjectEvent::Applied(object));
    }

    /// The API has an object no longer.
    pub(super) fn delete(&mut self, reference: &ObjectRef) {
        if let Some(gone) = self.api.remove(reference) {
            self.change(ObjectEvent::Deleted { reference: gone.reference, uid: gone.uid });
        }
    }

    fn change(&mut self, event: ObjectEvent) {
        let reference = event.key().clone();
        self.downstream.insert(reference.clone(), event);
        self.after_storing(Event::Downstream { reference });
        self.pump();
    }

    pub(super) fn report(&mut self, report: Report) {
        self.edge.handle_report(report);
        self.pump();
    }

    /// The edge loses power: what is stored stays, all else is gone.
    pub(super) fn crash_edge(&mut self) {
        let seed = self.random.next();
        self.edge = EdgeLink::new(self.edge_config.clone(), node(), seed, self.now);
        self.objects.clear();
        self.forgotten = self.connections;
        if let Some(connection) = self.edge_connection.take() {
            self.tell(Event::CloudBroken { connection });
        }
        self.connectivity.push((self.elapsed(), Connectivity::Offline));
    }

    /// The cloud ends without a word: what the API has stays, all else is gone.
    pub(super) fn crash_cloud(&mut self) {
        self.cloud = None;
        self.reports.clear();
        self.downstream.clear();
        if let Some(connection) = self.cloud_connection.take() {
            self.tell(Event::EdgeBroken { connection });
        }
    }

    /// Both sides see their connection break.
    pub(super) fn cut(&mut self) {
        if let Some(connection) = self.edge_connection {
            self.later(Event::EdgeBroken { connection });
        }
        if let Some(connection) = self.cloud_connection {
            self.later(Event::CloudBroken { connection });
        }
    }

    /// Lets so much time pass.
    pub(super) fn run(&mut self, time: Duration) {
        self.run_until(self.now + time, |_| false);
    }

    /// Lets time pass until `done`, at most so much; says whether it came to that.
    pub(super) fn run_while_not(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now + time;
        self.run_until(end, done)
    }

    fn run_until(&mut self, end: Instant, done: impl Fn(&Self) -> bool) -> bool {
        self.pump();
        let mut turns = 0;
        while !done(self) {
            turns += 1;
            assert!(turns < 200_000, "time does not pass: {self:#?}");
            let event = self.events.keys().next().map(|(at, _)| *at);
            let edge = self.edge.poll_timeout();
            let cloud = self.cloud.as_ref().and_then(NodeLink::poll_timeout);
            let Some(next) = [event, edge, cloud].into_iter().flatten().min().filter(|at| *at <= end) else {
                self.now = end;
                return done(self);
            };
            self.now = self.now.max(next);
            if edge.is_some_and(|at| at <= self.now) {
                self.edge.handle_timeout(self.now);
            }
            if cloud.is_some_and(|at| at <= self.now)
                && let Some(cloud) = &mut self.cloud
            {
                cloud.handle_timeout(self.now);
            }
            while let Some(entry) = self.events.first_entry() {
                if entry.key().0 > self.now {
                    break;
                }
                let event = entry.remove();
                self.handle(event);
            }
            self.pump();
        }
        true
    }

    // ------------------------------------------------------------------------------------- what happens

    fn later(&mut self, event: Event) {
        let delay = Duration::from_millis(1 + self.random.below(self.faults.jitter_ms + 1));
        self.at(self.now + delay, event);
    }

    /// The peer learns that its connection is closed, behind the last words, unless nothing comes through.
    fn tell(&mut self, event: Event) {
        if !self.faults.partition {
            self.at(self.now + Duration::from_millis(500), event);
        }
    }

    fn after_storing(&mut self, event: Event) {
        let delay = Duration::from_millis(self.random.below(self.faults.storing_ms + 1));
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.events_made += 1;
        self.events.insert((at, self.events_made), event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected { connection } if connection > self.forgotten => {
                self.handle_connected(connection)
            }
            Event::DialFailed { connection } if connection > self.forgotten => {
                self.edge.handle_disconnected("nobody answers", self.now);
            }
            Event::Connected { .. } | Event::DialFailed { .. } => {}
            Event::ToEdge { connection, lane, bytes } => {
                if self.edge_connection == Some(connection) {
                    let frame = Native.decode(lane, &bytes).unwrap();
                    self.edge.handle_frame(frame, self.now);
                }
            }
            Event::ToCloud { connection, lane, bytes } => {
                if self.cloud_connection == Some(connection)
                    && let Some(cloud) = &mut self.cloud
                {
                    let frame = Native.decode(lane, &bytes).unwrap();
                    cloud.handle_frame(frame, self.now);
                }
            }
            Event::EdgeBroken { connection } => {
                if self.edge_connection.take_if(|current| *current == connection).is_some() {
                    self.edge.handle_disconnected("broken", self.now);
                }
            }
            Event::CloudBroken { connection } => {
                if self.cloud_connection.take_if(|current| *current == connection).is_some()
                    && let Some(mut cloud) = self.cloud.take()
                {
                    cloud.handle_disconnected("broken");
                    self.drain_cloud(&mut cloud);
                }
            }
            Event::Stored { reference } => self.handle_stored(&reference),
            Event::ReportWritten { key } => self.handle_report_written(&key),
            Event::Snapshot { session, objects } => {
                // The controller reads when it is asked, and its answer arrives later.
                let read = self.stale.clone().unwrap_or_else(|| self.api.values().cloned().collect());
                match objects {
                    None => self.after_storing(Event::Snapshot { session, objects: Some(read) }),
                    Some(objects) => {
                        if let Some(cloud) = self.cloud.as_mut().filter(|cloud| cloud.session() == session) {
                            cloud.handle_snapshot(objects);
                        }
                    }
                }
            }
            Event::Downstream { reference } => {
                if let Some(event) = self.downstream.remove(&reference)
                    && let Some(cloud) = &mut self.cloud
                {
                    cloud.handle_downstream(event);
                }
            }
            Event::Inventory { connection } => {
                if self.edge_connection == Some(connection) {
                    let inventory: Inventory = self.stored.values().map(Object::entry).collect();
                    self.edge.handle_inventory(&inventory, self.now);
                }
            }
        }
    }

    fn handle_connected(&mut self, connection: u64) {
        if self.cloud_down || self.faults.partition {
            return self.edge.handle_disconnected("nobody answers", self.now);
        }
        if let Some(mut older) = self.cloud.take() {
            older.handle_close("replaced");
            self.drain_cloud(&mut older);
        }
        self.edge_connection = Some(connection);
        self.cloud_connection = Some(connection);
        self.sessions += 1;
        self.cloud = Some(NodeLink::new(self.node_config.clone(), node(), self.sessions, self.now));
        self.edge.handle_connected(self.now);
    }

    /// MetaManager in short: a deletion is of one UID, and nothing may go back.
    fn handle_stored(&mut self, reference: &ObjectRef) {
        if self.stuck.contains(reference) {
            let reference = reference.clone();
            return self.at(self.now + Duration::from_millis(100), Event::Stored { reference });
        }
        let Some(Delivered { delivery, message }) = self.objects.remove(reference) else { return };
        match message {
            ObjectEvent::Applied(object) => {
                if let Some(held) = self.stored.get(reference)
                    && self.stale.is_none()
                {
                    let (newer, older) = (object.resource_version, held.resource_version);
                    assert!(newer >= older, "{reference} went back from {older} to {newer}");
                }
                self.stored.insert(reference.clone(), object);
            }
            ObjectEvent::Deleted { uid, .. } => {
                if self.stored.get(reference).is_some_and(|held| held.uid == uid) {
                    self.stored.remove(reference);
                }
            }
        }
        self.edge.handle_acked(&Acked { key: reference.clone(), delivery }, self.now);
    }

    fn handle_report_written(&mut self, key: &ReportKey) {
        let Some(Delivered { delivery, message }) = self.reports.remove(key) else { return };
        let (number, before) = (number(&message), self.api_reports.get(key).map_or(0, self::number));
        assert!(number >= before, "report {key:?} went back from {before} to {number}");
        self.api_reports.insert(key.clone(), message);
        if let Some(cloud) = &mut self.cloud {
            cloud.handle_acked(&Acked { key: key.clone(), delivery });
        }
    }

    // ------------------------------------------------------------------------------- what the drivers do

    pub(super) fn pump(&mut self) {
        loop {
            let mut idle = true;
            while let Some(output) = self.edge.poll_output() {
                idle = false;
                self.perform_edge(output);
            }
            if let Some(mut cloud) = self.cloud.take() {
                idle &= !self.drain_cloud(&mut cloud);
                if self.cloud_connection.is_some() {
                    self.cloud = Some(cloud);
                }
            }
            idle &= !self.transmit();
            if idle {
                return;
            }
        }
    }

    fn perform_edge(&mut self, output: EdgeOutput) {
        match output {
            EdgeOutput::Dial => {
                self.connections += 1;
                let connection = self.connections;
                match self.faults.partition || self.cloud_down {
                    true => self.at(self.now + Duration::from_millis(500), Event::DialFailed { connection }),
                    false => self.later(Event::Connected { connection }),
                }
            }
            EdgeOutput::NeedInventory => {
                let connection = self.edge_connection.expect("there is a connection");
                self.after_storing(Event::Inventory { connection });
            }
            EdgeOutput::Deliver(delivered) => {
                let reference = delivered.message.key().clone();
                self.delivered.push(delivered.message.clone());
                self.objects.insert(reference.clone(), delivered);
                self.after_storing(Event::Stored { reference });
            }
            EdgeOutput::Answered { id, answer } => self.answers.push((id, answer)),
            EdgeOutput::Ask { id, .. } => self.asked.push(id),
            EdgeOutput::Connectivity(state) => self.connectivity.push((self.elapsed(), state)),
            EdgeOutput::Welcomed { .. } => {}
            EdgeOutput::Closed { reason, .. } => {
                self.closed.push(reason);
                while let Some(frame) = self.edge.poll_transmit(Lane::Heartbeat, self.now) {
                    self.carry(true, &frame);
                }
                if let Some(connection) = self.edge_connection.take() {
                    self.tell(Event::CloudBroken { connection });
                }
            }
            EdgeOutput::Uploaded(id) => {
                self.uploaded.insert(id);
            }
            EdgeOutput::Undeliverable { what } => self.undeliverable.push(what),
        }
    }

    fn drain_cloud(&mut self, cloud: &mut NodeLink) -> bool {
        let mut any = false;
        while let Some(output) = cloud.poll_output() {
            any = true;
            match output {
                NodeOutput::NeedSnapshot => {
                    if self.snapshots {
                        self.after_storing(Event::Snapshot { session: cloud.session(), objects: None });
                    }
                }
                NodeOutput::Deliver(delivered) => {
                    let key = delivered.message.key();
                    self.delivered_reports.push(delivered.message.clone());
                    self.reports.insert(key.clone(), delivered);
                    self.after_storing(Event::ReportWritten { key });
                }
                NodeOutput::Upload(delivered) => {
                    if self.writes_events || matches!(delivered.message, Upload::Publish(_)) {
                        cloud.handle_taken(delivered.delivery);
                    }
                    self.api_uploads.push(delivered.message);
                }
                NodeOutput::Query { id, .. } => self.queried.push(id),
                NodeOutput::Responded { id, response } => self.responses.push((id, response)),
                NodeOutput::Synchronized => {}
                NodeOutput::Undeliverable { what } => self.undeliverable.push(what),
                NodeOutput::Closed { reason } => {
                    self.closed.push(reason);
                    while let Some(frame) = cloud.poll_transmit(Lane::Heartbeat, self.now) {
                        self.carry(false, &frame);
                    }
                    if let Some(connection) = self.cloud_connection.take() {
                        self.tell(Event::EdgeBroken { connection });
                    }
                }
            }
        }
        any
    }

    fn transmit(&mut self) -> bool {
        let mut any = false;
        for lane in Lane::ALL {
            if self.edge_connection.is_some() {
                while let Some(frame) = self.edge.poll_transmit(lane, self.now) {
                    any = true;
                    self.carry(true, &frame);
                }
            }
            let Some(mut cloud) = self.cloud.take() else { continue };
            while let Some(frame) = cloud.poll_transmit(lane, self.now) {
                any = true;
                if Native.encode(&frame).len() > lane.frame_limit() {
                    cloud.handle_too_long(&frame);
                } else {
                    self.carry(false, &frame);
                }
            }
            self.cloud = Some(cloud);
        }
        any
    }

    /// Puts a frame on its way, or not.
    fn carry(&mut self, from_edge: bool, frame: &Frame) {
        let connection = if from_edge { self.edge_connection } else { self.cloud_connection };
        let Some(connection) = connection else { return };
        let (lane, bytes) = (frame.lane(), Native.encode(frame));
        assert!(bytes.len() <= lane.frame_limit(), "{} of {} bytes", frame.name(), bytes.len());
        self.sent.push((self.elapsed(), frame.name(), bytes.len()));
        if self.faults.partition || self.random.chance(self.faults.lost) {
            return;
        }
        let copies = if self.random.chance(self.faults.twice) { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = self.random.below(self.faults.jitter_ms + 1);
            let mut at = self.now + Duration::from_millis(5 + self.faults.distance_ms + jitter);
            let last = self.lanes.entry((connection, from_edge, lane)).or_insert(at);
            if !self.faults.reorder {
                at = at.max(*last);
            }
            *last = at.max(*last);
            let bytes = bytes.clone();
            let event = match from_edge {
                true => Event::ToCloud { connection, lane, bytes },
                false => Event::ToEdge { connection, lane, bytes },
            };
            self.at(at, event);
        }
    }
}

pub(super) fn node() -> NodeName {
    "edge-1".parse().unwrap()
}

/// The number that the fixtures put into a report.
pub(super) fn number(report: &Report) -> u64 {
    use crate::message::PodState;
    let text = |json: &Bytes| std::str::from_utf8(json).unwrap().parse().unwrap();
    match report {
        Report::Node(node) => text(&node.json),
        Report::Pod(pod) => match &pod.state {
            PodState::Status(json) => text(json),
            PodState::Gone => u64::MAX,
        },
        Report::Mirror(mirror) => mirror.pod.as_ref().map_or(u64::MAX, text),
        Report::Device(device) => device.state.as_ref().unwrap().parse().unwrap(),
    }
}
