use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;

use super::{Codec, Native, WireError, link as pb};
use crate::{
    hub::{Ack, Frame, Hello, InventoryPart, Item, Payload, Welcome},
    id::{DeviceId, ResourceVersion, Uid},
    message::{
        Answer, CertificateRequest, DeviceReport, Fingerprint, InventoryEntry, Lane, LogChunk, LogRequest,
        MirrorReport, NodeReport, Object, ObjectEvent, ObjectRef, PodReport, PodState, Publish, Query,
        Report, Request, Response, ServiceRequest, ServiceResponse, Token, TokenRequest, TunnelId,
        TunnelRequest, TunnelResponse, TunnelStep, TwinReport, TwinValue, Upload, UploadId, UploadedEvent,
        UploadedPublish,
    },
};

fn name() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9-]{0,20}[a-z0-9])?"
}

fn reference() -> impl Strategy<Value = ObjectRef> {
    prop_oneof![
        (name(), name()).prop_map(|(namespace, name)| ObjectRef::pod(namespace, name)),
        (name(), name()).prop_map(|(namespace, name)| ObjectRef::config_map(namespace, name)),
        name().prop_map(ObjectRef::node),
        device().prop_map(|device| ObjectRef::device(&device)),
        ("[a-z./0-9]{1,9}", "[A-Z][a-z]{1,9}", "[a-z]{0,9}", name())
            .prop_map(|(api, kind, namespace, name)| ObjectRef::new(api, kind, namespace, name)),
    ]
}

fn device() -> impl Strategy<Value = DeviceId> {
    (name(), name()).prop_map(|(namespace, name)| DeviceId::new(namespace, name).unwrap())
}

fn body() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
}

fn uid() -> impl Strategy<Value = Uid> {
    any::<String>().prop_map(Uid::new)
}

fn entry() -> impl Strategy<Value = InventoryEntry> {
    (reference(), uid(), any::<u64>(), any::<u64>()).prop_map(|(reference, uid, version, fingerprint)| {
        let (resource_version, fingerprint) = (ResourceVersion(version), Fingerprint(fingerprint));
        InventoryEntry { reference, uid, resource_version, fingerprint }
    })
}

fn object() -> impl Strategy<Value = Object> {
    (entry(), body()).prop_map(|(entry, json)| Object {
        reference: entry.reference,
        uid: entry.uid,
        resource_version: entry.resource_version,
        fingerprint: entry.fingerprint,
        json,
    })
}

fn twin_value() -> impl Strategy<Value = TwinValue> {
    let metadata = proptest::collection::btree_map(any::<String>(), any::<String>(), 0..3);
    (any::<String>(), any::<u64>(), any::<u64>(), metadata).prop_map(
        |(value, version, timestamp_ms, metadata): (_, _, _, BTreeMap<_, _>)| TwinValue {
            value,
            version,
            timestamp_ms,
            metadata,
        },
    )
}

fn device_report() -> impl Strategy<Value = DeviceReport> {
    let twin =
        (any::<String>(), proptest::option::of(twin_value()), proptest::option::of(twin_value())).prop_map(
            |(property, reported, observed_desired)| TwinReport { property, reported, observed_desired },
        );
    let texts = (proptest::option::of(any::<String>()), proptest::option::of(any::<String>()));
    (device(), uid(), proptest::collection::vec(twin, 0..3), texts).prop_map(
        |(device, uid, twins, (state, last_online))| DeviceReport { device, uid, twins, state, last_online },
    )
}

fn publish() -> impl Strategy<Value = Publish> {
    (any::<String>(), body()).prop_map(|(topic, payload)| Publish { topic, payload })
}

fn payload() -> impl Strategy<Value = Payload> {
    let pod_state = prop_oneof![body().prop_map(PodState::Status), Just(PodState::Gone)];
    prop_oneof![
        object().prop_map(|object| Payload::Object(ObjectEvent::Applied(object))),
        (reference(), uid())
            .prop_map(|(reference, uid)| Payload::Object(ObjectEvent::Deleted { reference, uid })),
        body().prop_map(|json| Payload::Report(Report::Node(NodeReport { json }))),
        (reference(), uid(), pod_state)
            .prop_map(|(reference, uid, state)| PodReport { reference, uid, state })
            .prop_map(|pod| Payload::Report(Report::Pod(pod))),
        (reference(), proptest::option::of(body()))
            .prop_map(|(reference, pod)| Payload::Report(Report::Mirror(MirrorReport { reference, pod }))),
        device_report().prop_map(|report| Payload::Report(Report::Device(report))),
        (publish(), any::<u64>(), any::<u64>()).prop_map(|(publish, run, number)| {
            Payload::Upload(Upload::Publish(UploadedPublish { id: UploadId { run, number }, publish }))
        }),
        body().prop_map(|json| Payload::Upload(Upload::Event(UploadedEvent { json }))),
    ]
}

