//! Answers to reads and watches, byte for byte, in every format and shape. The figures in `bytes.txt` were written by a server
//! that made each answer of decoded values; it couldn't make lists of `v1beta1` metadata in protobuf, which are today's.

#![recursion_limit = "256"]
#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use http_body_util::BodyExt;
use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{json, proto};
use keelson_api::{Object, Value, value};
use keelson_store::{Expect, Memory, Store};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::Arc;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const SHAPES: [(&str, &str); 12] = [
    ("json", JSON),
    ("protobuf", PROTOBUF),
    ("yaml", "application/yaml"),
    ("indented", "application/json;pretty=1"),
    ("table", "application/json;as=Table;v=v1;g=meta.k8s.io"),
    ("table-beta", "application/json;as=Table;v=v1beta1;g=meta.k8s.io"),
    ("table-yaml", "application/yaml;as=Table;v=v1;g=meta.k8s.io"),
    (
        "metadata",
        "application/json;as=PartialObjectMetadata{};v=v1;g=meta.k8s.io",
    ),
    (
        "metadata-beta",
        "application/json;as=PartialObjectMetadata{};v=v1beta1;g=meta.k8s.io",
    ),
    (
        "metadata-yaml",
        "application/yaml;as=PartialObjectMetadata{};v=v1;g=meta.k8s.io",
    ),
    (
        "metadata-protobuf",
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata{};v=v1;g=meta.k8s.io",
    ),
    (
        "metadata-protobuf-beta",
        "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata{};v=v1beta1;g=meta.k8s.io",
    ),
];

fn metadata(name: &str) -> Value {
    value!({
        "name": name, "namespace": "default", "uid": format!("uid-of-{name}"),
        "labels": {"app": "web", "tier": "<front> & \"back\""},
        "annotations": {"note": "größe \u{2028} x\ty"},
        "managedFields": [{"manager": "m", "operation": "Update", "apiVersion": "v1", "time": "2026-01-02T03:04:05Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {".": {}, "f:image": {}}}}}}]})
}

fn pod(name: &str, node: &str) -> Value {
    let mut pod = value!({"apiVersion": "v1", "kind": "Pod",
        "spec": {"nodeName": node, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "main", "image": "nginx", "env": [{"name": "A", "value": ""}, {"name": "B", "value": "b"}],
                "resources": {"limits": {"memory": "64Mi", "cpu": "100m"}, "requests": {"cpu": "0.5"}},
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5}}],
            "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 300}],
            "securityContext": {}, "nodeSelector": {"b": "1", "a": "2"}},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "startTime": "2026-01-02T03:04:05Z",
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-02T03:04:05Z"}],
            "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0, "image": "nginx", "imageID": "",
                "lastState": {}, "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}]}});
    pod.set_at(&["metadata"], metadata(name));
    pod
}

fn map(name: &str) -> Value {
    let mut map =
        value!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"z": "1", "a": "x"}, "binaryData": {"b": "AAEC"}});
    map.set_at(&["metadata"], metadata(name));
    map
}

fn scaler(name: &str) -> Value {
    let mut scaler = value!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "spec": {"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
    scaler.set_at(&["metadata"], metadata(name));
    scaler
}

fn custom(name: &str, more: &[(&str, Value)]) -> Value {
    let mut object = value!({"apiVersion": "x.example.com/v1", "kind": "Tab", "spec": {"color": "red", "size": 1.5}});
    object.set_at(&["metadata"], metadata(name));
    for (key, value) in more {
        object.set_at(&[key], value.clone());
    }
    object
}

fn definition() -> Value {
    let open = value!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"late": {"type": "string", "default": "filled in"}}}}}});
    value!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "tabs.x.example.com"},
        "spec": {"group": "x.example.com", "scope": "Namespaced", "names": {"plural": "tabs", "singular": "tab", "kind": "Tab", "listKind": "TabList"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": open,
                 "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"}]},
                {"name": "v2", "served": true, "storage": false, "schema": open}]}})
}

/// A store in which these objects are of revisions 2, 3 and so on.
async fn filled() -> Arc<Memory> {
    let store = Memory::new();
    let objects = [
        ("pods", pod("a", "n1")),
        ("pods", pod("b", "")),
        ("pods", pod("c", "n2")),
        ("configmaps", map("a")),
        ("configmaps", map("b")),
        ("horizontalpodautoscalers", scaler("a")),
        ("horizontalpodautoscalers", scaler("b")),
        ("x.example.com/tabs", custom("a", &[])),
        (
            "x.example.com/tabs",
            custom("b", &[("action", "first".into()), ("data", value!({"x": 1}))]),
        ),
        ("x.example.com/tabs", custom("c", &[("status", value!({}))])),
        ("pods", pod("b", "n3")),
    ];
    for (resource, object) in objects {
        let name = object.at(&["metadata", "name"]).and_then(Value::as_str).unwrap();
        let key = format!("/registry/{resource}/default/{name}");
        let object = Object::try_from(object).unwrap();
        let bytes = match builtin_kind_at(object.api_version(), object.kind()) {
            Some(schema) => {
                let value = Value::from(object);
                let typed = json::decode(&json::encode(&value), Some(&schema), Default::default()).unwrap();
                proto::encode(&Object::try_from(typed.value).unwrap(), &schema).unwrap()
            }
            None => json::encode(&object.into()),
        };
        store.put(key.into(), bytes.into(), Expect::Any, None).await.unwrap();
    }
    store
}

