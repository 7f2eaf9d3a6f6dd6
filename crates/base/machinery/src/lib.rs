//! Pure algorithms over schema and values. No I/O, no clock, no randomness.
//!
//! * [`apply`]: server-side apply and the ownership of fields.
//! * [`canonical`]: what a typed round trip makes of an object: omissions, zero values, unknown fields, defaults.
//! * [`structural`]: the schemas of custom resources.
//! * [`cel`]: expressions of validation rules and policies.
//! * [`jsonpath`]: the JSONPath of printer columns.
//! * [`names`]: label and DNS name formats and what upstream says of violations.
//! * [`go`]: printing as Go's `fmt` does, for messages that contain values.
//! * [`selector`]: label and field selectors.
//! * [`patch`]: JSON patch, JSON merge patch, strategic merge patch.

pub mod apply;
pub mod canonical;
pub mod cel;
pub mod go;
pub mod jsonpath;
pub mod names;
pub mod patch;
pub mod selector;
pub mod structural;
#[cfg(test)]
pub(crate) mod testing;
