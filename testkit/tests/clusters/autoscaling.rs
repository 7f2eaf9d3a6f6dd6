//! Autoscalers: bounds without metrics, metrics where there are some, and what is said where there are none.
//!
//! Resource metrics come from objects of a custom resource at the metrics API's address: only the wire form matters.

use keelson_testkit::objects::{ApiObject, Deployment, HorizontalPodAutoscaler};
use keelson_testkit::{Cluster, secs};

const METRICS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pods.metrics.k8s.io, annotations: {api-approved.kubernetes.io: "unapproved, a test's"}}
spec:
  group: metrics.k8s.io
  scope: Namespaced
  names: {plural: pods, singular: podmetrics, kind: PodMetrics, listKind: PodMetricsList}
  versions: [{name: v1beta1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
"#;

fn deployment(replicas: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec: {{containers: [{{name: c, image: i, resources: {{requests: {{cpu: 100m}}}}}}]}}
"#
    )
}

fn autoscaler(min: i32, max: i32, rest: &str) -> String {
    format!(
        r#"
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: web}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: web}}
  minReplicas: {min}
  maxReplicas: {max}
  {rest}
"#
    )
}

fn told(hpa: &HorizontalPodAutoscaler, kind: &str) -> (String, String, String) {
    let conditions = hpa.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let found = conditions.into_iter().find(|c| c.type_ == kind);
    found.map_or_else(Default::default, |c| {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        (c.status.clone(), text(&c.reason), text(&c.message))
    })
}

fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

async fn reason_of(cluster: &Cluster, reason: &str) -> Option<String> {
    let events = cluster.events("default").await;
    let found = events.into_iter().find(|e| e.reason.as_deref() == Some(reason))?;
    found.message
}

#[tokio::test(start_paused = true)]
async fn bounds_need_no_metrics() {
    let cluster = Cluster::builder().nodes(1).start().await;
    cluster.apply(&deployment("")).await;
    cluster.apply(&autoscaler(3, 5, "")).await;
    cluster
        .until("default", "web", secs(2), "has three replicas", |d: &Deployment| {
            replicas(d) == 3
        })
        .await;
    let hpa: HorizontalPodAutoscaler = cluster
        .until("default", "web", secs(40), "says what fails", |h| {
            told(h, "ScalingActive").0 == "False"
        })
        .await;
    assert_eq!(told(&hpa, "AbleToScale").1, "SucceededGetScale");
    assert_eq!(
        told(&hpa, "ScalingActive"),
        (
            "False".into(),
            "FailedGetResourceMetric".into(),
            "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for \
             resource cpu: unable to fetch metrics from resource metrics API: the server could not find the requested \
             resource (get pods.metrics.k8s.io)"
                .into()
        )
    );
    assert_eq!(
        hpa.status.as_ref().and_then(|s| s.observed_generation),
        hpa.metadata.generation
    );
    let rescaled = reason_of(&cluster, "SuccessfulRescale").await;
    let text = "New size: 3; reason: Current number of replicas below Spec.MinReplicas";
    assert_eq!(rescaled.as_deref(), Some(text));
    assert!(reason_of(&cluster, "FailedComputeMetricsReplicas").await.is_some());
    // A lower maximum is acted upon at once, not at the next look.
    cluster.apply(&autoscaler(1, 2, "")).await;
    cluster
        .until("default", "web", secs(2), "has two replicas", |d: &Deployment| {
            replicas(d) == 2
        })
        .await;
    // Who is scaled to nothing by hand is left alone.
    cluster
        .patch::<Deployment>("default", "web", serde_json::json!({"spec": {"replicas": 0}}))
        .await;
    cluster
        .until(
            "default",
            "web",
            secs(40),
            "is disabled",
            |h: &HorizontalPodAutoscaler| told(h, "ScalingActive").1 == "ScalingDisabled",
        )
        .await;
    assert_eq!(replicas(&cluster.get("default", "web").await), 0);
}

/// Lets all pods of the namespace have used so many thousandths of a CPU.
async fn used(cluster: &Cluster, cpu: u32) {
    let pods: Vec<keelson_testkit::objects::Pod> = cluster.list("default").await;
    for pod in pods.iter().filter(|p| !p.is_deleting()) {
        let (name, now) = (pod.name(), keelson_clock::now());
        let yaml = format!(
            r#"
apiVersion: metrics.k8s.io/v1beta1
kind: PodMetrics
metadata: {{name: {name}, labels: {{app: web}}}}
timestamp: "{now}"
window: 30s
containers: [{{name: c, usage: {{cpu: {cpu}m, memory: 10Mi}}}}]
"#
        );
        cluster.apply(&yaml).await;
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_scale_up_at_once_and_down_after_a_while() {
    let cluster = Cluster::builder().nodes(1).start().await;
    cluster.apply(METRICS).await;
    cluster.apply(&deployment("replicas: 2")).await;
    cluster.sleep(secs(400)).await;
    used(&cluster, 90).await;
    let metrics =
        "metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]";
    cluster.apply(&autoscaler(1, 10, metrics)).await;
    cluster
        .until("default", "web", secs(40), "has four replicas", |d: &Deployment| {
            replicas(d) == 4
        })
        .await;
    let text = "New size: 4; reason: cpu resource utilization (percentage of request) above target";
    assert_eq!(reason_of(&cluster, "SuccessfulRescale").await.as_deref(), Some(text));
    let hpa: HorizontalPodAutoscaler = cluster.get("default", "web").await;
    assert_eq!(told(&hpa, "ScalingActive").1, "ValidMetricFound");
    // Less load: the higher number of the last five minutes holds, then it goes.
    cluster.sleep(secs(400)).await;
    used(&cluster, 10).await;
    let begin = keelson_clock::now();
    cluster
        .until("default", "web", secs(40), "is held", |h: &HorizontalPodAutoscaler| {
            told(h, "AbleToScale").1 == "ScaleDownStabilized"
        })
        .await;
    assert_eq!(replicas(&cluster.get("default", "web").await), 4);
    cluster
        .until("default", "web", secs(400), "has one replica", |d: &Deployment| {
            replicas(d) == 1
        })
        .await;
    let took = keelson_clock::now().duration_since(begin).as_secs();
    assert!((280..=330).contains(&took), "{took} s");
}

#[tokio::test(start_paused = true)]
async fn two_autoscalers_of_one_pod_are_told_so() {
    let cluster = Cluster::builder().nodes(1).start().await;
    cluster.apply(&deployment("replicas: 2")).await;
    cluster.apply(&autoscaler(1, 5, "")).await;
    cluster
        .apply(&autoscaler(1, 5, "").replacen("name: web}", "name: other}", 1))
        .await;
    cluster
        .until(
            "default",
            "other",
            secs(60),
            "is ambiguous",
            |h: &HorizontalPodAutoscaler| told(h, "ScalingActive").1 == "AmbiguousSelector",
        )
        .await;
    cluster
        .apply(
            &autoscaler(1, 5, "")
                .replace("kind: Deployment", "kind: Nothing")
                .replacen("name: web}", "name: lost}", 1),
        )
        .await;
    let lost: HorizontalPodAutoscaler = cluster
        .until("default", "lost", secs(5), "has no target", |h| {
            told(h, "AbleToScale").0 == "False"
        })
        .await;
    assert_eq!(
        told(&lost, "AbleToScale").2,
        r#"the HPA controller was unable to get the target's current scale: no matches for kind "Nothing" in group "apps""#
    );
}
