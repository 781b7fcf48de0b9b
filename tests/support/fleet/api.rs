//! The Kubernetes API that cloudcore is pointed at.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use kubeedge_cloud::{
    pki::Authority,
    standalone::{self, ApiServer, Listener, Token},
};
use kubeedge_core::tls::{self, Identity};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::DAY;

/// Annotation of a changed pod: when that was, in nanoseconds since 1970.
pub const CHANGED_AT: &str = "measured.example.com/changed-at";

/// An API in memory, served on the loopback address; or a cluster's.
pub struct ApiSite {
    client: Client,
    /// What reaches it.
    pub kubeconfig: PathBuf,
    _serving: JoinSet<()>,
}

impl ApiSite {
    /// Starts it; `folder` gets the kubeconfig.
    pub async fn start(folder: &Path) -> Result<Self> {
        let server = ApiServer::open(None, standalone::Config::default()).await?;
        let authority = Authority::create()?;
        let issued = authority.issue_server(&["127.0.0.1".to_owned()], DAY)?;
        let identity = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let token = Token::random()?;
        let url = format!("https://{}", socket.local_addr()?);
        let kubeconfig = folder.join("kubeconfig");
        std::fs::write(&kubeconfig, standalone::kubeconfig(&url, authority.certificate_pem(), &token))?;
        let tls = Arc::new(tls::web_server_config(&identity)?);
        let listener = Listener { socket, tls, token: Token::new(&token) };
        let mut serving = JoinSet::new();
        let client = server.client();
        serving.spawn(async move { drop(server.serve(listener, CancellationToken::new()).await) });
        Ok(Self { client, kubeconfig, _serving: serving })
    }

    /// A cluster's: `client` is an administrator's, and cloudcore has the kubeconfig.
    #[allow(dead_code, reason = "not every program that includes this file knows of clusters")]
    pub fn of_cluster(client: Client, kubeconfig: PathBuf) -> Self {
        Self { client, kubeconfig, _serving: JoinSet::new() }
    }

    /// A client of it.
    #[allow(dead_code, reason = "not every program that includes this file asks for other kinds")]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The pods of the namespace `default`.
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// The pods of the namespace `default`, with everything that is in them.
    pub fn raw_pods(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), "default", &ApiResource::erase::<Pod>(&()))
    }

    /// All nodes.
    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Creates edge nodes of these names.
    pub async fn create_nodes(&self, names: &[String]) -> Result<()> {
        let nodes = self.nodes();
        let create = async |name: &String| {
            let node = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": name, "labels": { "node-role.kubernetes.io/edge": "" } },
            }))?;
            nodes.create(&PostParams::default(), &node).await?;
            anyhow::Ok(())
        };
        stream::iter(names).map(create).buffer_unordered(64).try_collect().await
    }

    /// Creates so many pods of each node.
    pub async fn create_pods(&self, names: &[String], of_each: usize) -> Result<()> {
        let pods = self.pods();
        let each = names.iter().flat_map(|node| (0..of_each).map(move |number| (node, number)));
        let create = async |(node, number): (&String, usize)| {
            let pod = serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": format!("{node}-{number}"), "labels": { "app": "web" } },
                "spec": { "nodeName": node, "containers": [{
                    "name": "main", "image": "example.com/web:1.2.3", "command": ["web", "--serve"],
                    "env": [{ "name": "NODE", "value": node }],
                    "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
                }] },
            }))?;
            pods.create(&PostParams::default(), &pod).await?;
            anyhow::Ok(())
        };
        stream::iter(each).map(create).buffer_unordered(64).try_collect().await
    }

    /// Changes one of the pods that [`ApiSite::create_pods`] has created, and writes into it when that was.
    pub async fn change_pod(&self, node: &str, number: usize) -> Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos().to_string();
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { CHANGED_AT: now } } }));
        self.raw_pods().patch(&format!("{node}-{number}"), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Waits until so many pods are reported as running.
    pub async fn wait_for_running(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(600);
        loop {
            let pods = self.pods().list(&ListParams::default()).await.context("the pods")?;
            let runs = |pod: &&Pod| {
                pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
            };
            let running = pods.items.iter().filter(runs).count();
            if running >= count {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{running} of {count} pods were reported within ten minutes");
            }
            sleep(Duration::from_secs(2)).await;
        }
    }
}
