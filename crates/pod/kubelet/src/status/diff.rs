//! The strategic merge patch that brings a pod's status in the API to the wanted one, and nothing else. Pure.

use serde_json::{Map, Value, json};

/// The patch, or `None` when nothing differs. Lists that merge by key are patched item by item.
pub fn patch(uid: &str, have: &Value, want: &Value) -> Option<Value> {
    let empty = Map::new();
    let have = have.as_object().unwrap_or(&empty);
    let want = want.as_object().unwrap_or(&empty);
    let mut out = Map::new();
    for (key, new) in want {
        let old = have.get(key);
        if old == Some(new) {
            continue;
        }
        match key.as_str() {
            "conditions" => {
                if let Some(list) = keyed(old, new, "type") {
                    out.insert(key.clone(), list);
                }
            }
            "podIPs" | "hostIPs" => {
                if let Some(list) = keyed(old, new, "ip") {
                    out.insert(key.clone(), list);
                }
            }
            // Others own these.
            "resourceClaimStatuses" | "extendedResourceClaimStatus" | "nominatedNodeName" => {}
            _ => {
                out.insert(key.clone(), merge(old, new));
            }
        }
    }
    for key in have.keys().filter(|k| !want.contains_key(*k)) {
        if !matches!(
            key.as_str(),
            "resourceClaimStatuses" | "extendedResourceClaimStatus" | "nominatedNodeName"
        ) {
            out.insert(key.clone(), Value::Null);
        }
    }
    (!out.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": out}))
}

/// Drops nulls: the API writes some where a typed object has nothing.
pub fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// Objects merge recursively: what is gone has to be named.
pub fn merge(old: Option<&Value>, new: &Value) -> Value {
    let (Some(Value::Object(old)), Value::Object(new)) = (old, new) else {
        return new.clone();
    };
    let mut out = Map::new();
    for (k, v) in new {
        if old.get(k) != Some(v) {
            out.insert(k.clone(), merge(old.get(k), v));
        }
    }
    for k in old.keys().filter(|k| !new.contains_key(*k)) {
        out.insert(k.clone(), Value::Null);
    }
    Value::Object(out)
}

pub fn keyed(old: Option<&Value>, new: &Value, key: &str) -> Option<Value> {
    let items = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    let (old, new) = (items(old), items(Some(new)));
    let id = |v: &Value| v.get(key).cloned().unwrap_or(Value::Null);
    let mut out = Vec::new();
    for item in &new {
        match old.iter().find(|o| id(o) == id(item)) {
            Some(o) if o == item => {}
            Some(o) => {
                let mut change = merge(Some(o), item);
                if let Some(map) = change.as_object_mut() {
                    map.insert(key.to_owned(), id(item));
                }
                out.push(change);
            }
            None => out.push(item.clone()),
        }
    }
    for item in old.iter().filter(|o| !new.iter().any(|n| id(n) == id(o))) {
        out.push(json!({key: id(item), "$patch": "delete"}));
    }
    (!out.is_empty()).then_some(Value::Array(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_differences_are_sent() {
        let have = json!({"phase": "Pending", "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "False", "reason": "x"}]});
        let want = json!({"phase": "Running", "podIPs": [{"ip": "1.2.3.4"}],
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]});
        assert_eq!(
            patch("u", &have, &want).unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "podIPs": [{"ip": "1.2.3.4"}],
                "conditions": [{"type": "B", "status": "True", "reason": null}]}})
        );
        assert_eq!(patch("u", &want, &want), None);
    }

    #[test]
    fn what_is_gone_is_named() {
        let have = json!({"podIPs": [{"ip": "1"}], "reason": "r", "nominatedNodeName": "n"});
        let want = json!({"podIPs": [{"ip": "2"}]});
        assert_eq!(
            patch("u", &have, &want).unwrap()["status"],
            json!({"podIPs": [{"ip": "2"}, {"ip": "1", "$patch": "delete"}], "reason": null})
        );
    }
}
