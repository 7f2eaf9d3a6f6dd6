//! Against upstream's own documents, where the Go module cache has them; and against what is committed here.

use super::*;
use crate::request::{RequestInfo, UserInfo};
use keelson_registry::resources;

fn discovery() -> Discovery {
    Discovery::new(
        Arc::new(ResourceTable::new(resources::rows())),
        Arc::new(Services::default()),
    )
}

async fn get(path: &str, accept: &str) -> (StatusCode, HeaderMap, Value) {
    let request = http::Request::get(path)
        .header("accept", accept)
        .body(Body::empty())
        .unwrap();
    let info = RequestInfo::parse(request.method(), request.uri()).unwrap();
    let answer = discovery()
        .serve(&RequestContext::new(info, UserInfo::anonymous()), &request)
        .unwrap();
    let (head, body) = answer.into_parts();
    let bytes = body.collect(1 << 24).await.unwrap();
    (
        head.status,
        head.headers,
        serde_json::from_slice(&bytes).unwrap_or_default(),
    )
}

#[tokio::test]
async fn plain_documents_name_groups_and_resources() {
    let (_, _, apis) = get("/apis", "application/json").await;
    let names: Vec<&str> = apis
        .get("groups")
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(|g| g.get("name").unwrap().as_str().unwrap())
        .collect();
    assert_eq!(
        names[..4],
        [
            "apiregistration.k8s.io",
            "apps",
            "events.k8s.io",
            "authentication.k8s.io"
        ]
    );
    let (_, _, apps) = get("/apis/apps/v1", "application/json").await;
    let list = apps.get("resources").unwrap().as_array().unwrap();
    let scale = list
        .iter()
        .find(|r| r.get("name").unwrap().as_str() == Some("deployments/scale"))
        .unwrap();
    assert_eq!(
        serde_json::to_string(scale).unwrap(),
        r#"{"group":"autoscaling","kind":"Scale","name":"deployments/scale","namespaced":true,"singularName":"","verbs":["get","patch","update"],"version":"v1"}"#
    );
}

#[tokio::test]
async fn the_aggregated_document_has_an_etag_and_is_preferred_when_asked_for() {
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let (code, headers, body) = get("/apis", &format!("{v2},application/json")).await;
    assert_eq!((code, headers["content-type"].to_str().unwrap()), (StatusCode::OK, v2));
    assert_eq!(body.get("kind").unwrap().as_str(), Some("APIGroupDiscoveryList"));
    let etag = headers["etag"].to_str().unwrap().to_string();
    let again = conditional(
        &HeaderMap::from_iter([(header::IF_NONE_MATCH, etag.parse().unwrap())]),
        &Document {
            bytes: Bytes::new(),
            etag,
        },
        v2,
    );
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let (_, headers, _) = get("/apis", &format!("application/json,{v2}")).await;
    assert_eq!(headers["content-type"], "application/json");
}

#[test]
fn versions_sort_as_upstream_sorts_them() {
    let mut versions = ["v1alpha1", "v2", "foo10", "v1beta1", "v10", "v1", "v2beta1", "foo1"];
    versions.sort_by(|a, b| plain::compare_versions(b, a));
    assert_eq!(
        versions,
        ["v10", "v2", "v1", "v2beta1", "v1beta1", "v1alpha1", "foo1", "foo10"]
    );
}
