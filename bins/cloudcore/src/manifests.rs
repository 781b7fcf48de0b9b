//! `cloudcore manifests`: what a cluster is given before cloudcore runs on it.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use kubeedge_cloud::manifests::{self, Options, StreamAuthority};
use serde_json::Value;

/// Which manifests, and for which cluster.
#[derive(Debug, Args)]
pub(crate) struct Manifests {
    /// Leave out cloudcore itself: only definitions, namespace, account and rights.
    #[arg(long)]
    no_deployment: bool,
    /// Leave out the definitions of KubeEdge's kinds, for clusters that have them.
    #[arg(long)]
    skip_crds: bool,
    /// The namespace of cloudcore.
    #[arg(long, default_value = "kubeedge")]
    namespace: String,
    /// The image of cloudcore.
    #[arg(long)]
    image: Option<String>,
    /// How many replicas run.
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// How many nodes one replica takes.
    #[arg(long, value_name = "NODES", default_value_t = 500, conflicts_with = "config")]
    node_limit: u32,
    /// The addresses and names by which nodes reach cloudcore, separated by commas.
    #[arg(long, value_delimiter = ',')]
    advertise_address: Vec<String>,
    /// Let nodes in by ports of the Service, instead of listening at the host's own addresses.
    #[arg(long)]
    node_ports: bool,
    /// Let cloudcore check KubeEdge's kinds as a webhook of the API server.
    #[arg(long)]
    admission: bool,
    /// Who signs the certificates that API servers show when they ask for the logs of a node's pods, PEM; without it the
    /// cluster's own authority, as kubeadm has it.
    #[arg(long, value_name = "FILE")]
    stream_ca: Option<PathBuf>,
    /// The cloudcore.yaml to give it, instead of the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Manifests {
    /// The YAML.
    ///
    /// # Errors
    /// If the configuration cannot be read.
    pub(crate) fn text(&self) -> Result<String> {
        let defaults = Options::default();
        let config = match &self.config {
            Some(file) => {
                std::fs::read_to_string(file).with_context(|| format!("--config {}", file.display()))?
            }
            None => String::new(),
        };
        let stream = match &self.stream_ca {
            Some(file) => StreamAuthority::Pem(
                std::fs::read_to_string(file).with_context(|| format!("--stream-ca {}", file.display()))?,
            ),
            None => StreamAuthority::Cluster,
        };
        let options = Options {
            namespace: self.namespace.clone(),
            image: self.image.clone().unwrap_or(defaults.image),
            replicas: self.replicas,
            node_limit: self.node_limit,
            advertise_addresses: self.advertise_address.clone(),
            host_network: !self.node_ports,
            admission: self.admission,
            stream: Some(stream),
            config,
            labels: BTreeMap::new(),
        };
        Ok(manifests::yaml(&self.objects(&options)))
    }

    fn objects(&self, options: &Options) -> Vec<Value> {
        let mut objects = if self.skip_crds { Vec::new() } else { manifests::crds() };
        objects.push(manifests::namespace(options));
        objects.push(manifests::service_account(options));
        objects.extend(manifests::rights(options));
        objects.extend(manifests::admission(options));
        if !self.no_deployment {
            objects.extend(manifests::deployment(options));
            objects.push(manifests::service(options));
        }
        objects
    }
}
