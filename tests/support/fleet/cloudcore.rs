//! A cloudcore in a process of its own.

use std::{
    fs,
    io::{Read, Write},
    net::Ipv4Addr,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use kubeedge_cloud::pki::Authority;

use super::{api::ApiSite, ports::free_port_of};

/// A cloudcore with its configuration.
pub struct Cloudcore {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// Where it listens for nodes.
    pub quic: u16,
    /// Where it says how it is.
    pub monitor: u16,
    process: Option<Child>,
}

impl Cloudcore {
    /// Writes the configuration of a cloudcore that takes `nodes` and keeps everything in `folder`; a silent node is given up
    /// after `keepalive` seconds, which are two heartbeats.
    pub fn prepare(
        program: PathBuf,
        folder: &Path,
        api: &ApiSite,
        authority: &Authority,
        nodes: usize,
        keepalive: u32,
    ) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let (ca, ca_key) = (folder.join("rootCA.crt"), folder.join("rootCA.key"));
        authority.save(&ca, &ca_key)?;
        let [quic, https, monitor] = [free_port_of(PORTS)?, free_port_of(PORTS)?, free_port_of(PORTS)?];
        let config = folder.join("cloudcore.yaml");
        let (kubeconfig, ca, ca_key) = (api.kubeconfig.display(), ca.display(), ca_key.display());
        let text = format!(
            "apiVersion: cloudcore.config.kubeedge.io/v1alpha2
kind: CloudCore
commonConfig: {{monitorServer: {{bindAddress: \"127.0.0.1:{monitor}\"}}}}
kubeAPIConfig: {{kubeConfig: {kubeconfig}}}
modules:
  cloudHub:
    advertiseAddress: [127.0.0.1]
    nodeLimit: {nodes}
    keepaliveInterval: {keepalive}
    tlsCAFile: {ca}
    tlsCAKeyFile: {ca_key}
    quic: {{enable: true, address: 127.0.0.1, port: {quic}}}
    https: {{enable: false, address: 127.0.0.1, port: {https}}}
    websocket: {{enable: false, address: 127.0.0.1, port: {https}}}
kubeedgeRs: {{replicas: {{enable: true}}}}
"
        );
        fs::write(&config, text)?;
        let log = folder.join("cloudcore.log");
        Ok(Self { program, config, log, quic, monitor, process: None })
    }

    /// Starts the process, again if it has ended.
    pub fn spawn(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| self.log.display().to_string())?;
        let process = Command::new(&self.program)
            .arg("--config")
            .arg(&self.config)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends the process as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Sends the process a signal, by the name that `kill` has for it.
    #[allow(dead_code, reason = "not every program that includes this file stops clouds")]
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.process.as_ref().context("no cloudcore")?.id().to_string();
        let sent =
            Command::new("kill").args([format!("-{name}"), pid]).status().context("cannot run kill")?;
        if !sent.success() {
            bail!("kill -{name}: {sent}");
        }
        Ok(())
    }

    /// The resident memory.
    pub fn rss_kib(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    /// The highest resident memory of the process's life.
    pub fn peak_rss_kib(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    /// Ends the process as an operator does, and waits until it has ended.
    pub fn terminate(&mut self) -> Result<()> {
        let mut process = self.process.take().context("no cloudcore")?;
        Command::new("kill").arg(process.id().to_string()).status().context("cannot run kill")?;
        let ended = process.wait()?;
        if !ended.success() {
            bail!("cloudcore ended with {ended}: {}", self.log());
        }
        Ok(())
    }

    /// The last of what it has logged.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// What it answers under a path of its monitor, if it does.
    pub fn monitor(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.monitor)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: cloudcore\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    fn status(&self, name: &str) -> Result<u64> {
        let pid = self.process.as_ref().context("no cloudcore")?.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("cloudcore has ended: {}", self.log()))?;
        Ok(line.split_whitespace().next().context("it is empty")?.parse()?)
    }
}

impl Drop for Cloudcore {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Other ones than the processes of a test have that are not of the fleet.
const PORTS: Range<u16> = 31_000..32_700;
