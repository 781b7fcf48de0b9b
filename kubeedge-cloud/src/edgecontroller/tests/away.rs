//! What is said of nodes whose sessions have ended, and of those that other clouds have.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kubeedge_core::message::{ReportKey, SessionState};

use super::state::{acked, finish, from, listed, node_report, pod, pod_report, running, session, told};
use crate::{
    controller::{Outcome, testing::node},
    edgecontroller::state::{Job, State, Wanted, Write, Written},
};

/// How long a node may be without a session.
const GRACE: Duration = Duration::from_secs(3);

/// How long a Lease holds.
const LEASE: Duration = Duration::from_secs(40);

fn elsewhere(state: &mut State, job: Job, version: &str, now: Instant) {
    state.handle_written(job.key, job.wanted, Written::Elsewhere(version.to_owned()), now);
}

#[test]
fn a_node_that_goes_is_set_unknown_and_its_pods_are_left_alone() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p1", "edge-1", &[])]);
    told(&mut state);
    session(&mut state, SessionState::Online, now);
    session(&mut state, SessionState::Offline, now);
    assert!(state.poll_write(now).is_none(), "it may be back at once");
    let now = now + GRACE;
    let job = state.poll_write(now).unwrap();
    assert_eq!(job.write, Write::Away { since: Timestamp::UNIX_EPOCH, stale: None });
    finish(&mut state, job, Outcome::Done, now);
    assert!(state.poll_write(now).is_none());
    assert_eq!(told(&mut state), [""; 0]);
}

#[test]
fn a_node_that_another_cloud_has_taken_is_written_no_more_and_not_called_away() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p1", "edge-1", &[])]);
    told(&mut state);
    session(&mut state, SessionState::Online, now);
    state.handle_report(from("edge-1", 1, node_report()), now);
    let begun = state.poll_write(now).unwrap();
    state.handle_report(from("edge-1", 2, pod_report("web", "p1", running())), now);
    assert_eq!(state.poll_renewal(now), Some(node("edge-1")));
    state.handle_lost(&node("edge-1"));
    assert!(state.poll_write(now).is_none(), "what waited is the other cloud's to write");
    finish(&mut state, begun, Outcome::Retry("409".to_owned()), now);
    state.handle_report(from("edge-1", 3, pod_report("web", "p1", running())), now);
    session(&mut state, SessionState::Offline, now);
    let later = now + Duration::from_secs(120);
    assert!(state.poll_write(later).is_none());
    assert_eq!(state.poll_renewal(later), None);
    assert_eq!(told(&mut state), [""; 0], "nor is anything acknowledged");

    session(&mut state, SessionState::Online, later);
    assert_eq!(state.poll_renewal(later), Some(node("edge-1")), "it comes back with its next session");
    state.handle_report(from("edge-1", 4, pod_report("web", "p1", running())), later);
    assert!(state.poll_write(later).is_some());
}

#[test]
fn a_node_that_comes_back_at_once_is_not_set_unknown_any_more() {
    let now = Instant::now();
    let mut state = listed(&[]);
    session(&mut state, SessionState::Offline, now);
    let now = now + GRACE;
    let job = state.poll_write(now).unwrap();
    session(&mut state, SessionState::Online, now);
    finish(&mut state, job, Outcome::Retry("409".to_owned()), now);
    assert!(state.poll_write(now + Duration::from_secs(60)).is_none(), "the failed attempt is forgotten");

    session(&mut state, SessionState::Offline, now);
    session(&mut state, SessionState::Online, now);
    assert!(state.poll_write(now + GRACE).is_none(), "what was not begun is withdrawn");
}

#[test]
fn a_node_report_that_arrives_after_its_session_ended_waits_for_the_next_session() {
    let now = Instant::now();
    let mut state = listed(&[]);
    session(&mut state, SessionState::Offline, now);
    state.handle_report(from("edge-1", 1, node_report()), now);
    let now = now + GRACE;
    let job = state.poll_write(now).unwrap();
    assert!(matches!(job.wanted, Wanted::Away { .. }), "{job:?}");
    finish(&mut state, job, Outcome::Done, now);
    assert!(state.poll_write(now).is_none());
    session(&mut state, SessionState::Online, now);
    assert!(matches!(state.poll_write(now).unwrap().write, Write::Node(..)));
}

