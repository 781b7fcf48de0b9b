//! Behaviour towards clients, over the runtime in memory; what needs a real one is in `tests/kubelet_api.rs`.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use kubeedge_core::{
    message::{
        Connectivity, Object, ObjectEvent, Response, TunnelId, TunnelRequest, TunnelResponse, TunnelStep,
    },
    pipe::{self, Caller},
    runtime::{ContainerStats, CpuUsage, MemoryUsage, memory::MemoryRuntime},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

use super::{Api, Config, Error, Inbox, Outbox};
use crate::edged::{self, Edged};

/// Connections of the cloud at once, and how long they last without a word.
const TUNNELS_MAX: usize = 2;
const TUNNEL_IDLE: Duration = Duration::from_secs(2);

/// Edged with a pod, and its interface.
struct Node {
    runtime: MemoryRuntime,
    directory: tempfile::TempDir,
    address: SocketAddr,
    outside: edged::Outside,
    tunnels: Caller<TunnelRequest, Response>,
    stop: CancellationToken,
}

impl Node {
    async fn start(connections_max: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = MemoryRuntime::new();
        let (inbox, outbox, outside) = edged::pipes();
        let mut config = edged::Config::new("edge-1".parse().unwrap());
        (config.root, config.logs) = (directory.path().join("root"), directory.path().join("logs"));
        config.observe_interval = Duration::from_millis(50);
        // How full the disk of the machine is has nothing to do with what is tested.
        config.eviction = edged::Eviction::never();
        let stop = CancellationToken::new();
        let api = Config { connections_max, ..config_of(&directory.path().join("root")) };
        let api_outbox = Outbox { pods: outside.pods.clone(), logs: outside.logs.clone() };
        let (tunnels, tunnels_rx) = pipe::calls("tunnels", 8);
        let api_inbox = Inbox { tunnels: tunnels_rx };
        let api = Api::bind(api, Arc::new(runtime.clone()), None, api_inbox, api_outbox).await.unwrap();
        let address = api.address();
        tokio::spawn(Edged::new(config, Arc::new(runtime.clone()), inbox, outbox).run(stop.clone()));
        tokio::spawn(api.run(stop.clone()));
        outside.connectivity.send_replace(Connectivity::Online);
        Self { runtime, directory, address, outside, tunnels, stop }
    }

    async fn with_pod() -> Self {
        let node = Self::start(8).await;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "namespace": "default", "uid": "u-1", "resourceVersion": "1"},
            "spec": {"containers": [{"name": "app", "image": "app:1"}], "odd": true},
        });
        node.outside
            .workloads
            .send(ObjectEvent::Applied(Object::from_json(pod.to_string()).unwrap()))
            .unwrap();
        node.until("/pods", |list| list["items"][0]["status"]["phase"] == "Running").await;
        node
    }

    fn token(&self) -> String {
        fs::read_to_string(self.directory.path().join("root/api-token")).unwrap()
    }

    async fn get(&self, path: &str) -> (u16, String) {
        get(self.address, path, &format!("Authorization: Bearer {}\r\n", self.token())).await
    }

    async fn until(&self, path: &str, accept: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..200 {
            let (code, body) = self.get(path).await;
            let value = serde_json::from_str(&body).unwrap_or_default();
            if code == 200 && accept(&value) {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{path} is {:?}", self.get(path).await);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn config_of(root: &Path) -> Config {
    let mut config = Config::new("edge-1".parse().unwrap(), root);
    config.address.set_port(0);
    (config.tunnels_max, config.tunnel_idle) = (TUNNELS_MAX, TUNNEL_IDLE);
    config
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(30), read).await.expect("an answer that ends").ok();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, answer) };
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn nothing_is_told_without_the_token() {
    let node = Node::with_pod().await;
    let paths = [
        "/healthz",
        "/pods",
        "/metrics",
        "/containerLogs/default/web/app",
        "/exec/default/web/app?command=x",
    ];
    for headers in
        ["", "Authorization: Bearer \r\n", "Authorization: Bearer 0123\r\n", "Authorization: Basic YTpi\r\n"]
    {
        for path in paths {
            let (code, body) = get(node.address, path, headers).await;
            assert_eq!((code, body.as_str()), (401, "Unauthorized\n"), "{path} with {headers:?}");
        }
    }
    assert_eq!(node.get("/healthz").await, (200, "ok".into()));
}

