use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Lane, ObjectRef};
use crate::id::{DeviceId, Uid};

/// A state that the edge reports to the cloud: whole, and only the newest for its key matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The node itself.
    Node(NodeReport),
    /// A pod of the node.
    Pod(PodReport),
    /// A pod that the node runs from a file of its own.
    Mirror(MirrorReport),
    /// A device of the node.
    Device(DeviceReport),
}

/// The key of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReportKey {
    /// The node that reports.
    Node,
    /// The pod of this name and UID: a recreated pod is another state, and both have to arrive.
    Pod(ObjectRef, Uid),
    /// The pod of this name that comes from a file of the node.
    Mirror(ObjectRef),
    /// The device.
    Device(DeviceId),
}

impl Report {
    /// What this is the state of.
    pub fn key(&self) -> ReportKey {
        match self {
            Self::Node(_) => ReportKey::Node,
            Self::Pod(pod) => ReportKey::Pod(pod.reference.clone(), pod.uid.clone()),
            Self::Mirror(mirror) => ReportKey::Mirror(mirror.reference.clone()),
            Self::Device(device) => ReportKey::Device(device.device.clone()),
        }
    }

    /// The lane that carries it.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Node(_) | Self::Pod(_) | Self::Mirror(_) => Lane::Pods,
            Self::Device(_) => Lane::Devices,
        }
    }
}

impl ReportKey {
    /// The lane that carries reports of this key.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Node | Self::Pod(..) | Self::Mirror(_) => Lane::Pods,
            Self::Device(_) => Lane::Devices,
        }
    }
}

/// The Node object as the edge wants it registered: labels, annotations, taints, and all of `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeReport {
    /// A `v1` Node in JSON.
    pub json: Bytes,
}

/// What a pod has come to at the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodReport {
    /// The pod's name.
    pub reference: ObjectRef,
    /// Which pod of that name.
    pub uid: Uid,
    /// Its state.
    pub state: PodState,
}

/// The state of a pod at the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// The pod's `status`, a `v1` PodStatus in JSON.
    Status(Bytes),
    /// Everything of the pod is gone from the node, so that its object may be deleted from the API.
    Gone,
}

/// What stands in the API for a pod that the node runs from a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorReport {
    /// The pod's name, which ends with the node's.
    pub reference: ObjectRef,
    /// A `v1` Pod in JSON, with the annotation `kubernetes.io/config.mirror`; `None` if the node runs it no more.
    pub pod: Option<Bytes>,
}

/// All that the edge knows of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceReport {
    /// The device.
    pub device: DeviceId,
    /// The UID of the Device object.
    pub uid: Uid,
    /// Its properties, ordered by name.
    pub twins: Vec<TwinReport>,
    /// The connection state as the mapper or an application gave it: `online`, `offline`, `ok`, `unknown`, `unhealthy`.
    pub state: Option<String>,
    /// When the device was last online, RFC 3339.
    pub last_online: Option<String>,
}

/// One property of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TwinReport {
    /// The property's name.
    pub property: String,
    /// What the device has.
    pub reported: Option<TwinValue>,
    /// The desired value as the device's driver has seen it.
    pub observed_desired: Option<TwinValue>,
}

/// A property's value with where and when it came from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinValue {
    /// The value, always as text.
    pub value: String,
    /// Counts the accepted writes; it only grows.
    pub version: u64,
    /// When the value was written, milliseconds since the Unix epoch.
    pub timestamp_ms: u64,
    /// What the writer said besides, such as `type`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// An occurrence that the edge sends up: each one matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upload {
    /// A message of an application on the edge, by MQTT topic.
    Publish(UploadedPublish),
    /// A Kubernetes Event about an object of this node.
    Event(UploadedEvent),
}

impl Upload {
    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        match self {
            Self::Publish(message) => message.publish.size(),
            Self::Event(event) => event.json.len(),
        }
    }
}

impl Publish {
    /// How many bytes it takes.
    pub fn size(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

/// A message of an application on the edge, kept there until the cloud says that it has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedPublish {
    /// Which message it is: when it comes again after a failure, it has the same id.
    pub id: UploadId,
    /// The message.
    pub publish: Publish,
}

/// Identifies a message of a node that may reach the cloud more than once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId {
    /// Drawn at random when the part that keeps messages starts.
    pub run: u64,
    /// Grows from message to message within a run.
    pub number: u64,
}

/// A Kubernetes Event that the edge recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadedEvent {
    /// A `v1` Event in JSON.
    pub json: Bytes,
}

/// An MQTT message on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The topic name.
    pub topic: String,
    /// The payload, any bytes.
    pub payload: Bytes,
}

/// Whether the edge reaches the cloud.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Connectivity {
    /// There is no session.
    #[default]
    Offline,
    /// There is a session; the edge may still lack objects that the cloud has.
    Online,
    /// There is a session, and the edge has been given all that the cloud had when it began.
    Synchronized,
}

impl Connectivity {
    /// Whether there is a session.
    pub fn is_online(self) -> bool {
        self != Self::Offline
    }
}

/// By how much a node's clock differs from the cloud's, as it was measured over the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClockOffset {
    /// In milliseconds; positive if the node's is ahead.
    pub ms: i64,
}

/// What is decided about a node's session at this cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Another cloud has taken the node: a session that is here all the same ends, and the node comes again.
    Elsewhere,
    /// The node is shut out: its session ends, and it gets no other.
    ShutOut,
    /// The node is shut out no longer.
    LetIn,
}

/// What became of a node's session at the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The node has a session.
    Online,
    /// The node's session is over.
    Offline,
}
