//! Upstream's own table of configurations, with what its validation says of each.

use super::*;

#[test]
fn configurations_are_taken_and_refused_as_upstream_does() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("upstream.jsonl").lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = case["name"].as_str().unwrap();
        // Defaults are set before, when a file is read.
        let written: Written = serde_json::from_value(case["in"].clone()).unwrap();
        let (_, causes) = validate::all(&written);
        let said = match causes.is_empty() {
            true => String::new(),
            false => aggregate(&causes),
        };
        let wanted = case["want"].as_str().unwrap();
        if said != wanted {
            wrong.push(format!("{name}\n  wanted {wanted}\n  said   {said}"));
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 35);
}

#[test]
fn names_defaults_and_required_kinds_are_upstreams() {
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n";
    let check = |rest: &str, required: &[&'static str]| {
        let checked = Written::parse(&format!("{head}{rest}")).and_then(|w| w.check(required));
        checked.map_err(|e| format!("{e:#}"))
    };
    let two = "- {type: Node, name: node}\n- {type: RBAC, name: rbac}\n";
    assert_eq!(check(two, &["Node", "RBAC"]).unwrap().len(), 2);
    let said = check("- {type: Node, name: nodes}\n", &["RBAC", "AlwaysDeny"]).unwrap_err();
    let wanted = "[expected name node for authorizer Node instead of nodes, missing required types: [AlwaysDeny RBAC]]";
    assert_eq!(said, wanted);
    assert_eq!(
        check("- {type: ABAC, name: abac}\n", &[]).unwrap()[0].kind.name(),
        "ABAC"
    );
    let hook = "- type: Webhook\n  name: w\n  webhook: {timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Deny, connectionInfo: {type: InClusterConfig}}\n";
    let checked = check(hook, &[]).unwrap();
    let Kind::Webhook(hook) = &checked[0].kind else {
        panic!("no webhook")
    };
    assert_eq!(hook.authorized_ttl, Duration::from_secs(300));
    assert_eq!(hook.unauthorized_ttl, Duration::from_secs(30));
    assert!(hook.deny_on_failure);
    let unknown = check("- {type: Node, nome: node}\n", &[]).unwrap_err();
    assert!(unknown.contains("nome"), "{unknown}");
}
