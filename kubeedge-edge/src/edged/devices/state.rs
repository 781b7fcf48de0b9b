//! Which devices there are, and whose they are. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kubeedge_core::{device_plugin::proto, id::Uid};
use serde::{Deserialize, Serialize};

use super::{Grant, Inventory, Limits, Stock, Wanted};

/// How long a plugin that is gone is waited for. 5 min, as the kubelet: then its resource has no devices.
const GRACE: Duration = Duration::from_secs(300);

/// How soon a plugin that is gone is dialled again.
const DIAL_AGAIN: Duration = Duration::from_secs(2);

/// What is known of plugins, and which container has what.
#[derive(Debug)]
pub(super) struct State {
    limits: Limits,
    resources: BTreeMap<String, Resource>,
    held: BTreeMap<Uid, OfPod>,
    serial: u64,
}

/// What the containers of a pod have: by container, then by resource.
pub(super) type OfPod = BTreeMap<String, BTreeMap<String, Held>>;

/// Devices that a container has, and what it gets with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) ids: BTreeSet<String>,
    #[serde(with = "super::record::grant")]
    pub(super) grant: Grant,
    /// Whether an init container has them, which later containers of the pod may have too.
    #[serde(default)]
    pub(super) passed_on: bool,
}

/// How a plugin is reached, and what it wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plugin {
    /// The name of its socket in the folder.
    pub(super) endpoint: String,
    pub(super) pre_start: bool,
    pub(super) preferred: bool,
}

#[derive(Debug)]
struct Resource {
    plugin: Plugin,
    /// Tells the present connection from earlier ones, of which something may still be heard.
    serial: u64,
    /// Whether each device is healthy.
    devices: BTreeMap<String, bool>,
    /// Since when nobody serves it, and when it is dialled again.
    gone: Option<(Instant, Instant)>,
}

/// Devices of which some are to be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) count: usize,
    /// Those that have to be among them.
    pub(super) must: BTreeSet<String>,
    /// All that may be chosen.
    pub(super) free: BTreeSet<String>,
    /// Whether the plugin wants to be asked which.
    pub(super) ask: bool,
}

/// A connection to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) resource: String,
    pub(super) endpoint: String,
    pub(super) serial: u64,
}

