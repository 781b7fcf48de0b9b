//! DeviceController without its loop, for simulations in virtual time: the caller is the API, the clock and all pipes.

use std::time::Instant;

use kubeedge_core::{
    id::NodeName,
    message::{Acked, Delivered, FromNode, Object, ObjectEvent, Report, ReportKey, ToNode},
};
use serde_json::Value;

use super::{
    Config, Counts,
    state::{Job, Output, State, WATCHED},
};
use crate::controller::{Change, Outcome};

/// The pure machine of [`DeviceController`](super::DeviceController).
#[derive(Debug)]
pub struct Controller {
    state: State,
}

/// A write that the API is asked for.
#[derive(Debug)]
pub struct Write {
    job: Job,
}

impl Write {
    /// What to merge into the Device of [`Write::device`] (RFC 7396).
    pub fn patch(&self) -> &Value {
        &self.job.patch
    }

    /// Which Device.
    pub fn device(&self) -> &kubeedge_core::id::DeviceId {
        &self.job.key.1
    }
}

/// What leaves for nodes.
#[derive(Debug)]
pub enum Told {
    /// An object.
    Object(ToNode<ObjectEvent>),
    /// The API has what the node reported.
    Acked(ToNode<Acked<ReportKey>>),
}

impl Controller {
    /// Creates it, with all objects that the API lists.
    pub fn listing(config: &Config, objects: &[Object]) -> Self {
        let mut state = State::new(config);
        for kind in WATCHED {
            state.handle_change(Change::Began(kind));
            for object in objects.iter().filter(|object| object.reference.kind() == kind.kind) {
                state.handle_change(Change::Applied(object.clone()));
            }
            state.handle_change(Change::Listed(kind));
        }
        Self { state }
    }

    /// Takes an object that the watch tells of: that it is there, or is gone.
    pub fn handle_watched(&mut self, object: Object, exists: bool) {
        self.state.handle_change(if exists { Change::Applied(object) } else { Change::Deleted(object) });
    }

    /// Takes what a node reports.
    pub fn handle_report(&mut self, from: FromNode<Delivered<Report>>, now: Instant) {
        self.state.handle_report(from, now);
    }

    /// The next write, if there may be one.
    pub fn poll_write(&mut self, now: Instant) -> Option<Write> {
        self.state.poll_write(now).map(|job| Write { job })
    }

    /// Takes what became of a write: done, or to be tried again.
    pub fn handle_written(&mut self, write: Write, done: bool, now: Instant) {
        let outcome = if done { Outcome::Done } else { Outcome::Retry("the API is away".to_owned()) };
        self.state.handle_written(write.job, outcome, now);
    }

    /// What to send next.
    pub fn poll_told(&mut self) -> Option<Told> {
        self.state.poll_output().map(|output| match output {
            Output::Downstream(event) => Told::Object(event),
            Output::Acked(acked) => Told::Acked(acked),
        })
    }

    /// When to ask for a write again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.state.poll_timeout()
    }

    /// All objects of a node.
    pub fn snapshot(&self, node: &NodeName) -> Vec<Object> {
        self.state.snapshot(node)
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.state.counts()
    }
}
