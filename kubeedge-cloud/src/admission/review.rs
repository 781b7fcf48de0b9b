//! What an AdmissionReview (`admission.k8s.io/v1`) is answered. Pure.

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::checks::{self, Fault};

/// What the API server asks.
#[derive(Debug, Deserialize)]
pub(super) struct Review {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    /// The question.
    pub(super) request: Request,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    uid: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

/// What is in the namespace of a Rule.
#[derive(Debug, Default)]
pub(super) struct Around {
    pub(super) endpoints: Vec<Value>,
    pub(super) rules: Vec<Value>,
}

/// What a path is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Device,
    DeviceModel,
    Rule,
    RuleEndpoint,
    UpgradeJob,
    UpgradeJobDefaults,
    OfflineMigration,
}

impl Question {
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/devices" => Self::Device,
            "/devicemodels" => Self::DeviceModel,
            "/rules" => Self::Rule,
            "/ruleendpoints" => Self::RuleEndpoint,
            "/nodeupgradejobs" => Self::UpgradeJob,
            "/mutating/nodeupgradejobs" => Self::UpgradeJobDefaults,
            "/offlinemigration" => Self::OfflineMigration,
            _ => return None,
        })
    }
}

impl Review {
    /// Reads it.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let review: Self =
            serde_json::from_slice(body).map_err(|error| format!("this is no AdmissionReview: {error}"))?;
        match (review.api_version.as_str(), review.kind.as_str()) {
            ("admission.k8s.io/v1", "AdmissionReview") => Ok(review),
            (version, kind) => {
                Err(format!("{kind} in version {version} is not an AdmissionReview in admission.k8s.io/v1"))
            }
        }
    }

    /// Whether what else there is in the namespace matters.
    pub(super) fn needs_around(&self, question: Question) -> bool {
        question == Question::Rule && self.writes()
    }

    fn writes(&self) -> bool {
        ["CREATE", "UPDATE"].contains(&self.request.operation.as_str())
    }

    /// The answer, as an AdmissionReview.
    pub(super) fn answer(&self, question: Question, around: &Around) -> Value {
        if !self.writes() {
            return self.respond(&[], None);
        }
        let Request { object, old_object, .. } = &self.request;
        let old = (!old_object.is_null()).then_some(old_object);
        let faults = match question {
            Question::Device => checks::device(object),
            Question::DeviceModel => checks::device_model(object),
            Question::Rule => checks::rule(object, &around.endpoints, &around.rules),
            Question::RuleEndpoint => checks::endpoint(object),
            Question::UpgradeJob => checks::upgrade_job(object, old),
            Question::UpgradeJobDefaults => return self.respond(&[], upgrade_defaults(object)),
            Question::OfflineMigration => return self.respond(&[], offline_migration(object)),
        };
        self.respond(&faults, None)
    }

    /// An answer for when it cannot be known.
    pub(super) fn unknown(&self, why: &str) -> Value {
        let status =
            json!({ "code": 503, "reason": "ServiceUnavailable", "status": "Failure", "message": why });
        self.wrap(json!({ "uid": self.request.uid, "allowed": false, "status": status }))
    }

    fn respond(&self, faults: &[Fault], patch: Option<Value>) -> Value {
        let mut response = json!({ "uid": self.request.uid, "allowed": faults.is_empty() });
        if !faults.is_empty() {
            let told: Vec<String> =
                faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
            let causes: Vec<Value> = faults
                .iter()
                .map(
                    |fault| json!({ "reason": fault.reason, "field": fault.field, "message": fault.message }),
                )
                .collect();
            response["status"] = json!({
                "code": 422, "reason": "Invalid", "status": "Failure", "message": told.join("; "),
                "details": { "causes": causes },
            });
        }
        if let Some(patch) = patch {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = json!(ByteString(patch.to_string().into_bytes()));
        }
        self.wrap(response)
    }

    fn wrap(&self, response: Value) -> Value {
        json!({ "apiVersion": self.api_version, "kind": self.kind, "response": response })
    }
}

/// One node at a time, and 300 s for each, as KubeEdge has it.
fn upgrade_defaults(job: &Value) -> Option<Value> {
    let spec = job["spec"].as_object()?;
    let mut patch = Vec::new();
    if spec.get("concurrency").is_none_or(|value| value.is_null() || *value == 0) {
        patch.push(json!({ "op": "add", "path": "/spec/concurrency", "value": 1 }));
    }
    if spec.get("timeoutSeconds").is_none_or(Value::is_null) {
        patch.push(json!({ "op": "add", "path": "/spec/timeoutSeconds", "value": 300 }));
    }
    (!patch.is_empty()).then(|| patch.into())
}

/// A pod that is labelled so stays on a node that is unreachable, without end.
fn offline_migration(pod: &Value) -> Option<Value> {
    const TAINT: &str = "node.kubernetes.io/unreachable";
    if pod["metadata"]["labels"]["app-offline.kubeedge.io"] != "autonomy" || !pod["spec"].is_object() {
        return None;
    }
    let had = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let mut tolerations = had.clone();
    tolerations.retain(|toleration| toleration["key"] != TAINT);
    tolerations.push(json!({ "key": TAINT, "operator": "Exists" }));
    (tolerations != had).then(|| json!([{ "op": "add", "path": "/spec/tolerations", "value": tolerations }]))
}
