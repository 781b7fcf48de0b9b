//! Keeps the token, the trust and the server's certificate fresh.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::api::core::v1::{Node, Secret};
use kube::{Api, Client};
use kubeedge_core::{id::NodeName, tls::Live};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    AuthorityFiles, Config, Counts, Error, Refused, Trusted,
    policy::{self, Claim, EDGE_LABEL, Known, SHUT_OUT, Terms},
    rotation, secrets,
    shown::{Believed, Certificate, Shown},
    token,
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
    authorities: Arc<watch::Sender<String>>,
    shown: Vec<Arc<Shown>>,
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
        let certificate = Certificate::Server(config.server.clone());
        let to_nodes = Shown { certificate, believed: Believed::Own, tls: tls.clone() };
        let driver = Self {
            config: Arc::new(config),
            tls,
            client,
            counts: Arc::default(),
            authorities: Arc::new(watch::Sender::new(trusted.bundle_pem().to_owned())),
            trusted: Arc::new(RwLock::new(trusted)),
            shown: Vec::new(),
        };
        let driver = driver.with(to_nodes)?;
        driver.keep_files()?;
        driver.refresh_token().await?;
        Ok(driver)
    }

    /// Shows something else besides.
    pub(super) fn with(mut self, shown: Shown) -> Result<Self, Error> {
        shown.open(&self.trusted(), self.config.server_certificate_lasts)?;
        self.shown.push(Arc::new(shown));
        Ok(self)
    }

    /// The authorities that are trusted, as PEM.
    pub(super) fn authorities(&self) -> watch::Receiver<String> {
        self.authorities.subscribe()
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
            for error in self.check().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the certificates could not be looked after; trying again"
                );
            }
        }
    }

    /// Looks after everything; what fails holds up nothing else.
    async fn check(&self) -> Vec<Error> {
        let mut failed = Vec::from_iter(self.follow().await.err());
        failed.extend(self.keep_files().err());
        let (trusted, lasts) = (self.trusted(), self.config.server_certificate_lasts);
        failed.extend(self.shown.iter().filter_map(|one| one.refresh(&trusted, lasts, since_1970()).err()));
        failed.extend(self.refresh_token().await.err());
        failed
    }

    /// Takes the authorities that the API has.
    async fn follow(&self) -> Result<(), Error> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.config.namespace);
        // A Secret that was deleted does not end the trust of all nodes.
        match secrets::read(&secrets).await? {
            Some(found) => self.adopt(found),
            None => Ok(()),
        }
    }

    fn adopt(&self, found: Trusted) -> Result<(), Error> {
        let known = self.trusted();
        if found.bundle_pem() == known.bundle_pem() {
            return Ok(());
        }
        let follows = found.authority().certificate_pem() != known.authority().certificate_pem();
        for one in &self.shown {
            one.adopt(&found, follows, self.config.server_certificate_lasts)?;
        }
        tracing::info!(follows, "the trusted authorities have changed");
        self.authorities.send_replace(found.bundle_pem().to_owned());
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = found;
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
    let annotations = node.metadata.annotations.as_ref();
    let shut_out = annotations.is_some_and(|annotations| annotations.contains_key(SHUT_OUT));
    Known { created: Duration::from_secs(u64::try_from(created).unwrap_or(0)), ready, edge, shut_out }
}
