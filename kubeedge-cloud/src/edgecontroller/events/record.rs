//! How an event is written to the API.

use kubeedge_core::id::NodeName;
use serde_json::{Value, json};

use super::super::{Dropped, state::EVENTS};
use crate::controller::api::{Api, Error, Place};

/// What became of an attempt to write an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::edgecontroller) enum Recorded {
    /// The API has it.
    Done,
    /// It will never be written.
    Dropped(Dropped, String),
    /// It may be written later.
    Retry(String),
}

impl From<Error> for Recorded {
    /// A lack of rights is final: an API also gives it as its answer in a namespace that is being deleted.
    fn from(error: Error) -> Self {
        match error.code() {
            Some(401 | 408 | 409 | 429) | None => Self::Retry(error.to_string()),
            Some(400..=499) => Self::Dropped(Dropped::Refused, error.to_string()),
            Some(_) => Self::Retry(error.to_string()),
        }
    }
}

/// Records an event, or brings the node's own event of its name up to date: a name can be guessed, so it does not
/// give a right to the events of others.
pub(in crate::edgecontroller) async fn record(api: &Api, node: &NodeName, event: Value) -> Recorded {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&event["metadata"]["namespace"]), text(&event["metadata"]["name"]));
    let place = Place { kind: EVENTS, namespace: &namespace, name: &name };
    match api.create(place, &event).await {
        Ok(_) => Recorded::Done,
        Err(error) if error.is_conflict() => match update(api, place, node, event).await {
            Ok(recorded) => recorded,
            // It has ended meanwhile, and can be created.
            Err(error) if error.is_missing() => Recorded::Retry(error.to_string()),
            Err(error) => error.into(),
        },
        Err(error) => error.into(),
    }
}

async fn update(api: &Api, place: Place<'_>, node: &NodeName, mut event: Value) -> Result<Recorded, Error> {
    let existing = api.value(place).await?;
    let by_node =
        existing["source"]["host"] == node.as_str() || existing["reportingInstance"] == node.as_str();
    if !by_node || existing["involvedObject"]["uid"] != event["involvedObject"]["uid"] {
        let why = "there is another event of this name".to_owned();
        return Ok(Recorded::Dropped(Dropped::OthersName, why));
    }
    // Only the event that was looked at.
    let metadata = &existing["metadata"];
    event["metadata"] = json!({ "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"] });
    api.merge(place, "", &event).await.map(|_| Recorded::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_given_up_for_an_answer_that_would_be_given_again_and_for_nothing_else() {
        let recorded = |code| {
            let status = kube::core::Status::failure("why", "Reason").with_code(code);
            Recorded::from(Error::Api(kube::Error::Api(status.boxed())))
        };
        for code in [400, 403, 404, 413, 422] {
            assert!(matches!(recorded(code), Recorded::Dropped(Dropped::Refused, _)), "{code}");
        }
        for code in [401, 409, 429, 500, 503] {
            assert!(matches!(recorded(code), Recorded::Retry(_)), "{code}");
        }
        assert!(matches!(Recorded::from(Error::Late), Recorded::Retry(_)));
    }
}
