//! One page of a list.

use kube::{
    Client,
    core::{Request, params::ListParams},
};
use kubeedge_core::message::Object;

use super::{
    Forms, Kind, Timing,
    answer::{List, Problem},
    read,
};

pub(super) struct Page {
    pub(super) objects: Vec<Object>,
    /// What names the next page.
    pub(super) next: Option<String>,
    /// The version of the whole list.
    pub(super) version: String,
    /// What the API sent.
    pub(super) bytes: usize,
}

/// Gets the first page, or the one that the token names.
pub(super) async fn get(
    client: Client,
    kind: Kind,
    forms: Option<Forms>,
    timing: Timing,
    token: Option<String>,
) -> Result<Page, Problem> {
    let params = ListParams { limit: Some(timing.page), continue_token: token, ..ListParams::default() };
    let mut request = Request::new(kind.path()).list(&params).map_err(kube::Error::BuildRequest)?;
    if let Some(form) = forms.and_then(|forms| forms.list.parse().ok()) {
        request.headers_mut().insert("accept", form);
    }
    let asked = client.request_text(request);
    let text = tokio::time::timeout(timing.request, asked).await.map_err(|_| Problem::Late)??;
    let list: List<'_> = serde_json::from_str(&text)?;
    Ok(Page {
        objects: list.items.unwrap_or_default().into_iter().filter_map(|item| read(kind, item)).collect(),
        next: list.metadata.next.filter(|token| !token.is_empty()),
        version: list.metadata.resource_version,
        bytes: text.len(),
    })
}
