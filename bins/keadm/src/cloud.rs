//! What is done in the cloud, through its API.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use kubeedge_cloud::enrollment::{self, Step};

/// Where KubeEdge keeps its Secrets.
const NAMESPACE: &str = "kubeedge";

#[derive(Debug, Args)]
pub(crate) struct Api {
    /// How the API is reached.
    #[arg(long, value_name = "FILE", default_value = "/root/.kube/config", env = "KUBECONFIG")]
    kube_config: PathBuf,
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
    api: Api,
}

impl GetToken {
    pub(crate) async fn run(&self) -> Result<()> {
        let token = enrollment::join_token(&self.api.client().await?, NAMESPACE).await?.context(
            "there is no Secret tokensecret in namespace kubeedge: cloudcore makes it, has it started?",
        )?;
        crate::say(token.expose());
        Ok(())
    }
}

/// Lets one certificate authority follow another. Wait a day after `introduce`, so that all nodes have heard of the
/// next one, and until all nodes have renewed after `switch`.
#[derive(Debug, Args)]
pub(crate) struct RotateCa {
    /// The step.
    step: Next,
    #[command(flatten)]
    api: Api,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Next {
    /// Makes the next authority, which everybody trusts beside the one that signs.
    Introduce,
    /// Lets it sign.
    Switch,
    /// Ends the trust in the one before.
    Retire,
}

impl RotateCa {
    pub(crate) async fn run(&self) -> Result<()> {
        let (step, done) = match self.step {
            Next::Introduce => {
                (Step::Introduce, "the next authority is trusted; `keadm rotate-ca switch` in a day or later")
            }
            Next::Switch => {
                (Step::Switch, "it signs from here on; `keadm rotate-ca retire` when all nodes have renewed")
            }
            Next::Retire => (Step::Retire, "the one before is not trusted any more"),
        };
        enrollment::rotate(&self.api.client().await?, NAMESPACE, step).await?;
        crate::say(done);
        Ok(())
    }
}
