//! KubeEdge's `cloudcore.yaml` to values that the parts take.

pub(crate) mod hub;
#[cfg(test)]
mod tests;
// Reading files is the same in both programs, so they share the file that does it.
#[path = "../../edgecore/src/config/tree.rs"]
pub(crate) mod tree;
mod unused;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kubeedge_cloud::{devicecontroller, edgecontroller};

use hub::Hub;
use tree::Node;

/// Where the configuration is unless `--config` says otherwise.
pub(crate) const PATH: &str = "/etc/kubeedge/config/cloudcore.yaml";

const DEFAULT_YAML: &str = include_str!("config/default.yaml");
const MINIMAL_YAML: &str = include_str!("config/minimal.yaml");

/// What `cloudcore.yaml` says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where metrics are read.
    pub(crate) monitor: SocketAddr,
    /// How many threads do the work.
    pub(crate) worker_threads: usize,
    /// How the API server is reached, if there is one.
    pub(crate) api: Api,
    /// The links to the nodes.
    pub(crate) hub: Hub,
    /// How much of it they may take.
    pub(crate) limits: Limits,
    /// How this one is one of several that serve the same API; `None` if it is the only one.
    pub(crate) replicas: Option<Replicas>,
    /// Whether pods and their configuration go to nodes, and how much of the API this takes at once.
    pub(crate) edge_controller: Option<edgecontroller::Config>,
    /// For how long the API may take nothing of what is to be written before that is said.
    pub(crate) stalled_after: Duration,
    /// Whether devices go to nodes, and how often their statuses are written.
    pub(crate) device_controller: Option<devicecontroller::Config>,
    /// How nodes join and renew their certificates.
    pub(crate) enrollment: Enrollment,
    /// The admission webhook; `None` if it is switched off.
    pub(crate) admission: Option<Admission>,
    /// Logs of pods for API servers; `None` if they are switched off.
    pub(crate) cloud_stream: Option<CloudStream>,
    /// Messages by rules; `None` if they are switched off.
    pub(crate) router: Option<Router>,
}

/// One of several cloudcores that serve the same API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replicas {
    /// Where the others ask for nodes that are here.
    pub(crate) listen: SocketAddr,
    /// The address or name under which they reach it, if it is not the pod's.
    pub(crate) advertise: Option<String>,
    /// How many requests for nodes of others are under way at once, and how many of others for nodes here.
    pub(crate) requests_at_once: usize,
    /// The bytes of a request and of an answer.
    pub(crate) bytes_max: usize,
}

/// Logs of pods for API servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CloudStream {
    /// Where API servers ask.
    pub(crate) listen: SocketAddr,
    /// At which port of nodes' addresses they are told to ask.
    pub(crate) node_port: u16,
    /// The authorities of API servers' certificates.
    pub(crate) ca: PathBuf,
    /// The serving certificate; issued by the cloud's own authority if it is not there.
    pub(crate) certificate: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// The names of those who are answered.
    pub(crate) callers: Vec<String>,
}

/// How nodes join and renew their certificates, beside what `modules.cloudHub` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Enrollment {
    /// For how long after its end a certificate can be renewed.
    pub(crate) renew_expired_within: Duration,
    /// Whether a token is good for a node that exists and is not Ready.
    pub(crate) rejoin: bool,
    /// Requests that are answered in a second.
    pub(crate) requests_per_second: u32,
    /// And at once.
    pub(crate) requests_burst: u32,
}

/// The admission webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Admission {
    /// Where the API server asks.
    pub(crate) listen: SocketAddr,
    /// Whether the API server is told to ask.
    pub(crate) register: bool,
    /// Where it reaches the webhook, if not by KubeEdge's Service.
    pub(crate) url: Option<String>,
}

/// How much the sessions with the nodes may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of memory of all sessions together.
    pub(crate) memory: usize,
    /// Bytes of memory of one session, beyond what an idle one takes.
    pub(crate) session_memory: usize,
    /// How long a node stays away for which there is no room.
    pub(crate) retry_after: Duration,
    /// Over which time the nodes are sent elsewhere at the end.
    pub(crate) drain: Duration,
}

/// Messages between applications in the cloud and on nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Router {
    /// Where requests of applications in the cloud are taken.
    pub(crate) listen: SocketAddr,
    /// How long a node may take to answer one.
    pub(crate) rest_timeout: Duration,
    /// The authorities of `https` servers that messages are posted to.
    pub(crate) target_ca: Option<PathBuf>,
}

