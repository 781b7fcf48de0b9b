use std::time::{Duration, Instant};

/// Says when to ask for a sign of life, and when the peer counts as gone.
///
/// The edge pings when it has said or heard nothing for one heartbeat, and the cloud's pong is the sign of life in both
/// directions. The cloud pings only when a ping of the edge is overdue. So an idle session costs two small
/// frames per heartbeat.
#[derive(Debug)]
pub(super) struct Keepalive {
    heartbeat: Duration,
    side: Side,
    heard: Instant,
    said: Instant,
    pinged: Instant,
    nonce: u64,
    /// The ping that is due and has not been sent: its lane may be busy for long.
    due: Option<u64>,
}

/// Which end of the link this is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Edge,
    Cloud,
}

impl Keepalive {
    pub(super) fn new(side: Side, heartbeat: Duration, now: Instant) -> Self {
        // A heartbeat of nothing would have both sides ping without end.
        let heartbeat = heartbeat.max(Duration::from_millis(10));
        Self { heartbeat, side, heard: now, said: now, pinged: now, nonce: 0, due: None }
    }

    pub(super) fn handle_heard(&mut self, now: Instant) {
        self.heard = now;
    }

    pub(super) fn handle_said(&mut self, now: Instant) {
        self.said = now;
    }

    fn ping_at(&self) -> Instant {
        match self.side {
            Side::Edge => self.heard.min(self.said).max(self.pinged) + self.heartbeat,
            Side::Cloud => (self.heard + self.heartbeat * 3 / 2).max(self.pinged + self.heartbeat / 2),
        }
    }

    fn gone_at(&self) -> Instant {
        self.heard + self.heartbeat * 5 / 2
    }

    /// The number of the ping that is due, once.
    pub(super) fn poll_ping(&mut self) -> Option<u64> {
        self.due.take()
    }

    /// A ping may be due from now on. The timer moves on whether or not the ping finds its lane free, so that a
    /// driver whose lane is busy sleeps instead of being woken without end.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if now >= self.ping_at() {
            self.pinged = now;
            self.nonce += 1;
            self.due = Some(self.nonce);
        }
    }

    /// Whether the peer was silent for too long, and how long.
    pub(super) fn silence(&self, now: Instant) -> Option<Duration> {
        (now >= self.gone_at()).then(|| now.duration_since(self.heard))
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.ping_at().min(self.gone_at())
    }
}

/// Pauses that double up to a limit, each shortened by up to a quarter, so that nodes which were cut off together do
/// not come back together.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, next: min, random: seed }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }

    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = self.next.min(self.max);
        self.next = (pause * 2).min(self.max);
        pause - pause / 4 * (self.random() % 1024) as u32 / 1024
    }

    /// A pause that is longer than asked for, by up to a half.
    pub(super) fn spread(&mut self, pause: Duration) -> Duration {
        if pause.is_zero() {
            return pause;
        }
        pause + pause / 2 * (self.random() % 1024) as u32 / 1024
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): one addition and a few shifts, good enough to spread nodes.
    pub(super) fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Something that is said again until it is answered.
#[derive(Debug)]
pub(super) struct Repeat {
    due: bool,
    at: Option<Instant>,
    after: Duration,
}

impl Repeat {
    /// Says it at once, and again after `after`, doubling up to [`REPEAT_MAX`].
    pub(super) fn new(after: Duration) -> Self {
        Self { due: true, at: None, after }
    }

    /// Whether to say it; the waiting begins with this.
    pub(super) fn poll(&mut self, now: Instant) -> bool {
        if self.due {
            self.at = Some(now + self.after);
        }
        std::mem::take(&mut self.due)
    }

    /// The answer is coming: it is not said again before another `after` has passed.
    pub(super) fn put_off(&mut self, now: Instant, after: Duration) {
        *self = Self { due: false, at: Some(now + after), after };
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.at
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.at.is_some_and(|at| at <= now) {
            self.due = true;
            self.at = None;
            self.after = (self.after * 2).min(REPEAT_MAX);
        }
    }
}

/// The longest pause between repetitions of a session frame.
const REPEAT_MAX: Duration = Duration::from_secs(8);
