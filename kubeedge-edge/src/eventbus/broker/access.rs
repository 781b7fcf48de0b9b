//! Who may connect, and which topics each may publish on and subscribe to.

use std::{net::IpAddr, sync::Arc};

use serde::Deserialize;

use super::state::Refusal;
use crate::eventbus::{Secret, topic};

/// Who may use the broker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Those who say a user name and a password.
    pub users: Vec<User>,
    /// What clients of this machine may that say no user name; `None` refuses them.
    pub anonymous: Option<Rights>,
    /// What clients of other machines may that say no user name; `None` refuses them.
    pub anonymous_remote: Option<Rights>,
}

impl Default for Access {
    /// No users; on this machine everybody may everything, from elsewhere everything outside of `$hw`, where the
    /// node's devices are.
    fn default() -> Self {
        let unsystematic = || vec!["#".to_owned()];
        Self {
            users: Vec::new(),
            anonymous: Some(Rights::all()),
            anonymous_remote: Some(Rights { publish: unsystematic(), subscribe: unsystematic() }),
        }
    }
}

/// Somebody with a password.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The user name.
    pub name: String,
    /// The password.
    pub password: Secret,
    /// What the user may; everything unless it is said.
    #[serde(default = "Rights::all")]
    pub rights: Rights,
}

/// Topic filters. `#` does not cover topics that begin with `$`, as in a subscription: `$hw/#` names those of devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rights {
    /// A topic that one of these matches may be published on.
    #[serde(default)]
    pub publish: Vec<String>,
    /// A filter may be subscribed to if one of these covers it whole.
    #[serde(default)]
    pub subscribe: Vec<String>,
}

impl Rights {
    /// Every topic, also those of devices.
    pub fn all() -> Self {
        let all = || ["#", "$hw/#", "$SYS/#"].map(str::to_owned).into();
        Self { publish: all(), subscribe: all() }
    }

    /// Whether this topic may be published on.
    pub(super) fn may_publish(&self, name: &str) -> bool {
        self.publish.iter().any(|filter| topic::matches(filter, name))
    }

    /// Whether this filter may be subscribed to.
    pub(super) fn may_subscribe(&self, wanted: &str) -> bool {
        self.subscribe.iter().any(|filter| topic::covers(filter, wanted))
    }
}

/// Access, ready for use.
#[derive(Debug)]
pub(super) struct Gate {
    users: Vec<(String, Secret, Arc<Rights>)>,
    anonymous: Option<Arc<Rights>>,
    anonymous_remote: Option<Arc<Rights>>,
}

impl Gate {
    pub(super) fn new(access: Access) -> Self {
        let users = access.users.into_iter().map(|user| (user.name, user.password, Arc::new(user.rights)));
        Self {
            users: users.collect(),
            anonymous: access.anonymous.map(Arc::new),
            anonymous_remote: access.anonymous_remote.map(Arc::new),
        }
    }

    /// Lets a client in, or says why not.
    pub(super) fn admit(
        &self,
        user: Option<&str>,
        password: &[u8],
        peer: IpAddr,
    ) -> Result<Arc<Rights>, Refusal> {
        match user {
            // Without users a name means nothing, as it did not in KubeEdge: clients may be configured with one.
            Some(_) if self.users.is_empty() => self.admit_anonymous(peer),
            Some(name) => self
                .users
                .iter()
                .find(|(known, secret, _)| known == name && same(secret.expose().as_bytes(), password))
                .map(|(_, _, rights)| rights.clone())
                .ok_or(Refusal::Credentials),
            None => self.admit_anonymous(peer),
        }
    }

    fn admit_anonymous(&self, peer: IpAddr) -> Result<Arc<Rights>, Refusal> {
        let rights = if peer.to_canonical().is_loopback() { &self.anonymous } else { &self.anonymous_remote };
        rights.clone().ok_or(Refusal::Unauthorized)
    }
}

/// Compares in a time that says nothing about where the two differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn without_users_this_machine_may_everything_and_others_stay_away_from_devices() {
        let gate = Gate::new(Access::default());
        let here = gate.admit(None, b"", HERE).unwrap();
        assert!(here.may_publish("$hw/events/device/default/d/twin/update") && here.may_subscribe("$hw/#"));
        let there = gate.admit(Some("anybody"), b"x", THERE).unwrap();
        assert!(there.may_publish("default/t") && there.may_subscribe("#"));
        assert!(!there.may_publish("$hw/events/device/default/d/twin/update"));
        assert!(!there.may_subscribe("$hw/events/#") && !there.may_subscribe("$hw/+/device"));
    }

    #[test]
    fn a_user_needs_the_right_password_and_has_its_own_rights() {
        let rights = Rights { publish: vec!["a/+".into()], subscribe: vec!["a/#".into()] };
        let ann = User { name: "ann".into(), password: Secret::new("secret"), rights };
        let gate = Gate::new(Access { users: vec![ann], anonymous: None, anonymous_remote: None });
        assert_eq!(gate.admit(None, b"", HERE).unwrap_err(), Refusal::Unauthorized);
        for (user, password) in [("ann", "wrong"), ("ann", ""), ("bob", "secret")] {
            let refused = gate.admit(Some(user), password.as_bytes(), HERE).unwrap_err();
            assert_eq!(refused, Refusal::Credentials);
        }
        let rights = gate.admit(Some("ann"), b"secret", THERE).unwrap();
        assert!(rights.may_publish("a/b") && !rights.may_publish("a/b/c"));
        assert!(
            rights.may_subscribe("a/b/c") && rights.may_subscribe("a/+/c") && rights.may_subscribe("a/#")
        );
        assert!(!rights.may_subscribe("#") && !rights.may_subscribe("+/b"));
    }
}
