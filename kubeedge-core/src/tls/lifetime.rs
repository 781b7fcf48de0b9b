//! How long a certificate lasts.

use std::time::Duration;

use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{Error, Source};

/// From when to when a certificate is valid, in time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// The beginning.
    pub not_before: Duration,
    /// The end.
    pub not_after: Duration,
}

impl Lifetime {
    /// Reads it from a certificate.
    ///
    /// # Errors
    /// If the bytes are no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, Error> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| Source("the certificate".into()).invalid(error))?;
        let since_1970 = |time: i64| Duration::from_secs(u64::try_from(time).unwrap_or(0));
        let validity = parsed.validity();
        Ok(Self {
            not_before: since_1970(validity.not_before.timestamp()),
            not_after: since_1970(validity.not_after.timestamp()),
        })
    }

    /// When a third of the life is left, which is when to renew.
    pub fn renewal(&self) -> Duration {
        self.not_after.saturating_sub(self.not_after.saturating_sub(self.not_before) / 3)
    }
}
