//! `keadm reset`: takes a machine back from being a node. What is gone already is no error, so it can be run again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{failed, files::Places, say, system};

/// Takes this machine back from being a node: stops edgecore, and removes what it keeps.
#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// What is reset.
    #[arg(default_value = "edge")]
    role: Role,
    /// Do not ask.
    #[arg(long)]
    force: bool,
    /// A program that is run before; no shell is involved.
    #[arg(long, value_name = "FILE")]
    pre_run: Option<PathBuf>,
    /// A program that is run afterwards.
    #[arg(long, value_name = "FILE")]
    post_run: Option<PathBuf>,
    /// Everything is below this folder.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// This node.
    Edge,
    /// The cloud: delete its namespace with kubectl instead.
    Cloud,
}

impl Reset {
    pub(crate) fn run(&self) -> Result<()> {
        if self.role == Role::Cloud {
            bail!(
                "reset cloud: `kubectl delete namespace kubeedge` removes cloudcore and its certificate authority"
            );
        }
        let places = Places::new(&self.root);
        if !self.force && !confirmed()? {
            say("nothing was done");
            return Ok(());
        }
        super::join::run_script(self.pre_run.as_deref(), "--pre-run")?;
        stop(&places)?;
        for place in places.all() {
            unmount_below(&place)?;
            remove(&place)?;
        }
        super::join::run_script(self.post_run.as_deref(), "--post-run")?;
        say("this machine is no node any more; `kubectl delete node` removes its Node from the API");
        say("containers that ran as its pods are still there: `crictl rmp -fa` removes all of them");
        Ok(())
    }
}

fn confirmed() -> Result<bool> {
    say("This removes edgecore's configuration, certificates, data and logs. Go on? [y/N]");
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("the answer cannot be read; --force does not ask")?;
    Ok(["y", "yes"].contains(&line.trim().to_lowercase().as_str()))
}

fn stop(places: &Places) -> Result<()> {
    let unit = places.unit();
    if places.is_whole_machine() && system::has_systemd() && unit.exists() {
        system::run("systemctl", &["disable", "--now", "edgecore.service"]).map_err(not_stopped)?;
    }
    remove(&unit)?;
    if places.is_whole_machine() {
        if system::has_systemd() {
            system::run("systemctl", &["daemon-reload"]).map_err(not_stopped)?;
        }
        if system::runs("edgecore") {
            let fix = "end it, and run `keadm reset` again: nothing that it keeps was removed";
            return Err(failed("stop", "edgecore runs, and not as a service", fix));
        }
    }
    Ok(())
}

fn not_stopped(error: anyhow::Error) -> anyhow::Error {
    let fix = "run keadm as root, look at `systemctl status edgecore`, and reset again: nothing that it keeps was removed";
    failed("stop", format_args!("{error:#}"), fix)
}

/// What pods had in memory is mounted below; it would be emptied instead of removed.
fn unmount_below(place: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|at| Path::new(at).starts_with(place));
    // The innermost come last.
    let below: Vec<_> = below.collect();
    for mount in below.into_iter().rev() {
        system::run("umount", &["--lazy", "--", mount]).map_err(|error| {
            let fix = format!("run keadm as root, or unmount {mount} yourself, and reset again");
            failed("unmount", format_args!("{error:#}"), fix)
        })?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        // A link is removed, and not what it leads to.
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| not_removed(path, &error))?;
    say(format_args!("removed {}", path.display()));
    Ok(())
}

fn not_removed(path: &Path, error: &io::Error) -> anyhow::Error {
    // Of all other kinds the error itself says what is wrong.
    let fix = if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) {
        "run keadm as root, on a disk that can be written, and reset again"
    } else if error.kind() == io::ErrorKind::ResourceBusy {
        "something is mounted there that is not a pod's: `findmnt` shows it; unmount it, and reset again"
    } else {
        "mend that, and reset again: what is gone already is passed over"
    };
    failed("remove", format_args!("cannot remove {}: {error}", path.display()), fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_removed_is_named_with_the_cause_and_the_fix() {
        for (kind, fix) in [
            (io::ErrorKind::PermissionDenied, "run keadm as root"),
            (io::ErrorKind::ResourceBusy, "unmount it"),
            (io::ErrorKind::DirectoryNotEmpty, "reset again"),
        ] {
            let told = not_removed(Path::new("/var/lib/kubelet"), &kind.into()).to_string();
            assert!(told.starts_with("remove: cannot remove /var/lib/kubelet: "), "{told}");
            assert!(told.contains("; fix: ") && told.contains(fix), "{told}");
        }
        let told = not_stopped(anyhow::anyhow!("systemctl: no bus")).to_string();
        assert!(told.starts_with("stop: systemctl: no bus; fix: run keadm as root"), "{told}");
    }

    #[test]
    fn what_is_gone_already_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        remove(&folder.path().join("gone")).unwrap();
    }
}
