//! From what a Pod says of a probe or a hook to what has to be done. Pure.

use std::time::Duration;

use kubeedge_core::runtime::ContainerId;

use super::{
    action::{HttpTask, Task},
    pod::{Container, Handler, HttpGet, PortRef, Probe},
};

/// Where a pod is reached from its node: at its first address, or at the node itself.
pub(crate) fn host(ips: &[String]) -> String {
    ips.first().cloned().unwrap_or_else(|| "127.0.0.1".to_owned())
}

/// What a hook does. `host` is where the pod is reached.
pub(crate) fn hook(hook: &Handler, container: &Container, id: &ContainerId, host: &str) -> Task {
    if let Some(exec) = &hook.exec {
        Task::Exec { id: id.clone(), command: exec.command.clone() }
    } else if let Some(get) = &hook.http_get {
        http(get, container, host)
    } else if let Some(sleep) = &hook.sleep {
        Task::Sleep(Duration::from_secs(sleep.seconds))
    } else {
        Task::Impossible("invalid handler: it says nothing to do".to_owned())
    }
}

/// What a probe does. `host` is where the pod is reached.
pub(crate) fn probe(probe: &Probe, container: &Container, id: &ContainerId, host: &str) -> Task {
    if let Some(exec) = &probe.exec {
        Task::Exec { id: id.clone(), command: exec.command.clone() }
    } else if let Some(get) = &probe.http_get {
        http(get, container, host)
    } else if let Some(socket) = &probe.tcp_socket {
        let host = if socket.host.is_empty() { host } else { &socket.host };
        match port(&socket.port, container) {
            Ok(port) => Task::Tcp { host: host.to_owned(), port },
            Err(why) => Task::Impossible(why),
        }
    } else if let Some(grpc) = &probe.grpc {
        Task::Grpc { host: host.to_owned(), port: grpc.port, service: grpc.service.clone() }
    } else {
        Task::Impossible("missing probe handler".to_owned())
    }
}

fn http(get: &HttpGet, container: &Container, host: &str) -> Task {
    let port = match port(&get.port, container) {
        Ok(port) => port,
        Err(why) => return Task::Impossible(why),
    };
    let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    Task::Http(HttpTask {
        https: get.scheme.eq_ignore_ascii_case("https"),
        host: if get.host.is_empty() { host.to_owned() } else { get.host.clone() },
        port,
        path,
        headers: get.http_headers.iter().map(|it| (it.name.clone(), it.value.clone())).collect(),
    })
}

fn port(port: &PortRef, container: &Container) -> Result<u16, String> {
    let number = match port {
        PortRef::Number(number) => *number,
        PortRef::Name(name) => {
            let named = container.ports.iter().find(|port| port.name == *name);
            named.map(|port| port.container_port).ok_or_else(|| format!("couldn't find port: {name}"))?
        }
    };
    if number == 0 { Err("invalid port number: 0".to_owned()) } else { Ok(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_port_is_the_containers_own_and_the_host_is_the_pods() {
        let container: Container = serde_json::from_str(
            r#"{"name":"app","ports":[{"name":"web","containerPort":8080}],
                "readinessProbe":{"httpGet":{"path":"healthz?full","port":"web","scheme":"HTTPS",
                "httpHeaders":[{"name":"Host","value":"app.example"}]}},
                "livenessProbe":{"tcpSocket":{"port":"admin"}}}"#,
        )
        .unwrap();
        let id = ContainerId("c".into());
        let task = probe(container.readiness_probe.as_ref().unwrap(), &container, &id, "10.0.0.2");
        let expected = HttpTask {
            https: true,
            host: "10.0.0.2".into(),
            port: 8080,
            path: "/healthz?full".into(),
            headers: vec![("Host".into(), "app.example".into())],
        };
        assert_eq!(task, Task::Http(expected));
        let task = probe(container.liveness_probe.as_ref().unwrap(), &container, &id, "10.0.0.2");
        assert_eq!(task, Task::Impossible("couldn't find port: admin".into()));
    }
}