#[tokio::test]
async fn an_address_that_others_can_reach_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_inbox, _outbox, outside) = edged::pipes();
    let config = Config { address: "0.0.0.0:0".parse().unwrap(), ..config_of(directory.path()) };
    let outbox = Outbox { pods: outside.pods, logs: outside.logs };
    let inbox = Inbox { tunnels: pipe::calls("tunnels", 1).1 };
    let refused = Api::bind(config, Arc::new(MemoryRuntime::new()), None, inbox, outbox).await;
    assert!(matches!(refused, Err(Error::NotLoopback(_))), "{refused:?}");
}

#[tokio::test]
async fn the_cloud_needs_no_token_and_its_connections_are_bounded() {
    let node = Node::with_pod().await;
    let step = async |id: u64, step| {
        let request = TunnelRequest { tunnel: TunnelId(id), step };
        node.tunnels.call(request, Duration::from_secs(10)).await.unwrap()
    };
    let code = async |id, it| {
        let answer = step(id, it).await;
        let Response::Failed { code, .. } = answer else { panic!("{answer:?}") };
        code
    };
    let pull = |offset: usize| TunnelStep::Pull { offset: offset as u64, wait: Duration::from_secs(5) };
    for id in 0..TUNNELS_MAX as u64 {
        assert_eq!(step(id, TunnelStep::Open).await, Response::Tunnel(TunnelResponse::Taken(0)));
    }
    assert_eq!(code(99, TunnelStep::Open).await, 503);
    assert_eq!(code(0, TunnelStep::Open).await, 409);
    assert_eq!(code(99, pull(0)).await, 404);

    let head = "GET /healthz HTTP/1.1\r\nHost: edge-1\r\nConnection: close\r\n\r\n";
    let (data, wait) = (Bytes::from_static(head.as_bytes()), Duration::from_secs(5));
    let push = TunnelStep::Push { offset: 0, data, end: false, wait };
    assert_eq!(step(0, push).await, Response::Tunnel(TunnelResponse::Taken(head.len() as u64)));
    let mut said = Vec::new();
    loop {
        let answer = step(0, pull(said.len())).await;
        let Response::Tunnel(TunnelResponse::Piece { data, end }) = answer else { panic!("{answer:?}") };
        said.extend_from_slice(&data);
        if end {
            break;
        }
    }
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with("ok"), "{said}");
    assert_eq!(step(0, TunnelStep::Close).await, Response::Tunnel(TunnelResponse::Taken(0)));
    assert_eq!(code(0, pull(0)).await, 404);
    // One that has ended makes room, and so do those that nobody asks about.
    assert_eq!(step(99, TunnelStep::Open).await, Response::Tunnel(TunnelResponse::Taken(0)));
    tokio::time::sleep(TUNNEL_IDLE * 2).await;
    assert_eq!(code(99, pull(0)).await, 404);
    assert_eq!(step(98, TunnelStep::Open).await, Response::Tunnel(TunnelResponse::Taken(0)));
}

#[tokio::test]
async fn without_a_socket_and_a_token_the_cloud_is_served_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (_inbox, _outbox, outside) = edged::pipes();
    let (tunnels, tunnels_rx) = pipe::calls("tunnels", 8);
    let inbox = Inbox { tunnels: tunnels_rx };
    let outbox = Outbox { pods: outside.pods, logs: outside.logs };
    let api = Api::new(config_of(directory.path()), Arc::new(MemoryRuntime::new()), None, inbox, outbox);
    let stop = CancellationToken::new();
    let running = tokio::spawn(api.run(stop.clone()));
    let open = TunnelRequest { tunnel: TunnelId(1), step: TunnelStep::Open };
    let opened = tunnels.call(open, Duration::from_secs(10)).await;
    assert_eq!(opened, Ok(Response::Tunnel(TunnelResponse::Taken(0))));
    assert!(!directory.path().join("api-token").exists());
    stop.cancel();
    assert!(running.await.unwrap().is_ok());
}

#[tokio::test]
async fn pods_have_the_status_of_this_node() {
    let node = Node::with_pod().await;
    let pods = node.until("/pods", |_| true).await;
    assert_eq!((&pods["kind"], &pods["apiVersion"]), (&json!("PodList"), &json!("v1")));
    assert_eq!(pods["items"][0]["spec"]["odd"], true, "what Edged does not know is there too");
    let running = node.until("/runningpods/", |_| true).await;
    assert_eq!(running["items"][0]["metadata"]["uid"], "u-1");
    assert_eq!(running["items"][0]["spec"]["containers"][0]["name"], "app");
    assert_eq!(node.get("/nowhere").await.0, 404);
}

