//! What Edged keeps of a pod on the disk: its last status. The runtime says what runs; this says what had been, so
//! that after a restart without a link times, counts and readiness read on as they were.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use kubeedge_core::id::Uid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use super::pod::Requirements;

/// A record larger than this is not one of ours. 4 MiB: more than the API lets a status be.
const RECORD_MAX: u64 = 4 << 20;

/// The scheme of container ids before the runtime has said what it is.
pub(crate) const UNKNOWN_RUNTIME: &str = "unknown";

/// What is kept of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The pod's `status`.
    pub(crate) status: Value,
    /// Whether it was released from being held.
    #[serde(default)]
    pub(crate) released: bool,
    /// What each of its containers was allotted, and what was given to the one that runs.
    #[serde(default)]
    pub(crate) resources: BTreeMap<String, Held>,
}

/// What a container has of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) allotted: Requirements,
    /// `None` before it has been created.
    pub(crate) given: Option<Requirements>,
}

impl Record {
    /// The runtime's name, by the id of one of its containers.
    pub(crate) fn runtime(&self) -> Option<&str> {
        let containers = self.status["containerStatuses"].as_array()?.iter();
        let mut ids = containers.filter_map(|one| one["containerID"].as_str()?.split_once("://"));
        ids.find(|(runtime, _)| *runtime != UNKNOWN_RUNTIME).map(|(runtime, _)| runtime)
    }

    pub(crate) fn new(status: &Bytes, released: bool, resources: BTreeMap<String, Held>) -> Self {
        Self { status: serde_json::from_slice(status).unwrap_or_default(), released, resources }
    }
}

/// Writes the record whole or not at all. It is not flushed to the disk: what a power cut takes of it is said
/// anew from what the runtime knows.
pub(crate) fn write(path: &Path, record: &Record) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let next = path.with_extension("tmp");
    fs::write(&next, serde_json::to_vec(record)?)?;
    fs::rename(next, path)
}

/// Reads all records in the directory. What cannot be read is passed over.
pub(crate) fn read_all(directory: &Path) -> Vec<(Uid, Record)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|it| it == "json")).filter_map(read).collect()
}

fn read(path: PathBuf) -> Option<(Uid, Record)> {
    let uid = Uid::new(path.file_stem()?.to_str()?);
    if fs::metadata(&path).ok()?.len() > RECORD_MAX {
        return None;
    }
    match serde_json::from_slice(&fs::read(&path).ok()?) {
        Ok(record) => Some((uid, record)),
        Err(error) => {
            warn!(path = %path.display(), %error, "the record of a pod is passed over");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn requirements(cpu: &str) -> Requirements {
        serde_json::from_value(json!({ "requests": { "cpu": cpu, "memory": "64Mi" } })).unwrap()
    }

    #[test]
    fn records_are_read_back_and_a_broken_one_costs_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let held = Held { allotted: requirements("100m"), given: Some(requirements("1")) };
        let resources = [("app".to_owned(), held)].into();
        let ids =
            json!([{ "containerID": "unknown://1" }, { "name": "waits" }, { "containerID": "cri-o://2" }]);
        let status = json!({ "phase": "Running", "containerStatuses": ids });
        let record = Record { status, released: true, resources };
        assert_eq!(record.runtime(), Some("cri-o"));
        write(&directory.path().join("status/u-1.json"), &record).unwrap();
        fs::write(directory.path().join("status/u-2.json"), "{").unwrap();
        let read = read_all(&directory.path().join("status"));
        assert_eq!(read, [(Uid::new("u-1"), record)]);
        assert!(read_all(&directory.path().join("absent")).is_empty());
    }
}
