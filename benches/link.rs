//! Claim: the link brings large objects from the cloud to a node at more than half of the rate at which the same
//! bytes pass through a bare QUIC stream, and small ones at tens of thousands a second, although it tells the objects
//! apart, acknowledges each of them, and keeps what is not acknowledged.
//!
//! Workload: a CloudHub and an EdgeHub, both with their default configuration, over QUIC on loopback with
//! certificates of both sides. Each round changes every ConfigMap of a node once: 1,000 of 1 KiB, or 100 of 64 KiB.
//! The edge acknowledges an object as soon as it has it. There is no store at either end, so what is measured is the
//! link and no disk. A round is over when the edge has the newest version of each object; by then all but the last
//! window is acknowledged at the cloud.
//!
//! `bare` is what no protocol of ours can beat: one unidirectional quinn stream between the same certificates with
//! the same windows and packet settings, which carries the same frames as one run of bytes, and one byte back at the
//! round's end.
//!
//! Both run in one process with two worker threads, one after the other. The rates are the machine's; what the claim
//! goes by is their ratio in one run, since both pay for the same encryption, the same packets, and the same kernel.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kubeedge_cloud::{
    cloudhub::{self, CloudHub},
    pki::Authority,
};
use kubeedge_core::{
    hub::{Frame, Item, Payload},
    id::{NodeName, ResourceVersion},
    message::{Acked, Connectivity, Fingerprint, Inventory, Object, ObjectEvent, Snapshot, ToNode},
    tls::{self, Identity},
    transport::{
        Listener as _,
        quic::{ALPN, QuicConfig, QuicListener, QuicListenerConfig, QuicTransport, RECEIVE_WINDOW},
    },
    wire::{Codec, Native},
};
use kubeedge_edge::edgehub::{self, EdgeHub};
use quinn::{
    RecvStream, SendStream, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use tokio::{runtime::Runtime, task::JoinSet};
use tokio_util::sync::CancellationToken;

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// What both sides of a connection show and trust.
struct Certificates {
    node: NodeName,
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
}

impl Certificates {
    fn issue() -> Self {
        let day = Duration::from_secs(24 * 3600);
        let node: NodeName = "edge-1".parse().expect("it is a node's name");
        let authority = Authority::create().expect("an authority");
        let server = authority.issue_server(&["127.0.0.1".to_owned()], day).expect("a certificate");
        let client = authority.issue_node(&node, day).expect("a certificate");
        let identity = |issued: kubeedge_cloud::pki::Issued| {
            Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())
                .expect("an identity")
        };
        let roots = || tls::roots_from_pem(authority.certificate_pem().as_bytes()).expect("roots");
        Self {
            node,
            server: Arc::new(tls::server_config(&identity(server), roots()).expect("TLS")),
            client: Arc::new(tls::client_config(&identity(client), roots()).expect("TLS")),
        }
    }
}

/// ConfigMaps whose JSON is about `size` bytes long.
fn config_maps(count: usize, size: usize) -> Vec<Object> {
    let object = |number: usize| {
        let value = "x".repeat(size.saturating_sub(170));
        let json = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"namespace":"default","name":"map-{number:04}",
            "uid":"uid-{number:04}","resourceVersion":"1"}},"data":{{"settings":"{value}"}}}}"#
        );
        Object::from_json(json).expect("the text above is a ConfigMap")
    };
    (0..count).map(object).collect()
}

/// The two hubs with a session between them.
struct Link {
    node: NodeName,
    objects: Vec<Object>,
    version: u64,
    cloud: cloudhub::Outside,
    edge: edgehub::Outside,
    stop: CancellationToken,
    parts: JoinSet<()>,
}

impl Link {
    async fn start(certificates: &Certificates, objects: Vec<Object>) -> Self {
        let listener =
            QuicListener::bind(LOOPBACK.into(), certificates.server.clone(), QuicListenerConfig::default())
                .expect("the listener binds");
        let quic = QuicTransport::new(QuicConfig::new(listener.local_address(), certificates.client.clone()))
            .expect("the address is right");
        let stop = CancellationToken::new();
        let mut parts = JoinSet::new();

        let (inbox, outbox, mut cloud) = cloudhub::pipes();
        let hub = CloudHub::new(cloudhub::Config::default(), vec![Box::new(listener)], inbox, outbox);
        let stopped = stop.clone();
        parts.spawn(async move { hub.run(stopped).await.expect("CloudHub ends well") });

        let (inbox, outbox, mut edge) = edgehub::pipes();
        let config = edgehub::Config::new(certificates.node.clone());
        let hub = EdgeHub::new(config, Arc::new(quic), inbox, outbox);
        let stopped = stop.clone();
        parts.spawn(async move { hub.run(stopped).await.expect("EdgeHub ends well") });

        // Neither side has anything when the session begins, so they are in sync at once.
        edge.inventory.recv().await.expect("EdgeHub asks").answer(Inventory::default());
        cloud.snapshots.recv().await.expect("CloudHub asks").answer(Snapshot::default());
        edge.connectivity
            .wait_for(|now| *now == Connectivity::Synchronized)
            .await
            .expect("the session begins");
        Self { node: certificates.node.clone(), objects, version: 1, cloud, edge, stop, parts }
    }

