//! Where everything is on a node, and how it is written.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The places of a node, below a root that is `/` but in tests and when images are made.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    root: PathBuf,
}

impl Places {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub(crate) fn is_whole_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    /// An absolute path, below the root.
    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.at("/etc/kubeedge/config/edgecore.yaml")
    }

    pub(crate) fn edgecore(&self) -> PathBuf {
        self.at("/usr/local/bin/edgecore")
    }

    pub(crate) fn unit(&self) -> PathBuf {
        self.at("/etc/systemd/system/edgecore.service")
    }

    /// What an edge keeps; removed when it leaves.
    pub(crate) fn all(&self) -> Vec<PathBuf> {
        ["/etc/kubeedge", "/var/lib/kubeedge", "/var/lib/kubelet", "/var/lib/edged", "/var/log/kubeedge"]
            .map(|path| self.at(path))
            .into()
    }
}

/// Writes a file whole or not at all.
pub(crate) fn write(file: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let write = || {
        let folder = file.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let mut name = file.as_os_str().to_owned();
        name.push(".next");
        let next = PathBuf::from(name);
        let _ = fs::remove_file(&next);
        let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
        open.write_all(bytes)?;
        open.sync_all()?;
        fs::rename(&next, file)?;
        fs::File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}
