//! Nodes that mean harm, over QUIC, to a whole cloud: one with its own certificate that asks for and writes what is another
//! node's, and some with certificates that they should not have.
#![expect(clippy::unwrap_used, reason = "a test says by a panic what did not hold")]

use std::{sync::Arc, time::Duration};

use kube::core::{
    Request as ApiRequest,
    params::{GetParams, PostParams},
};
use kubeedge_cloud::{
    authorization::{Denial, Denials},
    cloudhub::{self, CloudHub, Gauges},
    devicecontroller::{self, DeviceController},
    edgecontroller::{self, EdgeController},
    pki::{Authority, Issued, KEY_FILE},
    standalone::{ApiServer, Config},
};
use kubeedge_core::{
    hub::{Frame, Hello, Item, Offence, PROTOCOL, Payload},
    id::Uid,
    message::{
        Answer, CertificateRequest, DeviceReport, Lane, MirrorReport, NodeReport, ObjectRef, PodReport,
        PodState, Query, Report, TokenRequest, Upload, UploadedEvent,
    },
    tls::{self, Identity, Live, Refusal},
    transport::{
        Connection, Listener, Transport, TransportError,
        quic::{QuicConfig, QuicListener, QuicListenerConfig, QuicTransport},
    },
    wire::{Codec, Native},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

const PATIENCE: Duration = Duration::from_secs(20);
const LASTS: Duration = Duration::from_secs(3600);

struct Cloud {
    client: kube::Client,
    authority: Authority,
    files: tempfile::TempDir,
    live: Live,
    gauges: Gauges,
    address: String,
    denials: [Denials; 2],
    _stop: DropGuard,
}

fn identity(issued: &Issued) -> Identity {
    Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes()).unwrap()
}

impl Cloud {
    async fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(files.path()).unwrap();
        let roots = || tls::roots_from_pem(authority.certificate_pem().as_bytes()).unwrap();
        let server =
            identity(&authority.issue_server(&["localhost".into(), "127.0.0.1".into()], LASTS).unwrap());
        let live = Live::new(server, roots()).unwrap();
        let tls = Arc::new(live.server_config().unwrap());
        let listener =
            QuicListener::bind("127.0.0.1:0".parse().unwrap(), tls, QuicListenerConfig::default()).unwrap();
        let address = listener.local_address();
        let client = ApiServer::open(None, Config::default()).await.unwrap().client();
        let stop = CancellationToken::new();

        let (hub_in, mut hub_out, hub) = cloudhub::pipes();
        let (edge_in, edge_out, edge) = edgecontroller::pipes();
        let (device_in, device_out, device) = devicecontroller::pipes();
        hub_out.snapshots = vec![edge.snapshots, device.snapshots];
        hub_out.queries = edge.queries;
        hub_out.statuses = edge.statuses;
        hub_out.device_reports = device.reports;
        hub_out.sessions = edge.sessions;
        hub_out.clocks = edge.clocks;
        hub_out.events = edge.events;
        let (edge_part, device_part) = (
            EdgeController::new(edgecontroller::Config::default(), client.clone(), edge_in, edge_out),
            DeviceController::new(devicecontroller::Config::default(), client.clone(), device_in, device_out),
        );
        let denials = [edge_part.denials(), device_part.denials()];
        for (mut down, mut acked) in [(edge.downstream, edge.acked), (device.downstream, device.acked)] {
            let (to_down, to_acked) = (hub.downstream.clone(), hub.acked.clone());
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        Some(event) = down.recv() => drop(to_down.send(event)),
                        Some(event) = acked.recv() => drop(to_acked.send(event)),
                        else => return,
                    }
                }
            });
        }
        tokio::spawn(edge_part.run(stop.clone()));
        tokio::spawn(device_part.run(stop.clone()));
        let hub_part = CloudHub::new(cloudhub::Config::default(), vec![Box::new(listener)], hub_in, hub_out);
        let gauges = hub_part.gauges();
        tokio::spawn(hub_part.run(stop.clone()));
        Self { client, authority, files, live, gauges, address, denials, _stop: stop.drop_guard() }
    }

    async fn create(&self, path: &str, object: Value) -> Uid {
        let request =
            ApiRequest::new(path).create(&PostParams::default(), object.to_string().into_bytes()).unwrap();
        let created: Value = self.client.request(request).await.unwrap();
        Uid::new(created["metadata"]["uid"].as_str().unwrap())
    }

    async fn get(&self, path: &str, name: &str) -> Value {
        let request = ApiRequest::new(path).get(name, &GetParams::default()).unwrap();
        self.client.request(request).await.unwrap()
    }

    fn issue(&self, node: &str) -> Issued {
        self.authority.issue_node(&node.parse().unwrap(), LASTS).unwrap()
    }

    async fn dial(&self, issued: &Issued) -> Result<Box<dyn Connection>, TransportError> {
        let roots = tls::roots_from_pem(self.authority.certificate_pem().as_bytes()).unwrap();
        let tls = Arc::new(tls::client_config(&identity(issued), roots).unwrap());
        QuicTransport::new(QuicConfig::new(self.address.clone(), tls)).unwrap().connect().await
    }

    /// Dials with the certificate of `node`, and has a session.
    async fn session(&self, node: &str) -> Peer {
        let peer = Peer { connection: self.dial(&self.issue(node)).await.unwrap() };
        peer.send(&hello(node)).await;
        peer.until(|frame| matches!(frame, Frame::Welcome(_)).then_some(())).await;
        peer
    }
}

