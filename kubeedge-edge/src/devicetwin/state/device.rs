//! A device: what the cloud says of it, its twins, and what follows for mapper and cloud.

use std::{collections::BTreeMap, sync::Arc};

use kubeedge_core::{
    device::DeviceSpec,
    id::{DeviceId, ResourceVersion, Uid},
    message::{DeviceReport, Object},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    super::{
        payload::{DeviceState, Member},
        record::DeviceRecord,
    },
    twin::{Source, Twin},
};

/// A device of the node.
#[derive(Debug, Clone)]
pub(in super::super) struct Device {
    pub(super) record: DeviceRecord,
    pub(super) twins: BTreeMap<String, Twin>,
    /// What the cloud says, once it was heard in this run.
    pub(super) seen: Option<Arc<Seen>>,
    /// The device merged with its model, once both are here and fit.
    pub(super) spec: Option<Arc<DeviceSpec>>,
}

/// A Device object as it was last heard.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) object: Object,
    /// The name of the device's model.
    pub(super) model: String,
    pub(super) properties: BTreeMap<String, Property>,
    /// What people call it.
    pub(super) description: Option<String>,
    /// The newest version of each property that stands in the object's status.
    pub(super) versions: BTreeMap<String, u64>,
}

/// What a Device object says of a property, without its model.
#[derive(Debug, Default)]
pub(super) struct Property {
    pub(super) desired: Option<String>,
    pub(super) report_to_cloud: bool,
}

impl Device {
    pub(super) fn new(uid: Uid, resource_version: ResourceVersion) -> Self {
        Self::restored(DeviceRecord {
            uid,
            resource_version,
            state: None,
            last_online: None,
            description: None,
            forgotten_version: 0,
        })
    }

    pub(super) fn restored(record: DeviceRecord) -> Self {
        Self { record, twins: BTreeMap::new(), seen: None, spec: None }
    }

    /// Whether the cloud's Device object has this property; such a one always has room.
    pub(super) fn is_specified(&self, property: &str) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.properties.contains_key(property))
    }

    /// Checks what an application writes by what the model says of the property. KubeEdge takes an empty value for
    /// any property: there is nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn check(&self, property: &str, value: &str) -> Result<(), String> {
        let described = self.spec.as_ref().and_then(|spec| spec.property(property));
        described.filter(|_| !value.is_empty()).map_or(Ok(()), |described| described.check(value))
    }

    /// What a mapper should run: the merged device with the desired values of now, wherever they came from.
    pub(super) fn assignment(&self) -> Option<DeviceSpec> {
        let mut spec = DeviceSpec::clone(self.spec.as_ref()?);
        for property in &mut spec.properties {
            let twin = self.twins.get(&property.name);
            property.desired = twin.and_then(Twin::desired).map(str::to_owned);
        }
        Some(spec)
    }

    /// What the cloud is told; nothing before the cloud's Device object was heard, which says what may be told.
    pub(super) fn report(&self, id: &DeviceId) -> Option<DeviceReport> {
        let seen = self.seen.as_ref()?;
        let twins: Vec<_> = self
            .twins
            .iter()
            .filter(|(name, twin)| is_reported(seen, name, twin))
            .filter_map(|(name, twin)| twin.to_report(name))
            .collect();
        (!twins.is_empty() || self.record.state.is_some()).then(|| DeviceReport {
            device: id.clone(),
            uid: self.record.uid.clone(),
            twins,
            state: self.record.state.clone(),
            last_online: self.record.last_online.clone(),
        })
    }

    /// How applications see it among the node's devices.
    pub(super) fn member(&self, id: &DeviceId) -> Member {
        Member {
            id: id.to_string(),
            name: id.name().to_owned(),
            description: self.record.description.clone(),
            state: self.record.state.clone(),
            last_online: self.record.last_online.clone(),
        }
    }

    /// How applications see its connection.
    pub(super) fn state(&self, id: &DeviceId) -> DeviceState {
        DeviceState {
            name: id.name().to_owned(),
            state: self.record.state.clone().unwrap_or_default(),
            last_online: self.record.last_online.clone(),
        }
    }
}

/// Whether a twin goes to the cloud: `reportToCloud` decides on what a mapper reads. What an application writes
/// goes, as KubeEdge has it.
fn is_reported(seen: &Seen, name: &str, twin: &Twin) -> bool {
    twin.actual.source == Source::Application
        || seen.properties.get(name).is_none_or(|property| property.report_to_cloud)
}

// The parts of a Device that matter without its model.

#[derive(Deserialize)]
struct DeviceJson {
    #[serde(default)]
    metadata: MetadataJson,
    #[serde(default)]
    spec: Option<SpecJson>,
    /// Whatever is in it: others write it too.
    #[serde(default)]
    status: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetadataJson {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SpecJson {
    device_model_ref: Option<ModelRefJson>,
    properties: Option<Vec<PropertyJson>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelRefJson {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PropertyJson {
    name: String,
    desired: Option<DesiredJson>,
    report_to_cloud: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DesiredJson {
    value: Option<String>,
}

/// The longest name of a property in bytes; it has to fit in a key of the store.
const NAME_LIMIT: usize = 128;

impl Seen {
    /// Reads a Device object.
    ///
    /// # Errors
    /// If it is no Device.
    pub(super) fn read(object: &Object) -> Result<Self, serde_json::Error> {
        let device: DeviceJson = serde_json::from_slice(&object.json)?;
        let spec = device.spec.unwrap_or_default();
        let mut properties = BTreeMap::new();
        for property in spec.properties.unwrap_or_default() {
            if property.name.is_empty() || property.name.len() > NAME_LIMIT {
                tracing::warn!(device = %object.reference, "a property without a name, or with one above {NAME_LIMIT} bytes, has no twin");
                continue;
            }
            let desired =
                property.desired.and_then(|desired| desired.value).filter(|value| !value.is_empty());
            properties.insert(property.name, Property { desired, report_to_cloud: property.report_to_cloud });
        }
        let model = spec.device_model_ref.unwrap_or_default().name;
        let description = device.metadata.labels.and_then(|mut labels| labels.remove("description"));
        let versions = versions(&device.status);
        Ok(Self { object: object.clone(), model, properties, description, versions })
    }
}

/// A version above this is no count of writes.
const VERSION_LIMIT: u64 = 1 << 62;

/// Reads the newest version of each property out of a Device's status.
fn versions(status: &Value) -> BTreeMap<String, u64> {
    let mut versions = BTreeMap::new();
    for twin in status["twins"].as_array().into_iter().flatten() {
        let Some(property) = twin["propertyName"].as_str() else { continue };
        let of = |part: &str| twin[part]["metadata"]["version"].as_str()?.parse::<u64>().ok();
        let newest = [of("reported"), of("observedDesired")].into_iter().flatten().max();
        if let Some(newest) = newest.filter(|newest| *newest < VERSION_LIMIT) {
            versions.insert(property.to_owned(), newest);
        }
    }
    versions
}
