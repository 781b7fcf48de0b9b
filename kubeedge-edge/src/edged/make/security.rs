//! Under which rights a container runs. Pure.

use kubeedge_core::runtime::{Capabilities, ContainerConfig, SecurityProfile};

use crate::edged::{
    Config,
    pod::{Container, Pod, Profile},
    resolve::Unresolved,
};

/// The further groups of all processes of a pod: a volume that belongs to a group is of no use to others.
pub(super) fn groups(pod: &Pod) -> Vec<i64> {
    let security = &pod.spec.security_context;
    let mut groups = security.supplemental_groups.clone();
    groups.extend(security.fs_group.filter(|group| !security.supplemental_groups.contains(group)));
    groups
}

/// The part of a container's configuration that is about rights: what the container says, else the pod.
pub(super) fn security(pod: &Pod, container: &Container, config: &Config) -> ContainerConfig {
    let (own, of_pod) = (&container.security_context, &pod.spec.security_context);
    // `CAP_` is not a part of the name in the API, but often written.
    let names = |names: &[String]| {
        names.iter().map(|name| name.strip_prefix("CAP_").unwrap_or(name).to_owned()).collect()
    };
    let profiles = config.root.join("seccomp");
    let of_file = |name: &str| profiles.join(name).to_string_lossy().into_owned();
    let seccomp = own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref());
    let apparmor = own.app_armor_profile.as_ref().or(of_pod.app_armor_profile.as_ref());
    ContainerConfig {
        privileged: own.privileged,
        run_as_user: own.run_as_user.or(of_pod.run_as_user),
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        supplemental_groups: groups(pod),
        read_only_root: own.read_only_root_filesystem,
        capabilities: Capabilities { add: names(&own.capabilities.add), drop: names(&own.capabilities.drop) },
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        seccomp: seccomp.and_then(|of| profile(of, of_file)),
        apparmor: apparmor.and_then(|of| profile(of, str::to_owned)),
        ..ContainerConfig::default()
    }
}

fn profile(of: &Profile, name: impl Fn(&str) -> String) -> Option<SecurityProfile> {
    Some(match of.kind.as_str() {
        "RuntimeDefault" => SecurityProfile::RuntimeDefault,
        "Unconfined" => SecurityProfile::Unconfined,
        "Localhost" => SecurityProfile::Localhost(name(&of.localhost_profile)),
        _ => return None,
    })
}

/// Whether the image has to be asked as whom it runs, since the container must not run as the superuser.
///
/// # Errors
/// If the pod says itself that it does.
pub(super) fn must_ask_image(pod: &Pod, container: &Container) -> Result<bool, Unresolved> {
    let (own, of_pod) = (&container.security_context, &pod.spec.security_context);
    if !own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false) {
        return Ok(false);
    }
    match own.run_as_user.or(of_pod.run_as_user) {
        Some(0) => Err(Unresolved(format!(
            "container's runAsUser breaks non-root policy (pod: \"{}_{}({})\", container: {})",
            pod.reference.name(),
            pod.reference.namespace(),
            pod.uid,
            container.name
        ))),
        Some(_) => Ok(false),
        None => Ok(true),
    }
}
