use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    EdgeConfig, Frame, Hello, PROTOCOL,
    calls::Calls,
    config::Flow,
    incoming::Incoming,
    outgoing::Outgoing,
    timers::{Backoff, Keepalive, Repeat, Side},
};
use crate::{
    id::{NodeName, Uid},
    message::{
        Acked, Answer, Connectivity, Delivered, Delivery, Inventory, InventoryEntry, Lane, ObjectEvent,
        ObjectRef, Query, Report, ReportKey, Request, Response, Upload, UploadId, UploadedEvent,
    },
};

mod frames;
mod transmit;

/// The edge's end of the link: it dials, says hello, keeps alive, and carries reports up and objects down.
///
/// It outlives sessions: what was not acknowledged in one is sent in the next.
#[derive(Debug)]
pub struct EdgeLink {
    config: EdgeConfig,
    node: NodeName,
    phase: Phase,
    outputs: VecDeque<EdgeOutput>,
    backoff: Backoff,
    keepalive: Keepalive,
    connectivity: Connectivity,
    /// Counts connections; it marks deliveries, so that an echo from an earlier session is told apart.
    session: u64,
    delivered: u64,
    /// What the part has been given and has not stored, from all sessions.
    unstored: BTreeMap<ObjectRef, Delivery>,
    /// Which object of each name the part holds, from its inventory on.
    held: BTreeMap<ObjectRef, Uid>,
    incoming: [Incoming<ObjectRef>; OBJECT_LANES.len()],
    reports: [Outgoing<ReportKey, Report>; REPORT_LANES.len()],
    uploads: Outgoing<UploadKey, Upload>,
    /// On a lane of their own: they wait for the API, for which messages need not wait.
    events: Outgoing<u64, UploadedEvent>,
    last_upload: u64,
    queries: Calls<()>,
    requests: Calls<u64>,
    /// Queries and responses on their way; bounded by how many of them may be open.
    questions: VecDeque<Frame>,
    saying: Saying,
}

/// The order of an upload, and its id if somebody waits for its arrival.
type UploadKey = (u64, Option<UploadId>);

/// What the edge's end waits for.
#[derive(Debug)]
enum Phase {
    /// The pause before the next attempt to connect is over at `until`.
    Pausing { until: Instant },
    /// The driver dials, and says how that ended.
    Dialling,
    /// The part stores what the last session delivered; at `until` the session goes on regardless.
    Settling { since: Instant, until: Instant },
    /// The part says what it holds.
    TakingStock { since: Instant },
    /// The cloud answers the hello, at latest at `until`.
    Greeting { since: Instant, until: Instant, hello: Hello, repeat: Repeat },
    /// The cloud, or the network, ends the session.
    Open { since: Instant, certificates: bool },
    /// Nothing: the part is stopping.
    Stopped,
}

/// Session frames that are due on lane heartbeat, and the inventory.
#[derive(Debug, Default)]
struct Saying {
    last_words: Option<Frame>,
    synchronized: bool,
    pong: Option<u64>,
    inventory: Vec<InventoryEntry>,
    next_part: Option<usize>,
}

