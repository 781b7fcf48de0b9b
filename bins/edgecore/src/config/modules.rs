//! The other modules.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kubeedge_core::id::NodeName;
use kubeedge_edge::{
    devicetwin,
    edged::{CgroupDriver, Cgroups},
    servicebus::{self, Allowed},
};

use super::{
    tree::Node,
    upkeep::{self, Upkeep},
};

/// The node's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Whether it is kept.
    pub(crate) enable: bool,
    /// How long the cloud has to answer a question.
    pub(crate) query_deadline: Duration,
}

/// Pods, and the node as Kubernetes sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edged {
    /// The node's address; `None` is the one that reaches the cloud.
    pub(crate) node_ip: Option<IpAddr>,
    /// Where volumes are.
    pub(crate) root: PathBuf,
    /// The labels that the node is registered with.
    pub(crate) labels: BTreeMap<String, String>,
    /// The taints that the node is registered with.
    pub(crate) taints: Vec<Taint>,
    /// Whether the node is registered at all.
    pub(crate) register_node: bool,
    /// Whether pods may be scheduled on the node.
    pub(crate) register_schedulable: bool,
    /// What runs the containers.
    pub(crate) runtime: Runtime,
    /// Where device plugins register.
    pub(crate) device_plugins: PathBuf,
    /// Where the kubelet's interface is; `None` switches it off.
    pub(crate) api: Option<SocketAddr>,
    /// The image of a pod's sandbox.
    pub(crate) sandbox_image: String,
    /// How many pods the node takes.
    pub(crate) max_pods: u32,
    /// The name servers that pods get.
    pub(crate) cluster_dns: Vec<IpAddr>,
    /// The domain that pods search.
    pub(crate) cluster_domain: String,
    /// The kernel parameters that pods may set besides the safe ones.
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// The time between two looks at the node's own state.
    pub(crate) status_interval: Duration,
    /// How long the node's lease lasts.
    pub(crate) lease_duration: Duration,
    /// A change of the images alone is reported no more often than this.
    pub(crate) image_report_interval: Duration,
    /// How many images the node reports.
    pub(crate) images_max: usize,
    /// How the node looks after itself.
    pub(crate) upkeep: Upkeep,
    /// Where the cgroups of pods are; `None` leaves them to the runtime.
    pub(crate) cgroups: Option<Cgroups>,
}

/// What runs the containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// A CRI runtime behind a Unix socket.
    Containerd {
        /// The socket.
        socket: PathBuf,
    },
    /// Plain processes of the node.
    Process {
        /// Where they have their files.
        directory: PathBuf,
    },
}

/// A taint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taint {
    /// Its key.
    pub(crate) key: String,
    /// Its value; may be empty.
    pub(crate) value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub(crate) effect: String,
}

pub(super) fn node_name(node: &Node<'_>, hostname: &str) -> Result<NodeName> {
    match node.filled()? {
        Some(_) => node.parsed(),
        // Kubernetes names nodes in lower case, as the kubelet does with the machine's name.
        None => hostname.trim().to_lowercase().parse().map_err(|error| {
            node.wrong(format!("it is empty, and the machine's name cannot be the node's: {error}"))
        }),
    }
}

pub(super) fn meta(node: &Node<'_>) -> Result<Meta> {
    node.at("metaServer.server").parsed::<SocketAddr>()?;
    Ok(Meta { enable: node.at("enable").bool()?, query_deadline: node.at("remoteQueryTimeout").seconds()? })
}

fn api(kubelet: &Node<'_>) -> Result<Option<SocketAddr>> {
    let address = kubelet.at("address");
    let ip: IpAddr = address.parsed()?;
    let port = kubelet.at("readOnlyPort").number(0, u16::MAX)?;
    ensure!(
        ip.is_loopback() || port == 0,
        address.wrong(format!("{ip} can be reached by others, and whoever may run commands in pods is root"))
    );
    Ok((port != 0).then_some(SocketAddr::new(ip, port)))
}

