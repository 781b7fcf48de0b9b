//! The part with a real API server, real HTTP servers, and its pipes.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router as Routes,
    body::Bytes,
    extract::State as Shared,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use kubeedge_core::message::{Request, Response, ServiceResponse};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    super::{Outside, Router, pipes, rules::Counters, status::add},
    *,
};
use crate::controller::{
    api::Api,
    testing::{Cluster, eventually},
};

/// A server that remembers what it was posted, and fails at first.
#[derive(Clone, Default)]
struct Target {
    received: Arc<Mutex<Vec<(String, String)>>>,
    failures: Arc<AtomicUsize>,
}

impl Target {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/in", listener.local_addr().unwrap());
        let routes = Routes::new().route("/in", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        url
    }

    fn received(&self) -> Vec<(String, String)> {
        self.received.lock().unwrap().clone()
    }
}

async fn take(Shared(target): Shared<Target>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let less = |failures: usize| failures.checked_sub(1);
    if target.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let node = headers["nodename"].to_str().unwrap().to_owned();
    target.received.lock().unwrap().push((node, String::from_utf8(body.to_vec()).unwrap()));
    StatusCode::OK
}

async fn start(cluster: &Cluster) -> (Outside, SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (inbox, outbox, outside) = pipes();
    let mut config = Config { status_interval: Duration::from_millis(10), ..Config::default() };
    config.rest_timeout = Duration::from_secs(2);
    config.limits.retry_first = Duration::from_millis(10);
    let stop = CancellationToken::new();
    let router = Router::new(config, cluster.client(), Some(listener), inbox, outbox);
    tokio::spawn(router.run(stop.clone()));
    (outside, address, stop.drop_guard())
}

async fn create(cluster: &Cluster, objects: &[Value]) {
    for value in endpoints().iter().chain(objects) {
        let mut value = value.clone();
        value["metadata"] = json!({ "namespace": "default", "name": value["metadata"]["name"] });
        let kind = if value["kind"] == RULES.kind { RULES } else { ENDPOINTS };
        cluster.create(kind, &value).await;
    }
}

