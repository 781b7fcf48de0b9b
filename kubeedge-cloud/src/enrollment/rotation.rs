//! How one authority follows another, in steps that people take.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{Node, Secret},
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use kubeedge_core::id::NodeName;
use serde_json::json;

use super::{
    Error, Trusted,
    driver::since_1970,
    policy::EDGE_LABEL,
    secrets::{AUTHORITY, BUNDLE_KEY, CERTIFICATE_KEY, FORMER_KEY, PRIVATE_KEY_KEY, api, parse, text},
    trusted::once_each,
};
use crate::pki::Authority;

/// Ours: the authority that is to sign next.
const NEXT_CERTIFICATE_KEY: &str = "nextcadata";
const NEXT_PRIVATE_KEY_KEY: &str = "nextcakeydata";

/// Ours: since when the authority signs that came by a rotation, in seconds since 1970.
const SIGNS_SINCE_KEY: &str = "signssince";

/// The annotation of a Node that says which authority has signed its newest certificate: the SHA-256 of the authority's. A
/// node may not set it itself.
const AUTHORITY_ANNOTATION: &str = "node.kubeedge.io/certificate-authority";

/// How many Nodes are read at once.
const PAGE: u32 = 500;

/// The steps by which one authority follows another without a node that loses its trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Makes the next authority, and lets everybody trust it. Nodes learn of it within a day.
    Introduce,
    /// Lets it sign, from here on. Certificates of the one before stay good until they are renewed.
    Switch,
    /// Ends the trust in the one before. Nodes that have not renewed since have to join again.
    Retire,
}

/// Takes a step of changing the authority.
///
/// # Errors
/// [`Error::Step`] if the step before has not been taken; [`Error::Api`] with a conflict if somebody else takes
/// one at the same time.
pub async fn rotate(client: &Client, namespace: &str, step: Step) -> Result<(), Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut found = secrets.get(AUTHORITY).await.map_err(|error| api("get", AUTHORITY, error))?;
    let mut data = found.data.take().unwrap_or_default();
    take(step, &mut data, since_1970())?;
    found.data = Some(data);
    secrets
        .replace(AUTHORITY, &PostParams::default(), &found)
        .await
        .map_err(|error| api("replace", AUTHORITY, error))?;
    Ok(())
}

fn take(step: Step, data: &mut BTreeMap<String, ByteString>, now: Duration) -> Result<(), Error> {
    let current = parse(data)?;
    let is_introduced = data.contains_key(NEXT_CERTIFICATE_KEY);
    match step {
        Step::Introduce if is_introduced => {
            return Err(Error::Step("the next authority is introduced already; `switch` is the next step"));
        }
        Step::Introduce => {
            let next = Authority::create()?;
            let bundle = Trusted::new(next, current.bundle_pem());
            data.insert(BUNDLE_KEY.into(), ByteString(bundle.bundle_pem().as_bytes().to_vec()));
            let next = bundle.authority();
            data.insert(NEXT_CERTIFICATE_KEY.into(), ByteString(next.certificate_der()?.to_vec()));
            data.insert(NEXT_PRIVATE_KEY_KEY.into(), ByteString(next.key_sec1_der()?));
        }
        Step::Switch => {
            let next = (data.remove(NEXT_CERTIFICATE_KEY), data.remove(NEXT_PRIVATE_KEY_KEY));
            let (Some(certificate), Some(key)) = next else {
                return Err(Error::Step("no authority is introduced; `introduce` is the first step"));
            };
            data.insert(SIGNS_SINCE_KEY.into(), ByteString(now.as_secs().to_string().into_bytes()));
            // The bundle has both already.
            data.insert(CERTIFICATE_KEY.into(), certificate);
            data.insert(PRIVATE_KEY_KEY.into(), key);
        }
        Step::Retire if is_introduced => {
            return Err(Error::Step("the next authority does not sign yet; `switch` comes before `retire`"));
        }
        Step::Retire => {
            let bundle = data.remove(BUNDLE_KEY).map_or_else(String::new, |bundle| text(&bundle));
            let known = data.get(FORMER_KEY).map_or_else(String::new, text);
            let former = once_each(&(known + &bundle), Some(current.authority().certificate_pem()));
            if !former.is_empty() {
                data.insert(FORMER_KEY.into(), ByteString(former.into_bytes()));
            }
        }
    }
    Ok(())
}

/// How it stands with the authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The SHA-256 of the certificate of the authority that signs, as tokens begin with.
    pub signer: String,
    /// Whether the next authority is introduced, and does not sign yet.
    pub is_introduced: bool,
    /// How many authorities are trusted.
    pub trusted: usize,
    /// The Nodes at the edge that are not known to have a certificate of the authority that signs. All that were away since
    /// the last [`Step::Switch`] are among them.
    pub behind: Vec<String>,
}

/// Says how far a rotation is. Reads all Nodes, page by page.
///
/// # Errors
/// If the API cannot be asked, or has something else in the Secret.
pub async fn rotation(client: &Client, namespace: &str) -> Result<Rotation, Error> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = secrets.get(AUTHORITY).await.map_err(|error| api("get", AUTHORITY, error))?;
    let data = found.data.unwrap_or_default();
    let trusted = parse(&data)?;
    let signer = fingerprint(trusted.authority())?;
    let since = data.get(SIGNS_SINCE_KEY).and_then(|since| text(since).parse().ok());
    let nodes: Api<Node> = Api::all(client.clone());
    let mut behind = Vec::new();
    let mut pages = ListParams::default().labels(EDGE_LABEL).limit(PAGE);
    // An authority that has always been there has signed whatever there is.
    while let Some(since) = since {
        let page = nodes.list(&pages).await.map_err(|error| api("list the Nodes of", AUTHORITY, error))?;
        let left = page.items.iter().filter(|node| is_behind(node, &signer, since));
        behind.extend(left.filter_map(|node| node.metadata.name.clone()));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => pages = pages.continue_token(&token),
            None => break,
        }
    }
    Ok(Rotation {
        signer,
        is_introduced: data.contains_key(NEXT_CERTIFICATE_KEY),
        trusted: trusted.bundle_pem().matches("BEGIN CERTIFICATE").count(),
        behind,
    })
}

/// A Node that is younger than the authority's first signature got its certificate from it.
fn is_behind(node: &Node, signer: &str, since: i64) -> bool {
    let created = node.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let noted = node.metadata.annotations.as_ref().and_then(|all| all.get(AUTHORITY_ANNOTATION));
    noted.map_or(created <= since, |noted| noted != signer)
}

/// Writes down who has signed a node's newest certificate, for [`rotation`]. A Node that is not there yet needs no note.
pub(super) async fn note(client: &Client, node: &NodeName, authority: &Authority) -> Result<(), Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let noted = json!({ "metadata": { "annotations": { AUTHORITY_ANNOTATION: fingerprint(authority)? } } });
    match nodes.patch_metadata(node.as_str(), &PatchParams::default(), &Patch::Merge(&noted)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        noted => noted.map(drop).map_err(|error| api("note at a Node the authority of", AUTHORITY, error)),
    }
}

fn fingerprint(authority: &Authority) -> Result<String, Error> {
    let hash = ring::digest::digest(&ring::digest::SHA256, &authority.certificate_der()?);
    Ok(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
