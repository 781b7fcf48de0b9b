//! KubeEdge's cloud: serves edge nodes from a Kubernetes API, a cluster's or its own.
//!
//! `main()` has four paragraphs: configuration, adapters, pipes, parts. Reading it is reading the architecture.

mod config;
mod figures;
mod identity;
mod log;
mod manifests;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use config::Config;
use kube::Client;
use kubeedge_cloud::{
    admission::{self, Admission},
    cloudhub::{self, CloudHub},
    cloudstream::{self, CloudStream},
    devicecontroller::{self, DeviceController},
    edgecontroller::{self, Counts, EdgeController, Writing},
    election::{self, Election},
    enrollment::Enrollment,
    monitor::{self, Check, Monitor},
    relay::{self, Relay},
    router::{self, Router},
    standalone::{self, ApiServer, Standalone},
};
use kubeedge_core::{
    group::Group,
    hub::NodeConfig,
    id::NodeName,
    message::{
        Acked, ClockOffset, Delivered, Delivery, FromNode, ObjectEvent, ObjectRef, Report, ReportKey, Ruling,
        SessionState, ToNode, UploadedPublish,
    },
    pipe,
    tls::{self, Live},
    transport::{
        Listener,
        quic::{QuicListener, QuicListenerConfig, ResetSecret},
        websocket::{WebSocketListener, WebSocketListenerConfig},
    },
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// The cloud of KubeEdge: serves edge nodes from a Kubernetes API.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,kubeedge_cloud=debug`.
    #[arg(long, default_value = "info", env = "RUST_LOG", global = true)]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Issues the certificate of a node, to be copied to it: rootCA.crt, server.crt and server.key.
    IssueCertificate(identity::Issue),
    /// Prints what a cluster is given before cloudcore runs on it, and cloudcore itself, for `kubectl apply -f -`.
    Manifests(manifests::Manifests),
}

#[derive(Debug, Args)]
struct Serve {
    /// The configuration file, KubeEdge's cloudcore.yaml. With --standalone the defaults do without.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Bring a Kubernetes API along, instead of using a cluster's. DIR/kubeconfig reaches it.
    #[arg(long, requires = "data_dir")]
    standalone: bool,
    /// Where --standalone keeps everything: objects, certificates, kubeconfig.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where --standalone serves its API.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6443")]
    api_address: SocketAddr,
    /// Print the part of the configuration that is most often changed, and end.
    #[arg(long)]
    minconfig: bool,
    /// Print the whole configuration with its defaults, and end.
    #[arg(long)]
    defaultconfig: bool,
}

/// 16 MiB: what nodes send up waits in a pipe, a message of which may have 1 MiB; then it waits at the nodes.
const PIPE_BYTES_MAX: usize = 16 << 20;

