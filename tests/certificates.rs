//! The part of the node that keeps its certificate, and the part of the cloud that issues it, over real sockets.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kubeedge_cloud::{
    cloudhub::{self, CloudHub, Gauges},
    enrollment::{self, Counts, Enrollment, ServerCertificate, Step, Trusted},
};
use kubeedge_core::{
    hub::{NodeConfig, Offence},
    join::JoinToken,
    message::{Connectivity, Inventory, Snapshot},
    tls::{self, Identity, Live, Refusal},
    transport::{
        Listener, Transport,
        quic::{QuicConfig, QuicListener, QuicListenerConfig, QuicTransport},
        websocket::{WebSocketConfig, WebSocketListener, WebSocketListenerConfig, WebSocketTransport},
    },
};
use kubeedge_edge::{
    certificates::{self, Certificates, Config, Error, Files, Server},
    edgehub::{self, EdgeHub},
};
use kubeedge_tests::api::Api;
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Cloud {
    api: Api,
    address: SocketAddr,
    tls: Live,
    counts: Arc<Counts>,
    _stop: DropGuard,
}

impl Cloud {
    async fn start(config: enrollment::Config) -> Result<Self> {
        let api = Api::start().await?;
        let trusted = enrollment::open_authority(&api.client(), "kubeedge").await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, tls, stop) = (listener.local_addr()?, Live::empty(), CancellationToken::new());
        let opened = Enrollment::open(config, trusted, api.client(), tls.clone(), Some(listener)).await?;
        let counts = opened.counts();
        tokio::spawn(opened.run(stop.clone()));
        Ok(Self { api, address, tls, counts, _stop: stop.drop_guard() })
    }

    async fn trusted(&self) -> Result<Trusted> {
        Ok(enrollment::open_authority(&self.api.client(), "kubeedge").await?)
    }

    async fn token(&self) -> Result<JoinToken> {
        enrollment::join_token(&self.api.client(), "kubeedge").await?.context("a token")
    }

    async fn add_node(&self, name: &str) -> Result<()> {
        let labels = serde_json::json!({ "node-role.kubernetes.io/edge": "" });
        let node = serde_json::json!({ "metadata": { "name": name, "labels": labels } });
        let nodes: kube::Api<Node> = kube::Api::all(self.api.admin());
        nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        Ok(())
    }
}

/// A node's folder and what it shows.
struct Edge {
    config: Config,
    tls: Live,
    _folder: tempfile::TempDir,
    _stop: Option<DropGuard>,
}

impl Edge {
    fn new(cloud: &Cloud, token: Option<JoinToken>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| -> PathBuf { folder.path().join(name) };
        let files = Files { ca: at("ca.crt"), certificate: at("server.crt"), key: at("server.key") };
        let server = Server { host: "127.0.0.1".into(), port: cloud.address.port() };
        let config = Config { token, ..Config::new("edge-1".parse()?, server, files) };
        Ok(Self { config, tls: Live::empty(), _folder: folder, _stop: None })
    }

    fn run(&mut self) {
        let part = Certificates::open(self.config.clone(), self.tls.clone());
        let stop = CancellationToken::new();
        tokio::spawn(part.run(stop.clone()));
        self._stop = Some(stop.drop_guard());
    }

    /// Gives the node a certificate that the cloud's authority has issued for so long.
    async fn holds(&self, cloud: &Cloud, lasts: Duration) -> Result<()> {
        let trusted = cloud.trusted().await?;
        let issued = trusted.authority().issue_node(&self.config.node, lasts)?;
        issued.write(&self.config.files.certificate, &self.config.files.key)?;
        std::fs::write(&self.config.files.ca, trusted.bundle_pem())?;
        Ok(())
    }

