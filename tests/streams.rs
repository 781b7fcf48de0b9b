//! `kubectl exec`, `attach`, `port-forward` and `cp` for pods of an edge node, through the cloud and over its link.

#[path = "support/containerd.rs"]
mod containerd;
#[path = "support/pod_site.rs"]
mod pod_site;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::site::{Cloud, cluster, wait_for, wait_within};
use pod_site::{SOON, Site, ready, shell, tail, with};
use serde_json::json;

/// `kubectl cp` runs tar in the container, which the image has under another name.
const SCRIPT: &str = "ln -s busybox /bin/tar; mkdir -p /www; echo from the pod > /www/index.html; httpd -p 8080 -h /www; \
    while read line; do echo heard $line; done; exec sleep 100000";

#[test]
fn kubectl_runs_commands_copies_files_and_forwards_ports_through_the_cloud() -> Result<()> {
    if cluster::admin().is_some() {
        // An API server finds the node at its own address; `cluster_install` has what that takes.
        println!("left out on a cluster");
        return Ok(());
    }
    let site = Site::start()?;
    let main = with(shell("main", SCRIPT), &json!({ "stdin": true }));
    let containers = [main, shell("second", "exec sleep 100000")];
    site.apply("web", json!({ "terminationGracePeriodSeconds": 1, "containers": containers }))?;
    site.wait("web", "Ready", ready)?;
    let told = || tail(&site.edge.log());
    commands_run_and_their_exit_codes_arrive(&site).with_context(told)?;
    what_goes_in_comes_out(&site).with_context(told)?;
    files_are_copied_both_ways(&site).with_context(told)?;
    ports_are_forwarded(&site).with_context(told)?;
    a_client_is_attached(&site).with_context(told)?;
    what_is_wrong_is_told(&site).with_context(told)?;
    a_client_that_is_stopped_ends_its_process_on_the_node(&site).with_context(told)?;
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

fn ports_are_forwarded(site: &Site) -> Result<()> {
    let mut child = Running(kubectl(&site.cloud, &["port-forward", "pod/web", ":8080"]).spawn()?);
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
    ensure!(said.contains("unable to upgrade"), "{said}");
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
    let mut child = kubectl(cloud, args).spawn().context("cannot run kubectl")?;
    let mut stdin = child.stdin.take().context("no input")?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = stdin.write_all(input);
        });
        Ok(child.wait_with_output()?)
    })
}
