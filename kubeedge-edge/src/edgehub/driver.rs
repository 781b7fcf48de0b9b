use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{
    StreamExt as _,
    future::{BoxFuture, pending},
    stream::FuturesUnordered,
};
use kubeedge_core::{
    hub::{EdgeLink, EdgeOutput, Frame},
    message::{Answer, Inventory, Lane, Request, Response, Upload},
    pipe::{CallError, Replier},
    transport::{Connection, Peer},
    wire::{Codec, Line, LineEvent, TooLong},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Config, EdgeHub, Error, Inbox, Outbox,
    dialling::{Dialled, Dialling},
};

/// Performs what [`EdgeLink`] decides.
pub(super) struct Driver {
    config: Config,
    codec: Arc<dyn Codec>,
    inbox: Inbox,
    outbox: Outbox,
    link: EdgeLink,
    line: Option<Line>,
    dialling: Dialling,
    closing: FuturesUnordered<BoxFuture<'static, ()>>,
    inventory: FuturesUnordered<BoxFuture<'static, Result<Inventory, CallError>>>,
    /// Requests of the cloud that parts of the node work on.
    asked: FuturesUnordered<BoxFuture<'static, (u64, Response)>>,
    /// Parts of the node that wait for the cloud's answer.
    asking: BTreeMap<u64, Replier<Answer>>,
    last_failure: Option<String>,
    /// When the cloud was told last what the clock shows.
    clock_said: Option<Instant>,
    renewals: Option<watch::Receiver<u64>>,
    /// When another connection is tried for in place of the one that there is, after that has failed.
    succeed_at: Option<Instant>,
    /// The connection that is about to take that place.
    successor: Option<Box<dyn Connection>>,
}

/// How long a connection may take to close with its last words.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the cloud is told what the clock of this machine shows, beside once a session. Clocks drift by seconds a day.
const CLOCK_INTERVAL: Duration = Duration::from_secs(300);

/// How long after a failure another connection is tried for again: the certificate of the one that there is lasts for months.
const SUCCEED_RETRY: Duration = Duration::from_secs(30);

/// What is told of a session that ends for another one.
const RENEWED: &str = "the node comes again with its next certificate";