fn hello(node: &str) -> Frame {
    Frame::Hello(Hello {
        protocol: PROTOCOL,
        node: node.into(),
        nonce: 7,
        digest: [7; 32],
        objects: 0,
        software: "test".into(),
        tunnels: true,
    })
}

struct Peer {
    connection: Box<dyn Connection>,
}

impl Peer {
    async fn send(&self, frame: &Frame) {
        timeout(PATIENCE, self.connection.send(frame.lane(), Native.encode(frame))).await.unwrap().unwrap();
    }

    async fn until<T>(&self, mut found: impl FnMut(Frame) -> Option<T>) -> T {
        loop {
            let received = timeout(PATIENCE, self.connection.recv()).await.unwrap().unwrap();
            let (lane, bytes) = received.expect("the session goes on");
            if let Some(found) = found(Native.decode(lane, &bytes).unwrap()) {
                return found;
            }
        }
    }

    async fn goodbye(&self) -> String {
        self.until(|frame| if let Frame::Goodbye { reason } = frame { Some(reason) } else { None }).await
    }

    /// It is in its first session, and is answered.
    async fn is_served(&self) {
        self.send(&Frame::Ping(1 << 50)).await;
        self.until(|frame| (frame == Frame::Pong(1 << 50)).then_some(())).await;
    }

    async fn ask(&self, number: u64, query: Query) -> Answer {
        self.send(&Frame::Query { id: number, query }).await;
        self.until(|frame| {
            if let Frame::Answer { id, answer } = frame
                && id == number
            {
                Some(answer)
            } else {
                None
            }
        })
        .await
    }
}

const PODS: &str = "/api/v1/namespaces/default/pods";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const NODES: &str = "/api/v1/nodes";
const DEVICES: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices";
const MODELS: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devicemodels";

fn pod(name: &str, node: &str, secret: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "nodeName": node,
            // So the cloud has nothing to change of it, and whatever changes was the node's doing.
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{ "name": "main", "image": "web", "envFrom": [{ "secretRef": { "name": secret } }] }],
            "volumes": [{ "name": "t", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }],
        },
    })
}

