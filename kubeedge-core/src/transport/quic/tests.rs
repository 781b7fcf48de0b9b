use std::time::Duration;

use bytes::Bytes;
use tokio::{net::UdpSocket, sync::watch, time::timeout};

use super::*;
use crate::transport::{Listener, Peer, testing::Pki};

const SOON: Duration = Duration::from_secs(10);

fn listener(pki: &Pki) -> QuicListener {
    listener_with(pki, QuicListenerConfig::default())
}

fn listener_with(pki: &Pki, config: QuicListenerConfig) -> QuicListener {
    QuicListener::bind("127.0.0.1:0".parse().unwrap(), pki.server(), config).unwrap()
}

fn config(listener: &QuicListener, tls: Arc<rustls::ClientConfig>) -> QuicConfig {
    QuicConfig { dial_timeout: SOON, ..QuicConfig::new(listener.local_address(), tls) }
}

fn transport(listener: &QuicListener, tls: Arc<rustls::ClientConfig>) -> QuicTransport {
    QuicTransport::new(config(listener, tls)).unwrap()
}

/// Dials while the listener accepts, which must give nothing.
async fn refused(listener: &QuicListener, transport: &QuicTransport) -> TransportError {
    tokio::select! {
        dialled = transport.connect() => dialled.unwrap_err(),
        accepted = listener.accept() => panic!("{accepted:?} was let in"),
    }
}

async fn works(listener: &QuicListener, pki: &Pki) {
    let transport = transport(listener, pki.client());
    let both = async { tokio::join!(transport.connect(), listener.accept()) };
    let (edge, cloud) = timeout(SOON, both).await.unwrap();
    let (edge, cloud) = (edge.unwrap(), cloud.unwrap());
    edge.send(Lane::Pods, Bytes::from_static(b"pod")).await.unwrap();
    let received = timeout(SOON, cloud.recv()).await.unwrap().unwrap().unwrap();
    assert_eq!(received, (Lane::Pods, Bytes::from_static(b"pod")));
}

#[cfg(feature = "conformance")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_does_what_every_transport_must() {
    crate::transport::conformance::run(|| async {
        let pki = Pki::new();
        let listener = listener(&pki);
        (transport(&listener, pki.client()), listener)
    })
    .await;
}

#[tokio::test]
async fn each_side_learns_who_the_other_is() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let transport = transport(&listener, pki.client_as("system:node:edge-7.site-a"));
    let (edge, cloud) = tokio::join!(transport.connect(), listener.accept());
    assert_eq!(edge.unwrap().peer(), &Peer::Cloud);
    assert_eq!(cloud.unwrap().peer(), &Peer::Node("edge-7.site-a".parse().unwrap()));
}

#[tokio::test]
async fn an_edge_without_a_certificate_of_the_authority_is_refused() {
    let (pki, other) = (Pki::new(), Pki::new());
    let listener = listener(&pki);
    for tls in [pki.client_without_certificate(), pki.client_of(&other)] {
        let error = refused(&listener, &transport(&listener, tls)).await;
        assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    }
    works(&listener, &pki).await;
}

