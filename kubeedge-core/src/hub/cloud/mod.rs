use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    Frame, NodeConfig, PROTOCOL,
    calls::Calls,
    incoming::Incoming,
    outgoing::Outgoing,
    timers::{Keepalive, Repeat, Side},
};
use crate::{
    id::{NodeName, Uid},
    message::{
        Acked, Answer, Delivered, Delivery, Lane, ObjectEvent, ObjectRef, Query, Report, ReportKey, Request,
        Response, Snapshot, Upload,
    },
};

mod difference;
mod frames;
mod offence;
mod transmit;

use difference::{ENTRY, Wanted};
pub use offence::Offence;

/// The cloud's end of the link: one session with one node, whose identity its connection has proven.
///
/// It compares what the node holds with what the cloud has for it and sends the difference, then carries every
/// change. It ends with its connection, and keeps nothing: the next session compares again.
#[derive(Debug)]
pub struct NodeLink {
    config: NodeConfig,
    peer: NodeName,
    session: u64,
    phase: Phase,
    outputs: VecDeque<NodeOutput>,
    keepalive: Keepalive,
    outgoing: [Outgoing<ObjectRef, ObjectEvent>; OBJECT_LANES.len()],
    incoming: [Incoming<ReportKey>; REPORT_LANES.len()],
    /// Each upload is a key of its own: they are taken in any order.
    uploads: Incoming<u64>,
    /// As `uploads`, on a lane of their own: they wait for the API, for which messages need not wait.
    events: Incoming<u64>,
    delivered: u64,
    requests: Calls<()>,
    queries: Calls<u64>,
    /// Requests and answers on their way; bounded by how many of them may be open.
    questions: VecDeque<Frame>,
    saying: Saying,
    offence: Option<Offence>,
    /// What the node holds of objects of which the snapshot did not know how they are.
    left_open: BTreeMap<ObjectRef, Uid>,
}

/// What the cloud's end waits for.
#[derive(Debug)]
enum Phase {
    /// The edge says hello, at latest at `until`.
    Expecting { until: Instant },
    /// The session is open, and this far.
    Open { nonce: u64, digest: [u8; 32], objects: u32, tunnels: bool, sync: Sync },
    /// Nothing: the session is over.
    Over,
}

/// How far the node is in sync.
#[derive(Debug)]
enum Sync {
    /// The controllers say what they have for the node. Changes that come meanwhile are in `wanted`.
    Snapshot { wanted: Wanted },
    /// The edge says what it holds.
    Inventory { wanted: Wanted, held: difference::Held, repeat: Repeat },
    /// The edge stores these, which it lacked.
    Difference { missing: BTreeSet<ObjectRef> },
    /// The edge answers that it knows that it is in sync.
    Telling { repeat: Repeat },
    /// Nothing: changes go out as they come.
    Done,
}

/// Session frames that are due on lane heartbeat.
#[derive(Debug, Default)]
struct Saying {
    last_words: Option<Frame>,
    welcome: bool,
    pong: Option<u64>,
}

/// What the cloud's end asks of its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeOutput {
    /// The session is open. Ask the controllers what they have for the node and hand it to
    /// [`NodeLink::handle_snapshot`]. From this moment on, every change must reach [`NodeLink::handle_downstream`].
    NeedSnapshot,
    /// Give this to a controller; it echoes the delivery to [`NodeLink::handle_acked`] once the API has it.
    Deliver(Delivered<Report>),
    /// Pass this on, and say [`NodeLink::handle_taken`] with the delivery when it has been taken.
    Upload(Delivered<Upload>),
    /// The edge asks; the answer goes to [`NodeLink::handle_answer`].
    Query {
        /// The query's number.
        id: u64,
        /// The question.
        query: Query,
    },
    /// A request has its answer, or failed.
    Responded {
        /// The number that [`NodeLink::handle_request`] gave.
        id: u64,
        /// The answer.
        response: Response,
    },
    /// The edge has stored all that the cloud had for it when the session began.
    Synchronized,
    /// An object cannot be carried and is given up.
    Undeliverable {
        /// What it is, for people.
        what: String,
    },
    /// The session is over. Send what [`NodeLink::poll_transmit`] still has for lane heartbeat, and close the connection.
    Closed {
        /// Why.
        reason: String,
    },
}

