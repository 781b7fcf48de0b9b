use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kubeedge_core::{
    message::{Publish, Upload, UploadId, UploadedPublish},
    pipe::{self, EventReceiver, LatestSender, Receipt},
    store::{MetaStore, MetaStoreExt, memory::MemoryStore},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{
    super::{broker::Offer, config},
    Backlog, Uploads, record,
    state::{Found, Limits, State},
};

// ----------------------------------------------------------------------------------------------------- decisions

fn limits() -> Limits {
    Limits {
        count_max: 10,
        bytes_max: 10_000,
        arriving_bytes_max: 5_000,
        window: 2,
        window_bytes: 1_000,
        ready_bytes_max: 500,
        done_max: 3,
        done_pause: Duration::from_secs(1),
    }
}

fn publish(text: &str) -> Publish {
    Publish { topic: "a/user/b".to_owned(), payload: Bytes::copy_from_slice(text.as_bytes()) }
}

fn sent(state: &mut State) -> Vec<UploadId> {
    std::iter::from_fn(|| state.poll_send()).map(|upload| upload.id).collect()
}

#[test]
fn a_message_is_sent_and_its_sender_told_only_after_the_commit() {
    let mut state = State::restore(limits(), 7, Found::default());
    let (settle, mut receipt) = Receipt::new("uploads");
    state.handle_message(publish("1"), Some(settle), 0);
    assert_eq!(sent(&mut state), []);
    let now = Instant::now();
    let batch = state.poll_batch(now).unwrap().unwrap();
    assert_eq!(batch.changes().len(), 1);
    assert_eq!(receipt.try_settled(), None);
    state.handle_message(publish("2"), None, 0);
    assert!(state.poll_batch(now).unwrap().is_none(), "one commit at a time");
    state.handle_committed();
    assert_eq!(receipt.try_settled(), Some(Ok(())));
    assert_eq!(sent(&mut state), [UploadId { run: 7, number: 1 }]);
    assert!(state.poll_batch(now).unwrap().is_some());
}

#[test]
fn a_failed_commit_is_tried_again_with_all_that_came_since_and_in_order() {
    let mut state = State::restore(limits(), 7, Found::default());
    let (settle, mut receipt) = Receipt::new("uploads");
    state.handle_message(publish("1"), Some(settle), 0);
    let now = Instant::now();
    state.poll_batch(now).unwrap().unwrap();
    state.handle_message(publish("2"), None, 0);
    state.handle_commit_failed();
    assert_eq!(receipt.try_settled(), None);
    assert_eq!(state.poll_batch(now).unwrap().unwrap().changes().len(), 2);
    state.handle_committed();
    assert_eq!(sent(&mut state).iter().map(|id| id.number).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn records_of_done_messages_are_removed_together_or_after_a_pause() {
    let mut state = State::restore(limits(), 7, Found::default());
    let now = Instant::now();
    for text in ["1", "2"] {
        state.handle_message(publish(text), None, 0);
    }
    state.poll_batch(now).unwrap().unwrap();
    state.handle_committed();
    for id in sent(&mut state) {
        state.handle_uploaded(id, now);
        state.handle_uploaded(id, now);
    }
    assert_eq!(state.backlog(), Backlog::default());
    assert!(state.poll_batch(now).unwrap().is_none());
    let later = state.poll_timeout().unwrap();
    assert_eq!(state.poll_batch(later).unwrap().unwrap().changes().len(), 2);
}

#[test]
fn what_finds_no_room_is_refused_and_counted() {
    let mut state = State::restore(limits(), 7, Found::default());
    for _ in 0..10 {
        assert!(state.has_room(&publish("x")));
        state.handle_message(publish("x"), None, 0);
    }
    assert!(!state.has_room(&publish("x")));
    let mut state = State::restore(limits(), 7, Found::default());
    assert!(!state.has_room(&publish(&"x".repeat(10_001))));
    assert_eq!(state.backlog().refused, 1);
}

#[test]
fn a_backlog_of_any_size_is_read_a_piece_at_a_time_and_sent_in_order() {
    let limits = Limits { count_max: 1000, bytes_max: 1 << 20, arriving_bytes_max: 1 << 20, ..limits() };
    let mut state = State::restore(limits, 7, Found::default());
    let now = Instant::now();
    for number in 0..200 {
        state.handle_message(publish(&number.to_string()), None, number);
    }
    let batch = state.poll_batch(now).unwrap().unwrap();
    let mut stored: std::collections::BTreeMap<u64, record::Kept> = batch
        .into_changes()
        .into_iter()
        .map(|change| {
            let kubeedge_core::store::Change::Put(key, value) = change else { panic!("{change:?}") };
            (record::number(&key).unwrap(), record::decode(value).unwrap())
        })
        .collect();
    state.handle_committed();
    let mut done = Vec::new();
    while done.len() < 200 {
        let window = sent(&mut state);
        assert!(!window.is_empty() && window.len() <= 2, "{window:?}");
        for id in window {
            done.push(id.number);
            state.handle_uploaded(id, now);
        }
        if state.poll_batch(now).unwrap().is_some() {
            state.handle_committed();
        }
        if let Some(range) = state.poll_read() {
            let upto = range.end;
            let records = range.filter_map(|number| stored.remove(&number)).collect();
            state.handle_read(upto, records);
        }
    }
    assert_eq!(done, (1..=200).collect::<Vec<_>>());
    assert_eq!(state.backlog(), Backlog::default());
}

// ------------------------------------------------------------------------------------------------------ the store

/// The messages with a store, and the ends of the link.
struct Running {
    uploads: Arc<Uploads>,
    link: EventReceiver<Upload>,
    uploaded: LatestSender<UploadId, UploadId>,
    backlog: watch::Receiver<Backlog>,
    task: JoinHandle<()>,
}

async fn run(store: &MemoryStore) -> Running {
    run_with(store, &config::Uploads::default()).await
}

async fn run_with(store: &MemoryStore, config: &config::Uploads) -> Running {
    let (link_tx, link) = pipe::events("uploads", 4);
    let (uploaded, uploaded_rx) = pipe::latest("uploaded", |id: &UploadId| *id);
    let (backlog_tx, backlog) = watch::channel(Backlog::default());
    let store: Arc<dyn MetaStore> = Arc::new(store.clone());
    let uploads = Arc::new(Uploads::open(config, store, link_tx, backlog_tx).await.unwrap());
    let running = uploads.clone();
    let task = tokio::spawn(async move {
        running.run(uploaded_rx).await;
    });
    Running { uploads, link, uploaded, backlog, task }
}

impl Running {
    fn offer(&self, text: &str) -> Receipt {
        match self.uploads.offer("a/user/b", &Bytes::copy_from_slice(text.as_bytes()), true) {
            Offer::Promised(receipt) => receipt,
            other @ (Offer::Taken | Offer::Full | Offer::NotMine) => panic!("{other:?}"),
        }
    }

    async fn next(&mut self) -> (UploadId, String) {
        let upload = timeout(Duration::from_secs(60), self.link.recv()).await.expect("an upload comes");
        let Some(Upload::Publish(UploadedPublish { id, publish })) = upload else { panic!("{upload:?}") };
        (id, String::from_utf8(publish.payload.to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_survives_power_cuts_and_is_sent_again_until_the_cloud_has_it() {
    let store = MemoryStore::new();
    let mut first = run(&store).await;
    for text in ["1", "2", "3"] {
        first.offer(text).await.unwrap();
    }
    let ids: Vec<_> = [first.next().await, first.next().await, first.next().await].map(|(id, _)| id).into();
    first.uploaded.send(ids[1]).unwrap();
    // The record of a done message is removed in time.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let store = store.cut_power();
    drop(first);
    let mut second = run(&store).await;
    let again = [second.next().await, second.next().await];
    assert_eq!(again, [(ids[0], "1".to_owned()), (ids[2], "3".to_owned())]);
    second.offer("4").await.unwrap();
    let (id, text) = second.next().await;
    assert_eq!((text.as_str(), id.number), ("4", 4));
    assert_ne!(id.run, ids[0].run);
    for id in [ids[0], ids[2], id] {
        second.uploaded.send(id).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.scan_all(&record::prefix()).await.unwrap(), []);
    assert_eq!(*second.backlog.borrow(), Backlog::default());
}

#[tokio::test(start_paused = true)]
async fn with_the_power_cut_at_any_commit_nothing_that_was_promised_is_lost() {
    for commits in 0..6 {
        let store = MemoryStore::new();
        let mut first = run(&store).await;
        store.cut_power_after(commits);
        let mut promised = Vec::new();
        for text in 0..6 {
            let text = text.to_string();
            if timeout(Duration::from_millis(50), first.offer(&text)).await == Ok(Ok(())) {
                promised.push(text);
            }
            if let Ok(Some(Upload::Publish(upload))) =
                timeout(Duration::from_millis(5), first.link.recv()).await
                && upload.id.number % 2 == 0
            {
                first.uploaded.send(upload.id).unwrap();
                promised.retain(|text| *text.as_bytes() != upload.publish.payload);
            }
        }
        let store = store.cut_power();
        drop(first);
        let mut second = run(&store).await;
        let mut found = Vec::new();
        while let Ok(Some(Upload::Publish(upload))) =
            timeout(Duration::from_secs(1), second.link.recv()).await
        {
            second.uploaded.send(upload.id).unwrap();
            found.push(String::from_utf8(upload.publish.payload.to_vec()).unwrap());
        }
        assert!(promised.iter().all(|text| found.contains(text)), "{commits}: {promised:?}, {found:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_fails_senders_wait_and_are_told_once_it_works() {
    let store = MemoryStore::new();
    let mut running = run(&store).await;
    store.fail_commits_after(0);
    let mut receipt = running.offer("1");
    assert!(timeout(Duration::from_secs(5), &mut receipt).await.is_err());
    assert_eq!(running.link.try_recv(), None);
    store.heal();
    receipt.await.unwrap();
    assert_eq!(running.next().await.1, "1");
}

#[tokio::test(start_paused = true)]
async fn many_messages_share_a_commit() {
    let store = MemoryStore::new();
    let running = run(&store).await;
    let before = store.commits();
    let receipts: Vec<_> = (0..100).map(|number| running.offer(&number.to_string())).collect();
    for receipt in receipts {
        receipt.await.unwrap();
    }
    assert_eq!(store.commits() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_link_is_tried_again_and_order_is_kept() {
    let store = MemoryStore::new();
    let mut running = run(&store).await;
    for number in 0..50 {
        running.offer(&number.to_string()).await.unwrap();
    }
    for number in 0..50 {
        let (id, text) = running.next().await;
        assert_eq!(text, number.to_string());
        running.uploaded.send(id).unwrap();
    }
    running.task.abort();
}

#[tokio::test(start_paused = true)]
async fn the_age_of_what_waits_can_be_seen_and_what_finds_no_room_is_refused() {
    let store = MemoryStore::new();
    let config = config::Uploads { count_max: 2, ..config::Uploads::default() };
    let running = run_with(&store, &config).await;
    running.offer("1").await.unwrap();
    running.offer("2").await.unwrap();
    let payload = Bytes::from_static(b"3");
    assert!(matches!(running.uploads.offer("a/user/b", &payload, true), Offer::Full));
    assert!(matches!(running.uploads.offer("a/user/b", &payload, false), Offer::Full));
    tokio::time::sleep(Duration::from_secs(700)).await;
    let backlog = *running.backlog.borrow();
    assert_eq!((backlog.messages, backlog.refused), (2, 2));
    assert!(backlog.oldest_since_ms.is_some_and(|since| since > 1_600_000_000_000), "{backlog:?}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_record_is_removed_and_the_others_are_sent() {
    let store = MemoryStore::new();
    let first = run(&store).await;
    first.offer("1").await.unwrap();
    let mut batch = kubeedge_core::store::Batch::new();
    batch.put(record::key(2).unwrap(), "garbage");
    store.commit(batch).await.unwrap();
    let store = store.cut_power();
    drop(first);
    let mut second = run(&store).await;
    assert_eq!(second.next().await.1, "1");
    assert_eq!(store.scan_all(&record::prefix()).await.unwrap().len(), 1);
}
