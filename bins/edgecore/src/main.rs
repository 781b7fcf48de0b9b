//! KubeEdge's edge: runs pods, keeps devices, and goes on when the cloud is out of reach.
//!
//! `main()` has four paragraphs: configuration, adapters, pipes, parts. Reading it is reading the architecture.

mod config;
mod identity;

use std::{
    io::IsTerminal,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use config::{Config, hub::Hub, modules::Runtime};
use kubeedge_core::{
    device::{DeviceAssignment, DeviceProtocol, Reading, Sample},
    group::Group,
    id::DeviceId,
    message::{Acked, Connectivity, Delivered, ObjectEvent, ObjectRef, Publish, Report, Upload, UploadId},
    pipe::{self, LatestReceiver, LatestSender},
    runtime::{
        ContainerRuntime, Streaming,
        containerd::{self, Containerd},
        process::{self, ProcessRuntime},
    },
    store::redb::{RedbConfig, RedbStore},
    tls::Live,
    transport::{
        Transport,
        fallback::FallbackTransport,
        quic::{QuicConfig, QuicTransport},
        websocket::{WebSocketConfig, WebSocketTransport},
    },
};
use kubeedge_device::{
    keeper::{self, Keeper},
    mapper::{self, Mapper},
    protocols::{http::Http, local::Local, modbus::Modbus, mqtt::Mqtt, thermometer::SimulatedThermometer},
};
use kubeedge_edge::{
    certificates::Certificates,
    devicetwin::{self, DeviceTwin},
    dmi::{self, Dmi},
    edged::{
        self, Edged,
        api::{self, Api},
        devices::{self, Devices},
    },
    edgehub::{self, EdgeHub},
    eventbus::{self, EventBus},
    metamanager::{self, MetaManager},
    servicebus::{self, ServiceBus},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// The edge of KubeEdge: runs pods, keeps devices, and goes on when the cloud is out of reach.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// The configuration file, KubeEdge's edgecore.yaml.
    #[arg(long, default_value = config::PATH)]
    config: PathBuf,
    /// Print the part of the configuration that is most often changed, and end.
    #[arg(long)]
    minconfig: bool,
    /// Print the whole configuration with its defaults, and end.
    #[arg(long)]
    defaultconfig: bool,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,kubeedge_edge=debug`.
    #[arg(long, default_value = "info", env = "RUST_LOG")]
    log: String,
}

/// 10 s: systemd kills after 90, and all that waits here are commits.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// 4 MiB: what applications say over MQTT waits in a pipe, a message of which may have 1 MiB; then it waits with them.
const PIPE_BYTES_MAX: usize = 4 << 20;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.minconfig || cli.defaultconfig {
        #[expect(clippy::print_stdout, reason = "this is what was asked for")]
        {
            print!("{}", if cli.minconfig { Config::minimal_yaml() } else { Config::default_yaml() });
        }
        return ExitCode::SUCCESS;
    }
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(&cli.log)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
    // One thread is enough for a node, and each more would cost stack and arenas.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("edgecore ends: the system gives no event queue: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(&cli.config));
    // A name that is being looked up in vain must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("edgecore ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(file: &Path) -> Result<()> {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let (config, warnings) = Config::load(file, hostname.trim())?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", file.display());
    }
    tracing::info!(node = %config.node, version = env!("CARGO_PKG_VERSION"), "edgecore starts");

    // The world outside: one line per port.
    let link_tls = Live::empty();
    let transport = transport(&config.hub, &link_tls, config.database.with_extension("link"))?;
    let store = Arc::new(RedbStore::open(&config.database, RedbConfig::default())?);
    let runtime = config.edged.as_ref().map(|edged| runtime(&edged.runtime)).transpose()?;

    // The arrows of ARCHITECTURE.md: one line per pipe.
    let (objects_tx, objects_rx) = pipe::latest("objects", key_of_delivered);
    let (acked_tx, acked_rx) = pipe::latest("acked", |acked: &Acked<ObjectRef>| acked.key.clone());
    let (inventory_tx, inventory_rx) = pipe::calls("inventory", 4);
    let (queries_tx, queries_rx) = pipe::calls("queries", 64);
    let (rules_tx, rules_rx) = pipe::latest("rules", |event: &ObjectEvent| event.key().clone());
    let (workloads_tx, workloads_rx) = pipe::latest("workloads", |event: &ObjectEvent| event.key().clone());
    let (devices_tx, devices_rx) = pipe::latest("devices", |event: &ObjectEvent| event.key().clone());
    // MetaServer will ask here.
    let (_reads_tx, reads_rx) = pipe::calls("reads", 64);
    let (tokens_tx, tokens_rx) = pipe::calls("tokens", 64);
    let (reports_tx, reports_rx) = pipe::latest("reports", Report::key);
    let (uploads_tx, uploads_rx) = pipe::weighed_events("uploads", 1024, PIPE_BYTES_MAX, Upload::size);
    let (events_tx, events_rx) = pipe::events("events", 32);
    let (connectivity_tx, connectivity_rx) = watch::channel(Connectivity::Offline);
    let (logs_tx, logs_rx) = pipe::calls("logs", 16);
    let api_logs_tx = logs_tx.clone();
    let (_releases_tx, releases_rx) = pipe::calls("releases", 4);
    let (pods_tx, pods_rx) = pipe::calls("pods", 16);
    let (plugins_tx, plugins_rx) = watch::channel(devices::Inventory::new());
    let (plugin_questions_tx, plugin_questions_rx) = pipe::calls("device_questions", 256);
    let (services_tx, services_rx) = pipe::calls("services", 16);
    let (cloud_messages_tx, cloud_messages_rx) = pipe::calls("cloud_messages", 16);
    let (tunnels_tx, tunnels_rx) = pipe::calls("tunnels", 32);
    let (uploaded_tx, uploaded_rx) = pipe::latest("uploaded", |id: &UploadId| *id);
    let (device_messages_tx, device_messages_rx) =
        pipe::weighed_events("device_messages", 1024, PIPE_BYTES_MAX, Publish::size);
    let (publishes_tx, publishes_rx) = pipe::weighed_events("publishes", 1024, PIPE_BYTES_MAX, Publish::size);
    let (assignments_tx, assignments_rx) = assignments(config.devices.mappers.len());
    let (outside_tx, outside_rx) = pipe::latest("outside_assignments", DeviceAssignment::key);
    let (readings_tx, readings_rx) = pipe::latest("readings", Reading::key);
    let (samples_tx, samples_rx) = pipe::weighed_events("samples", 4096, PIPE_BYTES_MAX, Sample::size);
    // Who asks for what is kept will ask here.
    let (history_tx, history_rx) = pipe::calls("history", 8);
    let (kept_tx, kept_rx) = watch::channel(keeper::Stats::default());

    // The parts: each takes the ends it uses. The ends of a part that is switched off are dropped, so that
    // whoever talks to it learns that nobody is there.
    let stop = CancellationToken::new();
    let mut group = Group::new(stop.clone());
    if let Some(transport) = transport {
        let certificates =
            Certificates::open(identity::certificates(&config.node, &config.hub), link_tls.clone());
        let token = config.hub.token.as_ref().map(|token| token.expose().to_owned());
        let forget =
            identity::forget_token(file.to_owned(), token, certificates.standing(), stop.child_token());
        group.spawn("token", forget);
        group.spawn("certificates", certificates.run(stop.child_token()));
        let edgehub = EdgeHub::new(
            edgehub::Config::new(config.node.clone()),
            transport,
            edgehub::Inbox {
                reports: reports_rx,
                uploads: uploads_rx,
                events: events_rx,
                acked: acked_rx,
                queries: queries_rx,
            },
            edgehub::Outbox {
                objects: objects_tx,
                inventory: inventory_tx,
                logs: logs_tx,
                services: services_tx,
                cloud_messages: cloud_messages_tx,
                tunnels: tunnels_tx,
                uploaded: uploaded_tx,
                connectivity: connectivity_tx,
            },
        )
        .with_renewals(link_tls.renewals());
        let session = stop.child_token();
        group.spawn("edgehub", async move {
            // There is nobody to dial as before there is a certificate.
            let joined = session.run_until_cancelled(link_tls.ready()).await;
            if joined.is_some() { edgehub.run(session).await } else { Ok(()) }
        });
    } else {
        drop((
            reports_rx,
            uploads_rx,
            events_rx,
            acked_rx,
            queries_rx,
            objects_tx,
            inventory_tx,
            logs_tx,
            services_tx,
            cloud_messages_tx,
            tunnels_tx,
            uploaded_tx,
        ));
    }
    if config.meta.enable {
        let metamanager = MetaManager::new(
            metamanager::Config {
                query_deadline: config.meta.query_deadline,
                ..metamanager::Config::default()
            },
            store.clone(),
            metamanager::Inbox {
                objects: objects_rx,
                inventory: inventory_rx,
                reads: reads_rx,
                tokens: tokens_rx,
                connectivity: connectivity_rx.clone(),
            },
            metamanager::Outbox {
                acked: acked_tx,
                workloads: workloads_tx,
                devices: devices_tx,
                rules: rules_tx,
                queries: queries_tx.clone(),
            },
        );
        group.spawn("metamanager", metamanager.run(stop.child_token()));
    } else {
        drop((objects_rx, inventory_rx, reads_rx, tokens_rx, acked_tx, workloads_tx, devices_tx, rules_tx));
    }
    if config.device_twin {
        let devicetwin = DeviceTwin::new(
            devicetwin::Config {
                limits: config.device_limits.clone(),
                ..devicetwin::Config::new(config.node.clone())
            },
            store.clone(),
            devicetwin::Inbox {
                devices: devices_rx,
                device_messages: device_messages_rx,
                readings: readings_rx,
                connectivity: connectivity_rx.clone(),
            },
            devicetwin::Outbox {
                reports: reports_tx.clone(),
                publishes: publishes_tx,
                assignments: pipe::tee(assignments_tx, outside_tx),
            },
        );
        group.spawn("devicetwin", devicetwin.run(stop.child_token()));
        let dmi = Dmi::new(
            dmi::Config {
                // A protocol that is run here is not given to a mapper outside.
                reserved: config.devices.mappers.iter().map(|mapper| mapper.name().to_owned()).collect(),
                ..dmi::Config::new(config.dmi_socket.clone())
            },
            store.clone(),
            dmi::Inbox { assignments: outside_rx },
            dmi::Outbox { readings: readings_tx.clone() },
        );
        group.spawn("dmi", dmi.run(stop.child_token()));
    } else {
        drop((devices_rx, device_messages_rx, readings_rx, publishes_tx, assignments_tx));
        drop((outside_tx, outside_rx));
    }
    if let (Some(edged), Some((runtime, streaming))) = (&config.edged, runtime) {
        let mut settings = edged_config(&config, edged);
        let mut rules = api::Config::new(config.node.clone(), &edged.root);
        rules.address = edged.api.unwrap_or(rules.address);
        let mut api = Api::new(
            rules,
            runtime.clone(),
            streaming,
            api::Inbox { tunnels: tunnels_rx },
            api::Outbox { pods: pods_tx, logs: api_logs_tx },
        );
        if edged.api.is_some() {
            // Pods run on a node also if something else has the port.
            match api.listen().await {
                Ok(address) => settings.api_port = Some(address.port()),
                Err(error) => tracing::warn!("pods run, and nobody can look at them from this node: {error}"),
            }
        }
        group.spawn("edged-api", api.run(stop.child_token()));
        let plugins = Devices::new(
            devices::Config::new(&edged.device_plugins),
            store.clone(),
            devices::Inbox { questions: plugin_questions_rx },
            devices::Outbox { inventory: plugins_tx },
        );
        group.spawn("edged-devices", plugins.run(stop.child_token()));
        let edged = Edged::new(
            settings,
            runtime,
            edged::Inbox {
                workloads: workloads_rx,
                logs: logs_rx,
                releases: releases_rx,
                pods: pods_rx,
                devices: plugins_rx,
                connectivity: connectivity_rx,
            },
            edged::Outbox {
                tokens: tokens_tx,
                reports: reports_tx,
                queries: queries_tx,
                events: events_tx,
                devices: plugin_questions_tx,
            },
        );
        group.spawn("edged", edged.run(stop.child_token()));
    } else {
        drop((workloads_rx, tokens_tx, logs_rx, reports_tx, events_tx, queries_tx));
    }
    if let Some(event_bus) = config.event_bus {
        let eventbus = EventBus::new(
            event_bus,
            store,
            eventbus::Inbox {
                publishes: publishes_rx,
                cloud_messages: cloud_messages_rx,
                uploaded: uploaded_rx,
                rules: rules_rx,
            },
            eventbus::Outbox { device_messages: device_messages_tx, uploads: uploads_tx },
        );
        group.spawn("eventbus", eventbus.run(stop.child_token()));
    } else {
        drop((publishes_rx, cloud_messages_rx, uploaded_rx, rules_rx, device_messages_tx, uploads_tx));
    }
    if let Some(service_bus) = config.service_bus {
        let servicebus = ServiceBus::new(service_bus, servicebus::Inbox { services: services_rx });
        group.spawn("servicebus", servicebus.run(stop.child_token()));
    } else {
        drop(services_rx);
    }
    if config.devices.mappers.is_empty() {
        drop((samples_rx, history_rx, kept_tx));
    } else {
        // A file of its own: it is written to all the time.
        let file = config.database.with_extension("readings");
        let readings = RedbStore::open(file, RedbConfig { cache_bytes: 256 << 10, ..RedbConfig::default() })?;
        let keeper = Keeper::new(
            config.devices.keeper.clone(),
            Arc::new(readings),
            keeper::Inbox { samples: samples_rx, queries: history_rx },
            keeper::Outbox { stats: kept_tx },
        );
        group.spawn("keeper", keeper.run(stop.child_token()));
        if let Some(address) = config.devices.readings {
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("kubeedgeRs.readings.listen: {address}"))?;
            let outbox = keeper::api::Outbox { history: history_tx, stats: kept_rx };
            group.spawn("readings", keeper::api::serve(listener, outbox, stop.child_token()));
        }
    }
    for (mapper, assignments) in config.devices.mappers.iter().zip(assignments_rx) {
        let (name, protocol) = protocol(*mapper, &config.devices);
        let mapper = Mapper::new(
            mapper::Config::default(),
            protocol,
            mapper::Inbox { assignments },
            mapper::Outbox { readings: readings_tx.clone(), samples: Some(samples_tx.clone()) },
        );
        group.spawn(name, mapper.run(stop.child_token()));
    }
    drop((readings_tx, samples_tx));

    // Run until a signal, or until the first part fails; then stop together.
    group.spawn("signals", until_signal(stop));
    Ok(group.join(SHUTDOWN_GRACE).await?)
}

/// The pipe of assignments, joined of one for each mapper.
fn assignments(
    mappers: usize,
) -> (LatestSender<DeviceId, DeviceAssignment>, Vec<LatestReceiver<DeviceId, DeviceAssignment>>) {
    // The first is nobody's, so that there is a pipe without mappers too.
    let (mut joined, _) = pipe::latest("assignments", DeviceAssignment::key);
    let mut receivers = Vec::new();
    for _ in 0..mappers {
        let (sender, receiver) = pipe::latest("assignments", DeviceAssignment::key);
        joined = pipe::tee(joined, sender);
        receivers.push(receiver);
    }
    (joined, receivers)
}

/// The driver of a mapper's devices, and the name of the part that runs it.
fn protocol(
    mapper: config::devices::Mapper,
    devices: &config::devices::Devices,
) -> (&'static str, Arc<dyn DeviceProtocol>) {
    use config::devices::Mapper;
    match mapper {
        Mapper::Http => ("mapper http", Arc::new(Http::default())),
        Mapper::Local => ("mapper local", Arc::new(Local::new(devices.local.clone()))),
        Mapper::Modbus => ("mapper modbus", Arc::new(Modbus::default())),
        Mapper::Mqtt => ("mapper mqtt", Arc::new(Mqtt::default())),
        Mapper::Thermometer => ("mapper thermometer", Arc::new(SimulatedThermometer::default())),
    }
}

fn key_of_delivered(object: &Delivered<ObjectEvent>) -> ObjectRef {
    object.message.key().clone()
}

/// The ways to the cloud, QUIC preferred; `None` if the node has none. The name of the one that won is kept in the
/// file `winner`, so that a node whose network blocks UDP does not try it first at each start.
fn transport(hub: &Hub, tls: &Live, winner: PathBuf) -> Result<Option<Arc<dyn Transport>>> {
    if !hub.enable {
        return Ok(None);
    }
    let tls = Arc::new(tls.client_config()?);
    let mut ways: Vec<Arc<dyn Transport>> = Vec::new();
    if let Some(link) = &hub.quic {
        ways.push(Arc::new(QuicTransport::new(QuicConfig::new(link.server.to_string(), tls.clone()))?));
    }
    if let Some(link) = &hub.websocket {
        ways.push(Arc::new(WebSocketTransport::new(WebSocketConfig::new(link.server.to_string(), tls))?));
    }
    match ways.len() {
        0 => bail!("modules.edgeHub: neither quic nor websocket is enabled"),
        1 => Ok(ways.pop()),
        _ => {
            let last = std::fs::read_to_string(&winner).unwrap_or_default();
            let remember = move |name: &str| {
                if let Err(error) = std::fs::write(&winner, name) {
                    tracing::warn!(file = %winner.display(), %error, "the transport that won is not remembered");
                }
            };
            let transport = FallbackTransport::new(ways).with_last_winner(last.trim()).on_change(remember);
            Ok(Some(Arc::new(transport)))
        }
    }
}

/// What runs containers, and what opens connections into them if there is such a thing.
type Runtimes = (Arc<dyn ContainerRuntime>, Option<Arc<dyn Streaming>>);

fn runtime(runtime: &Runtime) -> Result<Runtimes> {
    match runtime {
        Runtime::Containerd { socket } => {
            let config = containerd::Config { socket: socket.clone(), ..containerd::Config::default() };
            let containerd = Arc::new(Containerd::new(config)?);
            Ok((containerd.clone(), Some(containerd)))
        }
        Runtime::Process { directory } => {
            let config = process::Config { directory: directory.clone() };
            Ok((Arc::new(ProcessRuntime::open(config)?), None))
        }
    }
}

fn edged_config(config: &Config, edged: &config::modules::Edged) -> edged::Config {
    let node_ip = edged.node_ip.map(|ip| ip.to_string()).or_else(|| address_towards_cloud(&config.hub));
    edged::Config {
        labels: edged.labels.clone(),
        taints: edged
            .taints
            .iter()
            .map(|taint| edged::Taint {
                key: taint.key.clone(),
                value: taint.value.clone(),
                effect: taint.effect.clone(),
            })
            .collect(),
        register_schedulable: edged.register_schedulable,
        root: edged.root.clone(),
        logs: edged.root.join("logs"),
        node_ip: node_ip.unwrap_or_default(),
        max_pods: edged.max_pods,
        cluster_dns: edged.cluster_dns.iter().map(ToString::to_string).collect(),
        cluster_domain: edged.cluster_domain.clone(),
        status_interval: edged.status_interval,
        allowed_unsafe_sysctls: edged.allowed_unsafe_sysctls.clone(),
        image_report_interval: edged.image_report_interval,
        images_max: edged.images_max,
        kube_reserved: edged.upkeep.kube_reserved,
        system_reserved: edged.upkeep.system_reserved,
        eviction: edged.upkeep.eviction.clone(),
        image_collection: edged.upkeep.images,
        sandbox_image: edged.sandbox_image.clone(),
        log_rotation: edged.upkeep.log_rotation,
        static_pods: edged.upkeep.static_pods.clone(),
        parallel_pulls: edged.upkeep.parallel_pulls,
        // Processes of the node are in its own cgroups.
        cgroups: match edged.runtime {
            Runtime::Containerd { .. } => edged.cgroups.clone(),
            Runtime::Process { .. } => None,
        },
        ..edged::Config::new(config.node.clone())
    }
}

/// This machine's address on the way to the cloud, if that is given as an address: no name is looked up, since
/// the pods of a node without a link must not wait for one.
fn address_towards_cloud(hub: &Hub) -> Option<String> {
    let link = hub.quic.as_ref().or(hub.websocket.as_ref())?;
    let cloud: std::net::IpAddr = link.server.host.parse().ok()?;
    let any = if cloud.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).ok()?;
    // Nothing is sent: connecting a UDP socket only chooses a route.
    socket.connect((cloud, link.server.port)).ok()?;
    Some(socket.local_addr().ok()?.ip().to_string())
}

/// Ends with SIGTERM or SIGINT, or when the others stop.
async fn until_signal(stop: CancellationToken) -> Result<(), std::io::Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: edgecore stops; pods go on"),
        _ = interrupt.recv() => tracing::info!("SIGINT: edgecore stops; pods go on"),
        () = stop.cancelled() => {}
    }
    Ok(())
}
