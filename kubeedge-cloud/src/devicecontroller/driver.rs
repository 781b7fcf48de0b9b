use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered, SelectAll},
};
use kubeedge_core::{
    id::{DeviceId, NodeName},
    message::Snapshot,
    pipe::{Call, Replier},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    Counts, DeviceController, Inbox, Outbox,
    state::{DEVICE_STATUSES, DEVICES, Job, Output, State, WATCHED},
};
use crate::controller::{
    Backoff, Change, Kind, Outcome, Timing,
    api::{Api, Error, Place},
    now, sleep_until, watch_in,
};

/// How many questions for a snapshot wait for the first lists; each edge asks again after its deadline.
const WAITING_AT_ONCE: usize = 65_536;

/// The loop that performs what the state asks.
pub(super) struct Driver {
    api: Api,
    inbox: Inbox,
    outbox: Outbox,
    state: State,
    changes: SelectAll<BoxStream<'static, Change>>,
    writing: FuturesUnordered<BoxFuture<'static, (Job, Outcome, Mirrored)>>,
    /// Whether it was said that DeviceStatuses cannot be written.
    unmirrored: bool,
    waiting: Vec<(NodeName, Replier<Snapshot>)>,
    counts: tokio::sync::watch::Sender<Counts>,
}

impl Driver {
    pub(super) fn new(part: DeviceController) -> Self {
        let DeviceController { config, client, inbox, outbox, counts, denials, sight } = part;
        let backoff = Backoff { first: config.retry_first, max: config.retry_max };
        let timing = Timing { backoff, ..Timing::default() };
        let changes = WATCHED.map(|kind| watch_in(client.clone(), kind, timing, sight.clone()).boxed());
        Self {
            api: Api::new(client),
            inbox,
            outbox,
            state: State::new(&config).counting(denials),
            changes: SelectAll::from_iter(changes),
            writing: FuturesUnordered::new(),
            unmirrored: false,
            waiting: Vec::new(),
            counts,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            self.perform();
            tokio::select! {
                () = stop.cancelled() => return,
                Some(change) = self.changes.next() => self.state.handle_change(change),
                Some(report) = self.inbox.reports.recv() => self.state.handle_report(report, now()),
                Some(call) = self.inbox.snapshots.recv() => self.handle_snapshot(call),
                Some((job, outcome, mirrored)) = self.writing.next() => {
                    self.note_mirrored(mirrored);
                    self.state.handle_written(job, outcome, now());
                }
                () = sleep_until(self.state.poll_timeout()) => {}
            }
        }
    }

    /// Does all that the state wants done now. A pipe whose other end is gone is no error here: who stops first
    /// when all stop is a matter of chance.
    fn perform(&mut self) {
        while let Some(job) = self.state.poll_write(now()) {
            let api = self.api.clone();
            self.writing.push(write(api, job).boxed());
        }
        // After the writes, because a report that is dropped is acknowledged when its write is asked for.
        while let Some(output) = self.state.poll_output() {
            let sent = match output {
                Output::Downstream(event) => self.outbox.downstream.send(event),
                Output::Acked(acked) => self.outbox.acked.send(acked),
            };
            if let Err(closed) = sent {
                tracing::trace!(%closed, "nobody listens");
            }
        }
        self.answer_waiting();
        let counts = self.state.counts();
        self.counts.send_if_modified(|told| std::mem::replace(told, counts) != counts);
    }

    fn note_mirrored(&mut self, mirrored: Mirrored) {
        match mirrored {
            Ok(()) => {}
            Err(why) if self.unmirrored => tracing::debug!(why, "a DeviceStatus is not written"),
            Err(why) => {
                self.unmirrored = true;
                tracing::warn!(
                    why,
                    "DeviceStatuses are not written; what is reported is in the Devices. Install the CRDs and the rights of \
                     `keadm init`, or set kubeedgeRs.deviceController.deviceStatuses to false"
                );
            }
        }
    }

    fn handle_snapshot(&mut self, call: Call<NodeName, Snapshot>) {
        if self.waiting.len() >= WAITING_AT_ONCE {
            self.waiting.retain(|(_, reply)| !reply.is_withdrawn());
        }
        if self.waiting.len() < WAITING_AT_ONCE {
            self.waiting.push(call.split());
        }
    }

    /// Answers once it is known what exists: an empty snapshot would delete everything at the edge.
    fn answer_waiting(&mut self) {
        if self.state.is_complete() {
            for (node, reply) in self.waiting.drain(..) {
                reply.answer(self.state.snapshot(&node).into());
            }
        }
    }
}

/// Why a DeviceStatus cannot be written, which ends nothing.
type Mirrored = Result<(), String>;

/// The Device last: what is not in it yet is tried again, and so is all.
async fn write(api: Api, job: Job) -> (Job, Outcome, Mirrored) {
    let (_, device) = &job.key;
    let mut mirrored = Ok(());
    if let Some(mirror) = &job.mirror
        && let Err(error) = write_mirror(&api, device, mirror).await
    {
        mirrored = match error.code() {
            // There is no such kind, or it is not to be written.
            Some(403 | 404) => Err(error.to_string()),
            _ => match Outcome::from(error) {
                Outcome::Refused(why) => Err(why),
                outcome @ (Outcome::Retry(_) | Outcome::Done) => return (job, outcome, Ok(())),
            },
        };
    }
    let outcome = match api.merge(place(DEVICES, device), "", &job.patch).await {
        Ok(_) => Outcome::Done,
        Err(error) if error.is_missing() => {
            // It is deleted, and its DeviceStatus with it.
            mirrored = Ok(());
            Outcome::Done
        }
        Err(error) => error.into(),
    };
    (job, outcome, mirrored)
}

async fn write_mirror(api: &Api, device: &DeviceId, mirror: &Value) -> Result<(), Error> {
    let place = place(DEVICE_STATUSES, device);
    match api.merge(place, "", mirror).await {
        Err(error) if error.is_missing() => {}
        other => return other.map(drop),
    }
    api.create(place, mirror).await.map(drop)
}

fn place(kind: Kind, device: &DeviceId) -> Place<'_> {
    Place { kind, namespace: device.namespace(), name: device.name() }
}
