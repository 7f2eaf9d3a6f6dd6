//! `metadata.managedFields`: who set which field, kept at every write.

use crate::codec::with_value;
use crate::context::Cx;
use crate::meta::timestamp;
use keelson_api::{ApiResult, Map, Object, SchemaRef, Value};
use keelson_machinery::apply::managed::Managed;
use keelson_machinery::apply::{self, FieldManager, Set};

/// Fields that an endpoint resets, so that its writers don't come to own them.
fn reset_fields(cx: &Cx) -> Set {
    let has_status = cx.def.subresource("status").is_some();
    match cx.subresource.as_str() {
        "" if has_status => Set::of_fields(&[&["status"]]),
        "status" if cx.def.custom => Set::of_fields(&[&["spec"], &["metadata"]]),
        "status" if cx.def.kind == "CertificateSigningRequest" => {
            Set::of_fields(&[&["spec"], &["status", "conditions"]])
        }
        "approval" => Set::of_fields(&[&["spec"], &["status", "certificate"]]),
        "status" => Set::of_fields(&[&["spec"]]),
        "ephemeralcontainers" | "resize" | "finalize" => Set::of_fields(&[&["status"]]),
        _ => Set::default(),
    }
}

/// The converter that ownership of other versions is followed by.
struct Versions<'a>(&'a Cx);

impl apply::Converter for Versions<'_> {
    fn convert(&self, object: &Value, api_version: &str) -> Result<Option<(Value, SchemaRef)>, String> {
        let gvr = &self.0.def.gvr;
        let wanted = keelson_api::GroupVersion::parse(api_version);
        let Some(schema) = self.0.def.schema_of(&wanted) else {
            return Ok(None);
        };
        let Value::Object(map) = object else { return Ok(None) };
        let converter = self.0.def.converter.as_ref();
        let same = wanted.group == gvr.group
            && wanted.version == gvr.version
            && object.get("apiVersion").and_then(Value::as_str) == Some(api_version);
        if same {
            return Ok(Some((object.clone(), schema)));
        }
        match converter.and_then(|c| c.convert_now(Object(map.clone()), api_version)) {
            Some(Ok(o)) => Ok(Some((o.into(), schema))),
            Some(Err(e)) => Err(e.message),
            None => Ok(None),
        }
    }
}

/// What the fields are of: the resource, or a subresource with a form of its own (Scale).
pub struct Target<'a> {
    pub schema: &'a SchemaRef,
    pub api_version: &'a str,
    pub kind: &'a str,
}

impl<'a> Target<'a> {
    fn of(cx: &'a Cx, api_version: &'a str) -> Target<'a> {
        Target {
            schema: &cx.def.schema,
            api_version,
            kind: &cx.def.kind,
        }
    }
}

fn with_manager<T>(cx: &Cx, target: &Target, now: jiff::Timestamp, f: impl FnOnce(&FieldManager) -> T) -> T {
    let (now, reset) = (timestamp(now), reset_fields(cx));
    let versions = Versions(cx);
    f(&FieldManager {
        schema: target.schema,
        api_version: target.api_version,
        kind: target.kind,
        subresource: &cx.subresource,
        reset_fields: &reset,
        converter: cx.def.converter.is_some().then_some(&versions),
        now: &now,
    })
}

/// Records the request's manager for what differs between `live` and `new`.
pub fn update(cx: &Cx, live: Option<&Object>, new: &mut Object, now: jiff::Timestamp) {
    let api_version = cx.def.api_version();
    update_as(cx, &Target::of(cx, &api_version), live, new, now);
}

pub fn update_as(cx: &Cx, target: &Target, live: Option<&Object>, new: &mut Object, now: jiff::Timestamp) {
    let live = live.map_or(Value::Null, |o| Value::Object(o.0.clone()));
    let map = std::mem::take(&mut new.0);
    new.0 = with_value(map, |v| {
        let taken = std::mem::take(v);
        *v = with_manager(cx, target, now, |m| m.update(&live, taken, &cx.field_manager));
    });
}

/// Server-side apply of `config`; the result is neither canonical nor defaulted.
pub fn apply(cx: &Cx, live: Option<&Object>, config: &Value, force: bool, now: jiff::Timestamp) -> ApiResult<Value> {
    let api_version = cx.def.api_version();
    apply_as(cx, &Target::of(cx, &api_version), live, config, force, now)
}

pub fn apply_as(
    cx: &Cx,
    target: &Target,
    live: Option<&Object>,
    config: &Value,
    force: bool,
    now: jiff::Timestamp,
) -> ApiResult<Value> {
    let live = live.map_or(Value::Null, |o| Value::Object(o.0.clone()));
    with_manager(cx, target, now, |m| m.apply(&live, config, &cx.field_manager, force))
}

/// The managed fields before admission.
pub fn snapshot(obj: &Object) -> Option<Value> {
    obj.meta().and_then(|m| m.get("managedFields")).cloned()
}

/// Admission may not leave managed fields that can't be read: then the ones before it stay.
pub fn after_admission(cx: &Cx, before: &Option<Value>, obj: &mut Object) {
    let after = obj.meta().and_then(|m| m.get("managedFields"));
    if after == before.as_ref() {
        return;
    }
    if let Err(e) = Managed::decode(after) {
        cx.warn(format!(".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: {e}"));
        let meta: &mut Map = obj.meta_mut();
        match before {
            Some(v) => {
                meta.insert("managedFields", v.clone());
            }
            None => {
                meta.remove("managedFields");
            }
        }
    }
}

/// An update that would change nothing but the times of managed fields changes nothing.
pub fn ignore_timestamps(new: &mut Object, old: &Object) {
    if snapshot(new) == snapshot(old) {
        return;
    }
    let old = Value::Object(old.0.clone());
    new.0 = with_value(std::mem::take(&mut new.0), |v| apply::ignore_timestamps(&old, v));
}
