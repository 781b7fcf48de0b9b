//! How a pod is called, and how it finds others by their names. Pure.

use std::fmt::Write;

use kubeedge_core::runtime::{DnsConfig, PortMapping};

use crate::edged::{
    Config,
    pod::{Pod, PodDns, Port},
    resolve::{Facts, Unresolved},
};

/// 63 octets: the longest part of a name (RFC 1123 §2.1).
const LABEL_MAX: usize = 63;

/// 64 octets: the longest host name that Linux keeps.
const HOSTNAME_MAX: usize = 64;

/// What resolvers take note of at most (resolv.conf(5); Kubernetes has the same limits).
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

/// The pod's own name in its network, and its domain if it has a subdomain.
fn hostname(pod: &Pod, config: &Config) -> (String, Option<String>) {
    let spec = &pod.spec;
    let name = if spec.hostname.is_empty() { pod.reference.name() } else { &spec.hostname };
    let short = name.chars().take(LABEL_MAX).collect::<String>().trim_end_matches(['-', '.']).to_owned();
    let domain = config.cluster_domain.trim_matches('.');
    let namespace = pod.reference.namespace();
    let domain = (!spec.subdomain.is_empty()).then(|| format!("{}.{namespace}.svc.{domain}", spec.subdomain));
    (short, domain)
}

/// The host name of the sandbox; the node's own is kept with the node's network.
pub(super) fn sandbox_hostname(pod: &Pod, config: &Config) -> Result<String, Unresolved> {
    if pod.spec.host_network {
        return Ok(String::new());
    }
    match hostname(pod, config) {
        (short, Some(domain)) if pod.spec.set_hostname_as_fqdn => {
            let full = format!("{short}.{domain}");
            if full.len() > HOSTNAME_MAX {
                let message = format!(
                    "failed to construct FQDN from Pod hostname and cluster domain, FQDN {full} is too long \
                     ({HOSTNAME_MAX} characters is the max, {} characters requested)",
                    full.len()
                );
                return Err(Unresolved(message));
            }
            Ok(full)
        }
        (short, _) => Ok(short),
    }
}

/// The text of the pod's `/etc/hosts`, as the kubelet writes it; `None` while it has no address.
pub(super) fn hosts(pod: &Pod, config: &Config, facts: &Facts<'_>) -> Option<String> {
    if facts.pod_ips.is_empty() {
        return None;
    }
    let mut text = if pod.spec.host_network {
        format!("# Kubernetes-managed hosts file (host network).\n{}", facts.host.hosts)
    } else {
        let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost \
                        ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\n\
                        fe00::2\tip6-allrouters\n"
            .to_owned();
        let (short, domain) = hostname(pod, config);
        let names = domain.map_or_else(|| short.clone(), |domain| format!("{short}.{domain}\t{short}"));
        for ip in facts.pod_ips {
            let _ = writeln!(text, "{ip}\t{names}");
        }
        text
    };
    if !pod.spec.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in &pod.spec.host_aliases {
        let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.join("\t"));
    }
    Some(text)
}

/// What becomes the pod's `/etc/resolv.conf`; `None` leaves it to the runtime, which takes the node's.
pub(super) fn dns(pod: &Pod, config: &Config, facts: &Facts<'_>) -> Option<DnsConfig> {
    let own = pod.spec.dns_config.as_ref();
    let of_cluster = match pod.spec.dns_policy.as_str() {
        "" | "ClusterFirst" => !pod.spec.host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut dns = match pod.spec.dns_policy.as_str() {
        "None" => DnsConfig::default(),
        _ if of_cluster && !config.cluster_dns.is_empty() => cluster(pod, config, &facts.host.resolv),
        // The name servers of a cluster are not known here: the node's are better than none.
        _ if own.is_none() => return None,
        _ => resolv(&facts.host.resolv),
    };
    if let Some(own) = own {
        extend(&mut dns, own);
    }
    dns.servers.truncate(SERVERS_MAX);
    dns.searches.truncate(SEARCHES_MAX);
    Some(dns)
}

fn cluster(pod: &Pod, config: &Config, of_node: &str) -> DnsConfig {
    let (namespace, domain) = (pod.reference.namespace(), config.cluster_domain.trim_matches('.'));
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    add(&mut searches, resolv(of_node).searches);
    DnsConfig { servers: config.cluster_dns.clone(), searches, options: vec!["ndots:5".to_owned()] }
}

/// The lines of a resolv.conf that count (resolv.conf(5)).
fn resolv(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (first, rest) = (words.next(), words.map(str::to_owned));
        match first {
            Some("nameserver") => dns.servers.extend(rest.take(1)),
            Some("search") => dns.searches = rest.collect(),
            Some("options") => dns.options.extend(rest),
            Some(_) | None => {}
        }
    }
    dns
}

/// Adds what the pod itself says; an option of the same name takes the place of the earlier one.
fn extend(dns: &mut DnsConfig, own: &PodDns) {
    add(&mut dns.servers, own.nameservers.clone());
    add(&mut dns.searches, own.searches.clone());
    for option in &own.options {
        dns.options.retain(|known| known.split(':').next() != Some(option.name.as_str()));
        dns.options.push(match option.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{}:{value}", option.name),
            Some(_) | None => option.name.clone(),
        });
    }
}

fn add(to: &mut Vec<String>, more: Vec<String>) {
    for one in more {
        if !to.contains(&one) {
            to.push(one);
        }
    }
}

/// The ports of the node that lead into the pod.
pub(super) fn ports(pod: &Pod) -> Vec<PortMapping> {
    if pod.spec.host_network {
        return Vec::new();
    }
    let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let ports = containers.flat_map(|container| &container.ports).filter(|port| port.host_port != 0);
    let mapping = |port: &Port| PortMapping {
        protocol: if port.protocol.is_empty() { "TCP".to_owned() } else { port.protocol.clone() },
        container_port: port.container_port,
        host_port: port.host_port,
        host_ip: port.host_ip.clone(),
    };
    ports.map(mapping).collect()
}
