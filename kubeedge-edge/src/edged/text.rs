//! Times and durations as Kubernetes writes them.

use std::time::Duration;

/// A time as the API writes it: whole seconds in UTC.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(0);
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "1970-01-01T00:00:00Z".to_owned(), |t| t.to_string())
}

/// The time that the API wrote, in milliseconds since the Unix epoch.
pub(crate) fn unix_ms(rfc3339: &str) -> Option<u64> {
    let time: jiff::Timestamp = rfc3339.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

/// A duration as Go prints it, which is what people search for: `10s`, `1m20s`, `5m0s`, `1.234s`, `250ms`.
pub(crate) fn duration(duration: Duration) -> String {
    let millis = duration.as_millis() % 1000;
    let seconds = duration.as_secs();
    if seconds == 0 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let fraction = format!(".{millis:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}{fraction}s"),
        (0, _) => format!("{minutes}m{rest}{fraction}s"),
        (_, _) => format!("{hours}h{minutes}m{rest}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let told = [(10_000, "10s"), (80_000, "1m20s"), (300_000, "5m0s"), (1_230, "1.23s"), (250, "250ms")];
        for (millis, text) in told {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(duration(Duration::from_secs(3600)), "1h0m0s");
        assert_eq!(unix_ms(&rfc3339(1_700_000_000_000)), Some(1_700_000_000_000));
    }
}
