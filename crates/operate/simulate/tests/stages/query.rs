//! Questions to objects.

use keelson_simulate::stages::query::Query;
use serde_json::json;

#[test]
fn paths_find_what_jq_finds() {
    let object = json!({
        "metadata": {"annotations": {"a.b/c": "x"}, "ownerReferences": [{"kind": "Job"}, {"kind": "Set"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}
    });
    let ask = |text: &str| Query::parse(text).map(|q| json!(q.values(&object)));
    assert_eq!(ask(".status.phase"), Ok(json!(["Running"])));
    assert_eq!(ask(".metadata.annotations[\"a.b/c\"]"), Ok(json!(["x"])));
    assert_eq!(ask(".metadata.ownerReferences.[].kind"), Ok(json!(["Job", "Set"])));
    assert_eq!(ask(".metadata.ownerReferences[1].kind"), Ok(json!(["Set"])));
    let ready = ".status.conditions.[] | select( .type == \"Ready\" ) | .status";
    assert_eq!(ask(ready), Ok(json!(["True"])));
    assert_eq!(
        ask(".status.conditions[] | select(.type != \"Ready\") | .status"),
        Ok(json!(["False"]))
    );
    let object_of = |text: &str| {
        let object = json!({"list": [{"n": 1, "is": true, "x": "a"}, {"n": 2, "is": false, "x": "b"}]});
        Query::parse(text).map(|q| json!(q.values(&object)))
    };
    assert_eq!(object_of(".list[] | select(.is == true) | .x"), Ok(json!(["a"])));
    assert_eq!(object_of(".list[] | select(.n == 2) | .x"), Ok(json!(["b"])));
    // What isn't there is nothing; what doesn't fit, too.
    assert_eq!(ask(".metadata.deletionTimestamp"), Ok(json!([])));
    assert_eq!(ask(".status.none.[]"), Ok(json!([])));
    assert_eq!(ask(".status.phase.[]"), Ok(json!([])));
    for wrong in [
        "",
        "status",
        ".a | length",
        ".a, .b",
        "select(.a > 1)",
        ".a[",
        ".a[{}]",
        ".a + 1",
    ] {
        assert!(ask(wrong).is_err(), "{wrong}");
    }
}
