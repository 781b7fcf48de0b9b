//! What the node and its pods use, read once for one answer.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use kubeedge_core::{
    id::NodeName,
    runtime::{
        ContainerRuntime, ContainerState, CpuUsage, FileSystemUsage, ObservedSandbox, RuntimeError,
        SandboxStats,
    },
};

use crate::edged::host::Usage;

/// Over how long processor time is averaged at least, and how old an earlier reading may become.
const WINDOW_MS: std::ops::RangeInclusive<u64> = 1_000..=10_000;

/// Reads figures, and remembers earlier ones, since processor time a second takes two.
#[derive(Debug)]
pub(super) struct Figures {
    node: NodeName,
    root: PathBuf,
    runtime: Arc<dyn ContainerRuntime>,
    earlier: Mutex<Readings>,
}

/// Readings of processor time, by whose it is.
type Readings = BTreeMap<String, CpuUsage>;

/// Everything at about one time.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub(super) node: String,
    /// Milliseconds since the Unix epoch, as all times here.
    pub(super) at_ms: u64,
    pub(super) boot_ms: u64,
    pub(super) cpu: CpuUsage,
    pub(super) usage: Usage,
    /// Processes and threads that there are.
    pub(super) tasks: u64,
    pub(super) images: Option<FileSystemUsage>,
    pub(super) own: Own,
    pub(super) pods: Vec<PodFigures>,
    /// How many containers there are in each state.
    pub(super) containers: BTreeMap<&'static str, u64>,
}

/// What this program itself uses.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Own {
    pub(super) cpu_ns: u64,
    pub(super) resident_bytes: u64,
    pub(super) descriptors: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct PodFigures {
    pub(super) stats: SandboxStats,
    pub(super) started_ms: u64,
    /// When each container was started, and what its logs take; in the order of the stats.
    pub(super) containers: Vec<(u64, u64)>,
}

impl Figures {
    pub(super) fn new(node: NodeName, root: PathBuf, runtime: Arc<dyn ContainerRuntime>) -> Self {
        Self { node, root, runtime, earlier: Mutex::default() }
    }

    pub(super) async fn read(&self) -> Result<Snapshot, RuntimeError> {
        let (stats, observed, images) = tokio::try_join!(
            self.runtime.stats(),
            self.runtime.observe(),
            self.runtime.image_file_systems()
        )?;
        let images = images.into_iter().next();
        let (root, node) = (self.root.clone(), self.node.to_string());
        let read = tokio::task::spawn_blocking(move || read(&root, node, stats, &observed, images)).await;
        // It was cancelled, which only happens when all of this ends.
        let mut snapshot = read.unwrap_or_default();
        self.rates(&mut snapshot);
        Ok(snapshot)
    }

    /// Fills in processor time a second from an earlier reading, where the runtime does not say it.
    fn rates(&self, snapshot: &mut Snapshot) {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = Readings::new();
        let mut rate = |name: String, cpu: &mut CpuUsage| {
            let before = earlier.get(&name).copied().filter(|before| before.total_ns <= cpu.total_ns);
            let past_ms = before.map_or(0, |before| cpu.at_ms.saturating_sub(before.at_ms));
            if let Some(before) = before
                && past_ms >= *WINDOW_MS.start()
            {
                let average = (cpu.total_ns - before.total_ns).saturating_mul(1000) / past_ms;
                cpu.nano_cores.get_or_insert(average);
            }
            let keep = before.filter(|_| past_ms < *WINDOW_MS.end()).unwrap_or(*cpu);
            kept.insert(name, keep);
        };
        rate(String::new(), &mut snapshot.cpu);
        for pod in &mut snapshot.pods {
            if let Some(cpu) = &mut pod.stats.cpu {
                rate(pod.stats.id.0.clone(), cpu);
            }
            for container in &mut pod.stats.containers {
                if let Some(cpu) = &mut container.cpu {
                    rate(container.id.0.clone(), cpu);
                }
            }
        }
        *earlier = kept;
    }
}

