//! Commands in containers that only seem to run.

use std::{collections::BTreeMap, fmt, future::pending, sync::Arc, time::Duration};

use super::MemoryRuntime;
use crate::runtime::{ContainerId, EXEC_OUTPUT_MAX, Execution, RuntimeError};

/// What a command in a container of a [`MemoryRuntime`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exec {
    /// It ends at once.
    Exit(Execution),
    /// It ends after this time.
    ExitAfter(Duration, Execution),
    /// It never ends.
    Hang,
    /// It cannot be run, for this reason.
    Fail(String),
}

impl Exec {
    /// Ends at once with this exit code, after writing `stdout`.
    pub fn exit(exit_code: i32, stdout: &str) -> Self {
        Self::Exit(Execution { exit_code, stdout: stdout.as_bytes().to_vec(), stderr: Vec::new() })
    }
}

type Script = Arc<dyn Fn(&[String]) -> Exec + Send + Sync>;

#[derive(Default)]
pub(super) struct Execs {
    scripts: BTreeMap<String, Script>,
    asked: BTreeMap<String, Vec<Vec<String>>>,
    running: BTreeMap<String, u32>,
}

impl fmt::Debug for Execs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execs").field("asked", &self.asked).finish_non_exhaustive()
    }
}

impl MemoryRuntime {
    /// Lets `script` say what each command in `container` does. Without one, every command ends well.
    pub fn on_exec(&self, container: &str, script: impl Fn(&[String]) -> Exec + Send + Sync + 'static) {
        self.lock().execs.scripts.insert(container.to_owned(), Arc::new(script));
    }

    /// The commands that were run in `container`, oldest first.
    pub fn execs(&self, container: &str) -> Vec<Vec<String>> {
        self.lock().execs.asked.get(container).cloned().unwrap_or_default()
    }

    /// How many commands run in `container`.
    pub fn running_execs(&self, container: &str) -> u32 {
        self.lock().execs.running.get(container).copied().unwrap_or(0)
    }

    pub(super) async fn run_command(
        &self,
        id: &ContainerId,
        command: &[String],
        deadline: Duration,
    ) -> Result<Execution, RuntimeError> {
        let what = || format!("run {} in container {id}", command.first().map_or("nothing", String::as_str));
        let (script, running) = {
            let mut state = self.open(&what())?;
            let name = state.running(what(), id)?;
            state.execs.asked.entry(name.clone()).or_default().push(command.to_vec());
            (state.execs.scripts.get(&name).cloned(), Running::new(self, &mut state.execs, name))
        };
        let outcome = script.map_or_else(|| Exec::exit(0, ""), |script| script(command));
        let ends = async {
            match outcome {
                Exec::Exit(execution) => Ok(execution),
                Exec::ExitAfter(time, execution) => {
                    tokio::time::sleep(time).await;
                    Ok(execution)
                }
                Exec::Hang => pending().await,
                Exec::Fail(message) => Err(RuntimeError::Failed { what: what(), message }),
            }
        };
        let ended = tokio::time::timeout(deadline, ends).await;
        drop(running);
        let Ok(ended) = ended else {
            let message = format!("the command did not end within {deadline:?}");
            return Err(RuntimeError::TimedOut { what: what(), message });
        };
        let mut execution = ended?;
        execution.stdout.truncate(EXEC_OUTPUT_MAX);
        execution.stderr.truncate(EXEC_OUTPUT_MAX);
        Ok(execution)
    }
}

/// Counts a command while it runs, also if nobody waits for it any more.
struct Running {
    runtime: MemoryRuntime,
    container: String,
}

impl Running {
    fn new(runtime: &MemoryRuntime, execs: &mut Execs, container: String) -> Self {
        *execs.running.entry(container.clone()).or_default() += 1;
        Self { runtime: runtime.clone(), container }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(count) = self.runtime.lock().execs.running.get_mut(&self.container) {
            *count -= 1;
        }
    }
}
