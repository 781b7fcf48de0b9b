//! What is kept, what goes and what is sent, as stories; then the part over its pipes with real servers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use kubeedge_core::{
    device::{HttpPush, PushMethod, Sample},
    id::DeviceId,
    store::{MetaStore, memory::MemoryStore},
};
use proptest::prelude::*;
use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Destination, Error, History, Keeper, Outgoing, Outside, Overflow, Query, Stats,
    block::Block,
    outgoing::{Delivered, Failure},
    pipes,
    state::{Commit, Delivery, Now, State},
};

fn to(port: u16) -> PushMethod {
    let host = "127.0.0.1".to_owned();
    PushMethod::Http(HttpPush { host, port, path: "/in".to_owned(), timeout_ms: None })
}

fn sample(number: u64, push: &[PushMethod]) -> Sample {
    Sample {
        device: DeviceId::new("default", "boiler").unwrap(),
        property: "pressure".to_owned(),
        value: number.to_string(),
        timestamp_ms: number,
        push: push.into(),
    }
}

/// A keeper whose clock stands until it is moved, and whose disk is a map.
struct Story {
    state: State,
    start: Instant,
    passed_ms: u64,
    disk: BTreeMap<u64, Vec<u8>>,
    cursors: BTreeMap<Destination, u64>,
    commits: usize,
}

impl Story {
    fn new(config: Config) -> Self {
        let start = Instant::now();
        let state = State::new(config, start);
        Self { state, start, passed_ms: 0, disk: BTreeMap::new(), cursors: BTreeMap::new(), commits: 0 }
    }

    fn now(&self) -> Now {
        Now { at: self.start + Duration::from_millis(self.passed_ms), wall_ms: self.passed_ms }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.passed_ms += milliseconds;
        self.state.handle_timeout(self.now());
    }

    fn take(&mut self, number: u64, push: &[PushMethod]) {
        self.state.handle_sample(sample(number, push), self.now());
    }

    fn commit(&mut self) -> bool {
        let Some(commit) = self.state.poll_commit(self.now().at) else { return false };
        let Commit { blocks, deleted, cursors } = commit;
        self.disk.extend(blocks);
        deleted.iter().for_each(|first| _ = self.disk.remove(first));
        for (destination, cursor) in cursors {
            match cursor {
                Some(cursor) => _ = self.cursors.insert(destination, cursor),
                None => _ = self.cursors.remove(&destination),
            }
        }
        self.commits += 1;
        self.state.handle_committed(true, self.now());
        true
    }

    /// The power goes, and comes back.
    fn restart(&mut self, config: Config) {
        self.state = State::new(config, self.start);
        for (destination, cursor) in &self.cursors {
            self.state.restore_cursor(destination.clone(), *cursor, self.start);
        }
        for bytes in self.disk.values() {
            self.state.restore_block(&Block::decode(bytes).unwrap(), bytes.len(), self.start);
        }
    }

    /// What a delivery brings: the sequence numbers and values of its destination in the block on the disk.
    fn content(&self, delivery: &Delivery) -> (Vec<(u64, String)>, u64) {
        let block = Block::decode(&self.disk[&delivery.block]).unwrap();
        let end = block.end();
        let own = (block.first..).zip(block.samples).filter(|(sequence, sample)| {
            *sequence >= delivery.from
                && sample.push.iter().any(|push| Destination::of(push) == delivery.destination)
        });
        (own.map(|(sequence, sample)| (sequence, sample.value)).collect(), end)
    }

    /// Delivers what waits; returns what came, in order.
    fn deliver_all(&mut self) -> Vec<String> {
        let mut came = Vec::new();
        loop {
            let deliveries = self.state.poll_deliveries(self.now().at);
            if deliveries.is_empty() {
                return came;
            }
            for delivery in deliveries {
                let (content, through) = self.content(&delivery);
                let sent = content.len() as u64;
                came.extend(content.into_iter().map(|(_, value)| value));
                let delivered = Delivered { through, sent, refused: 0, failure: None };
                self.state.handle_delivered(delivery, delivered, self.now());
            }
        }
    }

