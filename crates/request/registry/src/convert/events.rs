//! Events: `v1` and `events.k8s.io/v1` are two views of one stored object.

use super::Converter;
use async_trait::async_trait;
use keelson_api::{ApiResult, Object, Value};

#[derive(Debug)]
pub struct Events;

/// Names of fields in the core group and in `events.k8s.io`.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

#[async_trait]
impl Converter for Events {
    async fn convert(&self, objects: Vec<Object>, api_version: &str) -> ApiResult<Vec<Object>> {
        Ok(objects.into_iter().map(|o| event(o, api_version)).collect())
    }
    fn convert_now(&self, object: Object, api_version: &str) -> Option<ApiResult<Object>> {
        Some(Ok(event(object, api_version)))
    }
}

fn event(mut o: Object, api_version: &str) -> Object {
    if o.api_version() == api_version {
        return o;
    }
    let to_core = api_version == "v1";
    for (core, new) in NAMES {
        let (from, to) = if to_core { (new, core) } else { (core, new) };
        if let Some(v) = o.remove(from) {
            o.insert(to, v);
        }
    }
    let count = if to_core { "count" } else { "deprecatedCount" };
    if o.int(count) == Some(0) {
        o.remove(count);
    }
    // What the core version always writes, the other one may leave out.
    if to_core {
        o.entry_or_insert_with("eventTime", || Value::Null);
        o.entry_or_insert_with("firstTimestamp", || Value::Null);
        o.entry_or_insert_with("lastTimestamp", || Value::Null);
        o.object_mut("involvedObject");
        o.object_mut("source");
        for key in ["reportingComponent", "reportingInstance"] {
            o.entry_or_insert_with(key, || "".into());
        }
    } else {
        for key in ["reportingInstance", "reportingController"] {
            if o.str(key) == Some("") {
                o.remove(key);
            }
        }
        for key in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
            o.entry_or_insert_with(key, || Value::Null);
        }
        o.entry_or_insert_with("eventTime", || Value::Null);
    }
    o.insert("apiVersion", api_version);
    o
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn there_and_back_is_the_same() {
        let core = Object::try_from(value!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "message": "m",
            "source": {"component": "c"}, "count": 2, "eventTime": null, "firstTimestamp": null, "lastTimestamp": "2026-01-01T00:00:00Z",
            "reportingComponent": "", "reportingInstance": "", "reason": "r", "type": "Normal",
        }))
        .unwrap();
        let new = event(core.clone(), "events.k8s.io/v1");
        assert_eq!(new.str("note"), Some("m"));
        assert_eq!(new.int("deprecatedCount"), Some(2));
        assert_eq!(event(new, "v1"), core);
    }
}
