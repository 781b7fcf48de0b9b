//! A runtime that only remembers: containers start at once and end as a test says.

mod exec;
mod images;
#[cfg(all(test, feature = "conformance"))]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;

pub use self::exec::Exec;
use super::{
    ContainerConfig, ContainerId, ContainerLog, ContainerRuntime, ContainerState, ContainerStats,
    Credentials, Execution, Image, LogFormat, ObservedContainer, ObservedSandbox, Resources, RuntimeError,
    RuntimeInfo, SandboxConfig, SandboxId, SandboxStats,
};

/// A [`ContainerRuntime`] in memory. Clones share everything, so a part that is built again over a clone
/// finds what its predecessor started, as it would with a real runtime.
///
/// Containers are named `<pod uid>/<container name>` in the calls that script and count.
///
/// ```
/// use kubeedge_core::runtime::{Images, memory::MemoryRuntime};
/// # tokio_test(async {
/// let runtime = MemoryRuntime::new();
/// runtime.fail_pulls("nowhere/app:1", "no such host", 2);
/// assert!(runtime.pull("nowhere/app:1", None).await.is_err());
/// # });
/// # fn tokio_test<F: Future>(f: F) {
/// #     tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(f);
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct MemoryRuntime {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    images: BTreeMap<String, Image>,
    not_ready: Vec<String>,
    unavailable: Option<String>,
    pull_failures: BTreeMap<String, (RuntimeError, u32)>,
    credentials: BTreeMap<String, Option<Credentials>>,
    execs: exec::Execs,
    start_failures: BTreeMap<String, String>,
    usage: BTreeMap<String, ContainerStats>,
    reopened: BTreeMap<String, u32>,
    exits: BTreeMap<String, VecDeque<i32>>,
    deaf: BTreeMap<String, bool>,
    under_way: BTreeMap<String, u32>,
    starts: BTreeMap<String, u32>,
    pulls: BTreeMap<String, u32>,
    observations: u64,
}

#[derive(Debug)]
struct Sandbox {
    observed: ObservedSandbox,
    config: SandboxConfig,
    configs: BTreeMap<ContainerId, ContainerConfig>,
}

impl MemoryRuntime {
    /// Creates a runtime without sandboxes and images; every pull succeeds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the next starts of `container` end at once, with these exit codes in turn. Later ones run on.
    pub fn exit_at_start(&self, container: &str, codes: impl IntoIterator<Item = i32>) {
        self.lock().exits.entry(container.to_owned()).or_default().extend(codes);
    }

    /// Makes the next start of `container` fail with `message`, as for a command that is not there.
    pub fn fail_start(&self, container: &str, message: &str) {
        self.lock().start_failures.insert(container.to_owned(), message.to_owned());
    }

    /// Makes the next start of `container` find an earlier one under way, so often; then that one has succeeded.
    pub fn start_under_way(&self, container: &str, times: u32) {
        self.lock().under_way.insert(container.to_owned(), times);
    }

    /// Makes `container` ignore the request to stop, so that stopping it takes its whole grace.
    pub fn ignore_stop(&self, container: &str) {
        self.lock().deaf.insert(container.to_owned(), true);
    }

    /// Ends the running instance of `container` with this exit code. Returns whether there was one.
    pub fn exit(&self, container: &str, code: i32) -> bool {
        let mut state = self.lock();
        let mut found = false;
        for sandbox in state.sandboxes.values_mut() {
            let uid = sandbox.observed.uid.clone();
            for one in &mut sandbox.observed.containers {
                if format!("{uid}/{}", one.name) == container && is_running(&one.state) {
                    end(&mut one.state, code);
                    found = true;
                }
            }
        }
        found
    }

    /// Says what `container` uses while it runs. Its identity is filled in.
    pub fn set_usage(&self, container: &str, usage: ContainerStats) {
        self.lock().usage.insert(container.to_owned(), usage);
    }

