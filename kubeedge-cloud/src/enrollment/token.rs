//! The token for joining, as KubeEdge signs it: a JSON Web Token with the authority's key.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use kubeedge_core::join::JoinToken;
use ring::hmac;
use serde_json::{Value, json};

use super::{Error, Refused};
use crate::pki::Authority;

/// What a token that was verified says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claims {
    /// When it was made; KubeEdge's own tokens do not say it.
    pub(super) issued: Option<Duration>,
    /// When it ends.
    pub(super) expires: Duration,
}

/// Makes a token that is valid from `now`, in time since 1970, for so long.
///
/// # Errors
/// If the authority's key is of another kind than KubeEdge's.
pub fn issue(authority: &Authority, now: Duration, lasts: Duration) -> Result<JoinToken, Error> {
    let header = URL_SAFE_NO_PAD.encode(json!({ "alg": "HS256", "typ": "JWT" }).to_string());
    let claims = json!({ "exp": (now + lasts).as_secs(), "iat": now.as_secs() });
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, &authority.key_sec1_der()?);
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    Ok(JoinToken::new(&authority.certificate_der()?, format!("{signed}.{signature}")))
}

/// Verifies what a node has shown as its bearer token.
pub(super) fn verify(jwt: &str, key: &[u8], now: Duration) -> Result<Claims, Refused> {
    let (signed, signature) = jwt.rsplit_once('.').ok_or(Refused::TokenMalformed)?;
    let (header, claims) = signed.split_once('.').ok_or(Refused::TokenMalformed)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Refused::TokenMalformed)?;
    // KubeEdge takes these three, and no token names an algorithm that needs no key.
    let algorithm = match decode(header)?["alg"].as_str() {
        Some("HS256") => hmac::HMAC_SHA256,
        Some("HS384") => hmac::HMAC_SHA384,
        Some("HS512") => hmac::HMAC_SHA512,
        _ => return Err(Refused::TokenMalformed),
    };
    hmac::verify(&hmac::Key::new(algorithm, key), signed.as_bytes(), &signature)
        .map_err(|_| Refused::TokenForeign)?;
    let claims = decode(claims)?;
    let expires = seconds(&claims["exp"]).ok_or(Refused::TokenMalformed)?;
    if now >= expires {
        return Err(Refused::TokenExpired);
    }
    Ok(Claims { issued: seconds(&claims["iat"]), expires })
}

fn decode(part: &str) -> Result<Value, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::TokenMalformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Refused::TokenMalformed)
}

/// RFC 7519 §2: a number of seconds, with or without a fraction.
fn seconds(value: &Value) -> Option<Duration> {
    value.as_u64().map(Duration::from_secs).or_else(|| Duration::try_from_secs_f64(value.as_f64()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_token_is_good_from_its_making_to_its_end_and_for_its_authority_only() {
        let (own, other) = (Authority::create().unwrap(), Authority::create().unwrap());
        let token = issue(&own, NOW, HOUR).unwrap();
        assert!(token.is_of(&own.certificate_der().unwrap()));
        assert_eq!(token.expires(), Some(NOW + HOUR));
        let key = own.key_sec1_der().unwrap();
        let claims = Claims { issued: Some(NOW), expires: NOW + HOUR };
        assert_eq!(verify(token.bearer(), &key, NOW), Ok(claims));
        assert_eq!(verify(token.bearer(), &key, NOW + HOUR), Err(Refused::TokenExpired));
        let foreign = other.key_sec1_der().unwrap();
        assert_eq!(verify(token.bearer(), &foreign, NOW), Err(Refused::TokenForeign));
    }

    #[test]
    fn a_token_that_says_how_it_is_to_be_believed_is_not_believed() {
        let key = b"key";
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = part(json!({ "exp": NOW.as_secs() + 10 }));
        for algorithm in ["none", "None", "RS256", ""] {
            let jwt = format!("{}.{claims}.", part(json!({ "alg": algorithm })));
            assert_eq!(verify(&jwt, key, NOW), Err(Refused::TokenMalformed), "{algorithm}");
        }
        let unsigned = format!("{}.{claims}.", part(json!({ "alg": "HS256" })));
        assert_eq!(verify(&unsigned, key, NOW), Err(Refused::TokenForeign));
        for nonsense in ["", ".", "..", "a.b.c", "....", "null.null.null", "bnVsbA.bnVsbA.bnVsbA"] {
            assert_eq!(verify(nonsense, key, NOW), Err(Refused::TokenMalformed), "{nonsense}");
        }
    }

    #[test]
    fn a_token_made_by_another_program_is_read() {
        // PyJWT's own form: {"typ":"JWT","alg":"HS384"} and a fraction of a second.
        let key = hmac::Key::new(hmac::HMAC_SHA384, b"key");
        let part = |value: &str| URL_SAFE_NO_PAD.encode(value);
        let signed =
            format!("{}.{}", part(r#"{"typ":"JWT","alg":"HS384"}"#), part(r#"{"exp": 1800000000.5}"#));
        let jwt = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())));
        assert_eq!(verify(&jwt, b"key", NOW).unwrap().issued, None);
        assert_eq!(verify(&jwt, b"key", NOW + Duration::from_secs(1)), Err(Refused::TokenExpired));
    }
}
