//! How nodes join, and keep being trusted: the authority that all replicas of the cloud share, the token, and the HTTPS
//! server that issues and renews nodes' certificates, as KubeEdge has them.
//!
//! ```no_run
//! # async fn example(client: kube::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use kubeedge_cloud::enrollment::{self, Enrollment, ServerCertificate};
//! use kubeedge_core::tls::Live;
//! use tokio::net::TcpListener;
//! use tokio_util::sync::CancellationToken;
//!
//! let authority = enrollment::open_authority(&client, "kubeedge").await?;
//! let config = enrollment::Config {
//!     server: ServerCertificate::Issued { names: vec!["cloud.example".into()] },
//!     ..enrollment::Config::default()
//! };
//! let tls = Live::empty();
//! let listener = TcpListener::bind("0.0.0.0:10002").await?;
//! // From here on `tls` has a server's certificate, for the listeners of the link too.
//! let enrollment = Enrollment::open(config, authority, client, tls.clone(), Some(listener)).await?;
//! enrollment.run(CancellationToken::new()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is refused
//! Every refusal is a [`Refused`]: a word in the header [`REASON_HEADER`] for programs, a sentence in the body for
//! people, and a count. Nothing is kept for who is refused, so that no number of them takes memory: connections,
//! headers, bodies, times and rates are bounded by [`Limits`].
//!
//! # The token
//! It has KubeEdge's form. Whoever has it can, until it ends ([`Config::token_refresh`] times two after it was made):
//!
//! * join as any number of nodes under names that no Node has;
//! * join as a Node at the edge that is not Ready and is older than the token, as people do whose machine lost its disk: so
//!   it can take the place of a node that is away. [`Config::rejoin`] forbids that; then the Node has to be deleted first.
//!
//! It cannot become a Node that is Ready, a Node that was made after it, or one without the label
//! `node-role.kubernetes.io/edge`: a machine of the cluster, whatever its state. Whether a Node is Ready is known to the API
//! only some time after a machine was switched off or on.

mod counts;
mod driver;
mod policy;
mod rate;
mod refused;
mod rotation;
mod secrets;
mod serve;
mod shown;
#[cfg(test)]
mod tests;
mod token;
mod trusted;

use std::{path::PathBuf, sync::Arc, time::Duration};

use kube::Client;
use kubeedge_core::tls::{self, Live};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

pub use self::{
    counts::Counts,
    refused::{REASON_HEADER, Refused},
    rotation::{Rotation, Step, rotate, rotation},
    secrets::join_token,
    token::issue as issue_token,
    trusted::Trusted,
};
use self::{
    driver::Driver,
    shown::{Believed, Certificate, Shown},
};
use crate::pki::{self, Authority};

/// What nodes get, and on which terms.
#[derive(Debug, Clone)]
pub struct Config {
    /// The namespace of the Secrets. `kubeedge`.
    pub namespace: String,
    /// What the cloud shows to nodes.
    pub server: ServerCertificate,
    /// How long a node's certificate is valid. 365 days: KubeEdge's edgeCertSigningDuration.
    pub node_certificate_lasts: Duration,
    /// How long the certificate that the cloud issues to itself is valid; it is renewed at a third. 365 days.
    pub server_certificate_lasts: Duration,
    /// How often the token changes; each is valid for twice as long. 12 h: KubeEdge's tokenRefreshDuration.
    pub token_refresh: Duration,
    /// For how long after its certificate has ended a node may renew it with the key that it had. 30 days. Whoever has
    /// an old disk of a node can do so too, for as long as the Node is in the API; zero forbids it.
    pub renew_expired_within: Duration,
    /// Whether a token is good for a Node at the edge that exists and is not Ready. True, as in KubeEdge.
    pub rejoin: bool,
    /// Where the authority that signs is kept besides, if it is: files of this cloud's own, which follow a rotation.
    pub authority_files: Option<AuthorityFiles>,
    /// How often the Secrets and files are looked at. 60 s.
    pub check_interval: Duration,
    /// What bounds the server.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            namespace: "kubeedge".to_owned(),
            server: ServerCertificate::Issued { names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()] },
            node_certificate_lasts: 365 * DAY,
            server_certificate_lasts: 365 * DAY,
            token_refresh: DAY / 2,
            renew_expired_within: 30 * DAY,
            rejoin: true,
            authority_files: None,
            check_interval: Duration::from_secs(60),
            limits: Limits::default(),
        }
    }
}

/// Where an authority is kept, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What the cloud shows to nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerCertificate {
    /// A certificate that the authority issues for these names and addresses. Each replica has its own, in memory only.
    Issued {
        /// The host names and IP addresses at which nodes reach the cloud.
        names: Vec<String>,
    },
    /// PEM files that somebody else keeps; they are read again when they change.
    Files {
        /// The certificate chain.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

/// Another server of the cloud, which shows what is in `tls`.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its certificate.
    pub certificate: ServerCertificate,
    /// The authorities of certificates that its callers have to show, as a PEM file that is read again when it changes;
    /// `None` if they are known by other means.
    pub callers: Option<PathBuf>,
    /// What it listens with: [`Live::server_config`] with `callers`, and [`Live::web_server_config`] without.
    pub tls: Live,
}

