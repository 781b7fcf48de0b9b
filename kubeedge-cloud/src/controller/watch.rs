//! List and watch of one kind, as raw JSON.
//!
//! Typed structs would drop every field that they do not know, and what the edge gets must be what the user
//! wrote. So an object is cut out of the list or the watch line as the text it is, and only its head is read.

mod answer;
mod page;

use std::{collections::VecDeque, pin::Pin, time::Duration};

use futures::{
    Stream,
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt},
    stream,
};
use kube::{
    Client,
    core::{Request, params::WatchParams},
};
use kubeedge_core::message::{Object, ObjectRef};
use serde_json::value::RawValue;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Backoff, Sight, pruned};
use answer::{Event, Problem, version_of};
use page::Page;

/// A kind of the API, and how its requests spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    /// Group and version, such as `v1`.
    pub(crate) api_version: &'static str,
    /// Such as `Pod`.
    pub(crate) kind: &'static str,
    /// Such as `pods`.
    pub(crate) plural: &'static str,
    /// Whether an API may lack the kind, because a CRD defines it.
    pub(crate) optional: bool,
}

impl Kind {
    /// Whether it is the kind of this object.
    pub(crate) fn is_of(&self, reference: &ObjectRef) -> bool {
        self.kind == reference.kind() && self.api_version == reference.api_version()
    }

    /// The path of the kind in all namespaces.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.root(), self.plural)
    }

    /// The path of the kind in one namespace.
    pub(crate) fn path_in(&self, namespace: &str) -> String {
        format!("{}/namespaces/{namespace}/{}", self.root(), self.plural)
    }

    /// Whether the rights that KubeEdge's own manifests give to the cloud side lack this kind: then there is none
    /// of it for the edge, which is better than waiting for it.
    fn may_be_forbidden(&self) -> bool {
        matches!(self.kind, "PersistentVolumeClaim" | "PersistentVolume" | "RuntimeClass" | "Service")
    }

    fn root(&self) -> String {
        let api = if self.api_version.contains('/') { "apis" } else { "api" };
        format!("/{api}/{}", self.api_version)
    }
}

/// What a watch tells, in order: `Began`, an `Applied` for each object there is, `Listed`; from then on every
/// change. When the API no longer knows the version watched from, it begins again.
#[derive(Debug)]
pub(crate) enum Change {
    /// All objects of the kind are about to be told again; what is not told until `Listed` no longer exists.
    Began(Kind),
    /// The object is like this.
    Applied(Object),
    /// The object is gone; this is how it was.
    Deleted(Object),
    /// All objects of the kind have been told.
    Listed(Kind),
}

/// How long the pieces of a watch may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Objects per page of a list: 500, as client-go has it, so that no answer grows with the cluster.
    pub(crate) page: u32,
    /// How long one page may take.
    pub(crate) request: Duration,
    /// After how long the server is asked to end a watch. The server refuses 295 s and more to kube's clients.
    pub(crate) watch: Duration,
    /// A watch without a line for so long is opened anew: a server sends a bookmark each minute, so that
    /// silence means a connection that died unseen.
    pub(crate) idle: Duration,
    /// How long to wait after a failure.
    pub(crate) backoff: Backoff,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            page: 500,
            request: Duration::from_secs(60),
            watch: Duration::from_secs(240),
            idle: Duration::from_secs(75),
            backoff: Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) },
        }
    }
}

/// The longest line of a watch: etcd takes objects of at most 1.5 MiB, and JSON may be larger than protobuf.
const LINE_LIMIT: u64 = 16 << 20;

/// The page after one of more bytes is asked for when that one is taken, so that two large ones are never held at once.
const AHEAD_LIMIT: usize = 4 << 20;

/// After so many answers that deny a kind, and no good one between them, it is taken as empty: an API server that
/// starts may deny a kind for some seconds. Failures of other sorts say nothing of it, and do not count.
const DENIED_FOR_GOOD: u32 = 4;

/// A watch that ended sooner than this counts as failed, so that a server which ends each at once is not
/// asked without pause.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// Watches all objects of a kind. The stream never ends and never fails: it retries with back-off and logs.
pub(crate) fn watch(client: Client, kind: Kind, timing: Timing) -> impl Stream<Item = Change> + Send {
    watch_in(client, kind, timing, Sight::default())
}

