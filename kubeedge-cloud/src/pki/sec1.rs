//! Keys in the form of SEC 1, which Go's KubeEdge writes, put into PKCS#8, which is all that rcgen reads.

use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// RFC 5958: version 0, then ecPublicKey on the curve prime256v1 (RFC 5480).
const VERSION_AND_P256: [u8; 24] = [
    0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
];

/// The longest SEC 1 key on P-256 with its public half and its curve; a longer one is another curve's.
const P256_KEY_MAX: usize = 121;

/// RFC 5915: version 1, then a private key of 32 bytes.
const VERSION_AND_LENGTH: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];

/// RFC 5915: the parameters, which are the curve prime256v1.
const P256: [u8; 12] = [0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// RFC 5915: the public key, as a bit string of 65 bytes.
const PUBLIC_KEY: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];

const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;

/// The key as PKCS#8; what is PKCS#8 already stays as it is.
pub(super) fn to_pkcs8(key: PrivateKeyDer<'static>) -> Result<PrivateKeyDer<'static>, &'static str> {
    let PrivateKeyDer::Sec1(sec1) = key else { return Ok(key) };
    let sec1 = sec1.secret_sec1_der();
    if sec1.len() > P256_KEY_MAX {
        return Err("only the curve P-256 is supported");
    }
    let mut body = VERSION_AND_P256.to_vec();
    put(&mut body, OCTET_STRING, sec1);
    let mut pkcs8 = Vec::new();
    put(&mut pkcs8, SEQUENCE, &body);
    Ok(PrivatePkcs8KeyDer::from(pkcs8).into())
}

/// The key of a PKCS#8 document as Go's `x509.MarshalECPrivateKey` writes it, with its curve and its public half.
pub(super) fn from_pkcs8(pkcs8: &[u8], public_key: &[u8]) -> Option<Vec<u8>> {
    let begins = VERSION_AND_LENGTH.len()
        + pkcs8.windows(VERSION_AND_LENGTH.len()).position(|bytes| bytes == VERSION_AND_LENGTH)?;
    let private_key = pkcs8.get(begins..begins + 32)?;
    let body = [&VERSION_AND_LENGTH, private_key, &P256, &PUBLIC_KEY, public_key].concat();
    let mut sec1 = Vec::new();
    put(&mut sec1, SEQUENCE, &body);
    // An uncompressed point on this curve; anything else is another curve's.
    (public_key.len() == 65).then_some(sec1)
}

/// Appends a DER element of less than 256 bytes.
fn put(to: &mut Vec<u8>, tag: u8, content: &[u8]) {
    to.push(tag);
    if content.len() >= 0x80 {
        to.push(0x81);
    }
    to.push(content.len() as u8);
    to.extend_from_slice(content);
}
