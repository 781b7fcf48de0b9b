//! Performs one action on the runtime and the disk.

use std::{io, sync::Arc, time::Duration};

use kubeedge_core::{
    pipe::Caller,
    runtime::{
        ContainerConfig, ContainerId, ContainerRuntime, Credentials, ImageUser, RuntimeError, SandboxId,
    },
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    action::{Action, Create, Failure, Outcome, Task},
    cgroups::PodCgroup,
    devices::{Answer, Question},
    files,
    make::Before,
    probe, rotation,
    state::LEAST_GRACE,
    words,
};

/// The adapters have deadlines of their own; this one is for an adapter that forgot.
const DEADLINE: Duration = Duration::from_secs(300);

/// A large image over a slow link takes its time; the kubelet gives it no limit at all.
const PULL_DEADLINE: Duration = Duration::from_secs(3600);

/// A postStart hook may prepare much; the kubelet gives it no limit at all.
const POST_START_DEADLINE: Duration = Duration::from_secs(3600);

/// How soon a start is asked for again that was under way.
const START_AGAIN: Duration = Duration::from_millis(100);

/// Performs the action. It never fails silently: what went wrong is in the outcome.
pub(crate) async fn perform(
    runtime: Arc<dyn ContainerRuntime>,
    devices: Caller<Question, Answer>,
    action: Action,
) -> Outcome {
    let deadline = match &action {
        Action::Pull { .. } => PULL_DEADLINE,
        Action::PostStart(_) => POST_START_DEADLINE + DEADLINE,
        Action::Stop { grace, .. } => *grace + DEADLINE,
        Action::Prepare(..)
        | Action::RunSandbox(_)
        | Action::Inspect { .. }
        | Action::Create(_)
        | Action::Start(_)
        | Action::Resize(..)
        | Action::RemoveContainer { .. }
        | Action::StopSandbox(_)
        | Action::RemoveSandbox(_)
        | Action::RemoveFiles { .. } => DEADLINE,
    };
    match tokio::time::timeout(deadline, act(runtime.as_ref(), &devices, action)).await {
        Ok(Ok(outcome)) => outcome,
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

async fn act(
    runtime: &dyn ContainerRuntime,
    devices: &Caller<Question, Answer>,
    action: Action,
) -> Result<Outcome, Failure> {
    let done = match action {
        Action::Prepare(cgroup, prepare) => {
            blocking(move || cgroup.map_or(Ok(()), |cgroup| cgroup.make()))
                .await
                .map_err(|error| failure("FailedCreatePodContainer", &error))?;
            blocking(move || files::prepare(&prepare)).await.map_err(|error| failure("FailedMount", &error))
        }
        Action::RunSandbox(config) => {
            let outcome = runtime.run_sandbox(&config).await;
            outcome.map(drop).map_err(|error| failure("FailedCreatePodSandBox", &error))
        }
        Action::Inspect { image } => {
            let found = runtime.image(&image).await;
            return found
                .map(|found| Outcome::Found(found.is_some()))
                .map_err(|error| failure("ImageInspectError", &error));
        }
        Action::Pull { image, credentials } => return pull(runtime, &image, credentials).await,
        Action::Create(create) => return self::create(runtime, devices, *create).await,
        Action::Start(id) => return start(runtime, &id).await,
        Action::Resize(id, resources, cgroup) => {
            let resized = runtime.update_container(&id, &resources).await;
            limit(cgroup).await;
            resized.map_err(|error| failure("ResizeError", &error))
        }
        Action::PostStart(task) => probe::hook(runtime, task, POST_START_DEADLINE)
            .await
            .map_err(|message| Failure { reason: "PostStartHookError", message }),
        Action::Stop { id, grace, pre_stop } => return stop(runtime, &id, grace, pre_stop).await,
        Action::RemoveContainer { id, files } => {
            plain(runtime.remove_container(&id).await)?;
            // A file that stays costs space and nothing else.
            let _ = blocking(move || {
                files.iter().for_each(|file| rotation::remove(file));
                Ok(())
            })
            .await;
            Ok(())
        }
        Action::StopSandbox(id) => plain(runtime.stop_sandbox(&id).await),
        Action::RemoveSandbox(id) => plain(remove(runtime, &id).await),
        Action::RemoveFiles { paths } => {
            blocking(move || files::remove(&paths)).await.map_err(|error| failure("FailedRemove", &error))
        }
    };
    done.map(|()| Outcome::Done)
}

async fn pull(
    runtime: &dyn ContainerRuntime,
    image: &str,
    credentials: Option<Credentials>,
) -> Result<Outcome, Failure> {
    let began = Instant::now();
    match runtime.pull(image, credentials.as_ref()).await {
        Ok(id) => {
            info!(image, %id, "image pulled");
            Ok(Outcome::Pulled(began.elapsed()))
        }
        Err(error) => {
            let failed = failure("ErrImagePull", &error);
            // A node without a link goes on as it was: what it has is better than nothing.
            let away =
                matches!(error, RuntimeError::Unavailable { .. } | RuntimeError::RegistryUnavailable { .. });
            if away && runtime.image(image).await.is_ok_and(|found| found.is_some()) {
                warn!(image, %error, "the registry cannot be reached; the image that is here is used");
                return Ok(Outcome::Found(true));
            }
            Err(failed)
        }
    }
}

async fn create(
    runtime: &dyn ContainerRuntime,
    devices: &Caller<Question, Answer>,
    create: Create,
) -> Result<Outcome, Failure> {
    let Create { sandbox, mut config, before, last_words, devices: question, cgroup } = create;
    if before.must_not_be_root {
        check_user(runtime, &config).await?;
    }
    make_before(&mut config, before).await.map_err(|error| failure("CreateContainerConfigError", &error))?;
    if let Some(path) = last_words {
        blocking(move || words::make(&path))
            .await
            .map_err(|error| failure("CreateContainerConfigError", &error))?;
    }
    if let Some(question) = question {
        let answer = devices.call(question, DEADLINE).await.unwrap_or_else(|error| Err(error.to_string()));
        let grant = answer.map_err(|message| Failure { reason: "CreateContainerConfigError", message })?;
        grant.give(&mut config);
    }
    let created = runtime.create_container(&sandbox, &config).await;
    limit(cgroup).await;
    created.map(Outcome::Created).map_err(|error| failure("CreateContainerError", &error))
}

/// Makes the limits of the pod as a whole what they should be, after those of one of its containers.
async fn limit(cgroup: Option<PodCgroup>) {
    if let Some(cgroup) = cgroup {
        let _ = blocking(move || {
            cgroup.limit();
            Ok(())
        })
        .await;
    }
}

/// Makes on the node what the container is to see.
async fn make_before(config: &mut ContainerConfig, before: Before) -> io::Result<()> {
    if let Some((path, text)) = before.hosts {
        blocking(move || files::write_in_place(&path, &text, 0o644)).await?;
    }
    for (index, part) in before.parts {
        let Some(mount) = config.mounts.get_mut(index) else { continue };
        let volume = mount.host_path.clone();
        mount.host_path = blocking(move || files::hold(&volume, &part.path, &part.place)).await?;
    }
    Ok(())
}

/// Asks the image as whom it runs, for a container that must not be the superuser.
async fn check_user(runtime: &dyn ContainerRuntime, config: &ContainerConfig) -> Result<(), Failure> {
    let reason = "CreateContainerConfigError";
    let image = runtime.image(&config.image).await.map_err(|error| failure(reason, &error))?;
    let why = match image.and_then(|image| image.user) {
        Some(ImageUser::Uid(id)) if id != 0 => return Ok(()),
        Some(ImageUser::Name(name)) if name != "root" => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        ),
        _ => "container has runAsNonRoot and image will run as root".to_owned(),
    };
    Err(Failure { reason, message: format!("{why} (container: {})", config.name) })
}

/// Starts a container. A start that an earlier process had begun is waited for: what came of it is observed.
async fn start(runtime: &dyn ContainerRuntime, id: &ContainerId) -> Result<Outcome, Failure> {
    let mut under_way = false;
    loop {
        match runtime.start_container(id).await {
            Err(RuntimeError::UnderWay { .. }) => under_way = true,
            Err(_) if under_way => return Ok(Outcome::Aborted),
            Err(error) => return Err(failure("RunContainerError", &error)),
            Ok(()) => return Ok(Outcome::Done),
        }
        tokio::time::sleep(START_AGAIN).await;
    }
}

async fn stop(
    runtime: &dyn ContainerRuntime,
    id: &ContainerId,
    grace: Duration,
    pre_stop: Option<Task>,
) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let mut failed = None;
    if let Some(task) = pre_stop {
        failed = match tokio::time::timeout(grace, probe::hook(runtime, task, grace)).await {
            Ok(ended) => ended.err(),
            Err(_) => Some("the grace period ended before the hook did".to_owned()),
        };
    }
    let left = grace.saturating_sub(began.elapsed()).max(LEAST_GRACE);
    runtime.stop_container(id, left).await.map_err(|error| failure("FailedKillPod", &error))?;
    // A runtime kills what is left after the grace; that it took much longer is worth knowing.
    let overdue = began.elapsed() > grace.max(LEAST_GRACE) + Duration::from_secs(10);
    Ok(Outcome::Stopped { hook: failed, overdue })
}

async fn remove(runtime: &dyn ContainerRuntime, id: &SandboxId) -> Result<(), RuntimeError> {
    runtime.stop_sandbox(id).await?;
    runtime.remove_sandbox(id).await
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