    /// How often the log of `container` was opened again.
    pub fn reopened(&self, container: &str) -> u32 {
        self.lock().reopened.get(container).copied().unwrap_or(0)
    }

    /// Ends everything as a loss of power does: containers are dead and sandboxes not ready, but still known.
    pub fn power_cycle(&self) {
        for sandbox in self.lock().sandboxes.values_mut() {
            sandbox.observed.ready = false;
            sandbox.observed.ips.clear();
            for one in sandbox.observed.containers.iter_mut().filter(|one| is_running(&one.state)) {
                end(&mut one.state, 255);
            }
        }
    }

    /// Makes [`ContainerRuntime::info`] say that the runtime cannot run pods, for these reasons.
    pub fn set_not_ready(&self, reasons: Vec<String>) {
        self.lock().not_ready = reasons;
    }

    /// Makes every call fail with this message, until it is called with `None`.
    pub fn set_unavailable(&self, message: Option<&str>) {
        self.lock().unavailable = message.map(str::to_owned);
    }

    /// How often `container` was started, by anyone.
    pub fn starts(&self, container: &str) -> u32 {
        self.lock().starts.get(container).copied().unwrap_or(0)
    }

    /// How often the runtime was observed.
    pub fn observations(&self) -> u64 {
        self.lock().observations
    }

    /// What the newest instance of `container` was created from.
    pub fn container_config(&self, container: &str) -> Option<ContainerConfig> {
        let state = self.lock();
        let configs = state
            .sandboxes
            .values()
            .flat_map(|sandbox| sandbox.configs.values().map(move |config| (&sandbox.config.uid, config)));
        configs
            .filter(|(uid, config)| format!("{uid}/{}", config.name) == container)
            .max_by_key(|(_, config)| config.attempt)
            .map(|(_, config)| config.clone())
    }

    /// What the sandboxes of this pod were created from.
    pub fn sandbox_configs(&self, uid: &str) -> Vec<SandboxConfig> {
        let state = self.lock();
        let of_pod = state.sandboxes.values().filter(|sandbox| sandbox.config.uid.as_str() == uid);
        of_pod.map(|sandbox| sandbox.config.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, what: &str) -> Result<MutexGuard<'_, State>, RuntimeError> {
        let state = self.lock();
        match &state.unavailable {
            None => Ok(state),
            Some(message) => {
                Err(RuntimeError::Unavailable { what: what.to_owned(), message: message.clone() })
            }
        }
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The name of a container that runs.
    fn running(&mut self, what: String, id: &ContainerId) -> Result<String, RuntimeError> {
        match self.container(id) {
            None => Err(RuntimeError::NotFound { what, message: format!("container {id}") }),
            Some((name, one)) if is_running(&one.state) => Ok(name),
            Some(_) => Err(RuntimeError::Failed { what, message: "the container does not run".to_owned() }),
        }
    }

    fn usage_of(&self, sandbox: &Sandbox) -> SandboxStats {
        let observed = &sandbox.observed;
        let running = observed.containers.iter().filter(|one| is_running(&one.state));
        let containers = running.map(|one| ContainerStats {
            id: one.id.clone(),
            name: one.name.clone(),
            attempt: one.attempt,
            ..self.usage.get(&format!("{}/{}", observed.uid, one.name)).cloned().unwrap_or_default()
        });
        SandboxStats {
            id: observed.id.clone(),
            name: observed.name.clone(),
            namespace: observed.namespace.clone(),
            uid: observed.uid.clone(),
            containers: containers.collect(),
            ..SandboxStats::default()
        }
    }

    fn container(&mut self, id: &ContainerId) -> Option<(String, &mut ObservedContainer)> {
        self.sandboxes.values_mut().find_map(|sandbox| {
            let uid = sandbox.observed.uid.clone();
            let found = sandbox.observed.containers.iter_mut().find(|one| one.id == *id)?;
            Some((format!("{uid}/{}", found.name), found))
        })
    }
}

#[async_trait]
impl ContainerRuntime for MemoryRuntime {
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
        let state = self.open("read the runtime's status")?;
        Ok(RuntimeInfo { name: "memory".into(), version: "1".into(), not_ready: state.not_ready.clone() })
    }

