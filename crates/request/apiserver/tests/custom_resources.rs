//! Custom resources through the whole chain.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const TABS: &str = "/apis/x.example.com/v1/namespaces/default/tabs";

fn definition() -> Value {
    value!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "tabs.x.example.com"},
        "spec": {"group": "x.example.com", "scope": "Namespaced",
            "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList", "shortNames": ["tb"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true,
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                 "selectableFields": [{"jsonPath": ".spec.color"}],
                 "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"}],
                 "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                     "spec": {"type": "object", "required": ["color"],
                        "x-kubernetes-validations": [{"rule": "self.replicas < 10", "message": "too many"}],
                        "properties": {
                            "color": {"type": "string", "enum": ["red", "blue"]},
                            "replicas": {"type": "integer", "default": 1},
                            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                                "items": {"type": "object", "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}}}},
                     "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}}}}}},
                {"name": "v2", "served": true, "storage": false,
                 "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

fn tab(name: &str, spec: Value) -> Value {
    let mut v = value!({"apiVersion": "x.example.com/v1", "kind": "Tab", "metadata": {"name": name}});
    v.set_at(&["spec"], spec);
    v
}

fn condition(crd: &Value, kind: &str) -> String {
    let list = crd.at(&["status", "conditions"]).and_then(Value::as_array);
    let found = list
        .into_iter()
        .flatten()
        .find(|c| c.get("type").and_then(Value::as_str) == Some(kind));
    found
        .and_then(|c| c.get("status"))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_string()
}

async fn with_definition() -> Api {
    let api = Api::new().await;
    api.post(CRDS, definition()).await.expect(201);
    api.until(&format!("{CRDS}/tabs.x.example.com"), |a| {
        condition(&a.json(), "Established") == "True"
    })
    .await;
    api
}

#[tokio::test]
async fn a_definition_is_served_validated_and_removed() {
    let api = with_definition().await;
    let made = api
        .post(TABS, tab("a", value!({"color": "red", "junk": 1})))
        .await
        .expect(201);
    assert_eq!(
        made.json().at(&["spec"]),
        Some(&value!({"color": "red", "replicas": 1}))
    );
    assert_eq!(
        made.headers.get("warning").and_then(|w| w.to_str().ok()),
        Some("299 - \"unknown field \\\"spec.junk\\\"\"")
    );
    let strict = api
        .post(
            &format!("{TABS}?fieldValidation=Strict"),
            tab("b", value!({"color": "red", "junk": 1})),
        )
        .await
        .expect(400);
    assert!(
        strict
            .str(&["message"])
            .ends_with("strict decoding error: unknown field \"spec.junk\""),
        "{}",
        strict.str(&["message"])
    );

    let bad = api
        .post(TABS, tab("b", value!({"color": "green", "replicas": "x"})))
        .await
        .expect(422);
    let message = bad.str(&["message"]);
    assert!(
        message.starts_with("Tab.x.example.com \"b\" is invalid: ["),
        "{message}"
    );
    assert!(
        message.contains("spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\""),
        "{message}"
    );
    assert!(
        message.contains("spec.replicas in body must be of type integer: \"string\""),
        "{message}"
    );
    let many = api
        .post(TABS, tab("b", value!({"color": "red", "replicas": 11})))
        .await
        .expect(422);
    assert_eq!(
        many.str(&["message"]),
        "Tab.x.example.com \"b\" is invalid: spec: Invalid value: too many"
    );

    // Another version, fields, tables, scale.
    let other = api.get(&TABS.replace("/v1/", "/v2/").to_string()).await.expect(200);
    assert_eq!(
        other.json().get("items").and_then(Value::as_array).unwrap()[0].get("apiVersion"),
        Some(&Value::from("x.example.com/v2"))
    );
    api.post(TABS, tab("blue", value!({"color": "blue"}))).await.expect(201);
    let selected = api
        .get(&format!("{TABS}?fieldSelector=spec.color%3Dblue"))
        .await
        .expect(200)
        .json();
    assert_eq!(selected.get("items").and_then(Value::as_array).map(Vec::len), Some(1));
    let table = api
        .call(
            "GET",
            TABS,
            "",
            "application/json;as=Table;v=v1;g=meta.k8s.io",
            Vec::new(),
        )
        .await
        .expect(200)
        .json();
    let rows = table.get("rows").and_then(Value::as_array).unwrap();
    assert_eq!(rows[0].get("cells"), Some(&value!(["a", "red"])));
    let scale = api.get(&format!("{TABS}/a/scale")).await.expect(200);
    assert_eq!(scale.json().at(&["spec", "replicas"]), Some(&Value::Int(1)));
    let mut scaled = scale.json();
    scaled.set_at(&["spec", "replicas"], 3);
    api.put(&format!("{TABS}/a/scale"), scaled).await.expect(200);

    // Status through its own path only; generation follows the rest.
    let mut got = api.get(&format!("{TABS}/a")).await.expect(200).json();
    assert_eq!(got.at(&["spec", "replicas"]), Some(&Value::Int(3)));
    got.set_at(&["status", "replicas"], 2);
    let kept = api.put(&format!("{TABS}/a"), got.clone()).await.expect(200).json();
    assert_eq!(kept.get("status"), None);
    let set = api.put(&format!("{TABS}/a/status"), got).await.expect(200).json();
    assert_eq!(set.at(&["status", "replicas"]), Some(&Value::Int(2)));

    let patch = value!({"apiVersion": "x.example.com/v1", "kind": "Tab", "spec": {"list": [{"k": "one", "v": 1}]}});
    let applied = api
        .patch(&format!("{TABS}/a?fieldManager=me"), "apply-patch+yaml", patch)
        .await
        .expect(200)
        .json();
    assert_eq!(applied.at(&["spec", "list"]), Some(&value!([{"k": "one", "v": 1}])));
    api.patch(&format!("{TABS}/a"), "strategic-merge-patch+json", value!({}))
        .await
        .expect(415);

    let groups = api.get("/apis/x.example.com/v1").await.expect(200).json();
    let names: Vec<&str> = groups
        .get("resources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|r| r.get("name")?.as_str())
        .collect();
    assert_eq!(names, ["tabs", "tabs/scale", "tabs/status"]);

    api.delete(&format!("{CRDS}/tabs.x.example.com")).await.expect(200);
    api.until(&format!("{CRDS}/tabs.x.example.com"), |a| a.code == 404)
        .await;
    api.until(TABS, |a| a.code == 404).await;
}

/// Upstream's own controllers write none.
#[tokio::test]
async fn generations_that_somebody_has_seen_stay_in_the_status() {
    let api = with_definition().await;
    let path = format!("{CRDS}/tabs.x.example.com");
    let established = value!({"status": {"observedGeneration": 1, "conditions": [{"type": "Reviewed", "status": "True",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let status = format!("{path}/status");
    api.patch(&status, "merge-patch+json", established).await.expect(200);
    let patch = value!({"spec": {"names": {"categories": ["all"]}}, "status": {"observedGeneration": 9}});
    let changed = api.patch(&path, "merge-patch+json", patch).await.expect(200);
    assert_eq!(changed.json().at(&["metadata", "generation"]), Some(&2.into()));
    // Its names are decided anew, with conditions of their own.
    let accepted = |answer: &harness::Answer| condition(&answer.json(), "Established") == "True";
    let after = api.until(&path, accepted).await.json();
    assert_eq!(after.at(&["status", "observedGeneration"]), Some(&1.into()));
    let conditions = after.at(&["status", "conditions"]).and_then(Value::as_array).unwrap();
    let reviewed = conditions.iter().find(|c| c.get("type") == Some(&"Reviewed".into()));
    assert_eq!(
        reviewed.and_then(|c| c.get("observedGeneration")),
        Some(&1.into()),
        "{conditions:?}"
    );
}

#[tokio::test]
async fn names_are_granted_once() {
    let api = with_definition().await;
    let mut second = definition();
    second.set_at(&["metadata", "name"], "tobs.x.example.com");
    second.set_at(&["spec", "names", "plural"], "tobs");
    second.set_at(&["spec", "names", "singular"], "tob");
    second.set_at(&["spec", "names", "shortNames"], Value::Array(vec![]));
    api.post(CRDS, second).await.expect(201);
    let at = format!("{CRDS}/tobs.x.example.com");
    let refused = api
        .until(&at, |a| condition(&a.json(), "NamesAccepted") == "False")
        .await
        .json();
    assert_eq!(condition(&refused, "Established"), "False");
    api.delete(&format!("{CRDS}/tabs.x.example.com")).await.expect(200);
    api.until(&at, |a| condition(&a.json(), "Established") == "True").await;
}

#[tokio::test]
async fn broken_definitions_are_refused() {
    let api = Api::new().await;
    let mut d = definition();
    d.set_at(&["spec", "versions"], vec![value!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
        "type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": [{"rule": "self.z == 100"}],
            "properties": {"x": {"type": "integer"}}}}}}})]);
    let refused = api.post(CRDS, d).await.expect(422);
    assert!(
        refused.str(&["message"]).contains("undefined field 'z'"),
        "{}",
        refused.str(&["message"])
    );
}

/// Reads a watch to its end, or for as long as a test waits.
async fn to_the_end(body: keelson_apiserver::Body) -> String {
    let all = tokio::time::timeout(std::time::Duration::from_secs(10), body.collect(1 << 20));
    String::from_utf8(all.await.expect("the watch ends").unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn watches_end_when_their_definition_changes_or_goes() {
    let api = with_definition().await;
    api.post(TABS, tab("a", value!({"color": "red"}))).await.expect(201);
    let watch = async || {
        let answer = api
            .raw("GET", &format!("{TABS}?watch=true"), "", "application/json", Vec::new())
            .await;
        assert_eq!(answer.status(), 200);
        answer.into_body()
    };
    // Another schema: what is told by the old one is over, and what is read afterwards is by the new one.
    let changing = watch().await;
    let path = format!("{CRDS}/tabs.x.example.com");
    let mut definition = api.get(&path).await.expect(200).json();
    let versions = definition
        .at(&["spec", "versions"])
        .and_then(Value::as_array)
        .unwrap()
        .clone();
    let mut fewer = versions.clone();
    fewer.retain(|v| v.get("storage").and_then(Value::as_bool) == Some(true));
    for v in &mut fewer {
        v.set_at(
            &["schema", "openAPIV3Schema", "properties", "spec", "properties", "more"],
            value!({"type": "string"}),
        );
    }
    let unserved: Vec<Value> = versions
        .into_iter()
        .filter(|v| v.get("storage").and_then(Value::as_bool) != Some(true))
        .map(|mut v| {
            v.set_at(&["served"], false);
            v
        })
        .collect();
    definition.set_at(&["spec", "versions"], [fewer, unserved].concat());
    api.put(&path, definition).await.expect(200);
    let told = to_the_end(changing).await;
    assert!(told.contains("\"ADDED\"") && !told.contains("\"ERROR\""), "{told}");
    api.until(&TABS.replace("/v1/", "/v2/"), |a| a.code == 404).await;

    // Gone: its resources are told of, then the watch ends; a new one finds nothing.
    let going = watch().await;
    api.delete(&path).await.expect(200);
    let told = to_the_end(going).await;
    let last = told.lines().last().unwrap();
    assert!(last.contains("\"DELETED\"") && last.contains("\"a\""), "{told}");
    api.until(&format!("{TABS}?watch=true"), |a| a.code == 404).await;
}
