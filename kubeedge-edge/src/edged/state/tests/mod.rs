//! Stories of pods in virtual time.

mod adoption;
mod asked;
mod devices;
mod ending;
mod preemption;
mod probes;
mod resizing;
mod runtime;
mod simulation;
mod starting;
mod statuses;
mod trace;
mod world;

use serde_json::{Value, json};

use self::world::World;
use super::*;

/// A pod of one container.
fn app(extra: Value) -> Value {
    let mut container = json!({ "name": "app", "image": "app:1" });
    for (key, value) in extra.as_object().cloned().unwrap_or_default() {
        container[key] = value;
    }
    json!({ "containers": [container] })
}

/// A container with members besides.
fn container(name: &str, extra: Value) -> Value {
    let mut spec = app(extra)["containers"][0].take();
    spec["name"] = json!(name);
    spec
}

const SECOND: Duration = Duration::from_secs(1);