    fn stats(&self) -> Stats {
        self.state.stats()
    }

    fn unsent(&self) -> u64 {
        self.stats().destinations.values().map(|destination| destination.unsent).sum()
    }
}

fn small_blocks() -> Config {
    Config { block_bytes: 40, ..Config::default() }
}

#[test]
fn what_is_not_durable_is_not_sent() {
    let mut story = Story::new(Config::default());
    story.take(1, &[to(1)]);
    assert!(story.deliver_all().is_empty());
    assert!(!story.commit(), "it waits for more to come");
    story.pass(1_000);
    assert!(story.commit());
    assert_eq!(story.deliver_all(), ["1"]);
    assert_eq!((story.stats().durable, story.unsent()), (1, 0));
    story.pass(1_000);
    assert!(story.commit(), "how far the destination has come is kept too");
    story.restart(Config::default());
    assert!(story.deliver_all().is_empty(), "it is not sent again");
    story.take(2, &[to(1)]);
    story.pass(1_000);
    story.commit();
    assert_eq!(story.deliver_all(), ["2"]);
}

#[test]
fn a_value_a_second_writes_one_small_block_again_and_again_instead_of_many() {
    let mut story = Story::new(Config::default());
    for number in 0..100 {
        story.take(number, &[]);
        story.pass(1_000);
        story.commit();
    }
    assert_eq!((story.commits, story.disk.len()), (100, 1));
    assert_eq!(story.state.plan_query(&Query::default()).0.len(), 100);
}

#[test]
fn the_oldest_goes_when_there_are_too_many_and_what_waits_for_a_destination_stays() {
    let history = History { count_max: 20, ..History::default() };
    let mut story = Story::new(Config { history, ..small_blocks() });
    for number in 0..100 {
        story.take(
            number,
            if number < 10 {
                &[]
            } else if number == 10 {
                &*vec![to(1)].leak()
            } else {
                &[]
            },
        );
        story.pass(1_000);
        story.commit();
    }
    assert!(story.stats().stored > 80, "what waits holds what came after it: {:?}", story.stats());
    assert_eq!(story.deliver_all(), ["10"]);
    story.pass(1_000);
    story.commit();
    let stats = story.stats();
    assert!((10..=20).contains(&stats.stored), "{stats:?}");
    assert!(stats.oldest_ms >= Some(80));
    assert!((2..=5).contains(&story.disk.len()), "what went is deleted");
}

#[test]
fn when_a_destination_is_away_too_long_the_oldest_or_the_newest_goes_and_is_counted() {
    for overflow in [Overflow::DropOldest, Overflow::DropNewest] {
        let outgoing = Outgoing { count_max: 20, overflow, ..Outgoing::default() };
        let mut story = Story::new(Config { outgoing, ..small_blocks() });
        for number in 0..50 {
            story.take(number, &[to(1)]);
            story.pass(1_000);
            story.commit();
        }
        let stats = story.stats().destinations.into_values().next().unwrap();
        assert_eq!(stats.unsent + stats.dropped, 50);
        assert!(stats.unsent <= 20);
        let came = story.deliver_all();
        assert_eq!(came.len() as u64, stats.unsent);
        match overflow {
            Overflow::DropOldest => assert_eq!(came.last().unwrap(), "49"),
            Overflow::DropNewest => assert_eq!((came[0].as_str(), came.len()), ("0", 20)),
        }
    }
}

#[test]
fn what_has_waited_too_long_is_dropped_and_the_age_of_the_rest_can_be_seen() {
    let outgoing = Outgoing { age_max: Duration::from_secs(60), ..Outgoing::default() };
    let mut story = Story::new(Config { outgoing, ..small_blocks() });
    for number in 0..20 {
        story.take(number * 10_000, &[to(1)]);
        story.pass(10_000);
        story.commit();
    }
    let stats = story.stats().destinations.into_values().next().unwrap();
    assert!((6..=12).contains(&stats.unsent), "{stats:?}");
    assert_eq!(stats.unsent + stats.expired, 20);
    assert!(stats.oldest_unsent_ms.unwrap() >= 80_000, "{stats:?}");
}

