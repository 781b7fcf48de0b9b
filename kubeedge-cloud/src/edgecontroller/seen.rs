//! What the cloud sees of a node that the node cannot know or might hide: whether its clock and its version agree with the
//! cloud's. Each is a condition of the Node. Pure.

use std::time::Duration;

use kubeedge_core::message::ClockOffset;
use serde_json::{Value, json};

/// Whether the node's clock shows about what the cloud's shows.
pub(super) const CLOCK_CONDITION: &str = "EdgeClockSynced";

/// Whether the node's version goes with the cloud's.
pub(super) const VERSION_CONDITION: &str = "EdgeVersionSupported";

/// How many minor versions the edge may be behind or ahead of the cloud, so that either may be upgraded first.
const MINOR_VERSIONS: u64 = 2;

/// What is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds {
    /// How far a node's clock may be off.
    pub(super) clock_offset_max: Duration,
    /// The cloud's own version.
    pub(super) version: String,
}

impl Bounds {
    /// The conditions, without times: of the clock once it was measured, of the version if the report says one.
    pub(super) fn conditions(&self, clock: Option<ClockOffset>, report: &Value) -> Vec<Value> {
        let clock = clock.map(|offset| self.clock(offset));
        clock.into_iter().chain(self.version(report)).collect()
    }

    /// The condition of a clock that is so far off. Its text changes by whole seconds, and only while the clock is wrong.
    pub(super) fn clock(&self, offset: ClockOffset) -> Value {
        let max = self.clock_offset_max;
        if u128::from(offset.ms.unsigned_abs()) <= max.as_millis() {
            let message = format!("The edge's clock is at most {max:?} from the cloud's.");
            return condition(CLOCK_CONDITION, "True", "ClocksAgree", message);
        }
        let (seconds, way) =
            (offset.ms.unsigned_abs() / 1000, if offset.ms > 0 { "ahead of" } else { "behind" });
        let message = format!(
            "The edge's clock is {seconds} s {way} the cloud's, as measured over the link. Certificates and tokens need a \
             clock that is right."
        );
        condition(CLOCK_CONDITION, "False", "ClocksDiffer", message)
    }

    fn version(&self, report: &Value) -> Option<Value> {
        let reported = report["status"]["nodeInfo"]["kubeletVersion"].as_str()?;
        let edge = of_kubelet(reported);
        let message = format!(
            "The edge is {} and the cloud {}; {MINOR_VERSIONS} minor versions between them are supported.",
            edge.unwrap_or(reported),
            self.version
        );
        let (edge, cloud) = (edge.and_then(numbers), numbers(&self.version));
        let (Some(edge), Some(cloud)) = (edge, cloud) else {
            return Some(condition(VERSION_CONDITION, "Unknown", "VersionUnreadable", message));
        };
        let supported = edge.0 == cloud.0 && edge.1.abs_diff(cloud.1) <= MINOR_VERSIONS;
        Some(match (supported, edge < cloud) {
            (true, _) => condition(VERSION_CONDITION, "True", "VersionSupported", message),
            (false, true) => condition(VERSION_CONDITION, "False", "VersionTooOld", message),
            (false, false) => condition(VERSION_CONDITION, "False", "VersionTooNew", message),
        })
    }
}

/// Whether the condition is the cloud's to set.
pub(super) fn is_seen(condition: &Value) -> bool {
    condition["type"] == CLOCK_CONDITION || condition["type"] == VERSION_CONDITION
}

fn condition(kind: &str, status: &str, reason: &str, message: String) -> Value {
    json!({ "type": kind, "status": status, "reason": reason, "message": message })
}

/// The version of the edge in what it reports as its kubelet's: Kubernetes', and behind `kubeedge` its own.
fn of_kubelet(version: &str) -> Option<&str> {
    let (_, own) = version.split_once("-kubeedge-")?;
    Some(own.strip_prefix("rs-").unwrap_or(own))
}

fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(version: &str) -> Bounds {
        Bounds { clock_offset_max: Duration::from_secs(10), version: version.to_owned() }
    }

    #[test]
    fn a_clock_that_is_off_is_named_with_how_far_and_which_way() {
        let of = |ms| bounds("1.4.0").clock(ClockOffset { ms });
        for fine in [0, 10_000, -10_000] {
            assert_eq!(of(fine)["status"], "True", "{fine}");
            assert_eq!(of(fine), of(1), "what is fine is told once");
        }
        for (ms, says) in [(10_001, "10 s ahead of"), (-3_600_500, "3600 s behind"), (i64::MIN, "s behind")] {
            let told = of(ms);
            assert_eq!(told["status"], "False");
            assert!(told["message"].as_str().unwrap().contains(says), "{told}");
        }
    }

    #[test]
    fn a_version_is_compared_by_its_minor_number() {
        let of = |kubelet: &str| {
            let report = json!({ "status": { "nodeInfo": { "kubeletVersion": kubelet } } });
            let told = bounds("1.4.0").version(&report).unwrap();
            (told["status"].as_str().unwrap().to_owned(), told["reason"].as_str().unwrap().to_owned())
        };
        for (kubelet, status, reason) in [
            ("v1.33.0-kubeedge-rs-1.4.7", "True", "VersionSupported"),
            ("v1.33.0-kubeedge-rs-1.2.0", "True", "VersionSupported"),
            ("v1.33.0-kubeedge-v1.6.0-beta.1", "True", "VersionSupported"),
            ("v1.33.0-kubeedge-rs-1.1.9", "False", "VersionTooOld"),
            ("v1.33.0-kubeedge-rs-1.7.0", "False", "VersionTooNew"),
            ("v1.33.0-kubeedge-rs-2.4.0", "False", "VersionTooNew"),
            ("v1.33.0", "Unknown", "VersionUnreadable"),
            ("v1.33.0-kubeedge-next", "Unknown", "VersionUnreadable"),
        ] {
            assert_eq!(of(kubelet), (status.to_owned(), reason.to_owned()), "{kubelet}");
        }
        assert_eq!(bounds("1.4.0").version(&json!({})), None);
    }
}
