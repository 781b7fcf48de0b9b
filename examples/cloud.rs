use std::{fmt, time::Duration};

use kube::Client;
use kubeedge_cloud::{
    cloudhub::{self, CloudHub},
    devicecontroller::{self, DeviceController},
    edgecontroller::{self, EdgeController},
    router::{self, Router},
};
use kubeedge_core::{
    group::{self, Group},
    id::NodeName,
    message::{
        Acked, ClockOffset, Delivered, Delivery, FromNode, ObjectEvent, ObjectRef, Report, ReportKey,
        Request, Response, Ruling, SessionState, ToNode,
    },
    pipe::{self, Caller},
    transport::Listener,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What a cloud is made of.
pub struct CloudConfig {
    /// The API: a cluster's, or the standalone one.
    pub client: Client,
    /// Where edges connect.
    pub listeners: Vec<Box<dyn Listener>>,
    /// CloudHub's settings.
    pub cloudhub: cloudhub::Config,
    /// EdgeController's settings.
    pub edgecontroller: edgecontroller::Config,
    /// DeviceController's settings.
    pub devicecontroller: devicecontroller::Config,
    /// Where applications in the cloud reach nodes by rules; `None` leaves the rules from nodes.
    pub rules: Option<TcpListener>,
}

/// A running cloud.
pub struct Cloud {
    /// Asks a node: logs, and calls to its HTTP servers.
    pub requests: Caller<ToNode<Request>, Response>,
    stop: CancellationToken,
    group: Group,
}

impl Cloud {
    /// Wires the parts and starts them. `requests` is the pipe by which the API asks nodes.
    pub fn start(
        config: CloudConfig,
        requests: (Caller<ToNode<Request>, Response>, pipe::Callee<ToNode<Request>, Response>),
    ) -> Self {
        // The arrows of ARCHITECTURE.md, one line each.
        let (downstream_tx, downstream_rx) = pipe::latest("downstream", object_at_node);
        let (edge_snapshots_tx, edge_snapshots_rx) = pipe::calls("edge_snapshots", 1024);
        let (rule_snapshots_tx, rule_snapshots_rx) = pipe::calls("rule_snapshots", 1024);
        let (device_snapshots_tx, device_snapshots_rx) = pipe::calls("device_snapshots", 1024);
        let (statuses_tx, statuses_rx) = pipe::latest("statuses", report_of_node);
        let (device_reports_tx, device_reports_rx) = pipe::latest("device_reports", report_of_node);
        let (acked_tx, acked_rx) = pipe::latest("acked", acked_to_node);
        let (sessions_tx, sessions_rx) = pipe::latest("sessions", session_of_node);
        let (clocks_tx, clocks_rx) = pipe::latest("clocks", clock_of_node); // CloudHub -> EdgeController
        let (lost_tx, lost_rx) = pipe::latest("lost", |to: &ToNode<Ruling>| to.node.clone()); // EdgeController -> CloudHub
        let (queries_tx, queries_rx) = pipe::calls("queries", 1024);
        let (events_tx, events_rx) = pipe::events("events", 1024);
        let (messages_tx, messages_rx) = pipe::events("messages", 1024);
        let (taken_tx, taken_rx) =
            pipe::latest("taken", |taken: &ToNode<Delivery>| (taken.node.clone(), taken.message));
        let (requests_tx, requests_rx) = requests;

        // The parts: each takes the ends it uses.
        let cloudhub = CloudHub::new(
            config.cloudhub,
            config.listeners,
            cloudhub::Inbox {
                downstream: downstream_rx,
                acked: acked_rx,
                taken: taken_rx,
                lost: lost_rx,
                requests: requests_rx,
                relayed: pipe::calls("relayed", 1).1,
            },
            cloudhub::Outbox {
                snapshots: vec![edge_snapshots_tx, device_snapshots_tx, rule_snapshots_tx],
                statuses: statuses_tx,
                device_reports: device_reports_tx,
                sessions: sessions_tx,
                clocks: clocks_tx,
                queries: queries_tx,
                events: events_tx,
                messages: messages_tx,
                // It is the only cloud.
                elsewhere: None,
            },
        );
        let edgecontroller = EdgeController::new(
            config.edgecontroller,
            config.client.clone(),
            edgecontroller::Inbox {
                statuses: statuses_rx,
                snapshots: edge_snapshots_rx,
                sessions: sessions_rx,
                clocks: clocks_rx,
                queries: queries_rx,
                events: events_rx,
            },
            edgecontroller::Outbox {
                downstream: downstream_tx.clone(),
                acked: acked_tx.clone(),
                lost: lost_tx,
                taken: taken_tx.clone(),
            },
        );
        let devicecontroller = DeviceController::new(
            config.devicecontroller,
            config.client.clone(),
            devicecontroller::Inbox { reports: device_reports_rx, snapshots: device_snapshots_rx },
            devicecontroller::Outbox { downstream: downstream_tx.clone(), acked: acked_tx },
        );

        let router = Router::new(
            router::Config::default(),
            config.client,
            config.rules,
            router::Inbox { messages: messages_rx, snapshots: rule_snapshots_rx },
            router::Outbox { taken: taken_tx, requests: requests_tx.clone(), downstream: downstream_tx },
        );

        let stop = CancellationToken::new();
        let mut group = Group::new(stop.clone());
        group.spawn("cloudhub", cloudhub.run(stop.child_token()));
        group.spawn("edgecontroller", edgecontroller.run(stop.child_token()));
        group.spawn("devicecontroller", devicecontroller.run(stop.child_token()));
        group.spawn("router", router.run(stop.child_token()));
        Self { requests: requests_tx, stop, group }
    }

    /// Stops all parts.
    ///
    /// # Errors
    /// If a part has failed, or does not stop.
    pub async fn stop(self) -> Result<(), group::Error> {
        self.stop.cancel();
        self.group.join(Duration::from_secs(5)).await
    }
}

fn object_at_node(event: &ToNode<ObjectEvent>) -> (NodeName, ObjectRef) {
    (event.node.clone(), event.message.key().clone())
}

fn report_of_node(report: &FromNode<Delivered<Report>>) -> (NodeName, ReportKey) {
    (report.node.clone(), report.message.message.key())
}

fn acked_to_node(acked: &ToNode<Acked<ReportKey>>) -> (NodeName, ReportKey) {
    (acked.node.clone(), acked.message.key.clone())
}

fn clock_of_node(clock: &FromNode<ClockOffset>) -> NodeName {
    clock.node.clone()
}

fn session_of_node(session: &FromNode<SessionState>) -> NodeName {
    session.node.clone()
}

impl fmt::Debug for CloudConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudConfig").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cloud").field("group", &self.group).finish_non_exhaustive()
    }
}
