//! Thresholds, as the kubelet's configuration has them.

use std::{fmt, str::FromStr, time::Duration};

use serde::Deserialize;

use super::Pressure;
use crate::edged::quantity::Quantity;

/// What is measured; the more urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`, in bytes.
    Memory,
    /// `nodefs.available`, in bytes: the file system with the volumes and logs of pods.
    NodeDisk,
    /// `nodefs.inodesFree`.
    NodeInodes,
    /// `imagefs.available`, in bytes: the file system with the images and what containers write into theirs.
    ImageDisk,
    /// `imagefs.inodesFree`.
    ImageInodes,
    /// `pid.available`.
    Pids,
}

impl Signal {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Memory, "memory.available"),
        (Self::NodeDisk, "nodefs.available"),
        (Self::NodeInodes, "nodefs.inodesFree"),
        (Self::ImageDisk, "imagefs.available"),
        (Self::ImageInodes, "imagefs.inodesFree"),
        (Self::Pids, "pid.available"),
    ];

    pub(crate) fn pressure(self) -> Pressure {
        match self {
            Self::Memory => Pressure::Memory,
            Self::NodeDisk | Self::NodeInodes | Self::ImageDisk | Self::ImageInodes => Pressure::Disk,
            Self::Pids => Pressure::Pids,
        }
    }

    /// The resource that pods are asked to give back, in the kubelet's words.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::NodeDisk | Self::ImageDisk => "ephemeral-storage",
            Self::NodeInodes | Self::ImageInodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// Whether it is about a file system.
    pub(crate) fn is_disk(self) -> bool {
        self.pressure() == Pressure::Disk
    }

    /// Whether it is counted in bytes.
    pub(crate) fn is_bytes(self) -> bool {
        matches!(self, Self::Memory | Self::NodeDisk | Self::ImageDisk)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(signal, _)| signal == self).map_or("", |(_, name)| *name);
        f.write_str(name)
    }
}

/// Says why a text is no signal or no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct InvalidThreshold {
    text: String,
    expected: &'static str,
}

impl FromStr for Signal {
    type Err = InvalidThreshold;

    fn from_str(text: &str) -> Result<Self, InvalidThreshold> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(signal, _)| *signal).ok_or_else(|| {
            let expected = "memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, \
                            imagefs.inodesFree or pid.available";
            InvalidThreshold { text: text.to_owned(), expected }
        })
    }
}

/// An amount, or a part of what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Bytes, inodes or processes.
    Units(i64),
    /// Hundredths of a percent of the capacity.
    Share(u32),
}

impl Amount {
    /// How much that is of `capacity`.
    pub fn of(self, capacity: i64) -> i64 {
        match self {
            Self::Units(units) => units,
            Self::Share(share) => {
                i64::try_from(i128::from(capacity) * i128::from(share) / 10_000).unwrap_or(i64::MAX)
            }
        }
    }
}

impl FromStr for Amount {
    type Err = InvalidThreshold;

    fn from_str(text: &str) -> Result<Self, InvalidThreshold> {
        let wrong = || InvalidThreshold { text: text.to_owned(), expected: "an amount such as 100Mi or 10%" };
        let (number, hundred) = match text.strip_suffix('%') {
            Some(number) => (number, true),
            None => (text, false),
        };
        let amount = Quantity::parse(number).filter(|amount| amount.milli() >= 0).ok_or_else(wrong)?;
        match (hundred, amount.milli()) {
            (false, _) => Ok(Self::Units(amount.units())),
            (true, milli @ 0..=100_000) => Ok(Self::Share(u32::try_from(milli / 10).map_err(|_| wrong())?)),
            (true, _) => Err(wrong()),
        }
    }
}

macro_rules! from_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
from_text!(Signal, Amount);

/// The least that should be left of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How much.
    pub least: Amount,
    /// How long less may be left before pods end for it; zero for a hard threshold.
    #[serde(default)]
    pub grace: Duration,
    /// How much more than `least` is given back once it was passed.
    #[serde(default)]
    pub reclaim: Option<Amount>,
}
