//! Why a peer's certificate is not accepted.

use std::fmt;

use rustls::CertificateError;
use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// Says why a peer's certificate is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// None was shown.
    NoCertificate,
    /// It has ended.
    Expired,
    /// It has not begun, or the clock of this side is behind.
    NotYetValid,
    /// No authority that is trusted has signed it.
    UnknownAuthority,
    /// It is an authority's own, which signs and does not speak.
    Authority,
    /// It was issued for something else, such as a server's where a node's is wanted.
    WrongPurpose,
    /// It was issued for another name than the one that was dialled.
    WrongName,
    /// It names no node.
    NoNode,
    /// It names none of the clouds that serve one API.
    NoCloud,
    /// It cannot be read, or its signature is wrong.
    Malformed,
}

impl Refusal {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::NoCertificate,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownAuthority,
        Self::Authority,
        Self::WrongPurpose,
        Self::WrongName,
        Self::NoNode,
        Self::NoCloud,
        Self::Malformed,
    ];

    /// The reason in one word, for logs, metrics and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "NoCertificate",
            Self::Expired => "CertificateExpired",
            Self::NotYetValid => "CertificateNotYetValid",
            Self::UnknownAuthority => "UnknownAuthority",
            Self::Authority => "CertificateOfAnAuthority",
            Self::WrongPurpose => "WrongPurpose",
            Self::WrongName => "WrongName",
            Self::NoNode => "NotANode",
            Self::NoCloud => "NotACloud",
            Self::Malformed => "MalformedCertificate",
        }
    }

    /// What the error of a verification says about this certificate.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls has many errors, and these tell people something"
    )]
    pub fn of(error: &rustls::Error, certificate: &CertificateDer<'_>) -> Self {
        let rustls::Error::InvalidCertificate(error) = error else {
            return match error {
                rustls::Error::NoCertificatesPresented => Self::NoCertificate,
                rustls::Error::General(_) => Self::UnknownAuthority,
                _ => Self::Malformed,
            };
        };
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            // A self-signed authority is found to be unknown or not an end of a chain, by which comes first.
            _ if is_authority(certificate) => Self::Authority,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongPurpose
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            _ => Self::Malformed,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCertificate => "no certificate was shown",
            Self::Expired => "the certificate has expired",
            Self::NotYetValid => "the certificate is not valid yet; is the clock right?",
            Self::UnknownAuthority => "the certificate is not of an authority that is trusted here",
            Self::Authority => "the certificate is that of an authority, and not of a node or server",
            Self::WrongPurpose => "the certificate was issued for another purpose",
            Self::WrongName => "the certificate was issued for another name",
            Self::NoNode => "the certificate names no node",
            Self::NoCloud => "the certificate names no cloud",
            Self::Malformed => "the certificate cannot be read or its signature is wrong",
        })
    }
}

impl std::error::Error for Refusal {}

fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| parsed.is_ca())
}