    /// Changes every object once, and waits until the edge has all changes.
    async fn round(&mut self) {
        self.version += 1;
        let version = ResourceVersion(self.version);
        for object in &self.objects {
            let object = Object {
                resource_version: version,
                fingerprint: Fingerprint(self.version),
                ..object.clone()
            };
            let message = ObjectEvent::Applied(object);
            self.cloud.downstream.send(ToNode { node: self.node.clone(), message }).expect("CloudHub runs");
        }
        let mut missing = self.objects.len();
        while missing > 0 {
            let delivered = self.edge.objects.recv().await.expect("EdgeHub runs");
            let key = delivered.message.key().clone();
            self.edge.acked.send(Acked { key, delivery: delivered.delivery }).expect("EdgeHub runs");
            if matches!(&delivered.message, ObjectEvent::Applied(object) if object.resource_version == version)
            {
                missing -= 1;
            }
        }
    }

    async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.parts.join_next().await {
            ended.expect("no part panics");
        }
    }
}

/// One stream down and one up, on a connection like the link's.
struct Bare {
    down: SendStream,
    taken: RecvStream,
    arriving: RecvStream,
    up: SendStream,
    _connections: [quinn::Connection; 2],
    _endpoints: [quinn::Endpoint; 2],
}

impl Bare {
    async fn start(certificates: &Certificates) -> Self {
        let mut tls = (*certificates.server).clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3");
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server.transport_config(settings(QuicListenerConfig::default().segmentation_offload));
        let mut tls = (*certificates.client).clone();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(tls).expect("TLS 1.3");
        let mut client = quinn::ClientConfig::new(Arc::new(crypto));
        let of_node = QuicConfig::new("127.0.0.1:1", certificates.client.clone());
        client.transport_config(settings(of_node.segmentation_offload));

        let listening = quinn::Endpoint::server(server, LOOPBACK.into()).expect("the listener binds");
        let address = listening.local_addr().expect("it has an address");
        let dialling = quinn::Endpoint::client(LOOPBACK.into()).expect("the client binds");
        let connecting = dialling.connect_with(client, address, "127.0.0.1").expect("the address is right");
        let accepting = async { listening.accept().await.expect("a client comes").await };
        let (edge, cloud) = tokio::join!(connecting, accepting);
        let (edge, cloud) = (edge.expect("a connection"), cloud.expect("a connection"));

        // A stream is seen by the peer with its first byte.
        let mut down = cloud.open_uni().await.expect("a stream");
        let mut up = edge.open_uni().await.expect("a stream");
        down.write_all(&[0]).await.expect("written");
        up.write_all(&[0]).await.expect("written");
        let mut arriving = edge.accept_uni().await.expect("a stream");
        let mut taken = cloud.accept_uni().await.expect("a stream");
        arriving.read_exact(&mut [0]).await.expect("read");
        taken.read_exact(&mut [0]).await.expect("read");
        Self { down, taken, arriving, up, _connections: [edge, cloud], _endpoints: [listening, dialling] }
    }

    /// Sends the bytes down, and one byte up once they have all arrived.
    async fn round(&mut self, bytes: &Bytes) {
        let Self { down, taken, arriving, up, .. } = self;
        let cloud = async {
            down.write_chunk(bytes.clone()).await.expect("written");
            taken.read_exact(&mut [0]).await.expect("read");
        };
        let edge = async {
            let mut missing = bytes.len();
            while missing > 0 {
                let chunk =
                    arriving.read_chunk(missing, true).await.expect("read").expect("the stream goes on");
                missing -= chunk.bytes.len();
            }
            up.write_all(&[0]).await.expect("written");
        };
        tokio::join!(cloud, edge);
    }
}

/// The link's settings. The windows of a stream and of a sender are not public, so they are written again here.
fn settings(segmentation_offload: bool) -> Arc<TransportConfig> {
    let mut settings = TransportConfig::default();
    settings
        .stream_receive_window(VarInt::from_u32(256 << 10))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(512 << 10)
        .datagram_receive_buffer_size(None)
        .enable_segmentation_offload(segmentation_offload);
    Arc::new(settings)
}

/// What the link writes for these objects: each frame behind its length.
fn frames(objects: &[Object]) -> Bytes {
    let mut bytes = BytesMut::new();
    for (seq, object) in (1..).zip(objects) {
        let payload = Payload::Object(ObjectEvent::Applied(object.clone()));
        let frame = Native.encode(&Frame::Item(Item { lane: object.reference.lane(), seq, payload }));
        bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&frame);
    }
    bytes.freeze()
}

fn compare(criterion: &mut Criterion, name: &str, objects: Vec<Object>) {
    let runtime: Runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let certificates = Certificates::issue();
    let bytes = frames(&objects);

    let mut group = criterion.benchmark_group(name);
    group
        .throughput(Throughput::Elements(objects.len() as u64))
        .sample_size(20)
        .measurement_time(Duration::from_secs(5));
    let mut bare = runtime.block_on(Bare::start(&certificates));
    group.bench_function("bare", |bencher| bencher.iter(|| runtime.block_on(bare.round(&bytes))));
    drop(bare);
    let mut link = runtime.block_on(Link::start(&certificates, objects));
    group.bench_function("link", |bencher| bencher.iter(|| runtime.block_on(link.round())));
    group.finish();
    runtime.block_on(link.stop());
}

fn small(criterion: &mut Criterion) {
    compare(criterion, "link_1000_objects_of_1KiB", config_maps(1_000, 1 << 10));
}

fn large(criterion: &mut Criterion) {
    compare(criterion, "link_100_objects_of_64KiB", config_maps(100, 64 << 10));
}

criterion_group!(benches, small, large);
criterion_main!(benches);
