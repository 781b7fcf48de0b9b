//! A command beside a container's process: with its user, environment and directory.

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use super::{ProcessRuntime, failed, proc};
use crate::runtime::{ContainerId, EXEC_OUTPUT_MAX, Execution, RuntimeError};

/// What a command takes over from its container.
pub(super) struct Beside {
    pub(super) env: Vec<(String, String)>,
    pub(super) directory: PathBuf,
    pub(super) user: u32,
    pub(super) group: u32,
}

pub(super) async fn run(
    runtime: &ProcessRuntime,
    id: &ContainerId,
    command: &[String],
    deadline: Duration,
) -> Result<Execution, RuntimeError> {
    let what = format!("run {} in container {id}", command.first().map_or("nothing", String::as_str));
    let one = id.clone();
    let beside = runtime.work(what.clone(), move |inner| inner.beside(&one)).await?;
    let Some((program, arguments)) = command.split_first() else {
        return Err(RuntimeError::Invalid { what, message: "the command is empty".to_owned() });
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(beside.env)
        .current_dir(beside.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    // Only root may become somebody else, and needs to only then.
    if (beside.user, beside.group) != (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
    {
        command.gid(beside.group).uid(beside.user);
    }
    let mut child = command.spawn().map_err(|error| failed(&what, &error))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ends = async {
        let (stdout, stderr, status) = tokio::join!(beginning(stdout), beginning(stderr), child.wait());
        Ok::<_, io::Error>((stdout?, stderr?, status?))
    };
    let ended = tokio::time::timeout(deadline, ends).await;
    let Ok(ended) = ended else {
        let message = format!("the command did not end within {deadline:?}");
        return Err(RuntimeError::TimedOut { what, message });
    };
    // What a command that has ended left in the background runs on, as in a container.
    group.0 = None;
    let (stdout, stderr, status) = ended.map_err(|error| failed(&what, &error))?;
    use std::os::unix::process::ExitStatusExt;
    let exit_code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
    Ok(Execution { exit_code, stdout, stderr })
}

/// Kills a command and what it started if its time is over, or nobody waits for it any more.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            proc::signal_group(group, Signal::KILL);
        }
    }
}

/// Reads to the end, and keeps the beginning: a command that nobody listens to would stop.
async fn beginning(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let Some(mut from) = from else { return Ok(Vec::new()) };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(kept);
        }
        let wanted = read.min(EXEC_OUTPUT_MAX - kept.len());
        kept.extend_from_slice(&buffer[..wanted]);
    }
}
