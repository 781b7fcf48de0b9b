//! What the node itself has: files such as those of `/sys`, and the output of commands.
//!
//! A Device comes from the cloud, and must not choose what is read or run here: the node's owner does, by
//! [`Config::files`] and [`Config::commands`]. No shell sees a value; a command gets the arguments that the owner gave it
//! and, when a property is written, the value on its standard input.
//!
//! A property's visitor:
//!
//! | Key | Meaning |
//! |---|---|
//! | `file` | the absolute path of a file, below one of the allowed folders |
//! | `command` | the name of an allowed command that prints the value |
//! | `writeCommand` | the name of an allowed command that takes a value; without it, it is written to the file |
//! | `field` | which of the words that white space separates is the value, counted from zero |
//! | `pointer` | where the value is, if what is read is JSON (RFC 6901) |
//! | `scale` | what a number is multiplied by |

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use kubeedge_core::device::{
    AccessMode, DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec,
};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

use super::{settings::Settings, text};

/// What devices may read and run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The folders below which files may be read and written. None unless the owner says otherwise.
    pub files: Vec<PathBuf>,
    /// The commands, by name: a program's absolute path and its arguments.
    pub commands: BTreeMap<String, Vec<String>>,
    /// How long a command may take.
    pub deadline: Duration,
    /// How many bytes are read of a file, or of what a command prints; more is an error.
    pub output_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            commands: BTreeMap::new(),
            deadline: Duration::from_secs(3),
            output_bytes_max: 64 << 10,
        }
    }
}

/// Drives what the node has.
#[derive(Debug, Clone)]
pub struct Local {
    name: Arc<str>,
    config: Arc<Config>,
}

impl Local {
    /// Creates the protocol `local`.
    pub fn new(config: Config) -> Self {
        Self::named("local", config)
    }

    /// Creates the protocol under another name.
    pub fn named(name: &str, config: Config) -> Self {
        Self { name: name.into(), config: Arc::new(config) }
    }
}

#[async_trait]
impl DeviceProtocol for Local {
    fn name(&self) -> &str {
        &self.name
    }

    async fn open(&self, spec: &DeviceSpec) -> Result<Box<dyn DeviceHandle>, DeviceError> {
        Ok(Box::new(Handle { config: self.config.clone(), spec: spec.clone() }))
    }
}

#[derive(Debug)]
struct Handle {
    config: Arc<Config>,
    spec: DeviceSpec,
}

impl Handle {
    fn settings<'a>(&self, property: &'a PropertySpec) -> Result<Settings<'a>, DeviceError> {
        match self.spec.property(&property.name) {
            Some(_) => Ok(Settings(&property.visitor)),
            None => Err(DeviceError::Invalid(format!("the device has no property {:?}", property.name))),
        }
    }
}

fn visitor(why: impl std::fmt::Display) -> DeviceError {
    DeviceError::Invalid(format!("visitors.configData: {why}"))
}

#[async_trait]
impl DeviceHandle for Handle {
    async fn read(&mut self, property: &PropertySpec) -> Result<String, DeviceError> {
        let settings = self.settings(property)?;
        let (file, command) =
            (settings.text(&["file"]).map_err(visitor)?, settings.text(&["command"]).map_err(visitor)?);
        let output = match (file, command) {
            (Some(file), None) => self.config.read_file(file).await?,
            (None, Some(command)) => self.config.run(command, None).await?,
            (Some(_), Some(_)) | (None, None) => {
                return Err(visitor("either file or command says where the value is"));
            }
        };
        let Some(field) = settings.whole(&["field"], 0, 10_000).map_err(visitor)? else {
            return text::value(property, settings, &output).map_err(DeviceError::Invalid);
        };
        let output = String::from_utf8_lossy(&output);
        let word = output.split_whitespace().nth(usize::try_from(field).unwrap_or(usize::MAX));
        let word = word.ok_or_else(|| DeviceError::Invalid(format!("what is read has no word {field}")))?;
        text::scaled(property, settings, word.to_owned()).map_err(DeviceError::Invalid)
    }

    async fn write(&mut self, property: &PropertySpec, value: &str) -> Result<(), DeviceError> {
        let settings = self.settings(property)?;
        if property.access == AccessMode::ReadOnly {
            return Err(DeviceError::Rejected(format!("{:?} can only be read", property.name)));
        }
        let value = text::payload(property, settings, value).map_err(DeviceError::Rejected)?;
        if let Some(command) = settings.text(&["writeCommand"]).map_err(visitor)? {
            return self.config.run(command, Some(&value)).await.map(drop);
        }
        match settings.text(&["file"]).map_err(visitor)? {
            Some(file) => self.config.write_file(file, &value).await,
            None => Err(DeviceError::Rejected("it has neither file nor writeCommand".to_owned())),
        }
    }
}

