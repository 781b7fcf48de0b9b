//! Which cloud has which node. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use kubeedge_core::id::NodeName;
use serde_json::Value;

use super::failure::{Failure, Reason};
use crate::controller::lease;

/// How long it is remembered that no other cloud has a node: less than a person notices who waits for the node, and enough
/// that asking for it again and again does not ask the API as often.
const NOBODY_LASTS: Duration = Duration::from_secs(1);

/// Another cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: String,
    pub(super) address: String,
}

/// Reads in a node's Lease which other cloud has the node; this one is called `own`.
pub(super) fn read(lease: &Value, own: &str) -> Result<Owner, Failure> {
    let (name, address) = (lease::owner(lease), lease::address(lease));
    if name.is_empty() || name == own {
        Err(Failure::new(Reason::NotConnected, ""))
    } else if address.is_empty() {
        Err(Failure::new(Reason::NoAddress, name))
    } else {
        Ok(Owner { name: name.to_owned(), address: address.to_owned() })
    }
}

/// What was read of Leases a short time ago.
#[derive(Debug)]
pub(super) struct Owners {
    lasts: Duration,
    max: usize,
    known: BTreeMap<NodeName, (Result<Owner, Failure>, Instant)>,
}

impl Owners {
    pub(super) fn new(lasts: Duration, max: usize) -> Self {
        Self { lasts, max, known: BTreeMap::new() }
    }

    /// What is known of the node, if that is not too old.
    pub(super) fn get(&self, node: &NodeName, now: Instant) -> Option<Result<Owner, Failure>> {
        let (known, until) = self.known.get(node)?;
        (now < *until).then(|| known.clone())
    }

    /// Remembers what was read. With too many nodes, those that are too old are forgotten, and then the newest.
    pub(super) fn note(&mut self, node: &NodeName, read: &Result<Owner, Failure>, now: Instant) {
        let lasts = if read.is_ok() { self.lasts } else { self.lasts.min(NOBODY_LASTS) };
        if self.known.len() >= self.max && !self.known.contains_key(node) {
            self.known.retain(|_, (_, until)| now < *until);
            if self.known.len() >= self.max {
                return;
            }
        }
        self.known.insert(node.clone(), (read.clone(), now + lasts));
    }

    /// The node is not where it was said to be.
    pub(super) fn forget(&mut self, node: &NodeName) {
        self.known.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lease(owner: &str, address: &str) -> Value {
        json!({ "metadata": { "annotations": { lease::OWNER: owner, lease::ADDRESS: address } } })
    }

    fn owner(name: &str) -> Result<Owner, Failure> {
        Ok(Owner { name: name.to_owned(), address: "192.0.2.1:10005".to_owned() })
    }

    #[test]
    fn a_lease_names_another_cloud_or_nobody_who_could_be_asked() {
        assert_eq!(read(&lease("b", "192.0.2.1:10005"), "a"), owner("b"));
        let reason = |lease: &Value| read(lease, "a").unwrap_err().reason;
        assert_eq!(reason(&lease("a", "192.0.2.1:10005")), Reason::NotConnected, "itself is not asked");
        assert_eq!(reason(&lease("", "192.0.2.1:10005")), Reason::NotConnected);
        assert_eq!(reason(&json!({ "spec": {} })), Reason::NotConnected);
        assert_eq!(reason(&lease("b", "")), Reason::NoAddress);
    }

    #[test]
    fn an_owner_is_remembered_for_a_time_and_that_there_is_none_for_a_shorter_one() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let (here, nowhere): (NodeName, NodeName) = ("here".parse().unwrap(), "nowhere".parse().unwrap());
        let mut owners = Owners::new(5 * second, 2);
        owners.note(&here, &owner("b"), start);
        owners.note(&nowhere, &Err(Failure::new(Reason::NotConnected, "")), start);
        assert_eq!(owners.get(&here, start + 4 * second), Some(owner("b")));
        assert!(owners.get(&nowhere, start).is_some() && owners.get(&nowhere, start + second).is_none());
        assert_eq!(owners.get(&here, start + 5 * second), None);
        owners.note(&here, &owner("c"), start + second);
        owners.forget(&here);
        assert_eq!(owners.get(&here, start + second), None);
    }

    #[test]
    fn no_more_are_remembered_than_allowed_however_many_nodes_are_asked_for() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let name = |number: u32| -> NodeName { format!("n{number}").parse().unwrap() };
        let mut owners = Owners::new(5 * second, 10);
        for number in 0..100 {
            owners.note(&name(number), &owner("b"), start);
        }
        assert_eq!(owners.known.len(), 10);
        assert!(owners.get(&name(9), start).is_some() && owners.get(&name(10), start).is_none());
        owners.note(&name(50), &owner("b"), start + 6 * second);
        assert_eq!(owners.known.len(), 1, "what is too old makes room");
    }
}
