//! What every [`ContainerRuntime`] must do, checked sentence by sentence.
//!
//! ```
//! use kubeedge_core::runtime::{conformance::{self, Workload}, memory::MemoryRuntime};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! # let directory = tempfile::tempdir().unwrap();
//! let runtime = MemoryRuntime::new();
//! runtime.add_image("app:1");
//! conformance::teach(&runtime); // what the suite's commands do
//! let workload = Workload::new("app:1", directory.path()).without_counts();
//! conformance::run(async || runtime.clone(), &workload).await;
//! # });
//! ```

mod exec;
mod images;
mod running;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    ContainerConfig, ContainerId, ContainerRuntime, ContainerState, ObservedContainer, ObservedSandbox,
    RuntimeError, SandboxConfig, SandboxId, memory::MemoryRuntime,
};
use crate::id::Uid;

/// What the suite runs in the runtime under test.
#[derive(Debug, Clone)]
pub struct Workload {
    /// An image that is there already.
    pub image: String,
    /// Runs until it is stopped, and ends soon after SIGTERM.
    pub sleep_command: Vec<String>,
    /// Ends at once with exit code 3, after it wrote the line `conformance` to its standard output.
    pub exit_command: Vec<String>,
    /// Where logs go.
    pub log_directory: PathBuf,
    /// Whether the exit command really writes its line, and the log is really a file.
    pub writes_logs: bool,
    /// Whether the runtime keeps images, so that there are some that are absent, and names that are none.
    pub keeps_images: bool,
    /// Whether a log can be opened again after its file was renamed.
    pub reopens_logs: bool,
    /// Whether what containers use is counted.
    pub counts: bool,
}

impl Workload {
    /// Commands for images and machines with a POSIX shell at `/bin/sh`; nothing is expected of the log.
    pub fn new(image: &str, log_directory: &Path) -> Self {
        let shell = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Self {
            image: image.to_owned(),
            sleep_command: shell("trap 'exit 0' TERM; while true; do sleep 0.1; done"),
            exit_command: shell("echo conformance; exit 3"),
            log_directory: log_directory.to_owned(),
            writes_logs: false,
            keeps_images: true,
            reopens_logs: true,
            counts: true,
        }
    }

    /// Expects that the log has what the exit command writes.
    #[must_use]
    pub fn with_logs(self) -> Self {
        Self { writes_logs: true, ..self }
    }

    /// Expects a runtime without images, as one that runs the programs of the node.
    #[must_use]
    pub fn without_images(self) -> Self {
        Self { keeps_images: false, ..self }
    }

    /// Expects that a log cannot be opened again, and says so.
    #[must_use]
    pub fn without_reopening(self) -> Self {
        Self { reopens_logs: false, ..self }
    }

    /// Expects no figures of what containers use, only their names.
    #[must_use]
    pub fn without_counts(self) -> Self {
        Self { counts: false, ..self }
    }

    fn sandbox(&self, uid: &str) -> SandboxConfig {
        SandboxConfig {
            name: uid.to_owned(),
            namespace: "default".to_owned(),
            uid: Uid::new(uid),
            hostname: uid.to_owned(),
            log_directory: self.log_directory.join(uid),
            ..SandboxConfig::default()
        }
    }

    fn container(&self, attempt: u32, command: &[String]) -> ContainerConfig {
        ContainerConfig {
            name: "main".to_owned(),
            attempt,
            image: self.image.clone(),
            command: command.to_vec(),
            spec_hash: "hash".to_owned(),
            log_path: Path::new("main").join(format!("{attempt}.log")),
            ..ContainerConfig::default()
        }
    }
}

/// Teaches a memory runtime what the commands of the suite do.
pub fn teach(runtime: &MemoryRuntime) {
    runtime.exit_at_start("conformance-exit/main", [3]);
    runtime.ignore_stop("conformance-signal/main");
    runtime.exit_at_start("conformance-well/main", [0]);
    runtime.fail_start("conformance-absent/main", "no such file");
    exec::teach(runtime);
}

