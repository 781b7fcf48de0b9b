//! Nonsense on CloudHub's ports, from strangers and from nodes.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use kubeedge_cloud::pki::Authority;
use kubeedge_core::{
    hub::{Ack, Frame, Item, Payload, Welcome},
    id::{DeviceId, ResourceVersion, Uid},
    message::{
        DeviceReport, Fingerprint, Lane, NodeReport, Object, ObjectEvent, ObjectRef, PodReport, PodState,
        Report, TwinReport, TwinValue,
    },
    transport::TransportError,
    wire::{Codec, Native},
};
use kubeedge_tests::site::Cloud;

use crate::{
    Healthy,
    peer::{Peer, WAYS, Way, authority, client_tls, dial, hello, issue},
};

/// Nothing that looks like anything, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn garbage_on_the_ports_of_the_cloud_is_refused_and_disturbs_nobody() -> Result<()> {
    let mut site = Healthy::start()?;
    let round = |site: &Healthy| -> Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(("127.0.0.1", site.cloud.ports.quic))?;
        for length in (0..1500).step_by(7).chain([9000, 60_000]) {
            let mut datagram = noise(length);
            for first in [0x00, 0x40, 0xc0, 0xff] {
                if let Some(byte) = datagram.first_mut() {
                    *byte = first;
                }
                socket.send(&datagram)?;
            }
        }
        for said in [&noise(100_000)[..], b"GET / HTTP/1.1\r\nHost: cloud\r\n\r\n", &HALF_CLIENT_HELLO, b""] {
            let mut stream = TcpStream::connect(("127.0.0.1", site.cloud.ports.websocket))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            // The cloud may have hung up before it has all.
            let _ = stream.write_all(said).and_then(|()| stream.shutdown(Shutdown::Write));
            let _ = stream.read_to_end(&mut Vec::new());
        }
        Ok(())
    };
    // Two that never end what they have begun; the cloud has to go on beside them.
    let _silent = TcpStream::connect(("127.0.0.1", site.cloud.ports.websocket))?;
    let mut halted = TcpStream::connect(("127.0.0.1", site.cloud.ports.websocket))?;
    halted.write_all(&HALF_CLIENT_HELLO)?;
    round(&site)?;
    let before = site.cloud_memory()?;
    for _ in 0..5 {
        round(&site)?;
    }
    site.cloud_says(&["a connection was refused", "from", "127.0.0.1:", "corrupt message"])?;
    before.has_not_grown()?;
    site.goes_on()
}

