//! Charts as objects: the life of their jobs. The test plays kubelet and helm: it ends pods, and writes what helm notes of a release.

use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use keelson_addons::helm::HelmChart;
use keelson_addons::source::{Content, NAMESPACE, Source, hash};
use keelson_client::Patch;
use keelson_testkit::objects::{ApiObject, Job, Namespace, Pod, Secret, ServiceAccount};
use keelson_testkit::{Cluster, Part, secs};
use serde_json::json;

const HASH: &str = "helmcharts.helm.cattle.io/configHash";

async fn cluster() -> (Cluster, Part) {
    let cluster = Cluster::builder().without_scheduler().start().await;
    // A file that says a chart is what brings the kinds.
    let text = "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: web, namespace: kube-system}\nspec: {chart: stable/web, targetNamespace: default, backOffLimit: 0}\n";
    let source = Source {
        server: "s1".into(),
        file: "/addons/web.yaml".into(),
        path: "web.yaml".into(),
        directory: "/addons".into(),
        place: "1:1".into(),
        hash: hash(text.as_bytes()),
        content: Content::of(text.as_bytes()),
    };
    cluster
        .objects::<Secret>()
        .create(&source.to_secret())
        .await
        .expect("a source");
    let addons = cluster.addons("s1", None);
    (cluster, addons)
}

async fn job(cluster: &Cluster, act: &str) -> Job {
    cluster
        .until(
            "kube-system",
            &format!("helm-{act}-web"),
            secs(60),
            "is there",
            |j: &Job| !j.is_deleting(),
        )
        .await
}

/// Of the configuration that the job is for, as the image is told.
fn variable(job: &Job, name: &str) -> String {
    let spec = job
        .spec
        .as_ref()
        .and_then(|s| s.template.spec.as_ref())
        .expect("a pod's spec");
    let env = spec.containers[0].env.clone().unwrap_or_default();
    env.into_iter()
        .find(|v| v.name == name)
        .and_then(|v| v.value)
        .unwrap_or_default()
}

/// The job's pod ends.
async fn end(cluster: &Cluster, job: &Job, phase: &str, said: &str) {
    let code = if phase == "Failed" { 1 } else { 0 };
    let status = json!({"phase": phase, "containerStatuses": [{"name": "helm", "image": "i", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"terminated": {"exitCode": code, "message": said, "reason": "Error",
            "startedAt": "2030-01-01T00:00:00Z", "finishedAt": "2030-01-01T00:00:00Z"}}}]});
    tell(cluster, job, status).await;
}

/// As a kubelet does, of the job's pod.
async fn tell(cluster: &Cluster, job: &Job, status: serde_json::Value) {
    let pod: Pod = cluster
        .until_all("kube-system", secs(60), "the job has a pod", |pods: &[Pod]| {
            let is_of = |p: &&Pod| p.metadata.owner_references.iter().flatten().any(|o| o.uid == job.uid());
            pods.iter().find(is_of).cloned()
        })
        .await;
    let status = json!({"status": status});
    let patched = cluster
        .objects::<Pod>()
        .patch_status("kube-system", pod.name(), Patch::Merge(&status))
        .await;
    patched.expect("a pod's status");
}

/// helm notes a revision.
async fn note(cluster: &Cluster, revision: i64, status: &str, hash: &str) {
    let name = format!("sh.helm.release.v1.web.v{revision}");
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "helm.sh/release.v1",
        "metadata": {"name": name, "namespace": "default", "labels": {"owner": "helm", "name": "web",
            "version": revision.to_string(), "status": status, HASH: hash}}});
    cluster.apply(&secret.to_string()).await;
}

async fn unnote(cluster: &Cluster, revision: i64) {
    cluster
        .delete::<Secret>("default", &format!("sh.helm.release.v1.web.v{revision}"), None)
        .await;
}

async fn until(cluster: &Cluster, within: u64, what: &str, is: impl Fn(&HelmChart) -> bool) -> HelmChart {
    cluster.until("kube-system", "web", secs(within), what, is).await
}

fn failed(chart: &HelmChart) -> (String, String) {
    let conditions = chart.status.iter().flat_map(|s| &s.conditions);
    let failed = conditions.into_iter().find(|c| c.kind == "Failed");
    failed
        .filter(|c| c.status == "True")
        .map_or_else(Default::default, |c| (c.reason.clone(), c.message.clone()))
}

