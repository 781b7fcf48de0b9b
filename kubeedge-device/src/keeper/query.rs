//! Questions about what is kept.

use kubeedge_core::{device::Sample, id::DeviceId};

/// A question: which values, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Of this device, or of all.
    pub device: Option<DeviceId>,
    /// Of this property, or of all.
    pub property: Option<String>,
    /// Read at this time or later, milliseconds since the Unix epoch.
    pub from_ms: u64,
    /// Read before this time.
    pub to_ms: u64,
    /// How many at most.
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self { device: None, property: None, from_ms: 0, to_ms: u64::MAX, limit: 1_000 }
    }
}

/// A value that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its place among all values: it grows, also across restarts.
    pub sequence: u64,
    /// The value.
    pub sample: Sample,
}

impl Query {
    /// Whether the question is about this value.
    pub(super) fn matches(&self, sample: &Sample) -> bool {
        self.device.as_ref().is_none_or(|device| *device == sample.device)
            && self.property.as_ref().is_none_or(|property| *property == sample.property)
            && (self.from_ms..self.to_ms).contains(&sample.timestamp_ms)
    }
}
