//! The cgroups of pods, in the kubelet's hierarchy: `kubepods`, below it one for each quality of service but the best,
//! below those one for each pod. What is written into them is pure; writing it is the rest.

mod limits;
mod place;
#[cfg(test)]
mod tests;
mod tree;

use std::io;

use kubeedge_core::id::Uid;
use tracing::{debug, info, warn};

use self::tree::Tree;
pub(crate) use self::{
    limits::{Limits, PERIOD_US, shares},
    place::Place,
};
use super::Config;

/// The cgroup of a pod, and what its processes may use together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodCgroup {
    pub(crate) place: Place,
    pub(crate) limits: Limits,
    /// Whether what the pod uses may be limited further; otherwise its containers have to be before.
    pub(crate) exact: bool,
}

impl PodCgroup {
    /// Makes it before something of the pod is started, or lets the pod have more.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(crate) fn make(&self) -> io::Result<()> {
        let tree = Tree::of_machine()?;
        // systemd makes its slices itself, with the first process in them.
        let made = match self.place.is_slice() {
            true => false,
            false => tree.make(&self.place, self.limits.controllers())?,
        };
        let files = tree.files(&self.limits);
        if made {
            return tree.write(&self.place, &files);
        }
        let written =
            if self.exact { tree.write(&self.place, &files) } else { tree.raise(&self.place, &files) };
        if let Err(error) = written {
            debug!(cgroup = %self.place, %error, "the pod as a whole keeps its limits");
        }
        Ok(())
    }

    /// Makes its limits what they should be, after those of its containers. While others have more, the kernel may
    /// refuse it, and the next one of them to be changed comes here again.
    pub(crate) fn limit(&self) {
        let written = Tree::of_machine().and_then(|tree| tree.write(&self.place, &tree.files(&self.limits)));
        if let Err(error) = written {
            debug!(cgroup = %self.place, %error, "the pod as a whole keeps its limits");
        }
    }
}

/// Makes the cgroups that those of pods are below. Returns whether pods can have some.
pub(crate) fn prepare(config: &Config, cpu_milli: i64, memory_bytes: i64) -> bool {
    let Some(cgroups) = &config.cgroups else { return false };
    let prepared = Tree::of_machine().and_then(|tree| {
        let root = Place::all(cgroups);
        let limits = limits::of_node(config, cgroups, cpu_milli, memory_bytes);
        if root.is_slice() {
            // Nothing can be said about slices that are not there yet.
            return Ok(());
        }
        tree.make(&root, limits.controllers())?;
        if let Err(error) = tree.write(&root, &tree.files(&limits)) {
            // What runs may use more than was kept back since.
            warn!(cgroup = %root, %error, "pods are not held to what the node offers");
        }
        for class in ["Burstable", "BestEffort"] {
            let place = Place::of_class(cgroups, class);
            let least = Limits { cpu_shares: shares(0), ..Limits::default() };
            if tree.make(&place, least.controllers())? || class == "BestEffort" {
                tree.write(&place, &tree.files(&least))?;
            }
        }
        Ok(())
    });
    match prepared {
        Ok(()) => true,
        Err(error) => {
            warn!(
                %error,
                "pods get no cgroups of their own, so only their containers are limited; run this as root on Linux, or set cgroupsPerQOS: false"
            );
            false
        }
    }
}

/// Gives all pods together that are promised some processor time, and are not held to it, their share.
pub(crate) fn share(config: &Config, milli: i64) {
    let Some(cgroups) = &config.cgroups else { return };
    let place = Place::of_class(cgroups, "Burstable");
    let limits = Limits { cpu_shares: shares(milli), ..Limits::default() };
    let written = Tree::of_machine().and_then(|tree| tree.write(&place, &tree.files(&limits)));
    if let Err(error) = written {
        debug!(cgroup = %place, %error, "its share of the processors stays");
    }
}

/// Removes what is left of a pod's cgroup, after the pod's end. Whatever a process is in stays.
///
/// # Errors
/// If something of it stays.
pub(crate) fn remove(config: &Config, uid: &Uid) -> io::Result<()> {
    let Some(cgroups) = &config.cgroups else { return Ok(()) };
    let tree = Tree::of_machine()?;
    for class in ["Guaranteed", "Burstable", "BestEffort"] {
        let Some(place) = Place::of_pod(cgroups, class, uid) else { continue };
        if tree.remove(&place)? {
            info!(cgroup = %place, "removed");
            place.stop();
        }
    }
    Ok(())
}
