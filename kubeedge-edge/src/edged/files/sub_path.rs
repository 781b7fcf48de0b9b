//! Parts of volumes: `subPath` and `subPathExpr`.
//!
//! A container can put a link into its volume at any time, also between our looking at a path and the runtime's
//! mounting it. So what was looked at is held open, and mounted at a place where no container can reach.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{make_directory, mounts};
use crate::edged::resolve::is_inside;

/// A path of the node at which a part of `volume` can be mounted from. The part is made as a directory if it is
/// absent, and must not lead out of the volume. `place` is where it is held; nothing else may be there.
pub(crate) fn hold(volume: &Path, sub_path: &str, place: &Path) -> io::Result<PathBuf> {
    let real = find(volume, sub_path)?;
    match open_and_mount(volume, &real, place) {
        Ok(()) => Ok(place.to_owned()),
        // Without the right to mount, a container that races us could only be stopped by its own rights.
        Err(error) if mounts::is_not_allowed(&error) => Ok(real),
        Err(error) => Err(error),
    }
}

/// Where the path really leads; directories are made only below what was looked at.
fn find(volume: &Path, sub_path: &str) -> io::Result<PathBuf> {
    let outside = || io::Error::other(format!("subPath {sub_path:?} leads out of its volume"));
    if !is_inside(sub_path) {
        return Err(outside());
    }
    let volume = volume.canonicalize()?;
    let mode = fs::metadata(&volume)?.mode() & 0o777;
    let mut path = volume.clone();
    for part in Path::new(sub_path).components() {
        let next = path.join(part);
        if fs::symlink_metadata(&next).is_err() {
            // The umask must not take from what the volume itself allows.
            fs::DirBuilder::new().mode(mode).create(&next)?;
            fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        }
        path = next.canonicalize()?;
        if !path.starts_with(&volume) {
            return Err(outside());
        }
    }
    Ok(path)
}

fn open_and_mount(volume: &Path, real: &Path, place: &Path) -> io::Result<()> {
    let open = open(&volume.canonicalize()?, real)?;
    mounts::unmount_below(&[place.to_owned()])?;
    let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&open)?.st_mode).is_dir();
    if let Some(parent) = place.parent() {
        make_directory(parent, 0o750)?;
    }
    // What was held there before may have been of the other sort.
    let _ = fs::remove_dir(place).or_else(|_| fs::remove_file(place));
    if is_directory {
        make_directory(place, 0o750)?;
    } else {
        fs::File::create(place)?;
    }
    mounts::bind(open, place)
}

/// Opens a path of which no part is a link any more, if that is still so.
fn open(volume: &Path, real: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags | OFlags::DIRECTORY, Mode::empty())?;
    let below = real.strip_prefix(volume).map_err(io::Error::other)?;
    if below.as_os_str().is_empty() {
        return Ok(root);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, below, flags, Mode::empty(), resolve)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_sub_path_does_not_follow_a_link_out_of_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        fs::create_dir(&volume).unwrap();
        symlink(root.path(), volume.join("out")).unwrap();
        assert!(find(&volume, "out").is_err());
        assert!(find(&volume, "out/new").is_err());
        assert!(!root.path().join("new").exists());
        assert!(find(&volume, "../x").is_err());
        assert!(find(&volume, "fine/deep").unwrap().is_dir());
    }

    #[test]
    fn a_link_that_came_after_the_look_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().canonicalize().unwrap().join("volume");
        fs::create_dir(&volume).unwrap();
        let real = find(&volume, "data").unwrap();
        assert!(open(&volume, &real).is_ok());
        fs::remove_dir(&real).unwrap();
        symlink("/etc", &real).unwrap();
        assert!(open(&volume, &real).is_err());
    }

    #[test]
    fn a_part_is_made_as_open_as_its_volume_and_held_where_it_was() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
        symlink("real", volume.join("link")).unwrap();
        fs::create_dir(volume.join("real")).unwrap();
        fs::write(volume.join("real/file"), "1").unwrap();
        let place = root.path().join("held/0");
        let held = hold(&volume, "link/file", &place).unwrap();
        assert_eq!(fs::read_to_string(&held).unwrap(), "1");
        let again = hold(&volume, "new/sub", &place).unwrap();
        assert_eq!(fs::metadata(&again).unwrap().mode() & 0o777, 0o777);
        mounts::unmount_below(&[root.path().to_owned()]).unwrap();
        assert!(volume.join("new/sub").is_dir());
    }
}
