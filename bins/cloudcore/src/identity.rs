//! Who the cloud is: its authority, its certificate, and the certificates that it issues to nodes.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use kube::Client;
use kubeedge_cloud::{
    admission, cloudstream,
    enrollment::{self, Server, ServerCertificate, Trusted},
    pki::{self, Authority},
    relay, standalone,
};
use kubeedge_core::{id::NodeName, tls::Live};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::config::{
    CloudStream, Config, Replicas,
    hub::{Hub, TlsFiles},
};

/// Where KubeEdge keeps its Secrets, Leases and Services, unless the pod is in another namespace.
const NAMESPACE: &str = "kubeedge";

/// The namespace of what cloudcores share.
pub(crate) fn namespace() -> String {
    let pod = std::env::var("POD_NAMESPACE").ok().filter(|namespace| !namespace.is_empty());
    pod.unwrap_or_else(|| NAMESPACE.to_owned())
}

/// 365 days: KubeEdge's edgeCertSigningDuration.
const NODE_CERTIFICATE_LASTS: Duration = Duration::from_secs(365 * 24 * 3600);

/// The cloud's authority as files have it: in the folder of a standalone cloud, where it is created if there is none,
/// or else where the configuration says, if something is there.
pub(crate) fn authority(standalone: Option<&Path>, hub: &Hub) -> Result<Option<Authority>> {
    if let Some(folder) = standalone {
        return Ok(Some(Authority::open_or_create(folder)?));
    }
    let TlsFiles { ca, ca_key, .. } = &hub.tls;
    // One without the other is an error that names the one that is missing.
    let given = ca_key.exists();
    Ok(given.then(|| Authority::load(ca, ca_key)).transpose()?)
}

/// The authority that all replicas share: the one that the API has, which begins with the one from files if there are any.
pub(crate) async fn shared(client: &Client, files: Option<Authority>) -> Result<Trusted> {
    let namespace = namespace();
    let opened = match files {
        Some(authority) => enrollment::publish_authority(client, &namespace, authority).await,
        None => enrollment::open_authority(client, &namespace).await,
    };
    opened.context("the certificate authority of the cloud")
}

/// How nodes join.
pub(crate) fn enrollment(config: &Config, standalone: Option<&Path>) -> enrollment::Config {
    let (hub, ours) = (&config.hub, &config.enrollment);
    let files = &hub.tls;
    let server = if standalone.is_none() && files.certificate.exists() && files.key.exists() {
        ServerCertificate::Files { certificate: files.certificate.clone(), key: files.key.clone() }
    } else {
        ServerCertificate::Issued { names: names(hub) }
    };
    enrollment::Config {
        namespace: namespace(),
        server,
        node_certificate_lasts: hub.certificate_validity,
        token_refresh: hub.token_refresh,
        // The folder of a standalone cloud is its own; other files are the operator's.
        authority_files: standalone.map(|folder| enrollment::AuthorityFiles {
            certificate: folder.join(pki::CERTIFICATE_FILE),
            key: folder.join(pki::KEY_FILE),
        }),
        renew_expired_within: ours.renew_expired_within,
        rejoin: ours.rejoin,
        limits: enrollment::Limits {
            requests_per_second: ours.requests_per_second,
            requests_burst: ours.requests_burst,
            ..enrollment::Limits::default()
        },
        ..enrollment::Config::default()
    }
}

/// Under what the cloud is reached.
fn names(hub: &Hub) -> Vec<String> {
    let addresses = hub.advertise_addresses.iter().map(ToString::to_string);
    let own = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    own.into_iter().chain(addresses).chain(hub.dns_names.iter().cloned()).collect()
}

/// The standalone API on `socket`, and what it shows; `kubeconfig` says how it is reached.
pub(crate) fn api_listener(
    hub: &Hub,
    socket: TcpListener,
    folder: &Path,
) -> Result<(standalone::Listener, Server, Kubeconfig)> {
    let token = token(&folder.join("token"))?;
    let mut address = socket.local_addr()?;
    let mut names = names(hub);
    if address.ip().is_unspecified() {
        // It listens everywhere; kubectl needs one place, and this machine is where the file is.
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    } else {
        names.push(address.ip().to_string());
    }
    let server = issued(names);
    let tls = Arc::new(server.tls.web_server_config()?);
    let listener = standalone::Listener { socket, tls, token: standalone::Token::new(&token) };
    let kubeconfig = Kubeconfig { file: folder.join("kubeconfig"), url: format!("https://{address}"), token };
    Ok((listener, server, kubeconfig))
}

/// The file by which the standalone API is reached.
pub(crate) struct Kubeconfig {
    file: PathBuf,
    url: String,
    token: String,
}

impl Kubeconfig {
    /// Writes it for whoever is to believe these authorities, PEM.
    pub(crate) fn write(&self, authorities: &str) -> Result<()> {
        write_private(&self.file, &standalone::kubeconfig(&self.url, authorities, &self.token))?;
        tracing::info!(kubeconfig = %self.file.display(), url = self.url, "standalone API");
        Ok(())
    }

