//! Two clouds on one API, with certificates as they get them. Their CloudHubs are played by the test.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use kubeedge_core::{
    id::NodeName,
    message::{Publish, Request, Response, ToNode},
    tls::{self, Identity, Live},
};
use serde_json::json;
use tokio::{net::TcpListener, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Config, Counts, Outside, Peers, Reason, Relay, ask::ask, failure::Failure, owners::Owner, pipes,
};
use crate::{
    controller::{
        lease::{ADDRESS, LEASES, NAMESPACE, OWNER},
        testing::{Cluster, eventually, node},
    },
    enrollment::{self, Enrollment, Trusted},
    pki::{Authority, Issued},
};

const LONG: Duration = Duration::from_secs(10);
const LASTS: Duration = Duration::from_secs(3600);

fn copy(authority: &Authority) -> Authority {
    let (certificate, key) = (authority.certificate_der().unwrap(), authority.key_sec1_der().unwrap());
    Authority::from_der(&certificate, &key).unwrap()
}

fn config(name: &str) -> Config {
    Config { deadline: Duration::from_secs(3), ..Config::new(name) }
}

/// A relay in its running.
struct Cloud {
    name: String,
    outside: Outside,
    address: SocketAddr,
    counts: Arc<Counts>,
    tls: Live,
    _stop: DropGuard,
}

impl Cloud {
    async fn start(name: &str, authority: &Authority, cluster: &Cluster) -> Self {
        Self::with(config(name), authority, cluster).await
    }

