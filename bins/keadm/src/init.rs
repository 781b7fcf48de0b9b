//! `keadm init`: brings cloudcore into a cluster, or prints what that takes.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::ConfigMap,
};
use kube::{
    Client,
    api::{Api as KubeApi, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use kubeedge_cloud::manifests::{self, Options, StreamAuthority};
use serde_json::Value;

use crate::{
    cloud::{self, Api},
    failed, say,
};

/// Brings cloudcore into a cluster: KubeEdge's kinds, its rights, its Deployment and its Service. Can be repeated.
#[derive(Debug, Args)]
pub(crate) struct Init {
    #[command(flatten)]
    what: Manifest,
    #[command(flatten)]
    api: Api,
    /// Print what would be applied, and change nothing.
    #[arg(short = 'd', long)]
    dry_run: bool,
    /// Take over what somebody else has set, and pass over failed checks.
    #[arg(long)]
    force: bool,
    /// Do not look first whether everything may be created.
    #[arg(long)]
    skip_preflight_checks: bool,
}

/// Prints what `keadm init` applies, as YAML.
#[derive(Debug, Args)]
pub(crate) struct Manifest {
    /// The addresses at which nodes reach the cloud, with commas between them; they go into its certificate.
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    advertise_address: Vec<String>,
    /// The image of cloudcore; without it, that of --image-repository and --kubeedge-version.
    #[arg(long)]
    image: Option<String>,
    /// What stands in place of `kubeedge` in the image's name.
    #[arg(long, default_value = "kubeedge")]
    image_repository: String,
    /// The image's tag.
    #[arg(long, default_value = concat!("v", env!("CARGO_PKG_VERSION")))]
    kubeedge_version: String,
    /// How many replicas run.
    #[arg(long, default_value_t = 1)]
    replicas: u32,
    /// How many nodes one replica takes; in a file of --config it is modules.cloudHub.nodeLimit.
    #[arg(long, value_name = "NODES", default_value_t = 500, conflicts_with = "config")]
    node_limit: u32,
    /// Let cloudcore check KubeEdge's kinds before the API server takes them. A cloudcore.yaml of --config has to switch it
    /// on too: kubeedgeRs.admission.
    #[arg(long)]
    admission: bool,
    /// Who signs the certificates that API servers show when they ask for the logs of a node's pods, PEM. Without it `init`
    /// takes what the cluster says of it, and else the cluster's own authority, as kubeadm has it.
    #[arg(long, value_name = "FILE")]
    stream_ca: Option<PathBuf>,
    /// A file that is to be cloudcore.yaml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave out the definitions of kinds.
    #[arg(long)]
    skip_crds: bool,
}

impl Manifest {
    pub(crate) fn run(&self) -> Result<()> {
        say(manifests::yaml(&self.objects(self.given_authority()?)?).trim_end());
        Ok(())
    }

    fn given_authority(&self) -> Result<Option<String>> {
        let Some(file) = &self.stream_ca else { return Ok(None) };
        let shown = || format!("--stream-ca {}", file.display());
        let pem = std::fs::read_to_string(file).with_context(shown)?;
        ensure!(pem.contains("BEGIN CERTIFICATE"), "{}: there is no certificate in PEM in it", shown());
        Ok(Some(pem))
    }

    /// `authority` signs the certificates of API servers; the cluster's own does if it is `None`.
    fn objects(&self, authority: Option<String>) -> Result<Vec<Value>> {
        for address in &self.advertise_address {
            let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b':');
            ensure!(
                !address.is_empty() && address.bytes().all(inside),
                "--advertise-address: {address:?} is no address"
            );
        }
        let image = self
            .image
            .clone()
            .unwrap_or_else(|| format!("{}/cloudcore:{}", self.image_repository, self.kubeedge_version));
        let config = match &self.config {
            Some(file) => {
                std::fs::read_to_string(file).with_context(|| format!("--config {}", file.display()))?
            }
            None => String::new(),
        };
        let options = Options {
            image,
            config,
            replicas: self.replicas,
            node_limit: self.node_limit,
            admission: self.admission,
            stream: Some(authority.map_or(StreamAuthority::Cluster, StreamAuthority::Pem)),
            advertise_addresses: self.advertise_address.clone(),
            ..Options::default()
        };
        let mut objects = manifests::all(&options);
        if self.skip_crds {
            objects.retain(|object| object["kind"] != "CustomResourceDefinition");
        }
        Ok(objects)
    }
}

impl Init {
    pub(crate) async fn run(&self) -> Result<()> {
        if self.dry_run {
            return self.what.run();
        }
        let given = self.what.given_authority()?;
        ensure!(
            !self.what.advertise_address.is_empty() || self.what.config.is_some(),
            "--advertise-address is missing: without it the cloud's certificate has no name that nodes could dial"
        );
        let client = self.api.client().await?;
        if !self.skip_preflight_checks && !self.force {
            preflight(&client).await?;
        }
        let authority = match given {
            Some(pem) => Some(pem),
            None => authority_of_clients(&client).await,
        };
        for object in self.what.objects(authority)? {
            let name = apply(&client, object, self.force).await?;
            say(format_args!("applied {name}"));
        }
        say("cloudcore starts; `kubectl -n kubeedge rollout status deployment/cloudcore` waits for it,");
        say("and `keadm gettoken` prints what nodes join with");
        Ok(())
    }
}

/// Looks whether the API answers, and whether everything may be created, before the first thing is.
async fn preflight(client: &Client) -> Result<()> {
    let version = client.apiserver_version().await.map_err(|error| {
        let fix = "look at --kube-config, and whether `kubectl version` works with it";
        cloud::refused("check cluster", "get /version", &error, fix)
    })?;
    let reviews: KubeApi<SelfSubjectAccessReview> = KubeApi::all(client.clone());
    let mut missing = Vec::new();
    for (group, resource) in [
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        ("", "namespaces"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
        ("apps", "deployments"),
    ] {
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some("create".to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await.map_err(|error| {
            let step = format!("check rights: whether the user of --kube-config may create {resource}");
            let fix =
                "take a cluster administrator's file, or pass over the checks by --skip-preflight-checks";
            cloud::refused(&step, "create selfsubjectaccessreviews", &error, fix)
        })?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(resource);
        }
    }
    if !missing.is_empty() {
        bail!(
            "check rights: the user of --kube-config may not create {}; take a cluster administrator's file",
            missing.join(", ")
        );
    }
    say(format_args!(
        "the cluster has Kubernetes {}.{}, and everything may be created",
        version.major, version.minor
    ));
    Ok(())
}

/// Who signs the certificates of the cluster's clients, among which is the API server that asks a kubelet; `None` if that is
/// the cluster's own authority, or if the cluster does not say.
async fn authority_of_clients(client: &Client) -> Option<String> {
    let maps: KubeApi<ConfigMap> = KubeApi::namespaced(client.clone(), "kube-system");
    let read = async |name: &str, key: &str| maps.get(name).await.ok()?.data?.remove(key);
    let clients = read("extension-apiserver-authentication", "client-ca-file").await?;
    let own = read("kube-root-ca.crt", "ca.crt").await;
    (own.as_deref().map(str::trim) != Some(clients.trim())).then_some(clients)
}

async fn apply(client: &Client, object: Value, force: bool) -> Result<String> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let types = object.types.clone().context("every manifest has a kind")?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
    let name = object.metadata.name.clone().context("every manifest has a name")?;
    let api: KubeApi<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => KubeApi::namespaced_with(client.clone(), namespace, &kind),
        None => KubeApi::all_with(client.clone(), &kind),
    };
    let mut params = PatchParams::apply("keadm");
    params.force = force;
    let shown = format!("{}/{name}", kind.plural);
    api.patch(&name, &params, &Patch::Apply(&object))
        .await
        .map_err(|error| not_applied(&kind, &shown, object.metadata.namespace.as_deref(), &error, force))?;
    Ok(shown)
}

