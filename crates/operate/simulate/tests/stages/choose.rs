//! Which stage is next.

use keelson_simulate::stages::choose::choose;
use keelson_simulate::stages::{Stage, read};
use serde_json::Value;
use serde_json::json;

const STAGES: &str = r#"
kind: Stage
metadata: {name: start}
spec:
  resourceRef: {kind: Pod}
  selector: {matchExpressions: [{key: .status.phase, operator: NotIn, values: [Running]}]}
  delay: {durationMilliseconds: 1000, jitterDurationMilliseconds: 5000, durationFrom: {expressionFrom: '.metadata.annotations["wait"]'}}
---
kind: Stage
metadata: {name: fail}
spec:
  resourceRef: {kind: Pod}
  weight: 3
  weightFrom: {expressionFrom: '.metadata.annotations["weight"]'}
  selector: {matchLabels: {a: b}}
---
kind: Stage
metadata: {name: end}
spec:
  resourceRef: {kind: Pod}
  weight: 1
  selector: {matchExpressions: [{key: .metadata.deletionTimestamp, operator: Exists}]}
  delay: {durationMilliseconds: 60000, jitterDurationFrom: {expressionFrom: .metadata.deletionTimestamp}}
"#;

fn chosen(object: Value, chance: (f64, f64)) -> Option<(String, u128)> {
    let stages = read(STAGES).unwrap();
    let all: Vec<&Stage> = stages.iter().collect();
    let now = "2030-01-01T00:00:00Z".parse().unwrap();
    choose(&all, &object, now, chance).map(|(n, d)| (stages[n].name.clone(), d.as_millis()))
}

#[test]
fn stages_follow_selectors_weights_and_delays() {
    let some = |name: &str, ms| Some((name.to_owned(), ms));
    assert_eq!(chosen(json!({}), (0.0, 0.0)), some("start", 1000));
    assert_eq!(chosen(json!({}), (0.0, 0.5)), some("start", 3000));
    let late = json!({"metadata": {"annotations": {"wait": "1m0.5s"}}});
    assert_eq!(chosen(late, (0.0, 0.5)), some("start", 5000), "the jitter is less");
    assert_eq!(chosen(json!({"status": {"phase": "Running"}}), (0.0, 0.0)), None);
    // The first has no weight beside the second.
    let both = json!({"metadata": {"labels": {"a": "b"}}});
    assert_eq!(chosen(both.clone(), (0.0, 0.0)), some("fail", 0));
    assert_eq!(chosen(both, (0.999, 0.0)), some("fail", 0));
    let ending = json!({"metadata": {"labels": {"a": "b"}, "annotations": {"weight": "1"}, "deletionTimestamp": "2030-01-01T00:00:09Z"}, "status": {"phase": "Running"}});
    assert_eq!(chosen(ending.clone(), (0.4, 0.0)), some("fail", 0));
    assert_eq!(chosen(ending, (0.6, 0.0)), some("end", 9000));
}
