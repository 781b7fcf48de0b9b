//! Values that would be commands, if there were a shell; and archives that would write anywhere, if there were any.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{
    binaries,
    site::{Binaries, Cloud},
};

/// What a shell, a template or a unit of systemd would make something of.
const EVIL: [&str; 6] = [
    "v1.23.0; touch HERE",
    "$(touch HERE)",
    "`touch HERE`",
    "v1\ntouch HERE",
    "x' && touch HERE #",
    "%n|touch HERE",
];

/// A cloud that a machine can join, so that what is refused is refused for its value alone.
struct Site {
    binaries: Binaries,
    cloud: Cloud,
    token: String,
    folder: tempfile::TempDir,
}

impl Site {
    fn start() -> Result<Self> {
        let (binaries, folder) = (binaries(), tempfile::tempdir()?);
        let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
        let kubeconfig = cloud.kubeconfig();
        let token = Command::new(binaries.folder.join("keadm"))
            .args(["gettoken", "--kube-config", &kubeconfig.to_string_lossy()])
            .output()?;
        let token = String::from_utf8(token.stdout)?.trim().to_owned();
        Ok(Self { binaries, cloud, token, folder })
    }

    /// What a value would make if it were run.
    fn pwned(&self) -> PathBuf {
        self.folder.path().join("pwned")
    }

    /// Checks whether a machine could join, with other values for some flags.
    fn keadm(&self, others: &[(&str, &str)]) -> Result<(bool, String)> {
        let https = self.cloud.ports.https.to_string();
        let (hub, root) =
            (format!("127.0.0.1:{}", self.cloud.ports.websocket), self.folder.path().join("root"));
        let (root, edgecore) = (root.to_string_lossy(), self.binaries.folder.join("edgecore"));
        let edgecore = edgecore.to_string_lossy();
        let mut words = vec![
            ("--cloudcore-ipport", hub.as_str()),
            ("--certport", &https),
            ("--token", &self.token),
            ("--edgenode-name", "edge-1"),
            ("--edgecore", &edgecore),
            ("--root", &root),
        ];
        words.retain(|(flag, _)| others.iter().all(|(other, _)| other != flag));
        words.extend(others);
        let output = Command::new(self.binaries.folder.join("keadm"))
            .current_dir(self.folder.path())
            .args(["join", "--check-only", "--set", "kubeedgeRs.runtime=process"])
            .args(["--set", "modules.edged.tailoredKubeletConfig.readOnlyPort=0"])
            .args(words.iter().flat_map(|(flag, value)| [flag, value]))
            .output()
            .context("keadm is missing: `cargo build --bins` makes it")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }
}

#[test]
fn cve_2026_62371_a_version_or_image_is_never_run() -> Result<()> {
    let site = Site::start()?;
    let (joins, said) = site.keadm(&[])?;
    ensure!(joins, "with values that are none of these, the machine can join: {said}");
    let here = site.pwned();
    for evil in EVIL.map(|evil| evil.replace("HERE", &here.to_string_lossy())) {
        for flag in ["--edgenode-name", "--cloudcore-ipport", "--edgecore"] {
            let (joins, said) = site.keadm(&[(flag, &evil)])?;
            ensure!(!joins, "{flag} {evil}: {said}");
        }
        // These are only there because people have them in scripts.
        for flag in ["--kubeedge-version", "--image-repository"] {
            site.keadm(&[(flag, &evil)])?;
        }
    }
    ensure!(!here.exists(), "a value was run");
    // A program to run is a program, and not a line for a shell.
    let script = format!("touch {}", here.display());
    let output = Command::new(binaries().folder.join("keadm"))
        .args(["reset", "--force", "--pre-run", &script, "--root"])
        .arg(site.folder.path().join("root"))
        .output()?;
    ensure!(!output.status.success() && !here.exists(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn cve_2026_62182_a_field_of_the_configuration_is_data_and_its_key_is_known() -> Result<()> {
    let site = Site::start()?;
    let (joins, said) = site.keadm(&[("--set", "modules.edged.nodeIP=192.0.2.1")])?;
    ensure!(joins, "{said}");
    for evil in EVIL.map(|evil| evil.replace("HERE", &site.pwned().to_string_lossy())) {
        for set in [format!("{evil}=true"), format!("modules.{evil}.x=1")] {
            let (joins, said) = site.keadm(&[("--set", &set)])?;
            ensure!(!joins && said.contains("[failed] configuration"), "{set}: {said}");
        }
        // A value stays a value, which edgecore reads.
        site.keadm(&[("--set", &format!("modules.edged.nodeIP={evil}"))])?;
    }
    ensure!(!site.pwned().exists(), "a value was run");
    Ok(())
}

#[test]
fn cve_2026_62369_no_archive_is_unpacked_anywhere() -> Result<()> {
    let (joins, said) = Site::start()?.keadm(&[("--tarballpath", "../../evil.tar")])?;
    ensure!(!joins && said.contains("--tarballpath"), "{said}");
    // What unpacks nothing cannot be led astray by what is packed.
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock"))?;
    for unpacks in ["tar", "tokio-tar", "zip", "cpio", "ar"] {
        ensure!(
            !lock.contains(&format!("name = \"{unpacks}\"\n")),
            "{unpacks} is a dependency: test what it unpacks"
        );
    }
    Ok(())
}
