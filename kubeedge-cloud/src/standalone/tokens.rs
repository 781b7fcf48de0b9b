//! Tokens of service accounts: JSON Web Tokens (RFC 7519) with the claims that Kubernetes gives them.
//!
//! They are signed with ES256 by a key that is made when it is first needed and kept as a Secret, so that a
//! restart does not end the tokens that pods hold. Whoever wants to check one finds the public key where OpenID
//! Connect has it, at `/openid/v1/jwks`. The API itself does not let anyone in with them.

use jiff::{SignedDuration, Timestamp};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};

use super::{
    failure::{Cause, Failure},
    json::{at, items, text},
    resource::Resource,
    store::Txn,
    write::{Options, Target, create, seconds},
};

/// Who issues the tokens, as a cluster's API server calls itself.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Where the key is.
const KEY: (&str, &str) = ("kube-system", "service-account-key");

/// How long a token may be good for, in seconds: Kubernetes' limits and default.
const SECONDS: (i64, i64, i64) = (600, 3600, 1 << 32);

/// Issues a token for the account that `target` names.
pub(crate) fn issue(txn: &mut Txn<'_, '_>, target: &Target, asked: &Value) -> Result<Value, Failure> {
    let account = target.read(txn)?;
    let (least, usual, most) = SECONDS;
    let wanted = at(asked, &["spec", "expirationSeconds"]);
    let lifetime = wanted.and_then(Value::as_i64).unwrap_or(usual);
    if !(least..=most).contains(&lifetime) {
        let rule = format!("must be between {least} (10 minutes) and {most}");
        let cause = Cause::invalid("spec.expirationSeconds", &lifetime.into(), &rule);
        return Err(Failure::invalid("TokenRequest", "authentication.k8s.io", &target.name, &[cause]));
    }
    let mut audiences: Vec<&str> =
        items(asked, &["spec", "audiences"]).iter().filter_map(Value::as_str).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER);
    }
    let bound = bound_to(txn, target, asked)?;
    let ends = txn.now.checked_add(SignedDuration::from_secs(lifetime)).unwrap_or(Timestamp::MAX);
    let (namespace, name) = (&target.namespace, &target.name);
    let mut kubernetes = json!({
        "namespace": namespace,
        "serviceaccount": { "name": name, "uid": text(&account, &["metadata", "uid"]) },
    });
    if let Some((kind, bound)) = bound {
        kubernetes[kind] = bound;
    }
    let claims = json!({
        "aud": audiences,
        "exp": ends.as_second(),
        "iat": txn.now.as_second(),
        "iss": ISSUER,
        "kubernetes.io": kubernetes,
        "nbf": txn.now.as_second(),
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    });
    let token = sign(&key(txn)?, &claims)?;
    Ok(json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "metadata": { "name": name, "namespace": namespace, "creationTimestamp": seconds(txn.now) },
        "spec": {
            "audiences": audiences,
            "expirationSeconds": lifetime,
            "boundObjectRef": at(asked, &["spec", "boundObjectRef"]).cloned().unwrap_or(Value::Null),
        },
        "status": { "token": token, "expirationTimestamp": seconds(ends) },
    }))
}

/// The object that the token ends with, as the token names it: it has to exist, with this UID.
fn bound_to(
    txn: &Txn<'_, '_>,
    target: &Target,
    asked: &Value,
) -> Result<Option<(&'static str, Value)>, Failure> {
    let of = |member| text(asked, &["spec", "boundObjectRef", member]);
    let (plural, claim) = match of("kind") {
        "" => return Ok(None),
        "Pod" => ("pods", "pod"),
        "Secret" => ("secrets", "secret"),
        other => return Err(Failure::bad_request(format!("cannot bind token for object of type {other}"))),
    };
    let (name, uid) = (of("name"), of("uid"));
    let object = txn.get(Resource::core(plural), &target.namespace, name)?;
    let found = object.ok_or_else(|| Failure::not_found(plural, "", name))?;
    let known = text(&found, &["metadata", "uid"]);
    if !uid.is_empty() && uid != known {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record ({known})"
        );
        return Err(Failure::conflict(plural, "", name, &why));
    }
    if plural == "pods" {
        let account = text(&found, &["spec", "serviceAccountName"]);
        let account = if account.is_empty() { "default" } else { account };
        if account != target.name {
            let why = format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                target.name
            );
            return Err(Failure::bad_request(why));
        }
    }
    Ok(Some((claim, json!({ "name": name, "uid": known }))))
}

