//! Whose the files of a volume are: `fsGroup`, as the API defines it.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::Path,
};

/// The group that a pod's volumes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) id: u32,
    /// `fsGroupChangePolicy: OnRootMismatch`: files are left as they are if the volume's root is as it should be.
    pub(crate) only_on_mismatch: bool,
}

/// What the group may do with a file: read, and write if the volume can be written to.
pub(super) fn file_bits(writable: bool) -> u32 {
    if writable { 0o660 } else { 0o440 }
}

/// And with a directory: enter it too; what is made in it gets the group.
fn directory_bits(writable: bool) -> u32 {
    file_bits(writable) | 0o2110
}

/// Gives all of a volume to the group. Links are not followed.
pub(super) fn give(root: &Path, group: Group, writable: bool) -> io::Result<()> {
    let found = fs::symlink_metadata(root)?;
    let bits = directory_bits(writable);
    if group.only_on_mismatch && found.gid() == group.id && found.mode() & bits == bits {
        return Ok(());
    }
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let found = fs::symlink_metadata(&path)?;
        if found.gid() != group.id {
            lchown(&path, None, Some(group.id))?;
        }
        if found.is_symlink() {
            continue;
        }
        let bits = if found.is_dir() { directory_bits(writable) } else { file_bits(writable) };
        let mode = found.mode() & 0o7777;
        if mode & bits != bits {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode | bits))?;
        }
        if found.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_volume_is_given_to_its_group_without_following_links() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "").unwrap();
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("sub")).unwrap();
        fs::write(root.path().join("sub/file"), "").unwrap();
        fs::set_permissions(root.path().join("sub/file"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink(outside.path(), root.path().join("out")).unwrap();
        // Whoever runs the tests may give files to a group of their own only.
        let id = if rustix::process::getuid().is_root() { 4242 } else { rustix::process::getgid().as_raw() };
        let before = fs::metadata(outside.path().join("secret")).unwrap();
        give(root.path(), Group { id, only_on_mismatch: true }, true).unwrap();
        let of = |path: &str| fs::symlink_metadata(root.path().join(path)).unwrap();
        assert_eq!((of("sub/file").gid(), of("sub/file").mode() & 0o7777), (id, 0o660));
        assert_eq!((of("sub").gid(), of("sub").mode() & 0o2070), (id, 0o2070));
        assert_eq!(of("out").gid(), id);
        let after = fs::metadata(outside.path().join("secret")).unwrap();
        assert_eq!((before.gid(), before.mode()), (after.gid(), after.mode()));
        // With the root as it should be, the rest is left alone.
        fs::set_permissions(root.path().join("sub/file"), fs::Permissions::from_mode(0o600)).unwrap();
        give(root.path(), Group { id, only_on_mismatch: true }, true).unwrap();
        assert_eq!(of("sub/file").mode() & 0o777, 0o600);
        give(root.path(), Group { id, only_on_mismatch: false }, true).unwrap();
        assert_eq!(of("sub/file").mode() & 0o777, 0o660);
    }
}
