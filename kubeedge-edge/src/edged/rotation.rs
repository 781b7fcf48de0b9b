//! Logs of containers, of which each goes on in another file when it has grown to its limit.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use kubeedge_core::runtime::{
    ContainerId, ContainerLog, ContainerRuntime, ContainerState, LogFormat, ObservedSandbox,
};
use tracing::{debug, warn};

use super::LogRotation;

/// A log that its container writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Open {
    id: ContainerId,
    path: PathBuf,
}

/// The logs of all containers that run.
pub(crate) fn open<'a>(sandboxes: impl Iterator<Item = &'a ObservedSandbox>) -> Vec<Open> {
    let containers = sandboxes.flat_map(|sandbox| &sandbox.containers);
    let running = containers.filter(|one| matches!(one.state, ContainerState::Running { .. }));
    let path = |log: &ContainerLog| match log.format {
        LogFormat::Cri => Some(log.path.clone()),
        // The process writes to the file itself, and would write on to the renamed one.
        LogFormat::Plain => None,
    };
    running
        .filter_map(|one| Some(Open { id: one.id.clone(), path: one.log.as_ref().and_then(path)? }))
        .collect()
}

/// Rotates those that have grown to the limit, one after the other. `stamp` ends the name of the older file.
pub(crate) async fn rotate(
    runtime: Arc<dyn ContainerRuntime>,
    logs: Vec<Open>,
    limits: LogRotation,
    stamp: String,
) {
    for log in logs {
        let (path, stamp) = (log.path.clone(), stamp.clone());
        let renamed = tokio::task::spawn_blocking(move || rename(&path, &limits, &stamp)).await;
        let renamed = renamed.map_err(io::Error::other).and_then(|renamed| renamed);
        let older = match renamed {
            Ok(None) => continue,
            Ok(Some(older)) => older,
            Err(error) => {
                warn!(log = %log.path.display(), %error, "a log cannot be rotated");
                continue;
            }
        };
        match runtime.reopen_log(&log.id).await {
            Ok(()) => debug!(log = %log.path.display(), "a log was rotated"),
            Err(error) => {
                warn!(log = %log.path.display(), %error, "a log cannot be opened again; it goes on in its file");
                // The container writes to the renamed file, which gets its name back.
                if !log.path.exists()
                    && let Err(error) = fs::rename(&older, &log.path)
                {
                    warn!(log = %older.display(), %error, "a log cannot get its name back");
                }
            }
        }
    }
}

/// Gives a log that has grown to the limit another name, and removes the oldest so that the limit of files holds.
fn rename(path: &Path, limits: &LogRotation, stamp: &str) -> io::Result<Option<PathBuf>> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if limits.bytes_max == 0 || size <= limits.bytes_max {
        return Ok(None);
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    let older = PathBuf::from(name);
    if older.exists() {
        return Ok(None);
    }
    // With the file that is renamed now and the one that follows it, there are as many as may be.
    let kept = usize::try_from(limits.files_max.saturating_sub(2)).unwrap_or(usize::MAX);
    let rotated = rotated(path)?;
    for old in rotated.iter().take(rotated.len().saturating_sub(kept)) {
        fs::remove_file(old)?;
    }
    fs::rename(path, &older)?;
    Ok(Some(older))
}

/// The older files of a log, the oldest first.
pub(crate) fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let other = entry?.file_name();
        let stamp = other.to_str().and_then(|other| other.strip_prefix(name)?.strip_prefix('.'));
        // 20060102-150405: only what was named here, and not what a collector of logs may keep beside it.
        let ours = |stamp: &str| {
            stamp.len() == 15 && stamp.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
        };
        if stamp.is_some_and(ours) {
            found.push(directory.join(other));
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a log with its older files. What stays costs space and nothing else.
pub(crate) fn remove(path: &Path) {
    let older = rotated(path).unwrap_or_default();
    for file in older.iter().map(PathBuf::as_path).chain([path]) {
        let _ = fs::remove_file(file);
    }
}

/// The time as the end of a file's name, which sorts as the time does.
pub(crate) fn stamp(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1000).unwrap_or(0);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    time.strftime("%Y%m%d-%H%M%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_has_grown_to_its_limit_is_renamed_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let limits = LogRotation { bytes_max: 4, files_max: 3, ..LogRotation::default() };
        assert_eq!(rename(&path, &limits, "x").unwrap(), None, "it is not there yet");
        fs::write(directory.path().join("10.log.20260101-000000"), "another container's").unwrap();
        fs::write(directory.path().join("0.log.pos"), "a collector's").unwrap();
        for (minute, text) in ["1234", "12345", "abcdef", "ABCDEF", "UVWXYZ"].into_iter().enumerate() {
            fs::write(&path, text).unwrap();
            let renamed = rename(&path, &limits, &stamp(60_000 * minute as u64)).unwrap();
            assert_eq!(renamed.is_some(), minute > 0, "{text}");
        }
        let kept: Vec<String> =
            rotated(&path).unwrap().iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        assert_eq!(kept, ["ABCDEF", "UVWXYZ"], "with the one that follows, three");
        fs::write(&path, "123456").unwrap();
        assert_eq!(rename(&path, &limits, &stamp(240_000)).unwrap(), None, "the name is taken");
        remove(&path);
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 2, "only what is another's stays");
    }

    #[test]
    fn the_name_of_an_older_file_sorts_as_its_time() {
        assert_eq!(stamp(1_700_000_000_000), "20231114-221320");
    }
}
