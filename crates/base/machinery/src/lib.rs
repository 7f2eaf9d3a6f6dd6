//! Pure algorithms over schema and values. No I/O, no clock, no randomness.
//!
//! * [`names`]: label and DNS name formats and what upstream says of violations.
//! * [`go`]: printing as Go's `fmt` does, for messages that contain values.
//! * [`selector`]: label and field selectors.
//! * [`patch`]: JSON patch, JSON merge patch, strategic merge patch.

pub mod go;
pub mod names;
pub mod patch;
pub mod selector;
#[cfg(test)]
pub(crate) mod testing;
