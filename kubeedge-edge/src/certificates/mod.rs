//! The node's certificate: asked for with a token, renewed while it lives, and kept where KubeEdge keeps it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use kubeedge_core::tls::Live;
//! use kubeedge_edge::certificates::{Certificates, Config, Files, Server};
//! use tokio_util::sync::CancellationToken;
//!
//! let files = Files {
//!     ca: "/etc/kubeedge/ca/rootCA.crt".into(),
//!     certificate: "/etc/kubeedge/certs/server.crt".into(),
//!     key: "/etc/kubeedge/certs/server.key".into(),
//! };
//! let cloud = Server { host: "cloud.example".into(), port: 10002 };
//! let mut config = Config::new("edge-1".parse()?, cloud, files);
//! config.token = Some(std::fs::read_to_string("token")?.parse()?);
//! let tls = Live::empty();
//! let certificates = Certificates::open(config, tls.clone());
//! tokio::spawn(certificates.run(CancellationToken::new()));
//! // What dials with `tls.client_config()` shows the newest certificate each time.
//! tls.ready().await;
//! # Ok(())
//! # }
//! ```
//!
//! The private key is made on the node and never leaves it. The token is shown only to a server of the authority that
//! the token names. Nothing here is on the way to running pods.

mod ask;
mod driver;
mod files;
mod state;

use std::{fmt, path::PathBuf, time::Duration};

use kubeedge_core::{
    id::NodeName,
    join::JoinToken,
    tls::{self, Identity, Lifetime, Live, Refusal},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::ask::name_is_taken;
use self::driver::Driver;

/// Where a node asks, and what it has.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's name, which its certificate must have.
    pub node: NodeName,
    /// The cloud's server for certificates.
    pub cloud: Server,
    /// Where the certificates are kept.
    pub files: Files,
    /// What a node without a certificate shows to get one, or one whose certificate cannot be renewed any more.
    pub token: Option<JoinToken>,
    /// Whether the certificate is renewed when a third of its life is left.
    pub rotate: bool,
    /// How long one request may take. 30 s, as in KubeEdge.
    pub timeout: Duration,
    /// How often the cloud is asked which authorities are trusted. A day.
    pub bundle_interval: Duration,
}

impl Config {
    /// A node that renews its certificate and has no token.
    pub fn new(node: NodeName, cloud: Server, files: Files) -> Self {
        Self {
            node,
            cloud,
            files,
            token: None,
            rotate: true,
            timeout: Duration::from_secs(30),
            bundle_interval: Duration::from_secs(24 * 3600),
        }
    }
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The name or address, which the server's certificate must have.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where the certificates are kept, as PEM. Only their owner can read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The authorities that are trusted.
    pub ca: PathBuf,
    /// The node's certificate.
    pub certificate: PathBuf,
    /// The node's private key.
    pub key: PathBuf,
}

/// How it stands with the node's certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// When it ends, in time since 1970; `None` if there is none.
    pub ends: Option<Duration>,
    /// Why it could not be had or renewed, the last time that this was tried.
    pub failure: Option<String>,
}

/// The part that keeps the node's certificate.
#[derive(Debug)]
pub struct Certificates {
    driver: Driver,
}

impl Certificates {
    /// Reads what the node has, and lets `tls` show it. Blocks for as long as reading three files takes.
    ///
    /// A certificate that is missing, damaged or another node's is asked for with the token when the part runs, or
    /// waited for if there is no token either: somebody may copy one to its place.
    pub fn open(config: Config, tls: Live) -> Self {
        files::finish(&config.files);
        let (lifetime, failure) = match load(&config, &tls) {
            Ok(lifetime) => (Some(lifetime), None),
            Err(reason) if config.token.is_some() => {
                tracing::info!(%reason, "the node has no certificate and asks for one with its token");
                (None, None)
            }
            Err(reason) => {
                let error = Error::NeitherCertificateNorToken(reason.to_string());
                tracing::error!(%error, "there is no link to the cloud");
                (None, Some(error.to_string()))
            }
        };
        let standing = Standing { ends: lifetime.map(|lifetime| lifetime.not_after), failure };
        Self { driver: Driver::new(config, tls, lifetime, standing) }
    }

