//! What pods use.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use kubeedge_core::{
    id::Uid,
    runtime::{ContainerStats, SandboxStats},
};

use super::ByName;
use crate::edged::{
    Config,
    admission::is_critical,
    eviction::{self, Candidate, Measured, Shortage, Signal, Use},
    make::qos_class,
    pod::{Pod, Volume},
    quantity::Quantity,
    state::{Entry, State, Verdict},
};

/// A directory of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    uid: Uid,
    /// The volume's name, or the container's whose logs it has.
    name: String,
    is_volume: bool,
    path: PathBuf,
}

/// What is in the directories of pods: in volumes, and in logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    volumes: BTreeMap<Uid, ByName>,
    logs: BTreeMap<Uid, ByName>,
}

/// The directories of all pods that run.
pub(super) fn all(state: &State, config: &Config) -> Vec<Place> {
    state.running().flat_map(|(entry, pod)| places(entry, pod, config)).collect()
}

/// The directories of those pods that have a limit of what they may write.
pub(super) fn limited(state: &State, config: &Config) -> Vec<Place> {
    let limited = |pod: &Pod| {
        let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
        let of_container =
            containers.into_iter().any(|one| one.resources.limits.contains_key("ephemeral-storage"));
        of_container || !limits(pod).is_empty()
    };
    let pods = state.running().filter(|(_, pod)| limited(pod));
    pods.flat_map(|(entry, pod)| places(entry, pod, config)).collect()
}

fn places(entry: &Entry, pod: &Pod, config: &Config) -> Vec<Place> {
    let uid = &entry.uid;
    let volumes = pod.spec.volumes.iter().filter(|volume| is_on_disk(volume)).map(|volume| Place {
        uid: uid.clone(),
        name: volume.name.clone(),
        is_volume: true,
        path: config.pod_volumes(uid).join(&volume.name),
    });
    let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers).map(|container| Place {
        uid: uid.clone(),
        name: container.name.clone(),
        is_volume: false,
        path: config.pod_logs(&entry.reference, uid).join(&container.name),
    });
    volumes.chain(containers).collect()
}

/// Whether it begins empty and is no memory.
fn is_on_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|empty| empty.medium != "Memory")
}

fn limits(pod: &Pod) -> BTreeMap<String, Quantity> {
    let on_disk = pod.spec.volumes.iter().filter(|volume| is_on_disk(volume));
    on_disk.filter_map(|volume| Some((volume.name.clone(), volume.empty_dir.as_ref()?.size_limit?))).collect()
}

/// Measures the directories.
pub(super) fn sizes(places: &[Place]) -> Sizes {
    let mut sizes = Sizes::default();
    for place in places {
        let of = if place.is_volume { &mut sizes.volumes } else { &mut sizes.logs };
        of.entry(place.uid.clone()).or_default().insert(place.name.clone(), size(&place.path));
    }
    sizes
}

/// What a directory takes of the disk. What cannot be read counts as nothing; links are not followed.
fn size(path: &Path) -> i64 {
    let mut total = 0i64;
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        // 512: the unit of `st_blocks`, whatever the file system's is (POSIX, sys/stat.h).
        total =
            total.saturating_add(i64::try_from(metadata.blocks().saturating_mul(512)).unwrap_or(i64::MAX));
        if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    total
}

/// The pods that have written more than they may.
pub(super) fn exceeded(state: &State, stats: &[SandboxStats], sizes: &Sizes) -> Vec<(Uid, Verdict)> {
    let verdict = |(entry, pod): (&Entry, &Pod)| {
        let measured = measured(&entry.uid, stats, sizes);
        Some((entry.uid.clone(), eviction::exceeded(pod, &limits(pod), &measured)?))
    };
    state.running().filter_map(verdict).collect()
}

fn measured(uid: &Uid, stats: &[SandboxStats], sizes: &Sizes) -> Measured {
    let mut containers = sizes.logs.get(uid).cloned().unwrap_or_default();
    for one in containers_of(uid, stats) {
        if let Some(layer) = &one.writable_layer {
            *containers.entry(one.name.clone()).or_default() += whole(layer.used_bytes);
        }
    }
    Measured { volumes: sizes.volumes.get(uid).cloned().unwrap_or_default(), containers }
}

fn containers_of<'a>(uid: &'a Uid, stats: &'a [SandboxStats]) -> impl Iterator<Item = &'a ContainerStats> {
    stats.iter().filter(move |sandbox| sandbox.uid == *uid).flat_map(|sandbox| &sandbox.containers)
}

fn whole(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The pods that could end for what is short.
pub(super) fn candidates(
    state: &State,
    shortage: &Shortage,
    stats: &[SandboxStats],
    sizes: &Sizes,
) -> Vec<Candidate> {
    let candidate = |(entry, pod): (&Entry, &Pod)| {
        let measured = measured(&entry.uid, stats, sizes);
        let used = |name: &str| match shortage.signal {
            Signal::Memory => {
                let memory = containers_of(&entry.uid, stats).filter(|one| one.name == name);
                memory
                    .filter_map(|one| one.memory)
                    .map(|memory| whole(memory.working_set_bytes))
                    .reduce(i64::saturating_add)
            }
            Signal::NodeDisk | Signal::ImageDisk => measured.containers.get(name).copied(),
            Signal::NodeInodes | Signal::ImageInodes => {
                let layers = containers_of(&entry.uid, stats).filter(|one| one.name == name);
                layers
                    .filter_map(|one| one.writable_layer.as_ref()?.inodes_used)
                    .map(whole)
                    .reduce(i64::saturating_add)
            }
            Signal::Pids => None,
        };
        let requested = |container: &crate::edged::pod::Container| {
            let resource = shortage.signal.resource();
            container
                .resources
                .requests
                .get(resource)
                .or(container.resources.limits.get(resource))
                .map_or(0, |q| q.units())
        };
        let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers).map(|container| Use {
            name: container.name.clone(),
            requested: requested(container),
            used: used(&container.name),
        });
        let besides = match shortage.signal {
            Signal::NodeDisk | Signal::ImageDisk => {
                measured.volumes.values().copied().fold(0, i64::saturating_add)
            }
            Signal::Pids => {
                let sandboxes = stats.iter().filter(|sandbox| sandbox.uid == entry.uid);
                sandboxes.filter_map(|sandbox| sandbox.processes).map(whole).fold(0, i64::saturating_add)
            }
            Signal::Memory | Signal::NodeInodes | Signal::ImageInodes => 0,
        };
        Candidate {
            uid: entry.uid.clone(),
            critical: is_critical(pod),
            priority: pod.spec.priority.unwrap_or(0),
            quality: qos_class(pod),
            containers: containers.collect(),
            besides,
        }
    };
    state.running().map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_what_is_in_it_and_nothing_that_is_linked() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("in/deep"), directory.path().join("out"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("large"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        let empty = size(&directory.path().join("in"));
        fs::write(inside.join("file"), vec![1; 200 << 10]).unwrap();
        let full = size(&directory.path().join("in"));
        assert!((200 << 10..300 << 10).contains(&(full - empty)), "{empty} {full}");
        assert_eq!(size(Path::new("/nowhere")), 0);
    }
}
