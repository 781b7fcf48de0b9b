//! The part: the listener, and what a cluster's scheduler and garbage collector do for pods and events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kubeedge_core::{
    message::{Request, Response, ToNode},
    pipe::{self, Callee, Caller},
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    ApiServer, ApiService, Error, Inner, Listener, eviction,
    failure::Failure,
    history::Change,
    json::{items, text},
    resource::Resource,
    scheduler, serve,
    store::{self, Txn},
    sweep, write,
};

/// What the API sends to other parts.
#[derive(Debug)]
pub struct Outbox {
    /// Asks nodes, through CloudHub, for logs and for calls to HTTP servers.
    pub requests: Caller<ToNode<Request>, Response>,
}

/// The other end of the outbox.
#[derive(Debug)]
pub struct Outside {
    /// Where the API's questions for nodes arrive.
    pub requests: Callee<ToNode<Request>, Response>,
}

/// Creates both ends of the part's pipes.
pub fn pipes() -> (Outbox, Outside) {
    // Each question waits for its own node, so that many may wait at once.
    let (caller, callee) = pipe::calls("requests", 64);
    (Outbox { requests: caller }, Outside { requests: callee })
}

/// The API as a part: it serves `kubectl`, gives pods a node, and removes what has expired.
#[derive(Debug)]
pub struct Standalone {
    api: ApiServer,
    listener: Option<Listener>,
    outbox: Outbox,
}

impl Standalone {
    /// Assembles the part. Without a listener only the process itself can use the API.
    pub fn new(api: ApiServer, listener: Option<Listener>, outbox: Outbox) -> Self {
        Self { api, listener, outbox }
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// If the store fails: it must be opened anew, that is, the process restarted.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let inner = self.api.inner.clone();
        let service = ApiService { inner: inner.clone(), nodes: Some(self.outbox.requests) };
        let listening = async {
            match self.listener {
                Some(listener) => serve::serve(service, listener, stop.clone()).await.map_err(Error::Listen),
                None => {
                    stop.cancelled().await;
                    Ok(())
                }
            }
        };
        let tending = async {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                () = schedule(&inner) => Ok(()),
                () = sweep::run(&inner) => Ok(()),
                () = eviction::run(&inner) => Ok(()),
                () = inner.store.failed() => Err(Error::Failed),
            }
        };
        // A failed store also ends the listener: whoever asks it then is better off with a restart.
        tokio::try_join!(listening, tending).map(|_| ())
    }
}

// ------------------------------------------------------------------------------------------------- scheduling

/// How long the scheduler leaves a store alone that could not be read.
const RESCAN_AFTER: Duration = Duration::from_secs(5);

/// Gives pods a node, as they come and as nodes change.
async fn schedule(inner: &Arc<Inner>) {
    let history = inner.store.history().clone();
    let mut changed = history.subscribe();
    let (pods, nodes) = (Resource::core("pods"), Resource::core("nodes"));
    let wanted = |change: &Change| [pods, nodes].iter().any(|r| std::ptr::eq(*r, change.resource));
    let mut pending = BTreeSet::new();
    // Version 0 is before any history: the first turn looks at everything.
    let mut version = 0;
    loop {
        changed.borrow_and_update();
        let mut retry = false;
        match history.after(version, 256, wanted) {
            Ok((changes, reached)) => {
                for change in changes {
                    retry |= change.resource.kind == "Node" || change.deleted;
                    let waits =
                        !change.deleted && store::decode(&change.new).is_ok_and(|pod| is_waiting(&pod));
                    if change.resource.kind != "Pod" {
                        continue;
                    }
                    if !waits {
                        pending.remove(&change.key);
                    } else if pending.insert(change.key.clone()) {
                        retry = true;
                    }
                }
                version = reached;
            }
            Err(_) => match rescan(inner) {
                Ok((found, reached)) => (pending, version, retry) = (found, reached, true),
                Err(failure) => {
                    tracing::warn!(%failure, "pods cannot be read for scheduling");
                    sleep(RESCAN_AFTER).await;
                }
            },
        }
        if retry && !pending.is_empty() {
            let keys: Vec<_> = pending.iter().cloned().collect();
            let assigned = inner.store.write(false, move |txn| assign(txn, &keys)).await;
            if let Err(failure) = assigned {
                tracing::warn!(%failure, "pods cannot be scheduled");
            }
        }
        if version >= history.published() && changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn rescan(inner: &Inner) -> Result<(BTreeSet<Vec<u8>>, u64), Failure> {
    let snapshot = inner.store.read()?;
    let mut pending = BTreeSet::new();
    snapshot.scan(&store::prefix(Resource::core("pods"), None), None, |key, pod| {
        if is_waiting(&store::decode(pod)?) {
            pending.insert(key.to_vec());
        }
        Ok(true)
    })?;
    Ok((pending, snapshot.version))
}

fn is_waiting(pod: &Value) -> bool {
    text(pod, &["spec", "nodeName"]).is_empty()
        && text(pod, &["metadata", "deletionTimestamp"]).is_empty()
        && text(pod, &["spec", "schedulerName"]) == "default-scheduler"
        && items(pod, &["spec", "schedulingGates"]).is_empty()
}

/// Gives each of the pods a node, or says in its conditions why there is none.
fn assign(txn: &mut Txn<'_, '_>, keys: &[Vec<u8>]) -> Result<(), Failure> {
    let nodes = txn.list(Resource::core("nodes"), None)?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut waiting = Vec::new();
    for (key, pod) in txn.entries(Resource::core("pods"), None)? {
        let node = text(&pod, &["spec", "nodeName"]);
        if node.is_empty() {
            if keys.binary_search(&key).is_ok() && is_waiting(&pod) {
                waiting.push(pod);
            }
        } else if !["Succeeded", "Failed"].contains(&text(&pod, &["status", "phase"])) {
            *counts.entry(node.to_owned()).or_default() += 1;
        }
    }
    for mut pod in waiting {
        let chosen = scheduler::choose(&pod, &nodes, &counts).map(str::to_owned);
        let before = pod.clone();
        match &chosen {
            Ok(node) => write::bind(&mut pod, node, txn.now),
            Err(message) => {
                write::set_condition(
                    &mut pod,
                    json!({
                        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                    }),
                    txn.now,
                );
            }
        }
        if pod == before {
            continue;
        }
        // A pod that its node's name makes too large waits alone: the others get their nodes.
        if let Err(failure) = txn.put(Resource::core("pods"), pod) {
            let [namespace, name] = ["namespace", "name"].map(|member| text(&before, &["metadata", member]));
            tracing::warn!(%failure, namespace, name, "a pod cannot be scheduled");
        } else if let Ok(node) = chosen {
            *counts.entry(node).or_default() += 1;
        }
    }
    Ok(())
}