impl State {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, resources: BTreeMap::new(), held: BTreeMap::new(), serial: 0 }
    }

    /// Takes what an earlier process knew. Its plugins count as gone until they answer.
    pub(super) fn restore(
        &mut self,
        plugins: BTreeMap<String, Plugin>,
        held: BTreeMap<Uid, OfPod>,
        now: Instant,
    ) {
        self.held = held;
        for (name, plugin) in plugins {
            let gone = Some((now, now));
            self.resources.insert(name, Resource { plugin, serial: 0, devices: BTreeMap::new(), gone });
        }
    }

    /// Takes the registration of a plugin, which replaces an earlier one of the same resource.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn handle_registration(
        &mut self,
        request: &proto::RegisterRequest,
    ) -> Result<(Dial, Plugin), String> {
        if request.version != "v1beta1" {
            return Err(format!("version {:?} is not v1beta1, which is spoken here", request.version));
        }
        let name = &request.resource_name;
        check_name(name).map_err(|why| format!("resource name {name:?}: {why}"))?;
        let endpoint = request.endpoint.as_str();
        let plain = !endpoint.is_empty() && endpoint.len() <= 255 && !endpoint.contains(['/', '\0']);
        if !plain || endpoint.starts_with('.') || endpoint == "kubelet.sock" {
            return Err(format!(
                "endpoint {endpoint:?} is not the name of a socket in the folder of kubelet.sock"
            ));
        }
        if !self.resources.contains_key(name) && self.resources.len() >= self.limits.resources {
            return Err(format!("there are {} resources already", self.resources.len()));
        }
        let options = request.options.unwrap_or_default();
        let plugin = Plugin {
            endpoint: endpoint.to_owned(),
            pre_start: options.pre_start_required,
            preferred: options.get_preferred_allocation_available,
        };
        self.serial += 1;
        let serial = self.serial;
        let resource = self.resources.entry(name.clone()).or_insert_with(|| Resource {
            plugin: Plugin::default(),
            serial,
            devices: BTreeMap::new(),
            gone: None,
        });
        (resource.plugin, resource.serial, resource.gone) = (plugin.clone(), serial, None);
        Ok((Dial { resource: name.clone(), endpoint: endpoint.to_owned(), serial }, plugin))
    }

    /// Takes all devices of a plugin.
    ///
    /// # Errors
    /// If they are more than the limits allow; then nothing has changed.
    pub(super) fn handle_list(&mut self, dial: &Dial, devices: &[proto::Device]) -> Result<(), String> {
        let limits = &self.limits;
        let Some(resource) = self.resources.get_mut(&dial.resource).filter(|it| it.serial == dial.serial)
        else {
            return Ok(());
        };
        if devices.len() > limits.devices {
            return Err(format!("it lists {} devices, and {} may be", devices.len(), limits.devices));
        }
        if let Some(device) = devices.iter().find(|it| it.id.is_empty() || it.id.len() > limits.id_bytes) {
            return Err(format!("the id of a device has {} bytes", device.id.len()));
        }
        resource.devices = devices.iter().map(|it| (it.id.clone(), it.health == "Healthy")).collect();
        resource.gone = None;
        Ok(())
    }

    /// Takes that a connection has ended: nobody looks after the devices. Returns whether it was the present one.
    pub(super) fn handle_gone(&mut self, dial: &Dial, now: Instant) -> bool {
        let Some(resource) = self.resources.get_mut(&dial.resource).filter(|it| it.serial == dial.serial)
        else {
            return false;
        };
        resource.devices.values_mut().for_each(|healthy| *healthy = false);
        let since = resource.gone.map_or(now, |(since, _)| since);
        resource.gone = Some((since, now + DIAL_AGAIN));
        true
    }

    /// The plugins that are to be dialled again. Those that were gone for too long have no devices any more.
    pub(super) fn poll_dials(&mut self, now: Instant) -> Vec<Dial> {
        let mut dials = Vec::new();
        for (name, resource) in &mut self.resources {
            let Some((since, again)) = resource.gone else { continue };
            if now >= since + GRACE {
                resource.devices.clear();
            } else if now >= again {
                self.serial += 1;
                resource.serial = self.serial;
                // Until it is heard how that ended.
                resource.gone = Some((since, since + GRACE));
                let endpoint = resource.plugin.endpoint.clone();
                dials.push(Dial { resource: name.clone(), endpoint, serial: self.serial });
            }
        }
        dials
    }

    /// When [`Self::poll_dials`] has something to do.
    pub(super) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let waits = self.resources.values().filter_map(|resource| resource.gone);
        waits.map(|(since, again)| again.min(since + GRACE)).filter(|at| *at > now).min()
    }

    pub(super) fn inventory(&self) -> Inventory {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let stock = |resource: &Resource| Stock {
            all: count(resource.devices.len()),
            healthy: count(resource.devices.values().filter(|healthy| **healthy).count()),
        };
        self.resources.iter().map(|(name, resource)| (name.clone(), stock(resource))).collect()
    }

    /// Frees what pods had that are not among the active ones. Returns who they were.
    pub(super) fn keep_only(&mut self, active: &BTreeSet<Uid>) -> Vec<Uid> {
        let ended: Vec<Uid> = self.held.keys().filter(|uid| !active.contains(*uid)).cloned().collect();
        ended.iter().for_each(|uid| drop(self.held.remove(uid)));
        ended
    }

    /// The devices from which to choose for a container; `None` if it has them already.
    ///
    /// # Errors
    /// If there are too few, in the kubelet's words.
    pub(super) fn choose(
        &self,
        uid: &Uid,
        wanted: &Wanted,
        name: &str,
        count: u32,
    ) -> Result<Option<Choice>, String> {
        let of_pod = self.held.get(uid);
        if of_pod.and_then(|pod| pod.get(&wanted.container)?.get(name)).is_some() {
            return Ok(None);
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let resource = self.resources.get(name);
        let resource = resource.ok_or_else(|| format!("cannot allocate unregistered device {name}"))?;
        let healthy: BTreeSet<&String> =
            resource.devices.iter().filter(|(_, healthy)| **healthy).map(|(id, _)| id).collect();
        if healthy.is_empty() && count > 0 {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {name}"));
        }
        let passed_on = of_pod.into_iter().flat_map(BTreeMap::values).filter_map(|all| all.get(name));
        let passed_on = passed_on.filter(|held| held.passed_on).flat_map(|held| &held.ids);
        let passed_on: BTreeSet<&String> = passed_on.filter(|id| healthy.contains(id)).collect();
        let all = self.held.values().flat_map(BTreeMap::values).filter_map(|all| all.get(name));
        let used: BTreeSet<&String> = all.flat_map(|held| &held.ids).collect();
        let free = healthy.into_iter().filter(|id| passed_on.contains(id) || !used.contains(id));
        let free: BTreeSet<String> = free.cloned().collect();
        if free.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {name}. Requested: {count}, Available: {}",
                free.len()
            ));
        }
        let must: BTreeSet<String> = passed_on.into_iter().take(count).cloned().collect();
        Ok(Some(Choice { count, must, ask: resource.plugin.preferred && free.len() > count, free }))
    }

    /// Notes what a container has.
    pub(super) fn hold(
        &mut self,
        uid: &Uid,
        wanted: &Wanted,
        name: &str,
        ids: BTreeSet<String>,
        grant: Grant,
    ) {
        let held = Held { ids, grant, passed_on: wanted.ends_before_others };
        let of_pod = self.held.entry(uid.clone()).or_default();
        of_pod.entry(wanted.container.clone()).or_default().insert(name.to_owned(), held);
    }

    /// What the containers of a pod have.
    pub(super) fn of_pod(&self, uid: &Uid) -> Option<&OfPod> {
        self.held.get(uid)
    }

    /// What a container has of each resource that it wants; `None` if it lacks one.
    pub(super) fn of_container(&self, uid: &Uid, wanted: &Wanted) -> Option<Vec<(String, Held)>> {
        let held = |name: &String| {
            let held = self.held.get(uid)?.get(&wanted.container)?.get(name)?;
            Some((name.clone(), held.clone()))
        };
        wanted.counts.keys().map(held).collect()
    }

    /// Whether the plugin of a resource wants to prepare devices before a container starts.
    pub(super) fn wants_pre_start(&self, name: &str) -> bool {
        self.resources.get(name).is_some_and(|resource| resource.plugin.pre_start)
    }
}

