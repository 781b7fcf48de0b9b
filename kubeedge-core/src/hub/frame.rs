use std::time::Duration;

use crate::message::{
    Answer, DeviceReport, InventoryEntry, Lane, MirrorReport, NodeReport, ObjectEvent, PodReport, Query,
    Report, Request, Response, TunnelStep, Upload, UploadedEvent,
};

/// The version of the protocol that this crate speaks.
pub const PROTOCOL: u32 = 1;

/// Everything that the two ends of the link say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The edge says who it is and what it holds.
    Hello(Hello),
    /// The cloud takes the session.
    Welcome(Welcome),
    /// The cloud does not take the session.
    Refusal {
        /// Why, for people.
        reason: String,
        /// The edge need not try again earlier.
        retry_after: Duration,
    },
    /// Asks for a sign of life.
    Ping(u64),
    /// Answers the ping with this number.
    Pong(u64),
    /// Says which items are durable at the sender of this frame.
    Ack(Ack),
    /// The cloud asks for the edge's inventory.
    InventoryRequest {
        /// The first part that it lacks; parts count from 0.
        from_part: u32,
    },
    /// A part of what the edge holds.
    InventoryPart(InventoryPart),
    /// The cloud says that the edge has all that the cloud had for it; the edge answers with the same.
    Synchronized,
    /// A state or an occurrence that has to become durable at the other side.
    Item(Item),
    /// The edge asks.
    Query {
        /// Tells the answer to which query it belongs.
        id: u64,
        /// The question.
        query: Query,
    },
    /// The cloud answers.
    Answer {
        /// The query's number.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// The cloud asks.
    Request {
        /// Tells the response to which request it belongs.
        id: u64,
        /// How long after its arrival an answer is of use.
        deadline: Duration,
        /// The question.
        request: Request,
    },
    /// The edge answers.
    Response {
        /// The request's number.
        id: u64,
        /// The answer.
        response: Response,
    },
    /// The sender ends the session.
    Goodbye {
        /// Why, for people.
        reason: String,
    },
}

impl Frame {
    /// The lane on which this frame travels, and no other.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Hello(_)
            | Self::Welcome(_)
            | Self::Refusal { .. }
            | Self::Ping(_)
            | Self::Pong(_)
            | Self::Ack(_)
            | Self::InventoryRequest { .. }
            | Self::Synchronized
            | Self::Goodbye { .. } => Lane::Heartbeat,
            Self::InventoryPart(_) => Lane::Config,
            Self::Item(item) => item.lane,
            Self::Query { .. } | Self::Answer { .. } | Self::Request { .. } | Self::Response { .. } => {
                Lane::Bulk
            }
        }
    }

    /// What the frame is called, for logs and errors.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Welcome(_) => "welcome",
            Self::Refusal { .. } => "refusal",
            Self::Ping(_) => "ping",
            Self::Pong(_) => "pong",
            Self::Ack(_) => "ack",
            Self::InventoryRequest { .. } => "inventory request",
            Self::InventoryPart(_) => "inventory part",
            Self::Synchronized => "synchronized",
            Self::Item(_) => "item",
            Self::Query { .. } => "query",
            Self::Answer { .. } => "answer",
            Self::Request { .. } => "request",
            Self::Response { .. } => "response",
            Self::Goodbye { .. } => "goodbye",
        }
    }
}

/// How the edge opens a session.
///
/// The node's name is text as the peer sent it: the cloud compares it with the name that the peer's certificate
/// proves, and refuses the session if they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The protocol that the edge speaks, see [`PROTOCOL`].
    pub protocol: u32,
    /// The node's name.
    pub node: String,
    /// Tells this session's hello from another's.
    pub nonce: u64,
    /// The digest of the edge's inventory.
    pub digest: [u8; 32],
    /// How many objects the edge holds.
    pub objects: u32,
    /// The edge's software and its version, for people.
    pub software: String,
    /// Whether the edge knows [`Request::Tunnel`]. To one that does not, such a request would be no frame.
    pub tunnels: bool,
}

/// How the cloud takes a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The nonce of the hello that this answers.
    pub nonce: u64,
    /// The session's number, for people who compare logs.
    pub session: u64,
    /// Each side says something at least this often.
    pub heartbeat: Duration,
    /// Whether the cloud knows [`Query::Certificate`]. To one that does not, such a query would be no frame.
    pub certificates: bool,
}

/// Which items of a lane are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The lane.
    pub lane: Lane,
    /// All up to and including this number.
    pub upto: u64,
    /// And those from `.0` to `.1`, both included; ascending, all beyond `upto`.
    pub beyond: Vec<(u64, u64)>,
}

