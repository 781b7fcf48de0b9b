//! What the story happens in: a cloud, an edge, and a link between them that can be cut.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use kube::{Client, Config, config::Kubeconfig};
use kubeedge_cloud::{
    cloudhub, devicecontroller, edgecontroller,
    pki::Authority,
    standalone::{self, ApiServer, Standalone},
};
use kubeedge_core::{
    device::DeviceProtocol,
    id::NodeName,
    pipe,
    runtime::{ContainerRuntime, containerd::ContainerdRuntime, process::ProcessRuntime},
    store::redb::RedbStore,
    tls::Identity,
    transport::quic::{QuicConfig, QuicListener, QuicTransport},
};
use kubeedge_device::protocols::thermometer::SimulatedThermometer;
use kubeedge_edge::{devicetwin, edged, edgehub, eventbus, servicebus};
use kubeedge_examples::{Cloud, CloudConfig, Edge, EdgeConfig, relay::UdpRelay};
use tokio_util::sync::CancellationToken;

/// The edge node's name.
pub(crate) const NODE: &str = "quickstart-edge";

/// 1 s: quick enough to see a dead link at once. KubeEdge's default of 15 s is for real networks.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A cloud, an edge and their link.
pub(crate) struct World {
    /// Talks to the cloud as kubectl does.
    pub(crate) client: Client,
    /// For kubectl.
    pub(crate) kubeconfig: PathBuf,
    /// The link.
    pub(crate) link: UdpRelay,
    /// What runs the pod, as the edge sees it.
    pub(crate) runtime: Arc<dyn ContainerRuntime>,
    /// The embedded broker's address.
    pub(crate) broker: SocketAddr,
    edge: Option<Edge>,
    cloud: Cloud,
    api: tokio::task::JoinHandle<Result<(), standalone::Error>>,
    stop: CancellationToken,
    authority: Authority,
    thermometer: Arc<dyn DeviceProtocol>,
    folder: PathBuf,
    containerd: Option<PathBuf>,
}
