//! URLs of the runtime's own streaming server.

use async_trait::async_trait;
use tonic::Request;

use super::{Containerd, cri};
use crate::runtime::{ContainerId, RuntimeError, SandboxId, Streaming, Streams};

#[async_trait]
impl Streaming for Containerd {
    async fn exec_url(
        &self,
        id: &ContainerId,
        command: &[String],
        streams: Streams,
    ) -> Result<String, RuntimeError> {
        let request = cri::ExecRequest {
            container_id: id.0.clone(),
            cmd: command.to_vec(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr && !streams.tty,
        };
        let what = || format!("open a command in container {id}");
        Ok(self.call(what, self.runtime().exec(Request::new(request))).await?.url)
    }

    async fn attach_url(&self, id: &ContainerId, streams: Streams) -> Result<String, RuntimeError> {
        let request = cri::AttachRequest {
            container_id: id.0.clone(),
            tty: streams.tty,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr && !streams.tty,
        };
        let what = || format!("attach to container {id}");
        Ok(self.call(what, self.runtime().attach(Request::new(request))).await?.url)
    }

    async fn port_forward_url(&self, id: &SandboxId, ports: &[u16]) -> Result<String, RuntimeError> {
        let request = cri::PortForwardRequest {
            pod_sandbox_id: id.0.clone(),
            port: ports.iter().copied().map(i32::from).collect(),
        };
        let what = || format!("forward ports of sandbox {id}");
        Ok(self.call(what, self.runtime().port_forward(Request::new(request))).await?.url)
    }
}
