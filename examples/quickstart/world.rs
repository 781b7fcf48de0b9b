//! What the story happens in: a cloud, an edge, and a link between them that can be cut.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use kube::{Client, Config, config::Kubeconfig};
use kubeedge_cloud::{
    cloudhub, devicecontroller, edgecontroller,
    pki::Authority,
    standalone::{self, ApiServer, Standalone},
};
use kubeedge_core::{
    hub::NodeConfig,
    id::NodeName,
    message::Connectivity,
    pipe,
    runtime::{
        ContainerRuntime,
        containerd::{self, Containerd},
        process::{self, ProcessRuntime},
    },
    store::redb::{RedbConfig, RedbStore},
    tls::{self, Identity},
    transport::{
        Listener as _,
        quic::{QuicConfig, QuicListener, QuicListenerConfig, QuicTransport},
    },
};
use kubeedge_device::protocols::thermometer::SimulatedThermometer;
use kubeedge_edge::{devicetwin, edged, edgehub, eventbus, metamanager::Read, servicebus};
use kubeedge_examples::{Cloud, CloudConfig, Edge, EdgeConfig, relay::UdpRelay};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// The edge node's name.
pub(crate) const NODE: &str = "quickstart-edge";

/// 1 s: quick enough to see a dead link at once. KubeEdge's default of 15 s is for real networks.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A day: longer than anybody keeps a quickstart.
const CERTIFICATES_LAST: Duration = Duration::from_secs(24 * 3600);

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
    broker: SocketAddr,
    edge: Option<Edge>,
    cloud: Cloud,
    api: JoinHandle<Result<(), standalone::Error>>,
    stop: CancellationToken,
    tls: Arc<rustls::ClientConfig>,
    thermometer: SimulatedThermometer,
    folder: PathBuf,
    containerd: Option<PathBuf>,
}

impl World {
    /// Starts cloud and edge; everything they keep is below `folder`.
    pub(crate) async fn start(folder: &Path, containerd: Option<&Path>) -> Result<Self> {
        let node: NodeName = NODE.parse()?;
        let authority = Authority::open_or_create(&folder.join("cloud"))?;
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let server = authority.issue_server(&names, CERTIFICATES_LAST)?;
        let server = Identity::from_pem(server.certificate_pem.as_bytes(), server.key_pem.as_bytes())?;
        let issued = authority.issue_node(&node, CERTIFICATES_LAST)?;
        let identity = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
        let roots = || tls::roots_from_pem(authority.certificate_pem().as_bytes());

        // The cloud: the API for kubectl on TLS, and CloudHub for edges on QUIC.
        let stop = CancellationToken::new();
        let requests = pipe::calls("requests", 64);
        let kubeconfig = folder.join("cloud/kubeconfig");
        let api =
            ApiServer::open(Some(&folder.join("cloud/api.redb")), standalone::Config::default()).await?;
        let listener = api_listener(&server, authority.certificate_pem(), &kubeconfig).await?;
        let outbox = standalone::Outbox { requests: requests.0.clone() };
        let serving = Standalone::new(api, Some(listener), outbox).run(stop.clone());
        let api = tokio::spawn(serving);
        let config =
            Config::from_custom_kubeconfig(Kubeconfig::read_from(&kubeconfig)?, &Default::default()).await?;
        let client = Client::try_from(config)?;
        let quic = QuicListener::bind(
            (Ipv4Addr::LOCALHOST, 0).into(),
            Arc::new(tls::server_config(&server, roots()?)?),
            QuicListenerConfig::default(),
        )?;
        let address: SocketAddr = quic.local_address().parse()?;
        let cloud = Cloud::start(
            CloudConfig {
                client: client.clone(),
                listeners: vec![Box::new(quic)],
                cloudhub: cloudhub::Config {
                    link: NodeConfig { heartbeat: HEARTBEAT, ..NodeConfig::default() },
                    ..cloudhub::Config::default()
                },
                edgecontroller: edgecontroller::Config::default(),
                devicecontroller: devicecontroller::Config::default(),
                rules: None,
            },
            requests,
        );

        let mut world = Self {
            client,
            kubeconfig,
            link: UdpRelay::start(address).await?,
            runtime: runtime(folder, containerd)?,
            broker: free_address()?,
            edge: None,
            cloud,
            api,
            stop,
            tls: Arc::new(tls::client_config(&identity, roots()?)?),
            thermometer: SimulatedThermometer::default(),
            folder: folder.to_owned(),
            containerd: containerd.map(Path::to_owned),
        };
        world.start_edge()?;
        Ok(world)
    }

