//! What pods with `matchLabelKeys` become, and which are refused.

use super::tests::{pod, read, request, shown};
use keelson_api::{Object, Value, value};

/// A pod with the affinity term or spread constraint, and what it has become when it is made.
fn with_term(at: &[&str], term: Value) -> (Object, Vec<String>) {
    let mut v = pod();
    v.set_at(&["metadata", "labels"], value!({"app": "web", "rev": "7"}));
    v.set_at(at, vec![term]);
    let cx = request("", "Pod");
    let mut pod = read(&cx, v);
    cx.def.strategy.prepare_create(&cx, &mut pod);
    let errors = shown(cx.def.strategy.validate(&cx, &pod));
    (pod, errors)
}

const NEAR: &[&str] = &[
    "spec",
    "affinity",
    "podAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
];
const APART: &[&str] = &[
    "spec",
    "affinity",
    "podAntiAffinity",
    "preferredDuringSchedulingIgnoredDuringExecution",
];
const SPREAD: &[&str] = &["spec", "topologySpreadConstraints"];

#[test]
fn a_new_pods_labels_are_merged_into_its_selectors() {
    let rules = |pod: &Object, at: &[&str], inner: &[&str]| {
        let first = pod.at(at).and_then(Value::as_array).unwrap()[0].clone();
        first.at(inner).cloned().unwrap()
    };
    let term = value!({
        "topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}},
        "matchLabelKeys": ["rev", "absent"], "mismatchLabelKeys": ["app"],
    });
    let merged = value!([
        {"key": "rev", "operator": "In", "values": ["7"]},
        {"key": "app", "operator": "NotIn", "values": ["web"]},
    ]);
    let (pod, errors) = with_term(NEAR, term.clone());
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(rules(&pod, NEAR, &["labelSelector", "matchExpressions"]), merged);
    let (pod, errors) = with_term(APART, value!({"weight": 5, "podAffinityTerm": term}));
    assert!(errors.is_empty(), "{errors:?}");
    let inner = ["podAffinityTerm", "labelSelector", "matchExpressions"];
    assert_eq!(rules(&pod, APART, &inner), merged);
    let spread = value!({
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}, "matchLabelKeys": ["rev"],
    });
    let (pod, errors) = with_term(SPREAD, spread);
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(
        rules(&pod, SPREAD, &["labelSelector", "matchExpressions"]),
        value!([{"key": "app", "operator": "Exists"}, {"key": "rev", "operator": "In", "values": ["7"]}])
    );
}

#[test]
fn label_keys_that_say_what_the_selector_says() {
    let errors = |selector: Value, more: Value| {
        let mut term = value!({"topologyKey": "zone", "matchLabelKeys": ["rev", "app"]});
        if !selector.is_null() {
            term.set_at(&["labelSelector"], selector);
        }
        for (key, value) in more.as_object().into_iter().flat_map(|m| m.iter()) {
            term.set_at(&[key.as_ref()], value.clone());
        }
        with_term(NEAR, term).1
    };
    let term = "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
    assert_eq!(
        errors(value!({"matchLabels": {"app": "web"}}), value!({})),
        [format!(
            "{term}[1]: Invalid value: \"app\": exists in both matchLabelKeys and labelSelector"
        )]
    );
    assert_eq!(
        errors(
            value!({"matchExpressions": [{"key": "rev", "operator": "Exists"}]}),
            value!({})
        ),
        [format!(
            "{term}[0]: Invalid value: \"rev\": exists in both matchLabelKeys and labelSelector"
        )]
    );
    assert_eq!(
        errors(value!({}), value!({"mismatchLabelKeys": ["rev"]})),
        [
            // Both have been added to the selector by now.
            format!("{term}[0]: Invalid value: \"rev\": exists in both matchLabelKeys and labelSelector"),
            format!(
                "{term}.matchLabelKeys[0]: Invalid value: \"rev\": exists in both matchLabelKeys and mismatchLabelKeys"
            ),
        ]
    );
    assert_eq!(
        errors(Value::Null, value!({"matchLabelKeys": ["not a key"]})),
        [format!(
            "{term}.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"
        )]
    );
}
