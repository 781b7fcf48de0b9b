//! Messages between applications on a node and in the cloud, by rules, while everything between them is killed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kubeedge_tests::{
    binaries,
    site::{Cloud, Edge, EdgeOptions, free_port, wait_for, wait_within},
};
use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// Where the application on the node publishes: the topic `t` of a Rule in the namespace `shop`.
const TOPIC: &str = "shop/t";

/// Messages without an acknowledgement at once.
const WINDOW: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_message_is_lost_whoever_is_killed_under_load() -> Result<()> {
    let target = Target::start().await?;
    let mut site = Site::start(&target.url)?;
    // Only the Rule makes the node take messages on this topic, so it has to have come before they do.
    wait_for("the node to know the Rule", || {
        probe(site.edge.mqtt)?;
        Ok(!target.received().is_empty())
    })
    .with_context(|| site.edge.log())?;
    let publisher = Publisher::start(site.edge.mqtt);
    wait_for("the first messages in the cloud", || Ok(target.received().len() > 50))
        .with_context(|| site.edge.log())?;
    site.edge.kill();
    site.edge.spawn()?;
    sleep(Duration::from_millis(700)).await;
    site.cloud.kill();
    sleep(Duration::from_millis(700)).await;
    site.edge.kill();
    site.edge.spawn()?;
    sleep(Duration::from_millis(700)).await;
    site.cloud.spawn()?;
    sleep(Duration::from_millis(500)).await;
    site.cloud.kill();
    site.edge.kill();
    site.cloud.spawn()?;
    site.edge.spawn()?;
    sleep(Duration::from_millis(700)).await;
    let acknowledged = publisher.stop().await?;
    ensure!(acknowledged.len() > 500, "only {} were acknowledged", acknowledged.len());
    let arrived = wait_within(Duration::from_secs(60), "every acknowledged message in the cloud", || {
        Ok(acknowledged.is_subset(&target.received()))
    });
    let missing: Vec<_> = acknowledged.difference(&target.received()).copied().collect();
    arrived.with_context(|| format!("of {} are missing {missing:?}", acknowledged.len()))?;
    wait_for("the rule's counters", || {
        let counted = site.cloud.kubectl(&[
            "get",
            "rule",
            "up",
            "-n",
            "shop",
            "-o",
            "jsonpath={.status.successMessages}",
        ])?;
        Ok(!counted.is_empty())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_posted_to_the_cloud_is_published_on_the_node_or_refused_with_a_reason() -> Result<()> {
    let mut site = Site::start("http://127.0.0.1:1/nowhere")?;
    let (client, mut events) = AsyncClient::new(MqttOptions::new("app", "127.0.0.1", site.edge.mqtt), 10);
    wait_for("the broker", || Ok(std::net::TcpStream::connect(("127.0.0.1", site.edge.mqtt)).is_ok()))?;
    client.subscribe("orders/#", QoS::AtLeastOnce).await?;
    let subscribed = async {
        while !matches!(events.poll().await?, Event::Incoming(Packet::SubAck(_))) {}
        Ok::<_, anyhow::Error>(())
    };
    timeout(Duration::from_secs(10), subscribed).await??;
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while post(site.rules, "/edge-1/default/orders/1", "go").await?.0 != 200 {
        ensure!(std::time::Instant::now() < deadline, "{}", site.cloud.log());
        sleep(Duration::from_millis(50)).await;
    }
    let received = async {
        loop {
            if let Event::Incoming(Packet::Publish(publish)) = events.poll().await? {
                return Ok::<_, anyhow::Error>((publish.topic, publish.payload));
            }
        }
    };
    let (topic, payload) = timeout(Duration::from_secs(10), received).await??;
    ensure!(topic == "orders/1" && payload == "go", "{topic} {payload:?}");
    site.edge.kill();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let (status, text) = post(site.rules, "/edge-1/default/orders/2", "go").await?;
        if status == 503 && text.contains("not connected") {
            return Ok(());
        }
        ensure!(status != 200, "a node that is gone has taken a message");
        ensure!(std::time::Instant::now() < deadline, "{status} {text}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// A cloud with rules, and an edge.
struct Site {
    edge: Edge,
    cloud: Cloud,
    /// Where requests for nodes are taken.
    rules: u16,
    _folder: tempfile::TempDir,
}

impl Site {
    fn start(target: &str) -> Result<Self> {
        let (folder, binaries, rules) = (tempfile::tempdir()?, binaries(), free_port()?);
        let modules =
            format!("  router: {{enable: true, address: 127.0.0.1, port: {rules}, restTimeout: 5}}\n");
        let cloud = Cloud::start_with_modules(&binaries, &folder.path().join("cloud"), 1, &modules)?;
        cloud.apply(&manifest(target))?;
        let edge = Edge::start(&binaries, &folder.path().join("edge"), &cloud, &EdgeOptions::new("edge-1"))?;
        Ok(Self { edge, cloud, rules, _folder: folder })
    }
}

fn manifest(target: &str) -> String {
    let endpoint = |namespace: &str, name: &str, kind: &str| {
        format!(
            "apiVersion: rules.kubeedge.io/v1\nkind: RuleEndpoint\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{ruleEndpointType: {kind}, properties: {{}}}}\n---\n"
        )
    };
    let rule = |namespace: &str, name: &str, source: &str, from: &str, to: &str, into: &str| {
        format!(
            "apiVersion: rules.kubeedge.io/v1\nkind: Rule\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{source: {source}, sourceResource: {from}, target: {to}, targetResource: {into}}}\n---\n"
        )
    };
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n".to_owned();
    let resource = format!("{{resource: \"{target}\"}}");
    let endpoints =
        ["default", "shop"].map(|of| endpoint(of, "rest", "rest") + &endpoint(of, "bus", "eventbus"));
    namespace
        + &endpoints.concat()
        + &rule("shop", "up", "bus", "{topic: t, node_name: edge-1}", "rest", &resource)
        + &rule("default", "down", "rest", "{path: /orders}", "bus", "{topic: orders}")
}

/// Publishes a number that no other publisher has.
fn probe(port: u16) -> Result<()> {
    let output = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", TOPIC, "-m", "4000000000"])
        .output()
        .context("mosquitto_pub")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// An application in the cloud, which remembers the numbers that it was posted.
struct Target {
    url: String,
    numbers: Arc<Mutex<BTreeSet<u32>>>,
}

impl Target {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/in", listener.local_addr()?);
        let numbers = Arc::new(Mutex::new(BTreeSet::new()));
        let taken = numbers.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(take(socket, taken.clone()));
            }
        });
        Ok(Self { url, numbers })
    }

    fn received(&self) -> BTreeSet<u32> {
        self.numbers.lock().expect("no thread panics with it").clone()
    }
}

/// Takes one request, whose body is a number.
async fn take(mut socket: TcpStream, numbers: Arc<Mutex<BTreeSet<u32>>>) -> Option<()> {
    let mut request = Vec::new();
    let body = loop {
        if socket.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break body.to_owned();
        }
    };
    numbers.lock().expect("no thread panics with it").insert(body.parse().ok()?);
    socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.ok()
}

/// An application on the node, which numbers its messages and remembers which were acknowledged.
struct Publisher {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<BTreeSet<u32>>,
}

impl Publisher {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        Self { stop, task: tokio::spawn(publish_until(port, stopped)) }
    }

    /// Waits until all are acknowledged.
    async fn stop(self) -> Result<BTreeSet<u32>> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(timeout(Duration::from_secs(60), self.task).await.context("acknowledgements do not come")??)
    }
}

