//! `kubectl exec`, `attach`, `port-forward` and `cp` for pods of an edge node, through the cloud and over its link.

#[path = "support/containerd.rs"]
mod containerd;
#[path = "support/pod_site.rs"]
mod pod_site;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use containerd::{Containerd, IMAGE};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, cluster, free_port, wait_for, wait_within},
};
use pod_site::{SOON, Site, ready, shell, tail, with};
use serde_json::json;

/// `kubectl cp` runs tar in the container, which the image has under another name.
const SCRIPT: &str = "ln -s busybox /bin/tar; mkdir -p /www; echo from the pod > /www/index.html; httpd -p 8080 -h /www; \
    while read line; do echo heard $line; done; exec sleep 100000";

#[test]
fn kubectl_runs_commands_copies_files_and_forwards_ports_through_the_cloud() -> Result<()> {
    let (folder, mut common, mut modules) = (tempfile::tempdir()?, String::new(), String::new());
    if let Some(admin) = cluster::admin() {
        // An API server asks the kubelet at the Node's address and port.
        let (authority, port) = (folder.path().join("clients.crt"), free_port()?);
        fs::write(&authority, cluster::kubelet_clients(&admin)?)?;
        common = format!(", tunnelPort: {port}");
        modules = format!(
            "  cloudStream: {{enable: true, streamPort: {port}, tlsStreamCAFile: {}}}\n",
            authority.display()
        );
    }
    let site = Site::start_with(Containerd::start(), "", &common, &modules)?;
    let main = with(shell("main", SCRIPT), &json!({ "stdin": true }));
    let containers = [main, shell("second", "exec sleep 100000")];
    site.apply("web", json!({ "terminationGracePeriodSeconds": 1, "containers": containers }))?;
    site.wait("web", "Ready", ready)?;
    let told = || tail(&site.edge.log());
    commands_run_and_their_exit_codes_arrive(&site).with_context(told)?;
    what_goes_in_comes_out(&site).with_context(told)?;
    files_are_copied_both_ways(&site).with_context(told)?;
    ports_are_forwarded(&[], &site).with_context(told)?;
    a_client_that_speaks_spdy_is_served_as_well(&site).with_context(told)?;
    a_client_is_attached(&site).with_context(told)?;
    what_is_wrong_is_told(&site).with_context(told)?;
    a_client_that_is_stopped_ends_its_process_on_the_node(&site).with_context(told)?;
    a_stream_outlives_a_link_that_is_gone_for_seconds(&site).with_context(told)?;
    Ok(())
}

fn commands_run_and_their_exit_codes_arrive(site: &Site) -> Result<()> {
    let script = "echo out; echo err >&2; exit 7";
    let ran = run(&site.cloud, &["exec", "web", "-c", "main", "--", "sh", "-c", script], b"")?;
    ensure!(ran.stdout == b"out\n" && ran.status.code() == Some(7), "{ran:?}");
    ensure!(String::from_utf8_lossy(&ran.stderr).contains("err\n"), "{ran:?}");
    let ran = run(&site.cloud, &["exec", "web", "-c", "second", "--", "ls", "/marks"], b"")?;
    ensure!(ran.status.success(), "{ran:?}");
    Ok(())
}

