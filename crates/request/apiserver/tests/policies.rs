//! Admission policies through the whole chain.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Answer, Api};
use keelson_api::{Value, value};
use std::time::Duration;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn rules(group: &str, resource: &str) -> Value {
    value!({"resourceRules": [
        {"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource]}
    ]})
}

async fn policy(api: &Api, kind: &str, name: &str, spec: Value, binding: Value) {
    let plural = if kind == "ValidatingAdmissionPolicy" {
        "validatingadmissionpolic"
    } else {
        "mutatingadmissionpolic"
    };
    let api_version = "admissionregistration.k8s.io/v1";
    let mut spec = spec;
    spec.set_at(&["failurePolicy"], "Fail");
    let object = value!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "spec": spec});
    api.post(&format!("{GROUP}/{plural}ies"), object).await.expect(201);
    let mut binding = binding;
    binding.set_at(&["policyName"], name);
    let kind = format!("{kind}Binding");
    let object = value!({"apiVersion": api_version, "kind": kind, "metadata": {"name": format!("{name}-binding")}, "spec": binding});
    api.post(&format!("{GROUP}/{plural}ybindings"), object)
        .await
        .expect(201);
}

fn map(name: &str, data: Value) -> Value {
    value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn deployment(name: &str, replicas: i64) -> Value {
    value!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

/// Tries until an answer satisfies; tries are dry runs.
async fn until(api: &Api, path: &str, body: Value, ok: impl Fn(&Answer) -> bool) -> Answer {
    let path = format!("{path}?dryRun=All");
    for _ in 0..3000 {
        let answer = api.post(&path, body.clone()).await;
        if ok(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let last = api.post(&path, body).await;
    panic!(
        "{path} never came to it: {} {}",
        last.code,
        String::from_utf8_lossy(&last.bytes)
    );
}

#[tokio::test]
async fn validating_policies_refuse_warn_and_take_parameters() {
    let api = Api::new().await;
    api.post(MAPS, map("limit", value!({"max": "3"}))).await.expect(201);
    let spec = value!({
        "matchConstraints": rules("apps", "deployments"),
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "not-exempt", "expression": "!object.metadata.name.startsWith('exempt')"}],
        "variables": [{"name": "max", "expression": "int(params.data.max)"}],
        "validations": [
            {"expression": "object.spec.replicas <= variables.max", "messageExpression": "'at most ' + string(variables.max) + ' in ' + namespaceObject.metadata.name"},
            {"expression": "request.userInfo.username == 'tester' && authorizer.requestResource.check('delete').allowed()", "reason": "Forbidden"}
        ],
        "auditAnnotations": [{"key": "replicas", "valueExpression": "'replicas: ' + string(object.spec.replicas)"}]
    });
    let binding = value!({
        "validationActions": ["Deny"],
        "paramRef": {"name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny"}
    });
    policy(&api, "ValidatingAdmissionPolicy", "replicas", spec, binding).await;
    let refused = until(&api, DEPLOYMENTS, deployment("a", 4), |a| a.code != 201)
        .await
        .expect(422);
    assert_eq!(
        refused.str(&["message"]),
        "deployments.apps \"a\" is forbidden: ValidatingAdmissionPolicy 'replicas' with binding 'replicas-binding' denied request: at most 3 in default"
    );
    assert_eq!(refused.str(&["reason"]), "Invalid");
    api.post(DEPLOYMENTS, deployment("a", 3)).await.expect(201);
    api.post(DEPLOYMENTS, deployment("exempt", 9)).await.expect(201);
    api.delete(&format!("{MAPS}/limit")).await.expect(200);
    let refused = until(&api, DEPLOYMENTS, deployment("b", 1), |a| a.code != 201).await;
    assert!(refused.str(&["message"]).ends_with(
        "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
    ));
}

#[tokio::test]
async fn warnings_reach_the_client() {
    let api = Api::new().await;
    let spec = value!({
        "matchConstraints": rules("", "configmaps"),
        "validations": [{"expression": "has(object.data) && 'owner' in object.data", "message": "no owner"}]
    });
    policy(
        &api,
        "ValidatingAdmissionPolicy",
        "owners",
        spec,
        value!({"validationActions": ["Warn", "Audit"]}),
    )
    .await;
    let warned = until(&api, MAPS, map("a", value!({})), |a| a.headers.contains_key("warning"))
        .await
        .expect(201);
    assert_eq!(
        warned.headers["warning"].to_str().unwrap(),
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'owners' with binding 'owners-binding': no owner\""
    );
    assert!(
        !api.post(MAPS, map("b", value!({"owner": "me"})))
            .await
            .expect(201)
            .headers
            .contains_key("warning")
    );
}

#[tokio::test]
async fn types_are_checked_into_the_status() {
    let api = Api::new().await;
    let spec = value!({
        "matchConstraints": rules("apps", "deployments"),
        "validations": [{"expression": "object.spec.replicas > '1'"}]
    });
    policy(
        &api,
        "ValidatingAdmissionPolicy",
        "wrong",
        spec,
        value!({"validationActions": ["Deny"]}),
    )
    .await;
    let spec = value!({"matchConstraints": rules("", "configmaps"), "validations": [{"expression": "object.metadata.name != 'x'"}]});
    policy(
        &api,
        "ValidatingAdmissionPolicy",
        "right",
        spec,
        value!({"validationActions": ["Deny"]}),
    )
    .await;
    for (name, n) in [("wrong", 1), ("right", 0)] {
        let path = format!("{GROUP}/validatingadmissionpolicies/{name}");
        for i in 0.. {
            let got = api.get(&path).await.json();
            if let Some(checked) = got.at(&["status", "typeChecking"]) {
                let warnings = checked
                    .get("expressionWarnings")
                    .and_then(Value::as_array)
                    .map_or(0, |w| w.len());
                assert_eq!(warnings, n, "{got:?}");
                assert_eq!(got.at(&["status", "observedGeneration"]), Some(&Value::Int(1)));
                break;
            }
            assert!(i < 500, "no status: {got:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn custom_kinds_are_published_and_checked() {
    let api = Api::new().await;
    let crd = value!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "crontabs.stable.example.com"},
        "spec": {"group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": {
                    "cronSpec": {"type": "string"}, "image": {"type": "string"}, "replicas": {"type": "integer"}}}}}}}]}});
    api.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        .await
        .expect(201);
    for i in 0.. {
        let found = api.get("/openapi/v3/apis/stable.example.com/v1").await;
        if found.code == 200 {
            let kind = found.json();
            let kind = kind
                .at(&["components", "schemas", "com.example.stable.v1.CronTab"])
                .unwrap();
            assert_eq!(
                kind.at(&["properties", "spec", "properties", "replicas"]),
                Some(&value!({"type": "integer"}))
            );
            break;
        }
        assert!(i < 500, "never published");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let v2 = api.get("/openapi/v2").await.json();
    assert!(v2.at(&["definitions", "com.example.stable.v1.CronTab"]).is_some());
    let mut constraints = rules("stable.example.com", "crontabs");
    constraints.set_at(&["matchPolicy"], "Exact");
    let spec = value!({
        "matchConstraints": constraints,
        "validations": [
            {"expression": "object.spec.replicas > 1 && object.metadata.labels['a'] == 'b'"},
            {"expression": "object.spec.replicas > '1'"},
            {"expression": "object.spec.maxRetries < 10"}
        ]
    });
    policy(
        &api,
        "ValidatingAdmissionPolicy",
        "tabs",
        spec,
        value!({"validationActions": ["Deny"]}),
    )
    .await;
    for i in 0.. {
        let got = api
            .get(&format!("{GROUP}/validatingadmissionpolicies/tabs"))
            .await
            .json();
        if let Some(checked) = got.at(&["status", "typeChecking"]) {
            let warnings = checked.get("expressionWarnings").and_then(Value::as_array).unwrap();
            let text = |i: usize, key: &str| warnings[i].get(key).and_then(Value::as_str).unwrap();
            assert_eq!(warnings.len(), 2, "{warnings:?}");
            assert_eq!(text(0, "fieldRef"), "spec.validations[1].expression");
            assert!(text(0, "warning").contains("found no matching overload for '_>_' applied to '(int, string)'"));
            assert!(
                text(1, "warning").contains("undefined field 'maxRetries'"),
                "{}",
                text(1, "warning")
            );
            break;
        }
        assert!(i < 500, "no status: {got:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn mutating_policies_merge_and_patch() {
    let api = Api::new().await;
    let apply = |e: &str| value!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": e}});
    let patch = |e: &str| value!({"patchType": "JSONPatch", "jsonPatch": {"expression": e}});
    let spec = value!({
        "matchConstraints": rules("apps", "deployments"),
        "reinvocationPolicy": "IfNeeded",
        "variables": [{"name": "twice", "expression": "object.spec.replicas * 2"}],
        "mutations": [
            apply("Object{metadata: Object.metadata{annotations: {'by': 'policy'}}, spec: Object.spec{replicas: variables.twice > 4 ? 4 : variables.twice}}"),
            patch("[JSONPatch{op: 'test', path: '/metadata/name', value: 'patched'}, JSONPatch{op: 'add', path: '/metadata/labels', value: {'x/y': string(object.spec.replicas)}}]")
        ]
    });
    policy(&api, "MutatingAdmissionPolicy", "double", spec, value!({})).await;
    let made = until(&api, DEPLOYMENTS, deployment("patched", 1), |a| {
        a.json().at(&["spec", "replicas"]) != Some(&Value::Int(1))
    })
    .await;
    assert_eq!(made.json().at(&["spec", "replicas"]), Some(&Value::Int(2)));
    assert_eq!(made.str(&["metadata", "annotations", "by"]), "policy");
    assert_eq!(made.json().at(&["metadata", "labels"]), Some(&value!({"x/y": "2"})));
    let made = api.post(DEPLOYMENTS, deployment("plain", 1)).await.expect(201);
    assert_eq!(made.json().at(&["metadata", "labels"]), None);

    let spec = value!({
        "matchConstraints": rules("", "configmaps"),
        "reinvocationPolicy": "Never",
        "mutations": [apply("Object{metadata: Object.metadata{finalizers: object.missing}}")]
    });
    policy(&api, "MutatingAdmissionPolicy", "broken", spec, value!({})).await;
    let refused = until(&api, MAPS, map("a", value!({})), |a| a.code != 201)
        .await
        .expect(403);
    let message = refused.str(&["message"]);
    assert!(
        message.starts_with("policy 'broken' with binding 'broken-binding' denied request: expression 'Object{"),
        "{message}"
    );
    assert!(
        message.ends_with("resulted in error: no such key: missing"),
        "{message}"
    );
    assert_eq!(refused.str(&["reason"]), "Invalid");
}
