use std::{fs, os::unix::process::CommandExt, path::Path, process::Command, time::Instant};

use super::{
    inner::find,
    record::{Container, Phase},
    *,
};
use crate::{
    id::Uid,
    runtime::{ContainerState, Mount},
};

fn open(directory: &Path) -> ProcessRuntime {
    ProcessRuntime::open(Config { directory: directory.join("runtime") }).unwrap()
}

fn shell(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        command: vec!["/bin/sh".into(), "-c".into()],
        args: vec![script.into()],
        log_path: format!("{name}/0.log").into(),
        ..ContainerConfig::default()
    }
}

async fn sandbox(runtime: &ProcessRuntime, directory: &Path) -> SandboxId {
    let config = SandboxConfig {
        name: "p".into(),
        namespace: "default".into(),
        uid: Uid::new("p"),
        log_directory: directory.join("logs"),
        ..SandboxConfig::default()
    };
    runtime.run_sandbox(&config).await.unwrap()
}

async fn start(runtime: &ProcessRuntime, sandbox: &SandboxId, config: &ContainerConfig) -> ContainerId {
    let id = runtime.create_container(sandbox, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    id
}

async fn state(runtime: &ProcessRuntime) -> ContainerState {
    runtime.observe().await.unwrap()[0].containers[0].state.clone()
}

async fn log_has(directory: &Path, name: &str, text: &str) {
    let path = directory.join("logs").join(name).join("0.log");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !fs::read_to_string(&path).unwrap_or_default().contains(text) {
        assert!(Instant::now() < deadline, "{text:?} is not in {:?}", fs::read_to_string(&path));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(feature = "conformance")]
#[tokio::test]
async fn the_process_runtime_is_a_container_runtime() {
    use crate::runtime::conformance::{self, Workload};
    let directory = tempfile::tempdir().unwrap();
    let workload = Workload::new("none", &directory.path().join("logs"))
        .with_logs()
        .without_images()
        .without_reopening();
    conformance::run(async || open(directory.path()), &workload).await;
}

#[tokio::test]
async fn a_container_has_its_own_environment_and_finds_its_mounts_below_its_root() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = open(directory.path());
    let files = directory.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("key"), "content").unwrap();
    let sandbox = sandbox(&runtime, directory.path()).await;
    let mut config = shell("app", "cat etc/app/key $CONTAINER_ROOT/etc/app/key; echo; env");
    config.env = vec![("WORD".into(), "given".into())];
    config.mounts = vec![Mount {
        container_path: "/etc/app".into(),
        host_path: files,
        read_only: true,
        ..Mount::default()
    }];
    start(&runtime, &sandbox, &config).await;
    log_has(directory.path(), "app", "WORD=given").await;
    let log = fs::read_to_string(directory.path().join("logs/app/0.log")).unwrap();
    assert!(log.starts_with("contentcontent\n"), "{log}");
    assert!(!log.contains("CARGO"), "the environment of this program is not the container's: {log}");
    runtime.remove_sandbox(&sandbox).await.unwrap();
    assert!(directory.path().join("files/key").exists(), "links are removed, not what they lead to");
}

#[tokio::test]
async fn without_a_command_there_is_nothing_to_run() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = open(directory.path());
    let sandbox = sandbox(&runtime, directory.path()).await;
    let refused = runtime.create_container(&sandbox, &ContainerConfig::default()).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::Invalid { .. }));
    assert!(refused.to_string().contains("needs a command"), "{refused}");
}

#[tokio::test]
async fn a_process_is_adopted_and_logs_on_and_its_end_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let sandbox = sandbox(&first, directory.path()).await;
    let script = "echo one; while [ ! -e go ]; do sleep 0.02; done; echo two; exit 4";
    start(&first, &sandbox, &shell("app", script)).await;
    log_has(directory.path(), "app", "one").await;
    let before = state(&first).await;
    drop(first);
    let second = open(directory.path());
    assert_eq!(state(&second).await, before);
    let root = fs::read_dir(directory.path().join("runtime").join(&sandbox.0)).unwrap();
    let container = root.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    fs::write(container.join("root/go"), "").unwrap();
    log_has(directory.path(), "app", "two").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // Nobody that could tell the exit code saw it, and the zombie of the test's own process has ended.
        if let ContainerState::Exited { exit_code, .. } = state(&second).await {
            assert_eq!(exit_code, None);
            break;
        }
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_end_that_cannot_be_recorded_is_told_once_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let sandbox = sandbox(&first, directory.path()).await;
    let id = start(&first, &sandbox, &shell("app", "echo up; while [ ! -e go ]; do sleep 0.02; done")).await;
    log_has(directory.path(), "app", "up").await;
    let container = directory.path().join("runtime").join(&sandbox.0).join(&id.0);
    // The next record is written beside the old one, and a directory in that place makes it fail.
    fs::create_dir(container.join("container.tmp")).unwrap();
    fs::write(container.join("root/go"), "").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while first.inner.is_alive(&id).is_ok() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(matches!(state(&first).await, ContainerState::Running { .. }), "nothing else is durable");
    fs::remove_dir(container.join("container.tmp")).unwrap();
    let ContainerState::Exited { exit_code, .. } = state(&first).await else { panic!("it runs") };
    assert_eq!(exit_code, Some(0));
    drop(first);
    let ContainerState::Exited { exit_code, .. } = state(&open(directory.path())).await else { panic!() };
    assert_eq!(exit_code, Some(0), "the record has it too");
}