/// More than any buffer between holds, and no text.
fn what_goes_in_comes_out(site: &Site) -> Result<()> {
    let large: Vec<u8> = (0..900_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let ran = run(&site.cloud, &["exec", "-i", "web", "-c", "main", "--", "cat"], &large)?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    ensure!(ran.stdout == large, "{} of {} bytes came back", ran.stdout.len(), large.len());
    Ok(())
}

fn files_are_copied_both_ways(site: &Site) -> Result<()> {
    let (there, back) = (site.folder.path().join("there"), site.folder.path().join("back"));
    fs::write(&there, "copied ".repeat(100_000))?;
    let place = "default/web:/tmp/copy";
    site.cloud.kubectl(&["cp", "-c", "main", &there.to_string_lossy(), place])?;
    site.cloud.kubectl(&["cp", "-c", "main", place, &back.to_string_lossy()])?;
    ensure!(fs::read(&there)? == fs::read(&back)?);
    Ok(())
}

fn ports_are_forwarded(variables: &[(&str, &str)], site: &Site) -> Result<()> {
    let mut command = kubectl(&site.cloud, &["port-forward", "pod/web", ":8080"]);
    let mut child = Running(command.envs(variables.iter().copied()).spawn()?);
    let mut lines = BufReader::new(child.0.stdout.take().context("no output")?).lines();
    let line = lines.next().context("kubectl says where")??;
    let port = line.split([':', ' ']).find_map(|word| word.parse::<u16>().ok()).context(line)?;
    let fetch = || -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    // Several at once go over one stream.
    let answers: Vec<_> = thread::scope(|scope| {
        let fetching: Vec<_> = (0..4).map(|_| scope.spawn(fetch)).collect();
        fetching.into_iter().map(|it| it.join().expect("the thread does not panic")).collect()
    });
    for answer in answers {
        let answer = answer?;
        ensure!(answer.ends_with("from the pod\n"), "{answer}");
    }
    Ok(())
}

/// What kubectl spoke before it had WebSockets.
fn a_client_that_speaks_spdy_is_served_as_well(site: &Site) -> Result<()> {
    let spdy = [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];
    let mut command =
        kubectl(&site.cloud, &["exec", "-i", "web", "-c", "main", "--", "sh", "-c", "cat; exit 7"]);
    let input = vec![b'x'; 300_000];
    let ran = feed(command.envs(spdy), &input)?;
    ensure!(ran.stdout == input && ran.status.code() == Some(7), "{}", String::from_utf8_lossy(&ran.stderr));
    ports_are_forwarded(&spdy, site)
}

fn a_client_is_attached(site: &Site) -> Result<()> {
    let mut child = Running(kubectl(&site.cloud, &["attach", "-i", "web", "-c", "main"]).spawn()?);
    let mut stdin = child.0.stdin.take().context("no input")?;
    let mut lines = BufReader::new(child.0.stdout.take().context("no output")?).lines();
    stdin.write_all(b"hello\n")?;
    let heard = lines.next().context("the pod answers")??;
    ensure!(heard == "heard hello", "{heard}");
    Ok(())
}

fn what_is_wrong_is_told(site: &Site) -> Result<()> {
    let refused = |args: &[&str]| site.cloud.kubectl(args).expect_err("it cannot be").to_string();
    let said = refused(&["exec", "web", "-c", "absent", "--", "true"]);
    ensure!(said.contains("container absent is not valid for pod web"), "{said}");
    let said = refused(&["exec", "web", "-c", "main", "--", "/nothing/here"]);
    ensure!(said.contains("no such file or directory"), "{said}");
    let said = refused(&[
        "get",
        "--raw",
        "/api/v1/namespaces/default/pods/web/exec?container=main&command=ls&stdout=1",
    ]);
    // An API server says it itself, in words of its own.
    let word = if cluster::admin().is_some() { "Upgrade request required" } else { "unable to upgrade" };
    ensure!(said.contains(word), "{said}");
    Ok(())
}

fn a_client_that_is_stopped_ends_its_process_on_the_node(site: &Site) -> Result<()> {
    let script = "echo began > /marks/began; cat; echo ended > /marks/ended";
    let mut child = Running(
        kubectl(&site.cloud, &["exec", "-i", "web", "-c", "main", "--", "sh", "-c", script]).spawn()?,
    );
    let _stdin = child.0.stdin.take();
    wait_within(SOON, "the process to begin", || Ok(site.mark("began").exists()))?;
    thread::sleep(Duration::from_millis(500));
    ensure!(!site.mark("ended").exists());
    child.0.kill()?;
    wait_for("the process to end", || Ok(site.mark("ended").exists()))
}

fn a_stream_outlives_a_link_that_is_gone_for_seconds(site: &Site) -> Result<()> {
    let mut child = Running(kubectl(&site.cloud, &["exec", "-i", "web", "-c", "main", "--", "cat"]).spawn()?);
    let mut stdin = child.0.stdin.take().context("no input")?;
    let mut lines = BufReader::new(child.0.stdout.take().context("no output")?).lines();
    let mut echo = |word: &str| -> Result<()> {
        writeln!(stdin, "{word}")?;
        let heard = lines.next().context("the stream has ended")??;
        ensure!(heard == word, "{heard} is not {word}");
        Ok(())
    };
    echo("one")?;
    let edge = site.edge.pid().context("edgecore does not run")?;
    signal(edge, "STOP")?;
    let over =
        wait_for("the session to be over", || Ok(site.cloud.metric("kubeedge_cloudhub_sessions")? == 0));
    signal(edge, "CONT")?;
    over?;
    echo("two")
}

fn signal(process: u32, name: &str) -> Result<()> {
    let sent = Command::new("kill").args([format!("-{name}"), process.to_string()]).status()?;
    ensure!(sent.success(), "kill -{name}: {sent}");
    Ok(())
}

#[test]
fn an_api_server_reaches_pods_also_at_a_cloud_that_has_not_the_nodes_session() -> Result<()> {
    let (folder, binaries, containerd) = (tempfile::tempdir()?, binaries(), Containerd::start());
    let caller = Caller::new(folder.path())?;
    let own = cluster::admin().map(|admin| cluster::kubelet_clients(&admin)).transpose()?;
    caller.is_believed_beside(&own.unwrap_or_default())?;
    // Both listen for API servers. The one that has the node says at which port its kubelet is asked, and that is the other's.
    let (asked_at, common) = (free_port()?, |port| format!(", tunnelPort: {port}"));
    let modules = |stream: u16| -> Result<String> {
        let (relay, ca) = (free_port()?, caller.file("believed.crt"));
        Ok(format!(
            "  cloudStream: {{enable: true, streamPort: {stream}, tlsStreamCAFile: {ca}}}\nkubeedgeRs:\n  \
             replicas: {{enable: true, address: 127.0.0.1, port: {relay}, advertiseAddress: 127.0.0.1}}\n"
        ))
    };
    let (asked, owner) = (folder.path().join("asked"), folder.path().join("owner"));
    let asked = Cloud::start_with_config(&binaries, &asked, 1, &common(asked_at), &modules(asked_at)?)?;
    let account = fs::read_to_string(asked.account())?;
    let owner = asked.another_with_config(&owner, &account, &common(asked_at), &modules(free_port()?)?)?;
    let options = EdgeOptions { containerd: Some(containerd.socket()), ..EdgeOptions::new("edge-1") };
    let edge = Edge::start(&binaries, &folder.path().join("edge"), &owner, &options)?;
    let logs = || format!("{}\n{}\n{}", tail(&asked.log()), tail(&owner.log()), tail(&edge.log()));
    let main = json!({
        "name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": ["sleep", "100000"],
    });
    let spec = json!({ "nodeName": "edge-1", "terminationGracePeriodSeconds": 1, "containers": [main] });
    let metadata = json!({ "name": "web", "namespace": "default" });
    asked.apply(
        &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }).to_string(),
    )?;
    asked
        .kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])
        .with_context(|| tail(&edge.log()))?;
    // An API server goes by what the Node says, and a pod may be sooner.
    wait_for("the node to say where it is reached", || {
        let address = "jsonpath={.status.addresses[0].address}";
        Ok(!asked.kubectl(&["get", "node", "edge-1", "-o", address])?.is_empty())
    })?;

    let passed_on = || asked.metric("kubeedge_relay_passed_on_total");
    let before = passed_on()?;
    let input = vec![b'x'; 300_000];
    let ran = run(&asked, &["exec", "-i", "web", "--", "cat"], &input).with_context(logs)?;
    ensure!(
        ran.status.success() && ran.stdout == input,
        "{}{}",
        String::from_utf8_lossy(&ran.stderr),
        logs()
    );
    ensure!(passed_on()? > before, "the stream has gone by way of the other cloud");

    let path = "/exec/default/web/main?command=sh&command=-c&command=echo+hello%3B+exit+3&output=1&error=1";
    let said = caller.ask(asked_at, path, true, "ExitCode").with_context(logs)?;
    ensure!(said.starts_with("HTTP/1.1 101 ") && said.contains("hello\n"), "{said}{}", logs());
    ensure!(said.contains("\"message\":\"3\""), "{said}");
    let said = caller.ask(asked_at, "/exec/default/web/absent?command=sh&output=1", true, "absent")?;
    ensure!(said.starts_with("HTTP/1.1 404 "), "{said}");
    // Whoever comes without a certificate gets no word.
    let said = caller.ask(asked_at, path, false, "HTTP/1.1")?;
    ensure!(!said.contains("HTTP/1.1"), "{said}");
    Ok(())
}

