//! When a certificate is asked for, and how. Pure: all times are since 1970, by a clock that may jump.

use std::time::Duration;

use kubeedge_core::tls::Lifetime;

/// The first pause after a failure; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(2);

/// The longest pause: a cloud that comes back finds its nodes within minutes.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Into so many parts a time is divided over which nodes are spread.
const SPREAD: u32 = 10_000;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Todo {
    /// Ask for a certificate with the token.
    Enrol,
    /// Ask for the next one with the one that is there.
    Renew,
    /// Ask which authorities are trusted.
    Bundle,
    /// Nothing before this time; `None` if nothing will ever be.
    Wait(Option<Duration>),
}

#[derive(Debug)]
pub(super) struct State {
    lifetime: Option<Lifetime>,
    has_token: bool,
    rotate: bool,
    bundle_interval: Duration,
    bundle_due: Duration,
    failures: u32,
    retry_at: Duration,
    /// The cloud does not renew what is there.
    refused: bool,
    /// When a certificate is renewed because its authority does not sign any more.
    follow_at: Option<Duration>,
    /// Below [`SPREAD`]: spreads the nodes that have joined together.
    spread: u32,
}

impl State {
    pub(super) fn new(
        lifetime: Option<Lifetime>,
        has_token: bool,
        rotate: bool,
        bundle_interval: Duration,
        seed: u64,
    ) -> Self {
        Self {
            lifetime,
            has_token,
            rotate,
            bundle_interval,
            bundle_due: Duration::ZERO,
            failures: 0,
            retry_at: Duration::ZERO,
            refused: false,
            follow_at: None,
            spread: u32::try_from(seed % u64::from(SPREAD)).unwrap_or(0),
        }
    }

    pub(super) fn todo(&self, now: Duration) -> Todo {
        let Some(lifetime) = self.lifetime else {
            return match (self.has_token, now < self.retry_at) {
                (false, _) => Todo::Wait(None),
                (true, true) => Todo::Wait(Some(self.retry_at)),
                (true, false) => Todo::Enrol,
            };
        };
        let due = self.due(lifetime).max(self.retry_at);
        // A clock that is before the certificate's beginning is wrong, and says nothing about its end.
        if self.rotate && now >= due && now >= lifetime.not_before {
            let is_lost = self.refused && now >= lifetime.not_after;
            return if is_lost && self.has_token { Todo::Enrol } else { Todo::Renew };
        }
        if now >= self.bundle_due.max(self.retry_at) {
            return Todo::Bundle;
        }
        let renewal = if self.rotate { due } else { Duration::MAX };
        Todo::Wait(Some(renewal.min(self.bundle_due.max(self.retry_at))))
    }

    /// When a third of the life is left, or up to a thirtieth of the life before; sooner if another authority signs.
    fn due(&self, lifetime: Lifetime) -> Duration {
        let life = lifetime.not_after.saturating_sub(lifetime.not_before);
        let aged = lifetime.renewal().saturating_sub(self.part_of(life / 30));
        self.follow_at.map_or(aged, |follow| follow.min(aged))
    }

    /// This node's place in a time over which all nodes are spread.
    fn part_of(&self, time: Duration) -> Duration {
        time * self.spread / SPREAD
    }

    pub(super) fn handle_certificate(&mut self, lifetime: Lifetime) {
        self.lifetime = Some(lifetime);
        (self.failures, self.retry_at, self.refused) = (0, Duration::ZERO, false);
        self.follow_at = None;
    }

    /// The cloud has said which authorities are trusted. If the one that signs has not signed this node's certificate, the
    /// node renews it within a quarter of the time until it asks again. It does so once per answer: what another replica
    /// signs meanwhile may be of the one before.
    pub(super) fn handle_bundle(&mut self, is_of_signer: bool, now: Duration) {
        self.bundle_due = now + self.bundle_interval;
        if is_of_signer {
            self.follow_at = None;
        } else {
            self.follow_at.get_or_insert(now + self.part_of(self.bundle_interval / 4));
        }
    }