fn device(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": node, "deviceModelRef": { "name": "model" }, "properties": [] },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_asks_for_or_writes_what_is_anothers_is_refused_by_reason_and_counted() {
    let cloud = Cloud::start().await;
    let edge = json!({ "node-role.kubernetes.io/edge": "" });
    for (name, secret) in [("edge-1", "mine"), ("edge-2", "theirs")] {
        cloud
            .create(
                NODES,
                json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "labels": edge } }),
            )
            .await;
        let object = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": secret }, "stringData": { "k": "v" } });
        cloud.create(SECRETS, object).await;
    }
    let own = cloud.create(PODS, pod("own", "edge-1", "mine")).await;
    let other = cloud.create(PODS, pod("other", "edge-2", "theirs")).await;
    cloud.create(MODELS, json!({ "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel", "metadata": { "name": "model" }, "spec": {} })).await;
    let room = cloud.create(DEVICES, device("room", "edge-2")).await;
    let before =
        [cloud.get(PODS, "other").await, cloud.get(NODES, "edge-2").await, cloud.get(DEVICES, "room").await];

    let evil = cloud.session("edge-1").await;
    // Once the cloud knows of the pods, what is its own is given.
    timeout(PATIENCE, async {
        while !matches!(
            evil.ask(1, Query::Get(ObjectRef::secret("default", "mine"))).await,
            Answer::Object(_)
        ) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    let token = |pod: &str, uid: &Uid, audience: &str| {
        Query::Token(TokenRequest {
            namespace: "default".into(),
            service_account: "default".into(),
            pod: pod.into(),
            pod_uid: uid.clone(),
            audience: audience.into(),
            expiration_seconds: 3600,
        })
    };
    let certificate = |of: &str, address: &str| {
        let mut params = rcgen::CertificateParams::new([address.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{of}"));
        let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
        Query::Certificate(CertificateRequest { pkcs10: request.der().to_vec().into() })
    };
    for (query, denial) in [
        (Query::Get(ObjectRef::secret("default", "theirs")), Denial::NotReferenced),
        (Query::Get(ObjectRef::secret("default", "never-was")), Denial::NotReferenced),
        (Query::Get(ObjectRef::pod("default", "other")), Denial::NotReferenced),
        (Query::Get(ObjectRef::node("edge-2")), Denial::OtherNode),
        (token("other", &other, ""), Denial::OtherPod),
        (token("own", &other, ""), Denial::NoSuchObject),
        (token("own", &own, "vault"), Denial::TokenNotMounted),
        (certificate("edge-2", "127.0.0.1"), Denial::CertificateSubject),
        (certificate("edge-1", "10.96.0.1"), Denial::CertificateNames),
    ] {
        let told = evil.ask(2, query.clone()).await;
        let Answer::Refused(why) = told else { panic!("{query:?} was answered with {told:?}") };
        assert!(why.contains(denial.reason()), "{query:?}: {why}");
    }
    assert!(matches!(evil.ask(3, token("own", &own, "")).await, Answer::Token(_) | Answer::NotFound));

    let failed = PodState::Status(br#"{"phase":"Failed"}"#.as_slice().into());
    let of_other = |state| {
        Report::Pod(PodReport { reference: ObjectRef::pod("default", "other"), uid: other.clone(), state })
    };
    let mirror = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "web-edge-1", "namespace": "default", "annotations": { "kubernetes.io/config.mirror": "a" } },
        "spec": { "nodeName": "edge-2", "containers": [{ "name": "main", "image": "web" }] },
    });
    let reports = [
        of_other(failed),
        of_other(PodState::Gone),
        Report::Node(NodeReport {
            json: br#"{"metadata":{"name":"edge-2"},"status":{"phase":"Terminated"}}"#.as_slice().into(),
        }),
        Report::Mirror(MirrorReport {
            reference: ObjectRef::pod("default", "web-edge-1"),
            pod: Some(mirror.to_string().into()),
        }),
        Report::Device(DeviceReport {
            device: "default/room".parse().unwrap(),
            uid: room,
            twins: vec![],
            state: Some("offline".into()),
            last_online: None,
        }),
    ];
    let mut next = std::collections::BTreeMap::new();
    for report in reports {
        let lane = report.lane();
        let seq: &mut u64 = next.entry(lane).or_default();
        *seq += 1;
        evil.send(&Frame::Item(Item { lane, seq: *seq, payload: Payload::Report(report) })).await;
        let seq = *seq;
        // It is acknowledged, since sending it again would help nobody.
        evil.until(|frame| {
            matches!(frame, Frame::Ack(ack) if ack.lane == lane && ack.upto >= seq).then_some(())
        })
        .await;
    }
    let event = json!({
        "metadata": { "name": "e", "namespace": "default" },
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "other" }, "reason": "Killed",
    });
    let payload = Payload::Upload(Upload::Event(UploadedEvent { json: event.to_string().into() }));
    evil.send(&Frame::Item(Item { lane: Lane::Config, seq: 1, payload })).await;
    let [edge, devices] = &cloud.denials;
    timeout(PATIENCE, async {
        while edge.of(Denial::OtherEvent) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();

    let counted = [
        Denial::OtherPod,
        Denial::OtherNode,
        Denial::MirrorElsewhere,
        Denial::TokenNotMounted,
        Denial::NoSuchObject,
    ];
    assert_eq!(counted.map(|denial| edge.of(denial)), [3, 2, 1, 1, 1], "{edge:?}");
    assert!(edge.of(Denial::NotReferenced) >= 3, "{edge:?}");
    assert_eq!(devices.of(Denial::OtherDevice), 1, "{devices:?}");
    let after =
        [cloud.get(PODS, "other").await, cloud.get(NODES, "edge-2").await, cloud.get(DEVICES, "room").await];
    assert_eq!(after, before, "nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_expired_foreign_or_an_authoritys_is_refused_and_counted_beside_a_good_node() {
    let cloud = Cloud::start().await;
    let good = cloud.session("edge-1").await;
    let expired = cloud.authority.issue_node(&"edge-1".parse().unwrap(), Duration::ZERO).unwrap();
    let foreign = Authority::create().unwrap().issue_node(&"edge-1".parse().unwrap(), LASTS).unwrap();
    let key_pem = std::fs::read_to_string(cloud.files.path().join(KEY_FILE)).unwrap();
    let own = Issued { certificate_pem: cloud.authority.certificate_pem().to_owned(), key_pem };
    let server = cloud.authority.issue_server(&["edge-1".into()], LASTS).unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for (issued, refusal) in [
        (&expired, Refusal::Expired),
        (&foreign, Refusal::UnknownAuthority),
        (&own, Refusal::Authority),
        (&server, Refusal::WrongPurpose),
    ] {
        let refused = cloud.dial(issued).await;
        assert!(matches!(refused, Err(TransportError::Refused { .. })), "{refusal}: {refused:?}");
        let counted: Vec<_> = cloud.live.refused().into_iter().filter(|(_, count)| *count > 0).collect();
        assert!(counted.contains(&(refusal, 1)), "{refusal}: {counted:?}");
    }
    assert_eq!(cloud.gauges.counts().sessions, 1);
    good.is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_breaks_the_rules_of_the_link_loses_its_session_by_reason_beside_a_good_node() {
    let cloud = Cloud::start().await;
    let good = cloud.session("edge-1").await;

    let other = Peer { connection: cloud.dial(&cloud.issue("edge-2")).await.unwrap() };
    other.send(&hello("edge-1")).await;
    let told =
        other.until(|frame| if let Frame::Refusal { reason, .. } = frame { Some(reason) } else { None });
    assert!(told.await.contains("the certificate is of node edge-2"));

    let garbled = cloud.session("edge-2").await;
    garbled.connection.send(Lane::Pods, vec![0x0f; Lane::Pods.frame_limit()].into()).await.unwrap();
    assert!(garbled.goodbye().await.contains("is no frame"));

    let greedy = cloud.session("edge-2").await;
    let item = Item { lane: Lane::Pods, seq: 1 << 40, payload: Payload::Skip };
    greedy.send(&Frame::Item(item)).await;
    assert!(greedy.goodbye().await.contains("far beyond"));

    timeout(PATIENCE, async {
        let wanted = [Offence::OtherName, Offence::Garbled, Offence::Unexpected];
        loop {
            let counts = cloud.gauges.counts();
            let counted: Vec<_> = counts.offences.into_iter().filter(|(_, count)| *count > 0).collect();
            if counted == wanted.map(|offence| (offence, 1)) && counts.sessions == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    good.is_served().await;
}
