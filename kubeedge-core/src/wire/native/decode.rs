use std::time::Duration;

use super::link::{self as pb, frame::Kind, item::Payload as PbPayload};
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
    wire::WireError,
};

pub(super) fn frame(frame: pb::Frame, lane: Lane) -> Result<Frame, WireError> {
    let kind = frame.kind.ok_or(WireError::Unknown { frame: "frame", field: "kind" })?;
    Ok(match kind {
        Kind::Hello(hello) => Frame::Hello(self::hello(hello)?),
        Kind::Welcome(welcome) => Frame::Welcome(Welcome {
            nonce: welcome.nonce,
            session: welcome.session,
            heartbeat: millis(welcome.heartbeat_ms),
            certificates: welcome.certificates,
        }),
        Kind::Refusal(refusal) => {
            Frame::Refusal { reason: refusal.reason, retry_after: millis(refusal.retry_after_ms) }
        }
        Kind::Ping(ping) => Frame::Ping(ping.nonce),
        Kind::Pong(pong) => Frame::Pong(pong.nonce),
        Kind::Ack(ack) => Frame::Ack(self::ack(ack)?),
        Kind::InventoryRequest(request) => Frame::InventoryRequest { from_part: request.from_part },
        Kind::InventoryPart(part) => Frame::InventoryPart(InventoryPart {
            part: part.part,
            last: part.last,
            entries: part.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        }),
        Kind::Synchronized(pb::Synchronized {}) => Frame::Synchronized,
        Kind::Item(item) => Frame::Item(self::item(item, lane)?),
        Kind::Query(query) => Frame::Query { id: query.id, query: self::query(query.query)? },
        Kind::Answer(answer) => Frame::Answer { id: answer.id, answer: self::answer(answer.answer)? },
        Kind::Request(request) => Frame::Request {
            id: request.id,
            deadline: millis(request.deadline_ms),
            request: self::request(request.request)?,
        },
        Kind::Response(response) => {
            Frame::Response { id: response.id, response: self::response(response.response)? }
        }
        Kind::Goodbye(goodbye) => Frame::Goodbye { reason: goodbye.reason },
    })
}

fn millis(number: u32) -> Duration {
    Duration::from_millis(number.into())
}

fn hello(hello: pb::Hello) -> Result<Hello, WireError> {
    let digest = hello.digest.as_ref().try_into().map_err(|_| WireError::Invalid {
        frame: "hello",
        field: "digest",
        why: format!("it has {} bytes instead of 32", hello.digest.len()),
    })?;
    Ok(Hello {
        protocol: hello.protocol,
        node: hello.node,
        nonce: hello.nonce,
        digest,
        objects: hello.objects,
        software: hello.software,
        tunnels: hello.tunnels,
    })
}

fn ack(ack: pb::Ack) -> Result<Ack, WireError> {
    let lane = match pb::Lane::try_from(ack.lane) {
        Ok(pb::Lane::Heartbeat) => Lane::Heartbeat,
        Ok(pb::Lane::Pods) => Lane::Pods,
        Ok(pb::Lane::Config) => Lane::Config,
        Ok(pb::Lane::Devices) => Lane::Devices,
        Ok(pb::Lane::Bulk) => Lane::Bulk,
        Err(_) => return Err(WireError::Unknown { frame: "ack", field: "lane" }),
    };
    let mut after = ack.upto;
    let mut beyond = Vec::with_capacity(ack.beyond.len());
    for span in ack.beyond {
        if span.first <= after || span.last < span.first {
            return Err(WireError::Invalid {
                frame: "ack",
                field: "beyond",
                why: format!("{}..={} after {after} does not ascend", span.first, span.last),
            });
        }
        after = span.last;
        beyond.push((span.first, span.last));
    }
    Ok(Ack { lane, upto: ack.upto, beyond })
}

fn reference(frame: &'static str, reference: Option<pb::ObjectRef>) -> Result<ObjectRef, WireError> {
    let reference = reference.ok_or(WireError::Missing { frame, field: "reference" })?;
    for (field, text) in [
        ("reference.api_version", &reference.api_version),
        ("reference.kind", &reference.kind),
        ("reference.name", &reference.name),
    ] {
        if text.is_empty() {
            return Err(WireError::Missing { frame, field });
        }
    }
    Ok(ObjectRef::new(reference.api_version, reference.kind, reference.namespace, reference.name))
}