#[tokio::test]
async fn a_log_is_followed_until_its_container_ends() {
    let node = Node::with_pod().await;
    let log = node.directory.path().join("logs/default_web_u-1/app");
    fs::create_dir_all(&log).unwrap();
    let line = |n: u32| format!("2026-01-02T03:04:0{n}Z stdout F line {n}\n");
    fs::write(log.join("0.log"), line(1) + &line(2)).unwrap();
    let path = "/containerLogs/default/web/app";
    assert_eq!(node.get(path).await, (200, "line 1\nline 2\n".into()));
    assert_eq!(
        node.get(&format!("{path}?tailLines=1&timestamps=true")).await.1,
        "2026-01-02T03:04:02Z line 2\n"
    );
    assert_eq!(node.get(&format!("{path}?sinceTime=2026-01-02T03:04:02Z")).await.1, "line 2\n");
    assert_eq!(node.get(&format!("{path}?limitBytes=9")).await.1, "line 1\nli");
    assert_eq!(node.get(&format!("{path}?tailLines=x")).await.0, 400);
    assert_eq!(node.get("/containerLogs/default/web/absent").await.0, 404);
    assert_eq!(node.get(&format!("{path}?previous=true")).await.0, 400);

    let follow = format!("{path}?follow=true");
    let more = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        fs::write(log.join("0.log"), line(1) + &line(2) + &line(3)).unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        // Its pod goes, so that nothing starts it again.
        let reference = kubeedge_core::message::ObjectRef::pod("default", "web");
        let deleted = ObjectEvent::Deleted { reference, uid: kubeedge_core::id::Uid::new("u-1") };
        node.outside.workloads.send(deleted).ok();
        node.runtime.exit("u-1/app", 0);
    };
    let (followed, ()) = tokio::join!(node.get(&follow), more);
    assert_eq!(followed, (200, "line 1\nline 2\nline 3\n".into()));
}

#[tokio::test]
async fn figures_are_those_of_the_runtime() {
    let node = Node::with_pod().await;
    node.runtime.set_usage(
        "u-1/app",
        ContainerStats {
            cpu: Some(CpuUsage { at_ms: 1_700_000_000_000, total_ns: 5_000_000_000, nano_cores: Some(7) }),
            memory: Some(MemoryUsage { working_set_bytes: 4096, ..MemoryUsage::default() }),
            ..ContainerStats::default()
        },
    );
    let summary = node.until("/stats/summary", |_| true).await;
    assert_eq!(summary["node"]["nodeName"], "edge-1");
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64().unwrap() > 0);
    assert!(summary["node"]["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap() > 0);
    let pod = &summary["pods"][0];
    assert_eq!(pod["podRef"], json!({"name": "web", "namespace": "default", "uid": "u-1"}));
    let container = &pod["containers"][0];
    assert_eq!(container["cpu"]["usageCoreNanoSeconds"], 5_000_000_000_u64);
    assert_eq!(
        (&container["cpu"]["usageNanoCores"], &container["memory"]["workingSetBytes"]),
        (&json!(7), &json!(4096))
    );
    let (code, metrics) = node.get("/metrics/resource").await;
    assert_eq!(code, 200);
    let line = r#"container_cpu_usage_seconds_total{container="app",namespace="default",pod="web"} 5.000000000 1700000000000"#;
    assert!(metrics.contains(line), "{metrics}");
    let (_, own) = node.get("/metrics").await;
    assert!(own.contains("kubelet_running_pods 1\n"), "{own}");
    node.runtime.set_unavailable(Some("it is away"));
    assert_eq!(node.get("/stats/summary").await.0, 503);
    assert!(node.get("/metrics/resource").await.1.ends_with("scrape_error 1\n"));
}

#[tokio::test]
async fn a_runtime_without_streams_says_so() {
    let node = Node::with_pod().await;
    let (code, body) = node.get("/exec/default/web/app?command=sh&output=1").await;
    assert_eq!((code, body.contains("no streams")), (501, true), "{body}");
}

#[tokio::test]
async fn more_connections_than_there_may_be_are_turned_away_until_one_ends() {
    let node = Node::start(1).await;
    let held = TcpStream::connect(node.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(node.get("/healthz").await.0, 0, "the connection is closed without a word");
    drop(held);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(node.get("/healthz").await.0, 200);
}
