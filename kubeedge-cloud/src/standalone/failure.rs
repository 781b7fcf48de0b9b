use serde_json::{Value, json};

/// Why a request could not be done, as Kubernetes' `Status` tells it to clients.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The HTTP status.
    pub(crate) code: u16,
    /// Kubernetes' machine-readable word, such as `NotFound`.
    pub(crate) reason: &'static str,
    /// What and where, for people.
    pub(crate) message: String,
    /// Kubernetes' `details`, if there is more to say.
    pub(crate) details: Option<Value>,
}

/// One thing that is wrong with an object: where, and what.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldManagerConflict`, …
    pub(crate) reason: &'static str,
    /// The field's path, such as `spec.containers[0].image`.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) message: String,
}

impl From<crate::checks::Fault> for Cause {
    fn from(fault: crate::checks::Fault) -> Self {
        let crate::checks::Fault { reason, field, message } = fault;
        Self { reason, field, message }
    }
}

impl Cause {
    /// A field whose value breaks a rule.
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, rule: &str) -> Self {
        let value = crate::standalone::json::shorten(&value.to_string(), 200);
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {value}: {rule}"),
        }
    }

    /// A field that must be there and is not.
    pub(crate) fn required(field: impl Into<String>, rule: &str) -> Self {
        let message =
            if rule.is_empty() { "Required value".into() } else { format!("Required value: {rule}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    /// A field that must not be set, or not changed.
    pub(crate) fn forbidden(field: impl Into<String>, rule: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {rule}") }
    }

    /// A value that stands twice where each may stand once.
    pub(crate) fn duplicate(field: impl Into<String>, value: &str) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {value:?}"),
        }
    }

    /// A value that is not one of the few allowed.
    pub(crate) fn unsupported(field: impl Into<String>, value: &str, allowed: &[&str]) -> Self {
        let allowed = allowed.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!("Unsupported value: {value:?}: supported values: {allowed}"),
        }
    }
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    /// 404 for an object.
    pub(crate) fn not_found(plural: &str, group: &str, name: &str) -> Self {
        let what = qualified(plural, group);
        let mut failure = Self::new(404, "NotFound", format!("{what} {name:?} not found"));
        failure.details = Some(details(plural, group, name));
        failure
    }

    /// 404 for a path that leads nowhere.
    pub(crate) fn no_such_path() -> Self {
        let mut failure = Self::new(404, "NotFound", "the server could not find the requested resource");
        failure.details = Some(json!({}));
        failure
    }

    /// 409: the name is taken.
    pub(crate) fn already_exists(plural: &str, group: &str, name: &str) -> Self {
        let what = qualified(plural, group);
        let mut failure = Self::new(409, "AlreadyExists", format!("{what} {name:?} already exists"));
        failure.details = Some(details(plural, group, name));
        failure
    }

    /// 409: the object is another than the client thinks.
    pub(crate) fn conflict(plural: &str, group: &str, name: &str, why: &str) -> Self {
        let what = qualified(plural, group);
        let message = format!("Operation cannot be fulfilled on {what} {name:?}: {why}");
        let mut failure = Self::new(409, "Conflict", message);
        failure.details = Some(details(plural, group, name));
        failure
    }

    /// 409: other managers own what a server-side apply would change.
    pub(crate) fn apply_conflict(causes: Vec<Cause>) -> Self {
        let list = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.message, cause.field))
            .collect::<Vec<_>>()
            .join("\n");
        let plural = if causes.len() == 1 { "" } else { "s" };
        let message = format!("Apply failed with {} conflict{plural}: {list}", causes.len());
        let mut failure = Self::new(409, "Conflict", message);
        failure.details = Some(json!({ "causes": causes_json(&causes) }));
        failure
    }

    /// 422: the object breaks rules.
    pub(crate) fn invalid(kind: &str, group: &str, name: &str, causes: &[Cause]) -> Self {
        let list = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>();
        let list = match list.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let what = qualified(kind, group);
        let mut failure = Self::new(422, "Invalid", format!("{what} {name:?} is invalid: {list}"));
        let mut details = details(kind, group, name);
        details["causes"] = causes_json(causes);
        failure.details = Some(details);
        failure
    }

    /// 400: the request makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: no token, or a wrong one.
    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: the object's state does not allow it.
    pub(crate) fn forbidden(plural: &str, group: &str, name: &str, why: &str) -> Self {
        let what = qualified(plural, group);
        let mut failure = Self::new(403, "Forbidden", format!("{what} {name:?} is forbidden: {why}"));
        failure.details = Some(details(plural, group, name));
        failure
    }

    /// 405: the path exists and does not do this.
    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message)
    }

    /// 410: the version asked for is no longer known.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413: the body is larger than the server takes.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit} bytes");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415: the body is in a form that the server does not read.
    pub(crate) fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 500: the store failed.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {}", message.into()))
    }

    /// 503 and others: a node did not do what it was asked.
    pub(crate) fn node(code: u16, message: impl Into<String>) -> Self {
        let reason = match code {
            400 => "BadRequest",
            403 => "Forbidden",
            404 => "NotFound",
            504 => "Timeout",
            500 => "InternalError",
            _ => "ServiceUnavailable",
        };
        Self::new(code, reason, message)
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

/// `pods`, or `devices.devices.kubeedge.io` outside the core group.
fn qualified(what: &str, group: &str) -> String {
    if group.is_empty() { what.to_owned() } else { format!("{what}.{group}") }
}

fn details(kind: &str, group: &str, name: &str) -> Value {
    let mut details = json!({ "name": name, "kind": kind });
    if !group.is_empty() {
        details["group"] = group.into();
    }
    details
}

fn causes_json(causes: &[Cause]) -> Value {
    causes.iter().map(|c| json!({ "reason": c.reason, "message": c.message, "field": c.field })).collect()
}
