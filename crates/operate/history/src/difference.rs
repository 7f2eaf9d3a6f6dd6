//! Two states as texts, and how they differ.

use keelson_api::codec::yaml as encoder;
use serde_json::Value;
use similar::TextDiff;

/// An object as YAML.
pub fn yaml(object: &Value) -> String {
    let text = encoder::encode(&keelson_api::Value::from(object.clone()));
    String::from_utf8_lossy(&text).into_owned()
}

/// What people compare: without what the server writes beside it, and of secrets which values differ, not what they are.
pub fn shown(object: &Value, other: Option<&Value>, is_secret: bool, side: &str) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
    }
    if is_secret {
        hide(&mut object, other, side);
    }
    object
}

fn hide(secret: &mut Value, other: Option<&Value>, side: &str) {
    for field in ["data", "stringData"] {
        let theirs = other.and_then(|other| other.get(field)).cloned().unwrap_or_default();
        let values = secret.get_mut(field).and_then(Value::as_object_mut);
        for (name, value) in values.into_iter().flatten() {
            *value = match theirs.get(name) {
                Some(same) if same == value => "***".into(),
                _ => format!("*** ({side})").into(),
            };
        }
    }
    // It may have all of it, as `kubectl apply` writes it.
    let applied = "kubectl.kubernetes.io/last-applied-configuration";
    let annotations = secret
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut);
    if let Some(text) = annotations.and_then(|annotations| annotations.get_mut(applied)) {
        let theirs = other.and_then(|other| other.pointer("/metadata/annotations"));
        *text = match theirs.and_then(|theirs| theirs.get(applied)) == Some(text) {
            true => "***".into(),
            false => format!("*** ({side})").into(),
        };
    }
}

/// A unified difference of two objects in YAML, each `None` where there was none. Empty: they are the same.
pub fn unified(names: (&str, &str), before: Option<&Value>, after: Option<&Value>, is_secret: bool) -> String {
    let text = |object: Option<&Value>, other, side| object.map(|object| yaml(&shown(object, other, is_secret, side)));
    let (a, b) = (
        text(before, after, "before").unwrap_or_default(),
        text(after, before, "after").unwrap_or_default(),
    );
    if a == b {
        return String::new();
    }
    let differ = TextDiff::from_lines(&a, &b);
    differ.unified_diff().header(names.0, names.1).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_is_unified_and_without_noise() {
        let object = |replicas: u32, version: &str| json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "resourceVersion": version, "managedFields": [version]}, "spec": {"replicas": replicas}});
        let told = unified(
            ("web (revision 1)", "web (now)"),
            Some(&object(3, "1")),
            Some(&object(5, "2")),
            false,
        );
        assert!(told.starts_with("--- web (revision 1)\n+++ web (now)\n@@ "), "{told}");
        assert!(told.contains("\n-  replicas: 3\n+  replicas: 5\n"), "{told}");
        assert!(!told.contains("resourceVersion") && !told.contains("managedFields"));
        assert!(unified(("a", "b"), Some(&object(3, "1")), Some(&object(3, "2")), false).is_empty());
        let gone = unified(("a", "b"), Some(&object(3, "1")), None, false);
        assert!(gone.contains("-kind: Deployment"), "{gone}");
    }

    #[test]
    fn secrets_are_told_to_differ() {
        let applied = "kubectl.kubernetes.io/last-applied-configuration";
        let secret = |a: &str| json!({"kind": "Secret", "metadata": {"name": "s", "annotations": {applied: a}}, "data": {"a": a, "b": "same-value"}});
        let told = unified(
            ("x", "y"),
            Some(&secret("first-value")),
            Some(&secret("other-value")),
            true,
        );
        assert!(
            told.contains("-  a: '*** (before)'") || told.contains("-  a: \"*** (before)\""),
            "{told}"
        );
        assert!(!told.contains("value"), "{told}");
    }
}
