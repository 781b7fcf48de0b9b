use std::time::{Duration, Instant};

use super::{EdgeLink, EdgeOutput, Phase, object_lane, report_lane};
use crate::{
    hub::{
        Ack, Frame, Item, Payload, Welcome,
        frame::Weight,
        incoming::{OutOfWindow, Seen},
        outgoing::NeverSent,
        timers::{Keepalive, Side},
    },
    message::{Connectivity, Delivered, Delivery, Lane, ObjectEvent, Request, Response},
};

impl EdgeLink {
    /// A frame came from the cloud.
    pub fn handle_frame(&mut self, frame: Frame, now: Instant) {
        if !matches!(self.phase, Phase::Greeting { .. } | Phase::Open { .. }) {
            return;
        }
        self.keepalive.handle_heard(now);
        match frame {
            Frame::Welcome(welcome) => self.handle_welcome(&welcome, now),
            Frame::Refusal { reason, retry_after } => {
                self.end(
                    format!("the cloud refused the session: {reason}"),
                    retry_after.min(REFUSED_MAX),
                    now,
                );
            }
            Frame::Ping(nonce) => self.saying.pong = Some(nonce),
            Frame::Pong(_) => {}
            Frame::Ack(ack) => self.handle_ack(&ack, now),
            Frame::InventoryRequest { from_part } => {
                // Without an inventory the request is a belated copy: the cloud has said that all is in sync.
                let from_part = from_part as usize;
                if from_part == 0
                    || from_part * self.config.inventory_part.max(1) < self.saying.inventory.len()
                {
                    self.saying.next_part = Some(from_part);
                }
            }
            Frame::Synchronized => self.handle_synchronized(),
            Frame::Item(item) => self.handle_item(item, now),
            Frame::Answer { id, answer } => {
                if self.queries.close(id).is_some() {
                    self.outputs.push_back(EdgeOutput::Answered { id, answer });
                }
            }
            Frame::Request { id, deadline, request } => self.handle_request(id, deadline, request, now),
            Frame::Goodbye { reason } => {
                self.end(format!("the cloud ended the session: {reason}"), Duration::ZERO, now);
            }
            Frame::Hello(_) | Frame::InventoryPart(_) | Frame::Query { .. } | Frame::Response { .. } => {
                self.violation(format!("the cloud sent a frame that only edges send: {}", frame.name()), now);
            }
        }
    }

    fn handle_welcome(&mut self, welcome: &Welcome, now: Instant) {
        let Phase::Greeting { since, hello, .. } = &self.phase else { return };
        if hello.nonce != welcome.nonce {
            return;
        }
        self.phase = Phase::Open { since: *since, certificates: welcome.certificates };
        self.keepalive = Keepalive::new(Side::Edge, welcome.heartbeat, now);
        self.outputs.push_back(EdgeOutput::Welcomed { session: welcome.session });
        self.connectivity(Connectivity::Online);
    }

    fn handle_synchronized(&mut self) {
        // A copy that overtook the welcome is passed over: the cloud repeats it until it is answered.
        if matches!(self.phase, Phase::Open { .. }) {
            self.saying.synchronized = true;
            self.saying.inventory = Vec::new();
            self.saying.next_part = None;
            self.connectivity(Connectivity::Synchronized);
        }
    }

    fn handle_ack(&mut self, ack: &Ack, now: Instant) {
        let never_sent = match (report_lane(ack.lane), ack.lane) {
            (Some(lane), _) => self.reports[lane].handle_ack(ack, now).err(),
            (None, Lane::Bulk) => match self.uploads.handle_ack(ack, now) {
                Ok(arrived) => {
                    self.note_uploaded(arrived);
                    None
                }
                Err(never_sent) => Some(never_sent),
            },
            (None, Lane::Config) => self.events.handle_ack(ack, now).err(),
            (None, Lane::Heartbeat | Lane::Pods | Lane::Devices) => Some(NeverSent(ack.upto)),
        };
        if let Some(NeverSent(seq)) = never_sent {
            self.violation(
                format!("the cloud acknowledged item {seq} of {:?}, which was never sent", ack.lane),
                now,
            );
        }
    }

    fn handle_item(&mut self, item: Item, now: Instant) {
        let Some(lane) = object_lane(item.lane) else {
            return self.violation(format!("the cloud sent an item on lane {:?}", item.lane), now);
        };
        match self.incoming[lane].handle_seq(item.seq) {
            Err(OutOfWindow { seq, upto }) => {
                self.violation(format!("item {seq} of {:?} is far beyond {upto}", item.lane), now);
            }
            Ok(Seen::Again) => {}
            Ok(Seen::First) => match item.payload {
                Payload::Skip => self.incoming[lane].skip(item.seq),
                Payload::Object(event) => self.deliver(lane, item.seq, event),
                Payload::Report(_) | Payload::Upload(_) => {
                    self.violation(
                        "the cloud sent what only edges send: a report or an upload".to_owned(),
                        now,
                    );
                }
            },
        }
    }

    fn deliver(&mut self, lane: usize, seq: u64, event: ObjectEvent) {
        self.delivered += 1;
        let delivery = Delivery { session: self.session, number: self.delivered };
        let message = self.meant(event);
        self.incoming[lane].deliver(seq, message.key().clone(), delivery.number, message.weight());
        self.unstored.insert(message.key().clone(), delivery);
        self.outputs.push_back(EdgeOutput::Deliver(Delivered { delivery, message }));
    }

    /// Gives a deletion the UID that the part holds.
    ///
    /// A deletion is the newest that the cloud has under its name. If that name was deleted, made again and deleted
    /// again, the first deletion may have been replaced by the second, whose UID the part has never seen: what
    /// it holds is gone all the same.
    fn meant(&mut self, event: ObjectEvent) -> ObjectEvent {
        match event {
            ObjectEvent::Applied(object) => {
                self.held.insert(object.reference.clone(), object.uid.clone());
                ObjectEvent::Applied(object)
            }
            ObjectEvent::Deleted { reference, uid } => {
                let uid = self.held.remove(&reference).unwrap_or(uid);
                ObjectEvent::Deleted { reference, uid }
            }
        }
    }

    fn handle_request(&mut self, theirs: u64, deadline: Duration, request: Request, now: Instant) {
        let deadline = deadline.min(DEADLINE_MAX);
        // Answers that the lane has not taken yet count as well: they are what needs memory.
        let queued = self.questions.iter().filter(|frame| matches!(frame, Frame::Response { .. })).count();
        if queued >= self.config.requests_max {
            return;
        }
        match self.requests.open(theirs, deadline, now) {
            Some(id) => self.outputs.push_back(EdgeOutput::Ask { id, deadline, request }),
            None => {
                let message = "the node works on too many requests already".to_owned();
                let response = Response::Failed { code: 503, message };
                self.questions.push_back(Frame::Response { id: theirs, response });
            }
        }
    }
}

/// A cloud cannot send a node away for longer.
const REFUSED_MAX: Duration = Duration::from_secs(600);

/// A request of the cloud occupies its place for no longer.
const DEADLINE_MAX: Duration = Duration::from_secs(300);
