//! The Secrets of KubeEdge that all replicas of the cloud share: `casecret` and `tokensecret`.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{Namespace, Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use kubeedge_core::join::JoinToken;

use super::{Error, Trusted};
use crate::pki::Authority;

pub(super) const AUTHORITY: &str = "casecret";
const TOKEN: &str = "tokensecret";

pub(super) const CERTIFICATE_KEY: &str = "cadata";
pub(super) const PRIVATE_KEY_KEY: &str = "cakeydata";
const TOKEN_KEY: &str = "tokendata";
/// Ours: authorities that are trusted beside the one that signs, as PEM. KubeEdge passes over it.
pub(super) const BUNDLE_KEY: &str = "bundle.pem";
/// Ours: authorities that were retired, as PEM: so that one in files is known for what it is.
pub(super) const FORMER_KEY: &str = "former.pem";

/// How often a creation that others made in vain is looked at again.
const ATTEMPTS: usize = 5;

/// Opens the authority, or creates it.
pub(super) async fn open(client: &Client, namespace: &str) -> Result<Trusted, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for _ in 0..ATTEMPTS {
        if let Some(trusted) = read(&secrets).await? {
            return Ok(trusted);
        }
        let authority = Authority::create()?;
        ensure_namespace(client, namespace).await?;
        let made = secrets.create(&PostParams::default(), &secret(AUTHORITY, data_of(&authority)?)).await;
        match made {
            Ok(_) => {
                tracing::info!(namespace, secret = AUTHORITY, "a certificate authority was created");
                return Ok(Trusted::new(authority, ""));
            }
            // Another replica was faster, and its authority is everybody's.
            Err(error) if is(&error, 409) => {}
            Err(error) => return Err(api("create", AUTHORITY, error)),
        }
    }
    Err(changing(AUTHORITY))
}

/// The authority as the API has it, or `None` if it has none.
pub(super) async fn read(secrets: &Api<Secret>) -> Result<Option<Trusted>, Error> {
    let found = secrets.get_opt(AUTHORITY).await.map_err(|error| api("get", AUTHORITY, error))?;
    found.map(|secret| parse(&secret.data.unwrap_or_default())).transpose()
}

pub(super) fn parse(data: &BTreeMap<String, ByteString>) -> Result<Trusted, Error> {
    let invalid = |reason: String| Error::Secret { name: AUTHORITY.into(), reason };
    let member = |key: &str| data.get(key).ok_or_else(|| invalid(format!("{key} is missing")));
    let (certificate, key) = (member(CERTIFICATE_KEY)?, member(PRIVATE_KEY_KEY)?);
    let authority =
        Authority::from_der(&certificate.0, &key.0).map_err(|error| invalid(error.to_string()))?;
    let bundle = data.get(BUNDLE_KEY).map_or_else(String::new, text);
    Ok(Trusted::new(authority, &bundle))
}

pub(super) fn text(bytes: &ByteString) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

/// Opens the authority, or begins with the one that files have.
pub(super) async fn publish(client: &Client, namespace: &str, files: Authority) -> Result<Trusted, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for _ in 0..ATTEMPTS {
        let found = secrets.get_opt(AUTHORITY).await.map_err(|error| api("get", AUTHORITY, error))?;
        if let Some(found) = found {
            return choose(&files, &found.data.unwrap_or_default());
        }
        ensure_namespace(client, namespace).await?;
        let made = secrets.create(&PostParams::default(), &secret(AUTHORITY, data_of(&files)?)).await;
        match made {
            Ok(_) => return Ok(Trusted::new(files, "")),
            // Another replica was faster, with the same files or with others.
            Err(error) if is(&error, 409) => {}
            Err(error) => return Err(api("create", AUTHORITY, error)),
        }
    }
    Err(changing(AUTHORITY))
}

/// Files do not follow a rotation, so the Secret leads wherever it has met their authority. One that it never met was put
/// there by somebody, who has to say what it is meant for.
fn choose(files: &Authority, data: &BTreeMap<String, ByteString>) -> Result<Trusted, Error> {
    let trusted = parse(data)?;
    if files.is_among(trusted.authority().certificate_pem()) {
        return Ok(trusted);
    }
    if files.is_among(trusted.bundle_pem()) {
        tracing::info!(
            "the certificate authority in the files is trusted, and another one signs: that of Secret casecret"
        );
        return Ok(trusted);
    }
    if data.get(FORMER_KEY).is_some_and(|former| files.is_among(&text(former))) {
        tracing::warn!(
            "the certificate authority in the files was retired, and that of Secret casecret signs; remove the files, or put \
             the Secret's into their place"
        );
        return Ok(trusted);
    }
    Err(Error::AnotherAuthority)
}