/// A part of an inventory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InventoryPart {
    /// The part's number, from 0.
    pub part: u32,
    /// Whether no part follows.
    pub last: bool,
    /// The objects.
    pub entries: Vec<InventoryEntry>,
}

/// Something under a number of its lane's sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The lane, each of which has a sequence of its own.
    pub lane: Lane,
    /// Counts from 1 in each lane and direction of a session. An item that is repeated keeps its number.
    pub seq: u64,
    /// What it is.
    pub payload: Payload,
}

/// What an [`Item`] carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// Nothing is under this number: what was meant for it cannot be carried.
    Skip,
    /// Down: what became of an object.
    Object(ObjectEvent),
    /// Up: a state.
    Report(Report),
    /// Up: an occurrence.
    Upload(Upload),
}

impl Payload {
    /// The lane that carries this; `None` for [`Payload::Skip`], which may be on any.
    pub fn lane(&self) -> Option<Lane> {
        match self {
            Self::Skip => None,
            Self::Object(event) => Some(event.key().lane()),
            Self::Report(report) => Some(report.lane()),
            Self::Upload(Upload::Publish(_)) => Some(Lane::Bulk),
            Self::Upload(Upload::Event(_)) => Some(Lane::Config),
        }
    }
}

impl Frame {
    /// About how many bytes a question or answer that waits takes.
    pub(super) fn question_weight(&self) -> usize {
        let content = match self {
            Self::Answer { answer: Answer::Refused(text), .. } => text.len(),
            // The object is shared with the controllers.
            Self::Answer { answer: Answer::Object(_) | Answer::NotFound, .. } => 0,
            Self::Answer { answer: Answer::Token(token), .. } => token.token.len(),
            Self::Request { request: Request::Logs(_), .. } => 0,
            Self::Request { request: Request::Service(request), .. } => {
                request.body.len() + request.path.len()
            }
            Self::Request { request: Request::Publish(publish), .. } => publish.size(),
            Self::Request { request: Request::Tunnel(tunnel), .. } => match &tunnel.step {
                TunnelStep::Push { data, .. } => data.len(),
                TunnelStep::Open | TunnelStep::Pull { .. } | TunnelStep::Close => 0,
            },
            Self::Hello(_)
            | Self::Welcome(_)
            | Self::Refusal { .. }
            | Self::Ping(_)
            | Self::Pong(_)
            | Self::Ack(_)
            | Self::InventoryRequest { .. }
            | Self::InventoryPart(_)
            | Self::Synchronized
            | Self::Item(_)
            | Self::Query { .. }
            | Self::Response { .. }
            | Self::Goodbye { .. } => 0,
        };
        ENVELOPE + content
    }
}

/// About how many bytes a message takes on the wire; what windows count.
pub(super) trait Weight {
    fn weight(&self) -> usize;
}

/// Names, UID and numbers of an object, roughly.
const ENVELOPE: usize = 128;

impl Weight for ObjectEvent {
    fn weight(&self) -> usize {
        match self {
            Self::Applied(object) => ENVELOPE + object.json.len(),
            Self::Deleted { .. } => ENVELOPE,
        }
    }
}

impl Weight for Report {
    fn weight(&self) -> usize {
        use crate::message::PodState;
        match self {
            Self::Node(NodeReport { json }) => ENVELOPE + json.len(),
            Self::Pod(PodReport { state: PodState::Status(json), .. }) => ENVELOPE + json.len(),
            Self::Pod(PodReport { state: PodState::Gone, .. }) => ENVELOPE,
            Self::Mirror(MirrorReport { pod, .. }) => ENVELOPE + pod.as_ref().map_or(0, bytes::Bytes::len),
            Self::Device(DeviceReport { twins, .. }) => {
                ENVELOPE + twins.iter().map(twin_weight).sum::<usize>()
            }
        }
    }
}

fn twin_weight(twin: &crate::message::TwinReport) -> usize {
    let value = |value: &Option<crate::message::TwinValue>| {
        value.as_ref().map_or(0, |value| {
            let metadata: usize =
                value.metadata.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
            value.value.len() + metadata + 24
        })
    };
    twin.property.len() + value(&twin.reported) + value(&twin.observed_desired)
}

impl Weight for Upload {
    fn weight(&self) -> usize {
        match self {
            Self::Publish(message) => message.publish.size() + 32,
            Self::Event(event) => event.weight(),
        }
    }
}

impl Weight for UploadedEvent {
    fn weight(&self) -> usize {
        self.json.len() + 16
    }
}