async fn publish_until(port: u16, stop: Arc<AtomicBool>) -> BTreeSet<u32> {
    let (mut acknowledged, mut unacknowledged, mut next) = (BTreeSet::new(), BTreeSet::new(), 0);
    loop {
        // What was not acknowledged is sent again on a new connection, as the standard wants it.
        let (client, mut events) = AsyncClient::new(MqttOptions::new("publisher", "127.0.0.1", port), 100);
        let mut sending: VecDeque<u32> = unacknowledged.iter().copied().collect();
        let mut packets = BTreeMap::new();
        let send = |number: u32| client.try_publish(TOPIC, QoS::AtLeastOnce, false, number.to_string());
        sending.iter().for_each(|number| send(*number).expect("there is room"));
        loop {
            match events.poll().await {
                Ok(Event::Outgoing(Outgoing::Publish(packet))) => {
                    packets.insert(packet, sending.pop_front().expect("it was asked for"));
                }
                Ok(Event::Incoming(Packet::PubAck(answer))) => {
                    let number = packets.remove(&answer.pkid).expect("it was sent");
                    unacknowledged.remove(&number);
                    acknowledged.insert(number);
                }
                Ok(_) => {}
                Err(_) => break,
            }
            let stopped = stop.load(Ordering::Relaxed);
            if stopped && unacknowledged.is_empty() {
                return acknowledged;
            }
            while !stopped && unacknowledged.len() < WINDOW {
                unacknowledged.insert(next);
                sending.push_back(next);
                send(next).expect("there is room");
                next += 1;
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Posts a body and gives the answer's status and body.
async fn post(port: u16, path: &str, body: &str) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    timeout(Duration::from_secs(20), socket.read_to_string(&mut answer)).await??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok((head.split(' ').nth(1).context("no status")?.parse()?, body.to_owned()))
}