/// 10 s after the nodes were sent elsewhere: goodbyes on slow links, and answers to people that are under way. What was not
/// written to the API is not acknowledged, and comes again from the nodes.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.serve.minconfig || cli.serve.defaultconfig {
        #[expect(clippy::print_stdout, reason = "this is what was asked for")]
        {
            print!("{}", if cli.serve.minconfig { Config::minimal_yaml() } else { Config::default_yaml() });
        }
        return ExitCode::SUCCESS;
    }
    let loaded = cli.command.is_none().then(|| load(&cli.serve)).transpose();
    // What a command does, one thread does.
    let threads =
        loaded.as_ref().ok().and_then(Option::as_ref).map_or(1, |(config, _)| config.worker_threads);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let ended = runtime.context("a runtime").and_then(|runtime| runtime.block_on(execute(&cli, loaded)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("cloudcore ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line says; `loaded` is the configuration with what an operator should look at.
async fn execute(cli: &Cli, loaded: Result<Option<(Config, Vec<String>)>>) -> Result<()> {
    let left_out = tokio::spawn(log::init(&cli.log));
    // kube asks for the process's provider of cryptography; everything of ours is handed one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match (&cli.command, loaded?) {
        (Some(Command::IssueCertificate(issue)), _) => issue.run(),
        (Some(Command::Manifests(wanted)), _) => print_text(wanted.text()),
        (None, Some((config, warnings))) => {
            for warning in warnings {
                tracing::warn!("{}: {warning}", cli.serve.file().unwrap_or_default().display());
            }
            run(&cli.serve, config).await
        }
        (None, None) => Ok(()),
    };
    left_out.abort();
    result
}

#[expect(clippy::print_stdout, reason = "this is what was asked for")]
fn print_text(text: Result<String>) -> Result<()> {
    print!("{}", text?);
    Ok(())
}

async fn run(serve: &Serve, config: Config) -> Result<()> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), standalone = serve.standalone, "cloudcore starts");

    // The world outside: the Kubernetes API, and the links to nodes.
    let own_folder = serve.data_dir.as_deref().filter(|_| serve.standalone);
    let authority = identity::authority(own_folder, &config.hub)?;
    let (requests_tx, requests_rx) = pipe::calls("requests", 64);
    let stop = CancellationToken::new();
    let mut group = Group::new(stop.clone());
    let (client, own_api) = match own_folder {
        Some(folder) => {
            let api = ApiServer::open(Some(&folder.join("api.redb")), standalone::Config::default()).await?;
            let socket = TcpListener::bind(serve.api_address)
                .await
                .with_context(|| format!("--api-address {}", serve.api_address))?;
            (api.client(), Some((api, identity::api_listener(&config.hub, socket, folder)?)))
        }
        None => (cluster(&config.api).await?, None),
    };
    let trusted = identity::shared(&client, authority).await?;
    let reset_secret = ResetSecret::new(trusted.authority().derive_secret("quic reset"));
    let link_tls = Live::empty();
    let name = identity::of_process()?;
    let mut enrollment = Enrollment::open(
        identity::enrollment(&config, own_folder),
        trusted,
        client.clone(),
        link_tls.clone(),
        https(&config.hub).await?,
    )
    .await?;
    let mut peers = None;
    if let Some(replicas) = &config.replicas {
        let (found, address) = identity::peers(replicas).await?;
        enrollment = enrollment.with_replica(&name, identity::hosts(&address), found.tls.clone())?;
        peers = Some((replicas, found, address));
    }
    let mut webhook = None;
    if let Some(rules) = &config.admission {
        let (listener, server) = identity::webhook(&config.hub, rules.listen).await?;
        enrollment = enrollment.with_server(server).context("kubeedgeRs.admission")?;
        webhook = Some((rules, listener));
    }
    let mut stream = None;
    if let Some(rules) = &config.cloud_stream {
        let (listener, server) = identity::stream(&config.hub, rules).await?;
        enrollment = enrollment.with_server(server).context("modules.cloudStream: tlsStream")?;
        stream = Some((rules, listener));
    }
    let authorities = enrollment.authorities();
    if let Some((api, (listener, server, kubeconfig))) = own_api {
        enrollment = enrollment.with_server(server).context("--api-address")?;
        kubeconfig.write(&authorities.borrow())?;
        group.spawn("kubeconfig", kubeconfig.follow(authorities.clone(), stop.child_token()));
        let outbox = standalone::Outbox { requests: requests_tx.clone() };
        group.spawn("standalone", Standalone::new(api, Some(listener), outbox).run(stop.child_token()));
    }
    let listeners = listeners(&config, &link_tls, reset_secret)?;

    // The arrows of ARCHITECTURE.md: one line per pipe.
    let (downstream_tx, downstream_rx) = pipe::latest("downstream", object_at_node);
    let (edge_snapshots_tx, edge_snapshots_rx) = pipe::calls("edge_snapshots", 1024);
    let (rule_snapshots_tx, rule_snapshots_rx) = pipe::calls("rule_snapshots", 1024);
    let (device_snapshots_tx, device_snapshots_rx) = pipe::calls("device_snapshots", 1024);
    let (statuses_tx, statuses_rx) = pipe::latest("statuses", report_of_node);
    let (device_reports_tx, device_reports_rx) = pipe::latest("device_reports", report_of_node);
    let (acked_tx, acked_rx) = pipe::latest("acked", acked_to_node);
    let (sessions_tx, sessions_rx) = pipe::latest("sessions", session_of_node);
    let (clocks_tx, clocks_rx) = pipe::latest("clocks", clock_of_node); // CloudHub -> EdgeController
    let (elsewhere_tx, elsewhere_rx) = pipe::calls("elsewhere", 64); // CloudHub -> Relay
    let (relayed_tx, relayed_rx) = pipe::calls("relayed", 64); // Relay -> CloudHub
    let (lost_tx, lost_rx) = pipe::latest("lost", |to: &ToNode<Ruling>| to.node.clone()); // EdgeController -> CloudHub
    let (queries_tx, queries_rx) = pipe::calls("queries", 1024);
    let (events_tx, events_rx) = pipe::events("events", 1024);
    let (messages_tx, messages_rx) = pipe::weighed_events("messages", 1024, PIPE_BYTES_MAX, size_of_message);
    let (taken_tx, taken_rx) =
        pipe::latest("taken", |taken: &ToNode<Delivery>| (taken.node.clone(), taken.message));

    // The parts: each takes the ends it uses.
    let mut snapshots = Vec::new();
    let mut watched = monitor::Inbox::default();
    watched.metrics.push(figures::of_joining(enrollment.counts(), link_tls));
    group.spawn("enrollment", enrollment.run(stop.child_token()));
    let mut denials = Vec::new();
    let mut unseen = Vec::new();
    if let Some(limits) = &config.edge_controller {
        snapshots.push(edge_snapshots_tx);
        let mut edgecontroller = EdgeController::new(
            edgecontroller::Config {
                identity: name.clone(),
                address: peers.as_ref().map(|(_, _, address)| address.clone()).unwrap_or_default(),
                kubelet_port: config.cloud_stream.as_ref().map(|stream| stream.node_port),
                ..limits.clone()
            },
            client.clone(),
            edgecontroller::Inbox {
                statuses: statuses_rx,
                snapshots: edge_snapshots_rx,
                sessions: sessions_rx,
                clocks: clocks_rx,
                queries: queries_rx,
                events: events_rx,
            },
            edgecontroller::Outbox {
                downstream: downstream_tx.clone(),
                acked: acked_tx.clone(),
                lost: lost_tx,
                taken: taken_tx.clone(),
            },
        );
        if config.replicas.is_some() {
            let rules = election::Config {
                namespace: identity::namespace(),
                ..election::Config::new("cloudcore", &name)
            };
            let election = Election::new(rules, client.clone());
            edgecontroller = edgecontroller.with_leadership(election.leads());
            group.spawn("election", election.run(stop.child_token()));
        }
        denials.push(("edgecontroller", edgecontroller.denials()));
        watched.metrics.push(figures::of_nodes_wishes(edgecontroller.counts()));
        let (listed, unwatched) = (edgecontroller.listed(), edgecontroller.unwatched());
        unseen.push(("edgecontroller", unwatched.clone()));
        for (name, writing) in [
            ("edgecontroller-writes", Counts::reports as fn(&Counts) -> Writing),
            ("edgecontroller-leases", Counts::leases),
        ] {
            let (counts, most) = (edgecontroller.counts(), config.stalled_after);
            let takes = move || writing(&counts).stalled.is_none_or(|stalled| stalled < most);
            watched.checks.push(Check { name, holds: Box::new(takes) });
        }
        watched.metrics.push(figures::of_edgecontroller(edgecontroller.unread()));
        watched.checks.push(Check { name: "edgecontroller", holds: Box::new(move || *listed.borrow()) });
        let sees = Box::new(move || unwatched.borrow().is_empty());
        watched.checks.push(Check { name: "edgecontroller-watches", holds: sees });
        group.spawn("edgecontroller", edgecontroller.run(stop.child_token()));
    }
    if let Some(pace) = &config.device_controller {
        snapshots.push(device_snapshots_tx);
        let devicecontroller = DeviceController::new(
            pace.clone(),
            client.clone(),
            devicecontroller::Inbox { reports: device_reports_rx, snapshots: device_snapshots_rx },
            devicecontroller::Outbox { downstream: downstream_tx.clone(), acked: acked_tx },
        );
        denials.push(("devicecontroller", devicecontroller.denials()));
        let unwatched = devicecontroller.unwatched();
        unseen.push(("devicecontroller", unwatched.clone()));
        let sees = Box::new(move || unwatched.borrow().is_empty());
        watched.checks.push(Check { name: "devicecontroller-watches", holds: sees });
        watched.metrics.push(figures::of_devicecontroller(devicecontroller.counts()));
        group.spawn("devicecontroller", devicecontroller.run(stop.child_token()));
    }
    if let Some((webhook, listener)) = webhook {
        let ca_pem = authorities.borrow().clone();
        let address =
            admission::Address { url: webhook.url.clone(), namespace: identity::namespace(), ca_pem };
        let rules = admission::Config {
            register: webhook.register.then_some(address),
            ..admission::Config::default()
        };
        tracing::info!(address = %webhook.listen, "the admission webhook is served");
        let admission = Admission::new(rules, listener, client.clone()).following(authorities);
        group.spawn("admission", admission.run(stop.child_token()));
    }
    if let Some((stream, listener)) = stream {
        let rules = cloudstream::Config { callers: stream.callers.clone(), ..cloudstream::Config::default() };
        tracing::info!(address = %stream.listen, "answering API servers for nodes");
        let outbox = cloudstream::Outbox { requests: requests_tx.clone() };
        let part = CloudStream::new(rules, listener, client.clone(), outbox);
        group.spawn("cloudstream", part.run(stop.child_token()));
    }
    let elsewhere = peers.is_some().then_some(elsewhere_tx);
    if let Some((replicas, peers, _)) = peers {
        let rules = relay::Config {
            at_once: replicas.requests_at_once,
            connections_max: replicas.requests_at_once,
            bytes_max: replicas.bytes_max,
            ..relay::Config::new(name)
        };
        let tls = peers.tls.clone();
        let (inbox, outbox) = (relay::Inbox { requests: elsewhere_rx }, relay::Outbox { hub: relayed_tx });
        let relay = Relay::new(rules, client.clone(), peers, inbox, outbox);
        watched.metrics.push(figures::of_relay(relay.counts(), tls));
        group.spawn("relay", relay.run(stop.child_token()));
    }
    if let Some(rules) = &config.router {
        let listener = TcpListener::bind(rules.listen)
            .await
            .with_context(|| format!("modules.router: {}", rules.listen))?;
        tracing::info!(address = %rules.listen, "taking requests for nodes, without asking who they are from");
        let target_tls = rules.target_ca.as_deref().map(target_tls).transpose()?;
        snapshots.push(rule_snapshots_tx);
        let router = Router::new(
            router::Config { rest_timeout: rules.rest_timeout, target_tls, ..router::Config::default() },
            client,
            Some(listener),
            router::Inbox { messages: messages_rx, snapshots: rule_snapshots_rx },
            router::Outbox { taken: taken_tx, requests: requests_tx, downstream: downstream_tx },
        );
        denials.push(("router", router.denials()));
        group.spawn("router", router.run(stop.child_token()));
    } else {
        // Without rules, what applications on nodes send up ends at CloudHub.
        drop((messages_rx, taken_tx, requests_tx, downstream_tx));
    }
    let cloudhub = CloudHub::new(
        hub_config(&config),
        listeners,
        cloudhub::Inbox {
            downstream: downstream_rx,
            acked: acked_rx,
            taken: taken_rx,
            lost: lost_rx,
            requests: requests_rx,
            relayed: relayed_rx,
        },
        cloudhub::Outbox {
            snapshots,
            statuses: statuses_tx,
            device_reports: device_reports_tx,
            sessions: sessions_tx,
            clocks: clocks_tx,
            queries: queries_tx,
            events: events_tx,
            messages: messages_tx,
            elsewhere,
        },
    );
    watched.metrics.push(figures::of_cloudhub(cloudhub.gauges()));
    watched.metrics.push(figures::of_denials(denials));
    watched.metrics.push(figures::of_watches(unseen));
    let stopping = stop.clone();
    watched.checks.push(Check { name: "cloudhub", holds: Box::new(move || !stopping.is_cancelled()) });
    group.spawn("cloudhub", cloudhub.run(stop.child_token()));
    match TcpListener::bind(config.monitor).await {
        Ok(listener) => {
            let monitor = Monitor::new(monitor::Config::default(), listener, watched);
            group.spawn("monitor", monitor.run(stop.child_token()));
        }
        // Nodes are served all the same.
        Err(error) => {
            tracing::warn!(address = %config.monitor, %error, "commonConfig.monitorServer: there are no metrics");
        }
    }

    // Run until a signal, or until the first part fails; then stop together.
    group.spawn("signals", until_signal(stop));
    Ok(group.join(SHUTDOWN_GRACE.saturating_add(config.limits.drain)).await?)
}

