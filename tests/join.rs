//! Joining with the real programs, and with curl and openssl as a client that is not ours.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Secret;
use kubeedge_cloud::pki::{Authority, Issued};
use kubeedge_core::{
    join::JoinToken,
    tls::{self, Identity},
    transport::{
        Transport, TransportError,
        quic::{QuicConfig, QuicTransport},
        websocket::{WebSocketConfig, WebSocketTransport},
    },
};
use kubeedge_tests::{
    binaries,
    site::{Binaries, Cloud, Edge, EdgeOptions, cluster, wait_for},
};
use serde_json::Value;

/// A cloud, and a folder for what joins it.
struct Site {
    binaries: Binaries,
    cloud: Cloud,
    folder: tempfile::TempDir,
}

impl Site {
    fn start() -> Result<Self> {
        let (binaries, folder) = (binaries(), tempfile::tempdir()?);
        let cloud = Cloud::start(&binaries, &folder.path().join("cloud"))?;
        Ok(Self { binaries, cloud, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn keadm(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(self.binaries.folder.join("keadm"));
        Ok(command.args(words).stdin(Stdio::null()).output()?)
    }

    fn token(&self) -> Result<String> {
        let kubeconfig = self.cloud.kubeconfig();
        let output = self.keadm(&["gettoken", "--kube-config", &kubeconfig.to_string_lossy()])?;
        ensure!(output.status.success(), "gettoken: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Runs `keadm join -o json` for a machine below `root`, and gives what it prints.
    fn join(&self, root: &Path, host: &str, token: &str, more: &[&str]) -> Result<(bool, Value)> {
        let ports = self.cloud.ports;
        let (hub, https) = (format!("{host}:{}", ports.websocket), ports.https.to_string());
        let edgecore = self.binaries.folder.join("edgecore");
        let mut words = vec!["join", "-e", &hub, "-s", &https, "-t", token, "-o", "json"];
        let (root, edgecore) = (root.to_string_lossy(), edgecore.to_string_lossy());
        words.extend(["--root", &root, "--edgecore", &edgecore]);
        words.extend(more);
        let output = self.keadm(&words)?;
        let said = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("keadm join: {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((output.status.success(), said))
    }

    /// The authority that signs: as the Secret has it, which the files of a standalone cloud follow.
    fn authority(&self) -> Result<Authority> {
        let secret = self.cloud.kubectl(&["get", "secret", "casecret", "-n", "kubeedge", "-o", "json"])?;
        let data = serde_json::from_str::<Secret>(&secret)?.data.context("the Secret has data")?;
        let member = |key: &str| data.get(key).with_context(|| format!("the Secret has {key}"));
        let shared = Authority::from_der(&member("cadata")?.0, &member("cakeydata")?.0)?;
        if cluster::admin().is_none() {
            let folder = self.cloud.kubeconfig();
            let own = Authority::open_or_create(folder.parent().context("a folder")?)?;
            ensure!(own.certificate_der()? == shared.certificate_der()?, "the files are not the Secret's");
        }
        Ok(shared)
    }

    fn ready(&self, node: &str, log: &Path) -> Result<()> {
        wait_for("the node to be Ready", || {
            let nodes = self.cloud.kubectl(&["get", "nodes"])?;
            Ok(nodes.lines().any(|line| line.starts_with(node) && line.contains(" Ready ")))
        })
        .with_context(|| fs::read_to_string(log).unwrap_or_default())
    }

    fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.cloud.ports.https)
    }
}

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn edgecore(site: &Site, config: &Path, log: &Path) -> Result<Running> {
    let child = Command::new(site.binaries.folder.join("edgecore"))
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(log)?)
        .spawn()?;
    Ok(Running(child))
}

fn check<'a>(said: &'a Value, name: &str) -> Result<&'a Value> {
    let checks = said["checks"].as_array().context("checks")?;
    checks.iter().find(|check| check["check"] == name).with_context(|| format!("no check {name} in {said:#}"))
}

#[test]
fn a_machine_joins_with_keadm_and_its_node_is_ready() -> Result<()> {
    let site = Site::start()?;
    let (root, log) = (site.path("machine"), site.path("edgecore.log"));
    let quic = format!("modules.edgeHub.quic.server=127.0.0.1:{}", site.cloud.ports.quic);
    let dir = format!("kubeedgeRs.processDirectory={}", site.path("processes").display());
    let api = "modules.edged.tailoredKubeletConfig.readOnlyPort=0";
    let more = ["-i", "edge-1", "-l", "zone=a", "--set", &quic, "--set", &dir, "--set", api];
    let more = [&more[..], &["--set", "kubeedgeRs.runtime=process"]].concat();
    let (joined, said) = site.join(&root, "127.0.0.1", &site.token()?, &more)?;
    ensure!(joined && said["joined"] == true, "{said:#}");

    let config = root.join("etc/kubeedge/config/edgecore.yaml");
    ensure!(!fs::read_to_string(&config)?.contains("token"), "the token is nowhere on the node");
    for file in ["ca/rootCA.crt", "certs/server.crt", "certs/server.key"] {
        let mode = fs::metadata(root.join("etc/kubeedge").join(file))?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{file} has mode {mode:o}");
    }
    let unit = fs::read_to_string(root.join("etc/systemd/system/edgecore.service"))?;
    ensure!(unit.contains("KillMode=process") && unit.contains("--config="), "{unit}");

    let _edge = edgecore(&site, &config, &log)?;
    site.ready("edge-1", &log)?;
    ensure!(site.cloud.kubectl(&["get", "nodes", "-l", "zone=a", "-o", "name"])?.contains("edge-1"));
    let conditions = "jsonpath={range .status.conditions[*]}{.type}={.status} {end}";
    wait_for("what the cloud sees of the node", || {
        let all = site.cloud.kubectl(&["get", "node", "edge-1", "-o", conditions])?;
        Ok(["EdgeLinkReady", "EdgeClockSynced", "EdgeVersionSupported"]
            .iter()
            .all(|kind| all.contains(&format!("{kind}=True"))))
    })?;

    // Neither this machine nor another can take the name again.
    let (joined, said) = site.join(&root, "127.0.0.1", &site.token()?, &["-i", "edge-1"])?;
    ensure!(!joined && check(&said, "not-joined-yet")?["ok"] == false, "{said:#}");
    let (joined, said) = site.join(&site.path("other"), "127.0.0.1", &site.token()?, &["-i", "edge-1"])?;
    ensure!(!joined && check(&said, "node-name-free")?["ok"] == false, "{said:#}");
    ensure!(!site.path("other").join("etc/kubeedge/certs").exists(), "nothing was done");

    drop(_edge);
    let output = site.keadm(&["reset", "edge", "--force", "--root", &root.to_string_lossy()])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(
        !root.join("etc/kubeedge").exists() && !root.join("etc/systemd/system/edgecore.service").exists()
    );
    ensure!(site.keadm(&["reset", "--force", "--root", &root.to_string_lossy()])?.status.success(), "again");
    Ok(())
}

#[test]
fn edgecore_joins_by_itself_with_a_configuration_of_kubeedge() -> Result<()> {
    let site = Site::start()?;
    let (folder, log) = (site.path("edge"), site.path("edgecore.log"));
    fs::create_dir_all(&folder)?;
    let (config, at, ports) = (folder.join("edgecore.yaml"), folder.display(), site.cloud.ports);
    let token = site.token()?;
    let text = format!(
        "apiVersion: edgecore.config.kubeedge.io/v1alpha2
kind: EdgeCore
database: {{dataSource: {at}/edgecore.db}}
modules:
  edgeHub:
    httpServer: https://127.0.0.1:{https}
    # From keadm gettoken.
    token: {token}
    websocket: {{enable: true, server: \"127.0.0.1:{websocket}\"}}
    tlsCaFile: {at}/ca/rootCA.crt
    tlsCertFile: {at}/certs/server.crt
    tlsPrivateKeyFile: {at}/certs/server.key
  edged:
    hostnameOverride: edge-1
    rootDirectory: {at}/root
    tailoredKubeletConfig: {{readOnlyPort: 0}}
  eventBus: {{enable: false}}
  deviceTwin: {{dmiSockPath: {at}}}
kubeedgeRs: {{runtime: process, processDirectory: {at}/processes}}
",
        https = ports.https,
        websocket = ports.websocket,
    );
    fs::write(&config, &text)?;
    let edge = edgecore(&site, &config, &log)?;
    site.ready("edge-1", &log)?;
    wait_for("the token to be gone", || Ok(fs::read_to_string(&config)? == text.replace(&token, "\"\"")))?;

    // Killed and started again, it is who it was, without a token.
    drop(edge);
    let certificate = fs::read(folder.join("certs/server.crt"))?;
    let _edge = edgecore(&site, &config, &log)?;
    site.ready("edge-1", &log)?;
    ensure!(fs::read(folder.join("certs/server.crt"))? == certificate);
    let said = fs::read_to_string(&log)?;
    ensure!(!said.contains(&token), "the token is in no log");
    ensure!(!site.cloud.log().contains(token.split('.').nth(3).unwrap_or(&token)), "nor in the cloud's");
    Ok(())
}

#[test]
fn each_mistake_in_joining_has_a_message_of_its_own() -> Result<()> {
    let site = Site::start()?;
    let token = site.token()?;
    let (hash, jwt) = token.split_once('.').context("a token")?;
    let foreign = format!("{}.{jwt}", "ab".repeat(32));
    // exp: 2020.
    let ended = format!("{hash}.eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjE1Nzc4MzY4MDB9.c2ln");
    let cases: [(&str, &str, &[&str], &str, &str); 5] = [
        ("127.0.0.1", "nonsense", &[], "token", "four parts"),
        ("127.0.0.1", &ended, &[], "token", "has expired"),
        ("127.0.0.1", &foreign, &[], "cloud", "another cloud or of an earlier"),
        ("127.0.0.2", &token, &["--check-only"], "cloud", "cannot be reached"),
        ("127.0.0.1", &token, &["-i", "Not_A_Name"], "node-name", "node name"),
    ];
    for (at, (host, token, more, name, cause)) in cases.into_iter().enumerate() {
        let root = site.path(&format!("machine-{at}"));
        let more = if more.contains(&"-i") { more.to_vec() } else { [&["-i", "edge-1"][..], more].concat() };
        // A flag that is given twice is an error of its own.
        let more: Vec<_> =
            if more.iter().filter(|word| **word == "-i").count() > 1 { more[2..].into() } else { more };
        let (joined, said) = site.join(&root, host, token, &more)?;
        let check = check(&said, name)?;
        ensure!(!joined && check["ok"] == false, "{said:#}");
        ensure!(check["cause"].as_str().is_some_and(|text| text.contains(cause)), "{cause}: {check:#}");
        ensure!(check["fix"].as_str().is_some_and(|text| !text.is_empty()), "{check:#}");
        ensure!(!root.join("etc/kubeedge/certs").exists(), "nothing was done");
    }
    let (_, said) =
        site.join(&site.path("machine-x"), "localhost", &token, &["-i", "edge-1", "--check-only"])?;
    ensure!(check(&said, "node-name-free")?["ok"] == true, "{said:#}");
    Ok(())
}

fn run(program: &str, words: &[&str]) -> Result<Output> {
    let output = Command::new(program)
        .args(words)
        .output()
        .with_context(|| format!("{program} is not installed (Debian packages curl, openssl)"))?;
    Ok(output)
}

fn done(program: &str, words: &[&str]) -> Result<String> {
    let output = run(program, words)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {words:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_node_joins_and_renews_with_curl_and_openssl() -> Result<()> {
    let site = Site::start()?;
    let token = site.token()?;
    let (hash, jwt) = token.split_once('.').context("a token")?;
    let at = |name: &str| site.path(name).to_string_lossy().into_owned();
    let (der, ca, key, csr, crt) = (at("ca.der"), at("ca.pem"), at("key.pem"), at("csr.der"), at("crt.der"));

    done("curl", &["-sSf", "-k", "-o", &der, &site.url("/ca.crt")])?;
    let digest = done("openssl", &["dgst", "-sha256", "-r", &der])?;
    ensure!(digest.starts_with(hash), "the hash in the token is that of the authority: {digest}");
    done("openssl", &["x509", "-inform", "DER", "-in", &der, "-out", &ca])?;

    done("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &key])?;
    let subject = "/C=CN/ST=Zhejiang/L=Hangzhou/O=system:nodes/CN=system:node:edge-1";
    done("openssl", &["req", "-new", "-key", &key, "-subj", subject, "-outform", "DER", "-out", &csr])?;
    let (bearer, body) = (format!("Authorization: Bearer {jwt}"), format!("@{csr}"));
    let edge = site.url("/edge.crt");
    let ask = ["-sS", "--cacert", &ca, "-X", "GET", "-H", "NodeName: edge-1", "--data-binary", &body];
    let joined = [&ask[..], &["-f", "-H", &bearer, "-o", &crt, &edge]].concat();
    done("curl", &joined)?;

    let pem = at("crt.pem");
    done("openssl", &["x509", "-inform", "DER", "-in", &crt, "-out", &pem])?;
    done("openssl", &["verify", "-CAfile", &ca, "-purpose", "sslclient", &pem])?;
    let shown = done("openssl", &["x509", "-in", &pem, "-noout", "-subject"])?;
    ensure!(shown.contains("system:nodes") && shown.contains("system:node:edge-1"), "{shown}");
    let renewed = [&ask[..], &["-f", "--cert", &pem, "--key", &key, "-o", &crt, &edge]].concat();
    done("curl", &renewed)?;

    // keadm of KubeEdge asks so whether a name is free.
    let status = done("curl", &["-sk", "-o", "/dev/null", "-w", "%{http_code}", &site.url("/node/edge-1")])?;
    ensure!(status == "404", "{status}");

    let other = Authority::create()?;
    let refused = |issued: &Issued| -> Result<String> {
        fs::write(at("own.pem"), &issued.certificate_pem)?;
        fs::write(at("own.key"), &issued.key_pem)?;
        let (cert, key) = (at("own.pem"), at("own.key"));
        done("curl", &[&ask[..], &["-i", "--cert", &cert, "--key", &key, &edge]].concat())
    };
    let foreign = refused(&other.issue_node(&"edge-1".parse()?, Duration::from_secs(3600))?)?;
    ensure!(foreign.contains("401") && foreign.contains("kubeedge-reason: UnknownAuthority"), "{foreign}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_links_refuse_certificates_that_are_expired_foreign_or_of_an_authority() -> Result<()> {
    let site = Site::start()?;
    let own = site.authority()?;
    let (node, hour) = ("edge-1".parse()?, Duration::from_secs(3600));
    let ca_key = fs::read_to_string(site.path("cloud/data/ca/rootCA.key"))?;
    let authority = Issued { certificate_pem: own.certificate_pem().to_owned(), key_pem: ca_key };
    let expired = own.issue_node(&node, Duration::ZERO)?;
    let foreign = Authority::create()?.issue_node(&node, hour)?;
    let good = own.issue_node(&node, hour)?;
    tokio::time::sleep(Duration::from_millis(1100)).await;

    let transports = |issued: &Issued| -> Result<[Box<dyn Transport>; 2]> {
        let identity = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
        let roots = tls::roots_from_pem(own.certificate_pem().as_bytes())?;
        let tls = std::sync::Arc::new(tls::client_config(&identity, roots)?);
        let (quic, websocket) = (site.cloud.ports.quic, site.cloud.ports.websocket);
        Ok([
            Box::new(QuicTransport::new(QuicConfig::new(format!("127.0.0.1:{quic}"), tls.clone()))?),
            Box::new(WebSocketTransport::new(WebSocketConfig::new(format!("127.0.0.1:{websocket}"), tls))?),
        ])
    };
    for (issued, alert, reason) in [
        (&expired, "expired", "CertificateExpired"),
        (&foreign, "unknown", "UnknownAuthority"),
        (&authority, "", "CertificateOfAnAuthority"),
    ] {
        for transport in transports(issued)? {
            match transport.connect().await {
                Err(TransportError::Refused { reason, .. }) => {
                    ensure!(reason.to_lowercase().contains(alert), "{}: {reason}", transport.name());
                }
                other => bail!("{} with {reason}: {other:?}", transport.name()),
            }
        }
        wait_for("the cloud to name the reason twice", || {
            Ok(site.cloud.log().lines().filter(|line| line.contains(reason)).count() >= 2)
        })?;
        let counted = format!("kubeedge_cloudhub_certificates_refused_total{{reason=\"{reason}\"}}");
        ensure!(site.cloud.metric(&counted)? == 2, "{reason}");
    }
    for transport in transports(&good)? {
        transport.connect().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_the_authority_goes_on_over_restarts_of_the_cloud() -> Result<()> {
    let mut site = Site::start()?;
    let (node, hour) = ("edge-1".parse()?, Duration::from_secs(3600));
    let first = site.authority()?;
    let old = first.issue_node(&node, hour)?;
    for (step, follows, old_is_good) in
        [("introduce", false, true), ("switch", true, true), ("retire", true, false)]
    {
        let kubeconfig = site.cloud.kubeconfig();
        let output = site.keadm(&["rotate-ca", step, "--kube-config", &kubeconfig.to_string_lossy()])?;
        ensure!(output.status.success(), "{step}: {}", String::from_utf8_lossy(&output.stderr));
        // Once more than is needed: the first start may have changed what the second one finds.
        for _ in 0..2 {
            site.cloud.kill();
            site.cloud.spawn()?;
        }
        let signs = site.authority()?;
        let switched = signs.certificate_pem() != first.certificate_pem();
        ensure!(switched == follows, "after {step} another one signs: {switched}");
        let roots = signs.certificate_pem().to_owned() + first.certificate_pem();
        let dial = async |issued: &Issued| -> Result<bool> {
            let identity = Identity::from_pem(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes())?;
            let tls = tls::client_config(&identity, tls::roots_from_pem(roots.as_bytes())?)?;
            let cloud = format!("127.0.0.1:{}", site.cloud.ports.websocket);
            let transport = WebSocketTransport::new(WebSocketConfig::new(cloud, tls.into()))?;
            match transport.connect().await {
                Ok(_) => Ok(true),
                Err(TransportError::Refused { .. }) => Ok(false),
                Err(other) => bail!("after {step}: {other:?}"),
            }
        };
        ensure!(dial(&signs.issue_node(&node, hour)?).await?, "after {step}: {}", site.cloud.log());
        ensure!(dial(&old).await? == old_is_good, "after {step} the old is to be good: {old_is_good}");
        let authority = signs.certificate_der()?;
        let follows = || Ok(site.token()?.parse::<JoinToken>()?.is_of(&authority));
        wait_for(&format!("the token to follow after {step}"), follows)?;
    }
    let kubeconfig = site.cloud.kubeconfig();
    let output = site.keadm(&["rotate-ca", "status", "--kube-config", &kubeconfig.to_string_lossy()])?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(said.contains("no rotation is under way") && said.contains("all nodes have"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_shut_out_is_gone_until_it_is_let_in_again() -> Result<()> {
    let site = Site::start()?;
    let cloud = &site.cloud;
    let mut edge = Edge::start(&site.binaries, &site.path("edge"), cloud, &EdgeOptions::new("edge-1"))?;
    let is = |wanted: &str| {
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
        Ok(cloud.kubectl(&["get", "node", "edge-1", "-o", path]).is_ok_and(|found| found == wanted))
    };
    wait_for("the node to be Ready", || is("True"))?;
    cloud.kubectl(&["annotate", "node", "edge-1", "node.kubeedge.io/shut-out=stolen in May"])?;
    wait_for("its session to end", || Ok(cloud.metric("kubeedge_cloudhub_sessions")? == 0))?;
    wait_for("the node to be Unknown", || is("Unknown"))?;
    edge.kill();
    edge.spawn()?;
    let counted = "kubeedge_cloudhub_offences_total{reason=\"shut-out\"}";
    wait_for("its next attempt to be refused", || Ok(cloud.metric(counted)? >= 2))?;
    ensure!(is("Unknown")?, "{}", cloud.log());

    cloud.kubectl(&["annotate", "node", "edge-1", "node.kubeedge.io/shut-out-"])?;
    // It stays away for a minute by itself.
    edge.kill();
    edge.spawn()?;
    wait_for("the node to be Ready again", || is("True"))
}

/// How many joins are refused; `JOINS` sets another number, as `cargo xtask soak joins` does.
fn joins() -> usize {
    std::env::var("JOINS").ok().and_then(|text| text.parse().ok()).unwrap_or(600)
}

fn resident_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_joins_is_refused_in_constant_memory_and_a_good_one_still_passes() -> Result<()> {
    use kubeedge_edge::certificates::{self, Config, Files, Server};
    let site = Site::start()?;
    let token = site.token()?;
    let files = |name: &str| {
        let at = |file: &str| site.path(name).join(file);
        Files { ca: at("ca.crt"), certificate: at("server.crt"), key: at("server.key") }
    };
    let cloud = || Server { host: "127.0.0.1".into(), port: site.cloud.ports.https };
    let (hash, _) = token.split_once('.').context("a token")?;
    // Signed by nobody, and not at its end.
    let forged = format!("{hash}.eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjQ5OTk5OTk5OTl9.c2ln").parse()?;
    let config = Config::new("edge-9".parse()?, cloud(), files("flood"));
    let process = site.cloud.pid().context("cloudcore runs")?;

    let flood = async |count: usize| -> Result<()> {
        let mut left = count;
        while left > 0 {
            let batch = left.min(32);
            let asked = (0..batch).map(|_| certificates::enroll(&config, &forged));
            for outcome in futures::future::join_all(asked).await {
                match outcome {
                    Err(certificates::Error::Refused { reason, .. }) if reason == "TokenForeign" => {}
                    other => bail!("{other:?}"),
                }
            }
            left -= batch;
        }
        Ok(())
    };
    flood(joins() / 3).await?;
    let before = resident_kib(process)?;
    flood(joins()).await?;
    let after = resident_kib(process)?;
    println!("{} joins: {before} KiB became {after} KiB", joins());
    ensure!(after <= before + (4 << 10), "{before} KiB became {after} KiB");
    let counted = site.cloud.metric("kubeedge_joins_refused_total{reason=\"TokenForeign\"}")?;
    ensure!(counted == (joins() / 3 + joins()) as u64, "{counted} were counted");

    let started = Instant::now();
    let good = Config::new("edge-1".parse()?, cloud(), files("good"));
    certificates::enroll(&good, &token.parse()?).await?;
    ensure!(started.elapsed() < Duration::from_secs(10));
    ensure!(!site.path("flood").exists(), "who is refused stores nothing");
    Ok(())
}