/// Runs the suite. `open` gives a handle to the same runtime each time, as a restarted process would open it.
///
/// # Panics
/// At the first sentence that does not hold.
pub async fn run<R: ContainerRuntime>(open: impl AsyncFn() -> R, workload: &Workload) {
    it_says_what_it_is(&open().await).await;
    images::run(&open().await, workload).await;
    a_container_goes_through_its_states(&open, workload).await;
    an_exit_code_is_kept(&open().await, workload).await;
    running::the_reason_of_an_end_is_told(&open().await, workload).await;
    running::a_command_that_cannot_be_run_is_observed_as_exited(&open().await, workload).await;
    exec::run(&open().await, workload).await;
    running::what_runs_is_counted(&open().await, workload).await;
    running::limits_of_a_container_that_runs_are_changed_or_refused(&open().await, workload).await;
    running::a_log_that_was_renamed_is_opened_again(&open().await, workload).await;
    running::a_restriction_is_kept_or_refused(&open().await, workload).await;
    removing_a_sandbox_ends_what_runs_in_it(&open().await, workload).await;
    what_is_gone_is_stopped_and_removed_with_success(&open().await, workload).await;
}

async fn it_says_what_it_is(runtime: &impl ContainerRuntime) {
    let info = runtime.info().await.expect("info");
    assert!(!info.name.is_empty() && !info.version.is_empty(), "name and version are given: {info:?}");
    assert_eq!(info.not_ready, Vec::<String>::new(), "the runtime under test must be ready");
}

async fn a_container_goes_through_its_states<R: ContainerRuntime>(
    open: &impl AsyncFn() -> R,
    workload: &Workload,
) {
    let uid = "conformance-states";
    let runtime = open().await;
    let sandbox = runtime.run_sandbox(&workload.sandbox(uid)).await.expect("run_sandbox");
    let observed = find(&runtime, uid).await.expect("a sandbox that runs is observed");
    assert_eq!((&observed.id, observed.ready, observed.attempt), (&sandbox, true, 0));
    assert_eq!((observed.name.as_str(), observed.namespace.as_str()), (uid, "default"));
    assert!(observed.containers.is_empty());

    let config = workload.container(0, &workload.sleep_command);
    let id = runtime.create_container(&sandbox, &config).await.expect("create_container");
    let created = container(&runtime, uid, &id).await;
    assert!(created.created_at_ms > 0, "it is known when it was created");
    assert!(!created.image_id.is_empty(), "it is known what it runs");
    assert_eq!(created.state, ContainerState::Created, "a created container is not started");
    assert_eq!((created.name.as_str(), created.attempt), ("main", 0));
    assert_eq!(created.spec_hash, "hash", "the spec hash is kept");

    runtime.start_container(&id).await.expect("start_container");
    let running = container(&runtime, uid, &id).await;
    assert!(matches!(running.state, ContainerState::Running { started_at_ms } if started_at_ms > 0));
    drop(runtime);

    let runtime = open().await;
    let adopted = container(&runtime, uid, &id).await;
    assert_eq!(adopted.state, running.state, "what an earlier process started is observed as it is");
    let asked = Instant::now();
    runtime.stop_container(&id, Duration::from_secs(20)).await.expect("stop_container");
    assert!(asked.elapsed() < Duration::from_secs(20), "a container that ends when asked is not waited for");
    let stopped = container(&runtime, uid, &id).await;
    assert!(
        matches!(stopped.state, ContainerState::Exited { started_at_ms, finished_at_ms, .. }
            if started_at_ms > 0 && finished_at_ms >= started_at_ms),
        "when stop returns the container is not running: {stopped:?}"
    );
    runtime.stop_container(&id, Duration::from_secs(1)).await.expect("stopping what is stopped is success");

    let next = runtime.create_container(&sandbox, &workload.container(1, &workload.sleep_command)).await;
    let next = next.expect("create the next attempt");
    runtime.start_container(&next).await.expect("start the next attempt");
    assert_eq!(find(&runtime, uid).await.expect("sandbox").containers.len(), 2, "all instances are observed");
    runtime.remove_container(&next).await.expect("removing a container that runs is success");
    runtime.remove_container(&next).await.expect("removing it again is success");
    assert_eq!(find(&runtime, uid).await.expect("sandbox").containers.len(), 1);

    runtime.stop_sandbox(&sandbox).await.expect("stop_sandbox");
    assert!(!find(&runtime, uid).await.expect("a stopped sandbox is still observed").ready);
    runtime.stop_sandbox(&sandbox).await.expect("stopping it again is success");
    runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
    assert_eq!(find(&runtime, uid).await, None, "a removed sandbox is not observed");
}

