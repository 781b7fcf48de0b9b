//! A containerd of our own for tests: private directories, a private network, images without a registry.
//!
//! This file is included by `#[path]` wherever a test needs it, so it uses nothing but the standard library
//! and `tempfile`. It starts containerd as a child process, and takes everything down again when dropped.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

/// The image that tests run: busybox with its applets.
#[allow(dead_code, reason = "not every test that includes this file runs containers of its own")]
pub(crate) const IMAGE: &str = "localhost/busybox:1";

/// What has to be installed: a program or directory, and the Debian package that has it.
const NEEDED: [(&str, &str); 6] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables", "iptables"),
    ("/bin/busybox", "busybox-static"),
];

/// A running containerd.
#[derive(Debug)]
pub(crate) struct Containerd {
    directory: tempfile::TempDir,
    child: Child,
    bridge: String,
}

impl Containerd {
    /// Starts it and gives it the images.
    ///
    /// # Panics
    /// If a program is not installed (the message names the packages), if this is not root, or if containerd
    /// does not come up: a test that needs it must not pass without it.
    pub(crate) fn start() -> Self {
        Self::start_with_disk(None)
    }

    /// As [`Containerd::start`], with a disk of its own of so many MiB for images and containers.
    ///
    /// # Panics
    /// As [`Containerd::start`].
    #[allow(dead_code, reason = "not every test that includes this file needs it")]
    pub(crate) fn start_on_disk_of(mib: u32) -> Self {
        Self::start_with_disk(Some(mib))
    }

    fn start_with_disk(mib: Option<u32>) -> Self {
        let missing: Vec<&str> = NEEDED
            .iter()
            .filter(|(path, _)| !Path::new(path).exists())
            .map(|(_, package)| *package)
            .collect();
        assert!(missing.is_empty(), "install these Debian packages to run this test: {}", missing.join(" "));
        // Unix sockets have paths of at most 107 bytes, and containerd adds to it.
        let directory = tempfile::Builder::new().prefix("ke-").tempdir_in("/tmp").expect("make a directory");
        let bridge = write_config(directory.path()).expect("write the configuration");
        if let Some(mib) = mib {
            let root = directory.path().join("root");
            fs::create_dir_all(&root).expect("make a directory");
            let size = format!("size={mib}m");
            let mut mount = Command::new("mount");
            run(mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&root)).expect("mount a disk");
        }
        let child = spawn(directory.path());
        let mut containerd = Self { directory, child, bridge };
        containerd.wait_until_up();
        for (name, command) in [("pause", "sleep 2147483647"), ("busybox", "sh")] {
            let archive = image(containerd.directory.path(), name, command).expect("make an image");
            let imported = containerd.ctr(&["images", "import", archive.to_str().expect("a UTF-8 path")]);
            assert!(imported.is_ok(), "import image {name}: {imported:?}");
        }
        containerd
    }

    /// The socket that it listens on.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("containerd.sock")
    }

    /// Its directory, in which tests may put what shall be gone afterwards.
    #[allow(dead_code, reason = "not every test that includes this file needs it")]
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Runs containerd's own client in the namespace of CRI.
    ///
    /// # Errors
    /// If it fails; with what it said.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("/usr/bin/ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io"])
            .args(arguments)
            .output()
            .map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Ends it as a crash would. What it runs goes on, since each container has a shim of its own.
    #[allow(dead_code, reason = "not every test that includes this file needs it")]
    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(self.socket());
    }

    /// Starts it again on the same directories.
    ///
    /// # Panics
    /// If it does not come up.
    #[allow(dead_code, reason = "not every test that includes this file needs it")]
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.directory.path());
        self.wait_until_up();
    }

    fn wait_until_up(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.ctr(&["version"]).is_err() {
            let ended = self.child.try_wait().expect("ask for containerd's state");
            if ended.is_some() || Instant::now() > deadline {
                let log =
                    fs::read_to_string(self.directory.path().join("containerd.log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(20).collect();
                panic!("containerd did not come up ({ended:?}):\n{}", end.join("\n"));
            }
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // What a test has left running: tasks first, then their shims, which outlive containerd.
        let tasks = self.ctr(&["tasks", "ls"]).unwrap_or_default();
        let tasks: Vec<Vec<&str>> =
            tasks.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        let cgroups: Vec<PathBuf> =
            tasks.iter().filter_map(|task| task.get(1)).flat_map(|pid| pod_cgroups(pid)).collect();
        // All at once, since each takes half a second.
        std::thread::scope(|scope| {
            for task in tasks.iter().filter_map(|task| task.first()) {
                scope.spawn(|| self.ctr(&["tasks", "delete", "--force", task]));
            }
        });
        let _ = self.child.kill();
        let _ = self.child.wait();
        for shim in shims_of(&self.socket()) {
            let _ = Command::new("kill").args(["-9", &shim.to_string()]).status();
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in own.filter(|path| Path::new(path).starts_with(self.directory.path())) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
        // What was killed takes a moment to be gone from its cgroup.
        let deadline = Instant::now() + Duration::from_secs(2);
        while cgroups.iter().any(|cgroup| cgroup.exists() && fs::remove_dir(cgroup).is_err()) {
            if Instant::now() > deadline {
                break;
            }
            sleep(Duration::from_millis(20));
        }
        let quiet = || Stdio::null();
        let mut link = Command::new("ip");
        let _ = link.args(["link", "delete", &self.bridge]).stderr(quiet()).stdout(quiet()).status();
    }
}

/// The cgroups of the pod that this process is a part of, in all hierarchies.
fn pod_cgroups(pid: &str) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some((
            parts.next()?.to_owned(),
            Path::new(parts.next()?.trim_start_matches('/')).parent()?.to_owned(),
        ))
    });
    let of_pods = lines
        .filter(|(_, path)| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pod")));
    let paths = of_pods.flat_map(|(controllers, path)| {
        let roots = [controllers.trim_start_matches("name="), "unified", ""];
        roots.map(|root| Path::new("/sys/fs/cgroup").join(root).join(&path))
    });
    paths.filter(|path| path.exists()).collect()
}

fn spawn(directory: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("containerd.log"));
    Command::new("/usr/bin/containerd")
        .arg("--config")
        .arg(directory.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.expect("make a log file"))
        .spawn()
        .expect("start containerd")
}