    async fn run_sandbox(&self, sandbox: &SandboxConfig) -> Result<SandboxId, RuntimeError> {
        let what = format!("run sandbox of pod {}/{}", sandbox.namespace, sandbox.name);
        let mut state = self.open(&what)?;
        let same =
            |other: &Sandbox| other.config.uid == sandbox.uid && other.config.attempt == sandbox.attempt;
        if state.sandboxes.values().any(same) {
            let message = format!("attempt {} of this pod is there already", sandbox.attempt);
            return Err(RuntimeError::Failed { what, message });
        }
        let number = state.number();
        let id = SandboxId(format!("sandbox-{number}"));
        let ips = if sandbox.host_network { vec![] } else { vec![format!("10.0.0.{}", number % 250 + 2)] };
        let observed = ObservedSandbox {
            id: id.clone(),
            name: sandbox.name.clone(),
            namespace: sandbox.namespace.clone(),
            uid: sandbox.uid.clone(),
            attempt: sandbox.attempt,
            ready: true,
            ips,
            created_at_ms: now_ms(),
            containers: Vec::new(),
        };
        let configs = BTreeMap::new();
        state.sandboxes.insert(id.clone(), Sandbox { observed, config: sandbox.clone(), configs });
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        if let Some(sandbox) = self.open("stop a sandbox")?.sandboxes.get_mut(id) {
            sandbox.observed.ready = false;
            sandbox.observed.ips.clear();
            for one in sandbox.observed.containers.iter_mut().filter(|one| is_running(&one.state)) {
                end(&mut one.state, 137);
            }
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        self.open("remove a sandbox")?.sandboxes.remove(id);
        Ok(())
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        container: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let what = format!("create container {}", container.name);
        let mut state = self.open(&what)?;
        let number = state.number();
        let Some(image_id) = state.image(&container.image).map(|image| image.id.clone()) else {
            let message = format!("image {}", container.image);
            return Err(RuntimeError::NotFound { what, message });
        };
        let Some(sandbox) = state.sandboxes.get_mut(sandbox) else {
            return Err(RuntimeError::NotFound { what, message: format!("sandbox {sandbox}") });
        };
        let same = |one: &ObservedContainer| one.name == container.name && one.attempt == container.attempt;
        if sandbox.observed.containers.iter().any(same) {
            let message = format!("attempt {} is there already", container.attempt);
            return Err(RuntimeError::Failed { what, message });
        }
        let id = ContainerId(format!("container-{number}"));
        sandbox.observed.containers.push(ObservedContainer {
            id: id.clone(),
            name: container.name.clone(),
            attempt: container.attempt,
            image: container.image.clone(),
            image_id: image_id.0,
            spec_hash: container.spec_hash.clone(),
            created_at_ms: now_ms(),
            state: ContainerState::Created,
            log: Some(ContainerLog {
                path: sandbox.config.log_directory.join(&container.log_path),
                format: LogFormat::Cri,
            }),
        });
        sandbox.configs.insert(id.clone(), container.clone());
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let what = format!("start container {id}");
        let mut state = self.open(&what)?;
        let Some((name, found)) = state.container(id) else {
            return Err(RuntimeError::NotFound { what, message: "it is gone".into() });
        };
        if found.state != ContainerState::Created {
            return Err(RuntimeError::Failed { what, message: "it was started before".into() });
        }
        if let Some(left) = state.under_way.get(&name).copied() {
            let left = left.saturating_sub(1);
            state.under_way.insert(name.clone(), left);
            if left == 0 {
                state.under_way.remove(&name);
                *state.starts.entry(name).or_default() += 1;
                if let Some((_, found)) = state.container(id) {
                    found.state = ContainerState::Running { started_at_ms: now_ms() };
                }
            }
            return Err(RuntimeError::UnderWay { what, message: "it is being started".into() });
        }
        let Some((name, found)) = state.container(id) else {
            return Err(RuntimeError::NotFound { what, message: "it is gone".into() });
        };
        found.state = ContainerState::Running { started_at_ms: now_ms() };
        *state.starts.entry(name.clone()).or_default() += 1;
        if let Some(message) = state.start_failures.remove(&name) {
            if let Some((_, found)) = state.container(id) {
                found.state = never_ran(&message);
            }
            return Err(RuntimeError::Failed { what, message });
        }
        let code = state.exits.get_mut(&name).and_then(VecDeque::pop_front);
        if let (Some(code), Some((_, found))) = (code, state.container(id)) {
            end(&mut found.state, code);
        }
        Ok(())
    }

    async fn update_container(&self, id: &ContainerId, resources: &Resources) -> Result<(), RuntimeError> {
        let what = format!("change the limits of container {id}");
        let mut state = self.open(&what)?;
        state.running(what, id)?;
        for config in state.sandboxes.values_mut().filter_map(|sandbox| sandbox.configs.get_mut(id)) {
            let oom_score_adj = config.resources.oom_score_adj;
            config.resources = Resources { oom_score_adj, ..resources.clone() };
        }
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let deaf = {
            let mut state = self.open("stop a container")?;
            let name = state.container(id).filter(|(_, one)| is_running(&one.state)).map(|(name, _)| name);
            name.is_some_and(|name| state.deaf.contains_key(&name))
        };
        if deaf {
            tokio::time::sleep(grace).await;
        }
        if let Some((_, found)) = self.open("stop a container")?.container(id) {
            match found.state {
                ContainerState::Running { .. } => end(&mut found.state, if deaf { 137 } else { 143 }),
                ContainerState::Created => end(&mut found.state, 137),
                ContainerState::Exited { .. } | ContainerState::Unknown => {}
            }
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        for sandbox in self.open("remove a container")?.sandboxes.values_mut() {
            sandbox.observed.containers.retain(|one| one.id != *id);
            sandbox.configs.remove(id);
        }
        Ok(())
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        deadline: Duration,
    ) -> Result<Execution, RuntimeError> {
        self.run_command(id, command, deadline).await
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let what = format!("open the log of container {id} again");
        let mut state = self.open(&what)?;
        let name = state.running(what, id)?;
        *state.reopened.entry(name).or_default() += 1;
        Ok(())
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        let state = self.open("read what pods use")?;
        let ready = state.sandboxes.values().filter(|sandbox| sandbox.observed.ready);
        Ok(ready.map(|sandbox| state.usage_of(sandbox)).collect())
    }

    async fn observe(&self) -> Result<Vec<ObservedSandbox>, RuntimeError> {
        let mut state = self.open("observe the runtime")?;
        state.observations += 1;
        Ok(state.sandboxes.values().map(|sandbox| sandbox.observed.clone()).collect())
    }
}

fn is_running(state: &ContainerState) -> bool {
    matches!(state, ContainerState::Running { .. })
}

/// As containerd says it of a command that is not there.
fn never_ran(message: &str) -> ContainerState {
    ContainerState::Exited {
        exit_code: Some(128),
        reason: "StartError".to_owned(),
        message: message.to_owned(),
        started_at_ms: 0,
        finished_at_ms: now_ms(),
    }
}

fn end(state: &mut ContainerState, code: i32) {
    let started_at_ms = match state {
        ContainerState::Running { started_at_ms } => *started_at_ms,
        ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => 0,
    };
    *state = ContainerState::Exited {
        exit_code: Some(code),
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at_ms,
        finished_at_ms: now_ms(),
    };
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
