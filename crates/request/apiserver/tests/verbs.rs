//! Verbs, options and formats through the whole chain.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};
use std::time::Duration;

fn config_map(name: &str) -> Value {
    value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": name}}, "data": {"k": "v"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn objects_are_created_read_updated_and_deleted() {
    let api = Api::new().await;
    let made = api.post(MAPS, config_map("a")).await.expect(201);
    assert!(!made.str(&["metadata", "uid"]).is_empty());
    assert!(made.str(&["metadata", "creationTimestamp"]).ends_with('Z'));
    assert_eq!(
        made.json()
            .at(&["metadata", "managedFields"])
            .and_then(Value::as_array)
            .map(Vec::len),
        Some(1)
    );
    let rv = made.str(&["metadata", "resourceVersion"]);

    let again = api.post(MAPS, config_map("a")).await.expect(409);
    assert_eq!(again.str(&["reason"]), "AlreadyExists");
    assert_eq!(again.str(&["message"]), "configmaps \"a\" already exists");

    let read = api.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(read.json(), made.json());
    assert!(read.bytes.starts_with(br#"{"kind":"ConfigMap","apiVersion":"v1","#));

    // A new object is at no revision; a dry run doesn't get as far as to be told.
    let mut versioned = config_map("versioned");
    versioned.set_at(&["metadata", "resourceVersion"], rv.as_str());
    let refused = api.post(MAPS, versioned.clone()).await.expect(500);
    assert_eq!(
        refused.str(&["message"]),
        "resourceVersion should not be set on objects to be created"
    );
    api.post(&format!("{MAPS}?dryRun=All"), versioned).await.expect(201);

    // An update that changes nothing writes nothing.
    let same = api.put(&format!("{MAPS}/a"), read.json()).await.expect(200);
    assert_eq!(same.str(&["metadata", "resourceVersion"]), rv);

    let mut changed = read.json();
    changed.set_at(&["data", "k"], "w");
    let updated = api.put(&format!("{MAPS}/a"), changed.clone()).await.expect(200);
    assert_ne!(updated.str(&["metadata", "resourceVersion"]), rv);
    let stale = api.put(&format!("{MAPS}/a"), changed).await.expect(409);
    assert_eq!(
        stale.str(&["message"]),
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );

    let patched = api
        .patch(
            &format!("{MAPS}/a"),
            "merge-patch+json",
            value!({"data": {"x": "y", "k": null}}),
        )
        .await
        .expect(200);
    assert_eq!(patched.json().at(&["data"]), Some(&value!({"x": "y"})));
    let ops = value!([{"op": "test", "path": "/data/x", "value": "no"}]);
    api.patch(&format!("{MAPS}/a"), "json-patch+json", ops)
        .await
        .expect(422);
    api.patch(&format!("{MAPS}/a"), "apply-patch+cbor", value!({}))
        .await
        .expect(415);

    let gone = api.delete(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(
        (gone.str(&["kind"]), gone.str(&["status"])),
        ("Status".into(), "Success".into())
    );
    assert_eq!(gone.str(&["details", "uid"]), made.str(&["metadata", "uid"]));
    let missing = api.get(&format!("{MAPS}/a")).await.expect(404);
    assert_eq!(missing.str(&["message"]), "configmaps \"a\" not found");
    api.post("/api/v1/namespaces/nowhere/configmaps", config_map("a"))
        .await
        .expect(404);
}

#[tokio::test]
async fn unknown_fields_are_warned_of_or_refused() {
    let api = Api::new().await;
    let mut odd = config_map("odd");
    odd.set_at(&["metadata", "flavour"], "sweet");
    let strict = api
        .post(&format!("{MAPS}?fieldValidation=Strict"), odd.clone())
        .await
        .expect(400);
    assert_eq!(
        strict.str(&["message"]),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"metadata.flavour\""
    );
    let warned = api.post(MAPS, odd).await.expect(201);
    assert_eq!(
        warned.headers["warning"],
        "299 - \"unknown field \\\"metadata.flavour\\\"\""
    );
    let wrong = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "w"}, "data": {"k": 1}});
    api.post(MAPS, wrong).await.expect(400);
    api.post(
        MAPS,
        value!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "w"}}),
    )
    .await
    .expect(400);
    let dry = api
        .post(&format!("{MAPS}?dryRun=All"), config_map("dry"))
        .await
        .expect(201);
    assert!(!dry.str(&["metadata", "uid"]).is_empty());
    api.get(&format!("{MAPS}/dry")).await.expect(404);
    api.post(&format!("{MAPS}?dryRun=Some"), config_map("dry"))
        .await
        .expect(422);
}