/// The first bytes of a TLS record with a ClientHello of which most is missing.
const HALF_CLIENT_HELLO: [u8; 11] = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_the_node_that_it_says_is_refused_with_the_reason() -> Result<()> {
    let mut site = Healthy::start()?;
    let stranger = issue(&Authority::create()?, "edge-1")?;
    let server = authority(&site.cloud)?.issue_server(&["cloud".into()], Duration::from_secs(3600))?;
    for way in WAYS {
        for (issued, wanted) in
            [(Some(&stranger), "invalid peer certificate"), (None, "no certificates"), (Some(&server), "")]
        {
            let refused = dial(way, &site.cloud, client_tls(&site.cloud, issued)?).await;
            let error = refused.err().context("a stranger was let in")?;
            ensure!(matches!(error, TransportError::Refused { .. }), "{way:?}, {wanted}: {error}");
            site.cloud_says(&["a connection was refused", "127.0.0.1:", wanted])?;
        }

        let peer = Peer::dial(way, &site.cloud, "edge-2").await?;
        peer.send(&Frame::Hello(hello("edge-1"))).await?;
        let reason = peer.last_words().await?;
        let wanted = "the certificate is of node edge-2, and the hello says ";
        ensure!(reason == format!("{wanted}{:?}", "edge-1"), "{way:?}: {reason}");
        site.cloud_says(&["edge-2", wanted])?;

        for (wrong, wanted) in [
            (
                Frame::Hello(kubeedge_core::hub::Hello { protocol: 99, ..hello("edge-2") }),
                "version 1 of the link",
            ),
            (Frame::Hello(kubeedge_core::hub::Hello { objects: u32::MAX, ..hello("edge-2") }), "4294967295"),
            (Frame::Ping(1), "before its hello: ping"),
        ] {
            let peer = Peer::dial(way, &site.cloud, "edge-2").await?;
            peer.send(&wrong).await?;
            let reason = peer.last_words().await?;
            ensure!(reason.contains(wanted), "{way:?}: {reason}");
            site.cloud_says(&["edge-2", wanted])?;
        }
    }
    site.goes_on()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_sends_nonsense_loses_its_session_with_the_reason_and_no_other_node_does() -> Result<()> {
    let mut site = Healthy::start()?;
    let mut nonsense: Vec<(Lane, Bytes, String)> = Vec::new();
    for lane in Lane::ALL {
        for length in [1, 1000, lane.frame_limit()] {
            // A tag with a wire type that does not exist comes first, so that no part is a frame by accident.
            let mut bytes = noise(length);
            bytes[0] = 0x0f;
            nonsense.push((lane, bytes.into(), format!("what came on lane {lane:?} is no frame")));
        }
    }
    // Field 99 of the frame, and none at all.
    let kind = "frame: kind is of an unknown kind";
    nonsense.push((Lane::Heartbeat, Bytes::from_static(&[0x98, 0x06, 0x01]), kind.into()));
    nonsense.push((Lane::Bulk, Bytes::new(), kind.into()));
    let pod = ObjectRef::pod("default", "reader");
    let object = Object {
        reference: pod.clone(),
        uid: Uid::new("u"),
        resource_version: ResourceVersion(1),
        fingerprint: Fingerprint(1),
        json: "{}".into(),
    };
    let item = |lane, seq, payload| Frame::Item(Item { lane, seq, payload });
    for (frame, wanted) in [
        (item(Lane::Pods, 1 << 40, Payload::Skip), "item 1099511627776 of Pods is far beyond 0"),
        (item(Lane::Devices, u64::MAX, Payload::Skip), "of Devices is far beyond 0"),
        (item(Lane::Bulk, 0, Payload::Skip), "item 0 of Bulk"),
        (item(Lane::Heartbeat, 1, Payload::Skip), "an item on lane Heartbeat"),
        (
            item(Lane::Pods, 1, Payload::Object(ObjectEvent::Applied(object))),
            "only the cloud sends: an object",
        ),
        (Frame::Ack(Ack { lane: Lane::Config, upto: 1 << 50, beyond: vec![] }), "which was never sent"),
        (
            Frame::Welcome(Welcome { nonce: 1, session: 1, heartbeat: Duration::ZERO, certificates: false }),
            "only the cloud sends: welcome",
        ),
        (Frame::Hello(kubeedge_core::hub::Hello { nonce: 8, ..hello("edge-2") }), "hello twice"),
    ] {
        nonsense.push((frame.lane(), Native.encode(&frame), wanted.to_owned()));
    }
    let wrong_lane = "ping belongs on lane Heartbeat and came on Bulk";
    nonsense.push((Lane::Bulk, Native.encode(&Frame::Ping(1)), wrong_lane.into()));

    let mut before = None;
    for way in WAYS {
        for (lane, bytes, wanted) in &nonsense {
            let peer = Peer::begin(way, &site.cloud, "edge-2").await?;
            peer.send_bytes(*lane, bytes.clone()).await?;
            let reason = peer.last_words().await.with_context(|| format!("{way:?}: {wanted}"))?;
            ensure!(reason.contains(wanted), "{way:?}: {wanted} was expected, and this came: {reason}");
            site.cloud_says(&["the node's session is over", "edge-2", wanted])?;
        }
        if let Some(before) = before.replace(site.cloud_memory()?) {
            crate::Memory::has_not_grown(&before)?;
        }
    }
    too_long_over_quic(&site.cloud).await?;
    site.cloud_says(&["edge-2", "4294967295 bytes is over the limit of 4194304 bytes of lane Pods"])?;
    let cloud = (site.cloud.ports.websocket, websocket_tls(&site.cloud)?);
    tokio::task::spawn_blocking(move || too_long_over_websocket(cloud.0, cloud.1)).await??;
    site.cloud_says(&["edge-2", "1099511627776"])?;
    for offence in ["too-long", "garbled", "unexpected"] {
        let counted = format!("kubeedge_cloudhub_offences_total{{reason=\"{offence}\"}}");
        ensure!(site.cloud.metric(&counted)? > 0, "{offence}");
    }
    site.goes_on()
}

/// Announces 4 GiB on a lane.
async fn too_long_over_quic(cloud: &Cloud) -> Result<()> {
    let mut tls = (*client_tls(cloud, Some(&issue(&authority(cloud)?, "edge-2")?))?).clone();
    tls.alpn_protocols = vec![kubeedge_core::transport::quic::ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into())?;
    let server = ([127, 0, 0, 1], cloud.ports.quic).into();
    let connection =
        endpoint.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), server, "localhost")?.await?;
    let frame = Native.encode(&Frame::Hello(hello("edge-2")));
    let mut heartbeat = connection.open_uni().await?;
    heartbeat.write_all(&[Lane::Heartbeat.index() as u8]).await?;
    heartbeat.write_all(&(frame.len() as u32).to_be_bytes()).await?;
    heartbeat.write_all(&frame).await?;
    // Its session begins before the other lane is opened, because lanes are not in order with each other.
    connection.accept_uni().await?.read_exact(&mut [0; 6]).await?;
    let mut pods = connection.open_uni().await?;
    pods.write_all(&[Lane::Pods.index() as u8, 0xff, 0xff, 0xff, 0xff]).await?;
    let closed = tokio::time::timeout(Duration::from_secs(10), connection.closed()).await?.to_string();
    ensure!(closed.contains("over the limit"), "{closed}");
    Ok(())
}