/// As [`watch`], and notes in `sight` whether the API is seen.
pub(crate) fn watch_in(
    client: Client,
    kind: Kind,
    timing: Timing,
    sight: Sight,
) -> impl Stream<Item = Change> + Send {
    Watcher::new(client, kind, timing, sight).changes()
}

/// As [`watch_in`], of what the objects say in `metadata` alone: that is little of a Node, which lists its images.
#[cfg(any(test, feature = "edgecontroller"))]
pub(crate) fn watch_metadata_in(
    client: Client,
    kind: Kind,
    timing: Timing,
    sight: Sight,
) -> impl Stream<Item = Change> + Send {
    Watcher { forms: Some(METADATA), ..Watcher::new(client, kind, timing, sight) }.changes()
}

/// What to ask for, of a list and of one object, where that is not everything.
#[derive(Debug, Clone, Copy)]
struct Forms {
    list: &'static str,
    one: &'static str,
}

/// `metadata` alone. An API that cannot do that gives whole objects.
#[cfg(any(test, feature = "edgecontroller"))]
const METADATA: Forms = Forms {
    list: "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json",
    one: "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json",
};

struct Watcher {
    client: Client,
    kind: Kind,
    forms: Option<Forms>,
    timing: Timing,
    sight: Sight,
    told: VecDeque<Change>,
    failures: u32,
    /// Answers since the last good one that deny the kind.
    denials: u32,
    was_listed: bool,
    /// Whether the API had let some other kind be listed when the last page was asked for.
    others_listed: bool,
    /// How many pages of the present list came.
    came: u32,
    /// More pages than these must come until a list that failed is no longer a failure.
    stuck_at: u32,
    phase: Phase,
}

/// What is done next.
enum Phase {
    /// A page of the list is asked for: the first, or the one that the token names.
    List { page: Option<String> },
    /// Such a page is on its way.
    Listing { token: Option<String>, page: AbortOnDropHandle<Result<Page, Problem>> },
    /// The list is complete; a watch from this version is opened.
    Open { version: String },
    /// A watch is open.
    Watching { version: String, lines: Lines, opened: Instant },
}

type Lines = Pin<Box<dyn AsyncBufRead + Send>>;

impl Watcher {
    fn new(client: Client, kind: Kind, timing: Timing, sight: Sight) -> Self {
        Self {
            client,
            kind,
            forms: None,
            timing,
            sight,
            told: VecDeque::new(),
            failures: 0,
            denials: 0,
            was_listed: false,
            others_listed: false,
            came: 0,
            stuck_at: 0,
            phase: Phase::List { page: None },
        }
    }

    fn changes(self) -> impl Stream<Item = Change> + Send {
        stream::unfold(self, |mut watcher| async move {
            let change = watcher.next().await;
            Some((change, watcher))
        })
    }

