//! What Rules and RuleEndpoints say, and which rule is meant. Nothing here waits or writes.

use std::collections::{BTreeMap, BTreeSet};

use kubeedge_core::{
    id::NodeName,
    message::{Object, ObjectRef},
};
use serde::Deserialize;

use super::placed::Placement;
use crate::{
    authorization::{Action, Denial, Nothing, allows},
    controller::Kind,
};

/// From where to where.
pub(super) const RULES: Kind =
    Kind { api_version: "rules.kubeedge.io/v1", kind: "Rule", plural: "rules", optional: true };

/// What rules begin and end at.
pub(super) const ENDPOINTS: Kind = Kind {
    api_version: "rules.kubeedge.io/v1",
    kind: "RuleEndpoint",
    plural: "ruleendpoints",
    optional: true,
};

/// Namespace and name of a Rule or a RuleEndpoint.
pub(super) type Name = (String, String);

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RuleObject {
    spec: RuleSpec,
    #[serde(default)]
    status: Counters,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleSpec {
    source: String,
    source_resource: BTreeMap<String, String>,
    target: String,
    target_resource: BTreeMap<String, String>,
}

/// What became of a rule's messages: its `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Counters {
    pub(super) success_messages: u64,
    pub(super) fail_messages: u64,
    pub(super) errors: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct EndpointObject {
    spec: EndpointSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointSpec {
    rule_endpoint_type: EndpointType,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EndpointType {
    Rest,
    EventBus,
    ServiceBus,
}

/// Where messages of the cloud's applications go on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Downward {
    /// To an MQTT topic.
    Topic(String),
    /// To an HTTP server.
    Service {
        /// Its port on the node's loopback address.
        port: u16,
        /// The path on it, with a slash at its beginning.
        path: String,
    },
}

/// A rule from MQTT on nodes to an HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Up {
    rule: Name,
    /// The topic on the node, `<namespace>/<topic>`; wildcards have their meaning in MQTT.
    topic: Vec<String>,
    /// The node; empty means every node.
    node: String,
    url: String,
}

/// A rule from HTTP to nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Down {
    rule: Name,
    namespace: String,
    /// Its path's parts; `{any}` stands for any one.
    path: Vec<String>,
    target: Downward,
}

/// All that is known, and what it means.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    rules: BTreeMap<Name, (RuleObject, Object)>,
    endpoints: BTreeMap<Name, EndpointSpec>,
    up: Vec<Up>,
    down: Vec<Down>,
    /// What has not been told again since all of its kind began to be.
    untold: BTreeSet<(&'static str, Name)>,
}

/// What a request to the router is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) rule: Name,
    pub(super) node: NodeName,
    pub(super) target: Downward,
}

/// Says why a request is for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRequest {
    #[error("the path must be /<node>/<namespace>/<path of the rule>")]
    Path,
    #[error("no rule of namespace {0} has this path")]
    NoRule(String),
}

impl Rules {
    /// Takes an object as it is. Returns what is wrong with it.
    pub(super) fn apply(&mut self, object: &Object) -> Result<(), String> {
        let name = name(object);
        let kind = if object.reference.kind() == RULES.kind { RULES } else { ENDPOINTS };
        self.untold.remove(&(kind.kind, name.clone()));
        let wrong = |error: serde_json::Error| format!("{}: {error}", object.reference);
        let outcome = if kind == RULES {
            match serde_json::from_slice(&object.json) {
                Ok(rule) => {
                    self.rules.insert(name, (rule, object.clone()));
                    Ok(())
                }
                Err(error) => {
                    self.rules.remove(&name);
                    Err(wrong(error))
                }
            }
        } else {
            match serde_json::from_slice::<EndpointObject>(&object.json) {
                Ok(endpoint) => {
                    self.endpoints.insert(name, endpoint.spec);
                    Ok(())
                }
                Err(error) => {
                    self.endpoints.remove(&name);
                    Err(wrong(error))
                }
            }
        };
        self.resolve();
        outcome
    }

    /// An object is gone.
    pub(super) fn delete(&mut self, object: &Object) {
        let name = name(object);
        if object.reference.kind() == RULES.kind {
            self.rules.remove(&name);
        } else {
            self.endpoints.remove(&name);
        }
        self.resolve();
    }

    /// All objects of a kind are about to be told again. Until [`Rules::finish`] those that are known stay in force.
    pub(super) fn begin(&mut self, kind: Kind) {
        let names: Vec<_> = if kind == RULES {
            self.rules.keys().cloned().collect()
        } else {
            self.endpoints.keys().cloned().collect()
        };
        self.untold.extend(names.into_iter().map(|name| (kind.kind, name)));
    }

    /// All objects of the kind have been told: the others are gone.
    pub(super) fn finish(&mut self, kind: Kind) {
        for (of, name) in std::mem::take(&mut self.untold) {
            if of != kind.kind {
                self.untold.insert((of, name));
            } else if kind == RULES {
                self.rules.remove(&name);
            } else {
                self.endpoints.remove(&name);
            }
        }
        self.resolve();
    }

    /// The counters as the API has them.
    pub(super) fn counters(&self, rule: &Name) -> Option<&Counters> {
        self.rules.get(rule).map(|(rule, _)| &rule.status)
    }

    /// Works out what the objects mean. A rule that cannot be used is left out, and named in the log.
    fn resolve(&mut self) {
        self.up.clear();
        self.down.clear();
        for (name, (rule, _)) in &self.rules {
            if let Err(why) = resolve(name, &rule.spec, &self.endpoints, &mut self.up, &mut self.down) {
                tracing::debug!(namespace = name.0, rule = name.1, why, "the rule has no effect");
            }
        }
    }

