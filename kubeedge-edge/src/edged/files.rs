//! The directories of pods: volumes made of objects are replaced whole, as the kubelet does it.
//!
//! Each version of a volume is a directory of its own beside the others; `..data` is a link to the one that
//! counts, and each file of the volume is a link through `..data`. Renaming one link changes all files at once,
//! so a container never sees half an update.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    action::Prepare,
    resolve::is_inside,
    volumes::{File, Files},
};

/// The link to the version that counts.
const DATA: &str = "..data";

/// Makes a pod's directories and volumes as they should be. Files that are as they should be are not written.
pub(crate) fn prepare(prepare: &Prepare) -> io::Result<()> {
    make_directory(&prepare.volumes, 0o750)?;
    make_directory(&prepare.logs, 0o755)?;
    for name in &prepare.empty {
        let path = prepare.volumes.join(name);
        if !path.is_dir() {
            make_directory(&path, 0o777)?;
            // The umask must not take from what every user of the pod may do.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        }
    }
    for (name, files) in &prepare.files {
        write_volume(&prepare.volumes.join(name), files)?;
    }
    prepare.host_paths.iter().try_for_each(|(path, kind)| check_host_path(path, kind))
}

/// Removes directories; those that are not there are fine.
pub(crate) fn remove(directories: &[PathBuf]) -> io::Result<()> {
    for directory in directories {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The path of a part of a volume, which is made if it is absent and must not lead out of the volume.
pub(crate) fn sub_path(volume: &Path, sub_path: &str) -> io::Result<PathBuf> {
    let outside = || io::Error::other(format!("subPath {sub_path:?} leads out of its volume"));
    if !is_inside(sub_path) {
        return Err(outside());
    }
    let volume = volume.canonicalize()?;
    // A link that a container put into its volume would be followed by mount, so look where the path really
    // leads, and make directories only below what was looked at.
    let mut path = volume.clone();
    for part in Path::new(sub_path).components() {
        let next = path.join(part);
        if fs::symlink_metadata(&next).is_err() {
            make_directory(&next, 0o755)?;
        }
        path = next.canonicalize()?;
        if !path.starts_with(&volume) {
            return Err(outside());
        }
    }
    Ok(path)
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// What `hostPath.type` of the API asks for.
fn check_host_path(path: &Path, kind: &str) -> io::Result<()> {
    let wrong = |what: &str| Err(io::Error::other(format!("hostPath {}: {what}", path.display())));
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return wrong("it must be absolute and have no ..");
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
        (_, None) => wrong("it is absent"),
        ("Directory" | "DirectoryOrCreate", Some(found)) if !found.is_dir() => wrong("it is no directory"),
        ("File" | "FileOrCreate", Some(found)) if !found.is_file() => wrong("it is no file"),
        ("Socket", Some(found)) if !found.is_socket() => wrong("it is no socket"),
        ("CharDevice", Some(found)) if !found.is_char_device() => wrong("it is no character device"),
        ("BlockDevice", Some(found)) if !found.is_block_device() => wrong("it is no block device"),
        (_, Some(_)) => Ok(()),
    }
}

/// Writes a version of the volume and makes it the one that counts, unless that one is the same already.
pub(crate) fn write_volume(volume: &Path, files: &Files) -> io::Result<()> {
    make_directory(volume, 0o755)?;
    let data = volume.join(DATA);
    let old = fs::read_link(&data).ok();
    if let Some(old) = &old
        && read_tree(&volume.join(old)).is_ok_and(|found| found == *files)
    {
        return link_names(volume, files);
    }
    let version = format!("..{}", SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos()));
    for (path, file) in files {
        write_file(&volume.join(&version).join(path), file)?;
    }
    make_directory(&volume.join(&version), 0o755)?;
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
    Ok(())
}

fn write_file(path: &Path, file: &File) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_directory(parent, 0o755)?;
    }
    fs::write(path, &file.bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(file.mode))
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

fn read_tree(root: &Path) -> io::Result<Files> {
    let mut files = Files::new();
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
                let mode = found.permissions().mode() & 0o777;
                files.insert(path, File { bytes: fs::read(entry.path())?, mode });
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> Files {
        let file = |text: &str| File { bytes: text.as_bytes().to_vec(), mode: 0o640 };
        pairs.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    #[test]
    fn a_volume_is_replaced_whole_and_keeps_nothing_of_before() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("config");
        write_volume(&volume, &files(&[("a.conf", "1"), ("sub/b.conf", "2")])).unwrap();
        assert_eq!(fs::read_to_string(volume.join("sub/b.conf")).unwrap(), "2");
        assert_eq!(fs::metadata(volume.join("a.conf")).unwrap().permissions().mode() & 0o777, 0o640);
        write_volume(&volume, &files(&[("a.conf", "3")])).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a.conf")).unwrap(), "3");
        assert!(fs::symlink_metadata(volume.join("sub")).is_err());
        let names: Vec<_> = fs::read_dir(&volume).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
    }

    #[test]
    fn a_volume_that_is_as_it_should_be_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        write_volume(root.path(), &files(&[("a", "1")])).unwrap();
        let version = fs::read_link(root.path().join(DATA)).unwrap();
        write_volume(root.path(), &files(&[("a", "1")])).unwrap();
        assert_eq!(fs::read_link(root.path().join(DATA)).unwrap(), version);
    }

    #[test]
    fn a_sub_path_does_not_follow_a_link_out_of_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        fs::create_dir(&volume).unwrap();
        symlink(root.path(), volume.join("out")).unwrap();
        assert!(sub_path(&volume, "out").is_err());
        assert!(sub_path(&volume, "out/new").is_err());
        assert!(!root.path().join("new").exists());
        assert!(sub_path(&volume, "../x").is_err());
        assert!(sub_path(&volume, "fine/deep").unwrap().is_dir());
    }
}
