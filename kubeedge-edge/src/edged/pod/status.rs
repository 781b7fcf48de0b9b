//! What the API had of a Pod's status: where times and a final phase come from after a restart.

members! {
    OldStatus {
        phase: String,
        start_time: Option<String>,
        conditions: Vec<OldCondition>,
    }
    OldCondition {
        #[serde(rename = "type")]
        kind: String,
        status: String,
        last_transition_time: Option<String>,
    }
}
