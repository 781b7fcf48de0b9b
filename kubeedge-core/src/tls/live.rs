//! Certificates that are replaced while connections are made with them.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::watch;

use super::{Error, Identity, provider, refusal::Refusal};
use crate::{id::NodeName, tls};

/// An identity and the authorities that are trusted, both replaceable: what dials and listens with the
/// configurations made of it uses what is there at the moment of each handshake.
///
/// Clones are the same one. It may begin empty, as on a node that has not joined: whoever dials or listens with
/// it is refused until there is something to show.
#[derive(Clone)]
pub struct Live(Arc<Shared>);

struct Shared {
    identity: watch::Sender<Option<Arc<Held>>>,
    shown: watch::Sender<u64>,
    trust: RwLock<Option<Arc<Trust>>>,
    refused: [AtomicU64; Refusal::ALL.len()],
}

struct Held {
    identity: Identity,
    key: Arc<CertifiedKey>,
}

struct Trust {
    roots: RootCertStore,
    servers: Arc<dyn ServerCertVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Live {
    /// Begins with nothing: no identity, and nobody is trusted.
    pub fn empty() -> Self {
        Self(Arc::new(Shared {
            identity: watch::Sender::new(None),
            shown: watch::Sender::new(0),
            trust: RwLock::default(),
            refused: Default::default(),
        }))
    }

    /// Begins with an identity and the authorities that are trusted.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub fn new(identity: Identity, roots: RootCertStore) -> Result<Self, Error> {
        let live = Self::empty();
        live.trust(roots)?;
        live.show(identity)?;
        Ok(live)
    }

