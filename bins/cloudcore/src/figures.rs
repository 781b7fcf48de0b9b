//! What the parts say of themselves, as metrics.

use std::{collections::BTreeMap, sync::Arc};

use kubeedge_cloud::{
    authorization::Denials,
    cloudhub::{Gauges, LaneCounts},
    devicecontroller, edgecontroller, enrollment,
    monitor::{Figures, Metric},
    relay,
};
use kubeedge_core::{message::Lane, tls::Live};
use tokio::sync::watch;

pub(crate) fn of_cloudhub(gauges: Gauges) -> Figures {
    Box::new(move || {
        let counts = gauges.counts();
        let of_lanes = |metric: Metric, figure: fn(&LaneCounts) -> f64| {
            counts
                .lanes
                .iter()
                .fold(metric, |metric, lane| metric.with(&[("lane", name(lane.lane))], figure(lane)))
        };
        let gauge = |name, help, value: usize| Metric::gauge(name, help).with(&[], value as f64);
        let counter = |name, help, value: u64| Metric::counter(name, help).with(&[], value as f64);
        let depth = Metric::gauge(
            "kubeedge_cloudhub_queue_depth",
            "Objects that wait for their nodes or are on their way.",
        );
        let age = Metric::gauge(
            "kubeedge_cloudhub_queue_age_seconds",
            "For how long the oldest object that is on its way has been.",
        );
        let sent = Metric::counter("kubeedge_cloudhub_sent_bytes_total", "Bytes of frames sent to nodes.");
        let received =
            Metric::counter("kubeedge_cloudhub_received_bytes_total", "Bytes of frames from nodes.");
        let offences = Metric::counter(
            "kubeedge_cloudhub_offences_total",
            "Connections that ended because their node broke the rules of the link.",
        );
        let offences = counts.offences.iter().fold(offences, |metric, (offence, count)| {
            metric.with(&[("reason", offence.as_str())], *count as f64)
        });
        vec![
            gauge("kubeedge_cloudhub_sessions", "Nodes that have a session.", counts.sessions),
            counter(
                "kubeedge_cloudhub_refused_total",
                "Connections for which there was no room.",
                counts.refused,
            ),
            offences,
            counter("kubeedge_cloudhub_resends_total", "Objects that were sent again.", counts.resends),
            gauge("kubeedge_cloudhub_memory_bytes", "About what the sessions take.", counts.memory),
            gauge("kubeedge_cloudhub_memory_max_bytes", "What the sessions may take.", counts.memory_max),
            of_lanes(depth, |lane| lane.depth as f64),
            of_lanes(age, |lane| lane.age.as_secs_f64()),
            of_lanes(sent, |lane| lane.sent as f64),
            of_lanes(received, |lane| lane.received as f64),
        ]
    })
}

pub(crate) fn of_edgecontroller(unread: watch::Receiver<usize>) -> Figures {
    Box::new(move || {
        let help = "Objects that pods need and that the API has not given for long; nodes keep what they have of them.";
        vec![Metric::gauge("kubeedge_edgecontroller_unread_objects", help).with(&[], *unread.borrow() as f64)]
    })
}

/// What of the API a part does not see, each kind with the reason.
pub(crate) type Unwatched = watch::Receiver<BTreeMap<&'static str, String>>;

