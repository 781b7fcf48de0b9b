//! How often something may be done. Pure.

use std::time::Instant;

/// So many at once, and so many in a second after that.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    burst: f64,
    credit: f64,
    at: Instant,
}

impl Rate {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self { per_second: f64::from(per_second), burst, credit: burst, at: now }
    }

    /// Takes a turn, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.credit, self.at) = ((self.credit + passed * self.per_second).min(self.burst), now);
        let granted = self.credit >= 1.0;
        if granted {
            self.credit -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_a_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(10, 3, start);
        let passed = |rate: &mut Rate, now| (0..100).filter(|_| rate.take(now)).count();
        assert_eq!(passed(&mut rate, start), 3);
        assert_eq!(passed(&mut rate, start + Duration::from_millis(250)), 2);
        assert_eq!(
            passed(&mut rate, start + Duration::from_secs(3600)),
            3,
            "no more is saved up than a burst"
        );
    }
}
