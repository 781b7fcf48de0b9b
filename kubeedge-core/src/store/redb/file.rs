//! What is done with the file before redb sees it, and when redb does not like it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use ::redb::{Builder, Database, Error, ReadableDatabase, TableError};

use super::{OpenError, Opener, Recovery, RedbConfig, TABLE, failure::is_damage};

/// Opens or creates the file.
pub(super) fn open(path: &Path, config: &RedbConfig) -> Result<(Database, Recovery), OpenError> {
    let directory = parent(path);
    fs::create_dir_all(directory).map_err(io_error("create the directory", directory))?;
    let found = inspect(path).map_err(io_error("read", path))?;
    let why = match found {
        Found::Nothing => return Ok((create(path, config)?, Recovery::Created)),
        Found::Foreign(what) => return Err(OpenError::Foreign { path: path.to_owned(), what }),
        Found::Damaged(why) => why,
        Found::Ours { closed } => {
            protect(path).map_err(io_error("protect", path))?;
            let recovery = if closed { Recovery::Clean } else { Recovery::Repaired };
            match open_database(path, config) {
                Ok(database) => return Ok((database, recovery)),
                Err(error) if is_damage(&error) => error.to_string(),
                Err(error) => return Err(refused(path, error)),
            }
        }
    };
    let renamed_to = set_aside(path).map_err(io_error("rename", path))?;
    Ok((create(path, config)?, Recovery::SetAside { renamed_to, why }))
}

/// Opens the same file again after an error; what is damaged by then stays where it is, because parts still
/// rely on it being what they wrote.
pub(super) fn reopener(path: &Path, config: &RedbConfig) -> Opener {
    let (path, config) = (path.to_owned(), config.clone());
    Box::new(move || open_database(&path, &config))
}

fn open_database(path: &Path, config: &RedbConfig) -> Result<Database, Error> {
    let database = builder(config).open(path)?;
    ensure_table(&database)?;
    Ok(database)
}

/// What redb is told in every case.
pub(super) fn builder(config: &RedbConfig) -> Builder {
    let mut builder = Builder::new();
    // redb's own default is 1 GiB.
    builder.set_cache_size(config.cache_bytes);
    builder.set_check_integrity_on_open(config.check_at_open);
    builder
}

/// Creates the table in a file that is new, so that readers can rely on it.
pub(super) fn ensure_table(database: &Database) -> Result<(), Error> {
    match database.begin_read()?.open_table(TABLE) {
        Ok(_) => Ok(()),
        Err(TableError::TableDoesNotExist(_)) => {
            let transaction = database.begin_write()?;
            drop(transaction.open_table(TABLE)?);
            Ok(transaction.commit()?)
        }
        Err(error) => Err(error.into()),
    }
}

fn create(path: &Path, config: &RedbConfig) -> Result<Database, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    drop(options.open(path).map_err(io_error("create", path))?);
    protect(path).map_err(io_error("protect", path))?;
    let database = builder(config).create(path).map_err(Error::from);
    let database = database.and_then(|database| ensure_table(&database).map(|()| database));
    let database = database.map_err(|error| refused(path, error))?;
    // The file's name is in the directory, and has to survive too.
    sync(parent(path)).map_err(io_error("sync the directory", parent(path)))?;
    Ok(database)
}

/// Takes the file from everyone but its owner: it holds Secrets.
fn protect(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

fn sync(directory: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(directory)?.sync_all()?;
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    // A clock that stands still must not make a second damaged file replace the first.
    for seconds in seconds.. {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".corrupt-{seconds}"));
        let renamed_to = PathBuf::from(name);
        if !renamed_to.try_exists()? {
            fs::rename(path, &renamed_to)?;
            sync(parent(path))?;
            return Ok(renamed_to);
        }
    }
    Err(io::Error::other("no name is left for the damaged file"))
}

fn refused(path: &Path, error: Error) -> OpenError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "redb's errors are many, and not exhaustive")]
    match error {
        Error::DatabaseAlreadyOpen | Error::LockProtocolMismatch => {
            OpenError::InUse { path: path.to_owned() }
        }
        Error::UpgradeRequired(version) => OpenError::Foreign {
            path: path.to_owned(),
            what: format!("a redb file of the old format {version}"),
        },
        error => OpenError::Io { doing: "open", path: path.to_owned(), source: Box::new(error) },
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    move |error| OpenError::Io { doing, path: path.to_owned(), source: Box::new(error) }
}

/// What the beginning of a file says.
enum Found {
    /// There is no file, or nothing is in it.
    Nothing,
    /// A redb file; whether its last user closed it.
    Ours { closed: bool },
    /// Something that a person put there.
    Foreign(String),
    /// Neither, such as the zeros that a file system leaves after a power cut.
    Damaged(String),
}

/// How every redb file begins (redb's `docs/design.md`, "Super-header").
const REDB_MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

/// The bit of the byte after the magic number that says "open, or not closed properly".
const REDB_RECOVERY_REQUIRED: u8 = 2;

fn inspect(path: &Path) -> io::Result<Found> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Ok(Found::Foreign("no ordinary file".to_owned()));
    }
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head)?;
    Ok(judge(&head))
}

fn judge(head: &[u8]) -> Found {
    if let Some(rest) = head.strip_prefix(REDB_MAGIC) {
        let flags = rest.first().copied().unwrap_or(REDB_RECOVERY_REQUIRED);
        return Found::Ours { closed: flags & REDB_RECOVERY_REQUIRED == 0 };
    }
    let known: [(&[u8], &str); 4] = [
        (b"SQLite format 3\0", "an SQLite database (KubeEdge's edgecore in Go keeps one)"),
        (b"\x7fELF", "a program"),
        (b"\x1f\x8b", "a gzip file"),
        (b"PK\x03\x04", "a zip file"),
    ];
    if let Some((_, what)) = known.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Found::Foreign((*what).to_owned());
    }
    let is_text = |c: &u8| (0x20..0x7f).contains(c) || matches!(c, b'\n' | b'\r' | b'\t');
    match head {
        [] => Found::Nothing,
        head if head.iter().all(is_text) => Found::Foreign("a text file".to_owned()),
        head if head.iter().all(|byte| *byte == 0) => Found::Damaged("the file begins with zeros".to_owned()),
        _ => Found::Damaged("the file does not begin as a redb file does".to_owned()),
    }
}
