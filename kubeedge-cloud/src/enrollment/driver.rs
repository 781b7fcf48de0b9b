//! Keeps the token, the trust and the server's certificate fresh.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::api::core::v1::{Node, Secret};
use kube::{Api, Client};
use kubeedge_core::{
    id::NodeName,
    tls::{Identity, Lifetime, Live},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    AuthorityFiles, Config, Counts, Error, Refused, ServerCertificate, Trusted,
    policy::{self, Claim, EDGE_LABEL, Known, Terms},
    rotation, secrets, token,
};

/// How long the API may take to answer. 10 s: who waits for it here is a node that tries again.
const API_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server and the upkeep share.
#[derive(Clone)]
pub(super) struct Driver {
    pub(super) config: Arc<Config>,
    pub(super) tls: Live,
    client: Client,
    counts: Arc<Counts>,
    trusted: Arc<RwLock<Trusted>>,
    replica: Option<Arc<Replica>>,
}

/// What this cloud shows to the others that serve the same API.
struct Replica {
    name: String,
    addresses: Vec<String>,
    tls: Live,
}

impl Replica {
    fn show(&self, config: &Config, trusted: &Trusted) -> Result<(), Error> {
        let lasts = config.server_certificate_lasts;
        let issued = trusted.authority().issue_cloud(&self.name, &self.addresses, lasts)?;
        let identity = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
        Ok(self.tls.show(identity)?)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("config", &self.config).field("tls", &self.tls).finish_non_exhaustive()
    }
}

