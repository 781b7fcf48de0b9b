//! What is done for the node as a whole, beside its pods: it lists images and removes those that nobody uses,
//! rotates logs, and chooses which pod ends when something runs short.

mod measure;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kubeedge_core::runtime::{ContainerRuntime, FileSystemUsage, Image, ImageId, RuntimeError, SandboxStats};
use tracing::{info, warn};

use self::measure::{Place, Sizes};
use super::{
    Config,
    events::{Kind, Note},
    eviction::{self, Shortage},
    garbage::{self, Images},
    node::Node,
    rotation,
    state::{Moment, State},
    statics::{self, Found, Statics},
};

/// How long the runtime may take for one of these; nobody waits for them.
const DEADLINE: Duration = Duration::from_secs(120);

/// How often pods with a limit of what they may write are measured. 10 s, as the kubelet looks for what is short.
const MEASURE_INTERVAL: Duration = Duration::from_secs(10);

type Listing = Result<(Vec<Image>, Vec<FileSystemUsage>), RuntimeError>;

/// What one of the works has come to.
pub(crate) enum Done {
    Rotated,
    /// The images that are here; and whether all that nobody uses are to go.
    Listed(Listing, bool),
    Removed(bool),
    /// What pods use, and what they have to give back.
    Measured(Vec<SandboxStats>, Sizes, Option<Shortage>),
    Scanned(Scan),
}

type Scan = io::Result<BTreeMap<PathBuf, Found>>;

/// What one kind of work is doing.
#[derive(Debug, Default)]
struct Task {
    busy: bool,
    next: Option<Instant>,
}

impl Task {
    fn is_due(&self, now: Instant) -> bool {
        !self.busy && self.next.is_none_or(|next| now >= next)
    }

    fn begin(&mut self, next: Instant) {
        (self.busy, self.next) = (true, Some(next));
    }
}

/// Does it.
pub(crate) struct Upkeep {
    config: Config,
    runtime: Arc<dyn ContainerRuntime>,
    images: Images,
    /// The images that containers have, by which a change is noticed.
    used: BTreeSet<String>,
    image_mount: Option<PathBuf>,
    works: FuturesUnordered<BoxFuture<'static, Done>>,
    logs: Task,
    listing: Task,
    measuring: Task,
    statics: Statics,
    scanning: Task,
    /// Something is short and being seen to.
    relieving: bool,
    /// What nobody uses was removed since the last pod ended.
    cleared: bool,
}

impl Upkeep {
    pub(crate) fn new(config: Config, runtime: Arc<dyn ContainerRuntime>) -> Self {
        Self {
            images: Images::new(config.image_collection, &config.sandbox_image),
            runtime,
            used: BTreeSet::new(),
            image_mount: None,
            works: FuturesUnordered::new(),
            logs: Task::default(),
            listing: Task::default(),
            measuring: Task::default(),
            statics: Statics::new(config.node.clone()),
            scanning: Task::default(),
            relieving: false,
            cleared: false,
            config,
        }
    }

    /// A directory of the file system with the images, once the runtime has said so.
    pub(crate) fn image_mount(&self) -> Option<&Path> {
        self.image_mount.as_deref()
    }

    /// Reads the files of static pods for the first time: they are known before anything is decided.
    pub(crate) async fn scan_first(&mut self, state: &mut State, now: Moment) {
        let Some(statics) = self.config.static_pods.clone() else { return state.handle_statics_known() };
        self.scanning.next = Some(now.at + statics.interval);
        let scan = scan(statics.path).await;
        self.handle_scan(scan, state, now);
    }

    fn handle_scan(&mut self, scan: Scan, state: &mut State, now: Moment) {
        let known = scan.is_ok();
        for change in self.statics.handle_scan(scan) {
            state.handle_static(change, now);
        }
        if known {
            state.handle_statics_known();
        }
    }

    /// Begins what is due.
    pub(crate) fn begin(&mut self, state: &State, now: Moment) {
        if self.logs.is_due(now.at) && self.config.log_rotation.bytes_max > 0 {
            let open = rotation::open(state.sandboxes());
            self.logs.begin(now.at + self.config.log_rotation.interval);
            let (runtime, limits) = (Arc::clone(&self.runtime), self.config.log_rotation);
            let stamp = rotation::stamp(now.unix_ms);
            if open.is_empty() {
                self.logs.busy = false;
            } else {
                self.works
                    .push(rotation::rotate(runtime, open, limits, stamp).map(|()| Done::Rotated).boxed());
            }
        }
        let used = state.sandboxes().flat_map(|sandbox| &sandbox.containers).map(|one| one.image_id.clone());
        let used: BTreeSet<String> = used.collect();
        let changed = used != self.used && !self.listing.busy;
        if changed || self.listing.is_due(now.at) {
            self.used = used;
            self.list(false, now.at);
        }
        if let Some(statics) = self.config.static_pods.clone()
            && self.scanning.is_due(now.at)
        {
            self.scanning.begin(now.at + statics.interval);
            self.works.push(scan(statics.path).map(Done::Scanned).boxed());
        }
        if self.measuring.is_due(now.at) {
            self.measuring.next = Some(now.at + MEASURE_INTERVAL);
            let places = measure::limited(state, &self.config);
            if !places.is_empty() {
                self.measuring.busy = true;
                self.measure(places, None);
            }
        }
    }