/// An API server's kubelet client, with a certificate of an authority of its own.
struct Caller {
    folder: PathBuf,
}

impl Caller {
    fn new(folder: &Path) -> Result<Self> {
        let caller = Self { folder: folder.to_owned() };
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let make = |name: &str, subject: &str, more: &[&str]| -> Result<()> {
            let (certificate, secret) =
                (caller.file(&format!("{name}.crt")), caller.file(&format!("{name}.key")));
            let made = Command::new("openssl")
                .args(["req", "-x509", "-subj", subject, "-out", &certificate, "-keyout", &secret])
                .args(key)
                .args(more)
                .output()
                .context("openssl is not installed (Debian package openssl)")?;
            ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            Ok(())
        };
        make("ca", "/CN=authority", &[])?;
        let (ca, key) = (caller.file("ca.crt"), caller.file("ca.key"));
        let by = ["-CA", &ca, "-CAkey", &key, "-addext", "basicConstraints=critical,CA:FALSE"];
        make("caller", "/CN=kube-apiserver-kubelet-client", &by)?;
        Ok(caller)
    }

    /// Writes the authorities that are believed: its own and those of the cluster.
    fn is_believed_beside(&self, others: &str) -> Result<()> {
        let own = fs::read_to_string(self.file("ca.crt"))?;
        Ok(fs::write(self.file("believed.crt"), own + others)?)
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Asks for a WebSocket, with the certificate or without: what is said until `last` comes, or the connection ends.
    fn ask(&self, port: u16, path: &str, with_certificate: bool, last: &str) -> Result<String> {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-connect", &format!("127.0.0.1:{port}")]);
        if with_certificate {
            command.args(["-cert", &self.file("caller.crt"), "-key", &self.file("caller.key")]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Running(command.spawn()?);
        let mut stdin = child.0.stdin.take().context("no input")?;
        write!(
            stdin,
            "GET {path} HTTP/1.1\r\nHost: edge-1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )?;
        let mut stdout = child.0.stdout.take().context("no output")?;
        let (mut said, mut buffer) = (String::new(), [0; 4096]);
        while !said.contains(last) {
            match stdout.read(&mut buffer)? {
                0 => break,
                count => said += &String::from_utf8_lossy(&buffer[..count]),
            }
        }
        Ok(said)
    }
}

/// A kubectl that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kubectl(cloud: &Cloud, args: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(cloud.kubeconfig()).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(cloud: &Cloud, args: &[&str], input: &[u8]) -> Result<Output> {
    feed(&mut kubectl(cloud, args), input)
}

fn feed(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = command.spawn().context("cannot run kubectl")?;
    let mut stdin = child.stdin.take().context("no input")?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        Ok(child.wait_with_output()?)
    })
}