/// The lanes on which objects go.
const OBJECT_LANES: [Lane; 3] = [Lane::Pods, Lane::Config, Lane::Devices];
/// The lanes on which reports come.
const REPORT_LANES: [Lane; 2] = [Lane::Pods, Lane::Devices];

impl NodeLink {
    /// Creates the cloud's end of a session over a connection whose peer has proven to be `peer`.
    ///
    /// `session` marks the session's deliveries and must not have been used in this process before.
    pub fn new(config: NodeConfig, peer: NodeName, session: u64, now: Instant) -> Self {
        Self {
            phase: Phase::Expecting { until: now + config.hello_timeout },
            outputs: VecDeque::new(),
            keepalive: Keepalive::new(Side::Cloud, config.heartbeat, now),
            outgoing: OBJECT_LANES.map(|_| Outgoing::new(config.flow.clone())),
            incoming: REPORT_LANES.map(|_| Incoming::new()),
            uploads: Incoming::new(),
            events: Incoming::new(),
            delivered: 0,
            requests: Calls::new(config.calls_max),
            queries: Calls::new(config.calls_max),
            questions: VecDeque::new(),
            saying: Saying::default(),
            offence: None,
            left_open: BTreeMap::new(),
            config,
            peer,
            session,
        }
    }

    /// The node.
    pub fn peer(&self) -> &NodeName {
        &self.peer
    }

    /// The session's number.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// About how many bytes of memory this session takes beyond what an idle one does. Objects on their way are shared
    /// with the controllers, and only their names count.
    pub fn memory(&self) -> usize {
        let sync = match &self.phase {
            Phase::Expecting { .. } | Phase::Over => 0,
            Phase::Open { sync, .. } => match sync {
                Sync::Snapshot { wanted } => wanted.memory(),
                Sync::Inventory { wanted, held, .. } => wanted.memory() + held.memory(),
                Sync::Difference { missing } => missing.len() * ENTRY,
                Sync::Telling { .. } | Sync::Done => 0,
            },
        };
        let waiting: usize = self.outgoing.iter().map(Outgoing::len).sum();
        let questions: usize = self.questions.iter().map(Frame::question_weight).sum();
        sync + (waiting + self.left_open.len()) * ENTRY + questions + self.unacked()
    }

    /// How many items of each lane wait for the edge or are on their way, and when the one was first sent that was not
    /// acknowledged for longest.
    pub fn waiting(&self) -> [(Lane, usize, Option<Instant>); OBJECT_LANES.len()] {
        std::array::from_fn(|lane| {
            let outgoing = &self.outgoing[lane];
            (OBJECT_LANES[lane], outgoing.len(), outgoing.oldest())
        })
    }

    /// How many items were sent again, because nothing was heard of them.
    pub fn resends(&self) -> u64 {
        self.outgoing.iter().map(Outgoing::resends).sum()
    }

    fn unacked(&self) -> usize {
        let reports: usize = self.incoming.iter().map(Incoming::weight).sum();
        reports + self.uploads.weight() + self.events.weight()
    }

    /// Ends a session that has come to need more than it may.
    fn check_memory(&mut self) {
        let (memory, max) = (self.memory(), self.config.memory_max);
        if memory > max {
            let reason = format!("the session needs {memory} bytes of memory and may have {max}");
            self.handle_refuse(reason, self.config.refused_for);
        }
    }

    /// The controllers say what they have for the node.
    pub fn handle_snapshot(&mut self, snapshot: impl Into<Snapshot>) {
        let Phase::Open { digest, sync, .. } = &mut self.phase else { return };
        let Sync::Snapshot { wanted } = sync else { return };
        let mut wanted = std::mem::take(wanted);
        wanted.merge(snapshot.into());
        let repeat = Repeat::new(self.config.flow.retry_after);
        if wanted.digest() == *digest {
            self.outputs.push_back(NodeOutput::Synchronized);
            *sync = Sync::Telling { repeat };
        } else {
            *sync = Sync::Inventory { wanted, held: difference::Held::default(), repeat };
        }
        self.check_memory();
    }

