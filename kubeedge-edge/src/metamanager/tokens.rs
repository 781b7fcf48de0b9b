//! Tokens of service accounts: kept in the store, so that pods have them without a link too.
//!
//! The key is `tokens/<pod's UID>/<digest of the request>`, the value the request and the token as JSON. A token
//! goes with its pod. One that has ended is still given for want of a better one: who checks it may be as much
//! without a link as the node, and a pod that does not use it must be able to start.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt;
use kubeedge_core::{
    id::Uid,
    message::{Answer, Inventory, Query, Token, TokenRequest},
    pipe::{Call, CallError, Replier},
    store::{Batch, Key, MetaStore, Prefix, StoreError},
};
use serde::{Deserialize, Serialize};

use super::driver::Driver;

const ROOT: &str = "tokens";

/// A question to the cloud that is under way, and what is given if it fails.
pub(super) struct Asked {
    request: TokenRequest,
    kept: Option<Token>,
    replier: Replier<Answer>,
    answer: Result<Answer, CallError>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    request: TokenRequest,
    token: Token,
}

impl Driver {
    /// Answers from the store, or asks the cloud if the token there should be renewed.
    pub(super) async fn token(&mut self, call: Call<TokenRequest, Answer>, online: bool) {
        let (request, replier) = call.split();
        let kept = match kept(&*self.store, &request).await {
            Ok(kept) => kept,
            Err(error) => return replier.answer(Answer::Refused(error.to_string())),
        };
        match kept {
            Some(token) if now_ms() < token.renew_at_ms() => replier.answer(Answer::Token(token)),
            kept if !online => replier.answer(fallback(&request, kept, "there is no link to the cloud")),
            kept if self.asked_tokens.len() >= self.config.queries_max => {
                replier.answer(fallback(&request, kept, "too many questions to the cloud are under way"));
            }
            kept => {
                let (queries, deadline) = (self.outbox.queries.clone(), self.config.query_deadline);
                self.asked_tokens.push(Box::pin(async move {
                    let answer = queries.call(Query::Token(request.clone()), deadline).await;
                    Asked { request, kept, replier, answer }
                }));
            }
        }
    }

    /// Keeps what the cloud gave, then gives it on.
    pub(super) async fn conclude_token(&mut self, asked: Asked) {
        let Asked { request, kept, replier, answer } = asked;
        let why = match answer {
            Ok(Answer::Token(token)) => {
                if let Err(error) = keep(&*self.store, &request, &token).await {
                    tracing::warn!(pod = request.pod, %error, "a token could not be kept for a time without a link");
                }
                return replier.answer(Answer::Token(token));
            }
            Ok(Answer::NotFound) if kept.is_none() => return replier.answer(Answer::NotFound),
            Ok(Answer::NotFound) => "the service account does not exist".to_owned(),
            Ok(Answer::Refused(why)) => why,
            Ok(Answer::Object(_)) => "the answer is no token".to_owned(),
            Err(error) => error.to_string(),
        };
        replier.answer(fallback(&request, kept, &why));
    }
}

fn fallback(request: &TokenRequest, kept: Option<Token>, why: &str) -> Answer {
    let Some(token) = kept else { return Answer::Refused(why.to_owned()) };
    if token.expires_at_ms <= now_ms() {
        let (namespace, pod, account) = (&request.namespace, &request.pod, &request.service_account);
        tracing::warn!(
            namespace,
            pod,
            account,
            why,
            "a token has ended and cannot be renewed; the pod keeps it, and who checks it will refuse it"
        );
    }
    Answer::Token(token)
}

async fn kept(store: &dyn MetaStore, request: &TokenRequest) -> Result<Option<Token>, StoreError> {
    let value = store.get(&key(request)?).await?;
    // What cannot be read, or is the answer to another question of the same digest, is as good as absent.
    let record = value.and_then(|value| serde_json::from_slice::<Record>(&value).ok());
    Ok(record.filter(|record| record.request == *request).map(|record| record.token))
}

async fn keep(store: &dyn MetaStore, request: &TokenRequest, token: &Token) -> Result<(), StoreError> {
    let record = Record { request: request.clone(), token: token.clone() };
    let value = serde_json::to_vec(&record).unwrap_or_default();
    let mut batch = Batch::new();
    batch.put(key(request)?, Bytes::from(value));
    store.commit(batch).await
}

/// Removes the tokens of pods that are not here any more.
pub(super) async fn sweep(store: &dyn MetaStore, held: &Inventory) -> Result<(), StoreError> {
    let pods = held.iter().filter(|entry| entry.reference.kind() == "Pod");
    let pods: std::collections::BTreeSet<String> = pods.map(|entry| entry.uid.to_string()).collect();
    remove(store, &Prefix::new([ROOT]), |uid| !pods.contains(uid)).await
}

/// Removes the tokens of a pod.
pub(super) async fn forget(store: &dyn MetaStore, pod: &Uid) -> Result<(), StoreError> {
    remove(store, &Prefix::new([ROOT, pod.as_str()]), |_| true).await
}

async fn remove(
    store: &dyn MetaStore,
    below: &Prefix,
    of_pod: impl Fn(&str) -> bool,
) -> Result<(), StoreError> {
    let (mut batch, mut scan) = (Batch::new(), store.scan(below));
    while let Some(pair) = scan.next().await {
        let (key, _) = pair?;
        if key.parts().nth(1).is_some_and(|uid| of_pod(&uid)) {
            batch.delete(key);
        }
    }
    if batch.changes().is_empty() { Ok(()) } else { store.commit(batch).await }
}

fn key(request: &TokenRequest) -> Result<Key, StoreError> {
    // FNV-1a: short, and the same in every version of this program.
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let text = request.service_account.bytes().chain([0]).chain(request.audience.bytes()).chain([0]);
    let digest = text.chain(request.expiration_seconds.to_be_bytes()).fold(0xcbf2_9ce4_8422_2325, fold);
    Key::new([ROOT, request.pod_uid.as_str(), &format!("{digest:016x}")])
}

fn now_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(unix.as_millis()).unwrap_or(u64::MAX)
}
