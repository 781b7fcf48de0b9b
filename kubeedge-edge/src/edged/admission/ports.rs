//! Ports of the node, of which each can lead to one pod only.

use crate::edged::pod::Pod;

/// Whether a port that the pod wants of the node is taken by one of the others.
pub(super) fn conflict<'a>(pod: &Pod, others: impl Iterator<Item = &'a Pod>) -> bool {
    let wanted: Vec<_> = ports(pod).collect();
    if wanted.is_empty() {
        return false;
    }
    let clashes = |(address, protocol, port): (&str, &str, u16)| {
        wanted.iter().any(|(own, own_protocol, own_port)| {
            let same_address = *own == address || [*own, address].contains(&"0.0.0.0");
            same_address && *own_protocol == protocol && *own_port == port
        })
    };
    others.flat_map(ports).any(clashes)
}

fn ports(pod: &Pod) -> impl Iterator<Item = (&str, &str, u16)> {
    let sidecars = pod.spec.init_containers.iter().filter(|container| container.restart_policy == "Always");
    let all = pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
    all.filter_map(move |port| {
        // In the node's network a port of the container is one of the node; the API server writes it so.
        let host_port = match (port.host_port, pod.spec.host_network) {
            (0, true) => port.container_port,
            (port, _) => port,
        };
        (host_port != 0).then(|| (or(&port.host_ip, "0.0.0.0"), or(&port.protocol, "TCP"), host_port))
    })
}

fn or<'a>(text: &'a str, default: &'static str) -> &'a str {
    if text.is_empty() { default } else { text }
}
