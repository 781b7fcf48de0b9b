use std::{fmt, time::Duration};

use bytes::Bytes;

/// Names a tunnel: drawn at random by whoever opens it, so that several clouds need not agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(pub u64);

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A step of a tunnel: a connection to the kubelet's interface of a node, carried by questions of the cloud.
///
/// What is said in either direction is counted in bytes from the beginning. So a step may be repeated when its answer
/// was lost: nothing is said twice, and nothing is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelRequest {
    /// Which tunnel.
    pub tunnel: TunnelId,
    /// What is to be done.
    pub step: TunnelStep,
}

/// What is to be done with a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelStep {
    /// Opens it. The answer is [`TunnelResponse::Taken`] with 0.
    Open,
    /// Says something to the node. The answer is [`TunnelResponse::Taken`], which may be less than was said, if whoever is
    /// at the node's end does not read; the rest is to be said again.
    Push {
        /// How many bytes were said before these.
        offset: u64,
        /// The bytes, at most [`TunnelStep::DATA_MAX`].
        data: Bytes,
        /// Whether they are the last.
        end: bool,
        /// How long the node may wait for its end to take them.
        wait: Duration,
    },
    /// Asks what the node's end says. The answer is [`TunnelResponse::Piece`].
    Pull {
        /// How many bytes have arrived; they need not be kept.
        offset: u64,
        /// How long the node may wait for more; then the piece is empty.
        wait: Duration,
    },
    /// Ends it, with all that is on its way. The answer is [`TunnelResponse::Taken`] with 0.
    Close,
}

impl TunnelStep {
    /// The bytes of one push or piece at most: 256 KiB. One of either is on its way at a time, so that this for each round
    /// trip is what a tunnel carries, and what both ends keep.
    pub const DATA_MAX: usize = 256 << 10;
}

/// What a node says to a [`TunnelRequest`] that it could follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TunnelResponse {
    /// So many bytes have been taken since the beginning.
    Taken(u64),
    /// What the node's end says, from the byte on that was asked for.
    Piece {
        /// The bytes, at most [`TunnelStep::DATA_MAX`]; none if nothing was said in time.
        data: Bytes,
        /// Whether they are the last.
        end: bool,
    },
}
