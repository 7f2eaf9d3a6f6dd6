//! What is answered where nothing is served, and by methods that aren't: as upstream answers.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_api::{Value, value};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn what_is_served_nowhere_is_a_status_below_the_built_in_roots_and_text_elsewhere() {
    let api = Api::new().await;
    for path in [
        "/api/v1/namespaces/default/pods/x/scale",
        "/api/v1/namespaces/default/pods/x/status/more",
        "/api/v1/namespaces/default/pods/x/exec/more",
        "/api/v1/namespaces/default/nodes",
        "/api/v1/pods/x",
        "/api/v1/pods/x/log",
        "/api/v1/proxy/nodes/x",
        "/api/v1/nothing",
        "/api/nothing",
        "/api/v2",
        "/apis/apps/nothing",
        "/apis/apps/v1/nothing",
        "/apis/batch/v2/jobs",
        "/version/x",
    ] {
        let answer = api.get(path).await.expect(404);
        let expected = value!({
            "apiVersion": "v1", "code": 404, "details": {}, "kind": "Status",
            "message": "the server could not find the requested resource",
            "metadata": {}, "reason": "NotFound", "status": "Failure",
        });
        assert_eq!(answer.json(), expected, "{path}");
    }
    for path in [
        "/nothing",
        "/logs",
        "/metrics/x",
        "/openapi/v2/x",
        "/apis/x.example.com",
        "/apis/x.example.com/v1",
        "/apis/x.example.com/v1/namespaces/default/things",
    ] {
        let answer = api.get(path).await.expect(404);
        assert_eq!(answer.bytes, "404 page not found\n", "{path}");
    }
}

#[tokio::test]
async fn a_method_that_is_not_served_does_nothing() {
    let api = Api::new().await;
    let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "newname"}});
    let bytes = serde_json::to_vec(&map).unwrap();
    for (method, path) in [
        ("POST", format!("{MAPS}/newname")),
        ("PUT", MAPS.to_string()),
        ("PATCH", MAPS.to_string()),
        ("POST", "/api/v1/configmaps".to_string()),
        ("DELETE", "/api/v1/configmaps".to_string()),
        ("POST", "/api/v1/watch/configmaps".to_string()),
        (
            "POST",
            format!("{MAPS}?watch=true&x=/newname").replace("configmaps?", "configmaps/newname?"),
        ),
        ("POST", "/api/v1/namespaces/default/pods/x/status".to_string()),
        ("DELETE", "/api/v1/namespaces/default/pods/x/exec".to_string()),
        ("PUT", "/api/v1/namespaces/default/pods/x/log".to_string()),
        ("TRACE", format!("{MAPS}/newname")),
        ("POST", "/version".to_string()),
        ("POST", "/api".to_string()),
        ("POST", "/apis/apps/v1".to_string()),
    ] {
        let answer = api
            .call(method, &path, "application/json", "application/json", bytes.clone())
            .await
            .expect(405);
        let expected = value!({
            "apiVersion": "v1", "code": 405, "details": {}, "kind": "Status",
            "message": "the server does not allow this method on the requested resource",
            "metadata": {}, "reason": "MethodNotAllowed", "status": "Failure",
        });
        assert_eq!(answer.json(), expected, "{method} {path}");
    }
    api.get(&format!("{MAPS}/newname")).await.expect(404);
    let protobuf = api
        .call("GET", "/api/v2", "", "application/vnd.kubernetes.protobuf", Vec::new())
        .await
        .expect(404);
    assert!(protobuf.bytes.starts_with(b"k8s\0"));
    let version = api.get("/version").await.expect(200);
    assert!(version.bytes.starts_with(b"{\n  \""), "indented as upstream's");
}

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition() -> Value {
    value!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.x.example.com"},
        "spec": {
            "group": "x.example.com", "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

#[tokio::test]
async fn custom_resources_have_the_places_of_their_server() {
    const THINGS: &str = "/apis/x.example.com/v1/namespaces/default/things";
    let api = Api::new().await;
    api.post(CRDS, definition()).await.expect(201);
    api.until(THINGS, |a| a.code == 200).await;
    let thing = value!({"apiVersion": "x.example.com/v1", "kind": "Thing", "metadata": {"name": "t"}});
    let refused = api.post(&format!("{THINGS}/t"), thing.clone()).await.expect(405);
    assert_eq!(
        refused.str(&["message"]),
        "create is not supported on resources of kind \"things.x.example.com\""
    );
    assert_eq!(refused.str(&["details", "kind"]), "things");
    api.post("/apis/x.example.com/v1/things", thing).await.expect(404);
    let unknown = api.get(&format!("{THINGS}/t/status")).await.expect(404);
    assert_eq!(unknown.str(&["message"]), "things.x.example.com \"t\" not found");
    // Its discovery asks for no method.
    api.call("POST", "/apis/x.example.com/v1", "", "", Vec::new())
        .await
        .expect(200);
}
