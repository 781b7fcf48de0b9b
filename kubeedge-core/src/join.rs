//! The token with which a node joins, in KubeEdge's form: `<hash of the authority>.<JSON Web Token>`.
//!
//! ```
//! use kubeedge_core::join::JoinToken;
//!
//! let text = format!("{}.eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjE4OTM0NTYwMDB9.c2lnbmF0dXJl", "0a".repeat(32));
//! let token: JoinToken = text.parse()?;
//! assert!(!token.is_of(b"another authority"));
//! assert_eq!(token.expires().map(|end| end.as_secs()), Some(1_893_456_000));
//! # Ok::<(), kubeedge_core::join::InvalidToken>(())
//! ```

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

/// The longest text that is looked at. KubeEdge's tokens have some 200 bytes.
const LENGTH_MAX: usize = 4096;

/// What a node shows to get its first certificate, and how it knows the cloud's authority.
///
/// It does not print, and should not be kept longer than it is needed: for as long as it is valid, it lets any node
/// join.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    authority: [u8; 32],
    jwt: String,
}

impl JoinToken {
    /// Joins a hash of an authority's certificate with what the cloud has signed.
    pub fn new(authority_der: &[u8], jwt: impl Into<String>) -> Self {
        Self { authority: Sha256::digest(authority_der).into(), jwt: jwt.into() }
    }

    /// Whether this is the certificate (DER) of the authority that the token names.
    pub fn is_of(&self, authority_der: &[u8]) -> bool {
        <[u8; 32]>::from(Sha256::digest(authority_der)) == self.authority
    }

    /// What is shown to the cloud, once the authority is known to be the right one.
    pub fn bearer(&self) -> &str {
        &self.jwt
    }

    /// The whole text, to be handed to a node.
    pub fn expose(&self) -> String {
        let hash: String = self.authority.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hash}.{}", self.jwt)
    }

    /// When it ends by its own word, in time since 1970. Only the cloud can tell whether the word is true.
    pub fn expires(&self) -> Option<Duration> {
        let claims = URL_SAFE_NO_PAD.decode(self.jwt.split('.').nth(1)?).ok()?;
        let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
        Some(Duration::from_secs(claims.get("exp")?.as_u64()?))
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let text = text.trim();
        if text.is_empty() {
            return Err(InvalidToken("it is empty"));
        }
        if text.len() > LENGTH_MAX {
            return Err(InvalidToken("it is far too long"));
        }
        let (hash, jwt) = text.split_once('.').ok_or(InvalidToken(PARTS))?;
        if jwt.split('.').count() != 3 || jwt.split('.').any(str::is_empty) {
            return Err(InvalidToken(PARTS));
        }
        let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        if !jwt.bytes().all(inside) {
            return Err(InvalidToken("it has characters that no token has"));
        }
        let authority = parse_hash(hash).ok_or(InvalidToken("it does not begin with a SHA-256 hash"))?;
        Ok(Self { authority, jwt: jwt.to_owned() })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

const PARTS: &str = "it must have four parts with points between them";

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    // Signs would pass for digits.
    if text.len() != 64 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(hash)
}

/// Says why a text is no token; without showing any of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no token for joining: {0}; `keadm gettoken` prints one")]
pub struct InvalidToken(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_as_it_was_written() {
        let token = JoinToken::new(b"an authority", "a.b.c");
        assert_eq!(token.expose().parse(), Ok(token.clone()));
        assert!(token.is_of(b"an authority") && !token.is_of(b"another"));
        assert_eq!((token.bearer(), token.expires()), ("a.b.c", None));
        assert_eq!(format!("{token:?}"), "JoinToken(..)");
    }

    #[test]
    fn what_is_no_token_is_refused_with_the_reason_and_is_not_shown() {
        let hash = "ab".repeat(32);
        for (text, reason) in [
            (String::new(), "empty"),
            ("secret".into(), "four parts"),
            (format!("{hash}.secret.b"), "four parts"),
            (format!("{hash}.secret.b.c.d"), "four parts"),
            (format!("{hash}.secret..c"), "four parts"),
            (format!("{}.secret.b.c", "+1".repeat(32)), "SHA-256"),
            (format!("{hash}.secret.b.c\r\nX: y"), "characters"),
            (format!("{hash}.secret.b.{}", "c".repeat(5000)), "too long"),
        ] {
            let error = text.parse::<JoinToken>().unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