    /// When something is due.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let all = [&self.logs, &self.listing, &self.measuring, &self.scanning];
        all.iter().filter(|task| !task.busy).filter_map(|task| task.next).min()
    }

    /// Sees to what is short: first by what nobody uses, then by the end of a pod.
    pub(crate) fn relieve(&mut self, state: &State, node: &Node, now: Moment) {
        let Some(shortage) = node.shortage(now) else {
            self.cleared = false;
            return;
        };
        // One pod at a time: what it gives back may suffice.
        if self.relieving || state.is_evicting() {
            return;
        }
        self.relieving = true;
        warn!(signal = %shortage.signal, available = shortage.available, "the node runs short of something");
        if shortage.signal.is_disk() && !std::mem::replace(&mut self.cleared, true) {
            return self.list(true, now.at);
        }
        self.cleared = false;
        let places = if shortage.signal.is_disk() { measure::all(state, &self.config) } else { Vec::new() };
        self.measure(places, Some(shortage));
    }

    fn list(&mut self, clear: bool, now: Instant) {
        self.listing.begin(now + self.config.image_collection.interval.min(garbage::LIST_INTERVAL));
        let runtime = Arc::clone(&self.runtime);
        let ask = async move {
            let images = runtime.images().await?;
            Ok((images, runtime.image_file_systems().await?))
        };
        let ask = async move { Done::Listed(within(ask).await, clear) };
        self.works.push(ask.boxed());
    }

    fn remove(&mut self, images: Vec<ImageId>, clear: bool) {
        let runtime = Arc::clone(&self.runtime);
        let remove = async move {
            for image in images {
                match within(runtime.remove_image(&image)).await {
                    Ok(()) => info!(%image, "an image that nobody uses was removed"),
                    Err(error) => warn!(%image, %error, "an image that nobody uses cannot be removed"),
                }
            }
            Done::Removed(clear)
        };
        self.works.push(remove.boxed());
    }

    fn measure(&mut self, places: Vec<Place>, shortage: Option<Shortage>) {
        let runtime = Arc::clone(&self.runtime);
        let measure = async move {
            let stats = within(runtime.stats()).await.unwrap_or_else(|error| {
                warn!(%error, "the runtime does not say what pods use");
                Vec::new()
            });
            let sizes = tokio::task::spawn_blocking(move || measure::sizes(&places)).await;
            Done::Measured(stats, sizes.unwrap_or_default(), shortage)
        };
        self.works.push(measure.boxed());
    }

    /// The next work that has ended; waits for ever while there is none.
    pub(crate) async fn next(&mut self) -> Done {
        match self.works.next().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    /// Takes what a work has come to. Returns whether the node should be looked at at once.
    pub(crate) fn handle(&mut self, done: Done, state: &mut State, node: &mut Node, now: Moment) -> bool {
        match done {
            Done::Rotated => self.logs.busy = false,
            Done::Scanned(scan) => {
                self.scanning.busy = false;
                self.handle_scan(scan, state, now);
            }
            Done::Listed(listing, clear) => {
                self.listing.busy = false;
                self.handle_listing(listing, clear, state, node, now);
            }
            Done::Removed(clear) => {
                self.relieving &= !clear;
                // The list has changed.
                self.listing.next = Some(now.at);
                return true;
            }
            Done::Measured(stats, sizes, None) => {
                self.measuring.busy = false;
                for (uid, verdict) in measure::exceeded(state, &stats, &sizes) {
                    evict(state, &uid, verdict);
                }
            }
            Done::Measured(stats, sizes, Some(shortage)) => {
                self.relieving = false;
                let candidates = measure::candidates(state, &shortage, &stats, &sizes);
                match eviction::choose(&candidates, &shortage, self.config.eviction.grace_max) {
                    Some((uid, verdict)) => evict(state, &uid, verdict),
                    None => warn!(signal = %shortage.signal, "no pod may end for what is short"),
                }
            }
        }
        false
    }

    fn handle_listing(&mut self, listing: Listing, clear: bool, state: &State, node: &mut Node, now: Moment) {
        let (images, file_systems) = match listing {
            Ok(listing) => listing,
            Err(error) => {
                warn!(%error, "the images cannot be listed");
                self.relieving &= !clear;
                return;
            }
        };
        self.image_mount = file_systems.first().map(|usage| usage.mountpoint.clone());
        self.images.handle_images(&images, state.sandboxes(), now.at);
        node.handle_images(&images);
        let stale =
            if clear { self.images.all_unused() } else { self.images.stale(node.image_disk(), now.at) };
        if clear || !stale.is_empty() {
            self.remove(stale, clear);
        }
    }
}

fn evict(state: &mut State, uid: &kubeedge_core::id::Uid, verdict: super::state::Verdict) {
    info!(%uid, message = verdict.message, "a pod is evicted");
    let note = Note::of_pod(Kind::Warning, "Evicted", verdict.message.clone());
    state.handle_verdict(uid, verdict, note);
}

async fn scan(path: PathBuf) -> Scan {
    let scan = tokio::task::spawn_blocking(move || statics::scan(&path)).await;
    scan.map_err(io::Error::other).and_then(|scan| scan)
}

async fn within<T>(work: impl Future<Output = Result<T, RuntimeError>>) -> Result<T, RuntimeError> {
    tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| {
        let message = format!("no answer within {DEADLINE:?}");
        Err(RuntimeError::Unavailable { what: "look after the node".to_owned(), message })
    })
}

/// Amounts by the name of a container or volume.
pub(crate) type ByName = BTreeMap<String, i64>;