/// Posts a body and returns the answer's status and body.
async fn ask(address: SocketAddr, path: &str, body: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Mine: 1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let _ = socket.write_all(body.as_bytes()).await;
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer).await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn a_message_of_a_node_reaches_its_target_and_the_node_is_told_only_then() {
    let (cluster, target) = (Cluster::start().await, Target::default());
    target.failures.store(2, Ordering::SeqCst);
    let url = target.start().await;
    create(&cluster, &[up("a", "user/t", &url)]).await;
    let (mut outside, _address, _stop) = start(&cluster).await;
    for number in 1..=3 {
        outside.messages.send(message(1, number, "default/user/t")).unwrap();
    }
    for number in 1..=3 {
        let taken =
            tokio::time::timeout(Duration::from_secs(10), outside.taken.recv()).await.unwrap().unwrap();
        assert_eq!((taken.node, taken.message.number), (node("edge-1"), number));
        assert!(target.received().len() >= usize::try_from(number).unwrap());
    }
    let expected = ["1", "2", "3"].map(|text| ("edge-1".to_owned(), text.to_owned()));
    assert_eq!(target.received(), expected);
    eventually("the rule's counters", async || {
        let rule = cluster.get(RULES, "default", "a").await?;
        (rule["status"]["successMessages"] == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_several_clouds_count_for_a_rule_is_added_up() {
    let cluster = Cluster::start().await;
    create(&cluster, &[up("a", "user/t", "http://a")]).await;
    let (api, rule) = (Api::new(cluster.client()), name("a"));
    let cloud = async |counts: [u64; 3]| {
        for count in counts {
            let counted = Counters { success_messages: count, ..Counters::default() };
            while !matches!(add(&api, &rule, &counted).await, crate::controller::Outcome::Done) {
                tokio::task::yield_now().await;
            }
        }
    };
    futures::future::join_all([cloud([10, 1, 1]), cloud([5, 1, 1]), cloud([1, 1, 1])]).await;
    let failed = Counters { fail_messages: 2, errors: vec!["down".to_owned()], ..Counters::default() };
    assert!(matches!(add(&api, &rule, &failed).await, crate::controller::Outcome::Done));
    let status = cluster.get(RULES, "default", "a").await.unwrap()["status"].clone();
    assert_eq!(status, json!({ "successMessages": 22, "failMessages": 2, "errors": ["down"] }));
    let gone = add(&api, &name("gone"), &failed).await;
    assert!(
        matches!(gone, crate::controller::Outcome::Done),
        "with the rule its counters are gone: {gone:?}"
    );
}

#[tokio::test]
async fn what_a_target_refuses_is_told_in_the_rules_status() {
    let cluster = Cluster::start().await;
    let url = Target::default().start().await.replace("/in", "/nowhere");
    create(&cluster, &[up("a", "user/t", &url)]).await;
    let (mut outside, _address, _stop) = start(&cluster).await;
    outside.messages.send(message(1, 1, "default/user/t")).unwrap();
    outside.taken.recv().await.unwrap();
    eventually("the rule's error", async || {
        let rule = cluster.get(RULES, "default", "a").await?;
        let error = rule["status"]["errors"][0].as_str()?.contains("404");
        (rule["status"]["failMessages"] == 1 && error).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_is_published_on_the_node_and_answered_when_the_node_has_it() {
    let cluster = Cluster::start().await;
    create(&cluster, &[down("a", "/orders", "orders")]).await;
    let (mut outside, address, _stop) = start(&cluster).await;
    let node_side = tokio::spawn(async move {
        let mut asked = Vec::new();
        while let Some(call) = outside.requests.recv().await {
            let ToNode { node, message } = call.question.clone();
            let Request::Publish(publish) = message else { panic!("{message:?}") };
            asked.push((node.to_string(), publish.topic.clone(), publish.payload.clone()));
            match asked.len() {
                1 => call.answer(Response::Published),
                2 => call
                    .answer(Response::Failed { code: 503, message: "node edge-2 is not connected".into() }),
                _ => drop(call),
            }
            if asked.len() == 3 {
                break;
            }
        }
        asked
    });
    eventually("the rule in use", async || {
        let (status, text) = ask(address, "/edge-1/default/orders/42", "go").await;
        (status == 200).then(|| assert_eq!(text, "message delivered"))
    })
    .await;
    assert_eq!(ask(address, "/edge-2/default/orders", "go").await.0, 503);
    assert_eq!(ask(address, "/edge-1/default/orders", "go").await.0, 503);
    let asked = node_side.await.unwrap();
    assert_eq!(asked[0], ("edge-1".to_owned(), "orders/42".to_owned(), "go".into()));
    assert_eq!(ask(address, "/edge-1/default/nothing", "go").await.0, 404);
    assert_eq!(ask(address, "/edge-1/default/orders", &"x".repeat(4 << 20)).await.0, 413);
    eventually("the rule's counters", async || {
        let rule = cluster.get(RULES, "default", "a").await?;
        (rule["status"]["successMessages"] == 1 && rule["status"]["failMessages"] == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_a_timeout_and_a_service_answers_for_itself() {
    let cluster = Cluster::start().await;
    let service = rule("s", ("rest", json!({ "path": "svc" })), ("service", json!({ "path": "/api" })));
    create(&cluster, &[service, down("a", "orders", "orders")]).await;
    let (mut outside, address, _stop) = start(&cluster).await;
    let node_side = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(call) = outside.requests.recv().await {
            match call.question.message.clone() {
                Request::Service(request) => {
                    assert_eq!((request.port, request.method.as_str()), (9000, "POST"));
                    assert_eq!(request.path, "/api/v1?q=1");
                    assert!(request.headers.iter().any(|(name, _)| name == "x-mine"));
                    let headers = vec![("x-theirs".to_owned(), "2".to_owned())];
                    let answer = ServiceResponse { status: 201, headers, body: "made".into() };
                    call.answer(Response::Service(answer));
                }
                Request::Publish(_) | Request::Logs(_) | Request::Tunnel(_) => kept.push(call),
            }
        }
    });
    eventually("the service", async || {
        let answer = ask(address, "/edge-1/default/svc/v1?q=1", "x").await;
        (answer.0 != 404).then(|| assert_eq!(answer, (201, "made".to_owned())))
    })
    .await;
    assert_eq!(ask(address, "/edge-1/default/orders", "go").await.0, 504);
    node_side.abort();
}

#[tokio::test]
async fn cve_2022_31078_an_answer_to_a_message_that_does_not_end_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/in", listener.local_addr().unwrap());
    // More than any limit here, and more than a test machine would miss.
    const ENDLESS: usize = 256 << 20;
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n").await.unwrap();
        let (chunk, mut poured) = (vec![b'x'; 64 << 10], 0);
        while poured < ENDLESS && socket.write_all(&chunk).await.is_ok() {
            poured += chunk.len();
        }
        poured
    });
    let cluster = Cluster::start().await;
    create(&cluster, &[up("a", "user/t", &url)]).await;
    let (mut outside, _address, _stop) = start(&cluster).await;
    outside.messages.send(message(1, 1, "default/user/t")).unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(10), outside.taken.recv()).await.unwrap();
    assert_eq!(taken.unwrap().message.number, 1, "the server said that it took the message");
    let poured = tokio::time::timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
    assert!(poured < 16 << 20, "{poured} bytes were taken");
}
