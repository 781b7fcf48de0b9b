//! From a Pod to what the runtime is asked for. Pure.

use std::{collections::BTreeMap, path::PathBuf};

use kubeedge_core::{
    message::ObjectRef,
    runtime::{ContainerConfig, Credentials, DnsConfig, Mount, PortMapping, Resources, SandboxConfig},
};
use serde::Deserialize;

use super::{
    Config,
    pod::{Container, Pod},
    quantity::Quantity,
    resolve::{self, Facts, expand},
};

/// The sandbox of a pod.
pub(crate) fn sandbox(pod: &Pod, attempt: u32, config: &Config) -> SandboxConfig {
    let hostname = match (pod.spec.host_network, pod.spec.hostname.as_str()) {
        (true, _) => "",
        (false, "") => pod.reference.name(),
        (false, hostname) => hostname,
    };
    let containers = || pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let ports = containers().flat_map(|container| &container.ports).filter(|port| port.host_port != 0);
    SandboxConfig {
        name: pod.reference.name().to_owned(),
        namespace: pod.reference.namespace().to_owned(),
        uid: pod.uid.clone(),
        attempt,
        // 63 octets: the longest host name (RFC 1123 §2.1).
        hostname: hostname.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned(),
        log_directory: config.pod_logs(&pod.reference, &pod.uid),
        host_network: pod.spec.host_network,
        dns: dns(pod, config),
        ports: if pod.spec.host_network {
            Vec::new()
        } else {
            let mapping = |port: &super::pod::Port| PortMapping {
                protocol: if port.protocol.is_empty() { "TCP".to_owned() } else { port.protocol.clone() },
                container_port: port.container_port,
                host_port: port.host_port,
                host_ip: port.host_ip.clone(),
            };
            ports.map(mapping).collect()
        },
        labels: pod.metadata.labels.clone(),
        cgroup_parent: None,
        handler: pod.spec.runtime_class_name.clone(),
        privileged: containers().any(|container| container.security_context.privileged),
        ..SandboxConfig::default()
    }
}

fn dns(pod: &Pod, config: &Config) -> Option<DnsConfig> {
    let of_cluster = match pod.spec.dns_policy.as_str() {
        "" | "ClusterFirst" => !pod.spec.host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = DnsConfig::default();
    if of_cluster && !config.cluster_dns.is_empty() {
        let (namespace, domain) = (pod.reference.namespace(), config.cluster_domain.trim_matches('.'));
        dns.servers.clone_from(&config.cluster_dns);
        dns.searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        dns.options = vec!["ndots:5".to_owned()];
    }
    if let Some(extra) = &pod.spec.dns_config {
        dns.servers.extend(extra.nameservers.iter().cloned());
        dns.searches.extend(extra.searches.iter().cloned());
        dns.options.extend(extra.options.iter().map(|option| match &option.value {
            Some(value) => format!("{}:{value}", option.name),
            None => option.name.clone(),
        }));
    }
    (dns != DnsConfig::default()).then_some(dns)
}

/// What a container is made from, with those mounts of which only a part is wanted.
pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    env: Vec<(String, String)>,
    config: &Config,
    facts: &Facts<'_>,
) -> (ContainerConfig, BTreeMap<usize, String>) {
    let mut mounts = Vec::new();
    let mut sub_paths = BTreeMap::new();
    for mount in &container.volume_mounts {
        let Some(volume) = pod.spec.volumes.iter().find(|volume| volume.name == mount.name) else { continue };
        let host_path = match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            None => config.pod_volumes(&pod.uid).join(&volume.name),
        };
        if !mount.sub_path.is_empty() {
            sub_paths.insert(mounts.len(), mount.sub_path.clone());
        }
        let made = volume.empty_dir.is_none() && volume.host_path.is_none();
        mounts.push(Mount {
            container_path: PathBuf::from(&mount.mount_path),
            host_path,
            // Files made of objects belong to the API; a container that could write to them would only
            // write into a version that is about to be replaced.
            read_only: mount.read_only || made,
            ..Mount::default()
        });
    }
    let expanded = |texts: &[String]| texts.iter().map(|text| expand(text, &env)).collect();
    let security = &container.security_context;
    let made = ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        mounts,
        labels: BTreeMap::new(),
        spec_hash: spec_hash(container),
        log_path: PathBuf::from(&container.name).join(format!("{attempt}.log")),
        resources: resources(pod, container, facts),
        privileged: security.privileged,
        run_as_user: security.run_as_user.or(pod.spec.security_context.run_as_user),
        run_as_group: security.run_as_group.or(pod.spec.security_context.run_as_group),
        read_only_root: security.read_only_root_filesystem,
        stdin: container.stdin,
        tty: container.tty,
        env,
        ..ContainerConfig::default()
    };
    (made, sub_paths)
}

