//! Claims of devices: made for pods, allocated where devices are, and freed when their pods end. Nodes are objects that nobody runs, for
//! drivers are played by the test.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use keelson_client::Patch;
use keelson_testkit::objects::{ApiObject, Node, condition, node_of};
use keelson_testkit::{Cluster, secs};
use serde_json::json;

const CLASS: &str = r#"
{apiVersion: resource.k8s.io/v1, kind: DeviceClass, metadata: {name: gpu}, spec: {selectors: [{cel: {expression: 'device.driver == "gpu.example.com"'}}]}}
"#;
const TEMPLATE: &str = r#"
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: one}
spec: {spec: {devices: {requests: [{name: r, exactly: {deviceClassName: gpu}}]}}}
"#;

async fn cluster() -> Cluster {
    let names = ["serviceaccount", "resourceclaim", "garbage-collector"];
    let cluster = Cluster::builder().nodes(0).controllers(&names).start().await;
    let account = |all: &[keelson_testkit::objects::ServiceAccount]| all.first().map(drop);
    cluster
        .until_all("default", secs(10), "there is an account", account)
        .await;
    for name in ["plain", "fast"] {
        let node = format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}");
        cluster.apply(&node).await;
        let status = json!({"status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}, "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let patched = cluster
            .objects::<Node>()
            .patch_status("", name, Patch::Merge(&status))
            .await;
        patched.expect("a node takes a status");
        let _: Node = cluster.patch("", name, json!({"spec": {"taints": null}})).await;
    }
    cluster.apply(CLASS).await;
    cluster.apply(TEMPLATE).await;
    cluster
}

/// The driver of the fast node says which devices it has.
async fn publish(cluster: &Cluster, devices: &[&str]) {
    let devices: Vec<_> = devices.iter().map(|name| format!("{{name: {name}}}")).collect();
    let slice = format!(
        "{{apiVersion: resource.k8s.io/v1, kind: ResourceSlice, metadata: {{name: slice}}, spec: {{driver: gpu.example.com, nodeName: fast, \
         pool: {{name: fast, generation: 1, resourceSliceCount: 1}}, devices: [{}]}}}}",
        devices.join(", ")
    );
    cluster.apply(&slice).await;
}

async fn pod(cluster: &Cluster, name: &str) {
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: i, resources: {{claims: [{{name: d}}]}}}}], \
         resourceClaims: [{{name: d, resourceClaimTemplateName: one}}]}}}}"
    );
    cluster.apply(&pod).await;
}

fn claim_of(pod: &Pod) -> Option<String> {
    let mut statuses = pod
        .status
        .iter()
        .flat_map(|s| s.resource_claim_statuses.iter().flatten());
    statuses.next()?.resource_claim_name.clone()
}

async fn end(cluster: &Cluster, name: &str) {
    let now = DeleteOptions {
        grace_period_seconds: Some(0),
        ..DeleteOptions::default()
    };
    let deleted = cluster.objects::<Pod>().delete("default", name, &now).await;
    deleted.expect("it goes");
}

#[tokio::test(start_paused = true)]
async fn a_device_goes_from_pod_to_pod() {
    let cluster = cluster().await;
    publish(&cluster, &["gpu-0"]).await;
    pod(&cluster, "first").await;
    let is_bound = |p: &Pod| !node_of(p).is_empty();
    let first = cluster
        .until("default", "first", secs(60), "has a node", is_bound)
        .await;
    assert_eq!(node_of(&first), "fast", "where the device is");
    let name = claim_of(&first).expect("its claim is told");
    let claim: ResourceClaim = cluster.get("default", &name).await;
    let status = claim.status.clone().unwrap_or_default();
    let users: Vec<_> = status
        .reserved_for
        .iter()
        .flatten()
        .map(|user| user.name.as_str())
        .collect();
    assert_eq!(users, ["first"]);
    let allocation = status.allocation.expect("it is allocated");
    let results = allocation.devices.and_then(|d| d.results).unwrap_or_default();
    let devices: Vec<_> = results
        .iter()
        .map(|r| (r.request.as_str(), r.device.as_str()))
        .collect();
    assert_eq!(devices, [("r", "gpu-0")]);
    assert!(
        claim
            .metadata
            .finalizers
            .iter()
            .flatten()
            .any(|f| f == "resource.kubernetes.io/delete-protection")
    );

    pod(&cluster, "second").await;
    let refused = |p: &Pod| condition(p, "PodScheduled").0 == "False";
    let second = cluster
        .until("default", "second", secs(60), "is refused", refused)
        .await;
    let (_, _, message) = condition(&second, "PodScheduled");
    assert!(
        message.starts_with("0/2 nodes are available: 2 cannot allocate all claims."),
        "{message}"
    );
    end(&cluster, "first").await;
    let second = cluster
        .until("default", "second", secs(60), "has a node", is_bound)
        .await;
    assert_eq!(node_of(&second), "fast");
    let left = |all: &[ResourceClaim]| (all.len() == 1).then(|| all[0].name().to_owned());
    let left = cluster
        .until_all("default", secs(60), "the first one's claim has gone", left)
        .await;
    assert_eq!(Some(left), claim_of(&second));
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_devices_that_are_published_later() {
    let cluster = cluster().await;
    pod(&cluster, "early").await;
    let refused = |p: &Pod| condition(p, "PodScheduled").0 == "False";
    cluster.until("default", "early", secs(60), "is refused", refused).await;
    cluster.sleep(secs(400)).await;
    publish(&cluster, &["gpu-0"]).await;
    let is_bound = |p: &Pod| !node_of(p).is_empty();
    cluster
        .until("default", "early", secs(20), "has a node", is_bound)
        .await;
}

#[tokio::test(start_paused = true)]
async fn access_to_others_devices_is_for_labelled_namespaces() {
    let cluster = cluster().await;
    let claim = |name: &str| {
        let request = json!({"name": "r", "exactly": {"deviceClassName": "gpu", "adminAccess": true}});
        let claim =
            json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"devices": {"requests": [request]}}});
        serde_json::from_value::<ResourceClaim>(claim).expect("a claim")
    };
    let error = cluster
        .objects()
        .create(&claim("early"))
        .await
        .expect_err("it isn't allowed")
        .to_string();
    let expected = "spec.devices.requests[0].adminAccess: Forbidden: admin access to devices requires the \
                    `resource.kubernetes.io/admin-access: true` label on the containing namespace";
    assert!(error.contains(expected), "{error}");
    let label = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}});
    let _: keelson_testkit::objects::Namespace = cluster.patch("", "default", label).await;
    cluster.sleep(secs(1)).await;
    cluster
        .objects()
        .create(&claim("late"))
        .await
        .expect("it is allowed now");
}

