//! Typed pipes: every arrow between parts.
//!
//! Ask of each message whether it is a state (only the newest for its key matters) or an occurrence (each one
//! matters). [`latest`] carries states, [`events`] occurrences, [`calls`] questions with an answer. Sending never
//! waits; receiving is the only wait. Dropping all senders ends the receiver; dropping the receiver is seen
//! by senders as [`Closed`].

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::{Notify, mpsc, oneshot};

/// Says that the other end of a pipe is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pipe {0} is closed: the part at its other end has stopped")]
pub struct Closed(pub &'static str);

// ---------------------------------------------------------------------------------------------------- latest

/// Creates a pipe for states: it holds at most one message per key, the newest.
///
/// So its memory is bounded by what exists, not by how long nobody received, and it cannot be full. Messages
/// are received in the order in which their keys became pending. Each message carries the whole state of its key.
pub fn latest<K, T>(name: &'static str, key: fn(&T) -> K) -> (LatestSender<K, T>, LatestReceiver<K, T>)
where
    K: Ord + Clone,
{
    let shared = Arc::new(LatestShared { name, key, state: Mutex::default(), changed: Notify::new() });
    shared.lock().senders = 1;
    (LatestSender { shared: shared.clone(), tee: None }, LatestReceiver { shared })
}

/// Joins two pipes for the same states to one: each message goes to both.
///
/// A receiver that has gone does not keep the other from receiving; [`Closed`] says that both have.
pub fn tee<K, T: Clone>(mut first: LatestSender<K, T>, second: LatestSender<K, T>) -> LatestSender<K, T> {
    let next = match first.tee.take() {
        None => second,
        Some(before) => tee(*before.next, second),
    };
    first.tee = Some(Tee { copy: T::clone, next: Box::new(next) });
    first
}

struct LatestShared<K, T> {
    name: &'static str,
    key: fn(&T) -> K,
    state: Mutex<LatestState<K, T>>,
    changed: Notify,
}

struct LatestState<K, T> {
    pending: BTreeMap<K, T>,
    order: VecDeque<K>,
    senders: usize,
    receiver_gone: bool,
    coalesced: u64,
}

impl<K, T> Default for LatestState<K, T> {
    fn default() -> Self {
        Self {
            pending: BTreeMap::new(),
            order: VecDeque::new(),
            senders: 0,
            receiver_gone: false,
            coalesced: 0,
        }
    }
}

impl<K, T> LatestShared<K, T> {
    fn lock(&self) -> MutexGuard<'_, LatestState<K, T>> {
        // No code of others runs under the lock, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending end of [`latest`]; cloneable.
pub struct LatestSender<K, T> {
    shared: Arc<LatestShared<K, T>>,
    tee: Option<Tee<K, T>>,
}

/// Where else a message goes, and how a second one is made of it.
struct Tee<K, T> {
    copy: fn(&T) -> T,
    next: Box<LatestSender<K, T>>,
}

impl<K: Ord + Clone, T> LatestSender<K, T> {
    /// Puts the state in the pipe, in place of an older one of the same key. Never waits.
    ///
    /// # Errors
    /// If the receiver is gone.
    pub fn send(&self, message: T) -> Result<(), Closed> {
        let Some(tee) = &self.tee else { return self.send_here(message) };
        let next = tee.next.send((tee.copy)(&message));
        self.send_here(message).or(next)
    }

    fn send_here(&self, message: T) -> Result<(), Closed> {
        let key = (self.shared.key)(&message);
        let mut state = self.shared.lock();
        if state.receiver_gone {
            return Err(Closed(self.shared.name));
        }
        if state.pending.insert(key.clone(), message).is_some() {
            state.coalesced += 1;
        } else {
            state.order.push_back(key);
        }
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// How many messages wait, and how many were replaced by newer ones so far.
    pub fn depth_and_coalesced(&self) -> (usize, u64) {
        let state = self.shared.lock();
        (state.order.len(), state.coalesced)
    }
}

impl<K, T> Clone for LatestSender<K, T> {
    fn clone(&self) -> Self {
        self.shared.lock().senders += 1;
        let tee = self.tee.as_ref().map(|tee| Tee { copy: tee.copy, next: tee.next.clone() });
        Self { shared: self.shared.clone(), tee }
    }
}

impl<K, T> Drop for LatestSender<K, T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.senders -= 1;
        let last = state.senders == 0;
        drop(state);
        if last {
            self.shared.changed.notify_one();
        }
    }
}

impl<K, T> fmt::Debug for LatestSender<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LatestSender").field(&self.shared.name).finish()
    }
}

