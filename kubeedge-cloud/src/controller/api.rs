//! The requests that the controllers make, and what an answer of the API means for a write.

use std::time::Duration;

use kube::{
    Client,
    core::{
        Request,
        params::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    },
};
use kubeedge_core::{id::Uid, message::Object};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::{Kind, pruned};

/// How long one request may take: the API server itself gives up after 60 s, and a write that waits holds a
/// place among the writes at once.
const DEADLINE: Duration = Duration::from_secs(30);

/// The field manager that the writes are made under.
const MANAGER: &str = "kubeedge";

/// What became of a write.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The API has it.
    Done,
    /// The API will never take it, or there is nothing to write it to; with the reason.
    Refused(String),
    /// It may succeed later; with the reason.
    Retry(String),
}

/// Says why a request was not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API refused, or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The API did not answer in time.
    #[error("the API did not answer within {DEADLINE:?}")]
    Late,
    /// What came is no object.
    #[error(transparent)]
    Object(#[from] kubeedge_core::message::ObjectError),
    /// What came is not JSON.
    #[error("not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// The HTTP status of the API's answer, if it answered.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => code(error),
            Self::Late | Self::Object(_) | Self::Json(_) => None,
        }
    }

    /// Whether there is no such object.
    pub(crate) fn is_missing(&self) -> bool {
        self.code() == Some(404)
    }

    /// Whether there is another object or version than the one meant.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }
}

impl From<Error> for Outcome {
    /// Refused is what would be refused again. A conflict is not: the state is compared again before each
    /// attempt. Nor is a lack of rights, which an operator will repair.
    fn from(error: Error) -> Self {
        let why = error.to_string();
        match error.code() {
            Some(401 | 403 | 408 | 409 | 429) | None => Self::Retry(why),
            Some(400..=499) => Self::Refused(why),
            Some(_) => Self::Retry(why),
        }
    }
}

/// The HTTP status of the API's answer, if it answered.
pub(crate) fn code(error: &kube::Error) -> Option<u16> {
    if let kube::Error::Api(status) = error { Some(status.code) } else { None }
}

/// The API as the controllers use it: one path, one name, JSON values.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
}

/// Where an object is in the API.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its namespace; empty for cluster-scoped objects.
    pub(crate) namespace: &'a str,
    /// Its name.
    pub(crate) name: &'a str,
}

impl Place<'_> {
    fn request(&self) -> Request {
        if self.namespace.is_empty() {
            Request::new(self.kind.path())
        } else {
            Request::new(self.kind.path_in(self.namespace))
        }
    }
}

impl Api {
    /// Uses this client.
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Reads an object, bytes unchanged but for its managed fields.
    pub(crate) async fn get(&self, place: Place<'_>) -> Result<Object, Error> {
        let request =
            place.request().get(place.name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
        let asked = self.client.request_text(request);
        let text = tokio::time::timeout(DEADLINE, asked).await.map_err(|_| Error::Late)??;
        Ok(Object::from_item(place.kind.api_version, place.kind.kind, pruned(&text))?)
    }

    /// Reads an object as a JSON value.
    pub(crate) async fn value(&self, place: Place<'_>) -> Result<Value, Error> {
        Ok(serde_json::from_slice(&self.get(place).await?.json)?)
    }

    /// The names of all objects of a cluster-scoped kind that have the label, whatever its value.
    pub(crate) async fn names(&self, kind: Kind, label: &str) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let mut params =
            ListParams { limit: Some(500), label_selector: Some(label.to_owned()), ..ListParams::default() };
        loop {
            let request = Request::new(kind.path()).list(&params).map_err(kube::Error::BuildRequest)?;
            let list: Names =
                serde_json::from_str(&self.perform(self.client.request_text(request)).await?.0)?;
            names.extend(list.items.into_iter().map(|item| item.metadata.name));
            params.continue_token = list.metadata.next.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok(names);
            }
        }
    }

    /// Creates an object, and returns what came of it.
    pub(crate) async fn create(&self, place: Place<'_>, object: &Value) -> Result<Value, Error> {
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let body = serde_json::to_vec(object)?;
        let request = place.request().create(&params, body).map_err(kube::Error::BuildRequest)?;
        self.perform(self.client.request_text(request)).await?.value()
    }

    /// Creates something below an object, such as a token of an account, and returns what came of it.
    pub(crate) async fn create_sub(
        &self,
        place: Place<'_>,
        subresource: &str,
        object: &Value,
    ) -> Result<Value, Error> {
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let body = serde_json::to_vec(object)?;
        let request = place.request().create_subresource(subresource, place.name, &params, body);
        self.perform(self.client.request_text(request.map_err(kube::Error::BuildRequest)?)).await?.value()
    }

    /// Merges `patch` into an object (RFC 7396), or into its `subresource` if that is not empty; returns what
    /// came of it.
    pub(crate) async fn merge(
        &self,
        place: Place<'_>,
        subresource: &str,
        patch: &Value,
    ) -> Result<Answer, Error> {
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let (request, patch) = (place.request(), Patch::Merge(patch));
        let request = if subresource.is_empty() {
            request.patch(place.name, &params, &patch)
        } else {
            request.patch_subresource(subresource, place.name, &params, &patch)
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.perform(self.client.request_text(request)).await
    }

    /// Deletes the object of this UID at once, without a grace.
    pub(crate) async fn delete(&self, place: Place<'_>, uid: &Uid) -> Result<(), Error> {
        let only = Preconditions { uid: Some(uid.to_string()), resource_version: None };
        let params =
            DeleteParams { grace_period_seconds: Some(0), preconditions: Some(only), ..Default::default() };
        let request = place.request().delete(place.name, &params).map_err(kube::Error::BuildRequest)?;
        self.perform(self.client.request_text(request)).await.map(drop)
    }

    async fn perform(
        &self,
        asked: impl Future<Output = Result<String, kube::Error>>,
    ) -> Result<Answer, Error> {
        let text = tokio::time::timeout(DEADLINE, asked).await.map_err(|_| Error::Late)??;
        let _: IgnoredAny = serde_json::from_str(&text)?;
        Ok(Answer(text))
    }
}

/// An object that came of a write, as JSON that nobody may need.
pub(crate) struct Answer(String);

impl Answer {
    /// Reads it, but for its managed fields.
    pub(crate) fn value(&self) -> Result<Value, Error> {
        Ok(serde_json::from_slice(&pruned(&self.0))?)
    }
}

#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    metadata: Page,
    items: Vec<Named>,
}

#[derive(Default, Deserialize)]
struct Page {
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct Named {
    metadata: Name,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Api")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_would_be_refused_again_is_refused_for_good() {
        let outcome = |code| {
            let status = kube::core::Status::failure("why", "Reason").with_code(code);
            Outcome::from(Error::Api(kube::Error::Api(status.boxed())))
        };
        for code in [400, 404, 413, 422] {
            assert!(matches!(outcome(code), Outcome::Refused(_)), "{code}");
        }
        for code in [401, 403, 409, 429, 500, 503] {
            assert!(matches!(outcome(code), Outcome::Retry(_)), "{code}");
        }
        assert!(matches!(Outcome::from(Error::Late), Outcome::Retry(_)));
    }
}
