//! A node: EdgeHub, and what stands for the other parts of an edge.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use kubeedge_cloud::pki::Authority;
use kubeedge_core::{
    id::NodeName,
    message::{
        Acked, Connectivity, Delivered, InventoryEntry, Lane, NodeReport, Object, ObjectEvent, ObjectRef,
        PodReport, PodState, Report,
    },
    tls::{self, Identity},
    transport::{
        Connection, Peer, Transport, TransportError,
        quic::{QuicConfig, QuicConnection, QuicTransport},
    },
};
use kubeedge_edge::edgehub::{self, EdgeHub, Outside};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{DAY, api::CHANGED_AT};

/// A node.
pub struct Node {
    connectivity: watch::Receiver<Connectivity>,
    last_sync: watch::Receiver<Option<Instant>>,
    meter: Arc<Meter>,
    held: Held,
    _tasks: JoinSet<()>,
}

impl Node {
    /// Starts a node that dials the clouds at these ports, one after the other.
    pub fn start(name: &str, authority: &Authority, ports: &[u16]) -> Result<Self> {
        let node: NodeName = name.parse()?;
        let issued = authority.issue_node(&node, DAY)?;
        let identity = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
        let roots = tls::roots_from_pem(authority.certificate_pem().as_bytes())?;
        let tls = Arc::new(tls::client_config(&identity, roots)?);
        let transport =
            |port: &u16| QuicTransport::new(QuicConfig::new(format!("127.0.0.1:{port}"), tls.clone()));
        let transports = ports.iter().map(transport).collect::<Result<_, _>>()?;
        let meter = Arc::new(Meter {
            transports,
            turn: AtomicUsize::new(name.len()),
            current: Mutex::default(),
            stalled: watch::channel(false).0,
        });
        let (inbox, outbox, outside) = edgehub::pipes();
        let connectivity = outside.connectivity.clone();
        let hub = EdgeHub::new(edgehub::Config::new(node.clone()), meter.clone(), inbox, outbox);
        let (synced, last_sync) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(hub.run(CancellationToken::new()).await) });
        tasks.spawn(note_sync(connectivity.clone(), synced));
        let held = Held::default();
        tasks.spawn(keep(outside, node_status(name)?, held.clone()));
        Ok(Self { connectivity, last_sync, meter, held, _tasks: tasks })
    }

    /// Waits until its link has come to a state, for at most five minutes.
    pub async fn wait_until(&self, holds: impl Fn(Connectivity) -> bool) -> Result<()> {
        let mut connectivity = self.connectivity.clone();
        let awaited = connectivity.wait_for(|state| holds(*state));
        timeout(Duration::from_secs(300), awaited).await.context("five minutes")?.map(drop)?;
        Ok(())
    }

    /// Waits until it has come to be in sync after that moment, for at most five minutes.
    pub async fn wait_for_sync_since(&self, moment: Instant) -> Result<()> {
        let mut last_sync = self.last_sync.clone();
        let awaited = last_sync.wait_for(|at| at.is_some_and(|at| at > moment));
        timeout(Duration::from_secs(300), awaited).await.context("five minutes")?.map(drop)?;
        Ok(())
    }

    /// When it came to be in sync for the last time.
    pub fn last_sync(&self) -> Option<Instant> {
        *self.last_sync.borrow()
    }

    /// Whether it holds this object as it is.
    pub fn holds(&self, object: &Object) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = held.objects.get(&object.reference);
        entry.is_some_and(|entry| entry.uid == object.uid && entry.fingerprint == object.fingerprint)
    }

    /// How many objects the cloud has taken from it.
    pub fn deleted(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).deleted
    }

    /// From now on it reads nothing that the cloud sends, over this connection and all that follow.
    pub fn stall(&self) {
        self.meter.stalled.send_replace(true);
    }

    /// How long each change took that was made by [`super::ApiSite::change_pod`] since this was asked last: until the node
    /// has said that it holds it.
    pub fn take_delays(&self) -> Vec<Duration> {
        std::mem::take(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner).delays)
    }

    /// What its present connection has sent and received.
    pub fn traffic(&self) -> Traffic {
        let current = self.meter.current.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        current.map_or_else(Traffic::default, |connection| {
            let traffic = connection.traffic();
            Traffic {
                bytes: traffic.sent_bytes + traffic.received_bytes,
                packets: traffic.sent_packets + traffic.received_packets,
            }
        })
    }
}

/// Bytes of UDP payload, and the packets that they came in.
#[derive(Debug, Default, Clone, Copy)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
}

impl Traffic {
    pub fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, packets: self.packets + other.packets }
    }

    pub fn since(self, before: &Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(before.bytes),
            packets: self.packets.saturating_sub(before.packets),
        }
    }
}

async fn note_sync(mut connectivity: watch::Receiver<Connectivity>, synced: watch::Sender<Option<Instant>>) {
    while connectivity.changed().await.is_ok() {
        if *connectivity.borrow_and_update() == Connectivity::Synchronized {
            synced.send_replace(Some(Instant::now()));
        }
    }
}

/// What a node holds.
type Held = Arc<Mutex<Store>>;

