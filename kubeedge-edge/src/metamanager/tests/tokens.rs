use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use kubeedge_core::{
    message::{Answer, Connectivity, ObjectEvent::Applied, Query, Token, TokenRequest},
    store::{MetaStore, Prefix, memory::MemoryStore},
};

use super::{parts::Running, *};

fn request(pod: &str) -> TokenRequest {
    TokenRequest {
        namespace: "default".to_owned(),
        service_account: "robot".to_owned(),
        pod: pod.to_owned(),
        pod_uid: Uid::new(pod),
        audience: "vault".to_owned(),
        expiration_seconds: 3600,
    }
}

/// A token of an hour that was issued so many seconds ago.
fn issued(seconds_ago: u64, text: &str) -> Token {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    Token {
        token: text.to_owned(),
        expires_at_ms: now - seconds_ago * 1000 + 3_600_000,
        lifetime_ms: 3_600_000,
    }
}

/// Asks for the token of `pod`; the cloud, if it is asked, answers so.
async fn ask(running: &mut Running, pod: &str, cloud: Option<Answer>) -> Answer {
    let tokens = running.outside.tokens.clone();
    let wanted = request(pod);
    let asked = wanted.clone();
    let asking = tokio::spawn(async move { tokens.call(asked, Duration::from_secs(30)).await });
    if let Some(answer) = cloud {
        let call = running.outside.queries.recv().await.unwrap();
        assert_eq!(call.question, Query::Token(wanted));
        call.answer(answer);
    }
    asking.await.unwrap().unwrap()
}

fn text(answer: &Answer) -> &str {
    match answer {
        Answer::Token(token) => &token.token,
        other @ (Answer::Object(_) | Answer::NotFound | Answer::Refused(_)) => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_kept_for_a_time_without_a_link_and_renewed_with_one() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    running.send(1, Applied(pod("a", "a", 1, "x")));
    let offline = ask(&mut running, "a", None).await;
    assert_eq!(offline, Answer::Refused("there is no link to the cloud".to_owned()));
    running.outside.connectivity.send_replace(Connectivity::Online);
    let first = ask(&mut running, "a", Some(Answer::Token(issued(0, "one")))).await;
    assert_eq!(text(&first), "one");
    // It is good for a while: the cloud is not asked.
    assert_eq!(text(&ask(&mut running, "a", None).await), "one");
    running.stop().await;
    // After a restart without a link too.
    let mut running = Running::start(&store);
    assert_eq!(text(&ask(&mut running, "a", None).await), "one");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_ended_is_given_for_want_of_a_better_one() {
    let store = MemoryStore::new();
    let mut running = Running::start(&store);
    running.outside.connectivity.send_replace(Connectivity::Online);
    // Four fifths of its life are over, so it is to be renewed each time.
    ask(&mut running, "a", Some(Answer::Token(issued(3000, "old")))).await;
    let refused = Answer::Refused("the account is gone".to_owned());
    assert_eq!(text(&ask(&mut running, "a", Some(refused.clone())).await), "old");
    ask(&mut running, "a", Some(Answer::Token(issued(7200, "ended")))).await;
    running.outside.connectivity.send_replace(Connectivity::Offline);
    assert_eq!(text(&ask(&mut running, "a", None).await), "ended");
    running.outside.connectivity.send_replace(Connectivity::Online);
    assert_eq!(text(&ask(&mut running, "a", Some(Answer::Token(issued(0, "new")))).await), "new");
    assert_eq!(ask(&mut running, "b", Some(refused.clone())).await, refused);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_goes_with_its_pod() {
    let store = MemoryStore::new();
    let held = async |store: &MemoryStore| store.scan(&Prefix::new(["tokens"])).count().await;
    let mut running = Running::start(&store);
    running.outside.connectivity.send_replace(Connectivity::Online);
    running.send(1, Applied(pod("a", "a", 1, "x")));
    running.acked().await;
    ask(&mut running, "a", Some(Answer::Token(issued(0, "a")))).await;
    ask(&mut running, "b", Some(Answer::Token(issued(0, "b")))).await;
    assert_eq!(held(&store).await, 2);
    running.stop().await;
    // The pod `b` was never here: the next start sweeps what it left.
    let mut running = Running::start(&store);
    running.held().await;
    assert_eq!(held(&store).await, 1);
    running.send(2, deleted(ObjectRef::pod("default", "a"), "a"));
    running.acked().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(held(&store).await, 0);
    running.stop().await;
}
