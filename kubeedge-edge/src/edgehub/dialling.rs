use std::{fmt, future::pending, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use kubeedge_core::transport::{Connection, Transport, TransportError};
use tokio::time::{Instant, sleep_until, timeout};

/// Attempts to connect that overlap: a new one begins at every interval, and those before it go on.
///
/// An attempt may need long, for a dead address before a good one or for a far satellite. But one that began while
/// the network was away may sit in a long pause between repetitions when it is back, and a fresh one gets through.
pub(super) struct Dialling {
    transport: Arc<dyn Transport>,
    /// How long one attempt may take.
    within: Duration,
    every: Duration,
    attempts: FuturesUnordered<BoxFuture<'static, Dialled>>,
    next_at: Option<Instant>,
}

/// How an attempt ended.
pub(super) type Dialled = Result<Box<dyn Connection>, TransportError>;

/// So many attempts at once, which bounds what a dead network costs.
pub(super) const ATTEMPTS_MAX: usize = 5;

impl Dialling {
    pub(super) fn new(transport: Arc<dyn Transport>, within: Duration, every: Duration) -> Self {
        // Without a pause the attempts would begin in one burst.
        let every = every.max(Duration::from_millis(100));
        Self { transport, within, every, attempts: FuturesUnordered::new(), next_at: None }
    }

    /// Begins an attempt; the next follows after the interval.
    pub(super) fn begin(&mut self) {
        let (transport, within) = (self.transport.clone(), self.within);
        self.attempts.push(Box::pin(async move {
            timeout(within, transport.connect()).await.unwrap_or_else(|late| {
                let to = transport.name().to_owned();
                Err(TransportError::Unreachable { to, within, source: late.into() })
            })
        }));
        self.next_at = Some(Instant::now() + self.every);
    }

    /// Drops all attempts, which leaves nothing behind.
    pub(super) fn stop(&mut self) {
        self.attempts.clear();
        self.next_at = None;
    }

    /// Whether other attempts are still running.
    pub(super) fn goes_on(&self) -> bool {
        !self.attempts.is_empty()
    }

    /// Waits for an attempt to end and begins those that are due meanwhile. Cancel-safe.
    pub(super) async fn next(&mut self) -> Dialled {
        loop {
            if self.attempts.is_empty() {
                return pending().await;
            }
            let (full, next_at) = (self.attempts.len() >= ATTEMPTS_MAX, self.next_at);
            tokio::select! {
                biased;
                Some(dialled) = self.attempts.next() => return dialled,
                () = sleep_until(next_at.unwrap_or_else(Instant::now)), if !full => self.begin(),
            }
        }
    }
}

impl fmt::Debug for Dialling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialling").field("attempts", &self.attempts.len()).finish_non_exhaustive()
    }
}
