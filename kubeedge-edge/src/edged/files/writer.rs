//! Volumes made of objects are replaced whole, as the kubelet does it.
//!
//! Each version of a volume is a directory of its own beside the others; `..data` is a link to the one that
//! counts, and each file of the volume is a link through `..data`. Renaming one link changes all files at once,
//! so a container never sees half an update. On a disk a version is written down before it counts, so that a
//! power cut leaves the old one or the new one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use super::make_directory;
use crate::edged::volumes::{File, Files};

/// The link to the version that counts.
const DATA: &str = "..data";

/// Writes a version of the volume and makes it the one that counts, unless that one is the same already.
/// `durable` says whether it lies on a disk.
pub(super) fn write(volume: &Path, files: &Files, durable: bool) -> io::Result<()> {
    let data = volume.join(DATA);
    let old = fs::read_link(&data).ok();
    if let Some(old) = &old
        && is_as_wanted(&volume.join(old), files).unwrap_or(false)
    {
        return link_names(volume, files);
    }
    let version = format!("..{}", SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos()));
    let directory = volume.join(&version);
    make_directory(&directory, 0o755)?;
    for (path, file) in files {
        write_file(&directory, path, file, durable)?;
    }
    let next = volume.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&version, &next)?;
    fs::rename(&next, &data)?;
    link_names(volume, files)?;
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_version = name.as_encoded_bytes().starts_with(b"..") && entry.file_type()?.is_dir();
        if is_version && name != version.as_str() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    if durable { fs::File::open(volume)?.sync_all() } else { Ok(()) }
}

fn write_file(version: &Path, path: &str, file: &File, durable: bool) -> io::Result<()> {
    let target = version.join(path);
    let parents: Vec<&Path> =
        target.ancestors().skip(1).take_while(|parent| parent.starts_with(version)).collect();
    if let Some(parent) = parents.first() {
        make_directory(parent, 0o755)?;
    }
    // Not readable by others for a moment either.
    let mut open = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&target)?;
    open.write_all(&file.bytes)?;
    if file.user.or(file.group).is_some() {
        lchown(&target, file.user, file.group)?;
    }
    open.set_permissions(fs::Permissions::from_mode(file.mode))?;
    if durable {
        open.sync_all()?;
        for parent in parents {
            fs::File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

/// Makes the visible names lead through `..data`, and removes those that are no more.
fn link_names(volume: &Path, files: &Files) -> io::Result<()> {
    let first = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let wanted: BTreeSet<String> = files.keys().map(first).collect();
    for entry in fs::read_dir(volume)? {
        let name = entry?.file_name();
        let known = name.to_str().is_some_and(|name| name.starts_with("..") || wanted.contains(name));
        if !known {
            fs::remove_file(volume.join(&name))?;
        }
    }
    for name in wanted {
        let link = volume.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(&name), &link)?;
        }
    }
    Ok(())
}

fn is_as_wanted(version: &Path, files: &Files) -> io::Result<bool> {
    let found = read_tree(version)?;
    let same = |(found, wanted): (&File, &File)| {
        found.bytes == wanted.bytes
            && found.mode == wanted.mode
            && (wanted.user.is_none() || wanted.user == found.user)
            && (wanted.group.is_none() || wanted.group == found.group)
    };
    Ok(found.keys().eq(files.keys()) && found.values().zip(files.values()).all(same))
}

fn read_tree(root: &Path) -> io::Result<Files> {
    let mut files: Files = BTreeMap::new();
    let mut open = vec![String::new()];
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(root.join(&below))? {
            let entry = entry?;
            let name =
                entry.file_name().into_string().map_err(|_| io::Error::other("a name is not UTF-8"))?;
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            let found = entry.metadata()?;
            if found.is_dir() {
                open.push(path);
            } else {
                let (user, group) = (Some(found.uid()), Some(found.gid()));
                let mode = found.mode() & 0o777;
                files.insert(path, File { bytes: fs::read(entry.path())?, mode, user, group });
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        let file = |text: &str| File::new(text.as_bytes().to_vec(), 0o640);
        pairs.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    #[test]
    fn a_volume_is_replaced_whole_and_keeps_nothing_of_before() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("config");
        fs::create_dir(&volume).unwrap();
        write(&volume, &files(&[("a.conf", "1"), ("sub/b.conf", "2")]), true).unwrap();
        assert_eq!(fs::read_to_string(volume.join("sub/b.conf")).unwrap(), "2");
        assert_eq!(fs::metadata(volume.join("a.conf")).unwrap().permissions().mode() & 0o777, 0o640);
        write(&volume, &files(&[("a.conf", "3")]), true).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a.conf")).unwrap(), "3");
        assert!(fs::symlink_metadata(volume.join("sub")).is_err());
        let names: Vec<_> = fs::read_dir(&volume).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn a_volume_that_is_as_it_should_be_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &files(&[("a", "1")]), true).unwrap();
        let version = fs::read_link(root.path().join(DATA)).unwrap();
        write(root.path(), &files(&[("a", "1")]), true).unwrap();
        assert_eq!(fs::read_link(root.path().join(DATA)).unwrap(), version);
    }

    #[test]
    fn what_was_half_written_or_changed_by_hand_is_written_again() {
        let root = tempfile::tempdir().unwrap();
        let wanted = files(&[("a", "1"), ("b/c", "2")]);
        write(root.path(), &wanted, true).unwrap();
        fs::write(root.path().join("a"), "").unwrap();
        write(root.path(), &wanted, true).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("a")).unwrap(), "1");
        fs::set_permissions(root.path().join("b/c"), fs::Permissions::from_mode(0o600)).unwrap();
        write(root.path(), &wanted, true).unwrap();
        assert_eq!(fs::metadata(root.path().join("b/c")).unwrap().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_reader_of_two_files_never_sees_them_of_two_versions() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().to_owned();
        write(&volume, &files(&[("a", "0"), ("b", "0")]), false).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..200 {
                    let text = number.to_string();
                    write(&volume, &files(&[("a", &text), ("b", &text)]), false).unwrap();
                }
                stop.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                // One look at `..data` is one version, for as long as it is there.
                let Ok(version) = fs::canonicalize(volume.join(DATA)) else { continue };
                let read = |name: &str| fs::read_to_string(version.join(name));
                if let (Ok(a), Ok(b)) = (read("a"), read("b")) {
                    assert_eq!(a, b);
                }
            }
        });
    }
}
