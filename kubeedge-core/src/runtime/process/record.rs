//! What is kept on disk of sandboxes and containers.
//!
//! `<sandbox id>/sandbox.json`, and `<sandbox id>/<container id>/container.json` for each container. A record is
//! written beside the old one and renamed over it, both made durable, so a loss of power leaves one of them whole.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::warn;

use crate::{
    id::Uid,
    runtime::{ContainerId, SandboxId},
};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Sandbox {
    pub(super) id: SandboxId,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: Uid,
    pub(super) attempt: u32,
    pub(super) log_directory: PathBuf,
    pub(super) created_at_ms: u64,
    /// A sandbox does not outlive the boot in which it was made.
    pub(super) boot_id: String,
    pub(super) stopped: bool,
    #[serde(skip)]
    pub(super) containers: BTreeMap<ContainerId, Container>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Container {
    pub(super) id: ContainerId,
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) image: String,
    pub(super) spec_hash: String,
    pub(super) log: PathBuf,
    #[serde(default)]
    pub(super) created_at_ms: u64,
    pub(super) phase: Phase,
}

/// How far a container has come.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Ready to be started.
    Created(Launch),
    /// Being started: there may be a process that nobody has written down. Ends within one call.
    Launching,
    /// Its process was started, and has ended if there is an exit.
    Started { process: Process, started_at_ms: u64, exit: Option<Exit> },
    /// Its process could not be started.
    NeverRan(Exit),
}

/// What its process is started from. It is forgotten then: the environment may hold Secrets.
#[derive(Serialize, Deserialize)]
pub(super) struct Launch {
    pub(super) words: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) working_dir: String,
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
    #[serde(default)]
    pub(super) oom_score_adj: i64,
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch").field("words", &self.words).finish_non_exhaustive()
    }
}

/// A process, told from others that get the same id later.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    pub(super) start_time: u64,
    pub(super) boot_id: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Exit {
    pub(super) code: Option<i32>,
    pub(super) message: String,
    pub(super) finished_at_ms: u64,
}

/// Reads everything below `directory`, and clears away what a loss of power left half made.
pub(super) fn load(directory: &Path) -> io::Result<BTreeMap<SandboxId, Sandbox>> {
    make_directory(directory)?;
    let mut sandboxes = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(mut sandbox) = read::<Sandbox>(&path.join("sandbox.json"))? else {
            clear(&path);
            continue;
        };
        for entry in
            fs::read_dir(&path)?.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
        {
            let path = entry?.path();
            match read::<Container>(&path.join("container.json"))? {
                Some(container) => drop(sandbox.containers.insert(container.id.clone(), container)),
                None => clear(&path),
            }
        }
        sandboxes.insert(sandbox.id.clone(), sandbox);
    }
    Ok(sandboxes)
}

pub(super) fn save_sandbox(directory: &Path, sandbox: &Sandbox) -> io::Result<()> {
    let path = directory.join(&sandbox.id.0);
    make_directory(&path)?;
    write(&path.join("sandbox.json"), sandbox)
}

pub(super) fn save_container(directory: &Path, sandbox: &SandboxId, container: &Container) -> io::Result<()> {
    let path = directory.join(&sandbox.0).join(&container.id.0);
    make_directory(&path)?;
    write(&path.join("container.json"), container)
}

pub(super) fn remove_container(directory: &Path, sandbox: &SandboxId, id: &ContainerId) -> io::Result<()> {
    match fs::remove_dir_all(directory.join(&sandbox.0).join(&id.0)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    // Others may pass, since containers of other users run below; the records are for the owner alone.
    fs::DirBuilder::new().recursive(true).mode(0o711).create(path)
}

fn clear(path: &Path) {
    if path.is_dir()
        && let Err(error) = fs::remove_dir_all(path)
    {
        warn!(path = %path.display(), %error, "a directory without a record cannot be removed");
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let next = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(&serde_json::to_vec(record).map_err(io::Error::other)?)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
}