    fn shown(&self) -> Option<Vec<u8>> {
        self.tls.identity().map(|identity| identity.certificate().to_vec())
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > Duration::from_secs(20) {
            bail!("waited for {what}");
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_joins_and_dials_with_what_it_got() -> Result<()> {
    let cloud = Cloud::start(enrollment::Config::default()).await?;
    let server = Arc::new(cloud.tls.server_config()?);
    let listener = QuicListener::bind("127.0.0.1:0".parse()?, server, QuicListenerConfig::default())?;
    let mut edge = Edge::new(&cloud, Some(cloud.token().await?))?;
    let dialled = QuicConfig::new(listener.local_address(), Arc::new(edge.tls.client_config()?));
    let transport = QuicTransport::new(dialled)?;
    transport.connect().await.expect_err("a node without a certificate is refused");

    edge.run();
    edge.tls.ready().await;
    let (accepted, connected) = tokio::join!(listener.accept(), transport.connect());
    drop((accepted?, connected?));
    let stored = Identity::from_files(&edge.config.files.certificate, &edge.config.files.key)?;
    ensure!(Some(stored.certificate().to_vec()) == edge.shown());
    Ok(())
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_and_shown_without_a_restart() -> Result<()> {
    // A certificate begins an hour early, so that a third of this life is over at once.
    let lasts = Duration::from_secs(60);
    let cloud = Cloud::start(enrollment::Config::default()).await?;
    let mut edge = Edge::new(&cloud, None)?;
    edge.holds(&cloud, lasts).await?;
    let before = std::fs::read(&edge.config.files.key)?;
    edge.run();
    let first = edge.shown();
    ensure!(first.is_some(), "it is shown at once");
    until("the next certificate", || edge.shown() != first).await?;
    ensure!(cloud.counts.renewed() == 1 && cloud.counts.joined() == 0);
    ensure!(std::fs::read(&edge.config.files.key)? != before, "with a key of its own");
    Ok(())
}

#[tokio::test]
async fn a_node_that_was_away_for_too_long_is_let_in_again_by_its_key_if_the_policy_says_so() -> Result<()> {
    for (within, expected) in [(DAY, "renewed"), (Duration::ZERO, "refused")] {
        let policy = enrollment::Config { renew_expired_within: within, ..enrollment::Config::default() };
        let cloud = Cloud::start(policy).await?;
        cloud.add_node("edge-1").await?;
        let mut edge = Edge::new(&cloud, None)?;
        edge.holds(&cloud, Duration::ZERO).await?;
        sleep(Duration::from_millis(1100)).await;
        edge.run();
        let first = edge.shown();
        if expected == "renewed" {
            until("the next certificate", || edge.shown() != first).await?;
        } else {
            until("a refusal", || cloud.counts.refused().contains_key("CertificateExpiredTooLong")).await?;
            ensure!(edge.shown() == first && cloud.counts.renewed() == 0);
        }
    }
    Ok(())
}

#[tokio::test]
async fn nodes_follow_from_one_authority_to_the_next() -> Result<()> {
    let interval = Duration::from_millis(100);
    let cloud =
        Cloud::start(enrollment::Config { check_interval: interval, ..enrollment::Config::default() })
            .await?;
    let mut edge = Edge::new(&cloud, Some(cloud.token().await?))?;
    edge.config.bundle_interval = Duration::from_secs(1);
    edge.run();
    edge.tls.ready().await;
    let client = cloud.api.admin();
    enrollment::rotate(&client, "kubeedge", Step::Introduce).await?;
    until("the node to trust both", || edge.tls.roots().len() == 2).await?;
    let stored = std::fs::read_to_string(&edge.config.files.ca)?;
    ensure!(stored.matches("BEGIN CERTIFICATE").count() == 2, "{stored}");

    let server = cloud.tls.identity().map(|identity| identity.certificate().to_vec());
    enrollment::rotate(&client, "kubeedge", Step::Switch).await?;
    let shown = || cloud.tls.identity().map(|identity| identity.certificate().to_vec());
    until("the cloud to show a certificate of the next", || shown() != server).await?;
    let listener = QuicListener::bind(
        "127.0.0.1:0".parse()?,
        Arc::new(cloud.tls.server_config()?),
        QuicListenerConfig::default(),
    )?;
    let dialled = QuicConfig::new(listener.local_address(), Arc::new(edge.tls.client_config()?));
    let transport = QuicTransport::new(dialled)?;
    let (accepted, connected) = tokio::join!(listener.accept(), transport.connect());
    drop((accepted?, connected?));

    // Its certificate is good for a year, and it renews it all the same: once.
    let of_next = async || -> Result<bool> {
        let (trusted, held) = (cloud.trusted().await?, edge.tls.identity().context("an identity")?);
        let signs = trusted.authority().certificate_pem().as_bytes().to_vec();
        Ok(tls::is_issued_by_first(held.certificate(), &signs)?)
    };
    until("the node to renew", || cloud.counts.renewed() == 1).await?;
    let started = Instant::now();
    while !of_next().await? {
        ensure!(started.elapsed() < Duration::from_secs(10), "it shows what it got");
        sleep(Duration::from_millis(20)).await;
    }
    enrollment::rotate(&client, "kubeedge", Step::Retire).await?;
    until("the node to trust the next alone", || edge.tls.roots().len() == 1).await?;
    sleep(edge.config.bundle_interval * 2).await;
    ensure!(cloud.counts.renewed() == 1, "once is enough");
    Ok(())
}

#[tokio::test]
async fn each_thing_that_can_be_wrong_with_a_cloud_has_an_error_of_its_own() -> Result<()> {
    let names = vec!["192.0.2.7".to_owned(), "cloud.example".to_owned()];
    let config =
        enrollment::Config { server: ServerCertificate::Issued { names }, ..enrollment::Config::default() };
    let cloud = Cloud::start(config).await?;
    let token = cloud.token().await?;
    let edge = Edge::new(&cloud, None)?;
    match certificates::enroll(&edge.config, &token).await {
        Err(error @ Error::NameMismatch { .. }) => {
            let text = error.to_string();
            ensure!(
                text.contains("127.0.0.1") && text.contains("192.0.2.7") && text.contains("cloud.example")
            );
        }
        other => bail!("{other:?}"),
    }

    let other = Cloud::start(enrollment::Config::default()).await?;
    let edge = Edge::new(&other, None)?;
    let outcome = certificates::enroll(&edge.config, &token).await;
    ensure!(matches!(outcome, Err(Error::ForeignAuthority { .. })), "{outcome:?}");
    ensure!(other.counts.refused().is_empty(), "the token was not shown to a stranger");

    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let config = Config { cloud: Server { host: "127.0.0.1".into(), port: nobody }, ..edge.config };
    let outcome = certificates::enroll(&config, &token).await;
    ensure!(matches!(outcome, Err(Error::Unreachable { .. })), "{outcome:?}");
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_somebody_brings_is_taken_without_a_restart() -> Result<()> {
    let cloud = Cloud::start(enrollment::Config::default()).await?;
    let mut edge = Edge::new(&cloud, None)?;
    edge.run();
    sleep(Duration::from_millis(100)).await;
    ensure!(edge.shown().is_none());
    edge.holds(&cloud, DAY).await?;
    tokio::time::timeout(Duration::from_secs(20), edge.tls.ready()).await?;
    Ok(())
}

/// A link between both, and what CloudHub says of it.
struct Link {
    hub: Gauges,
    connectivity: watch::Receiver<Connectivity>,
    _tasks: JoinSet<()>,
}

impl Link {
    fn start(cloud: &Cloud, edge: &Edge, over: &str) -> Result<Self> {
        let (listening, dialling) =
            (Arc::new(cloud.tls.server_config()?), Arc::new(edge.tls.client_config()?));
        let at = "127.0.0.1:0".parse()?;
        let (listener, transport): (Box<dyn Listener>, Arc<dyn Transport>) = if over == "quic" {
            let listener = QuicListener::bind(at, listening, QuicListenerConfig::default())?;
            let config = QuicConfig::new(listener.local_address(), dialling);
            (Box::new(listener), Arc::new(QuicTransport::new(config)?))
        } else {
            let listener = WebSocketListener::bind(at, listening, WebSocketListenerConfig::default())?;
            let config = WebSocketConfig::new(listener.local_address(), dialling);
            (Box::new(listener), Arc::new(WebSocketTransport::new(config)?))
        };
        let link = NodeConfig { heartbeat: Duration::from_millis(200), ..NodeConfig::default() };
        let (inbox, outbox, mut cloud_side) = cloudhub::pipes();
        let config = cloudhub::Config { link, ..cloudhub::Config::default() };
        let cloudhub = CloudHub::new(config, vec![listener], inbox, outbox);
        let hub = cloudhub.gauges();
        let (inbox, outbox, mut edge_side) = edgehub::pipes();
        let edgehub = EdgeHub::new(edgehub::Config::new(edge.config.node.clone()), transport, inbox, outbox)
            .with_renewals(edge.tls.renewals());
        let (connectivity, mut tasks) = (edge_side.connectivity.clone(), JoinSet::new());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tasks.spawn(async move { drop(cloudhub.run(stopped).await) });
        tasks.spawn(async move { drop(edgehub.run(stop).await) });
        tasks.spawn(async move {
            while let Some(asked) = cloud_side.snapshots.recv().await {
                asked.answer(Snapshot::default());
            }
        });
        tasks.spawn(async move {
            while let Some(asked) = edge_side.inventory.recv().await {
                asked.answer(Inventory::default());
            }
        });
        Ok(Self { hub, connectivity, _tasks: tasks })
    }

    async fn is(&mut self, wanted: Connectivity) -> Result<()> {
        let reached = self.connectivity.wait_for(|now| *now == wanted);
        tokio::time::timeout(Duration::from_secs(20), reached).await.context(format!("{wanted:?}"))??;
        Ok(())
    }

    fn expired(&self) -> u64 {
        let offences = self.hub.counts().offences;
        offences.into_iter().find(|(offence, _)| *offence == Offence::Expired).map_or(0, |(_, count)| count)
    }
}

/// Certificates end with a whole second, and are looked at with each heartbeat.
const LASTS: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_session_ends_with_the_certificate_that_it_began_with_on_each_transport() -> Result<()> {
    for over in ["quic", "websocket"] {
        let cloud = Cloud::start(enrollment::Config::default()).await?;
        let edge = Edge::new(&cloud, None)?;
        edge.holds(&cloud, LASTS).await?;
        let _shown = Certificates::open(edge.config.clone(), edge.tls.clone());
        let mut link = Link::start(&cloud, &edge, over)?;
        link.is(Connectivity::Synchronized).await?;
        let began = Instant::now();
        link.is(Connectivity::Offline).await?;
        ensure!(began.elapsed() < LASTS + Duration::from_secs(3), "{over}: {:?}", began.elapsed());
        until("it to be counted", || link.expired() == 1).await?;
        let refused =
            || cloud.tls.refused().iter().any(|(refusal, count)| *refusal == Refusal::Expired && *count > 0);
        until("the certificate to be refused from there on", refused).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_renews_its_certificate_comes_again_with_it_before_the_one_before_has_ended() -> Result<()>
{
    for over in ["quic", "websocket"] {
        let cloud = Cloud::start(enrollment::Config::default()).await?;
        let mut edge = Edge::new(&cloud, None)?;
        edge.holds(&cloud, LASTS).await?;
        let ends = Instant::now() + LASTS;
        drop(Certificates::open(edge.config.clone(), edge.tls.clone()));
        let mut link = Link::start(&cloud, &edge, over)?;
        link.is(Connectivity::Synchronized).await?;
        // It is renewed at once, since more than two thirds of its life are over.
        edge.run();
        until("the next certificate", || cloud.counts.renewed() == 1).await?;
        sleep(ends.saturating_duration_since(Instant::now()) + Duration::from_millis(1500)).await;
        link.is(Connectivity::Synchronized).await?;
        ensure!(link.expired() == 0, "{over}");
        ensure!(cloud.tls.refused().iter().all(|(_, count)| *count == 0), "{over}");
    }
    Ok(())
}
