//! How what was counted comes into a Rule's `status`.

use serde_json::json;

use super::rules::{Counters, Name, RULES};
use crate::controller::{
    Outcome,
    api::{Api, Error, Place},
};

/// Adds what was counted to the rule's status as it is: several clouds count for one rule. A rule that another has written
/// meanwhile is read again at the next attempt. An answer that is lost can make a message count twice.
pub(super) async fn add(api: &Api, rule: &Name, counted: &Counters) -> Outcome {
    match try_add(api, rule, counted).await {
        Ok(()) => Outcome::Done,
        // With the rule its counters are gone.
        Err(error) if error.is_missing() => Outcome::Done,
        Err(error) => error.into(),
    }
}

async fn try_add(api: &Api, rule: &Name, counted: &Counters) -> Result<(), Error> {
    // The resource has no path of its own for its status.
    let place = Place { kind: RULES, namespace: &rule.0, name: &rule.1 };
    let existing = api.value(place).await?;
    let status = &existing["status"];
    let sum = |name: &str, more: u64| status[name].as_u64().unwrap_or_default().saturating_add(more);
    let errors = if counted.errors.is_empty() { status["errors"].clone() } else { json!(counted.errors) };
    let patch = json!({
        "metadata": { "resourceVersion": existing["metadata"]["resourceVersion"] },
        "status": {
            "successMessages": sum("successMessages", counted.success_messages),
            "failMessages": sum("failMessages", counted.fail_messages),
            "errors": errors,
        },
    });
    api.merge(place, "", &patch).await.map(drop)
}
