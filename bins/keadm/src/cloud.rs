//! What is done in the cloud, through its API.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use kubeedge_cloud::enrollment::{self, Rotation, Step};

use crate::failed;

/// Where KubeEdge keeps its Secrets.
const NAMESPACE: &str = "kubeedge";

#[derive(Debug, Args)]
pub(crate) struct Api {
    /// How the API is reached.
    #[arg(long, value_name = "FILE", default_value = "/root/.kube/config", env = "KUBECONFIG")]
    kube_config: PathBuf,
}

/// What cloudcores share.
#[derive(Debug, Args)]
struct Shared {
    #[command(flatten)]
    api: Api,
    /// The namespace of cloudcore.
    #[arg(long, default_value = NAMESPACE)]
    namespace: String,
}

impl Api {
    /// A client of the API.
    pub(crate) async fn client(&self) -> Result<Client> {
        let file = self.kube_config.display();
        let kubeconfig = Kubeconfig::read_from(&self.kube_config).with_context(|| {
            format!("--kube-config {file}: name the file with which kubectl reaches your cloud")
        })?;
        let unusable = || {
            format!(
                "--kube-config {file} cannot be used; `kubectl --kubeconfig {file} version` shows whether kubectl can"
            )
        };
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .with_context(unusable)?;
        Client::try_from(config).with_context(unusable)
    }
}

/// Says what was tried, what the API has said to it or why it has said nothing, and what to do about it. `right` is what the
/// step needs, such as `get secrets`, and `fix` what helps if it is no matter of rights.
pub(crate) fn refused(step: &str, right: &str, error: &kube::Error, fix: &str) -> anyhow::Error {
    let kube::Error::Api(status) = error else {
        let fix = "look at --kube-config, and whether `kubectl version` works with it";
        return failed(step, format_args!("the API does not answer: {}", innermost(error)), fix);
    };
    let said = &status.message;
    match status.code {
        401 => failed(
            step,
            format_args!("the API does not accept who --kube-config says you are: {said}"),
            "take a file whose certificate or token is valid",
        ),
        403 => failed(
            step,
            format_args!("the API forbids it: {said}"),
            format_args!(
                "this takes the right to {right}; give a cluster administrator's file as --kube-config"
            ),
        ),
        code => failed(step, format_args!("the API answers {code}: {said}"), fix),
    }
}

/// The reason behind all others, which names what could not be reached or read.
fn innermost(error: &kube::Error) -> String {
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    reason.to_string()
}

/// Why the Secrets of the cloud cannot be read or written.
fn of_secrets(step: &str, namespace: &str, error: enrollment::Error) -> anyhow::Error {
    if let enrollment::Error::Api { action, name, source } = &error {
        let right = format!("{action} the Secret {name} in the namespace {namespace}");
        return refused(step, &right, source, "look at what cloudcore logs, and try again");
    }
    if let enrollment::Error::Secret { name, .. } = &error
        && name == "tokensecret"
    {
        let fix = format!(
            "`kubectl -n {namespace} delete secret {name}`: cloudcore makes it anew when it is started again"
        );
        return failed(step, &error, fix);
    }
    anyhow::Error::new(error).context(step.to_owned())
}

/// Prints the token with which nodes join.
#[derive(Debug, Args)]
pub(crate) struct GetToken {
    #[command(flatten)]
    cloud: Shared,
}

impl GetToken {
    pub(crate) async fn run(&self) -> Result<()> {
        let Shared { api, namespace } = &self.cloud;
        let token = enrollment::join_token(&api.client().await?, namespace).await;
        let token = token.map_err(|error| of_secrets("gettoken", namespace, error))?;
        let token = token.ok_or_else(|| no_token(namespace))?;
        crate::say(token.expose());
        Ok(())
    }
}

fn no_token(namespace: &str) -> anyhow::Error {
    failed(
        "gettoken",
        format_args!("there is no Secret tokensecret in the namespace {namespace}"),
        format_args!(
            "cloudcore makes it when it starts: look whether it runs (`kubectl -n {namespace} get pods`), and give its \
             namespace as --namespace"
        ),
    )
}

/// Lets one certificate authority follow another. Wait a day after `introduce`, so that all nodes have heard of the
/// next one, and until all nodes have renewed after `switch`: those that are connected do so within 30 hours.
#[derive(Debug, Args)]
pub(crate) struct RotateCa {
    /// The step, or `status`.
    step: Next,
    #[command(flatten)]
    cloud: Shared,
    /// Retire the authority although nodes have certificates of it, which have to join again then.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Next {
    /// Makes the next authority, which everybody trusts beside the one that signs.
    Introduce,
    /// Lets it sign.
    Switch,
    /// Ends the trust in the one before.
    Retire,
    /// Says which authority signs, and which nodes have not renewed since. Changes nothing.
    Status,
}

