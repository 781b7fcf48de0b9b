//! Keeper: keeps what mappers read, answers questions about it, and pushes it where its devices say.
//!
//! Values are stored in *blocks*, many devices together, in the order in which they came. So one commit, with one
//! sync of the disk, serves thousands of values, and what is stored is written once.
//!
//! * **What is durable when.** A value is durable at most [`Config::commit_within`] after it was read; [`Stats`] says
//!   up to which. A power cut loses what came after the last commit, and nothing else. Only durable values are pushed.
//! * **The ring.** The newest values are kept, as many as [`History`] says, and [`Outside::queries`] asks for them.
//! * **The outbox.** Each server or broker that devices name has one: values are sent in order, at least once, again
//!   after pauses that double while it does not answer, and for as long as [`Outgoing`] says. [`Stats`] has how many
//!   wait, since when, and what was dropped, and why.
//! * **Memory.** What is not durable yet is bounded by [`Config::unsaved_bytes_max`], and one block for each destination
//!   is in memory while it is sent. If the disk cannot keep up, values wait in their pipe, and their mappers with them.
//!   If it fails, the oldest that are not durable go, and are counted.
//!
//! A value of a device with many others takes about ten bytes of the disk. For ten thousand values a second, give
//! [`Config::block_bytes`] a few hundred KiB and the pipe of samples a capacity of a few thousand: a commit a second does.
//!
//! What is sent has the form of KubeEdge's own mappers ([`Format::Mapper`]) or is JSON ([`Format::Json`]).
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//!
//! use kubeedge_core::{device::Sample, id::DeviceId, store::memory::MemoryStore};
//! use kubeedge_device::keeper::{self, Config, Keeper, Query};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (inbox, outbox, outside) = keeper::pipes();
//! let stop = CancellationToken::new();
//! let keeper = Keeper::new(Config::default(), Arc::new(MemoryStore::new()), inbox, outbox);
//! let running = tokio::spawn(keeper.run(stop.clone()));
//!
//! outside.samples.send(Sample {
//!     device: DeviceId::new("default", "boiler")?,
//!     property: "pressure".to_owned(),
//!     value: "1.5".to_owned(),
//!     timestamp_ms: 1_700_000_000_000,
//!     push: [].into(),
//! })?;
//! let mut stats = outside.stats;
//! stats.wait_for(|stats| stats.durable == 1).await?;

//! let found = outside.queries.call(Query::default(), Duration::from_secs(5)).await??;
//! assert_eq!(found[0].sample.value, "1.5");
//! stop.cancel();
//! running.await??;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "keeper-api")]
pub mod api;
mod block;
mod deliver;
mod driver;
mod outgoing;
mod query;
mod state;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kubeedge_core::{
    device::Sample,
    pipe::{self, Callee, Caller, EventReceiver, EventSender},
    store::{MetaStore, StoreError},
};
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use outgoing::{Destination, DestinationStats};
pub use query::{Kept, Query};

/// How values are kept and pushed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long after it was read a value is durable at most. The default is 1 s: a commit costs flash a few pages.
    pub commit_within: Duration,
    /// How many bytes a block has at most, about. A block is also one delivery to a destination.
    pub block_bytes: usize,
    /// How many bytes of values that are not durable are in memory at most, about.
    pub unsaved_bytes_max: usize,
    /// How many values are kept for questions.
    pub history: History,
    /// How many values wait for their destination.
    pub outgoing: Outgoing,
    /// The form in which values are pushed.
    pub format: Format,
}

/// What is kept for questions, of all devices together; the oldest goes when one of the bounds is reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct History {
    /// How many values; with zero, only what is pushed is stored, until it is sent.
    pub count_max: u64,
    /// How many bytes on the disk.
    pub bytes_max: u64,
    /// For how long.
    pub age_max: Duration,
}

/// What waits for each destination.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outgoing {
    /// How many values wait for one destination.
    pub count_max: u64,
    /// How many bytes on the disk, for all destinations together and besides the history.
    pub bytes_max: u64,
    /// How long a value may wait; then nobody wants it any more.
    pub age_max: Duration,
    /// What goes when too many wait.
    pub overflow: Overflow,
    /// How many destinations there may be; values for others are not queued, and counted.
    pub destinations_max: usize,
    /// How long a destination may take for an answer, unless its device says otherwise.
    pub deadline: Duration,
    /// How long after a failure it is tried again; it doubles with each failure in a row.
    pub retry_min: Duration,
    /// The longest pause between two tries.
    pub retry_max: Duration,
}

