use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsStream;
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::*;
use crate::{
    message::Lane,
    transport::{Listener, testing::Pki},
};

const SOON: Duration = Duration::from_secs(10);

fn listener(pki: &Pki) -> WebSocketListener {
    listener_with(pki, WebSocketListenerConfig::default())
}

fn listener_with(pki: &Pki, config: WebSocketListenerConfig) -> WebSocketListener {
    WebSocketListener::bind("127.0.0.1:0".parse().unwrap(), pki.server(), config).unwrap()
}

fn transport(listener: &WebSocketListener, tls: Arc<rustls::ClientConfig>) -> WebSocketTransport {
    WebSocketTransport::new(WebSocketConfig::new(listener.local_address(), tls)).unwrap()
}

/// Dials while the listener accepts, which must give nothing.
async fn refused(listener: &WebSocketListener, transport: &WebSocketTransport) -> TransportError {
    tokio::select! {
        dialled = transport.connect() => dialled.unwrap_err(),
        accepted = listener.accept() => panic!("{accepted:?} was let in"),
    }
}

async fn works(listener: &WebSocketListener, pki: &Pki) {
    let transport = transport(listener, pki.client());
    let both = async { tokio::join!(transport.connect(), listener.accept()) };
    let (edge, cloud) = timeout(SOON, both).await.unwrap();
    let (edge, cloud) = (edge.unwrap(), cloud.unwrap());
    edge.send(Lane::Pods, Bytes::from_static(b"pod")).await.unwrap();
    let received = timeout(SOON, cloud.recv()).await.unwrap().unwrap().unwrap();
    assert_eq!(received, (Lane::Pods, Bytes::from_static(b"pod")));
}

type RawClient = WebSocketStream<TlsStream<TcpStream>>;

/// A client that speaks WebSocket but not our framing, offering these sub-protocols.
async fn raw_client(listener: &WebSocketListener, pki: &Pki, offers: &[&str]) -> Result<RawClient, WsError> {
    let server = listener.local_address();
    let tcp = TcpStream::connect(&server).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let tls = TlsConnector::from(pki.client()).connect(name, tcp).await.unwrap();
    let mut request = ClientRequestBuilder::new(format!("wss://{server}/").parse().unwrap());
    for offer in offers {
        request = request.with_sub_protocol(*offer);
    }
    Ok(client_async_with_config(request, tls.into(), None).await?.0)
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
        assert!(matches!(error, TransportError::Refused { .. }), "{error:?}");
    }
    works(&listener, &pki).await;
}