/// A watch's first bytes, as many events as there are.
async fn watched(api: &Api, path: &str, accept: &str) -> Vec<u8> {
    let response = api.raw("GET", path, "", accept, Vec::new()).await;
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
    }
    bytes
}

const RESOURCES: [(&str, &str); 6] = [
    ("pods", "/api/v1/namespaces/default/pods"),
    ("configmaps", "/api/v1/namespaces/default/configmaps"),
    (
        "scalers",
        "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
    ),
    (
        "scalers-v1",
        "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
    ),
    ("tabs", "/apis/x.example.com/v1/namespaces/default/tabs"),
    ("tabs-v2", "/apis/x.example.com/v2/namespaces/default/tabs"),
];

#[tokio::test]
async fn answers_are_what_they_were() {
    let api = Api::starting(filled().await);
    api.server.ready().await;
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    api.post(crds, definition()).await.expect(201);
    for version in ["v1", "v2"] {
        api.until(&format!("/apis/x.example.com/{version}/namespaces/default/tabs"), |a| {
            a.code == 200
        })
        .await;
    }
    let mut found = String::new();
    let mut note = |name: String, code: u16, body: &[u8]| {
        writeln!(
            found,
            "{name} {code} {} {}",
            body.len(),
            hex::encode(Sha256::digest(body))
        )
        .unwrap();
        if std::env::var("SHOW").is_ok_and(|shown| shown == name) {
            println!("{}", String::from_utf8_lossy(body));
        }
    };
    for (resource, path) in RESOURCES {
        for (shape, accept) in SHAPES {
            let exact = "resourceVersion=12&resourceVersionMatch=Exact";
            for (what, query, suffix) in [
                ("list", exact.to_string(), "List"),
                ("list-by-label", format!("{exact}&labelSelector=app%3Dweb"), "List"),
                ("list-of-none", format!("{exact}&labelSelector=app%3Dother"), "List"),
                ("list-page", format!("{exact}&limit=2"), "List"),
                ("list-without-objects", format!("{exact}&includeObject=None"), "List"),
                ("list-with-objects", format!("{exact}&includeObject=Object"), "List"),
            ] {
                if what.contains("objects") && !shape.starts_with("table") {
                    continue;
                }
                let accept = accept.replace("{}", suffix);
                let answer = api
                    .call("GET", &format!("{path}?{query}"), "", &accept, Vec::new())
                    .await;
                note(format!("{resource} {shape} {what}"), answer.code, &answer.bytes);
            }
            let accept = accept.replace("{}", "");
            // Twice and more often: what is asked for again may come from elsewhere.
            for _ in 0..3 {
                let answer = api.call("GET", &format!("{path}/b"), "", &accept, Vec::new()).await;
                note(format!("{resource} {shape} get"), answer.code, &answer.bytes);
            }
        }
    }
    let watches = RESOURCES
        .iter()
        .flat_map(|resource| SHAPES.iter().map(move |shape| (resource, shape)));
    let watches = watches.map(|((resource, path), (shape, accept))| {
        let (api, accept) = (&api, accept.replace("{}", ""));
        async move {
            let initial = format!("{path}?watch=true&resourceVersion=0&timeoutSeconds=2");
            (
                format!("{resource} {shape} watch"),
                watched(api, &initial, &accept).await,
            )
        }
    });
    for (name, bytes) in futures::future::join_all(watches).await {
        note(name, 200, &bytes);
    }
    let wanted = include_str!("bytes.txt");
    if found != wanted {
        for (found, wanted) in found.lines().zip(wanted.lines()).filter(|(f, w)| f != w) {
            println!("found  {found}\nwanted {wanted}");
        }
        println!("{found}");
    }
    assert!(found == wanted, "answers differ");
}

/// What is kept for the next reader is what the first one got.
#[tokio::test]
async fn lists_read_again_are_the_same() {
    let api = Api::starting(filled().await);
    api.server.ready().await;
    for (_, path) in &RESOURCES[..4] {
        for (_, accept) in SHAPES {
            let accept = accept.replace("{}", "List");
            let mut first = None;
            for _ in 0..4 {
                let answer = api.call("GET", path, "", &accept, Vec::new()).await.expect(200);
                // The list's own revision goes on meanwhile, at a server's start.
                let text = String::from_utf8_lossy(&answer.bytes).len();
                assert_eq!(*first.get_or_insert(text), text, "{path} {accept}");
            }
        }
    }
}
