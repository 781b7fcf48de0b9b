//! The server over real sockets with the standalone API behind it, asked by a client that knows TLS and HTTP/1.1 only.
#![cfg(feature = "standalone")]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Secret};
use kube::{Api, api::PostParams};
use kubeedge_core::{
    id::NodeName,
    join::JoinToken,
    tls::{self, Identity, Live},
};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P384_SHA384};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Config, Counts, Enrollment, Limits, Server, ServerCertificate, Step, Trusted, driver::since_1970,
    join_token, open_authority, publish_authority, rotate, rotation, token,
};
use crate::{
    pki::{self, Authority, Issued},
    standalone::{self, ApiServer},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A cloud that nodes can join.
struct Cloud {
    api: ApiServer,
    address: SocketAddr,
    tls: Live,
    counts: Arc<Counts>,
    _stop: DropGuard,
}

impl Cloud {
    async fn start(config: Config) -> Self {
        let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
        let trusted = open_authority(&api.client(), "kubeedge").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = Live::empty();
        let enrollment =
            Enrollment::open(config, trusted, api.client(), tls.clone(), Some(listener)).await.unwrap();
        let (stop, counts) = (CancellationToken::new(), enrollment.counts());
        tokio::spawn(enrollment.run(stop.clone()));
        Self { api, address, tls, counts, _stop: stop.drop_guard() }
    }

    async fn trusted(&self) -> Trusted {
        open_authority(&self.api.client(), "kubeedge").await.unwrap()
    }

    async fn token(&self) -> JoinToken {
        join_token(&self.api.client(), "kubeedge").await.unwrap().unwrap()
    }

    async fn ask(&self, identity: Option<&Issued>, head: &str, body: &[u8]) -> Answer {
        self.try_ask(identity, head, body).await.expect("an answer")
    }

    async fn connect(&self, identity: Option<&Issued>) -> TlsStream<TcpStream> {
        let identity = identity.map(|issued| {
            Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap()
        });
        let trusted = self.trusted().await;
        let roots = tls::roots_from_pem(trusted.bundle_pem().as_bytes()).unwrap();
        let config = tls::other_client_config(identity.as_ref(), roots).unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// Sends one request; `None` if no whole answer comes.
    async fn try_ask(&self, identity: Option<&Issued>, head: &str, body: &[u8]) -> Option<Answer> {
        let mut stream = self.connect(identity).await;
        let length = body.len();
        let request =
            format!("{head}Host: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        stream.write_all(body).await.ok()?;
        let mut answer = Vec::new();
        // The other side need not end TLS in order.
        let _ = stream.read_to_end(&mut answer).await;
        Answer::parse(&answer)
    }

    async fn join(&self, node: &str, token: &JoinToken, request: &[u8]) -> Answer {
        let bearer = token.bearer();
        let head =
            format!("GET /edge.crt HTTP/1.1\r\nNodeName: {node}\r\nAuthorization: Bearer {bearer}\r\n");
        self.ask(None, &head, request).await
    }

    /// As [`Cloud::join`], in chunks and without saying how long the request is. Its end is sent if `ends`.
    async fn join_in_chunks(&self, node: &str, token: &JoinToken, request: &[u8], ends: bool) -> Answer {
        let mut stream = self.connect(None).await;
        let bearer = token.bearer();
        let head = format!(
            "GET /edge.crt HTTP/1.1\r\nNodeName: {node}\r\nAuthorization: Bearer {bearer}\r\nHost: localhost\r\n\
             Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        for chunk in request.chunks(1 << 10) {
            let length = format!("{:x}\r\n", chunk.len());
            stream.write_all(&[length.as_bytes(), chunk, b"\r\n"].concat()).await.unwrap();
        }
        if ends {
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        // The other side need not end TLS in order.
        let _ = stream.read_to_end(&mut answer).await;
        Answer::parse(&answer).expect("an answer")
    }

    async fn renew(&self, node: &str, identity: &Issued) -> Answer {
        let head = format!("GET /edge.crt HTTP/1.1\r\nNodeName: {node}\r\n");
        self.ask(Some(identity), &head, &request(node, &KeyPair::generate().unwrap())).await
    }

    async fn add_node(&self, name: &str, created: Option<&str>, ready: &str) {
        let nodes: Api<Node> = Api::all(self.api.client());
        let node = serde_json::from_value(json!({
            "metadata": {
                "name": name, "creationTimestamp": created, "labels": { "node-role.kubernetes.io/edge": "" },
            },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        }));
        nodes.create(&PostParams::default(), &node.unwrap()).await.unwrap();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let at = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head, body: bytes[at + 4..].to_vec() })
    }

    fn reason(&self) -> &str {
        self.head.lines().find_map(|line| line.strip_prefix("kubeedge-reason: ")).unwrap_or_default()
    }
}

/// A request as KubeEdge's edge makes it.
fn request(node: &str, key: &KeyPair) -> Vec<u8> {
    request_of(&format!("system:node:{node}"), "system:nodes", key)
}

fn request_of(name: &str, organization: &str, key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    for (kind, value) in [
        (DnType::CountryName, "CN"),
        (DnType::OrganizationName, organization),
        (DnType::LocalityName, "Hangzhou"),
        (DnType::StateOrProvinceName, "Zhejiang"),
        (DnType::CommonName, name),
    ] {
        params.distinguished_name.push(kind, value);
    }
    params.serialize_request(key).unwrap().der().to_vec()
}

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

#[tokio::test]
async fn a_node_joins_by_token_and_renews_by_its_certificate() {
    let cloud = Cloud::start(Config::default()).await;
    let ca = cloud.ask(None, "GET /ca.crt HTTP/1.1\r\n", b"").await;
    let token = cloud.token().await;
    assert!(ca.status == 200 && token.is_of(&ca.body), "the token names the authority");
    assert!(ca.head.contains("content-type: application/octet-stream"), "{}", ca.head);

    let key = KeyPair::generate().unwrap();
    let joined = cloud.join("edge-1", &token, &request("edge-1", &key)).await;
    assert_eq!(joined.status, 200, "{}", joined.reason());
    let certificate = joined.body.into();
    assert_eq!(cloud.tls.judge(std::slice::from_ref(&certificate), since_1970()), Ok(node("edge-1")));

    let pem = crate::pki::tests::pem_of(&certificate);
    let identity = Issued { certificate_pem: pem, key_pem: key.serialize_pem() };
    let renewed = cloud.renew("edge-1", &identity).await;
    assert_eq!(renewed.status, 200, "{}", renewed.reason());
    assert_eq!((cloud.counts.joined(), cloud.counts.renewed()), (1, 1));
    let other = cloud.renew("edge-2", &identity).await;
    assert_eq!((other.status, other.reason()), (401, "certificateofanothernode"));
}

#[tokio::test]
async fn whether_a_name_is_taken_is_told_as_keadm_asks_for_it() {
    let cloud = Cloud::start(Config::default()).await;
    cloud.add_node("edge-1", None, "False").await;
    for (path, status, body) in [
        ("/node/edge-1", 200, "Node found"),
        ("/node/edge-2", 404, "Node not found"),
        ("/node/no_name", 400, "the header NodeName is not the name of a node (RFC 1123)"),
    ] {
        let answer = cloud.ask(None, &format!("GET {path} HTTP/1.1\r\n"), b"").await;
        assert_eq!((answer.status, String::from_utf8(answer.body).unwrap().as_str()), (status, body));
    }
    assert_eq!(cloud.ask(None, "POST /edge.crt HTTP/1.1\r\n", b"").await.status, 405);
    assert_eq!(cloud.ask(None, "GET /else HTTP/1.1\r\n", b"").await.status, 404);
}

#[tokio::test]
async fn requests_that_are_not_the_nodes_own_are_refused_by_name() {
    let cloud = Cloud::start(Config::default()).await;
    let (token, key) = (cloud.token().await, KeyPair::generate().unwrap());
    let mut forged = request("edge-1", &key);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let large = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "system:node:edge-1");
    authority.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    let authority = authority.serialize_request(&key).unwrap().der().to_vec();
    for (body, reason) in [
        (forged, "requestsignaturewrong"),
        (request("edge-2", &key), "requestsubjectwrong"),
        (request_of("system:node:edge-1", "system:masters", &key), "requestsubjectwrong"),
        (request("edge-1", &large), "requestkeynotp256"),
        (authority, "requestforauthority"),
        (b"null".to_vec(), "requestmalformed"),
        (Vec::new(), "requestmalformed"),
    ] {
        let answer = cloud.join("edge-1", &token, &body).await;
        assert_eq!((answer.status, answer.reason()), (400, reason));
    }
    let bearer = token.bearer();
    let head = format!(
        "GET /edge.crt HTTP/1.1\r\nNodeName: edge-1\r\nAuthorization: Bearer {bearer}\r\nExtKeyUsages: [1,2]\r\n"
    );
    assert_eq!(cloud.ask(None, &head, &request("edge-1", &key)).await.reason(), "usagenotallowed");
    assert_eq!(cloud.counts.joined(), 0);
}

#[tokio::test]
async fn tokens_that_are_ended_foreign_or_replayed_are_refused_by_name() {
    let cloud = Cloud::start(Config::default()).await;
    let (trusted, key) = (cloud.trusted().await, KeyPair::generate().unwrap());
    let now = since_1970();
    let ended = token::issue(trusted.authority(), now - DAY, DAY / 2).unwrap();
    let foreign = token::issue(&Authority::create().unwrap(), now, DAY).unwrap();
    for (token, reason) in [(ended, "tokenexpired"), (foreign, "tokenforeign")] {
        let answer = cloud.join("edge-1", &token, &request("edge-1", &key)).await;
        assert_eq!((answer.status, answer.reason()), (401, reason));
    }
    for (headers, reason) in [
        ("", "nocredentials"),
        ("Authorization: x\r\n", "tokenmalformed"),
        ("Authorization: Bearer a b\r\n", "tokenmalformed"),
        ("Authorization: Bearer a.b.c\r\n", "tokenmalformed"),
    ] {
        let head = format!("GET /edge.crt HTTP/1.1\r\nNodeName: edge-1\r\n{headers}");
        assert_eq!(cloud.ask(None, &head, b"").await.reason(), reason, "{headers}");
    }

    // The node joins and registers; whoever finds the token afterwards cannot become it.
    let token = token::issue(trusted.authority(), now - Duration::from_secs(5), DAY).unwrap();
    assert_eq!(cloud.join("edge-1", &token, &request("edge-1", &key)).await.status, 200);
    cloud.add_node("edge-1", None, "False").await;
    let thief = KeyPair::generate().unwrap();
    let answer = cloud.join("edge-1", &token, &request("edge-1", &thief)).await;
    assert_eq!((answer.status, answer.reason()), (403, "tokenused"));
    cloud.add_node("edge-2", None, "True").await;
    let answer = cloud.join("edge-2", &token, &request("edge-2", &thief)).await;
    assert_eq!((answer.status, answer.reason()), (403, "nodeconnected"));
    let refused = cloud.counts.refused();
    assert_eq!((refused["TokenUsed"], refused["TokenExpired"], refused["TokenForeign"]), (1, 1, 1));
}

#[tokio::test]
async fn a_token_that_is_younger_than_a_node_brings_back_nodes_of_the_edge_alone() {
    let cloud = Cloud::start(Config::default()).await;
    let nodes: Api<Node> = Api::all(cloud.api.client());
    cloud.add_node("edge-1", None, "False").await;
    let worker = json!({
        "metadata": { "name": "worker-7", "labels": { "node-role.kubernetes.io/worker": "" } },
        "status": { "conditions": [{ "type": "Ready", "status": "Unknown" }] },
    });
    nodes.create(&PostParams::default(), &serde_json::from_value(worker).unwrap()).await.unwrap();
    let trusted = cloud.trusted().await;
    let token = token::issue(trusted.authority(), since_1970() + Duration::from_secs(5), DAY).unwrap();
    let key = KeyPair::generate().unwrap();
    assert_eq!(cloud.join("edge-1", &token, &request("edge-1", &key)).await.status, 200);
    let answer = cloud.join("worker-7", &token, &request("worker-7", &key)).await;
    assert_eq!((answer.status, answer.reason()), (403, "nodeofcluster"));
    assert_eq!(cloud.counts.joined(), 1);
}

#[tokio::test]
async fn certificates_that_are_foreign_or_of_an_authority_are_refused_by_name() {
    let cloud = Cloud::start(Config::default()).await;
    let trusted = cloud.trusted().await;
    let foreign = Authority::create().unwrap().issue_node(&node("edge-1"), DAY).unwrap();
    let server = trusted.authority().issue_server(&["edge-1".into()], DAY).unwrap();
    let authority = Issued {
        certificate_pem: trusted.authority().certificate_pem().to_owned(),
        key_pem: crate::pki::tests::key_pem_of(trusted.authority()),
    };
    for (identity, reason) in
        [(&foreign, "unknownauthority"), (&server, "wrongpurpose"), (&authority, "certificateofanauthority")]
    {
        let answer = cloud.renew("edge-1", identity).await;
        assert_eq!((answer.status, answer.reason()), (401, reason));
    }
    assert_eq!(cloud.counts.renewed(), 0);
}

#[tokio::test]
async fn a_node_whose_certificate_has_ended_renews_it_with_its_key_for_a_time() {
    let cloud = Cloud::start(Config::default()).await;
    let trusted = cloud.trusted().await;
    // Certificates begin an hour before they are issued, so this one has ended at once.
    let ended = trusted.authority().issue_node(&node("edge-1"), Duration::ZERO).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(cloud.renew("edge-1", &ended).await.reason(), "nodedeleted");
    cloud.add_node("edge-1", None, "Unknown").await;
    assert_eq!(cloud.renew("edge-1", &ended).await.status, 200);

    let strict = Cloud::start(Config { renew_expired_within: Duration::ZERO, ..Config::default() }).await;
    let trusted = strict.trusted().await;
    let ended = trusted.authority().issue_node(&node("edge-1"), Duration::ZERO).unwrap();
    strict.add_node("edge-1", None, "Unknown").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(strict.renew("edge-1", &ended).await.reason(), "certificateexpiredtoolong");
}

#[tokio::test]
async fn what_is_too_long_or_too_much_is_refused_before_it_is_read() {
    let limits = Limits { requests_per_second: 1, requests_burst: 2, ..Limits::default() };
    let cloud = Cloud::start(Config { limits, ..Config::default() }).await;
    let (token, key) = (cloud.token().await, KeyPair::generate().unwrap());
    let bearer = token.bearer();
    let head = format!("GET /edge.crt HTTP/1.1\r\nNodeName: edge-1\r\nAuthorization: Bearer {bearer}\r\n");
    let answer = cloud.ask(None, &head, &vec![0; 20 << 10]).await;
    assert_eq!((answer.status, answer.reason()), (413, "bodytoolarge"));
    let filler = format!("GET /ca.crt HTTP/1.1\r\nX-Filler: {}\r\n", "x".repeat(64 << 10));
    if let Some(answer) = cloud.try_ask(None, &filler, b"").await {
        assert_eq!(answer.status, 431);
    }
    let many = format!("GET /ca.crt HTTP/1.1\r\n{}", "X-Filler: x\r\n".repeat(100));
    if let Some(answer) = cloud.try_ask(None, &many, b"").await {
        assert_eq!(answer.status, 431);
    }
    let mut refused = 0;
    for at in 0..5 {
        let node = format!("edge-{at}");
        let answer = cloud.join(&node, &token, &request(&node, &key)).await;
        if answer.reason() == "toomany" {
            assert!(answer.status == 429 && answer.head.contains("retry-after: 10"));
            refused += 1;
        }
    }
    assert!((2..=4).contains(&refused), "{refused}");
    let counted = cloud.counts.refused();
    assert_eq!((counted["HeaderTooLarge"], counted["BodyTooLarge"], counted["TooMany"]), (2, 1, refused));
}

#[tokio::test]
async fn a_request_that_does_not_say_its_length_is_read_up_to_the_limit_and_then_refused() {
    let cloud = Cloud::start(Config::default()).await;
    let (token, key) = (cloud.token().await, KeyPair::generate().unwrap());
    let most = Limits::default().body_bytes;
    // Its end never comes: whoever waited for the whole would answer nothing, and count it as too slow.
    let answer = cloud.join_in_chunks("edge-1", &token, &vec![0; most + 1], false).await;
    assert_eq!((answer.status, answer.reason()), (413, "bodytoolarge"));
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    // As long as may be it is read, and judged by what it is.
    let answer = cloud.join_in_chunks("edge-1", &token, &vec![0; most], true).await;
    assert_eq!((answer.status, answer.reason()), (400, "requestmalformed"));
    let refused = cloud.counts.refused();
    assert_eq!((refused["BodyTooLarge"], refused.get("TooSlow"), cloud.counts.joined()), (1, None, 0));

    let answer = cloud.join_in_chunks("edge-1", &token, &request("edge-1", &key), true).await;
    assert_eq!((answer.status, cloud.counts.joined()), (200, 1), "{}", answer.reason());
}

#[tokio::test]
async fn replicas_that_start_together_have_one_authority_and_one_token() {
    let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
    let replicas = (0..8).map(|_| {
        let client = api.client();
        async move {
            let trusted = open_authority(&client, "kubeedge").await.unwrap();
            // Who loses the race for the token finds one when it looks again.
            let opened =
                Enrollment::open(Config::default(), trusted.clone(), client, Live::empty(), None).await;
            drop(opened.unwrap());
            trusted.authority().certificate_pem().to_owned()
        }
    });
    let found = futures::future::join_all(replicas).await;
    assert!(found.iter().all(|certificate| *certificate == found[0]), "{found:?}");
    let token = join_token(&api.client(), "kubeedge").await.unwrap().unwrap();
    let trusted = open_authority(&api.client(), "kubeedge").await.unwrap();
    assert!(token.is_of(&trusted.authority().certificate_der().unwrap()));
}

#[tokio::test]
async fn replicas_with_the_same_files_start_together() {
    let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
    let authority = Authority::create().unwrap();
    let (certificate, key) = (authority.certificate_der().unwrap(), authority.key_sec1_der().unwrap());
    let replicas = (0..8).map(|_| {
        let client = api.client();
        let own = Authority::from_der(&certificate, &key).unwrap();
        async move {
            let trusted = publish_authority(&client, "kubeedge", own).await.unwrap();
            drop(Enrollment::open(Config::default(), trusted, client, Live::empty(), None).await.unwrap());
        }
    });
    futures::future::join_all(replicas).await;
    let trusted = open_authority(&api.client(), "kubeedge").await.unwrap();
    assert_eq!(trusted.authority().certificate_der().unwrap(), certificate);
    let token = join_token(&api.client(), "kubeedge").await.unwrap().unwrap();
    assert!(token.is_of(&certificate));
}

#[tokio::test]
async fn an_authority_that_cannot_be_read_is_left_alone() {
    let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(api.client(), "kubeedge");
    let broken: Secret = serde_json::from_value(json!({
        "metadata": { "name": "casecret" }, "stringData": { "cadata": "x", "cakeydata": "y" },
    }))
    .unwrap();
    secrets.create(&PostParams::default(), &broken).await.unwrap();
    let error = open_authority(&api.client(), "kubeedge").await.unwrap_err().to_string();
    assert!(error.contains("Secret casecret cannot be used"), "{error}");
    assert_eq!(secrets.get("casecret").await.unwrap().data.unwrap()["cadata"].0, b"x");
}

#[tokio::test]
async fn one_authority_follows_another_and_nodes_of_both_are_served_meanwhile() {
    let check_interval = Duration::from_millis(20);
    let cloud = Cloud::start(Config { check_interval, ..Config::default() }).await;
    let client = cloud.api.client();
    let step = async |step| rotate(&client, "kubeedge", step).await;
    step(Step::Switch).await.unwrap_err();

    let before = cloud.trusted().await;
    let old = before.authority().issue_node(&node("edge-1"), DAY).unwrap();
    cloud.add_node("edge-1", None, "True").await;
    step(Step::Introduce).await.unwrap();
    step(Step::Introduce).await.unwrap_err();
    step(Step::Retire).await.unwrap_err();
    tokio::time::sleep(check_interval * 10).await;
    let bundle = cloud.ask(None, "GET /kubeedge-rs/ca-bundle.pem HTTP/1.1\r\n", b"").await;
    assert_eq!(String::from_utf8(bundle.body).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    assert!(cloud.token().await.is_of(&before.authority().certificate_der().unwrap()));

    let standing = rotation(&client, "kubeedge").await.unwrap();
    assert!(standing.is_introduced && standing.trusted == 2 && standing.behind.is_empty(), "{standing:?}");

    step(Step::Switch).await.unwrap();
    // The API knows the age of a Node to a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    cloud.add_node("edge-2", None, "True").await;
    let after = cloud.trusted().await;
    assert!(cloud.token().await.is_of(&after.authority().certificate_der().unwrap()));
    assert_ne!(before.authority().certificate_pem(), after.authority().certificate_pem());
    let new = after.authority().issue_node(&node("edge-2"), DAY).unwrap();
    let behind = async || rotation(&client, "kubeedge").await.unwrap().behind;
    assert_eq!(behind().await, ["edge-1"], "edge-2 came later");
    assert_eq!(cloud.renew("edge-1", &old).await.status, 200);
    assert!(behind().await.is_empty());
    assert_eq!(cloud.renew("edge-2", &new).await.status, 200);

    step(Step::Retire).await.unwrap();
    tokio::time::sleep(check_interval * 10).await;
    assert_eq!(cloud.renew("edge-1", &old).await.reason(), "unknownauthority");
    assert_eq!(cloud.renew("edge-2", &new).await.status, 200);
}

/// A cloud whose authority is in a folder of its own, started and stopped again.
async fn start_in(folder: &Path, api: &ApiServer) -> Result<Trusted, super::Error> {
    let files = Authority::open_or_create(folder).unwrap();
    let trusted = publish_authority(&api.client(), "kubeedge", files).await?;
    let authority_files = Some(super::AuthorityFiles {
        certificate: folder.join(pki::CERTIFICATE_FILE),
        key: folder.join(pki::KEY_FILE),
    });
    let config = Config { authority_files, ..Config::default() };
    drop(Enrollment::open(config, trusted.clone(), api.client(), Live::empty(), None).await?);
    Ok(trusted)
}

#[tokio::test]
async fn a_rotation_stands_where_it_stood_after_a_restart_whatever_the_files_say() {
    let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
    let (own, operators) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start_in(own.path(), &api).await.unwrap();
    // The operator's copy of the authority does not follow.
    let (certificate, key) = (operators.path().join("ca.crt"), operators.path().join("ca.key"));
    first.authority().save(&certificate, &key).unwrap();
    for (step, trusted, follows) in
        [(Step::Introduce, 2, false), (Step::Switch, 2, true), (Step::Retire, 1, true)]
    {
        rotate(&api.client(), "kubeedge", step).await.unwrap();
        let expected = open_authority(&api.client(), "kubeedge").await.unwrap();
        assert_eq!(expected.authority().certificate_pem() != first.authority().certificate_pem(), follows);
        for _ in 0..2 {
            let restarted = start_in(own.path(), &api).await.unwrap();
            assert_eq!(restarted.bundle_pem(), expected.bundle_pem(), "after {step:?}");
            assert_eq!(restarted.bundle_pem().matches("BEGIN").count(), trusted);
            let kept = Authority::open_or_create(own.path()).unwrap();
            assert_eq!(kept.certificate_der().unwrap(), expected.authority().certificate_der().unwrap());

            let files = Authority::load(&certificate, &key).unwrap();
            let restarted = publish_authority(&api.client(), "kubeedge", files).await.unwrap();
            assert_eq!(restarted.bundle_pem(), expected.bundle_pem(), "after {step:?}");
        }
    }
}

#[tokio::test]
async fn an_authority_in_files_that_was_never_the_apis_is_refused_and_the_secret_stays() {
    let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
    let before = open_authority(&api.client(), "kubeedge").await.unwrap();
    let stranger = tempfile::tempdir().unwrap();
    let error = start_in(stranger.path(), &api).await.unwrap_err().to_string();
    assert!(error.contains("remove the files") && error.contains("delete the Secret"), "{error}");
    assert_eq!(open_authority(&api.client(), "kubeedge").await.unwrap().bundle_pem(), before.bundle_pem());
}

#[tokio::test]
async fn the_clouds_own_certificate_is_renewed_while_it_runs() {
    let check_interval = Duration::from_millis(20);
    // It begins an hour early, so that a third of its life is over at once.
    let server_certificate_lasts = Duration::from_secs(60);
    let names = vec!["localhost".to_owned(), "192.0.2.1".to_owned()];
    let server = ServerCertificate::Issued { names };
    let cloud =
        Cloud::start(Config { check_interval, server_certificate_lasts, server, ..Config::default() }).await;
    let first = cloud.tls.identity().unwrap();
    tokio::time::sleep(check_interval * 10).await;
    let second = cloud.tls.identity().unwrap();
    assert_ne!(first.certificate(), second.certificate());
    assert_eq!(cloud.ask(None, "GET /ca.crt HTTP/1.1\r\n", b"").await.status, 200);
}

/// The certificate that is shown.
fn shown(tls: &Live) -> Vec<u8> {
    tls.identity().unwrap().certificate().to_vec()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_the_cloud_shows_to_others_is_renewed_and_follows_the_authority_too() {
    let check_interval = Duration::from_millis(20);
    let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
    let trusted = open_authority(&api.client(), "kubeedge").await.unwrap();
    let (cloud, web, stop) = (Live::empty(), Live::empty(), CancellationToken::new());
    let _stop = stop.clone().drop_guard();
    // It begins an hour early, so that a third of its life is over at once.
    let server_certificate_lasts = Duration::from_secs(60);
    let config = Config { check_interval, server_certificate_lasts, ..Config::default() };
    let names = vec!["localhost".to_owned()];
    let server = Server {
        certificate: ServerCertificate::Issued { names: names.clone() },
        callers: None,
        tls: web.clone(),
    };
    let enrollment =
        Enrollment::open(config, trusted.clone(), api.client(), Live::empty(), None).await.unwrap();
    let enrollment =
        enrollment.with_replica("one", names, cloud.clone()).unwrap().with_server(server).unwrap();
    let mut authorities = enrollment.authorities();
    assert_eq!(*authorities.borrow_and_update(), trusted.bundle_pem());
    let first = (shown(&cloud), shown(&web));
    tokio::spawn(enrollment.run(stop));
    until("the next certificates", || shown(&cloud) != first.0 && shown(&web) != first.1).await;
    assert_eq!(tls::cloud_of(cloud.identity().unwrap().certificate()).unwrap(), "one");

    rotate(&api.client(), "kubeedge", Step::Introduce).await.unwrap();
    until("both to be trusted by clouds", || cloud.roots().len() == 2).await;
    authorities.changed().await.unwrap();
    assert_eq!(authorities.borrow_and_update().matches("BEGIN").count(), 2);
    rotate(&api.client(), "kubeedge", Step::Switch).await.unwrap();
    authorities.changed().await.unwrap();
    let next = authorities.borrow_and_update().clone();
    // A server's certificate is no node's; what is told apart is who has signed it.
    let is_of_next = |tls: &Live| tls::is_issued_by_first(&shown(tls).into(), next.as_bytes()).unwrap();
    until("certificates of the next", || is_of_next(&cloud) && is_of_next(&web)).await;
    rotate(&api.client(), "kubeedge", Step::Retire).await.unwrap();
    until("the one before not to be trusted", || cloud.roots().len() == 1).await;
}

#[tokio::test]
async fn files_of_another_server_are_read_again_and_broken_ones_hold_up_nothing_else() {
    let check_interval = Duration::from_millis(20);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let write = |authority: &Authority| {
        let issued = authority.issue_server(&["localhost".into()], DAY).unwrap();
        issued.write(&at("stream.crt"), &at("stream.key")).unwrap();
        std::fs::write(at("callers.crt"), authority.certificate_pem()).unwrap();
        Identity::from_files(&at("stream.crt"), &at("stream.key")).unwrap().certificate().to_vec()
    };
    let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
    let trusted = open_authority(&api.client(), "kubeedge").await.unwrap();
    let (one, two) = (Authority::create().unwrap(), Authority::create().unwrap());
    let (of_one, tls, to_nodes) = (write(&one), Live::empty(), Live::empty());
    let certificate = ServerCertificate::Files { certificate: at("stream.crt"), key: at("stream.key") };
    let server = Server { certificate, callers: Some(at("callers.crt")), tls: tls.clone() };
    let config =
        Config { check_interval, server_certificate_lasts: Duration::from_secs(60), ..Config::default() };
    let enrollment = Enrollment::open(config, trusted, api.client(), to_nodes.clone(), None).await.unwrap();
    let enrollment = enrollment.with_server(server).unwrap();
    assert_eq!(shown(&tls), of_one);
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(enrollment.run(stop));
    let of_two = write(&two);
    until("the other files", || shown(&tls) == of_two).await;
    until("the other callers", || tls.roots().roots == roots_of(&two).roots).await;

    std::fs::write(at("callers.crt"), "").unwrap();
    let before = shown(&to_nodes);
    until("what nodes see to be renewed", || shown(&to_nodes) != before).await;
    assert!(shown(&tls) == of_two && tls.roots().len() == 1, "what was good stays");
}

fn roots_of(authority: &Authority) -> tls::RootCertStore {
    tls::roots_from_pem(authority.certificate_pem().as_bytes()).unwrap()
}

#[tokio::test]
async fn joining_as_recorded_from_kubeedge_works() {
    let cloud = Cloud::start(Config::default()).await;
    let (token, request) = (cloud.token().await, RECORDED_REQUEST);
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let request = STANDARD.decode(request).unwrap();
    let head = format!(
        "GET /edge.crt HTTP/1.1\r\nUser-Agent: Go-http-client/1.1\r\nAuthorization: Bearer {}\r\nNodename: edge1\r\n\
         Accept-Encoding: gzip\r\n",
        token.bearer()
    );
    let answer = cloud.ask(None, &head, &request).await;
    assert_eq!(answer.status, 200, "{}", answer.reason());
    let length = format!("content-length: {}", answer.body.len());
    assert!(answer.head.contains(&length) && !answer.head.contains("transfer-encoding"), "{}", answer.head);
    assert_eq!(cloud.tls.judge(&[answer.body.into()], since_1970()), Ok(node("edge1")));
}

/// The body of `GET /edge.crt` that KubeEdge's edgecore 1.23 has sent.
const RECORDED_REQUEST: &str = "\
MIIBIDCByAIBADBmMQswCQYDVQQGEwJDTjERMA8GA1UECBMIWmhlamlhbmcxETAPBgNVBAcTCEhhbmd6aG91MRUwEwYDVQQKEwxzeXN0ZW06bm9kZXMx\
GjAYBgNVBAMTEXN5c3RlbTpub2RlOmVkZ2UxMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEPymWFpVD9aDjtqIB13c3rnl6uBOsc3dDp/Za6XsRyv+s\
zTeyoTERE5Rod10lxgqVsf1SlY99XYDZR0v3fiSYzqAAMAoGCCqGSM49BAMCA0cAMEQCIBMDSUYWY6m2Mh3I5Uq9j1/SwMePeIMoPzRu53LV6/poAiBs\
2qLVJ4hbOl+EFk/jlWcrcVTK3CqRjhcBFoBkE+CjdQ==";
