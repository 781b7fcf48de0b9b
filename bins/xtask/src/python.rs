//! The servers of other implementations that the tests talk to and that are written in Python.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{check::target_folder, run::step};

/// What is installed, with its version: tests name it, and another may behave otherwise.
const PACKAGES: [&str; 1] = ["pymodbus==3.8.6"];

/// Makes a virtual environment below the target folder, and installs what is missing there.
pub(crate) fn install() -> Result<()> {
    let folder = target_folder()?.join("real-parts/python");
    let python = folder.join("bin/python");
    let installed = Command::new(&python).args(["-m", "pip", "freeze"]).stderr(Stdio::null()).output();
    let installed = installed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let has = |package: &&str| installed.as_ref().is_ok_and(|all| all.lines().any(|line| line == *package));
    if PACKAGES.iter().all(has) {
        return Ok(());
    }
    println!("python's parts: installing {}", PACKAGES.join(", "));
    step(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
    step(&mut pip)
        .context("these packages of Python are needed; `cargo xtask test --no-real-parts` needs none")
}
