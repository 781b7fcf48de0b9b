//! KubeEdge's `edgecore.yaml` to values that the parts take.

pub(crate) mod devices;
mod event_bus;
pub(crate) mod hub;
mod kubelet;
pub(crate) mod modules;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod unused;
pub(crate) mod upkeep;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kubeedge_core::id::NodeName;
use kubeedge_edge::{devicetwin, eventbus, servicebus};

use devices::Devices;
use hub::Hub;
use modules::{Edged, Meta};
use tree::Node;

/// Where the configuration is unless `--config` says otherwise.
pub(crate) const PATH: &str = "/etc/kubeedge/config/edgecore.yaml";

const DEFAULT_YAML: &str = include_str!("config/default.yaml");
const MINIMAL_YAML: &str = include_str!("config/minimal.yaml");

/// What `edgecore.yaml` says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The name of this node: `hostnameOverride`, or else the machine's.
    pub(crate) node: NodeName,
    /// The file of the node's metadata.
    pub(crate) database: PathBuf,
    /// The link to the cloud.
    pub(crate) hub: Hub,
    /// The node's metadata.
    pub(crate) meta: Meta,
    /// Pods, and the node as Kubernetes sees it; `None` if it is switched off.
    pub(crate) edged: Option<Edged>,
    /// Whether there are devices.
    pub(crate) device_twin: bool,
    /// What bounds them, and how often devices are reported.
    pub(crate) device_limits: devicetwin::Limits,
    /// The socket for mappers outside the process.
    pub(crate) dmi_socket: PathBuf,
    /// MQTT; `None` if it is switched off.
    pub(crate) event_bus: Option<eventbus::Config>,
    /// Calls of the cloud to servers of the node; `None` if it is switched off.
    pub(crate) service_bus: Option<servicebus::Config>,
    /// The devices that are driven inside the process.
    pub(crate) devices: Devices,
}

impl Config {
    /// Reads a file; `hostname` is the machine's name. Returns also what an operator should look at.
    ///
    /// # Errors
    /// If the file cannot be read, is not YAML, or has a value that cannot be; the error ends with the place.
    pub(crate) fn load(path: &Path, hostname: &str) -> Result<(Self, Vec<String>)> {
        let text = tree::read(path)?;
        Self::parse(&text, hostname).with_context(|| path.display().to_string())
    }

    /// Reads a text, as [`Config::load`] does.
    pub(crate) fn parse(text: &str, hostname: &str) -> Result<(Self, Vec<String>)> {
        let defaults = tree::parse(DEFAULT_YAML).context("the defaults")?;
        let mut values = defaults.clone();
        let mut warnings = tree::overlay(&mut values, tree::parse(text)?, &kubelet::is_key)?;
        let root = Node::root(&values);
        let config = Self::from_tree(&root, hostname, &mut warnings)?;
        unused::warn(&root, &Node::root(&defaults), &mut warnings)?;
        Ok((config, warnings))
    }

    /// The text of the defaults, for `--defaultconfig`.
    pub(crate) fn default_yaml() -> &'static str {
        DEFAULT_YAML
    }

    /// The text with the keys that are most often changed, for `--minconfig`.
    pub(crate) fn minimal_yaml() -> &'static str {
        MINIMAL_YAML
    }

    fn from_tree(root: &Node<'_>, hostname: &str, warnings: &mut Vec<String>) -> Result<Self> {
        let modules = root.at("modules");
        let hub = hub::read(&modules.at("edgeHub"))?;
        let meta = modules::meta(&modules.at("metaManager"))?;
        ensure!(
            meta.enable || !hub.enable,
            modules
                .at("metaManager.enable")
                .wrong("edgeHub needs metaManager, which keeps what comes from the cloud"),
        );
        Ok(Self {
            node: modules::node_name(&modules.at("edged.hostnameOverride"), hostname)?,
            // The ending changes, so that KubeEdge's own file stays as it is.
            database: root.at("database.dataSource").file()?.with_extension("redb"),
            hub,
            meta,
            edged: modules::edged(root)?,
            device_twin: modules.at("deviceTwin.enable").bool()?,
            device_limits: modules::device_limits(&root.at("kubeedgeRs.deviceTwin"))?,
            dmi_socket: modules::dmi_socket(&modules.at("deviceTwin"))?,
            event_bus: event_bus::read(root, warnings)?,
            service_bus: modules::service_bus(root)?,
            devices: devices::read(root)?,
        })
    }
}