    /// How it stands, also while the part runs.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.driver.standing()
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// Never; what fails is tried again, and [`Certificates::standing`] says why.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        self.driver.run(stop).await;
        Ok(())
    }
}

/// Lets `tls` show what the files hold, if it is this node's.
fn load(config: &Config, tls: &Live) -> Result<Lifetime, Error> {
    let identity = Identity::from_files(&config.files.certificate, &config.files.key)?;
    let owner = tls::node_of(identity.certificate())?;
    if owner != config.node {
        return Err(Error::AnotherNode { wanted: config.node.to_string(), found: owner.to_string() });
    }
    let (roots, lifetime) = (tls::roots_from_file(&config.files.ca)?, Lifetime::of(identity.certificate())?);
    tls.trust(roots)?;
    tls.show(identity)?;
    Ok(lifetime)
}

/// Gets a certificate by token, once, and stores it.
///
/// # Errors
/// With the reason, which says what to do about it.
pub async fn enroll(config: &Config, token: &JoinToken) -> Result<Lifetime, Error> {
    driver::enroll(config, token, &Live::empty()).await
}

/// Gets the authority's certificate (DER), and believes it only if it is the one that the token names.
///
/// # Errors
/// If the server does not answer, or has another one.
pub async fn fetch_authority(config: &Config, token: &JoinToken) -> Result<Vec<u8>, Error> {
    ask::authority(&config.cloud, token, config.timeout).await
}

/// Says why a node has no certificate, or not the next one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing to begin with.
    #[error(
        "the node has no certificate ({0}) and no token to ask for one; `keadm gettoken` in the cloud prints one"
    )]
    NeitherCertificateNorToken(String),
    /// The certificate is of a node of another name.
    #[error("the certificate belongs to the node {found}, and this is {wanted}")]
    AnotherNode {
        /// This node's name.
        wanted: String,
        /// The certificate's.
        found: String,
    },
    /// Nobody answers.
    #[error(
        "{server} cannot be reached: {reason}; is cloudcore running there, and its port for joining open?"
    )]
    Unreachable {
        /// The address.
        server: String,
        /// Why.
        reason: String,
    },
    /// What answers is not the cloud of the token.
    #[error(
        "{server} has a certificate authority that is not the token's: the token is of another cloud or of an earlier \
         authority, or somebody is in between; `keadm gettoken` prints the token that is valid"
    )]
    ForeignAuthority {
        /// The address.
        server: String,
    },
    /// The server's certificate was issued for other names.
    #[error(
        "the certificate of the cloud is not for {wanted}, but for {}; dial one of these, or add {wanted} to \
         modules.cloudHub.advertiseAddress or dnsNames of cloudcore",
        have.join(", ")
    )]
    NameMismatch {
        /// What was dialled.
        wanted: String,
        /// What the certificate has.
        have: Vec<String>,
    },
    /// The server's certificate is not accepted for another reason.
    #[error("the certificate of the cloud at {server} is not accepted: {refusal}")]
    ServerRefused {
        /// The address.
        server: String,
        /// Why.
        refusal: Refusal,
    },
    /// The cloud says no.
    #[error("the cloud refuses: {text} ({reason}, status {status})")]
    Refused {
        /// The status of the answer.
        status: u16,
        /// One word, such as `TokenExpired`; KubeEdge's own cloud gives none.
        reason: String,
        /// A sentence.
        text: String,
    },
    /// The answer is not what was asked for.
    #[error("the answer of {server} is no {what}: {reason}")]
    Answer {
        /// The address.
        server: String,
        /// What was asked for.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file cannot be written.
    #[error("cannot store the certificate in {}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key or request cannot be made.
    #[error("a key or a request for a certificate cannot be made: {0}")]
    Request(String),
    /// What is there cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

impl Error {
    /// Whether the cloud has looked at what it was shown, and said no to it.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status < 500 && *status != 429)
    }
}
