//! What the state is told of time, and what it asks the driver to do.

use std::time::{Duration, Instant};

use kubeedge_core::{
    id::Uid,
    message::{Report, TokenRequest},
    runtime::ContainerId,
};

use super::ProbeKey;
use crate::edged::{
    action::{Action, Slot, Task},
    devices::Question,
    record::Record,
    words,
};

/// The time, as the driver reads it once for each input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// For waiting.
    pub(crate) at: Instant,
    /// For what people read: milliseconds since the Unix epoch.
    pub(crate) unix_ms: u64,
}

/// What the driver is to do.
#[derive(Debug)]
pub(crate) enum Output {
    /// Perform the action, and hand its outcome to [`State::handle_done`].
    Do(Uid, Slot, Action),
    /// Drop the slot's action in flight; its outcome is [`Outcome::Aborted`].
    Abort(Uid, Slot),
    /// Make a probe within the time, and hand its result to [`State::handle_probe`].
    Probe(Uid, ProbeKey, Task, Duration),
    /// Read a container's last words, and hand them to [`State::handle_words`].
    Read(Uid, ContainerId, words::Source),
    /// Observe the runtime, and hand the outcome to [`State::handle_observed`].
    Observe,
    /// Report to the cloud.
    Report(Report),
    /// Ask for a token, and hand the answer to [`State::handle_token`].
    Token(TokenRequest),
    /// Keep the pod's record, for after a restart.
    Keep(Uid, Record),
    /// Remove the record of a pod that is not there any more, after what is left of its cgroup.
    Forget(Uid),
    /// Give all pods that are promised processor time and are not held to it, so many thousandths of a processor.
    Share(i64),
    /// Ask for devices of a pod that is let in, and hand the outcome to [`State::handle_allocated`].
    Allocate(Uid, Question),
    /// Ask the cloud for the node as the API has it, and hand it to [`State::handle_node`].
    AskForNode,
}

/// That a pod has failed as a whole, whatever its containers do: they are stopped, and it stays as it is until
/// it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Such as `DeadlineExceeded` or `Evicted`.
    pub(crate) reason: String,
    pub(crate) message: String,
    /// How long its containers may take; `None` means as long as the pod says.
    pub(crate) grace: Option<Duration>,
    /// The reason of the condition `DisruptionTarget`, if the pod gets it.
    pub(crate) disruption: Option<&'static str>,
}

impl Verdict {
    pub(super) fn deadline() -> Self {
        Self {
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
            grace: None,
            disruption: None,
        }
    }

    pub(super) fn preempted() -> Self {
        Self {
            reason: "Preempting".to_owned(),
            message: "Preempted in order to admit critical pod".to_owned(),
            grace: None,
            disruption: Some("TerminationByKubelet"),
        }
    }
}
