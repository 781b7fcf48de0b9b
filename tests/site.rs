//! A site of real processes on private folders and ports: a `cloudcore --standalone`, its `edgecore`s, and kubectl.
//! If tests run on a real Kubernetes API, it takes the place of the standalone one.

#[path = "cluster.rs"]
pub mod cluster;
#[path = "support/ports.rs"]
mod ports;

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use ports::free_port_of;

/// Where the binaries are.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The folder with `cloudcore` and `edgecore`.
    pub folder: PathBuf,
}

/// The ports of a cloudcore.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// CloudHub over QUIC.
    pub quic: u16,
    /// CloudHub over WebSocket.
    pub websocket: u16,
    /// The standalone API.
    pub api: u16,
    /// Where nodes join.
    pub https: u16,
    /// Metrics and health.
    pub monitor: u16,
}

/// What one edgecore is started with besides the cloud's address.
#[derive(Debug, Clone)]
pub struct EdgeOptions {
    /// The node's name.
    pub node: String,
    /// Where its link goes; the cloud's QUIC port if `None`.
    pub quic: Option<u16>,
    /// Whether it may use WebSocket too.
    pub websocket: bool,
    /// containerd's socket; processes if `None`.
    pub containerd: Option<PathBuf>,
    /// More members of `tailoredKubeletConfig`, each with a comma before it.
    pub kubelet: String,
    /// More lines for its configuration file, under `modules:`.
    pub modules: String,
    /// The mappers in its process, and more lines under `kubeedgeRs:`.
    pub mappers: String,
}

impl EdgeOptions {
    /// A node that runs processes.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            quic: None,
            websocket: true,
            containerd: None,
            kubelet: String::new(),
            modules: String::new(),
            mappers: "[thermometer]".into(),
        }
    }
}

/// A cloudcore with what it needs.
#[derive(Debug)]
pub struct Cloud {
    binaries: Binaries,
    folder: PathBuf,
    /// Its ports.
    pub ports: Ports,
    /// The kubeconfig of cloudcore itself; it brings its own API if `None`.
    account: Option<PathBuf>,
    process: Option<Child>,
}

impl Cloud {
    /// Starts a standalone cloudcore that keeps everything in `folder`, with a heartbeat of one second.
    pub fn start(binaries: &Binaries, folder: &Path) -> Result<Self> {
        Self::start_with_heartbeat(binaries, folder, 1)
    }

    /// Starts a standalone cloudcore whose sessions have a heartbeat of so many seconds.
    pub fn start_with_heartbeat(binaries: &Binaries, folder: &Path, heartbeat: u64) -> Result<Self> {
        Self::start_with_modules(binaries, folder, heartbeat, "")
    }

    /// As [`Cloud::start_with_heartbeat`], with more lines for its configuration file, under `modules:`.
    pub fn start_with_modules(
        binaries: &Binaries,
        folder: &Path,
        heartbeat: u64,
        modules: &str,
    ) -> Result<Self> {
        Self::start_with_config(binaries, folder, heartbeat, "", modules)
    }