    /// An object of the node has changed, or is no longer for it.
    pub fn handle_downstream(&mut self, event: ObjectEvent) {
        let Phase::Open { sync, .. } = &mut self.phase else { return };
        match sync {
            Sync::Snapshot { wanted } | Sync::Inventory { wanted, .. } => wanted.change(event),
            Sync::Difference { .. } | Sync::Telling { .. } | Sync::Done => self.settle(event),
        }
        self.check_memory();
    }

    /// Sends an event. What the snapshot has left open is settled by the first one about it.
    fn settle(&mut self, event: ObjectEvent) {
        let left = self.left_open.remove(event.key());
        match event {
            ObjectEvent::Deleted { reference, uid } if uid.as_str().is_empty() => {
                if let Some(uid) = left {
                    self.send(ObjectEvent::Deleted { reference, uid });
                }
            }
            ObjectEvent::Applied(_) | ObjectEvent::Deleted { .. } => self.send(event),
        }
    }

    /// A controller has brought a report to the API.
    pub fn handle_acked(&mut self, acked: &Acked<ReportKey>) {
        if acked.delivery.session == self.session
            && let Some(lane) = report_lane(acked.key.lane())
        {
            self.incoming[lane].handle_durable(&acked.key, acked.delivery.number);
        }
    }

    /// An upload has been taken.
    pub fn handle_taken(&mut self, delivery: Delivery) {
        if delivery.session == self.session {
            self.uploads.handle_durable(&delivery.number, delivery.number);
            self.events.handle_durable(&delivery.number, delivery.number);
        }
    }

    /// Asks the edge. Gives the number under which [`NodeOutput::Responded`] comes, which it always does.
    pub fn handle_request(&mut self, request: Request, deadline: Duration, now: Instant) -> u64 {
        let is_known = !matches!(request, Request::Tunnel(_));
        let (code, message) = match &self.phase {
            Phase::Open { tunnels, .. } if !(is_known || *tunnels) => {
                (501, "the node's edgecore knows no tunnels: it is older than this cloud")
            }
            Phase::Open { .. } => match self.requests.open((), deadline, now) {
                Some(id) => {
                    self.questions.push_back(Frame::Request { id, deadline, request });
                    return id;
                }
                None => (503, "the node works on too many requests already"),
            },
            Phase::Expecting { .. } | Phase::Over => (503, "the node has no session"),
        };
        let id = self.requests.skip();
        let response = Response::Failed { code, message: message.to_owned() };
        self.outputs.push_back(NodeOutput::Responded { id, response });
        id
    }

    /// A controller answers the edge's query.
    pub fn handle_answer(&mut self, id: u64, answer: Answer) {
        if let Some(theirs) = self.queries.close(id) {
            self.questions.push_back(Frame::Answer { id: theirs, answer });
        }
    }

    /// The frame that [`NodeLink::poll_transmit`] gave is longer than its lane allows: an object is replaced by a note
    /// that there is nothing, a question or answer by a failure.
    pub fn handle_too_long(&mut self, frame: &Frame) {
        match frame {
            Frame::Item(item) => {
                let Some(lane) = object_lane(item.lane) else { return };
                if let Some(key) = self.outgoing[lane].handle_too_long(item.seq) {
                    self.outputs.push_back(NodeOutput::Undeliverable { what: key.to_string() });
                }
            }
            Frame::Answer { id, .. } => {
                let answer = Answer::Refused("the answer is longer than a frame can be".to_owned());
                self.questions.push_front(Frame::Answer { id: *id, answer });
            }
            Frame::Request { id, .. } => {
                if self.requests.close(*id).is_some() {
                    let message = "the request is longer than a frame can be".to_owned();
                    let response = Response::Failed { code: 400, message };
                    self.outputs.push_back(NodeOutput::Responded { id: *id, response });
                }
            }
            Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Refusal { .. }
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Ack(_)
            | Frame::InventoryRequest { .. }
            | Frame::InventoryPart(_)
            | Frame::Synchronized
            | Frame::Query { .. }
            | Frame::Response { .. }
            | Frame::Goodbye { .. } => {}
        }
    }

    /// Refuses the session, before its hello or later, as when the cloud has too many.
    pub fn handle_refuse(&mut self, reason: impl Into<String>, retry_after: Duration) {
        let reason = reason.into();
        self.saying.last_words = Some(Frame::Refusal { reason: reason.clone(), retry_after });
        self.end(reason);
    }

