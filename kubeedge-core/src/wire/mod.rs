//! Messages to bytes and back: the only place that knows what the wire looks like.
//!
//! The link speaks [`Frame`]s; a [`Codec`] turns them into bytes. [`Native`] is our own format: protobuf, as
//! `proto/link.proto` describes it, with the JSON of objects carried byte for byte.
//!
//! ```
//! use kubeedge_core::{hub::Frame, message::Lane, wire::{Codec, Native}};
//!
//! let bytes = Native.encode(&Frame::Ping(7));
//! assert_eq!(bytes.len(), 4);
//! assert_eq!(Native.decode(Lane::Heartbeat, &bytes)?, Frame::Ping(7));
//! # Ok::<_, kubeedge_core::wire::WireError>(())
//! ```

use std::fmt;

use bytes::Bytes;

use crate::{hub::Frame, message::Lane};

#[allow(
    missing_docs,
    unreachable_pub,
    unnameable_types,
    clippy::use_self,
    clippy::wildcard_enum_match_arm,
    reason = "prost-build made it from proto/link.proto"
)]
#[rustfmt::skip]
#[path = "kubeedge.link.v1.rs"]
mod link;
mod line;
mod native;
#[cfg(test)]
mod tests;
pub mod topic;

pub use line::{Carried, Line, LineEvent, TooLong};
pub use native::Native;

/// Turns frames into bytes and back.
///
/// A codec knows no session: the same frame gives the same bytes.
pub trait Codec: fmt::Debug + Send + Sync + 'static {
    /// Writes a frame. It may be longer than its lane allows; the sender looks at the length.
    fn encode(&self, frame: &Frame) -> Bytes;

    /// Writes a frame as [`Codec::encode`] does, with what the sender's clock shows: milliseconds since the Unix epoch.
    fn encode_with_clock(&self, frame: &Frame, clock_ms: u64) -> Bytes;

    /// What the sender's clock showed, if the frame in these bytes says it. What is no frame says nothing.
    fn clock(&self, bytes: &Bytes) -> Option<u64>;

    /// Reads a frame that came on `lane`.
    ///
    /// The bodies in the frame are slices of `bytes` where the format allows, not copies.
    ///
    /// # Errors
    /// If the bytes are no frame, or one that may not come on this lane. Never panics, whatever the bytes are.
    fn decode(&self, lane: Lane, bytes: &Bytes) -> Result<Frame, WireError>;
}

/// Says what is wrong with the bytes of a frame, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The bytes are not in the format at all.
    #[error("what came on lane {lane:?} is no frame: {why}")]
    Malformed {
        /// The lane.
        lane: Lane,
        /// What the format's reader says.
        why: String,
    },
    /// A frame, or what it carries, is of a kind that this software does not know. The peer may be newer.
    #[error("{frame}: {field} is of an unknown kind; the peer may be newer than this software")]
    Unknown {
        /// The frame.
        frame: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field that has to be there is absent.
    #[error("{frame}: {field} is missing")]
    Missing {
        /// The frame.
        frame: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field's value is not allowed.
    #[error("{frame}: {field} is wrong: {why}")]
    Invalid {
        /// The frame.
        frame: &'static str,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The frame travels on another lane.
    #[error("{frame} belongs on lane {belongs:?} and came on {lane:?}")]
    WrongLane {
        /// The frame.
        frame: &'static str,
        /// Where it belongs.
        belongs: Lane,
        /// Where it came.
        lane: Lane,
    },
}
