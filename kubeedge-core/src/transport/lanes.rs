//! Bounded queues, one per lane: what adapters put between a caller and the wire.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::TransportError;
use crate::message::Lane;

/// How many bytes wait in one lane before senders wait. A frame that is longer passes alone.
const LANE_BYTES: usize = 64 << 10;

/// How many frames wait in one lane before senders wait, so that many tiny frames stay cheap, too.
const LANE_FRAMES: usize = 64;

/// How many heartbeats pass in a row before another lane gets a turn: urgent, but no way to starve the others.
const URGENT_STREAK: u8 = 8;

/// Frames under way in one direction. An idle one holds no buffer.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    state: Mutex<State>,
    /// A frame came, or the end.
    filled: Notify,
    /// A frame left, or the end came.
    drained: Notify,
}

#[derive(Debug, Default)]
struct State {
    queues: [Queue; Lane::ALL.len()],
    end: Option<End>,
    streak: u8,
    /// Which of the lanes after Heartbeat is asked first.
    turn: usize,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

/// How a direction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// In order: what was queued is still taken, then nothing follows.
    Orderly(String),
    /// Cut short: what was queued is lost.
    Broken(String),
}

impl End {
    /// The error of whoever still wants to send.
    pub(super) fn error(&self) -> TransportError {
        let (Self::Orderly(reason) | Self::Broken(reason)) = self;
        TransportError::Closed(reason.clone())
    }
}

/// A frame or a part of one, as the wire takes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) lane: Lane,
    pub(super) bytes: Bytes,
    /// Whether more of the same frame follows on this lane.
    pub(super) more: bool,
}

impl Lanes {
    /// Queues a frame; waits while its lane is full. A dropped call has queued nothing.
    pub(super) async fn push(&self, lane: Lane, frame: Bytes) -> Result<(), TransportError> {
        check_length(lane, frame.len())?;
        loop {
            let drained = self.drained.notified();
            {
                let mut state = self.lock();
                if let Some(end) = &state.end {
                    return Err(end.error());
                }
                let queue = &mut state.queues[lane.index()];
                if queue.has_room_for(&frame) {
                    queue.bytes += frame.len();
                    queue.frames.push_back(frame);
                    drop(state);
                    self.filled.notify_waiters();
                    return Ok(());
                }
            }
            drained.await;
        }
    }

    /// Takes the next frame of any lane, the urgent first; `None` after an orderly end.
    pub(super) async fn pop(&self) -> Result<Option<(Lane, Bytes)>, TransportError> {
        let fragment = self.pop_fragment(usize::MAX).await?;
        Ok(fragment.map(|f| (f.lane, f.bytes)))
    }

    /// Takes at most `limit` bytes of the next frame of any lane, so that an urgent frame can pass a long one.
    pub(super) async fn pop_fragment(&self, limit: usize) -> Result<Option<Fragment>, TransportError> {
        self.take(|state| {
            let lane = state.next_lane()?;
            let queue = &mut state.queues[lane.index()];
            let frame = queue.frames.front_mut()?;
            let more = frame.len() > limit;
            let bytes = if more { frame.split_to(limit) } else { queue.frames.pop_front()? };
            queue.release(bytes.len());
            Some(Fragment { lane, bytes, more })
        })
        .await
    }

    /// Takes the next frame of the lanes that `of` names by their numbers, the urgent first; `None` after an orderly end if
    /// none of those has any.
    #[cfg(feature = "quic")]
    pub(super) async fn pop_of(
        &self,
        of: [bool; Lane::ALL.len()],
    ) -> Result<Option<(Lane, Bytes)>, TransportError> {
        self.take(|state| state.pop_of(of)).await
    }

    /// As [`pop_of`](Self::pop_of), if there is one now.
    #[cfg(feature = "quic")]
    pub(super) fn try_pop_of(&self, of: [bool; Lane::ALL.len()]) -> Option<(Lane, Bytes)> {
        let taken = self.lock().pop_of(of);
        if taken.is_some() {
            self.drained.notify_waiters();
        }
        taken
    }

    /// Ends when a frame has come since this was called, or the end.
    #[cfg(feature = "quic")]
    pub(super) fn filled(&self) -> impl Future<Output = ()> {
        self.filled.notified()
    }

    /// Whether it has ended in order, and everything was taken.
    #[cfg(feature = "quic")]
    pub(super) fn is_at_end(&self) -> bool {
        let state = self.lock();
        matches!(state.end, Some(End::Orderly(_))) && state.queues.iter().all(|queue| queue.frames.is_empty())
    }