/// A digest of what may change in a pod that runs: the image is all that the API lets be changed.
pub(crate) fn spec_hash(container: &Container) -> String {
    // FNV-1a, which stays the same in every version of this program, as a kept digest must.
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let text = container.name.bytes().chain([0]).chain(container.image.bytes());
    format!("{:016x}", text.fold(0xcbf2_9ce4_8422_2325, fold))
}

fn resources(pod: &Pod, container: &Container, facts: &Facts<'_>) -> Resources {
    let limits = &container.resources.limits;
    let requests = &container.resources.requests;
    let limit = |name: &str| limits.get(name).copied();
    let request = |name: &str| requests.get(name).copied().or(limit(name));
    let cpu_request = request("cpu").map_or(0, Quantity::milli);
    let cpu_limit = limit("cpu").map_or(0, Quantity::milli);
    const PERIOD_US: i64 = 100_000;
    let oom_score_adj = match qos_class(pod) {
        // The kubelet's numbers: Guaranteed dies last, BestEffort first, Burstable by its share of memory.
        "Guaranteed" => -997,
        "Burstable" => {
            let asked = request("memory").map_or(0, Quantity::units);
            (1000 - 1000 * asked / facts.memory_bytes.max(1)).clamp(3, 999)
        }
        _ => 1000,
    };
    Resources {
        // 2 is the least that the kernel takes, 262144 the most.
        cpu_shares: (cpu_request * 1024 / 1000).clamp(2, 262_144) as u64,
        cpu_quota: if cpu_limit > 0 { (cpu_limit * PERIOD_US / 1000).max(1000) } else { 0 },
        cpu_period: if cpu_limit > 0 { PERIOD_US } else { 0 },
        memory_limit: limit("memory").map_or(0, Quantity::units),
        oom_score_adj,
        ..Resources::default()
    }
}

/// The pod's quality of service, by the rules of the API.
pub(crate) fn qos_class(pod: &Pod) -> &'static str {
    let containers = || pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let set = |quantity: Option<&Quantity>| quantity.copied().filter(|quantity| quantity.milli() > 0);
    let guaranteed = containers().all(|container| {
        ["cpu", "memory"].iter().all(|name| {
            let limit = set(container.resources.limits.get(*name));
            let request = set(container.resources.requests.get(*name)).or(limit);
            limit.is_some() && limit == request
        })
    });
    let any = containers().any(|container| {
        let resources = &container.resources;
        ["cpu", "memory"]
            .iter()
            .any(|name| set(resources.limits.get(*name)).or(set(resources.requests.get(*name))).is_some())
    });
    match (guaranteed, any) {
        (true, _) => "Guaranteed",
        (false, true) => "Burstable",
        (false, false) => "BestEffort",
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// The credentials for an image from the pod's pull Secrets, the first that names its registry.
pub(crate) fn credentials(pod: &Pod, image: &str, facts: &Facts<'_>) -> Option<Credentials> {
    let registry = registry_of(image);
    pod.spec.image_pull_secrets.iter().find_map(|secret| {
        let reference = ObjectRef::secret(pod.reference.namespace(), &secret.name);
        let data = resolve::data_of(&reference, facts).ok()??;
        let config: DockerConfig = serde_json::from_slice(data.get(".dockerconfigjson")?).ok()?;
        let (_, found) = config.auths.into_iter().find(|(server, _)| {
            let server = server.trim_start_matches("https://").trim_start_matches("http://");
            let host = server.split('/').next().unwrap_or(server);
            host == registry || (registry == "docker.io" && host == "index.docker.io")
        })?;
        if found.username.is_empty() {
            let pair = String::from_utf8(resolve::base64(&found.auth)?).ok()?;
            let (username, password) = pair.split_once(':')?;
            return Some(Credentials {
                username: username.to_owned(),
                password: password.to_owned(),
                ..Credentials::default()
            });
        }
        Some(Credentials { username: found.username, password: found.password, ..Credentials::default() })
    })
}

/// The registry of an image: its first part if that looks like a host, else Docker's.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        Some(_) | None => "docker.io",
    }
}
