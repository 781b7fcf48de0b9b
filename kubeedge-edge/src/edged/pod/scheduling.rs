//! What a Pod asks of the node that it runs on, and how important it is.

members! {
    Affinity {
        node_affinity: Option<NodeAffinity>,
    }
    NodeAffinity {
        #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
        required: Option<NodeSelector>,
    }
    NodeSelector {
        node_selector_terms: Vec<NodeSelectorTerm>,
    }
    NodeSelectorTerm {
        match_expressions: Vec<Requirement>,
        match_fields: Vec<Requirement>,
    }
    /// A condition on a label or a field of the node.
    Requirement {
        key: String,
        operator: String,
        values: Vec<String>,
    }
    Toleration {
        key: String,
        operator: String,
        value: String,
        effect: String,
    }
    PodOs {
        name: String,
    }
}
