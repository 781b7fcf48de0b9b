//! What the suite expects of containers that run, and of how they end.

use std::time::{Duration, Instant};

use super::{Workload, container, end_of, find, running};
use crate::runtime::{
    Capabilities, ContainerConfig, ContainerRuntime, ContainerState, Resources, RuntimeError, SecurityProfile,
};

pub(super) async fn the_reason_of_an_end_is_told(runtime: &impl ContainerRuntime, workload: &Workload) {
    let deaf = "trap '' TERM; while true; do sleep 0.1; done";
    let ends = [("conformance-well", "exit 0", 0, "Completed"), ("conformance-signal", deaf, 137, "Error")];
    for (uid, script, code, word) in ends {
        let sandbox = runtime.run_sandbox(&workload.sandbox(uid)).await.expect("run_sandbox");
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let config = workload.container(0, &command);
        let id = runtime.create_container(&sandbox, &config).await.expect("create_container");
        runtime.start_container(&id).await.expect("start_container");
        if script == deaf {
            let asked = Instant::now();
            // Time for the shell to hear nothing any more.
            tokio::time::sleep(Duration::from_millis(300)).await;
            runtime.stop_container(&id, Duration::from_secs(1)).await.expect("stop_container");
            assert!(asked.elapsed() < Duration::from_secs(20), "one that does not end when asked is killed");
        }
        let ended = end_of(runtime, uid, &id).await;
        let ContainerState::Exited { exit_code, reason, .. } = &ended.state else { unreachable!("it ended") };
        assert_eq!((*exit_code, reason.as_str()), (Some(code), word), "how it ended is told: {ended:?}");
        runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
    }
}

pub(super) async fn a_command_that_cannot_be_run_is_observed_as_exited(
    runtime: &impl ContainerRuntime,
    workload: &Workload,
) {
    let uid = "conformance-absent";
    let sandbox = runtime.run_sandbox(&workload.sandbox(uid)).await.expect("run_sandbox");
    let config = workload.container(0, &["/never/was".to_owned()]);
    let id = runtime.create_container(&sandbox, &config).await.expect("create_container");
    runtime.start_container(&id).await.expect_err("a command that is not there cannot be run");
    let ended = end_of(runtime, uid, &id).await;
    let ContainerState::Exited { exit_code, reason, message, .. } = &ended.state else {
        unreachable!("it ended")
    };
    assert!(exit_code.is_some_and(|code| code != 0), "it did not end well: {ended:?}");
    assert!(["StartError", "ContainerCannotRun"].contains(&reason.as_str()), "the reason is told: {ended:?}");
    assert!(message.to_lowercase().contains("no such file"), "what is wrong is told: {ended:?}");
    runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
}

pub(super) async fn limits_of_a_container_that_runs_are_changed_or_refused(
    runtime: &impl ContainerRuntime,
    workload: &Workload,
) {
    let (sandbox, id) = running(runtime, workload, "conformance-resize").await;
    let more = Resources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit: 256 << 20,
        ..Resources::default()
    };
    match runtime.update_container(&id, &more).await {
        Ok(()) => {}
        Err(error) => assert!(matches!(error, RuntimeError::Invalid { .. }), "it is refused: {error}"),
    }
    runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
    let gone = runtime.update_container(&id, &more).await;
    assert!(gone.is_err(), "what is absent has no limits to change");
}