#[tokio::test(start_paused = true)]
async fn devices_that_a_failed_binding_leaves_go_to_who_waits_for_them() {
    let cluster = cluster().await;
    let policy = r#"
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {name: kept}, spec: {
  matchConstraints: {resourceRules: [{apiGroups: [resource.k8s.io], apiVersions: [v1], operations: [UPDATE], resources: [resourceclaims/status]}]},
  validations: [{expression: '!object.metadata.name.startsWith("first")'}]}}
"#;
    let binding = r#"
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, metadata: {name: kept}, spec: {
  policyName: kept, validationActions: [Deny]}}
"#;
    cluster.apply(policy).await;
    cluster.apply(binding).await;
    cluster.sleep(secs(2)).await;
    pod(&cluster, "first").await;
    pod(&cluster, "second").await;
    let refused = |p: &Pod| condition(p, "PodScheduled").0 == "False";
    for name in ["first", "second"] {
        cluster.until("default", name, secs(60), "is refused", refused).await;
    }
    // Both are tried at once: the first one's promise keeps the second off, until it can't be kept.
    publish(&cluster, &["gpu-0"]).await;
    let is_bound = |p: &Pod| !node_of(p).is_empty();
    cluster
        .until("default", "second", secs(60), "has a node", is_bound)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_device_stands_for_an_extended_resource() {
    let cluster = cluster().await;
    publish(&cluster, &["gpu-0"]).await;
    let class = "{apiVersion: resource.k8s.io/v1, kind: DeviceClass, metadata: {name: named}, spec: {extendedResourceName: x.io/gpu}}";
    cluster.apply(class).await;
    let asking = |name: &str| {
        let container = "{name: c, image: i, resources: {limits: {x.io/gpu: 1}}}";
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{container}]}}}}")
    };
    cluster.apply(&asking("first")).await;
    let is_bound = |p: &Pod| !node_of(p).is_empty();
    let first = cluster
        .until("default", "first", secs(60), "has a node", is_bound)
        .await;
    assert_eq!(node_of(&first), "fast");
    let told = first
        .status
        .as_ref()
        .and_then(|s| s.extended_resource_claim_status.clone())
        .expect("its claim is told");
    assert!(
        told.resource_claim_name.starts_with("first-extended-resources-"),
        "{told:?}"
    );
    assert_eq!(told.request_mappings[0].request_name, "container-0-request-0");
    let claim = cluster
        .objects::<ResourceClaim>()
        .get("default", &told.resource_claim_name)
        .await
        .expect("it is there");
    let users = claim.status.and_then(|s| s.reserved_for).unwrap_or_default();
    assert_eq!(users[0].name, "first");

    cluster.apply(&asking("second")).await;
    let refused = |p: &Pod| condition(p, "PodScheduled").0 == "False";
    cluster.until("default", "second", secs(60), "waits", refused).await;
    end(&cluster, "first").await;
    let second = cluster
        .until("default", "second", secs(120), "has a node", is_bound)
        .await;
    assert_eq!(node_of(&second), "fast");
}