    fn start_edge(&mut self) -> Result<()> {
        let node: NodeName = NODE.parse()?;
        let transport =
            QuicTransport::new(QuicConfig::new(self.link.address().to_string(), self.tls.clone()))?;
        self.edge = Some(Edge::start(EdgeConfig {
            transport: Arc::new(transport),
            store: Arc::new(RedbStore::open(self.folder.join("edge/edgecore.redb"), RedbConfig::default())?),
            runtime: self.runtime.clone(),
            protocol: Arc::new(self.thermometer.clone()),
            edgehub: edgehub::Config::new(node.clone()),
            edged: edged::Config {
                root: self.folder.join("edge/root"),
                logs: self.folder.join("edge/logs"),
                node_ip: Ipv4Addr::LOCALHOST.to_string(),
                // A full disk on your machine is no reason to turn the pod away; a node keeps the kubelet's thresholds.
                eviction: edged::Eviction::never(),
                ..edged::Config::new(node.clone())
            },
            devicetwin: devicetwin::Config::new(node),
            dmi: None,
            eventbus: Some(eventbus::Config {
                mode: eventbus::Mode::Internal,
                internal: eventbus::Internal { listen: self.broker, ..eventbus::Internal::default() },
                ..eventbus::Config::default()
            }),
            servicebus: Some(servicebus::Config::default()),
        }));
        Ok(())
    }

    /// Stops the edge and starts it again from what it has stored; what runs its pod goes on without it.
    pub(crate) async fn restart_edge(&mut self) -> Result<()> {
        if let Some(edge) = self.edge.take() {
            edge.stop().await?;
        }
        self.runtime = runtime(&self.folder, self.containerd.as_deref())?;
        self.start_edge()
    }

    /// Whether the edge reaches the cloud.
    pub(crate) fn connectivity(&self) -> Result<watch::Receiver<Connectivity>> {
        Ok(self.edge.as_ref().context("the edge is stopped")?.connectivity.clone())
    }

    /// How many objects of this kind the edge holds.
    pub(crate) async fn held(&self, kind: &str) -> Result<usize> {
        let edge = self.edge.as_ref().context("the edge is stopped")?;
        let read = Read::List { api_version: "v1".into(), kind: kind.into(), namespace: None };
        Ok(edge.reads.call(read, Duration::from_secs(5)).await??.len())
    }

    /// Asks the device's twin over MQTT, as an application on the node would, and gives one property of the answer.
    pub(crate) async fn ask_twin(&self, property: &str) -> Result<String> {
        let options = MqttOptions::new("quickstart", self.broker.ip().to_string(), self.broker.port());
        let (client, mut events) = AsyncClient::new(options, 16);
        client.subscribe("$hw/events/device/default/room/twin/get/result", QoS::AtLeastOnce).await?;
        let question = r#"{"event_id":"quickstart","timestamp":0}"#;
        let answer = async {
            loop {
                match events.poll().await? {
                    // Subscribed: from here on no answer is missed.
                    Event::Incoming(Packet::SubAck(_)) => {
                        client
                            .publish(
                                "$hw/events/device/default/room/twin/get",
                                QoS::AtLeastOnce,
                                false,
                                question,
                            )
                            .await?;
                    }
                    Event::Incoming(Packet::Publish(publish)) => {
                        return Ok::<_, anyhow::Error>(serde_json::from_slice::<serde_json::Value>(
                            &publish.payload,
                        )?);
                    }
                    Event::Incoming(_) | Event::Outgoing(_) => {}
                }
            }
        };
        let answer = timeout(Duration::from_secs(5), answer).await.context("no answer over MQTT")??;
        match answer["twin"][property]["actual"]["value"].as_str() {
            Some(value) => Ok(format!("{property} {value}, over MQTT")),
            None => bail!("the answer has no {property}: {answer}"),
        }
    }

    /// Takes the pod away and stops everything.
    pub(crate) async fn end(mut self) -> Result<()> {
        let stopped = match self.edge.take() {
            Some(edge) => edge.stop().await,
            None => Ok(()),
        };
        for sandbox in self.runtime.observe().await? {
            if sandbox.name == "thermostat" {
                self.runtime.stop_sandbox(&sandbox.id).await?;
                self.runtime.remove_sandbox(&sandbox.id).await?;
            }
        }
        self.cloud.stop().await?;
        self.stop.cancel();
        self.api.await??;
        Ok(stopped?)
    }
}

fn runtime(folder: &Path, containerd: Option<&Path>) -> Result<Arc<dyn ContainerRuntime>> {
    match containerd {
        Some(socket) => Ok(Arc::new(Containerd::new(containerd::Config {
            socket: socket.to_owned(),
            ..Default::default()
        })?)),
        None => {
            Ok(Arc::new(ProcessRuntime::open(process::Config { directory: folder.join("edge/processes") })?))
        }
    }
}

/// Listens for kubectl, and writes the kubeconfig that reaches it.
async fn api_listener(server: &Identity, ca: &str, kubeconfig: &Path) -> Result<standalone::Listener> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("https://{}", socket.local_addr()?);
    let token = standalone::Token::random()?;
    std::fs::write(kubeconfig, standalone::kubeconfig(&url, ca, &token))?;
    let tls = Arc::new(tls::web_server_config(server)?);
    Ok(standalone::Listener { socket, tls, token: standalone::Token::new(&token) })
}

/// An address that is free now.
fn free_address() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