impl Config {
    /// The file, if it is a regular one below an allowed folder, whatever links lead there.
    async fn allowed(&self, file: &str) -> Result<PathBuf, DeviceError> {
        let path = tokio::fs::canonicalize(file).await;
        let path = path.map_err(|error| DeviceError::Unreachable(format!("{file}: {error}")))?;
        let mut allowed = false;
        for folder in &self.files {
            // The folders of /sys are links too.
            allowed |= match tokio::fs::canonicalize(folder).await {
                Ok(folder) => path.starts_with(folder),
                Err(_) => false,
            };
        }
        if !Path::new(file).is_absolute() || !allowed {
            return Err(visitor(format!("file {file:?} is not below a folder that this node allows")));
        }
        let metadata = tokio::fs::metadata(&path).await;
        let metadata = metadata.map_err(|error| DeviceError::Unreachable(format!("{file}: {error}")))?;
        // Reading a device or a pipe may never end.
        if metadata.is_file() { Ok(path) } else { Err(visitor(format!("{file:?} is no regular file"))) }
    }

    async fn read_file(&self, file: &str) -> Result<Vec<u8>, DeviceError> {
        let path = self.allowed(file).await?;
        let read = async {
            let file = tokio::fs::File::open(path).await?;
            read_all(file, self.output_bytes_max).await
        };
        read.await.map_err(|error| DeviceError::Unreachable(format!("{file}: {error}")))
    }

    async fn write_file(&self, file: &str, value: &str) -> Result<(), DeviceError> {
        let path = self.allowed(file).await?;
        let write = async {
            // Attributes of /sys take a value by one write, and files have the value alone.
            let mut file = tokio::fs::OpenOptions::new().write(true).truncate(true).open(path).await?;
            file.write_all(value.as_bytes()).await?;
            file.flush().await
        };
        write.await.map_err(|error| DeviceError::Rejected(format!("{file}: {error}")))
    }

