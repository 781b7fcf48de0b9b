//! The kubelet's interface over a real containerd, with stock clients: kubectl, whose connections are SPDY, and a
//! WebSocket. It needs root, kubectl and the Debian packages that the containerd it starts needs.
#![cfg(feature = "edged-api")]
#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "../../tests/support/containerd.rs"]
mod support;

use std::{
    fs,
    net::SocketAddr,
    process::{Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use kubeedge_core::{
    message::{Connectivity, Object, ObjectEvent},
    pipe,
    runtime::containerd::{Config, Containerd},
};
use kubeedge_edge::edged::{
    self, Edged,
    api::{self, Api},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use tokio_util::sync::CancellationToken;

const SCRIPT: &str = "echo started; trap 'exit 0' TERM; httpd -p 8080 -h /tmp; \
    echo from the pod > /tmp/index.html; while true; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_reach_a_pod_through_the_kubelets_interface() {
    let containerd = support::Containerd::start();
    let node = Node::start(&containerd).await;
    figures_logs_and_pods_are_served(&node).await;
    a_websocket_runs_a_command(&node).await;
    what_is_not_there_is_told(&node).await;
    let api_server = node.api_server().await;
    kubectl_runs_commands_and_sees_their_exit_codes(api_server).await;
    kubectl_attaches(api_server).await;
    kubectl_forwards_a_port(api_server).await;
    node.stop.cancel();
}

struct Node {
    address: SocketAddr,
    token: String,
    stop: CancellationToken,
    _outside: edged::Outside,
}

impl Node {
    async fn start(containerd: &support::Containerd) -> Self {
        let config = Config { socket: containerd.socket(), ..Config::default() };
        let runtime = Arc::new(Containerd::new(config).unwrap());
        let (inbox, outbox, outside) = edged::pipes();
        let mut config = edged::Config::new("edge-1".parse().unwrap());
        let directory = containerd.directory();
        (config.root, config.logs) = (directory.join("edged"), directory.join("logs"));
        // How full the disk of the machine is has nothing to do with what is tested.
        config.eviction = edged::Eviction::never();
        let stop = CancellationToken::new();
        let mut api_config = api::Config::new(config.node.clone(), &config.root);
        api_config.address.set_port(0);
        let api_outbox = api::Outbox { pods: outside.pods.clone(), logs: outside.logs.clone() };
        let api_inbox = api::Inbox { tunnels: pipe::calls("tunnels", 1).1 };
        let streaming = Some(runtime.clone() as _);
        let api = Api::bind(api_config, runtime.clone(), streaming, api_inbox, api_outbox).await.unwrap();
        let token = fs::read_to_string(config.root.join("api-token")).unwrap();
        let address = api.address();
        tokio::spawn(Edged::new(config, runtime, inbox, outbox).run(stop.clone()));
        tokio::spawn(api.run(stop.clone()));
        outside.connectivity.send_replace(Connectivity::Online);
        outside.workloads.send(ObjectEvent::Applied(Object::from_json(pod().to_string()).unwrap())).unwrap();
        let node = Self { address, token, stop, _outside: outside };
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let pods = node.json("/pods").await;
            if pods["items"][0]["status"]["containerStatuses"][0]["ready"] == true {
                return node;
            }
            assert!(Instant::now() < until, "the pod does not run: {pods}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn curl(&self, path: &str) -> String {
        let bearer = format!("Authorization: Bearer {}", self.token);
        let url = format!("http://{}{path}", self.address);
        let output = Command::new("curl").args(["-sS", "-m", "30", "-H", &bearer, &url]).output().await;
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        let body = self.curl(path).await;
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// What an API server is between kubectl and a kubelet: it answers for the pod, turns the path of a stream into
    /// the kubelet's and proves who it is; the rest is bytes.
    async fn api_server(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (kubelet, token) = (self.address, self.token.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let token = token.clone();
                tokio::spawn(async move { drop(between(stream, kubelet, &token).await) });
            }
        });
        address
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u-1", "resourceVersion": "1"},
        "spec": {
            "containers": [{
                "name": "app", "image": support::IMAGE, "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", SCRIPT], "stdin": true,
            }],
            "terminationGracePeriodSeconds": 1,
        },
        "status": {"phase": "Running"},
    })
}

async fn between(stream: TcpStream, kubelet: SocketAddr, token: &str) -> std::io::Result<()> {
    let mut client = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if client.read_until(b'\n', &mut head).await? == 0 {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let (first, headers) = head.split_once("\r\n").unwrap_or_default();
        let target = first.split(' ').nth(1).unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        const POD: &str = "/api/v1/namespaces/default/pods/web";
        let stream = match path.strip_prefix(POD) {
            Some("/exec") => "/exec/default/web/app",
            Some("/attach") => "/attach/default/web/u-1/app",
            Some("/portforward") => "/portForward/default/web",
            _ => {
                let body = match path {
                    "/version" => json!({"major": "1", "minor": "32", "gitVersion": "v1.32.0"}),
                    "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
                    "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
                    "/api/v1" => json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [
                        {"name": "pods", "kind": "Pod", "namespaced": true, "verbs": ["get"]}]}),
                    POD => pod(),
                    _ => json!({"kind": "Status", "apiVersion": "v1", "code": 404}),
                };
                let body = body.to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                client.get_mut().write_all(answer.as_bytes()).await?;
                continue;
            }
        };
        let method = first.split(' ').next().unwrap_or("");
        let mut upstream = TcpStream::connect(kubelet).await?;
        let head =
            format!("{method} {stream}?{query} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n{headers}");
        upstream.write_all(head.as_bytes()).await?;
        copy_bidirectional(&mut client, &mut upstream).await?;
        return Ok(());
    }
}

