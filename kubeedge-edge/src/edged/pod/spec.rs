//! What a Pod asks for as a whole.

use std::collections::BTreeMap;

use super::{
    Affinity, Container, PodOs, PodSecurity, ReadinessGate, Requirements, RestartPolicy, Toleration, Volume,
};
use crate::edged::quantity::Quantity;

members! {
    Metadata {
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        creation_timestamp: Option<String>,
        generation: Option<i64>,
        deletion_timestamp: Option<String>,
        deletion_grace_period_seconds: Option<i64>,
    }
    PodSpec {
        containers: Vec<Container>,
        init_containers: Vec<Container>,
        volumes: Vec<Volume>,
        restart_policy: RestartPolicy,
        termination_grace_period_seconds: Option<i64>,
        active_deadline_seconds: Option<u64>,
        readiness_gates: Vec<ReadinessGate>,
        hostname: String,
        subdomain: String,
        #[serde(rename = "setHostnameAsFQDN")]
        set_hostname_as_fqdn: bool,
        host_aliases: Vec<HostAlias>,
        host_network: bool,
        #[serde(rename = "hostPID")]
        host_pid: bool,
        #[serde(rename = "hostIPC")]
        host_ipc: bool,
        share_process_namespace: bool,
        dns_policy: String,
        dns_config: Option<PodDns>,
        service_account_name: String,
        enable_service_links: Option<bool>,
        image_pull_secrets: Vec<LocalReference>,
        runtime_class_name: String,
        security_context: PodSecurity,
        node_selector: BTreeMap<String, String>,
        affinity: Option<Affinity>,
        tolerations: Vec<Toleration>,
        priority: Option<i32>,
        os: Option<PodOs>,
        overhead: BTreeMap<String, Quantity>,
        resources: Requirements,
    }
    /// Names that a Pod's `/etc/hosts` gives to an address.
    HostAlias {
        ip: String,
        hostnames: Vec<String>,
    }
    LocalReference {
        name: String,
    }
    PodDns {
        nameservers: Vec<String>,
        searches: Vec<String>,
        options: Vec<DnsOption>,
    }
    DnsOption {
        name: String,
        value: Option<String>,
    }
}