#[tokio::test]
async fn another_process_with_the_recorded_id_is_neither_adopted_nor_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let sandbox = sandbox(&first, directory.path()).await;
    let id = start(&first, &sandbox, &shell("app", "exec sleep 60")).await;
    first.remove_container(&id).await.unwrap();
    drop(first);
    let mut stranger = Command::new("sleep").arg("60").process_group(0).spawn().unwrap();
    let process = record::Process { pid: stranger.id() as i32, start_time: 1, boot_id: proc::boot_id() };
    let container = Container {
        id: ContainerId("old".into()),
        name: "app".into(),
        attempt: 0,
        image: String::new(),
        spec_hash: String::new(),
        log: directory.path().join("log"),
        created_at_ms: 1,
        phase: Phase::Started { process, started_at_ms: 1, exit: None },
    };
    record::save_container(&directory.path().join("runtime"), &sandbox, &container).unwrap();
    let second = open(directory.path());
    second.stop_container(&container.id, Duration::ZERO).await.unwrap();
    second.remove_sandbox(&sandbox).await.unwrap();
    assert_eq!(stranger.try_wait().unwrap(), None, "the stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn one_that_ignores_the_request_is_killed_after_its_grace_with_all_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = open(directory.path());
    let sandbox = sandbox(&runtime, directory.path()).await;
    let script = "trap '' TERM; setsid sleep 1000 & echo up; while true; do sleep 0.05; done";
    let id = start(&runtime, &sandbox, &shell("app", script)).await;
    log_has(directory.path(), "app", "up").await;
    runtime.stop_container(&id, Duration::from_millis(200)).await.unwrap();
    let ContainerState::Exited { exit_code, .. } = state(&runtime).await else { panic!("it runs") };
    assert_eq!(exit_code, Some(137));
    let deadline = Instant::now() + Duration::from_secs(10);
    while proc::processes_of(&id.0).iter().any(|pid| proc::Process::read(*pid).is_some()) {
        assert!(Instant::now() < deadline, "something is left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_start_that_was_not_written_down_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path());
    let sandbox = sandbox(&first, directory.path()).await;
    let id = start(&first, &sandbox, &shell("app", "echo up; exec sleep 60")).await;
    log_has(directory.path(), "app", "up").await;
    {
        let mut state = first.inner.lock();
        let (_, container) = find(&mut state.sandboxes, &id).unwrap();
        container.phase = Phase::Launching;
        record::save_container(&first.inner.directory, &sandbox, container).unwrap();
    }
    drop(first);
    let second = open(directory.path());
    assert!(matches!(state(&second).await, ContainerState::Running { .. }));
    second.remove_sandbox(&sandbox).await.unwrap();
    assert!(proc::processes_of(&id.0).iter().all(|pid| proc::Process::read(*pid).is_none()));
}

#[tokio::test]
async fn what_processes_cannot_have_is_refused_by_the_name_of_its_field() {
    use crate::runtime::{DnsConfig, PortMapping, SecurityProfile};
    let directory = tempfile::tempdir().unwrap();
    let runtime = open(directory.path());
    let port =
        PortMapping { protocol: "TCP".into(), container_port: 80, host_port: 8080, host_ip: String::new() };
    let sandboxes = [
        ("runtimeClassName", SandboxConfig { handler: "kata".into(), ..SandboxConfig::default() }),
        ("dnsPolicy", SandboxConfig { dns: Some(DnsConfig::default()), ..SandboxConfig::default() }),
        ("hostPort", SandboxConfig { ports: vec![port], ..SandboxConfig::default() }),
    ];
    for (field, config) in sandboxes {
        let refused = runtime.run_sandbox(&config).await.unwrap_err();
        assert!(
            matches!(refused, RuntimeError::Invalid { .. }) && refused.to_string().contains(field),
            "{refused}"
        );
    }
    let sandbox = sandbox(&runtime, directory.path()).await;
    let mut config = shell("app", "sleep 1");
    config.seccomp = Some(SecurityProfile::RuntimeDefault);
    let refused = runtime.create_container(&sandbox, &config).await.unwrap_err();
    assert!(refused.to_string().contains("securityContext.seccompProfile"), "{refused}");
    config.seccomp = Some(SecurityProfile::Unconfined);
    runtime.create_container(&sandbox, &config).await.expect("none is what a process has anyway");
    assert_eq!(runtime.observe().await.unwrap()[0].containers.len(), 1);
}

#[tokio::test]
async fn a_command_has_the_environment_of_its_container_and_ends_when_nobody_waits() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = open(directory.path());
    let sandbox = sandbox(&runtime, directory.path()).await;
    let mut config = shell("app", "exec sleep 60");
    config.env = vec![("WORD".into(), "given".into())];
    let id = start(&runtime, &sandbox, &config).await;
    let words = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned);
    let command = words("echo $WORD; echo $PWD");
    let ended = runtime.exec(&id, &command, Duration::from_secs(20)).await.unwrap();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(said.starts_with("given\n") && said.ends_with("/root\n"), "{said}");
    let command = words("while true; do echo >> ticks; sleep 0.02; done");
    let waited = runtime.exec(&id, &command, Duration::from_secs(60));
    tokio::time::timeout(Duration::from_millis(500), waited).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let ticks = directory.path().join("runtime").join(&sandbox.0).join(&id.0).join("root/ticks");
    let before = fs::read(&ticks).unwrap().len();
    assert!(before > 0);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(fs::read(&ticks).unwrap().len(), before, "it goes on");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}
