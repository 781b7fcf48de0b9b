//! Mounts of our own: file systems in memory, and parts of volumes. All are below a pod's directory, so that an
//! earlier process's are found again, whatever became of it.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::{fd::AsFd, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags};

/// Mounts a file system in memory on a directory, of at most `bytes` if given, unless that was done before.
pub(super) fn memory(directory: &Path, bytes: Option<u64>, mode: u32) -> io::Result<()> {
    if mounted_below(&[directory.to_owned()])?.iter().any(|mount| mount == directory) {
        return Ok(());
    }
    let size = bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
    let options = CString::new(format!("mode={mode:o}{size}")).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    // A program may be put into an emptyDir and run from there, so it is not mounted with noexec.
    rustix::mount::mount("tmpfs", directory, "tmpfs", flags, options.as_c_str()).map_err(io::Error::from)
}

/// Mounts what is open on `target`, a file or directory that is there.
pub(super) fn bind(open: impl AsFd, target: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let source = format!("/proc/self/fd/{}", open.as_fd().as_raw_fd());
    rustix::mount::mount_bind(source, target).map_err(io::Error::from)
}

/// Whether the process may not mount at all, as opposed to this mount having failed.
pub(super) fn is_not_allowed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Unmounts all that is mounted on or below the directories.
pub(super) fn unmount_below(directories: &[PathBuf]) -> io::Result<()> {
    for mount in mounted_below(directories)?.iter().rev() {
        // What still uses it keeps it until it ends.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(mount, flags).map_err(|error| {
            let message = format!("unmount {}: {error}", mount.display());
            io::Error::new(io::Error::from(error).kind(), message)
        })?;
    }
    Ok(())
}

/// The mounts on and below the directories, in the order in which they were made.
fn mounted_below(directories: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    // The kernel names real paths.
    let pairs: Vec<(PathBuf, &PathBuf)> =
        directories.iter().filter_map(|given| Some((given.canonicalize().ok()?, given))).collect();
    let table = fs::read("/proc/self/mountinfo")?;
    let mounts = table.split(|byte| *byte == b'\n').filter_map(mount_point);
    let as_given = |mount: PathBuf| {
        pairs.iter().find_map(|(real, given)| {
            let rest = mount.strip_prefix(real).ok()?;
            Some(if rest.as_os_str().is_empty() { (*given).clone() } else { given.join(rest) })
        })
    };
    Ok(mounts.filter_map(as_given).collect())
}

/// The fifth field of a line of mountinfo (proc(5)); white space and backslashes in it are octal numbers.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_read_with_its_white_space() {
        let line = br"36 35 98:0 / /mnt/a\040b\134c rw,noatime shared:1 - tmpfs tmpfs rw,size=1k";
        assert_eq!(mount_point(line), Some(PathBuf::from(r"/mnt/a b\c")));
        assert_eq!(mount_point(b""), None);
    }

    #[test]
    fn a_file_system_in_memory_is_mounted_once_found_again_and_unmounted() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a b");
        fs::create_dir(&directory).unwrap();
        match memory(&directory, Some(64 << 10), 0o777) {
            Ok(()) => {}
            Err(error) if is_not_allowed(&error) => return,
            Err(error) => panic!("{error}"),
        }
        memory(&directory, Some(64 << 10), 0o777).unwrap();
        assert_eq!(mounted_below(&[root.path().to_owned()]).unwrap(), std::slice::from_ref(&directory));
        let full = fs::write(directory.join("large"), vec![0; 128 << 10]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        unmount_below(&[root.path().to_owned()]).unwrap();
        assert!(mounted_below(&[root.path().to_owned()]).unwrap().is_empty());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }
}
