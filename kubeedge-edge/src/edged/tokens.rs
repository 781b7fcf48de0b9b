//! The tokens of service accounts that pods mount: which are needed, when they are asked for again. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kubeedge_core::{
    id::Uid,
    message::{Answer, Token, TokenRequest},
};

use super::{
    pod::{Pod, TokenSource},
    resolve::Unresolved,
    state::Moment,
};

/// How long to wait before asking again for a token that was not given, or not renewed. A first one holds up its
/// pod, so the pause begins short.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The API's default for `expirationSeconds`.
const EXPIRATION_SECONDS: i64 = 3600;

/// The tokens of all pods.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    known: BTreeMap<TokenRequest, Known>,
}

/// What is known of one token.
#[derive(Debug)]
struct Known {
    token: Option<Token>,
    /// Why there is none, or no newer one.
    trouble: Option<String>,
    asking: bool,
    ask_at: Instant,
    pause: Duration,
}

/// What a volume asks for.
pub(crate) fn token_request(pod: &Pod, source: &TokenSource) -> TokenRequest {
    let account = pod.spec.service_account_name.as_str();
    let seconds = source.expiration_seconds.unwrap_or(EXPIRATION_SECONDS);
    TokenRequest {
        namespace: pod.reference.namespace().to_owned(),
        // The API server fills in the account; a pod that was made without it has this one.
        service_account: if account.is_empty() { "default".to_owned() } else { account.to_owned() },
        pod: pod.reference.name().to_owned(),
        pod_uid: pod.uid.clone(),
        audience: source.audience.clone(),
        expiration_seconds: u64::try_from(seconds).unwrap_or(0),
    }
}

/// All tokens that a pod mounts.
fn requests(pod: &Pod) -> BTreeSet<TokenRequest> {
    let projected = pod.spec.volumes.iter().filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| &projected.sources);
    let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    tokens.map(|source| token_request(pod, source)).collect()
}

impl Tokens {
    /// Takes that the pod should run.
    pub(crate) fn want(&mut self, pod: &Pod, now: Instant) {
        for request in requests(pod) {
            let new = || Known { token: None, trouble: None, asking: false, ask_at: now, pause: PAUSE_MIN };
            self.known.entry(request).or_insert_with(new);
        }
    }

    /// Takes that the pod is gone.
    pub(crate) fn forget(&mut self, pod: &Uid) {
        self.known.retain(|request, _| request.pod_uid != *pod);
    }

    /// Takes that there is a link: what was not given without one may be given.
    pub(crate) fn handle_online(&mut self, now: Instant) {
        for known in self.known.values_mut().filter(|known| known.trouble.is_some()) {
            (known.ask_at, known.pause) = (now, PAUSE_MIN);
        }
    }

    /// The next token to ask for; [`Self::handle_answer`] takes what comes.
    pub(crate) fn poll_request(&mut self, now: Instant) -> Option<TokenRequest> {
        let due = self.known.iter_mut().find(|(_, known)| !known.asking && known.ask_at <= now);
        due.map(|(request, known)| {
            known.asking = true;
            request.clone()
        })
    }

    /// When the next one is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.known.values().filter(|known| !known.asking).map(|known| known.ask_at).min()
    }

    /// Takes an answer; says whether the files of the pod are others because of it.
    pub(crate) fn handle_answer(
        &mut self,
        request: &TokenRequest,
        answer: Result<Answer, String>,
        now: Moment,
    ) -> bool {
        let Some(known) = self.known.get_mut(request) else { return false };
        known.asking = false;
        let why = match answer {
            Ok(Answer::Token(token)) => {
                let wait = token.renew_at_ms().saturating_sub(now.unix_ms);
                let changed = known.token.as_ref() != Some(&token);
                if wait > 0 {
                    (known.trouble, known.pause) = (None, PAUSE_MIN);
                    known.ask_at = now.at + Duration::from_millis(wait);
                } else {
                    // It is the last one that was ever given: it is used for want of another.
                    known.trouble = Some("it could not be renewed".to_owned());
                    known.again(now.at);
                }
                known.token = Some(token);
                return changed;
            }
            Ok(Answer::Refused(why)) | Err(why) => why,
            Ok(Answer::NotFound) => "the service account does not exist".to_owned(),
            Ok(Answer::Object(_)) => "the answer is no token".to_owned(),
        };
        let changed = known.token.is_none() && known.trouble.as_ref() != Some(&why);
        known.trouble = Some(why);
        known.again(now.at);
        changed
    }

    /// The token.
    ///
    /// # Errors
    /// If there is none, with the reason.
    pub(crate) fn token(&self, request: &TokenRequest) -> Result<&str, Unresolved> {
        let known = self.known.get(request);
        known.and_then(|known| known.token.as_ref()).map(|token| token.token.as_str()).ok_or_else(|| {
            let why = known.and_then(|known| known.trouble.as_deref()).unwrap_or("it was not asked for yet");
            let account = &request.service_account;
            Unresolved(format!("failed to fetch token of serviceaccount {account:?}: {why}"))
        })
    }
}