    /// Runs a command; what it prints.
    async fn run(&self, name: &str, input: Option<&str>) -> Result<Vec<u8>, DeviceError> {
        let argv = self.commands.get(name).map(Vec::as_slice);
        let Some([program, arguments @ ..]) = argv else {
            return Err(visitor(format!("{name:?} is no command that this node allows")));
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").kill_on_drop(true);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let failed =
            |why: &dyn std::fmt::Display| DeviceError::Unreachable(format!("the command {name:?}: {why}"));
        let mut child = command.spawn().map_err(|error| failed(&error))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let work = async {
            let give = async {
                if let (Some(mut stdin), Some(input)) = (stdin, input) {
                    // A command may end without taking it.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let take = async {
                match stdout {
                    Some(stdout) => read_all(stdout, self.output_bytes_max).await,
                    None => Ok(Vec::new()),
                }
            };
            let (output, ()) = tokio::join!(take, give);
            Ok::<_, std::io::Error>((output?, child.wait().await?))
        };
        let late = || failed(&format!("it took longer than {:?}, and was killed", self.deadline));
        let (output, status) =
            timeout(self.deadline, work).await.map_err(|_| late())?.map_err(|error| failed(&error))?;
        match (status.success(), input) {
            (true, _) => Ok(output),
            (false, Some(_)) => {
                Err(DeviceError::Rejected(format!("the command {name:?} ended with {status}")))
            }
            (false, None) => Err(failed(&format!("it ended with {status}"))),
        }
    }
}

async fn read_all(from: impl tokio::io::AsyncRead + Unpin, max: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(max as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.len() > max {
        return Err(std::io::Error::other(format!("it has more than {max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use kubeedge_core::device::conformance;

    use super::*;

    fn spec(visitors: &[(&str, &str, &str)]) -> DeviceSpec {
        let property = |(name, _, visitor): &(&str, &str, &str)| {
            format!(r#"{{"name":"{name}","visitors":{{"configData":{visitor}}}}}"#)
        };
        let model = |(name, kind, _): &(&str, &str, &str)| format!(r#"{{"name":"{name}",{kind}}}"#);
        let properties = visitors.iter().map(property).collect::<Vec<_>>().join(",");
        let models = visitors.iter().map(model).collect::<Vec<_>>().join(",");
        let device = format!(
            r#"{{"metadata":{{"namespace":"default","name":"l-1"}},"spec":{{"protocol":{{"protocolName":"local"}},"properties":[{properties}]}}}}"#
        );
        let model = format!(r#"{{"spec":{{"properties":[{models}]}}}}"#);
        DeviceSpec::from_json(device.as_bytes(), model.as_bytes()).unwrap()
    }

    fn commands() -> BTreeMap<String, Vec<String>> {
        let argv = |argv: &[&str]| argv.iter().map(|word| (*word).to_owned()).collect();
        BTreeMap::from([
            ("hello".to_owned(), argv(&["/bin/echo", "hello; rm -rf $HOME"])),
            ("endless".to_owned(), argv(&["/bin/cat", "/dev/zero"])),
            ("slow".to_owned(), argv(&["/bin/sleep", "60"])),
            ("failing".to_owned(), argv(&["/bin/false"])),
            ("missing".to_owned(), argv(&["/bin/no-such-program"])),
        ])
    }

    const READ_ONLY_INT: &str = r#""type":"INT","accessMode":"ReadOnly""#;

    #[tokio::test]
    async fn files_and_commands_keep_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("limit");
        std::fs::write(&file, "5\n").unwrap();
        let visitor = format!(r#"{{"file":"{}"}}"#, file.display());
        let spec = spec(&[
            ("limit", r#""type":"INT""#, &visitor),
            ("greeting", r#""type":"STRING","accessMode":"ReadOnly""#, r#"{"command":"hello"}"#),
        ]);
        let config =
            Config { files: vec![folder.path().to_owned()], commands: commands(), ..Config::default() };
        conformance::run(&Local::new(config), &spec, Some(("limit", "7"))).await;
        assert_eq!(std::fs::read_to_string(file).unwrap(), "7");
    }

    #[tokio::test]
    async fn words_are_picked_and_numbers_scaled() {
        let spec = spec(&[
            ("load", r#""type":"DOUBLE","accessMode":"ReadOnly""#, r#"{"file":"/proc/loadavg","field":1}"#),
            ("greeting", r#""type":"STRING","accessMode":"ReadOnly""#, r#"{"command":"hello","field":1}"#),
        ]);
        let config = Config { files: vec!["/proc".into()], commands: commands(), ..Config::default() };
        let mut handle = Local::new(config).open(&spec).await.unwrap();
        let load = handle.read(spec.property("load").unwrap()).await.unwrap();
        assert!(load.parse::<f64>().unwrap() >= 0.0);
        assert_eq!(handle.read(spec.property("greeting").unwrap()).await.unwrap(), "rm", "no shell saw it");
    }

    #[tokio::test]
    async fn what_the_owner_did_not_allow_is_refused_whatever_way_leads_there() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("link")).unwrap();
        let path = |name: &str| format!(r#"{{"file":"{}"}}"#, folder.path().join(name).display());
        let ways = [
            r#"{"file":"/etc/hostname"}"#.to_owned(),
            path("link"),
            path("../../etc/hostname"),
            path("."),
            r#"{"command":"/bin/echo"}"#.to_owned(),
            r#"{"command":"hello","file":"/etc/hostname"}"#.to_owned(),
            "{}".to_owned(),
        ];
        let config =
            Config { files: vec![folder.path().to_owned()], commands: commands(), ..Config::default() };
        for way in ways {
            let spec = spec(&[("p", READ_ONLY_INT, &way)]);
            let mut handle = Local::new(config.clone()).open(&spec).await.unwrap();
            let read = handle.read(&spec.properties[0]).await;
            assert!(matches!(read, Err(DeviceError::Invalid(_))), "{way}: {read:?}");
        }
    }

    #[tokio::test]
    async fn a_command_that_does_not_end_or_prints_too_much_or_fails_is_an_error_in_time() {
        let config =
            Config { commands: commands(), deadline: Duration::from_millis(300), ..Config::default() };
        for (name, expected) in [
            ("slow", "it took longer than 300ms, and was killed"),
            ("endless", "it has more than 65536 bytes"),
            ("failing", "it ended with exit status: 1"),
            ("missing", "No such file or directory"),
        ] {
            let spec = spec(&[("p", READ_ONLY_INT, &format!(r#"{{"command":"{name}"}}"#))]);
            let mut handle = Local::new(config.clone()).open(&spec).await.unwrap();
            let begun = Instant::now();
            let error = handle.read(&spec.properties[0]).await.unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(name), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(5));
        }
    }
}