    /// As [`Cloud::start_with_modules`], with more members of `commonConfig`, each with a comma before it.
    pub fn start_with_config(
        binaries: &Binaries,
        folder: &Path,
        heartbeat: u64,
        common: &str,
        modules: &str,
    ) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let ports = Ports {
            quic: free_port()?,
            websocket: free_port()?,
            api: free_port()?,
            https: free_port()?,
            monitor: free_port()?,
        };
        let mut cloud = Self::prepare(binaries, folder, ports);
        if let Some(admin) = cluster::admin() {
            let account = cloud.data().join("cloudcore.kubeconfig");
            fs::create_dir_all(cloud.data())?;
            fs::copy(&admin, cloud.kubeconfig()).with_context(|| admin.display().to_string())?;
            cluster::prepare(&admin, &binaries.folder.join("cloudcore"), &account)?;
            cloud.account = Some(account);
            // The authority that the tests issue certificates of is there before cloudcore would make its own.
            cloud.issue("nobody", &cloud.folder.join("nobody"))?;
        }
        fs::write(cloud.folder.join("cloudcore.yaml"), cloud.config(heartbeat, common) + modules)?;
        cloud.spawn()?;
        Ok(cloud)
    }

    fn prepare(binaries: &Binaries, folder: &Path, ports: Ports) -> Self {
        Self { binaries: binaries.clone(), folder: folder.to_owned(), ports, account: None, process: None }
    }

    /// Starts another cloudcore, which keeps everything in `folder` and reaches this one's API by a kubeconfig.
    pub fn another(&self, folder: &Path, kubeconfig: &str) -> Result<Self> {
        self.another_with_modules(folder, kubeconfig, "")
    }

    /// As [`Cloud::another`], with more lines for its configuration file, under `modules:`.
    pub fn another_with_modules(&self, folder: &Path, kubeconfig: &str, modules: &str) -> Result<Self> {
        self.another_with_config(folder, kubeconfig, "", modules)
    }

    /// As [`Cloud::another_with_modules`], with more members of `commonConfig`, each with a comma before it.
    pub fn another_with_config(
        &self,
        folder: &Path,
        kubeconfig: &str,
        common: &str,
        modules: &str,
    ) -> Result<Self> {
        let ports = Ports {
            quic: free_port()?,
            websocket: free_port()?,
            https: free_port()?,
            monitor: free_port()?,
            ..self.ports
        };
        let mut cloud = Self::prepare(&self.binaries, folder, ports);
        let account = cloud.data().join("cloudcore.kubeconfig");
        fs::create_dir_all(cloud.data())?;
        fs::copy(self.kubeconfig(), cloud.kubeconfig())?;
        fs::write(&account, kubeconfig)?;
        cloud.account = Some(account);
        fs::create_dir_all(cloud.data().join("ca"))?;
        for file in ["ca/rootCA.crt", "ca/rootCA.key"] {
            fs::copy(self.data().join(file), cloud.data().join(file))?;
        }
        fs::write(cloud.folder.join("cloudcore.yaml"), cloud.config(1, common) + modules)?;
        cloud.spawn()?;
        Ok(cloud)
    }

    /// The kubeconfig that cloudcore itself reaches its API by, or another could.
    pub fn account(&self) -> PathBuf {
        self.account.clone().unwrap_or_else(|| self.kubeconfig())
    }

    fn config(&self, heartbeat: u64, common: &str) -> String {
        // A silent node is given up after two heartbeats, as KubeEdge has it.
        let keepalive = 2 * heartbeat;
        let Ports { quic, websocket, https, monitor, .. } = self.ports;
        format!(
            "apiVersion: cloudcore.config.kubeedge.io/v1alpha1\nkind: CloudCore\n\
             commonConfig: {{monitorServer: {{bindAddress: \"127.0.0.1:{monitor}\"}}{common}}}\n\
             modules:\n  cloudHub:\n    \
             advertiseAddress: [127.0.0.1]\n    keepaliveInterval: {keepalive}\n    \
             quic: {{enable: true, address: 127.0.0.1, port: {quic}}}\n    \
             websocket: {{enable: true, address: 127.0.0.1, port: {websocket}}}\n    \
             https: {{enable: true, address: 127.0.0.1, port: {https}}}\n"
        ) + &self.cluster_config()
    }

    /// What `--standalone` brings along otherwise: the authority in the folder of the data.
    fn cluster_config(&self) -> String {
        let data = self.data();
        let Some(_) = &self.account else { return String::new() };
        format!(
            "    tlsCAFile: {data}/ca/rootCA.crt\n    tlsCAKeyFile: {data}/ca/rootCA.key\n    \
             tlsCertFile: {data}/certs/server.crt\n    tlsPrivateKeyFile: {data}/certs/server.key\n",
            data = data.display()
        )
    }

    /// Starts the process, again if it was killed, and waits until its API answers.
    pub fn spawn(&mut self) -> Result<()> {
        let mut command = Command::new(self.binaries.folder.join("cloudcore"));
        command.arg("--config").arg(self.folder.join("cloudcore.yaml"));
        if let Some(account) = &self.account {
            // The configuration names no kubeconfig, so this one is found as kubectl would find it.
            command.env("KUBECONFIG", account);
        } else {
            command.arg("--standalone").arg("--data-dir").arg(self.data());
            command.arg("--api-address").arg(format!("127.0.0.1:{}", self.ports.api));
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(log(&self.folder, "cloudcore.log")?)
            .stderr(log(&self.folder, "cloudcore.log")?)
            .spawn()
            .context("cannot start cloudcore")?;
        self.process = Some(process);
        wait_for("cloudcore's API", || {
            // A cloudcore without an API of its own shows by its link that it has started.
            let listens = self.account.is_none()
                || TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.websocket)).is_ok();
            Ok(listens && self.kubeconfig().exists() && self.kubectl(&["get", "--raw", "/readyz"]).is_ok())
        })
        .with_context(|| self.log())
    }

    /// A figure of its metrics, such as `kubeedge_joins_refused_total{reason="TokenForeign"}`.
    pub fn metric(&self, name: &str) -> Result<u64> {
        self.parse_metric(name)
    }

    /// As [`Cloud::metric`], for a figure that need not be whole.
    pub fn figure(&self, name: &str) -> Result<f64> {
        self.parse_metric(name)
    }

    fn parse_metric<T>(&self, name: &str) -> Result<T>
    where
        T: FromStr,
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let (_, page) = self.monitor("/metrics")?;
        let figure = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        figure.with_context(|| format!("no {name} in {page}"))?.parse::<T>().context(page)
    }

    /// The status and the text that it answers under a path of its monitor.
    pub fn monitor(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.monitor))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: cloudcore\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| head.to_owned())?, body.to_owned()))
    }

    /// Ends the process as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// The process's id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// For kubectl.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data().join("kubeconfig")
    }

    /// What the process has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("cloudcore.log")).unwrap_or_default()
    }

    /// Runs kubectl and gives what it printed.
    ///
    /// # Errors
    /// If kubectl ends with an error; what it said is in the message.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.folder.join("kubectl-cache"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("cannot run kubectl")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("kubectl {}: {}{}", args.join(" "), text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    /// The log of a container of a pod in the namespace `default`: by kubectl over the link where the API is ours, and from
    /// the node itself where it is a cluster's, which has no way to the node.
    pub fn pod_log(&self, edge: &Edge, pod: &str, container: &str) -> Result<String> {
        if self.account.is_some() {
            return edge.container_log("default", pod, container);
        }
        self.kubectl(&["logs", pod, "-c", container])
    }

    /// Writes a manifest and applies it.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let file = self.folder.join("manifest.yaml");
        fs::write(&file, manifest)?;
        self.kubectl(&["apply", "-f", &file.to_string_lossy()])
    }

    /// Issues a node's certificate into `out`.
    fn issue(&self, node: &str, out: &Path) -> Result<()> {
        let issued = Command::new(self.binaries.folder.join("cloudcore"))
            .args(["issue-certificate", "--node", node, "--data-dir"])
            .arg(self.data())
            .arg("--out")
            .arg(out)
            .output()?;
        if !issued.status.success() {
            bail!("cloudcore issue-certificate: {}", String::from_utf8_lossy(&issued.stderr));
        }
        Ok(())
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.kill();
        // Whatever a test is about: a right that is missing in the manifests is a mistake.
        if self.account.is_some() && !std::thread::panicking() {
            let log = self.log();
            let forbidden = log.lines().find(|line| line.contains("is forbidden"));
            assert!(forbidden.is_none(), "cloudcore lacks a right: {forbidden:?}");
        }
    }
}

