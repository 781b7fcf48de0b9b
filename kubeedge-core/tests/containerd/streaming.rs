//! The URLs of the runtime's own streaming server.

use kubeedge_core::runtime::{ContainerId, RuntimeError, SandboxId, Streaming, Streams};

use crate::{Running, support};

pub(crate) async fn run(containerd: &support::Containerd) {
    let pod = Running::start(containerd, "streams", |_| {}, |_| {}).await;
    let streams = Streams { stdout: true, stderr: true, ..Streams::default() };
    let command = ["/bin/sh".to_owned()];
    let urls = [
        pod.runtime.exec_url(&pod.id, &command, streams).await.unwrap(),
        pod.runtime.attach_url(&pod.id, streams).await.unwrap(),
        pod.runtime.port_forward_url(&pod.sandbox, &[80]).await.unwrap(),
    ];
    for (url, kind) in urls.iter().zip(["exec", "attach", "portforward"]) {
        assert!(url.starts_with("http://127.0.0.1:") && url.contains(kind), "{url}");
    }
    let terminal = Streams { stdin: true, stdout: true, stderr: true, tty: true };
    pod.runtime.exec_url(&pod.id, &command, terminal).await.expect("a terminal mixes both streams");
    let absent = pod.runtime.exec_url(&ContainerId("absent".into()), &command, streams).await;
    assert!(matches!(absent, Err(RuntimeError::NotFound { .. })), "{absent:?}");
    let absent = pod.runtime.port_forward_url(&SandboxId("absent".into()), &[80]).await;
    assert!(matches!(absent, Err(RuntimeError::NotFound { .. })), "{absent:?}");
    pod.remove().await;
}
