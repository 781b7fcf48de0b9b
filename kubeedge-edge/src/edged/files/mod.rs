//! What is made of a pod on the node's disk, and in its memory.

mod mounts;
mod owner;
mod sub_path;
mod writer;

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tracing::warn;

pub(crate) use self::{owner::Group, sub_path::hold};
use super::volumes::{Made, Prepare};

/// What the group of a pod may do with a file that is made of an object.
pub(crate) const GROUP_READS: u32 = 0o440;

/// Makes a pod's directories and volumes as they should be. Files that are as they should be are not written.
pub(crate) fn prepare(prepare: &Prepare) -> io::Result<()> {
    make_directory(&prepare.directory, 0o750)?;
    make_directory(&prepare.logs, 0o755)?;
    for (name, made) in &prepare.volumes {
        let path = prepare.directory.join("volumes").join(name);
        volume(prepare, name, &path, made)
            .map_err(|error| io::Error::new(error.kind(), format!("volume {name:?} : {error}")))?;
    }
    Ok(())
}

fn volume(prepare: &Prepare, name: &str, path: &Path, made: &Made) -> io::Result<()> {
    match made {
        Made::Files { files, in_memory } => {
            make_directory(path, 0o755)?;
            let mounted = *in_memory && prepare.memory && in_memory_if_allowed(name, path)?;
            writer::write(path, files, !mounted)
        }
        Made::Empty { bytes: None, .. } => empty(path, prepare.group),
        Made::Empty { bytes: Some(bytes), .. } => {
            let fresh = !path.is_dir();
            make_directory(path, 0o777)?;
            mounts::memory(path, *bytes, 0o777).map_err(|error| {
                let message = format!("a file system in memory cannot be mounted: {error}");
                io::Error::new(error.kind(), message)
            })?;
            if fresh { open_to_all(path, prepare.group) } else { Ok(()) }
        }
        Made::Host { path, kind } => check_host_path(path, kind),
        Made::Local { path: local } => {
            check_host_path(local, "Directory")?;
            give_once(&prepare.directory.join("owned").join(name), local, prepare.group)
        }
    }
}

/// Mounts memory for what should never lie on a disk. A process that may not mount uses the disk all the same: a
/// pod without its Secrets would not run at all.
fn in_memory_if_allowed(name: &str, path: &Path) -> io::Result<bool> {
    match mounts::memory(path, None, 0o755) {
        Ok(()) => Ok(true),
        Err(error) if mounts::is_not_allowed(&error) => {
            warn!(
                volume = name,
                "no right to mount a file system in memory (CAP_SYS_ADMIN); the volume lies on the disk"
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn empty(path: &Path, group: Option<Group>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_directory(path, 0o777)?;
    open_to_all(path, group)
}

/// The umask must not take from what every user of the pod may do.
fn open_to_all(path: &Path, group: Option<Group>) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    group.map_or(Ok(()), |group| owner::give(path, group, true))
}

/// Gives storage that outlives the pod to its group, once in the pod's life; the mark says that it was done.
fn give_once(mark: &Path, path: &Path, group: Option<Group>) -> io::Result<()> {
    let Some(group) = group.filter(|_| !mark.exists()) else { return Ok(()) };
    owner::give(path, group, true)?;
    if let Some(parent) = mark.parent() {
        make_directory(parent, 0o750)?;
    }
    fs::File::create(mark).map(drop)
}

/// Removes files and directories, and what is mounted below them; those that are not there are fine.
pub(crate) fn remove(paths: &[PathBuf]) -> io::Result<()> {
    // What is mounted is not ours to remove: without this the files of a node would go.
    mounts::unmount_below(paths)?;
    for path in paths {
        let removed = match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Writes a file that containers see as a mount of its own, such as `/etc/hosts`. It keeps its inode, by which
/// containers that run know it.
pub(crate) fn write_in_place(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if fs::read(path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent, 0o750)?;
    }
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// What `hostPath.type` of the API asks for.
fn check_host_path(path: &Path, kind: &str) -> io::Result<()> {
    let wrong =
        |what: &str| Err(io::Error::other(format!("hostPath type check failed: {} {what}", path.display())));
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return wrong("must be absolute and have no ..");
    }
    let found = fs::metadata(path).ok().map(|found| found.file_type());
    match (kind, found) {
        ("DirectoryOrCreate", None) => make_directory(path, 0o755),
        // An absent path of no type is made by the runtime as a directory; ours makes it for all runtimes.
        ("", None) => make_directory(path, 0o755),
        ("FileOrCreate", None) => {
            fs::OpenOptions::new().create(true).append(true).mode(0o644).open(path).map(drop)
        }
        ("", Some(_)) => Ok(()),
        ("Directory" | "DirectoryOrCreate", found) if !found.is_some_and(|found| found.is_dir()) => {
            wrong("is not a directory")
        }
        ("File" | "FileOrCreate", found) if !found.is_some_and(|found| found.is_file()) => {
            wrong("is not a file")
        }
        ("Socket", found) if !found.is_some_and(|found| found.is_socket()) => wrong("is not a socket file"),
        ("CharDevice", found) if !found.is_some_and(|found| found.is_char_device()) => {
            wrong("is not a character device")
        }
        ("BlockDevice", found) if !found.is_some_and(|found| found.is_block_device()) => {
            wrong("is not a block device")
        }
        (_, None) => wrong("is absent"),
        (_, Some(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