/// The token for joining as the API has it, or `None` if it has none.
///
/// # Errors
/// If the API cannot be asked, or has something else under that name.
pub async fn join_token(client: &Client, namespace: &str) -> Result<Option<JoinToken>, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    Ok(read_token(&secrets).await?.1)
}

async fn read_token(secrets: &Api<Secret>) -> Result<(Option<Secret>, Option<JoinToken>), Error> {
    let found = secrets.get_opt(TOKEN).await.map_err(|error| api("get", TOKEN, error))?;
    let token = found.as_ref().and_then(|secret| secret.data.as_ref()?.get(TOKEN_KEY));
    let token = token
        .map(|token| text(token).parse())
        .transpose()
        .map_err(|error| Error::Secret { name: TOKEN.into(), reason: format!("{error}") })?;
    Ok((found, token))
}

/// Makes the token anew unless the API has one of this authority that `is_fresh`. Says when to look again.
pub(super) async fn refresh_token(
    client: &Client,
    namespace: &str,
    authority: &Authority,
    now: Duration,
    refresh: Duration,
) -> Result<(), Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let own = authority.certificate_der()?;
    // With half of its life left it is as old as a refresh; of several replicas the first makes the next one.
    let fresh = |token: &JoinToken| {
        token.is_of(&own)
            && token.expires().is_some_and(|end| end > now + refresh && end <= now + 3 * refresh)
    };
    for _ in 0..ATTEMPTS {
        // One that cannot be read is replaced like one that has ended.
        let (known, token) = match read_token(&secrets).await {
            Err(Error::Secret { .. }) => {
                (secrets.get_opt(TOKEN).await.map_err(|e| api("get", TOKEN, e))?, None)
            }
            read => read?,
        };
        if token.as_ref().is_some_and(fresh) {
            return Ok(());
        }
        let token = super::token::issue(authority, now, 2 * refresh)?;
        let data = [(TOKEN_KEY.to_owned(), ByteString(token.expose().into_bytes()))].into();
        if put(&secrets, TOKEN, known, data).await? {
            tracing::info!(namespace, secret = TOKEN, "the token for joining was made anew");
            return Ok(());
        }
    }
    Err(changing(TOKEN))
}

fn data_of(authority: &Authority) -> Result<BTreeMap<String, ByteString>, Error> {
    Ok([
        (CERTIFICATE_KEY.to_owned(), ByteString(authority.certificate_der()?.to_vec())),
        (PRIVATE_KEY_KEY.to_owned(), ByteString(authority.key_sec1_der()?)),
    ]
    .into())
}

fn secret(name: &str, data: BTreeMap<String, ByteString>) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// Creates the Secret, or replaces what `known` is of it. Returns whether it did; otherwise somebody else was faster.
async fn put(
    secrets: &Api<Secret>,
    name: &str,
    known: Option<Secret>,
    data: BTreeMap<String, ByteString>,
) -> Result<bool, Error> {
    let written = match known {
        None => secrets.create(&PostParams::default(), &secret(name, data)).await,
        Some(mut known) => {
            known.data.get_or_insert_default().extend(data);
            // Its resource version goes along: what another replica has written since is not overwritten.
            secrets.replace(name, &PostParams::default(), &known).await
        }
    };
    match written {
        Ok(_) => Ok(true),
        Err(error) if is(&error, 409) => Ok(false),
        Err(error) => Err(api("write", name, error)),
    }
}

fn changing(name: &str) -> Error {
    Error::Secret { name: name.to_owned(), reason: "others change it again and again".to_owned() }
}

/// Creates the namespace if it is missing, as far as that is allowed; if it is not, the Secret's creation says so.
async fn ensure_namespace(client: &Client, name: &str) -> Result<(), Error> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    match namespaces.create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() }).await {
        Ok(_) => Ok(()),
        Err(error) if is(&error, 409) || is(&error, 403) => Ok(()),
        Err(error) => Err(api("create the namespace of", AUTHORITY, error)),
    }
}

pub(super) fn api(action: &'static str, name: &str, source: kube::Error) -> Error {
    Error::Api { action, name: name.to_owned(), source: Box::new(source) }
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
