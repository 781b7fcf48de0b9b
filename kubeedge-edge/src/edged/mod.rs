//! Edged: runs the pods of the node, and says how they and the node are.
//!
//! It takes Pods, ConfigMaps and Secrets as they come from MetaManager, compares them with what the runtime has,
//! and takes one step after the other until both agree. After a restart, with or without a link, the runtime says
//! what runs, and nothing that should run is touched. The last status of each pod is kept on the disk beside the
//! pod, so that counts, times and readiness read on as they were.
//!
//! ```
//! use std::sync::Arc;
//! use kubeedge_core::{message::Connectivity, runtime::memory::MemoryRuntime};
//! use kubeedge_edge::edged::{self, Config, Edged};
//! use tokio_util::sync::CancellationToken;
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let directory = tempfile::tempdir().unwrap();
//! let mut config = Config::new("edge-1".parse().unwrap());
//! config.root = directory.path().join("edged");
//! config.logs = directory.path().join("logs");
//! let (inbox, outbox, mut outside) = edged::pipes();
//! let stop = CancellationToken::new();
//! let running = tokio::spawn(Edged::new(config, Arc::new(MemoryRuntime::new()), inbox, outbox).run(stop.clone()));
//!
//! outside.connectivity.send_replace(Connectivity::Online);
//! let report = outside.reports.recv().await; // the node itself, at once
//! # assert!(report.is_some());
//! stop.cancel();
//! # running.await.unwrap().unwrap();
//! # });
//! ```
//!
//! What becomes of each member of a pod's spec says `pod/fields.rs`: it is done, it asks nothing of a node, or the
//! pod is refused and its status names the member.
//!
//! Secrets, tokens and the downward API lie in memory: a file system of type tmpfs is mounted for each such
//! volume, for which the process needs CAP_SYS_ADMIN. Without it they lie on the disk below [`Config::root`], which
//! is logged, and a pod with an `emptyDir` of medium `Memory` does not start.

mod action;
mod admission;
#[cfg(feature = "edged-api")]
pub mod api;
mod cgroups;
pub mod devices;
mod driver;
mod events;
mod eviction;
mod files;
mod garbage;
mod host;
mod image;
mod links;
mod logs;
mod make;
mod node;
mod perform;
mod pod;
mod probe;
mod quantity;
mod record;
mod resolve;
mod rotation;
mod settings;
mod state;
mod statics;
mod status;
mod tasks;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod text;
mod tokens;
mod upkeep;
mod volumes;
mod words;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use kubeedge_core::{
    id::{NodeName, Uid},
    message::{
        Answer, Connectivity, LogRequest, ObjectEvent, ObjectRef, Query, Report, ReportKey, Response,
        TokenRequest, UploadedEvent,
    },
    pipe::{self, Callee, Caller, EventReceiver, EventSender, LatestReceiver, LatestSender},
    runtime::ContainerRuntime,
};
use serde::Deserialize;
use tokio::sync::watch;

pub use self::{
    eviction::{Amount, InvalidThreshold, Signal, Threshold},
    settings::{CgroupDriver, Cgroups, Eviction, ImageCollection, LogRotation, Reserved, StaticPods},
};

/// Runs the pods of the node.
#[derive(Debug)]
pub struct Edged {
    config: Config,
    runtime: Arc<dyn ContainerRuntime>,
    inbox: Inbox,
    outbox: Outbox,
}

impl Edged {
    /// Creates the part over a container runtime. Nothing happens before [`Edged::run`].
    pub fn new(config: Config, runtime: Arc<dyn ContainerRuntime>, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, runtime, inbox, outbox }
    }
}