impl Known {
    fn again(&mut self, now: Instant) {
        self.ask_at = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use kubeedge_core::message::Object;
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        let token = json!({ "serviceAccountToken": { "path": "token", "audience": "vault" } });
        let json = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "p", "namespace": "d", "uid": "u" },
            "spec": {
                "serviceAccountName": "robot", "containers": [{ "name": "c", "image": "i" }],
                "volumes": [{ "name": "t", "projected": { "sources": [token] } }],
            },
        });
        Pod::parse(&Object::from_json(json.to_string()).unwrap()).unwrap()
    }

    fn token(text: &str, issued_s: u64, lifetime_s: u64) -> Result<Answer, String> {
        let expires_at_ms = (issued_s + lifetime_s) * 1000;
        Ok(Answer::Token(Token { token: text.to_owned(), expires_at_ms, lifetime_ms: lifetime_s * 1000 }))
    }

    #[test]
    fn a_token_is_asked_for_once_and_renewed_before_it_ends() {
        let mut tokens = Tokens::default();
        let begin = Instant::now();
        let at = |seconds: u64| Moment { at: begin + Duration::from_secs(seconds), unix_ms: seconds * 1000 };
        tokens.want(&pod(), begin);
        tokens.want(&pod(), begin);
        let request = tokens.poll_request(begin).unwrap();
        assert_eq!((request.audience.as_str(), request.expiration_seconds), ("vault", 3600));
        assert_eq!(request.service_account, "robot");
        assert_eq!(tokens.poll_request(begin), None);
        assert!(tokens.token(&request).is_err());
        assert!(tokens.handle_answer(&request, token("one", 0, 3600), at(0)));
        assert_eq!(tokens.token(&request).unwrap(), "one");
        assert_eq!(tokens.poll_timeout(), Some(begin + Duration::from_secs(2880)));
        assert_eq!(tokens.poll_request(begin + Duration::from_secs(2879)), None);
        assert_eq!(tokens.poll_request(begin + Duration::from_secs(2880)).as_ref(), Some(&request));
        assert!(tokens.handle_answer(&request, token("two", 2880, 3600), at(2880)));
        assert_eq!(tokens.token(&request).unwrap(), "two");
        tokens.forget(&Uid::new("u"));
        assert_eq!(tokens.poll_timeout(), None);
    }

    #[test]
    fn a_token_that_cannot_be_renewed_is_kept_and_asked_for_again_with_a_pause_that_grows() {
        let mut tokens = Tokens::default();
        let begin = Instant::now();
        let at = |seconds: u64| Moment { at: begin + Duration::from_secs(seconds), unix_ms: seconds * 1000 };
        tokens.want(&pod(), begin);
        let request = tokens.poll_request(begin).unwrap();
        // The node was off for a day: the token that was kept has ended.
        assert!(tokens.handle_answer(&request, token("old", 0, 3600), at(86_400)));
        assert_eq!(tokens.token(&request).unwrap(), "old");
        assert_eq!(tokens.poll_timeout(), Some(at(86_401).at));
        assert!(tokens.poll_request(at(86_401).at).is_some());
        assert!(!tokens.handle_answer(&request, Err("no link".to_owned()), at(86_401)));
        assert_eq!(tokens.poll_timeout(), Some(at(86_403).at));
        tokens.handle_online(at(86_402).at);
        assert!(tokens.poll_request(at(86_402).at).is_some());
        assert!(tokens.handle_answer(&request, token("new", 86_402, 3600), at(86_402)));
    }

    #[test]
    fn why_there_is_no_token_is_said_in_the_pods_status() {
        let mut tokens = Tokens::default();
        let now = Moment { at: Instant::now(), unix_ms: 0 };
        tokens.want(&pod(), now.at);
        let request = tokens.poll_request(now.at).unwrap();
        assert!(tokens.handle_answer(&request, Ok(Answer::Refused("not your pod".to_owned())), now));
        let why = tokens.token(&request).unwrap_err().0;
        assert_eq!(why, "failed to fetch token of serviceaccount \"robot\": not your pod");
        assert!(!tokens.handle_answer(&request, Ok(Answer::Refused("not your pod".to_owned())), now));
    }
}