/// The kinds that the parts cannot watch.
pub(crate) fn of_watches(parts: Vec<(&'static str, Unwatched)>) -> Figures {
    Box::new(move || {
        let help = "1 for each kind of object that cannot be watched at present; the log says why.";
        let mut metric = Metric::gauge("kubeedge_broken_watches", help);
        for (part, unwatched) in &parts {
            for kind in unwatched.borrow().keys() {
                metric = metric.with(&[("part", *part), ("kind", kind)], 1.0);
            }
        }
        vec![metric]
    })
}

/// What became of the writes of one sort.
fn of_writes(counts: &edgecontroller::Counts) -> Vec<Metric> {
    let all = [("reports", counts.reports()), ("leases", counts.leases())];
    let writes = Metric::counter(
        "kubeedge_edgecontroller_writes_total",
        "Writes of what nodes report and of their Leases, by what the API made of them.",
    );
    let oldest = Metric::gauge(
        "kubeedge_edgecontroller_oldest_write_seconds",
        "For how long the write that waits for longest has been to be made; 0 if none waits.",
    );
    let writes = all.iter().fold(writes, |metric, (what, writing)| {
        let outcomes = [("done", writing.done), ("refused", writing.refused), ("retried", writing.retried)];
        outcomes.into_iter().fold(metric, |metric, (outcome, count)| {
            metric.with(&[("what", what), ("outcome", outcome)], count as f64)
        })
    });
    let oldest = all.iter().fold(oldest, |metric, (what, writing)| {
        metric.with(&[("what", what)], writing.oldest.unwrap_or_default().as_secs_f64())
    });
    vec![writes, oldest]
}

/// Events and questions of nodes, and what is written of them.
pub(crate) fn of_nodes_wishes(counts: Arc<edgecontroller::Counts>) -> Figures {
    Box::new(move || {
        let dropped = Metric::counter(
            "kubeedge_edgecontroller_events_dropped_total",
            "Events of nodes that were given up.",
        );
        let held_back = Metric::counter(
            "kubeedge_edgecontroller_held_back_total",
            "Events and questions that had to wait because their node had as many under way as it may.",
        );
        let counter = |name, help, value: u64| Metric::counter(name, help).with(&[], value as f64);
        let events = "Events of nodes that wait for the API; their nodes keep them as well.";
        let mut metrics = vec![
            counter(
                "kubeedge_edgecontroller_events_recorded_total",
                "Events of nodes that the API has taken.",
                counts.events_recorded(),
            ),
            counter(
                "kubeedge_edgecontroller_events_retried_total",
                "Attempts to write events that failed and are made again.",
                counts.events_retried(),
            ),
            Metric::gauge("kubeedge_edgecontroller_events_waiting", events)
                .with(&[], counts.events_waiting() as f64),
            counts.events_dropped().into_iter().fold(dropped, |metric, (reason, count)| {
                metric.with(&[("reason", reason.as_str())], count as f64)
            }),
            held_back
                .with(&[("what", "events")], counts.events_held_back() as f64)
                .with(&[("what", "questions")], counts.questions_held_back() as f64),
        ];
        metrics.extend(of_writes(&counts));
        metrics
    })
}

pub(crate) fn of_devicecontroller(counts: watch::Receiver<devicecontroller::Counts>) -> Figures {
    Box::new(move || {
        let counts = *counts.borrow();
        let counter = |name, help, value: u64| Metric::counter(name, help).with(&[], value as f64);
        vec![
            counter(
                "kubeedge_devicecontroller_writes_total",
                "Statuses of devices written to the API.",
                counts.written,
            ),
            counter(
                "kubeedge_devicecontroller_passed_over_total",
                "Reports of devices that newer ones took the place of.",
                counts.passed_over,
            ),
        ]
    })
}

/// Certificates that were issued and refused: to those who ask for one, and to those who connect.
pub(crate) fn of_joining(counts: Arc<enrollment::Counts>, link: Live) -> Figures {
    Box::new(move || {
        let issued = Metric::counter("kubeedge_certificates_issued_total", "Certificates issued to nodes.");
        let refused = Metric::counter("kubeedge_joins_refused_total", "Requests for certificates refused.");
        let shown = Metric::counter(
            "kubeedge_cloudhub_certificates_refused_total",
            "Connections of nodes that were refused for their certificate.",
        );
        let issued = issued
            .with(&[("by", "token")], counts.joined() as f64)
            .with(&[("by", "certificate")], counts.renewed() as f64);
        let reason = |metric: Metric, (reason, count): (&'static str, u64)| {
            metric.with(&[("reason", reason)], count as f64)
        };
        vec![
            issued,
            counts.refused().into_iter().fold(refused, reason),
            link.refused().into_iter().map(|(refusal, count)| (refusal.as_str(), count)).fold(shown, reason),
        ]
    })
}

/// Requests for nodes of other cloudcores, and of others for nodes here.
pub(crate) fn of_relay(counts: Arc<relay::Counts>, tls: Live) -> Figures {
    Box::new(move || {
        let counter = |name, help, value: u64| Metric::counter(name, help).with(&[], value as f64);
        let failed = Metric::counter(
            "kubeedge_relay_failed_total",
            "Requests for nodes that are not connected here which no other cloudcore has answered.",
        );
        let refused = Metric::counter(
            "kubeedge_relay_certificates_refused_total",
            "Connections between cloudcores that were refused for the certificate that was shown.",
        );
        let reason = |metric: Metric, (reason, count): (&'static str, u64)| {
            metric.with(&[("reason", reason)], count as f64)
        };
        vec![
            counter(
                "kubeedge_relay_passed_on_total",
                "Requests for nodes that are not connected here which another cloudcore has answered.",
                counts.passed_on(),
            ),
            counter(
                "kubeedge_relay_answered_total",
                "Requests of other cloudcores that were answered.",
                counts.answered(),
            ),
            counts.failed().into_iter().map(|(reason, count)| (reason.as_str(), count)).fold(failed, reason),
            tls.refused().into_iter().map(|(refusal, count)| (refusal.as_str(), count)).fold(refused, reason),
        ]
    })
}

/// What the controllers have refused to nodes.
pub(crate) fn of_denials(of: Vec<(&'static str, Denials)>) -> Figures {
    Box::new(move || {
        let help = "What was refused to nodes, because it is not theirs.";
        let metric = Metric::counter("kubeedge_authorization_denials_total", help);
        let all = of.iter().flat_map(|(part, denials)| {
            denials.counts().map(move |(denial, count)| (*part, denial.reason(), count))
        });
        vec![all.fold(metric, |metric, (part, reason, count)| {
            metric.with(&[("part", part), ("reason", reason)], count as f64)
        })]
    })
}

fn name(lane: Lane) -> &'static str {
    match lane {
        Lane::Heartbeat => "heartbeat",
        Lane::Pods => "pods",
        Lane::Config => "config",
        Lane::Devices => "devices",
        Lane::Bulk => "bulk",
    }
}
