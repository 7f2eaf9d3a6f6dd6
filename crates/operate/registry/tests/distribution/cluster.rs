//! Who may do what is the cluster's to say: here one that is played.

use crate::support::Running;
use base64::Engine;
use http_body_util::BodyExt;
use keelson_client::Rest;
use keelson_client::reviews::{Remember, Reviews};
use keelson_distribution::{Access, Bounds};
use serde_json::{Value, json};
use std::convert::Infallible;

/// A token is its user's name. `dev` may pull and push in the namespace `team`, `reader` may pull there; `other` may do both in `other`.
async fn judge(request: http::Request<kube::client::Body>) -> Result<http::Response<kube::client::Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let spec = serde_json::from_slice::<Value>(&body).unwrap()["spec"].clone();
    let status = if path.ends_with("tokenreviews") {
        let known = ["dev", "reader", "other", "nobody-special"]
            .iter()
            .any(|name| spec["token"] == *name);
        json!({"authenticated": known, "user": {"username": spec["token"], "groups": ["system:authenticated"]}})
    } else {
        let asked = &spec["resourceAttributes"];
        assert_eq!(
            (&asked["group"], &asked["resource"]),
            (&json!("registry.keelson.dev"), &json!("repositories"))
        );
        let (namespace, verbs): (&str, &[&str]) = match spec["user"].as_str() {
            Some("dev") => ("team", &["get", "update"]),
            Some("reader") => ("team", &["get"]),
            Some("other") => ("other", &["get", "update"]),
            _ => ("", &[]),
        };
        let allowed = asked["namespace"] == namespace && verbs.iter().any(|verb| asked["verb"] == *verb);
        json!({"allowed": allowed})
    };
    let answer = json!({"status": status}).to_string();
    Ok(http::Response::new(kube::client::Body::from(answer.into_bytes())))
}

async fn registry(anonymous_pull: bool, realm: Option<&str>) -> Running {
    let rest = Rest::new(kube::Client::new(tower::service_fn(judge), "default"), "test");
    let access = Access::Cluster {
        reviews: Reviews::remembering(rest, false, Remember::SHORTLY),
        revocations: None,
        anonymous_pull,
        realm: realm.map(str::to_owned),
    };
    Running::new(access, Bounds::default(), Vec::new()).await
}

fn basic(token: &str) -> String {
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("any:{token}"))
    )
}

async fn status(registry: &Running, method: &str, path: &str, shown: &str) -> u16 {
    let headers = [("authorization", shown)];
    let headers = if shown.is_empty() { &[][..] } else { &headers[..] };
    registry.ask(method, path, headers, "").await.status
}

#[tokio::test]
async fn rights_to_repositories_are_the_namespaces_of_the_cluster() {
    let registry = registry(false, None).await;
    let begin = "/v2/team/app/blobs/uploads/";
    for (method, path, shown, want) in [
        ("GET", "/v2/", String::new(), 401),
        ("GET", "/v2/", basic("dev"), 200),
        ("GET", "/v2/", "Bearer dev".to_owned(), 200),
        ("GET", "/v2/", basic("stranger"), 401),
        ("POST", begin, basic("dev"), 202),
        ("POST", begin, basic("reader"), 403),
        ("POST", begin, String::new(), 401),
        ("POST", "/v2/other/app/blobs/uploads/", basic("dev"), 403),
        ("POST", "/v2/app/blobs/uploads/", basic("dev"), 403),
        ("GET", "/v2/team/app/tags/list", basic("reader"), 404),
        ("GET", "/v2/team/app/tags/list", basic("nobody-special"), 403),
        ("DELETE", "/v2/team/app/manifests/x", basic("dev"), 403),
        ("GET", "/v2/_catalog", basic("dev"), 403),
    ] {
        assert_eq!(
            status(&registry, method, path, &shown).await,
            want,
            "{method} {path} {shown}"
        );
    }
    let refused = registry.ask("GET", "/v2/team/app/tags/list", &[], "").await;
    assert_eq!(refused.header("www-authenticate"), "Basic realm=\"keelson\"");
    let denied = registry
        .ask("POST", begin, &[("authorization", &basic("reader"))], "")
        .await;
    assert_eq!(denied.code(), "DENIED");
    let text = String::from_utf8_lossy(&denied.body).into_owned();
    assert!(
        text.contains("reader can't update repositories.registry.keelson.dev app in the namespace team"),
        "{text}"
    );
}

#[tokio::test]
async fn nobody_gets_a_blob_by_mounting_it_from_where_he_may_not_read() {
    let registry = registry(false, None).await;
    let dev = basic("dev");
    let digest = keelson_oci::digest::of(b"secret");
    let path = format!("/v2/team/private/blobs/uploads/?digest={digest}");
    let pushed = registry.ask("POST", &path, &[("authorization", &dev)], "secret").await;
    assert_eq!(pushed.status, 201);
    for from in ["&from=team/private", ""] {
        let path = format!("/v2/team/copy/blobs/uploads/?mount={digest}{from}");
        assert_eq!(status(&registry, "POST", &path, &dev).await, 201, "{from}");
    }
    // Who may push elsewhere, and may not read here, is told to send it.
    for from in ["&from=team/private", ""] {
        let path = format!("/v2/other/copy/blobs/uploads/?mount={digest}{from}");
        assert_eq!(status(&registry, "POST", &path, &basic("other")).await, 202, "{from}");
    }
    let copy = format!("/v2/other/copy/blobs/{digest}");
    assert_eq!(status(&registry, "GET", &copy, &basic("other")).await, 404);
}

#[tokio::test]
async fn a_token_service_is_there_for_who_asks_for_one_and_the_anonymous_may_pull() {
    let registry = registry(true, Some("https://registry.example/token")).await;
    let refused = registry.ask("POST", "/v2/team/app/blobs/uploads/", &[], "").await;
    assert_eq!(refused.status, 401);
    let challenges: Vec<_> = refused.headers.get_all("www-authenticate").iter().collect();
    assert_eq!(
        challenges[0],
        "Bearer realm=\"https://registry.example/token\",service=\"keelson\",scope=\"repository:team/app:pull,push\""
    );
    assert_eq!(challenges[1], "Basic realm=\"keelson\"");
    let token = async |shown: &str| {
        let headers = [("authorization", shown)];
        let headers = if shown.is_empty() { &[][..] } else { &headers[..] };
        let answer = registry.ask("GET", "/token?service=keelson", headers, "").await;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        (answer.status, body["token"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(token(&basic("dev")).await, (200, "dev".to_owned()));
    assert_eq!(token(&basic("stranger")).await.0, 401);
    let (code, anonymous) = token("").await;
    assert_eq!(code, 200);
    assert_eq!(
        status(
            &registry,
            "GET",
            "/v2/any/thing/manifests/x",
            &format!("Bearer {anonymous}")
        )
        .await,
        404
    );
    assert_eq!(status(&registry, "GET", "/v2/any/thing/manifests/x", "").await, 404);
    assert_eq!(
        status(
            &registry,
            "POST",
            "/v2/any/blobs/uploads/",
            &format!("Bearer {anonymous}")
        )
        .await,
        401
    );
}