/// The folder of `kubelet.sock`, by default the kubelet's below its own directory.
fn device_plugins(root: &Node<'_>) -> Result<PathBuf> {
    let node = root.at("kubeedgeRs.devicePluginDirectory");
    let folder = match node.filled()? {
        Some(_) => node.file()?,
        None => root.at("modules.edged.rootDirectory").file()?.join("device-plugins"),
    };
    kubeedge_core::dmi::check_path(&folder.join("kubelet.sock"))
        .map_err(|error| node.wrong(error.to_string()))?;
    Ok(folder)
}

pub(super) fn edged(root: &Node<'_>) -> Result<Option<Edged>> {
    let node = root.at("modules.edged");
    let kubelet = node.at("tailoredKubeletConfig");
    let edged = Edged {
        node_ip: node.at("nodeIP").parsed_if_filled()?,
        root: node.at("rootDirectory").file()?,
        labels: labels(&node.at("nodeLabels"))?,
        taints: taints(&kubelet.at("registerWithTaints"))?,
        register_node: kubelet.at("registerNode").bool()?,
        register_schedulable: node.at("registerSchedulable").bool()?,
        runtime: runtime(&root.at("kubeedgeRs"), &kubelet.at("containerRuntimeEndpoint"))?,
        device_plugins: device_plugins(root)?,
        api: api(&kubelet)?,
        sandbox_image: node.at("podSandboxImage").text()?.to_owned(),
        max_pods: kubelet.at("maxPods").number(0, 10_000)?,
        cluster_dns: kubelet.at("clusterDNS").list()?.iter().map(Node::parsed).collect::<Result<_>>()?,
        cluster_domain: kubelet.at("clusterDomain").text()?.to_owned(),
        allowed_unsafe_sysctls: texts(&kubelet.at("allowedUnsafeSysctls"))?,
        status_interval: at_least_a_second(&kubelet.at("nodeStatusUpdateFrequency"))?,
        lease_duration: kubelet.at("nodeLeaseDurationSeconds").seconds()?,
        image_report_interval: at_least_a_second(&kubelet.at("nodeStatusReportFrequency"))?,
        images_max: match kubelet.at("nodeStatusMaxImages").number(-1i32, 10_000)? {
            -1 => usize::MAX,
            most => usize::try_from(most).unwrap_or(0),
        },
        upkeep: upkeep::read(&kubelet)?,
        cgroups: cgroups(&kubelet)?,
    };
    Ok(node.at("enable").bool()?.then_some(edged))
}

fn cgroups(kubelet: &Node<'_>) -> Result<Option<Cgroups>> {
    let driver = kubelet.at("cgroupDriver");
    let root = kubelet.at("cgroupRoot");
    let names = || root.text().into_iter().flat_map(|text| text.split('/'));
    ensure!(
        !names().any(|name| name == ".." || name == "."),
        root.wrong("it is no path from the root of all cgroups")
    );
    let pids: i64 = kubelet.at("podPidsLimit").number(-1, i64::MAX)?;
    let cgroups = Cgroups {
        driver: match driver.text()? {
            "cgroupfs" => CgroupDriver::Cgroupfs,
            "systemd" => CgroupDriver::Systemd,
            other => return Err(driver.wrong(format!("{other:?} is neither cgroupfs nor systemd"))),
        },
        root: root.text()?.to_owned(),
        enforce_allocatable: texts(&kubelet.at("enforceNodeAllocatable"))?.iter().any(|of| of == "pods"),
        pids_max: u64::try_from(pids).ok().filter(|pids| *pids > 0),
    };
    Ok(kubelet.at("cgroupsPerQOS").bool()?.then_some(cgroups))
}

fn at_least_a_second(node: &Node<'_>) -> Result<Duration> {
    let duration = node.duration()?;
    ensure!(duration >= Duration::from_secs(1), node.wrong("it is shorter than a second"));
    Ok(duration)
}

fn texts(node: &Node<'_>) -> Result<Vec<String>> {
    node.list()?.iter().map(|one| Ok(one.text()?.to_owned())).collect()
}

