//! `keadm join`: makes a machine a node.

mod checks;
mod config;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use kubeedge_core::id::NodeName;
use kubeedge_edge::certificates::{self, Files, Server};
use serde_json::json;

use self::checks::Checked;
use crate::{failed, files::Places, say, system};

/// Makes this machine a node: checks, certificate, configuration, service.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// Where CloudHub is: host:port; the port is that of the hub protocol.
    #[arg(short = 'e', long, value_name = "HOST:PORT")]
    cloudcore_ipport: String,
    /// The node's name; the machine's if it is not given.
    #[arg(short = 'i', long, value_name = "NAME")]
    edgenode_name: Option<String>,
    /// What `keadm gettoken` prints in the cloud. Whoever sees this machine's processes sees it too; see --token-file.
    #[arg(short = 't', long, default_value = "", hide_default_value = true)]
    token: String,
    /// A file with the token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The port for certificates.
    #[arg(short = 's', long, default_value_t = 10002, value_name = "PORT")]
    certport: u16,
    /// containerd's socket.
    #[arg(short = 'p', long, default_value = "unix:///run/containerd/containerd.sock", value_name = "URL")]
    remote_runtime_endpoint: String,
    /// Who keeps the cgroups of pods.
    #[arg(long, default_value = "cgroupfs", value_parser = ["cgroupfs", "systemd"])]
    cgroupdriver: String,
    /// The folder of the node's certificate.
    #[arg(long = "certPath", alias = "certpath", value_name = "DIR", default_value = "/etc/kubeedge/certs")]
    cert_path: String,
    /// Which protocol the port of --cloudcore-ipport is for. The other is tried too, at its usual port.
    #[arg(long, default_value = "websocket")]
    hub_protocol: Protocol,
    /// The node's labels: k=v,...
    #[arg(short = 'l', long, value_name = "LABELS", default_value = "", hide_default_value = true)]
    labels: String,
    /// Lets applications reach the node by MQTT, with a broker inside edgecore.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    with_mqtt: bool,
    /// A value of edgecore.yaml: a.b.c=value. Can be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// The program; it is copied to /usr/local/bin. If it is not given: the one beside keadm, or the one that is there.
    #[arg(long, value_name = "FILE")]
    edgecore: Option<PathBuf>,
    /// A program that is run before anything else; no shell is involved.
    #[arg(long, value_name = "FILE")]
    pre_run: Option<PathBuf>,
    /// A program that is run when everything is done.
    #[arg(long, value_name = "FILE")]
    post_run: Option<PathBuf>,
    /// Checks whose failure is no reason to stop: their names, or `all`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    ignore_preflight_errors: Vec<String>,
    /// Check only, and change nothing.
    #[arg(long)]
    check_only: bool,
    /// Put everything below this folder and start nothing, such as for the image of a machine.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// How the outcome is printed.
    #[arg(short = 'o', long, default_value = "text")]
    output: Output,
    /// Not used: KubeEdge's keadm takes edgecore out of an image of this version.
    #[arg(long, hide = true)]
    kubeedge_version: Option<String>,
    /// Not used: the registry of that image.
    #[arg(long, hide = true)]
    image_repository: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// TCP, port 10000.
    Websocket,
    /// UDP, port 10001.
    Quic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For scripts: one object.
    Json,
}