/// The receiving end of [`latest`].
pub struct LatestReceiver<K, T> {
    shared: Arc<LatestShared<K, T>>,
}

impl<K: Ord + Clone, T> LatestReceiver<K, T> {
    /// Takes the next state; `None` when all senders are gone and nothing is left.
    ///
    /// Cancel-safe: a message is taken only when this returns.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            let changed = self.shared.changed.notified();
            match self.take() {
                Taken::Message(message) => return Some(message),
                Taken::Ended => return None,
                Taken::Empty => changed.await,
            }
        }
    }

    /// Takes the next state if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        match self.take() {
            Taken::Message(message) => Some(message),
            Taken::Ended | Taken::Empty => None,
        }
    }

    fn take(&self) -> Taken<T> {
        let mut state = self.shared.lock();
        match state.order.pop_front() {
            Some(key) => {
                let taken = state.pending.remove(&key);
                if state.pending.is_empty() {
                    // A map keeps room for what it had; most pipes are idle, and the cloud has some for each node.
                    state.pending = BTreeMap::new();
                    state.order = VecDeque::new();
                }
                taken.map_or(Taken::Empty, Taken::Message)
            }
            None if state.senders == 0 => Taken::Ended,
            None => Taken::Empty,
        }
    }
}

enum Taken<T> {
    Message(T),
    Empty,
    Ended,
}

impl<K, T> Drop for LatestReceiver<K, T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.receiver_gone = true;
        let pending = std::mem::take(&mut state.pending);
        state.order.clear();
        drop(state);
        // Messages are dropped outside the lock: they may hold ends of other pipes.
        drop(pending);
    }
}

impl<K, T> fmt::Debug for LatestReceiver<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LatestReceiver").field(&self.shared.name).finish()
    }
}

// ---------------------------------------------------------------------------------------------------- events

/// Creates a pipe for occurrences, in order, at most `capacity` of them at once (at least one).
pub fn events<T>(name: &'static str, capacity: usize) -> (EventSender<T>, EventReceiver<T>) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (
        EventSender { name, sender, load: None },
        EventReceiver { name, receiver, load: None, unsettled: Vec::new() },
    )
}

/// Creates a pipe for occurrences of very different sizes: as [`events`], and `weigh` says how many bytes each takes,
/// of which at most `bytes_max` are in the pipe. One that is larger passes alone.
pub fn weighed_events<T>(
    name: &'static str,
    capacity: usize,
    bytes_max: usize,
    weigh: fn(&T) -> usize,
) -> (EventSender<T>, EventReceiver<T>) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    let load = Load { bytes: Arc::default(), bytes_max, weigh };
    (
        EventSender { name, sender, load: Some(load.clone()) },
        EventReceiver { name, receiver, load: Some(load), unsettled: Vec::new() },
    )
}

/// How many bytes are in a pipe.
struct Load<T> {
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    weigh: fn(&T) -> usize,
}

impl<T> Load<T> {
    /// Makes room for the message, if there is room.
    fn add(&self, message: &T) -> bool {
        let weight = (self.weigh)(message);
        let add = |held: usize| {
            let after = held.saturating_add(weight);
            (held == 0 || after <= self.bytes_max).then_some(after)
        };
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    fn remove(&self, message: &T) {
        self.bytes.fetch_sub((self.weigh)(message), Ordering::Relaxed);
    }
}

impl<T> Clone for Load<T> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), bytes_max: self.bytes_max, weigh: self.weigh }
    }
}

