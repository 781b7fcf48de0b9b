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
    /// Counts the changes of the twin; it only grows.
    pub(super) version: u64,
    pub(super) timestamp_ms: u64,
    pub(super) source: Source,
}

/// Who wrote a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum Source {
    /// The Device object.
    #[default]
    Cloud,
    /// An application, by MQTT.
    #[serde(alias = "mqtt")]
    Application,
    /// The device's driver.
    Mapper,
}

impl Source {
    /// How the cloud is told.
    fn as_str(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Application => "application",
            Self::Mapper => "mapper",
        }
    }
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
    fn shown(&self) -> Option<ValueShown> {
        self.value.as_deref().map(|value| ValueShown::new(value, self.timestamp_ms))
    }

    fn reported(&self, value_type: &str) -> Option<TwinValue> {
        self.value.clone().map(|value| TwinValue {
            value,
            version: self.version,
            timestamp_ms: self.timestamp_ms,
            metadata: BTreeMap::from([
                ("source".to_owned(), self.source.as_str().to_owned()),
                ("type".to_owned(), value_type.to_owned()),
            ]),
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
        self.newest().max(self.reserved)
    }

    /// Says that it came from the store: counting goes on behind all that an earlier run may have used.
    pub(super) fn restored(mut self) -> Self {
        self.floor = self.floor.max(self.reserved);
        self
    }

    /// Others have seen versions up to `seen`, which no earlier run of this node knows of: counting goes on behind
    /// them. What an application wrote is written again under a newer version, since nobody will repeat it; what a
    /// mapper read will be read again.
    ///
    /// Returns whether the twin has changed.
    pub(super) fn count_on(&mut self, seen: u64) -> bool {
        if seen <= self.newest_of_all() {
            return false;
        }
        (self.floor, self.reserved) = (seen, seen);
        for slot in [&mut self.expected, &mut self.actual, &mut self.observed] {
            if slot.version > 0 && slot.source != Source::Mapper {
                slot.version = seen.saturating_add(1);
            }
        }
        true
    }

    /// Sets the desired value.
    pub(super) fn expect(&mut self, value: Option<String>, now_ms: u64, source: Source) {
        self.expected = Slot { value, version: self.next(), timestamp_ms: now_ms, source };
        self.revive();
    }

    /// Sets what the device has, on an application's word.
    pub(super) fn report(&mut self, value: String, now_ms: u64) {
        let (value, source) = (Some(value), Source::Application);
        self.actual = Slot { value, version: self.next(), timestamp_ms: now_ms, source };
        self.revive();
    }

    /// Takes what a mapper read. Returns whether a value has changed.
    ///
    /// A value from an earlier run counts as another one even if it is the same: newer ones that were not stored
    /// may have been told since.
    pub(super) fn read(&mut self, value: String, observed: Option<String>, read_ms: u64) -> bool {
        let mut changed = self.deleted;
        let floor = self.floor;
        let is_of_this_run = |slot: &Slot| slot.version >= floor;
        if self.actual.value.as_ref() == Some(&value) && is_of_this_run(&self.actual) {
            self.actual.timestamp_ms = read_ms;
        } else {
            self.actual = self.written_by_mapper(Some(value), read_ms);
            changed = true;
        }
        if observed.is_some() && (self.observed.value != observed || !is_of_this_run(&self.observed)) {
            self.observed = self.written_by_mapper(observed, read_ms);
            changed = true;
        }
        self.revive();
        changed
    }

    /// Deletes it, and keeps what is needed to count on.
    pub(super) fn delete(&mut self, now_ms: u64) {
        let version = self.next();
        for slot in [&mut self.expected, &mut self.actual, &mut self.observed] {
            if slot.version > 0 {
                *slot = Slot { value: None, version, timestamp_ms: now_ms, source: Source::Application };
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

    fn written_by_mapper(&self, value: Option<String>, timestamp_ms: u64) -> Slot {
        Slot { value, version: self.next(), timestamp_ms, source: Source::Mapper }
    }

    /// The version of the next write. The three values share one count, since the cloud is told one or the other of
    /// the desired ones under one name.
    fn next(&self) -> u64 {
        self.newest().max(self.floor).saturating_add(1)
    }

    /// The newest version of a value.
    fn newest(&self) -> u64 {
        self.expected.version.max(self.actual.version).max(self.observed.version)
    }

    /// Whether it has come to the end of what was reserved, so that it must be stored before it is told.
    pub(super) fn is_beyond_reserve(&self) -> bool {
        self.newest() > self.reserved
    }

    /// Reserves versions, before it is stored. What applications write is always stored, and needs none; nor does
    /// what comes no more, because the run `ends`.
    pub(super) fn reserve(&mut self, ends: bool) {
        if ends {
            self.reserved = self.newest().max(self.floor);
            return;
        }
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

    /// Whether the device has what is desired.
    pub(super) fn is_as_desired(&self) -> bool {
        self.desired().is_some_and(|desired| self.actual.value.as_deref() == Some(desired))
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
        let by_application = (self.expected.source == Source::Application).then_some(&self.expected);
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
