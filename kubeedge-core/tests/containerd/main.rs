//! The containerd adapter against a real containerd. It needs root and the Debian packages containerd, runc,
//! containernetworking-plugins, iptables and busybox-static, and fails naming them if one is not installed.
#![cfg(all(feature = "containerd", feature = "conformance"))]
#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "../../../tests/support/containerd.rs"]
mod support;

mod faults;
mod images;
mod limits;
mod registry;
mod security;
mod streaming;

use std::{path::Path, time::Duration};

use kubeedge_core::{
    id::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerRuntime, ContainerState, Images, Mount, Resources,
        RuntimeError, SandboxConfig, SandboxId,
        conformance::{self, Workload},
        containerd::{Config, Containerd},
    },
};

fn adapter(containerd: &support::Containerd) -> Containerd {
    Containerd::new(Config { socket: containerd.socket(), ..Config::default() }).unwrap()
}

/// One containerd for all of it: starting it is what takes long.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_is_a_container_runtime() {
    let containerd = support::Containerd::start();
    let logs = containerd.directory().join("logs");
    conformance::run(async || adapter(&containerd), &Workload::new(support::IMAGE, &logs).with_logs()).await;
    a_pod_has_an_address_files_limits_and_a_log(&containerd).await;
    an_absent_image_and_an_unreachable_registry_are_told_apart(&containerd).await;
    security::run(&containerd).await;
    limits::run(&containerd).await;
    images::run(&containerd).await;
    streaming::run(&containerd).await;
    faults::run(containerd).await;
}

/// A container that runs until it is stopped, made as the test says, in a sandbox made as the test says.
struct Running {
    runtime: Containerd,
    sandbox: SandboxId,
    id: ContainerId,
}

impl Running {
    async fn start(
        containerd: &support::Containerd,
        name: &str,
        of_sandbox: impl FnOnce(&mut SandboxConfig),
        of_container: impl FnOnce(&mut ContainerConfig),
    ) -> Self {
        let runtime = adapter(containerd);
        let mut config = sandbox(containerd, name);
        of_sandbox(&mut config);
        let sandbox = runtime.run_sandbox(&config).await.unwrap();
        let id = Self::add(&runtime, &sandbox, "app", of_container).await;
        Self { runtime, sandbox, id }
    }

    async fn add(
        runtime: &Containerd,
        sandbox: &SandboxId,
        name: &str,
        of_container: impl FnOnce(&mut ContainerConfig),
    ) -> ContainerId {
        let mut config = sleeper(name);
        of_container(&mut config);
        let id = runtime.create_container(sandbox, &config).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        id
    }

    /// What a script in the container writes, if it ends well.
    async fn sh(&self, script: &str) -> Result<String, String> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let ended = self.runtime.exec(&self.id, &command, Duration::from_secs(20)).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if ended.exit_code == 0 { Ok(text(&ended.stdout)) } else { Err(text(&ended.stderr)) }
    }

    async fn remove(self) {
        self.runtime.remove_sandbox(&self.sandbox).await.unwrap();
    }
}

fn sleeper(name: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        image: support::IMAGE.into(),
        command: vec!["/bin/sh".into(), "-c".into()],
        args: vec!["trap 'exit 0' TERM; while true; do sleep 0.1; done".into()],
        log_path: Path::new(name).join("0.log"),
        ..ContainerConfig::default()
    }
}

fn sandbox(containerd: &support::Containerd, name: &str) -> SandboxConfig {
    SandboxConfig {
        name: name.into(),
        namespace: "default".into(),
        uid: Uid::new(name),
        hostname: name.into(),
        log_directory: containerd.directory().join("logs").join(name),
        ..SandboxConfig::default()
    }
}

async fn a_pod_has_an_address_files_limits_and_a_log(containerd: &support::Containerd) {
    let runtime = adapter(containerd);
    let id = runtime.run_sandbox(&sandbox(containerd, "web")).await.unwrap();
    let host_path = containerd.directory().join("files");
    std::fs::create_dir_all(&host_path).unwrap();
    std::fs::write(host_path.join("key"), "from the node").unwrap();
    let config = ContainerConfig {
        name: "app".into(),
        image: support::IMAGE.into(),
        command: vec!["/bin/sh".into(), "-c".into()],
        args: vec!["cat /etc/app/key; echo \" $WORD\"; echo $HOSTNAME; echo late >&2; exit 5".into()],
        env: vec![("WORD".into(), "and the environment".into())],
        mounts: vec![Mount {
            container_path: "/etc/app".into(),
            host_path,
            read_only: true,
            ..Mount::default()
        }],
        // A negative score as for a Guaranteed pod: it must not make the start fail where it is not allowed.
        resources: Resources {
            oom_score_adj: -997,
            memory_limit: 64 << 20,
            cpu_shares: 2,
            ..Resources::default()
        },
        log_path: Path::new("app").join("0.log"),
        ..ContainerConfig::default()
    };
    let container = runtime.create_container(&id, &config).await.unwrap();
    runtime.start_container(&container).await.unwrap();
    let mut all = runtime.observe().await.unwrap();
    for _ in 0..100 {
        if matches!(all[0].containers[0].state, ContainerState::Exited { .. }) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        all = runtime.observe().await.unwrap();
    }
    let web = &all[0];
    assert!(web.ips.first().is_some_and(|ip| ip.starts_with("10.")), "{web:?}");
    let ContainerState::Exited { exit_code, reason, .. } = &web.containers[0].state else {
        panic!("{web:?}")
    };
    assert_eq!((*exit_code, reason.as_str()), (Some(5), "Error"));
    let log = web.containers[0].log.as_ref().unwrap();
    assert_eq!(log.path, containerd.directory().join("logs/web/app/0.log"));
    let text = std::fs::read_to_string(&log.path).unwrap();
    assert!(text.contains("stdout F from the node and the environment\n"), "{text}");
    assert!(text.contains("stdout F web\n"), "{text}");
    assert!(text.contains("stderr F late\n"), "{text}");
    runtime.remove_sandbox(&id).await.unwrap();
}

async fn an_absent_image_and_an_unreachable_registry_are_told_apart(containerd: &support::Containerd) {
    let runtime = adapter(containerd);
    assert_eq!(runtime.image("localhost/absent:1").await.unwrap(), None);
    // Nothing listens on port 1 of this machine.
    let pulled = runtime.pull("127.0.0.1:1/absent:1", None).await;
    assert!(matches!(pulled, Err(RuntimeError::RegistryUnavailable { .. })), "{pulled:?}");
}
