//! Pods that come from files of the node, and run whatever the cloud says.

mod read;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use kubeedge_core::{
    id::{NodeName, Uid},
    message::{Object, ObjectRef},
};
use tracing::{info, warn};

pub(crate) use self::read::{MIRROR, is_hash, mirror_of};

/// 1 MiB: more than the API server takes of an object.
const BYTES_MAX: u64 = 1 << 20;

/// 1000 files: ten times as many pods as a node takes.
const FILES_MAX: usize = 1000;

/// What a file was when it was read, by which a change is noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

/// What is in a file.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    stamp: Stamp,
    text: Result<String, String>,
}

/// What has become of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A pod should run, like this.
    Applied(Object),
    /// A pod should not run any more.
    Removed(ObjectRef, Uid),
}

/// The files, and the pods that were in them when they could be read last.
#[derive(Debug)]
pub(crate) struct Statics {
    node: NodeName,
    files: BTreeMap<PathBuf, File>,
    complained: bool,
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    /// The last pod that the file had, which runs on while the file has none that can be read.
    pod: Option<Object>,
}

impl Statics {
    pub(crate) fn new(node: NodeName) -> Self {
        Self { node, files: BTreeMap::new(), complained: false }
    }

    /// Takes what a scan found. If there was none, everything stays as it is.
    pub(crate) fn handle_scan(&mut self, found: io::Result<BTreeMap<PathBuf, Found>>) -> Vec<Change> {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    warn!(%error, "the directory of static pods cannot be read; what runs of it stays");
                }
                return Vec::new();
            }
        };
        self.complained = false;
        let before = self.pods();
        self.files.retain(|path, _| found.contains_key(path));
        for (path, found) in found {
            let known = self.files.get(&path);
            if known.is_some_and(|known| known.stamp == found.stamp) {
                continue;
            }
            let mut pod = known.and_then(|known| known.pod.clone());
            let text = found.text.and_then(|text| read::pod(&text, &path, &self.node));
            match text.and_then(|new| self.alone(&path, new)) {
                Ok(new) => pod = Some(new),
                Err(error) => warn!(file = %path.display(), error, "a static pod cannot be read"),
            }
            self.files.insert(path, File { stamp: found.stamp, pod });
        }
        self.changes(&before)
    }

    /// Refuses a pod of whose name another file has one.
    fn alone(&self, path: &Path, pod: Object) -> Result<Object, String> {
        let mut others = self.files.iter().filter(|(other, _)| *other != path);
        let same =
            others.find(|(_, file)| file.pod.as_ref().is_some_and(|other| other.reference == pod.reference));
        match same {
            None => Ok(pod),
            Some((other, _)) => Err(format!("{} has a pod of the same name", other.display())),
        }
    }

    fn pods(&self) -> BTreeMap<ObjectRef, Uid> {
        let pods = self.files.values().filter_map(|file| file.pod.as_ref());
        pods.map(|pod| (pod.reference.clone(), pod.uid.clone())).collect()
    }

    fn changes(&self, before: &BTreeMap<ObjectRef, Uid>) -> Vec<Change> {
        let now = self.pods();
        let gone = before.iter().filter(|(reference, _)| !now.contains_key(*reference));
        let mut changes: Vec<Change> =
            gone.map(|(reference, uid)| Change::Removed(reference.clone(), uid.clone())).collect();
        for pod in self.files.values().filter_map(|file| file.pod.as_ref()) {
            if before.get(&pod.reference) != Some(&pod.uid) {
                info!(pod = %pod.reference, "a static pod");
                changes.push(Change::Applied(pod.clone()));
            }
        }
        changes
    }
}

/// Reads the files: all of a directory that are not hidden, or the one. A path that is not there has none.
pub(crate) fn scan(path: &Path) -> io::Result<BTreeMap<PathBuf, Found>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut paths = BTreeSet::new();
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.insert(entry.path());
            }
        }
    } else {
        paths.insert(path.to_owned());
    }
    let files = paths.into_iter().take(FILES_MAX).filter_map(|path| {
        let found = file(&path)?;
        Some((path, found))
    });
    Ok(files.collect())
}

/// `None` for what is no file.
fn file(path: &Path) -> Option<Found> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() {
        return None;
    }
    let stamp = Stamp { modified: metadata.modified().ok(), length: metadata.len() };
    let text = if metadata.len() > BYTES_MAX {
        Err(format!("it has {} bytes; a pod has at most {BYTES_MAX}", metadata.len()))
    } else {
        fs::read_to_string(path).map_err(|error| error.to_string())
    };
    Some(Found { stamp, text })
}
