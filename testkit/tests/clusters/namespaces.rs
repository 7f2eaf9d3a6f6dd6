//! Namespaces: what each new one has, and how one ends.

use keelson_client::{ResourceId, delete_options};
use keelson_testkit::objects::{ApiObject, ConfigMap, Namespace, Pod, ServiceAccount, is_ready};
use keelson_testkit::{Cluster, secs};
use serde_json::json;

#[tokio::test(start_paused = true)]
async fn each_namespace_has_an_account_and_the_authority() {
    let cluster = Cluster::builder().start().await;
    cluster
        .apply("{apiVersion: v1, kind: Namespace, metadata: {name: a}}")
        .await;
    let complete = |m: &ConfigMap| {
        m.data
            .iter()
            .flatten()
            .any(|(k, v)| k == "ca.crt" && v == "the cluster's authority")
    };
    cluster
        .until::<ServiceAccount>("a", "default", secs(10), "is there", |_| true)
        .await;
    cluster
        .until("a", "kube-root-ca.crt", secs(10), "is right", complete)
        .await;
    cluster.delete::<ServiceAccount>("a", "default", None).await;
    cluster.delete::<ConfigMap>("a", "kube-root-ca.crt", None).await;
    cluster
        .until::<ServiceAccount>("a", "default", secs(10), "is there again", |_| true)
        .await;
    cluster
        .until("a", "kube-root-ca.crt", secs(10), "is right again", complete)
        .await;
    let _: ConfigMap = cluster
        .patch("a", "kube-root-ca.crt", json!({"data": {"ca.crt": "forged"}}))
        .await;
    cluster
        .until("a", "kube-root-ca.crt", secs(10), "is put right", complete)
        .await;
}

const CONTENT: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: a, annotations: {simulate.keelson.dev/stop-seconds: "8"}}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: plain, namespace: a}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: held, namespace: a, finalizers: [example.com/hold]}
"#;

fn condition(namespace: &Namespace, kind: &str) -> (String, String) {
    let conditions = namespace.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let found = conditions.into_iter().find(|c| c.type_ == kind);
    found.map_or_else(Default::default, |c| {
        (c.status.clone(), c.message.clone().unwrap_or_default())
    })
}

#[tokio::test(start_paused = true)]
async fn a_namespace_ends_pods_first_and_waits_for_finalizers() {
    let cluster = Cluster::builder().nodes(1).start().await;
    cluster.apply(CONTENT).await;
    cluster.until("a", "p", secs(60), "is ready", is_ready).await;
    let (pods, maps) = (
        cluster.history::<Pod>("a").await,
        cluster.history::<ConfigMap>("a").await,
    );
    cluster.delete::<Namespace>("", "a", None).await;
    let refused = cluster
        .try_apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: late, namespace: a}}")
        .await;
    let error = refused.expect_err("nothing new in a namespace that ends").to_string();
    assert!(error.contains("because it is being terminated"), "{error}");
    let held = |n: &Namespace| condition(n, "NamespaceFinalizersRemaining").0 == "True";
    let namespace = cluster.until("", "a", secs(120), "waits for a finalizer", held).await;
    assert_eq!(
        namespace.status.as_ref().and_then(|s| s.phase.as_deref()),
        Some("Terminating")
    );
    assert_eq!(
        condition(&namespace, "NamespaceFinalizersRemaining").1,
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
    );
    assert_eq!(
        condition(&namespace, "NamespaceContentRemaining").1,
        "Some resources are remaining: configmaps. has 1 resource instances"
    );
    let (pods, maps) = (pods.record().await, maps.record().await);
    let pod = pods.deleted_at("p").expect("the pod is gone");
    let plain = maps.deleted_at("plain").expect("the map is gone");
    assert!(plain > pod, "pods go before what they may need");
    assert_eq!(maps.deleted_at("held"), None);
    let _: ConfigMap = cluster
        .patch("a", "held", json!({"metadata": {"finalizers": null}}))
        .await;
    cluster.gone::<Namespace>("", "a", secs(120)).await;
}

#[tokio::test(start_paused = true)]
async fn the_systems_namespaces_come_back() {
    let cluster = Cluster::builder().start().await;
    let old: Namespace = cluster.get("", "kube-node-lease").await;
    cluster.delete::<Namespace>("", "kube-node-lease", None).await;
    let again = |n: &Namespace| n.uid() != old.uid() && !n.is_deleting();
    cluster
        .until("", "kube-node-lease", secs(60), "is there again", again)
        .await;
}

const DEAD: &str = r#"
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.dead.example.com}
spec:
  group: dead.example.com
  version: v1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {namespace: default, name: nobody, port: 443}
---
apiVersion: v1
kind: Namespace
metadata: {name: a}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: plain, namespace: a}
"#;

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_when_the_dead_group_that_held_it_goes() {
    let cluster = Cluster::builder().start().await;
    cluster.apply(DEAD).await;
    cluster.sleep(secs(10)).await;
    cluster.delete::<Namespace>("", "a", None).await;
    cluster
        .until("", "a", secs(60), "waits", |n: &Namespace| {
            condition(n, "NamespaceDeletionDiscoveryFailure").0 == "True"
        })
        .await;
    // Long enough for the pauses between tries to have grown.
    cluster.sleep(secs(1200)).await;
    cluster.get::<Namespace>("", "a").await;
    let services = ResourceId::fixed("apiregistration.k8s.io", "v1", "APIService", "apiservices", false);
    let rest = cluster.objects::<Namespace>().rest().clone();
    let options = delete_options(None, None, None);
    rest.delete_raw(&services, "", "v1.dead.example.com", &options)
        .await
        .expect("deleted");
    cluster.gone::<Namespace>("", "a", secs(5)).await;
}
