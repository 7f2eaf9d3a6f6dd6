//! Every route and verb that the server has, drawn from its own tables: refused to nobody, and to somebody without
//! permission. What is open is listed here, and that list only shrinks.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::Api;
use keelson_apiserver::Body;
use keelson_apiserver::request::UserInfo;
use keelson_apiserver::serve::Handle;
use keelson_registry::ResourceDef;
use keelson_store::Memory;
use std::collections::BTreeSet;
use std::sync::Arc;
use tower::ServiceExt;

/// Open to whoever is known: upstream's role `system:basic-user`.
const OPEN_TO_THE_KNOWN: &[&str] = &[
    "POST /apis/authentication.k8s.io/v1/selfsubjectreviews",
    "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
];
/// Open to everybody: `system:public-info-viewer`.
const OPEN_TO_ALL: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];
/// Open to whoever is known, besides: discovery (`system:discovery`), by its roots.
const DISCOVERY: &[&str] = &["/api", "/apis", "/openapi"];

fn method(verb: &str) -> &'static str {
    match verb {
        "get" | "list" | "watch" => "GET",
        "create" => "POST",
        "update" => "PUT",
        "patch" => "PATCH",
        "delete" | "deletecollection" => "DELETE",
        other => panic!("a verb without a method: {other}"),
    }
}

/// Method and path of each verb of a row.
fn routes_of(def: &ResourceDef) -> BTreeSet<(&'static str, String)> {
    let gv = match def.gvr.group.as_str() {
        "" => format!("/api/{}", def.gvr.version),
        group => format!("/apis/{group}/{}", def.gvr.version),
    };
    let resource = &def.gvr.resource;
    let collection = if def.namespaced {
        format!("{gv}/namespaces/n/{resource}")
    } else {
        format!("{gv}/{resource}")
    };
    let mut routes = BTreeSet::new();
    for verb in &def.verbs {
        let path = match verb.as_str() {
            "list" | "create" | "deletecollection" => collection.clone(),
            "watch" => format!("{collection}?watch=true"),
            _ => format!("{collection}/x"),
        };
        routes.insert((method(verb), path));
        if def.namespaced && verb == "list" {
            routes.insert(("GET", format!("{gv}/{resource}")));
        }
        if verb == "watch" {
            routes.insert(("GET", format!("{gv}/watch/{resource}")));
            routes.insert(("GET", format!("{collection}/x?watch=true")));
        }
    }
    for sub in &def.subresources {
        let path = format!("{collection}/x/{}", sub.name);
        routes.extend(sub.verbs.iter().map(|verb| (method(verb), path.clone())));
        if sub.name == "proxy" {
            routes.insert(("GET", format!("{path}/some/path")));
        }
    }
    routes
}

async fn nobody(api: &Api, method: &str, path: &str) -> u16 {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .body(Body::empty())
        .unwrap();
    let handle: Arc<dyn Handle> = api.server.handle();
    handle.handle(request).await.status().as_u16()
}

async fn stranger(api: &Api, method: &str, path: &str) -> u16 {
    let user = UserInfo::new("stranger", &["system:authenticated"]);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .body(Body::empty())
        .unwrap();
    api.server
        .service(user)
        .oneshot(request)
        .await
        .unwrap()
        .status()
        .as_u16()
}

#[tokio::test]
async fn every_route_is_refused_without_identity_and_without_permission() {
    let api = Api::new().await;
    let closed = Api::starting_with(Memory::new(), |config| config.authentication.anonymous.enabled = false);
    closed.server.ready().await;
    let table = api.server.state().table.snapshot();
    let routes: BTreeSet<_> = table.iter().flat_map(|def| routes_of(def)).collect();
    assert!(routes.len() > 800, "{} routes", routes.len());
    let mut open = BTreeSet::new();
    for (method, path) in &routes {
        assert_eq!(
            nobody(&api, method, path).await,
            403,
            "{method} {path} without identity"
        );
        assert_eq!(
            nobody(&closed, method, path).await,
            401,
            "{method} {path} where nobody is anonymous"
        );
        let code = stranger(&api, method, path).await;
        if code != 403 {
            open.insert(format!("{method} {path}"));
        }
    }
    assert_eq!(open, OPEN_TO_THE_KNOWN.iter().map(ToString::to_string).collect());
    // The routes are real: who may do everything is not refused, whatever else is wrong with such a request.
    for (method, path) in routes
        .iter()
        .filter(|(method, path)| *method == "GET" && !path.contains("watch"))
    {
        let code = api.get(path).await.code;
        assert!(!matches!(code, 401 | 403 | 405), "{method} {path}: {code}");
    }
}