#[tokio::test]
async fn lists_have_pages_and_selectors() {
    let api = Api::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        api.post(MAPS, config_map(name)).await.expect(201);
    }
    let page = api.get(&format!("{MAPS}?limit=2")).await.expect(200).json();
    assert_eq!(page.at(&["items"]).and_then(Value::as_array).map(Vec::len), Some(2));
    assert_eq!(page.at(&["metadata", "remainingItemCount"]), Some(&Value::Int(3)));
    let token = page
        .at(&["metadata", "continue"])
        .and_then(Value::as_str)
        .unwrap()
        .to_string();
    api.post(MAPS, config_map("bb")).await.expect(201);
    let rest = api
        .get(&format!("{MAPS}?limit=10&continue={token}"))
        .await
        .expect(200)
        .json();
    let names: Vec<&str> = rest
        .get("items")
        .and_then(Value::as_array)
        .unwrap()
        .iter()
        .filter_map(|i| i.at(&["metadata", "name"])?.as_str())
        .collect();
    assert_eq!(names, ["c", "d", "e"], "a later page shows the same moment");
    assert_eq!(
        rest.at(&["metadata", "resourceVersion"]),
        page.at(&["metadata", "resourceVersion"])
    );
    let item = &page.get("items").and_then(Value::as_array).unwrap()[0];
    assert!(item.get("kind").is_none() && item.get("apiVersion").is_none());

    let some = api
        .get(&format!("{MAPS}?labelSelector=app%20in%20(a,c)"))
        .await
        .expect(200)
        .json();
    assert_eq!(some.get("items").and_then(Value::as_array).map(Vec::len), Some(2));
    let one = api
        .get(&format!("{MAPS}?fieldSelector=metadata.name%3Db"))
        .await
        .expect(200)
        .json();
    assert_eq!(one.get("items").and_then(Value::as_array).map(Vec::len), Some(1));
    let bad = api.get(&format!("{MAPS}?fieldSelector=spec.foo%3Db")).await.expect(400);
    assert_eq!(
        bad.str(&["message"]),
        "\"spec.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
    api.get(&format!("{MAPS}?resourceVersionMatch=Exact")).await.expect(422);
    let none = api.get("/api/v1/namespaces/default/pods").await.expect(200);
    assert!(String::from_utf8_lossy(&none.bytes).contains("\"items\":[]"));
    let deleted = api
        .call(
            "DELETE",
            &format!("{MAPS}?labelSelector=app"),
            "",
            "application/json",
            Vec::new(),
        )
        .await
        .expect(200);
    assert_eq!(deleted.str(&["kind"]), "ConfigMapList");
    let left = api.get(&format!("{MAPS}?labelSelector=app")).await.expect(200).json();
    assert_eq!(left.get("items").and_then(Value::as_array).map(Vec::len), Some(0));
}

