//! ConfigMaps and Secrets that say with whom they are shared: copies follow them, come with namespaces and go when they are wanted no more; nothing
//! that is somebody else's is touched, and nothing is to be had that isn't given.

use keelson_testkit::objects::{ApiObject, ConfigMap, Secret};
use keelson_testkit::{Cluster, secs};
use serde_json::{Value, json};

/// What the program gives the controller, and no more.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: sharing}
rules:
- {apiGroups: [""], resources: [configmaps, secrets], verbs: [get, create, update, delete]}
- {apiGroups: ["", events.k8s.io], resources: [events], verbs: [create, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: sharing}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sharing}
subjects: [{kind: ServiceAccount, namespace: kube-system, name: keelson-sharing}]
"#;

fn namespace(name: &str, annotations: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}")
}

fn secret(namespace: &str, name: &str, annotations: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotations}}}}}\nstringData: {{k: '{value}'}}"
    )
}

async fn running() -> Cluster {
    let cluster = Cluster::builder()
        .controllers(&["namespace", "sharing"])
        .without_scheduler()
        .start()
        .await;
    cluster.apply(RIGHTS).await;
    for (name, annotations) in [
        ("infra", ""),
        ("shop-a", ""),
        ("shop-b", ""),
        ("closed", "keelson.dev/take-shared: 'false'"),
    ] {
        cluster.apply(&namespace(name, annotations)).await;
    }
    cluster
}

/// In which namespaces there is a secret of this name, with which value.
async fn values(cluster: &Cluster, name: &str) -> Vec<(String, String)> {
    let all = cluster.list::<Secret>("").await;
    let named = all.iter().filter(|s| s.name() == name);
    let value = |s: &Secret| {
        s.data
            .as_ref()
            .and_then(|d| d.get("k"))
            .map(|v| String::from_utf8_lossy(&v.0).into_owned())
    };
    let mut found: Vec<_> = named
        .map(|s| (s.namespace().to_owned(), value(s).unwrap_or_default()))
        .collect();
    found.sort();
    found
}

async fn are(cluster: &Cluster, name: &str, wanted: &[(&str, &str)]) {
    let wanted: Vec<_> = wanted.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let what = format!("{name}: {wanted:?}");
    cluster
        .eventually(&what, secs(30), async || is(cluster, name, &wanted).await)
        .await;
    cluster
        .stays(&what, secs(30), async || is(cluster, name, &wanted).await)
        .await;
}

async fn is(cluster: &Cluster, name: &str, wanted: &[(String, String)]) -> Result<(), String> {
    let found = values(cluster, name).await;
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{found:?}"))
    }
}

async fn patch(cluster: &Cluster, namespace: &str, name: &str, body: Value) {
    cluster.patch::<Secret>(namespace, name, body).await;
}

