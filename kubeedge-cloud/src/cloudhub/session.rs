use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{
    StreamExt as _,
    future::{BoxFuture, join_all, pending},
    stream::FuturesUnordered,
};
use kubeedge_core::{
    hub::{Frame, NodeLink, NodeOutput, Offence},
    id::NodeName,
    message::{
        Acked, Answer, Delivered, Delivery, FromNode, Lane, ObjectEvent, ObjectRef, Query, Report, ReportKey,
        Request, Response, Snapshot, Upload, UploadedEvent, UploadedPublish,
    },
    pipe::{self, Caller, LatestReceiver, LatestSender, Replier, SendError},
    transport::TransportError,
    wire::{Line, LineEvent},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{Config, Outbox, clock::Clock, gauges::Account};

/// One connection of a node, from its hello to its end: performs what [`NodeLink`] decides.
pub(super) struct Session {
    config: Arc<Config>,
    link: NodeLink,
    line: Line,
    outbox: Arc<Outbox>,
    /// `None` if there was no memory for it, and it only says so.
    account: Option<Account>,
    admission: mpsc::Sender<Admission>,
    ends: Option<Ends>,
    objects: LatestReceiver<ObjectRef, ObjectEvent>,
    acked: LatestReceiver<ReportKey, Acked<ReportKey>>,
    taken: LatestReceiver<Delivery, Delivery>,
    requests: LatestReceiver<u64, Word>,
    replaced: CancellationToken,
    /// Whether it has asked to become the node's session and was not answered yet. Until then nothing is read, nor is the node
    /// welcomed: whoever hears what it says must know of its session before, and answers must find it.
    waits: bool,
    steps: FuturesUnordered<BoxFuture<'static, Step>>,
    asked: FuturesUnordered<BoxFuture<'static, (u64, Answer)>>,
    asking: BTreeMap<u64, Reply>,
    /// Uploads for which their pipe had no room. They are not acknowledged, so the edge's window bounds them.
    events: VecDeque<Delivered<UploadedEvent>>,
    messages: VecDeque<Delivered<UploadedPublish>>,
    ended: Option<String>,
    clock: Clock,
}

/// What comes to be while a session begins.
enum Step {
    /// The hub has answered.
    Admitted(Admitted),
    /// The controllers have said what the node should have.
    Snapshot(Snapshot),
}

/// What the hub has for one session beside objects and acknowledgements.
pub(super) enum Word {
    /// A question for the node.
    Ask(Asked),
    /// The node is shut out.
    ShutOut,
}

impl Word {
    /// Questions count from 1.
    fn number(&self) -> u64 {
        match self {
            Self::Ask(asked) => asked.number,
            Self::ShutOut => 0,
        }
    }
}

/// A question for the node, and where its answer goes. Each is a key of its own in its pipe: a pipe for occurrences
/// makes room for dozens at once, and most sessions are never asked.
pub(super) struct Asked {
    pub(super) number: u64,
    pub(super) request: Request,
    pub(super) reply: Reply,
}

/// Where the answer to a question for the node goes.
pub(super) enum Reply {
    /// To a part of this cloud.
    Here(Replier<Response>),
    /// To another cloud.
    Elsewhere(Replier<Option<Response>>),
}

impl Reply {
    pub(super) fn answer(self, response: Response) {
        match self {
            Self::Here(replier) => replier.answer(response),
            Self::Elsewhere(replier) => replier.answer(Some(response)),
        }
    }
}

/// A session asks to become the one of its node.
pub(super) struct Admission {
    pub(super) node: NodeName,
    pub(super) ends: Ends,
    pub(super) admitted: oneshot::Sender<Admitted>,
}

/// What became of an [`Admission`].
pub(super) enum Admitted {
    /// It is the node's session.
    Yes,
    /// A newer session of the node is there already.
    Newer,
    /// There are as many sessions as may be.
    Full,
    /// The node is shut out.
    ShutOut,
}

/// Why a node is refused for which there is no room.
pub(super) const FULL: &str = "the cloud has as many sessions as it takes";

/// How the hub reaches a session.
pub(super) struct Ends {
    pub(super) number: u64,
    pub(super) objects: LatestSender<ObjectRef, ObjectEvent>,
    pub(super) acked: LatestSender<ReportKey, Acked<ReportKey>>,
    pub(super) taken: LatestSender<Delivery, Delivery>,
    pub(super) requests: LatestSender<u64, Word>,
    pub(super) replaced: CancellationToken,
    /// Ends the session because the cloud stops.
    pub(super) leave: CancellationToken,
}

/// How long a connection may take to close with its last words.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an upload waits before its pipe is tried again.
const UPLOAD_RETRY: Duration = Duration::from_millis(50);

pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Session {
    pub(super) fn new(
        config: Arc<Config>,
        link: NodeLink,
        line: Line,
        outbox: Arc<Outbox>,
        account: Option<Account>,
        admission: mpsc::Sender<Admission>,
        leave: CancellationToken,
    ) -> Self {
        let (objects_tx, objects) =
            pipe::latest("session objects", |event: &ObjectEvent| event.key().clone());
        let (acked_tx, acked) = pipe::latest("session acked", |acked: &Acked<ReportKey>| acked.key.clone());
        let (taken_tx, taken) = pipe::latest("session taken", |delivery: &Delivery| *delivery);
        let (requests_tx, requests) = pipe::latest("session requests", Word::number);
        let replaced = CancellationToken::new();
        let ends = Ends {
            number: link.session(),
            objects: objects_tx,
            acked: acked_tx,
            taken: taken_tx,
            requests: requests_tx,
            replaced: replaced.clone(),
            leave,
        };
        Self {
            config,
            link,
            line,
            outbox,
            account,
            admission,
            ends: Some(ends),
            objects,
            acked,
            taken,
            requests,
            replaced,
            waits: false,
            steps: FuturesUnordered::new(),
            asked: FuturesUnordered::new(),
            asking: BTreeMap::new(),
            events: VecDeque::new(),
            messages: VecDeque::new(),
            ended: None,
            clock: Clock::default(),
        }
    }

    /// Boxed, because an async function has a second place for what it is given.
    pub(super) async fn run(mut self: Box<Self>, stop: CancellationToken) {
        loop {
            self.perform_all();
            if self.ended.is_some() {
                break;
            }
            let timer = self.link.poll_timeout();
            tokio::select! {
                () = stop.cancelled() => self.link.handle_close("the cloud is stopping"),
                () = self.replaced.cancelled() => self.link.handle_close("a newer connection of the node took over"),
                event = self.line.next(), if !self.waits => self.handle_line(event),
                Some(step) = self.steps.next() => match step {
                    Step::Admitted(admitted) => self.handle_admitted(&admitted),
                    Step::Snapshot(snapshot) => self.link.handle_snapshot(snapshot),
                },
                Some((id, answer)) = self.asked.next() => self.link.handle_answer(id, answer),
                Some(acked) = self.acked.recv() => self.link.handle_acked(&acked),
                Some(delivery) = self.taken.recv() => self.link.handle_taken(delivery),
                Some(event) = self.objects.recv() => {
                    self.link.handle_downstream(event);
                    // Whatever came with it is put in order before the first of it is sent.
                    while let Some(event) = self.objects.try_recv() {
                        self.link.handle_downstream(event);
                    }
                }
                Some(word) = self.requests.recv() => match word {
                    Word::Ask(Asked { request, reply, .. }) => {
                        let id = self.link.handle_request(request, self.config.request_timeout, now());
                        self.asking.insert(id, reply);
                    }
                    Word::ShutOut => self.link.handle_shut_out(),
                },
                () = sleep(UPLOAD_RETRY), if !(self.events.is_empty() && self.messages.is_empty()) => self.pass_uploads(),
                () = until(timer) => self.link.handle_timeout(now()),
            }
        }
        self.close().await;
    }

    fn perform_all(&mut self) {
        self.pass_uploads();
        self.perform_outputs();
        if let Some(account) = &mut self.account
            && self.ended.is_none()
            && !account.note(&self.link, self.line.take_carried())
        {
            account.note_refused();
            self.link
                .handle_refuse("the cloud has no memory for what the session needs", self.config.retry_after);
            self.perform_outputs();
        }
    }

    fn perform_outputs(&mut self) {
        loop {
            while let Some(output) = self.link.poll_output() {
                self.perform(output);
            }
            if self.ended.is_some() || !self.transmit() {
                return;
            }
        }
    }

    /// Whether a frame was too long, so that there may be more to perform and to send.
    fn transmit(&mut self) -> bool {
        if self.waits {
            return false;
        }
        let mut too_long = false;
        for lane in Lane::ALL {
            if self.line.is_free(lane)
                && let Some(frame) = self.link.poll_transmit(lane, now())
            {
                if matches!(frame, Frame::Synchronized) {
                    self.clock.handle_asked(now());
                }
                if self.line.send(&frame).is_err() {
                    self.link.handle_too_long(&frame);
                    too_long = true;
                }
            }
        }
        too_long
    }

    fn perform(&mut self, output: NodeOutput) {
        let node = self.link.peer();
        match output {
            NodeOutput::NeedSnapshot => self.begin(),
            // What is left of a session that was replaced must not come behind what the newer one says. It is said again there.
            NodeOutput::Deliver(_) if self.replaced.is_cancelled() => {}
            NodeOutput::Deliver(delivered) => {
                let pipe = match &delivered.message {
                    Report::Node(_) | Report::Pod(_) | Report::Mirror(_) => &self.outbox.statuses,
                    Report::Device(_) => &self.outbox.device_reports,
                };
                // If the controller is gone, nothing is acknowledged, and the node sends it again.
                let _ = pipe.send(FromNode { node: node.clone(), message: delivered });
            }
            NodeOutput::Upload(Delivered { delivery, message }) => {
                match message {
                    Upload::Event(message) => self.events.push_back(Delivered { delivery, message }),
                    Upload::Publish(message) => self.messages.push_back(Delivered { delivery, message }),
                }
                self.pass_uploads();
            }
            NodeOutput::Query { id, query } => self.ask(id, query),
            NodeOutput::Responded { id, response } => {
                if let Some(reply) = self.asking.remove(&id) {
                    reply.answer(response);
                }
            }
            NodeOutput::Synchronized => info!(%node, session = self.link.session(), "the node is in sync"),
            NodeOutput::Undeliverable { what } => error!(%node, what, "too long for the link, given up"),
            NodeOutput::Closed { reason } => self.ended = Some(reason),
        }
    }

    fn handle_line(&mut self, event: LineEvent) {
        match event {
            LineEvent::Frame(frame) => {
                self.look_at_clock(&frame);
                if !self.has_expired() {
                    self.link.handle_frame(frame, now());
                }
            }
            LineEvent::Garbled(error) => self.link.handle_offence(Offence::Garbled, error.to_string()),
            LineEvent::Free(_) => {}
            LineEvent::Broken(error @ TransportError::TooLong { .. }) => {
                self.link.handle_offence(Offence::TooLong, error.to_string());
            }
            LineEvent::Broken(error) => self.link.handle_offence(Offence::Garbled, error.to_string()),
            LineEvent::Lost(reason) => self.link.handle_disconnected(reason),
        }
    }

    /// Ends a session whose node has shown a certificate that has ended meanwhile. A node that is not silent for too long says
    /// something at each heartbeat, so it needs no timer.
    fn has_expired(&mut self) -> bool {
        let Some(ends) = self.line.identity_ends() else { return false };
        let expired = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() > ends;
        if expired {
            let reason = "the certificate that the node showed has ended; it has to come with another";
            self.link.handle_offence(Offence::Expired, reason);
        }
        expired
    }

    fn look_at_clock(&mut self, frame: &Frame) {
        if matches!(frame, Frame::Synchronized) {
            self.clock.handle_answered(now());
        }
        let cloud_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let offset = |node_ms| self.clock.offset(node_ms, u64::try_from(cloud_ms).unwrap_or(u64::MAX));
        if let Some(message) = self.line.take_clock().and_then(offset) {
            let _ = self.outbox.clocks.send(FromNode { node: self.link.peer().clone(), message });
        }
    }

    /// Asks to become the node's session.
    fn begin(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        let node = self.link.peer().clone();
        info!(%node, session = ends.number, path = self.line.path(), "a node has connected");
        let admission = self.admission.clone();
        self.waits = true;
        self.steps.push(Box::pin(async move {
            let (admitted, answer) = oneshot::channel();
            let _ = admission.send(Admission { node, ends, admitted }).await;
            // Without an answer the hub is at its end, and so is this.
            Step::Admitted(answer.await.unwrap_or(Admitted::Newer))
        }));
    }

    /// Takes the hub's answer. As the node's session, changes come here, and only then the snapshot is asked for: between the two
    /// nothing can be missed.
    fn handle_admitted(&mut self, admitted: &Admitted) {
        self.waits = false;
        match admitted {
            Admitted::Yes => {}
            Admitted::Newer => return self.link.handle_close("the node has a newer session"),
            Admitted::Full => return self.link.handle_refuse(FULL, self.config.retry_after),
            Admitted::ShutOut => return self.link.handle_shut_out(),
        }
        let node = self.link.peer().clone();
        let (outbox, config) = (self.outbox.clone(), self.config.clone());
        self.steps.push(Box::pin(async move {
            let parts = outbox.snapshots.iter().map(|controller| snapshot(controller, &node, &config));
            Step::Snapshot(join_all(parts).await.into_iter().collect())
        }));
    }

    fn ask(&mut self, id: u64, query: Query) {
        let (queries, deadline) = (self.outbox.queries.clone(), self.config.query_timeout);
        let question = FromNode { node: self.link.peer().clone(), message: query };
        self.asked.push(Box::pin(async move {
            let answered = queries.call(question, deadline).await;
            (id, answered.unwrap_or_else(|error| Answer::Refused(error.to_string())))
        }));
    }

    /// Passes uploads on, in order, as far as there is room for them.
    fn pass_uploads(&mut self) {
        while let Some(event) = self.events.pop_front() {
            let delivery = event.delivery;
            let event = FromNode { node: self.link.peer().clone(), message: event };
            match self.outbox.events.send(event) {
                // Whoever received it says when it has been taken.
                Ok(()) => {}
                // With nobody to take uploads they end here; the node need not keep them.
                Err(SendError::Closed(_)) => self.link.handle_taken(delivery),
                Err(SendError::Full(FromNode { message, .. })) => {
                    self.events.push_front(message);
                    break;
                }
            }
        }
        while let Some(message) = self.messages.pop_front() {
            let delivery = message.delivery;
            let message = FromNode { node: self.link.peer().clone(), message };
            match self.outbox.messages.send(message) {
                Ok(()) => {}
                Err(SendError::Closed(_)) => self.link.handle_taken(delivery),
                Err(SendError::Full(FromNode { message, .. })) => {
                    self.messages.push_front(message);
                    break;
                }
            }
        }
    }

    async fn close(mut self: Box<Self>) {
        let reason = self.ended.take().unwrap_or_default();
        let node = self.link.peer();
        if let (Some(account), Some(offence)) = (&self.account, self.link.offence()) {
            account.note_offence(offence);
        }
        if self.ends.is_none() {
            info!(%node, session = self.link.session(), reason, "the node's session is over");
        } else {
            warn!(%node, path = self.line.path(), reason, "a connection ended before its session began");
        }
        while let Some(word) = self.requests.try_recv() {
            let Word::Ask(asked) = word else { continue };
            let message = format!("node {node} has disconnected");
            asked.reply.answer(Response::Failed { code: 503, message });
        }
        let last_words = std::iter::from_fn(|| self.link.poll_transmit(Lane::Heartbeat, now())).collect();
        let _ = timeout(CLOSE_TIMEOUT, self.line.close(last_words, reason)).await;
    }
}

/// Asks one controller until it says what it has for the node. The session's end ends the asking.
async fn snapshot(controller: &Caller<NodeName, Snapshot>, node: &NodeName, config: &Config) -> Snapshot {
    let mut told = false;
    loop {
        match controller.call(node.clone(), config.snapshot_timeout).await {
            Ok(snapshot) => return snapshot,
            Err(error) if told => debug!(%node, %error, "still no word on what the node should have"),
            Err(error) => warn!(%node, %error, "no word on what the node should have; asking again"),
        }
        told = true;
        sleep(config.snapshot_retry).await;
    }
}

async fn until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => sleep_until(Instant::from_std(at)).await,
        None => pending().await,
    }
}