#[tokio::test]
async fn a_watch_ends_in_time_though_there_is_more_to_tell() {
    let api = Api::new().await;
    let watch = api
        .raw("GET", &format!("{MAPS}?watch=1&timeoutSeconds=1"), "", "", Vec::new())
        .await;
    assert_eq!(watch.status(), 200);
    api.post(MAPS, config_map("a")).await.expect(201);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let told = watch.into_body().collect(1 << 20).await.unwrap();
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn watches_tell_what_happens() {
    let api = Api::new().await;
    let made = api.post(MAPS, config_map("a")).await.expect(201);
    let rv = made.str(&["metadata", "resourceVersion"]);
    api.patch(&format!("{MAPS}/a"), "merge-patch+json", value!({"data": {"x": "y"}}))
        .await
        .expect(200);
    api.delete(&format!("{MAPS}/a")).await.expect(200);
    let long = i64::MAX;
    let path = format!("{MAPS}?watch=1&resourceVersion={rv}&timeoutSeconds={long}");
    let events = api.watch(&path, 2).await;
    let kinds: Vec<&str> = events.iter().filter_map(|e| e.get("type")?.as_str()).collect();
    assert_eq!(kinds, ["MODIFIED", "DELETED"]);
    assert_eq!(
        events[1].at(&["object", "kind"]).and_then(Value::as_str),
        Some("ConfigMap")
    );

    let initial = api
        .watch(
            "/api/v1/namespaces?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&labelSelector=none",
            1,
        )
        .await;
    assert_eq!(initial[0].get("type").and_then(Value::as_str), Some("BOOKMARK"));
    assert_eq!(
        initial[0]
            .at(&["object", "metadata", "annotations", "k8s.io/initial-events-end"])
            .and_then(Value::as_str),
        Some("true")
    );
    api.get(&format!("{MAPS}?watch=1&sendInitialEvents=true"))
        .await
        .expect(422);
}

#[tokio::test]
async fn other_shapes_and_formats() {
    let api = Api::new().await;
    api.post(MAPS, config_map("a")).await.expect(201);
    let path = format!("{MAPS}?labelSelector=app");
    let table = api
        .call(
            "GET",
            &path,
            "",
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Vec::new(),
        )
        .await
        .expect(200)
        .json();
    assert_eq!(table.get("kind").and_then(Value::as_str), Some("Table"));
    let rows = table.get("rows").and_then(Value::as_array).unwrap();
    assert_eq!(
        rows[0].get("cells").and_then(Value::as_array).unwrap()[0],
        Value::from("a")
    );
    assert_eq!(
        rows[0].at(&["object", "kind"]).and_then(Value::as_str),
        Some("PartialObjectMetadata")
    );
    let partial = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let list = api.call("GET", &path, "", partial, Vec::new()).await.expect(200).json();
    assert_eq!(
        list.get("kind").and_then(Value::as_str),
        Some("PartialObjectMetadataList")
    );
    assert!(
        list.get("items").and_then(Value::as_array).unwrap()[0]
            .get("data")
            .is_none()
    );
    let yaml = api
        .call("GET", &format!("{MAPS}/a"), "", "application/yaml", Vec::new())
        .await
        .expect(200);
    assert!(String::from_utf8_lossy(&yaml.bytes).contains("kind: ConfigMap"));
    let proto = api
        .call("GET", &path, "", "application/vnd.kubernetes.protobuf", Vec::new())
        .await
        .expect(200);
    assert!(proto.bytes.starts_with(b"k8s\0"));
    let envelope = keelson_api::codec::proto::open(&proto.bytes).unwrap();
    let schema = keelson_api::builtin::builtin_kind_at("v1", "ConfigMapList").unwrap();
    let items = envelope.decode(&schema).unwrap().arr("items").cloned().unwrap();
    assert_eq!(items[0].at(&["metadata", "name"]).and_then(Value::as_str), Some("a"));
    assert!(items[0].at(&["metadata", "resourceVersion"]).is_some());
    api.call("GET", &path, "", "text/html", Vec::new()).await.expect(406);
    api.call("POST", MAPS, "text/plain", "application/json", b"x".to_vec())
        .await
        .expect(415);
    api.call(
        "POST",
        MAPS,
        "application/json",
        "application/json",
        vec![b' '; 4 << 20],
    )
    .await
    .expect(413);
}

#[tokio::test]
async fn apply_owns_fields_and_conflicts_with_others() {
    let api = Api::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    let deployment = |replicas: i64| {
        value!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        })
    };
    let apply = "apply-patch+yaml";
    api.patch(path, apply, deployment(1)).await.expect(422);
    let made = api
        .patch(&format!("{path}?fieldManager=one"), apply, deployment(1))
        .await
        .expect(201);
    assert_eq!(made.json().at(&["metadata", "generation"]), Some(&Value::Int(1)));
    assert_eq!(made.json().at(&["spec", "revisionHistoryLimit"]), Some(&Value::Int(10)));
    let conflict = api
        .patch(&format!("{path}?fieldManager=two"), apply, deployment(2))
        .await
        .expect(409);
    assert_eq!(conflict.str(&["reason"]), "Conflict");
    assert!(
        conflict
            .str(&["message"])
            .contains("conflict with \"one\": .spec.replicas")
    );
    let forced = api
        .patch(&format!("{path}?fieldManager=two&force=true"), apply, deployment(2))
        .await
        .expect(200);
    assert_eq!(forced.json().at(&["metadata", "generation"]), Some(&Value::Int(2)));

    let scale = api.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(scale.str(&["kind"]), "Scale");
    assert_eq!(scale.str(&["status", "selector"]), "app=web");
    let scaled = api
        .patch(
            &format!("{path}/scale"),
            "merge-patch+json",
            value!({"spec": {"replicas": 5}}),
        )
        .await
        .expect(200);
    assert_eq!(scaled.json().at(&["spec", "replicas"]), Some(&Value::Int(5)));
    let status = api
        .patch(
            &format!("{path}/status"),
            "merge-patch+json",
            value!({"status": {"replicas": 3}, "spec": {"replicas": 9}}),
        )
        .await
        .expect(200)
        .json();
    assert_eq!(status.at(&["spec", "replicas"]), Some(&Value::Int(5)));
    assert_eq!(status.at(&["status", "replicas"]), Some(&Value::Int(3)));
}

