//! Does what the state says, and stores what comes of it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubeedge_core::{
    join::JoinToken,
    tls::{self, Identity, Lifetime, Live},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Error, Standing,
    ask::{self, Asker},
    files,
    state::{State, Todo},
};

/// The longest sleep: the node's clock may jump, and machines may sleep too.
const LOOK: Duration = Duration::from_secs(60);

/// How often a node without a certificate looks whether somebody has brought one.
const LOOK_FOR_FIRST: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Driver {
    config: Config,
    tls: Live,
    state: State,
    standing: watch::Sender<Standing>,
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Driver {
    pub(super) fn new(config: Config, tls: Live, lifetime: Option<Lifetime>, standing: Standing) -> Self {
        let mut hasher = DefaultHasher::new();
        config.node.as_str().hash(&mut hasher);
        let (has_token, seed) = (config.token.is_some(), hasher.finish());
        let state = State::new(lifetime, has_token, config.rotate, config.bundle_interval, seed);
        Self { config, tls, state, standing: watch::Sender::new(standing) }
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let now = since_1970();
            let acted = async {
                match self.state.todo(now) {
                    Todo::Wait(until) => {
                        let look = if self.tls.identity().is_some() { LOOK } else { LOOK_FOR_FIRST };
                        sleep(until.map_or(look, |until| until.saturating_sub(now).min(look))).await;
                        self.look();
                    }
                    Todo::Bundle => self.bundle().await,
                    todo @ (Todo::Enrol | Todo::Renew) => self.certificate(todo).await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = acted => {}
            }
        }
    }

    /// Takes a certificate that somebody else has put in the place of the one that is shown.
    fn look(&mut self) {
        let files = &self.config.files;
        let Ok(found) = Identity::from_files(&files.certificate, &files.key) else { return };
        if self.tls.identity().is_some_and(|shown| shown.certificate() == found.certificate()) {
            return;
        }
        match super::load(&self.config, &self.tls) {
            Ok(lifetime) => self.has(lifetime, "the node's certificate has been replaced by another"),
            Err(error) => tracing::warn!(%error, "a certificate was put in place that cannot be used"),
        }
    }

    fn has(&mut self, lifetime: Lifetime, how: &str) {
        tracing::info!(node = %self.config.node, "{how}");
        self.state.handle_certificate(lifetime);
        self.standing.send_replace(Standing { ends: Some(lifetime.not_after), failure: None });
    }

    async fn certificate(&mut self, todo: Todo) {
        let got = match &self.config.token {
            Some(token) if todo == Todo::Enrol => enroll(&self.config, token, &self.tls).await,
            _ => renew(&self.config, &self.tls).await,
        };
        match got {
            Ok(lifetime) => self.has(lifetime, "the node has got a certificate"),
            Err(error) => {
                self.state.handle_failure(error.is_refusal(), since_1970());
                let text = error.to_string();
                // The same failure again and again is told once.
                if self.standing.borrow().failure.as_ref() != Some(&text) {
                    tracing::warn!(reason = text, "the node gets no certificate; trying again");
                }
                self.standing.send_modify(|standing| standing.failure = Some(text));
            }
        }
    }

    async fn bundle(&mut self) {
        let asked = ask::bundle(&self.config.cloud, self.tls.roots(), self.config.timeout).await;
        // KubeEdge's cloud does not say who signs; then the certificate is as good as it is.
        match asked.and_then(|bundle| bundle.map_or(Ok(true), |pem| self.adopt(&pem))) {
            Ok(is_of_signer) => self.state.handle_bundle(is_of_signer, since_1970()),
            Err(error) => {
                tracing::debug!(%error, "the cloud does not say which authorities are trusted; trying again");
                self.state.handle_failure(false, since_1970());
            }
        }
    }

    /// Trusts the authorities that an authority which is trusted vouches for. Says whether this node's certificate is of the
    /// one that signs, which comes first.
    fn adopt(&self, pem: &str) -> Result<bool, Error> {
        let roots = tls::roots_from_pem(pem.as_bytes())?;
        if roots.roots != self.tls.roots().roots {
            files::store(&self.config.files.ca, pem)?;
            self.tls.trust(roots)?;
            tracing::info!("the trusted authorities have changed");
        }
        let Some(held) = self.tls.identity() else { return Ok(true) };
        let is_of_signer = tls::is_issued_by_first(held.certificate(), pem.as_bytes())?;
        if !is_of_signer {
            tracing::info!(
                "another authority signs from here on; the node's certificate is renewed within hours"
            );
        }
        Ok(is_of_signer)
    }
}

/// Gets a certificate by token: first the authority, then the certificate from a server that it has signed.
pub(super) async fn enroll(config: &Config, token: &JoinToken, tls: &Live) -> Result<Lifetime, Error> {
    let authority = ask::authority(&config.cloud, token, config.timeout).await?;
    let authority = pem("CERTIFICATE", &authority);
    let roots = tls::roots_from_pem(authority.as_bytes())?;
    let (key, csr) = request(config)?;
    let got = ask::certificate(
        &config.cloud,
        roots.clone(),
        &config.node,
        Asker::Token(token),
        csr,
        config.timeout,
    );
    let (identity, certificate) = check(config, &key, &got.await?)?;
    files::store(&config.files.ca, &authority)?;
    files::store_pair(&config.files, &key.serialize_pem(), &certificate)?;
    tls.trust(roots)?;
    adopt(tls, identity)
}

/// Gets the next certificate by the one that is there, for a key that is made for it.
async fn renew(config: &Config, tls: &Live) -> Result<Lifetime, Error> {
    let Some(held) = tls.identity() else {
        return Err(Error::NeitherCertificateNorToken("it is gone".to_owned()));
    };
    let (key, csr) = request(config)?;
    let asker = Asker::Identity(&held);
    let got = ask::certificate(&config.cloud, tls.roots(), &config.node, asker, csr, config.timeout);
    let (identity, certificate) = check(config, &key, &got.await?)?;
    files::store_pair(&config.files, &key.serialize_pem(), &certificate)?;
    adopt(tls, identity)
}

/// Shows the certificate from here on. It is on the disk already.
fn adopt(tls: &Live, identity: Identity) -> Result<Lifetime, Error> {
    let lifetime = Lifetime::of(identity.certificate())?;
    tls.show(identity)?;
    Ok(lifetime)
}

fn request(config: &Config) -> Result<(KeyPair, Vec<u8>), Error> {
    let failed = |error: rcgen::Error| Error::Request(error.to_string());
    // rcgen's own choice is ECDSA on P-256, which is what KubeEdge's cloud takes.
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, config.node.user_name());
    let csr = params.serialize_request(&key).map_err(failed)?;
    Ok((key, csr.der().to_vec()))
}

/// Looks at what the cloud has sent before it takes the place of what is there.
fn check(config: &Config, key: &KeyPair, der: &[u8]) -> Result<(Identity, String), Error> {
    let wrong = |reason: &dyn std::fmt::Display| Error::Answer {
        server: config.cloud.to_string(),
        what: "certificate of this node",
        reason: reason.to_string(),
    };
    let certificate = pem("CERTIFICATE", der);
    let identity = Identity::from_pem(certificate.as_bytes(), key.serialize_pem().as_bytes())
        .map_err(|error| wrong(&error))?;
    let owner = tls::node_of(identity.certificate()).map_err(|error| wrong(&error))?;
    if owner != config.node {
        return Err(wrong(&format!("it is that of {owner}")));
    }
    Ok((identity, certificate))
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let base64 = STANDARD.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
