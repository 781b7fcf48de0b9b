//! Runs parts together: until a signal, or until the first of them fails; then all stop.

use std::{error::Error as StdError, fmt, time::Duration};

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Parts that run together.
pub struct Group {
    stop: CancellationToken,
    tasks: JoinSet<Result<(), BoxError>>,
    names: Vec<(Id, &'static str)>,
}

/// Says which part failed, and how.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A part ended with an error.
    #[error("{part} failed: {source}")]
    Failed {
        /// The part's name.
        part: &'static str,
        /// Its error.
        source: BoxError,
    },
    /// A part panicked: a broken invariant.
    #[error("{part} panicked: {message}")]
    Panicked {
        /// The part's name.
        part: &'static str,
        /// What the panic said.
        message: String,
    },
    /// Parts were still running when the grace was over.
    #[error("{} did not stop within {grace:?}", parts.join(", "))]
    Stuck {
        /// The parts' names.
        parts: Vec<&'static str>,
        /// How long they were given.
        grace: Duration,
    },
}

impl Group {
    /// Creates a group that stops when `stop` is cancelled, and cancels it when a part ends.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, tasks: JoinSet::new(), names: Vec::new() }
    }

    /// Starts a part.
    pub fn spawn<F, E>(&mut self, name: &'static str, part: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let handle = self.tasks.spawn(async move { part.await.map_err(Into::into) });
        self.names.push((handle.id(), name));
    }

    /// Waits until the group is stopped or a part ends, stops the others, and waits for them for `grace`.
    ///
    /// # Errors
    /// The first failure; else the parts that did not stop in time (they are aborted).
    pub async fn join(mut self, grace: Duration) -> Result<(), Error> {
        let mut first = Ok(());
        tokio::select! {
            () = self.stop.cancelled() => {}
            Some(ended) = self.tasks.join_next_with_id() => first = self.outcome(ended),
        }
        self.stop.cancel();
        let rest = tokio::time::timeout(grace, async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                let outcome = self.outcome(ended);
                if first.is_ok() {
                    first = outcome;
                }
            }
        });
        if rest.await.is_err() && first.is_ok() {
            let parts = self.names.iter().map(|(_, name)| *name).collect();
            first = Err(Error::Stuck { parts, grace });
        }
        first
    }

    fn outcome(
        &mut self,
        ended: Result<(Id, Result<(), BoxError>), tokio::task::JoinError>,
    ) -> Result<(), Error> {
        match ended {
            Ok((id, result)) => {
                let part = self.forget(id);
                tracing::debug!(part, "part ended");
                result.map_err(|source| Error::Failed { part, source })
            }
            Err(error) => {
                let part = self.forget(error.id());
                Err(Error::Panicked { part, message: error.to_string() })
            }
        }
    }

    fn forget(&mut self, id: Id) -> &'static str {
        match self.names.iter().position(|(known, _)| *known == id) {
            Some(at) => self.names.swap_remove(at).1,
            None => "a part",
        }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("names", &self.names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_failure_stops_the_others_and_is_returned() {
        let stop = CancellationToken::new();
        let mut group = Group::new(stop.clone());
        let waiting = stop.child_token();
        group.spawn("good", async move {
            waiting.cancelled().await;
            Ok::<_, std::io::Error>(())
        });
        group.spawn("bad", async { Err(std::io::Error::other("no disk")) });
        let error = group.join(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "bad failed: no disk");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_stop_is_named() {
        let stop = CancellationToken::new();
        let mut group = Group::new(stop.clone());
        group.spawn("deaf", std::future::pending::<Result<(), std::io::Error>>());
        stop.cancel();
        let error = group.join(Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "deaf did not stop within 1s");
    }
}
