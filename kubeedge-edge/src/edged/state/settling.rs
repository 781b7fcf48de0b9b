//! When all pods that the node had are known, so that the rest of what runs is nobody's.

use std::time::{Duration, Instant};

use tracing::info;

use super::{Moment, Output, Stage, State};

/// Whether the pods that the node already had have all been told to us.
#[derive(Debug)]
pub(super) enum Settled {
    /// Not before the first instant, not before the edge was in sync with the cloud once, and not before the
    /// pipe was quiet for a while after that. A quiet pipe alone says nothing: a store that lost what it had
    /// is quiet too, and offline its pods have to run on.
    Waiting {
        earliest: Instant,
        synchronized: bool,
        quiet_since: Instant,
    },
    Yes,
    /// Nobody tells us any more, so nobody's sandboxes cannot be told from others.
    Never,
}

/// The pipe must be quiet this long, in sync with the cloud, before a sandbox counts as nobody's.
pub(super) const QUIET: Duration = Duration::from_secs(2);

impl State {
    pub(super) fn settle(&mut self, now: Moment) {
        if self.settles_at().is_some_and(|at| now.at >= at) {
            self.settled = Settled::Yes;
            for entry in self.pods.values_mut().filter(|entry| entry.stage == Stage::Orphan) {
                info!(pod = %entry.reference, uid = %entry.uid, "a sandbox of no known pod will be removed");
                entry.changed = true;
            }
            let left = std::mem::take(&mut self.records).into_keys();
            self.outputs.extend(left.map(Output::Forget));
        }
    }

    /// When every pod that the node had counts as known, if that is only a matter of time.
    pub(super) fn settles_at(&self) -> Option<Instant> {
        match self.settled {
            Settled::Waiting { earliest, synchronized: true, quiet_since } => {
                Some(earliest.max(quiet_since + QUIET))
            }
            Settled::Waiting { synchronized: false, .. } | Settled::Yes | Settled::Never => None,
        }
    }
}
