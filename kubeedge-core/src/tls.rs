//! Certificates on the link: reading PEM files, and who a peer is.
//!
//! ```no_run
//! # fn main() -> Result<(), kubeedge_core::tls::Error> {
//! use std::{path::Path, sync::Arc};
//! use kubeedge_core::tls::{self, Identity};
//!
//! let identity = Identity::from_files(Path::new("server.crt"), Path::new("server.key"))?;
//! let roots = tls::roots_from_file(Path::new("rootCA.crt"))?;
//! let client = Arc::new(tls::client_config(&identity, roots)?);
//! # Ok(())
//! # }
//! ```
//!
//! The configurations name their cryptography (`ring`) themselves and never ask for the process-wide provider,
//! so they work whatever else a program has linked.

mod lifetime;
mod live;
mod refusal;
mod unverified;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use rustls::RootCertStore;
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

pub use self::{lifetime::Lifetime, live::Live, refusal::Refusal, unverified::unverified_client_config};
use crate::id::{CLOUD_USER_PREFIX, InvalidId, NodeName};

/// A certificate chain, the own certificate first, and its private key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads the chain and the key from PEM files. Blocks; meant for the start of a program.
    ///
    /// The key may be PKCS#8, SEC1 (as Go's KubeEdge writes it) or PKCS#1.
    ///
    /// # Errors
    /// If a file cannot be read, holds nothing of what it should, or the two do not belong together; the error
    /// names the file.
    pub fn from_files(chain: &Path, key: &Path) -> Result<Self, Error> {
        let (chain_pem, key_pem) = (read(chain)?, read(key)?);
        Self::parse(&chain_pem, &key_pem, &chain.into(), &key.into())
    }

    /// Reads the chain and the key from PEM text.
    ///
    /// # Errors
    /// As [`Identity::from_files`].
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        Self::parse(chain, key, &Source("the certificate".into()), &Source("the private key".into()))
    }

    fn parse(chain: &[u8], key: &[u8], chain_source: &Source, key_source: &Source) -> Result<Self, Error> {
        let chain = certificates(chain, chain_source)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            let nothing = matches!(error, rustls_pki_types::pem::Error::NoItemsFound);
            key_source.invalid(if nothing {
                "there is no private key in it".to_owned()
            } else {
                error.to_string()
            })
        })?;
        let identity = Self { chain, key };
        CertifiedKey::from_der(identity.chain.clone(), identity.key.clone_key(), &ring::default_provider())
            .map_err(|error| {
            let strangers = matches!(error, rustls::Error::InconsistentKeys(_));
            key_source.invalid(if strangers {
                format!("the key does not belong to the certificate in {}", chain_source.0)
            } else {
                error.to_string()
            })
        })?;
        Ok(identity)
    }

    /// Derives a secret for another purpose from the private key: the same for as long as the key is the same, and
    /// telling nothing about it.
    pub fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        let key = Sha256::digest(self.key.secret_der());
        Sha256::new().chain_update(key).chain_update(purpose).finalize().into()
    }

    /// The own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        // `parse` refuses an empty chain.
        &self.chain[0]
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl fmt::Debug for Identity {
    /// Leaves the key out: it must not get into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Reads the certificates of trusted authorities from a PEM file. Blocks.
///
/// # Errors
/// If the file cannot be read or holds no certificate that can be an authority's.
pub fn roots_from_file(file: &Path) -> Result<RootCertStore, Error> {
    roots(&read(file)?, &file.into())
}

/// Reads the certificates of trusted authorities from PEM text.
///
/// # Errors
/// If there is no certificate in it that can be an authority's.
pub fn roots_from_pem(pem: &[u8]) -> Result<RootCertStore, Error> {
    roots(pem, &Source("the trusted certificates".into()))
}

fn roots(pem: &[u8], source: &Source) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem, source)? {
        store.add(certificate).map_err(|error| source.invalid(error))?;
    }
    Ok(store)
}

