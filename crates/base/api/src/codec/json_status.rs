//! `metav1.Status` as JSON, its members in the order in which upstream writes them: what is refused is shown as it came by many clients, and compared as text by some.

use super::json::encode_into;
use crate::value::{Map, Value};

/// The members of a kind of object, in order, and how those are written that are objects themselves, or lists of them.
struct Order(&'static [(&'static str, Option<&'static Order>)]);

const STATUS: Order = Order(&[
    ("kind", None),
    ("apiVersion", None),
    ("metadata", Some(&METADATA)),
    ("status", None),
    ("message", None),
    ("reason", None),
    ("details", Some(&DETAILS)),
    ("code", None),
]);
const METADATA: Order = Order(&[
    ("selfLink", None),
    ("resourceVersion", None),
    ("continue", None),
    ("remainingItemCount", None),
]);
const DETAILS: Order = Order(&[
    ("name", None),
    ("group", None),
    ("kind", None),
    ("uid", None),
    ("causes", Some(&CAUSE)),
    ("retryAfterSeconds", None),
]);
const CAUSE: Order = Order(&[("reason", None), ("message", None), ("field", None)]);

/// Encodes a Status, without a final line feed.
pub fn encode_status(status: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    write(status, Some(&STATUS), &mut out);
    out
}

fn write(value: &Value, order: Option<&Order>, out: &mut Vec<u8>) {
    match (value, order) {
        (Value::Object(map), Some(order)) => write_map(map, order, out),
        (Value::Array(items), Some(_)) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, order, out);
            }
            out.push(b']');
        }
        _ => encode_into(value, out),
    }
}

/// What the order doesn't know comes after what it knows.
fn write_map(map: &Map, order: &Order, out: &mut Vec<u8>) {
    let known = |key: &str| order.0.iter().any(|(name, _)| *name == key);
    let first = order
        .0
        .iter()
        .filter_map(|(key, order)| Some((*key, map.get(key)?, *order)));
    let rest = map
        .iter()
        .filter(|(key, _)| !known(key))
        .map(|(key, value)| (key.as_str(), value, None));
    out.push(b'{');
    for (i, (key, value, order)) in first.chain(rest).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        encode_into(&Value::from(key), out);
        out.push(b':');
        write(value, order, out);
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ApiError, Cause, Details};
    use crate::{Reason, value};

    #[test]
    fn members_stand_as_upstream_writes_them() {
        let exists = ApiError::already_exists("apps", "deployments", "mock");
        assert_eq!(
            String::from_utf8(encode_status(&exists.to_status())).unwrap(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"deployments.apps \"mock\" already exists","reason":"AlreadyExists","details":{"name":"mock","group":"apps","kind":"deployments"},"code":409}"#
        );
        let wrong = ApiError::new(Reason::Invalid, "<no>").with_details(Details {
            name: "a".into(),
            uid: "u".into(),
            causes: vec![Cause::required("spec.a", ""), Cause::forbidden("spec.b", "now")],
            retry_after_seconds: 3,
            ..Details::default()
        });
        assert_eq!(
            String::from_utf8(encode_status(&wrong.to_status())).unwrap(),
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"\u003cno\u003e","reason":"Invalid","details":{"name":"a","uid":"u","causes":[{"reason":"FieldValueRequired","message":"Required value","field":"spec.a"},{"reason":"FieldValueForbidden","message":"Forbidden: now","field":"spec.b"}],"retryAfterSeconds":3},"code":422}"#
        );
    }

    #[test]
    fn nothing_is_lost() {
        let odd = value!({"zone": [1, {"b": 1, "a": 2}], "kind": "Status", "details": "none", "metadata": {"own": true, "continue": "x"}});
        assert_eq!(
            String::from_utf8(encode_status(&odd)).unwrap(),
            r#"{"kind":"Status","metadata":{"continue":"x","own":true},"details":"none","zone":[1,{"a":2,"b":1}]}"#
        );
    }
}
