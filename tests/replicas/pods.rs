//! Real nodes with real pods.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kubeedge_cloud::pki::Authority;
use kubeedge_tests::{
    binaries,
    site::{Edge, EdgeOptions},
};
use tokio::time::sleep;

use crate::{
    api,
    balancer::Balancer,
    containerd::Containerd,
    fleet::{ApiSite, Cloudcore},
    load::{Load, Place},
    random::Random,
    seconds,
    witness::Witness,
};

const NODES: usize = 2;
/// For how long there are faults.
const SECONDS: u64 = 16;
/// How many seconds lie between two of them.
const EVERY: u64 = 6;
/// A silent node is given up after so many seconds, and so is a silent cloud.
const KEEPALIVE: u32 = 4;
/// How long it may take until a change is where it should be, and until nodes have another cloud.
const SOON: Duration = Duration::from_secs(60);
/// How long certificates are valid here.
const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_pod_is_started_again_and_no_status_goes_back_when_replicas_fail_under_load() -> Result<()> {
    let (faulty, every) = (seconds("REPLICAS_SECONDS", SECONDS)?, seconds("REPLICAS_EVERY", EVERY)?);
    let folder = tempfile::tempdir()?;
    let api = api(folder.path()).await?;
    let authority = Authority::create()?;
    let mut replicas = Replicas::start(folder.path(), &api, &authority)?;
    let balancer = Balancer::start(replicas.0.iter().map(|replica| replica.quic).collect()).await?;
    let names: Vec<String> = (1..=NODES).map(|number| format!("edge-{number}")).collect();
    let start = |name: &String| Machine::start(name, &folder.path().join(name), &authority, balancer.port());
    let machines: Vec<Machine> = thread::scope(|scope| {
        let starting: Vec<_> = names.iter().map(|name| scope.spawn(|| start(name))).collect();
        starting.into_iter().map(|it| it.join().expect("it has said why")).collect::<Result<_>>()
    })?;
    let told = |replicas: &Replicas| {
        let clouds = replicas.0.iter().map(Cloudcore::log);
        clouds.chain(machines.iter().map(Machine::log)).collect::<Vec<_>>().join("\n\n")
    };
    let began = Instant::now();
    while replicas.sessions(None) < NODES {
        ensure!(began.elapsed() < SOON, "nodes have no session: {}", told(&replicas));
        sleep(Duration::from_millis(50)).await;
    }
    let places = machines.iter().map(|machine| machine.place.clone()).collect();
    let witness = Witness::start(api.raw_pods());
    let mut load = Load::start(api, 1, places).await?;
    load.agree(SOON).await.with_context(|| told(&replicas))?;

    let (began, mut figures, mut random) = (Instant::now(), Figures::default(), Random::new(2));
    let mut round = 0;
    while began.elapsed() < faulty {
        // First the one that keeps what it was told, so that nodes come back to it when another is killed.
        let fault = if round % 3 == 0 { Fault::Freeze } else { Fault::Kill };
        round += 1;
        let failing = replicas.busiest();
        replicas.begin(fault, failing)?;
        let failed = Instant::now();
        // One is started again at once, another stays away; a frozen one goes on when its nodes have gone elsewhere.
        let away = Duration::from_millis(random.below(every.as_millis() as u64 / 2));
        let (mut ended, mut moved) = (false, false);
        while failed.elapsed() < every || !ended || !moved {
            load.change().await?;
            witness.verdict().with_context(|| told(&replicas))?;
            if !ended && failed.elapsed() >= away && (fault == Fault::Kill || moved) {
                replicas.end(fault, failing)?;
                ended = true;
            }
            if !moved && replicas.sessions(Some(failing).filter(|_| !ended)) >= NODES {
                moved = true;
                figures.moved = figures.moved.max(failed.elapsed());
            }
            ensure!(failed.elapsed() < SOON, "nodes have no cloud: {}", told(&replicas));
            sleep(load.pause()).await;
        }
        let agreed = load.agree(SOON).await.with_context(|| told(&replicas))?;
        figures.agreed = figures.agreed.max(agreed);
        witness.turned_only(load.reasons()).with_context(|| told(&replicas))?;
    }
    for (number, machine) in machines.iter().enumerate() {
        machine.runs(load.tasks(number)).await?;
    }
    let states = witness.verdict().with_context(|| told(&replicas))?;
    let Figures { moved, agreed } = figures;
    println!(
        "{round} failures, {} changes, {states} states of pods in the API; at the longest, nodes had another cloud after \
         {moved:.1?}, and everything was as it should be {agreed:.1?} after the last change",
        load.changes
    );
    Ok(())
}

