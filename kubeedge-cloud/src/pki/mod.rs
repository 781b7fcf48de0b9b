//! A certificate authority for the link: its own certificate, and those of servers and nodes.
//!
//! ```no_run
//! # fn main() -> Result<(), kubeedge_cloud::pki::Error> {
//! use std::{path::Path, time::Duration};
//! use kubeedge_cloud::pki::Authority;
//!
//! const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
//! let authority = Authority::open_or_create(Path::new("/etc/kubeedge"))?;
//! let server = authority.issue_server(&["cloud.example".into(), "10.0.0.1".into()], YEAR)?;
//! server.write(Path::new("certs/server.crt"), Path::new("certs/server.key"))?;
//! let node = authority.issue_node(&"edge-1".parse().expect("a node name"), YEAR)?;
//! # Ok(())
//! # }
//! ```
//!
//! Keys are ECDSA P-256 and written as PKCS#8. Keys that Go's KubeEdge has written (SEC1) are read as well, so an
//! authority that exists is kept. All functions that touch files block; they are meant for the start of a program
//! and for command lines.

mod files;
mod request;
mod sec1;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kubeedge_core::id::{CLOUD_USER_PREFIX, NodeName};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

pub use self::request::InvalidRequest;

/// Where [`Authority::open_or_create`] keeps the authority's certificate, below its directory.
pub const CERTIFICATE_FILE: &str = "ca/rootCA.crt";

/// Where [`Authority::open_or_create`] keeps the authority's key, below its directory.
pub const KEY_FILE: &str = "ca/rootCA.key";

/// The organization of node certificates, by which Kubernetes' node authorization knows them.
pub const NODES_GROUP: &str = "system:nodes";

/// How long an authority lasts: 10 years, as those that kubeadm creates.
const AUTHORITY_LASTS: Duration = Duration::from_secs(3650 * 24 * 3600);

/// How long before its issue a certificate begins: an edge without a battery for its clock may lag behind.
const SKEW: Duration = Duration::from_secs(3600);