#[tokio::test]
async fn a_cloud_of_another_authority_is_refused() {
    let (pki, other) = (Pki::new(), Pki::new());
    let listener = listener(&pki);
    let error = refused(&listener, &transport(&listener, other.client())).await;
    assert!(matches!(error, TransportError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn a_certificate_of_no_node_is_refused_and_told_why() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let error = refused(&listener, &transport(&listener, pki.client_as("kubernetes-admin"))).await;
    assert!(matches!(error, TransportError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("403") && error.to_string().contains("system:node:"), "{error}");
    works(&listener, &pki).await;
}

#[tokio::test]
async fn a_client_that_does_not_offer_the_sub_protocol_is_told_its_name() {
    let pki = Pki::new();
    let listener = listener(&pki);
    for offers in [&[][..], &["mqtt", "kubeedge.link.v0"]] {
        let error = tokio::select! {
            upgraded = raw_client(&listener, &pki, offers) => upgraded.unwrap_err(),
            accepted = listener.accept() => panic!("{accepted:?} was let in"),
        };
        let WsError::Http(response) = error else { panic!("{error} is no answer in HTTP") };
        assert!(http_refusal(&response).contains(PROTOCOL), "{response:?}");
    }
    let offers = ["mqtt", PROTOCOL];
    let (raw, accepted) = tokio::join!(raw_client(&listener, &pki, &offers), listener.accept());
    raw.unwrap();
    accepted.unwrap();
}

#[tokio::test]
async fn a_server_that_speaks_no_sub_protocol_is_refused() {
    let pki = Pki::new();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = tcp.local_addr().unwrap().to_string();
    let transport = WebSocketTransport::new(WebSocketConfig::new(endpoint, pki.client())).unwrap();
    let serve = async {
        let tls = tokio_rustls::TlsAcceptor::from(pki.server())
            .accept(tcp.accept().await.unwrap().0)
            .await
            .unwrap();
        tokio_tungstenite::accept_async(tls).await.unwrap()
    };
    let (error, _server) = tokio::join!(transport.connect(), serve);
    let error = error.unwrap_err();
    assert!(matches!(error, TransportError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn a_frame_over_the_limit_ends_only_that_connection() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let (raw, cloud) = tokio::join!(raw_client(&listener, &pki, &[PROTOCOL]), listener.accept());
    let (mut raw, cloud) = (raw.unwrap(), cloud.unwrap());
    // Pieces of a heartbeat, each within bounds, and no end to them.
    let mut piece = vec![0; 1 + FRAGMENT];
    piece[0] = 0x80 | Lane::Heartbeat.index() as u8;
    let feed = async { while raw.send(Message::binary(piece.clone())).await.is_ok() {} };
    let error = timeout(SOON, async {
        tokio::join!(feed, async {
            let error = cloud.recv().await.unwrap_err();
            drop(cloud);
            error
        })
    })
    .await
    .unwrap()
    .1;
    let first_over = (Lane::Heartbeat.frame_limit() + FRAGMENT) as u64;
    assert!(matches!(error, TransportError::TooLong { length, .. } if length == first_over), "{error}");
    works(&listener, &pki).await;
}

#[tokio::test]
async fn what_is_no_frame_ends_the_connection() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let too_big = vec![0; 2 + FRAGMENT];
    let wrong = [
        Message::binary(vec![9, 1]),
        Message::binary(vec![]),
        Message::text("hello"),
        Message::binary(too_big),
    ];
    for message in wrong {
        let (raw, cloud) = tokio::join!(raw_client(&listener, &pki, &[PROTOCOL]), listener.accept());
        let (mut raw, cloud) = (raw.unwrap(), cloud.unwrap());
        raw.send(message.clone()).await.unwrap();
        timeout(SOON, cloud.recv()).await.unwrap().unwrap_err();
        assert!(cloud.send(Lane::Pods, Bytes::new()).await.is_err(), "over after {} bytes", message.len());
        // The peer learns that it is over, one way or the other.
        let farewell = async { while let Some(Ok(Message::Binary(_))) = raw.next().await {} };
        timeout(SOON, farewell).await.unwrap();
    }
}

#[tokio::test]
async fn garbage_and_silence_on_the_port_disturb_nobody() {
    let pki = Pki::new();
    let limits = WebSocketListenerConfig { handshake_timeout: Duration::from_millis(500), handshakes_max: 4 };
    let listener = listener_with(&pki, limits);
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(listener.local_address()).await.unwrap());
    }
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0x16, 3, 1, 0xff, 0xff]] {
        let mut noise = TcpStream::connect(listener.local_address()).await.unwrap();
        noise.write_all(garbage).await.unwrap();
        silent.push(noise);
    }
    works(&listener, &pki).await;
    // Whoever was silent is hung up on.
    let mut rest = Vec::new();
    tokio::select! {
        read = timeout(SOON, silent[0].read_to_end(&mut rest)) => drop(read.unwrap()),
        accepted = listener.accept() => panic!("{accepted:?} was let in"),
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable() {
    let pki = Pki::new();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = taken.local_addr().unwrap().to_string();
    let config = |endpoint: &str| WebSocketConfig {
        dial_timeout: Duration::from_millis(300),
        ..WebSocketConfig::new(endpoint, pki.client())
    };
    // Somebody takes the connection and says nothing; then nobody takes it.
    let silent = WebSocketTransport::new(config(&endpoint)).unwrap();
    let error = timeout(SOON, silent.connect()).await.unwrap().unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
    drop(taken);
    let error = timeout(SOON, silent.connect()).await.unwrap().unwrap_err();
    assert!(matches!(error, TransportError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_long_reason_is_cut_at_a_character() {
    let pki = Pki::new();
    let listener = listener(&pki);
    let transport = transport(&listener, pki.client());
    let (edge, cloud) = tokio::join!(transport.connect(), listener.accept());
    let (edge, cloud) = (edge.unwrap(), cloud.unwrap());
    let reason = "é".repeat(200);
    let (received, ()) = tokio::join!(cloud.recv(), edge.close(&reason));
    assert!(received.unwrap().is_none());
    let error = cloud.send(Lane::Pods, Bytes::new()).await.unwrap_err().to_string();
    assert!(error.contains(&"é".repeat(61)), "{error}");
}