/// How long the cloud may take to answer each question.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Join {
    pub(crate) async fn run(&self) -> Result<ExitCode> {
        let places = Places::new(&self.root);
        if !self.check_only {
            run_script(self.pre_run.as_deref(), "--pre-run")?;
        }
        let checked = checks::run(self, &places).await;
        let stops: Vec<_> = checked.failed().filter(|check| !self.ignores(check.name)).collect();
        if !stops.is_empty() || self.check_only {
            self.tell(&checked, None)?;
            return Ok(if stops.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        let node = checked.node.clone().context("the node has no name: give --edgenode-name")?;
        let token = checked.token.clone().context("without a token nobody can join: give --token")?;
        let cloud = self.cloud().context("--cloudcore-ipport must be host:port")?;
        let certificates = certificates::Config {
            timeout: TIMEOUT,
            ..certificates::Config::new(node.clone(), cloud, self.files(&places))
        };
        let config = config::yaml(self, &places, &node).map_err(|error| {
            failed(
                "configuration",
                format_args!("{error:#}"),
                "look at --cloudcore-ipport, --set and --labels",
            )
        })?;
        // Whatever could be seen to be wrong before something is changed.
        let unit = unit(&places).map_err(|error| failed("service", error, "give another --root"))?;
        let edgecore = checked.edgecore.clone().context("there is no edgecore: give --edgecore")?;
        certificates::enroll(&certificates, &token).await.map_err(|error| not_issued(error, &node))?;
        install(&edgecore, &places).map_err(|error| not_written("install", &error))?;
        crate::files::write(&places.config(), config.as_bytes(), 0o640)
            .map_err(|error| not_written("configuration", &error))?;
        crate::files::write(&places.unit(), unit.as_bytes(), 0o644)
            .map_err(|error| not_written("service", &error))?;
        let next = start(&places)?;
        run_script(self.post_run.as_deref(), "--post-run")?;
        self.tell(&checked, Some(&next))?;
        Ok(ExitCode::SUCCESS)
    }

    fn ignores(&self, name: &str) -> bool {
        self.ignore_preflight_errors.iter().any(|ignored| ignored == name || ignored == "all")
    }

    /// The host of CloudHub and its port.
    fn hub(&self) -> Option<Server> {
        let (host, port) = self.cloudcore_ipport.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_' | b':');
        let valid = !host.is_empty() && host.len() <= 253 && host.bytes().all(inside);
        valid.then(|| Server { host: host.to_owned(), port })
    }

    /// Where certificates are issued.
    fn cloud(&self) -> Option<Server> {
        Some(Server { port: self.certport, ..self.hub()? })
    }

    fn files(&self, places: &Places) -> Files {
        let certs = places.at(&self.cert_path);
        Files {
            ca: places.at("/etc/kubeedge/ca/rootCA.crt"),
            certificate: certs.join("server.crt"),
            key: certs.join("server.key"),
        }
    }

    fn tell(&self, checked: &Checked, next: Option<&str>) -> Result<()> {
        match self.output {
            Output::Json => {
                let joined = next.is_some();
                let outcome = json!({ "joined": joined, "next": next, "checks": checked.json() });
                say(serde_json::to_string_pretty(&outcome)?);
            }
            Output::Text => {
                checked.lines().into_iter().for_each(say);
                next.into_iter().for_each(say);
            }
        }
        Ok(())
    }
}

fn not_issued(error: certificates::Error, node: &NodeName) -> anyhow::Error {
    let checks::Failure { cause, fix } = checks::told(error, node);
    failed("certificate", cause, fix)
}

/// The certificate is there by then, which the next attempt would take for an earlier node's.
fn not_written(step: &str, error: &anyhow::Error) -> anyhow::Error {
    let fix = "look at the space and the rights there, run `keadm reset edge` to take back what was done, and join again";
    failed(step, format_args!("{error:#}"), fix)
}

fn not_started(error: anyhow::Error) -> anyhow::Error {
    let fix = "everything else is done: look at `journalctl -u edgecore`, and run `systemctl enable --now edgecore`";
    failed("start", format_args!("{error:#}"), fix)
}

/// Runs a program of the user's, if there is one.
pub(crate) fn run_script(script: Option<&Path>, flag: &str) -> Result<()> {
    let Some(script) = script else { return Ok(()) };
    let (step, fix) =
        (format!("{flag} {}", script.display()), format!("mend the program, or leave {flag} out"));
    let status = Command::new(script).status();
    let status = status.map_err(|error| failed(&step, format_args!("it cannot be run: {error}"), &fix))?;
    if !status.success() {
        return Err(failed(&step, format_args!("it ended with {status}"), &fix));
    }
    Ok(())
}

/// Puts the program in its place, unless it is there.
fn install(edgecore: &Path, places: &Places) -> Result<()> {
    let target = places.edgecore();
    let is_there = fs::canonicalize(edgecore).ok() == fs::canonicalize(&target).ok() && target.exists();
    if !is_there {
        let bytes = fs::read(edgecore).with_context(|| format!("cannot read {}", edgecore.display()))?;
        crate::files::write(&target, &bytes, 0o755)?;
    }
    Ok(())
}

/// KubeEdge's unit: what it starts outlives it, so that pods go on while edgecore is replaced.
fn unit(places: &Places) -> Result<String> {
    let (program, config) = (plain(&places.edgecore())?, plain(&places.config())?);
    Ok(format!(
        "[Unit]\nDescription=edgecore.service\nWants=network-online.target\nAfter=network-online.target containerd.service\n\n\
         [Service]\nType=simple\nExecStart={program} --config={config}\nRestart=always\nRestartSec=10\nKillMode=process\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    ))
}

/// systemd has its own rules for spaces, percent signs and quotes; paths that have none of them need none.
fn plain(path: &Path) -> Result<String> {
    let text = path.to_str().unwrap_or_default();
    let inside = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'/' | b'-' | b'.' | b'_');
    ensure!(
        text.starts_with('/') && text.bytes().all(inside),
        "{}: give an absolute path of letters, digits, -, . and _",
        path.display()
    );
    Ok(text.to_owned())
}

/// Starts the service, and says how it stands; or says what there is to do.
fn start(places: &Places) -> Result<String> {
    let run = format!("{} --config={}", places.edgecore().display(), places.config().display());
    if !places.is_whole_machine() {
        return Ok(format!("ready; on the machine, start the service edgecore, or run: {run}"));
    }
    if !system::has_systemd() {
        return Ok(format!("this machine has no systemd; let its own supervisor run: {run}"));
    }
    system::run("systemctl", &["daemon-reload"]).map_err(not_started)?;
    system::run("systemctl", &["enable", "--now", "edgecore.service"]).map_err(not_started)?;
    Ok("edgecore has started; `journalctl -u edgecore -f` shows what it says".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_that_fails_is_named_with_its_cause_and_its_fix() {
        let refused = |reason: &str| {
            let (reason, text) = (reason.to_owned(), "the cloud's words".to_owned());
            let error = certificates::Error::Refused { status: 403, reason, text };
            not_issued(error, &"edge-1".parse().unwrap()).to_string()
        };
        for (reason, fix) in [
            ("TokenExpired", "`keadm gettoken`"),
            ("TokenUsed", "`kubectl delete node edge-1`"),
            ("NodeOfCluster", "another --edgenode-name"),
            ("NodeShutOut", "node.kubeedge.io/shut-out-"),
            ("TooMany", "in a minute"),
            ("SomethingNew", "what cloudcore logs"),
        ] {
            let told = refused(reason);
            assert!(told.starts_with("certificate: the cloud refuses: the cloud's words"), "{told}");
            let (_, told) = told.split_once("; fix: ").unwrap();
            assert!(told.contains(fix), "{reason}: {told}");
        }
        let told = not_written("install", &anyhow::anyhow!("no space").context("cannot write x")).to_string();
        assert!(
            told.starts_with("install: cannot write x: no space; fix: ") && told.contains("reset"),
            "{told}"
        );
        let told = not_started(anyhow::anyhow!("systemctl: no bus")).to_string();
        assert!(
            told.starts_with("start: systemctl: no bus; fix: ") && told.contains("enable --now"),
            "{told}"
        );
        let told = run_script(Some(Path::new("/nowhere/script")), "--pre-run").unwrap_err().to_string();
        assert!(told.starts_with("--pre-run /nowhere/script: it cannot be run: "), "{told}");
        assert!(told.ends_with("fix: mend the program, or leave --pre-run out"), "{told}");
    }
}