/// How Edged behaves. [`Config::new`] has the defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name.
    pub node: NodeName,
    /// Labels of the node besides the usual ones.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the node.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Taints that the node registers with.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// Whether the scheduler may place pods here.
    #[serde(default = "defaults::yes")]
    pub register_schedulable: bool,
    /// Where volumes of pods are kept.
    #[serde(default = "defaults::root")]
    pub root: PathBuf,
    /// Where logs of containers are kept.
    #[serde(default = "defaults::logs")]
    pub logs: PathBuf,
    /// The node's address; empty leaves it out of the node's and the pods' status.
    #[serde(default)]
    pub node_ip: String,
    /// The version that the node reports as its kubelet's.
    #[serde(default = "defaults::version")]
    pub version: String,
    /// How many pods the scheduler may place here. 110: the kubelet's default.
    #[serde(default = "defaults::max_pods")]
    pub max_pods: u32,
    /// Name servers of the cluster for pods with `dnsPolicy: ClusterFirst`; empty means the node's own.
    #[serde(default)]
    pub cluster_dns: Vec<String>,
    /// The domain of the cluster's names.
    #[serde(default = "defaults::cluster_domain")]
    pub cluster_domain: String,
    /// How often the runtime is observed while there are pods. 1 s, as the kubelet's relist.
    #[serde(default = "defaults::observe_interval")]
    pub observe_interval: Duration,
    /// How often the runtime is observed while there are none. 10 s: an idle node should sleep.
    #[serde(default = "defaults::idle_interval")]
    pub idle_interval: Duration,
    /// How often the node's memory, disk and runtime are looked at. 10 s, as the kubelet. Nothing is sent
    /// while nothing changes.
    #[serde(default = "defaults::status_interval")]
    pub status_interval: Duration,
    /// How long a sandbox of no known pod is left alone, so that a pod which becomes known late is not killed.
    /// In any case it is left alone until the edge was in sync with the cloud once since the start.
    #[serde(default = "defaults::orphan_grace")]
    pub orphan_grace: Duration,
    /// How many pods take a step towards running at once; the others wait, so that a small board survives a
    /// reboot with many pods. Stopping is not limited.
    #[serde(default = "defaults::parallel_starts")]
    pub parallel_starts: usize,
    /// How many images are fetched at once.
    #[serde(default = "defaults::parallel_starts")]
    pub parallel_pulls: usize,
    /// How many images the node reports, the largest first. 50, as the kubelet.
    #[serde(default = "defaults::images_max")]
    pub images_max: usize,
    /// A change of the images alone is reported no more often than this. 5 min: nobody waits for it.
    #[serde(default = "defaults::image_report_interval")]
    pub image_report_interval: Duration,
    /// What is kept back for Kubernetes' own programs.
    #[serde(default)]
    pub kube_reserved: Reserved,
    /// What is kept back for everything else that is no pod.
    #[serde(default)]
    pub system_reserved: Reserved,
    /// When pods end because something runs short.
    #[serde(default)]
    pub eviction: Eviction,
    /// When images that nobody uses are removed.
    #[serde(default)]
    pub image_collection: ImageCollection,
    /// The image of sandboxes, which is never removed; empty if the runtime says itself which it needs.
    #[serde(default)]
    pub sandbox_image: String,
    /// When a container's log goes on in another file.
    #[serde(default)]
    pub log_rotation: LogRotation,
    /// Where pods come from besides the cloud; `None` means nowhere.
    #[serde(default)]
    pub static_pods: Option<StaticPods>,
    /// Kernel parameters that pods may set besides those that are safe; one that ends with `*` names all that
    /// begin so.
    #[serde(default)]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Where pods find the Kubernetes API, as `host:port`; empty if they do not. It becomes their
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    #[serde(default)]
    pub kubernetes_service: String,
    /// Whether volumes with Secrets and tokens are kept in memory where the process may mount.
    #[serde(default = "defaults::yes")]
    pub memory_volumes: bool,
    /// Where the cgroups of pods are; `None` leaves each container's to the runtime, and then nothing holds a pod as
    /// a whole to its limits. For runtimes that know cgroups, and processes that may write them.
    #[serde(default)]
    pub cgroups: Option<Cgroups>,
    /// The port of the kubelet's HTTP interface, which the node reports; `None` if there is none.
    #[serde(default)]
    pub api_port: Option<u16>,
}

