//! A Kubernetes API for parts of the cloud that run in a test's own process: the standalone one in memory, or a
//! cluster's.

use anyhow::Result;
use kube::{Client, Config, config::Kubeconfig};
use kubeedge_cloud::standalone::{self, ApiServer};

use crate::{binaries, site::cluster};

/// An API without edge nodes, and without what an earlier test left.
#[derive(Clone)]
pub struct Api {
    cloud: Client,
    admin: Client,
}

impl Api {
    /// Opens it.
    ///
    /// # Errors
    /// If a cluster cannot be prepared.
    pub async fn start() -> Result<Self> {
        let Some(admin) = cluster::admin() else {
            let client = ApiServer::open(None, standalone::Config::default()).await?.client();
            return Ok(Self { cloud: client.clone(), admin: client });
        };
        let folder = tempfile::tempdir()?;
        let account = folder.path().join("cloudcore.kubeconfig");
        let file = account.clone();
        let of_admin = admin.clone();
        tokio::task::spawn_blocking(move || {
            cluster::prepare(&of_admin, &binaries().folder.join("cloudcore"), &file)
        })
        .await??;
        Ok(Self { cloud: client(&account).await?, admin: client(&admin).await? })
    }

    /// What the cloud's parts have: on a cluster, the rights of cloudcore's account.
    pub fn client(&self) -> Client {
        self.cloud.clone()
    }

    /// What an administrator has.
    pub fn admin(&self) -> Client {
        self.admin.clone()
    }
}

/// A client by a kubeconfig.
///
/// # Errors
/// If it is not usable.
pub async fn client(kubeconfig: &std::path::Path) -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config =
        Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &Default::default()).await?;
    Ok(Client::try_from(config)?)
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}