/// Says why an occurrence was not taken, and gives it back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError<T> {
    /// The pipe is full: the receiver is slower than the sender. The sender decides what to do.
    #[error("the pipe is full")]
    Full(T),
    /// The receiver is gone.
    #[error("the pipe is closed: the part at its other end has stopped")]
    Closed(T),
}

impl<T> SendError<T> {
    /// Gives the message back.
    pub fn into_message(self) -> T {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full",
            Self::Closed(_) => "Closed",
        })
    }
}

/// An occurrence in a pipe, and the place where it is said that it is settled.
type Sent<T> = (T, Option<oneshot::Sender<()>>);

/// The sending end of [`events`]; cloneable.
pub struct EventSender<T> {
    name: &'static str,
    sender: mpsc::Sender<Sent<T>>,
    load: Option<Load<T>>,
}

impl<T> EventSender<T> {
    /// Puts the occurrence in the pipe. Never waits.
    ///
    /// # Errors
    /// If the pipe is full or the receiver gone; the message comes back in the error.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.put(message, None)
    }

    /// As [`EventSender::send`], for a sender who has to know when the receiver has made the occurrence safe.
    ///
    /// For receivers that call [`EventReceiver::settle`] only: with another, the receipt never comes.
    ///
    /// # Errors
    /// As [`EventSender::send`].
    pub fn send_for_receipt(&self, message: T) -> Result<Receipt, SendError<T>> {
        let (settles, settled) = oneshot::channel();
        self.put(message, Some(settles))?;
        Ok(Receipt { name: self.name, settled })
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    fn put(&self, message: T, settles: Option<oneshot::Sender<()>>) -> Result<(), SendError<T>> {
        if let Some(load) = &self.load
            && !load.add(&message)
        {
            let closed = self.sender.is_closed();
            return Err(if closed { SendError::Closed(message) } else { SendError::Full(message) });
        }
        self.sender.try_send((message, settles)).map_err(|error| {
            let full = matches!(error, mpsc::error::TrySendError::Full(_));
            let (message, _) = error.into_inner();
            self.load.iter().for_each(|load| load.remove(&message));
            if full { SendError::Full(message) } else { SendError::Closed(message) }
        })
    }
}

impl<T> Clone for EventSender<T> {
    fn clone(&self) -> Self {
        Self { name: self.name, sender: self.sender.clone(), load: self.load.clone() }
    }
}

impl<T> fmt::Debug for EventSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventSender").field(&self.name).finish()
    }
}

/// The receiving end of [`events`].
pub struct EventReceiver<T> {
    name: &'static str,
    receiver: mpsc::Receiver<Sent<T>>,
    load: Option<Load<T>>,
    unsettled: Vec<oneshot::Sender<()>>,
}

impl<T> EventReceiver<T> {
    /// Takes the next occurrence; `None` when all senders are gone and nothing is left. Cancel-safe.
    pub async fn recv(&mut self) -> Option<T> {
        let sent = self.receiver.recv().await?;
        Some(self.take(sent))
    }

    /// Takes the next occurrence if there is one.
    pub fn try_recv(&mut self) -> Option<T> {
        let sent = self.receiver.try_recv().ok()?;
        Some(self.take(sent))
    }

    /// Says that all that was received so far is safe: a power cut loses none of it any more, or its sender has been
    /// told otherwise. Whoever sent it [for a receipt](EventSender::send_for_receipt) learns of it.
    pub fn settle(&mut self) {
        for settles in self.unsettled.drain(..) {
            // A sender who has gone need not know.
            let _ = settles.send(());
        }
    }

    fn take(&mut self, (message, settles): Sent<T>) -> T {
        self.load.iter().for_each(|load| load.remove(&message));
        self.unsettled.extend(settles);
        message
    }
}