/// An edgecore with what it needs.
#[derive(Debug)]
pub struct Edge {
    binaries: Binaries,
    folder: PathBuf,
    /// The port of its embedded broker.
    pub mqtt: u16,
    /// The port of the kubelet's interface.
    pub api: u16,
    process: Option<Child>,
}

impl Edge {
    /// Gives the node a certificate and a configuration, and starts its edgecore, which keeps everything in `folder`.
    pub fn start(binaries: &Binaries, folder: &Path, cloud: &Cloud, options: &EdgeOptions) -> Result<Self> {
        let edge = Self::prepare(binaries, folder, cloud, options)?;
        edge.started()
    }

    /// Gives the node a certificate and a configuration.
    pub fn prepare(binaries: &Binaries, folder: &Path, cloud: &Cloud, options: &EdgeOptions) -> Result<Self> {
        cloud.issue(&options.node, &folder.join("certificates"))?;
        Self::prepare_at(binaries, folder, cloud.ports.quic, cloud.ports.websocket, options)
    }

    /// Starts the edgecore of a node whose certificates are in `folder/certificates` already; its link goes to this port
    /// over QUIC.
    pub fn start_at(binaries: &Binaries, folder: &Path, quic: u16, options: &EdgeOptions) -> Result<Self> {
        Self::prepare_at(binaries, folder, quic, quic, options)?.started()
    }

