use std::{sync::Arc, time::Duration};

use kubeedge_core::{
    message::{Answer, Connectivity, ObjectEvent::Applied, Query},
    store::{Batch, Key, MetaStore, MetaStoreExt, Prefix, memory::MemoryStore},
};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    super::{Config, Error, MetaClient, MetaManager, Outside, Read, ReadError, pipes, record},
    *,
};

pub(super) struct Running {
    pub(super) outside: Outside,
    stop: CancellationToken,
    part: JoinHandle<Result<(), Error>>,
}

impl Running {
    pub(super) fn start(store: &MemoryStore) -> Self {
        Self::start_over(Arc::new(store.clone()))
    }

    pub(super) fn start_over(store: Arc<dyn MetaStore>) -> Self {
        let (inbox, outbox, outside) = pipes();
        let stop = CancellationToken::new();
        let part = MetaManager::new(Config::default(), store, inbox, outbox);
        Self { outside, part: tokio::spawn(part.run(stop.clone())), stop }
    }

    pub(super) fn send(&self, number: u64, event: ObjectEvent) {
        self.outside.objects.send(delivered(number, event)).unwrap();
    }

    pub(super) async fn acked(&mut self) -> Option<Acked<ObjectRef>> {
        timeout(Duration::from_millis(100), self.outside.acked.recv()).await.ok().flatten()
    }

    pub(super) async fn workload(&mut self) -> Option<ObjectEvent> {
        timeout(Duration::from_millis(100), self.outside.workloads.recv()).await.ok().flatten()
    }

    pub(super) async fn device(&mut self) -> Option<ObjectEvent> {
        timeout(Duration::from_millis(100), self.outside.devices.recv()).await.ok().flatten()
    }

    pub(super) async fn held(&self) -> Vec<String> {
        let inventory = self.outside.inventory.call((), Duration::from_secs(5)).await.unwrap();
        inventory.iter().map(|entry| entry.reference.to_string()).collect()
    }

    fn client(&self) -> MetaClient {
        MetaClient::new(self.outside.reads.clone(), Duration::from_secs(30))
    }

