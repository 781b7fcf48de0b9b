//! Who the node is: its certificate, and the token with which it gets one.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use kubeedge_core::{id::NodeName, join::JoinToken};
use kubeedge_edge::certificates::{self, Files, Server, Standing};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::hub::Hub;

/// Where KubeEdge's `keadm` leaves the token. It goes before the one in the configuration.
const BOOTSTRAP_FILE: &str = "/etc/kubeedge/bootstrap-edgecore.conf";

/// How the node gets and keeps its certificate.
pub(crate) fn certificates(node: &NodeName, hub: &Hub) -> certificates::Config {
    let (server, tls) = (&hub.http_server, &hub.tls);
    let files = Files { ca: tls.ca.clone(), certificate: tls.certificate.clone(), key: tls.key.clone() };
    let cloud = Server { host: server.host.clone(), port: server.port };
    certificates::Config {
        token: token(hub),
        rotate: hub.rotate_certificates,
        ..certificates::Config::new(node.clone(), cloud, files)
    }
}

fn token(hub: &Hub) -> Option<JoinToken> {
    let bootstrap = fs::read_to_string(BOOTSTRAP_FILE).ok().filter(|text| !text.trim().is_empty());
    let text = bootstrap.as_deref().or_else(|| hub.token.as_ref().map(|token| token.expose()))?;
    // A node that has its certificate does not need it.
    text.parse().inspect_err(|error| tracing::warn!("modules.edgeHub.token: {error}")).ok()
}

/// Takes the token out of the configuration file once there is a certificate, as KubeEdge does: whoever reads it could
/// join as another node.
pub(crate) async fn forget_token(
    file: PathBuf,
    token: Option<String>,
    mut standing: watch::Receiver<Standing>,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    if let Some(token) = token {
        let has_certificate = standing.wait_for(|standing| standing.ends.is_some());
        let joined = stop.run_until_cancelled(has_certificate).await.is_some_and(|waited| waited.is_ok());
        if joined && let Err(error) = remove(&file, &token) {
            tracing::warn!(file = %file.display(), %error, "the token stays in the configuration; remove it by hand");
        }
    }
    stop.cancelled().await;
    Ok(())
}

/// Writes the file anew without the token, and otherwise as it is, comments and mode and all.
fn remove(file: &Path, token: &str) -> std::io::Result<()> {
    let text = fs::read_to_string(file)?;
    let without = text.replace(token, "\"\"").replace("\"\"\"\"", "\"\"").replace("'\"\"'", "\"\"");
    if without == text {
        return Ok(());
    }
    let mode = fs::metadata(file)?.permissions().mode() & 0o777;
    let mut name = file.as_os_str().to_owned();
    name.push(".next");
    let next = PathBuf::from(name);
    let _ = fs::remove_file(&next);
    let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
    open.write_all(without.as_bytes())?;
    open.sync_all()?;
    fs::rename(&next, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_goes_and_everything_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("edgecore.yaml");
        for written in ["ab.c.d.e", "\"ab.c.d.e\"", "'ab.c.d.e'"] {
            fs::write(&file, format!("# ours\nmodules:\n  edgeHub:\n    token: {written} # secret\n"))
                .unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
            remove(&file, "ab.c.d.e").unwrap();
            let text = fs::read_to_string(&file).unwrap();
            assert_eq!(text, "# ours\nmodules:\n  edgeHub:\n    token: \"\" # secret\n");
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        }
    }
}