#[tokio::test]
async fn a_cloud_of_another_authority_is_refused() {
    let (pki, other) = (Pki::new(), Pki::new());
    let listener = listener(&pki);
    let error = refused(&listener, &transport(&listener, other.client())).await;
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_certificate_of_no_node_is_refused_and_told_why() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let error = refused(&listener, &transport(&listener, pki.client_as("kubernetes-admin"))).await;
    assert!(matches!(error, TransportError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("system:node:"), "{error}");
    works(&listener, &pki).await;
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let (_endpoint, connecting) = raw_client(&listener, &pki, b"h3");
    let error = tokio::select! {
        connected = connecting => connected.unwrap_err(),
        accepted = listener.accept() => panic!("{accepted:?} was let in"),
    };
    assert!(refusal(&error).is_some(), "{error}");
    works(&listener, &pki).await;
}

#[tokio::test]
async fn a_connection_goes_on_when_its_keys_are_changed_again_and_again() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let (_endpoint, connecting) = raw_client(&listener, &pki, ALPN);
    let (raw, cloud) = tokio::join!(connecting, listener.accept());
    let (raw, cloud) = (raw.unwrap(), cloud.unwrap());
    let mut up = raw.open_uni().await.unwrap();
    up.write_all(&[Lane::Pods.index() as u8]).await.unwrap();
    let mut down = None;
    for round in 0..4u8 {
        up.write_all(&[0, 0, 0, 1, round]).await.unwrap();
        let received = timeout(SOON, cloud.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(received, (Lane::Pods, Bytes::copy_from_slice(&[round])));
        cloud.send(Lane::Pods, Bytes::copy_from_slice(&[round])).await.unwrap();
        while down.is_none() {
            let mut stream = timeout(SOON, raw.accept_uni()).await.unwrap().unwrap();
            let mut lane = [0];
            stream.read_exact(&mut lane).await.unwrap();
            down = Some(stream).filter(|_| lane[0] == Lane::Pods.index() as u8);
        }
        let mut frame = [0; 5];
        timeout(SOON, down.as_mut().unwrap().read_exact(&mut frame)).await.unwrap().unwrap();
        assert_eq!(frame, [0, 0, 0, 1, round]);
        raw.force_key_update();
        // Keys are not changed while packets under those before may still come.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn a_length_over_the_limit_ends_only_that_connection() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let (_endpoint, connecting) = raw_client(&listener, &pki, ALPN);
    let (raw, cloud) = tokio::join!(connecting, listener.accept());
    let (raw, cloud) = (raw.unwrap(), cloud.unwrap());
    let mut stream = raw.open_uni().await.unwrap();
    stream.write_all(&[Lane::Pods.index() as u8, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
    let error = timeout(SOON, cloud.recv()).await.unwrap().unwrap_err();
    assert!(
        matches!(error, TransportError::TooLong { lane: Lane::Pods, length: 0xffff_ffff, .. }),
        "{error}"
    );
    let closed = timeout(SOON, raw.closed()).await.unwrap();
    assert!(closed.to_string().contains("over the limit"), "the peer is told: {closed}");
    assert!(matches!(cloud.recv().await, Err(TransportError::Closed(_))));
    works(&listener, &pki).await;
}

#[tokio::test]
async fn a_lane_that_ends_within_a_frame_ends_the_connection() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let (_endpoint, connecting) = raw_client(&listener, &pki, ALPN);
    let (raw, cloud) = tokio::join!(connecting, listener.accept());
    let (raw, cloud) = (raw.unwrap(), cloud.unwrap());
    let mut stream = raw.open_uni().await.unwrap();
    stream.write_all(&[Lane::Pods.index() as u8, 0, 0, 0, 9, 1, 2, 3]).await.unwrap();
    timeout(Duration::from_millis(100), cloud.recv()).await.unwrap_err();
    stream.finish().unwrap();
    let error = timeout(SOON, cloud.recv()).await.unwrap().unwrap_err();
    assert!(matches!(error, TransportError::Malformed(_)), "{error}");
}

#[tokio::test]
async fn an_announced_frame_takes_memory_only_as_it_arrives() {
    let pki = Pki::new();
    let mut tls = (*pki.server()).clone();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let server = quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let endpoint = server.local_addr().unwrap().to_string();
    let transport = QuicTransport::new(QuicConfig::new(endpoint, pki.client())).unwrap();
    let raw = async {
        let raw = server.accept().await.unwrap().await.unwrap();
        raw.open_uni().await.unwrap().write_all(&[Lane::Heartbeat.index() as u8]).await.unwrap();
        let mut stream = raw.open_uni().await.unwrap();
        stream.write_all(&[Lane::Pods.index() as u8]).await.unwrap();
        stream.write_all(&(Lane::Pods.frame_limit() as u32).to_be_bytes()).await.unwrap();
        stream.write_all(&[7; 10_000]).await.unwrap();
        (raw, stream)
    };
    let (edge, _raw) = tokio::join!(transport.dial(), raw);
    let edge = edge.unwrap();
    timeout(Duration::from_millis(300), edge.recv()).await.unwrap_err();
    let held = edge.incoming.lock().await.held();
    assert!((10_000..=32_768).contains(&held), "{held} bytes are held for a frame of which 10000 came");
}

#[tokio::test]
async fn a_lane_that_does_not_exist_or_is_opened_twice_ends_the_connection() {
    let pki = Pki::new();
    let listener = listener(&pki);
    for lanes in [[0, 9], [1, 1]] {
        let (_endpoint, connecting) = raw_client(&listener, &pki, ALPN);
        let (raw, cloud) = tokio::join!(connecting, listener.accept());
        let (raw, cloud) = (raw.unwrap(), cloud.unwrap());
        for lane in lanes {
            raw.open_uni().await.unwrap().write_all(&[lane]).await.unwrap();
        }
        let error = timeout(SOON, cloud.recv()).await.unwrap().unwrap_err();
        assert!(matches!(error, TransportError::Malformed(_)), "{error}");
    }
}

#[tokio::test]
async fn garbage_and_silence_on_the_port_disturb_nobody() {
    let pki = Pki::new();
    let limits = QuicListenerConfig {
        handshake_timeout: Duration::from_millis(500),
        handshakes_max: 4,
        ..QuicListenerConfig::default()
    };
    let listener = listener_with(&pki, limits);
    let noise = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    noise.connect(listener.local_address()).await.unwrap();
    for length in [0, 1, 20, 100, 1200, 1500, 9000] {
        for start in [0x00, 0x40, 0xc0, 0xff] {
            noise.send(&vec![start; length]).await.unwrap();
        }
    }
    // Clients that begin a handshake and are never heard of again, more than there are places.
    let silent: Vec<_> = (0..8).map(|_| raw_client(&listener, &pki, ALPN)).collect();
    tokio::task::yield_now().await;
    for (endpoint, connecting) in silent {
        let sink = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        endpoint.rebind(sink).unwrap();
        drop(connecting);
    }
    works(&listener, &pki).await;
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable_in_time() {
    let pki = Pki::new();
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let config = QuicConfig {
        dial_timeout: Duration::from_millis(300),
        ..QuicConfig::new(silent.local_addr().unwrap().to_string(), pki.client())
    };
    let error = timeout(SOON, QuicTransport::new(config).unwrap().connect()).await.unwrap().unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_moves_with_its_node_to_another_address() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let transport = QuicTransport::new(QuicConfig {
        bind: Some("127.0.0.1".parse().unwrap()),
        ..config(&listener, pki.client())
    })
    .unwrap();
    let (edge, cloud) = tokio::join!(transport.dial(), listener.accept());
    let (edge, cloud) = (edge.unwrap(), cloud.unwrap());
    assert!(cloud.path().contains("127.0.0.1"), "{}", cloud.path());
    for round in 0..20u8 {
        if round == 10 {
            edge.rebind("127.0.0.2:0".parse().unwrap()).unwrap();
        }
        edge.send(Lane::Devices, vec![round; 3000].into()).await.unwrap();
        let (_, frame) = timeout(SOON, cloud.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame, vec![round; 3000]);
        cloud.send(Lane::Config, vec![round; 3000].into()).await.unwrap();
        let (_, frame) = timeout(SOON, edge.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame, vec![round; 3000]);
    }
    assert!(
        cloud.path().contains("127.0.0.2"),
        "the cloud sees the node at its new address: {}",
        cloud.path()
    );
}

#[tokio::test]
async fn an_edge_notices_at_once_that_the_cloud_has_restarted() {
    let pki = Pki::new();
    let limits =
        QuicListenerConfig { reset_secret: Some(ResetSecret::new([7; 32])), ..QuicListenerConfig::default() };
    let (before, after) = (listener_with(&pki, limits.clone()), listener_with(&pki, limits));
    // The clouds have one address, as the edge sees it, and the first is gone without a farewell.
    let (address, cloud) = relay(&before).await;
    let config = QuicConfig { dial_timeout: SOON, ..QuicConfig::new(address, pki.client()) };
    let transport = QuicTransport::new(config).unwrap();
    let (edge, _connection) = tokio::join!(transport.connect(), before.accept());
    let edge = edge.unwrap();
    cloud.send_replace(after.local_address());
    // As short as a ping of the link.
    edge.send(Lane::Heartbeat, vec![1; 2].into()).await.unwrap();
    let error = timeout(SOON, edge.recv()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("reset"), "{error}");
}

/// Passes datagrams between one client and a cloud, which may be exchanged; gives the address for the client.
async fn relay(cloud: &QuicListener) -> (String, watch::Sender<String>) {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap().to_string();
    let (sender, cloud) = watch::channel(cloud.local_address());
    tokio::spawn(async move {
        let (mut client, mut out, mut home) = (None, [0; 2000], [0; 2000]);
        loop {
            tokio::select! {
                Ok((length, from)) = front.recv_from(&mut out) => {
                    client = Some(from);
                    let to = cloud.borrow().clone();
                    back.send_to(&out[..length], to).await.unwrap();
                }
                Ok((length, from)) = back.recv_from(&mut home) => {
                    let is_current = from.to_string() == *cloud.borrow();
                    if let Some(client) = client.filter(|_| is_current) {
                        front.send_to(&home[..length], client).await.unwrap();
                    }
                }
            }
        }
    });
    (address, sender)
}

#[test]
fn a_wrong_endpoint_is_a_wrong_configuration() {
    let error = QuicTransport::new(QuicConfig::new("no port", Pki::new().client())).unwrap_err();
    assert!(matches!(error, TransportError::Config(_)) && !error.is_retryable(), "{error}");
}

/// A client that speaks QUIC but not our framing.
fn raw_client(listener: &QuicListener, pki: &Pki, alpn: &[u8]) -> (quinn::Endpoint, quinn::Connecting) {
    let mut tls = (*pki.client()).clone();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = listener.local_address().parse().unwrap();
    let connecting = endpoint.connect_with(client, server, "localhost").unwrap();
    (endpoint, connecting)
}
