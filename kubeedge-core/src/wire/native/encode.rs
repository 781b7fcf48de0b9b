use std::time::Duration;

use super::link::{self as pb, frame::Kind, item::Payload as PbPayload};
use crate::{
    hub::{Frame, Payload},
    message::{
        Answer, DeviceReport, InventoryEntry, Lane, LogRequest, Object, ObjectEvent, ObjectRef, PodReport,
        PodState, Query, Report, Request, Response, TunnelRequest, TunnelResponse, TunnelStep, TwinReport,
        TwinValue, Upload, UploadedPublish,
    },
};

pub(super) fn frame(frame: &Frame) -> pb::Frame {
    pb::Frame { kind: Some(kind(frame)), clock_ms: None }
}

fn kind(frame: &Frame) -> Kind {
    match frame {
        Frame::Hello(hello) => Kind::Hello(pb::Hello {
            protocol: hello.protocol,
            node: hello.node.clone(),
            nonce: hello.nonce,
            digest: hello.digest.to_vec().into(),
            objects: hello.objects,
            software: hello.software.clone(),
            tunnels: hello.tunnels,
        }),
        Frame::Welcome(welcome) => Kind::Welcome(pb::Welcome {
            nonce: welcome.nonce,
            session: welcome.session,
            heartbeat_ms: millis(welcome.heartbeat),
            certificates: welcome.certificates,
        }),
        Frame::Refusal { reason, retry_after } => {
            Kind::Refusal(pb::Refusal { reason: reason.clone(), retry_after_ms: millis(*retry_after) })
        }
        Frame::Ping(nonce) => Kind::Ping(pb::Ping { nonce: *nonce }),
        Frame::Pong(nonce) => Kind::Pong(pb::Pong { nonce: *nonce }),
        Frame::Ack(ack) => Kind::Ack(pb::Ack {
            lane: lane(ack.lane).into(),
            upto: ack.upto,
            beyond: ack.beyond.iter().map(|(first, last)| pb::Span { first: *first, last: *last }).collect(),
        }),
        Frame::InventoryRequest { from_part } => {
            Kind::InventoryRequest(pb::InventoryRequest { from_part: *from_part })
        }
        Frame::InventoryPart(part) => Kind::InventoryPart(pb::InventoryPart {
            part: part.part,
            last: part.last,
            entries: part.entries.iter().map(entry).collect(),
        }),
        Frame::Synchronized => Kind::Synchronized(pb::Synchronized {}),
        Frame::Item(item) => Kind::Item(pb::Item { seq: item.seq, payload: Some(payload(&item.payload)) }),
        Frame::Query { id, query } => Kind::Query(pb::Query { id: *id, query: Some(self::query(query)) }),
        Frame::Answer { id, answer } => {
            Kind::Answer(pb::Answer { id: *id, answer: Some(self::answer(answer)) })
        }
        Frame::Request { id, deadline, request } => Kind::Request(pb::Request {
            id: *id,
            deadline_ms: millis(*deadline),
            request: Some(self::request(request)),
        }),
        Frame::Response { id, response } => {
            Kind::Response(pb::Response { id: *id, response: Some(self::response(response)) })
        }
        Frame::Goodbye { reason } => Kind::Goodbye(pb::Goodbye { reason: reason.clone() }),
    }
}

/// 49 days are enough for any of our times.
fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn lane(lane: Lane) -> pb::Lane {
    match lane {
        Lane::Heartbeat => pb::Lane::Heartbeat,
        Lane::Pods => pb::Lane::Pods,
        Lane::Config => pb::Lane::Config,
        Lane::Devices => pb::Lane::Devices,
        Lane::Bulk => pb::Lane::Bulk,
    }
}

fn reference(reference: &ObjectRef) -> pb::ObjectRef {
    pb::ObjectRef {
        api_version: reference.api_version().to_owned(),
        kind: reference.kind().to_owned(),
        namespace: reference.namespace().to_owned(),
        name: reference.name().to_owned(),
    }
}

