//! What a node's request for a serving certificate may say.
//!
//! The cluster signs the subject and the names that a request has, so each word of it counts. (Certificates for the link
//! are another matter: `pki` takes nothing of a request but its key.)

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeedge_core::id::NodeName;
use serde_json::Value;
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{ExtendedKeyUsage, GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::{Denial, items};

/// The organization of nodes, as the signer wants it.
const NODES_GROUP: &str = "system:nodes";

// RFC 5280, appendix A.1, and RFC 8017, appendix A.1.
const COMMON_NAME: &str = "2.5.4.3";
const ORGANIZATION: &str = "2.5.4.10";
const RSA: &str = "1.2.840.113549.1.1.1";

/// Digital signature and key encipherment, the bits of a key usage that a server's certificate may have.
const KEY_USAGES: u16 = 0b101;

/// A request for a serving certificate, signed by the key that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Serving {
    der: Vec<u8>,
    /// Object identifiers with their values, ascending.
    subject: Vec<(String, String)>,
    names: Vec<Name>,
    is_rsa: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Dns(String),
    Ip(IpAddr),
}

impl Serving {
    /// Reads a request (PKCS#10, DER): it asks for a server's certificate and nothing else, and whoever asks has its key.
    pub(crate) fn read(der: &[u8]) -> Result<Self, Denial> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| Denial::Unreadable)?;
        if !rest.is_empty() {
            return Err(Denial::Unreadable);
        }
        let info = &request.certification_request_info;
        let mut subject = Vec::new();
        for attribute in info.subject.iter_attributes() {
            let value = attribute.as_str().map_err(|_| Denial::CertificateSubject)?;
            subject.push((attribute.attr_type().to_id_string(), value.to_owned()));
        }
        subject.sort();
        let mut names = Vec::new();
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
                return Err(Denial::CertificateUse);
            };
            for extension in &asked.extensions {
                read_extension(extension.parsed_extension(), &mut names)?;
            }
        }
        let is_rsa = info.subject_pki.algorithm.algorithm.to_id_string() == RSA;
        // What takes longest comes last.
        request.verify_signature().map_err(|_| Denial::CertificateProof)?;
        Ok(Self { der: der.to_owned(), subject, names, is_rsa })
    }

    /// Whether it is the node's own, and has names at all.
    pub(super) fn check(&self, node: &NodeName) -> Result<(), Denial> {
        let own =
            [(ORGANIZATION.to_owned(), NODES_GROUP.to_owned()), (COMMON_NAME.to_owned(), node.user_name())];
        if self.subject != own {
            return Err(Denial::CertificateSubject);
        }
        if self.names.is_empty() { Err(Denial::CertificateNames) } else { Ok(()) }
    }

    /// Whether each of its names is the node's: its own name, an IP address that its Node has, the loopback, or one that is
    /// valid on a single link only, where KubeEdge's MetaServer listens (169.254.30.10).
    ///
    /// Host names of the Node's status are not: the node says them itself, and could say those of Services. Nor is its own name
    /// one, where it is the API server's, one with `.svc`, or `localhost`: whoever has a token chooses the name.
    pub(crate) fn check_names(&self, node: &NodeName, object: &Value) -> Result<(), Denial> {
        let addresses: Vec<IpAddr> = items(&object["status"]["addresses"])
            .iter()
            .filter_map(|address| address["address"].as_str()?.parse().ok())
            .collect();
        let is_own = |name: &Name| match name {
            Name::Dns(name) => name == node.as_str() && !is_of_services(name),
            Name::Ip(ip) => {
                ip.is_loopback()
                    || matches!(ip, IpAddr::V4(ip) if ip.is_link_local())
                    || addresses.contains(ip)
            }
        };
        if self.names.iter().all(is_own) { Ok(()) } else { Err(Denial::CertificateNames) }
    }

    /// The request as the API has it: PEM (RFC 7468) in base64.
    pub(crate) fn encoded(&self) -> String {
        let base64 = STANDARD.encode(&self.der);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        STANDARD.encode(format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            lines.join("\n")
        ))
    }

    /// What the certificate is to be used for, in the API's words: keys are enciphered with RSA alone.
    pub(crate) fn usages(&self) -> &'static [&'static str] {
        if self.is_rsa {
            &["digital signature", "key encipherment", "server auth"]
        } else {
            &["digital signature", "server auth"]
        }
    }
}

/// Whether clients may take the name for the API server's, a Service's by its full name, or their own machine's. The short name of a
/// Service, `name.namespace`, cannot be told from a host's.
fn is_of_services(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or_default();
    first == "kubernetes"
        || name.split('.').skip(1).any(|label| label == "svc")
        || name.split('.').next_back() == Some("localhost")
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not allowed is refused, also what the library learns of"
)]
fn read_extension(extension: &ParsedExtension<'_>, names: &mut Vec<Name>) -> Result<(), Denial> {
    let allowed = match extension {
        ParsedExtension::SubjectAlternativeName(asked) => {
            for name in &asked.general_names {
                names.push(read_name(name).ok_or(Denial::CertificateNames)?);
            }
            true
        }
        ParsedExtension::BasicConstraints(constraints) => !constraints.ca,
        ParsedExtension::KeyUsage(usage) => usage.flags & !KEY_USAGES == 0,
        ParsedExtension::ExtendedKeyUsage(usage) => is_servers(usage),
        _ => false,
    };
    if allowed { Ok(()) } else { Err(Denial::CertificateUse) }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not allowed is refused, also what the library learns of"
)]
fn read_name(name: &GeneralName<'_>) -> Option<Name> {
    match name {
        GeneralName::DNSName(name) => Some(Name::Dns((*name).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(Name::Ip)
        }
        _ => None,
    }
}

fn is_servers(usage: &ExtendedKeyUsage<'_>) -> bool {
    let ExtendedKeyUsage {
        any,
        server_auth: _,
        client_auth,
        code_signing,
        email_protection,
        time_stamping,
        ocsp_signing,
        other,
    } = usage;
    let others = [*any, *client_auth, *code_signing, *email_protection, *time_stamping, *ocsp_signing];
    !others.contains(&true) && other.is_empty()
}
