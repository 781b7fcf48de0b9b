//! What CloudHub says of itself: how many sessions, what waits, what was carried, what memory is taken.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use kubeedge_core::{
    hub::{NodeLink, Offence},
    message::Lane,
    wire::Carried,
};

/// About what an idle session takes, its connection included. Measured with QUIC; WebSocket takes more.
pub(super) const SESSION_BYTES: usize = 48 << 10;

/// The figures of one CloudHub; cloneable, all clones are one.
#[derive(Debug, Clone)]
pub struct Gauges(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory_max: usize,
    memory: AtomicUsize,
    sessions: AtomicUsize,
    refused: AtomicU64,
    resends: AtomicU64,
    offences: [AtomicU64; Offence::ALL.len()],
    sent: [AtomicU64; Lane::ALL.len()],
    received: [AtomicU64; Lane::ALL.len()],
    /// What waits, of the sessions for which something does.
    waiting: Mutex<BTreeMap<u64, Waiting>>,
}

/// Of one lane: how many items wait, and when the one was first sent that was not acknowledged for longest.
type Waiting = [(Lane, usize, Option<Instant>); 3];

/// What CloudHub has come to at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes that have a session.
    pub sessions: usize,
    /// Sessions and connections that were refused, since the start.
    pub refused: u64,
    /// Connections that ended because their node broke the rules of the link, since the start.
    pub offences: Vec<(Offence, u64)>,
    /// Items that were sent again because nothing was heard of them, since the start.
    pub resends: u64,
    /// Each lane.
    pub lanes: Vec<LaneCounts>,
    /// About how many bytes of memory the sessions take.
    pub memory: usize,
    /// How many they may take.
    pub memory_max: usize,
}

/// One lane at one moment, over all sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneCounts {
    /// The lane.
    pub lane: Lane,
    /// How many objects wait for their nodes, or are on their way.
    pub depth: usize,
    /// For how long the oldest of those that are on their way has been.
    pub age: Duration,
    /// Bytes of frames sent, since the start.
    pub sent: u64,
    /// Bytes of frames received, since the start.
    pub received: u64,
}

impl Gauges {
    pub(super) fn new(memory_max: usize) -> Self {
        Self(Arc::new(Shared {
            memory_max,
            memory: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            resends: AtomicU64::new(0),
            offences: Default::default(),
            sent: Default::default(),
            received: Default::default(),
            waiting: Mutex::default(),
        }))
    }

    /// What it has come to.
    pub fn counts(&self) -> Counts {
        let shared = &self.0;
        let now = super::session::now();
        let waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = Lane::ALL.map(|lane| {
            let of_lane = || waiting.values().flatten().filter(|(of, ..)| *of == lane);
            let oldest = of_lane().filter_map(|(_, _, since)| *since).min();
            LaneCounts {
                lane,
                depth: of_lane().map(|(_, depth, _)| depth).sum(),
                age: oldest.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
                sent: shared.sent[lane.index()].load(Relaxed),
                received: shared.received[lane.index()].load(Relaxed),
            }
        });
        Counts {
            sessions: shared.sessions.load(Relaxed),
            refused: shared.refused.load(Relaxed),
            offences: Offence::ALL
                .into_iter()
                .zip(shared.offences.iter().map(|count| count.load(Relaxed)))
                .collect(),
            resends: shared.resends.load(Relaxed),
            lanes: lanes.into(),
            memory: shared.memory.load(Relaxed),
            memory_max: shared.memory_max,
        }
    }

    pub(super) fn set_sessions(&self, sessions: usize) {
        self.0.sessions.store(sessions, Relaxed);
    }

    pub(super) fn note_refused(&self) {
        self.0.refused.fetch_add(1, Relaxed);
    }

    /// Opens the account of a session, if there is memory for one.
    pub(super) fn open(&self, session: u64) -> Option<Account> {
        let mut account = Account { gauges: self.clone(), session, memory: 0, resends: 0, waits: false };
        account.take(SESSION_BYTES).then_some(account)
    }
}

/// What one session takes and carries; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Account {
    gauges: Gauges,
    session: u64,
    memory: usize,
    resends: u64,
    waits: bool,
}

impl Account {
    /// Accounts for what the session has come to. `false` says that it needs memory that there is not.
    pub(super) fn note(&mut self, link: &NodeLink, carried: Carried) -> bool {
        let shared = &self.gauges.0;
        for (total, bytes) in shared.sent.iter().zip(carried.sent) {
            total.fetch_add(bytes, Relaxed);
        }
        for (total, bytes) in shared.received.iter().zip(carried.received) {
            total.fetch_add(bytes, Relaxed);
        }
        shared.resends.fetch_add(link.resends() - self.resends, Relaxed);
        self.resends = link.resends();
        let waiting = link.waiting();
        let waits = waiting.iter().any(|(_, depth, _)| *depth > 0);
        if waits || self.waits {
            let mut all = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waits {
                all.insert(self.session, waiting)
            } else {
                all.remove(&self.session)
            };
        }
        self.waits = waits;
        self.take(SESSION_BYTES + link.memory())
    }

    /// Counts that there was no memory for what the session needs.
    pub(super) fn note_refused(&self) {
        self.gauges.note_refused();
    }

    /// Counts why the session ended.
    pub(super) fn note_offence(&self, offence: Offence) {
        self.gauges.0.offences[offence as usize].fetch_add(1, Relaxed);
    }

    /// Takes so much memory in place of what it had, if there is as much; giving back always succeeds.
    fn take(&mut self, memory: usize) -> bool {
        let (had, max) = (self.memory, self.gauges.0.memory_max);
        let fits = |all: usize| {
            let after = all - had + memory;
            (memory <= had || after <= max).then_some(after)
        };
        let taken = self.gauges.0.memory.fetch_update(Relaxed, Relaxed, fits).is_ok();
        if taken {
            self.memory = memory;
        }
        taken
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.gauges.0.memory.fetch_sub(self.memory, Relaxed);
        if self.waits {
            self.gauges.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.session);
        }
    }
}
