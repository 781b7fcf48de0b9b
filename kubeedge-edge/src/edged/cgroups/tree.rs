//! The kernel's hierarchies of cgroups on this machine.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{
    Limits, Place,
    limits::{File, Version},
};

/// How often an end is waited for, and how long: what was in a cgroup may take a moment to be gone from it.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Where cgroups are mounted: one hierarchy for all controllers, or some with some of them each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    version: Version,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    path: PathBuf,
    /// Of cgroup v1; v2 has all in one.
    controllers: Vec<String>,
}

impl Tree {
    /// Reads where they are.
    ///
    /// # Errors
    /// If this is not Linux, or no cgroups are mounted.
    pub(crate) fn of_machine() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Self::read(&mounts).ok_or_else(|| io::Error::other("no controllers of cgroups are mounted"))
    }

    /// Reads it from the text of `mountinfo` (proc(5)).
    pub(super) fn read(mounts: &str) -> Option<Self> {
        let mut hierarchies = Vec::new();
        let mut unified = Vec::new();
        for line in mounts.lines() {
            let Some((mount, system)) = line.split_once(" - ") else { continue };
            let path = PathBuf::from(mount.split(' ').nth(4)?);
            let mut system = system.split(' ');
            match (system.next(), system.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    let controllers = options.split(',').map(str::to_owned).collect();
                    hierarchies.push(Hierarchy { path, controllers });
                }
                (Some("cgroup2"), _) => unified.push(Hierarchy { path, controllers: Vec::new() }),
                _ => {}
            }
        }
        // A v2 beside controllers of v1 has none of its own, but what the runtime makes in all of them is there too.
        let v1 = hierarchies
            .iter()
            .any(|one| one.controllers.iter().any(|name| name == "memory" || name == "cpu"));
        let version = if v1 { Version::V1 } else { Version::V2 };
        hierarchies.extend(unified);
        (!hierarchies.is_empty()).then_some(Self { version, hierarchies })
    }

    pub(crate) fn files(&self, limits: &Limits) -> Vec<File> {
        limits.files(self.version)
    }

    /// The directory of a cgroup in the hierarchy of this controller; `None` if the kernel has no such controller.
    fn directory(&self, place: &Place, controller: &str) -> Option<PathBuf> {
        let of_controller = |one: &&Hierarchy| one.controllers.iter().any(|name| name == controller);
        let hierarchy = match self.version {
            Version::V1 => self.hierarchies.iter().find(of_controller)?,
            Version::V2 => self.hierarchies.first()?,
        };
        Some(hierarchy.path.join(place.directory()))
    }

    /// Makes a cgroup for these controllers, and those on the way to it. Returns whether it was not there.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(crate) fn make(&self, place: &Place, controllers: &[&str]) -> io::Result<bool> {
        if self.version == Version::V2 {
            return self.make_unified(place, controllers);
        }
        let mut made = false;
        for controller in controllers {
            let Some(directory) = self.directory(place, controller) else { continue };
            if !directory.exists() {
                fs::create_dir_all(&directory).map_err(|error| about(&directory, &error))?;
                made = true;
            }
        }
        Ok(made)
    }

    /// In cgroup v2 a controller is handed down from one cgroup to the next.
    fn make_unified(&self, place: &Place, controllers: &[&str]) -> io::Result<bool> {
        let Some(root) = self.hierarchies.first().map(|one| one.path.clone()) else { return Ok(false) };
        let way = place.way();
        let made = !root.join(place.directory()).exists();
        let above = [PathBuf::new()].into_iter().chain(way.iter().cloned());
        for (above, next) in above.zip(&way) {
            hand_down(&root.join(above), controllers)?;
            let next = root.join(next);
            match fs::create_dir(&next) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(about(&next, &error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(made)
    }

    /// Writes the files of a cgroup. One that is not there is left alone: its pod may have been started by somebody
    /// who makes none.
    ///
    /// # Errors
    /// If the kernel refuses a value; the others are written all the same.
    pub(crate) fn write(&self, place: &Place, files: &[File]) -> io::Result<()> {
        let mut outcome = Ok(());
        for file in files {
            let Some(directory) = self.directory(place, file.controller) else { continue };
            let path = directory.join(&file.name);
            if let Err(error) = overwrite(&path, &file.value)
                && error.kind() != io::ErrorKind::NotFound
            {
                outcome = Err(about(&path, &error));
            }
        }
        outcome
    }

    /// Writes those files of a cgroup that give it more than it has.
    ///
    /// # Errors
    /// If the kernel refuses a value.
    pub(crate) fn raise(&self, place: &Place, files: &[File]) -> io::Result<()> {
        let more = files.iter().filter(|file| {
            let path = self.directory(place, file.controller).map(|directory| directory.join(&file.name));
            let has = path.and_then(|path| fs::read_to_string(path).ok());
            has.is_some_and(|has| amount(&file.value) > amount(&has))
        });
        self.write(place, &more.cloned().collect::<Vec<_>>())
    }

    /// Removes a cgroup that is empty, in all hierarchies: runtimes make those of their containers in each. Returns
    /// whether there was one.
    ///
    /// # Errors
    /// If it is not empty.
    pub(crate) fn remove(&self, place: &Place) -> io::Result<bool> {
        let mut found = false;
        for hierarchy in &self.hierarchies {
            found |= remove(&hierarchy.path.join(place.directory()))?;
        }
        Ok(found)
    }
}

fn remove(directory: &Path) -> io::Result<bool> {
    let mut left = TRIES;
    loop {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if left == 0 => return Err(about(directory, &error)),
            Err(_) => {}
        }
        left -= 1;
        thread::sleep(PAUSE);
    }
}

/// Lets the cgroups below have these controllers, as far as this one has them.
fn hand_down(directory: &Path, controllers: &[&str]) -> io::Result<()> {
    let has = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    let path = directory.join("cgroup.subtree_control");
    let handed = fs::read_to_string(&path).unwrap_or_default();
    let listed = |text: &str, name: &str| text.split_whitespace().any(|one| one == name);
    for name in controllers.iter().filter(|name| listed(&has, name) && !listed(&handed, name)) {
        overwrite(&path, &format!("+{name}")).map_err(|error| about(&path, &error))?;
    }
    Ok(())
}

/// Writes into a file of the kernel's, which is never made.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// How much a file of a cgroup allows: its first number, where there are two.
fn amount(text: &str) -> i128 {
    match text.split_whitespace().next() {
        None | Some("max" | "-1") => i128::MAX,
        Some(number) => number.parse().unwrap_or(i128::MAX),
    }
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
