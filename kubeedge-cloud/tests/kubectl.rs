//! The standalone API under a real `kubectl`. The tests fail where there is none, so that nobody takes a run
//! that showed nothing for one that showed it.
#![cfg(all(feature = "standalone", feature = "pki"))]
#![allow(clippy::unwrap_used, reason = "tests say what is wrong by failing")]

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use kube::api::{Patch, PatchParams};
use kubeedge_cloud::standalone::{
    ApiServer, Config, Listener, Outside, Standalone, Token, kubeconfig, pipes,
};
use kubeedge_core::message::{LogChunk, Request, Response, ServiceResponse};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::TcpListener,
    process::{ChildStdout, Command},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// An API that listens, and a directory in which `kubectl` finds its configuration.
struct Bench {
    api: ApiServer,
    outside: Option<Outside>,
    directory: tempfile::TempDir,
    stop: CancellationToken,
    parts: JoinSet<()>,
    url: String,
}

/// Fails, and says what to install, if there is no `kubectl`.
fn require_kubectl() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join("kubectl").is_file());
    assert!(found, "no kubectl on the path: install the package kubernetes-client");
}

impl Bench {
    async fn start() -> Self {
        require_kubectl();
        let api = ApiServer::open(None, Config::default()).await.unwrap();
        let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let tls =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.cert.der().clone()], key)
                .unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", socket.local_addr().unwrap());
        let directory = tempfile::tempdir().unwrap();
        let config = kubeconfig(&url, &certificate.cert.pem(), "secret-token");
        std::fs::write(directory.path().join("config"), config).unwrap();
        let listener = Listener { socket, tls: Arc::new(tls), token: Token::new("secret-token") };
        let (outbox, outside) = pipes();
        let stop = CancellationToken::new();
        let mut parts = JoinSet::new();
        let part = Standalone::new(api.clone(), Some(listener), outbox).run(stop.clone());
        parts.spawn(async move { part.await.unwrap() });
        Self { api, outside: Some(outside), directory, stop, parts, url }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .env("KUBECONFIG", self.directory.path().join("config"))
            .env("KUBECACHEDIR", self.directory.path().join("cache"))
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn output(&self, arguments: &[&str], input: &Value) -> Output {
        let mut child = self.command(arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let text = if input.is_null() { String::new() } else { input.to_string() };
        stdin.write_all(text.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        output.expect("kubectl ends").unwrap()
    }

    /// Runs `kubectl` with an object on its input, and returns what it prints.
    async fn with(&self, arguments: &[&str], input: &Value) -> String {
        let output = self.output(arguments, input).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {arguments:?}\n{out}\n{err}");
        assert!(!err.contains("panic"), "{err}");
        format!("{out}{err}")
    }

    async fn run(&self, arguments: &[&str]) -> String {
        self.with(arguments, &Value::Null).await
    }

    /// Runs `kubectl`, which must fail, and returns what it says.
    async fn fails(&self, arguments: &[&str], input: &Value) -> String {
        let output = self.output(arguments, input).await;
        assert!(!output.status.success(), "kubectl {arguments:?} should fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.parts.join_next().await {
            ended.unwrap();
        }
    }
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "containers": [{ "name": "main", "image": "nginx:1", "env": [{ "name": "A", "value": "1" }] }] },
    })
}

fn config_map(data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" }, "data": data })
}

fn device(node: &str) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": { "name": "lamp" },
        "spec": {
            "nodeName": node, "deviceModelRef": { "name": "lamps" }, "protocol": { "protocolName": "modbus" },
            "properties": [{ "name": "power" }, { "name": "colour" }],
        },
    })
}

