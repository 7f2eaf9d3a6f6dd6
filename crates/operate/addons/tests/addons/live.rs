//! What is a change of what somebody wants.

use keelson_addons::live::Live;
use serde_json::{Value, json};

#[test]
fn a_status_is_no_change_of_what_is_wanted() {
    let object = json!({"kind": "A", "metadata": {"name": "a", "uid": "u", "resourceVersion": "1", "labels": {"x": "y"}},
        "spec": {"a": 1}});
    let with = |path: &str, value: Value| {
        let mut other = object.clone();
        *other.pointer_mut(path).expect("a field") = value;
        Live::of(&other).print
    };
    let before = Live::of(&object).print;
    let mut reported = object.clone();
    reported["status"] = json!({"ready": 1});
    assert_eq!(Live::of(&reported).print, before);
    assert_eq!(with("/metadata/resourceVersion", "2".into()), before);
    assert_ne!(with("/spec/a", 2.into()), before);
    assert_ne!(with("/metadata/labels", json!({})), before);
}