#[test]
fn a_destination_that_is_away_is_tried_after_pauses_that_double() {
    let mut story = Story::new(Config::default());
    story.take(1, &[to(1)]);
    story.pass(1_000);
    story.commit();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let delivery = story.state.poll_deliveries(story.now().at).remove(0);
        let failure = Some(Failure::Away("refused".to_owned()));
        let delivered = Delivered { through: delivery.from, sent: 0, refused: 0, failure };
        story.state.handle_delivered(delivery, delivered, story.now());
        let before = story.passed_ms;
        while story.state.poll_deliveries(story.now().at).is_empty() {
            story.pass(1_000);
        }
        pauses.push((story.passed_ms - before) / 1_000);
        // It was only looked at: it is the same delivery that is made then.
        let delivery = Delivery { destination: Destination::of(&to(1)), block: 1, from: 1 };
        let failure = Some(Failure::Away("refused".to_owned()));
        let delivered = Delivered { through: 1, sent: 0, refused: 0, failure };
        story.state.handle_delivered(delivery, delivered, story.now());
        story.pass(120_000);
    }
    assert_eq!(pauses[..3], [1, 4, 16]);
    assert_eq!(*pauses.last().unwrap(), 60);
    assert_eq!(story.stats().destinations.values().next().unwrap().failure.as_deref(), Some("refused"));
}

#[test]
fn a_value_at_which_every_connection_ends_is_given_up() {
    let mut story = Story::new(Config::default());
    story.take(1, &[to(1)]);
    story.take(2, &[to(1)]);
    story.pass(1_000);
    story.commit();
    for _ in 0..10 {
        story.pass(120_000);
        let delivery = story.state.poll_deliveries(story.now().at).remove(0);
        let failure = Some(Failure::Broke("reset".to_owned()));
        let delivered = Delivered { through: 1, sent: 0, refused: 0, failure };
        story.state.handle_delivered(delivery, delivered, story.now());
    }
    story.pass(120_000);
    assert_eq!(story.deliver_all(), ["2"]);
    let stats = story.stats().destinations.into_values().next().unwrap();
    assert_eq!((stats.sent, stats.refused, stats.unsent), (1, 1, 0));
}

#[test]
fn a_store_that_fails_is_tried_again_and_memory_stays_bounded() {
    let mut story = Story::new(Config { unsaved_bytes_max: 10_000, block_bytes: 100, ..Config::default() });
    let mut number = 0;
    for _ in 0..100 {
        while story.state.has_room() {
            story.take(number, &[to(1)]);
            number += 1;
        }
        story.pass(20_000);
        assert!(story.state.poll_commit(story.now().at).is_some());
        story.state.handle_committed(false, story.now());
    }
    story.pass(20_000);
    assert!(story.commit());
    let stats = story.stats();
    assert!(stats.lost > 0);
    assert_eq!(stats.durable + stats.lost, stats.accepted);
    assert_eq!(story.deliver_all().len() as u64, stats.durable, "{stats:?}");
    assert_eq!(story.unsent(), 0);
}

#[test]
fn values_for_more_destinations_than_there_may_be_are_counted_and_kept() {
    let outgoing = Outgoing { destinations_max: 2, ..Outgoing::default() };
    let mut story = Story::new(Config { outgoing, ..Config::default() });
    for port in 1..=3 {
        story.take(port.into(), &[to(port)]);
    }
    assert_eq!((story.stats().without_outbox, story.stats().stored), (1, 3));
    story.pass(1_000);
    story.commit();
    story.deliver_all();
    story.take(4, &[to(3)]);
    assert_eq!(story.unsent(), 1, "a destination for which nothing waits makes room");
}

#[test]
fn without_a_history_only_what_is_pushed_is_written() {
    let history = History { count_max: 0, ..History::default() };
    let mut story = Story::new(Config { history, ..small_blocks() });
    for number in 0..50 {
        story.take(number, &[]);
        story.pass(1_000);
    }
    assert_eq!(story.commits, 0);
    assert!(!story.commit());
    for number in 0..50 {
        story.take(number, &[to(1)]);
        story.pass(1_000);
        story.commit();
        story.deliver_all();
    }
    story.pass(1_000);
    story.commit();
    assert!(story.disk.len() <= 2, "what was sent goes: {:?}", story.stats());
}