fn entry(entry: pb::InventoryEntry) -> Result<InventoryEntry, WireError> {
    Ok(InventoryEntry {
        reference: reference("inventory part", entry.reference)?,
        uid: Uid::new(entry.uid),
        resource_version: ResourceVersion(entry.resource_version),
        fingerprint: Fingerprint(entry.fingerprint),
    })
}

fn object(frame: &'static str, object: pb::Object) -> Result<Object, WireError> {
    Ok(Object {
        reference: reference(frame, object.reference)?,
        uid: Uid::new(object.uid),
        resource_version: ResourceVersion(object.resource_version),
        fingerprint: Fingerprint(object.fingerprint),
        json: object.json,
    })
}

fn item(item: pb::Item, lane: Lane) -> Result<Item, WireError> {
    let payload = item.payload.ok_or(WireError::Unknown { frame: "item", field: "payload" })?;
    let payload = match payload {
        PbPayload::Skip(pb::Skip {}) => Payload::Skip,
        PbPayload::ObjectApplied(applied) => {
            Payload::Object(ObjectEvent::Applied(object("object applied", applied)?))
        }
        PbPayload::ObjectDeleted(deleted) => Payload::Object(ObjectEvent::Deleted {
            reference: reference("object deleted", deleted.reference)?,
            uid: Uid::new(deleted.uid),
        }),
        PbPayload::NodeReport(node) => Payload::Report(Report::Node(NodeReport { json: node.json })),
        PbPayload::PodReport(pod) => Payload::Report(Report::Pod(pod_report(pod)?)),
        PbPayload::MirrorReport(mirror) => Payload::Report(Report::Mirror(MirrorReport {
            reference: reference("mirror report", mirror.reference)?,
            pod: mirror.pod,
        })),
        PbPayload::DeviceReport(device) => Payload::Report(Report::Device(device_report(device)?)),
        PbPayload::Publish(publish) => {
            let id = UploadId { run: publish.run, number: publish.number };
            let publish = Publish { topic: publish.topic, payload: publish.payload };
            Payload::Upload(Upload::Publish(UploadedPublish { id, publish }))
        }
        PbPayload::Event(event) => Payload::Upload(Upload::Event(UploadedEvent { json: event.json })),
    };
    let lane = payload.lane().unwrap_or(lane);
    Ok(Item { lane, seq: item.seq, payload })
}

fn pod_report(pod: pb::PodReport) -> Result<PodReport, WireError> {
    let state = pod.state.ok_or(WireError::Unknown { frame: "pod report", field: "state" })?;
    Ok(PodReport {
        reference: reference("pod report", pod.reference)?,
        uid: Uid::new(pod.uid),
        state: match state {
            pb::pod_report::State::Status(json) => PodState::Status(json),
            pb::pod_report::State::Gone(pb::Gone {}) => PodState::Gone,
        },
    })
}

fn device_report(device: pb::DeviceReport) -> Result<DeviceReport, WireError> {
    let id = DeviceId::new(device.namespace, device.name).map_err(|error| WireError::Invalid {
        frame: "device report",
        field: "name",
        why: error.to_string(),
    })?;
    Ok(DeviceReport {
        device: id,
        uid: Uid::new(device.uid),
        twins: device.twins.into_iter().map(twin).collect(),
        state: device.state,
        last_online: device.last_online,
    })
}

fn twin(twin: pb::Twin) -> TwinReport {
    TwinReport {
        property: twin.property,
        reported: twin.reported.map(value),
        observed_desired: twin.observed_desired.map(value),
    }
}

fn value(value: pb::TwinValue) -> TwinValue {
    TwinValue {
        value: value.value,
        version: value.version,
        timestamp_ms: value.timestamp_ms,
        metadata: value.metadata.into_iter().map(|pair| (pair.name, pair.value)).collect(),
    }
}

fn pairs(pairs: Vec<pb::Pair>) -> Vec<(String, String)> {
    pairs.into_iter().map(|pair| (pair.name, pair.value)).collect()
}

fn query(query: Option<pb::query::Query>) -> Result<Query, WireError> {
    let query = query.ok_or(WireError::Unknown { frame: "query", field: "query" })?;
    Ok(match query {
        pb::query::Query::Get(wanted) => Query::Get(reference("query", Some(wanted))?),
        pb::query::Query::Token(request) => Query::Token(TokenRequest {
            namespace: request.namespace,
            service_account: request.service_account,
            pod: request.pod,
            pod_uid: Uid::new(request.pod_uid),
            audience: request.audience,
            expiration_seconds: request.expiration_seconds,
        }),
        pb::query::Query::Certificate(pb::CertificateRequest { pkcs10 }) => {
            let request = CertificateRequest { pkcs10 };
            if request.is_too_long() {
                let why = format!("it is longer than {} bytes", CertificateRequest::MAX);
                return Err(WireError::Invalid { frame: "query", field: "pkcs10", why });
            }
            Query::Certificate(request)
        }
    })
}

