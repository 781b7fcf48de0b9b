//! DeviceTwin without its loop, for simulations in virtual time: the caller is the store, the clock and all pipes.

use std::time::Instant;

use bytes::Bytes;
use kubeedge_core::{
    device::{DeviceAssignment, Reading},
    message::{DeviceReport, ObjectEvent, Publish},
    store::{Batch, Key},
};

use super::{
    Config, record,
    state::{Now, State},
};

/// The twins of a node, as [`DeviceTwin`](super::DeviceTwin) keeps them.
///
/// A turn is any number of inputs, then [`Twins::batch`], then [`Twins::confirm`] if the batch is durable or
/// [`Twins::rollback`] if it is not.
#[derive(Debug)]
pub struct Twins {
    state: State,
}

/// What a turn has to tell.
#[derive(Debug)]
pub struct Told {
    /// For applications, in order.
    pub publishes: Vec<Publish>,
    /// For the cloud.
    pub reports: Vec<DeviceReport>,
    /// For mappers.
    pub assignments: Vec<DeviceAssignment>,
}

impl Twins {
    /// Creates it with what the store holds. `seed` makes the ids of events.
    ///
    /// # Panics
    /// If a record is damaged.
    pub fn restore<'a>(
        config: Config,
        seed: u64,
        stored: impl Iterator<Item = (&'a Key, &'a Bytes)>,
    ) -> Self {
        let mut state = State::new(config, seed);
        let (devices, twins): (Vec<_>, Vec<_>) = stored.partition(|(key, _)| record::devices().matches(key));
        for (key, value) in devices {
            let restored = record::device_of(key).and_then(|id| state.restore_device(id, value));
            restored.expect("the record is whole");
        }
        for (key, value) in twins.into_iter().filter(|(key, _)| record::twins().matches(key)) {
            let restored = record::twin_of(key).and_then(|(id, name)| state.restore_twin(&id, name, value));
            restored.expect("the record is whole");
        }
        Self { state }
    }

    /// Takes a Device or DeviceModel.
    pub fn handle_object(&mut self, event: &ObjectEvent, at: Instant, wall_ms: u64) {
        self.state.handle_object(event, Now { at, wall_ms });
    }

    /// Takes a message of an application.
    pub fn handle_message(&mut self, message: &Publish, at: Instant, wall_ms: u64) {
        self.state.handle_message(message, Now { at, wall_ms });
    }

    /// Takes what a mapper found.
    pub fn handle_reading(&mut self, reading: Reading, at: Instant, wall_ms: u64) {
        self.state.handle_reading(reading, Now { at, wall_ms });
    }

    /// A link has begun.
    pub fn handle_online(&mut self, at: Instant) {
        self.state.handle_online(at);
    }

    /// When [`Twins::handle_timeout`] and a turn are due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.state.poll_timeout()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, at: Instant, wall_ms: u64) {
        self.state.handle_timeout(Now { at, wall_ms });
    }

    /// What has to be durable before the turn may be confirmed.
    ///
    /// # Panics
    /// If a key cannot be formed.
    pub fn batch(&mut self) -> Batch {
        self.state.batch().expect("names were checked when they came")
    }

    /// Ends a turn whose batch is durable.
    pub fn confirm(&mut self, at: Instant) -> Told {
        let told = self.state.confirm(at);
        Told { publishes: told.publishes, reports: told.reports, assignments: told.assignments }
    }

    /// Ends a turn whose batch was not written: its inputs have never been.
    pub fn rollback(&mut self, at: Instant, wall_ms: u64) {
        self.state.rollback(Now { at, wall_ms });
    }
}
