use std::{sync::Arc, time::Duration};

use k8s_openapi::ByteString;
use kubeedge_core::tls::{self, Identity};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Address, Admission, Config, Listener, configurations,
    review::{Around, Question, Review},
};
use crate::{pki::Authority, standalone::ApiServer};

fn review(operation: &str, object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": { "uid": "u1", "operation": operation, "namespace": "default", "object": object },
    })
}

fn answered(question: Question, operation: &str, object: &Value) -> Value {
    let review = Review::read(review(operation, object).to_string().as_bytes()).unwrap();
    review.answer(question, &Around::default())["response"].clone()
}

fn patch_of(response: &Value) -> Value {
    let patch: ByteString = serde_json::from_value(response["patch"].clone()).unwrap();
    serde_json::from_slice(&patch.0).unwrap()
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let device = json!({ "spec": { "deviceModelRef": { "name": "m" }, "properties": [{ "name": "a" }, { "name": "a" }] } });
    let response = answered(Question::Device, "CREATE", &device);
    assert_eq!(response["allowed"], false);
    assert_eq!(response["uid"], "u1");
    assert_eq!(response["status"]["code"], 422);
    assert_eq!(response["status"]["message"], "spec.properties[1].name: Duplicate value: \"a\"");
    assert_eq!(answered(Question::Device, "DELETE", &Value::Null)["allowed"], true);
}

#[test]
fn a_pod_that_is_labelled_so_stays_on_an_unreachable_node() {
    let mut pod = json!({
        "metadata": { "labels": { "app-offline.kubeedge.io": "autonomy" } },
        "spec": { "tolerations": [
            { "key": "site", "operator": "Exists" },
            { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 },
        ] },
    });
    let response = answered(Question::OfflineMigration, "CREATE", &pod);
    assert_eq!(response["allowed"], true);
    let tolerations = json!([
        { "key": "site", "operator": "Exists" }, { "key": "node.kubernetes.io/unreachable", "operator": "Exists" },
    ]);
    assert_eq!(
        patch_of(&response),
        json!([{ "op": "add", "path": "/spec/tolerations", "value": tolerations }])
    );
    pod["spec"]["tolerations"] = tolerations;
    assert!(answered(Question::OfflineMigration, "UPDATE", &pod)["patch"].is_null(), "once is enough");
    pod["metadata"]["labels"] = json!({});
    assert!(answered(Question::OfflineMigration, "CREATE", &pod)["patch"].is_null());
}

#[test]
fn an_upgrade_has_its_defaults() {
    let of = |spec: Value| answered(Question::UpgradeJobDefaults, "CREATE", &json!({ "spec": spec }));
    let defaults = patch_of(&of(json!({ "concurrency": 0 })));
    assert_eq!(defaults[0]["value"], 1);
    assert_eq!(defaults[1]["value"], 300);
    assert!(of(json!({ "concurrency": 2, "timeoutSeconds": 5 }))["patch"].is_null());
}

#[test]
fn the_configurations_have_the_names_of_kubeedge_and_a_way_to_the_webhook() {
    let of = |url: Option<&str>| {
        configurations(&Address {
            url: url.map(str::to_owned),
            namespace: "edge".to_owned(),
            ca_pem: "PEM".to_owned(),
        })
    };
    let names: Vec<_> = of(None).iter().map(|all| all["metadata"]["name"].clone()).collect();
    let expected = [
        "kubeedge-crds-validate-webhook-configuration",
        "kubeedge-mutating-webhook",
        "mutate-offlinemigration",
    ];
    assert_eq!(names, expected);
    assert_eq!(of(None)[0]["webhooks"][0]["clientConfig"]["service"]["name"], "kubeedge-admission-service");
    assert_eq!(of(None)[0]["webhooks"][0]["clientConfig"]["service"]["namespace"], "edge");
    assert_eq!(of(Some("https://h:1/"))[0]["webhooks"][2]["clientConfig"]["url"], "https://h:1/rules");
    for hook in of(None).iter().flat_map(|all| all["webhooks"].as_array().unwrap()) {
        let path = hook["clientConfig"]["service"]["path"].as_str().unwrap();
        assert!(Question::of(path).is_some(), "{path}");
    }
}

/// A webhook that runs, beside an API.
struct Running {
    address: std::net::SocketAddr,
    connector: TlsConnector,
    api: ApiServer,
    _stop: DropGuard,
}