/// Sends a frame; with the answer that the node is in sync, and with a ping now and then, goes what the clock shows.
fn send(line: &mut Line, frame: &Frame, clock_said: &mut Option<Instant>) -> Result<(), TooLong> {
    let is_due = || clock_said.is_none_or(|said| said.elapsed() >= CLOCK_INTERVAL);
    if !(matches!(frame, Frame::Synchronized) || matches!(frame, Frame::Ping(_)) && is_due()) {
        return line.send(frame);
    }
    *clock_said = Some(Instant::now());
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    line.send_with_clock(frame, u64::try_from(clock.as_millis()).unwrap_or(u64::MAX))
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Driver {
    pub(super) fn new(hub: EdgeHub) -> Self {
        let EdgeHub { config, transport, codec, inbox, outbox, renewals } = hub;
        let link = EdgeLink::new(config.link.clone(), config.node.clone(), config.seed, now());
        Self {
            dialling: Dialling::new(transport, config.dial_timeout, config.dial_interval),
            config,
            codec,
            inbox,
            outbox,
            link,
            line: None,
            closing: FuturesUnordered::new(),
            inventory: FuturesUnordered::new(),
            asked: FuturesUnordered::new(),
            asking: BTreeMap::new(),
            last_failure: None,
            clock_said: None,
            renewals,
            succeed_at: None,
            successor: None,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), Error> {
        loop {
            self.perform_all();
            let timer = self.link.poll_timeout();
            tokio::select! {
                () = stop.cancelled() => break,
                event = next_event(&mut self.line) => self.handle_line(event),
                dialled = self.dialling.next() => self.handle_dialled(dialled)?,
                () = renewed(&mut self.renewals), if self.line.is_some() => self.dial(),
                () = until(self.succeed_at.map(Instant::into_std)) => self.dial(),
                Some(answer) = self.inventory.next() => match answer {
                    Ok(inventory) => self.link.handle_inventory(&inventory, now()),
                    Err(error) => self.link.handle_garbled(format!("nobody says what the node holds: {error}"), now()),
                },
                Some((id, response)) = self.asked.next() => self.link.handle_response(id, response),
                Some(acked) = self.inbox.acked.recv() => self.link.handle_acked(&acked, now()),
                Some(report) = self.inbox.reports.recv() => self.link.handle_report(report),
                Some(upload) = self.inbox.uploads.recv(), if self.link.takes_uploads() => {
                    self.link.handle_upload(upload);
                }
                Some(event) = self.inbox.events.recv(), if self.link.takes_events() => {
                    self.link.handle_upload(Upload::Event(event));
                }
                Some(call) = self.inbox.queries.recv() => {
                    let (query, replier) = call.split();
                    self.asking.insert(self.link.handle_query(query, now()), replier);
                }
                Some(()) = self.closing.next() => {}
                () = until(timer) => self.link.handle_timeout(now()),
            }
        }
        self.link.handle_stop(now());
        self.perform_all();
        while self.closing.next().await.is_some() {}
        Ok(())
    }

    /// Performs all that the link asks for, and gives every free lane its next frame.
    fn perform_all(&mut self) {
        loop {
            while let Some(output) = self.link.poll_output() {
                self.perform(output);
            }
            if !self.transmit() {
                return;
            }
        }
    }

    /// Whether a frame was too long, so that there may be more to perform and to send.
    fn transmit(&mut self) -> bool {
        let Some(line) = &mut self.line else { return false };
        let mut too_long = false;
        for lane in Lane::ALL {
            if line.is_free(lane)
                && let Some(frame) = self.link.poll_transmit(lane, now())
                && send(line, &frame, &mut self.clock_said).is_err()
            {
                self.link.handle_too_long(&frame);
                too_long = true;
            }
        }
        too_long
    }

    fn perform(&mut self, output: EdgeOutput) {
        match output {
            EdgeOutput::Dial => self.dial(),
            EdgeOutput::NeedInventory => {
                let (caller, deadline) = (self.outbox.inventory.clone(), self.config.inventory_timeout);
                self.inventory.push(Box::pin(async move { caller.call((), deadline).await }));
            }
            EdgeOutput::Deliver(delivered) => {
                // If the part that stores is gone, nothing is acknowledged, and the cloud sends it again.
                let _ = self.outbox.objects.send(delivered);
            }
            EdgeOutput::Answered { id, answer } => {
                if let Some(replier) = self.asking.remove(&id) {
                    replier.answer(answer);
                }
            }
            EdgeOutput::Ask { id, deadline, request } => self.ask(id, deadline, request),
            EdgeOutput::Connectivity(connectivity) => {
                self.outbox.connectivity.send_replace(connectivity);
            }
            EdgeOutput::Welcomed { session } => {
                self.last_failure = None;
                let path = self.line.as_ref().map(Line::path).unwrap_or_default();
                info!(node = %self.config.node, path, session, "connected to the cloud");
            }
            EdgeOutput::Closed { reason, retry_in } => self.close(reason, retry_in),
            EdgeOutput::Uploaded(id) => {
                // Whoever kept it may be gone; it is sent again, and told again, when they are back.
                let _ = self.outbox.uploaded.send(id);
            }
            EdgeOutput::Undeliverable { what } => {
                error!(node = %self.config.node, what, "too long for the link, given up");
            }
        }
    }

    /// Dials, also while there is a session, which another one is to succeed. What is renewed from here on may come too late
    /// for this attempt.
    fn dial(&mut self) {
        self.succeed_at = None;
        if let Some(renewals) = &mut self.renewals {
            renewals.mark_unchanged();
        }
        self.dialling.begin();
    }

    fn handle_dialled(&mut self, dialled: Dialled) -> Result<(), Error> {
        let reason = match dialled {
            Ok(connection) if *connection.peer() == Peer::Cloud => {
                self.dialling.stop();
                if self.line.is_some() {
                    self.successor = Some(connection);
                    self.link.handle_succeeded(RENEWED, now());
                } else {
                    self.line = Some(Line::new(connection, self.codec.clone()));
                    self.link.handle_connected(now());
                }
                return Ok(());
            }
            Ok(connection) => format!("the peer is {:?}, not the cloud", connection.peer()),
            Err(error) if error.is_retryable() => error.to_string(),
            Err(error) => return Err(Error::Transport(error)),
        };
        if self.line.is_some() {
            debug!(node = %self.config.node, reason, "no connection in place of the one that there is");
            if !self.dialling.goes_on() {
                self.succeed_at = Some(Instant::now() + SUCCEED_RETRY);
            }
        } else if self.dialling.goes_on() {
            self.note_failure(reason, None);
        } else {
            self.link.handle_disconnected(reason, now());
        }
        Ok(())
    }

    /// Says why there is no connection, loudly the first time.
    fn note_failure(&mut self, reason: String, retry_in: Option<Duration>) {
        let node = &self.config.node;
        if self.last_failure.as_ref() == Some(&reason) {
            debug!(%node, reason, ?retry_in, "still no connection to the cloud");
        } else {
            warn!(%node, reason, ?retry_in, "no connection to the cloud");
        }
        self.last_failure = Some(reason);
    }

    fn handle_line(&mut self, event: LineEvent) {
        match event {
            LineEvent::Frame(frame) => self.link.handle_frame(frame, now()),
            LineEvent::Garbled(error) => self.link.handle_garbled(error.to_string(), now()),
            LineEvent::Free(_) => {}
            LineEvent::Broken(error) => self.link.handle_disconnected(error.to_string(), now()),
            LineEvent::Lost(reason) => self.link.handle_disconnected(reason, now()),
        }
    }

    /// Answers of parts to what an earlier session asked are of no use to the next.
    fn close(&mut self, reason: String, retry_in: Duration) {
        self.asked.clear();
        self.inventory.clear();
        self.dialling.stop();
        self.succeed_at = None;
        if self.successor.is_some() {
            info!(node = %self.config.node, reason, "the session is succeeded by another");
        } else {
            self.note_failure(reason.clone(), Some(retry_in));
        }
        if let Some(line) = self.line.take() {
            let last_words = std::iter::from_fn(|| self.link.poll_transmit(Lane::Heartbeat, now())).collect();
            self.closing.push(Box::pin(async move {
                let _ = timeout(CLOSE_TIMEOUT, line.close(last_words, reason)).await;
            }));
        }
        if let Some(connection) = self.successor.take() {
            self.line = Some(Line::new(connection, self.codec.clone()));
            self.link.handle_connected(now());
        }
    }

    fn ask(&mut self, id: u64, deadline: Duration, request: Request) {
        let (logs, services) = (self.outbox.logs.clone(), self.outbox.services.clone());
        let (cloud_messages, tunnels) = (self.outbox.cloud_messages.clone(), self.outbox.tunnels.clone());
        self.asked.push(Box::pin(async move {
            let answered = match request {
                Request::Logs(request) => logs.call(request, deadline).await,
                Request::Service(request) => services.call(request, deadline).await,
                Request::Publish(publish) => cloud_messages.call(publish, deadline).await,
                Request::Tunnel(step) => tunnels.call(step, deadline).await,
            };
            let response = answered.unwrap_or_else(|error| Response::Failed {
                code: if matches!(error, CallError::Late(..)) { 504 } else { 503 },
                message: error.to_string(),
            });
            (id, response)
        }));
    }
}

async fn next_event(line: &mut Option<Line>) -> LineEvent {
    match line {
        Some(line) => line.next().await,
        None => pending().await,
    }
}

/// Waits for the next change. Cancel-safe.
async fn renewed(renewals: &mut Option<watch::Receiver<u64>>) {
    if let Some(changed) = renewals
        && changed.changed().await.is_ok()
    {
        return;
    }
    // There is nobody who could renew anything.
    pending().await
}

async fn until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => sleep_until(Instant::from_std(at)).await,
        None => pending().await,
    }
}