    /// Refuses the session, before its hello or later, because the node is shut out.
    pub fn handle_shut_out(&mut self) {
        if !matches!(self.phase, Phase::Over) {
            self.offence = Some(Offence::ShutOut);
        }
        self.handle_refuse("the node is shut out of this cloud", self.config.refused_for);
    }

    /// Ends the session and tells the edge why.
    pub fn handle_close(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        self.saying.last_words = Some(Frame::Goodbye { reason: reason.clone() });
        self.end(reason);
    }

    /// Ends the session because the edge broke the rules of the link, and tells it how.
    pub fn handle_offence(&mut self, offence: Offence, reason: impl Into<String>) {
        if !matches!(self.phase, Phase::Over) {
            self.offence = Some(offence);
        }
        self.handle_close(reason);
    }

    /// Which rule of the link the edge broke, if that is why the session is over.
    pub fn offence(&self) -> Option<Offence> {
        self.offence
    }

    /// The connection is over.
    pub fn handle_disconnected(&mut self, reason: impl Into<String>) {
        self.end(reason.into());
    }

    /// The next thing for the driver to do.
    pub fn poll_output(&mut self) -> Option<NodeOutput> {
        let output = self.outputs.pop_front();
        if self.outputs.is_empty() {
            // It keeps room for what it had, and most sessions are idle.
            self.outputs = VecDeque::new();
        }
        output
    }

    /// When [`NodeLink::handle_timeout`] wants to be called, unless something else is handled before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sync = match &self.phase {
            Phase::Over => return None,
            Phase::Expecting { until } => return Some(*until),
            Phase::Open { sync, .. } => sync,
        };
        let repeat = match sync {
            Sync::Inventory { repeat, .. } | Sync::Telling { repeat } => repeat.poll_timeout(),
            Sync::Snapshot { .. } | Sync::Difference { .. } | Sync::Done => None,
        };
        let calls = [repeat, self.requests.poll_timeout(), self.queries.poll_timeout()];
        let items = self.outgoing.iter().filter_map(Outgoing::poll_timeout);
        items.chain(calls.into_iter().flatten()).chain([self.keepalive.poll_timeout()]).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let sync = match &mut self.phase {
            Phase::Over => return,
            Phase::Expecting { until } => {
                if *until <= now {
                    self.handle_close("the edge did not say hello in time");
                }
                return;
            }
            Phase::Open { sync, .. } => sync,
        };
        match sync {
            Sync::Inventory { repeat, .. } | Sync::Telling { repeat } => repeat.handle_timeout(now),
            Sync::Snapshot { .. } | Sync::Difference { .. } | Sync::Done => {}
        }
        while let Some((id, ())) = self.requests.close_late(now) {
            // The lane may have been too slow even to take the question.
            self.questions
                .retain(|frame| !matches!(frame, Frame::Request { id: queued, .. } if *queued == id));
            let response =
                Response::Failed { code: 504, message: "the node did not answer in time".to_owned() };
            self.outputs.push_back(NodeOutput::Responded { id, response });
        }
        while self.queries.close_late(now).is_some() {}
        self.outgoing.iter_mut().for_each(|objects| objects.handle_timeout(now));
        self.keepalive.handle_timeout(now);
        if let Some(silence) = self.keepalive.silence(now) {
            self.handle_close(format!("the edge has been silent for {silence:?}"));
        }
    }

    fn send(&mut self, event: ObjectEvent) {
        if let Some(lane) = object_lane(event.key().lane()) {
            let (key, outgoing) = (event.key().clone(), &mut self.outgoing[lane]);
            if key.goes_first() { outgoing.set_first(key, event) } else { outgoing.set(key, event) }
        }
    }

    fn end(&mut self, reason: String) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        self.phase = Phase::Over;
        self.questions.clear();
        for (id, ()) in self.requests.close_all() {
            let response =
                Response::Failed { code: 503, message: format!("the node's session is over: {reason}") };
            self.outputs.push_back(NodeOutput::Responded { id, response });
        }
        self.outputs.push_back(NodeOutput::Closed { reason });
    }
}

fn object_lane(lane: Lane) -> Option<usize> {
    OBJECT_LANES.iter().position(|of| *of == lane)
}

fn report_lane(lane: Lane) -> Option<usize> {
    REPORT_LANES.iter().position(|of| *of == lane)
}
