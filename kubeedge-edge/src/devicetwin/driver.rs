//! The loop: gathers a turn's inputs, makes it durable by one commit, and tells what came of it.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubeedge_core::{
    device::Reading,
    message::{ObjectEvent, Publish, Report},
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
    publishes_dropped: u64,
    publishes_full: bool,
}

enum Input {
    Object(ObjectEvent),
    Message(Publish),
    Reading(Reading),
}

/// How long the last write may take when the part is stopped.
const LAST_WRITE: Duration = Duration::from_secs(5);

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
            publishes_dropped: 0,
            publishes_full: false,
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
        let inbox = &mut self.part.inbox;
        tokio::select! {
            Some(message) = inbox.device_messages.recv() => vec![Input::Message(message)],
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
        let inbox = &mut self.part.inbox;
        while inputs.len() < self.part.config.limits.inputs_per_turn {
            let before = inputs.len();
            inputs.extend(inbox.device_messages.try_recv().map(Input::Message));
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
        let online = self.part.inbox.connectivity.borrow_and_update().is_online();
        if online && !self.was_online {
            self.state.handle_online();
        }
        self.was_online = online;
    }

    async fn turn(&mut self, inputs: Vec<Input>) -> Result<(), Error> {
        let now = now();
        for input in &inputs {
            self.handle(input, now);
        }
        if self.pause.is_none() {
            self.state.handle_timeout(now.at);
        }
        match self.commit().await? {
            Ok(wrote) => {
                self.note_success(wrote);
                let told = self.state.confirm();
                self.tell(told);
            }
            Err(error) => self.give_up(inputs, &error, now),
        }
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
            self.state.confirm()
        } else {
            self.state.rollback(now);
            self.state.handle_not_saved(message, now);
            self.state.confirm()
        };
        self.tell(told);
    }

    fn lengthen_pause(&mut self) {
        self.next_pause = (self.next_pause * 2).min(self.part.config.limits.retry_max);
    }

    fn tell(&mut self, told: Told) {
        let outbox = &self.part.outbox;
        for publish in told.publishes {
            match outbox.publishes.send(publish) {
                Ok(()) => self.publishes_full = false,
                Err(SendError::Full(_)) => {
                    self.publishes_dropped += 1;
                    if !self.publishes_full {
                        tracing::warn!(
                            dropped = self.publishes_dropped,
                            "MQTT messages for applications are dropped"
                        );
                    }
                    self.publishes_full = true;
                }
                Err(SendError::Closed(_)) => break,
            }
        }
        // A pipe without a receiver is a part that was left out, or has stopped before this one.
        for report in told.reports {
            let _ = outbox.reports.send(Report::Device(report));
        }
        for assignment in told.assignments {
            let _ = outbox.assignments.send(assignment);
        }
    }

    // ------------------------------------------------------------------------------------------------- stop

    /// Writes what waits to be written, so that an orderly stop loses nothing.
    async fn write_at_stop(&mut self) {
        self.state.write_all();
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