/// A node that is ready, as an edge would register it.
fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "node-role.kubernetes.io/edge": "" } },
        "status": {
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "EdgeReady",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
            "addresses": [{ "type": "InternalIP", "address": "192.0.2.7" }],
            "nodeInfo": {
                "kubeletVersion": "v1.33.0-kubeedge", "architecture": "amd64", "bootID": "", "kernelVersion": "6",
                "containerRuntimeVersion": "fake://1", "kubeProxyVersion": "", "machineID": "",
                "operatingSystem": "linux", "osImage": "Edge Linux", "systemUUID": "",
            },
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_tables_and_whole_objects() {
    let bench = Bench::start().await;
    has(&bench.run(&["version"]).await, &["v1.33.0+kubeedge"]);
    bench.with(&["create", "-f", "-"], &node("edge-1")).await;
    bench.with(&["create", "-f", "-"], &pod("web")).await;
    bench.with(&["create", "-f", "-"], &device("edge-1")).await;
    has(
        &bench.run(&["get", "nodes"]).await,
        &["NAME", "ROLES", "edge-1", "Ready", "edge", "v1.33.0-kubeedge"],
    );
    has(&bench.run(&["get", "no", "-o", "wide"]).await, &["INTERNAL-IP", "192.0.2.7", "Edge Linux"]);
    has(&bench.run(&["get", "pods", "-o", "wide"]).await, &["READY", "0/1", "Pending", "NODE", "edge-1"]);
    has(&bench.run(&["get", "pods", "-A"]).await, &["NAMESPACE", "default", "web"]);
    has(&bench.run(&["get", "devices"]).await, &["MODEL", "lamp", "edge-1", "lamps"]);
    has(
        &bench.run(&["get", "nodes,pods,devices"]).await,
        &["node/edge-1", "pod/web", "device.devices.kubeedge.io/lamp"],
    );
    has(
        &bench.run(&["get", "pod", "web", "-o", "yaml"]).await,
        &["kind: Pod", "imagePullPolicy: IfNotPresent"],
    );
    has(&bench.run(&["get", "pods", "--selector", "app=none"]).await, &["No resources found"]);
    has(&bench.run(&["get", "all"]).await, &["web"]);
    has(&bench.run(&["api-resources"]).await, &["devicemodels", "leases"]);
    has(&bench.run(&["auth", "can-i", "create", "pods"]).await, &["yes"]);
    let namespaces = bench.run(&["get", "ns"]).await;
    has(&namespaces, &["default", "kubeedge", "kube-system", "kube-public", "kube-node-lease", "Active"]);
    has(
        &bench.fails(&["get", "pod", "none"], &Value::Null).await,
        &["(NotFound)", "pods \"none\" not found"],
    );
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_changes_and_prunes() {
    let bench = Bench::start().await;
    let apply = ["apply", "-f", "-"];
    has(
        &bench.with(&apply, &config_map(json!({ "a": "1", "b": "2" }))).await,
        &["configmap/settings created"],
    );
    has(&bench.with(&apply, &config_map(json!({ "a": "1", "b": "2" }))).await, &["unchanged"]);
    has(&bench.with(&apply, &config_map(json!({ "a": "3" }))).await, &["configured"]);
    let data = bench.run(&["get", "cm", "settings", "-o", "jsonpath={.data}"]).await;
    assert_eq!(data, r#"{"a":"3"}"#);

    has(&bench.with(&apply, &pod("web")).await, &["pod/web created"]);
    let mut changed = pod("web");
    changed["spec"]["containers"][0]["image"] = "nginx:2".into();
    has(&bench.with(&apply, &changed).await, &["pod/web configured"]);
    let image = bench.run(&["get", "pod", "web", "-o", "jsonpath={.spec.containers[*].image}"]).await;
    assert_eq!(image, "nginx:2");

    has(&bench.with(&apply, &device("n1")).await, &["lamp created"]);
    has(&bench.with(&apply, &device("n2")).await, &["lamp configured"]);
    has(&bench.with(&apply, &device("n2")).await, &["lamp unchanged"]);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_object_is_named() {
    let bench = Bench::start().await;
    let mut wrong = pod("web");
    wrong["spec"]["containers"][0]["imagee"] = "x".into();
    // Not every kubectl asks for strict checking by itself.
    let strict = ["create", "--raw", "/api/v1/namespaces/default/pods?fieldValidation=Strict", "-f", "-"];
    has(&bench.fails(&strict, &wrong).await, &["unknown field \"spec.containers[0].imagee\""]);
    wrong = pod("web");
    wrong["spec"]["containers"][0]["stdin"] = "yes".into();
    has(&bench.fails(&["apply", "-f", "-"], &wrong).await, &["spec.containers[0].stdin"]);
    wrong = pod("Web_1");
    has(&bench.fails(&["apply", "-f", "-"], &wrong).await, &["metadata.name", "Invalid value"]);
    wrong = device("n1");
    wrong["spec"]["properties"][1]["name"] = "power".into();
    has(&bench.fails(&["apply", "-f", "-"], &wrong).await, &["spec.properties[1].name", "Duplicate"]);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply_keeps_what_others_own() {
    let bench = Bench::start().await;
    let apply = |manager: &'static str| ["apply", "--server-side", "--field-manager", manager, "-f", "-"];
    let created = bench.with(&apply("one"), &config_map(json!({ "a": "1", "b": "2" }))).await;
    has(&created, &["configmap/settings serverside-applied"]);
    bench.with(&apply("two"), &config_map(json!({ "c": "3" }))).await;
    bench.with(&apply("one"), &config_map(json!({ "a": "1" }))).await;
    let data = ["get", "cm", "settings", "-o", "jsonpath={.data}"];
    assert_eq!(bench.run(&data).await, r#"{"a":"1","c":"3"}"#);
    let conflict = bench.fails(&apply("two"), &config_map(json!({ "a": "9" }))).await;
    has(&conflict, &["conflict with \"one\"", ".data.a"]);
    let mut force = apply("two").to_vec();
    force.push("--force-conflicts");
    bench.with(&force, &config_map(json!({ "a": "9" }))).await;
    assert_eq!(bench.run(&data).await, r#"{"a":"9"}"#);
    bench.with(&["apply", "--server-side", "-f", "-"], &pod("web")).await;
    bench.with(&["apply", "--server-side", "-f", "-"], &device("n1")).await;
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_labelled_annotated_patched_and_described() {
    let bench = Bench::start().await;
    bench.with(&["create", "-f", "-"], &node("edge-1")).await;
    bench.with(&["create", "-f", "-"], &pod("web")).await;
    has(&bench.run(&["label", "pod", "web", "tier=front"]).await, &["pod/web labeled"]);
    has(&bench.run(&["annotate", "pod", "web", "note=hello"]).await, &["pod/web annotated"]);
    for (kind, patch) in [
        ("strategic", r#"{"spec":{"containers":[{"name":"main","image":"nginx:2"}]}}"#),
        ("merge", r#"{"metadata":{"labels":{"merge":"yes"}}}"#),
        ("json", r#"[{"op":"add","path":"/metadata/labels/json","value":"yes"}]"#),
    ] {
        has(&bench.run(&["patch", "pod", "web", "--type", kind, "-p", patch]).await, &["pod/web patched"]);
    }
    let labels = bench.run(&["get", "pod", "web", "--show-labels"]).await;
    has(&labels, &["tier=front", "merge=yes", "json=yes"]);
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "name": "web.1" }, "type": "Normal", "reason": "Pulled",
        "message": "Container image is here", "lastTimestamp": "2026-01-01T00:00:00Z", "count": 2,
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "web", "apiVersion": "v1",
            "uid": bench.run(&["get", "pod", "web", "-o", "jsonpath={.metadata.uid}"]).await },
    });
    bench.with(&["create", "-f", "-"], &event).await;
    let described = bench.run(&["describe", "pod", "web"]).await;
    has(
        &described,
        &["Name:", "web", "Image:", "nginx:2", "edge-1", "QoS Class:", "Pulled", "Container image is here"],
    );
    has(
        &bench.run(&["describe", "node", "edge-1"]).await,
        &["edge-1", "Ready", "Non-terminated Pods", "web"],
    );
    has(&bench.run(&["describe", "ns", "default"]).await, &["Active"]);
    has(&bench.run(&["get", "events"]).await, &["REASON", "Pulled", "pod/web"]);
    has(&bench.run(&["create", "configmap", "plain", "--from-literal=a=b"]).await, &["created"]);
    has(&bench.run(&["create", "secret", "generic", "hidden", "--from-literal=a=b"]).await, &["created"]);
    has(&bench.run(&["get", "secrets,cm"]).await, &["Opaque", "plain"]);
    has(&bench.run(&["run", "quick", "--image=nginx:1"]).await, &["pod/quick created"]);
    has(&bench.run(&["cordon", "edge-1"]).await, &["cordoned"]);
    has(&bench.run(&["taint", "node", "edge-1", "a=b:NoSchedule"]).await, &["tainted"]);
    has(&bench.run(&["get", "nodes"]).await, &["Ready,SchedulingDisabled"]);
    has(&bench.run(&["create", "namespace", "site"]).await, &["created"]);
    has(&bench.run(&["delete", "namespace", "site"]).await, &["deleted"]);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_watching_and_deleting_follow_the_object() {
    let bench = Bench::start().await;
    bench.with(&["create", "-f", "-"], &node("edge-1")).await;
    bench.with(&["create", "-f", "-"], &pod("web")).await;
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::default_namespaced(bench.api.client());

    let (waited, ()) =
        tokio::join!(bench.run(&["wait", "--for=condition=Ready", "pod/web", "--timeout=30s"]), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let status = json!({ "status": { "phase": "Running", "conditions": [{
                "type": "Ready", "status": "True" }] } });
            pods.patch_status("web", &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
        });
    has(&waited, &["pod/web condition met"]);

    let mut watching = bench.command(&["get", "pods", "-w"]).spawn().unwrap();
    let mut watched = BufReader::new(watching.stdout.take().unwrap()).lines();
    until(&mut watched, "Running").await;
    bench.run(&["label", "pod", "web", "seen=yes"]).await;
    bench.run(&["delete", "pod", "web", "--wait=false"]).await;
    until(&mut watched, "Terminating").await;
    let (_, ()) = tokio::join!(bench.run(&["wait", "--for=delete", "pod/web", "--timeout=30s"]), async {
        // The pod waits for its node, which says that it has ended.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(pods.get("web").await.unwrap().metadata.deletion_timestamp.is_some());
        let params = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        pods.delete("web", &params).await.unwrap();
    });
    assert!(pods.get_opt("web").await.unwrap().is_none());
    bench.end().await;
}

/// Reads lines until one holds the text.
async fn until(lines: &mut Lines<BufReader<ChildStdout>>, text: &str) {
    let found = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(text) {
                return true;
            }
        }
        false
    };
    let found = tokio::time::timeout(Duration::from_secs(30), found).await;
    assert!(found.expect("the line comes"), "the output ended before {text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_calls_to_a_node_go_through_the_pipe() {
    let mut bench = Bench::start().await;
    let mut outside = bench.outside.take().unwrap();
    bench.parts.spawn(async move {
        while let Some(call) = outside.requests.recv().await {
            assert_eq!(call.question.node.as_str(), "edge-1");
            let answer = match &call.question.message {
                Request::Logs(request) if request.cursor.is_none() => {
                    assert_eq!((request.pod.as_str(), request.container.as_str()), ("web", "main"));
                    let data = Bytes::from(format!("first of {:?}\n", request.tail_lines));
                    Response::Logs(LogChunk { data, cursor: 1, end: false, running: true })
                }
                Request::Logs(_) => {
                    let data = Bytes::from("second\n");
                    Response::Logs(LogChunk { data, cursor: 2, end: true, running: false })
                }
                Request::Service(request) if request.path.starts_with("/x") => {
                    assert!(request.headers.iter().all(|(name, _)| name != "authorization"));
                    let body = format!("{} {} {}", request.method, request.port, request.path).into();
                    Response::Service(ServiceResponse { status: 200, headers: vec![], body })
                }
                Request::Service(_) | Request::Publish(_) | Request::Tunnel(_) => {
                    Response::Failed { code: 403, message: "port is not allowed".into() }
                }
            };
            call.answer(answer);
        }
    });
    bench.with(&["create", "-f", "-"], &node("edge-1")).await;
    bench.with(&["create", "-f", "-"], &pod("web")).await;
    assert_eq!(bench.run(&["logs", "web", "--tail=5"]).await, "first of Some(5)\nsecond\n");
    assert_eq!(bench.run(&["logs", "-f", "web"]).await, "first of None\nsecond\n");
    let raw = bench.run(&["get", "--raw", "/api/v1/nodes/edge-1:8080/proxy/x?a=b"]).await;
    assert_eq!(raw, "GET 8080 /x?a=b");
    let refused = bench.fails(&["get", "--raw", "/api/v1/nodes/edge-1:8080/proxy/"], &Value::Null).await;
    has(&refused, &["port is not allowed"]);
    has(&bench.fails(&["logs", "web", "-c", "other"], &Value::Null).await, &["container other is not valid"]);
    bench.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_only_health_and_version_are_told() {
    let bench = Bench::start().await;
    bench.file(
        "anonymous",
        &kubeconfig(&bench.url, "", "wrong")
            .replace("\"certificate-authority-data\": \"\"", "\"insecure-skip-tls-verify\": true"),
    );
    let anonymous = ["--kubeconfig", "anonymous"];
    let error =
        bench.fails(&[&anonymous[..], &["get", "--raw", "/api/v1/pods"]].concat(), &Value::Null).await;
    has(&error, &["Unauthorized"]);
    assert_eq!(bench.run(&[&anonymous[..], &["get", "--raw", "/readyz"]].concat()).await, "ok");
    bench.end().await;
}
