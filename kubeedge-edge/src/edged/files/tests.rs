use std::{collections::BTreeMap, os::unix::fs::MetadataExt};

use super::*;
use crate::edged::volumes::{File, Files};

fn prepare_with(root: &Path, name: &str, made: Made, group: Option<Group>) -> io::Result<()> {
    prepare(&Prepare {
        directory: root.join("pod"),
        logs: root.join("logs"),
        volumes: BTreeMap::from([(name.to_owned(), made)]),
        group,
        memory: true,
    })
}

fn may_mount(root: &Path) -> bool {
    fs::create_dir(root.join("try")).unwrap();
    let mounted = mounts::memory(&root.join("try"), None, 0o755).is_ok();
    remove(&[root.join("try")]).unwrap();
    mounted
}

#[test]
fn each_type_of_a_host_path_is_checked_and_made_where_the_api_says_so() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::create_dir(path("directory")).unwrap();
    fs::write(path("file"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    let check = |name: &str, kind: &str| check_host_path(&path(name), kind).is_ok();
    for (kind, good) in [("Directory", "directory"), ("File", "file"), ("Socket", "socket")] {
        for name in ["directory", "file", "socket", "absent"] {
            assert_eq!(check(name, kind), name == good, "{kind} {name}");
        }
    }
    assert!(check_host_path(Path::new("/dev/null"), "CharDevice").is_ok());
    assert!(!check("file", "CharDevice") && !check("file", "BlockDevice") && !check("absent", "BlockDevice"));
    assert!(check("made/deep", "DirectoryOrCreate") && path("made/deep").is_dir());
    assert!(!check("file", "DirectoryOrCreate") && !check("directory", "FileOrCreate"));
    assert!(check("made/file", "FileOrCreate") && path("made/file").is_file());
    assert!(!check("nowhere/file", "FileOrCreate"), "its directory is not made");
    assert!(check("file", "") && check("any", "") && path("any").is_dir());
    assert!(check_host_path(Path::new("relative"), "").is_err());
    assert!(check_host_path(&path("directory/../file"), "File").is_err());
    let error = check_host_path(&path("file"), "Directory").unwrap_err().to_string();
    assert!(
        error.starts_with("hostPath type check failed") && error.ends_with("is not a directory"),
        "{error}"
    );
}

#[test]
fn secrets_lie_in_memory_and_nothing_of_them_is_left_when_the_pod_goes() {
    let root = tempfile::tempdir().unwrap();
    let may_mount = may_mount(root.path());
    let files = Files::from([("key".to_owned(), File::new(b"1".to_vec(), 0o400))]);
    for _ in 0..2 {
        // The second time is that of a process that finds what a killed one has left.
        let made = Made::Files { files: files.clone(), in_memory: true };
        prepare_with(root.path(), "secret", made, None).unwrap();
    }
    let volume = root.path().join("pod/volumes/secret");
    assert_eq!(fs::read_to_string(volume.join("key")).unwrap(), "1");
    let apart = fs::metadata(&volume).unwrap().dev() != fs::metadata(root.path()).unwrap().dev();
    assert_eq!(apart, may_mount);
    remove(&[root.path().join("pod"), root.path().join("logs"), root.path().join("absent")]).unwrap();
    assert!(!root.path().join("pod").exists());
}

#[test]
fn an_empty_volume_in_memory_has_its_size_and_keeps_what_is_in_it() {
    let root = tempfile::tempdir().unwrap();
    let empty = || Made::Empty { bytes: Some(Some(1 << 20)) };
    if !may_mount(root.path()) {
        let error = prepare_with(root.path(), "fast", empty(), None).unwrap_err().to_string();
        assert!(error.contains("volume \"fast\" : "), "{error}");
        return;
    }
    prepare_with(root.path(), "fast", empty(), None).unwrap();
    let volume = root.path().join("pod/volumes/fast");
    assert_eq!(rustix::fs::statvfs(&volume).unwrap().f_blocks * 4096, 1 << 20);
    assert_eq!(fs::metadata(&volume).unwrap().mode() & 0o777, 0o777);
    fs::write(volume.join("kept"), "1").unwrap();
    prepare_with(root.path(), "fast", empty(), None).unwrap();
    assert!(volume.join("kept").exists());
    remove(&[root.path().join("pod")]).unwrap();
    assert!(!volume.exists());
}

#[test]
fn volumes_belong_to_the_group_of_the_pod() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let group = Some(Group { id: 4242, only_on_mismatch: false });
    prepare_with(root.path(), "empty", Made::Empty { bytes: None }, group).unwrap();
    let found = fs::metadata(root.path().join("pod/volumes/empty")).unwrap();
    assert_eq!((found.gid(), found.mode() & 0o7777), (4242, 0o2777));
    // Storage of its own is given away once; what a container then does with it is the container's.
    let local = root.path().join("local");
    fs::create_dir(&local).unwrap();
    let given = || {
        prepare_with(root.path(), "local", Made::Local { path: local.clone() }, group).unwrap();
        fs::metadata(&local).unwrap().mode() & 0o2070
    };
    assert_eq!(given(), 0o2070);
    fs::set_permissions(&local, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(given(), 0);
    let mut file = File::new(b"x".to_vec(), 0o440);
    (file.user, file.group) = (Some(1000), Some(4242));
    let files = Files::from([("token".to_owned(), file)]);
    prepare_with(root.path(), "token", Made::Files { files, in_memory: false }, group).unwrap();
    let found = fs::metadata(root.path().join("pod/volumes/token/token")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (1000, 4242, 0o440));
}

#[test]
fn a_file_that_containers_see_keeps_its_inode_when_its_text_changes() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("pod/etc-hosts");
    write_in_place(&path, "one", 0o644).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    write_in_place(&path, "two", 0o644).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(fs::read_to_string(&path).unwrap(), "two");
}