/// What the edge's end asks of its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EdgeOutput {
    /// Dial the cloud, and say how that ended: [`EdgeLink::handle_connected`] or [`EdgeLink::handle_disconnected`].
    Dial,
    /// Ask the part what it holds, and hand it to [`EdgeLink::handle_inventory`].
    NeedInventory,
    /// Give this to the part; it echoes the delivery to [`EdgeLink::handle_acked`] once it is durable.
    Deliver(Delivered<ObjectEvent>),
    /// A query has its answer, or failed.
    Answered {
        /// The number that [`EdgeLink::handle_query`] gave.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// The cloud asks; the answer goes to [`EdgeLink::handle_response`].
    Ask {
        /// The request's number.
        id: u64,
        /// How long an answer is of use.
        deadline: Duration,
        /// The question.
        request: Request,
    },
    /// Tell everyone.
    Connectivity(Connectivity),
    /// A session was taken by the cloud, under this number.
    Welcomed {
        /// The session's number at the cloud.
        session: u64,
    },
    /// The attempt or session is over. If there is a connection, send what [`EdgeLink::poll_transmit`] still has for
    /// lane heartbeat, and close it.
    Closed {
        /// Why.
        reason: String,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// The cloud has this upload, or it is one that can never be carried: it need not be kept any longer.
    Uploaded(UploadId),
    /// A report cannot be carried and is given up.
    Undeliverable {
        /// What it is, for people.
        what: String,
    },
}

/// The lanes on which objects come.
const OBJECT_LANES: [Lane; 3] = [Lane::Pods, Lane::Config, Lane::Devices];
/// The lanes on which reports go.
const REPORT_LANES: [Lane; 2] = [Lane::Pods, Lane::Devices];

impl EdgeLink {
    /// Creates the edge's end, which dials at once. `seed` spreads the attempts of many nodes.
    pub fn new(config: EdgeConfig, node: NodeName, seed: u64, now: Instant) -> Self {
        Self {
            phase: Phase::Pausing { until: now },
            outputs: VecDeque::new(),
            backoff: Backoff::new(config.backoff_min, config.backoff_max, seed),
            keepalive: Keepalive::new(Side::Edge, config.hello_timeout, now),
            connectivity: Connectivity::Offline,
            session: 0,
            delivered: 0,
            unstored: BTreeMap::new(),
            held: BTreeMap::new(),
            incoming: OBJECT_LANES.map(|_| Incoming::new()),
            reports: REPORT_LANES.map(|_| Outgoing::new(config.flow.clone())),
            uploads: Outgoing::new(upload_flow(&config)),
            events: Outgoing::new(event_flow(&config)),
            last_upload: 0,
            queries: Calls::new(config.queries_max),
            requests: Calls::new(config.requests_max),
            questions: VecDeque::new(),
            saying: Saying::default(),
            config,
            node,
        }
    }

    /// The driver has a connection to the cloud.
    pub fn handle_connected(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Dialling) {
            return;
        }
        self.session += 1;
        self.saying = Saying::default();
        self.keepalive = Keepalive::new(Side::Edge, self.config.hello_timeout, now);
        self.phase = Phase::Settling { since: now, until: now + self.config.settle_timeout };
        self.settle(now);
    }

    /// There is no connection: dialling failed, or the connection is over, or the part cannot say what it holds.
    pub fn handle_disconnected(&mut self, reason: impl Into<String>, now: Instant) {
        match self.phase {
            Phase::Pausing { .. } | Phase::Stopped => {}
            Phase::Dialling
            | Phase::Settling { .. }
            | Phase::TakingStock { .. }
            | Phase::Greeting { .. }
            | Phase::Open { .. } => self.end(reason.into(), Duration::ZERO, now),
        }
    }

    /// The driver has another connection in place of the one that there is. Ends the session with a word to the cloud; when
    /// the connection is closed, the driver says [`EdgeLink::handle_connected`].
    pub fn handle_succeeded(&mut self, reason: impl Into<String>, now: Instant) {
        match self.phase {
            Phase::Pausing { .. } | Phase::Dialling | Phase::Stopped => {}
            Phase::Settling { .. }
            | Phase::TakingStock { .. }
            | Phase::Greeting { .. }
            | Phase::Open { .. } => {
                self.violation(reason.into(), now);
                self.phase = Phase::Dialling;
            }
        }
    }

    /// The part says what it holds.
    pub fn handle_inventory(&mut self, inventory: &Inventory, now: Instant) {
        let Phase::TakingStock { since } = self.phase else { return };
        self.saying.inventory = inventory.iter().cloned().collect();
        self.held = inventory.iter().map(|entry| (entry.reference.clone(), entry.uid.clone())).collect();
        let hello = Hello {
            protocol: PROTOCOL,
            node: self.node.to_string(),
            nonce: self.backoff.random(),
            digest: inventory.digest(),
            objects: u32::try_from(inventory.len()).unwrap_or(u32::MAX),
            software: self.config.software.clone(),
            tunnels: true,
        };
        let repeat = Repeat::new(self.config.flow.retry_after);
        self.phase = Phase::Greeting { since, until: now + self.config.hello_timeout, hello, repeat };
    }

    /// A part has something to report.
    pub fn handle_report(&mut self, report: Report) {
        let key = report.key();
        if let Some(lane) = report_lane(key.lane()) {
            self.reports[lane].set(key, report);
        }
    }

    /// Whether another event fits; while it does not, leave events where they are.
    pub fn takes_events(&self) -> bool {
        self.events.len() < self.config.events_max && self.events.weight() < self.config.events_bytes_max
    }

    /// Whether another message fits; while it does not, leave messages where they are.
    pub fn takes_uploads(&self) -> bool {
        self.uploads.len() < self.config.uploads_max && self.uploads.weight() < self.config.uploads_bytes_max
    }

    /// A part has something to upload.
    pub fn handle_upload(&mut self, upload: Upload) {
        self.last_upload += 1;
        match upload {
            Upload::Publish(message) => {
                self.uploads.set((self.last_upload, Some(message.id)), Upload::Publish(message));
            }
            Upload::Event(event) => self.events.set(self.last_upload, event),
        }
    }

    /// The part has made an object durable.
    pub fn handle_acked(&mut self, acked: &Acked<ObjectRef>, now: Instant) {
        let late = acked.delivery.session < self.session && self.unstored.contains_key(&acked.key);
        if self.unstored.get(&acked.key).is_some_and(|newest| *newest <= acked.delivery) {
            self.unstored.remove(&acked.key);
        }
        if acked.delivery.session == self.session
            && let Some(lane) = object_lane(acked.key.lane())
        {
            self.incoming[lane].handle_durable(&acked.key, acked.delivery.number);
        }
        if late
            && matches!(self.phase, Phase::TakingStock { .. } | Phase::Greeting { .. } | Phase::Open { .. })
        {
            // The inventory may not know what the part holds now, and the cloud compares with nothing else.
            let key = &acked.key;
            let reason = format!("{key} of an earlier session was stored late; both sides compare again");
            return self.violation(reason, now);
        }
        self.settle(now);
    }

    /// A part asks the cloud. Gives the number under which [`EdgeOutput::Answered`] comes, which it always does.
    pub fn handle_query(&mut self, query: Query, now: Instant) -> u64 {
        let refused = match self.phase {
            Phase::Open { certificates: false, .. } if matches!(query, Query::Certificate(_)) => {
                "the cloud knows no requests for certificates: it is older than this node"
            }
            // The cloud would end the session.
            Phase::Open { .. } if matches!(&query, Query::Certificate(asked) if asked.is_too_long()) => {
                "the request for a certificate is longer than 8 KiB"
            }
            Phase::Open { .. } => match self.queries.open((), self.config.query_timeout, now) {
                Some(id) => {
                    self.questions.push_back(Frame::Query { id, query });
                    return id;
                }
                None => "too many queries wait for the cloud already",
            },
            Phase::Pausing { .. }
            | Phase::Dialling
            | Phase::Settling { .. }
            | Phase::TakingStock { .. }
            | Phase::Greeting { .. }
            | Phase::Stopped => "the node has no session with the cloud",
        };
        let id = self.queries.skip();
        self.outputs.push_back(EdgeOutput::Answered { id, answer: Answer::Refused(refused.to_owned()) });
        id
    }

    /// A part answers the cloud's request; too late, or after its session, it is dropped.
    pub fn handle_response(&mut self, id: u64, response: Response) {
        if let Some(theirs) = self.requests.close(id) {
            self.questions.push_back(Frame::Response { id: theirs, response });
        }
    }

    /// The frame that [`EdgeLink::poll_transmit`] gave is longer than its lane allows: an item is replaced by
    /// a note that there is nothing, an answer by a failure.
    pub fn handle_too_long(&mut self, frame: &Frame) {
        match frame {
            Frame::Item(item) => {
                let what = match (report_lane(item.lane), item.lane) {
                    (Some(lane), _) => {
                        self.reports[lane].handle_too_long(item.seq).map(|key| format!("{key:?}"))
                    }
                    (None, Lane::Config) => {
                        self.events.handle_too_long(item.seq).map(|_| "an event".to_owned())
                    }
                    (None, Lane::Heartbeat | Lane::Pods | Lane::Devices | Lane::Bulk) => {
                        self.uploads.handle_too_long(item.seq).map(|_| "a message".to_owned())
                    }
                };
                self.outputs.extend(what.map(|what| EdgeOutput::Undeliverable { what }));
            }
            Frame::Response { id, .. } => {
                let message = "the answer is longer than a frame can be".to_owned();
                let response = Response::Failed { code: 500, message };
                self.questions.push_front(Frame::Response { id: *id, response });
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
            | Frame::Answer { .. }
            | Frame::Request { .. }
            | Frame::Goodbye { .. } => {}
        }
    }

    /// What came from the cloud is no frame: the session ends, and the cloud is told why.
    pub fn handle_garbled(&mut self, reason: impl Into<String>, now: Instant) {
        match self.phase {
            Phase::Pausing { .. } | Phase::Stopped => {}
            Phase::Dialling
            | Phase::Settling { .. }
            | Phase::TakingStock { .. }
            | Phase::Greeting { .. }
            | Phase::Open { .. } => self.violation(reason.into(), now),
        }
    }

    /// The part is stopping: the cloud is told, and nothing is dialled any more.
    pub fn handle_stop(&mut self, now: Instant) {
        self.saying.last_words = Some(Frame::Goodbye { reason: "the edge is stopping".to_owned() });
        self.end("the edge is stopping".to_owned(), Duration::ZERO, now);
        self.phase = Phase::Stopped;
    }

    /// The next thing for the driver to do.
    pub fn poll_output(&mut self) -> Option<EdgeOutput> {
        self.outputs.pop_front()
    }

    /// When [`EdgeLink::handle_timeout`] wants to be called, unless something else is handled before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Pausing { until } | Phase::Settling { until, .. } => Some(*until),
            Phase::Dialling | Phase::TakingStock { .. } | Phase::Stopped => None,
            Phase::Greeting { until, repeat, .. } => {
                Some(repeat.poll_timeout().map_or(*until, |at| at.min(*until)))
            }
            Phase::Open { .. } => {
                let items = self.reports.iter().filter_map(Outgoing::poll_timeout);
                let uploads = [self.uploads.poll_timeout(), self.events.poll_timeout()];
                items.chain(uploads.into_iter().flatten()).chain([self.keepalive.poll_timeout()]).min()
            }
        };
        [phase, self.queries.poll_timeout(), self.requests.poll_timeout()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((id, ())) = self.queries.close_late(now) {
            // The lane may have been too slow even to take the question.
            self.questions.retain(|frame| !matches!(frame, Frame::Query { id: queued, .. } if *queued == id));
            let answer = Answer::Refused("the cloud did not answer in time".to_owned());
            self.outputs.push_back(EdgeOutput::Answered { id, answer });
        }
        while self.requests.close_late(now).is_some() {}
        match &mut self.phase {
            Phase::Pausing { until } if *until <= now => {
                self.phase = Phase::Dialling;
                self.outputs.push_back(EdgeOutput::Dial);
            }
            Phase::Settling { .. } => self.settle(now),
            Phase::Greeting { until, .. } if *until <= now => {
                self.violation("the cloud did not answer the hello".to_owned(), now);
            }
            Phase::Greeting { repeat, .. } => repeat.handle_timeout(now),
            Phase::Open { .. } => {
                self.reports.iter_mut().for_each(|reports| reports.handle_timeout(now));
                self.uploads.handle_timeout(now);
                self.events.handle_timeout(now);
                self.keepalive.handle_timeout(now);
                if let Some(silence) = self.keepalive.silence(now) {
                    self.violation(format!("the cloud has been silent for {silence:?}"), now);
                }
            }
            Phase::Pausing { .. } | Phase::Dialling | Phase::TakingStock { .. } | Phase::Stopped => {}
        }
    }

    /// Asks what the part holds, once it has stored what it was given or has had its time.
    fn settle(&mut self, now: Instant) {
        if let Phase::Settling { since, until } = self.phase
            && (self.unstored.is_empty() || until <= now)
        {
            self.phase = Phase::TakingStock { since };
            self.outputs.push_back(EdgeOutput::NeedInventory);
        }
    }

    /// Ends the session and tells the cloud why.
    fn violation(&mut self, reason: String, now: Instant) {
        self.saying.last_words = Some(Frame::Goodbye { reason: reason.clone() });
        self.end(reason, Duration::ZERO, now);
    }

    fn end(&mut self, reason: String, retry_after: Duration, now: Instant) {
        let last_words = self.saying.last_words.take();
        self.saying = Saying { last_words, ..Saying::default() };
        if let Phase::Open { since, .. } = self.phase
            && now.duration_since(since) >= self.config.backoff_max
        {
            // A session that is taken and at once ended again, as when two nodes share a name, is no success.
            self.backoff.reset();
        }
        // Those that the cloud turns away together must not come back together.
        let retry_in = self.backoff.next_pause().max(self.backoff.spread(retry_after));
        self.phase = Phase::Pausing { until: now + retry_in };
        self.incoming = OBJECT_LANES.map(|_| Incoming::new());
        for reports in &mut self.reports {
            reports.reset();
        }
        self.events.reset();
        let given_up = self.uploads.reset();
        self.note_uploaded(given_up);
        self.questions.clear();
        self.requests.close_all().for_each(drop);
        for (id, ()) in self.queries.close_all() {
            let answer = Answer::Refused("the link to the cloud was lost".to_owned());
            self.outputs.push_back(EdgeOutput::Answered { id, answer });
        }
        self.outputs.push_back(EdgeOutput::Closed { reason, retry_in });
        self.connectivity(Connectivity::Offline);
    }

    fn note_uploaded(&mut self, uploads: Vec<UploadKey>) {
        let ids = uploads.into_iter().filter_map(|(_, id)| id);
        self.outputs.extend(ids.map(EdgeOutput::Uploaded));
    }

    fn connectivity(&mut self, connectivity: Connectivity) {
        if self.connectivity != connectivity {
            self.connectivity = connectivity;
            self.outputs.push_back(EdgeOutput::Connectivity(connectivity));
        }
    }
}

/// Uploads are acknowledged when somebody in the cloud has taken them, which for some may be never: they have a window of
/// their own, as wide as what may wait, so that they do not hold up those of others.
fn upload_flow(config: &EdgeConfig) -> Flow {
    Flow { window_items: config.uploads_max, window_bytes: config.uploads_bytes_max, ..config.flow.clone() }
}

/// All events that wait are on their way: the cloud sees to it that they are written in order.
fn event_flow(config: &EdgeConfig) -> Flow {
    Flow { window_items: config.events_max, window_bytes: config.events_bytes_max, ..config.flow.clone() }
}

fn object_lane(lane: Lane) -> Option<usize> {
    OBJECT_LANES.iter().position(|of| *of == lane)
}

fn report_lane(lane: Lane) -> Option<usize> {
    REPORT_LANES.iter().position(|of| *of == lane)
}
