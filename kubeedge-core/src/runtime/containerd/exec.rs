//! A command in a container, for probes and hooks.

use std::time::Duration;

use tonic::{Code, Request};

use super::{Containerd, cri, errors};
use crate::runtime::{ContainerId, EXEC_OUTPUT_MAX, Execution, RuntimeError};

/// The runtime ends the command itself; it is waited for a little longer, for its answer to come.
const ANSWER: Duration = Duration::from_secs(5);

impl Containerd {
    pub(super) async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        deadline: Duration,
    ) -> Result<Execution, RuntimeError> {
        let what = || format!("run {} in container {id}", command.first().map_or("nothing", String::as_str));
        // CRI counts whole seconds, and zero means for ever; a begun second is given.
        let seconds = (deadline.as_secs() + u64::from(deadline.subsec_nanos() > 0)).max(1);
        let request = cri::ExecSyncRequest {
            container_id: id.0.clone(),
            cmd: command.to_vec(),
            timeout: i64::try_from(seconds).unwrap_or(i64::MAX),
        };
        let late = || {
            let message = format!("the command did not end within {deadline:?}");
            RuntimeError::TimedOut { what: what(), message }
        };
        let mut runtime = self.runtime();
        let call = runtime.exec_sync(Request::new(request));
        let outcome = tokio::time::timeout(deadline.saturating_add(ANSWER), call).await;
        let response = match outcome {
            // Dropping the call makes the runtime end the command.
            Err(_) => return Err(late()),
            Ok(Err(status)) if status.code() == Code::DeadlineExceeded => return Err(late()),
            Ok(Err(status)) => return Err(errors::explain(what(), &status)),
            Ok(Ok(response)) => response.into_inner(),
        };
        Ok(Execution {
            exit_code: response.exit_code,
            stdout: beginning(response.stdout),
            stderr: beginning(response.stderr),
        })
    }
}

fn beginning(mut output: Vec<u8>) -> Vec<u8> {
    if output.len() > EXEC_OUTPUT_MAX {
        output.truncate(EXEC_OUTPUT_MAX);
        output.shrink_to_fit();
    }
    output
}
