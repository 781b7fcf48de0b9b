//! Device protocols, one feature each.

#[cfg(feature = "thermometer")]
pub mod thermometer;
