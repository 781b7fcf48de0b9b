//! MetaManager: keeps what the cloud sends, so that the node goes on without the cloud.
//!
//! Every object that EdgeHub receives passes through here. It is stored first, acknowledged second, and handed to
//! the parts that work with it third, so a power cut at any moment loses nothing that the cloud believes to be
//! here. At start all that is held is handed out again, with or without a link.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use kubeedge_core::{message::{Delivered, Delivery, Object, ObjectEvent}, store::memory::MemoryStore};
//! use kubeedge_edge::metamanager::{self, Config, MetaManager};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (inbox, outbox, mut outside) = metamanager::pipes();
//! let part = MetaManager::new(Config::default(), Arc::new(MemoryStore::new()), inbox, outbox);
//! let stop = CancellationToken::new();
//! let running = tokio::spawn(part.run(stop.clone()));
//!
//! let pod = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"default","uid":"1"}}"#;
//! outside.objects.send(Delivered {
//!     delivery: Delivery { session: 1, number: 1 },
//!     message: ObjectEvent::Applied(Object::from_json(&pod[..])?),
//! })?;
//! let acked = outside.acked.recv().await; // It is durable,
//! let pod = outside.workloads.recv().await; // and here it comes.
//! # stop.cancel(); running.await??; Ok(()) }
//! ```
//!
//! # What consumers of `workloads`, `devices` and `rules` rely on
//!
//! * A message is durable before it is seen.
//! * The pipes hold the newest state per object. When an object was deleted and created again under its name, only
//!   the new one may be seen: **compare UIDs**, and take another UID for the end of the old object.
//! * At start everything held comes again, Pods after all else; still, any order has to be coped with.

use std::{sync::Arc, time::Duration};

use kubeedge_core::{
    message::{
        Acked, Answer, Connectivity, Delivered, Inventory, Object, ObjectEvent, ObjectRef, Query,
        TokenRequest,
    },
    pipe::{self, Callee, Caller, LatestReceiver, LatestSender},
    store::{MetaStore, StoreError},
};
use serde::Deserialize;
use tokio::sync::watch;

mod driver;
mod read;
mod record;
mod state;
#[cfg(test)]
mod tests;
mod tokens;

pub use read::{MetaClient, Read, ReadError};

/// How MetaManager behaves.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long the cloud has to answer for an object that is not here. The default is 10 s: whoever asked
    /// has a deadline of its own, mostly 30 s.
    pub query_deadline: Duration,
    /// How many such questions may be under way; a further one is refused. The default is 64.
    pub queries_max: usize,
    /// The pause after a commit that failed; it doubles with each failure, up to `commit_pause_max`. The defaults
    /// are 500 ms and 30 s: a full or broken disk is neither hammered nor forgotten.
    pub commit_pause_min: Duration,
    /// See `commit_pause_min`.
    pub commit_pause_max: Duration,
    /// How long the store may take for one commit, before MetaManager ends with an error: a disk that hangs is
    /// not mended by waiting. The default is 60 s.
    pub store_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            query_deadline: Duration::from_secs(10),
            queries_max: 64,
            commit_pause_min: Duration::from_millis(500),
            commit_pause_max: Duration::from_secs(30),
            store_deadline: Duration::from_secs(60),
        }
    }
}

/// What MetaManager receives.
#[derive(Debug)]
pub struct Inbox {
    /// Objects of every kind, from EdgeHub.
    pub objects: LatestReceiver<ObjectRef, Delivered<ObjectEvent>>,
    /// EdgeHub asks at each connect what the node holds.
    pub inventory: Callee<(), Inventory>,
    /// Anyone asks for objects; see [`MetaClient`].
    pub reads: Callee<Read, Result<Vec<Object>, ReadError>>,
    /// Edged asks for tokens of service accounts: from the store, renewed from the cloud when it is time.
    pub tokens: Callee<TokenRequest, Answer>,
    /// Whether the cloud can be asked.
    pub connectivity: watch::Receiver<Connectivity>,
}

