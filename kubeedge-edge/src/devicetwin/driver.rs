//! The loop: gathers a turn's inputs, makes it durable by one commit, and tells what came of it.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubeedge_core::{
    device::Reading,
    message::{Connectivity, ObjectEvent, Publish, Report},
    pipe::SendError,
    store::{MetaStore, MetaStoreExt, StoreError},
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    DeviceTwin, Error,
    record::{self, RecordError},
    state::{Now, State, Told},
};

pub(super) struct Driver {
    part: DeviceTwin,
    state: State,
    /// Inputs of a turn that could not be committed, to be handled again.
    again: Vec<Input>,
    /// Until when no other input than messages is taken, and how long the next such pause is.
    pause: Option<Instant>,
    next_pause: Duration,
    was_online: bool,
    /// Whether anyone is left to say whether there is a link.
    connectivity_lives: bool,
    /// Messages for applications that wait for room in their pipe, and since when.
    backlog: VecDeque<Publish>,
    backlog_since: Option<Instant>,
    /// Nobody takes messages for applications; those that find no room are dropped until one is taken.
    unheard: bool,
    publishes_dropped: u64,
}

enum Input {
    Object(ObjectEvent),
    Message(Publish),
    Reading(Reading),
}

/// How long the last write may take when the part is stopped.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// How long messages for applications may wait for room, holding up the next requests of applications, before they
/// are dropped. A bus that is busy has room again within milliseconds.
const BACKLOG_PATIENCE: Duration = Duration::from_secs(1);

/// How often it is looked whether there is room.
const BACKLOG_RETRY: Duration = Duration::from_millis(2);

/// How many messages for applications may wait: a few turns' worth of answers.
const BACKLOG_LIMIT: usize = 4_096;