    pub(super) fn handle_failure(&mut self, is_refusal: bool, now: Duration) {
        // Refusals of the token and of the certificate take turns.
        self.refused = is_refusal && !self.refused;
        let pause = (PAUSE * 2u32.saturating_pow(self.failures)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1).min(16);
        self.retry_at = now + pause / 2 + self.part_of(pause / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const NEVER: Duration = Duration::from_secs(1 << 40);

    fn state(lifetime: Option<Lifetime>, has_token: bool) -> State {
        State::new(lifetime, has_token, true, NEVER, 0)
    }

    fn lifetime() -> Lifetime {
        Lifetime { not_before: 1000 * DAY, not_after: 1300 * DAY }
    }

    /// A state that has asked for the authorities already.
    fn settled(has_token: bool) -> State {
        let mut state = state(Some(lifetime()), has_token);
        assert_eq!(state.todo(1000 * DAY), Todo::Bundle);
        state.handle_bundle(true, 1000 * DAY);
        state
    }

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
        let mut state = settled(false);
        assert_eq!(state.todo(1100 * DAY), Todo::Wait(Some(1200 * DAY)));
        assert_eq!(state.todo(1200 * DAY), Todo::Renew);
        let next = Lifetime { not_before: 1200 * DAY, not_after: 1500 * DAY };
        state.handle_certificate(next);
        assert_eq!(state.todo(1200 * DAY), Todo::Wait(Some(1400 * DAY)));
    }

    #[test]
    fn a_failure_is_followed_by_growing_pauses() {
        let mut state = settled(false);
        let mut now = 1200 * DAY;
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(state.todo(now), Todo::Renew);
            state.handle_failure(false, now);
            let Todo::Wait(Some(until)) = state.todo(now) else { panic!("no pause") };
            pauses.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150, 150, 150]);
    }

    #[test]
    fn a_certificate_that_is_lost_is_replaced_by_token_if_there_is_one() {
        let late = 1400 * DAY;
        let mut with = settled(true);
        assert_eq!(with.todo(late), Todo::Renew, "its key may still be good enough");
        with.handle_failure(true, late);
        assert_eq!(with.todo(late + DAY), Todo::Enrol);
        with.handle_failure(true, late + DAY);
        assert_eq!(with.todo(late + 2 * DAY), Todo::Renew);
        let mut without = settled(false);
        without.handle_failure(true, late);
        assert_eq!(without.todo(late + DAY), Todo::Renew, "somebody may change the policy");
    }

    #[test]
    fn a_node_without_a_certificate_asks_by_token_at_once() {
        assert_eq!(state(None, true).todo(Duration::ZERO), Todo::Enrol);
        assert_eq!(state(None, false).todo(Duration::ZERO), Todo::Wait(None));
    }

    #[test]
    fn a_clock_that_is_wrong_by_years_renews_nothing_that_is_good() {
        let state = settled(false);
        for years in 0..2 {
            assert!(matches!(state.todo(365 * years * DAY), Todo::Wait(_)));
        }
        assert_eq!(state.todo(1400 * DAY), Todo::Renew);
        assert!(
            matches!(state.todo(1100 * DAY), Todo::Wait(_)),
            "and when it is right again, all is as it was"
        );
    }

    #[test]
    fn nodes_that_have_joined_together_do_not_renew_together() {
        let due = |seed| State::new(Some(lifetime()), false, true, NEVER, seed).due(lifetime());
        assert_eq!(due(0), 1200 * DAY);
        assert!(due(5000) < due(1000) && due(9999) > 1189 * DAY);
    }

    #[test]
    fn when_another_authority_signs_all_nodes_renew_within_hours_and_not_at_once() {
        let renewal = |seed| {
            let mut state = State::new(Some(lifetime()), false, true, DAY, seed);
            let now = 1100 * DAY;
            assert_eq!(state.todo(now), Todo::Bundle);
            state.handle_bundle(false, now);
            let Todo::Wait(Some(at)) = state.todo(now) else { return now };
            assert_eq!(state.todo(at), Todo::Renew);
            // The same news again does not put it off.
            state.handle_bundle(false, at);
            assert_eq!(state.todo(at), Todo::Renew);
            // What came of it counts as followed, also where a replica still signs with the one before.
            state.handle_certificate(Lifetime { not_before: at, not_after: at + 300 * DAY });
            assert_eq!(state.todo(at), Todo::Wait(Some(at + DAY)));
            at
        };
        let times: std::collections::BTreeSet<_> = (0..1000).map(|seed| renewal(seed * 7919)).collect();
        assert!(times.len() > 900, "{} moments for 1000 nodes", times.len());
        assert!(times.iter().all(|at| *at < 1100 * DAY + DAY / 4));
    }

    #[test]
    fn a_node_that_is_not_to_renew_does_not_follow_either() {
        let mut state = State::new(Some(lifetime()), false, false, DAY, 0);
        state.handle_bundle(false, 1100 * DAY);
        assert_eq!(state.todo(1100 * DAY), Todo::Wait(Some(1101 * DAY)));
    }
}
