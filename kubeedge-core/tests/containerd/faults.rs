//! A runtime that goes, comes back, and runs out of room.

use std::{
    fs,
    io::Write,
    process::Command,
    time::{Duration, Instant},
};

use kubeedge_core::runtime::{ContainerRuntime, ContainerState, Images, RuntimeError};

use crate::{Running, adapter, sleeper, support};

pub(crate) async fn run(mut containerd: support::Containerd) {
    a_runtime_that_goes_is_unavailable_and_found_again(&mut containerd).await;
    a_full_disk_is_said_to_be_full(&mut containerd).await;
}

async fn a_runtime_that_goes_is_unavailable_and_found_again(containerd: &mut support::Containerd) {
    let pod = Running::start(containerd, "outlives", |_| {}, |_| {}).await;
    let before = pod.runtime.observe().await.unwrap();
    containerd.stop();
    let asked = Instant::now();
    let outcomes = [
        pod.runtime.info().await.map(drop),
        pod.runtime.observe().await.map(drop),
        pod.runtime.pull(support::IMAGE, None).await.map(drop),
        pod.runtime.exec(&pod.id, &["true".into()], Duration::from_secs(5)).await.map(drop),
        pod.runtime.stats().await.map(drop),
        pod.runtime.stop_container(&pod.id, Duration::from_secs(1)).await,
    ];
    for outcome in outcomes {
        assert!(matches!(outcome, Err(RuntimeError::Unavailable { .. })), "{outcome:?}");
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "nobody waits for what is not there");
    containerd.start_again();
    let after = loop {
        match pod.runtime.observe().await {
            Ok(after) => break after,
            // It listens a moment before it has read what it has.
            Err(RuntimeError::Unavailable { .. }) if asked.elapsed() < Duration::from_secs(60) => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(before, after, "what ran runs on, and is seen as it was");
    assert!(matches!(after[0].containers[0].state, ContainerState::Running { .. }));
    assert_eq!(pod.sh("echo still").await.unwrap(), "still");
    pod.remove().await;
}

async fn a_full_disk_is_said_to_be_full(containerd: &mut support::Containerd) {
    containerd.stop();
    let (root, old) = (containerd.directory().join("root"), containerd.directory().join("root.old"));
    fs::rename(&root, &old).unwrap();
    fs::create_dir(&root).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
    };
    run("mount", &["-t", "tmpfs", "-o", "size=64m", "tmpfs", root.to_str().unwrap()]);
    run("cp", &["-a", &format!("{}/.", old.display()), root.to_str().unwrap()]);
    containerd.start_again();
    while adapter(containerd).info().await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pod = Running::start(containerd, "full", |_| {}, |_| {}).await;
    let mut fill = fs::File::create(root.join("fill")).unwrap();
    while fill.write_all(&[0; 1 << 16]).is_ok() {}
    let mut config = sleeper("more");
    config.args = vec!["sleep 1".into()];
    let full = pod.runtime.create_container(&pod.sandbox, &config).await;
    assert!(matches!(full, Err(RuntimeError::NoSpace { .. })), "{full:?}");
    drop(fill);
    fs::remove_file(root.join("fill")).unwrap();
    pod.runtime.create_container(&pod.sandbox, &config).await.expect("with room again, it goes on");
    pod.remove().await;
}