/// Signs certificates of servers and nodes.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// Creates an authority with a fresh key, in memory only.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn create() -> Result<Self, Error> {
        Self::with_key(KeyPair::generate()?)
    }

    /// Signs a certificate for an authority's key.
    fn with_key(key: KeyPair) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("KubeEdge", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        last(&mut params, AUTHORITY_LASTS);
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate_pem })
    }

    /// Takes an authority from PEM text; the key may be PKCS#8 or SEC1.
    ///
    /// # Errors
    /// If one of them is not what it should be, or they do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, Error> {
        Self::parse(certificate, key, Path::new("the certificate"), Path::new("the key"))
    }

    /// Takes an authority as KubeEdge keeps it in a Secret: the certificate as DER, the key as DER of SEC1 or PKCS#8.
    ///
    /// # Errors
    /// As [`Authority::from_pem`].
    pub fn from_der(certificate: &[u8], key: &[u8]) -> Result<Self, Error> {
        let certificate = pem("CERTIFICATE", certificate);
        // Both forms are a sequence that begins with a version: 0 in PKCS#8, 1 in SEC1.
        let label = if key.windows(3).take(6).any(|bytes| bytes == [0x02, 0x01, 0x01]) {
            "EC PRIVATE KEY"
        } else {
            "PRIVATE KEY"
        };
        Self::from_pem(&certificate, &pem(label, key))
    }

    /// The certificate as DER.
    ///
    /// # Errors
    /// If it cannot be read, which an authority that was opened does not meet.
    pub fn certificate_der(&self) -> Result<CertificateDer<'static>, Error> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .map_err(|error| Error::invalid(Path::new("the certificate"), error))
    }

    /// The private key as DER of SEC1, which is how KubeEdge keeps it and signs tokens with it.
    ///
    /// # Errors
    /// If the key is not on the curve P-256.
    pub fn key_sec1_der(&self) -> Result<Vec<u8>, Error> {
        let key = self.issuer.key();
        sec1::from_pkcs8(key.serialized_der(), key.public_key_raw())
            .ok_or_else(|| Error::invalid(Path::new("the key"), "only the curve P-256 is supported"))
    }

    /// Derives a secret for another purpose from the private key: the same for as long as the key is the same, and
    /// telling nothing about it.
    pub fn derive_secret(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, self.issuer.key().serialized_der());
        let mut secret = [0; 32];
        secret.copy_from_slice(ring::hmac::sign(&key, purpose.as_bytes()).as_ref());
        secret
    }

    /// Reads an authority from PEM files.
    ///
    /// # Errors
    /// As [`Authority::from_pem`], or if a file cannot be read; the error names the file.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, Error> {
        Self::parse(&files::read(certificate)?, &files::read(key)?, certificate, key)
    }

    fn parse(certificate: &str, key: &str, certificate_file: &Path, key_file: &Path) -> Result<Self, Error> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| Error::invalid(certificate_file, error))?;
        let key = parse_key(key, key_file)?;
        // The certificate carries the public key as it is; no other place of it could hold the same 65 bytes.
        let belongs = der.windows(key.der_bytes().len()).any(|bytes| bytes == key.der_bytes());
        if !belongs {
            let reason =
                format!("the key does not belong to the certificate in {}", certificate_file.display());
            return Err(Error::invalid(key_file, reason));
        }
        let issuer =
            Issuer::from_ca_cert_der(&der, key).map_err(|error| Error::invalid(certificate_file, error))?;
        Ok(Self { issuer, certificate_pem: certificate.to_owned() })
    }

    /// Whether one of the certificates in PEM text has this authority's key. A certificate that was signed again is
    /// another one, and what was issued under the first is good under the second.
    pub fn is_among(&self, pem: &str) -> bool {
        let key = self.issuer.key().der_bytes();
        let mut certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
        certificates.any(|der| der.windows(key.len()).any(|bytes| bytes == key))
    }

    /// Writes the authority to PEM files, each whole or not at all; the key can be read by its owner only. After a crash on
    /// the way [`Authority::open_or_create`] opens this authority or the one before.
    ///
    /// # Errors
    /// If a file cannot be written; the error names it.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), Error> {
        if certificate.exists() && !self.is_among(&files::read(certificate)?) {
            // A key beside another's certificate cannot be opened; a key alone can.
            files::remove(certificate)?;
        }
        // The key first: a certificate is of use to others, who may then ask for what only the key can give.
        files::write_private(key, &self.issuer.key().serialize_pem())?;
        files::write_public(certificate, &self.certificate_pem)
    }

    /// Opens the authority in `directory` ([`CERTIFICATE_FILE`], [`KEY_FILE`]), or creates one there.
    ///
    /// If a crash has left the key alone, its certificate is signed again, and what the authority has issued stays
    /// valid. A certificate without its key is an error: nobody could issue for those who trust it.
    ///
    /// # Errors
    /// As [`Authority::load`] and [`Authority::save`].
    pub fn open_or_create(directory: &Path) -> Result<Self, Error> {
        let (certificate, key) = (directory.join(CERTIFICATE_FILE), directory.join(KEY_FILE));
        match (certificate.exists(), key.exists()) {
            (true, _) => Self::load(&certificate, &key),
            (false, true) => {
                let authority = Self::with_key(parse_key(&files::read(&key)?, &key)?)?;
                files::write_public(&certificate, &authority.certificate_pem)?;
                Ok(authority)
            }
            (false, false) => {
                let authority = Self::create()?;
                authority.save(&certificate, &key)?;
                Ok(authority)
            }
        }
    }

    /// The certificate that others trust, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Issues a certificate for a server that is reached under these names and IP addresses.
    ///
    /// # Errors
    /// If there is no name, or one that is neither a host name nor an address.
    pub fn issue_server(&self, names: &[String], valid_for: Duration) -> Result<Issued, Error> {
        let first = names.first().ok_or(Error::NoName)?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = name(first, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, valid_for)
    }

    /// Issues a certificate by which clouds that serve one API know each other: common name
    /// `system:kubeedge:cloud:<cloud>`, for a client as well as for a server that is reached at these addresses.
    ///
    /// # Errors
    /// If the name is empty, or an address is neither a host name nor an IP address.
    pub fn issue_cloud(
        &self,
        cloud: &str,
        addresses: &[String],
        valid_for: Duration,
    ) -> Result<Issued, Error> {
        if cloud.is_empty() {
            return Err(Error::NoName);
        }
        let mut params = CertificateParams::new(addresses)?;
        params.distinguished_name = name(&format!("{CLOUD_USER_PREFIX}{cloud}"), None);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params, valid_for)
    }

    /// Issues a certificate for a node: common name `system:node:<name>`, organization `system:nodes`.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn issue_node(&self, node: &NodeName, valid_for: Duration) -> Result<Issued, Error> {
        self.issue(node_params(node), valid_for)
    }

    fn issue(&self, params: CertificateParams, valid_for: Duration) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        Ok(Issued { certificate_pem: self.sign(params, &key, valid_for)?, key_pem: key.serialize_pem() })
    }

    /// Signs a public key, whose private half may be elsewhere.
    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        valid_for: Duration,
    ) -> Result<String, Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        last(&mut params, valid_for);
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

