//! What is refused of stages.

use keelson_simulate::stages::read;

#[test]
fn what_can_not_be_honoured_is_refused() {
    let with = |spec: &str| {
        let text = format!("apiVersion: kwok.x-k8s.io/v1alpha1\nkind: Stage\nmetadata: {{name: s}}\nspec: {spec}\n");
        read(&text).map(|stages| stages.len())
    };
    assert_eq!(with("{resourceRef: {kind: Pod}, selector: {}}"), Ok(1));
    for (spec, why) in [
        (
            "{resourceRef: {kind: Deployment, apiGroup: apps/v1}, selector: {}}",
            "Deployment in apps/v1",
        ),
        ("{resourceRef: {kind: Pod}}", "no selector"),
        ("{resourceRef: {kind: Pod}, selector: {}, more: 1}", "spec.more"),
        (
            "{resourceRef: {kind: Pod}, selector: {matchExpressions: [{cel: {expression: a}}]}}",
            "cel",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {matchExpressions: [{key: .a, operator: In}]}}",
            "In doesn't go",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {matchExpressions: [{key: '.a|keys', operator: Exists}]}}",
            "keys",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {}, next: {statusTemplate: '{{ upper . }}'}}",
            "upper",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {}, next: {patches: [{type: json}]}}",
            "json",
        ),
        // What is of another type is never taken for nothing: that would fit every pod.
        (
            "{resourceRef: {kind: Pod}, selector: {matchLabels: a=b}}",
            "matchLabels",
        ),
        ("{resourceRef: {kind: Pod}, selector: {matchLabels: {a: 1}}}", "no text"),
        (
            "{resourceRef: {kind: Pod}, selector: {}, next: {delete: 'true'}}",
            "neither true nor false",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {}, next: {finalizers: {add: [x]}}}",
            "has no value",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {}, next: {statusTemplate: {}}}",
            "no text",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {}, weightFrom: {expressionFrom: 5}}",
            "no text",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {}, steps: [{apply: {template: x}}]}",
            "apply",
        ),
        (
            "{resourceRef: {kind: Pod}, selector: {}, delay: {durationMilliseconds: -1}}",
            "milliseconds",
        ),
    ] {
        let error = with(spec).unwrap_err();
        assert!(error.contains(why), "{spec}: {error}");
    }
    assert!(
        read("kind: Pod\nmetadata: {name: p}")
            .unwrap_err()
            .contains("isn't a Stage")
    );
    assert!(read("").unwrap_err().contains("no stages"));
}
