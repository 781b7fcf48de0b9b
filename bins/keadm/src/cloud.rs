//! What is done in the cloud, through its API.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use kubeedge_cloud::enrollment::{self, Rotation, Step};

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
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }
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
        let token = enrollment::join_token(&api.client().await?, namespace).await?.with_context(|| {
            format!(
                "there is no Secret tokensecret in namespace {namespace}: cloudcore makes it, has it started?"
            )
        })?;
        crate::say(token.expose());
        Ok(())
    }
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
        let (step, done) = match self.step {
            Next::Introduce => {
                (Step::Introduce, "the next authority is trusted; `keadm rotate-ca switch` in a day or later")
            }
            Next::Switch => (
                Step::Switch,
                "it signs from here on; `keadm rotate-ca retire` when `status` says that all have renewed",
            ),
            Next::Retire => {
                let standing = enrollment::rotation(&client, namespace).await?;
                ensure!(
                    self.force || standing.is_introduced || standing.behind.is_empty(),
                    "{}; these would have to join again: wait for them, delete the Nodes that are gone, or use --force",
                    behind(&standing.behind)
                );
                (Step::Retire, "the one before is not trusted any more")
            }
            Next::Status => {
                say_standing(&enrollment::rotation(&client, namespace).await?);
                return Ok(());
            }
        };
        enrollment::rotate(&client, namespace, step).await?;
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

    #[test]
    fn so_many_nodes_are_named_as_people_read() {
        let nodes: Vec<_> = (0..1000).map(|at| format!("edge-{at}")).collect();
        assert!(behind(&[]).starts_with("all nodes"));
        assert_eq!(behind(&nodes[..2]), "2 nodes are not known to have renewed: edge-0, edge-1");
        assert!(behind(&nodes).starts_with("1000 nodes") && behind(&nodes).len() < 200);
    }
}