/// A taint of the node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taint {
    /// The key.
    pub key: String,
    /// The value; may be empty.
    #[serde(default)]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

mod defaults {
    use std::{path::PathBuf, time::Duration};

    pub(super) fn yes() -> bool {
        true
    }
    pub(super) fn root() -> PathBuf {
        PathBuf::from("/var/lib/edged")
    }
    pub(super) fn logs() -> PathBuf {
        PathBuf::from("/var/log/pods")
    }
    pub(super) fn version() -> String {
        // The Kubernetes minor version tells clients which API the node understands.
        format!("v1.33.0-kubeedge-rs-{}", env!("CARGO_PKG_VERSION"))
    }
    pub(super) fn max_pods() -> u32 {
        110
    }
    pub(super) fn cluster_domain() -> String {
        "cluster.local".to_owned()
    }
    pub(super) fn observe_interval() -> Duration {
        Duration::from_secs(1)
    }
    pub(super) fn idle_interval() -> Duration {
        Duration::from_secs(10)
    }
    pub(super) fn status_interval() -> Duration {
        Duration::from_secs(10)
    }
    pub(super) fn orphan_grace() -> Duration {
        Duration::from_secs(10)
    }
    pub(super) fn parallel_starts() -> usize {
        8
    }
    pub(super) fn images_max() -> usize {
        50
    }
    pub(super) fn image_report_interval() -> Duration {
        Duration::from_secs(300)
    }
}

impl Config {
    /// The defaults for the node of this name.
    pub fn new(node: NodeName) -> Self {
        Self {
            node,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            taints: Vec::new(),
            register_schedulable: true,
            root: defaults::root(),
            logs: defaults::logs(),
            node_ip: String::new(),
            version: defaults::version(),
            max_pods: defaults::max_pods(),
            cluster_dns: Vec::new(),
            cluster_domain: defaults::cluster_domain(),
            observe_interval: defaults::observe_interval(),
            idle_interval: defaults::idle_interval(),
            status_interval: defaults::status_interval(),
            orphan_grace: defaults::orphan_grace(),
            parallel_starts: defaults::parallel_starts(),
            kube_reserved: Reserved::default(),
            system_reserved: Reserved::default(),
            eviction: Eviction::default(),
            parallel_pulls: defaults::parallel_starts(),
            images_max: defaults::images_max(),
            image_report_interval: defaults::image_report_interval(),
            image_collection: ImageCollection::default(),
            sandbox_image: String::new(),
            log_rotation: LogRotation::default(),
            static_pods: None,
            allowed_unsafe_sysctls: Vec::new(),
            kubernetes_service: String::new(),
            memory_volumes: true,
            cgroups: None,
            api_port: None,
        }
    }

    fn pod_directory(&self, uid: &Uid) -> PathBuf {
        self.root.join("pods").join(uid.as_str())
    }

    fn pod_record(&self, uid: &Uid) -> PathBuf {
        self.records().join(format!("{uid}.json"))
    }

    fn records(&self) -> PathBuf {
        self.root.join("status")
    }

    fn pod_volumes(&self, uid: &Uid) -> PathBuf {
        self.pod_directory(uid).join("volumes")
    }

    /// The kubelet's layout, which log collectors know.
    fn pod_logs(&self, reference: &ObjectRef, uid: &Uid) -> PathBuf {
        self.logs.join(format!("{}_{}_{}", reference.namespace(), reference.name(), uid))
    }
}

/// What Edged receives.
#[derive(Debug)]
pub struct Inbox {
    /// Pods, ConfigMaps and Secrets; at start all that the node has.
    pub workloads: LatestReceiver<ObjectRef, ObjectEvent>,
    /// Questions for logs of containers.
    pub logs: Callee<LogRequest, Response>,
    /// Pods that wait for it, by the annotation `edge.kubeedge.io/hold-upgrade`, and may start. The answer says
    /// whether there was such a pod.
    pub releases: Callee<ObjectRef, bool>,
    /// Questions for the pods of this node.
    pub pods: Callee<(), Vec<KnownPod>>,
    /// The devices that pods may ask for.
    pub devices: watch::Receiver<devices::Inventory>,
    /// Whether there is a session.
    pub connectivity: watch::Receiver<Connectivity>,
}

