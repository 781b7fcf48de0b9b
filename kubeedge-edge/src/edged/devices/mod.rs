//! Devices that plugins offer to pods: which there are, whose they are, and what a container gets with them.
//!
//! A plugin is a program of its own that speaks the kubelet's Device Plugin interface (v1beta1,
//! <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>). It registers at
//! `kubelet.sock`, lists its devices, and pods ask for them under `resources.limits`, such as `example.com/camera: 1`.
//!
//! Edged asks here when a pod is let in, and before each start of a container that has devices. Who has which device is
//! in the node's store before a pod is told, so that a restart of edgecore, of a plugin or of the machine gives no device
//! to two pods. Devices of a pod that has ended are free when the next pod asks. A plugin that is gone is dialled again
//! for five minutes, in which its devices are unhealthy; afterwards they are none. What runs is left alone.

#[cfg(feature = "edged-devices")]
mod answer;
#[cfg(feature = "edged-devices")]
mod driver;
#[cfg(feature = "edged-devices")]
mod record;
#[cfg(feature = "edged-devices")]
mod service;
#[cfg(feature = "edged-devices")]
mod state;
#[cfg(test)]
#[cfg(feature = "edged-devices")]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
#[cfg(feature = "edged-devices")]
use std::{path::PathBuf, sync::Arc};

use kubeedge_core::{
    id::Uid,
    runtime::{ContainerConfig, Device, Mount},
};
#[cfg(feature = "edged-devices")]
use kubeedge_core::{
    pipe::Callee,
    store::{MetaStore, StoreError},
};
#[cfg(feature = "edged-devices")]
use tokio::sync::watch;
#[cfg(feature = "edged-devices")]
use tokio_util::sync::CancellationToken;

/// How many devices there are, by the name of the resource, such as `example.com/camera`.
pub type Inventory = BTreeMap<String, Stock>;

/// How many devices there are of a resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stock {
    /// All of them.
    pub all: u32,
    /// Those that pods may have.
    pub healthy: u32,
}

/// What Edged asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Choose devices for a pod that is let in.
    Allocate {
        /// The pod.
        uid: Uid,
        /// Its containers that want some, in the order in which they start.
        containers: Vec<Wanted>,
        /// The pods that may still use theirs; what others had is free.
        active: BTreeSet<Uid>,
    },
    /// What does a container get that is about to be created? Devices are chosen if it has none.
    Grant {
        /// The pod.
        uid: Uid,
        /// The container.
        wanted: Wanted,
    },
}

/// What a container wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The container's name.
    pub container: String,
    /// Whether it ends before the pod's other containers start, so that they may have its devices.
    pub ends_before_others: bool,
    /// How many devices, by the name of the resource.
    pub counts: BTreeMap<String, u32>,
}

/// The grant, which is empty for [`Question::Allocate`], or why there is none.
pub type Answer = Result<Grant, String>;

/// What a container gets with its devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Files and directories of the node.
    pub mounts: Vec<Mount>,
    /// Device files of the node.
    pub devices: Vec<Device>,
    /// Annotations, for the runtime.
    pub annotations: BTreeMap<String, String>,
    /// Devices that the runtime knows by CDI.
    pub cdi_devices: Vec<String>,
}

impl Grant {
    /// Gives it to a container. What the pod says of its environment counts more.
    pub(crate) fn give(self, config: &mut ContainerConfig) {
        config.env.splice(..0, self.env);
        config.mounts.extend(self.mounts);
        config.devices.extend(self.devices);
        config.annotations.extend(self.annotations);
        config.cdi_devices.extend(self.cdi_devices);
    }
}

/// Keeps the devices of plugins.
#[cfg(feature = "edged-devices")]
#[derive(Debug)]
pub struct Devices {
    config: Config,
    store: Arc<dyn MetaStore>,
    inbox: Inbox,
    outbox: Outbox,
}

#[cfg(feature = "edged-devices")]
impl Devices {
    /// Creates the part over the node's store. Nothing happens before [`Devices::run`].
    pub fn new(config: Config, store: Arc<dyn MetaStore>, inbox: Inbox, outbox: Outbox) -> Self {
        Self { config, store, inbox, outbox }
    }

    /// Runs until `stop`. Plugins go on, and find the socket again when it is there again.
    ///
    /// # Errors
    /// If the store cannot be read, or the folder cannot have the socket.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        driver::run(self, stop).await
    }
}

/// Where plugins are, and how much they may say.
#[cfg(feature = "edged-devices")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The folder of `kubelet.sock` and of the plugins' own sockets. Plugins look for it in
    /// `/var/lib/kubelet/device-plugins`.
    pub folder: PathBuf,
    /// How much plugins may say.
    pub limits: Limits,
}

#[cfg(feature = "edged-devices")]
impl Config {
    /// The defaults for this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), limits: Limits::default() }
    }
}

/// How much plugins may say. What is more is refused, and the log names the plugin.
#[cfg(feature = "edged-devices")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many resources there are. 64.
    pub resources: usize,
    /// How many devices a resource has. 4096.
    pub devices: usize,
    /// How long the id of a device is, in bytes. 1024.
    pub id_bytes: usize,
    /// How many variables, mounts, devices and annotations a container gets with its devices. 1024.
    pub grant_entries: usize,
    /// How large a message is. 4 MiB, as gRPC has it.
    pub message_bytes: usize,
}

#[cfg(feature = "edged-devices")]
impl Default for Limits {
    fn default() -> Self {
        Self { resources: 64, devices: 4096, id_bytes: 1024, grant_entries: 1024, message_bytes: 4 << 20 }
    }
}

/// What it receives.
#[cfg(feature = "edged-devices")]
#[derive(Debug)]
pub struct Inbox {
    /// From Edged.
    pub questions: Callee<Question, Answer>,
}

/// What it sends.
#[cfg(feature = "edged-devices")]
#[derive(Debug)]
pub struct Outbox {
    /// To Edged.
    pub inventory: watch::Sender<Inventory>,
}

/// Says why the part has stopped.
#[cfg(feature = "edged-devices")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store could not be read.
    #[error("read who has which device: {0}")]
    Store(#[from] StoreError),
    /// The socket's path cannot be one.
    #[error("serve device plugins: {0}")]
    Socket(#[source] kubeedge_core::dmi::SocketError),
}
