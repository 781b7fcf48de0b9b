//! The file of a socket: who may connect, and what happens to what was there.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::super::{Socket, SocketError, check_path, file_id};

#[tokio::test]
async fn a_file_of_an_earlier_run_is_replaced_and_the_own_one_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/dmi.sock");
    fs::create_dir(folder.path().join("run")).unwrap();
    // A process that was killed leaves its file.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let stale = file_id(&path);
    let socket = Socket::listen(&path, 4).unwrap();
    assert_ne!(file_id(&path), stale);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_socket_on_which_another_process_serves_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dmi.sock");
    let socket = Socket::listen(&path, 4).unwrap();
    assert!(matches!(Socket::listen(&path, 4), Err(SocketError::InUse(_))));
    drop(socket);
    // A successor's file is not removed either.
    let first = Socket::listen(&path, 4).unwrap();
    fs::remove_file(&path).unwrap();
    let second = Socket::listen(&path, 4).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
}

#[tokio::test]
async fn a_path_that_can_be_no_sockets_is_named() {
    let long = format!("/tmp/{}", "x".repeat(100));
    for (path, why) in [("dmi.sock", "absolute"), ("/tmp/", "absolute"), (long.as_str(), "103")] {
        let error = check_path(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains(why), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes");
    fs::write(&file, "precious").unwrap();
    assert!(Socket::listen(&file, 4).unwrap_err().to_string().contains("no socket"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}
