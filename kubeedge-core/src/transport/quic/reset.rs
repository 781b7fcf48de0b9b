//! How a restarted cloud tells edges at once that it does not know their connections (RFC 9000 §10.3).

use std::{fmt, sync::Arc, time::Duration};

use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig,
    crypto::{CryptoError, HmacKey},
};
use rustls::crypto::{SecureRandom, ring};
use sha2::{Digest, Sha256};

/// The block of SHA-256, which HMAC pads its key to (RFC 2104 §2).
const BLOCK: usize = 64;

/// The least pause between two resets. A restarted cloud owes one to each of thousands of edges, and with quinn's own
/// 20 ms the last of 2,000 would learn of the restart after 40 s. A reset is shorter than the packet that it answers.
const RESET_INTERVAL: Duration = Duration::from_micros(100);

/// Random bytes of a connection id. 8, as quinn's own ids have.
const ID_LENGTH: usize = 8;

/// An endpoint that signs resets with a secret that outlives it; with a random one if there is none.
pub(super) fn endpoint_config(secret: Option<ResetSecret>) -> EndpointConfig {
    let Some(secret) = secret else { return EndpointConfig::default() };
    let mut config = EndpointConfig::new(Arc::new(secret));
    // Quinn's default ids carry a mark of their endpoint, and what its predecessor gave out would be ignored.
    config.min_reset_interval(RESET_INTERVAL);
    config.cid_generator(|| Box::new(RandomIds(ring::default_provider().secure_random)));
    config
}

/// What connection resets are signed with; whoever has it can end connections of this cloud.
#[derive(Clone, PartialEq, Eq)]
pub struct ResetSecret([u8; 32]);

impl ResetSecret {
    /// Wraps a secret that stays the same across restarts, such as
    /// [`Identity::derive_secret`](crate::tls::Identity::derive_secret) gives.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    fn pad(&self, with: u8) -> [u8; BLOCK] {
        let mut block = [with; BLOCK];
        for (byte, secret) in block.iter_mut().zip(self.0) {
            *byte ^= secret;
        }
        block
    }
}

impl fmt::Debug for ResetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetSecret(..)")
    }
}

impl HmacKey for ResetSecret {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let inner = Sha256::new().chain_update(self.pad(0x36)).chain_update(data).finalize();
        let outer = Sha256::new().chain_update(self.pad(0x5c)).chain_update(inner).finalize();
        signature_out.copy_from_slice(&outer);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut expected = [0; 32];
        self.sign(data, &mut expected);
        // Every byte is looked at, so that the time says nothing about where they differ.
        let differs = expected.iter().zip(signature).fold(0, |differs, (a, b)| differs | (a ^ b));
        if differs == 0 && signature.len() == expected.len() { Ok(()) } else { Err(CryptoError) }
    }
}

struct RandomIds(&'static dyn SecureRandom);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_LENGTH];
        self.0.fill(&mut id).expect("TLS has drawn from the same source to get this far");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_hmac_sha256() {
        // RFC 4231 §4.2, whose key of 20 bytes HMAC pads with zeros.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let secret = ResetSecret::new(key);
        let mut signature = [0; 32];
        secret.sign(b"Hi There", &mut signature);
        assert_eq!(signature[..8], [0xb0, 0x34, 0x4c, 0x61, 0xd8, 0xdb, 0x38, 0x53]);
        assert!(secret.verify(b"Hi There", &signature).is_ok());
        assert!(secret.verify(b"Hi there", &signature).is_err());
        assert!(secret.verify(b"Hi There", &signature[..16]).is_err());
    }
}