fn answer(answer: Option<pb::answer::Answer>) -> Result<Answer, WireError> {
    let answer = answer.ok_or(WireError::Unknown { frame: "answer", field: "answer" })?;
    Ok(match answer {
        pb::answer::Answer::Object(found) => Answer::Object(object("answer", found)?),
        pb::answer::Answer::NotFound(pb::NotFound {}) => Answer::NotFound,
        pb::answer::Answer::Refused(reason) => Answer::Refused(reason),
        pb::answer::Answer::Token(pb::Token { token, expires_at_ms, lifetime_ms }) => {
            Answer::Token(Token { token, expires_at_ms, lifetime_ms })
        }
    })
}

fn request(request: Option<pb::request::Request>) -> Result<Request, WireError> {
    let request = request.ok_or(WireError::Unknown { frame: "request", field: "request" })?;
    Ok(match request {
        pb::request::Request::Logs(logs) => Request::Logs(LogRequest {
            namespace: logs.namespace,
            pod: logs.pod,
            container: logs.container,
            tail_lines: logs.tail_lines,
            since_ms: logs.since_ms,
            limit_bytes: logs.limit_bytes,
            timestamps: logs.timestamps,
            previous: logs.previous,
            cursor: logs.cursor,
        }),
        pb::request::Request::Service(service) => Request::Service(ServiceRequest {
            port: short("request", "port", service.port)?,
            method: service.method,
            path: service.path,
            headers: pairs(service.headers),
            body: service.body,
        }),
        pb::request::Request::Publish(publish) => {
            Request::Publish(Publish { topic: publish.topic, payload: publish.payload })
        }
        pb::request::Request::Tunnel(tunnel) => Request::Tunnel(tunnel_request(tunnel)?),
    })
}

fn tunnel_request(request: pb::TunnelRequest) -> Result<TunnelRequest, WireError> {
    use pb::tunnel_request::Step;
    let step = request.step.ok_or(WireError::Unknown { frame: "request", field: "tunnel.step" })?;
    let step = match step {
        Step::Open(pb::TunnelOpen {}) => TunnelStep::Open,
        Step::Push(pb::TunnelPush { offset, data, end, wait_ms }) => {
            TunnelStep::Push { offset, data, end, wait: millis(wait_ms) }
        }
        Step::Pull(pb::TunnelPull { offset, wait_ms }) => TunnelStep::Pull { offset, wait: millis(wait_ms) },
        Step::Close(pb::TunnelClose {}) => TunnelStep::Close,
    };
    Ok(TunnelRequest { tunnel: TunnelId(request.tunnel), step })
}

fn tunnel_response(response: pb::TunnelResponse) -> Result<TunnelResponse, WireError> {
    use pb::tunnel_response::Outcome;
    let outcome =
        response.outcome.ok_or(WireError::Unknown { frame: "response", field: "tunnel.outcome" })?;
    Ok(match outcome {
        Outcome::Taken(taken) => TunnelResponse::Taken(taken),
        Outcome::Piece(pb::TunnelPiece { data, end }) => TunnelResponse::Piece { data, end },
    })
}

fn response(response: Option<pb::response::Response>) -> Result<Response, WireError> {
    let response = response.ok_or(WireError::Unknown { frame: "response", field: "response" })?;
    Ok(match response {
        pb::response::Response::Logs(chunk) => Response::Logs(LogChunk {
            data: chunk.data,
            cursor: chunk.cursor,
            end: chunk.end,
            running: chunk.running,
        }),
        pb::response::Response::Service(service) => Response::Service(ServiceResponse {
            status: short("response", "status", service.status)?,
            headers: pairs(service.headers),
            body: service.body,
        }),
        pb::response::Response::Published(pb::Published {}) => Response::Published,
        pb::response::Response::Tunnel(tunnel) => Response::Tunnel(tunnel_response(tunnel)?),
        pb::response::Response::Failed(failure) => {
            Response::Failed { code: short("response", "code", failure.code)?, message: failure.message }
        }
    })
}

fn short(frame: &'static str, field: &'static str, number: u32) -> Result<u16, WireError> {
    u16::try_from(number).map_err(|_| WireError::Invalid {
        frame,
        field,
        why: format!("{number} is over 65535"),
    })
}