impl Serve {
    /// The configuration file, if there is one.
    fn file(&self) -> Option<PathBuf> {
        self.config.clone().or_else(|| (!self.standalone).then(|| config::PATH.into()))
    }
}

fn load(serve: &Serve) -> Result<(Config, Vec<String>)> {
    match serve.file() {
        Some(file) => Config::load(&file),
        None => Config::parse("{}"),
    }
}

/// A client of the cluster that the configuration names, or else of the one that the process runs in.
async fn cluster(api: &config::Api) -> Result<Client> {
    let mut config = match &api.kubeconfig {
        Some(file) => {
            let kubeconfig = kube::config::Kubeconfig::read_from(file)
                .with_context(|| format!("kubeAPIConfig.kubeConfig: {}", file.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer().await.context(
            "kubeAPIConfig.kubeConfig is empty and this is no pod of a cluster; --standalone brings an API along",
        )?,
    };
    if let Some(master) = &api.master {
        config.cluster_url = master.parse().context("kubeAPIConfig.master")?;
    }
    Ok(Client::try_from(config)?)
}

/// Where nodes ask for their certificates.
async fn https(hub: &config::hub::Hub) -> Result<Option<TcpListener>> {
    let Some(address) = hub.https.filter(|_| hub.enable) else { return Ok(None) };
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("modules.cloudHub.https: cannot listen on {address}"))?;
    tracing::info!(%address, "listening for nodes that join");
    Ok(Some(listener))
}

fn listeners(config: &Config, tls: &Live, reset_secret: ResetSecret) -> Result<Vec<Box<dyn Listener>>> {
    let mut listeners: Vec<Box<dyn Listener>> = Vec::new();
    if !config.hub.enable {
        return Ok(listeners);
    }
    let tls = Arc::new(tls.server_config()?);
    if let Some(address) = config.hub.quic {
        let quic = QuicListenerConfig { reset_secret: Some(reset_secret), ..QuicListenerConfig::default() };
        listeners.push(Box::new(QuicListener::bind(address, tls.clone(), quic)?));
    }
    if let Some(address) = config.hub.websocket {
        listeners.push(Box::new(WebSocketListener::bind(address, tls, WebSocketListenerConfig::default())?));
    }
    for listener in &listeners {
        tracing::info!(address = listener.local_address(), "listening for edges");
    }
    if listeners.is_empty() {
        bail!("modules.cloudHub: neither quic nor websocket is enabled");
    }
    Ok(listeners)
}

/// How servers that messages are posted to are spoken to by `https`.
fn target_tls(ca: &Path) -> Result<Arc<rustls::ClientConfig>> {
    let roots = tls::roots_from_file(ca).context("kubeedgeRs.router.targetCAFile")?;
    Ok(Arc::new(tls::other_client_config(None, roots)?))
}

fn hub_config(config: &Config) -> cloudhub::Config {
    // KubeEdge's keepaliveInterval is after how long a silent node is given up: two heartbeats.
    let heartbeat = config.hub.keepalive_interval / 2;
    let spoken_for = |kind: &&str| match *kind {
        "Rule" => config.router.is_some(),
        _ => config.device_controller.is_some(),
    };
    let left_alone = ["Device", "DeviceModel", "Rule"].into_iter().filter(|kind| !spoken_for(kind));
    let kinds_left_alone = left_alone.map(str::to_owned).collect();
    cloudhub::Config {
        link: NodeConfig {
            heartbeat,
            kinds_left_alone,
            memory_max: config.limits.session_memory,
            ..NodeConfig::default()
        },
        max_sessions: config.hub.node_limit,
        memory_max: config.limits.memory,
        retry_after: config.limits.retry_after,
        drain: config.limits.drain,
        ..cloudhub::Config::default()
    }
}

fn object_at_node(event: &ToNode<ObjectEvent>) -> (NodeName, ObjectRef) {
    (event.node.clone(), event.message.key().clone())
}

fn report_of_node(report: &FromNode<Delivered<Report>>) -> (NodeName, ReportKey) {
    (report.node.clone(), report.message.message.key())
}

fn acked_to_node(acked: &ToNode<Acked<ReportKey>>) -> (NodeName, ReportKey) {
    (acked.node.clone(), acked.message.key.clone())
}

fn size_of_message(message: &FromNode<Delivered<UploadedPublish>>) -> usize {
    message.message.message.publish.size()
}

fn clock_of_node(clock: &FromNode<ClockOffset>) -> NodeName {
    clock.node.clone()
}

fn session_of_node(session: &FromNode<SessionState>) -> NodeName {
    session.node.clone()
}

/// Ends with SIGTERM or SIGINT, or when the others stop.
async fn until_signal(stop: CancellationToken) -> Result<(), std::io::Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: cloudcore stops"),
        _ = interrupt.recv() => tracing::info!("SIGINT: cloudcore stops"),
        () = stop.cancelled() => {}
    }
    Ok(())
}