    async fn with(config: Config, authority: &Authority, cluster: &Cluster) -> Self {
        let (tls, name) = (Live::empty(), config.identity.clone());
        let trusted = Trusted::new(copy(authority), "");
        let of_nodes = enrollment::Config::default();
        let enrollment = Enrollment::open(of_nodes, trusted, cluster.client(), Live::empty(), None).await;
        enrollment.unwrap().with_replica(&name, vec!["127.0.0.1".to_owned()], tls.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (inbox, outbox, outside) = pipes();
        let peers = Peers { listener: Some(listener), tls: tls.clone() };
        let relay = Relay::new(config, cluster.client(), peers, inbox, outbox);
        let (counts, stop) = (relay.counts(), CancellationToken::new());
        tokio::spawn(relay.run(stop.clone()));
        Self { name, outside, address, counts, tls, _stop: stop.drop_guard() }
    }

    /// Asks for a node that has no session here.
    async fn ask(&self, of: &NodeName) -> Response {
        self.outside.requests.call(question(of), LONG).await.unwrap()
    }

    /// Answers the next request of another cloud, as CloudHub would.
    async fn answer(&mut self, answer: Option<Response>) {
        let call = timeout(LONG, self.outside.hub.recv()).await.unwrap().unwrap();
        assert_eq!(call.question, question(&call.question.node), "the request arrives as it was");
        call.answer(answer);
    }

    fn failed(&self, reason: Reason) -> u64 {
        self.counts.failed()[reason as usize].1
    }

    /// Writes into the node's Lease that it has its session here.
    async fn take(&self, cluster: &Cluster, of: &NodeName) {
        lease(cluster, of, &self.name, &self.address.to_string()).await;
    }
}

fn question(of: &NodeName) -> ToNode<Request> {
    let publish = Publish { topic: "default/t".to_owned(), payload: "hello".into() };
    ToNode { node: of.clone(), message: Request::Publish(publish) }
}

async fn lease(cluster: &Cluster, node: &NodeName, owner: &str, address: &str) {
    let annotations = json!({ OWNER: owner, ADDRESS: address });
    if cluster.get(LEASES, NAMESPACE, node.as_str()).await.is_some() {
        let patch = json!({ "metadata": { "annotations": annotations } });
        cluster.merge(LEASES, NAMESPACE, node.as_str(), &patch).await;
        return;
    }
    let metadata = json!({ "name": node.as_str(), "namespace": NAMESPACE, "annotations": annotations });
    let lease =
        json!({ "apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": {} });
    cluster.create(LEASES, &lease).await;
}

fn message(response: &Response) -> (u16, &str) {
    let Response::Failed { code, message } = response else { panic!("{response:?}") };
    (*code, message)
}

#[tokio::test]
async fn a_request_for_a_node_of_another_cloud_reaches_it_there_and_its_answer_comes_back() {
    let (cluster, authority) = (Cluster::start().await, Authority::create().unwrap());
    let a = Cloud::start("a", &authority, &cluster).await;
    let mut b = Cloud::start("b", &authority, &cluster).await;
    let edge = node("edge-1");
    b.take(&cluster, &edge).await;
    let refused = Response::Failed { code: 404, message: "no such topic".to_owned() };
    for answer in [Response::Published, refused] {
        let (answered, ()) = tokio::join!(a.ask(&edge), b.answer(Some(answer.clone())));
        assert_eq!(answered, answer, "the node's own answer, whatever it is");
    }
    assert_eq!((a.counts.passed_on(), b.counts.answered(), b.counts.passed_on()), (2, 2, 0));
}

#[tokio::test]
async fn a_cloud_that_has_the_node_no_more_asks_no_third_and_whoever_asked_is_told() {
    let (cluster, authority) = (Cluster::start().await, Authority::create().unwrap());
    let mut a = Cloud::start("a", &authority, &cluster).await;
    let mut b = Cloud::start("b", &authority, &cluster).await;
    let edge = node("edge-1");
    b.take(&cluster, &edge).await;
    let (answered, ()) = tokio::join!(a.ask(&edge), b.answer(None));
    let (code, text) = message(&answered);
    assert!(code == 503 && text.contains("connected to cloud b no more"), "{text}");
    assert_eq!((a.failed(Reason::Stale), b.counts.passed_on()), (1, 0));
    // Clouds that each believe the other has it: the request does not come back.
    let (answered, ()) = tokio::join!(a.ask(&edge), b.answer(None));
    assert_eq!(message(&answered).0, 503);
    let back = timeout(Duration::from_millis(50), a.outside.hub.recv()).await;
    assert!(back.is_err(), "{back:?}");
}

#[tokio::test]
async fn a_node_that_has_gone_to_a_third_cloud_since_the_lease_was_read_is_found_there() {
    let (cluster, authority) = (Cluster::start().await, Authority::create().unwrap());
    let a = Cloud::start("a", &authority, &cluster).await;
    let mut b = Cloud::start("b", &authority, &cluster).await;
    let mut c = Cloud::start("c", &authority, &cluster).await;
    let edge = node("edge-1");
    b.take(&cluster, &edge).await;
    let (answered, ()) = tokio::join!(a.ask(&edge), b.answer(Some(Response::Published)));
    assert_eq!(answered, Response::Published);
    c.take(&cluster, &edge).await;
    let served = async { tokio::join!(b.answer(None), c.answer(Some(Response::Published))) };
    let (answered, _) = tokio::join!(a.ask(&edge), served);
    assert_eq!(answered, Response::Published);
}

#[tokio::test]
async fn a_node_that_is_nowhere_else_is_said_to_be_not_connected() {
    let (cluster, authority) = (Cluster::start().await, Authority::create().unwrap());
    let a = Cloud::start("a", &authority, &cluster).await;
    // The Lease names this cloud itself, or there is none.
    a.take(&cluster, &node("edge-1")).await;
    for nowhere in ["edge-1", "edge-2"] {
        let answered = a.ask(&node(nowhere)).await;
        assert_eq!(message(&answered), (503, &*format!("node {nowhere} is not connected")));
    }
    lease(&cluster, &node("edge-3"), "b", "").await;
    let answered = a.ask(&node("edge-3")).await;
    assert!(message(&answered).1.contains("does not say where"), "{answered:?}");
    assert_eq!((a.failed(Reason::NotConnected), a.failed(Reason::NoAddress)), (2, 1));
}

#[tokio::test]
async fn a_cloud_that_is_gone_or_is_not_the_one_that_is_meant_is_an_answer_with_the_reason() {
    let (cluster, authority) = (Cluster::start().await, Authority::create().unwrap());
    let a = Cloud::start("a", &authority, &cluster).await;
    let foreign = Cloud::start("b", &Authority::create().unwrap(), &cluster).await;
    let another = Cloud::start("c", &authority, &cluster).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let cases = [
        (closed.to_string(), Reason::Unreachable),
        ("nonsense".to_owned(), Reason::Unreachable),
        ("[::1".to_owned(), Reason::Unreachable),
        (foreign.address.to_string(), Reason::Stranger),
        (another.address.to_string(), Reason::Stranger),
    ];
    for (at, (address, reason)) in cases.iter().enumerate() {
        let (edge, before) = (node(&format!("edge-{at}")), a.failed(*reason));
        lease(&cluster, &edge, "b", address).await;
        let answered = a.ask(&edge).await;
        assert_eq!((message(&answered).0, a.failed(*reason)), (502, before + 1), "{address}: {answered:?}");
    }
    assert_eq!(foreign.counts.answered() + another.counts.answered(), 0);
}

#[tokio::test]
async fn an_answer_that_is_too_long_or_too_late_is_an_answer_with_the_reason() {
    let (cluster, authority) = (Cluster::start().await, Authority::create().unwrap());
    let rules = Config { bytes_max: 1000, deadline: Duration::from_millis(300), ..Config::new("a") };
    let a = Cloud::with(rules, &authority, &cluster).await;
    let mut b = Cloud::start("b", &authority, &cluster).await;
    let edge = node("edge-1");
    b.take(&cluster, &edge).await;
    let long = Response::Failed { code: 404, message: "x".repeat(2000) };
    let (answered, ()) = tokio::join!(a.ask(&edge), b.answer(Some(long)));
    assert_eq!((message(&answered).0, a.failed(Reason::TooLong)), (502, 1), "{answered:?}");
    let answered = a.ask(&edge).await;
    assert_eq!((message(&answered).0, a.failed(Reason::Late)), (504, 1), "{answered:?}");
}

fn connector(trusted: &Authority, shown: &Issued) -> TlsConnector {
    let roots = tls::roots_from_pem(trusted.certificate_pem().as_bytes()).unwrap();
    let identity = Identity::from_pem(shown.certificate_pem.as_bytes(), shown.key_pem.as_bytes()).unwrap();
    Arc::new(tls::client_config(&identity, roots).unwrap()).into()
}

#[tokio::test]
async fn the_certificate_of_a_node_opens_nothing_and_neither_does_that_of_another_authority() {
    let (cluster, authority) = (Cluster::start().await, Authority::create().unwrap());
    let b = Cloud::start("b", &authority, &cluster).await;
    let other = Authority::create().unwrap();
    let addresses = ["127.0.0.1".to_owned()];
    let strangers = [
        authority.issue_node(&node("edge-1"), LASTS).unwrap(),
        // A node may be called anything.
        authority.issue_node(&node("system.kubeedge.cloud.b"), LASTS).unwrap(),
        other.issue_cloud("b", &addresses, LASTS).unwrap(),
        authority.issue_server(&addresses, LASTS).unwrap(),
    ];
    let owner = Owner { name: "b".to_owned(), address: b.address.to_string() };
    for (at, stranger) in strangers.iter().enumerate() {
        let tls = connector(&authority, stranger);
        let asked = ask(&owner, tls, question(&node("edge-1")), LONG, &config("a")).await;
        assert!(matches!(&asked, Err(Failure { .. })), "{at}: {asked:?}");
        let refused = async || b.tls.refused().into_iter().map(|(_, count)| count).sum::<u64>();
        eventually("the refusal", async || (refused().await == at as u64 + 1).then_some(())).await;
    }
    let refused: Vec<_> = b.tls.refused().into_iter().filter(|(_, count)| *count > 0).collect();
    assert!(refused.contains(&(tls::Refusal::NoCloud, 2)), "{refused:?}");
    assert_eq!(b.counts.answered(), 0);
}
