//! The four ways in which a client may change a part of an object.

pub(crate) mod apply;
mod fields;
mod json;
mod schema;
mod strategic;

use serde_json::Value;

use super::failure::Failure;

/// A patch that has been read, and does not depend on the object that it will change.
#[derive(Debug, Clone)]
pub(crate) enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7396.
    Merge(Value),
    /// Kubernetes' merge that knows lists of named items.
    Strategic(Value),
    /// Server-side apply.
    Apply(Value),
}

impl Patch {
    /// Reads a patch of the media type.
    ///
    /// # Errors
    /// 400 if it is malformed, 415 if the media type is none of the four.
    pub(crate) fn parse(media_type: &str, body: &[u8], built_in: bool) -> Result<Self, Failure> {
        let object = |body| {
            let value: Value = serde_json::from_slice(body)
                .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
            if !value.is_object() {
                return Err(Failure::bad_request("error decoding patch: it must be a JSON object"));
            }
            Ok(value)
        };
        match media_type {
            "application/json-patch+json" => json::parse(body).map(Self::Json),
            "application/merge-patch+json" => object(body).map(Self::Merge),
            "application/strategic-merge-patch+json" if built_in => object(body).map(Self::Strategic),
            "application/apply-patch+yaml" => apply::parse(body).map(Self::Apply),
            other => Err(Failure::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml{}; \
                 it was {other:?}",
                if built_in { ", application/strategic-merge-patch+json" } else { "" },
            ))),
        }
    }

    /// The object after the patch. A server-side apply is done by [`apply::apply`] instead, which also needs
    /// to know who applies; here it changes nothing.
    pub(crate) fn apply_to(&self, mut object: Value) -> Result<Value, Failure> {
        match self {
            Self::Json(patch) => json::apply(&mut object, patch)?,
            Self::Merge(patch) => json_patch::merge(&mut object, patch),
            Self::Strategic(patch) => strategic::apply(&mut object, patch)?,
            Self::Apply(_) => {}
        }
        Ok(object)
    }
}
