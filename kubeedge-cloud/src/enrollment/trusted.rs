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
        let own = authority.certificate_pem().trim();
        let mut bundle = format!("{own}\n");
        for other in certificates(others).filter(|other| *other != own) {
            bundle += &format!("{other}\n");
        }
        Self { authority: Arc::new(authority), bundle }
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

/// The certificates in PEM text, one after the other.
fn certificates(pem: &str) -> impl Iterator<Item = &str> {
    const END: &str = "-----END CERTIFICATE-----";
    pem.split_inclusive(END).map(str::trim).filter(|part| part.ends_with(END))
}
