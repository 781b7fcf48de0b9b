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
use kubeedge_cloud::{
    pki::{Authority, CERTIFICATE_FILE, KEY_FILE},
    standalone,
};
use kubeedge_core::{
    id::NodeName,
    tls::{self, Identity},
    transport::quic::ResetSecret,
};
use tokio::net::TcpListener;

use crate::config::hub::Hub;

/// 365 days: KubeEdge's edgeCertSigningDuration.
const NODE_CERTIFICATE_LASTS: Duration = Duration::from_secs(365 * 24 * 3600);

/// The server's certificate is issued at each start, so it only has to outlast the process: 10 years.
const SERVER_CERTIFICATE_LASTS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The cloud's authority and certificate.
pub(crate) struct CloudIdentity {
    authority: Authority,
    server: Identity,
    reset_secret: [u8; 32],
}

impl CloudIdentity {
    /// Opens the authority in the folder of a standalone cloud, or else where the configuration says, creates it if
    /// there is none, and issues the server's certificate.
    pub(crate) fn open(standalone: Option<&Path>, hub: &Hub, api: SocketAddr) -> Result<Self> {
        let (authority, certificate, key) = match standalone {
            Some(folder) => {
                let authority = Authority::open_or_create(folder)?;
                (authority, folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE))
            }
            None => {
                (open_or_create(&hub.tls.ca, &hub.tls.ca_key)?, hub.tls.ca.clone(), hub.tls.ca_key.clone())
            }
        };
        // The authority's key is what stays the same from start to start.
        let reset_secret = Identity::from_files(&certificate, &key)?.derive_secret("quic reset");
        let addresses = hub.advertise_addresses.iter().map(ToString::to_string);
        let names: Vec<_> = ["localhost".to_owned(), "127.0.0.1".to_owned()]
            .into_iter()
            .chain(addresses)
            .chain((standalone.is_some() && !api.ip().is_unspecified()).then(|| api.ip().to_string()))
            .chain(hub.dns_names.iter().cloned())
            .collect();
        let issued = authority.issue_server(&names, SERVER_CERTIFICATE_LASTS)?;
        let server = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
        Ok(Self { authority, server, reset_secret })
    }

    /// What edges are listened for with: they must show a certificate of the authority.
    pub(crate) fn link_tls(&self) -> Result<Arc<rustls::ServerConfig>> {
        let roots = tls::roots_from_pem(self.authority.certificate_pem().as_bytes())?;
        Ok(Arc::new(tls::server_config(&self.server, roots)?))
    }

    /// With what a restarted cloud tells edges that it knows nothing of their connections; the same at each start.
    pub(crate) fn reset_secret(&self) -> ResetSecret {
        ResetSecret::new(self.reset_secret)
    }

    /// Serves the standalone API on `socket`, and writes the kubeconfig that reaches it into `folder`.
    pub(crate) fn api_listener(&self, socket: TcpListener, folder: &Path) -> Result<standalone::Listener> {
        let token = token(&folder.join("token"))?;
        let mut address = socket.local_addr()?;
        if address.ip().is_unspecified() {
            // It listens everywhere; kubectl needs one place, and this machine is where the file is.
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let url = format!("https://{address}");
        let kubeconfig = standalone::kubeconfig(&url, self.authority.certificate_pem(), &token);
        write_private(&folder.join("kubeconfig"), &kubeconfig)?;
        tracing::info!(kubeconfig = %folder.join("kubeconfig").display(), url, "standalone API");
        let tls = Arc::new(tls::web_server_config(&self.server)?);
        Ok(standalone::Listener { socket, tls, token: standalone::Token::new(&token) })
    }
}

fn open_or_create(certificate: &Path, key: &Path) -> Result<Authority> {
    if certificate.exists() || key.exists() {
        return Ok(Authority::load(certificate, key)?);
    }
    for file in [certificate, key] {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
    }
    let authority = Authority::create()?;
    authority.save(certificate, key)?;
    Ok(authority)
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
