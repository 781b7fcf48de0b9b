//! Decides who leads. Pure.

use std::time::Instant;

use super::Config;

/// What stands in the Lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Who leads; empty if the Lease was given back.
    pub(super) holder: String,
    /// How often another has come to lead.
    pub(super) transitions: i64,
    /// When it was renewed, as its holder wrote it. It is compared with itself only.
    pub(super) renewed: String,
    /// The object's version, at which a write must find it.
    pub(super) version: String,
}

/// What to do with the Lease that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Another leads.
    Wait,
    /// Write oneself into it; `transitions` is `None` if one stands there already.
    Write { transitions: Option<i64> },
}

/// The state of one process that stands for election.
#[derive(Debug)]
pub(super) struct State {
    config: Config,
    /// The record that was seen last, and when it was seen to differ from the one before.
    observed: Option<(Record, Instant)>,
    /// Until when this process leads, unless it renews.
    leads_until: Option<Instant>,
}

impl State {
    pub(super) fn new(config: Config) -> Self {
        Self { config, observed: None, leads_until: None }
    }

    /// Takes the Lease as it was read.
    pub(super) fn handle_record(&mut self, record: &Record, now: Instant) -> Step {
        if self.observed.as_ref().is_none_or(|(observed, _)| observed != record) {
            self.observed = Some((record.clone(), now));
        }
        let since = self.observed.as_ref().map_or(now, |(_, since)| *since);
        if record.holder == self.config.identity {
            return Step::Write { transitions: None };
        }
        self.leads_until = None;
        if !record.holder.is_empty() && now < since + self.config.lease_duration {
            return Step::Wait;
        }
        Step::Write { transitions: Some(record.transitions.saturating_add(1)) }
    }

    /// The API has taken the record that this process wrote; the attempt began at `began`.
    pub(super) fn handle_written(&mut self, record: Record, began: Instant, now: Instant) {
        self.observed = Some((record, now));
        // The others count from when they see the record, which is no earlier than the attempt.
        self.leads_until = Some(began + self.config.renew_deadline);
    }

    /// Whether this process leads.
    pub(super) fn leads(&self, now: Instant) -> bool {
        self.leads_until.is_some_and(|until| now < until)
    }

    /// When it leads no longer, unless it renews before.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.leads_until
    }
}
