use std::time::Instant;

use super::{
    NodeLink, NodeOutput, Offence, PROTOCOL, Phase, Sync, Wanted, difference::TooMany, object_lane,
    report_lane,
};
use crate::{
    hub::{
        Ack, Frame, Hello, InventoryPart, Item, Payload,
        frame::Weight,
        incoming::{OutOfWindow, Seen},
        outgoing::NeverSent,
        timers::Repeat,
    },
    message::{Answer, Delivered, Delivery, Lane, Query, Report, Upload},
};

impl NodeLink {
    /// A frame came from the edge.
    pub fn handle_frame(&mut self, frame: Frame, now: Instant) {
        match &self.phase {
            Phase::Over => return,
            Phase::Expecting { .. } => match &frame {
                Frame::Hello(_) | Frame::Goodbye { .. } => {}
                Frame::Welcome(_)
                | Frame::Refusal { .. }
                | Frame::Ping(_)
                | Frame::Pong(_)
                | Frame::Ack(_)
                | Frame::InventoryRequest { .. }
                | Frame::InventoryPart(_)
                | Frame::Synchronized
                | Frame::Item(_)
                | Frame::Query { .. }
                | Frame::Answer { .. }
                | Frame::Request { .. }
                | Frame::Response { .. } => {
                    let reason = format!("the edge sent a frame before its hello: {}", frame.name());
                    return self.handle_offence(Offence::Unexpected, reason);
                }
            },
            Phase::Open { .. } => {}
        }
        self.keepalive.handle_heard(now);
        match frame {
            Frame::Hello(hello) => self.handle_hello(&hello),
            Frame::Ping(nonce) => self.saying.pong = Some(nonce),
            Frame::Pong(_) => {}
            Frame::Ack(ack) => self.handle_ack(&ack, now),
            Frame::InventoryPart(part) => self.handle_inventory_part(part, now),
            Frame::Synchronized => {
                if let Phase::Open { sync: sync @ Sync::Telling { .. }, .. } = &mut self.phase {
                    *sync = Sync::Done;
                }
            }
            Frame::Item(item) => self.handle_item(item),
            Frame::Query { id, query } => self.handle_query(id, query, now),
            Frame::Response { id, response } => {
                if self.requests.close(id).is_some() {
                    self.outputs.push_back(NodeOutput::Responded { id, response });
                }
            }
            Frame::Goodbye { reason } => self.end(format!("the edge ended the session: {reason}")),
            Frame::Welcome(_)
            | Frame::Refusal { .. }
            | Frame::InventoryRequest { .. }
            | Frame::Answer { .. }
            | Frame::Request { .. } => {
                let reason = format!("the edge sent a frame that only the cloud sends: {}", frame.name());
                self.handle_offence(Offence::Unexpected, reason);
            }
        }
    }

    fn handle_hello(&mut self, hello: &Hello) {
        if let Phase::Open { nonce, .. } = self.phase {
            // The welcome may have been lost. Another nonce would be another session over the same connection.
            if nonce == hello.nonce {
                self.saying.welcome = true;
            } else {
                self.handle_offence(Offence::Unexpected, "the edge said hello twice");
            }
            return;
        }
        let wrong = if hello.protocol != PROTOCOL {
            Some(format!("the cloud speaks version {PROTOCOL} of the link, and the edge {}", hello.protocol))
        } else if hello.node != self.peer.as_str() {
            self.offence = Some(Offence::OtherName);
            Some(format!("the certificate is of node {}, and the hello says {:?}", self.peer, hello.node))
        } else if hello.objects as usize > self.config.inventory_max {
            self.offence = Some(Offence::TooMuch);
            Some(format!(
                "the cloud takes {} objects of a node, and it holds {}",
                self.config.inventory_max, hello.objects
            ))
        } else {
            None
        };
        if let Some(reason) = wrong {
            return self.handle_refuse(reason, self.config.refused_for);
        }
        let sync = Sync::Snapshot { wanted: Wanted::default() };
        self.phase = Phase::Open {
            nonce: hello.nonce,
            digest: hello.digest,
            objects: hello.objects,
            tunnels: hello.tunnels,
            sync,
        };
        self.saying.welcome = true;
        self.outputs.push_back(NodeOutput::NeedSnapshot);
    }

    fn handle_inventory_part(&mut self, part: InventoryPart, now: Instant) {
        let Phase::Open { objects, sync, .. } = &mut self.phase else { return };
        let Sync::Inventory { wanted, held, repeat } = sync else { return };
        match held.take(part, *objects) {
            Err(TooMany) => {
                self.handle_offence(Offence::TooMuch, "the edge names more objects than its hello said");
            }
            Ok(None) => {}
            Ok(Some(false)) => {
                repeat.put_off(now, self.config.flow.retry_after * 2);
                self.check_memory();
            }
            Ok(Some(true)) => {
                self.left_open = wanted.left_open(held.inventory());
                let difference =
                    std::mem::take(wanted).difference(held.inventory(), &self.config.kinds_left_alone);
                let missing = difference.iter().map(|event| event.key().clone()).collect();
                *sync = Sync::Difference { missing };
                difference.into_iter().for_each(|event| self.send(event));
                self.tell_if_synchronized();
            }
        }
    }

