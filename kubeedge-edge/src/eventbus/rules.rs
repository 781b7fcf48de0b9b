//! Topics of Rules: what users want to have in the cloud besides the topics of the configuration.
//!
//! MetaManager tells the Rules again after each start, a moment after the broker has begun to listen. What is published
//! in that moment is not lost, since the topics are kept in a record of EventBus' own, and go by it until then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{PoisonError, RwLock},
    time::Duration,
};

use kubeedge_core::{
    message::{Object, ObjectEvent, ObjectRef},
    pipe::LatestReceiver,
    store::{Batch, Key, MetaStore, StoreError},
};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::topic;

/// After a start: by then MetaManager has told what there is.
const TOLD_AFTER: Duration = Duration::from_secs(30);

/// The pause after the record could not be written.
const WRITE_AGAIN: Duration = Duration::from_secs(10);

/// The topic filters of Rules, shared by those who look at each message and the one who keeps them.
#[derive(Debug)]
pub(super) struct RuleTopics {
    topics: RwLock<Topics>,
    changed: watch::Sender<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Topics {
    rules: BTreeMap<ObjectRef, String>,
    /// From the record of an earlier run, until MetaManager has told what there is.
    kept: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Rule {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    source_resource: BTreeMap<String, String>,
}

impl RuleTopics {
    /// Begins with what an earlier run has kept.
    pub(super) fn new(kept: BTreeSet<String>) -> Self {
        let (changed, _) = watch::channel(kept.clone());
        Self { topics: RwLock::new(Topics { rules: BTreeMap::new(), kept }), changed }
    }

    /// Whether a Rule wants what is published on the topic.
    pub(super) fn matches(&self, name: &str) -> bool {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.rules.values().chain(&topics.kept).any(|filter| topic::matches(filter, name))
    }

    /// Takes Rules, and keeps the record of their topics.
    pub(super) async fn run(&self, mut rules: LatestReceiver<ObjectRef, ObjectEvent>, store: &dyn MetaStore) {
        let take = async {
            while let Some(event) = rules.recv().await {
                self.handle(event);
            }
            std::future::pending::<()>().await;
        };
        let forget = async {
            sleep(TOLD_AFTER).await;
            self.forget_kept();
            std::future::pending::<()>().await;
        };
        let keep = async {
            let mut filters = self.filters();
            while filters.changed().await.is_ok() {
                let now = filters.borrow_and_update().clone();
                while let Err(error) = keep(store, &now).await {
                    tracing::warn!(%error, "the topics of Rules cannot be stored");
                    sleep(WRITE_AGAIN).await;
                }
            }
        };
        tokio::join!(take, forget, keep);
    }

    /// All filters, and when they change.
    pub(super) fn filters(&self) -> watch::Receiver<BTreeSet<String>> {
        self.changed.subscribe()
    }

    /// Takes a Rule as it is.
    pub(super) fn handle(&self, event: ObjectEvent) {
        match event {
            ObjectEvent::Applied(object) => match filter_of(&object) {
                Ok(filter) => self.change(|topics| drop(topics.rules.insert(object.reference, filter))),
                Err(why) => {
                    tracing::warn!(rule = %object.reference, why, "the Rule has no topic to listen to");
                    self.change(|topics| drop(topics.rules.remove(&object.reference)));
                }
            },
            ObjectEvent::Deleted { reference, .. } => {
                self.change(|topics| drop(topics.rules.remove(&reference)));
            }
        }
    }

    /// MetaManager has told all that there is: what an earlier run has kept besides is over.
    pub(super) fn forget_kept(&self) {
        self.change(|topics| topics.kept.clear());
    }

    fn change(&self, how: impl FnOnce(&mut Topics)) {
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        how(&mut topics);
        let filters = topics.rules.values().chain(&topics.kept).cloned().collect();
        // Under the lock, so that the last change is told last.
        self.changed.send_if_modified(|told| std::mem::replace(told, filters) != *told);
    }
}

/// What an earlier run has kept. Without a readable record, only what is published before MetaManager has told the Rules
/// is not taken.
pub(super) async fn kept(store: &dyn MetaStore, deadline: Duration) -> BTreeSet<String> {
    let read = async { store.get(&key()?).await };
    match timeout(deadline, read).await {
        Ok(Ok(record)) => record.and_then(|record| serde_json::from_slice(&record).ok()).unwrap_or_default(),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the topics of Rules cannot be read");
            BTreeSet::new()
        }
        Err(_) => BTreeSet::new(),
    }
}

async fn keep(store: &dyn MetaStore, filters: &BTreeSet<String>) -> Result<(), StoreError> {
    let json = serde_json::to_vec(filters).unwrap_or_default();
    let mut batch = Batch::new();
    batch.put(key()?, json);
    store.commit(batch).await
}

fn key() -> Result<Key, StoreError> {
    Key::new(["eventbus", "rule-topics"])
}

/// `<namespace>/<topic>`, as Router in the cloud goes by.
fn filter_of(object: &Object) -> Result<String, String> {
    let rule: Rule = serde_json::from_slice(&object.json).map_err(|error| error.to_string())?;
    let topic = rule.spec.source_resource.get("topic").map_or("", |topic| topic.trim_matches('/'));
    let filter = format!("{}/{topic}", object.reference.namespace());
    if topic.is_empty() || !topic::is_filter(&filter) {
        return Err(format!("spec.sourceResource.topic: {topic:?} is not a topic"));
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rule(name: &str, topic: &str) -> Object {
        let rule = json!({
            "apiVersion": "rules.kubeedge.io/v1", "kind": "Rule",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "resourceVersion": "1" },
            "spec": { "source": "bus", "sourceResource": { "topic": topic }, "target": "rest", "targetResource": {} },
        });
        Object::from_json(rule.to_string()).unwrap()
    }

    fn deleted(object: &Object) -> ObjectEvent {
        ObjectEvent::Deleted { reference: object.reference.clone(), uid: object.uid.clone() }
    }

    #[test]
    fn a_rule_wants_its_topic_in_its_namespace_until_it_is_deleted() {
        let (topics, tills) = (RuleTopics::new(BTreeSet::new()), rule("tills", "/tills/+/"));
        topics.handle(ObjectEvent::Applied(tills.clone()));
        assert!(topics.matches("shop/tills/1") && !topics.matches("other/tills/1"));
        assert_eq!(topics.filters().borrow().len(), 1);
        topics.handle(deleted(&tills));
        assert!(!topics.matches("shop/tills/1"));
    }

    #[test]
    fn what_an_earlier_run_has_kept_counts_until_all_is_told() {
        let topics = RuleTopics::new(BTreeSet::from(["shop/tills/+".to_owned(), "shop/doors".to_owned()]));
        assert!(topics.matches("shop/tills/1") && topics.matches("shop/doors"));
        topics.handle(ObjectEvent::Applied(rule("tills", "tills/+")));
        topics.forget_kept();
        assert!(topics.matches("shop/tills/1") && !topics.matches("shop/doors"));
    }

    #[test]
    fn a_rule_without_a_topic_that_can_be_listened_to_wants_nothing() {
        let topics = RuleTopics::new(BTreeSet::new());
        for wrong in ["", "/", "a/#/b", "a\0b"] {
            topics.handle(ObjectEvent::Applied(rule("wrong", wrong)));
            assert!(topics.filters().borrow().is_empty(), "{wrong:?}");
        }
        // A Rule that was right is no longer in force when it is not.
        topics.handle(ObjectEvent::Applied(rule("a", "good")));
        topics.handle(ObjectEvent::Applied(rule("a", "#/bad")));
        assert!(topics.filters().borrow().is_empty());
    }
}
