//! Requests of nodes for certificates (PKCS#10), and what becomes of them.

use std::time::Duration;

use kubeedge_core::id::NodeName;
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, IsCa, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};

use super::{Authority, Error, NODES_GROUP, node_params};

/// Says why a node's request for a certificate is not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// It cannot be read, or asks for what no node's certificate has.
    #[error("the body is no certificate signing request (PKCS#10, DER) that can be granted to a node")]
    Malformed,
    /// Whoever asks has not proven to have the key.
    #[error("the request's own signature is wrong")]
    Signature,
    /// It asks for somebody else's certificate.
    #[error("the request's subject is not that of the node: CN system:node:<name>, O system:nodes")]
    Subject,
    /// It asks for the rights of an authority.
    #[error("the request is for an authority, and nodes are none")]
    Authority,
    /// The key is of another kind.
    #[error("the request's key is not ECDSA on the curve P-256")]
    Key,
}

impl Authority {
    /// Grants a request of `node` for a certificate (PKCS#10 in DER): what it asks for beside its name is left out.
    ///
    /// # Errors
    /// [`Error::Request`] if the request is not this node's own; others if it cannot be signed.
    pub fn grant(
        &self,
        request: &[u8],
        node: &NodeName,
        valid_for: Duration,
    ) -> Result<CertificateDer<'static>, Error> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|error| {
                let forged = matches!(error, rcgen::Error::InvalidCertificationRequestSignature);
                Error::Request(if forged { InvalidRequest::Signature } else { InvalidRequest::Malformed })
            })?;
        check(&request, node).map_err(Error::Request)?;
        // Subject, purpose and names are our own words: nothing of the request but its key gets in.
        let pem = self.sign(node_params(node), &request.public_key, valid_for)?;
        CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| Error::invalid(std::path::Path::new("the certificate"), error))
    }
}

fn check(request: &CertificateSigningRequestParams, node: &NodeName) -> Result<(), InvalidRequest> {
    let subject = &request.params.distinguished_name;
    let is = |kind: &DnType, wanted: &str| subject.get(kind).and_then(text) == Some(wanted);
    if !is(&DnType::CommonName, &node.user_name()) || !is(&DnType::OrganizationName, NODES_GROUP) {
        return Err(InvalidRequest::Subject);
    }
    if !matches!(request.params.is_ca, IsCa::NoCa | IsCa::ExplicitNoCa) {
        return Err(InvalidRequest::Authority);
    }
    // SEC 1 §2.3.3: an uncompressed point on this curve has 65 bytes and begins with 4.
    let key = &request.public_key;
    let point = key.der_bytes();
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || point.len() != 65 || point[0] != 4 {
        return Err(InvalidRequest::Key);
    }
    Ok(())
}

fn text(value: &DnValue) -> Option<&str> {
    match value {
        DnValue::Utf8String(text) => Some(text),
        DnValue::PrintableString(text) => Some(text.as_str()),
        DnValue::Ia5String(text) => Some(text.as_str()),
        DnValue::TeletexString(_) | DnValue::UniversalString(_) | DnValue::BmpString(_) => None,
        // rcgen may learn of more; none of KubeEdge's requests has them.
        _ => None,
    }
}