    /// Whether nothing waits.
    #[cfg(feature = "websocket")]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().queues.iter().all(|queue| queue.frames.is_empty())
    }

    async fn take<T>(
        &self,
        mut take: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>, TransportError> {
        loop {
            let filled = self.filled.notified();
            {
                let mut state = self.lock();
                if let Some(taken) = take(&mut state) {
                    drop(state);
                    self.drained.notify_waiters();
                    return Ok(Some(taken));
                }
                match &state.end {
                    Some(End::Orderly(_)) => return Ok(None),
                    Some(end @ End::Broken(_)) => return Err(end.error()),
                    None => {}
                }
            }
            filled.await;
        }
    }

    /// Ends the direction; the first end stays. A broken end forgets what was queued.
    pub(super) fn end(&self, end: End) {
        let mut state = self.lock();
        if matches!(end, End::Broken(_)) {
            state.queues = Default::default();
        }
        state.end.get_or_insert(end);
        drop(state);
        self.filled.notify_waiters();
        self.drained.notify_waiters();
    }

    /// The error that a send would meet, if the direction has ended.
    pub(super) fn ended(&self) -> Option<End> {
        self.lock().end.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of others runs under the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    #[cfg(feature = "quic")]
    fn pop_of(&mut self, of: [bool; Lane::ALL.len()]) -> Option<(Lane, Bytes)> {
        let waits = |lane: &Lane| of[lane.index()] && !self.queues[lane.index()].frames.is_empty();
        let lane = Lane::ALL.into_iter().find(waits)?;
        let queue = &mut self.queues[lane.index()];
        let frame = queue.frames.pop_front()?;
        queue.release(frame.len());
        Some((lane, frame))
    }

    /// Heartbeat first, except after a long row of them; the others in turn.
    fn next_lane(&mut self) -> Option<Lane> {
        const OTHERS: usize = Lane::ALL.len() - 1;
        let waits = |lane: Lane| !self.queues[lane.index()].frames.is_empty();
        let other = (0..OTHERS).map(|n| Lane::ALL[1 + (self.turn + n) % OTHERS]).find(|lane| waits(*lane));
        if waits(Lane::Heartbeat) && (other.is_none() || self.streak < URGENT_STREAK) {
            self.streak = self.streak.saturating_add(1);
            return Some(Lane::Heartbeat);
        }
        self.streak = 0;
        // `index` of the lane after Heartbeat is 1, so the lane itself is the number of its successor's turn.
        self.turn = other?.index() % OTHERS;
        other
    }
}

impl Queue {
    fn has_room_for(&self, frame: &Bytes) -> bool {
        self.frames.is_empty()
            || (self.frames.len() < LANE_FRAMES && self.bytes.saturating_add(frame.len()) <= LANE_BYTES)
    }

    /// Accounts for bytes taken, and gives the memory back once nothing waits: most sessions are idle.
    fn release(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
    }
}

/// Checks a frame's length, announced or real, against its lane's limit.
pub(super) fn check_length(lane: Lane, length: usize) -> Result<(), TransportError> {
    let limit = lane.frame_limit();
    if length > limit {
        return Err(TransportError::TooLong { lane, length: length as u64, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize) -> Bytes {
        Bytes::from(vec![7; length])
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_lane_waits_and_the_others_go_on() {
        let lanes = Lanes::default();
        lanes.push(Lane::Bulk, frame(LANE_BYTES)).await.unwrap();
        let waits = std::time::Duration::from_secs(1);
        tokio::time::timeout(waits, lanes.push(Lane::Bulk, frame(1))).await.unwrap_err();
        lanes.push(Lane::Pods, frame(1)).await.unwrap();
        assert_eq!(lanes.pop().await.unwrap().unwrap().0, Lane::Pods);
        assert_eq!(lanes.pop().await.unwrap().unwrap().1.len(), LANE_BYTES);
        lanes.push(Lane::Bulk, frame(1)).await.unwrap();
    }

    #[tokio::test]
    async fn heartbeats_pass_first_but_starve_nobody() {
        let lanes = Lanes::default();
        for _ in 0..20 {
            lanes.push(Lane::Heartbeat, frame(1)).await.unwrap();
        }
        lanes.push(Lane::Bulk, frame(1)).await.unwrap();
        let mut order = Vec::new();
        for _ in 0..21 {
            order.push(lanes.pop().await.unwrap().unwrap().0);
        }
        assert_eq!(order[0], Lane::Heartbeat);
        assert_eq!(order[usize::from(URGENT_STREAK)], Lane::Bulk);
    }

    #[tokio::test]
    async fn lanes_after_heartbeat_take_turns() {
        let lanes = Lanes::default();
        for _ in 0..2 {
            for lane in [Lane::Pods, Lane::Config, Lane::Bulk] {
                lanes.push(lane, frame(1)).await.unwrap();
            }
        }
        let mut order = Vec::new();
        for _ in 0..6 {
            order.push(lanes.pop().await.unwrap().unwrap().0);
        }
        assert_eq!(order[..3], [Lane::Pods, Lane::Config, Lane::Bulk]);
        assert_eq!(order[..3], order[3..]);
    }

    #[tokio::test]
    async fn an_urgent_frame_passes_between_the_fragments_of_a_long_one() {
        let lanes = Lanes::default();
        lanes.push(Lane::Bulk, frame(30)).await.unwrap();
        let first = lanes.pop_fragment(20).await.unwrap().unwrap();
        assert!(first.more && first.bytes.len() == 20);
        lanes.push(Lane::Heartbeat, frame(1)).await.unwrap();
        assert_eq!(lanes.pop_fragment(20).await.unwrap().unwrap().lane, Lane::Heartbeat);
        let last = lanes.pop_fragment(20).await.unwrap().unwrap();
        assert!(!last.more && last.bytes.len() == 10);
    }

    #[tokio::test]
    async fn an_orderly_end_lets_out_what_waits_and_a_broken_one_does_not() {
        let lanes = Lanes::default();
        lanes.push(Lane::Pods, frame(1)).await.unwrap();
        lanes.end(End::Orderly("bye".into()));
        assert!(lanes.push(Lane::Pods, frame(1)).await.is_err());
        assert!(lanes.pop().await.unwrap().is_some());
        assert!(lanes.pop().await.unwrap().is_none());

        let lanes = Lanes::default();
        lanes.push(Lane::Pods, frame(1)).await.unwrap();
        lanes.end(End::Broken("cut".into()));
        assert!(matches!(lanes.pop().await, Err(TransportError::Closed(reason)) if reason == "cut"));
    }
}