#[tokio::test]
async fn namespaces_and_finalizers_end_step_by_step() {
    let api = Api::new().await;
    api.post(
        "/api/v1/namespaces",
        value!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}),
    )
    .await
    .expect(201);
    let maps = "/api/v1/namespaces/n/configmaps";
    let mut held = config_map("held");
    held.set_at(&["metadata", "finalizers"], value!(["example.com/hold"]));
    api.post(maps, held).await.expect(201);
    let ended = api.delete(&format!("{maps}/held")).await.expect(200);
    assert_eq!(ended.str(&["kind"]), "ConfigMap");
    assert!(!ended.str(&["metadata", "deletionTimestamp"]).is_empty());
    api.get(&format!("{maps}/held")).await.expect(200);
    api.patch(
        &format!("{maps}/held"),
        "merge-patch+json",
        value!({"metadata": {"finalizers": null}}),
    )
    .await
    .expect(200);
    api.get(&format!("{maps}/held")).await.expect(404);

    let going = api.delete("/api/v1/namespaces/n").await.expect(200);
    assert_eq!(going.str(&["status", "phase"]), "Terminating");
    let late = api.post(maps, config_map("late")).await.expect(403);
    assert!(late.str(&["message"]).contains("because it is being terminated"));
    let mut empty = api.get("/api/v1/namespaces/n").await.expect(200).json();
    empty.set_at(&["spec", "finalizers"], Vec::<Value>::new());
    api.put("/api/v1/namespaces/n/finalize", empty).await.expect(200);
    api.get("/api/v1/namespaces/n").await.expect(404);
    api.delete("/api/v1/namespaces/default").await.expect(403);
}

#[tokio::test]
async fn a_write_is_completed_though_nobody_waits_for_it() {
    let api = Api::new().await;
    let services = "/api/v1/namespaces/default/services";
    let service = value!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let request = api.post(services, service);
    // The client goes as soon as the server has begun.
    assert!(futures::FutureExt::now_or_never(request).is_none());
    api.until(&format!("{services}/s"), |a| a.code == 200).await;
}
