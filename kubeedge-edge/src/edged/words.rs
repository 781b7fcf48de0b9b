//! A container's last words: what it wrote to its `terminationMessagePath`, or the end of its log.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use kubeedge_core::{
    id::Uid,
    runtime::{ContainerLog, LogFormat, Mount},
};

use super::{Config, pod::Container};

/// The most that a container's message may have. 4096 bytes: the kubelet's.
const MESSAGE_MAX: u64 = 4096;

/// The most that is taken from the end of a log. 2048 bytes and 80 lines: the kubelet's.
const LOG_MAX: u64 = 2048;
const LOG_LINES_MAX: usize = 80;

/// Where the last words are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// The log, if its end stands in for a message that is not there.
    pub(crate) log: Option<ContainerLog>,
}

/// The file of an instance. It is found again by its name after a restart.
pub(crate) fn path(uid: &Uid, container: &str, attempt: u32, config: &Config) -> PathBuf {
    config.pod_directory(uid).join("containers").join(container).join(attempt.to_string())
}

/// The mount of that file; none if the container has mounted something of its own there.
pub(crate) fn mount(uid: &Uid, container: &Container, attempt: u32, config: &Config) -> Option<Mount> {
    let place = match container.termination_message_path.as_str() {
        "" => Path::new("/dev/termination-log"),
        set => Path::new(set),
    };
    let covered = container.volume_mounts.iter().any(|mount| place.starts_with(&mount.mount_path));
    (place.is_absolute() && !covered).then(|| Mount {
        container_path: place.to_owned(),
        host_path: path(uid, &container.name, attempt, config),
        read_only: false,
        ..Mount::default()
    })
}

/// Makes the file, so that every user of the container may write to it.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o666).open(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

/// Reads what the container said at its end; nothing is empty.
pub(crate) fn read(source: &Source) -> String {
    let said = head(&source.path, MESSAGE_MAX).unwrap_or_default();
    match &source.log {
        Some(log) if said.is_empty() => last_lines(log).unwrap_or_default(),
        Some(_) | None => said,
    }
}

fn head(path: &Path, most: u64) -> io::Result<String> {
    // A container could have put anything in its place; only a file is read.
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(log: &ContainerLog) -> io::Result<String> {
    let mut file = fs::File::open(&log.path)?;
    let length = file.metadata()?.len();
    // Each line of the runtime's format begins with some forty bytes that are not the container's.
    let begin = length.saturating_sub(LOG_MAX + 64 * LOG_LINES_MAX as u64);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(length - begin).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = if begin == 0 { &text[..] } else { text.split_once('\n').map_or("", |(_, rest)| rest) };
    let lines: Vec<String> = whole.lines().map(|line| content(line, log.format)).collect();
    let from = lines.len().saturating_sub(LOG_LINES_MAX);
    let mut end: String = lines[from..].concat();
    let surplus = end.len().saturating_sub(LOG_MAX as usize);
    let cut = (surplus..=end.len()).find(|at| end.is_char_boundary(*at)).unwrap_or(end.len());
    Ok(end.split_off(cut))
}

/// The container's own part of a line, with its end unless it goes on in the next.
fn content(line: &str, format: LogFormat) -> String {
    match format {
        LogFormat::Plain => format!("{line}\n"),
        LogFormat::Cri => {
            let mut parts = line.splitn(4, ' ').skip(2);
            let (tag, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            format!("{text}{}", if tag == "P" { "" } else { "\n" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_bounded_and_the_logs_end_stands_in_for_them() {
        let directory = tempfile::tempdir().unwrap();
        let (path, log) = (directory.path().join("app/0"), directory.path().join("0.log"));
        make(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        let line = |n: usize| format!("2026-01-01T00:00:00.123456789Z stderr F line {n}\n");
        fs::write(&log, (0..1000).map(line).collect::<String>()).unwrap();
        let log = ContainerLog { path: log, format: LogFormat::Cri };
        let source = Source { path: path.clone(), log: Some(log) };
        let end = read(&source);
        assert!(end.ends_with("line 998\nline 999\n") && end.starts_with("line 920\n"), "{end}");
        assert_eq!(read(&Source { log: None, ..source.clone() }), "");
        fs::write(&path, "x".repeat(10_000)).unwrap();
        assert_eq!(read(&source).len(), 4096);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert_eq!(read(&Source { log: None, ..source }), "");
    }
}