pub(super) async fn what_runs_is_counted(runtime: &impl ContainerRuntime, workload: &Workload) {
    let uid = "conformance-stats";
    let (sandbox, id) = running(runtime, workload, uid).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let all = runtime.stats().await.expect("stats");
        let one = all.iter().find(|one| one.id == sandbox).expect("a sandbox that is ready is counted");
        assert_eq!((one.uid.as_str(), one.name.as_str(), one.namespace.as_str()), (uid, uid, "default"));
        let used = one.containers.iter().find(|one| one.id == id).expect("a container that runs is counted");
        assert_eq!((used.name.as_str(), used.attempt), ("main", 0));
        let counted = used.cpu.is_some_and(|cpu| cpu.at_ms > 0)
            && used.memory.is_some_and(|memory| memory.working_set_bytes > 0);
        if counted || !workload.counts {
            break;
        }
        // Some runtimes count only now and then.
        assert!(Instant::now() < deadline, "what it uses is counted: {used:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    runtime.stop_sandbox(&sandbox).await.expect("stop_sandbox");
    let all = runtime.stats().await.expect("stats");
    assert!(all.iter().all(|one| one.id != sandbox), "one that is not ready is not counted");
    runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
}

pub(super) async fn a_log_that_was_renamed_is_opened_again(
    runtime: &impl ContainerRuntime,
    workload: &Workload,
) {
    let uid = "conformance-log";
    let sandbox = runtime.run_sandbox(&workload.sandbox(uid)).await.expect("run_sandbox");
    let script = "i=0; trap 'exit 0' TERM; while true; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let command = ["/bin/sh", "-c", script].map(str::to_owned);
    let config = workload.container(0, &command);
    let id = runtime.create_container(&sandbox, &config).await.expect("create_container");
    runtime.start_container(&id).await.expect("start_container");
    let log = container(runtime, uid, &id).await.log.expect("the container has a log");
    if !workload.reopens_logs {
        runtime.reopen_log(&id).await.expect_err("what cannot be done is not silently left undone");
    } else if workload.writes_logs {
        wait_for_text(&log.path).await;
        let renamed = log.path.with_extension("1");
        std::fs::rename(&log.path, &renamed).expect("rename the log");
        runtime.reopen_log(&id).await.expect("reopen_log");
        wait_for_text(&log.path).await;
        runtime.stop_container(&id, Duration::from_secs(20)).await.expect("stop_container");
        let read = |path| std::fs::read_to_string(path).expect("the log is a file");
        let text = read(&renamed) + &read(&log.path);
        let numbers = text.lines().filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
        let numbers: Vec<usize> = numbers.collect();
        assert!(numbers.iter().copied().eq(0..numbers.len()), "no line is lost or doubled: {numbers:?}");
    } else {
        runtime.reopen_log(&id).await.expect("reopen_log");
    }
    runtime.stop_container(&id, Duration::from_secs(20)).await.expect("stop_container");
    runtime.reopen_log(&id).await.expect_err("a container that does not run has nothing to write");
    runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
}

async fn wait_for_text(path: &std::path::Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read_to_string(path).unwrap_or_default().len() < 100 {
        assert!(Instant::now() < deadline, "something is written to {}", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(super) async fn a_restriction_is_kept_or_refused(runtime: &impl ContainerRuntime, workload: &Workload) {
    let uid = "conformance-restrict";
    let sandbox = runtime.run_sandbox(&workload.sandbox(uid)).await.expect("run_sandbox");
    for (attempt, (field, restrict)) in RESTRICTIONS.into_iter().enumerate() {
        let mut config = workload.container(attempt as u32, &workload.sleep_command);
        restrict(&mut config);
        match runtime.create_container(&sandbox, &config).await {
            Ok(id) => {
                runtime.start_container(&id).await.unwrap_or_else(|error| panic!("{field}: {error}"));
                runtime.remove_container(&id).await.expect("remove_container");
            }
            Err(error @ RuntimeError::Invalid { .. }) => {
                let said = error.to_string().to_lowercase();
                assert!(said.contains(&field.to_lowercase()), "{field} is named: {error}");
            }
            Err(error) => panic!("{field} is kept, or refused as invalid: {error:?}"),
        }
    }
    let left = find(runtime, uid).await.expect("the sandbox is observed").containers;
    assert!(left.is_empty(), "what was refused is not there: {left:?}");
    runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
}

type Restrict = fn(&mut ContainerConfig);

const RESTRICTIONS: [(&str, Restrict); 8] = [
    ("readOnlyRootFilesystem", |config| config.read_only_root = true),
    ("allowPrivilegeEscalation", |config| config.no_new_privileges = true),
    ("capabilities", |config| {
        config.capabilities = Capabilities { add: Vec::new(), drop: vec!["ALL".to_owned()] };
    }),
    ("seccompProfile", |config| config.seccomp = Some(SecurityProfile::RuntimeDefault)),
    ("supplementalGroups", |config| config.supplemental_groups = vec![4000]),
    ("runAsUser", |config| config.run_as_user = Some(0)),
    ("memory", |config| config.resources = Resources { memory_limit: 64 << 20, ..Resources::default() }),
    ("cpu", |config| {
        config.resources = Resources { cpu_quota: 50_000, cpu_period: 100_000, ..Resources::default() };
    }),
];