/// The key as PKCS #8; made if there is none.
fn key(txn: &mut Txn<'_, '_>) -> Result<Vec<u8>, Failure> {
    let (namespace, name) = KEY;
    let secrets = Resource::core("secrets");
    if let Some(kept) = txn.get(secrets, namespace, name)? {
        let kept = decode64(text(&kept, &["data", "key"]));
        return kept.ok_or_else(|| Failure::internal(format!("secret {namespace}/{name} has no key")));
    }
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    let made = made.map_err(|_| Failure::internal("no key can be made"))?.as_ref().to_vec();
    let target = Target { resource: secrets, namespace: namespace.into(), name: name.into(), status: false };
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": namespace },
        "type": "Opaque", "data": { "key": encode64(&made, &STANDARD, true) },
    });
    create(txn, target, secret, &Options::default())?;
    Ok(made)
}

fn sign(key: &[u8], claims: &Value) -> Result<String, Failure> {
    let broken = || Failure::internal("the key of service accounts cannot be used");
    let random = SystemRandom::new();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key, &random).map_err(|_| broken())?;
    let header = json!({ "alg": "ES256", "kid": key_id(&pair), "typ": "JWT" });
    let part = |value: &Value| encode64(value.to_string().as_bytes(), &URL_SAFE, false);
    let signed = format!("{}.{}", part(&header), part(claims));
    let signature = pair.sign(&random, signed.as_bytes()).map_err(|_| broken())?;
    Ok(format!("{signed}.{}", encode64(signature.as_ref(), &URL_SAFE, false)))
}

/// The public key as a JSON Web Key Set (RFC 7517), for whoever checks tokens.
pub(crate) fn key_set(txn: &mut Txn<'_, '_>) -> Result<Value, Failure> {
    let key = key(txn)?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &SystemRandom::new())
        .map_err(|_| Failure::internal("the key of service accounts cannot be used"))?;
    // An uncompressed point: 4, then two coordinates of 32 bytes (SEC 1 §2.3.3).
    let point = pair.public_key().as_ref().get(1..65).unwrap_or_default();
    let (x, y) = point.split_at(point.len() / 2);
    let part = |bytes: &[u8]| encode64(bytes, &URL_SAFE, false);
    let key = json!({
        "use": "sig", "kty": "EC", "kid": key_id(&pair), "crv": "P-256", "alg": "ES256",
        "x": part(x), "y": part(y),
    });
    Ok(json!({ "keys": [key] }))
}

fn key_id(pair: &EcdsaKeyPair) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, pair.public_key().as_ref());
    encode64(digest.as_ref(), &URL_SAFE, false)
}

const STANDARD: [u8; 64] = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: [u8; 64] = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Base64 of RFC 4648.
fn encode64(bytes: &[u8], letters: &[u8; 64], pad: bool) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let three = [group[0], group.get(1).copied().unwrap_or(0), group.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..4 {
            if place <= group.len() {
                text.push(char::from(letters[(bits >> (18 - 6 * place) & 63) as usize]));
            } else if pad {
                text.push('=');
            }
        }
    }
    text
}

fn decode64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0u32, 0u32);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = STANDARD.iter().position(|known| *known == letter)?;
        held = (held << 6 | value as u32) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    (!bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    fn from_url(text: &str) -> Vec<u8> {
        decode64(&text.replace('-', "+").replace('_', "/")).unwrap()
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [(&b"f"[..], "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"foob", "Zm9vYg==")] {
            assert_eq!(encode64(bytes, &STANDARD, true), text);
            assert_eq!(decode64(text).unwrap(), bytes);
        }
        assert_eq!(encode64(&[0xfb, 0xff], &URL_SAFE, false), "-_8");
    }

    #[test]
    fn a_token_is_signed_with_the_key_whose_public_half_is_told() {
        let key =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let token = sign(key.as_ref(), &json!({ "sub": "x" })).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &SystemRandom::new())
                .unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref());
        public.verify(signed.as_bytes(), &from_url(signature)).unwrap();
        let claims: Value = serde_json::from_slice(&from_url(signed.split_once('.').unwrap().1)).unwrap();
        assert_eq!(claims["sub"], "x");
    }
}