    /// The rules for a message of a node, with the URL that each sends it to.
    ///
    /// # Errors
    /// If there are some for its topic, and none of them begins on the node.
    pub(super) fn of_message(&self, node: &NodeName, topic: &str) -> Result<Vec<(Name, String)>, Denial> {
        let levels: Vec<&str> = topic.split('/').collect();
        let (mut meant, mut denied) = (Vec::new(), None);
        for up in self.up.iter().filter(|up| matches(&up.topic, &levels)) {
            let from = Some(up.node.as_str()).filter(|node| !node.is_empty());
            match allows(node, Action::Send { from }, &Nothing) {
                Ok(()) => meant.push((up.rule.clone(), up.url.clone())),
                Err(denial) => denied = Some(denial),
            }
        }
        denied.filter(|_| meant.is_empty()).map_or(Ok(meant), Err)
    }

    /// The Rules that begin on nodes.
    pub(super) fn on_nodes(&self) -> BTreeMap<ObjectRef, Placement> {
        let placed = self.up.iter().filter_map(|up| {
            let (_, object) = self.rules.get(&up.rule)?;
            // A name that no node can have is for none.
            let node = if up.node.is_empty() { None } else { Some(up.node.parse().ok()?) };
            Some((object.reference.clone(), (node, object.clone())))
        });
        placed.collect()
    }

    /// What a request of this path is for: of all rules that fit, the most specific.
    pub(super) fn of_request(&self, path: &str) -> Result<Request, NoRequest> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let (Some(node), Some(namespace)) = (parts.next(), parts.next()) else { return Err(NoRequest::Path) };
        let node = node.parse().map_err(|_| NoRequest::Path)?;
        let rest: Vec<&str> = parts.collect();
        let fits = |down: &&Down| {
            let beginning = rest.iter().zip(&down.path).all(|(part, rule)| rule == part || is_any(rule));
            down.namespace == namespace && rest.len() >= down.path.len() && beginning
        };
        let specific =
            |down: &&Down| (down.path.len(), down.path.iter().filter(|part| !is_any(part)).count());
        let down = self.down.iter().filter(fits).max_by_key(specific);
        let down = down.ok_or_else(|| NoRequest::NoRule(namespace.to_owned()))?;
        let param = rest[down.path.len()..].join("/");
        Ok(Request { rule: down.rule.clone(), node, target: down.target.with(&param) })
    }
}

impl Downward {
    /// With what follows the rule's path in the request at its end.
    fn with(&self, param: &str) -> Self {
        let joined = |text: &str| {
            if param.is_empty() { text.to_owned() } else { format!("{}/{param}", text.trim_end_matches('/')) }
        };
        match self {
            Self::Topic(topic) => Self::Topic(joined(topic)),
            Self::Service { port, path } => Self::Service { port: *port, path: joined(path) },
        }
    }
}

fn name(object: &Object) -> Name {
    (object.reference.namespace().to_owned(), object.reference.name().to_owned())
}

fn is_any(part: &str) -> bool {
    part.starts_with('{') && part.ends_with('}')
}

/// Whether the topic filter matches the topic (MQTT 3.1.1 §4.7).
fn matches(filter: &[String], topic: &[&str]) -> bool {
    let hash = filter.last().is_some_and(|level| level == "#");
    let fixed = filter.len() - usize::from(hash);
    let long_enough = if hash { topic.len() >= fixed } else { topic.len() == fixed };
    long_enough && filter[..fixed].iter().zip(topic).all(|(wanted, level)| wanted == "+" || wanted == level)
}

fn resolve(
    name: &Name,
    spec: &RuleSpec,
    endpoints: &BTreeMap<Name, EndpointSpec>,
    up: &mut Vec<Up>,
    down: &mut Vec<Down>,
) -> Result<(), String> {
    let namespace = &name.0;
    let endpoint = |which: &str| {
        let endpoint = endpoints.get(&(namespace.clone(), which.to_owned()));
        endpoint.ok_or_else(|| format!("there is no RuleEndpoint {which} in its namespace"))
    };
    let key = |map: &BTreeMap<String, String>, key: &str| {
        map.get(key).filter(|value| !value.is_empty()).cloned().ok_or_else(|| format!("it has no {key}"))
    };
    let (source, target) = (endpoint(&spec.source)?, endpoint(&spec.target)?);
    match (source.rule_endpoint_type, target.rule_endpoint_type) {
        (EndpointType::EventBus, EndpointType::Rest) => {
            let topic = format!("{namespace}/{}", key(&spec.source_resource, "topic")?.trim_matches('/'));
            up.push(Up {
                rule: name.clone(),
                topic: topic.split('/').map(str::to_owned).collect(),
                node: spec.source_resource.get("node_name").cloned().unwrap_or_default(),
                url: key(&spec.target_resource, "resource")?,
            });
        }
        (EndpointType::Rest, to @ (EndpointType::EventBus | EndpointType::ServiceBus)) => {
            let path = key(&spec.source_resource, "path")?;
            let parts = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned);
            let target = if to == EndpointType::EventBus {
                Downward::Topic(key(&spec.target_resource, "topic")?)
            } else {
                let port = key(&target.properties, "service_port")?;
                let port = port.parse().map_err(|_| format!("service_port {port:?} is not a port"))?;
                let path = key(&spec.target_resource, "path")?;
                Downward::Service { port, path: format!("/{}", path.trim_start_matches('/')) }
            };
            let (rule, namespace) = (name.clone(), namespace.clone());
            down.push(Down { rule, namespace, path: parts.collect(), target });
        }
        (from, to) => return Err(format!("rules from {from:?} to {to:?} are not carried")),
    }
    Ok(())
}