/// What may happen to a keeper.
#[derive(Debug, Clone)]
enum Event {
    Sample(Vec<u16>),
    Pass(u64),
    Commit,
    /// The commit fails.
    Fail,
    /// A destination takes so many values of its block, and then is away.
    Deliver(usize),
    PowerCut,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => prop::collection::vec(1..4_u16, 0..3).prop_map(|mut ports| {
            ports.sort_unstable();
            ports.dedup();
            Event::Sample(ports)
        }),
        2 => (0..5_000_u64).prop_map(Event::Pass),
        2 => Just(Event::Commit),
        1 => Just(Event::Fail),
        2 => (0..9_usize).prop_map(Event::Deliver),
        1 => Just(Event::PowerCut),
    ]
}

proptest! {
    /// The simpler model: a list for each destination of what was durable and should come.
    #[test]
    fn whatever_happens_every_durable_value_comes_at_least_once_and_in_order(
        events in prop::collection::vec(event(), 0..200),
    ) {
        let config = || Config { block_bytes: 60, ..Config::default() };
        let mut story = Story::new(config());
        let mut number = 0;
        let mut waiting: BTreeMap<u16, Vec<u64>> = BTreeMap::new();
        let mut owed: BTreeMap<u16, Vec<u64>> = BTreeMap::new();
        let mut came: BTreeMap<u16, Vec<u64>> = BTreeMap::new();
        let settle = |waiting: &mut BTreeMap<u16, Vec<u64>>, owed: &mut BTreeMap<u16, Vec<u64>>| {
            for (port, values) in std::mem::take(waiting) {
                owed.entry(port).or_default().extend(values);
            }
        };
        let deliver = |story: &mut Story, came: &mut BTreeMap<u16, Vec<u64>>, takes: usize| {
            let deliveries = story.state.poll_deliveries(story.now().at);
            let any = !deliveries.is_empty();
            for delivery in deliveries {
                let Destination::Http(_, port) = delivery.destination else { unreachable!() };
                let (content, end) = story.content(&delivery);
                let taken = content.iter().take(takes).map(|(_, value)| value.parse::<u64>().unwrap());
                came.entry(port).or_default().extend(taken);
                let next = content.get(takes).map(|(sequence, _)| *sequence);
                let failure = next.map(|_| Failure::Away("gone".to_owned()));
                let sent = content.len().min(takes) as u64;
                let delivered = Delivered { through: next.unwrap_or(end), sent, refused: 0, failure };
                story.state.handle_delivered(delivery, delivered, story.now());
            }
            any
        };
        for event in events {
            match event {
                Event::Sample(ports) => {
                    number += 1;
                    let push: Vec<_> = ports.iter().map(|port| to(*port)).collect();
                    story.take(number, &push);
                    ports.iter().for_each(|port| waiting.entry(*port).or_default().push(number));
                }
                Event::Pass(milliseconds) => story.pass(milliseconds),
                Event::Commit => if story.commit() { settle(&mut waiting, &mut owed) },
                Event::Fail => if story.state.poll_commit(story.now().at).is_some() {
                    story.state.handle_committed(false, story.now());
                },
                Event::Deliver(takes) => _ = deliver(&mut story, &mut came, takes),
                Event::PowerCut => {
                    waiting.clear();
                    story.restart(config());
                }
            }
        }
        story.pass(60_000);
        if story.commit() {
            settle(&mut waiting, &mut owed);
        }
        for _ in 0..1_000 {
            story.pass(120_000);
            if !deliver(&mut story, &mut came, usize::MAX) {
                break;
            }
        }
        prop_assert_eq!(story.unsent(), 0);
        for (port, owed) in owed {
            let mut first_time = came.remove(&port).unwrap_or_default();
            // A value that came again stands where it came first.
            let mut seen = std::collections::BTreeSet::new();
            first_time.retain(|value| seen.insert(*value));
            prop_assert_eq!(first_time, owed, "destination {}", port);
        }
    }
}