impl fmt::Debug for Authority {
    /// Leaves the key out: it must not get into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// A certificate and its private key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key, PKCS#8.
    pub key_pem: String,
}

impl Issued {
    /// Writes both to files, each whole or not at all; the key can be read by its owner only.
    ///
    /// # Errors
    /// If a file cannot be written; the error names it.
    pub fn write(&self, certificate: &Path, key: &Path) -> Result<(), Error> {
        files::write_private(key, &self.key_pem)?;
        files::write_public(certificate, &self.certificate_pem)
    }
}

impl fmt::Debug for Issued {
    /// Leaves the key out: it must not get into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

/// Says why a certificate could not be issued, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {} {}", action, file.display())]
    File {
        /// What was tried: "read", "write" or "remove".
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or text is not what it should be.
    #[error("{} cannot be used: {reason}", file.display())]
    Invalid {
        /// The file, or what the text was meant to be.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A server's certificate needs a name, since clients verify it.
    #[error("a server's certificate needs at least one name or address")]
    NoName,
    /// A request for a certificate is not granted.
    #[error("the request is not granted: {0}")]
    Request(InvalidRequest),
    /// The certificate cannot be made.
    #[error("the certificate cannot be issued")]
    Issue(#[from] rcgen::Error),
}

impl Error {
    fn invalid(file: &Path, reason: impl ToString) -> Self {
        Self::Invalid { file: file.to_owned(), reason: reason.to_string() }
    }
}

fn parse_key(pem: &str, file: &Path) -> Result<KeyPair, Error> {
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| Error::invalid(file, error))?;
    let key = sec1::to_pkcs8(key).map_err(|reason| Error::invalid(file, reason))?;
    KeyPair::try_from(&key).map_err(|error| Error::invalid(file, error))
}

/// PEM as RFC 7468 has it.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let base64 = STANDARD.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn node_params(node: &NodeName) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(&node.user_name(), Some(NODES_GROUP));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name.push(DnType::CommonName, common_name);
    name
}

/// Sets the time in which a certificate is valid: from a little before now.
fn last(params: &mut CertificateParams, valid_for: Duration) {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_1970;
    params.not_before = now - SKEW;
    // RFC 5280 §4.1.2.5: the year 9999 stands for no end, and what is beyond cannot be written.
    let end = rcgen::date_time_ymd(9999, 12, 31);
    let room = Duration::try_from(end - now).unwrap_or_default();
    params.not_after = now + valid_for.min(room);
}