    fn handle_ack(&mut self, ack: &Ack, now: Instant) {
        let acked = match object_lane(ack.lane) {
            Some(lane) => self.outgoing[lane].handle_ack(ack, now),
            None => Err(NeverSent(ack.upto)),
        };
        match acked {
            Ok(arrived) => {
                if let Phase::Open { sync: Sync::Difference { missing }, .. } = &mut self.phase {
                    for key in arrived {
                        missing.remove(&key);
                    }
                    self.tell_if_synchronized();
                }
            }
            Err(NeverSent(seq)) => self.handle_offence(
                Offence::Unexpected,
                format!("the edge acknowledged item {seq} of {:?}, which was never sent", ack.lane),
            ),
        }
    }

    fn tell_if_synchronized(&mut self) {
        if let Phase::Open { sync: sync @ Sync::Difference { .. }, .. } = &mut self.phase
            && matches!(sync, Sync::Difference { missing } if missing.is_empty())
        {
            *sync = Sync::Telling { repeat: Repeat::new(self.config.flow.retry_after) };
            self.outputs.push_back(NodeOutput::Synchronized);
        }
    }

    fn handle_item(&mut self, item: Item) {
        let seen = match (report_lane(item.lane), item.lane) {
            (Some(lane), _) => self.incoming[lane].handle_seq(item.seq),
            (None, Lane::Bulk) => self.uploads.handle_seq(item.seq),
            (None, Lane::Config) => self.events.handle_seq(item.seq),
            (None, Lane::Heartbeat | Lane::Pods | Lane::Devices) => {
                return self.handle_offence(
                    Offence::Unexpected,
                    format!("the edge sent an item on lane {:?}", item.lane),
                );
            }
        };
        match seen {
            Err(OutOfWindow { seq, upto }) => {
                self.handle_offence(
                    Offence::Unexpected,
                    format!("item {seq} of {:?} is far beyond {upto}", item.lane),
                );
            }
            Ok(Seen::Again) => {}
            Ok(Seen::First) if self.unacked() + weight_of(&item.payload) > self.config.unacked_bytes_max => {
                let max = self.config.unacked_bytes_max;
                self.offence = Some(Offence::TooMuch);
                self.handle_refuse(
                    format!("the edge has sent more than {max} bytes that are not acknowledged"),
                    self.config.refused_for,
                );
            }
            Ok(Seen::First) => match item.payload {
                Payload::Skip => match (report_lane(item.lane), item.lane) {
                    (Some(lane), _) => self.incoming[lane].skip(item.seq),
                    (None, Lane::Config) => self.events.skip(item.seq),
                    (None, Lane::Heartbeat | Lane::Pods | Lane::Devices | Lane::Bulk) => {
                        self.uploads.skip(item.seq);
                    }
                },
                Payload::Report(report) => self.deliver_report(item.seq, report),
                Payload::Upload(upload) => self.deliver_upload(item.seq, upload),
                Payload::Object(_) => self.handle_offence(
                    Offence::Unexpected,
                    "the edge sent what only the cloud sends: an object",
                ),
            },
        }
    }

    fn next_delivery(&mut self) -> Delivery {
        self.delivered += 1;
        Delivery { session: self.session, number: self.delivered }
    }

    fn deliver_report(&mut self, seq: u64, message: Report) {
        let delivery = self.next_delivery();
        if let Some(lane) = report_lane(message.lane()) {
            self.incoming[lane].deliver(seq, message.key(), delivery.number, message.weight());
            self.outputs.push_back(NodeOutput::Deliver(Delivered { delivery, message }));
        }
    }

    fn deliver_upload(&mut self, seq: u64, message: Upload) {
        let delivery = self.next_delivery();
        let incoming = match &message {
            Upload::Publish(_) => &mut self.uploads,
            Upload::Event(_) => &mut self.events,
        };
        incoming.deliver(seq, delivery.number, delivery.number, message.weight());
        self.outputs.push_back(NodeOutput::Upload(Delivered { delivery, message }));
    }

    fn handle_query(&mut self, theirs: u64, query: Query, now: Instant) {
        // Answers that the lane has not taken yet count as well: they are what needs memory.
        let queued = self.questions.iter().filter(|frame| matches!(frame, Frame::Answer { .. })).count();
        if queued >= self.config.calls_max {
            return;
        }
        match self.queries.open(theirs, QUERY_TIMEOUT, now) {
            Some(id) => self.outputs.push_back(NodeOutput::Query { id, query }),
            None => {
                let answer = Answer::Refused("the cloud works on too many queries of this node".to_owned());
                self.questions.push_back(Frame::Answer { id: theirs, answer });
            }
        }
    }
}

fn weight_of(payload: &Payload) -> usize {
    match payload {
        Payload::Skip | Payload::Object(_) => 0,
        Payload::Report(report) => report.weight(),
        Payload::Upload(upload) => upload.weight(),
    }
}

/// A query of the edge occupies its place for no longer; edges wait for less.
const QUERY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