/// Builds what an edge dials with: it shows `identity`, and accepts a server of one of the `roots`.
///
/// TLS 1.3 is preferred and 1.2 allowed; QUIC takes 1.3 only. Sessions are not resumed, so that a certificate
/// is looked at each time and nothing is kept between connections.
///
/// # Errors
/// If the identity cannot be used.
pub fn client_config(identity: &Identity, roots: RootCertStore) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Builds what a client of somebody else's server dials with: it accepts a server of one of the `roots`, and shows
/// `identity` if it has one and is asked for it.
///
/// # Errors
/// If the identity cannot be used.
pub fn other_client_config(identity: Option<&Identity>, roots: RootCertStore) -> Result<ClientConfig, Error> {
    if let Some(identity) = identity {
        return client_config(identity, roots);
    }
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Builds what the cloud listens with: it shows `identity`, and demands a certificate of one of the `roots`.
///
/// No session tickets: with thousands of edges the tickets of each would take memory, and a resumed session
/// would outlive the certificate that it began with.
///
/// # Errors
/// If the identity cannot be used or there are no roots.
pub fn server_config(identity: &Identity, roots: RootCertStore) -> Result<ServerConfig, Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| Error::Unusable(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// Builds what an HTTPS server listens with that knows its clients by other means than certificates.
///
/// # Errors
/// If the identity cannot be used.
pub fn web_server_config(identity: &Identity) -> Result<ServerConfig, Error> {
    Ok(ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?)
}

/// Whether a node's certificate was issued by the first of the authorities in PEM text; its dates do not matter.
///
/// # Errors
/// If there is no certificate in the text that can be an authority's, or the node's cannot be read.
pub fn is_issued_by_first(certificate: &CertificateDer<'_>, authorities: &[u8]) -> Result<bool, Error> {
    let source = Source("the trusted certificates".into());
    let first = certificates(authorities, &source)?.swap_remove(0);
    let mut roots = RootCertStore::empty();
    roots.add(first).map_err(|error| source.invalid(error))?;
    let live = Live::empty();
    live.trust(roots)?;
    let began = Lifetime::of(certificate)?.not_before;
    Ok(live.judge(std::slice::from_ref(certificate), began) != Err(Refusal::UnknownAuthority))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads which node a certificate belongs to: its common name is `system:node:<name>`, as Kubernetes' node
/// authorization has it.
///
/// # Errors
/// If the bytes are no certificate, or its common name is no node's.
pub fn node_of(certificate: &CertificateDer<'_>) -> Result<NodeName, Error> {
    Ok(NodeName::from_user_name(&common_name(certificate)?)?)
}

/// Reads which node a certificate belongs to, as [`node_of`] does, and when the certificate ends, in time since 1970.
///
/// # Errors
/// If the bytes are no certificate, or its common name is no node's.
pub fn node_until(certificate: &CertificateDer<'_>) -> Result<(NodeName, Duration), Error> {
    Ok((node_of(certificate)?, Lifetime::of(certificate)?.not_after))
}

/// Reads which of the clouds that serve one API a certificate belongs to: its common name is
/// `system:kubeedge:cloud:<name>`. That of a node never is.
///
/// # Errors
/// If the bytes are no certificate, or its common name is no cloud's.
pub fn cloud_of(certificate: &CertificateDer<'_>) -> Result<String, Error> {
    let name = common_name(certificate)?;
    match name.strip_prefix(CLOUD_USER_PREFIX) {
        Some(cloud) if !cloud.is_empty() => Ok(cloud.to_owned()),
        Some(_) | None => Err(Error::NoCloud),
    }
}

/// Reads the common name of a certificate's subject, which is a user's name to Kubernetes.
///
/// # Errors
/// If the bytes are no certificate, or if it has not exactly one common name.
pub fn common_name(certificate: &CertificateDer<'_>) -> Result<String, Error> {
    let source = Source("the peer's certificate".into());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| source.invalid(error))?;
    // Of several common names the last is the most specific, and some other software reads only the first:
    // a certificate on which readers disagree names nobody.
    let mut names = parsed.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(source.invalid("it does not have exactly one common name"));
    };
    Ok(name.as_str().map_err(|error| source.invalid(error))?.to_owned())
}

/// Says why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or text is not what it should be.
    #[error("{source_name} cannot be used: {reason}")]
    Invalid {
        /// The file, or what the text was meant to be.
        source_name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate is valid but belongs to no node.
    #[error("the certificate belongs to no node")]
    NoNode(#[from] InvalidId),
    /// A certificate is valid but belongs to none of the clouds.
    #[error("the certificate belongs to no cloud")]
    NoCloud,
    /// The certificates do not make a configuration.
    #[error("the certificates cannot be used for TLS")]
    Unusable(#[from] rustls::Error),
}

/// An error with its causes, in one line, as it is told to the peer.
#[cfg(any(feature = "quic", feature = "websocket"))]
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Where PEM text came from, for errors.
struct Source(String);

impl Source {
    fn invalid(&self, reason: impl ToString) -> Error {
        Error::Invalid { source_name: self.0.clone(), reason: reason.to_string() }
    }
}

impl From<&Path> for Source {
    fn from(file: &Path) -> Self {
        Self(file.display().to_string())
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    fs::read(file).map_err(|source| Error::Unreadable { file: file.to_owned(), source })
}

fn certificates(pem: &[u8], source: &Source) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| source.invalid(error))?;
    if chain.is_empty() {
        return Err(source.invalid("there is no certificate in it"));
    }
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::testing::Pki;

    #[test]
    fn an_identity_reads_pkcs8_and_sec1_keys() {
        let (chain, key) = Pki::new().node_pem("system:node:edge-1");
        let pkcs8 = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(node_of(pkcs8.certificate()).unwrap().as_str(), "edge-1");
        assert!(!format!("{pkcs8:?}").contains("PRIVATE"));

        let sec1 = Identity::from_pem(SEC1_CERTIFICATE.as_bytes(), SEC1_KEY.as_bytes()).unwrap();
        client_config(&sec1, roots_from_pem(chain_of_ca().as_bytes()).unwrap()).unwrap();
    }

    #[test]
    fn errors_name_the_file_and_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let (chain, key) = (dir.path().join("server.crt"), dir.path().join("server.key"));
        let error = Identity::from_files(&chain, &key).unwrap_err();
        assert!(error.to_string().contains("server.crt"), "{error}");

        let pki = Pki::new();
        let (certificate, own_key) = pki.node_pem("system:node:edge-1");
        let (_, other_key) = pki.node_pem("system:node:edge-2");
        fs::write(&chain, "nothing here").unwrap();
        fs::write(&key, &own_key).unwrap();
        let error = Identity::from_files(&chain, &key).unwrap_err().to_string();
        assert!(error.contains("server.crt") && error.contains("no certificate"), "{error}");

        fs::write(&chain, &certificate).unwrap();
        fs::write(&key, &certificate).unwrap();
        let error = Identity::from_files(&chain, &key).unwrap_err().to_string();
        assert!(error.contains("server.key") && error.contains("no private key"), "{error}");

        fs::write(&key, other_key).unwrap();
        let error = Identity::from_files(&chain, &key).unwrap_err().to_string();
        assert!(error.contains("server.key") && error.contains("does not belong"), "{error}");

        fs::write(&key, own_key).unwrap();
        Identity::from_files(&chain, &key).unwrap();
    }

    #[test]
    fn a_certificate_of_no_node_names_nobody() {
        let pki = Pki::new();
        for name in ["edge-1", "system:node:", "system:node:Not A Name", "kubernetes-admin"] {
            let (chain, key) = pki.node_pem(name);
            let identity = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
            assert!(node_of(identity.certificate()).is_err(), "{name}");
            assert!(cloud_of(identity.certificate()).is_err(), "{name}");
        }
        assert!(node_of(&CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff, 1])).is_err());
    }

    #[test]
    fn a_cloud_is_no_node_and_no_node_is_a_cloud_whatever_it_is_called() {
        let pki = Pki::new();
        let certificate = |name: &str| {
            let (chain, key) = pki.node_pem(name);
            Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap().certificate().clone()
        };
        let cloud = certificate("system:kubeedge:cloud:host_1");
        assert_eq!(cloud_of(&cloud).unwrap(), "host_1");
        assert!(node_of(&cloud).is_err());
        for name in ["system:node:host-1", "system:node:system.kubeedge.cloud", "system:kubeedge:cloud:"] {
            assert!(cloud_of(&certificate(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn who_has_issued_a_certificate_is_told_apart_although_all_authorities_have_one_name() {
        let (old, new) = (Pki::new(), Pki::new());
        let (chain, key) = old.node_pem("system:node:edge-1");
        let identity = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let is_first = |pem: String| is_issued_by_first(identity.certificate(), pem.as_bytes()).unwrap();
        assert!(is_first(old.ca_pem() + &new.ca_pem()));
        assert!(!is_first(new.ca_pem() + &old.ca_pem()));
        is_issued_by_first(identity.certificate(), b"").unwrap_err();
    }

    fn chain_of_ca() -> String {
        Pki::new().ca_pem()
    }

    /// A key as `openssl ecparam -genkey` and Go's `x509.MarshalECPrivateKey` write it, made for this test only.
    const SEC1_KEY: &str = "\
-----BEGIN EC PARAMETERS-----
BggqhkjOPQMBBw==
-----END EC PARAMETERS-----
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIENQLAeBHh+sThqaWGNFriLWLS5T6j+ujPr3gBSccCXSoAoGCCqGSM49
AwEHoUQDQgAEnMpRTHi1ktcXpsqBGdvvXwo9egXlhcirjHjtjsabwyF2bnBvNX0U
2TiMcG9idsPwZmJGTD9B3SseD1P3HkAolQ==
-----END EC PRIVATE KEY-----
";

    const SEC1_CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBkTCCATegAwIBAgIUfKSVPmASQ8DgM2BS+VWkuDzxbmUwCgYIKoZIzj0EAwIw
HTEbMBkGA1UEAwwSc3lzdGVtOm5vZGU6ZWRnZS0xMCAXDTI2MTEyMzE3NTExMloY
DzIxMjYxMDMwMTc1MTEyWjAdMRswGQYDVQQDDBJzeXN0ZW06bm9kZTplZGdlLTEw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAScylFMeLWS1xemyoEZ2+9fCj16BeWF
yKuMeO2OxpvDIXZucG81fRTZOIxwb2J2w/BmYkZMP0HdKx4PU/ceQCiVo1MwUTAd
BgNVHQ4EFgQUfcWhml4O+DQ+WLk5seSfjZy0+1EwHwYDVR0jBBgwFoAUfcWhml4O
+DQ+WLk5seSfjZy0+1EwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBF
AiEA0SB91e6lH+9cOzkjUuILEWWYvtn+I5J4d7bIFxA90EsCIBOLYY0cEmMiDsLA
cmH9elszy1aWNKQuj3QZdXDvcNOd
-----END CERTIFICATE-----
";
}