/// What goes when too many values wait for a destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Overflow {
    /// The oldest, a block at a time.
    #[default]
    DropOldest,
    /// What comes.
    DropNewest,
}

/// The form in which values are pushed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Format {
    /// As KubeEdge's mappers do: a form `<property>=<value>&time=<time>` by HTTP, a line of text by MQTT.
    #[default]
    Mapper,
    /// An object with `namespace`, `device`, `property`, `value`, `timestamp` (milliseconds) and `sequence`.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            commit_within: Duration::from_secs(1),
            block_bytes: 64 << 10,
            unsaved_bytes_max: 4 << 20,
            history: History::default(),
            outgoing: Outgoing::default(),
            format: Format::default(),
        }
    }
}

impl Default for History {
    fn default() -> Self {
        // A day of one value a second.
        Self { count_max: 100_000, bytes_max: 8 << 20, age_max: Duration::from_secs(24 * 3_600) }
    }
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            count_max: 1_000_000,
            bytes_max: 32 << 20,
            // A weekend and its holidays.
            age_max: Duration::from_secs(7 * 24 * 3_600),
            overflow: Overflow::default(),
            destinations_max: 16,
            deadline: Duration::from_secs(10),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
        }
    }
}

/// What a keeper receives.
#[derive(Debug)]
pub struct Inbox {
    /// The values.
    pub samples: EventReceiver<Sample>,
    /// Questions about what is kept.
    pub queries: Callee<Query, Result<Vec<Kept>, StoreError>>,
}

/// Where a keeper sends.
#[derive(Debug)]
pub struct Outbox {
    /// How it is doing; brought up to date after each commit and each delivery.
    pub stats: watch::Sender<Stats>,
}

/// The other ends of [`Inbox`] and [`Outbox`].
#[derive(Debug)]
pub struct Outside {
    /// Sends values.
    pub samples: EventSender<Sample>,
    /// Asks for what is kept, newest first.
    pub queries: Caller<Query, Result<Vec<Kept>, StoreError>>,
    /// How the keeper is doing.
    pub stats: watch::Receiver<Stats>,
}

/// How a keeper is doing, in numbers since it was started unless they say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// How many values were taken from the pipe.
    pub accepted: u64,
    /// How many of them are durable.
    pub durable: u64,
    /// How many were lost because the store failed for too long.
    pub lost: u64,
    /// How many values are stored, from earlier runs too.
    pub stored: u64,
    /// How many bytes they take.
    pub stored_bytes: u64,
    /// When the oldest stored value was read, milliseconds since the Unix epoch.
    pub oldest_ms: Option<u64>,
    /// Values for a destination beyond [`Outgoing::destinations_max`].
    pub without_outbox: u64,
    /// The destinations.
    pub destinations: BTreeMap<Destination, DestinationStats>,
}

/// Why a keeper ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What is stored cannot be read at start.
    #[error("what was kept cannot be read: {0}")]
    Restore(#[source] StoreError),
}

/// Keeps what mappers read, and pushes it where its devices say.
#[derive(Debug)]
pub struct Keeper {
    config: Config,
    store: Arc<dyn MetaStore>,
    inbox: Inbox,
    outbox: Outbox,
}

impl Keeper {
    /// Creates a keeper. The store should be one of its own: it is written to all the time.
    pub fn new(config: Config, store: Arc<dyn MetaStore>, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, store, inbox, outbox }
    }

    /// Runs until `stop` is cancelled; then what is in the pipe is made durable. Values on their way to a destination
    /// are sent again by the next run.
    ///
    /// # Errors
    /// If what is stored cannot be read at start. A store that fails later is no error: it is tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await
    }
}

/// Four thousand values wait in the pipe at most: less than a second at ten thousand a second.
const PIPE: usize = 4_096;

/// Creates all pipes of the part: its own ends, and those of everyone else.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (samples_tx, samples) = pipe::weighed_events("samples", PIPE, 4 << 20, Sample::size);
    let (queries_tx, queries) = pipe::calls("history", 8);
    let (stats, stats_rx) = watch::channel(Stats::default());
    (
        Inbox { samples, queries },
        Outbox { stats },
        Outside { samples: samples_tx, queries: queries_tx, stats: stats_rx },
    )
}
