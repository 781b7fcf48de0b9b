//! Which pod ends next.

use std::{cmp::Reverse, time::Duration};

use kubeedge_core::id::Uid;

use super::{Shortage, Signal};
use crate::edged::{quantity, state::Verdict};

/// One second: what the kubelet gives when there is no time.
pub(super) const AT_ONCE: Duration = Duration::from_secs(1);

/// A pod that could end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) uid: Uid,
    /// Whether it must stay.
    pub(crate) critical: bool,
    pub(crate) priority: i32,
    /// `Guaranteed`, `Burstable` or `BestEffort`: what counts if the use is not known.
    pub(crate) quality: &'static str,
    /// What it asked for and what it uses, by container. The use is `None` if the runtime cannot tell.
    pub(crate) containers: Vec<Use>,
    /// What it uses besides its containers, such as its volumes.
    pub(crate) besides: i64,
}

/// What one container uses of what is short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) name: String,
    pub(crate) requested: i64,
    pub(crate) used: Option<i64>,
}

impl Candidate {
    fn requested(&self) -> i64 {
        self.containers.iter().map(|one| one.requested).fold(0, i64::saturating_add)
    }

    fn used(&self) -> Option<i64> {
        let known = self.containers.iter().any(|one| one.used.is_some());
        let sum = self.containers.iter().filter_map(|one| one.used).fold(self.besides, i64::saturating_add);
        (known || self.besides > 0).then_some(sum)
    }

    /// Ascending: who ends first is first.
    fn rank(&self) -> (bool, i32, Reverse<i64>) {
        match self.used() {
            Some(used) => {
                let over = used.saturating_sub(self.requested());
                (over <= 0, self.priority, Reverse(over))
            }
            // Without figures a pod that asked for nothing uses more than it asked for, and a guaranteed one not.
            None => match self.quality {
                "BestEffort" => (false, self.priority, Reverse(0)),
                "Burstable" => (true, self.priority, Reverse(0)),
                _ => (true, self.priority, Reverse(-1)),
            },
        }
    }
}

/// Chooses the pod that ends, and says why. `None` if there is none that may.
pub(crate) fn choose(
    candidates: &[Candidate],
    shortage: &Shortage,
    soft_grace: Duration,
) -> Option<(Uid, Verdict)> {
    let chosen =
        candidates.iter().filter(|one| !one.critical).min_by_key(|one| (one.rank(), one.uid.clone()))?;
    let verdict = Verdict {
        reason: "Evicted".to_owned(),
        message: message(chosen, shortage),
        grace: Some(if shortage.hard { AT_ONCE } else { soft_grace }),
        disruption: Some("TerminationByKubelet"),
    };
    Some((chosen.uid.clone(), verdict))
}

/// In the kubelet's words, which people search for; the spaces at the ends are theirs too.
fn message(pod: &Candidate, shortage: &Shortage) -> String {
    let resource = shortage.signal.resource();
    let show = |amount| show(amount, shortage.signal);
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        show(shortage.quantity),
        show(shortage.available)
    );
    for one in &pod.containers {
        if let Some(used) = one.used.filter(|used| *used > one.requested) {
            let (name, used, requested) = (&one.name, show(used), show(one.requested));
            message += &format!(
                "Container {name} was using {used}, request is {requested}, has larger consumption of {resource}. "
            );
        }
    }
    message
}

fn show(amount: i64, signal: Signal) -> String {
    if signal.is_bytes() { quantity::binary(amount) } else { amount.to_string() }
}