fn read(
    root: &Path,
    node: String,
    stats: Vec<SandboxStats>,
    observed: &[ObservedSandbox],
    images: Option<FileSystemUsage>,
) -> Snapshot {
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let (total_ns, boot_ms) = node_time(&stat);
    let image_directory = images.as_ref().map(|images| images.mountpoint.clone());
    let usage = Usage::read(root, image_directory.as_deref());
    let tasks = u64::try_from(usage.pids.capacity - usage.pids.available).unwrap_or(0);
    let mut containers = BTreeMap::new();
    for container in observed.iter().flat_map(|sandbox| &sandbox.containers) {
        let state = match container.state {
            ContainerState::Created => "created",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited { .. } => "exited",
            ContainerState::Unknown => "unknown",
        };
        *containers.entry(state).or_default() += 1;
    }
    Snapshot {
        node,
        at_ms,
        boot_ms,
        cpu: CpuUsage { at_ms, total_ns, nano_cores: None },
        usage,
        tasks,
        images,
        own: own(),
        pods: stats.into_iter().map(|stats| pod(stats, observed)).collect(),
        containers,
    }
}

fn pod(stats: SandboxStats, observed: &[ObservedSandbox]) -> PodFigures {
    let sandbox = observed.iter().find(|sandbox| sandbox.id == stats.id);
    let containers = stats.containers.iter().map(|one| {
        let found = sandbox.and_then(|sandbox| sandbox.containers.iter().find(|other| other.id == one.id));
        let started_ms = match found.map(|found| &found.state) {
            Some(ContainerState::Running { started_at_ms }) => *started_at_ms,
            Some(ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown)
            | None => 0,
        };
        let log = found.and_then(|found| found.log.as_ref()).and_then(|log| log.path.parent());
        (started_ms, log.map_or(0, files))
    });
    PodFigures {
        started_ms: sandbox.map_or(0, |sandbox| sandbox.created_at_ms),
        containers: containers.collect(),
        stats,
    }
}

/// What the files in a directory take: a container's log, and those that were rotated.
fn files(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}

/// proc(5): the time that all processors were busy, and when the node was started.
fn node_time(stat: &str) -> (u64, u64) {
    let line = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
    let ticks: Vec<u64> =
        line("cpu ").split_ascii_whitespace().map(|text| text.parse().unwrap_or(0)).collect();
    // All but idle and waiting for the disk; the two for guests are in the first two already.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index)).sum();
    let boot: u64 = line("btime ").trim().parse().unwrap_or(0);
    (busy.saturating_mul(ns_per_tick()), boot.saturating_mul(1000))
}

fn own() -> Own {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Own {
        cpu_ns: (field(14) + field(15)).saturating_mul(ns_per_tick()),
        resident_bytes: field(24).saturating_mul(rustix::param::page_size() as u64),
        descriptors: fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
    }
}

fn ns_per_tick() -> u64 {
    1_000_000_000 / rustix::param::clock_ticks_per_second().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_time_is_what_its_processors_were_busy() {
        let stat = "cpu  10 20 30 4000 500 6 7 8 9 10\ncpu0 1 2 3\nbtime 1700000000\n";
        assert_eq!(node_time(stat), (81 * ns_per_tick(), 1_700_000_000_000));
        assert_eq!(node_time(""), (0, 0));
    }

    #[test]
    fn a_rate_takes_two_readings_that_are_far_enough_apart() {
        use kubeedge_core::runtime::memory::MemoryRuntime;
        let runtime = Arc::new(MemoryRuntime::new());
        let figures = Figures::new("edge-1".parse().unwrap(), "/".into(), runtime);
        let at = |at_ms, total_ns| Snapshot {
            cpu: CpuUsage { at_ms, total_ns, nano_cores: None },
            ..Snapshot::default()
        };
        let mut rates = Vec::new();
        for (at_ms, total_ns) in
            [(1000, 5), (1500, 10), (3000, 1_000_000_005), (20_000, 1_000_000_005), (30_000, 4)]
        {
            let mut snapshot = at(at_ms, total_ns);
            figures.rates(&mut snapshot);
            rates.push(snapshot.cpu.nano_cores);
        }
        assert_eq!(rates, [None, None, Some(500_000_000), Some(52_631_578), None]);
    }
}