    /// Replaces the identity, for handshakes from here on.
    ///
    /// # Errors
    /// If it cannot be used; then the one before stays.
    pub fn show(&self, identity: Identity) -> Result<(), Error> {
        let (chain, key) = (identity.chain.clone(), identity.key.clone_key());
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider())?);
        self.0.identity.send_replace(Some(Arc::new(Held { identity, key })));
        self.0.shown.send_modify(|shown| *shown += 1);
        Ok(())
    }

    /// Replaces the authorities that are trusted, for handshakes from here on. Several overlap while one follows
    /// the other.
    ///
    /// # Errors
    /// If there are none; then those before stay.
    pub fn trust(&self, roots: RootCertStore) -> Result<(), Error> {
        let unusable = |error: &dyn fmt::Display| Error::Unusable(rustls::Error::General(error.to_string()));
        let shared = Arc::new(roots.clone());
        let servers = WebPkiServerVerifier::builder_with_provider(shared.clone(), provider())
            .build()
            .map_err(|error| unusable(&error))?;
        let clients = WebPkiClientVerifier::builder_with_provider(shared, provider())
            .build()
            .map_err(|error| unusable(&error))?;
        let trust = Arc::new(Trust { roots, servers, clients });
        *self.0.trust.write().unwrap_or_else(PoisonError::into_inner) = Some(trust);
        Ok(())
    }

    /// The identity that is shown, if there is one.
    pub fn identity(&self) -> Option<Identity> {
        self.0.identity.borrow().as_ref().map(|held| held.identity.clone())
    }

    /// The authorities that are trusted.
    pub fn roots(&self) -> RootCertStore {
        self.current().map_or_else(RootCertStore::empty, |trust| trust.roots.clone())
    }

    /// Waits until there is an identity. Cancel-safe.
    pub async fn ready(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.0.identity.subscribe().wait_for(Option::is_some).await;
    }

    /// Counts the identities that have been shown. Whoever has a connection that was made before a change may make it anew.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.0.shown.subscribe()
    }

    /// Builds what an edge dials with, as [`client_config`](super::client_config) does.
    ///
    /// # Errors
    /// If the protocol versions are not available.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.clone()))
            .with_client_cert_resolver(Arc::new(self.clone()));
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// Builds what the cloud listens with, as [`server_config`](super::server_config) does: a peer must show a
    /// certificate of one of the authorities.
    ///
    /// # Errors
    /// If the protocol versions are not available.
    pub fn server_config(&self) -> Result<ServerConfig, Error> {
        self.listening(Arc::new(Strict(self.clone())))
    }

    /// Builds what a cloud listens with for the others that serve the same API: as [`Live::server_config`], and the
    /// certificate must be [a cloud's](tls::cloud_of). Nodes have theirs from the same authority, and are refused.
    ///
    /// # Errors
    /// If the protocol versions are not available.
    pub fn cloud_server_config(&self) -> Result<ServerConfig, Error> {
        self.listening(Arc::new(Clouds(self.clone())))
    }

    /// Builds what a server listens with that judges certificates itself, by [`Live::judge`]: a peer may show any
    /// certificate whose key it proves to have, or none.
    ///
    /// # Errors
    /// If the protocol versions are not available.
    pub fn asking_server_config(&self) -> Result<ServerConfig, Error> {
        self.listening(Arc::new(Asking))
    }

    /// Builds what an HTTPS server listens with that knows its clients by other means, as
    /// [`web_server_config`](super::web_server_config) does.
    ///
    /// # Errors
    /// If the protocol versions are not available.
    pub fn web_server_config(&self) -> Result<ServerConfig, Error> {
        Ok(ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone())))
    }

    fn listening(&self, verifier: Arc<dyn ClientCertVerifier>) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(self.clone()));
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// Judges the certificate that a client has shown, as of `now`, in time since 1970, and says whose it is.
    ///
    /// # Errors
    /// With the reason why it is refused. It is for the caller to count it.
    pub fn judge(&self, chain: &[CertificateDer<'_>], now: Duration) -> Result<NodeName, Refusal> {
        let [own, others @ ..] = chain else { return Err(Refusal::NoCertificate) };
        self.verify_client(own, others, UnixTime::since_unix_epoch(now))
            .map_err(|error| Refusal::of(&error, own))?;
        tls::node_of(own).map_err(|_| Refusal::NoNode)
    }

    fn verify_client(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.current().ok_or_else(nobody)?.clients.verify_client_cert(own, others, now)
    }

    /// How many certificates of peers have been refused in handshakes, by reason.
    pub fn refused(&self) -> Vec<(Refusal, u64)> {
        let counts = self.0.refused.iter().map(|count| count.load(Ordering::Relaxed));
        Refusal::ALL.into_iter().zip(counts).collect()
    }

    fn count(&self, refusal: Refusal) {
        self.0.refused[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn current(&self) -> Option<Arc<Trust>> {
        self.0.trust.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn shown(&self) -> Option<Arc<CertifiedKey>> {
        self.0.identity.borrow().as_ref().map(|held| held.key.clone())
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Live {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.shown()
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.shown()
    }

    fn has_certs(&self) -> bool {
        self.shown().is_some()
    }
}

fn nobody() -> rustls::Error {
    rustls::Error::General("no authority is trusted: this node has not joined".to_owned())
}

fn verify12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
}

fn verify13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
}

fn schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

impl ServerCertVerifier for Live {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.current()
            .ok_or_else(nobody)?
            .servers
            .verify_server_cert(own, others, name, ocsp, now)
            .inspect_err(|error| self.count(Refusal::of(error, own)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify12(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Demands a certificate of one of the authorities.
#[derive(Debug)]
struct Strict(Live);

/// Demands the certificate of a cloud.
#[derive(Debug)]
struct Clouds(Live);

/// Asks for a certificate, and takes any.
#[derive(Debug)]
struct Asking;

macro_rules! client_verifier {
    ($verifier:ty, $mandatory:literal, $verify:expr) => {
        impl ClientCertVerifier for $verifier {
            // No authorities are named: they would tell anybody who asks what changes when they overlap.
            fn root_hint_subjects(&self) -> &[DistinguishedName] {
                &[]
            }

            fn client_auth_mandatory(&self) -> bool {
                $mandatory
            }

            fn verify_client_cert(
                &self,
                own: &CertificateDer<'_>,
                others: &[CertificateDer<'_>],
                now: UnixTime,
            ) -> Result<ClientCertVerified, rustls::Error> {
                $verify(self, own, others, now)
            }

            fn verify_tls12_signature(
                &self,
                message: &[u8],
                certificate: &CertificateDer<'_>,
                signed: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                verify12(message, certificate, signed)
            }

            fn verify_tls13_signature(
                &self,
                message: &[u8],
                certificate: &CertificateDer<'_>,
                signed: &DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                verify13(message, certificate, signed)
            }

            fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
                schemes()
            }
        }
    };
}

client_verifier!(Strict, true, |this: &Strict, own: &CertificateDer<'_>, others, now| {
    this.0.verify_client(own, others, now).map_err(|error| this.0.refuse(error, own))
});
client_verifier!(Clouds, true, |this: &Clouds, own: &CertificateDer<'_>, others, now| {
    let verified = this.0.verify_client(own, others, now).map_err(|error| this.0.refuse(error, own))?;
    tls::cloud_of(own).map(|_| verified).map_err(|_| this.0.refuse_stranger())
});
client_verifier!(Asking, false, |_: &Asking, _: &CertificateDer<'_>, _, _| Ok(
    ClientCertVerified::assertion()
));

impl Live {
    /// Counts and logs why a peer is refused; the peer is told by an alert of TLS.
    fn refuse(&self, error: rustls::Error, own: &CertificateDer<'_>) -> rustls::Error {
        let refusal = Refusal::of(&error, own);
        self.note(refusal);
        if refusal == Refusal::UnknownAuthority {
            // Authorities of KubeEdge have one name, so that another's certificate looks like a wrong signature of the
            // right one. The peer is told what helps: that its authority is not known.
            return rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        }
        error
    }

    /// As [`Live::refuse`], of a certificate that is good and is no cloud's; the peer is told that it has no access.
    fn refuse_stranger(&self) -> rustls::Error {
        self.note(Refusal::NoCloud);
        rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
    }

    fn note(&self, refusal: Refusal) {
        self.count(refusal);
        tracing::info!(reason = refusal.as_str(), "a peer's certificate was refused");
    }
}
