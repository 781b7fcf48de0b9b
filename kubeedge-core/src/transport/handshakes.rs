//! Handshakes under way at a listener: side by side, each with a deadline.

use std::{future::Future, net::SocketAddr, time::Duration};

use tokio::{task::JoinSet, time::timeout};
use tracing::{info, warn};

/// Tasks that end with a connection or the reason why there is none; aborted when dropped.
pub(super) struct Handshakes<C>(JoinSet<Result<C, Failed>>);

/// A handshake that came to nothing.
struct Failed {
    from: SocketAddr,
    reason: String,
}

impl<C> Default for Handshakes<C> {
    fn default() -> Self {
        Self(JoinSet::new())
    }
}

impl<C: Send + 'static> Handshakes<C> {
    /// How many are under way, or done and not yet taken.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Begins one that may take `limit`.
    pub(super) fn begin(
        &mut self,
        from: SocketAddr,
        limit: Duration,
        handshake: impl Future<Output = Result<C, String>> + Send + 'static,
    ) {
        self.0.spawn(async move {
            let done = timeout(limit, handshake).await;
            done.unwrap_or_else(|_| Err(format!("the handshake took longer than {limit:?}")))
                .map_err(|reason| Failed { from, reason })
        });
    }

    /// Waits for the next to end: with a connection, or with nothing. `None` if none is under way. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Option<C>> {
        match self.0.join_next().await? {
            Ok(Ok(connection)) => return Some(Some(connection)),
            Ok(Err(failed)) => info!(from = %failed.from, reason = failed.reason, "a connection was refused"),
            Err(error) => warn!(%error, "a handshake ended in an unexpected way"),
        }
        Some(None)
    }
}
