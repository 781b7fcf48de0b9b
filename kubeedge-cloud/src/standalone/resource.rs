//! The resources that are served: one row each.

use k8s_openapi::api::{
    certificates::v1 as certificates, coordination::v1 as coordination, core::v1 as core, node::v1 as node,
};
use serde_json::Value;

use super::table::{self, Columns};

/// The group of KubeEdge's devices.
pub(crate) const DEVICES: &str = "devices.kubeedge.io";

/// The group of KubeEdge's rules for messages.
pub(crate) const RULES: &str = "rules.kubeedge.io";

/// Reads an object by its type and writes it again.
pub(crate) type Retype = fn(&Value) -> Result<Value, serde_json::Error>;

/// What the API says of one kind of object, and how it treats it.
pub(crate) struct Resource {
    /// The API group; empty for the core group.
    pub(crate) group: &'static str,
    /// The version in the group.
    pub(crate) version: &'static str,
    /// The kind, such as `Pod`.
    pub(crate) kind: &'static str,
    /// The name in paths, such as `pods`.
    pub(crate) plural: &'static str,
    /// The name for one, such as `pod`.
    pub(crate) singular: &'static str,
    /// What people may type instead, such as `po`.
    pub(crate) short: &'static [&'static str],
    /// Whether its objects live in a namespace.
    pub(crate) namespaced: bool,
    /// Whether `status` is written by a path of its own.
    pub(crate) status: bool,
    /// Whether `kubectl get all` shows it.
    pub(crate) all: bool,
    /// Whether `metadata.generation` counts changes of its spec.
    pub(crate) generation: bool,
    /// Reads an object by Kubernetes' own types and writes it again; absent for custom resources.
    pub(crate) retype: Option<Retype>,
    /// What `kubectl get` shows.
    pub(crate) columns: Columns,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resource")
            .field("plural", &self.plural)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

impl Resource {
    /// `v1`, or `group/version`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The kind of a list of it, such as `PodList`.
    pub(crate) fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether it is one of Kubernetes' own kinds.
    pub(crate) fn built_in(&self) -> bool {
        self.retype.is_some()
    }

    /// The resource at a place in the API.
    pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// The core resource of this name.
    pub(crate) fn core(plural: &str) -> &'static Self {
        Self::find("", "v1", plural).expect("the table below has the core resources that the code names")
    }
}

fn retype<T: serde::de::DeserializeOwned + serde::Serialize>(
    value: &Value,
) -> Result<Value, serde_json::Error> {
    serde_json::to_value(T::deserialize(value)?)
}

/// A core resource that is namespaced and has neither status nor generation; rows say what differs.
const CORE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short: &[],
    namespaced: true,
    status: false,
    all: false,
    generation: false,
    retype: None,
    columns: table::PLAIN,
};

/// Every resource, in the order in which discovery names them.
pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short: &["cm"],
        retype: Some(retype::<core::ConfigMap>),
        columns: table::CONFIG_MAP,
        ..CORE
    },
    Resource {
        kind: "Event",
        plural: "events",
        singular: "event",
        short: &["ev"],
        retype: Some(retype::<core::Event>),
        columns: table::EVENT,
        ..CORE
    },
    Resource {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short: &["ns"],
        namespaced: false,
        status: true,
        retype: Some(retype::<core::Namespace>),
        columns: table::NAMESPACE,
        ..CORE
    },
    Resource {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short: &["no"],
        namespaced: false,
        status: true,
        retype: Some(retype::<core::Node>),
        columns: table::NODE,
        ..CORE
    },
    Resource {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short: &["pv"],
        namespaced: false,
        status: true,
        retype: Some(retype::<core::PersistentVolume>),
        ..CORE
    },
    Resource {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short: &["pvc"],
        status: true,
        retype: Some(retype::<core::PersistentVolumeClaim>),
        ..CORE
    },
    Resource {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short: &["po"],
        status: true,
        all: true,
        generation: true,
        retype: Some(retype::<core::Pod>),
        columns: table::POD,
        ..CORE
    },
    Resource {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        retype: Some(retype::<core::Secret>),
        columns: table::SECRET,
        ..CORE
    },
    Resource {
        kind: "Service",
        plural: "services",
        singular: "service",
        short: &["svc"],
        status: true,
        all: true,
        retype: Some(retype::<core::Service>),
        columns: table::SERVICE,
        ..CORE
    },
    Resource {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short: &["sa"],
        retype: Some(retype::<core::ServiceAccount>),
        columns: table::SERVICE_ACCOUNT,
        ..CORE
    },
    Resource {
        group: "certificates.k8s.io",
        kind: "CertificateSigningRequest",
        plural: "certificatesigningrequests",
        singular: "certificatesigningrequest",
        short: &["csr"],
        namespaced: false,
        status: true,
        retype: Some(retype::<certificates::CertificateSigningRequest>),
        ..CORE
    },
    Resource {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        retype: Some(retype::<coordination::Lease>),
        columns: table::LEASE,
        ..CORE
    },
    Resource {
        group: "node.k8s.io",
        kind: "RuntimeClass",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        namespaced: false,
        retype: Some(retype::<node::RuntimeClass>),
        ..CORE
    },
    Resource {
        group: DEVICES,
        version: "v1beta1",
        kind: "Device",
        plural: "devices",
        singular: "device",
        generation: true,
        columns: table::DEVICE,
        ..CORE
    },
    Resource {
        group: DEVICES,
        version: "v1beta1",
        kind: "DeviceModel",
        plural: "devicemodels",
        singular: "devicemodel",
        generation: true,
        columns: table::DEVICE_MODEL,
        ..CORE
    },
    Resource {
        group: RULES,
        version: "v1",
        kind: "Rule",
        plural: "rules",
        singular: "rule",
        generation: true,
        ..CORE
    },
    Resource {
        group: RULES,
        version: "v1",
        kind: "RuleEndpoint",
        plural: "ruleendpoints",
        singular: "ruleendpoint",
        short: &["re"],
        generation: true,
        ..CORE
    },
    Resource {
        group: DEVICES,
        version: "v1beta1",
        kind: "DeviceStatus",
        plural: "devicestatuses",
        singular: "devicestatus",
        generation: true,
        columns: table::PLAIN,
        ..CORE
    },
];