/// How the API server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Api {
    /// Its URL, in place of the one that the kubeconfig has.
    pub(crate) master: Option<String>,
    /// The kubeconfig; with neither, the cluster that the process runs in.
    pub(crate) kubeconfig: Option<PathBuf>,
}

impl Config {
    /// Reads a file. Returns also what an operator should look at.
    ///
    /// # Errors
    /// If the file cannot be read, is not YAML, or has a value that cannot be; the error ends with the place.
    pub(crate) fn load(path: &Path) -> Result<(Self, Vec<String>)> {
        let text = tree::read(path)?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a text, as [`Config::load`] does.
    pub(crate) fn parse(text: &str) -> Result<(Self, Vec<String>)> {
        let defaults = tree::parse(DEFAULT_YAML).context("the defaults")?;
        let mut values = defaults.clone();
        let mut warnings = tree::overlay(&mut values, tree::parse(text)?, &|_, _| false)?;
        let root = Node::root(&values);
        check_what_is_not_used(&root)?;
        unused::warn(&root, &Node::root(&defaults), &mut warnings)?;
        Ok((Self::from_tree(&root)?, warnings))
    }

    /// The text of the defaults, for `--defaultconfig`.
    pub(crate) fn default_yaml() -> &'static str {
        DEFAULT_YAML
    }

    /// The text with the keys that are most often changed, for `--minconfig`.
    pub(crate) fn minimal_yaml() -> &'static str {
        MINIMAL_YAML
    }

    fn from_tree(root: &Node<'_>) -> Result<Self> {
        let controller = root.at("modules.edgeController");
        // A node is given the difference to what it holds: what no controller speaks for would be taken away.
        let refused = root.at("modules.cloudHub.enable").bool()? && !controller.at("enable").bool()?;
        ensure!(
            !refused,
            controller.at("enable").wrong("cloudHub needs it: without it nodes would lose their pods")
        );
        Ok(Self {
            monitor: root.at("commonConfig.monitorServer.bindAddress").parsed()?,
            worker_threads: usize::try_from(root.at("kubeedgeRs.workerThreads").number(1u32, 1024)?)?,
            api: api(&root.at("kubeAPIConfig"))?,
            hub: hub::read(&root.at("modules.cloudHub"))?,
            limits: limits(&root.at("kubeedgeRs.cloudHub"))?,
            replicas: replicas(&root.at("kubeedgeRs.replicas"))?,
            edge_controller: edge_controller(root)?,
            stalled_after: root.at("kubeedgeRs.edgeController.stalledAfter").duration()?,
            device_controller: device_controller(root)?,
            enrollment: enrollment(&root.at("kubeedgeRs.enrollment"))?,
            admission: admission(root)?,
            cloud_stream: cloud_stream(root)?,
            router: router(root)?,
        })
    }
}

fn replicas(node: &Node<'_>) -> Result<Option<Replicas>> {
    let advertise = node.at("advertiseAddress");
    let host = advertise.filled()?;
    if let Some(host) = host {
        let is_host =
            host.parse::<IpAddr>().is_ok() || kubeedge_core::id::check_subdomain("host", host).is_ok();
        ensure!(is_host, advertise.wrong(format!("{host:?} is neither an IP address nor a host name")));
    }
    let advertise = host.map(str::to_owned);
    let requests_at_once = usize::try_from(node.at("requestsAtOnce").number(1u32, 10_000)?)?;
    let bytes_max = usize::try_from(node.at("requestMiB").number(1u32, 64)?)? << 20;
    let listen = node.listener()?;
    Ok(listen.map(|listen| Replicas { listen, advertise, requests_at_once, bytes_max }))
}

fn enrollment(node: &Node<'_>) -> Result<Enrollment> {
    Ok(Enrollment {
        renew_expired_within: node.at("renewExpiredWithin").duration()?,
        rejoin: node.at("rejoin").bool()?,
        requests_per_second: node.at("requestsPerSecond").number(1, 100_000)?,
        requests_burst: node.at("requestsBurst").number(1, 1_000_000)?,
    })
}

fn admission(root: &Node<'_>) -> Result<Option<Admission>> {
    let node = root.at("kubeedgeRs.admission");
    let register = node.at("register").bool()?;
    let url = node.at("url").filled()?;
    if let Some(url) = url {
        ensure!(
            url.starts_with("https://"),
            node.at("url").wrong(format!("{url:?} does not begin with https://"))
        );
    }
    let url = url.map(str::to_owned);
    Ok(node.listener()?.map(|listen| Admission { listen, register, url }))
}

