//! Pods that have failed by the node's own decision. It is kept on disk beside the pod's volumes: what the API
//! has of a pod's status never comes back to the node, and a pod that was turned away must not run after a restart.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::Path,
};

use kubeedge_core::id::Uid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::warn;

use super::{admission::Refusal, make::qos_class, pod::Pod, text::rfc3339};

/// The file's name in the pod's directory.
const FILE: &str = "failed.json";

/// 64 KiB: a reason and a message have some hundred bytes.
const BYTES_MAX: u64 = 64 << 10;

/// Why the node has ended a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    /// Such as `Evicted`.
    pub(crate) reason: String,
    /// What people read.
    pub(crate) message: String,
    /// When it was decided, milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    /// Whether it never ran here.
    pub(crate) refused: bool,
    /// Whether the node took back what the pod had been given, which controllers must not count as its own fault.
    pub(crate) disrupted: bool,
    /// How long its containers may take to stop; absent means what the pod says.
    pub(crate) grace_seconds: Option<u64>,
    /// Whether it is on the disk, as far as that can be.
    #[serde(skip)]
    pub(crate) recorded: bool,
}

impl Failed {
    /// That the pod was never let in.
    pub(crate) fn refused(refusal: Refusal, at_ms: u64) -> Self {
        Self {
            reason: refusal.reason,
            message: format!("Pod was rejected: {}", refusal.message),
            at_ms,
            refused: true,
            disrupted: false,
            grace_seconds: None,
            recorded: false,
        }
    }

    /// The whole status of a pod that never ran.
    pub(crate) fn status(&self, pod: &Pod) -> Value {
        json!({
            "phase": "Failed",
            "reason": self.reason,
            "message": self.message,
            "startTime": rfc3339(self.at_ms),
            "qosClass": qos_class(pod),
        })
    }

    /// Writes into the status of a pod that ran why it does not any more.
    pub(crate) fn amend(&self, status: &mut Value) {
        status["phase"] = json!("Failed");
        status["reason"] = json!(self.reason);
        status["message"] = json!(self.message);
        if self.disrupted
            && let Some(conditions) = status["conditions"].as_array_mut()
        {
            conditions.push(json!({
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "TerminationByKubelet",
                "message": self.message,
                "lastProbeTime": null,
                "lastTransitionTime": rfc3339(self.at_ms),
            }));
        }
    }

    /// Writes it into the pod's directory: a file beside it first, so that there is never half of it.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let (path, beside) = (directory.join(FILE), directory.join(format!("{FILE}.new")));
        let mut file = fs::File::create(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        fs::File::open(directory)?.sync_all()
    }
}

/// Reads what is kept of all pods below `pods`. What cannot be read counts as absent, and is said.
pub(crate) fn read_all(pods: &Path) -> BTreeMap<Uid, Failed> {
    let entries = fs::read_dir(pods).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let path = entry.path().join(FILE);
        match read(&path) {
            Ok(failed) => Some((Uid::new(entry.file_name().into_string().ok()?), failed)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(file = %path.display(), %error, "why a pod had failed cannot be read; it may run again");
                None
            }
        }
    });
    found.collect()
}

fn read(path: &Path) -> io::Result<Failed> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(Failed { recorded: true, ..serde_json::from_slice(&bytes)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_is_read_again_and_what_is_broken_is_passed_over() {
        let pods = tempfile::tempdir().unwrap();
        let refusal = Refusal { reason: "OutOfcpu".into(), message: "too little".into() };
        let failed = Failed::refused(refusal, 7);
        failed.write(&pods.path().join("a")).unwrap();
        failed.write(&pods.path().join("a")).unwrap();
        fs::create_dir_all(pods.path().join("b")).unwrap();
        fs::create_dir_all(pods.path().join("c")).unwrap();
        fs::write(pods.path().join("c").join(FILE), "{").unwrap();
        let read = read_all(pods.path());
        assert_eq!(read, BTreeMap::from([(Uid::new("a"), Failed { recorded: true, ..failed })]));
        assert_eq!(read_all(Path::new("/nowhere")), BTreeMap::new());
    }
}
