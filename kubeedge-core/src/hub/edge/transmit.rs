use std::time::Instant;

use super::{EdgeLink, OBJECT_LANES, Phase, report_lane};
use crate::{
    hub::{Frame, InventoryPart, Item, Payload},
    message::{Lane, Upload},
};

impl EdgeLink {
    /// The next frame to send on `lane`, when the lane is free.
    pub fn poll_transmit(&mut self, lane: Lane, now: Instant) -> Option<Frame> {
        let open = matches!(self.phase, Phase::Open { .. });
        let frame = match lane {
            Lane::Heartbeat => self.session_frame(now),
            Lane::Config if open => match self.inventory_part() {
                Some(part) => Some(part),
                None => {
                    let (seq, event) = self.events.poll_transmit(now)?;
                    let payload = event.map_or(Payload::Skip, |event| Payload::Upload(Upload::Event(event)));
                    Some(Frame::Item(Item { lane, seq, payload }))
                }
            },
            Lane::Pods | Lane::Devices if open => {
                let (seq, report) = self.reports[report_lane(lane)?].poll_transmit(now)?;
                let payload = report.map_or(Payload::Skip, Payload::Report);
                Some(Frame::Item(Item { lane, seq, payload }))
            }
            Lane::Bulk if open => match self.questions.pop_front() {
                Some(frame) => Some(frame),
                None => {
                    let (seq, upload) = self.uploads.poll_transmit(now)?;
                    let payload = upload.map_or(Payload::Skip, Payload::Upload);
                    Some(Frame::Item(Item { lane, seq, payload }))
                }
            },
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
        match &mut self.phase {
            Phase::Greeting { hello, repeat, .. } => repeat.poll(now).then(|| Frame::Hello(hello.clone())),
            Phase::Open { .. } => {
                if let Some(nonce) = self.saying.pong.take() {
                    return Some(Frame::Pong(nonce));
                }
                if std::mem::take(&mut self.saying.synchronized) {
                    return Some(Frame::Synchronized);
                }
                let acks = OBJECT_LANES.iter().zip(&mut self.incoming);
                for (lane, incoming) in acks {
                    if let Some(ack) = incoming.poll_ack(*lane) {
                        return Some(Frame::Ack(ack));
                    }
                }
                self.keepalive.poll_ping().map(Frame::Ping)
            }
            Phase::Pausing { .. }
            | Phase::Dialling
            | Phase::Settling { .. }
            | Phase::TakingStock { .. }
            | Phase::Stopped => None,
        }
    }

    fn inventory_part(&mut self) -> Option<Frame> {
        let part = self.saying.next_part?;
        let size = self.config.inventory_part.max(1);
        let rest = self.saying.inventory.get(part * size..).unwrap_or_default();
        let last = rest.len() <= size;
        self.saying.next_part = (!last).then_some(part + 1);
        Some(Frame::InventoryPart(InventoryPart {
            part: u32::try_from(part).ok()?,
            last,
            entries: rest[..rest.len().min(size)].to_vec(),
        }))
    }
}