pub(super) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Driver {
    pub(super) async fn open(
        config: Config,
        trusted: Trusted,
        client: Client,
        tls: Live,
    ) -> Result<Self, Error> {
        tls.trust(trusted.roots()?)?;
        tls.show(server_identity(&config, &trusted)?)?;
        let driver = Self {
            config: Arc::new(config),
            tls,
            client,
            counts: Arc::default(),
            trusted: Arc::new(RwLock::new(trusted)),
            replica: None,
        };
        driver.keep_files()?;
        driver.refresh_token().await?;
        Ok(driver)
    }

    pub(super) fn with_replica(
        mut self,
        name: String,
        addresses: Vec<String>,
        tls: Live,
    ) -> Result<Self, Error> {
        let (replica, trusted) = (Replica { name, addresses, tls }, self.trusted());
        replica.tls.trust(trusted.roots()?)?;
        replica.show(&self.config, &trusted)?;
        self.replica = Some(Arc::new(replica));
        Ok(self)
    }

    pub(super) fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    pub(super) fn trusted(&self) -> Trusted {
        self.trusted.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn run(&self, stop: CancellationToken) {
        let mut checks = interval(self.config.check_interval.max(Duration::from_millis(10)));
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once, and everything has just been opened.
        checks.tick().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = checks.tick() => {}
            }
            if let Err(error) = self.check().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the certificates could not be looked after; trying again"
                );
            }
        }
    }

    async fn check(&self) -> Result<(), Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.config.namespace);
        // A Secret that was deleted does not end the trust of all nodes.
        if let Some(found) = secrets::read(&secrets).await? {
            self.adopt(found)?;
        }
        self.keep_files()?;
        self.renew_server()?;
        self.renew_replica()?;
        self.refresh_token().await
    }

    fn adopt(&self, found: Trusted) -> Result<(), Error> {
        let known = self.trusted();
        if found.bundle_pem() == known.bundle_pem() {
            return Ok(());
        }
        self.tls.trust(found.roots()?)?;
        if let Some(replica) = &self.replica {
            replica.tls.trust(found.roots()?)?;
        }
        let follows = found.authority().certificate_pem() != known.authority().certificate_pem();
        tracing::info!(follows, "the trusted authorities have changed");
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = found.clone();
        if follows {
            self.tls.show(server_identity(&self.config, &found)?)?;
            if let Some(replica) = &self.replica {
                replica.show(&self.config, &found)?;
            }
        }
        Ok(())
    }

    /// Brings the cloud's own files to the authority that signs.
    fn keep_files(&self) -> Result<(), Error> {
        let Some(AuthorityFiles { certificate, key }) = &self.config.authority_files else { return Ok(()) };
        let trusted = self.trusted();
        let kept = std::fs::read(certificate).ok().and_then(|pem| CertificateDer::from_pem_slice(&pem).ok());
        if kept != Some(trusted.authority().certificate_der()?) {
            trusted.authority().save(certificate, key)?;
            tracing::info!(file = %certificate.display(), "the authority that signs is kept here");
        }
        Ok(())
    }

    fn renew_replica(&self) -> Result<(), Error> {
        let Some(replica) = &self.replica else { return Ok(()) };
        let Some(shown) = replica.tls.identity() else { return Ok(()) };
        if since_1970() >= Lifetime::of(shown.certificate())?.renewal() {
            replica.show(&self.config, &self.trusted())?;
        }
        Ok(())
    }

    fn renew_server(&self) -> Result<(), Error> {
        let Some(shown) = self.tls.identity() else { return Ok(()) };
        let due = match &self.config.server {
            ServerCertificate::Issued { .. } => since_1970() >= Lifetime::of(shown.certificate())?.renewal(),
            ServerCertificate::Files { .. } => true,
        };
        if !due {
            return Ok(());
        }
        let next = server_identity(&self.config, &self.trusted())?;
        if next.certificate() != shown.certificate() {
            self.tls.show(next)?;
            tracing::info!("the cloud shows another certificate from here on");
        }
        Ok(())
    }

    async fn refresh_token(&self) -> Result<(), Error> {
        let (trusted, namespace) = (self.trusted(), &self.config.namespace);
        let refresh = self.config.token_refresh;
        secrets::refresh_token(&self.client, namespace, trusted.authority(), since_1970(), refresh).await
    }

    /// Verifies a token and says what it claims.
    pub(super) fn verify_token(&self, jwt: &str) -> Result<Claim, Refused> {
        let key = self.trusted().authority().key_sec1_der().map_err(|_| Refused::Unavailable)?;
        let claims = token::verify(jwt, &key, since_1970())?;
        // KubeEdge's own tokens do not say when they were made, but they last for two refreshes.
        let issued =
            claims.issued.unwrap_or_else(|| claims.expires.saturating_sub(2 * self.config.token_refresh));
        Ok(Claim::Token { issued })
    }

    /// Whether the claim makes whoever asks this node.
    pub(super) async fn admit(&self, node: &NodeName, claim: Claim) -> Result<(), Refused> {
        if claim == Claim::Certificate {
            return Ok(());
        }
        let known = self.known(node).await?;
        let Config { renew_expired_within, rejoin, .. } = *self.config;
        policy::judge(claim, known, since_1970(), Terms { renew_expired_within, rejoin })
    }

    /// The Node as the API has it.
    pub(super) async fn known(&self, node: &NodeName) -> Result<Option<Known>, Refused> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let unavailable = |error: &dyn std::fmt::Display| {
            tracing::warn!(%node, %error, "the API does not say whether there is such a Node");
            Refused::Unavailable
        };
        let found = timeout(API_TIMEOUT, nodes.get_opt(node.as_str()))
            .await
            .map_err(|late| unavailable(&late))?
            .map_err(|error| unavailable(&error))?;
        Ok(found.map(|node| known(&node)))
    }

    /// Signs a request of a node, and notes at its Node who has signed.
    pub(super) async fn grant(&self, request: &[u8], node: &NodeName) -> Result<Vec<u8>, Refused> {
        let trusted = self.trusted();
        match trusted.authority().grant(request, node, self.config.node_certificate_lasts) {
            Ok(certificate) => {
                let noted =
                    timeout(API_TIMEOUT, rotation::note(&self.client, node, trusted.authority())).await;
                // A node that is not counted as renewed is counted at the next time.
                if !matches!(noted, Ok(Ok(()))) {
                    tracing::warn!(%node, ?noted, "who has signed a node's certificate could not be noted at its Node");
                }
                Ok(certificate.to_vec())
            }
            Err(crate::pki::Error::Request(invalid)) => Err(Refused::Request(invalid)),
            Err(error) => {
                tracing::error!(%node, %error, "a certificate could not be signed");
                Err(Refused::Unavailable)
            }
        }
    }
}

fn known(node: &Node) -> Known {
    let created = node.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready =
        conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"));
    let edge = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EDGE_LABEL));
    Known { created: Duration::from_secs(u64::try_from(created).unwrap_or(0)), ready, edge }
}

fn server_identity(config: &Config, trusted: &Trusted) -> Result<Identity, Error> {
    match &config.server {
        ServerCertificate::Files { certificate, key } => Ok(Identity::from_files(certificate, key)?),
        ServerCertificate::Issued { names } => {
            let issued = trusted.authority().issue_server(names, config.server_certificate_lasts)?;
            Ok(Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?)
        }
    }
}
