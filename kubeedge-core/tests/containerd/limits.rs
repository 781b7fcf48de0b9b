//! What a container may use: the values of its cgroup, and what happens beyond them.

use std::{fs, time::Duration};

use kubeedge_core::runtime::{ContainerRuntime, ContainerState, Resources};

use crate::{Running, support};

pub(crate) async fn run(containerd: &support::Containerd) {
    limits_are_the_values_of_the_cgroup(containerd).await;
    one_that_takes_more_memory_than_its_limit_is_said_to_be_killed_for_it(containerd).await;
}

async fn limits_are_the_values_of_the_cgroup(containerd: &support::Containerd) {
    let parent = "/ke-test-pods";
    let pod = Running::start(
        containerd,
        "limits",
        |sandbox| {
            sandbox.cgroup_parent = Some(parent.to_owned());
            sandbox.host_pid = true;
        },
        |config| {
            config.resources = Resources {
                cpu_shares: 256,
                cpu_quota: 50_000,
                cpu_period: 100_000,
                memory_limit: 64 << 20,
                cpuset_cpus: "0".into(),
                oom_score_adj: 900,
                ..Resources::default()
            };
        },
    )
    .await;
    let pid = process_below(parent).expect("it is below the parent that was asked for");
    assert_eq!(cgroup(&pid, ["memory", "memory.limit_in_bytes"], "memory.max"), (64 << 20).to_string());
    assert_eq!(cgroup(&pid, ["cpuset", "cpuset.cpus"], "cpuset.cpus"), "0");
    let quota = cgroup(&pid, ["cpu", "cpu.cfs_quota_us"], "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "900");
    pod.remove().await;
}

/// A shell in a cgroup below `parent`: the sandbox's own process there is no shell.
fn process_below(parent: &str) -> Option<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|pid| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("cgroup").contains(parent) && read("cmdline").contains("trap")
    })
}

/// A value of the cgroup that this process is in.
fn cgroup(pid: &str, v1: [&str; 2], v2: &str) -> String {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |controller: &str| {
        let mut lines = cgroups.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let line = lines.find(|line| line[1].split(',').any(|one| one == controller));
        line.map(|line| line[2].to_owned())
    };
    let file = match path(v1[0]) {
        Some(path) => format!("/sys/fs/cgroup/{}{path}/{}", v1[0], v1[1]),
        None => format!("/sys/fs/cgroup{}/{v2}", path("").unwrap()),
    };
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")).trim().to_owned()
}

async fn one_that_takes_more_memory_than_its_limit_is_said_to_be_killed_for_it(
    containerd: &support::Containerd,
) {
    let pod = Running::start(
        containerd,
        "greedy",
        |_| {},
        |config| {
            config.resources = Resources { memory_limit: 16 << 20, ..Resources::default() };
            config.args = vec!["sleep 0.3; x=a; while true; do x=$x$x; done".into()];
        },
    )
    .await;
    let mut all = pod.runtime.observe().await.unwrap();
    for _ in 0..200 {
        if matches!(all[0].containers[0].state, ContainerState::Exited { .. }) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        all = pod.runtime.observe().await.unwrap();
    }
    let ContainerState::Exited { exit_code, reason, .. } = &all[0].containers[0].state else {
        panic!("{all:?}")
    };
    assert_eq!((*exit_code, reason.as_str()), (Some(137), "OOMKilled"));
    pod.remove().await;
}
