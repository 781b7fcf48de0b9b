//! What a Pod asks for one of its containers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Lifecycle, Probe, Security};
use crate::edged::quantity::Quantity;

members! {
    Container {
        name: String,
        image: String,
        image_pull_policy: String,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        env: Vec<EnvVar>,
        env_from: Vec<EnvFrom>,
        ports: Vec<Port>,
        resources: Requirements,
        resize_policy: Vec<ResizePolicy>,
        volume_mounts: Vec<VolumeMount>,
        security_context: Security,
        restart_policy: String,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
        liveness_probe: Option<Probe>,
        readiness_probe: Option<Probe>,
        startup_probe: Option<Probe>,
        lifecycle: Option<Lifecycle>,
        termination_message_path: String,
        termination_message_policy: String,
    }
    Port {
        name: String,
        container_port: u16,
        host_port: u16,
        #[serde(rename = "hostIP")]
        host_ip: String,
        protocol: String,
    }
    ResizePolicy {
        resource_name: String,
        restart_policy: String,
    }
    EnvVar {
        name: String,
        value: String,
        value_from: Option<ValueFrom>,
    }
    ValueFrom {
        config_map_key_ref: Option<KeyReference>,
        secret_key_ref: Option<KeyReference>,
        field_ref: Option<FieldReference>,
        resource_field_ref: Option<ResourceFieldReference>,
    }
    KeyReference {
        name: String,
        key: String,
        optional: bool,
    }
    FieldReference {
        field_path: String,
    }
    ResourceFieldReference {
        container_name: String,
        resource: String,
        divisor: Option<Quantity>,
    }
    EnvFrom {
        prefix: String,
        config_map_ref: Option<NameReference>,
        secret_ref: Option<NameReference>,
    }
    NameReference {
        name: String,
        optional: bool,
    }
    VolumeMount {
        name: String,
        mount_path: String,
        sub_path: String,
        sub_path_expr: String,
        read_only: bool,
        mount_propagation: String,
    }
}

/// What a container is promised, and the most that it may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Requirements {
    #[serde(deserialize_with = "super::or_default")]
    pub(crate) requests: BTreeMap<String, Quantity>,
    #[serde(deserialize_with = "super::or_default")]
    pub(crate) limits: BTreeMap<String, Quantity>,
}
