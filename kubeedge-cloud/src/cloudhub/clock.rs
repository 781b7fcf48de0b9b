//! How far a node's clock is from the cloud's, measured by frames that go anyway. Pure.
//!
//! The node answers at once when it is told that it is in sync; half of the time that this takes is how old what its clock
//! shows is when it arrives. A clock of the node that jumps meanwhile changes nothing but the result.

use std::time::{Duration, Instant};

use kubeedge_core::message::ClockOffset;

/// What is known of one session.
#[derive(Debug, Default)]
pub(super) struct Clock {
    asked: Option<Instant>,
    round_trip: Option<Duration>,
}

impl Clock {
    /// The node is told that it is in sync.
    pub(super) fn handle_asked(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// It has answered.
    pub(super) fn handle_answered(&mut self, now: Instant) {
        if self.round_trip.is_none() {
            self.round_trip = self.asked.map(|asked| now.saturating_duration_since(asked));
        }
    }

    /// How far the node's clock is away, of which it said what it shows; both in milliseconds since 1970.
    pub(super) fn offset(&self, node_ms: u64, cloud_ms: u64) -> Option<ClockOffset> {
        let half = i128::try_from(self.round_trip?.as_millis() / 2).unwrap_or_default();
        let ms = i128::from(node_ms) + half - i128::from(cloud_ms);
        Some(ClockOffset { ms: i64::try_from(ms).unwrap_or(if ms < 0 { i64::MIN } else { i64::MAX }) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_round_trip_is_how_old_what_the_clock_shows_is() {
        let (mut clock, start) = (Clock::default(), Instant::now());
        assert_eq!(clock.offset(1, 1), None, "nothing was measured");
        clock.handle_asked(start);
        clock.handle_asked(start + Duration::from_secs(1));
        clock.handle_answered(start + Duration::from_secs(2));
        clock.handle_answered(start + Duration::from_secs(60));
        // The answer was sent a second before it came, when both clocks showed the same.
        assert_eq!(clock.offset(100_000, 101_000), Some(ClockOffset { ms: 0 }));
        assert_eq!(clock.offset(0, 101_000), Some(ClockOffset { ms: -100_000 }));
        assert_eq!(clock.offset(u64::MAX, 0), Some(ClockOffset { ms: i64::MAX }));
    }
}
