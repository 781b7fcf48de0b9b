//! What of a cloudcore.yaml shows outside of cloudcore: where it listens, and how long it takes to stop. Pure.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde::Deserialize;

/// 10 s for the writes to the API that wait when cloudcore stops, and as much again for a busy machine.
const STOPPING: Duration = Duration::from_secs(20);

/// 30 s: Kubernetes' own terminationGracePeriodSeconds.
const GRACE_MIN: Duration = Duration::from_secs(30);

/// The keys that are of interest. All others are cloudcore's to judge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Outside {
    common_config: Common,
    modules: Modules,
    kubeedge_rs: Ours,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Common {
    monitor_server: Monitor,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Monitor {
    bind_address: SocketAddr,
}

impl Default for Monitor {
    fn default() -> Self {
        Self { bind_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9091)) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Modules {
    cloud_hub: Hub,
    cloud_stream: Stream,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Hub {
    websocket: Port,
    quic: Port,
    https: Port,
}

impl Default for Hub {
    fn default() -> Self {
        let [websocket, quic, https] = [10000, 10001, 10002].map(|port| Port { port: Some(port) });
        Self { websocket, quic, https }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct Port {
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stream {
    enable: bool,
    stream_port: u16,
}

impl Default for Stream {
    fn default() -> Self {
        Self { enable: false, stream_port: 10003 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ours {
    cloud_hub: OurHub,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct OurHub {
    drain: String,
}

impl Default for OurHub {
    fn default() -> Self {
        Self { drain: "1s".to_owned() }
    }
}

/// A port of cloudcore: its name, its number, its protocol, and the Service's port on nodes, as KubeEdge's charts have them.
pub(super) type Open = (&'static str, u16, &'static str, u16);

impl Outside {
    /// Reads a cloudcore.yaml. What cannot be read counts as the defaults; cloudcore will say what is wrong with it.
    pub(super) fn of(config: &str) -> Self {
        serde_saphyr::from_str(config).unwrap_or_default()
    }

    /// Where nodes and API servers come in.
    pub(super) fn ports(&self) -> Vec<Open> {
        let Hub { websocket, quic, https } = &self.modules.cloud_hub;
        let mut ports = vec![
            ("cloudhub", websocket.port.unwrap_or(10000), "TCP", 30000),
            ("cloudhub-quic", quic.port.unwrap_or(10001), "UDP", 30001),
            ("cloudhub-https", https.port.unwrap_or(10002), "TCP", 30002),
        ];
        let stream = &self.modules.cloud_stream;
        if stream.enable {
            ports.push(("cloudstream", stream.stream_port, "TCP", 30003));
        }
        ports
    }

    /// The port of metrics and health.
    pub(super) fn monitor_port(&self) -> u16 {
        self.common_config.monitor_server.bind_address.port()
    }

    /// The address at which the kubelet finds metrics and health; `Some(None)` is the pod's own, and `None` that there is
    /// none: the loopback address of a pod is reached only from within.
    pub(super) fn monitor_host(&self, host_network: bool) -> Option<Option<IpAddr>> {
        let ip = self.common_config.monitor_server.bind_address.ip();
        match (host_network, ip.is_unspecified(), ip.is_loopback()) {
            (true, true, _) => Some(Some(Ipv4Addr::LOCALHOST.into())),
            (true, false, _) => Some(Some(ip)),
            (false, _, true) => None,
            (false, _, false) => Some(None),
        }
    }

    /// How long cloudcore may take to stop: until its nodes were sent elsewhere, and what they reported is written.
    pub(super) fn grace(&self) -> Duration {
        let drain = self.kubeedge_rs.cloud_hub.drain.parse::<jiff::SignedDuration>();
        let drain = drain.ok().and_then(|drain| Duration::try_from(drain).ok()).unwrap_or_default();
        GRACE_MIN.max(drain.saturating_add(STOPPING))
    }
}
