//! Processes as `/proc` shows them.

use std::{collections::HashMap, fs, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tracing::debug;

/// The variable by which all processes of a container are known, those that it left in the background too.
pub(super) const ID_VARIABLE: &str = "CONTAINER_ID";

/// How often a program's environment is looked for after its start, and after which pauses: a tenth of a second in all.
const SHOWN_AFTER_LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(2);

/// A process that is not a zombie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) group: u32,
    pub(super) start_time: u64,
}

impl Process {
    /// Reads `/proc/<pid>/stat`; `None` if there is no such process, or only what is left of one.
    pub(super) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// proc(5): the second field is a name in brackets that may hold anything, brackets too.
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        if matches!(state, "Z" | "X" | "x") {
            return None;
        }
        let group = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(16)?.parse().ok()?;
        Some(Self { group, start_time })
    }
}

/// Whether the process with this id is the one that started then.
pub(super) fn is_same(pid: i32, start_time: u64) -> bool {
    Process::read(pid).is_some_and(|process| process.start_time == start_time)
}

/// Names this boot: process ids and start times mean nothing in another.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The processes of a container.
pub(super) fn processes_of(container: &str) -> Vec<i32> {
    let wanted = format!("{ID_VARIABLE}={container}");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|id| {
        let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    })
    .collect()
}

/// A process's environment as it was started with.
pub(super) fn environment(pid: i32) -> Vec<(String, String)> {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let variables = environment.split(|byte| *byte == 0).filter_map(|variable| {
        let (name, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    variables.collect()
}

/// The environment of a process that has one, but may have been started this very moment: the kernel tells whoever starts a
/// program that it runs before it shows the environment.
pub(super) fn environment_of_started(pid: i32) -> Vec<(String, String)> {
    let mut looks = (0..SHOWN_AFTER_LOOKS).map(|look| {
        if look > 0 {
            thread::sleep(BETWEEN_LOOKS);
        }
        environment(pid)
    });
    looks.find(|environment| !environment.is_empty()).unwrap_or_default()
}

/// The user and group that a process has in effect.
pub(super) fn owner(pid: i32) -> Option<(u32, u32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let id = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    Some((id("Uid:")?, id("Gid:")?))
}

/// Sets who dies first when memory is short. The kernel refuses less than one's own to whoever is not root,
/// which is no reason for a pod not to run.
pub(super) fn set_oom_score_adj(pid: i32, value: i64) {
    if value != 0
        && let Err(error) = fs::write(format!("/proc/{pid}/oom_score_adj"), value.to_string())
    {
        debug!(pid, value, %error, "oom_score_adj stays as it is");
    }
}

/// What the processes of one container use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) processes: u64,
    pub(super) cpu_ns: u64,
    pub(super) resident_bytes: u64,
}

/// What the processes of all containers use.
pub(super) fn usage() -> HashMap<String, Usage> {
    let mut all: HashMap<String, Usage> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let container = environment(pid).into_iter().find(|(name, _)| name == ID_VARIABLE);
        let Some((_, container)) = container else { continue };
        let Some((cpu_ns, resident_bytes)) =
            fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| used(&stat))
        else {
            continue;
        };
        let usage = all.entry(container).or_default();
        usage.processes += 1;
        usage.cpu_ns += cpu_ns;
        usage.resident_bytes += resident_bytes;
    }
    all
}

/// proc(5), fields 14 to 17 and 24: its own time and that of children it waited for, in ticks; pages in memory.
fn used(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks: u64 = (14..=17).filter_map(field).sum();
    let ns_per_tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    Some((ticks * ns_per_tick, field(24)? * rustix::param::page_size() as u64))
}

/// Signals a group; one that is gone is fine.
pub(super) fn signal_group(group: i32, signal: Signal) {
    // 1 and less are not ours to signal, whatever a record says.
    if let Some(group) = Pid::from_raw(group).filter(|_| group > 1) {
        let _ = kill_process_group(group, signal);
    }
}

/// Kills one process; one that is gone is fine.
pub(super) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 1) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_confuse_the_fields() {
        let rest = "1 42 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        let stat = format!("9 (a) Z (b) S {rest}");
        assert_eq!(Process::parse(&stat), Some(Process { group: 42, start_time: 777 }));
        assert_eq!(Process::parse(&format!("9 (x) Z {rest}")), None);
        assert_eq!(Process::parse("garbage"), None);
    }

    #[test]
    fn this_process_is_found_as_it_is() {
        let pid = std::process::id() as i32;
        let own = Process::read(pid).unwrap();
        assert!(is_same(pid, own.start_time));
        assert!(!is_same(pid, own.start_time + 1));
    }
}
