//! Steps as text, and how those are called that fail.

use super::super::*;
use crate::edged::action::{Action, Slot};

pub(super) fn reason(action: &Action) -> &'static str {
    match action {
        Action::Prepare(..) => "FailedMount",
        Action::RunSandbox(_) => "FailedCreatePodSandBox",
        Action::Inspect { .. } => "ImageInspectError",
        Action::Pull { .. } => "ErrImagePull",
        Action::Create(_) => "CreateContainerError",
        Action::Start(_) => "RunContainerError",
        Action::PostStart(_) => "PostStartHookError",
        Action::Resize(..) => "ResizeError",
        Action::Stop { .. } => "FailedKillPod",
        Action::RemoveContainer { .. }
        | Action::StopSandbox(_)
        | Action::RemoveSandbox(_)
        | Action::RemoveFiles { .. } => "RuntimeError",
    }
}

pub(super) fn text(uid: &Uid, slot: &Slot, action: &Action) -> String {
    let name = slot.name();
    match action {
        Action::Prepare(..) => format!("prepare {uid}"),
        Action::RunSandbox(config) => format!("run {uid}#{}", config.attempt),
        Action::Inspect { .. } => format!("inspect {uid}/{name}"),
        Action::Pull { .. } => format!("pull {uid}/{name}"),
        Action::Create(create) => {
            let devices = if create.devices.is_some() { " with devices" } else { "" };
            format!("create {uid}/{name}#{}{devices}", create.config.attempt)
        }
        Action::Start(_) => format!("start {uid}/{name}"),
        Action::Resize(_, to, _) => {
            format!("resize {uid}/{name} {} {}Mi", to.cpu_shares, to.memory_limit >> 20)
        }
        Action::PostStart(_) => format!("postStart {uid}/{name}"),
        Action::Stop { grace, pre_stop, .. } => {
            let hook = if pre_stop.is_some() { " preStop" } else { "" };
            format!("stop {uid}/{name} {}{hook}", crate::edged::text::duration(*grace))
        }
        Action::RemoveContainer { .. } => format!("removeContainer {uid}/{name}"),
        Action::StopSandbox(_) => format!("stopSandbox {uid}"),
        Action::RemoveSandbox(_) => format!("removeSandbox {uid}"),
        Action::RemoveFiles { .. } => format!("removeFiles {uid}"),
    }
}