    fn prepare_at(
        binaries: &Binaries,
        folder: &Path,
        quic: u16,
        websocket: u16,
        options: &EdgeOptions,
    ) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let (mqtt, api) = (free_port()?, free_port()?);
        let edge = Self { binaries: binaries.clone(), folder: folder.to_owned(), mqtt, api, process: None };
        fs::write(folder.join("edgecore.yaml"), edge.config(quic, websocket, options))?;
        Ok(edge)
    }

    fn started(mut self) -> Result<Self> {
        self.spawn()?;
        Ok(self)
    }

    fn config(&self, quic: u16, websocket: u16, options: &EdgeOptions) -> String {
        let folder = self.folder.display();
        let quic = options.quic.unwrap_or(quic);
        let use_websocket = options.websocket;
        let runtime = match &options.containerd {
            None => format!("  runtime: process\n  processDirectory: {folder}/processes\n"),
            Some(_) => "  runtime: containerd\n".to_owned(),
        };
        let socket = options.containerd.as_deref().map_or_else(String::new, |socket| {
            format!("containerRuntimeEndpoint: \"unix://{}\", ", socket.display())
        });
        // A machine whose disk others have filled is no reason to evict what a test runs, or to collect its images.
        let port = if options.kubelet.contains("readOnlyPort") {
            String::new()
        } else {
            format!("readOnlyPort: {}, ", self.api)
        };
        let eviction = if options.kubelet.contains("evictionHard:") {
            ""
        } else {
            ", evictionHard: {nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, \
             imagefs.inodesFree: 1%}"
        };
        let kubelet = format!(
            "    tailoredKubeletConfig: {{{socket}{port}imageGCHighThresholdPercent: 100{eviction}{}}}\n",
            options.kubelet
        );
        let (node, modules, mappers) = (&options.node, &options.modules, &options.mappers);
        let event_bus = if modules.contains("eventBus:") {
            String::new()
        } else {
            format!("  eventBus: {{mqttMode: 0, mqttServerInternal: \"tcp://127.0.0.1:{}\"}}\n", self.mqtt)
        };
        let device_twin = if modules.contains("deviceTwin:") {
            String::new()
        } else {
            format!("  deviceTwin: {{dmiSockPath: {folder}}}\n")
        };
        format!(
            "apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {{dataSource: {folder}/edgecore.db}}
modules:
  edgeHub:
    quic: {{enable: true, server: \"127.0.0.1:{quic}\"}}
    websocket: {{enable: {use_websocket}, server: \"127.0.0.1:{websocket}\"}}
    tlsCaFile: {folder}/certificates/rootCA.crt
    tlsCertFile: {folder}/certificates/server.crt
    tlsPrivateKeyFile: {folder}/certificates/server.key
  edged:
    hostnameOverride: {node}
    rootDirectory: {folder}/root
{kubelet}{event_bus}{device_twin}{modules}kubeedgeRs:
{runtime}  mappers: {mappers}
"
        )
    }

    /// Starts the process, again if it was killed.
    pub fn spawn(&mut self) -> Result<()> {
        let process = Command::new(self.binaries.folder.join("edgecore"))
            .arg("--config")
            .arg(self.folder.join("edgecore.yaml"))
            .stdin(Stdio::null())
            .stdout(log(&self.folder, "edgecore.log")?)
            .stderr(log(&self.folder, "edgecore.log")?)
            .spawn()
            .context("cannot start edgecore")?;
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

    /// The process's id.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| !matches!(process.try_wait(), Ok(None)))
    }

    /// Where it keeps everything.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the process has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("edgecore.log")).unwrap_or_default()
    }

    /// The log of a container, as the node itself gives it.
    ///
    /// # Errors
    /// If the node does not have it; what it said is in the message.
    pub fn container_log(&self, namespace: &str, pod: &str, container: &str) -> Result<String> {
        let token = fs::read_to_string(self.folder.join("root/api-token"))?;
        let output = Command::new("curl")
            .args(["-sS", "--fail-with-body", "-H", &format!("Authorization: Bearer {}", token.trim())])
            .arg(format!("http://127.0.0.1:{}/containerLogs/{namespace}/{pod}/{container}", self.api))
            .output()
            .context("cannot run curl (Debian package curl)")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            bail!("the log of {pod}: {}{}", text(&output.stdout), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.kill();
        self.kill_pods();
        self.unmount();
    }
}

impl Edge {
    /// Unmounts what pods had in memory, which outlives edgecore too.
    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in below.filter(|mount| Path::new(mount).starts_with(&self.folder)) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
    }

    /// Ends the processes of pods, which outlive edgecore by design.
    fn kill_pods(&self) {
        let marker = self.folder.join("processes").to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let inside = fs::read_link(entry.path().join("cwd"))
                .is_ok_and(|cwd| cwd.to_string_lossy().starts_with(&marker));
            if inside {
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            }
        }
    }
}

fn log(folder: &Path, name: &str) -> Result<fs::File> {
    Ok(fs::OpenOptions::new().create(true).append(true).open(folder.join(name))?)
}

/// A port that is free for TCP and UDP on the loopback address, and that no other test is given meanwhile.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    free_port_of(PORTS)
}

/// Those that are left are for clouds of a fleet.
const PORTS: Range<u16> = 11_000..31_000;

/// A pod that says three words, the last after some seconds, for tests of logs.
pub const SPEAKER: &str = "apiVersion: v1
kind: Pod
metadata: {name: speaker, namespace: default}
spec:
  nodeName: edge-1
  terminationGracePeriodSeconds: 1
  containers:
    - {name: main, image: none, command: [sh, -c, \"echo one; echo two; sleep 3; echo three; sleep 100000\"]}
";

/// Waits until something holds, for at most 30 s.
///
/// # Errors
/// If it does not come to hold; the message names `what` was awaited.
pub fn wait_for(what: &str, holds: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_within(Duration::from_secs(30), what, holds)
}

/// Waits until something holds, for at most `patience`.
///
/// # Errors
/// If it does not come to hold; the message names `what` was awaited.
pub fn wait_within(patience: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let last = match holds() {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        if Instant::now() > deadline {
            match last {
                Some(error) => return Err(error.context(format!("waited {patience:?} for {what}"))),
                None => bail!("waited {patience:?} for {what}"),
            }
        }
        sleep(Duration::from_millis(5));
    }
}