struct Running {
    outside: Outside,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(config: Config, store: &MemoryStore) -> Self {
        let (inbox, outbox, outside) = pipes();
        let stop = CancellationToken::new();
        let keeper = Keeper::new(config, Arc::new(store.clone()), inbox, outbox);
        Self { outside, task: tokio::spawn(keeper.run(stop.clone())), stop }
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Stats) -> bool) -> Stats {
        let stats = timeout(Duration::from_secs(20), self.outside.stats.wait_for(holds)).await;
        stats.unwrap_or_else(|_| panic!("{what} did not happen")).unwrap().clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn quick() -> Config {
    // The values of these tests were read in 1970.
    let age_max = Duration::MAX;
    let outgoing = Outgoing { retry_min: Duration::from_millis(20), age_max, ..Outgoing::default() };
    let history = History { age_max, ..History::default() };
    Config { commit_within: Duration::from_millis(10), outgoing, history, ..Config::default() }
}

/// A server that gives these answers, one a request and then the last again, and keeps the bodies it has said yes to.
async fn server(answers: Vec<u16>) -> (u16, Arc<Mutex<Vec<String>>>, JoinHandle<()>) {
    let (taken, answers) = (Arc::new(Mutex::new(Vec::new())), Mutex::new(answers));
    let kept = taken.clone();
    let take = move |body: String| {
        let mut answers = answers.lock().unwrap();
        let code = if answers.len() > 1 { answers.remove(0) } else { answers[0] };
        if code == 200 {
            kept.lock().unwrap().push(body);
        }
        let code = axum::http::StatusCode::from_u16(code).unwrap();
        async move { code }
    };
    let take = Arc::new(take);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = axum::Router::new().route("/in", axum::routing::post(move |body: String| take(body)));
    (port, taken, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
}

#[tokio::test]
async fn values_come_to_an_http_server_in_order_whatever_it_answers_first() {
    let (port, taken, _server) = server(vec![500, 200, 429, 404, 200]).await;
    let mut running = Running::start(quick(), &MemoryStore::new());
    for number in 0..50 {
        let mut sample = sample(number, &[to(port)]);
        sample.value = format!("{number} & more");
        running.outside.samples.send(sample).unwrap();
    }
    let destination = Destination::Http("127.0.0.1".to_owned(), port);
    let stats = running.until("sending", |stats| stats.destinations.values().any(|it| it.sent == 49)).await;
    assert_eq!((stats.destinations[&destination].refused, stats.destinations[&destination].unsent), (1, 0));
    let expected = |number: u64| format!("pressure={number}+%26+more&time=1970-01-01+00%3A00%3A00");
    let expected: Vec<_> = (0..50).filter(|number| *number != 1).map(expected).collect();
    assert_eq!(*taken.lock().unwrap(), expected);
    running.stop().await;
}

#[tokio::test]
async fn what_waits_for_a_server_that_is_away_survives_a_power_cut_and_comes_when_it_is_back() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let store = MemoryStore::new();
    let mut running = Running::start(quick(), &store);
    for number in 0..300 {
        running.outside.samples.send(sample(number, &[to(port)])).unwrap();
    }
    let waits =
        |stats: &Stats| stats.durable == 300 && stats.destinations.values().any(|it| it.failure.is_some());
    running.until("the first failure", waits).await;
    let store = store.cut_power();
    running.stop.cancel();
    let _ = running.task.await;

    let mut running = Running::start(quick(), &store);
    running.until("finding what waits", |stats| stats.destinations.values().any(|it| it.unsent == 300)).await;
    let taken: Arc<Mutex<Vec<String>>> = Arc::default();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let kept = taken.clone();
    let take = move |body: String| {
        kept.lock().unwrap().push(body);
        async {}
    };
    let app = axum::Router::new().route("/in", axum::routing::post(take));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    running.until("sending", |stats| stats.destinations.values().any(|it| it.sent == 300)).await;
    assert_eq!(taken.lock().unwrap().len(), 300);
    running.stop().await;
    server.abort();
}

#[tokio::test]
async fn a_server_that_says_nothing_or_rubbish_holds_up_no_other() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rubbish = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ports = [silent.local_addr().unwrap().port(), rubbish.local_addr().unwrap().port()];
    let talk = tokio::spawn(async move {
        while let Ok((mut socket, _)) = rubbish.accept().await {
            let _ = socket.write_all(b"\0\xffnot http at all\r\n\r\n").await;
        }
    });
    let (good, _, _server) = server(vec![200]).await;
    let mut config = quick();
    config.outgoing.deadline = Duration::from_millis(200);
    let mut running = Running::start(config, &MemoryStore::new());
    running.outside.samples.send(sample(1, &[to(ports[0]), to(ports[1]), to(good)])).unwrap();
    let destination = |port| Destination::Http("127.0.0.1".to_owned(), port);
    let (first, second, third) = (destination(ports[0]), destination(ports[1]), destination(good));
    let done = |stats: &Stats| {
        stats.destinations.len() == 3
            && stats.destinations[&first].failure.as_ref().is_some_and(|why| why.contains("did not answer"))
            && stats.destinations[&second].failure.is_some()
            && stats.destinations[&third].sent == 1
    };
    running.until("an answer of the good one, and failures of the others", done).await;
    running.stop().await;
    talk.abort();
}