fn websocket_tls(cloud: &Cloud) -> Result<Arc<rustls::ClientConfig>> {
    client_tls(cloud, Some(&issue(&authority(cloud)?, "edge-2")?))
}

/// Announces a WebSocket message of 1 TiB.
fn too_long_over_websocket(port: u16, tls: Arc<rustls::ClientConfig>) -> Result<()> {
    let tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
    let tls = rustls::ClientConnection::new(tls, "127.0.0.1".try_into()?)?;
    let mut stream = rustls::StreamOwned::new(tls, tcp);
    stream.write_all(
        b"GET / HTTP/1.1\r\nHost: cloud\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: kubeedge.link.v1\r\n\r\n",
    )?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    // RFC 6455 §5.2: a binary frame, masked with zeros, with a length of eight bytes.
    let mut frame = vec![0x82, 0x80 | 127];
    frame.extend((1_u64 << 40).to_be_bytes());
    frame.extend([0; 4]);
    stream.write_all(&frame)?;
    // The cloud hangs up, with or without a farewell.
    let _ = stream.read_to_end(&mut Vec::new());
    Ok(())
}

const OF_EDGE_2: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: of-edge-2, namespace: default}
spec:
  nodeName: edge-2
  containers: [{name: main, image: none, command: [sleep, "1"]}]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_reports_of_others_or_half_changes_nothing() -> Result<()> {
    let mut site = Healthy::start()?;
    site.cloud.apply(OF_EDGE_2)?;
    let get = |what: &[&str]| site.cloud.kubectl(&[&["get", "-o"], what].concat());
    let uid = |kind: &str, name: &str| -> Result<Uid> {
        Ok(Uid::new(get(&["jsonpath={.metadata.uid}", kind, name])?))
    };
    let (reader, own, room) = (uid("pod", "reader")?, uid("pod", "of-edge-2")?, uid("device", "room")?);
    let seen =
        |what: &str| get(&["jsonpath={.metadata.uid} {.metadata.deletionTimestamp} {.status}", "pod", what]);
    let untouched = (seen("reader")?, seen("of-edge-2")?);

    let peer = Peer::begin(Way::Quic, &site.cloud, "edge-2").await?;
    let failed = Bytes::from_static(br#"{"phase":"Failed","message":"edge-2 says so"}"#);
    let half = Bytes::from_static(br#"{"phase":"Failed","mess"#);
    let list = Bytes::from_static(br#"[["phase","Failed"]]"#);
    let pod = |name: &str, uid: &Uid, state| {
        let reference = ObjectRef::pod("default", name);
        Report::Pod(PodReport { reference, uid: uid.clone(), state })
    };
    let value = TwinValue { value: "666".into(), version: 1 << 60, timestamp_ms: 1, ..TwinValue::default() };
    let twins =
        vec![TwinReport { property: "setpoint".into(), reported: Some(value), observed_desired: None }];
    let device = DeviceReport {
        device: "default/room".parse::<DeviceId>()?,
        uid: room,
        twins,
        state: Some("offline".into()),
        last_online: None,
    };
    let node = |text: &str| Report::Node(NodeReport { json: text.to_owned().into() });
    // A report of one key takes the place of an earlier one that still waits, so each is awaited.
    let mut next = std::collections::BTreeMap::new();
    for (report, wanted) in [
        (pod("reader", &reader, PodState::Status(failed.clone())), "the pod is on another node"),
        (pod("reader", &reader, PodState::Gone), "the pod is on another node"),
        (pod("of-edge-2", &own, PodState::Status(half)), "its status is no JSON object: EOF"),
        (pod("of-edge-2", &own, PodState::Status(list)), "its status is no JSON object"),
        (pod("of-edge-2", &reader, PodState::Status(failed)), ""),
        (pod("never-was", &own, PodState::Gone), ""),
        (Report::Device(device), "the device is on another node"),
        (node(r#"{"metadata":{"name":"edge-1"},"status":{"phase":"Terminated"}}"#), "it is another node"),
        (node(r#"{"metadata":{"na"#), "it cannot be read"),
        (node("[1]"), "it cannot be read"),
    ] {
        let lane = report.lane();
        let seq = next.entry(lane).or_insert(0_u64);
        *seq += 1;
        peer.send(&Frame::Item(Item { lane, seq: *seq, payload: Payload::Report(report) })).await?;
        site.cloud_says(&["edge-2", wanted])?;
        // The cloud acknowledges it: sending it again would help nobody.
        let seq = *seq;
        loop {
            let frame = peer.next().await?.context("the session is over")?;
            if matches!(frame, Frame::Ack(ack) if ack.lane == lane && ack.upto >= seq) {
                break;
            }
        }
    }
    assert_eq!((seen("reader")?, seen("of-edge-2")?), untouched);
    assert_ne!(site.device_value("room")?, "666");
    site.goes_on()
}