async fn an_exit_code_is_kept(runtime: &impl ContainerRuntime, workload: &Workload) {
    let uid = "conformance-exit";
    let sandbox = runtime.run_sandbox(&workload.sandbox(uid)).await.expect("run_sandbox");
    let config = workload.container(0, &workload.exit_command);
    let id = runtime.create_container(&sandbox, &config).await.expect("create_container");
    runtime.start_container(&id).await.expect("start_container");
    let ended = end_of(runtime, uid, &id).await;
    let ContainerState::Exited { exit_code, .. } = ended.state else { unreachable!("matched above") };
    assert_eq!(exit_code, Some(3), "the exit code is the command's");
    if workload.writes_logs {
        let log = ended.log.expect("the container has a log");
        let text = std::fs::read_to_string(&log.path).expect("the log is a file");
        assert!(text.trim_end().ends_with("conformance"), "what was written is in the log: {text:?}");
        runtime.remove_container(&id).await.expect("remove_container");
        assert!(log.path.exists(), "the log of a removed container stays");
    }
    runtime.remove_sandbox(&sandbox).await.expect("remove_sandbox");
}

async fn removing_a_sandbox_ends_what_runs_in_it(runtime: &impl ContainerRuntime, workload: &Workload) {
    let uid = "conformance-remove";
    let sandbox = runtime.run_sandbox(&workload.sandbox(uid)).await.expect("run_sandbox");
    let config = workload.container(0, &workload.sleep_command);
    let id = runtime.create_container(&sandbox, &config).await.expect("create_container");
    runtime.start_container(&id).await.expect("start_container");
    runtime.remove_sandbox(&sandbox).await.expect("a sandbox in which something runs is removed");
    assert_eq!(find(runtime, uid).await, None);
}

async fn what_is_gone_is_stopped_and_removed_with_success(
    runtime: &impl ContainerRuntime,
    workload: &Workload,
) {
    let (sandbox, id) = (SandboxId("absent".to_owned()), ContainerId("absent".to_owned()));
    runtime.stop_sandbox(&sandbox).await.expect("stopping an absent sandbox is success");
    runtime.remove_sandbox(&sandbox).await.expect("removing an absent sandbox is success");
    runtime.stop_container(&id, Duration::ZERO).await.expect("stopping an absent container is success");
    runtime.remove_container(&id).await.expect("removing an absent container is success");
    let absent = runtime.exec(&id, &["true".to_owned()], Duration::from_secs(5)).await;
    assert!(matches!(absent, Err(RuntimeError::NotFound { .. })), "exec in what is absent: {absent:?}");
    runtime.reopen_log(&id).await.expect_err("what is absent has no log to open");
    let refused = runtime.create_container(&sandbox, &workload.container(0, &workload.sleep_command)).await;
    assert!(
        matches!(refused, Err(RuntimeError::NotFound { .. })),
        "creating a container in an absent sandbox is NotFound: {refused:?}"
    );
}

/// A sandbox with one container that runs until it is stopped.
async fn running(
    runtime: &impl ContainerRuntime,
    workload: &Workload,
    uid: &str,
) -> (SandboxId, ContainerId) {
    let sandbox = runtime.run_sandbox(&workload.sandbox(uid)).await.expect("run_sandbox");
    let config = workload.container(0, &workload.sleep_command);
    let id = runtime.create_container(&sandbox, &config).await.expect("create_container");
    runtime.start_container(&id).await.expect("start_container");
    (sandbox, id)
}

async fn end_of(runtime: &impl ContainerRuntime, uid: &str, id: &ContainerId) -> ObservedContainer {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let now = container(runtime, uid, id).await;
        if let ContainerState::Exited { .. } = now.state {
            return now;
        }
        assert!(Instant::now() < deadline, "a command that ends is observed as ended: {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn find(runtime: &impl ContainerRuntime, uid: &str) -> Option<ObservedSandbox> {
    let all = runtime.observe().await.expect("observe");
    all.into_iter().find(|sandbox| sandbox.uid.as_str() == uid)
}

async fn container(runtime: &impl ContainerRuntime, uid: &str, id: &ContainerId) -> ObservedContainer {
    let sandbox = find(runtime, uid).await.expect("the sandbox is observed");
    let found = sandbox.containers.into_iter().find(|container| container.id == *id);
    found.expect("the container is observed")
}