#[tokio::test]
async fn questions_are_answered_newest_first_from_memory_and_disk() {
    let store = MemoryStore::new();
    let config = Config { block_bytes: 100, ..quick() };
    let mut running = Running::start(config.clone(), &store);
    for number in 0..100 {
        let mut sample = sample(number, &[]);
        if number % 2 == 1 {
            sample.property = "temperature".to_owned();
        }
        running.outside.samples.send(sample).unwrap();
    }
    running.until("being durable", |stats| stats.durable == 100).await;
    running.stop().await;
    let running = Running::start(config, &store);
    let query = Query {
        property: Some("pressure".to_owned()),
        from_ms: 20,
        to_ms: 90,
        limit: 30,
        ..Query::default()
    };
    let found = running.outside.queries.call(query, Duration::from_secs(5)).await.unwrap().unwrap();
    let values: Vec<_> = found.iter().map(|kept| kept.sample.timestamp_ms).collect();
    assert_eq!(values, (15..45).rev().map(|half| half * 2).collect::<Vec<_>>());
    assert!(found.windows(2).all(|pair| pair[0].sequence > pair[1].sequence));
    let other = Query { device: Some(DeviceId::new("default", "other").unwrap()), ..Query::default() };
    let found = running.outside.queries.call(other, Duration::from_secs(5)).await.unwrap().unwrap();
    assert!(found.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn stopping_makes_what_is_in_the_pipe_durable() {
    let store = MemoryStore::new();
    let running = Running::start(Config::default(), &store);
    for number in 0..1_000 {
        running.outside.samples.send(sample(number, &[])).unwrap();
    }
    running.stop().await;
    let mut running = Running::start(Config::default(), &store);
    let stats = running.until("being restored", |stats| stats.stored > 0).await;
    assert_eq!(stats.stored, 1_000);
    running.stop().await;
}

#[tokio::test]
async fn a_damaged_block_is_given_up_and_the_others_are_kept() {
    let store = MemoryStore::new();
    let running = Running::start(Config { block_bytes: 200, ..quick() }, &store);
    for number in 0..100 {
        running.outside.samples.send(sample(number, &[])).unwrap();
    }
    running.stop().await;
    let mut batch = kubeedge_core::store::Batch::new();
    batch.put(super::driver::block_key(1).unwrap(), &b"\xff\xff rubbish"[..]);
    store.commit(batch).await.unwrap();
    let mut running = Running::start(quick(), &store);
    let stats = running.until("being restored", |stats| stats.stored > 0).await;
    assert!(stats.lost > 0 && stats.stored > 50, "{stats:?}");
    running.outside.samples.send(sample(100, &[])).unwrap();
    running.until("going on", |stats| stats.accepted == 1).await;
    running.stop().await;
}
