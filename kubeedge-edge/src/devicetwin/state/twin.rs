//! One property: what is desired of it, and what it has.

use std::collections::BTreeMap;

use kubeedge_core::message::{TwinReport, TwinValue};
use serde::{Deserialize, Serialize};

use super::super::{
    VERSIONS_RESERVED,
    payload::{BeforeAndAfter, TwinShown, TypeMetadata, ValueShown},
};

/// The type of a twin unless an application says otherwise, as KubeEdge has it.
pub(super) const DEFAULT_TYPE: &str = "string";

/// The twin of a property. This is also the form in which it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Twin {
    /// What the property should have.
    pub(super) expected: Slot,
    /// What the device has.
    pub(super) actual: Slot,
    /// The desired value that the device's driver has seen.
    pub(super) observed: Slot,
    /// The cloud's desired value that was last taken over: the same one again changes nothing, so that a replay
    /// does not take back what an application wrote meanwhile.
    pub(super) cloud: Option<String>,
    /// Whether applications may delete it.
    pub(super) optional: bool,
    /// The type that values have to have.
    pub(super) value_type: String,
    /// It was deleted; it stays, so that its versions go on.
    pub(super) deleted: bool,
    /// Versions up to this one may be in use without being stored.
    pub(super) reserved: u64,
    /// Versions up to this one may have been used by an earlier run.
    #[serde(skip)]
    floor: u64,
}

/// A value with its history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Slot {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<String>,
    /// Counts the changes; it only grows.
    pub(super) version: u64,
    pub(super) timestamp_ms: u64,
    pub(super) source: Source,
}

/// Who wrote a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum Source {
    #[default]
    Cloud,
    Mqtt,
    Mapper,
}

impl Default for Twin {
    fn default() -> Self {
        Self {
            expected: Slot::default(),
            actual: Slot::default(),
            observed: Slot::default(),
            cloud: None,
            optional: true,
            value_type: DEFAULT_TYPE.to_owned(),
            deleted: false,
            reserved: 0,
            floor: 0,
        }
    }
}

impl Slot {
    fn write(&mut self, value: Option<String>, floor: u64, timestamp_ms: u64, source: Source) {
        let version = self.version.max(floor).saturating_add(1);
        *self = Self { value, version, timestamp_ms, source };
    }

    fn shown(&self) -> Option<ValueShown> {
        self.value.as_deref().map(|value| ValueShown::new(value, self.timestamp_ms))
    }

    fn reported(&self, value_type: &str) -> Option<TwinValue> {
        self.value.clone().map(|value| TwinValue {
            value,
            version: self.version,
            timestamp_ms: self.timestamp_ms,
            metadata: BTreeMap::from([("type".to_owned(), value_type.to_owned())]),
        })
    }
}

impl Twin {
    /// One that counts on behind `floor`.
    pub(super) fn after(floor: u64) -> Self {
        Self { floor, reserved: floor, ..Self::default() }
    }

    /// The newest version that was ever used.
    pub(super) fn newest_of_all(&self) -> u64 {
        self.expected.version.max(self.newest()).max(self.reserved)
    }

    /// Says that it came from the store: counting goes on behind all that an earlier run may have used.
    pub(super) fn restored(mut self) -> Self {
        self.floor = self.reserved;
        self
    }

    /// Sets the desired value.
    pub(super) fn expect(&mut self, value: Option<String>, now_ms: u64, source: Source) {
        self.expected.write(value, self.floor, now_ms, source);
        self.revive();
    }

    /// Sets what the device has, on an application's word.
    pub(super) fn report(&mut self, value: String, now_ms: u64) {
        self.actual.write(Some(value), self.floor, now_ms, Source::Mqtt);
        self.revive();
    }

    /// Takes what a mapper read. Returns whether a value has changed.
    pub(super) fn read(&mut self, value: String, observed: Option<String>, read_ms: u64) -> bool {
        let mut changed = self.deleted;
        if self.actual.value.as_ref() == Some(&value) {
            self.actual.timestamp_ms = read_ms;
        } else {
            self.actual.write(Some(value), self.floor, read_ms, Source::Mapper);
            changed = true;
        }
        if observed.is_some() && self.observed.value != observed {
            self.observed.write(observed, self.floor, read_ms, Source::Mapper);
            changed = true;
        }
        self.revive();
        changed
    }

    /// Deletes it, and keeps what is needed to count on.
    pub(super) fn delete(&mut self, now_ms: u64) {
        for slot in [&mut self.expected, &mut self.actual, &mut self.observed] {
            if slot.version > 0 {
                slot.write(None, self.floor, now_ms, Source::Mqtt);
            }
        }
        self.deleted = true;
    }

    fn revive(&mut self) {
        if self.deleted {
            self.deleted = false;
            self.value_type = DEFAULT_TYPE.to_owned();
        }
    }

    /// Begins it, or begins it again, with a type.
    pub(super) fn begin(&mut self, value_type: String) {
        self.deleted = false;
        self.value_type = value_type;
    }

    /// The newest version that something a mapper read may have.
    fn newest(&self) -> u64 {
        self.actual.version.max(self.observed.version)
    }

    /// Whether it has come to the end of what was reserved, so that it must be stored before it is told.
    pub(super) fn is_beyond_reserve(&self) -> bool {
        self.newest() > self.reserved
    }

    /// Reserves versions, before it is stored. What applications write is always stored, and needs none.
    pub(super) fn reserve(&mut self) {
        let mapped = [&self.actual, &self.observed].into_iter().any(|slot| slot.source == Source::Mapper);
        let ahead = if mapped { VERSIONS_RESERVED } else { 0 };
        self.reserved = self.reserved.max(self.newest().saturating_add(ahead));
    }

    /// How applications see it; `None` once it is deleted.
    pub(super) fn shown(&self) -> Option<TwinShown> {
        (!self.deleted).then(|| self.shown_parts(true, true))
    }

    /// How applications see some of its parts.
    pub(super) fn shown_parts(&self, expected: bool, actual: bool) -> TwinShown {
        TwinShown {
            expected: self.expected.shown().filter(|_| expected),
            actual: self.actual.shown().filter(|_| actual),
            optional: self.optional,
            metadata: TypeMetadata { r#type: self.value_type.clone() },
        }
    }

    /// The desired value, if there is one that is not empty.
    pub(super) fn desired(&self) -> Option<&str> {
        self.expected.value.as_deref().filter(|value| !value.is_empty() && !self.deleted)
    }

    /// The desired value, if the device has another one.
    pub(super) fn delta(&self) -> Option<&str> {
        self.desired().filter(|desired| self.actual.value.as_deref() != Some(desired))
    }

    /// What the cloud is told, if there is something to tell.
    ///
    /// An application's desired value counts as seen by the driver: for a device without a mapper, the
    /// application is the driver.
    pub(super) fn to_report(&self, property: &str) -> Option<TwinReport> {
        if self.deleted {
            return None;
        }
        let by_application = (self.expected.source == Source::Mqtt).then_some(&self.expected);
        let observed = self.observed.reported(&self.value_type);
        let report = TwinReport {
            property: property.to_owned(),
            reported: self.actual.reported(&self.value_type),
            observed_desired: observed.or_else(|| by_application?.reported(&self.value_type)),
        };
        (report.reported.is_some() || report.observed_desired.is_some()).then_some(report)
    }
}

/// A twin before and after a change, as applications see it.
pub(super) fn before_and_after(last: Option<TwinShown>, twin: &Twin) -> BeforeAndAfter {
    BeforeAndAfter { last, current: twin.shown() }
}