/// So many names are shown.
const SHOWN: usize = 10;

impl RotateCa {
    pub(crate) async fn run(&self) -> Result<()> {
        let Shared { api, namespace } = &self.cloud;
        let client = api.client().await?;
        let wrong = |error| of_secrets("rotate-ca", namespace, error);
        let (step, done) = match self.step {
            Next::Introduce => {
                (Step::Introduce, "the next authority is trusted; `keadm rotate-ca switch` in a day or later")
            }
            Next::Switch => (
                Step::Switch,
                "it signs from here on; `keadm rotate-ca retire` when `status` says that all have renewed",
            ),
            Next::Retire => {
                let standing = enrollment::rotation(&client, namespace).await.map_err(wrong)?;
                ensure!(
                    self.force || standing.is_introduced || standing.behind.is_empty(),
                    "{}; these would have to join again: wait for them, delete the Nodes that are gone, or use --force",
                    behind(&standing.behind)
                );
                (Step::Retire, "the one before is not trusted any more")
            }
            Next::Status => {
                say_standing(&enrollment::rotation(&client, namespace).await.map_err(wrong)?);
                return Ok(());
            }
        };
        enrollment::rotate(&client, namespace, step).await.map_err(wrong)?;
        crate::say(done);
        Ok(())
    }
}

fn say_standing(standing: &Rotation) {
    crate::say(format_args!("the authority {:.16} signs, {} are trusted", standing.signer, standing.trusted));
    crate::say(match (standing.is_introduced, standing.trusted) {
        (true, _) => "the next one is introduced; `keadm rotate-ca switch` lets it sign",
        (false, 1) => "no rotation is under way; `keadm rotate-ca introduce` begins one",
        (false, _) => "`keadm rotate-ca retire` ends the trust in those before",
    });
    crate::say(behind(&standing.behind));
}

fn behind(nodes: &[String]) -> String {
    let shown = nodes.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match nodes.len() {
        0 => "all nodes have certificates of the authority that signs".to_owned(),
        all if all > SHOWN => format!("{all} nodes are not known to have renewed: {shown} and others"),
        all => format!("{all} nodes are not known to have renewed: {shown}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(kube::core::Status::failure(message, "Reason").with_code(code).boxed())
    }

    #[test]
    fn an_error_of_the_api_says_which_right_is_missing_or_what_the_api_has_said() {
        let told = |code| {
            let error = answered(code, "it says so");
            refused("apply x", "patch it", &error, "try again").to_string()
        };
        assert_eq!(
            told(403),
            "apply x: the API forbids it: it says so; fix: this takes the right to patch it; give a cluster \
             administrator's file as --kube-config"
        );
        assert!(told(401).contains("does not accept who") && told(401).contains("is valid"), "{}", told(401));
        assert_eq!(told(422), "apply x: the API answers 422: it says so; fix: try again");
        let gone = kube::Error::Service(std::io::Error::other("nobody listens").into());
        let told = refused("apply x", "patch it", &gone, "try again").to_string();
        assert!(told.starts_with("apply x: the API does not answer: nobody listens; fix: "), "{told}");
    }

    #[test]
    fn a_token_that_cannot_be_had_has_its_cause_and_its_fix() {
        let api = |code| {
            let source = Box::new(answered(code, "no"));
            enrollment::Error::Api { action: "get", name: "tokensecret".to_owned(), source }
        };
        let told = of_secrets("gettoken", "edge", api(403)).to_string();
        assert!(told.contains("the right to get the Secret tokensecret in the namespace edge"), "{told}");
        let broken =
            enrollment::Error::Secret { name: "tokensecret".to_owned(), reason: "four parts".to_owned() };
        let told = of_secrets("gettoken", "edge", broken).to_string();
        assert!(told.contains("four parts; fix: `kubectl -n edge delete secret tokensecret`"), "{told}");
        let told = format!("{:#}", of_secrets("rotate-ca", "edge", enrollment::Error::Step("not yet")));
        assert_eq!(told, "rotate-ca: not yet");
        let told = no_token("edge").to_string();
        assert!(told.contains("fix: cloudcore makes it when it starts"), "{told}");
    }

    #[test]
    fn so_many_nodes_are_named_as_people_read() {
        let nodes: Vec<_> = (0..1000).map(|at| format!("edge-{at}")).collect();
        assert!(behind(&[]).starts_with("all nodes"));
        assert_eq!(behind(&nodes[..2]), "2 nodes are not known to have renewed: edge-0, edge-1");
        assert!(behind(&nodes).starts_with("1000 nodes") && behind(&nodes).len() < 200);
    }
}