fn lane() -> impl Strategy<Value = Lane> {
    (0..Lane::ALL.len()).prop_map(|index| Lane::ALL[index])
}

fn item() -> impl Strategy<Value = Item> {
    let full = (payload(), any::<u64>()).prop_map(|(payload, seq)| {
        let lane = payload.lane().unwrap();
        Item { lane, seq, payload }
    });
    let skip = (lane(), any::<u64>()).prop_map(|(lane, seq)| Item { lane, seq, payload: Payload::Skip });
    prop_oneof![4 => full, 1 => skip]
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    proptest::collection::vec((any::<String>(), any::<String>()), 0..3)
}

fn request() -> impl Strategy<Value = Request> {
    let number = || proptest::option::of(any::<u64>());
    let logs = (name(), name(), name(), (number(), number(), number(), number()), any::<(bool, bool)>())
        .prop_map(|(namespace, pod, container, numbers, (timestamps, previous))| {
            let (tail_lines, since_ms, limit_bytes, cursor) = numbers;
            LogRequest {
                namespace,
                pod,
                container,
                tail_lines,
                since_ms,
                limit_bytes,
                timestamps,
                previous,
                cursor,
            }
        });
    let service = (any::<u16>(), any::<String>(), any::<String>(), headers(), body())
        .prop_map(|(port, method, path, headers, body)| ServiceRequest { port, method, path, headers, body });
    let tunnel = (any::<u64>(), tunnel_step())
        .prop_map(|(tunnel, step)| TunnelRequest { tunnel: TunnelId(tunnel), step });
    prop_oneof![
        logs.prop_map(Request::Logs),
        service.prop_map(Request::Service),
        tunnel.prop_map(Request::Tunnel),
    ]
}

