//! What is to be done with one connection of the cloud, and what its steps are answered. Pure.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use kubeedge_core::message::{Response, TunnelResponse, TunnelStep};

use super::failed;

/// One connection. `C` is where the answer to a step goes.
///
/// Both directions count their bytes, so a step that comes again does nothing twice. Of what comes from the cloud the
/// rest of one push is kept, of what goes there one piece, until the cloud has it.
#[derive(Debug)]
pub(super) struct Tunnel<C> {
    idle: Duration,
    ends_at: Instant,
    over: bool,
    answers: VecDeque<(C, Response)>,
    /// Bytes of the cloud that the connection has taken, or will never take.
    taken: u64,
    push: Option<Push<C>>,
    mouth: Mouth,
    /// The place of `piece` in all that the connection has said.
    begins: u64,
    piece: BytesMut,
    ended: bool,
    pull: Option<(C, Instant)>,
}

/// How far the direction to the connection is.
#[derive(Debug, PartialEq, Eq)]
enum Mouth {
    /// More may come.
    Open,
    /// The cloud has said all: the connection is to be told.
    Closing,
    /// The connection takes no more. What comes all the same is passed over, so that its last words still arrive.
    Closed,
}

#[derive(Debug)]
struct Push<C> {
    from: C,
    rest: Bytes,
    end: bool,
    until: Instant,
}

impl<C> Tunnel<C> {
    /// A connection that has just been opened, and ends if nothing is asked of it for as long as `idle`.
    pub(super) fn new(idle: Duration, now: Instant) -> Self {
        Self {
            idle,
            ends_at: now + idle,
            over: false,
            answers: VecDeque::new(),
            taken: 0,
            push: None,
            mouth: Mouth::Open,
            begins: 0,
            piece: BytesMut::new(),
            ended: false,
            pull: None,
        }
    }

    /// The cloud asks for a step.
    pub(super) fn handle_step(&mut self, from: C, step: TunnelStep, now: Instant) {
        self.ends_at = now + self.idle;
        match step {
            TunnelStep::Open => self.refuse(from, 409, "the tunnel is open already"),
            TunnelStep::Push { offset, data, end, wait } => {
                let until = now + wait.min(self.idle);
                self.handle_push(offset, Push { from, rest: data, end, until });
            }
            TunnelStep::Pull { offset, wait } => self.handle_pull(from, offset, now + wait.min(self.idle)),
            TunnelStep::Close => {
                self.answer(from, TunnelResponse::Taken(0));
                self.over = true;
            }
        }
    }

    fn handle_push(&mut self, offset: u64, mut push: Push<C>) {
        if push.rest.len() > TunnelStep::DATA_MAX {
            return self.refuse(push.from, 400, "more bytes than one push may have");
        }
        let Some(known) = self.taken.checked_sub(offset) else {
            let why = format!("bytes are missing: {} have come, and these follow {offset}", self.taken);
            return self.refuse(push.from, 409, why);
        };
        push.rest.advance(usize::try_from(known).unwrap_or(usize::MAX).min(push.rest.len()));
        // One that comes while another is at work repeats it.
        if let Some(earlier) = self.push.take() {
            self.answer(earlier.from, TunnelResponse::Taken(self.taken));
        }
        self.push = Some(push);
        self.settle_push();
    }

    /// Answers the push if nothing of it is left to be written.
    fn settle_push(&mut self) {
        let Some(mut push) = self.push.take() else { return };
        if self.mouth != Mouth::Open {
            self.taken += push.rest.len() as u64;
            push.rest.clear();
        }
        if !push.rest.is_empty() {
            self.push = Some(push);
            return;
        }
        if push.end && self.mouth == Mouth::Open {
            self.mouth = Mouth::Closing;
        }
        self.answer(push.from, TunnelResponse::Taken(self.taken));
    }

    fn handle_pull(&mut self, from: C, offset: u64, until: Instant) {
        let known = offset.checked_sub(self.begins).and_then(|known| usize::try_from(known).ok());
        let Some(known) = known.filter(|known| *known <= self.piece.len()) else {
            let end = self.begins + self.piece.len() as u64;
            let why =
                format!("the node has bytes {} to {end}, and is asked for those from {offset}", self.begins);
            return self.refuse(from, 409, why);
        };
        self.piece.advance(known);
        self.begins = offset;
        if let Some((earlier, _)) = self.pull.replace((from, until)) {
            self.answer(earlier, TunnelResponse::Piece { data: Bytes::new(), end: false });
        }
        self.settle_pull();
    }

    /// Answers the pull if there is something to say.
    fn settle_pull(&mut self) {
        if (self.ended || !self.piece.is_empty())
            && let Some((from, _)) = self.pull.take()
        {
            let piece = TunnelResponse::Piece { data: Bytes::copy_from_slice(&self.piece), end: self.ended };
            self.answer(from, piece);
        }
    }

    /// What is to be written next; empty if nothing is.
    pub(super) fn to_write(&self) -> Bytes {
        self.push.as_ref().map(|push| push.rest.clone()).unwrap_or_default()
    }

    /// The connection has taken so many bytes.
    pub(super) fn handle_written(&mut self, count: usize) {
        if let Some(push) = &mut self.push {
            let count = count.min(push.rest.len());
            push.rest.advance(count);
            self.taken += count as u64;
        }
        self.settle_push();
    }

    /// Whether the connection is to be told that no more comes.
    pub(super) fn wants_shutdown(&self) -> bool {
        self.mouth == Mouth::Closing
    }

    /// The connection takes no more, because it was told so or because it is gone.
    pub(super) fn handle_deaf(&mut self) {
        self.mouth = Mouth::Closed;
        self.settle_push();
    }

    /// How many bytes may be read from the connection.
    pub(super) fn room(&self) -> usize {
        if self.ended { 0 } else { TunnelStep::DATA_MAX.saturating_sub(self.piece.len()) }
    }

    /// The connection has said this; nothing means that it has said all.
    pub(super) fn handle_read(&mut self, data: &[u8]) {
        self.ended |= data.is_empty();
        self.piece.extend_from_slice(data);
        self.settle_pull();
    }

    /// The next answer to a step.
    pub(super) fn poll_answer(&mut self) -> Option<(C, Response)> {
        self.answers.pop_front()
    }

    /// Whether the connection is to be dropped.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// When [`Tunnel::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Instant {
        let pull = self.pull.as_ref().map(|(_, until)| *until);
        let push = self.push.as_ref().map(|push| push.until);
        [pull, push].into_iter().flatten().fold(self.ends_at, Instant::min)
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some((from, _)) = self.pull.take_if(|(_, until)| *until <= now) {
            self.answer(from, TunnelResponse::Piece { data: Bytes::new(), end: false });
        }
        if let Some(push) = self.push.take_if(|push| push.until <= now) {
            self.answer(push.from, TunnelResponse::Taken(self.taken));
        }
        self.over |= self.ends_at <= now;
    }

    fn answer(&mut self, to: C, response: TunnelResponse) {
        self.answers.push_back((to, Response::Tunnel(response)));
    }

    fn refuse(&mut self, to: C, code: u16, why: impl Into<String>) {
        self.answers.push_back((to, failed(code, why.into())));
    }
}
