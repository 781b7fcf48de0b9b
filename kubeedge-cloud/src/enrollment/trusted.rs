use std::sync::Arc;

use kubeedge_core::tls;
use rustls::RootCertStore;

use super::Error;
use crate::pki::Authority;

/// The authority that signs, and those that are trusted beside it while one follows the other.
#[derive(Debug, Clone)]
pub struct Trusted {
    authority: Arc<Authority>,
    /// PEM, each certificate once; the one that signs comes first.
    bundle: String,
}

impl Trusted {
    /// An authority, with `others` (PEM) that are trusted too.
    pub fn new(authority: Authority, others: &str) -> Self {
        let own = format!("{}\n", authority.certificate_pem());
        Self { bundle: once_each(&(own + others), None), authority: Arc::new(authority) }
    }

    /// The authority that signs.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// All that are trusted, as PEM; the one that signs comes first.
    pub fn bundle_pem(&self) -> &str {
        &self.bundle
    }

    pub(super) fn roots(&self) -> Result<RootCertStore, Error> {
        Ok(tls::roots_from_pem(self.bundle.as_bytes())?)
    }
}

/// PEM text with each of its certificates once, and with one of them left out.
pub(super) fn once_each(pem: &str, but: Option<&str>) -> String {
    let but = but.and_then(|pem| certificates(pem).next());
    let mut all: Vec<String> = Vec::new();
    for certificate in certificates(pem) {
        if but.as_ref() != Some(&certificate) && !all.contains(&certificate) {
            all.push(certificate);
        }
    }
    all.concat()
}

/// The certificates in PEM text, one after the other, with the ends of lines that are ours.
fn certificates(pem: &str) -> impl Iterator<Item = String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = pem.split_inclusive(END).map(str::trim).filter(|part| part.ends_with(END));
    parts.map(|part| part.lines().map(|line| format!("{}\n", line.trim())).collect())
}
