use std::time::Instant;

use super::{NodeLink, Phase, REPORT_LANES, Sync, object_lane};
use crate::{
    hub::{Frame, Item, Payload, Welcome},
    message::Lane,
};

impl NodeLink {
    /// The next frame to send on `lane`, when the lane is free.
    pub fn poll_transmit(&mut self, lane: Lane, now: Instant) -> Option<Frame> {
        let open = matches!(self.phase, Phase::Open { .. });
        let frame = match lane {
            Lane::Heartbeat => self.session_frame(now),
            Lane::Pods | Lane::Config | Lane::Devices if open => {
                let (seq, event) = self.outgoing[object_lane(lane)?].poll_transmit(now)?;
                let payload = event.map_or(Payload::Skip, Payload::Object);
                Some(Frame::Item(Item { lane, seq, payload }))
            }
            Lane::Bulk if open => self.questions.pop_front(),
            Lane::Pods | Lane::Config | Lane::Devices | Lane::Bulk => None,
        };
        if frame.is_some() {
            self.keepalive.handle_said(now);
        }
        frame
    }

    fn session_frame(&mut self, now: Instant) -> Option<Frame> {
        if let Some(frame) = self.saying.last_words.take() {
            return Some(frame);
        }
        let Phase::Open { nonce, sync, .. } = &mut self.phase else { return None };
        if std::mem::take(&mut self.saying.welcome) {
            let (session, heartbeat) = (self.session, self.config.heartbeat);
            return Some(Frame::Welcome(Welcome { nonce: *nonce, session, heartbeat, certificates: true }));
        }
        if let Some(nonce) = self.saying.pong.take() {
            return Some(Frame::Pong(nonce));
        }
        let due = match sync {
            Sync::Inventory { held, repeat, .. } => {
                repeat.poll(now).then(|| Frame::InventoryRequest { from_part: held.next_part() })
            }
            Sync::Telling { repeat } => repeat.poll(now).then_some(Frame::Synchronized),
            Sync::Snapshot { .. } | Sync::Difference { .. } | Sync::Done => None,
        };
        if due.is_some() {
            return due;
        }
        for (lane, incoming) in REPORT_LANES.iter().zip(&mut self.incoming) {
            if let Some(ack) = incoming.poll_ack(*lane) {
                return Some(Frame::Ack(ack));
            }
        }
        for (lane, incoming) in [(Lane::Bulk, &mut self.uploads), (Lane::Config, &mut self.events)] {
            if let Some(ack) = incoming.poll_ack(lane) {
                return Some(Frame::Ack(ack));
            }
        }
        self.keepalive.poll_ping().map(Frame::Ping)
    }
}