#[tokio::test(start_paused = true)]
async fn copies_follow_their_source_and_their_namespaces() {
    let cluster = running().await;
    let shared = "replicator.v1.mittwald.de/replicate-to: 'shop-.*,closed,kube-system'";
    cluster.apply(&secret("infra", "tls", shared, "1")).await;
    are(&cluster, "tls", &[("infra", "1"), ("shop-a", "1"), ("shop-b", "1")]).await;
    cluster.apply(&secret("infra", "tls", shared, "2")).await;
    are(&cluster, "tls", &[("infra", "2"), ("shop-a", "2"), ("shop-b", "2")]).await;
    // One is changed by hand, one is deleted, a namespace comes.
    patch(&cluster, "shop-a", "tls", json!({"stringData": {"k": "mine"}})).await;
    cluster.delete::<Secret>("shop-b", "tls", None).await;
    cluster.apply(&namespace("shop-c", "")).await;
    are(
        &cluster,
        "tls",
        &[("infra", "2"), ("shop-a", "2"), ("shop-b", "2"), ("shop-c", "2")],
    )
    .await;
    // Fewer get it, then nobody.
    let fewer = json!({"metadata": {"annotations": {"replicator.v1.mittwald.de/replicate-to": "shop-a"}}});
    patch(&cluster, "infra", "tls", fewer).await;
    are(&cluster, "tls", &[("infra", "2"), ("shop-a", "2")]).await;
    cluster.delete::<Secret>("infra", "tls", None).await;
    are(&cluster, "tls", &[]).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_somebody_elses_stays_and_nothing_is_to_be_had_by_asking() {
    let cluster = running().await;
    cluster.apply(&secret("shop-a", "tls", "", "mine")).await;
    cluster
        .apply(&secret("infra", "tls", "keelson.dev/share-with: 'shop-a,shop-b'", "1"))
        .await;
    are(&cluster, "tls", &[("infra", "1"), ("shop-a", "mine"), ("shop-b", "1")]).await;
    let told = cluster.events("infra").await;
    let told: Vec<_> = told.iter().filter_map(|e| e.reason.as_deref()).collect();
    assert_eq!(told, ["NotShared"]);

    // Asking doesn't give it: nor does saying that it is a copy. From elsewhere nothing is shared, and copies aren't passed on.
    cluster.apply(&secret("infra", "private", "", "1")).await;
    let asks = "replicator.v1.mittwald.de/replicate-from: infra/private, reflector.v1.k8s.emberstack.com/reflects: infra/private";
    cluster.apply(&secret("shop-a", "private", asks, "")).await;
    are(&cluster, "private", &[("infra", "1"), ("shop-a", "")]).await;
    let claims = json!({"metadata": {"labels": {"keelson.dev/shared": "true"}, "annotations": {"keelson.dev/copy-of": "infra/private"}}});
    patch(&cluster, "shop-a", "private", claims).await;
    are(&cluster, "private", &[("infra", "1")]).await;
    cluster
        .apply(&secret("shop-a", "other", "keelson.dev/share-with: shop-b", "1"))
        .await;
    are(&cluster, "other", &[("shop-a", "1")]).await;
    patch(
        &cluster,
        "shop-b",
        "tls",
        json!({"metadata": {"annotations": {"keelson.dev/share-with": "closed"}}}),
    )
    .await;
    are(&cluster, "tls", &[("infra", "1"), ("shop-a", "mine"), ("shop-b", "1")]).await;

    // What lets somebody into the cluster isn't passed on; what isn't understood changes nothing.
    let token = secret("infra", "bootstrap-token-abcdef", "keelson.dev/share-with: shop-a", "1");
    cluster
        .apply(&format!("{token}\ntype: bootstrap.kubernetes.io/token"))
        .await;
    are(&cluster, "bootstrap-token-abcdef", &[("infra", "1")]).await;
    patch(
        &cluster,
        "infra",
        "tls",
        json!({"metadata": {"annotations": {"keelson.dev/share-with": "shop-["}}}),
    )
    .await;
    are(&cluster, "tls", &[("infra", "1"), ("shop-a", "mine"), ("shop-b", "1")]).await;
}

#[tokio::test(start_paused = true)]
async fn config_maps_too_and_what_changed_while_nobody_looked() {
    let mut cluster = running().await;
    let map = |name: &str, value: &str| {
        let allowed = "reflector.v1.k8s.emberstack.com/reflection-allowed: 'true'";
        let auto = "reflector.v1.k8s.emberstack.com/reflection-auto-enabled: 'true'";
        let to = "reflector.v1.k8s.emberstack.com/reflection-auto-namespaces: shop-a";
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: infra, annotations: {{{allowed}, {auto}, {to}}}}}\ndata: {{k: '{value}'}}"
        )
    };
    let has =
        |value: &'static str| move |m: &ConfigMap| m.data.as_ref().and_then(|d| d.get("k")).is_some_and(|v| v == value);
    cluster.apply(&map("a", "1")).await;
    cluster.apply(&map("b", "1")).await;
    for name in ["a", "b"] {
        cluster.until("shop-a", name, secs(30), "is copied", has("1")).await;
    }
    cluster.kill_controllers();
    cluster.apply(&map("a", "2")).await;
    cluster.delete::<ConfigMap>("infra", "b", None).await;
    cluster.start_controllers();
    cluster.until("shop-a", "a", secs(30), "follows", has("2")).await;
    cluster.gone::<ConfigMap>("shop-a", "b", secs(30)).await;
}
