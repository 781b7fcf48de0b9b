//! Performs one action on the runtime and the disk.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use futures::future::join_all;
use kubeedge_core::runtime::{
    ContainerConfig, ContainerId, ContainerRuntime, Credentials, RuntimeError, SandboxId,
};
use tracing::{info, warn};

use super::{
    action::{Action, Failure, Outcome, PullPolicy},
    files,
};

/// The adapters have deadlines of their own; this one is for an adapter that forgot.
const DEADLINE: Duration = Duration::from_secs(300);

/// A large image over a slow link takes its time; the kubelet gives it no limit at all.
const PULL_DEADLINE: Duration = Duration::from_secs(3600);

/// Performs the action. It never fails silently: what went wrong is in the outcome.
pub(crate) async fn perform(runtime: Arc<dyn ContainerRuntime>, action: Action) -> Outcome {
    let deadline = match &action {
        Action::Pull { .. } => PULL_DEADLINE,
        Action::Kill { grace, .. } | Action::Stop { grace, .. } => *grace + DEADLINE,
        Action::Prepare(_)
        | Action::RunSandbox(_)
        | Action::Start { .. }
        | Action::StartCreated { .. }
        | Action::RemoveContainer { .. }
        | Action::StopSandbox(_)
        | Action::RemoveSandbox(_)
        | Action::RemoveFiles { .. } => DEADLINE,
    };
    match tokio::time::timeout(deadline, act(runtime.as_ref(), action)).await {
        Ok(Ok(())) => Outcome::Done,
        Ok(Err(failure)) => {
            warn!(reason = failure.reason, message = %failure.message, "a step of a pod failed");
            Outcome::Failed(failure)
        }
        Err(_) => {
            let message = format!("the runtime did not answer within {deadline:?}");
            Outcome::Failed(Failure { reason: "DeadlineExceeded", message })
        }
    }
}

async fn act(runtime: &dyn ContainerRuntime, action: Action) -> Result<(), Failure> {
    match action {
        Action::Prepare(prepare) => {
            blocking(move || files::prepare(&prepare)).await.map_err(|error| failure("FailedMount", &error))
        }
        Action::RunSandbox(config) => {
            let outcome = runtime.run_sandbox(&config).await;
            outcome.map(drop).map_err(|error| failure("FailedCreatePodSandBox", &error))
        }
        Action::Pull { image, policy, credentials, .. } => pull(runtime, &image, policy, credentials).await,
        Action::Start { sandbox, config, sub_paths } => start(runtime, &sandbox, *config, sub_paths).await,
        Action::StartCreated { id, .. } => {
            runtime.start_container(&id).await.map_err(|error| failure("RunContainerError", &error))
        }
        Action::Stop { id, grace } => plain(runtime.stop_container(&id, grace).await),
        Action::RemoveContainer { id, log } => {
            plain(runtime.remove_container(&id).await)?;
            let Some(log) = log else { return Ok(()) };
            // A log that stays costs space and nothing else.
            let _ = blocking(move || std::fs::remove_file(log)).await;
            Ok(())
        }
        Action::StopSandbox(id) => plain(runtime.stop_sandbox(&id).await),
        Action::RemoveSandbox(id) => plain(remove(runtime, &id).await),
        Action::Kill { sandboxes, grace } => kill(runtime, &sandboxes, grace).await,
        Action::RemoveFiles { directories } => blocking(move || files::remove(&directories))
            .await
            .map_err(|error| failure("FailedRemove", &error)),
    }
}

async fn pull(
    runtime: &dyn ContainerRuntime,
    image: &str,
    policy: PullPolicy,
    credentials: Option<Credentials>,
) -> Result<(), Failure> {
    let failed = |error: RuntimeError| failure("ErrImagePull", &error);
    let here = runtime.image(image).await.map_err(failed)?.is_some();
    match (policy, here) {
        (PullPolicy::IfNotPresent | PullPolicy::Never, true) => return Ok(()),
        (PullPolicy::Never, false) => {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            return Err(Failure { reason: "ErrImageNeverPull", message });
        }
        (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, false) => {}
    }
    match runtime.pull(image, credentials.as_ref()).await {
        Ok(id) => {
            info!(image, %id, "image pulled");
            Ok(())
        }
        // A node without a link goes on as it was: what it has is better than nothing.
        Err(error @ (RuntimeError::Unavailable { .. } | RuntimeError::RegistryUnavailable { .. }))
            if here =>
        {
            warn!(image, %error, "the registry cannot be reached; the image that is here is used");
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

async fn start(
    runtime: &dyn ContainerRuntime,
    sandbox: &SandboxId,
    mut config: ContainerConfig,
    sub_paths: BTreeMap<usize, String>,
) -> Result<(), Failure> {
    for (index, sub_path) in sub_paths {
        let Some(mount) = config.mounts.get_mut(index) else { continue };
        let volume = mount.host_path.clone();
        mount.host_path = blocking(move || files::sub_path(&volume, &sub_path))
            .await
            .map_err(|error| failure("CreateContainerConfigError", &error))?;
    }
    let created = runtime.create_container(sandbox, &config).await;
    let id = created.map_err(|error| failure("CreateContainerError", &error))?;
    runtime.start_container(&id).await.map_err(|error| failure("RunContainerError", &error))
}

async fn kill(
    runtime: &dyn ContainerRuntime,
    sandboxes: &[(SandboxId, Vec<ContainerId>)],
    grace: Duration,
) -> Result<(), Failure> {
    let containers = sandboxes.iter().flat_map(|(_, containers)| containers);
    let stops = join_all(containers.map(|id| runtime.stop_container(id, grace))).await;
    for stop in stops {
        plain(stop)?;
    }
    for (sandbox, _) in sandboxes {
        plain(remove(runtime, sandbox).await)?;
    }
    Ok(())
}

async fn remove(runtime: &dyn ContainerRuntime, sandbox: &SandboxId) -> Result<(), RuntimeError> {
    runtime.stop_sandbox(sandbox).await?;
    runtime.remove_sandbox(sandbox).await
}

fn plain(outcome: Result<(), RuntimeError>) -> Result<(), Failure> {
    outcome.map_err(|error| failure("RuntimeError", &error))
}

fn failure(reason: &'static str, error: &dyn std::error::Error) -> Failure {
    Failure { reason, message: error.to_string() }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
