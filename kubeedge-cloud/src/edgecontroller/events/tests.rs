use std::num::NonZeroUsize;

use serde_json::json;

use super::*;
use crate::controller::testing::node;

const SECOND: Duration = Duration::from_secs(1);

const MOST: NonZeroUsize = NonZeroUsize::new(1000).expect("it is not zero");

struct World {
    events: Events,
    counts: Arc<Counts>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let counts = Arc::new(Counts::default());
        let config = Config {
            retry_first: SECOND,
            retry_max: 30 * SECOND,
            events_waiting_max: MOST,
            ..Config::default()
        };
        Self { events: Events::new(&config, counts.clone()), counts, now: Instant::now() }
    }

    fn put(&mut self, from: &str, session: u64, number: u64) {
        let event = json!({ "metadata": { "name": format!("{from}.{number}") } });
        self.events.handle_judged(node(from), Delivery { session, number }, Ok(event), self.now);
    }

    /// Writes until nothing more can be begun; the API answers each like this. Says what was tried.
    fn write(&mut self, answer: impl Fn(&str, u64) -> Recorded) -> Vec<(String, u64)> {
        let mut tried = Vec::new();
        while let Some((from, event)) = self.events.poll_write(self.now) {
            let number = event.delivery.number;
            tried.push((from.to_string(), number));
            let answer = answer(from.as_str(), number);
            self.events.handle_recorded(from, event, answer, self.now);
        }
        tried
    }

    fn taken(&mut self) -> Vec<(String, u64)> {
        let next = || self.events.poll_taken();
        std::iter::from_fn(next).map(|to| (to.node.to_string(), to.message.number)).collect()
    }

    fn dropped(&self) -> Vec<(Dropped, u64)> {
        self.counts.events_dropped().into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

fn retry() -> Recorded {
    Recorded::Retry("down".to_owned())
}

fn all(from: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<(String, u64)> {
    numbers.into_iter().map(|number| (from.to_owned(), number)).collect()
}

#[test]
fn an_event_is_acknowledged_when_the_api_has_it_and_an_api_that_is_gone_loses_none() {
    let mut world = World::new();
    (1..=20).for_each(|number| world.put("a", 1, number));
    // Five minutes, and an hour less a little.
    let end = world.now + 3500 * SECOND;
    let mut attempts = 0;
    while world.now < end {
        attempts += world.write(|_, _| retry()).len();
        assert_eq!((world.taken(), world.counts.events_waiting()), (vec![], 20));
        world.now = world.events.poll_timeout().unwrap();
    }
    assert!((100..140).contains(&attempts), "the pause grows to 30 s: {attempts}");
    assert_eq!(world.write(|_, _| Recorded::Done), all("a", 1..=20), "in order");
    assert_eq!(world.taken(), all("a", 1..=20));
    assert_eq!(
        (world.counts.events_recorded(), world.counts.events_waiting(), world.dropped()),
        (20, 0, vec![])
    );
}

#[test]
fn an_event_that_the_api_refuses_or_that_nobody_would_look_for_any_more_is_given_up_and_counted() {
    let mut world = World::new();
    let denied = Err("not its own".to_owned());
    world.events.handle_judged(node("a"), Delivery { session: 1, number: 1 }, denied, world.now);
    (2..=4).for_each(|number| world.put("a", 1, number));
    world.write(|_, number| match number {
        2 => Recorded::Dropped(Dropped::Refused, "invalid".to_owned()),
        3 => Recorded::Dropped(Dropped::OthersName, "another's".to_owned()),
        _ => retry(),
    });
    assert_eq!(world.taken(), all("a", 1..=3));
    world.now += 3601 * SECOND;
    world.write(|_, _| retry());
    assert_eq!(world.taken(), all("a", [4]));
    let reasons = [Dropped::Denied, Dropped::OthersName, Dropped::Refused, Dropped::Late];
    assert_eq!(world.dropped(), reasons.map(|reason| (reason, 1)));
}

#[test]
fn an_event_that_fails_while_the_api_takes_others_does_not_hold_up_its_node_for_long() {
    let mut world = World::new();
    world.put("a", 1, 1);
    world.put("a", 1, 2);
    let fails = |from: &str, number| if (from, number) == ("a", 1) { retry() } else { Recorded::Done };
    let start = world.now;
    let mut number = 1;
    while world.counts.events_recorded() < 100 {
        world.put("b", 1, number);
        world.write(fails);
        (world.now, number) = (world.now + SECOND, number + 1);
        if world.dropped() == [(Dropped::Failed, 1)] {
            break;
        }
    }
    assert!(world.now - start < 60 * SECOND, "1, 2, 4, 8, 16 s: {:?}", world.now - start);
    assert!(world.taken().contains(&("a".to_owned(), 1)));
    world.write(fails);
    assert_eq!(world.counts.events_waiting(), 0, "the next has its turn");
}

#[test]
fn a_node_with_endless_events_delays_another_by_no_more_than_what_is_under_way() {
    let mut world = World::new();
    let mut next = 0;
    let mut under_way: VecDeque<(NodeName, Event)> = VecDeque::new();
    let mut waited = None;
    for turn in 0..1000 {
        while world.events.turns.waiting_of(&node("busy")) < 50 {
            next += 1;
            world.put("busy", 1, next);
        }
        if turn == 500 {
            world.put("quiet", 1, 1);
        }
        under_way.extend(std::iter::from_fn(|| world.events.poll_write(world.now)));
        if waited.is_none() && under_way.iter().any(|(of, _)| *of == node("quiet")) {
            waited = Some(turn - 500);
        }
        if let Some((of, event)) = under_way.pop_front() {
            world.events.handle_recorded(of, event, Recorded::Done, world.now);
        }
    }
    assert_eq!(waited, Some(0), "in turns");
    assert!(world.counts.events_held_back() > 900);
}

#[test]
fn what_comes_again_in_a_new_session_is_written_once_and_a_node_that_sends_without_end_is_bounded() {
    let mut world = World::new();
    (1..=3).for_each(|number| world.put("a", 1, number));
    let under_way = world.events.poll_write(world.now).unwrap();
    // The session breaks, and the edge sends all again that is not acknowledged.
    (1..=3).for_each(|number| world.put("a", 2, number));
    world.events.handle_recorded(under_way.0, under_way.1, Recorded::Done, world.now);
    // The first is brought up to date with itself; of the others nothing was on its way.
    assert_eq!(world.write(|_, _| Recorded::Done), all("a", 1..=3));
    assert_eq!(world.counts.events_recorded(), 4);

    (0..3000).for_each(|number| world.put("a", 3, number));
    assert_eq!(world.counts.events_waiting(), MOST.get());
    assert_eq!(world.dropped(), [(Dropped::TooMany, 3000 - MOST.get() as u64)]);
    world.events.handle_lost(&node("a"));
    assert_eq!((world.counts.events_waiting(), world.events.poll_write(world.now)), (0, None));
}