async fn running(config: Config) -> Running {
    let authority = Authority::create().unwrap();
    let issued = authority.issue_server(&["localhost".into()], Duration::from_secs(600)).unwrap();
    let identity = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap();
    let roots = tls::roots_from_pem(authority.certificate_pem().as_bytes()).unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let api = ApiServer::open(None, crate::standalone::Config::default()).await.unwrap();
    let stop = CancellationToken::new();
    let listener = Listener { socket, tls: Arc::new(tls::web_server_config(&identity).unwrap()) };
    tokio::spawn(Admission::new(config, listener, api.client()).run(stop.clone()));
    let connector = TlsConnector::from(Arc::new(tls::other_client_config(None, roots).unwrap()));
    Running { address, connector, api, _stop: stop.drop_guard() }
}

impl Running {
    /// Posts a body that is said to be so long, and returns the status and the body of the answer.
    async fn post(&self, path: &str, length: usize, body: &[u8]) -> (u16, String) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let mut stream = self.connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server may have hung up before it has all.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn ask(&self, path: &str, review: &Value) -> Value {
        let body = review.to_string();
        let (status, body) = self.post(path, body.len(), body.as_bytes()).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["response"].clone()
    }
}

#[tokio::test]
async fn over_https_a_rule_is_admitted_when_its_endpoints_are_there() {
    let running = running(Config::default()).await;
    let rule = json!({
        "metadata": { "name": "r", "namespace": "default" },
        "spec": { "source": "rest", "target": "bus", "sourceResource": { "path": "/a" }, "targetResource": { "topic": "t" } },
    });
    let refused = running.ask("/rules", &review("CREATE", &rule)).await;
    assert_eq!(refused["allowed"], false);
    assert_eq!(
        refused["status"]["message"],
        "spec.source: Not found: \"rest\"; spec.target: Not found: \"bus\""
    );
    for (name, kind) in [("rest", "rest"), ("bus", "eventbus")] {
        let endpoint = json!({
            "apiVersion": "rules.kubeedge.io/v1", "kind": "RuleEndpoint",
            "metadata": { "name": name, "namespace": "default" }, "spec": { "ruleEndpointType": kind },
        });
        let path = "/apis/rules.kubeedge.io/v1/namespaces/default/ruleendpoints";
        let request = kube::core::Request::new(path)
            .create(&kube::core::params::PostParams::default(), endpoint.to_string().into_bytes())
            .unwrap();
        running.api.client().request_text(request).await.unwrap();
    }
    assert_eq!(running.ask("/rules", &review("CREATE", &rule)).await["allowed"], true);
}

#[tokio::test]
async fn cve_2022_31074_the_webhook_reads_no_more_of_a_body_than_it_may() {
    let running = running(Config { body_bytes_max: 10_000, ..Config::default() }).await;
    let (status, why) = running.post("/devices", 1 << 40, &vec![b' '; 200_000]).await;
    assert_eq!((status, why.as_str()), (413, "the body is longer than 10000 bytes"));
    assert_eq!(running.ask("/devices", &review("DELETE", &Value::Null)).await["allowed"], true, "it goes on");
}

#[tokio::test]
async fn cve_2022_31076_null_in_place_of_anything_is_answered_like_other_nonsense() {
    let running = running(Config::default()).await;
    for body in [
        "null",
        "[]",
        "{}",
        "{\"request\":null}",
        "",
        "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"request\":{\"uid\":\"\"}}",
    ] {
        assert_eq!(running.post("/devices", body.len(), body.as_bytes()).await.0, 400, "{body}");
    }
    for path in [
        "/devices",
        "/devicemodels",
        "/rules",
        "/ruleendpoints",
        "/nodeupgradejobs",
        "/mutating/nodeupgradejobs",
        "/offlinemigration",
    ] {
        let response = running.ask(path, &review("CREATE", &Value::Null)).await;
        assert_eq!(response["uid"], "u1", "{path}: {response}");
    }
    assert_eq!(running.post("/other", 0, b"").await.0, 404);
}

#[tokio::test]
async fn the_api_server_is_told_of_each_authority_that_it_has_to_believe() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let api = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let told = told.clone();
        async move {
            let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let bundle = body["webhooks"][0]["clientConfig"]["caBundle"].clone();
            let bundle: ByteString = serde_json::from_value(bundle).unwrap();
            told.send(String::from_utf8(bundle.0).unwrap()).unwrap();
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(b"{}".to_vec())))
        }
    });
    let (authorities, followed) = tokio::sync::watch::channel("old".to_owned());
    let address = Address { url: None, namespace: "kubeedge".to_owned(), ca_pem: String::new() };
    let client = kube::Client::new(api, "default");
    tokio::spawn(super::register::run(client, Some(address), Some(followed)));
    for bundle in ["old", "old and new", "new"] {
        authorities.send_replace(bundle.to_owned());
        for _ in 0..3 {
            let told = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await.unwrap();
            assert_eq!(told.unwrap(), bundle);
        }
    }
}