impl<T> fmt::Debug for EventReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventReceiver").field(&self.name).finish()
    }
}

/// Resolves when the receiver of an occurrence has made it safe, or to an error when the receiver is gone before.
///
/// Cancel-safe.
pub struct Receipt {
    name: &'static str,
    settled: oneshot::Receiver<()>,
}

impl Receipt {
    /// Creates a receipt for something that takes another way than a pipe, and what settles it.
    pub fn new(name: &'static str) -> (Settle, Self) {
        let (settles, settled) = oneshot::channel();
        (Settle(settles), Self { name, settled })
    }

    /// What has become of the occurrence, if that is known already.
    pub fn try_settled(&mut self) -> Option<Result<(), Closed>> {
        match self.settled.try_recv() {
            Ok(()) => Some(Ok(())),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(Closed(self.name))),
        }
    }
}

impl Future for Receipt {
    type Output = Result<(), Closed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let name = self.name;
        Pin::new(&mut self.settled).poll(context).map(|settled| settled.map_err(|_| Closed(name)))
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receipt").field(&self.name).finish()
    }
}

/// Settles a [`Receipt`]; dropped without, it says that the occurrence is lost.
#[derive(Debug)]
pub struct Settle(oneshot::Sender<()>);

impl Settle {
    /// Says that the occurrence is safe.
    pub fn settle(self) {
        // Who no longer waits need not know.
        let _ = self.0.send(());
    }
}

// ----------------------------------------------------------------------------------------------------- calls

/// Creates a pipe for questions with a typed answer; at most `capacity` questions wait (at least one).
pub fn calls<Q, A>(name: &'static str, capacity: usize) -> (Caller<Q, A>, Callee<Q, A>) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (Caller { name, sender }, Callee { name, receiver })
}

/// Says why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Too many questions wait already.
    #[error("{0}: too many questions are waiting for an answer")]
    Full(&'static str),
    /// The answer did not come in time.
    #[error("{0}: no answer within {1:?}")]
    Late(&'static str, Duration),
    /// The other part has stopped, or dropped the question.
    #[error("{0}: the part that answers has stopped")]
    Closed(&'static str),
}

/// The asking end of [`calls`]; cloneable.
pub struct Caller<Q, A> {
    name: &'static str,
    sender: mpsc::Sender<Call<Q, A>>,
}

impl<Q, A> Caller<Q, A> {
    /// Asks, and waits for the answer for at most `deadline`.
    ///
    /// The question is in the pipe before the first wait. Dropping the future withdraws the question.
    ///
    /// # Errors
    /// If the pipe is full, the answer late, or the other part gone.
    pub async fn call(&self, question: Q, deadline: Duration) -> Result<A, CallError> {
        let (answer, answered) = oneshot::channel();
        self.sender.try_send(Call { question, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CallError::Full(self.name),
            mpsc::error::TrySendError::Closed(_) => CallError::Closed(self.name),
        })?;
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(CallError::Closed(self.name)),
            Err(_) => Err(CallError::Late(self.name, deadline)),
        }
    }
}

impl<Q, A> Caller<Q, A> {
    /// Passes a question on that came over another pipe; the answer goes to whoever asked. Never waits.
    ///
    /// # Errors
    /// If the pipe is full or the other part gone; the question comes back.
    pub fn forward(&self, call: Call<Q, A>) -> Result<(), (CallError, Call<Q, A>)> {
        self.sender.try_send(call).map_err(|error| match error {
            mpsc::error::TrySendError::Full(call) => (CallError::Full(self.name), call),
            mpsc::error::TrySendError::Closed(call) => (CallError::Closed(self.name), call),
        })
    }
}

impl<Q, A> Clone for Caller<Q, A> {
    fn clone(&self) -> Self {
        Self { name: self.name, sender: self.sender.clone() }
    }
}

impl<Q, A> fmt::Debug for Caller<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Caller").field(&self.name).finish()
    }
}

