//! The machine: its processes and its systemd. Commands get their words one by one; no shell sees them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// Whether systemd runs here, as `sd_booted(3)` tells.
pub(crate) fn has_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
}

/// Whether a program of this name runs.
pub(crate) fn runs(name: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|c| c.is_ascii_digit()))
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .any(|comm| comm.trim() == name)
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, words: &[&str]) -> Result<()> {
    let shown = format!("{program} {}", words.join(" "));
    let output = Command::new(program).args(words).output().with_context(|| format!("cannot run {shown}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {}: {}", output.status, said.trim());
    Ok(())
}

/// The machine's name.
pub(crate) fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase()
}
