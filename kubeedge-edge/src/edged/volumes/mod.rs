//! What the volumes of a Pod are. Pure.

mod claims;
mod objects;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use kubeedge_core::message::ObjectRef;

use super::{
    Config,
    files::Group,
    pod::{EmptyDir, Pod, Volume},
    quantity::Quantity,
    resolve::{Facts, Unresolved},
};

/// A file in a volume.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
    /// The user that it belongs to; `None` means whoever writes it.
    pub(crate) user: Option<u32>,
    /// The group, likewise.
    pub(crate) group: Option<u32>,
}

impl File {
    /// A file of nobody in particular.
    pub(crate) fn new(bytes: Vec<u8>, mode: u32) -> Self {
        Self { bytes, mode, user: None, group: None }
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The content stays out: it may be a Secret.
        write!(f, "File({} bytes, {:o})", self.bytes.len(), self.mode)
    }
}

/// The files of one volume, by path below it.
pub(crate) type Files = BTreeMap<String, File>;

/// The directories and volumes of a pod, as they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepare {
    /// The pod's own directory, with its volumes in `volumes`.
    pub(crate) directory: PathBuf,
    /// Where its logs go.
    pub(crate) logs: PathBuf,
    /// The volumes, by their names.
    pub(crate) volumes: BTreeMap<String, Made>,
    /// Whom they belong to.
    pub(crate) group: Option<Group>,
    /// Whether what should not lie on a disk is kept in memory.
    pub(crate) memory: bool,
}

/// What a volume is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Made {
    /// Files, of objects.
    Files { files: Files, in_memory: bool },
    /// Nothing, at first.
    Empty {
        /// In memory, and how many bytes of it at most if there is a limit; on the disk if absent.
        bytes: Option<Option<u64>>,
    },
    /// A path of the node, with what `hostPath.type` says of it.
    Host { path: PathBuf, kind: String },
    /// A directory of the node that is storage of its own.
    Local { path: PathBuf },
}

/// How a container sees a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// Whether no container may write to it, whatever its mount says.
    pub(crate) read_only: bool,
}

/// The objects that a Pod's volumes are made of, besides those that are found through them.
pub(crate) fn volume_references(pod: &Pod) -> BTreeSet<ObjectRef> {
    let namespace = pod.reference.namespace();
    let mut found = BTreeSet::new();
    for volume in &pod.spec.volumes {
        let projected = || volume.projected.iter().flat_map(|projected| &projected.sources);
        let maps =
            volume.config_map.iter().chain(projected().filter_map(|source| source.config_map.as_ref()));
        found.extend(maps.map(|source| ObjectRef::config_map(namespace, &source.name)));
        let names = volume.secret.iter().map(|source| &source.secret_name);
        let names =
            names.chain(projected().filter_map(|source| source.secret.as_ref()).map(|source| &source.name));
        found.extend(names.map(|name| ObjectRef::secret(namespace, name)));
        found.extend(claims::claim_of(volume, pod).map(|(reference, _)| reference));
    }
    found
}

/// Whether a change of this object may change the files of the Pod's volumes.
pub(crate) fn depend_on(pod: &Pod, reference: &ObjectRef) -> bool {
    // Which of them a claim is bound to stands in the claim, so any may be the one.
    let volume = reference.kind() == "PersistentVolume";
    (volume && pod.spec.volumes.iter().any(|volume| claims::claim_of(volume, pod).is_some()))
        || volume_references(pod).contains(reference)
}

/// All that has to be made for the volumes of `pod`.
///
/// # Errors
/// If something that they are made of is not here.
pub(crate) fn prepare(pod: &Pod, config: &Config, facts: &Facts<'_>) -> Result<Prepare, Unresolved> {
    let mut volumes = BTreeMap::new();
    for volume in &pod.spec.volumes {
        let made = made(volume, pod, facts)
            .map_err(|missing| Unresolved(format!("volume {:?} : {}", volume.name, missing.0)))?;
        volumes.insert(volume.name.clone(), made);
    }
    let security = &pod.spec.security_context;
    let only_on_mismatch = security.fs_group_change_policy == "OnRootMismatch";
    Ok(Prepare {
        directory: config.pod_directory(&pod.uid),
        logs: config.pod_logs(&pod.reference, &pod.uid),
        volumes,
        group: group_of(pod).map(|id| Group { id, only_on_mismatch }),
        memory: config.memory_volumes,
    })
}

/// Where a container finds a volume on the node.
///
/// # Errors
/// If it is storage that is not here.
pub(crate) fn place(
    volume: &Volume,
    pod: &Pod,
    config: &Config,
    facts: &Facts<'_>,
) -> Result<Place, Unresolved> {
    if let Some(host) = &volume.host_path {
        return Ok(Place { path: PathBuf::from(&host.path), read_only: false });
    }
    if let Some((claim, read_only)) = claims::claim_of(volume, pod) {
        let path = match claims::storage(&claim, facts)? {
            Made::Host { path, .. } | Made::Local { path } => path,
            Made::Files { .. } | Made::Empty { .. } => PathBuf::new(),
        };
        return Ok(Place { path, read_only });
    }
    // Files made of objects belong to the API; a container that could write to them would only write into a
    // version that is about to be replaced.
    let of_objects = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    Ok(Place { path: config.pod_volumes(&pod.uid).join(&volume.name), read_only: of_objects })
}

fn made(volume: &Volume, pod: &Pod, facts: &Facts<'_>) -> Result<Made, Unresolved> {
    if let Some(host) = &volume.host_path {
        return Ok(Made::Host { path: PathBuf::from(&host.path), kind: host.kind.clone() });
    }
    if let Some((claim, _)) = claims::claim_of(volume, pod) {
        return claims::storage(&claim, facts);
    }
    if let Some(files) = objects::files(volume, pod, facts)? {
        // A ConfigMap is no secret; all else may hold one, or a token (the kubelet draws the same line).
        return Ok(Made::Files { files, in_memory: volume.config_map.is_none() });
    }
    // A volume that names no source is an emptyDir, as the API has it.
    let empty = volume.empty_dir.clone().unwrap_or_default();
    let bytes = (empty.medium == "Memory").then(|| memory_limit(&empty, pod, facts));
    Ok(Made::Empty { bytes })
}

/// How large an emptyDir in memory may become: its own limit, and no more than the pod's containers or the node
/// have (KEP-1967).
fn memory_limit(empty: &EmptyDir, pod: &Pod, facts: &Facts<'_>) -> Option<u64> {
    let own = empty.size_limit.map(Quantity::units).filter(|bytes| *bytes > 0);
    let limits = pod.spec.containers.iter().map(|container| {
        container.resources.limits.get("memory").copied().map(Quantity::units).filter(|bytes| *bytes > 0)
    });
    let of_pod: Option<i64> = limits.sum();
    let of_node = Some(facts.memory_bytes).filter(|bytes| *bytes > 0);
    [own, of_pod, of_node].into_iter().flatten().min().and_then(|bytes| u64::try_from(bytes).ok())
}

/// The group of the pod's volumes.
pub(crate) fn group_of(pod: &Pod) -> Option<u32> {
    pod.spec.security_context.fs_group.and_then(|id| u32::try_from(id).ok())
}

/// The user that all containers of the pod run as, if it is one.
fn user_of(pod: &Pod) -> Option<u32> {
    let mut users =
        pod.spec.init_containers.iter().chain(&pod.spec.containers).map(|container| {
            container.security_context.run_as_user.or(pod.spec.security_context.run_as_user)
        });
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}