fn labels(node: &Node<'_>) -> Result<BTreeMap<String, String>> {
    node.members()?.into_iter().map(|(key, value)| Ok((key.to_owned(), value.text()?.to_owned()))).collect()
}

fn taints(node: &Node<'_>) -> Result<Vec<Taint>> {
    node.list()?.iter().map(taint).collect()
}

fn taint(node: &Node<'_>) -> Result<Taint> {
    let key = node.at("key").text()?.to_owned();
    ensure!(!key.is_empty(), node.at("key").wrong("it is empty"));
    let value = node.at("value");
    let value = if value.is_absent() { "" } else { value.text()? }.to_owned();
    let effect = node.at("effect");
    let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect.text()?);
    ensure!(known, effect.wrong(format!("{:?} is not a taint's effect", effect.text()?)));
    Ok(Taint { key, value, effect: effect.text()?.to_owned() })
}

fn runtime(ours: &Node<'_>, endpoint: &Node<'_>) -> Result<Runtime> {
    let directory = ours.at("processDirectory").file()?;
    let runtime = ours.at("runtime");
    match runtime.text()? {
        "process" => Ok(Runtime::Process { directory }),
        "containerd" => {
            let text = endpoint.text()?;
            let socket = text.strip_prefix("unix://").unwrap_or(text);
            ensure!(socket.starts_with('/'), endpoint.wrong(format!("{text:?} must be unix:///path")));
            Ok(Runtime::Containerd { socket: socket.into() })
        }
        other => Err(runtime.wrong(format!("{other:?} is neither containerd nor process"))),
    }
}

/// The socket for mappers: the file is always `dmi.sock`, in the folder that is named or in that of the file.
pub(super) fn dmi_socket(device_twin: &Node<'_>) -> Result<PathBuf> {
    let node = device_twin.at("dmiSockPath");
    let named = node.file()?;
    let is_file = named.extension().is_some_and(|extension| extension == "sock");
    let socket = match named.parent().filter(|_| is_file) {
        Some(folder) => folder.join("dmi.sock"),
        None => named.join("dmi.sock"),
    };
    if device_twin.at("enable").bool()? {
        kubeedge_core::dmi::check_path(&socket).map_err(|error| node.wrong(error.to_string()))?;
    }
    Ok(socket)
}

pub(super) fn service_bus(root: &Node<'_>) -> Result<Option<servicebus::Config>> {
    let (theirs, ours) = (root.at("modules.serviceBus"), root.at("kubeedgeRs.serviceBus"));
    theirs.at("server").parsed::<IpAddr>()?;
    theirs.at("port").port()?;
    theirs.at("timeout").seconds()?;
    let config = servicebus::Config {
        allow: ours.at("allow").list()?.iter().map(allowed).collect::<Result<_>>()?,
        allow_all_ports: ours.at("allowAllPorts").bool()?,
        ..servicebus::Config::default()
    };
    Ok(theirs.at("enable").bool()?.then_some(config))
}

fn allowed(node: &Node<'_>) -> Result<Allowed> {
    let unknown = node.members()?.into_iter().find(|(key, _)| !["port", "path"].contains(key));
    if let Some((_, unknown)) = unknown {
        // Here a slip of the pen would open more than was meant.
        return Err(unknown.wrong("unknown key; port and path are known"));
    }
    let path = node.at("path");
    let text = if path.is_absent() { "/" } else { path.text()? };
    ensure!(text.starts_with('/'), path.wrong(format!("{text:?} does not begin with /")));
    Ok(Allowed { port: node.at("port").port()?, path: text.to_owned() })
}

/// How often devices are reported to the cloud.
pub(super) fn device_limits(node: &Node<'_>) -> Result<devicetwin::Limits> {
    Ok(devicetwin::Limits {
        report_interval: node.at("reportInterval").duration()?,
        report_burst: node.at("reportBurst").number(1, 1_000)?,
        reports_per_second: NonZeroU32::new(node.at("reportsPerSecond").number(1, 100_000)?)
            .context("it is at least one")?,
        ..devicetwin::Limits::default()
    })
}
