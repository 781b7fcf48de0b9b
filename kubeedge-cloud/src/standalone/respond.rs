//! Answers: their bodies and the forms in which objects can be shown.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use serde_json::{Value, json};

use super::{failure::Failure, resource::Resource, table::Include};

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer with a body of JSON.
pub(crate) fn json(code: u16, value: &Value) -> Response<Body> {
    bytes(code, "application/json", value.to_string().into())
}

/// An answer with this body.
pub(crate) fn bytes(code: u16, media_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// The answer to a request that failed.
pub(crate) fn failure(failure: &Failure) -> Response<Body> {
    json(failure.code, &failure.status())
}

/// The form in which a client wants to see objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Plain,
    /// As rows of a table.
    Table(Include),
    /// Only their metadata.
    Metadata,
}

impl Form {
    /// Chooses the first form in `Accept` that the server knows.
    ///
    /// # Errors
    /// 406 if it knows none.
    pub(crate) fn choose(headers: &HeaderMap, include: Option<&str>) -> Result<Self, Failure> {
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("*/*");
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            if !["application/json", "application/*", "*/*", ""].contains(&media_type) {
                continue;
            }
            let parameter = |name: &str| {
                let mut parts = range.split(';').map(str::trim);
                parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
            };
            let of_meta = parameter("g") == Some("meta.k8s.io") && parameter("v") == Some("v1");
            match parameter("as") {
                None => return Ok(Self::Plain),
                Some("Table") if of_meta => return Ok(Self::Table(Include::parse(include))),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") if of_meta => {
                    return Ok(Self::Metadata);
                }
                Some(_) => {}
            }
        }
        let mut failure =
            Failure::bad_request("only the following media types are accepted: application/json");
        (failure.code, failure.reason) = (406, "NotAcceptable");
        Err(failure)
    }

    /// One object in this form.
    pub(crate) fn object(self, resource: &Resource, object: Bytes, heads: bool) -> Bytes {
        if self == Self::Plain {
            return object;
        }
        let Ok(value) = serde_json::from_slice::<Value>(&object) else { return object };
        match self {
            Self::Plain => object,
            Self::Metadata => partial(&value).to_string().into(),
            Self::Table(include) => {
                let version = json!({ "resourceVersion": value["metadata"]["resourceVersion"] });
                resource.columns.table(&[value], version, include, heads).to_string().into()
            }
        }
    }

    /// A bookmark in this form; `object` has nothing but its version.
    pub(crate) fn bookmark(self, object: Value) -> Bytes {
        let object = match self {
            Self::Plain => object,
            Self::Metadata => partial(&object),
            Self::Table(_) => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": null,
                "metadata": { "resourceVersion": object["metadata"]["resourceVersion"] },
                "rows": [{ "cells": [], "object": partial(&object) }],
            }),
        };
        object.to_string().into()
    }

    /// A list in this form.
    pub(crate) fn list(self, resource: &Resource, objects: &[Bytes], meta: &Value) -> Result<Bytes, Failure> {
        let values =
            || objects.iter().map(|object| super::store::decode(object)).collect::<Result<Vec<_>, _>>();
        match self {
            Self::Plain => {
                let (kind, version) = (resource.list_kind(), resource.api_version());
                Ok(splice(&kind, &version, meta, objects.iter().map(|object| &object[..])))
            }
            Self::Metadata => {
                let items: Vec<Vec<u8>> =
                    values()?.iter().map(|value| partial(value).to_string().into_bytes()).collect();
                let items = items.iter().map(Vec::as_slice);
                Ok(splice("PartialObjectMetadataList", "meta.k8s.io/v1", meta, items))
            }
            Self::Table(include) => {
                let table = resource.columns.table(&values()?, meta.clone(), include, true);
                Ok(table.to_string().into())
            }
        }
    }
}

/// Puts the items' own text into a list.
fn splice<'a>(
    kind: &str,
    version: &str,
    meta: &Value,
    items: impl Iterator<Item = &'a [u8]> + Clone,
) -> Bytes {
    let head = format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{meta},"items":["#);
    let size = items.clone().map(|item| item.len() + 1).sum::<usize>() + head.len() + 2;
    let mut list = Vec::with_capacity(size);
    list.extend_from_slice(head.as_bytes());
    for (index, item) in items.enumerate() {
        if index > 0 {
            list.push(b',');
        }
        list.extend_from_slice(item);
    }
    list.extend_from_slice(b"]}");
    list.into()
}

fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.get("metadata"),
    })
}
