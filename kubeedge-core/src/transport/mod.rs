//! The port `Transport`: how frames travel between edge and cloud.
//!
//! A [`Connection`] carries whole frames on [`Lane`]s. Frames of one lane arrive in order; a lane that is full or
//! slow does not hold up the others. Who the peer is has been proven before a connection exists.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{id::NodeName, message::Lane};

#[cfg(any(feature = "quic", feature = "websocket"))]
mod address;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod fallback;
#[cfg(any(feature = "quic", feature = "websocket"))]
mod handshakes;
mod lanes;
pub mod memory;
#[cfg(feature = "quic")]
pub mod quic;
#[cfg(all(test, feature = "tls"))]
pub(crate) mod testing;
#[cfg(feature = "websocket")]
pub mod websocket;

/// Dials the cloud.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// What the transport is called in logs, such as `quic`.
    fn name(&self) -> &'static str;

    /// Opens a connection to the cloud and proves both identities.
    ///
    /// Dropping the future gives up and leaves nothing behind. Where to dial, with which certificate, and how
    /// long to try are the adapter's configuration.
    ///
    /// # Errors
    /// [`TransportError::Unreachable`] if nobody answers in time, [`TransportError::Refused`] if one of the
    /// identities is not accepted.
    async fn connect(&self) -> Result<Box<dyn Connection>, TransportError>;
}

/// Accepts connections from edges.
#[async_trait]
pub trait Listener: fmt::Debug + Send + Sync + 'static {
    /// Waits for the next connection whose peer has proven who it is. A peer that fails to is refused inside
    /// and does not end the listener. Cancel-safe.
    ///
    /// # Errors
    /// Only if no connection can be accepted any more.
    async fn accept(&self) -> Result<Box<dyn Connection>, TransportError>;

    /// The address on which it listens, for people and for tests that let the system choose a port.
    fn local_address(&self) -> String;
}

/// A connection between one edge and the cloud. Dropping it closes it.
#[async_trait]
pub trait Connection: fmt::Debug + Send + Sync + 'static {
    /// The peer as its certificate has proven it.
    fn peer(&self) -> &Peer;

    /// When what proved the peer's identity ends, in time since 1970; `None` if it never does, or is not known. A
    /// certificate is judged when the connection is made, and a session may outlive it.
    fn identity_ends(&self) -> Option<Duration> {
        None
    }

    /// How the peer is reached, for logs: transport and address.
    fn path(&self) -> String;

    /// Sends a frame on a lane; waits while the lane's window is full, and holds up no other lane meanwhile.
    ///
    /// `Ok` says that the transport has the frame, not that the peer does. If the future is dropped before it
    /// ends, the frame is sent whole, or the connection is broken; it is never sent in part.
    ///
    /// # Errors
    /// [`TransportError::TooLong`] if the frame is longer than the lane's limit (nothing is sent and the
    /// connection lives on); otherwise the connection is over.
    async fn send(&self, lane: Lane, frame: Bytes) -> Result<(), TransportError>;

    /// Waits for the next frame of any lane; `None` when the peer has closed the connection in order.
    ///
    /// Cancel-safe: a frame is taken only when this returns. One task receives at a time.
    ///
    /// # Errors
    /// If the connection is over. A frame that announces a length over its lane's limit ends the connection
    /// with [`TransportError::TooLong`] before anything is allocated for it.
    async fn recv(&self) -> Result<Option<(Lane, Bytes)>, TransportError>;

    /// Closes the connection and tells the peer the reason. Frames that `send` has taken before are still
    /// delivered as far as the peer takes them within a short time. Then the peer's `recv` gives `None`, and its
    /// `send` fails with [`TransportError::Closed`] and the reason. A second call does nothing.
    async fn close(&self, reason: &str);
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// An edge node, by the common name of its certificate (`system:node:<name>`).
    Node(NodeName),
    /// The cloud, by a server certificate of the trusted authority.
    Cloud,
}

/// Says why a connection could not be opened, or is over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nobody answered at the address in time.
    #[error("{to} did not answer within {within:?}: {source}")]
    Unreachable {
        /// The address.
        to: String,
        /// How long it was tried.
        within: Duration,
        /// What the last attempt met.
        source: BoxError,
    },
    /// One side does not accept the other's identity, version or configuration; trying again will not help by itself.
    #[error("refused by or for {peer}: {reason}")]
    Refused {
        /// The other side.
        peer: String,
        /// Why.
        reason: String,
    },
    /// A frame is longer than its lane allows.
    #[error("a frame of {length} bytes is over the limit of {limit} bytes of lane {lane:?}")]
    TooLong {
        /// The lane.
        lane: Lane,
        /// The frame's length, announced or real.
        length: u64,
        /// The lane's limit.
        limit: usize,
    },
    /// The peer broke the framing rules.
    #[error("the peer sent what is no frame: {0}")]
    Malformed(String),
    /// The connection ended: the peer closed it with a reason, or fell silent, or the network failed.
    #[error("the connection is over: {0}")]
    Closed(String),
    /// The adapter's configuration cannot work.
    #[error("the transport's configuration is wrong: {0}")]
    Config(String),
}

/// Any error, as a cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl TransportError {
    /// Whether the same call may succeed later without anybody changing a configuration.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Config(_))
    }
}

macro_rules! forward {
    ($($outer:ty),*) => {$(
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<T: Transport + ?Sized> Transport for $outer {
            fn name(&self) -> &'static str {
                (**self).name()
            }
            async fn connect(&self) -> Result<Box<dyn Connection>, TransportError> {
                (**self).connect().await
            }
        }
    )*};
}
forward!(std::sync::Arc<T>, Box<T>);

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Listener + ?Sized> Listener for Box<T> {
    async fn accept(&self) -> Result<Box<dyn Connection>, TransportError> {
        (**self).accept().await
    }
    fn local_address(&self) -> String {
        (**self).local_address()
    }
}