fn entry(entry: &InventoryEntry) -> pb::InventoryEntry {
    pb::InventoryEntry {
        reference: Some(reference(&entry.reference)),
        uid: entry.uid.as_str().to_owned(),
        resource_version: entry.resource_version.0,
        fingerprint: entry.fingerprint.0,
    }
}

fn object(object: &Object) -> pb::Object {
    pb::Object {
        reference: Some(reference(&object.reference)),
        uid: object.uid.as_str().to_owned(),
        resource_version: object.resource_version.0,
        fingerprint: object.fingerprint.0,
        json: object.json.clone(),
    }
}

fn payload(payload: &Payload) -> PbPayload {
    match payload {
        Payload::Skip => PbPayload::Skip(pb::Skip {}),
        Payload::Object(ObjectEvent::Applied(applied)) => PbPayload::ObjectApplied(object(applied)),
        Payload::Object(ObjectEvent::Deleted { reference: gone, uid }) => {
            PbPayload::ObjectDeleted(pb::ObjectDeleted {
                reference: Some(reference(gone)),
                uid: uid.as_str().to_owned(),
            })
        }
        Payload::Report(Report::Node(node)) => {
            PbPayload::NodeReport(pb::NodeReport { json: node.json.clone() })
        }
        Payload::Report(Report::Pod(pod)) => PbPayload::PodReport(pod_report(pod)),
        Payload::Report(Report::Mirror(mirror)) => PbPayload::MirrorReport(pb::MirrorReport {
            reference: Some(reference(&mirror.reference)),
            pod: mirror.pod.clone(),
        }),
        Payload::Report(Report::Device(device)) => PbPayload::DeviceReport(device_report(device)),
        Payload::Upload(Upload::Publish(UploadedPublish { id, publish })) => {
            PbPayload::Publish(pb::UploadedPublish {
                topic: publish.topic.clone(),
                payload: publish.payload.clone(),
                run: id.run,
                number: id.number,
            })
        }
        Payload::Upload(Upload::Event(event)) => PbPayload::Event(pb::Event { json: event.json.clone() }),
    }
}

fn pod_report(pod: &PodReport) -> pb::PodReport {
    let state = match &pod.state {
        PodState::Status(json) => pb::pod_report::State::Status(json.clone()),
        PodState::Gone => pb::pod_report::State::Gone(pb::Gone {}),
    };
    pb::PodReport {
        reference: Some(reference(&pod.reference)),
        uid: pod.uid.as_str().to_owned(),
        state: Some(state),
    }
}

fn device_report(device: &DeviceReport) -> pb::DeviceReport {
    pb::DeviceReport {
        namespace: device.device.namespace().to_owned(),
        name: device.device.name().to_owned(),
        uid: device.uid.as_str().to_owned(),
        twins: device.twins.iter().map(twin).collect(),
        state: device.state.clone(),
        last_online: device.last_online.clone(),
    }
}

fn twin(twin: &TwinReport) -> pb::Twin {
    pb::Twin {
        property: twin.property.clone(),
        reported: twin.reported.as_ref().map(value),
        observed_desired: twin.observed_desired.as_ref().map(value),
    }
}

fn value(value: &TwinValue) -> pb::TwinValue {
    pb::TwinValue {
        value: value.value.clone(),
        version: value.version,
        timestamp_ms: value.timestamp_ms,
        metadata: pairs(value.metadata.iter()),
    }
}

fn pairs<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<pb::Pair> {
    pairs.map(|(name, value)| pb::Pair { name: name.clone(), value: value.clone() }).collect()
}

fn query(query: &Query) -> pb::query::Query {
    match query {
        Query::Get(wanted) => pb::query::Query::Get(reference(wanted)),
        Query::Token(request) => pb::query::Query::Token(pb::TokenRequest {
            namespace: request.namespace.clone(),
            service_account: request.service_account.clone(),
            pod: request.pod.clone(),
            pod_uid: request.pod_uid.to_string(),
            audience: request.audience.clone(),
            expiration_seconds: request.expiration_seconds,
        }),
        Query::Certificate(request) => {
            pb::query::Query::Certificate(pb::CertificateRequest { pkcs10: request.pkcs10.clone() })
        }
    }
}

