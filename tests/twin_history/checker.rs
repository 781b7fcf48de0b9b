//! The model: what each property should be, and what was ever told of it.

use std::collections::{BTreeMap, BTreeSet};

use kubeedge_core::{
    id::{DeviceId, Uid},
    message::{DeviceReport, TwinValue},
};

/// One of a property's two values.
pub(crate) type Slot = (DeviceId, String, Side);

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Expected,
    Actual,
}

/// What a value may be, by the writes that were accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Accepted {
    /// The last write that is durable.
    durable: Option<String>,
    /// It was the cloud's.
    by_cloud: bool,
    /// What mappers read since, in order: the last of them is the value, and a power cut may take any of the last.
    read: Vec<String>,
}

/// A value as somebody was told: whose, which, and the version it has.
type Named = (DeviceId, Uid, String, &'static str, u64);

/// The model.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    accepted: BTreeMap<Slot, Accepted>,
    named: BTreeMap<Named, String>,
    newest: BTreeMap<(DeviceId, Uid, String, &'static str), u64>,
    unanswered: BTreeSet<String>,
}

impl Checker {
    /// A durable write of an application was accepted.
    pub(crate) fn write(&mut self, slot: Slot, durable: Option<String>) {
        self.accepted.insert(slot, Accepted { durable, ..Accepted::default() });
    }

    /// The cloud desires something else than before. It takes back only what it gave.
    pub(crate) fn desire(&mut self, slot: Slot, durable: Option<String>) {
        let accepted = self.accepted.entry(slot).or_default();
        if accepted.durable != durable && (durable.is_some() || accepted.by_cloud) {
            *accepted = Accepted { durable, by_cloud: true, read: Vec::new() };
        }
    }

    /// A mapper's value was taken, which need not survive.
    pub(crate) fn read(&mut self, slot: Slot, value: &str) {
        self.accepted.entry(slot).or_default().read.push(value.to_owned());
    }

    /// The device is gone, with all that was said of it.
    pub(crate) fn forget(&mut self, device: &DeviceId) {
        self.accepted.retain(|(of, _, _), _| of != device);
    }

    /// The edge shows this value now.
    pub(crate) fn check_shown(&self, slot: &Slot, shown: Option<&str>) {
        let accepted = self.accepted.get(slot).cloned().unwrap_or_default();
        let wanted = accepted.read.last().or(accepted.durable.as_ref());
        assert_eq!(shown, wanted.map(String::as_str), "{slot:?} is not what was accepted last: {accepted:?}");
    }

    /// The edge shows this value after a power cut.
    pub(crate) fn check_restored(&mut self, slot: &Slot, shown: Option<&str>) {
        let Some(accepted) = self.accepted.get_mut(slot) else {
            return assert_eq!(shown, None, "{slot:?} was never accepted");
        };
        let kept = accepted.durable.as_deref() == shown
            || accepted.read.iter().any(|read| Some(read.as_str()) == shown);
        assert!(kept, "{slot:?} is {shown:?} after a power cut, of {accepted:?}");
        // It is from the store, so from here on it stays.
        accepted.durable = shown.map(str::to_owned);
        accepted.read.clear();
    }

    /// An application waits for the result of this event.
    pub(crate) fn ask(&mut self, event: String) {
        assert!(self.unanswered.insert(event), "an event happens once");
    }

    /// The result of an event came.
    pub(crate) fn answer(&mut self, event: &str) {
        assert!(self.unanswered.remove(event), "{event:?} was answered twice, or never asked");
    }

    /// Everything was answered that was not lost with the edge's power.
    pub(crate) fn check_answered(&mut self, power_was_cut: bool) {
        if power_was_cut {
            self.unanswered.clear();
        }
        assert!(self.unanswered.is_empty(), "not answered: {:?}", self.unanswered);
    }

    /// The edge reports: a version names one value, for ever.
    pub(crate) fn check_report(&mut self, report: &DeviceReport) {
        for (property, name, value) in values(report) {
            let key = (report.device.clone(), report.uid.clone(), property.to_owned(), name, value.version);
            let known = self.named.entry(key).or_insert_with(|| value.value.clone());
            assert_eq!(*known, value.value, "{} {property} {name} {}", report.device, value.version);
        }
    }

    /// The API has a status: versions only grow.
    pub(crate) fn check_status(&mut self, status: &DeviceReport) {
        for (property, name, value) in values(status) {
            let key = (status.device.clone(), status.uid.clone(), property.to_owned(), name);
            let newest = self.newest.entry(key).or_default();
            assert!(
                value.version >= *newest,
                "{} {property} {name}: {value:?} after {newest}",
                status.device
            );
            *newest = value.version;
        }
        self.check_report(status);
    }
}

fn values(report: &DeviceReport) -> impl Iterator<Item = (&str, &'static str, &TwinValue)> {
    report.twins.iter().flat_map(|twin| {
        let both = [("reported", &twin.reported), ("observedDesired", &twin.observed_desired)];
        both.into_iter().filter_map(|(name, value)| Some((twin.property.as_str(), name, value.as_ref()?)))
    })
}
