//! How many calls a mapper may make.

use std::time::Instant;

/// A token bucket: a call takes a token, and tokens come back at an even rate.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(size: u32, now: Instant) -> Self {
        Self { tokens: f64::from(size), filled_at: now }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, per_second: u32, size: u32, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.filled_at = now;
        self.tokens = (self.tokens + passed * f64::from(per_second)).min(f64::from(size));
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pause_fills_the_bucket_and_a_full_one_holds_its_size() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, start);
        let mut taken = |ms| {
            let now = start + Duration::from_millis(ms);
            (0..10).filter(|_| bucket.take(10, 3, now)).count()
        };
        assert_eq!([taken(0), taken(50), taken(100), taken(300), taken(60_000)], [3, 0, 1, 2, 3]);
    }
}