fn answer(answer: &Answer) -> pb::answer::Answer {
    match answer {
        Answer::Object(found) => pb::answer::Answer::Object(object(found)),
        Answer::NotFound => pb::answer::Answer::NotFound(pb::NotFound {}),
        Answer::Refused(reason) => pb::answer::Answer::Refused(reason.clone()),
        Answer::Token(token) => pb::answer::Answer::Token(pb::Token {
            token: token.token.clone(),
            expires_at_ms: token.expires_at_ms,
            lifetime_ms: token.lifetime_ms,
        }),
    }
}

fn request(request: &Request) -> pb::request::Request {
    match request {
        Request::Logs(logs) => pb::request::Request::Logs(log_request(logs)),
        Request::Service(service) => pb::request::Request::Service(pb::ServiceRequest {
            port: service.port.into(),
            method: service.method.clone(),
            path: service.path.clone(),
            headers: pairs(service.headers.iter().map(|(name, value)| (name, value))),
            body: service.body.clone(),
        }),
        Request::Publish(publish) => pb::request::Request::Publish(pb::Publish {
            topic: publish.topic.clone(),
            payload: publish.payload.clone(),
        }),
        Request::Tunnel(tunnel) => pb::request::Request::Tunnel(tunnel_request(tunnel)),
    }
}

fn tunnel_request(request: &TunnelRequest) -> pb::TunnelRequest {
    use pb::tunnel_request::Step;
    let step = match &request.step {
        TunnelStep::Open => Step::Open(pb::TunnelOpen {}),
        TunnelStep::Push { offset, data, end, wait } => Step::Push(pb::TunnelPush {
            offset: *offset,
            data: data.clone(),
            end: *end,
            wait_ms: millis(*wait),
        }),
        TunnelStep::Pull { offset, wait } => {
            Step::Pull(pb::TunnelPull { offset: *offset, wait_ms: millis(*wait) })
        }
        TunnelStep::Close => Step::Close(pb::TunnelClose {}),
    };
    pb::TunnelRequest { tunnel: request.tunnel.0, step: Some(step) }
}

fn tunnel_response(response: &TunnelResponse) -> pb::TunnelResponse {
    use pb::tunnel_response::Outcome;
    let outcome = match response {
        TunnelResponse::Taken(taken) => Outcome::Taken(*taken),
        TunnelResponse::Piece { data, end } => {
            Outcome::Piece(pb::TunnelPiece { data: data.clone(), end: *end })
        }
    };
    pb::TunnelResponse { outcome: Some(outcome) }
}

fn log_request(logs: &LogRequest) -> pb::LogRequest {
    pb::LogRequest {
        namespace: logs.namespace.clone(),
        pod: logs.pod.clone(),
        container: logs.container.clone(),
        tail_lines: logs.tail_lines,
        since_ms: logs.since_ms,
        limit_bytes: logs.limit_bytes,
        timestamps: logs.timestamps,
        previous: logs.previous,
        cursor: logs.cursor,
    }
}

fn response(response: &Response) -> pb::response::Response {
    match response {
        Response::Logs(chunk) => pb::response::Response::Logs(pb::LogChunk {
            data: chunk.data.clone(),
            cursor: chunk.cursor,
            end: chunk.end,
            running: chunk.running,
        }),
        Response::Service(service) => pb::response::Response::Service(pb::ServiceResponse {
            status: service.status.into(),
            headers: pairs(service.headers.iter().map(|(name, value)| (name, value))),
            body: service.body.clone(),
        }),
        Response::Published => pb::response::Response::Published(pb::Published {}),
        Response::Tunnel(tunnel) => pb::response::Response::Tunnel(tunnel_response(tunnel)),
        Response::Failed { code, message } => {
            pb::response::Response::Failed(pb::Failure { code: (*code).into(), message: message.clone() })
        }
    }
}