/// The shims that serve this containerd: they have its socket among their arguments.
fn shims_of(socket: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let mut arguments = line.split(|byte| *byte == 0);
        let shim = arguments.next().is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"));
        shim && arguments.any(|argument| argument == socket.as_os_str().as_encoded_bytes())
    })
    .collect()
}

/// Writes containerd's and CNI's configuration, and returns the bridge's name.
fn write_config(directory: &Path) -> io::Result<String> {
    // Several tests may run at once, in one process or in many: each has a bridge and a /24 of its own.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number =
        std::process::id().wrapping_mul(7).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)) % 65_000;
    let (bridge, subnet) =
        (format!("ke{number}"), format!("10.{}.{}.0/24", 100 + number / 256 % 100, number % 256));
    let path = directory.display();
    let config = format!(
        r#"version = 2
root = "{path}/root"
state = "{path}/state"
[grpc]
  address = "{path}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{path}/cni"
"#
    );
    fs::write(directory.join("config.toml"), config)?;
    let network = format!(
        r#"{{"cniVersion": "0.4.0", "name": "{bridge}", "plugins": [
  {{"type": "bridge", "bridge": "{bridge}", "isGateway": true, "ipMasq": true,
    "ipam": {{"type": "host-local", "dataDir": "{path}/ipam", "ranges": [[{{"subnet": "{subnet}"}}]],
              "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#
    );
    fs::create_dir_all(directory.join("cni"))?;
    fs::write(directory.join("cni/10-bridge.conflist"), network)?;
    Ok(bridge)
}

/// Builds a docker archive of busybox under `localhost/<name>:1`, and returns its path.
fn image(directory: &Path, name: &str, command: &str) -> io::Result<PathBuf> {
    let build = directory.join("build").join(name);
    let bin = build.join("root/bin");
    fs::create_dir_all(&bin)?;
    for made in ["root/tmp", "root/etc", "root/proc", "root/sys", "root/dev"] {
        fs::create_dir_all(build.join(made))?;
    }
    fs::copy("/bin/busybox", bin.join("busybox"))?;
    for applet in [
        "sh", "sleep", "cat", "echo", "env", "ls", "wget", "httpd", "true", "false", "date", "id", "ps", "nc",
    ] {
        symlink("busybox", bin.join(applet))?;
    }
    run(Command::new("tar").args(["-cf", "../layer.tar", "."]).current_dir(build.join("root")))?;
    let layer = digest(&build.join("layer.tar"))?;
    let words: Vec<String> = command.split(' ').map(|word| format!("{word:?}")).collect();
    let config = format!(
        r#"{{"architecture": "{}", "os": "linux", "config": {{"Env": ["PATH=/bin"], "Cmd": [{}]}},
            "rootfs": {{"type": "layers", "diff_ids": ["sha256:{layer}"]}}}}"#,
        match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
        words.join(", ")
    );
    fs::File::create(build.join("config"))?.write_all(config.as_bytes())?;
    let config = format!("{}.json", digest(&build.join("config"))?);
    fs::rename(build.join("config"), build.join(&config))?;
    let manifest =
        format!(r#"[{{"Config": "{config}", "RepoTags": ["localhost/{name}:1"], "Layers": ["layer.tar"]}}]"#);
    fs::write(build.join("manifest.json"), manifest)?;
    let archive = directory.join(format!("{name}.tar"));
    let files = ["manifest.json", &config, "layer.tar"];
    run(Command::new("tar").arg("-cf").arg(&archive).args(files).current_dir(&build))?;
    Ok(archive)
}

fn digest(path: &Path) -> io::Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).split(' ').next().unwrap_or_default().to_owned())
}

fn run(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}
