//! What the suite expects of commands in containers.

use std::time::{Duration, Instant};

use super::{Workload, running};
use crate::runtime::{
    ContainerId, ContainerRuntime, EXEC_OUTPUT_MAX, Execution, RuntimeError,
    memory::{Exec, MemoryRuntime},
};

const UID: &str = "conformance-exec";
const BOTH: &str = "echo \"$1\"; echo err >&2; exit 7";
const LONG: &str = "i=0; while [ $i -lt 3000 ]; do echo 0123456789; i=$((i+1)); done; exit 5";
const TICK: &str = "while true; do echo tick >> ticks; sleep 0.05; done";
const TICKS: &str = "cat ticks";
/// What a shell would make something else of.
const VERBATIM: &str = "$HOME; *";

pub(super) async fn run(runtime: &impl ContainerRuntime, workload: &Workload) {
    let (sandbox, id) = running(runtime, workload, UID).await;
    its_output_and_exit_code_are_returned(runtime, &id).await;
    of_its_output_the_beginning_is_kept(runtime, &id).await;
    one_that_hangs_is_ended(runtime, &id).await;
    let absent = runtime.exec(&id, &["/never/was".to_owned()], Duration::from_secs(20)).await;
    // Some runtimes have their low-level runtime say so, with the exit code that a shell has for it.
    let said = absent.as_ref().map_or(true, |ended| matches!(ended.exit_code, 126..=128));
    assert!(said, "a command that is not there does not end well: {absent:?}");
    runtime.stop_container(&id, Duration::from_secs(20)).await.expect("stop_container");
    let stopped = runtime.exec(&id, &shell(BOTH), Duration::from_secs(20)).await;
    assert!(stopped.is_err(), "nothing runs in a container that does not: {stopped:?}");
    runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
}

async fn its_output_and_exit_code_are_returned(runtime: &impl ContainerRuntime, id: &ContainerId) {
    let ended = runtime.exec(id, &shell(BOTH), Duration::from_secs(20)).await.expect("any exit code is Ok");
    assert_eq!(ended.exit_code, 7, "the exit code is the command's");
    assert_eq!(String::from_utf8_lossy(&ended.stdout), format!("{VERBATIM}\n"), "no shell sees the words");
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "err\n", "both streams are told apart");
}

async fn of_its_output_the_beginning_is_kept(runtime: &impl ContainerRuntime, id: &ContainerId) {
    let ended = runtime.exec(id, &shell(LONG), Duration::from_secs(20)).await.expect("much output is Ok");
    assert_eq!(ended.exit_code, 5, "the command can write more than is kept");
    assert_eq!(ended.stdout.len(), EXEC_OUTPUT_MAX);
    assert!(ended.stdout.starts_with(b"0123456789\n0123456789\n"));
}

async fn one_that_hangs_is_ended(runtime: &impl ContainerRuntime, id: &ContainerId) {
    let asked = Instant::now();
    let hangs = runtime.exec(id, &shell(TICK), Duration::from_secs(1)).await;
    assert!(matches!(hangs, Err(RuntimeError::TimedOut { .. })), "it is told that it timed out: {hangs:?}");
    assert!(asked.elapsed() < Duration::from_secs(10), "it is not waited for: {:?}", asked.elapsed());
    // The runtime may be about to kill it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = runtime.exec(id, &shell(TICKS), Duration::from_secs(20)).await.expect("exec");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = runtime.exec(id, &shell(TICKS), Duration::from_secs(20)).await.expect("exec");
    assert!(before.stdout.starts_with(b"tick"), "it did run: {before:?}");
    assert_eq!(before, after, "and does not go on");
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script, "sh", VERBATIM].map(str::to_owned).to_vec()
}

pub(super) fn teach(runtime: &MemoryRuntime) {
    let execution = |exit_code, stdout: &str, stderr: &str| {
        let (stdout, stderr) = (stdout.as_bytes().to_vec(), stderr.as_bytes().to_vec());
        Exec::Exit(Execution { exit_code, stdout, stderr })
    };
    runtime.on_exec(&format!("{UID}/main"), move |command| match command.get(2).map(String::as_str) {
        Some(BOTH) => execution(7, &format!("{VERBATIM}\n"), "err\n"),
        Some(LONG) => execution(5, &"0123456789\n".repeat(3000), ""),
        Some(TICK) => Exec::Hang,
        Some(TICKS) => execution(0, "tick\n", ""),
        _ => Exec::Fail("no such file".to_owned()),
    });
}
