//! What plugins answer, made into what a container gets. Pure.

use std::path::{Component, Path, PathBuf};

use kubeedge_core::{
    device_plugin::proto,
    runtime::{Device, Mount},
};

use super::{Grant, Limits};

/// What a container gets with its devices.
///
/// # Errors
/// What is wrong with the answer, and where.
pub(super) fn grant(answer: proto::ContainerAllocateResponse, limits: &Limits) -> Result<Grant, String> {
    let entries = [
        answer.envs.len(),
        answer.mounts.len(),
        answer.devices.len(),
        answer.annotations.len(),
        answer.cdi_devices.len(),
    ];
    let entries: usize = entries.iter().sum();
    if entries > limits.grant_entries {
        return Err(format!("it has {entries} entries, and {} may be", limits.grant_entries));
    }
    let wrong_name = |name: &&String| name.is_empty() || name.contains(['=', '\0']);
    if let Some(name) = answer.envs.keys().find(wrong_name) {
        return Err(format!("envs: {name:?} cannot be the name of a variable"));
    }
    let mounts = answer.mounts.into_iter().map(|mount| {
        Ok(Mount {
            container_path: path("mounts.container_path", mount.container_path)?,
            host_path: path("mounts.host_path", mount.host_path)?,
            read_only: mount.read_only,
            ..Mount::default()
        })
    });
    let devices = answer.devices.into_iter().map(|device| {
        let permissions = device.permissions;
        if permissions.is_empty() || !permissions.chars().all(|c| "rwm".contains(c)) {
            return Err(format!("devices.permissions: {permissions:?} are not some of r, w and m"));
        }
        let container_path = path("devices.container_path", device.container_path)?;
        Ok(Device { container_path, host_path: path("devices.host_path", device.host_path)?, permissions })
    });
    Ok(Grant {
        mounts: mounts.collect::<Result<_, String>>()?,
        devices: devices.collect::<Result<_, String>>()?,
        env: answer.envs,
        annotations: answer.annotations,
        cdi_devices: answer.cdi_devices.into_iter().map(|device| device.name).collect(),
    })
}

/// An absolute path without ways back.
fn path(field: &str, text: String) -> Result<PathBuf, String> {
    let path = Path::new(&text);
    let straight = path.is_absolute() && path.components().all(|part| part != Component::ParentDir);
    if straight && !text.contains('\0') {
        Ok(text.into())
    } else {
        Err(format!("{field}: {text:?} is not an absolute path"))
    }
}
