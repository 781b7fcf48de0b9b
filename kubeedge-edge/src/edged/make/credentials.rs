//! With which credentials a pod's images are fetched. Pure.

use std::collections::BTreeMap;

use kubeedge_core::{message::ObjectRef, runtime::Credentials};
use serde::Deserialize;

use crate::edged::{
    pod::Pod,
    resolve::{self, Facts},
};

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

/// The credentials for an image from the pod's pull Secrets, the first that names its registry.
pub(crate) fn credentials(pod: &Pod, image: &str, facts: &Facts<'_>) -> Option<Credentials> {
    let registry = registry_of(image);
    pod.spec.image_pull_secrets.iter().find_map(|secret| {
        let reference = ObjectRef::secret(pod.reference.namespace(), &secret.name);
        let data = resolve::data_of(&reference, facts).ok()??;
        let config: DockerConfig = serde_json::from_slice(data.get(".dockerconfigjson")?).ok()?;
        let (_, found) = config.auths.into_iter().find(|(server, _)| {
            let server = server.trim_start_matches("https://").trim_start_matches("http://");
            let host = server.split('/').next().unwrap_or(server);
            host == registry || (registry == "docker.io" && host == "index.docker.io")
        })?;
        if found.username.is_empty() {
            let pair = String::from_utf8(resolve::base64(&found.auth)?).ok()?;
            let (username, password) = pair.split_once(':')?;
            return Some(Credentials {
                username: username.to_owned(),
                password: password.to_owned(),
                ..Credentials::default()
            });
        }
        Some(Credentials { username: found.username, password: found.password, ..Credentials::default() })
    })
}

/// The registry of an image: its first part if that looks like a host, else Docker's.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        Some(_) | None => "docker.io",
    }
}