    /// Writes it again whenever the authorities change.
    pub(crate) async fn follow(
        self,
        mut authorities: watch::Receiver<String>,
        stop: CancellationToken,
    ) -> Result<(), std::convert::Infallible> {
        while let Some(Ok(())) = stop.run_until_cancelled(authorities.changed()).await {
            let pem = authorities.borrow_and_update().clone();
            if let Err(error) = self.write(&pem) {
                tracing::warn!(error = %format_args!("{error:#}"), "kubectl may not believe the API any more");
            }
        }
        Ok(())
    }
}

/// A server with a certificate of the cloud's own authority, whose clients are known by other means.
fn issued(names: Vec<String>) -> Server {
    Server { certificate: ServerCertificate::Issued { names }, callers: None, tls: Live::empty() }
}

/// What this process is called among those that serve the same API: the host, and what tells it from an earlier one there.
pub(crate) fn of_process() -> Result<String> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Ok(format!("{}_{:.12}", host.trim(), standalone::Token::random()?))
}

/// How cloudcores that serve the same API reach each other, and the address under which they reach this one: empty if they
/// cannot.
pub(crate) async fn peers(replicas: &Replicas) -> Result<(relay::Peers, String)> {
    let pod = std::env::var("POD_IP").ok().filter(|address| !address.is_empty());
    let (listener, address) = match replicas.advertise.clone().or(pod) {
        Some(host) => {
            let socket = TcpListener::bind(replicas.listen)
                .await
                .with_context(|| format!("kubeedgeRs.replicas: cannot listen on {}", replicas.listen))?;
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let address = format!("{host}:{}", replicas.listen.port());
            tracing::info!(address, "other cloudcores reach nodes of this one here");
            (Some(socket), address)
        }
        None => {
            tracing::warn!(
                "kubeedgeRs.replicas.advertiseAddress: it is empty, and there is no POD_IP: nodes of this cloudcore can be \
                 asked for logs and the like only where they are connected"
            );
            (None, String::new())
        }
    };
    Ok((relay::Peers { listener, tls: Live::empty() }, address))
}

/// The host of an address `host:port`, for a certificate; none if it is empty.
pub(crate) fn hosts(address: &str) -> Vec<String> {
    let host = address.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_owned());
    host.into_iter().collect()
}

/// The admission webhook, and what it shows.
pub(crate) async fn webhook(hub: &Hub, listen: SocketAddr) -> Result<(admission::Listener, Server)> {
    let socket =
        TcpListener::bind(listen).await.with_context(|| format!("kubeedgeRs.admission: {listen}"))?;
    let mut names = names(hub);
    // The Service by which KubeEdge's admission is reached.
    names.push(format!("kubeedge-admission-service.{}.svc", namespace()));
    let server = issued(names);
    let tls = Arc::new(server.tls.web_server_config()?);
    Ok((admission::Listener { socket, tls }, server))
}

/// Where API servers ask for what only nodes have, and what they are shown.
pub(crate) async fn stream(hub: &Hub, stream: &CloudStream) -> Result<(cloudstream::Listener, Server)> {
    let socket = TcpListener::bind(stream.listen)
        .await
        .with_context(|| format!("modules.cloudStream.streamPort: {}", stream.listen))?;
    let certificate = if stream.certificate.exists() {
        ServerCertificate::Files { certificate: stream.certificate.clone(), key: stream.key.clone() }
    } else {
        ServerCertificate::Issued { names: names(hub) }
    };
    let server = Server { certificate, callers: Some(stream.ca.clone()), tls: Live::empty() };
    let tls = Arc::new(server.tls.server_config()?);
    Ok((cloudstream::Listener { socket, tls }, server))
}

/// The token of the standalone API: drawn once, then kept.
fn token(file: &Path) -> Result<String> {
    if let Ok(token) = fs::read_to_string(file)
        && !token.trim().is_empty()
    {
        return Ok(token.trim().to_owned());
    }
    let token = standalone::Token::random()?;
    write_private(file, &token)?;
    Ok(token)
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_private(file: &Path, text: &str) -> Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let beside = file.with_extension("new");
    let write = || {
        let mut new =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        fs::rename(&beside, file)
    };
    write().with_context(|| format!("write {}", file.display()))
}

/// Issues the certificate of a node.
#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// The node's name.
    #[arg(long)]
    node: NodeName,
    /// Where the standalone cloud keeps everything.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The folder for the three files.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Issue {
    /// Writes the three files.
    pub(crate) fn run(&self) -> Result<()> {
        let authority = Authority::open_or_create(&self.data_dir)?;
        let issued = authority.issue_node(&self.node, NODE_CERTIFICATE_LASTS)?;
        fs::create_dir_all(&self.out).with_context(|| format!("create {}", self.out.display()))?;
        issued.write(&self.out.join("server.crt"), &self.out.join("server.key"))?;
        let ca = self.out.join("rootCA.crt");
        fs::write(&ca, authority.certificate_pem()).with_context(|| format!("write {}", ca.display()))?;
        tracing::info!(node = %self.node, folder = %self.out.display(), "certificate issued");
        Ok(())
    }
}