impl Driver {
    pub(super) fn new(part: DeviceTwin) -> Self {
        // The standard library's hasher has a random key: enough of a seed for ids that only need to differ.
        let seed = RandomState::new().hash_one(part.config.node.as_str());
        let state = State::new(part.config.clone(), seed);
        let next_pause = part.config.limits.retry_min;
        Self {
            part,
            state,
            again: Vec::new(),
            pause: None,
            next_pause,
            was_online: false,
            connectivity_lives: true,
            backlog: VecDeque::new(),
            backlog_since: None,
            unheard: false,
            publishes_dropped: 0,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        let restored = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            restored = self.restore() => restored,
        };
        restored?;
        loop {
            let mut inputs = tokio::select! {
                () = stop.cancelled() => break,
                inputs = self.gather() => inputs,
            };
            self.drain(&mut inputs);
            self.notice_connectivity();
            self.turn(inputs).await?;
            // Under load there is always a next input; others that run on this thread want to go on too.
            tokio::task::yield_now().await;
        }
        self.write_at_stop().await;
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------ start

    async fn restore(&mut self) -> Result<(), Error> {
        loop {
            match self.try_restore().await {
                Ok(()) => return Ok(()),
                Err(Error::Restore(error)) if error.is_retryable() => {
                    tracing::warn!(%error, retry_in = ?self.next_pause, "the twins cannot be read");
                    tokio::time::sleep(self.next_pause).await;
                    self.lengthen_pause();
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_restore(&mut self) -> Result<(), Error> {
        let deadline = self.part.config.limits.store_deadline;
        let read = async {
            let devices = self.part.store.scan_all(&record::devices()).await?;
            let twins = self.part.store.scan_all(&record::twins()).await?;
            Ok::<_, StoreError>((devices, twins))
        };
        let (devices, twins) = timeout(deadline, read)
            .await
            .map_err(|_| Error::Stuck { what: "read the twins", deadline })?
            .map_err(Error::Restore)?;
        for (key, value) in devices {
            let restored = record::device_of(&key).and_then(|id| self.state.restore_device(id, &value));
            warn_if_damaged(&key, restored);
        }
        for (key, value) in twins {
            let restored =
                record::twin_of(&key).and_then(|(id, name)| self.state.restore_twin(&id, name, &value));
            warn_if_damaged(&key, restored);
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------------------- each turn

    /// Waits for the first input of a turn, or for something to do without one. Cancel-safe.
    async fn gather(&mut self) -> Vec<Input> {
        let paused = self.pause.is_some();
        let wake = match (self.pause, self.state.poll_timeout()) {
            (Some(pause), _) => Some(pause),
            (None, timeout) => timeout.map(Instant::from_std),
        };
        let heard = self.backlog.is_empty();
        let room = (!heard).then(|| Instant::now() + BACKLOG_RETRY);
        let inbox = &mut self.part.inbox;
        tokio::select! {
            () = until(room), if !heard => Vec::new(),
            Some(message) = inbox.device_messages.recv(), if heard => vec![Input::Message(message)],
            Some(event) = inbox.devices.recv(), if !paused => vec![Input::Object(event)],
            Some(reading) = inbox.readings.recv(), if !paused => vec![Input::Reading(reading)],
            changed = inbox.connectivity.changed(), if self.connectivity_lives => {
                self.connectivity_lives = changed.is_ok();
                Vec::new()
            }
            () = until(wake) => Vec::new(),
        }
    }

    /// Adds what else waits, from each pipe in turn, so that none holds up another.
    fn drain(&mut self, inputs: &mut Vec<Input>) {
        let paused = self.pause.is_some_and(|pause| Instant::now() < pause);
        if !paused {
            self.pause = None;
            // What has to be done again came first.
            let newer = std::mem::replace(inputs, std::mem::take(&mut self.again));
            inputs.extend(newer);
        }
        self.send_backlog();
        let heard = self.backlog.is_empty();
        let inbox = &mut self.part.inbox;
        while inputs.len() < self.part.config.limits.inputs_per_turn {
            let before = inputs.len();
            if heard {
                inputs.extend(inbox.device_messages.try_recv().map(Input::Message));
            }
            if !paused {
                inputs.extend(inbox.devices.try_recv().map(Input::Object));
                inputs.extend(inbox.readings.try_recv().map(Input::Reading));
            }
            if inputs.len() == before {
                break;
            }
        }
    }

    fn notice_connectivity(&mut self) {
        let connectivity = *self.part.inbox.connectivity.borrow_and_update();
        let online = connectivity.is_online();
        self.state.handle_synchronized(connectivity == Connectivity::Synchronized, Instant::now().into_std());
        if online && !self.was_online {
            self.state.handle_online(Instant::now().into_std());
        }
        self.was_online = online;
    }

    async fn turn(&mut self, inputs: Vec<Input>) -> Result<(), Error> {
        let now = now();
        for input in &inputs {
            self.handle(input, now);
        }
        if self.pause.is_none() {
            self.state.handle_timeout(now);
        }
        match self.commit().await? {
            Ok(wrote) => {
                self.note_success(wrote);
                let told = self.state.confirm(now.at);
                self.tell(told);
            }
            Err(error) => self.give_up(inputs, &error, now),
        }
        // All messages of the turn are in the store, or their senders have been told that they are not.
        self.part.inbox.device_messages.settle();
        Ok(())
    }

    fn handle(&mut self, input: &Input, now: Now) {
        match input {
            Input::Object(event) => self.state.handle_object(event, now),
            Input::Message(message) => self.state.handle_message(message, now),
            Input::Reading(reading) => self.state.handle_reading(reading.clone(), now),
        }
    }

    /// Commits the turn, and says whether there was anything to commit.
    async fn commit(&mut self) -> Result<Result<bool, StoreError>, Error> {
        let batch = match self.state.batch() {
            Ok(batch) if batch.is_empty() => return Ok(Ok(false)),
            Ok(batch) => batch,
            Err(error) => return Ok(Err(error)),
        };
        let deadline = self.part.config.limits.store_deadline;
        let committed = timeout(deadline, self.part.store.commit(batch)).await;
        let committed = committed.map_err(|_| Error::Stuck { what: "commit twins", deadline })?;
        Ok(committed.map(|()| true))
    }

    /// The store works again: what waits to be done again need not wait longer.
    fn note_success(&mut self, wrote: bool) {
        if wrote {
            self.next_pause = self.part.config.limits.retry_min;
            self.pause = self.pause.map(|_| Instant::now());
        }
    }

    /// Undoes a turn that could not be committed: applications are told, everything else is done again later.
    fn give_up(&mut self, inputs: Vec<Input>, error: &StoreError, now: Now) {
        tracing::warn!(%error, retry_in = ?self.next_pause, "the twins cannot be written");
        self.state.rollback(now);
        for input in inputs {
            match input {
                Input::Message(message) => self.answer_without_store(&message, now),
                other @ (Input::Object(_) | Input::Reading(_)) => self.again.push(other),
            }
        }
        if self.pause.is_none() {
            self.pause = Some(Instant::now() + self.next_pause);
            self.lengthen_pause();
        }
    }

    /// Answers a message that only asks; says of one that changes something that it did not.
    fn answer_without_store(&mut self, message: &Publish, now: Now) {
        self.state.handle_message(message, now);
        let told = if self.state.batch().is_ok_and(|batch| batch.is_empty()) {
            self.state.confirm(now.at)
        } else {
            self.state.rollback(now);
            self.state.handle_not_saved(message, now);
            self.state.confirm(now.at)
        };
        self.tell(told);
    }

    fn lengthen_pause(&mut self) {
        self.next_pause = (self.next_pause * 2).min(self.part.config.limits.retry_max);
    }

    fn tell(&mut self, told: Told) {
        self.backlog.extend(told.publishes);
        self.send_backlog();
        let outbox = &self.part.outbox;
        // A pipe without a receiver is a part that was left out, or has stopped before this one.
        for report in told.reports {
            let _ = outbox.reports.send(Report::Device(report));
        }
        for assignment in told.assignments {
            let _ = outbox.assignments.send(assignment);
        }
    }

    /// Sends messages for applications as far as there is room, and drops those that wait too long.
    fn send_backlog(&mut self) {
        while let Some(publish) = self.backlog.pop_front() {
            match self.part.outbox.publishes.send(publish) {
                Ok(()) => self.unheard = false,
                Err(SendError::Full(publish)) => {
                    self.backlog.push_front(publish);
                    break;
                }
                Err(SendError::Closed(_)) => self.backlog.clear(),
            }
        }
        if self.backlog.is_empty() {
            self.backlog_since = None;
            return;
        }
        let since = *self.backlog_since.get_or_insert_with(Instant::now);
        let keep = if self.unheard || since.elapsed() >= BACKLOG_PATIENCE { 0 } else { BACKLOG_LIMIT };
        let dropped = self.backlog.len().saturating_sub(keep);
        if dropped > 0 {
            self.backlog.truncate(keep);
            self.publishes_dropped += dropped as u64;
            if !self.unheard {
                tracing::warn!(
                    dropped_so_far = self.publishes_dropped,
                    "messages for applications are dropped: nobody takes them"
                );
            }
            self.unheard = true;
        }
    }

    // ------------------------------------------------------------------------------------------------- stop

    /// Writes what waits to be written, so that an orderly stop loses nothing.
    async fn write_at_stop(&mut self) {
        self.state.write_all();
        self.state.end_run();
        let written = timeout(LAST_WRITE, self.commit()).await;
        if !matches!(written, Ok(Ok(Ok(_)))) {
            tracing::warn!("the last readings could not be written");
        }
    }
}

/// A record that cannot be used is left out: one damaged twin must not keep all others from running.
fn warn_if_damaged(key: &kubeedge_core::store::Key, restored: Result<(), RecordError>) {
    if let Err(error) = restored {
        tracing::warn!(%key, %error, "a stored record was left out");
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { at: Instant::now().into_std(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}
