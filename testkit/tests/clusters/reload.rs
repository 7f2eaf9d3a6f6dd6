//! Workloads that ask for it are rolled out anew when what they are configured by changes: once for each change, whoever dies meanwhile, and
//! nobody else.

use keelson_testkit::objects::{ApiObject, ConfigMap, Deployment, ReplicaSet, StatefulSet};
use keelson_testkit::{Cluster, secs};
use serde_json::json;

const RELOADED: &str = "keelson.dev/reloaded";
const SEEN: &str = "keelson.dev/reload-seen";

/// What the program gives the controller, and no more.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reload}
rules:
- {apiGroups: [apps], resources: [daemonsets, deployments, statefulsets], verbs: [patch]}
- {apiGroups: ["", events.k8s.io], resources: [events], verbs: [create, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reload}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reload}
subjects: [{kind: ServiceAccount, namespace: kube-system, name: keelson-reload}]
"#;

fn workload(kind: &str, name: &str, annotations: &str) -> String {
    let service = if kind == "StatefulSet" { "serviceName: x, " } else { "" };
    format!(
        r#"
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}, annotations: {{{annotations}}}}}
spec:
  {{{service}selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{
    volumes: [{{name: v, configMap: {{name: settings}}}}],
    containers: [{{name: c, image: i, envFrom: [{{secretRef: {{name: key, optional: true}}}}]}}]}}}}}}
"#
    )
}

fn settings(value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{a: '{value}'}}")
}

fn key(value: &str) -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: key}}\nstringData: {{b: '{value}'}}")
}

async fn running() -> Cluster {
    let cluster = Cluster::builder().nodes(2).controllers(&["*", "reload"]).start().await;
    cluster.apply(RIGHTS).await;
    cluster.apply(&settings("1")).await;
    for (kind, name, annotations) in [
        ("Deployment", "own", "keelson.dev/reload: 'true'"),
        ("Deployment", "listed", "secret.reloader.stakater.com/reload: key"),
        ("Deployment", "quiet", ""),
        ("StatefulSet", "set", "reloader.stakater.com/auto: 'true'"),
    ] {
        cluster.apply(&workload(kind, name, annotations)).await;
    }
    let noted = |d: &Deployment| annotation(d, SEEN).starts_with("configmap/settings=");
    cluster
        .until("default", "own", secs(30), "is noted as it is", noted)
        .await;
    let noted = |s: &StatefulSet| annotation(s, SEEN).starts_with("configmap/settings=");
    cluster
        .until("default", "set", secs(30), "is noted as it is", noted)
        .await;
    cluster
}

fn annotation<K: ApiObject>(object: &K, key: &str) -> String {
    let annotations = object.meta().annotations.as_ref();
    annotations.and_then(|a| a.get(key)).cloned().unwrap_or_default()
}

fn reloaded(deployment: &Deployment) -> String {
    let annotations = deployment
        .spec
        .template
        .metadata
        .as_ref()
        .and_then(|m| m.annotations.as_ref());
    annotations.and_then(|a| a.get(RELOADED)).cloned().unwrap_or_default()
}

/// How many templates each deployment has had.
async fn templates(cluster: &Cluster) -> Vec<(String, usize)> {
    let sets = cluster.list::<ReplicaSet>("default").await;
    let of = |name: &str| {
        let owned = |s: &&ReplicaSet| s.metadata.owner_references.iter().flatten().any(|o| o.name == name);
        (name.to_owned(), sets.iter().filter(owned).count())
    };
    ["own", "listed", "quiet"].map(of).into()
}

fn counted(own: usize, listed: usize, quiet: usize) -> Vec<(String, usize)> {
    vec![("own".into(), own), ("listed".into(), listed), ("quiet".into(), quiet)]
}

async fn have(cluster: &Cluster, wanted: Vec<(String, usize)>) {
    cluster
        .eventually("templates", secs(30), async || {
            let found = templates(cluster).await;
            if found == wanted {
                Ok(())
            } else {
                Err(format!("{found:?} rather than {wanted:?}"))
            }
        })
        .await;
    cluster
        .stays("templates", secs(60), async || {
            let found = templates(cluster).await;
            if found == wanted {
                Ok(())
            } else {
                Err(format!("{found:?} rather than {wanted:?}"))
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_rolled_out_anew_once_a_change() {
    let cluster = running().await;
    have(&cluster, counted(1, 1, 1)).await;
    cluster.apply(&settings("2")).await;
    have(&cluster, counted(2, 1, 1)).await;
    let own: Deployment = cluster.get("default", "own").await;
    assert!(reloaded(&own).starts_with("configmap/settings="), "{}", reloaded(&own));
    let rolled = |s: &StatefulSet| {
        let status = s.status.clone().unwrap_or_default();
        !annotation(s, SEEN).is_empty() && status.updated_replicas == Some(1) && s.metadata.generation == Some(2)
    };
    cluster.until("default", "set", secs(60), "is rolled out", rolled).await;
    let told = cluster.events("default").await;
    let told = told.iter().filter(|e| e.reason.as_deref() == Some("Reloaded"));
    let mut told: Vec<_> = told.filter_map(|e| e.involved_object.name.as_deref()).collect();
    told.sort_unstable();
    assert_eq!(told, ["own", "set"]);

    // A label is no other content. A secret that comes is no change for pods that may do without it; its next value is.
    cluster
        .patch::<ConfigMap>("default", "settings", json!({"metadata": {"labels": {"a": "b"}}}))
        .await;
    cluster.apply(&key("1")).await;
    have(&cluster, counted(2, 1, 1)).await;
    cluster.apply(&key("2")).await;
    have(&cluster, counted(3, 2, 1)).await;

    // It goes and comes back, once as it was for whoever reads it, but as another object.
    cluster.delete::<ConfigMap>("default", "settings", None).await;
    have(&cluster, counted(3, 2, 1)).await;
    cluster.apply(&settings("3")).await;
    have(&cluster, counted(4, 2, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_while_nobody_looked_is_found_and_one_that_counted_does_not_count_again() {
    let mut cluster = running().await;
    cluster.kill_controllers();
    cluster.apply(&settings("2")).await;
    cluster.start_controllers();
    have(&cluster, counted(2, 1, 1)).await;
    cluster.kill_controllers();
    cluster.sleep(secs(5)).await;
    cluster.start_controllers();
    have(&cluster, counted(2, 1, 1)).await;
    // Who asks no more isn't rolled out any more.
    let nothing = json!({"metadata": {"annotations": {"keelson.dev/reload": null}}});
    cluster.patch::<Deployment>("default", "own", nothing).await;
    cluster.apply(&settings("3")).await;
    have(&cluster, counted(2, 1, 1)).await;
}
