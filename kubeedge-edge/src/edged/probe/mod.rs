//! Performs what probes and hooks ask for. Whatever is asked ends by its deadline.

#[cfg(feature = "edged-grpc")]
mod grpc;
mod http;
#[cfg(feature = "edged-https")]
mod tls;

use std::{io, time::Duration};

use kubeedge_core::runtime::{ContainerRuntime, RuntimeError};
use tokio::{net::TcpStream, time::timeout};

use super::{action::Task, state::ProbeResult, text::duration};

/// What is told of a command's output. 10 KiB: what the kubelet takes of it.
const OUTPUT_MAX: usize = 10 << 10;

/// Makes a probe.
pub(crate) async fn probe(runtime: &dyn ContainerRuntime, task: Task, within: Duration) -> ProbeResult {
    match task {
        Task::Exec { id, command } => match runtime.exec(&id, &command, within).await {
            Ok(ended) if ended.exit_code == 0 => ProbeResult::Success,
            Ok(ended) => ProbeResult::Failure(output(&ended.stdout, &ended.stderr)),
            Err(RuntimeError::TimedOut { .. }) => {
                let (command, within) = (command.join(" "), duration(within));
                ProbeResult::Failure(format!("command timed out: \"{command}\" timed out after {within}"))
            }
            Err(error) => ProbeResult::Errored(error.to_string()),
        },
        Task::Http(task) => match timeout(within, http::get(&task, http::PROBE)).await {
            Ok(Ok(status)) if (200..400).contains(&status) => ProbeResult::Success,
            Ok(Ok(status)) => ProbeResult::Failure(format!("HTTP probe failed with statuscode: {status}")),
            Ok(Err(error)) => ProbeResult::Failure(format!("Get \"{}\": {error}", task.url())),
            Err(_) => ProbeResult::Failure(format!(
                "Get \"{}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                task.url()
            )),
        },
        Task::Tcp { host, port } => match timeout(within, connect(&host, port)).await {
            Ok(Ok(_)) => ProbeResult::Success,
            Ok(Err(error)) => ProbeResult::Failure(error),
            Err(_) => ProbeResult::Failure(format!("dial tcp {}: i/o timeout", address(&host, port))),
        },
        Task::Grpc { host, port, service } => grpc_probe(&host, port, &service, within).await,
        Task::Sleep(_) => ProbeResult::Errored("sleeping is no probe".to_owned()),
        Task::Impossible(why) => ProbeResult::Errored(why),
    }
}

#[cfg(feature = "edged-grpc")]
async fn grpc_probe(host: &str, port: u16, service: &str, within: Duration) -> ProbeResult {
    grpc::check(host, port, service, within).await
}

#[cfg(not(feature = "edged-grpc"))]
#[expect(clippy::unused_async, reason = "as the one that does something")]
async fn grpc_probe(_: &str, _: u16, _: &str, _: Duration) -> ProbeResult {
    ProbeResult::Errored("this node was built without gRPC probes (feature edged-grpc)".to_owned())
}

/// Runs a hook.
///
/// # Errors
/// With what went wrong.
pub(crate) async fn hook(runtime: &dyn ContainerRuntime, task: Task, within: Duration) -> Result<(), String> {
    match task {
        Task::Exec { id, command } => match runtime.exec(&id, &command, within).await {
            Ok(ended) if ended.exit_code == 0 => Ok(()),
            Ok(ended) => {
                let (code, output) = (ended.exit_code, output(&ended.stdout, &ended.stderr));
                Err(format!("command '{}' exited with {code}: {output}", command.join(" ")))
            }
            Err(error) => Err(format!("command '{}': {error}", command.join(" "))),
        },
        Task::Http(task) => match timeout(within, http::get(&task, http::HOOK)).await {
            Ok(Ok(status)) if status < 400 => Ok(()),
            Ok(Ok(status)) => Err(format!("Get \"{}\": HTTP status {status}", task.url())),
            Ok(Err(error)) => Err(format!("Get \"{}\": {error}", task.url())),
            Err(_) => Err(format!("Get \"{}\": no answer within {}", task.url(), duration(within))),
        },
        Task::Sleep(time) => {
            tokio::time::sleep(time.min(within)).await;
            Ok(())
        }
        Task::Tcp { .. } | Task::Grpc { .. } => Err("such a handler is no hook".to_owned()),
        Task::Impossible(why) => Err(why),
    }
}

fn output(stdout: &[u8], stderr: &[u8]) -> String {
    let both = [stdout, stderr].concat();
    String::from_utf8_lossy(&both[..both.len().min(OUTPUT_MAX)]).into_owned()
}

/// Connects, and says in the words that people search for why it could not.
async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| {
        let known = [
            (io::ErrorKind::ConnectionRefused, "connect: connection refused"),
            (io::ErrorKind::HostUnreachable, "connect: no route to host"),
            (io::ErrorKind::NetworkUnreachable, "connect: network is unreachable"),
        ];
        let why = known.iter().find(|(kind, _)| *kind == error.kind());
        let why = why.map_or_else(|| error.to_string(), |(_, why)| (*why).to_owned());
        format!("dial tcp {}: {why}", address(host, port))
    })
}

/// Host and port as they stand in a URL.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests;
