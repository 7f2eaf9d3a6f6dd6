use super::*;
use crate::testing::pod_like;
use keelson_api::value;

fn run(original: Value, patch: Value) -> Result<Value, String> {
    apply(&original, &patch, &pod_like()).map_err(|e| e.message)
}

#[test]
fn lists_merge_by_key() {
    let original = value!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}});
    let got = run(
        original,
        value!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}}),
    );
    assert_eq!(
        got.unwrap(),
        value!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}})
    );
}

#[test]
fn directives_delete_and_replace() {
    let original = value!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}, "metadata": {"labels": {"x": "1"}}});
    let got = run(
        original.clone(),
        value!({"spec": {"containers": [{"$patch": "delete", "name": "a"}]}}),
    )
    .unwrap();
    assert_eq!(got.at(&["spec", "containers"]), Some(&value!([{"name": "b"}])));
    let got = run(
        original.clone(),
        value!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
    )
    .unwrap();
    assert_eq!(got.at(&["spec", "containers"]), Some(&value!([{"name": "z"}])));
    let got = run(
        original.clone(),
        value!({"metadata": {"labels": {"$patch": "replace", "y": "2"}}}),
    )
    .unwrap();
    assert_eq!(got.at(&["metadata", "labels"]), Some(&value!({"y": "2"})));
    let got = run(original.clone(), value!({"metadata": {"labels": {"$patch": "delete"}}})).unwrap();
    assert_eq!(got.at(&["metadata", "labels"]), Some(&value!({})));
    let got = run(original, value!({"spec": {"containers": null}})).unwrap();
    assert_eq!(got.at(&["spec"]), Some(&value!({})));
}

#[test]
fn element_order_is_set() {
    let original = value!({"spec": {"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}});
    let patch = value!({"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [{"name": "b", "image": "2"}]
    }});
    assert_eq!(
        run(original, patch).unwrap().at(&["spec", "containers"]),
        // `s` is the server's own: it stood before `b`, so it stays before it.
        Some(&value!([{"name": "s"}, {"name": "b", "image": "2"}, {"name": "a"}]))
    );
}

#[test]
fn primitive_lists_merge_and_shrink() {
    let original = value!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let got = run(original.clone(), value!({"metadata": {"finalizers": ["d", "b"]}})).unwrap();
    assert_eq!(got.at(&["metadata", "finalizers"]), Some(&value!(["d", "a", "b", "c"])));
    let got = run(
        original,
        value!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"]}}),
    )
    .unwrap();
    assert_eq!(got.at(&["metadata", "finalizers"]), Some(&value!(["a", "c"])));
}

#[test]
fn retain_keys_clears_the_rest() {
    let original = value!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let got = run(
        original.clone(),
        value!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
    );
    assert_eq!(got.unwrap(), value!({"spec": {"strategy": {"type": "Recreate"}}}));
    let got = run(
        original,
        value!({"spec": {"strategy": {"$retainKeys": ["other"], "type": "Recreate"}}}),
    );
    assert_eq!(got.unwrap_err(), "invalid patch format of retainKeys");
}

#[test]
fn errors_are_upstreams() {
    let original = value!({"spec": {"containers": [{"name": "a"}]}, "unknown": {"a": 1}});
    let got = run(original.clone(), value!({"spec": {"containers": [{"image": "x"}]}}));
    assert_eq!(
        got.unwrap_err(),
        "map: map[image:x] does not contain declared merge key: name"
    );
    let got = run(original.clone(), value!({"spec": {"$patch": "zap"}}));
    assert_eq!(got.unwrap_err(), "unknown patch type: zap in map: map[$patch:zap]");
    let got = run(original, value!({"unknown": {"b": 1}}));
    assert_eq!(
        got.unwrap_err(),
        "unable to find api field in struct Pod for the json field \"unknown\""
    );
}

#[test]
fn few_failures_are_the_requests() {
    let original = value!({"spec": {"containers": [{"name": "a"}]}, "metadata": {"finalizers": []}});
    let code = |patch: Value| apply(&original, &patch, &pod_like()).unwrap_err().code;
    assert_eq!(code(value!({"spec": {"$retainKeys": {}}})), 400);
    assert_eq!(code(value!({"spec": {"$patch": "zap"}})), 500);
    assert_eq!(code(value!({"spec": {"containers": [{"image": "x"}]}})), 500);
    assert_eq!(code(value!({"metadata": {"finalizers": [["a"]]}})), 422);
}