/// The answering end of [`calls`].
pub struct Callee<Q, A> {
    name: &'static str,
    receiver: mpsc::Receiver<Call<Q, A>>,
}

impl<Q, A> Callee<Q, A> {
    /// Takes the next question; `None` when all callers are gone. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Call<Q, A>> {
        self.receiver.recv().await
    }
}

impl<Q, A> fmt::Debug for Callee<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Callee").field(&self.name).finish()
    }
}

/// A question with the place for its answer.
pub struct Call<Q, A> {
    /// The question.
    pub question: Q,
    answer: oneshot::Sender<A>,
}

impl<Q, A> Call<Q, A> {
    /// Gives the answer; nothing happens if the asker has gone.
    pub fn answer(self, answer: A) {
        let _ = self.answer.send(answer);
    }

    /// Takes the question apart, so that the answer can be given later.
    pub fn split(self) -> (Q, Replier<A>) {
        (self.question, Replier(self.answer))
    }

    /// Whether the asker no longer waits.
    pub fn is_withdrawn(&self) -> bool {
        self.answer.is_closed()
    }
}

impl<Q: fmt::Debug, A> fmt::Debug for Call<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("question", &self.question).finish_non_exhaustive()
    }
}

/// The place for an answer.
pub struct Replier<A>(oneshot::Sender<A>);

impl<A> Replier<A> {
    /// Gives the answer; nothing happens if the asker has gone.
    pub fn answer(self, answer: A) {
        let _ = self.0.send(answer);
    }

    /// Whether the asker no longer waits.
    pub fn is_withdrawn(&self) -> bool {
        self.0.is_closed()
    }
}

