//! The loop: does what the schedule asks, each device in its own future.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kubeedge_core::{
    device::{DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, Sample},
    id::DeviceId,
    pipe::{EventSender, SendError},
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Error, Mapper,
    state::{Action, Now, Outcome, State},
};

/// A call that has ended, with the device's handle if there is one.
struct Ended {
    device: DeviceId,
    handle: Option<Box<dyn DeviceHandle>>,
    outcome: Outcome,
}

/// How often samples that their pipe had no room for are offered again.
const OFFER_AGAIN: Duration = Duration::from_millis(5);

pub(super) async fn run(mapper: Mapper, stop: CancellationToken) -> Result<(), Error> {
    let Mapper { config, protocol, mut inbox, outbox } = mapper;
    if protocol.name().is_empty() {
        return Err(Error::Nameless);
    }
    let deadline = config.call_deadline;
    let mut state = State::new(config, protocol.name());
    let mut samples = Samples::new(outbox.samples);
    let mut handles: BTreeMap<DeviceId, Box<dyn DeviceHandle>> = BTreeMap::new();
    let mut calls: FuturesUnordered<BoxFuture<'static, Ended>> = FuturesUnordered::new();
    loop {
        samples.offer(state.poll_samples());
        state.hold(samples.are_held());
        for (device, action) in state.poll_actions(now().at) {
            calls.extend(start(&protocol, device, action, &mut handles, deadline));
        }
        for reading in state.poll_readings() {
            // Without a receiver there is nobody to tell; the devices still get what is desired.
            let _ = outbox.readings.send(reading);
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            Some(assignment) = inbox.assignments.recv() => state.handle_assignment(assignment, now()),
            Some(Ended { device, handle, outcome }) = calls.next(), if !calls.is_empty() => {
                let keeps = state.handle_outcome(&device, outcome, now());
                if let Some(handle) = handle.filter(|_| keeps) {
                    handles.insert(device, handle);
                }
            }
            () = until(state.poll_timeout()) => {}
            () = tokio::time::sleep(OFFER_AGAIN), if samples.are_held() => {}
        }
    }
}

/// The values on their way to whoever keeps them. What there is no room for waits here, and the devices with it.
struct Samples {
    pipe: Option<EventSender<Sample>>,
    held: VecDeque<Sample>,
    held_since: Option<Instant>,
}

impl Samples {
    fn new(pipe: Option<EventSender<Sample>>) -> Self {
        Self { pipe, held: VecDeque::new(), held_since: None }
    }

    fn are_held(&self) -> bool {
        !self.held.is_empty()
    }

    fn offer(&mut self, samples: Vec<Sample>) {
        let Some(pipe) = &self.pipe else { return };
        self.held.extend(samples);
        while let Some(sample) = self.held.pop_front() {
            match pipe.send(sample) {
                Ok(()) => {}
                Err(SendError::Full(sample)) => {
                    self.held.push_front(sample);
                    break;
                }
                Err(SendError::Closed(_)) => {
                    self.held.clear();
                    self.pipe = None;
                    break;
                }
            }
        }
        self.tell();
    }

    fn tell(&mut self) {
        match (self.held_since, self.held.is_empty()) {
            (None, false) => {
                tracing::warn!("values are read faster than they can be kept: devices are read more slowly");
                self.held_since = Some(Instant::now());
            }
            (Some(since), true) => {
                tracing::info!(after = ?since.elapsed(), "values can be kept again as fast as they are read");
                self.held_since = None;
            }
            (None, true) | (Some(_), false) => {}
        }
    }
}

/// Makes an action a future. The handle goes with it, so nobody else can use it meanwhile.
fn start(
    protocol: &Arc<dyn DeviceProtocol>,
    device: DeviceId,
    action: Action,
    handles: &mut BTreeMap<DeviceId, Box<dyn DeviceHandle>>,
    deadline: Duration,
) -> Option<BoxFuture<'static, Ended>> {
    // Opening begins by letting go: a serial bus can be open only once.
    let handle = handles.remove(&device);
    match action {
        Action::Close => None,
        Action::Open(spec) => {
            drop(handle);
            Some(open(protocol.clone(), device, spec, deadline).boxed())
        }
        Action::Read(spec, place) => Some(
            async move {
                let (mut handle, property) = (handle, &spec.properties[place]);
                let read = call(&mut handle, deadline, |handle| handle.read(property)).await;
                Ended { device, handle, outcome: Outcome::Read(property.name.clone(), read) }
            }
            .boxed(),
        ),
        Action::Write(spec, place, value) => Some(
            async move {
                let (mut handle, property) = (handle, &spec.properties[place]);
                let written = call(&mut handle, deadline, |handle| handle.write(property, &value)).await;
                Ended { device, handle, outcome: Outcome::Wrote(property.name.clone(), value, written) }
            }
            .boxed(),
        ),
    }
}
async fn open(
    protocol: Arc<dyn DeviceProtocol>,
    device: DeviceId,
    spec: Arc<DeviceSpec>,
    deadline: Duration,
) -> Ended {
    let opened = match timeout(deadline, protocol.open(&spec)).await {
        Ok(opened) => opened,
        Err(_) => Err(too_late(deadline)),
    };
    match opened {
        Ok(handle) => Ended { device, handle: Some(handle), outcome: Outcome::Opened(Ok(())) },
        Err(error) => Ended { device, handle: None, outcome: Outcome::Opened(Err(error)) },
    }
}

async fn call<'a, T>(
    handle: &'a mut Option<Box<dyn DeviceHandle>>,
    deadline: Duration,
    call: impl FnOnce(&'a mut Box<dyn DeviceHandle>) -> BoxFuture<'a, Result<T, DeviceError>>,
) -> Result<T, DeviceError> {
    let Some(handle) = handle else {
        return Err(DeviceError::Unreachable("it is not open".to_owned()));
    };
    timeout(deadline, call(handle)).await.unwrap_or_else(|_| Err(too_late(deadline)))
}

fn too_late(deadline: Duration) -> DeviceError {
    DeviceError::Unreachable(format!("no answer within {deadline:?}"))
}

async fn until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { at: Instant::now().into_std(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
}
