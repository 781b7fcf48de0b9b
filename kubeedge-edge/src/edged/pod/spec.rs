//! What a Pod asks for as a whole.

use std::collections::BTreeMap;

use super::{Container, PodSecurity, RestartPolicy, Volume};

members! {
    Metadata {
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        deletion_timestamp: Option<String>,
        deletion_grace_period_seconds: Option<i64>,
    }
    PodSpec {
        containers: Vec<Container>,
        init_containers: Vec<Container>,
        volumes: Vec<Volume>,
        restart_policy: RestartPolicy,
        termination_grace_period_seconds: Option<i64>,
        hostname: String,
        host_network: bool,
        dns_policy: String,
        dns_config: Option<PodDns>,
        service_account_name: String,
        image_pull_secrets: Vec<LocalReference>,
        runtime_class_name: String,
        security_context: PodSecurity,
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
