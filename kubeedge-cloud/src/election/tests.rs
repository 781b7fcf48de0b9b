use std::time::{Duration, Instant};

use super::{
    Config,
    state::{Record, State, Step},
};

const SECOND: Duration = Duration::from_secs(1);

fn state() -> State {
    State::new(Config::new("cloudcore", "me"))
}

fn record(holder: &str, renewed: &str) -> Record {
    Record { holder: holder.into(), transitions: 4, renewed: renewed.into(), version: renewed.into() }
}

#[test]
fn a_lease_is_taken_when_its_record_has_not_changed_for_as_long_as_it_lasts_whatever_its_times_say() {
    let (mut state, now) = (state(), Instant::now());
    // The holder's clock is years off, which does not matter.
    assert_eq!(state.handle_record(&record("other", "1999"), now), Step::Wait);
    assert_eq!(state.handle_record(&record("other", "1999"), now + 14 * SECOND), Step::Wait);
    assert_eq!(
        state.handle_record(&record("other", "2000"), now + 14 * SECOND),
        Step::Wait,
        "it was renewed"
    );
    assert_eq!(state.handle_record(&record("other", "2000"), now + 28 * SECOND), Step::Wait);
    let take = Step::Write { transitions: Some(5) };
    assert_eq!(state.handle_record(&record("other", "2000"), now + 29 * SECOND), take);
    assert!(!state.leads(now + 29 * SECOND), "not before the API has taken it");
}

#[test]
fn a_lease_that_was_given_back_is_taken_at_once() {
    let (mut state, now) = (state(), Instant::now());
    assert_eq!(state.handle_record(&record("", "1"), now), Step::Write { transitions: Some(5) });
    state.handle_written(record("me", "2"), now, now);
    assert!(state.leads(now));
    assert_eq!(state.handle_record(&record("me", "2"), now + 2 * SECOND), Step::Write { transitions: None });
}

#[test]
fn a_leader_ceases_to_lead_before_another_may_begin() {
    let (mut leader, mut other, now) =
        (state(), State::new(Config::new("cloudcore", "other")), Instant::now());
    assert_eq!(leader.handle_record(&record("", "1"), now), Step::Write { transitions: Some(5) });
    leader.handle_written(record("me", "2"), now, now + SECOND);
    // The other sees the record at the earliest moment that is possible.
    assert_eq!(other.handle_record(&record("me", "2"), now), Step::Wait);
    let mut at = now;
    while leader.leads(at) {
        assert_eq!(other.handle_record(&record("me", "2"), at), Step::Wait, "{:?}", at - now);
        at += SECOND / 10;
    }
    assert_eq!(at - now, 10 * SECOND);
}

#[test]
fn who_sees_another_in_the_lease_leads_no_more() {
    let (mut state, now) = (state(), Instant::now());
    state.handle_written(record("me", "2"), now, now);
    assert_eq!(state.handle_record(&record("other", "3"), now + SECOND), Step::Wait);
    assert!(!state.leads(now + SECOND));
}

#[cfg(feature = "standalone")]
#[tokio::test]
async fn of_three_one_leads_and_when_it_stops_another_does_without_waiting_for_the_lease_to_run_out() {
    use super::Election;
    use crate::standalone::{self, ApiServer};
    use tokio::time::{sleep, timeout};
    use tokio_util::sync::CancellationToken;

    let api = ApiServer::open(None, standalone::Config::default()).await.unwrap();
    let mut all: Vec<_> = (0..3)
        .map(|number| {
            let mut config = Config::new("cloudcore", format!("cloud-{number}"));
            config.retry_period = Duration::from_millis(50);
            let election = Election::new(config, api.client());
            let (leads, stop) = (election.leads(), CancellationToken::new());
            (tokio::spawn(election.run(stop.clone())), leads, stop)
        })
        .collect();
    for left in (1..=3).rev() {
        let one = async {
            loop {
                match all.iter().filter(|(_, leads, _)| *leads.borrow()).count() {
                    0 => sleep(Duration::from_millis(10)).await,
                    leaders => return leaders,
                }
            }
        };
        assert_eq!(timeout(Duration::from_secs(10), one).await.unwrap(), 1, "of {left}");
        let leader = all.iter().position(|(_, leads, _)| *leads.borrow()).unwrap();
        let (task, _, stop) = all.swap_remove(leader);
        stop.cancel();
        task.await.unwrap().unwrap();
    }
}