async fn figures_logs_and_pods_are_served(node: &Node) {
    let until = Instant::now() + Duration::from_secs(30);
    while node.curl("/containerLogs/default/web/app").await != "started\n" {
        assert!(Instant::now() < until, "{}", node.curl("/containerLogs/default/web/app").await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(node.json("/runningpods/").await["items"][0]["metadata"]["name"], "web");
    loop {
        let summary = node.json("/stats/summary").await;
        let container = &summary["pods"][0]["containers"][0];
        let used = |part: &str, name: &str| container[part][name].as_u64().unwrap_or(0);
        // The rate takes two readings, and what is written is counted now and then.
        if used("cpu", "usageCoreNanoSeconds") > 0
            && used("cpu", "usageNanoCores") > 0
            && used("memory", "workingSetBytes") > 0
            && used("rootfs", "usedBytes") > 0
        {
            assert!(summary["node"]["runtime"]["imageFs"]["usedBytes"].as_u64().unwrap() > 0);
            assert!(summary["pods"][0]["memory"]["workingSetBytes"].is_u64(), "{summary}");
            break;
        }
        assert!(Instant::now() < until, "{summary}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let metrics = node.curl("/metrics/resource").await;
    assert!(metrics.contains("pod_memory_working_set_bytes{namespace=\"default\",pod=\"web\"}"), "{metrics}");
}

async fn a_websocket_runs_a_command(node: &Node) {
    let command = "command=/bin/sh&command=-c&command=cat%20%26%26%20exit%203";
    let url = format!("ws://{}/exec/default/web/app?{command}&input=1&output=1&error=1", node.address);
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse().unwrap());
    headers.insert("Authorization", format!("Bearer {}", node.token).parse().unwrap());
    let stream = TcpStream::connect(node.address).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "v4.channel.k8s.io");
    socket.send(Message::binary(b"\x00hello\n".to_vec())).await.unwrap();
    let mut output = Vec::new();
    while !output.ends_with(b"hello\n") {
        let message = tokio::time::timeout(Duration::from_secs(30), socket.next()).await.unwrap();
        let data = message.unwrap().unwrap().into_data();
        if data.first() == Some(&1) {
            output.extend_from_slice(&data[1..]);
        }
    }
    socket.close(None).await.unwrap();
}

async fn what_is_not_there_is_told(node: &Node) {
    let refused = async |path: &str| {
        let mut request = format!("ws://{}{path}", node.address).into_client_request().unwrap();
        request.headers_mut().insert("Authorization", format!("Bearer {}", node.token).parse().unwrap());
        let stream = TcpStream::connect(node.address).await.unwrap();
        match tokio_tungstenite::client_async(request, stream).await {
            Err(tungstenite::Error::Http(answer)) => answer.status().as_u16(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused("/exec/default/web/absent?command=sh&output=1").await, 404);
    assert_eq!(refused("/exec/default/absent/app?command=sh&output=1").await, 404);
    assert_eq!(refused("/exec/default/web/other-uid/app?command=sh&output=1").await, 404);
    assert!(node.curl("/exec/default/web/app?command=sh&output=1").await.contains("upgrade"));
}

async fn kubectl(server: SocketAddr, arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new("kubectl")
        .args(["--kubeconfig", "/dev/null", "--server", &format!("http://{server}")])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("install kubectl to run this test");
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    output.expect("kubectl ends").unwrap()
}

async fn kubectl_runs_commands_and_sees_their_exit_codes(server: SocketAddr) {
    let ran = kubectl(server, &["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], "").await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&ran.stdout), "out\n", "{ran:?}");
    assert!(text(&ran.stderr).starts_with("err\n") && ran.status.code() == Some(7), "{ran:?}");
    let large: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    let ran = kubectl(server, &["exec", "-i", "web", "--", "cat"], &large).await;
    assert!(
        ran.status.success() && text(&ran.stdout) == large,
        "what goes in comes out: {}",
        text(&ran.stderr)
    );
}

async fn kubectl_attaches(server: SocketAddr) {
    // The shell of the pod reads nothing, so it is only seen that there is a stream, until kubectl is ended.
    let attached = kubectl(server, &["exec", "web", "--", "sh", "-c", "echo to its log > /proc/1/fd/1"], "");
    let mut child = Command::new("kubectl")
        .args(["--kubeconfig", "/dev/null", "--server", &format!("http://{server}"), "attach", "web"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(attached.await.status.success());
        lines.next_line().await.unwrap()
    };
    let seen = tokio::time::timeout(Duration::from_secs(60), seen).await.expect("a line");
    assert_eq!(seen.as_deref(), Some("to its log"));
    child.kill().await.unwrap();
}

async fn kubectl_forwards_a_port(server: SocketAddr) {
    let mut child = Command::new("kubectl")
        .args(["--kubeconfig", "/dev/null", "--server", &format!("http://{server}")])
        .args(["port-forward", "--address=127.0.0.1", "pod/web", ":8080"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.expect("a line");
    let line = line.unwrap().expect("kubectl says where");
    let port = line.split([':', ' ']).find_map(|word| word.parse::<u16>().ok()).expect(&line);
    for _ in 0..3 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(30), read).await.expect("an answer").unwrap();
        assert!(answer.ends_with("from the pod\n"), "{answer}");
    }
    child.kill().await.unwrap();
}