impl<A> fmt::Debug for Replier<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Replier")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(pair: &(u8, &'static str)) -> u8 {
        pair.0
    }

    #[tokio::test]
    async fn a_pipe_that_weighs_takes_what_it_has_room_for_and_what_is_larger_alone() {
        let (sender, mut receiver) = weighed_events("weighed", 3, 100, |text: &String| text.len());
        let text = |length: usize| "x".repeat(length);
        sender.send(text(60)).unwrap();
        assert_eq!(sender.send(text(41)), Err(SendError::Full(text(41))));
        sender.send(text(40)).unwrap();
        sender.send(String::new()).unwrap();
        // The number counts too, and what it refuses weighs nothing.
        assert_eq!(sender.send(String::new()), Err(SendError::Full(String::new())));
        assert_eq!(receiver.recv().await.unwrap().len(), 60);
        assert_eq!(receiver.try_recv().unwrap().len(), 40);
        assert_eq!(sender.send(text(101)), Ok(()));
        assert_eq!(sender.send(text(1)), Err(SendError::Full(text(1))));
        receiver.recv().await.unwrap();
        receiver.recv().await.unwrap();
        drop(receiver);
        assert_eq!(sender.send(text(101)), Err(SendError::Closed(text(101))));
    }

    #[tokio::test]
    async fn a_question_that_is_passed_on_is_answered_to_whoever_asked_or_comes_back() {
        let (asker, mut between) = calls::<u8, u8>("first", 1);
        let (onward, mut last) = calls("second", 1);
        let asked = tokio::spawn({
            let asker = asker.clone();
            async move { asker.call(7, Duration::from_secs(10)).await }
        });
        onward.forward(between.recv().await.unwrap()).unwrap();
        let call = last.recv().await.unwrap();
        assert_eq!(call.question, 7);
        call.answer(8);
        assert_eq!(asked.await.unwrap(), Ok(8));

        let withdrawn = Call { question: 1, answer: oneshot::channel().0 };
        onward.forward(withdrawn).unwrap();
        let (why, call) = onward.forward(Call { question: 2, answer: oneshot::channel().0 }).unwrap_err();
        assert_eq!((why, call.question), (CallError::Full("second"), 2));
        drop(last);
        let (why, _) = onward.forward(call).unwrap_err();
        assert_eq!(why, CallError::Closed("second"));
    }

    #[tokio::test]
    async fn a_newer_state_takes_the_place_of_an_older_one_of_its_key() {
        let (sender, mut receiver) = latest("states", first);
        for message in [(1, "a"), (2, "b"), (1, "c")] {
            sender.send(message).unwrap();
        }
        assert_eq!(sender.depth_and_coalesced(), (2, 1));
        drop(sender);
        assert_eq!(receiver.recv().await, Some((1, "c")));
        assert_eq!(receiver.recv().await, Some((2, "b")));
        assert_eq!(receiver.recv().await, None);
    }

    #[tokio::test]
    async fn a_receiver_that_waits_is_woken_by_a_state_and_by_the_last_sender_going() {
        let (sender, mut receiver) = latest("states", first);
        let other = sender.clone();
        let task = tokio::spawn(async move { (receiver.recv().await, receiver.recv().await) });
        tokio::task::yield_now().await;
        sender.send((1, "a")).unwrap();
        tokio::task::yield_now().await;
        drop((sender, other));
        assert_eq!(task.await.unwrap(), (Some((1, "a")), None));
    }

    #[tokio::test]
    async fn three_pipes_joined_each_receive_everything_until_they_go() {
        let ((a, mut from_a), (b, mut from_b), (c, from_c)) =
            (latest("a", first), latest("b", first), latest("c", first));
        let sender = tee(tee(a, b), c);
        let other = sender.clone();
        drop(from_c);
        sender.send((1, "a")).unwrap();
        other.send((1, "b")).unwrap();
        drop(sender);
        for receiver in [&mut from_a, &mut from_b] {
            assert_eq!(receiver.try_recv(), Some((1, "b")));
        }
        drop(from_a);
        other.send((2, "c")).unwrap();
        assert_eq!(from_b.recv().await, Some((2, "c")));
        drop(other);
        assert_eq!(from_b.recv().await, None);
    }

    #[test]
    fn sending_to_nobody_is_an_error() {
        let (sender, receiver) = latest("states", first);
        drop(receiver);
        assert_eq!(sender.send((1, "a")), Err(Closed("states")));
    }

    #[test]
    fn a_full_pipe_of_events_gives_the_event_back() {
        let (sender, mut receiver) = events("events", 1);
        sender.send(1).unwrap();
        assert_eq!(sender.send(2).unwrap_err().into_message(), 2);
        assert_eq!(receiver.try_recv(), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_by_its_answer_by_its_deadline_or_by_the_other_part_stopping() {
        let (caller, mut callee) = calls::<u8, u8>("questions", 1);
        let deadline = Duration::from_secs(1);
        let (answer, ()) = tokio::join!(caller.call(1, deadline), async {
            let call = callee.recv().await.unwrap();
            let twice = call.question * 2;
            call.answer(twice);
        });
        assert_eq!(answer, Ok(2));
        assert_eq!(caller.call(1, deadline).await, Err(CallError::Late("questions", deadline)));
        drop(callee);
        assert_eq!(caller.call(1, deadline).await, Err(CallError::Closed("questions")));
    }

    #[tokio::test]
    async fn a_receipt_comes_when_the_receiver_settles_and_fails_when_it_is_gone() {
        let (sender, mut receiver) = events("uploads", 4);
        let mut first = sender.send_for_receipt(1).unwrap();
        let second = sender.send_for_receipt(2).unwrap();
        sender.send(3).unwrap();
        assert_eq!(receiver.recv().await, Some(1));
        assert_eq!(first.try_settled(), None);
        receiver.settle();
        assert_eq!(first.try_settled(), Some(Ok(())));
        assert_eq!(receiver.try_recv(), Some(2));
        drop(receiver);
        assert_eq!(second.await, Err(Closed("uploads")));
    }
}