fn cloud_stream(root: &Node<'_>) -> Result<Option<CloudStream>> {
    let node = root.at("modules.cloudStream");
    let given = root.at("kubeedgeRs.cloudStream.callers");
    let callers: Vec<_> =
        given.list()?.iter().map(|name| Ok(name.text()?.to_owned())).collect::<Result<_>>()?;
    ensure!(!callers.is_empty(), given.wrong("nobody would be answered"));
    let stream = CloudStream {
        listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, node.at("streamPort").port()?)),
        node_port: root.at("commonConfig.tunnelPort").port()?,
        ca: node.at("tlsStreamCAFile").file()?,
        certificate: node.at("tlsStreamCertFile").file()?,
        key: node.at("tlsStreamPrivateKeyFile").file()?,
        callers,
    };
    Ok(node.at("enable").bool()?.then_some(stream))
}

fn limits(node: &Node<'_>) -> Result<Limits> {
    let mebibytes = |key| Ok::<_, anyhow::Error>(usize::try_from(node.at(key).number(1u32, 1 << 20)?)? << 20);
    Ok(Limits {
        memory: mebibytes("memoryMiB")?,
        session_memory: mebibytes("sessionMemoryMiB")?,
        retry_after: node.at("retryAfter").duration()?,
        drain: node.at("drain").duration()?,
    })
}

fn router(root: &Node<'_>) -> Result<Option<Router>> {
    let node = root.at("modules.router");
    let rest_timeout = node.at("restTimeout").seconds()?;
    let ca = root.at("kubeedgeRs.router.targetCAFile");
    let target_ca = ca.filled()?.map(|_| ca.file()).transpose()?;
    Ok(node.listener()?.map(|listen| Router { listen, rest_timeout, target_ca }))
}

fn edge_controller(root: &Node<'_>) -> Result<Option<edgecontroller::Config>> {
    let ours = root.at("kubeedgeRs.edgeController");
    let count = |key, most: u32| -> Result<NonZeroUsize> {
        NonZeroUsize::new(usize::try_from(ours.at(key).number(1u32, most)?)?).context("it is at least one")
    };
    let config = edgecontroller::Config {
        writes_at_once: count("writesAtOnce", 1_000)?,
        events_at_once: count("eventsAtOnce", 1_000)?,
        events_waiting_max: count("eventsWaitingPerNode", 100_000)?,
        events_tried_for: ours.at("eventsTriedFor").duration()?,
        questions_at_once: count("questionsAtOnce", 1_000)?,
        questions_per_node: count("questionsPerNode", 1_000)?,
        questions_waiting_max: count("questionsWaitingPerNode", 100_000)?,
        ..edgecontroller::Config::default()
    };
    Ok(root.at("modules.edgeController.enable").bool()?.then_some(config))
}

fn device_controller(root: &Node<'_>) -> Result<Option<devicecontroller::Config>> {
    let ours = root.at("kubeedgeRs.deviceController");
    let config = devicecontroller::Config {
        status_interval: ours.at("statusInterval").duration()?,
        status_burst: ours.at("statusBurst").number(1, 1_000)?,
        writes_per_second: NonZeroU32::new(ours.at("writesPerSecond").number(1, 100_000)?)
            .context("it is at least one")?,
        device_statuses: ours.at("deviceStatuses").bool()?,
        ..devicecontroller::Config::default()
    };
    Ok(root.at("modules.deviceController.enable").bool()?.then_some(config))
}

fn api(node: &Node<'_>) -> Result<Api> {
    let master = node.at("master").filled()?;
    if let Some(url) = master {
        let valid = ["https://", "http://"].iter().any(|scheme| url.starts_with(scheme));
        ensure!(valid, node.at("master").wrong(format!("{url:?} is not an http or https URL")));
    }
    let kubeconfig = node.at("kubeConfig");
    let kubeconfig = kubeconfig.filled()?.map(|_| kubeconfig.file()).transpose()?;
    Ok(Api { master: master.map(str::to_owned), kubeconfig })
}

/// Checks values without effect here that KubeEdge would refuse, so that a file is good for both or for none.
fn check_what_is_not_used(root: &Node<'_>) -> Result<()> {
    let modules = root.at("modules");
    modules.at("cloudStream.tunnelPort").port()?;
    modules.at("edgeController.nodeUpdateFrequency").seconds()?;
    let mode = modules.at("iptablesManager.mode");
    let known = ["internal", "external"].contains(&mode.text()?);
    ensure!(known, mode.wrong(format!("{:?} is neither internal nor external", mode.text()?)));
    Ok(())
}
