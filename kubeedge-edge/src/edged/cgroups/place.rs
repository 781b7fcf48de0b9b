//! Where the cgroup of a pod is, and what the runtime is told of it. Pure.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use kubeedge_core::id::Uid;

use crate::edged::{CgroupDriver, Cgroups};

/// A cgroup, by the names on its way from the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    driver: CgroupDriver,
    names: Vec<String>,
}

impl Place {
    /// The one that all pods are below.
    pub(crate) fn all(cgroups: &Cgroups) -> Self {
        // What would lead out of the hierarchy is left out of the way.
        let root = cgroups.root.split('/').filter(|name| !["", ".", ".."].contains(name));
        let names = root.chain(["kubepods"]).map(str::to_owned).collect();
        Self { driver: cgroups.driver, names }
    }

    /// The one that all pods of a quality of service are below. The best have none between them and all.
    pub(crate) fn of_class(cgroups: &Cgroups, class: &str) -> Self {
        let mut place = Self::all(cgroups);
        if class != "Guaranteed" {
            place.names.push(class.to_lowercase());
        }
        place
    }

    /// A pod's; `None` if its UID is not one that can be a part of a path.
    pub(crate) fn of_pod(cgroups: &Cgroups, class: &str, uid: &Uid) -> Option<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if uid.as_str().is_empty() || !uid.as_str().chars().all(plain) {
            return None;
        }
        let mut place = Self::of_class(cgroups, class);
        place.names.push(format!("pod{uid}"));
        Some(place)
    }

    /// Whether it is systemd's.
    pub(crate) fn is_slice(&self) -> bool {
        self.driver == CgroupDriver::Systemd
    }

    /// What the runtime is told: a path, or for systemd the name of a slice.
    pub(crate) fn parent(&self) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("/{}", self.names.join("/")),
            CgroupDriver::Systemd => slice(&self.names),
        }
    }

    /// Its directory below the root of a hierarchy.
    pub(crate) fn directory(&self) -> PathBuf {
        match self.driver {
            CgroupDriver::Cgroupfs => self.names.iter().collect(),
            // Each slice has all the names before its own in its name.
            CgroupDriver::Systemd => {
                (1..=self.names.len()).map(|count| slice(&self.names[..count])).collect()
            }
        }
    }

    /// Its directory, and those of all on the way to it, the outermost first.
    pub(crate) fn way(&self) -> Vec<PathBuf> {
        let directory = self.directory();
        let mut way: Vec<PathBuf> =
            directory.ancestors().filter(|path| *path != Path::new("")).map(Path::to_owned).collect();
        way.reverse();
        way
    }

    /// Lets systemd forget a slice that is gone.
    pub(crate) fn stop(&self) {
        if self.is_slice() {
            let mut stop = Command::new("systemctl");
            stop.args(["stop", "--no-block"]).arg(self.parent());
            let quiet = [Stdio::null(), Stdio::null(), Stdio::null()];
            let [stdin, stdout, stderr] = quiet;
            // Without systemd there is nothing that could remember it.
            let _ = stop.stdin(stdin).stdout(stdout).stderr(stderr).status();
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parent())
    }
}

/// systemd separates the names of a slice by dashes, so those within a name become something else.
fn slice(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| name.replace('-', "_")).collect();
    format!("{}.slice", names.join("-"))
}