/// The longest times.
#[derive(Debug, Default)]
struct Figures {
    moved: Duration,
    agreed: Duration,
}

/// How a replica fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is gone, and comes back with nothing but its configuration.
    Kill,
    /// It stands still, and goes on where it was.
    Freeze,
}

/// The three clouds.
struct Replicas(Vec<Cloudcore>);

impl Replicas {
    fn start(folder: &Path, api: &ApiSite, authority: &Authority) -> Result<Self> {
        let program = binaries().folder.join("cloudcore");
        let start = |number: usize| {
            let folder = folder.join(format!("cloud-{number}"));
            let mut replica = Cloudcore::prepare(program.clone(), &folder, api, authority, NODES, KEEPALIVE)?;
            replica.spawn()?;
            Ok(replica)
        };
        Ok(Self((0..3).map(start).collect::<Result<_>>()?))
    }

    fn begin(&mut self, fault: Fault, number: usize) -> Result<()> {
        match fault {
            Fault::Kill => self.0[number].kill(),
            Fault::Freeze => self.0[number].signal("STOP")?,
        }
        Ok(())
    }

    fn end(&mut self, fault: Fault, number: usize) -> Result<()> {
        match fault {
            Fault::Kill => self.0[number].spawn(),
            Fault::Freeze => self.0[number].signal("CONT"),
        }
    }

    /// How many sessions all have but one.
    fn sessions(&self, but: Option<usize>) -> usize {
        let others = self.0.iter().enumerate().filter(|(number, _)| Some(*number) != but);
        others.map(|(_, replica)| sessions_of(replica)).sum()
    }

    /// The one with the most nodes.
    fn busiest(&self) -> usize {
        (0..self.0.len()).max_by_key(|number| sessions_of(&self.0[*number])).unwrap_or(0)
    }
}

fn sessions_of(replica: &Cloudcore) -> usize {
    let page = replica.monitor("/metrics").map(|(_, page)| page).unwrap_or_default();
    let figure = page.lines().find_map(|line| line.strip_prefix("kubeedge_cloudhub_sessions "));
    figure.and_then(|figure| figure.parse().ok()).unwrap_or(0)
}

/// A node: edgecore, and the containerd that it runs its pods on.
struct Machine {
    // It ends before its containerd.
    edge: Edge,
    containerd: Containerd,
    place: Place,
}

impl Machine {
    fn start(name: &str, folder: &Path, authority: &Authority, cloud: u16) -> Result<Self> {
        let (marks, certificates) = (folder.join("marks"), folder.join("certificates"));
        fs::create_dir_all(&marks)?;
        fs::create_dir_all(&certificates)?;
        let issued = authority.issue_node(&name.parse()?, DAY)?;
        issued.write(&certificates.join("server.crt"), &certificates.join("server.key"))?;
        fs::write(certificates.join("rootCA.crt"), authority.certificate_pem())?;
        let containerd = Containerd::start();
        let options =
            EdgeOptions { containerd: Some(containerd.socket()), websocket: false, ..EdgeOptions::new(name) };
        let edge = Edge::start_at(&binaries(), folder, cloud, &options)?;
        Ok(Self { edge, containerd, place: Place { node: name.to_owned(), marks } })
    }

    /// Waits until containerd runs so many tasks.
    async fn runs(&self, count: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            let tasks = self.containerd.ctr(&["tasks", "ls"]).map_err(anyhow::Error::msg)?;
            if tasks.lines().filter(|line| line.contains("RUNNING")).count() == count {
                return Ok(());
            }
            ensure!(began.elapsed() < SOON, "{} runs not {count} tasks: {tasks}", self.place.node);
            sleep(Duration::from_millis(200)).await;
        }
    }

    fn log(&self) -> String {
        let log = self.edge.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}