    async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.told.pop_front() {
                return change;
            }
            let phase = std::mem::replace(&mut self.phase, Phase::List { page: None });
            match self.step(phase).await {
                Ok(next) => self.phase = next,
                Err(failure) => self.recover(failure).await,
            }
        }
    }

    async fn step(&mut self, phase: Phase) -> Result<Phase, Failure> {
        match phase {
            Phase::List { page } => Ok(self.ask(page)),
            Phase::Listing { token, page } => self.list(token, page).await,
            Phase::Open { version } => self.open(version).await,
            Phase::Watching { version, lines, opened } => self.line(version, lines, opened).await,
        }
    }

    /// Asks for a page, which comes and is read while the objects of the page before it are taken.
    fn ask(&mut self, token: Option<String>) -> Phase {
        // Noted now: an answer may be older than what others see by the time it is taken.
        self.others_listed = self.sight.has_listed();
        let page = page::get(self.client.clone(), self.kind, self.forms, self.timing, token.clone());
        Phase::Listing { token, page: AbortOnDropHandle::new(tokio::spawn(page)) }
    }

    async fn list(
        &mut self,
        token: Option<String>,
        page: AbortOnDropHandle<Result<Page, Problem>>,
    ) -> Result<Phase, Failure> {
        let first = token.is_none();
        if first {
            self.came = 0;
        }
        let page = match page.await.unwrap_or_else(|error| Err(error.into())) {
            Ok(page) => page,
            Err(problem) => {
                self.stuck_at = self.stuck_at.max(self.came);
                // What came so far stands, unless the API refuses the token, which names the list's version.
                let page = token.filter(|_| !problem.forgets_version());
                return Err(Failure::new(problem, Phase::List { page }));
            }
        };
        self.came = self.came.saturating_add(1);
        self.denials = 0;
        // A list that begins again gets its first pages each time; only the page that failed is progress.
        if self.came > self.stuck_at || page.next.is_none() {
            self.succeeded();
        }
        if first {
            self.told.push_back(Change::Began(self.kind));
        }
        let asks_ahead = page.bytes <= AHEAD_LIMIT;
        self.told.extend(page.objects.into_iter().map(Change::Applied));
        Ok(match page.next {
            Some(token) if asks_ahead => self.ask(Some(token)),
            Some(token) => Phase::List { page: Some(token) },
            None => {
                self.was_listed = true;
                self.sight.note_listed();
                self.told.push_back(Change::Listed(self.kind));
                Phase::Open { version: page.version }
            }
        })
    }

    async fn open(&mut self, version: String) -> Result<Phase, Failure> {
        let connected = self.connect(&version).await;
        match connected {
            Ok(lines) => {
                self.sight.regained(self.kind.kind);
                Ok(Phase::Watching { version, lines, opened: Instant::now() })
            }
            Err(problem) if problem.forgets_version() => {
                Err(Failure::new(problem, Phase::List { page: None }))
            }
            Err(problem) => Err(Failure::new(problem, Phase::Open { version })),
        }
    }

    async fn connect(&mut self, version: &str) -> Result<Lines, Problem> {
        let seconds = u32::try_from(self.timing.watch.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams { timeout: Some(seconds), bookmarks: true, ..WatchParams::default() };
        let mut request =
            Request::new(self.kind.path()).watch(&params, version).map_err(kube::Error::BuildRequest)?;
        // Kubernetes 1.37 compresses watches one gzip member per event, which clients stumble over.
        if let Ok(identity) = "identity".parse() {
            request.headers_mut().insert("accept-encoding", identity);
        }
        if let Some(form) = self.forms.and_then(|forms| forms.one.parse().ok()) {
            request.headers_mut().insert("accept", form);
        }
        let asked = self.client.request_stream(request);
        let answered = tokio::time::timeout(self.timing.request, asked).await;
        Ok(Box::pin(answered.map_err(|_| Problem::Late)??))
    }

    async fn line(&mut self, version: String, mut lines: Lines, opened: Instant) -> Result<Phase, Failure> {
        let mut line = Vec::new();
        let mut limited = (&mut lines).take(LINE_LIMIT);
        let read = tokio::time::timeout(self.timing.idle, limited.read_until(b'\n', &mut line)).await;
        match read {
            // A cut line is the end as well: what it told is told again from the version before it.
            Ok(Ok(_)) if line.last() != Some(&b'\n') && (line.len() as u64) < LINE_LIMIT => {
                self.ended(version, opened)
            }
            Ok(Ok(_)) => match self.event(&line, version) {
                Ok(version) => Ok(Phase::Watching { version, lines, opened }),
                Err(failure) => Err(failure),
            },
            Ok(Err(error)) => {
                tracing::debug!(kind = self.kind.kind, %error, "watch broke");
                self.ended(version, opened)
            }
            Err(_) => Ok(Phase::Open { version }),
        }
    }

    fn ended(&self, version: String, opened: Instant) -> Result<Phase, Failure> {
        let next = Phase::Open { version };
        if opened.elapsed() < SHORTEST_WATCH { Err(Failure::new(Problem::Ended, next)) } else { Ok(next) }
    }

    /// Takes a line of the watch; returns the version to go on from.
    fn event(&mut self, line: &[u8], version: String) -> Result<String, Failure> {
        let event: Event<'_> = serde_json::from_slice(line)
            .map_err(|error| Failure::new(error.into(), Phase::List { page: None }))?;
        self.succeeded();
        match event.what {
            "ADDED" | "MODIFIED" => Ok(self.tell(event.object, Change::Applied, version)),
            "DELETED" => Ok(self.tell(event.object, Change::Deleted, version)),
            "BOOKMARK" => Ok(version_of(event.object).unwrap_or(version)),
            "ERROR" => {
                let status: Box<kube::core::Status> = serde_json::from_str(event.object.get())
                    .map_err(|error| Failure::new(error.into(), Phase::List { page: None }))?;
                Err(Failure::new(kube::Error::Api(status).into(), Phase::List { page: None }))
            }
            other => {
                tracing::warn!(kind = self.kind.kind, event = other, "the API sent an event of unknown type");
                Ok(version)
            }
        }
    }

    fn tell(&mut self, raw: &RawValue, change: fn(Object) -> Change, version: String) -> String {
        match read(self.kind, raw) {
            Some(object) => {
                self.told.push_back(change(object));
                version_of(raw).unwrap_or(version)
            }
            None => version,
        }
    }

    fn succeeded(&mut self) {
        (self.failures, self.denials, self.stuck_at) = (0, 0, 0);
        self.sight.regained(self.kind.kind);
    }

    /// Notes a kind as lost that is needed and failed more than once: a watch that is left behind or a server that
    /// restarts is nothing to wake people for.
    fn note(&self, problem: &Problem) {
        let dispensable = (problem.is_missing() && self.kind.optional)
            || (problem.is_forbidden() && self.kind.may_be_forbidden())
            || problem.is_expired();
        // An API that has not answered in all this time is not one that restarts.
        if (self.failures > 0 || matches!(problem, Problem::Late)) && !dispensable {
            self.sight.lost(self.kind.kind, &problem.to_string());
        }
    }

    /// An API that goes on to deny a kind has no objects of it for nodes, which should not wait for them. A kind that
    /// was there once is another matter: its objects are not forgotten for an answer that may come from a proxy.
    fn give_up_waiting(&mut self, problem: &Problem) {
        let forbidden = problem.is_forbidden() && self.kind.may_be_forbidden();
        if !problem.is_missing() && !forbidden {
            return;
        }
        self.denials = self.denials.saturating_add(1);
        // An API server that has not yet read who may do what forbids everything, and that says nothing of the kind.
        let is_meant = !forbidden || self.others_listed;
        if self.kind.optional && !self.was_listed && self.denials >= DENIED_FOR_GOOD && is_meant {
            self.was_listed = true;
            // The rest of a list that broke off would now come without its beginning.
            self.phase = Phase::List { page: None };
            self.told.extend([Change::Began(self.kind), Change::Listed(self.kind)]);
        }
    }

    /// Says what went wrong, waits, and goes on.
    async fn recover(&mut self, failure: Failure) {
        let Failure { problem, next } = failure;
        let (kind, wait) = (self.kind.kind, self.timing.backoff.after(self.failures));
        match (problem.is_missing(), self.failures) {
            (true, 0) => {
                let api = self.kind.api_version;
                tracing::warn!(kind, api, "the API does not have this kind; are its CRDs installed?");
            }
            (true, _) => tracing::debug!(kind, retry_in = ?wait, "the API still does not have this kind"),
            (false, _) if problem.is_expired() => {
                tracing::info!(kind, "the watch was left behind; listing again")
            }
            (false, 0) => tracing::info!(kind, retry_in = ?wait, %problem, "watching failed"),
            (false, _) => tracing::warn!(kind, retry_in = ?wait, %problem, "watching failed again"),
        }
        self.note(&problem);
        self.failures = self.failures.saturating_add(1);
        self.phase = next;
        self.give_up_waiting(&problem);
        tokio::time::sleep(wait).await;
    }
}

/// The object in a list or a line; `None`, and a warning, if it is none.
fn read(kind: Kind, raw: &RawValue) -> Option<Object> {
    match Object::from_item(kind.api_version, kind.kind, pruned(raw.get())) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(kind = kind.kind, %error, "the API sent an object that cannot be read");
            None
        }
    }
}

struct Failure {
    problem: Problem,
    next: Phase,
}

impl Failure {
    fn new(problem: Problem, next: Phase) -> Self {
        Self { problem, next }
    }
}

// The script is a tower service, which only the standalone API depends on.
#[cfg(test)]
#[cfg(feature = "standalone")]
mod tests;