/// Why an object was not taken. That somebody else has set what is to be set is one reason of many.
fn not_applied(
    kind: &ApiResource,
    shown: &str,
    namespace: Option<&str>,
    error: &kube::Error,
    force: bool,
) -> anyhow::Error {
    let step = format!("apply {shown}");
    if let kube::Error::Api(status) = error
        && status.code == 409
    {
        let said = &status.message;
        if force {
            let fix = "run `keadm init` again with the same flags";
            return failed(&step, format_args!("it was changed at the same moment: {said}"), fix);
        }
        let fix = "--force takes it over";
        return failed(&step, format_args!("somebody else has set what is to be set: {said}"), fix);
    }
    let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
    let place = namespace.map_or_else(String::new, |namespace| format!(" in the namespace {namespace}"));
    let right = format!("create and patch {}{group}{place}", kind.plural);
    let fix = "mend what it names, and run `keadm init` again: what is applied already is left as it is";
    cloud::refused(&step, &right, error, fix)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        what: Manifest,
    }

    #[test]
    fn an_object_that_is_not_taken_has_a_fix_for_each_reason_and_force_for_a_conflict_alone() {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment"));
        let told = |code, force| {
            let status = kube::core::Status::failure("what it says", "Reason").with_code(code);
            let error = kube::Error::Api(status.boxed());
            not_applied(&kind, "deployments/cloudcore", Some("kubeedge"), &error, force).to_string()
        };
        assert_eq!(
            told(409, false),
            "apply deployments/cloudcore: somebody else has set what is to be set: what it says; fix: --force takes it over"
        );
        let again = told(409, true);
        assert!(again.contains("at the same moment") && !again.contains("--force"), "{again}");
        let forbidden = told(403, false);
        assert!(
            forbidden.contains(
                "what it says; fix: this takes the right to create and patch deployments.apps in the"
            ) && forbidden.contains("namespace kubeedge; give a cluster administrator's file"),
            "{forbidden}"
        );
        for code in [400, 404, 422, 500] {
            let told = told(code, false);
            assert!(told.contains(&format!("the API answers {code}: what it says; fix: mend")), "{told}");
            assert!(!told.contains("--force"), "{told}");
        }
    }

    #[test]
    fn what_is_printed_has_the_kinds_the_rights_and_cloudcore() {
        let words = ["keadm", "--advertise-address", "192.0.2.1,cloud.example", "--kubeedge-version", "v9"];
        let objects = Line::parse_from(words).what.objects(None).unwrap();
        let kinds: Vec<_> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
        for kind in ["CustomResourceDefinition", "ClusterRole", "ServiceAccount", "Deployment", "Service"] {
            assert!(kinds.contains(&kind), "{kind} is missing in {kinds:?}");
        }
        let text = manifests::yaml(&objects);
        assert!(text.contains("kubeedge/cloudcore:v9") && text.contains("cloud.example"));
        let words = ["keadm", "--node-limit", "2000"];
        let text = manifests::yaml(&Line::parse_from(words).what.objects(None).unwrap());
        assert!(text.contains("nodeLimit: 2000"));
        let words = ["keadm", "--skip-crds", "--image", "own/cloudcore:1"];
        let text = manifests::yaml(&Line::parse_from(words).what.objects(None).unwrap());
        assert!(text.contains("own/cloudcore:1") && !text.contains("CustomResourceDefinition"));
        let evil = Line::parse_from(["keadm", "--advertise-address", "a\nb: c"]).what.objects(None);
        assert!(evil.is_err(), "an address is an address");
    }
}