#[tokio::test]
async fn every_other_path_is_refused_too() {
    let api = Api::new().await;
    let closed = Api::starting_with(Memory::new(), |config| config.authentication.anonymous.enabled = false);
    closed.server.ready().await;
    let index = api.get("/").await.expect(200).json();
    let listed = index
        .get("paths")
        .and_then(keelson_api::Value::as_array)
        .unwrap()
        .clone();
    let mut paths: BTreeSet<String> = listed.iter().filter_map(|p| p.as_str()).map(String::from).collect();
    paths.extend(
        [
            "/",
            "/metrics/slis",
            "/livez/etcd",
            "/readyz/poststarthook/rbac/bootstrap-roles",
            "/nothing",
        ]
        .map(String::from),
    );
    paths.extend(
        [
            "/openapi/v3/api/v1",
            "/logs",
            "/debug/pprof/",
            "/keelson/secrets",
            "/keelson/secrets/rotate",
            "/keelson/secrets/rewrite",
            "/keelson/store/snapshots",
            "/keelson/backup/pictures",
            "/keelson/upgrade/order",
            "/keelson/upgrade/programs",
            "/api/v1/nothing",
            "/apis/x.example.com",
        ]
        .map(String::from),
    );
    assert!(paths.len() > 40);
    for path in &paths {
        let all = OPEN_TO_ALL.contains(&path.as_str());
        let below = |root: &&str| path == *root || path.starts_with(&format!("{root}/"));
        let known = DISCOVERY.iter().any(below) && path != "/api/v1/nothing";
        assert_eq!(nobody(&closed, "GET", path).await, 401, "{path}");
        assert_eq!(nobody(&api, "GET", path).await != 403, all, "{path} without identity");
        assert_eq!(
            stranger(&api, "GET", path).await != 403,
            all || known,
            "{path} without permission"
        );
        assert_eq!(stranger(&api, "POST", path).await, 403, "POST {path}");
    }
}

/// What a server counts while it works is on its page, in upstream's families, and nothing twice.
#[tokio::test]
async fn what_happens_is_measured_and_told_once() {
    let api = Api::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = keelson_api::value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}});
    api.post(maps, map).await.expect(201);
    api.get(maps).await.expect(200);
    assert_eq!(
        api.watch(&format!("{maps}?watch=1&resourceVersion=0"), 1).await.len(),
        1
    );
    api.delete(&format!("{maps}/one")).await.expect(200);
    let page = String::from_utf8(api.get("/metrics").await.expect(200).bytes.to_vec()).unwrap();
    assert_eq!(keelson_measure::golden::repeated(&page), Vec::<String>::new());
    let counted = |name: &str, labels: &[&str]| {
        let is_it = |l: &&str| l.starts_with(&format!("{name}{{")) && labels.iter().all(|label| l.contains(label));
        let line = page.lines().find(is_it);
        let count = line
            .and_then(|l| l.rsplit_once(' '))
            .and_then(|(_, n)| n.parse::<f64>().ok());
        count.unwrap_or_else(|| panic!("{name} {labels:?} is not in\n{page}"))
    };
    let resource = r#"resource="configmaps""#;
    for (name, labels) in [
        ("apiserver_watch_events_total", &[resource][..]),
        ("apiserver_watch_events_sizes_sum", &[resource]),
        ("apiserver_response_sizes_sum", &[resource, r#"verb="LIST""#]),
        ("etcd_requests_total", &[resource, r#"operation="create""#]),
        ("etcd_requests_total", &[resource, r#"operation="delete""#]),
        (
            "etcd_request_duration_seconds_count",
            &[resource, r#"operation="list""#],
        ),
        (
            "apiserver_admission_step_admission_duration_seconds_count",
            &[r#"type="admit""#],
        ),
        (
            "apiserver_admission_controller_admission_duration_seconds_count",
            &[
                r#"name="NamespaceLifecycle""#,
                r#"operation="CREATE""#,
                r#"type="admit""#,
            ],
        ),
        (
            "apiserver_admission_controller_admission_duration_seconds_count",
            &[r#"name="ResourceQuota""#, r#"operation="CREATE""#, r#"type="validate""#],
        ),
        (
            "apiserver_flowcontrol_dispatched_requests_total",
            &[r#"priority_level="exempt""#],
        ),
        ("authentication_attempts", &[r#"result="success""#]),
        ("authorization_attempts_total", &[r#"result="allowed""#]),
        ("apiserver_storage_size_bytes", &[]),
        ("kubernetes_build_info", &[r#"major="1""#]),
    ] {
        assert!(counted(name, labels) > 0.0, "{name}");
    }
    assert!(!page.contains(r#"name="ResourceQuota",operation="CREATE",rejected="false",type="admit""#));
}