impl Choice {
    /// The devices, if `preferred` is not a possible answer: those that have to be among them, then in order.
    pub(super) fn made(self, preferred: Option<BTreeSet<String>>) -> BTreeSet<String> {
        let possible = |ids: &BTreeSet<String>| {
            ids.len() == self.count && ids.is_subset(&self.free) && self.must.is_subset(ids)
        };
        if let Some(ids) = preferred.filter(possible) {
            return ids;
        }
        let rest: Vec<String> = self.free.difference(&self.must).cloned().collect();
        let (must, count) = (self.must, self.count);
        must.into_iter().chain(rest).take(count).collect()
    }
}

/// The name of an extended resource, by Kubernetes' rules: a domain that is not its own, and a name.
fn check_name(name: &str) -> Result<(), &'static str> {
    let (domain, rest) = name.split_once('/').ok_or("it has no domain, as in example.com/camera")?;
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    let plain = |text: &str, most: usize, also: &[char]| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        ends(text.chars().next())
            && ends(text.chars().next_back())
            && text.len() <= most
            && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(&c))
    };
    if own || domain.starts_with("requests.") {
        return Err("the domain is Kubernetes' own");
    }
    if !plain(domain, 253, &['-', '.']) || !plain(rest, 63, &['-', '_', '.']) {
        return Err("it is not a name that Kubernetes takes");
    }
    Ok(())
}
