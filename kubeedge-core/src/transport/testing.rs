//! A certificate authority and TLS configurations for the tests of this crate.
#![expect(clippy::unwrap_used, reason = "only tests use this module, and each failure here is a failed test")]
#![allow(dead_code, reason = "each feature uses its own part")]

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{ClientConfig, ServerConfig};

use crate::tls::{self, Identity};

/// An authority and what it issues.
pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { ca: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    /// A client certificate and its key, with `user` as the common name.
    pub(crate) fn node_pem(&self, user: &str) -> (String, String) {
        self.issue(Vec::new(), user)
    }

    fn issue(&self, names: Vec<String>, user: &str) -> (String, String) {
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, user);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.ca).unwrap().pem(), key.serialize_pem())
    }

    fn roots(&self) -> rustls::RootCertStore {
        tls::roots_from_pem(self.ca_pem().as_bytes()).unwrap()
    }

    /// What the node `edge-1` dials with.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client_as("system:node:edge-1")
    }

    /// What a client with this common name dials with.
    pub(crate) fn client_as(&self, user: &str) -> Arc<ClientConfig> {
        let (chain, key) = self.node_pem(user);
        let identity = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        Arc::new(tls::client_config(&identity, self.roots()).unwrap())
    }

    /// What a client without a certificate dials with.
    pub(crate) fn client_without_certificate(&self) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(self.roots()).with_no_client_auth())
    }

    /// A client that trusts this authority and shows a certificate of `other`.
    pub(crate) fn client_of(&self, other: &Self) -> Arc<ClientConfig> {
        let (chain, key) = other.node_pem("system:node:edge-1");
        let identity = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        Arc::new(tls::client_config(&identity, self.roots()).unwrap())
    }

    /// What the cloud at `localhost` listens with.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        let (chain, key) = self.issue(vec!["localhost".to_owned(), "127.0.0.1".to_owned()], "cloud");
        let identity = Identity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        Arc::new(tls::server_config(&identity, self.roots()).unwrap())
    }
}