#[test]
fn edge_nodes_that_never_connected_since_the_start_are_away() {
    let now = Instant::now();
    let mut state = listed(&[]);
    session(&mut state, SessionState::Online, now);
    state.handle_edge_nodes(vec![node("edge-1"), node("edge-2")], Timestamp::UNIX_EPOCH, now);
    assert_eq!(state.poll_write(now).unwrap().key, (node("edge-2"), ReportKey::Node));
    assert!(state.poll_write(now).is_none());
}

#[test]
fn a_node_whose_lease_another_cloud_renews_is_not_away_whatever_the_clocks_say() {
    let mut now = Instant::now();
    let mut state = listed(&[]);
    let look = |state: &mut State, now| {
        state.handle_edge_nodes(vec![node("edge-1")], Timestamp::UNIX_EPOCH, now);
        state.poll_write(now).unwrap()
    };
    for version in ["7", "8", "9"] {
        let job = look(&mut state, now);
        assert_eq!(job.write, Write::Away { since: Timestamp::UNIX_EPOCH, stale: None });
        elsewhere(&mut state, job, version, now);
        now += LEASE / 2;
    }
    // The other cloud is gone: the version stays.
    let job = look(&mut state, now);
    elsewhere(&mut state, job, "9", now);
    assert!(state.poll_write(now).is_none());
    now += LEASE / 2;
    let job = state.poll_write(now).expect("it is looked at when the Lease has run out");
    assert_eq!(job.write, Write::Away { since: Timestamp::UNIX_EPOCH, stale: Some("9".to_owned()) });
}

#[test]
fn a_node_that_another_cloud_has_left_behind_is_away_when_its_lease_has_run_out() {
    let mut now = Instant::now();
    let mut state = listed(&[]);
    state.handle_edge_nodes(vec![node("edge-1")], Timestamp::UNIX_EPOCH, now);
    let job = state.poll_write(now).unwrap();
    elsewhere(&mut state, job, "7", now);
    assert!(state.poll_write(now).is_none());
    now += LEASE;
    assert_eq!(state.poll_timeout(), Some(now));
    let job = state.poll_write(now).unwrap();
    assert_eq!(job.write, Write::Away { since: Timestamp::UNIX_EPOCH, stale: Some("7".to_owned()) });
    finish(&mut state, job, Outcome::Done, now);
    session(&mut state, SessionState::Online, now);
    session(&mut state, SessionState::Offline, now);
    now += GRACE;
    let job = state.poll_write(now).unwrap();
    assert_eq!(
        job.write,
        Write::Away { since: Timestamp::UNIX_EPOCH, stale: None },
        "nothing is left of that"
    );
}

#[test]
fn a_status_that_waited_here_is_not_written_over_that_of_a_cloud_which_has_the_node_by_now() {
    let now = Instant::now();
    let mut state = listed(&[&pod("web", "p1", "edge-1", &[])]);
    session(&mut state, SessionState::Online, now);
    state.handle_report(from("edge-1", 1, pod_report("web", "p1", running())), now);
    let job = state.poll_write(now).unwrap();
    assert!(!job.is_offline);
    session(&mut state, SessionState::Offline, now);
    finish(&mut state, job, Outcome::Retry("503".to_owned()), now);
    let later = now + Duration::from_secs(5);
    let job = state.poll_write(later).unwrap();
    assert!(job.is_offline, "whose the node is is looked up first");
    elsewhere(&mut state, job, "7", later);
    assert_eq!(acked(&mut state), []);
    assert!(!matches!(state.poll_write(later + LEASE), Some(job) if job.key.1 != ReportKey::Node));
}
