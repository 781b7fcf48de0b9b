//! The real programs that the tests run against, from the distribution's packages.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    check::target_folder,
    run::{on_path, step},
};

/// What is needed, how one sees that it is there, and the Debian package that has it.
const PARTS: [Part; 12] = [
    Part { file: "containerd", package: "containerd" },
    Part { file: "runc", package: "runc" },
    Part { file: "/usr/lib/cni/bridge", package: "containernetworking-plugins" },
    Part { file: "iptables", package: "iptables" },
    Part { file: "busybox", package: "busybox-static" },
    Part { file: "mosquitto", package: "mosquitto" },
    Part { file: "mosquitto_pub", package: "mosquitto-clients" },
    Part { file: "kubectl", package: "kubernetes-client" },
    Part { file: "/usr/lib/python3/dist-packages/paho/mqtt/client.py", package: "python3-paho-mqtt" },
    // A client for joining that is not ours.
    Part { file: "curl", package: "curl" },
    Part { file: "openssl", package: "openssl" },
    // With it comes the python3 that it is for.
    Part { file: "python3", package: "python3-venv" },
];

struct Part {
    /// A program on the PATH, or an absolute path.
    file: &'static str,
    package: &'static str,
}

impl Part {
    fn is_here(&self) -> bool {
        if self.file == "python3" {
            // Debian's python3 cannot make virtual environments without the package.
            let ensurepip = Command::new("python3").args(["-c", "import ensurepip"]).status();
            return ensurepip.is_ok_and(|status| status.success());
        }
        if self.file.starts_with('/') { Path::new(self.file).exists() } else { on_path(self.file) }
    }
}

/// Installs what is missing, where we may; otherwise names the packages and the command.
pub(crate) fn install() -> Result<()> {
    install_packages()?;
    install_grpc_of_python()
}

/// gRPC for the mapper in Python, in a folder of its own below the target folder.
fn install_grpc_of_python() -> Result<()> {
    let folder = target_folder()?.join("python/grpc");
    let python = folder.join("bin/python");
    let has_grpc = |python: &Path| {
        let output = Command::new(python).args(["-c", "import grpc"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if has_grpc(&python) {
        return Ok(());
    }
    step(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "grpcio"];
    step(Command::new(&python).args(pip))
}

fn install_packages() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        println!("real parts: all here");
        return Ok(());
    }
    let command = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !on_path("apt-get") || !is_root() {
        bail!(
            "these packages are missing: {}. Install them as root, with\n    {command}\n\
             or run what needs none of them with `cargo xtask test --no-real-parts`",
            missing.join(", ")
        );
    }
    println!("real parts: installing {}", missing.join(", "));
    step(apt().args(["update", "--quiet"]))?;
    step(apt().args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&missing))?;
    let missing = self::missing();
    if !missing.is_empty() {
        bail!("installed, and still not found: {}", missing.join(", "));
    }
    Ok(())
}

fn missing() -> Vec<&'static str> {
    PARTS.iter().filter(|part| !part.is_here()).map(|part| part.package).collect()
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // The packages' services stay off: the tests start each program on folders and ports of their own.
    command.env("RUNLEVEL", "1");
    command
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| {
            line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
        })
    })
}
