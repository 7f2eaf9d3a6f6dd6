//! What comes before what: within a file by kind, among files by what they say they depend on.

use std::collections::{BTreeMap, BTreeSet};

/// Groups of the API server's own kinds that don't end in `.k8s.io`.
const BUILT_IN: [&str; 6] = ["", "apps", "batch", "autoscaling", "policy", "extensions"];

/// The lowest are applied first, and go last.
pub fn rank(group: &str, kind: &str) -> u8 {
    match kind {
        "Namespace" if group.is_empty() => 0,
        "CustomResourceDefinition" => 1,
        "PriorityClass"
        | "RuntimeClass"
        | "StorageClass"
        | "IngressClass"
        | "ResourceQuota"
        | "LimitRange"
        | "NetworkPolicy"
        | "PodDisruptionBudget" => 2,
        "ServiceAccount" | "Secret" | "ConfigMap" | "PersistentVolume" | "PersistentVolumeClaim" => 3,
        "ClusterRole" | "Role" => 4,
        "ClusterRoleBinding" | "RoleBinding" => 5,
        "Service" | "Endpoints" | "EndpointSlice" if is_built_in(group) => 6,
        "Pod"
        | "ReplicationController"
        | "ReplicaSet"
        | "Deployment"
        | "StatefulSet"
        | "DaemonSet"
        | "Job"
        | "CronJob"
            if is_built_in(group) =>
        {
            7
        }
        // What answers for them has to run before anybody is sent there.
        "APIService" => 10,
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => 11,
        _ if is_built_in(group) => 8,
        _ => 9,
    }
}

fn is_built_in(group: &str) -> bool {
    BUILT_IN.contains(&group)
        || (group.ends_with(".k8s.io") && group.split('.').count() == 3)
        || group == "rbac.authorization.k8s.io"
}

/// Add-ons that wait for each other, and `name` for them: no order is right for these.
pub fn circle(name: &str, depends_on: &BTreeMap<String, Vec<String>>) -> Option<Vec<String>> {
    fn walk(
        at: &str,
        name: &str,
        all: &BTreeMap<String, Vec<String>>,
        seen: &mut BTreeSet<String>,
        way: &mut Vec<String>,
    ) -> bool {
        way.push(at.to_string());
        for next in all.get(at).into_iter().flatten() {
            if next == name {
                way.push(next.clone());
                return true;
            }
            if seen.insert(next.clone()) && walk(next, name, all, seen, way) {
                return true;
            }
        }
        way.pop();
        false
    }
    let mut way = Vec::new();
    walk(name, name, depends_on, &mut BTreeSet::new(), &mut way).then_some(way)
}
