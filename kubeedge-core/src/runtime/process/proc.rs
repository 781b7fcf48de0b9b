//! Processes as `/proc` shows them.

use std::fs;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// The variable by which all processes of a container are known, those that it left in the background too.
pub(super) const ID_VARIABLE: &str = "CONTAINER_ID";

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
