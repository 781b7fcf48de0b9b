//! What parts, and the two ends of the link, say to each other.
//!
//! A message is either a *state* (only the newest for its key matters, and it carries the whole state for
//! that key) or an *occurrence* (each one matters). [`ObjectEvent`] and [`Report`] are states; [`Upload`]
//! and [`Publish`] are occurrences; [`Query`]/[`Answer`] (edge asks) and [`Request`]/[`Response`] (cloud
//! asks) are questions with an answer and a deadline.

mod delivery;
mod object;
mod question;
mod report;
mod tunnel;

pub use delivery::{Acked, Delivered, Delivery, FromNode, ToNode};
pub use object::{
    Fingerprint, Inventory, InventoryEntry, Object, ObjectError, ObjectEvent, ObjectRef, Snapshot,
};
pub use question::{
    Answer, CertificateRequest, LogChunk, LogRequest, Query, Request, Response, ServiceRequest,
    ServiceResponse, Token, TokenRequest,
};
pub use report::{
    ClockOffset, Connectivity, DeviceReport, MirrorReport, NodeReport, PodReport, PodState, Publish, Report,
    ReportKey, Ruling, SessionState, TwinReport, TwinValue, Upload, UploadId, UploadedEvent, UploadedPublish,
};
pub use tunnel::{TunnelId, TunnelRequest, TunnelResponse, TunnelStep};

/// How a message is carried: which lane it takes and so what it cannot hold up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Session frames: hello, ping, acknowledgements.
    Heartbeat,
    /// Pods down, behind the Services that they are told of; node and pod status up.
    Pods,
    /// ConfigMaps, Secrets and every other object down; what is held of them, and events, up.
    Config,
    /// Devices and models down; twins up.
    Devices,
    /// Questions and answers, log chunks, publishes.
    Bulk,
}

impl Lane {
    /// All lanes, the most urgent first.
    pub const ALL: [Self; 5] = [Self::Heartbeat, Self::Pods, Self::Config, Self::Devices, Self::Bulk];

    /// The lane's number on the wire and its place in [`Lane::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The lane with this number.
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }

    /// The largest frame in bytes that the lane carries; a longer one is refused before it is allocated.
    ///
    /// etcd takes at most 1.5 MiB for one object, so 4 MiB is room for an object with its envelope.
    pub const fn frame_limit(self) -> usize {
        match self {
            Self::Heartbeat => 64 << 10,
            Self::Pods | Self::Config | Self::Bulk => 4 << 20,
            Self::Devices => 2 << 20,
        }
    }
}
