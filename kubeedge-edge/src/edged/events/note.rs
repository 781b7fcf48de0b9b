//! What is recorded, in the kubelet's words.

use std::{borrow::Cow, time::Duration};

use crate::edged::{action::Failure, text};

/// Whether somebody should look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something that has happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) kind: Kind,
    pub(crate) reason: Cow<'static, str>,
    pub(crate) message: String,
    /// Such as `spec.containers{app}`; empty for the whole pod.
    pub(crate) field_path: String,
}

impl Note {
    pub(crate) fn of_pod(
        kind: Kind,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, reason: reason.into(), message: message.into(), field_path: String::new() }
    }

    pub(crate) fn of_container(
        kind: Kind,
        name: &str,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        let field_path = format!("spec.containers{{{name}}}");
        Self { kind, reason: reason.into(), message: message.into(), field_path }
    }

    /// Says that the container is one of the pod's `initContainers`.
    pub(crate) fn into_init(mut self) -> Self {
        if let Some(rest) = self.field_path.strip_prefix("spec.containers") {
            self.field_path = format!("spec.initContainers{rest}");
        }
        self
    }

    /// The name of the container that it is about; empty for the whole pod.
    pub(crate) fn container(&self) -> &str {
        self.field_path.split(['{', '}']).nth(1).unwrap_or_default()
    }

    pub(crate) fn pulling(name: &str, image: &str) -> Self {
        Self::of_container(Kind::Normal, name, "Pulling", format!("Pulling image \"{image}\""))
    }

    pub(crate) fn present(name: &str, image: &str) -> Self {
        let message = format!("Container image \"{image}\" already present on machine");
        Self::of_container(Kind::Normal, name, "Pulled", message)
    }

    pub(crate) fn pulled(name: &str, image: &str, took: Duration) -> Self {
        let took = text::duration(took);
        let message = format!("Successfully pulled image \"{image}\" in {took} ({took} including waiting)");
        Self::of_container(Kind::Normal, name, "Pulled", message)
    }

    pub(crate) fn created(name: &str) -> Self {
        Self::of_container(Kind::Normal, name, "Created", format!("Created container: {name}"))
    }

    pub(crate) fn started(name: &str) -> Self {
        Self::of_container(Kind::Normal, name, "Started", format!("Started container {name}"))
    }

    pub(crate) fn killing(name: &str, message: impl Into<String>) -> Self {
        Self::of_container(Kind::Normal, name, "Killing", message)
    }

    pub(crate) fn stopping(name: &str) -> Self {
        Self::killing(name, format!("Stopping container {name}"))
    }

    pub(crate) fn unhealthy(name: &str, message: impl Into<String>) -> Self {
        Self::of_container(Kind::Warning, name, "Unhealthy", message)
    }

    pub(crate) fn back_off_restarting(name: &str, pod: &str, namespace: &str, uid: &str) -> Self {
        let message = format!("Back-off restarting failed container {name} in pod {pod}_{namespace}({uid})");
        Self::of_container(Kind::Warning, name, "BackOff", message)
    }

    pub(crate) fn back_off_pulling(name: &str, image: &str) -> Self {
        Self::of_container(Kind::Normal, name, "BackOff", format!("Back-off pulling image \"{image}\""))
    }

    pub(crate) fn failed(name: &str, message: impl Into<String>) -> Self {
        Self::of_container(Kind::Warning, name, "Failed", message)
    }

    pub(crate) fn failed_mount(message: &str) -> Self {
        let message = format!("MountVolume.SetUp failed for {message}");
        Self::of_pod(Kind::Warning, "FailedMount", message)
    }

    pub(crate) fn skipped_variables(name: &str, message: String) -> Self {
        Self::of_container(Kind::Warning, name, "InvalidEnvironmentVariableNames", message)
    }

    pub(crate) fn sandbox_changed() -> Self {
        let message = "Pod sandbox changed, it will be killed and re-created.";
        Self::of_pod(Kind::Normal, "SandboxChanged", message)
    }

    pub(crate) fn pre_stop_failed(name: &str, message: &str) -> Self {
        let message = format!("PreStopHook failed: {message}");
        Self::of_container(Kind::Warning, name, "FailedPreStopHook", message)
    }

    pub(crate) fn exceeded_grace() -> Self {
        let message = "Container runtime did not kill the pod within specified grace period.";
        Self::of_pod(Kind::Warning, "ExceededGracePeriod", message)
    }

    /// What is recorded of a step that failed.
    pub(crate) fn of_failure(name: &str, image: &str, failure: &Failure) -> Vec<Self> {
        let message = &failure.message;
        match failure.reason {
            "ErrImagePull" => vec![
                Self::failed(name, format!("Failed to pull image \"{image}\": {message}")),
                Self::failed(name, "Error: ErrImagePull"),
            ],
            "ErrImageNeverPull" => vec![
                Self::of_container(Kind::Warning, name, "ErrImageNeverPull", message.clone()),
                Self::failed(name, "Error: ErrImageNeverPull"),
            ],
            "InvalidImageName" => vec![
                Self::of_container(Kind::Warning, name, "InspectFailed", message.clone()),
                Self::failed(name, "Error: InvalidImageName"),
            ],
            "PostStartHookError" => {
                let message = format!("PostStartHook failed: {message}");
                vec![Self::of_container(Kind::Warning, name, "FailedPostStartHook", message)]
            }
            "FailedMount" => vec![Self::failed_mount(message)],
            "FailedCreatePodSandBox" => {
                let message = format!("Failed to create pod sandbox: {message}");
                vec![Self::of_pod(Kind::Warning, "FailedCreatePodSandBox", message)]
            }
            "FailedCreatePodContainer" => {
                let message = format!("unable to ensure pod container exists: {message}");
                vec![Self::of_pod(Kind::Warning, "FailedCreatePodContainer", message)]
            }
            "CreateContainerError"
            | "CreateContainerConfigError"
            | "RunContainerError"
            | "ImageInspectError" => {
                vec![Self::failed(name, format!("Error: {message}"))]
            }
            _ if name.is_empty() => {
                vec![Self::of_pod(Kind::Warning, "FailedSync", message.clone())]
            }
            _ => vec![Self::of_pod(Kind::Warning, "FailedKillPod", message.clone())],
        }
    }
}
