//! Values that would be commands, if there were a shell; and archives that would write anywhere, if there were any.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::binaries;

/// What a shell, a template or a unit of systemd would make something of.
const EVIL: [&str; 6] = [
    "v1.23.0; touch HERE",
    "$(touch HERE)",
    "`touch HERE`",
    "v1\ntouch HERE",
    "x' && touch HERE #",
    "%n|touch HERE",
];

fn keadm(folder: &Path, words: &[&str]) -> Result<(bool, String)> {
    let root = folder.join("root");
    let output = Command::new(binaries().folder.join("keadm"))
        .current_dir(folder)
        .args(["join", "-e", "127.0.0.1:1", "-s", "1", "-t", "a.b.c.d", "--check-only", "--root"])
        .arg(&root)
        .args(words)
        .output()
        .context("keadm is missing: `cargo build --bins` makes it")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn cve_2026_62371_a_version_or_image_is_never_run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let here = folder.path().join("pwned");
    for evil in EVIL.map(|evil| evil.replace("HERE", &here.to_string_lossy())) {
        for flag in [
            "--kubeedge-version",
            "--image-repository",
            "--edgenode-name",
            "--cloudcore-ipport",
            "--edgecore",
        ] {
            let words: &[&str] = if flag == "--cloudcore-ipport" { &["-i", &evil] } else { &[flag, &evil] };
            let (joined, said) = keadm(folder.path(), words)?;
            ensure!(!joined, "{said}");
        }
    }
    ensure!(!here.exists(), "a value was run");
    // A program to run is a program, and not a line for a shell.
    let script = format!("touch {}", here.display());
    let output = Command::new(binaries().folder.join("keadm"))
        .args(["reset", "--force", "--pre-run", &script, "--root"])
        .arg(folder.path())
        .output()?;
    ensure!(!output.status.success() && !here.exists(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn cve_2026_62182_a_field_of_the_configuration_is_data_and_its_key_is_known() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let here = folder.path().join("pwned");
    for evil in EVIL.map(|evil| evil.replace("HERE", &here.to_string_lossy())) {
        for set in
            [format!("modules.edged.nodeIP={evil}"), format!("{evil}=true"), format!("modules.{evil}.x=1")]
        {
            let (joined, said) = keadm(folder.path(), &["--set", &set])?;
            ensure!(!joined, "{said}");
        }
    }
    ensure!(!here.exists(), "a value was run");
    Ok(())
}

#[test]
fn cve_2026_62369_no_archive_is_unpacked_anywhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (joined, said) = keadm(folder.path(), &["--tarballpath", "../../evil.tar"])?;
    ensure!(!joined && said.contains("--tarballpath"), "{said}");
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
