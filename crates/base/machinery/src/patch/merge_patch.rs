//! JSON merge patch (RFC 7386).

use keelson_api::{ApiError, ApiResult, Map, Value};

/// Applies a merge patch to an object.
pub fn apply(doc: &Value, patch: &Value) -> ApiResult<Value> {
    let (Value::Object(doc), Value::Object(patch)) = (doc, patch) else {
        return Err(ApiError::bad_request("Invalid JSON Patch"));
    };
    let mut out = doc.clone();
    merge(&mut out, patch);
    Ok(Value::Object(out))
}

fn merge(doc: &mut Map, patch: &Map) {
    for (key, new) in patch.iter() {
        match (doc.get_mut(key), new) {
            (_, Value::Null) => {
                doc.remove(key);
            }
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            _ => {
                doc.insert(key.clone(), without_nulls(new));
            }
        }
    }
}

/// Nulls of a patch never reach the result, however deep (elements of lists stay).
fn without_nulls(v: &Value) -> Value {
    match v {
        Value::Object(m) => Value::Object(
            m.iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), without_nulls(v)))
                .collect(),
        ),
        Value::Array(a) => Value::Array(a.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn the_rfcs_cases() {
        for (doc, patch, want) in [
            (value!({"a":"b"}), value!({"a":"c"}), value!({"a":"c"})),
            (value!({"a":"b"}), value!({"b":"c"}), value!({"a":"b","b":"c"})),
            (value!({"a":"b"}), value!({"a":null}), value!({})),
            (value!({"a":"b","b":"c"}), value!({"a":null}), value!({"b":"c"})),
            (value!({"a":["b"]}), value!({"a":"c"}), value!({"a":"c"})),
            (
                value!({"a":{"b":"c"}}),
                value!({"a":{"b":"d","c":null}}),
                value!({"a":{"b":"d"}}),
            ),
            (value!({"a":[{"b":"c"}]}), value!({"a":[1]}), value!({"a":[1]})),
            (value!({}), value!({"a":{"bb":{"ccc":null}}}), value!({"a":{"bb":{}}})),
        ] {
            assert_eq!(apply(&doc, &patch).unwrap(), want, "{patch:?}");
        }
        assert!(apply(&value!({}), &value!([])).is_err());
    }
}