fn tunnel_step() -> impl Strategy<Value = TunnelStep> {
    prop_oneof![
        Just(TunnelStep::Open),
        (any::<u64>(), body(), any::<bool>(), time())
            .prop_map(|(offset, data, end, wait)| TunnelStep::Push { offset, data, end, wait }),
        (any::<u64>(), time()).prop_map(|(offset, wait)| TunnelStep::Pull { offset, wait }),
        Just(TunnelStep::Close),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    let logs = (body(), any::<(u64, bool, bool)>()).prop_map(|(data, (cursor, end, running))| LogChunk {
        data,
        cursor,
        end,
        running,
    });
    let service = (any::<u16>(), headers(), body()).prop_map(|(status, headers, body)| ServiceResponse {
        status,
        headers,
        body,
    });
    prop_oneof![
        logs.prop_map(Response::Logs),
        service.prop_map(Response::Service),
        Just(Response::Published),
        any::<u64>().prop_map(|taken| Response::Tunnel(TunnelResponse::Taken(taken))),
        (body(), any::<bool>()).prop_map(|(data, end)| Response::Tunnel(TunnelResponse::Piece { data, end })),
        (any::<u16>(), any::<String>()).prop_map(|(code, message)| Response::Failed { code, message }),
    ]
}

fn time() -> impl Strategy<Value = Duration> {
    any::<u32>().prop_map(|millis| Duration::from_millis(millis.into()))
}

fn ack() -> impl Strategy<Value = Ack> {
    let gaps = proptest::collection::vec((1..1000u64, 0..1000u64), 0..5);
    (lane(), 0..u64::MAX / 2, gaps).prop_map(|(lane, upto, gaps)| {
        let mut after = upto;
        let spans = gaps.into_iter().map(|(gap, length)| {
            let span = (after + gap, after + gap + length);
            after = span.1;
            span
        });
        Ack { lane, upto, beyond: spans.collect() }
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    let hello = (
        any::<u32>(),
        any::<String>(),
        any::<u64>(),
        any::<[u8; 32]>(),
        any::<u32>(),
        any::<String>(),
        any::<bool>(),
    );
    let answer = prop_oneof![
        object().prop_map(Answer::Object),
        Just(Answer::NotFound),
        any::<String>().prop_map(Answer::Refused),
        (any::<String>(), any::<u64>(), any::<u64>()).prop_map(|(token, expires_at_ms, lifetime_ms)| {
            Answer::Token(Token { token, expires_at_ms, lifetime_ms })
        }),
    ];
    let token = (any::<[String; 5]>(), any::<u64>()).prop_map(|(text, expiration_seconds)| {
        let [namespace, service_account, pod, uid, audience] = text;
        let pod_uid = Uid::new(uid);
        Query::Token(TokenRequest { namespace, service_account, pod, pod_uid, audience, expiration_seconds })
    });
    let certificate = body().prop_map(|pkcs10| Query::Certificate(CertificateRequest { pkcs10 }));
    let query = prop_oneof![reference().prop_map(Query::Get), token, certificate];
    let entries = proptest::collection::vec(entry(), 0..4);
    prop_oneof![
        hello.prop_map(|(protocol, node, nonce, digest, objects, software, tunnels)| {
            Frame::Hello(Hello { protocol, node, nonce, digest, objects, software, tunnels })
        }),
        (any::<u64>(), any::<u64>(), time(), any::<bool>()).prop_map(
            |(nonce, session, heartbeat, certificates)| Frame::Welcome(Welcome {
                nonce,
                session,
                heartbeat,
                certificates
            })
        ),
        (any::<String>(), time()).prop_map(|(reason, retry_after)| Frame::Refusal { reason, retry_after }),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        ack().prop_map(Frame::Ack),
        any::<u32>().prop_map(|from_part| Frame::InventoryRequest { from_part }),
        (any::<u32>(), any::<bool>(), entries)
            .prop_map(|(part, last, entries)| Frame::InventoryPart(InventoryPart { part, last, entries })),
        Just(Frame::Synchronized),
        item().prop_map(Frame::Item),
        (any::<u64>(), query).prop_map(|(id, query)| Frame::Query { id, query }),
        (any::<u64>(), answer).prop_map(|(id, answer)| Frame::Answer { id, answer }),
        (any::<u64>(), time(), request()).prop_map(|(id, deadline, request)| Frame::Request {
            id,
            deadline,
            request
        }),
        (any::<u64>(), response()).prop_map(|(id, response)| Frame::Response { id, response }),
        any::<String>().prop_map(|reason| Frame::Goodbye { reason }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn every_frame_reads_back_as_it_was_written(frame in frame()) {
        let bytes = Native.encode(&frame);
        prop_assert_eq!(Native.decode(frame.lane(), &bytes), Ok(frame));
    }

    #[test]
    fn garbage_is_an_error_or_a_frame_and_never_a_panic(
        garbage in proptest::collection::vec(any::<u8>(), 0..200),
        lane in lane(),
    ) {
        let _ = Native.decode(lane, &garbage.into());
    }

    #[test]
    fn a_damaged_frame_is_an_error_or_a_frame_and_never_a_panic(
        frame in frame(),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Native.encode(&frame).to_vec();
        if !bytes.is_empty() {
            let place = place.index(bytes.len());
            bytes[place] = byte;
            bytes.truncate(keep.index(bytes.len()) + 1);
        }
        let _ = Native.decode(frame.lane(), &bytes.into());
    }
}

#[test]
fn the_json_of_an_object_is_a_slice_of_the_frame_and_no_copy() {
    let json = Bytes::from(vec![b'x'; 1000]);
    let object = Object {
        reference: ObjectRef::pod("default", "a"),
        uid: Uid::new("u"),
        resource_version: ResourceVersion(1),
        fingerprint: Fingerprint(1),
        json,
    };
    let payload = Payload::Object(ObjectEvent::Applied(object));
    let bytes = Native.encode(&Frame::Item(Item { lane: Lane::Pods, seq: 1, payload }));
    let Frame::Item(Item { payload: Payload::Object(ObjectEvent::Applied(read)), .. }) =
        Native.decode(Lane::Pods, &bytes).unwrap()
    else {
        panic!("another frame");
    };
    assert!(bytes.as_ptr_range().contains(&read.json.as_ptr()));
}

#[test]
fn a_frame_or_payload_of_a_newer_software_is_named_as_unknown() {
    // Field 99, a message without content: a frame kind that does not exist.
    let newer = Bytes::from_static(&[0x9a, 0x06, 0x00]);
    let error = Native.decode(Lane::Heartbeat, &newer).unwrap_err();
    assert_eq!(error, WireError::Unknown { frame: "frame", field: "kind" });
    let item = pb::frame::Kind::Item(pb::Item { seq: 7, payload: None });
    let item = Bytes::from(pb::Frame { kind: Some(item), clock_ms: None }.encode_to_vec());
    let error = Native.decode(Lane::Pods, &item).unwrap_err();
    assert_eq!(
        error.to_string(),
        "item: payload is of an unknown kind; the peer may be newer than this software"
    );
    let ack = pb::frame::Kind::Ack(pb::Ack { lane: 9, upto: 0, beyond: Vec::new() });
    let ack = Bytes::from(pb::Frame { kind: Some(ack), clock_ms: None }.encode_to_vec());
    assert_eq!(Native.decode(Lane::Heartbeat, &ack), Err(WireError::Unknown { frame: "ack", field: "lane" }));
}

#[test]
fn a_frame_on_another_lane_than_its_own_is_refused() {
    let error = Native.decode(Lane::Bulk, &Native.encode(&Frame::Ping(1))).unwrap_err();
    assert_eq!(error.to_string(), "ping belongs on lane Heartbeat and came on Bulk");
}

#[test]
fn an_object_without_a_name_is_refused_with_the_field() {
    let applied = pb::Object { reference: Some(pb::ObjectRef::default()), ..pb::Object::default() };
    let item = pb::Item { seq: 1, payload: Some(pb::item::Payload::ObjectApplied(applied)) };
    let bytes =
        Bytes::from(pb::Frame { kind: Some(pb::frame::Kind::Item(item)), clock_ms: None }.encode_to_vec());
    let error = Native.decode(Lane::Config, &bytes).unwrap_err();
    assert_eq!(error, WireError::Missing { frame: "object applied", field: "reference.api_version" });
}

#[test]
fn an_acknowledgement_whose_spans_do_not_ascend_is_refused() {
    let beyond = vec![pb::Span { first: 5, last: 4 }];
    let ack = pb::frame::Kind::Ack(pb::Ack { lane: 1, upto: 3, beyond });
    let bytes = Bytes::from(pb::Frame { kind: Some(ack), clock_ms: None }.encode_to_vec());
    assert!(matches!(
        Native.decode(Lane::Heartbeat, &bytes),
        Err(WireError::Invalid { frame: "ack", field: "beyond", .. })
    ));
}

#[test]
fn a_request_for_a_certificate_has_a_bound_and_one_of_that_length_is_read() {
    let read = |length: usize| {
        let query = Query::Certificate(CertificateRequest { pkcs10: vec![0x30; length].into() });
        Native.decode(Lane::Bulk, &Native.encode(&Frame::Query { id: 1, query }))
    };
    assert!(read(CertificateRequest::MAX).is_ok());
    assert!(matches!(
        read(CertificateRequest::MAX + 1),
        Err(WireError::Invalid { frame: "query", field: "pkcs10", .. })
    ));
}

#[test]
fn a_list_longer_than_any_honest_peer_sends_is_refused_before_it_is_read() {
    let list = |frame: pb::frame::Kind, lane| {
        let bytes = pb::Frame { kind: Some(frame), clock_ms: None }.encode_to_vec().into();
        Native.decode(lane, &bytes).unwrap_err().to_string()
    };
    let entries = vec![pb::InventoryEntry::default(); 8193];
    let part = pb::frame::Kind::InventoryPart(pb::InventoryPart { part: 0, last: true, entries });
    assert_eq!(list(part, Lane::Config), "inventory part: entries is wrong: there are more than 8192");
    let metadata = vec![pb::Pair::default(); 4000];
    let value = pb::TwinValue { metadata, ..pb::TwinValue::default() };
    let twin = pb::Twin { reported: Some(value), ..pb::Twin::default() };
    let report = pb::DeviceReport { twins: vec![twin; 9], ..pb::DeviceReport::default() };
    let item = pb::Item { seq: 1, payload: Some(pb::item::Payload::DeviceReport(report)) };
    let item = pb::frame::Kind::Item(item);
    assert_eq!(
        list(item, Lane::Devices),
        "device report: reported.metadata is wrong: there are more than 32768"
    );
    let headers = vec![pb::Pair::default(); 1025];
    let service = pb::ServiceResponse { headers, ..pb::ServiceResponse::default() };
    let response = Some(pb::response::Response::Service(service));
    let response = pb::frame::Kind::Response(pb::Response { id: 1, response });
    assert_eq!(list(response, Lane::Bulk), "response: headers is wrong: there are more than 1024");
}

#[test]
fn a_clock_goes_with_a_frame_and_whoever_does_not_look_for_it_reads_the_frame_alone() {
    for frame in [Frame::Synchronized, Frame::Ping(7)] {
        let bytes = Native.encode_with_clock(&frame, 1_700_000_000_123);
        assert_eq!(Native.decode(Lane::Heartbeat, &bytes).unwrap(), frame);
        assert_eq!(Native.clock(&bytes), Some(1_700_000_000_123));
        assert_eq!(Native.clock(&Native.encode(&frame)), None);
        assert_eq!(bytes.len(), Native.encode(&frame).len() + 8, "it is a field more");
    }
    assert_eq!(Native.clock(&Bytes::from_static(b"\xff\xff")), None);
}