/// A pod of this node, as Edged knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPod {
    /// The pod's JSON, as the API has it; its `status` may be old, or that of another node's clock.
    pub json: Bytes,
    /// Its `status` in JSON, as Edged has reported it last; `None` if it has not yet.
    pub status: Option<Bytes>,
}

/// What Edged sends.
#[derive(Debug)]
pub struct Outbox {
    /// The node's state, and each pod's.
    pub reports: LatestSender<ReportKey, Report>,
    /// Questions for what the API has of the node itself.
    pub queries: Caller<Query, Answer>,
    /// What has happened to pods, as Kubernetes Events.
    pub events: EventSender<UploadedEvent>,
    /// To MetaManager: asks for a token of a pod's service account.
    pub tokens: Caller<TokenRequest, Answer>,
    /// Asks for devices of a pod.
    pub devices: Caller<devices::Question, devices::Answer>,
}

/// The other ends of Edged's pipes.
#[derive(Debug)]
pub struct Outside {
    /// To [`Inbox::workloads`].
    pub workloads: LatestSender<ObjectRef, ObjectEvent>,
    /// To [`Inbox::logs`].
    pub logs: Caller<LogRequest, Response>,
    /// To [`Inbox::releases`].
    pub releases: Caller<ObjectRef, bool>,
    /// To [`Inbox::pods`].
    pub pods: Caller<(), Vec<KnownPod>>,
    /// To [`Inbox::devices`].
    pub inventory: watch::Sender<devices::Inventory>,
    /// To [`Inbox::connectivity`].
    pub connectivity: watch::Sender<Connectivity>,
    /// From [`Outbox::queries`].
    pub queries: Callee<Query, Answer>,
    /// From [`Outbox::reports`].
    pub reports: LatestReceiver<ReportKey, Report>,
    /// From [`Outbox::events`].
    pub events: EventReceiver<UploadedEvent>,
    /// From [`Outbox::tokens`].
    pub tokens: Callee<TokenRequest, Answer>,
    /// From [`Outbox::devices`].
    pub devices: Callee<devices::Question, devices::Answer>,
}

/// Creates both sides of Edged's pipes, for tests and for running it alone.
pub fn pipes() -> (Inbox, Outbox, Outside) {
    let (workloads, workloads_rx) = pipe::latest("workloads", |event: &ObjectEvent| event.key().clone());
    let (logs, logs_rx) = pipe::calls("logs", 16);
    let (releases, releases_rx) = pipe::calls("releases", 4);
    let (pods, pods_rx) = pipe::calls("pods", 16);
    let (queries_tx, queries) = pipe::calls("queries", 4);
    let (connectivity, connectivity_rx) = watch::channel(Connectivity::Offline);
    let (reports_tx, reports) = pipe::latest("reports", Report::key);
    let (tokens_tx, tokens) = pipe::calls("tokens", 64);
    let (events_tx, events) = pipe::events("events", 32);
    let (inventory, inventory_rx) = watch::channel(devices::Inventory::new());
    let (devices_tx, devices) = pipe::calls("device_questions", 256);
    (
        Inbox {
            workloads: workloads_rx,
            logs: logs_rx,
            releases: releases_rx,
            pods: pods_rx,
            devices: inventory_rx,
            connectivity: connectivity_rx,
        },
        Outbox {
            reports: reports_tx,
            queries: queries_tx,
            events: events_tx,
            tokens: tokens_tx,
            devices: devices_tx,
        },
        Outside {
            workloads,
            logs,
            releases,
            pods,
            inventory,
            connectivity,
            queries,
            reports,
            events,
            tokens,
            devices,
        },
    )
}

/// Says why Edged cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory for pods cannot be used.
    #[error("the directory {} cannot be used: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}