async fn change(cluster: &Cluster, spec: serde_json::Value) {
    cluster
        .patch::<HelmChart>("kube-system", "web", json!({"spec": spec}))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_chart_is_installed_upgraded_and_uninstalled_by_jobs() {
    let (cluster, _addons) = cluster().await;
    let installing = job(&cluster, "install").await;
    assert_eq!(variable(&installing, "EXPECTED_RELEASE_REVISION"), "0");
    assert_eq!(variable(&installing, "FAILURE_POLICY"), "reinstall");
    cluster.get::<ServiceAccount>("kube-system", "helm-web").await;
    let bound = cluster.get::<ClusterRoleBinding>("", "helm-kube-system-web").await;
    assert_eq!(bound.role_ref.name, "cluster-admin");
    let first = variable(&installing, "CONFIG_HASH");
    note(&cluster, 1, "deployed", &first).await;
    end(&cluster, &installing, "Succeeded", "").await;
    let chart = until(&cluster, 60, "has its job", |c| {
        c.status.as_ref().is_some_and(|s| s.job_name == "helm-install-web")
    })
    .await;
    assert_eq!(failed(&chart).0, "");
    cluster.sleep(secs(600)).await;
    assert_eq!(
        cluster.get::<Job>("kube-system", "helm-install-web").await.uid(),
        installing.uid(),
        "once is enough"
    );

    // Another configuration is another job, told what release there is.
    let config = "apiVersion: helm.cattle.io/v1\nkind: HelmChartConfig\nmetadata: {name: web, namespace: kube-system}\nspec: {valuesContent: 'a: b', failurePolicy: abort}\n";
    cluster.apply(config).await;
    let is_new = |j: &Job| j.uid() != installing.uid() && !j.is_deleting();
    let upgrading: Job = cluster
        .until("kube-system", "helm-install-web", secs(60), "is another", is_new)
        .await;
    assert_eq!(variable(&upgrading, "EXPECTED_RELEASE_REVISION"), "1");
    assert_eq!(variable(&upgrading, "FAILURE_POLICY"), "abort");
    let values = cluster
        .get::<Secret>("kube-system", "chart-values-web")
        .await
        .data
        .unwrap_or_default();
    assert_eq!(
        values.get("HelmChartConfigValuesContent").map(|v| v.0.as_slice()),
        Some(b"a: b".as_slice())
    );
    let second = variable(&upgrading, "CONFIG_HASH");
    assert_ne!(first, second);
    note(&cluster, 1, "superseded", &first).await;
    note(&cluster, 2, "deployed", &second).await;
    end(&cluster, &upgrading, "Succeeded", "").await;

    // The file goes, and with it the chart, when its release has been uninstalled.
    let file = Source {
        server: "s1".into(),
        file: "/addons/web.yaml".into(),
        ..Source::default()
    };
    cluster.delete::<Secret>(NAMESPACE, &file.secret_name(), None).await;
    let deleting = job(&cluster, "delete").await;
    cluster.gone::<Job>("kube-system", "helm-install-web", secs(60)).await;
    cluster.sleep(secs(300)).await;
    until(&cluster, 1, "is still there", ApiObject::is_deleting).await;
    unnote(&cluster, 1).await;
    unnote(&cluster, 2).await;
    end(&cluster, &deleting, "Succeeded", "").await;
    cluster.gone::<HelmChart>("kube-system", "web", secs(60)).await;
    cluster
        .gone::<ClusterRoleBinding>("", "helm-kube-system-web", secs(60))
        .await;
    cluster.gone::<Job>("kube-system", "helm-delete-web", secs(60)).await;
    cluster
        .gone::<Secret>("kube-system", "chart-values-web", secs(60))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_job_that_fails_says_why_and_is_made_anew_when_the_chart_changes() {
    let (cluster, _addons) = cluster().await;
    let installing = job(&cluster, "install").await;
    end(&cluster, &installing, "Failed", "no such chart").await;
    let chart = until(&cluster, 120, "has failed", |c| failed(c).0 == "Job failed").await;
    assert!(failed(&chart).1.contains("no such chart"), "{:?}", failed(&chart));
    cluster.sleep(secs(3600)).await;
    assert_eq!(
        cluster.get::<Job>("kube-system", "helm-install-web").await.uid(),
        installing.uid()
    );
    change(&cluster, json!({"version": "2.0.0"})).await;
    let is_new = |j: &Job| j.uid() != installing.uid() && !j.is_deleting();
    cluster
        .until("kube-system", "helm-install-web", secs(60), "is another", is_new)
        .await;
    until(&cluster, 60, "hasn't failed", |c| failed(c).0.is_empty()).await;
    change(&cluster, json!({"timeout": "soon"})).await;
    let chart = until(&cluster, 60, "can't be", |c| failed(c).0 == "Job create failed").await;
    assert!(failed(&chart).1.contains("no duration"), "{:?}", failed(&chart));
    change(&cluster, json!({"timeout": null, "helmVersion": "v2"})).await;
    until(&cluster, 60, "is of an old version", |c| {
        failed(c).0 == "Unsupported version"
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_tries_are_used_up_says_what_its_pod_said_though_it_took_the_pod_with_it() {
    let (cluster, _addons) = cluster().await;
    job(&cluster, "install").await;
    change(&cluster, json!({"backOffLimit": 0})).await;
    let one_try = |j: &Job| !j.is_deleting() && j.spec.as_ref().and_then(|s| s.backoff_limit) == Some(0);
    let installing = cluster
        .until("kube-system", "helm-install-web", secs(60), "has one try", one_try)
        .await;
    // As kubelets tell of a container that was started again.
    let again = json!({"phase": "Running", "containerStatuses": [{"name": "helm", "image": "i", "imageID": "", "ready": false,
        "restartCount": 1, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "message": "no such chart",
            "startedAt": "2030-01-01T00:00:00Z", "finishedAt": "2030-01-01T00:00:00Z"}}}]});
    tell(&cluster, &installing, again).await;
    let chart = until(&cluster, 120, "has failed", |c| failed(c).0 == "Job failed").await;
    cluster
        .until_all("kube-system", secs(60), "no pod is there", |pods: &[Pod]| {
            pods.is_empty().then_some(())
        })
        .await;
    assert!(failed(&chart).1.contains("no such chart"), "{:?}", failed(&chart));
}

#[tokio::test(start_paused = true)]
async fn what_failed_goes_back_to_what_was_well() {
    let (cluster, _addons) = cluster().await;
    let installing = job(&cluster, "install").await;
    note(&cluster, 1, "deployed", &variable(&installing, "CONFIG_HASH")).await;
    end(&cluster, &installing, "Succeeded", "").await;
    change(&cluster, json!({"failurePolicy": "rollback", "version": "2.0.0"})).await;
    let is_new = |j: &Job| j.uid() != installing.uid() && !j.is_deleting();
    let upgrading: Job = cluster
        .until("kube-system", "helm-install-web", secs(60), "is another", is_new)
        .await;
    assert_eq!(
        variable(&upgrading, "FAILURE_POLICY"),
        "abort",
        "the image leaves it as it failed"
    );
    // It was ended in the middle.
    note(&cluster, 2, "pending-upgrade", &variable(&upgrading, "CONFIG_HASH")).await;
    end(&cluster, &upgrading, "Failed", "timed out").await;
    let back = job(&cluster, "rollback").await;
    let container = back
        .spec
        .as_ref()
        .and_then(|s| s.template.spec.as_ref())
        .map(|s| s.containers[0].clone())
        .unwrap();
    assert_eq!(container.command, Some(vec!["helm".to_string()]));
    assert_eq!(
        container.args.unwrap().join(" "),
        "rollback web 1 --namespace default --wait"
    );
    note(&cluster, 2, "superseded", "").await;
    note(&cluster, 3, "deployed", &variable(&installing, "CONFIG_HASH")).await;
    end(&cluster, &back, "Succeeded", "").await;
    until(&cluster, 60, "is rolled back", |c| failed(c).0 == "Rolled back").await;
    cluster.sleep(secs(3600)).await;
    assert_eq!(
        cluster.get::<Job>("kube-system", "helm-install-web").await.uid(),
        upgrading.uid(),
        "not again by itself"
    );
    change(&cluster, json!({"version": "3.0.0"})).await;
    let is_new = |j: &Job| j.uid() != upgrading.uid() && !j.is_deleting();
    cluster
        .until(
            "kube-system",
            "helm-install-web",
            secs(60),
            "is tried with what is new",
            is_new,
        )
        .await;
    cluster.gone::<Job>("kube-system", "helm-rollback-web", secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_chart_never_stays_because_its_job_can_not_run() {
    let (cluster, _addons) = cluster().await;
    // It was never installed: no job is made for nothing.
    job(&cluster, "install").await;
    let file = Source {
        server: "s1".into(),
        file: "/addons/web.yaml".into(),
        ..Source::default()
    };
    cluster.delete::<Secret>(NAMESPACE, &file.secret_name(), None).await;
    cluster.gone::<HelmChart>("kube-system", "web", secs(60)).await;
    assert!(
        cluster
            .objects::<Job>()
            .find("kube-system", "helm-delete-web")
            .await
            .unwrap()
            .is_none()
    );

    // Its job is never scheduled: the annotation lets it go.
    let chart = |namespace: &str| {
        format!(
            "apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {{chart: stable/web, targetNamespace: default}}\n"
        )
    };
    cluster.apply(&chart("kube-system")).await;
    let installing = job(&cluster, "install").await;
    note(&cluster, 1, "deployed", &variable(&installing, "CONFIG_HASH")).await;
    end(&cluster, &installing, "Succeeded", "").await;
    cluster.delete::<HelmChart>("kube-system", "web", None).await;
    job(&cluster, "delete").await;
    cluster.sleep(secs(3600)).await;
    until(&cluster, 1, "waits", ApiObject::is_deleting).await;
    let annotation = json!({"metadata": {"annotations": {"helmcharts.helm.cattle.io/unmanaged": "true"}}});
    cluster.patch::<HelmChart>("kube-system", "web", annotation).await;
    cluster.gone::<HelmChart>("kube-system", "web", secs(120)).await;
    let told = cluster.events("kube-system").await;
    assert!(
        told.iter().any(|e| e.reason.as_deref() == Some("ReleaseLeft")),
        "what is left is told"
    );

    // Its namespace ends: no job can run there.
    cluster
        .apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
        .await;
    cluster.apply(&chart("shop")).await;
    cluster
        .until("shop", "helm-install-web", secs(60), "is there", |_: &Job| true)
        .await;
    cluster.delete::<Namespace>("", "shop", None).await;
    cluster.gone::<Namespace>("", "shop", secs(300)).await;
    cluster.gone::<ClusterRoleBinding>("", "helm-shop-web", secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn an_uninstall_that_leaves_the_release_is_tried_again_and_not_for_ever() {
    let (cluster, _addons) = cluster().await;
    let installing = job(&cluster, "install").await;
    note(&cluster, 1, "deployed", &variable(&installing, "CONFIG_HASH")).await;
    end(&cluster, &installing, "Succeeded", "").await;
    let file = Source {
        server: "s1".into(),
        file: "/addons/web.yaml".into(),
        ..Source::default()
    };
    cluster.delete::<Secret>(NAMESPACE, &file.secret_name(), None).await;
    let mut before = String::new();
    for _ in 0..4 {
        let is_new = |j: &Job| j.uid() != before && !j.is_deleting();
        let deleting: Job = cluster
            .until("kube-system", "helm-delete-web", secs(60), "is another", is_new)
            .await;
        before = deleting.uid().to_string();
        // As the image does where kinds of the chart's objects are gone: it ends well, and the release stays.
        end(&cluster, &deleting, "Succeeded", "").await;
    }
    cluster.gone::<HelmChart>("kube-system", "web", secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn charts_that_share_values_follow_them_and_leave_each_other_alone() {
    let (cluster, _addons) = cluster().await;
    job(&cluster, "install").await;
    cluster
        .apply(
            "apiVersion: v1\nkind: Secret\nmetadata: {name: shared, namespace: kube-system}\nstringData: {v: 'a: 1'}\n",
        )
        .await;
    change(&cluster, json!({"valuesSecrets": [{"name": "shared", "keys": ["v"]}]})).await;
    cluster
        .apply("apiVersion: helm.cattle.io/v1\nkind: HelmChart\nmetadata: {name: shop, namespace: kube-system}\nspec: {chart: stable/shop, valuesSecrets: [{name: shared, keys: [v]}]}\n")
        .await;
    // Time only goes on when nobody has anything to do.
    cluster.sleep(secs(120)).await;
    let mut before = Vec::new();
    for chart in ["web", "shop"] {
        let name = format!("helm-install-{chart}");
        before.push((name.clone(), cluster.get::<Job>("kube-system", &name).await));
    }
    cluster
        .patch::<Secret>("kube-system", "shared", json!({"stringData": {"v": "a: 2"}}))
        .await;
    for (name, job) in &before {
        let is_new = |j: &Job| j.uid() != job.uid() && !j.is_deleting();
        cluster
            .until("kube-system", name, secs(60), "is of other values", is_new)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_names_a_chart_of_another_namespace_takes_no_rights_from_it() {
    let (cluster, _addons) = cluster().await;
    job(&cluster, "install").await;
    cluster
        .apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: kube}\n")
        .await;
    cluster.sleep(secs(10)).await;
    // Read together as `helm-kube-system-web`.
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: kube, labels: {helmcharts.helm.cattle.io/chart: system-web}}\nspec: {containers: [{name: c, image: i}]}\n";
    cluster.apply(pod).await;
    cluster.sleep(secs(60)).await;
    cluster.get::<ClusterRoleBinding>("", "helm-kube-system-web").await;
}
