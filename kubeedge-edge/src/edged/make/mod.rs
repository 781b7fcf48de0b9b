//! From a Pod to what the runtime is asked for. Pure.

mod credentials;
mod network;
mod resources;
mod security;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use kubeedge_core::runtime::{ContainerConfig, Mount, MountPropagation, SandboxConfig};

pub(crate) use self::{
    credentials::credentials,
    resources::{limits, pod_limits, qos_class},
};
use super::{
    Config,
    cgroups::{Place, PodCgroup},
    pod::{Container, Pod, VolumeMount},
    resolve::{Facts, Unresolved, expand, is_inside},
    volumes,
};

/// What has to be made on the node before a container can be created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Before {
    /// Mounts, by their place in the configuration, of which only a part is wanted.
    pub(crate) parts: BTreeMap<usize, Part>,
    /// The file that is mounted as `/etc/hosts`, and its text.
    pub(crate) hosts: Option<(PathBuf, String)>,
    /// Nobody says as whom it runs, and it must not be the superuser: the image has to be asked.
    pub(crate) must_not_be_root: bool,
}

/// A part of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its path in the volume.
    pub(crate) path: String,
    /// Where it is held for the container.
    pub(crate) place: PathBuf,
}

/// The sandbox of a pod.
///
/// # Errors
/// If what it asks for cannot be; in words for its status.
pub(crate) fn sandbox(
    pod: &Pod,
    attempt: u32,
    config: &Config,
    facts: &Facts<'_>,
) -> Result<SandboxConfig, Unresolved> {
    let spec = &pod.spec;
    let containers = || spec.init_containers.iter().chain(&spec.containers);
    let security = &spec.security_context;
    let sysctls = security.sysctls.iter().map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone()));
    Ok(SandboxConfig {
        name: pod.reference.name().to_owned(),
        namespace: pod.reference.namespace().to_owned(),
        uid: pod.uid.clone(),
        attempt,
        hostname: network::sandbox_hostname(pod, config)?,
        log_directory: config.pod_logs(&pod.reference, &pod.uid),
        host_network: spec.host_network,
        host_pid: spec.host_pid,
        host_ipc: spec.host_ipc,
        share_processes: spec.share_process_namespace,
        sysctls: sysctls.collect(),
        run_as_user: security.run_as_user,
        run_as_group: security.run_as_group,
        supplemental_groups: security::groups(pod),
        dns: network::dns(pod, config, facts),
        ports: network::ports(pod),
        labels: pod.metadata.labels.clone(),
        annotations: pod.metadata.annotations.clone(),
        handler: runtime_handler(pod, facts)?,
        privileged: containers().any(|container| container.security_context.privileged),
        cgroup_parent: cgroup(pod, config, true).map(|cgroup| cgroup.place.parent()),
        resources: resources::sandbox_resources(pod),
        overhead: resources::overhead(pod),
        ..SandboxConfig::default()
    })
}

/// The cgroup of a pod, if it has one. `exact` unless its containers may still have more than it would.
pub(crate) fn cgroup(pod: &Pod, config: &Config, exact: bool) -> Option<PodCgroup> {
    let cgroups = config.cgroups.as_ref()?;
    let place = Place::of_pod(cgroups, qos_class(pod), &pod.uid)?;
    Some(PodCgroup { place, limits: pod_limits(pod, cgroups.pids_max), exact })
}

/// What a container is made from, and what has to be made before.
///
/// # Errors
/// If what it asks for cannot be; in words for its status.
pub(crate) fn container(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    env: Vec<(String, String)>,
    config: &Config,
    facts: &Facts<'_>,
) -> Result<(ContainerConfig, Before), Unresolved> {
    let (mut mounts, mut before) = (Vec::new(), Before::default());
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let Some(volume) = pod.spec.volumes.iter().find(|volume| volume.name == mount.name) else { continue };
        let place = volumes::place(volume, pod, config, facts)?;
        if let Some(path) = part_of(mount, &env)? {
            let held = config.pod_directory(&pod.uid).join("volume-subpaths").join(&container.name);
            before.parts.insert(mounts.len(), Part { path, place: held.join(index.to_string()) });
        }
        mounts.push(Mount {
            container_path: in_container(&mount.mount_path),
            host_path: place.path,
            read_only: mount.read_only || place.read_only,
            propagation: match mount.mount_propagation.as_str() {
                "HostToContainer" => MountPropagation::HostToContainer,
                "Bidirectional" => MountPropagation::Bidirectional,
                _ => MountPropagation::Private,
            },
            ..Mount::default()
        });
    }
    let security = &container.security_context;
    let own_hosts = mounts.iter().any(|mount| mount.container_path == Path::new("/etc/hosts"));
    if !own_hosts && let Some(text) = network::hosts(pod, config, facts) {
        let file = config.pod_directory(&pod.uid).join("etc-hosts");
        mounts.push(Mount {
            container_path: PathBuf::from("/etc/hosts"),
            host_path: file.clone(),
            read_only: security.read_only_root_filesystem,
            ..Mount::default()
        });
        before.hosts = Some((file, text));
    }
    before.must_not_be_root = security::must_ask_image(pod, container)?;
    let expanded = |texts: &[String]| texts.iter().map(|text| expand(text, &env)).collect();
    let made = ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        mounts,
        spec_hash: spec_hash(container),
        log_path: PathBuf::from(&container.name).join(format!("{attempt}.log")),
        resources: limits(pod, container, facts),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        env,
        ..security::security(pod, container, config)
    };
    Ok((made, before))
}

/// The part of its volume that a mount is about, if it is not all of it.
fn part_of(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, Unresolved> {
    if mount.sub_path_expr.is_empty() {
        return Ok((!mount.sub_path.is_empty()).then(|| mount.sub_path.clone()));
    }
    let path = expand(&mount.sub_path_expr, env);
    // What stays of a variable is one that the container does not have.
    if path.contains("$(") && !mount.sub_path_expr.contains("$$(") {
        return Err(Unresolved(format!(
            "failed to expand subPath {:?}: a variable of it is not set",
            mount.sub_path_expr
        )));
    }
    if !is_inside(&path) {
        return Err(Unresolved(format!("subPath {path:?} leads out of its volume")));
    }
    Ok(Some(path))
}

/// A relative path of a container counts from its root, as the kubelet reads it.
fn in_container(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

/// What the runtime calls the pod's runtime class: the `handler` of the class.
fn runtime_handler(pod: &Pod, facts: &Facts<'_>) -> Result<String, Unresolved> {
    let name = &pod.spec.runtime_class_name;
    if name.is_empty() {
        return Ok(String::new());
    }
    let reference =
        kubeedge_core::message::ObjectRef::new("node.k8s.io/v1", "RuntimeClass", "", name.as_str());
    let object = facts.objects.get(&reference);
    let json = object.and_then(|object| serde_json::from_slice::<serde_json::Value>(&object.json).ok());
    let handler = json.as_ref().and_then(|json| json["handler"].as_str());
    handler.map(str::to_owned).ok_or_else(|| Unresolved(format!("RuntimeClass {name:?} not found")))
}

/// A digest of what may change in a pod that runs: the image is all that the API lets be changed.
pub(crate) fn spec_hash(container: &Container) -> String {
    // FNV-1a, which stays the same in every version of this program, as a kept digest must.
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let text = container.name.bytes().chain([0]).chain(container.image.bytes());
    format!("{:016x}", text.fold(0xcbf2_9ce4_8422_2325, fold))
}
