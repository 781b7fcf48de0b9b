//! What the process runtime does, call by call; each may wait for the disk.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::{
        fs::{OpenOptionsExt, symlink},
        process::{CommandExt, ExitStatusExt},
    },
    path::{Component, Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use tracing::{debug, warn};

use super::{
    STOP_POLL, WorkError,
    exec::Beside,
    proc,
    record::{self, Container, Exit, Launch, Phase, Sandbox},
    refuse,
};
use crate::runtime::{
    ContainerConfig, ContainerId, ContainerLog, ContainerState, LogFormat, ObservedContainer,
    ObservedSandbox, SandboxConfig, SandboxId,
};

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) directory: PathBuf,
    boot_id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) sandboxes: BTreeMap<SandboxId, Sandbox>,
    /// Processes that this object started: only their parent learns their exit codes.
    children: HashMap<ContainerId, Child>,
}

/// What a container gets if its configuration has no `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Inner {
    /// Reads what an earlier process has left.
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        let sandboxes = record::load(&directory)?;
        let state = State { sandboxes, children: HashMap::new() };
        let inner = Self { directory, boot_id: proc::boot_id(), state: Mutex::new(state) };
        inner.adopt()?;
        Ok(inner)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox_directory(&self, id: &SandboxId) -> PathBuf {
        self.directory.join(&id.0)
    }

    /// Finds processes whose start was not recorded any more because this program died in between.
    fn adopt(&self) -> io::Result<()> {
        let mut state = self.lock();
        let boot_id = &self.boot_id;
        for sandbox in state.sandboxes.values_mut() {
            for container in sandbox.containers.values_mut() {
                if !matches!(container.phase, Phase::Launching) {
                    continue;
                }
                let leader = proc::processes_of(&container.id.0).into_iter().find_map(proc::Process::read);
                container.phase = match leader {
                    Some(process) => {
                        let pid = i32::try_from(process.group).unwrap_or(0);
                        let leader = proc::Process::read(pid).unwrap_or(process);
                        let process =
                            record::Process { pid, start_time: leader.start_time, boot_id: boot_id.clone() };
                        Phase::Started { process, started_at_ms: now_ms(), exit: None }
                    }
                    None => never_ran("this program ended while it was being started"),
                };
                debug!(container = %container.id, phase = ?container.phase, "a start was found unfinished");
                record::save_container(&self.directory, &sandbox.id, container)?;
            }
        }
        Ok(())
    }

    pub(super) fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxId, WorkError> {
        refuse::sandbox(config)?;
        let id = SandboxId(fresh_id()?);
        let sandbox = Sandbox {
            id: id.clone(),
            name: config.name.clone(),
            namespace: config.namespace.clone(),
            uid: config.uid.clone(),
            attempt: config.attempt,
            log_directory: config.log_directory.clone(),
            created_at_ms: now_ms(),
            boot_id: self.boot_id.clone(),
            stopped: false,
            containers: BTreeMap::new(),
        };
        record::save_sandbox(&self.directory, &sandbox)?;
        self.lock().sandboxes.insert(id.clone(), sandbox);
        Ok(id)
    }

    pub(super) fn stop_sandbox(&self, id: &SandboxId) -> Result<(), WorkError> {
        let containers: Vec<ContainerId> = match self.lock().sandboxes.get(id) {
            Some(sandbox) => sandbox.containers.keys().cloned().collect(),
            None => return Ok(()),
        };
        for container in containers {
            self.kill(&container)?;
        }
        if let Some(sandbox) = self.lock().sandboxes.get_mut(id) {
            sandbox.stopped = true;
            record::save_sandbox(&self.directory, sandbox)?;
        }
        Ok(())
    }

    pub(super) fn remove_sandbox(&self, id: &SandboxId) -> Result<(), WorkError> {
        self.stop_sandbox(id)?;
        let mut state = self.lock();
        if let Some(sandbox) = state.sandboxes.get(id) {
            match fs::remove_dir_all(self.sandbox_directory(id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
            let containers: Vec<ContainerId> = sandbox.containers.keys().cloned().collect();
            state.children.retain(|container, _| !containers.contains(container));
            state.sandboxes.remove(id);
        }
        Ok(())
    }

    pub(super) fn create(
        &self,
        sandbox_id: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, WorkError> {
        refuse::container(&config)?;
        let words: Vec<String> = config.command.iter().chain(&config.args).cloned().collect();
        if config.command.is_empty() {
            let message = "the process runtime has no images, so the container needs a command".to_owned();
            return Err(WorkError::Invalid(message));
        }
        let mut state = self.lock();
        let Some(sandbox) = state.sandboxes.get_mut(sandbox_id) else {
            return Err(WorkError::NotFound(format!("sandbox {sandbox_id}")));
        };
        if sandbox.containers.values().any(|one| one.name == config.name && one.attempt == config.attempt) {
            return Err(WorkError::Invalid(format!("attempt {} is there already", config.attempt)));
        }
        let id = ContainerId(fresh_id()?);
        let root = self.sandbox_directory(sandbox_id).join(&id.0).join("root");
        fs::create_dir_all(&root)?;
        for mount in &config.mounts {
            link(&root, &mount.container_path, &mount.host_path)?;
        }
        let container = Container {
            id: id.clone(),
            name: config.name,
            attempt: config.attempt,
            image: config.image,
            spec_hash: config.spec_hash,
            log: sandbox.log_directory.join(&config.log_path),
            created_at_ms: now_ms(),
            phase: Phase::Created(Launch {
                words,
                env: config.env,
                working_dir: config.working_dir,
                user: config.run_as_user.and_then(|id| u32::try_from(id).ok()),
                group: config.run_as_group.and_then(|id| u32::try_from(id).ok()),
                oom_score_adj: config.resources.oom_score_adj,
            }),
        };
        record::save_container(&self.directory, sandbox_id, &container)?;
        sandbox.containers.insert(id.clone(), container);
        Ok(id)
    }

    pub(super) fn start(&self, id: &ContainerId) -> Result<(), WorkError> {
        let mut state = self.lock();
        let State { sandboxes, children } = &mut *state;
        let Some((sandbox_id, container)) = find(sandboxes, id) else {
            return Err(WorkError::NotFound("it is gone".to_owned()));
        };
        let Phase::Created(launch) = std::mem::replace(&mut container.phase, Phase::Launching) else {
            return Err(WorkError::Invalid("it was started before".to_owned()));
        };
        // The record says that a start is under way before there is a process, so that none is ever lost.
        record::save_container(&self.directory, &sandbox_id, container)?;
        let root = self.sandbox_directory(&sandbox_id).join(&id.0).join("root");
        let spawned = spawn(&launch, id, &root, &container.log);
        let outcome = match spawned {
            Ok(child) => {
                let pid = i32::try_from(child.id()).unwrap_or(0);
                let start_time = proc::Process::read(pid).map_or(0, |process| process.start_time);
                proc::set_oom_score_adj(pid, launch.oom_score_adj);
                let process = record::Process { pid, start_time, boot_id: self.boot_id.clone() };
                container.phase = Phase::Started { process, started_at_ms: now_ms(), exit: None };
                children.insert(id.clone(), child);
                Ok(())
            }
            Err(error) => {
                let message = format!("{}: {error}", launch.words.first().map_or("", String::as_str));
                container.phase = never_ran(&message);
                Err(WorkError::Invalid(message))
            }
        };
        record::save_container(&self.directory, &sandbox_id, container)?;
        outcome
    }

    /// Signals the container's process group. Returns whether it is alive.
    pub(super) fn signal(&self, id: &ContainerId, signal: Signal) -> Result<bool, WorkError> {
        if !self.is_alive(id)? {
            return Ok(false);
        }
        let mut state = self.lock();
        if let Some((_, container)) = find(&mut state.sandboxes, id)
            && let Phase::Started { process, exit: None, .. } = &container.phase
        {
            proc::signal_group(process.pid, signal);
        }
        Ok(true)
    }

    /// Whether its process runs; an end that is seen here is recorded.
    pub(super) fn is_alive(&self, id: &ContainerId) -> Result<bool, WorkError> {
        let mut state = self.lock();
        let State { sandboxes, children } = &mut *state;
        let Some((sandbox_id, container)) = find(sandboxes, id) else { return Ok(false) };
        self.look(&sandbox_id, container, children)?;
        Ok(matches!(container.phase, Phase::Started { exit: None, .. }))
    }

    pub(super) fn kill(&self, id: &ContainerId) -> Result<(), WorkError> {
        // A process in the kernel's hands may take a moment to go even when killed; 10 s is a broken disk.
        for _ in 0..500 {
            if !self.signal(id, Signal::KILL)? {
                return Ok(());
            }
            std::thread::sleep(STOP_POLL);
        }
        Err(io::Error::other("it was killed and does not end").into())
    }

    pub(super) fn remove(&self, id: &ContainerId) -> Result<(), WorkError> {
        self.kill(id)?;
        let mut state = self.lock();
        let State { sandboxes, children } = &mut *state;
        let Some((sandbox_id, _)) = find(sandboxes, id) else { return Ok(()) };
        record::remove_container(&self.directory, &sandbox_id, id)?;
        children.remove(id);
        if let Some(sandbox) = sandboxes.get_mut(&sandbox_id) {
            sandbox.containers.remove(id);
        }
        Ok(())
    }

    /// What a command in the container takes over from it.
    pub(super) fn beside(&self, id: &ContainerId) -> Result<Beside, WorkError> {
        let alive = self.is_alive(id)?;
        let mut state = self.lock();
        let Some((sandbox, container)) = find(&mut state.sandboxes, id) else {
            return Err(WorkError::NotFound(format!("container {id}")));
        };
        let Phase::Started { process, exit: None, .. } = &container.phase else {
            return Err(WorkError::Failed("the container does not run".to_owned()));
        };
        let ended = || WorkError::Failed("the container does not run any more".to_owned());
        if !alive {
            return Err(ended());
        }
        let pid = process.pid;
        let (user, group) = proc::owner(pid).ok_or_else(ended)?;
        let directory = self.sandbox_directory(&sandbox).join(&id.0).join("root");
        drop(state);
        Ok(Beside { env: proc::environment_of_started(pid), directory, user, group })
    }

    pub(super) fn observe(&self) -> Result<Vec<ObservedSandbox>, WorkError> {
        let mut state = self.lock();
        let State { sandboxes, children } = &mut *state;
        for sandbox in sandboxes.values_mut() {
            for container in sandbox.containers.values_mut() {
                // One whose end cannot be written down keeps nobody from seeing the others.
                if let Err(error) = self.look(&sandbox.id, container, children) {
                    warn!(container = %container.id, %error, "the end of a process cannot be recorded");
                }
            }
        }
        Ok(sandboxes.values().map(|sandbox| self.observed(sandbox)).collect())
    }

    /// Looks whether a process has ended. Its end is told only once it is durable, so that no later program
    /// finds less than what was told; if it cannot be recorded, the next look tries again.
    fn look(
        &self,
        sandbox: &SandboxId,
        container: &mut Container,
        children: &mut HashMap<ContainerId, Child>,
    ) -> io::Result<()> {
        let Phase::Started { process, exit: exit @ None, .. } = &mut container.phase else { return Ok(()) };
        let ended = match children.get_mut(&container.id) {
            Some(child) => match child.try_wait() {
                Ok(None) => None,
                Ok(Some(status)) => Some(status.code().or(status.signal().map(|signal| 128 + signal))),
                Err(_) => Some(None),
            },
            None if process.boot_id == self.boot_id && proc::is_same(process.pid, process.start_time) => None,
            None => Some(None),
        };
        let Some(code) = ended else { return Ok(()) };
        for left in proc::processes_of(&container.id.0) {
            proc::kill(left);
        }
        *exit = Some(Exit { code, message: String::new(), finished_at_ms: now_ms() });
        let saved = record::save_container(&self.directory, sandbox, container);
        match (&saved, &mut container.phase) {
            // The child is what knows the exit code, so it is let go only now.
            (Ok(()), _) => drop(children.remove(&container.id)),
            (Err(_), Phase::Started { exit, .. }) => *exit = None,
            (Err(_), Phase::Created(_) | Phase::Launching | Phase::NeverRan(_)) => {}
        }
        saved
    }

    fn observed(&self, sandbox: &Sandbox) -> ObservedSandbox {
        let containers = sandbox.containers.values().map(|container| ObservedContainer {
            id: container.id.clone(),
            name: container.name.clone(),
            attempt: container.attempt,
            image: container.image.clone(),
            image_id: format!("process:{}", container.image),
            spec_hash: container.spec_hash.clone(),
            created_at_ms: container.created_at_ms,
            state: container.state(),
            log: Some(ContainerLog { path: container.log.clone(), format: LogFormat::Plain }),
        });
        ObservedSandbox {
            id: sandbox.id.clone(),
            name: sandbox.name.clone(),
            namespace: sandbox.namespace.clone(),
            uid: sandbox.uid.clone(),
            attempt: sandbox.attempt,
            ready: !sandbox.stopped && sandbox.boot_id == self.boot_id,
            ips: Vec::new(),
            created_at_ms: sandbox.created_at_ms,
            containers: containers.collect(),
        }
    }
}

impl Container {
    fn state(&self) -> ContainerState {
        match &self.phase {
            Phase::Created(_) => ContainerState::Created,
            Phase::Launching => ContainerState::Unknown,
            Phase::Started { started_at_ms, exit: None, .. } => {
                ContainerState::Running { started_at_ms: *started_at_ms }
            }
            Phase::Started { started_at_ms, exit: Some(exit), .. } => ended(exit, *started_at_ms),
            Phase::NeverRan(exit) => ended(exit, 0),
        }
    }
}

fn ended(exit: &Exit, started_at_ms: u64) -> ContainerState {
    let reason = match exit.code {
        None => "",
        Some(_) if started_at_ms == 0 => "StartError",
        Some(0) => "Completed",
        Some(_) => "Error",
    };
    ContainerState::Exited {
        exit_code: exit.code,
        reason: reason.to_owned(),
        message: exit.message.clone(),
        started_at_ms,
        finished_at_ms: exit.finished_at_ms,
    }
}

/// 127: what shells say of a command that cannot be found.
fn never_ran(message: &str) -> Phase {
    Phase::NeverRan(Exit { code: Some(127), message: message.to_owned(), finished_at_ms: now_ms() })
}

pub(super) fn find<'a>(
    sandboxes: &'a mut BTreeMap<SandboxId, Sandbox>,
    id: &ContainerId,
) -> Option<(SandboxId, &'a mut Container)> {
    sandboxes.values_mut().find_map(|sandbox| {
        let container = sandbox.containers.get_mut(id)?;
        Some((sandbox.id.clone(), container))
    })
}

/// Starts a container's process in a group of its own, with its output in the log.
fn spawn(launch: &Launch, id: &ContainerId, root: &Path, log: &Path) -> io::Result<Child> {
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)?;
    }
    let log = fs::OpenOptions::new().create(true).append(true).mode(0o640).open(log)?;
    let inside = root.join(launch.working_dir.trim_start_matches('/'));
    let working_dir = if inside.is_dir() { inside } else { root.to_owned() };
    let (program, arguments) = launch.words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(working_dir)
        .env_clear()
        .env("PATH", PATH)
        .envs(
            launch
                .env
                .iter()
                .filter(|(name, _)| !name.is_empty() && !name.contains('='))
                .map(|(k, v)| (k, v)),
        )
        .env("CONTAINER_ROOT", root)
        .env(proc::ID_VARIABLE, &id.0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    if let Some(group) = launch.group {
        command.gid(group);
    }
    if let Some(user) = launch.user {
        command.uid(user);
    }
    command.spawn()
}

/// Makes a mount: a link below the container's root.
fn link(root: &Path, container_path: &Path, host_path: &Path) -> Result<(), WorkError> {
    let inside: PathBuf =
        container_path.components().filter(|part| !matches!(part, Component::RootDir)).collect();
    if inside.as_os_str().is_empty() || !inside.components().all(|part| matches!(part, Component::Normal(_)))
    {
        return Err(WorkError::Invalid(format!("mount path {} cannot be used", container_path.display())));
    }
    let link = root.join(inside);
    // A mount inside another mount would be a link written into the node's own directory.
    let through_link = link.ancestors().skip(1).take_while(|path| *path != root).any(Path::is_symlink);
    if through_link {
        let message = format!("mount path {} is inside another mount", container_path.display());
        return Err(WorkError::Invalid(message));
    }
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(symlink(host_path, link)?)
}

/// A random id, from the kernel.
fn fresh_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned())
}

pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