    pub(super) async fn stop(self) -> Outside {
        self.stop.cancel();
        self.part.await.unwrap().unwrap();
        self.outside
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_is_in_the_store_when_it_is_acknowledged() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    let pod = pod("a", "1", 5, "x");
    running.send(1, Applied(pod.clone()));
    assert_eq!(running.acked().await, Some(acked(pod.reference.clone(), 1)));
    assert_eq!(store.scan_all(&Prefix::all()).await.unwrap().len(), 1);
    assert_eq!(running.workload().await, Some(Applied(pod)));
    assert_eq!(running.held().await, ["Pod default/a"]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_objects_at_once_are_few_commits() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    for i in 0..1000 {
        running.send(i, Applied(pod(&format!("p{i}"), "1", 1, "x")));
    }
    for _ in 0..1000 {
        assert!(running.acked().await.is_some());
    }
    assert!(store.commits() <= 5, "{}", store.commits());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn while_commits_fail_nothing_is_acknowledged_and_reads_go_on_then_all_of_it_is() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    let first = pod("a", "1", 1, "x");
    running.send(1, Applied(first.clone()));
    assert!(running.acked().await.is_some());
    assert!(running.workload().await.is_some());

    store.fail_commits_after(0);
    running.send(2, Applied(pod("a", "1", 2, "y")));
    running.send(3, Applied(pod("b", "1", 3, "x")));
    assert_eq!(running.acked().await, None);
    running.send(4, deleted(ObjectRef::pod("default", "b"), "1"));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((running.acked().await, running.workload().await), (None, None));
    assert_eq!(running.held().await, ["Pod default/a"]);
    assert_eq!(running.client().get(first.reference.clone()).await.unwrap(), first);

    store.heal();
    tokio::time::sleep(Duration::from_secs(31)).await;
    let mut both = [running.acked().await.unwrap(), running.acked().await.unwrap()];
    both.sort_by_key(|acked| acked.delivery);
    assert_eq!(both[0], acked(first.reference.clone(), 2));
    assert_eq!(both[1].delivery, delivery(4));
    assert_eq!(running.held().await, ["Pod default/a"]);
    assert_eq!(running.client().get(first.reference).await.unwrap().resource_version.0, 2);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_a_link_hands_everything_out_and_pods_last() {
    let store = MemoryStore::new();
    let objects = [
        pod("a", "1", 1, "x"),
        object(ObjectRef::config_map("default", "c"), "2", 1, "x"),
        object(ObjectRef::secret("default", "s"), "3", 1, "x"),
        object(ObjectRef::device_model("default", "m"), "4", 1, "x"),
        object(ObjectRef::new("v1", "Endpoints", "default", "v"), "5", 1, "x"),
    ];
    let mut running = Running::start(&store);
    for (number, object) in objects.iter().enumerate() {
        running.send(number as u64, Applied(object.clone()));
    }
    for _ in &objects {
        assert!(running.acked().await.is_some());
    }
    running.stop().await;

    let mut running = Running::start(&store);
    let mut workloads = Vec::new();
    while let Some(event) = running.workload().await {
        workloads.push(event);
    }
    let pod = Applied(objects[0].clone());
    assert_eq!(workloads.len(), 3);
    assert_eq!(workloads[2], pod);
    assert!(objects[1..3].iter().all(|object| workloads.contains(&Applied(object.clone()))));
    assert_eq!(running.device().await, Some(Applied(objects[3].clone())));
    assert_eq!(running.held().await.len(), 5);
    assert_eq!(running.acked().await, None);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_left_out_and_so_comes_again() {
    let store = MemoryStore::new();
    let (sound, rotten, later) =
        (pod("sound", "1", 1, "x"), pod("rotten", "1", 1, "x"), pod("later", "1", 1, "x"));
    let mut batch = Batch::new();
    batch.put(record::key(&sound.reference).unwrap(), record::encode(&sound));
    batch.put(record::key(&rotten.reference).unwrap(), "");
    batch.put(record::key(&later.reference).unwrap(), "\u{2}of a later version");
    batch.put(Key::new(["twins", "x"]).unwrap(), "of another part");
    store.commit(batch).await.unwrap();

    let mut running = Running::start(&store);
    assert_eq!(running.workload().await, Some(Applied(sound)));
    assert_eq!(running.workload().await, None);
    assert_eq!(running.held().await, ["Pod default/sound"]);
    assert_eq!(running.client().list("v1", "Pod", None).await.unwrap().len(), 1);
    assert!(store.get(&record::key(&rotten.reference).unwrap()).await.unwrap().is_none());
    assert_eq!(store.scan_all(&Prefix::all()).await.unwrap().len(), 3);

    running.send(1, Applied(rotten.clone()));
    assert_eq!(running.workload().await, Some(Applied(rotten)));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn reads_are_answered_from_the_node() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    let other = ObjectRef::pod("kube-system", "b");
    let objects = [
        pod("a", "1", 1, "x"),
        pod("b", "1", 1, "x"),
        object(other.clone(), "1", 1, "x"),
        object(ObjectRef::node("edge-1"), "1", 1, "x"),
        object(ObjectRef::new("v1", "PodTemplate", "default", "t"), "1", 1, "x"),
    ];
    for (number, object) in objects.iter().enumerate() {
        running.send(number as u64, Applied(object.clone()));
    }
    for _ in &objects {
        running.acked().await.unwrap();
    }
    let client = running.client();
    assert_eq!(client.list("v1", "Pod", None).await.unwrap(), objects[..3]);
    assert_eq!(client.list("v1", "Pod", Some("default".to_owned())).await.unwrap(), objects[..2]);
    assert_eq!(client.list("v1", "Node", Some(String::new())).await.unwrap(), objects[3..4]);
    assert!(client.list("apps/v1", "Deployment", None).await.unwrap().is_empty());
    assert_eq!(client.get(other).await.unwrap(), objects[2]);
    let absent = ObjectRef::pod("default", "absent");
    let error = client.get(absent.clone()).await.unwrap_err();
    assert!(matches!(error, ReadError::Offline(reference) if reference == absent));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_absent_is_asked_of_the_cloud_and_not_kept() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    running.outside.connectivity.send(Connectivity::Online).unwrap();
    let remote = object(ObjectRef::new("v1", "Service", "default", "s"), "1", 1, "x");
    let client = running.client();
    for answer in
        [Answer::Object(remote.clone()), Answer::NotFound, Answer::Refused("not of this node".to_owned())]
    {
        let (outcome, ()) = tokio::join!(client.get(remote.reference.clone()), async {
            let call = running.outside.queries.recv().await.unwrap();
            assert_eq!(call.question, Query::Get(remote.reference.clone()));
            call.answer(answer.clone());
        });
        let as_expected = match (&answer, outcome) {
            (Answer::Object(object), Ok(found)) => found == *object,
            (Answer::NotFound, Err(ReadError::NotFound(_))) => true,
            (Answer::Refused(reason), Err(ReadError::Refused { why, .. })) => why == *reason,
            (_, outcome) => panic!("{answer:?}: {outcome:?}"),
        };
        assert!(as_expected);
    }
    assert!(running.held().await.is_empty());
    assert_eq!(store.commits(), 0);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_does_not_answer_holds_up_one_read_and_nothing_else() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    running.outside.connectivity.send(Connectivity::Synchronized).unwrap();
    let client = running.client();
    let absent = tokio::spawn(async move { client.get(ObjectRef::pod("default", "absent")).await });
    tokio::task::yield_now().await;
    running.send(1, Applied(pod("a", "1", 1, "x")));
    assert!(running.acked().await.is_some());
    assert!(running.client().get(ObjectRef::pod("default", "a")).await.is_ok());
    assert!(!absent.is_finished());
    let error = absent.await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Call(_)), "{error:?}");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn no_more_questions_than_allowed_are_under_way() {
    let store = MemoryStore::new();
    let (inbox, outbox, outside) = pipes();
    outside.connectivity.send(Connectivity::Online).unwrap();
    let stop = CancellationToken::new();
    let config = Config { queries_max: 1, ..Config::default() };
    let part = tokio::spawn(MetaManager::new(config, Arc::new(store), inbox, outbox).run(stop.clone()));
    let client = MetaClient::new(outside.reads.clone(), Duration::from_secs(30));
    let ask = |name: &str| client.get(ObjectRef::pod("default", name));
    let (one, other) = tokio::join!(ask("a"), ask("b"));
    assert!(matches!(one, Err(ReadError::Call(_))), "{one:?}");
    assert!(matches!(other, Err(ReadError::Busy(_))), "{other:?}");
    stop.cancel();
    part.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn parts_that_are_gone_do_not_stop_it() {
    let store = MemoryStore::new();
    let (inbox, outbox, outside) = pipes();
    let Outside {
        objects,
        inventory,
        reads,
        tokens,
        connectivity,
        acked,
        workloads,
        devices,
        queries,
        rules: _,
    } = outside;
    drop((inventory, reads, tokens, connectivity, acked, workloads, devices, queries));
    let stop = CancellationToken::new();
    let part = MetaManager::new(Config::default(), Arc::new(store.clone()), inbox, outbox);
    let running = tokio::spawn(part.run(stop.clone()));
    objects.send(delivered(1, Applied(pod("a", "1", 1, "x")))).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(store.commits(), 1);
    drop(objects);
    // With every pipe closed it waits to be stopped; if it spun, the paused clock would not move.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!running.is_finished());
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_read_at_start_is_tried_again_and_stopping_does_not_wait_for_it() {
    let store = MemoryStore::new();
    let _ = store.cut_power();
    let running = Running::start(&store);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let inventory = running.outside.inventory.call((), Duration::from_secs(1)).await;
    assert!(inventory.is_err(), "an inventory of nothing would make the cloud send everything");
    let read = running.outside.reads.call(Read::Get(ObjectRef::node("a")), Duration::from_secs(1)).await;
    assert!(read.is_err());
    running.stop().await;
}