/// What MetaManager sends.
#[derive(Debug)]
pub struct Outbox {
    /// To EdgeHub: the object is durable.
    pub acked: LatestSender<ObjectRef, Acked<ObjectRef>>,
    /// To Edged: Pods and what they are made of.
    pub workloads: LatestSender<ObjectRef, ObjectEvent>,
    /// To DeviceTwin: Devices and DeviceModels.
    pub devices: LatestSender<ObjectRef, ObjectEvent>,
    /// To EventBus: Rules that begin on this node.
    pub rules: LatestSender<ObjectRef, ObjectEvent>,
    /// To EdgeHub: asks the cloud for an object that is not here.
    pub queries: Caller<Query, Answer>,
}

/// The other ends of MetaManager's pipes.
#[derive(Debug)]
pub struct Outside {
    /// See [`Inbox::objects`].
    pub objects: LatestSender<ObjectRef, Delivered<ObjectEvent>>,
    /// See [`Inbox::inventory`].
    pub inventory: Caller<(), Inventory>,
    /// See [`Inbox::reads`].
    pub reads: Caller<Read, Result<Vec<Object>, ReadError>>,
    /// See [`Inbox::tokens`].
    pub tokens: Caller<TokenRequest, Answer>,
    /// See [`Inbox::connectivity`].
    pub connectivity: watch::Sender<Connectivity>,
    /// See [`Outbox::acked`].
    pub acked: LatestReceiver<ObjectRef, Acked<ObjectRef>>,
    /// See [`Outbox::workloads`].
    pub workloads: LatestReceiver<ObjectRef, ObjectEvent>,
    /// See [`Outbox::devices`].
    pub devices: LatestReceiver<ObjectRef, ObjectEvent>,
    /// See [`Outbox::rules`].
    pub rules: LatestReceiver<ObjectRef, ObjectEvent>,
    /// See [`Outbox::queries`].
    pub queries: Callee<Query, Answer>,
}

/// Says why MetaManager stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store is damaged: opening it again, at the next start, repairs or replaces it.
    #[error("the metadata store cannot be used any more")]
    Store(#[from] StoreError),
    /// The store hangs: a commit did not end in time.
    #[error("the metadata store did not finish a commit within {0:?}")]
    Stuck(Duration),
}

/// Keeps the node's objects, and serves them.
#[derive(Debug)]
pub struct MetaManager {
    config: Config,
    store: Arc<dyn MetaStore>,
    inbox: Inbox,
    outbox: Outbox,
}

impl MetaManager {
    /// Creates the part over `store`, in which it uses the keys that begin with `objects` and `tokens`.
    pub fn new(config: Config, store: Arc<dyn MetaStore>, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, store, inbox, outbox }
    }
}

/// Creates the part's pipes, and their other ends.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (objects, objects_in) =
        pipe::latest("objects", |delivered: &Delivered<ObjectEvent>| delivered.message.key().clone());
    let (acked, acked_out) = pipe::latest("acked", |acked: &Acked<ObjectRef>| acked.key.clone());
    let (workloads, workloads_out) = pipe::latest("workloads", |event: &ObjectEvent| event.key().clone());
    let (devices, devices_out) = pipe::latest("devices", |event: &ObjectEvent| event.key().clone());
    let (rules, rules_out) = pipe::latest("rules", |event: &ObjectEvent| event.key().clone());
    let (inventory, inventory_in) = pipe::calls("inventory", 4);
    let (reads, reads_in) = pipe::calls("reads", 64);
    let (tokens, tokens_in) = pipe::calls("tokens", 64);
    let (queries, queries_out) = pipe::calls("queries", 64);
    let (connectivity, connectivity_in) = watch::channel(Connectivity::Offline);
    (
        Inbox {
            objects: objects_in,
            inventory: inventory_in,
            reads: reads_in,
            tokens: tokens_in,
            connectivity: connectivity_in,
        },
        Outbox { acked, workloads, devices, rules, queries },
        Outside {
            objects,
            inventory,
            reads,
            tokens,
            connectivity,
            acked: acked_out,
            workloads: workloads_out,
            devices: devices_out,
            rules: rules_out,
            queries: queries_out,
        },
    )
}