/// What bounds the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once. 256, each of some 50 KiB.
    pub connections: usize,
    /// How long a connection may last, handshake and all. 20 s.
    pub connection_lasts: Duration,
    /// The bytes of a request's headers. 16 KiB.
    pub header_bytes: usize,
    /// The bytes of a request's body. 16 KiB: requests for certificates have some 300 bytes.
    pub body_bytes: usize,
    /// Requests for certificates and names in a second, in the long run. 50.
    pub requests_per_second: u32,
    /// And at once after a quiet time. 200.
    pub requests_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connection_lasts: Duration::from_secs(20),
            header_bytes: 16 << 10,
            body_bytes: 16 << 10,
            requests_per_second: 50,
            requests_burst: 200,
        }
    }
}

/// Opens the authority that the API has, or creates it there. However many replicas do so at once, they have the
/// same one afterwards: only one creation succeeds, and the others read what it made.
///
/// # Errors
/// If the API cannot be asked, or has something else under that name.
pub async fn open_authority(client: &Client, namespace: &str) -> Result<Trusted, Error> {
    secrets::open(client, namespace).await
}

/// Opens the authority that the API has, or begins there with one that is kept in files. Where the API has one, it leads:
/// files do not follow a rotation.
///
/// # Errors
/// As [`open_authority`]; and [`Error::AnotherAuthority`] if the API has one, and has never had the one of the files.
pub async fn publish_authority(
    client: &Client,
    namespace: &str,
    authority: Authority,
) -> Result<Trusted, Error> {
    secrets::publish(client, namespace, authority).await
}

/// The part: keeps the token and the server's certificate fresh, and serves nodes that join or renew.
#[derive(Debug)]
pub struct Enrollment {
    driver: Driver,
    listener: Option<TcpListener>,
}

impl Enrollment {
    /// Gives `tls` its trust and its certificate, and the API its token. Without a listener nobody can join here, and
    /// everything else is kept fresh.
    ///
    /// # Errors
    /// If the certificate cannot be had, or the API cannot be asked.
    pub async fn open(
        config: Config,
        trusted: Trusted,
        client: Client,
        tls: Live,
        listener: Option<TcpListener>,
    ) -> Result<Self, Error> {
        Ok(Self { driver: Driver::open(config, trusted, client, tls).await?, listener })
    }

    /// Also keeps fresh what this cloud shows to the others that serve the same API, and whom it believes to be one of them:
    /// `tls` gets a certificate of this name for these addresses. The part `relay` uses it.
    ///
    /// # Errors
    /// If the certificate cannot be had.
    pub fn with_replica(
        self,
        name: impl Into<String>,
        addresses: Vec<String>,
        tls: Live,
    ) -> Result<Self, Error> {
        let certificate = Certificate::Cloud { name: name.into(), addresses };
        let driver = self.driver.with(Shown { certificate, believed: Believed::Own, tls })?;
        Ok(Self { driver, listener: self.listener })
    }

    /// Also keeps fresh what another server of this cloud shows, such as the one that API servers ask.
    ///
    /// # Errors
    /// If the certificate cannot be had, or the authorities of its callers cannot be read.
    pub fn with_server(self, server: Server) -> Result<Self, Error> {
        let Server { certificate, callers, tls } = server;
        let certificate = Certificate::Server(certificate);
        let believed = callers.map_or(Believed::Nobody, Believed::File);
        let driver = self.driver.with(Shown { certificate, believed, tls })?;
        Ok(Self { driver, listener: self.listener })
    }

    /// All authorities that are trusted, as PEM, for those who are told whom to believe; the one that signs comes first.
    pub fn authorities(&self) -> watch::Receiver<String> {
        self.driver.authorities()
    }

    /// What has been granted and refused, also while the part runs.
    pub fn counts(&self) -> Arc<Counts> {
        self.driver.counts()
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// If the certificates cannot be used for TLS. What the API or a file refuses for a time is tried again.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { driver, listener } = self;
        let Some(listener) = listener else {
            driver.run(stop).await;
            return Ok(());
        };
        let server = serve::Server::new(&driver)?;
        tokio::join!(driver.run(stop.clone()), server.run(listener, stop));
        Ok(())
    }
}

/// Says why nodes cannot join or be trusted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The API does not answer as it should.
    #[error("{action} Secret {name}")]
    Api {
        /// What was tried.
        action: &'static str,
        /// The Secret.
        name: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// A Secret is there and cannot be used; it is left as it is.
    #[error("Secret {name} cannot be used: {reason}")]
    Secret {
        /// The Secret.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The authority in the files is not known to the API, which has another one. Neither is taken silently: with one all
    /// nodes would be locked out, and the other was put there by somebody.
    #[error(
        "the certificate authority in the files is not that of Secret casecret, and was not before it either: remove the \
         files to go on with the Secret's, which the nodes trust; or delete the Secret to begin again with that of the \
         files, and let all nodes join again"
    )]
    AnotherAuthority,
    /// A step of a rotation does not follow from where it stands.
    #[error("{0}")]
    Step(&'static str),
    /// A certificate cannot be made.
    #[error("the authority cannot issue")]
    Pki(#[from] pki::Error),
    /// A certificate cannot be used.
    #[error("the certificates cannot be used")]
    Tls(#[from] tls::Error),
}
