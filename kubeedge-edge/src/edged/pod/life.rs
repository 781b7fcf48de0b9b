//! What a Pod asks for the life of its containers: probes, hooks, and what is said of their end.

use std::fmt;

use serde::{Deserialize, Deserializer};

use super::{Container, Pod, RestartPolicy};

members! {
    Probe {
        exec: Option<ExecAction>,
        http_get: Option<HttpGet>,
        tcp_socket: Option<TcpSocket>,
        grpc: Option<GrpcAction>,
        initial_delay_seconds: u32,
        period_seconds: Option<u32>,
        timeout_seconds: Option<u32>,
        success_threshold: Option<u32>,
        failure_threshold: Option<u32>,
        termination_grace_period_seconds: Option<u64>,
    }
    ExecAction {
        command: Vec<String>,
    }
    HttpGet {
        path: String,
        port: PortRef,
        host: String,
        scheme: String,
        http_headers: Vec<HttpHeader>,
    }
    HttpHeader {
        name: String,
        value: String,
    }
    TcpSocket {
        port: PortRef,
        host: String,
    }
    GrpcAction {
        port: u16,
        service: String,
    }
    SleepAction {
        seconds: u64,
    }
    Lifecycle {
        post_start: Option<Handler>,
        pre_stop: Option<Handler>,
    }
    Handler {
        exec: Option<ExecAction>,
        http_get: Option<HttpGet>,
        sleep: Option<SleepAction>,
    }
    ReadinessGate {
        condition_type: String,
    }
}

impl Pod {
    /// All containers, those of `initContainers` first.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    /// The container of this name.
    pub(crate) fn container(&self, name: &str) -> Option<&Container> {
        self.containers().find(|container| container.name == name)
    }

    /// Whether the container stands in `initContainers`.
    pub(crate) fn is_init(&self, name: &str) -> bool {
        self.spec.init_containers.iter().any(|container| container.name == name)
    }

    /// The init containers that run on beside the others.
    pub(crate) fn sidecars(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().filter(|container| container.is_sidecar())
    }

    /// Whether the container is started again when it has ended: an init container has to end well once.
    pub(crate) fn restart_policy_of(&self, container: &Container) -> RestartPolicy {
        match (self.is_init(&container.name), self.spec.restart_policy) {
            (true, _) if container.is_sidecar() => RestartPolicy::Always,
            (true, RestartPolicy::Always) => RestartPolicy::OnFailure,
            (true | false, policy) => policy,
        }
    }

    /// Whether its first start waits until somebody at the node releases it.
    pub(crate) fn is_held(&self) -> bool {
        self.metadata.annotations.get(HOLD).is_some_and(|value| value == "true")
    }
}

/// KubeEdge's annotation for pods whose start is decided at the edge.
const HOLD: &str = "edge.kubeedge.io/hold-upgrade";

impl Container {
    /// Whether it, in `initContainers`, runs on beside the others.
    pub(crate) fn is_sidecar(&self) -> bool {
        self.restart_policy == "Always"
    }
}

/// A port by its number, or by its name in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PortRef {
    Number(u16),
    Name(String),
}

impl Default for PortRef {
    fn default() -> Self {
        Self::Number(0)
    }
}

impl<'de> Deserialize<'de> for PortRef {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = PortRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number or the name of a port")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<PortRef, E> {
                let number = u16::try_from(number).map_err(|_| E::custom("a port above 65535"))?;
                Ok(PortRef::Number(number))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<PortRef, E> {
                let number = u16::try_from(number).map_err(|_| E::custom("a port below 0 or above 65535"))?;
                Ok(PortRef::Number(number))
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<PortRef, E> {
                // A number in quotes is a number, as in Kubernetes.
                Ok(name.parse().map_or_else(|_| PortRef::Name(name.to_owned()), PortRef::Number))
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_or_a_name() {
        let read = |json: &str| serde_json::from_str::<TcpSocket>(json).map(|socket| socket.port);
        assert_eq!(read(r#"{"port":80}"#).unwrap(), PortRef::Number(80));
        assert_eq!(read(r#"{"port":"80"}"#).unwrap(), PortRef::Number(80));
        assert_eq!(read(r#"{"port":"web"}"#).unwrap(), PortRef::Name("web".into()));
        assert!(read(r#"{"port":70000}"#).is_err());
    }
}