#[derive(Debug, Default)]
struct Store {
    objects: BTreeMap<ObjectRef, InventoryEntry>,
    /// How many objects the cloud has taken from the node.
    deleted: usize,
    delays: Vec<Duration>,
}

/// Keeps in memory what the cloud sends, and reports each pod as running.
async fn keep(outside: Outside, status: Bytes, held: Held) {
    let Outside { reports, acked, mut objects, mut inventory, mut connectivity, .. } = outside;
    loop {
        tokio::select! {
            Ok(()) = connectivity.changed() => {
                // As Edged does, since the cloud may have called the node away meanwhile.
                if *connectivity.borrow_and_update() == Connectivity::Online {
                    let _ = reports.send(Report::Node(NodeReport { json: status.clone() }));
                }
            }
            Some(Delivered { delivery, message }) = objects.recv() => {
                let key = message.key().clone();
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                match message {
                    ObjectEvent::Applied(object) => {
                        held.delays.extend(since_change(&object.json));
                        let new = held.objects.insert(key.clone(), object.entry());
                        if new.is_none_or(|old| old.uid != object.uid) {
                            let state = PodState::Status(POD_STATUS.into());
                            let pod = PodReport { reference: key.clone(), uid: object.uid, state };
                            let _ = reports.send(Report::Pod(pod));
                        }
                    }
                    ObjectEvent::Deleted { reference, .. } => {
                        held.deleted += usize::from(held.objects.remove(&reference).is_some());
                    }
                }
                let _ = acked.send(Acked { key, delivery });
            }
            Some(call) = inventory.recv() => {
                let held = held.lock().unwrap_or_else(PoisonError::into_inner);
                call.answer(held.objects.values().cloned().collect());
            }
            else => return,
        }
    }
}

/// How long ago an object was changed by [`super::ApiSite::change_pod`].
fn since_change(json: &[u8]) -> Option<Duration> {
    let object: serde_json::Value = serde_json::from_slice(json).ok()?;
    let changed = object["metadata"]["annotations"][CHANGED_AT].as_str()?.parse().ok()?;
    (SystemTime::UNIX_EPOCH + Duration::from_nanos(changed)).elapsed().ok()
}

const POD_STATUS: &str = r#"{"phase":"Running","hostIP":"192.0.2.1","podIP":"10.88.0.7","podIPs":[{"ip":"10.88.0.7"}],
"startTime":"2026-01-01T00:00:00Z","qosClass":"Burstable","conditions":[
{"type":"Initialized","status":"True"},{"type":"Ready","status":"True"},{"type":"ContainersReady","status":"True"},
{"type":"PodScheduled","status":"True"}],"containerStatuses":[{"name":"main","ready":true,"started":true,
"restartCount":0,"image":"example.com/web:1.2.3","imageID":"sha256:0","containerID":"containerd://0",
"state":{"running":{"startedAt":"2026-01-01T00:00:00Z"}}}]}"#;

fn node_status(name: &str) -> Result<Bytes> {
    let condition = |kind: &str, status: &str, reason: &str| json!({ "type": kind, "status": status, "reason": reason, "message": "as measured by the node" });
    let room = json!({ "cpu": "4", "memory": "8061868Ki", "pods": "110", "ephemeral-storage": "61255492Ki" });
    Ok(serde_json::to_vec(&json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": {
            "node-role.kubernetes.io/edge": "", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "arm64",
        } },
        "status": {
            "capacity": room, "allocatable": room,
            "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }, { "type": "Hostname", "address": name }],
            "conditions": [
                condition("Ready", "True", "EdgeReady"),
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            ],
            "nodeInfo": {
                "architecture": "arm64", "bootID": "0", "containerRuntimeVersion": "containerd://1.7.0",
                "kernelVersion": "6.1.0", "kubeProxyVersion": "", "kubeletVersion": "v1.33.0",
                "machineID": name, "operatingSystem": "linux", "osImage": "Debian", "systemUUID": name,
            },
        },
    }))?
    .into())
}

/// QUIC, of which the present connection can be asked how much it carried.
#[derive(Debug)]
struct Meter {
    transports: Vec<QuicTransport>,
    turn: AtomicUsize,
    current: Mutex<Weak<QuicConnection>>,
    stalled: watch::Sender<bool>,
}

#[async_trait]
impl Transport for Meter {
    fn name(&self) -> &'static str {
        "quic"
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, TransportError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(self.transports[turn % self.transports.len()].dial().await?);
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&connection);
        Ok(Box::new(Metered { connection, stalled: self.stalled.subscribe() }))
    }
}

#[derive(Debug)]
struct Metered {
    connection: Arc<QuicConnection>,
    stalled: watch::Receiver<bool>,
}

#[async_trait]
impl Connection for Metered {
    fn peer(&self) -> &Peer {
        self.connection.peer()
    }

    fn path(&self) -> String {
        self.connection.path()
    }

    async fn send(&self, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        self.connection.send(lane, frame).await
    }

    async fn recv(&self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        let mut stalled = self.stalled.clone();
        let stall = async { drop(stalled.wait_for(|stalled| *stalled).await) };
        tokio::select! {
            biased;
            () = stall => pending().await,
            received = self.connection.recv() => received,
        }
    }

    async fn close(&self, reason: &str) {
        self.connection.close(reason).await;
    }
}
