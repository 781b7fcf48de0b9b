//! Files that are there whole or not at all, and keys that nobody else can read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::Error;

pub(super) fn read(file: &Path) -> Result<String, Error> {
    fs::read_to_string(file).map_err(|source| Error::File { action: "read", file: file.to_owned(), source })
}

/// Removes a file, for good when this returns.
pub(super) fn remove(file: &Path) -> Result<(), Error> {
    let removed = fs::remove_file(file).and_then(|()| File::open(directory_of(file))?.sync_all());
    removed.map_err(|source| Error::File { action: "remove", file: file.to_owned(), source })
}

/// Writes a file that everybody may read.
pub(super) fn write_public(file: &Path, text: &str) -> Result<(), Error> {
    write(file, text, 0o644)
}

/// Writes a file that only its owner may read.
pub(super) fn write_private(file: &Path, text: &str) -> Result<(), Error> {
    write(file, text, 0o600)
}

fn write(file: &Path, text: &str, mode: u32) -> Result<(), Error> {
    replace(file, text, mode).map_err(|source| Error::File { action: "write", file: file.to_owned(), source })
}

/// Writes beside the file and renames: a reader, and a restart after power loss, sees the old file or the new one.
fn replace(file: &Path, text: &str, mode: u32) -> io::Result<()> {
    let directory = directory_of(file);
    fs::create_dir_all(directory)?;
    let draft = draft_of(file);
    // Left by a crash, perhaps with another mode; it was never in use.
    drop(fs::remove_file(&draft));
    // The mode is there from the beginning, so that there is no moment in which others could open a key.
    let mut open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
    open.write_all(text.as_bytes())?;
    open.sync_all()?;
    fs::rename(&draft, file)?;
    File::open(directory)?.sync_all()
}

fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn draft_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".draft");
    name.into()
}
