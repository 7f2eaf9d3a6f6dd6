//! The kinds that have rules, and the names by which people call them.

use keelson_client::ResourceId;

pub struct Known {
    pub id: ResourceId,
    /// Short names, as kubectl has them.
    pub short: &'static [&'static str],
}

const fn known(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
    short: &'static [&'static str],
) -> Known {
    Known {
        id: ResourceId::fixed(group, version, kind, plural, namespaced),
        short,
    }
}

pub static KINDS: &[Known] = &[
    known("", "v1", "Pod", "pods", true, &["po"]),
    known("", "v1", "Service", "services", true, &["svc"]),
    known("", "v1", "Node", "nodes", false, &["no"]),
    known("", "v1", "Namespace", "namespaces", false, &["ns"]),
    known("", "v1", "Event", "events", true, &["ev"]),
    known("", "v1", "Secret", "secrets", true, &[]),
    known("", "v1", "ConfigMap", "configmaps", true, &["cm"]),
    known("", "v1", "ServiceAccount", "serviceaccounts", true, &["sa"]),
    known("", "v1", "ResourceQuota", "resourcequotas", true, &["quota"]),
    known("", "v1", "PersistentVolume", "persistentvolumes", false, &["pv"]),
    known(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        true,
        &["pvc"],
    ),
    known(
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
        true,
        &["rc"],
    ),
    known("apps", "v1", "Deployment", "deployments", true, &["deploy"]),
    known("apps", "v1", "ReplicaSet", "replicasets", true, &["rs"]),
    known("apps", "v1", "StatefulSet", "statefulsets", true, &["sts"]),
    known("apps", "v1", "DaemonSet", "daemonsets", true, &["ds"]),
    known("batch", "v1", "Job", "jobs", true, &[]),
    known("batch", "v1", "CronJob", "cronjobs", true, &["cj"]),
    known(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        true,
        &["pdb"],
    ),
    known(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        true,
        &["hpa"],
    ),
    known("networking.k8s.io", "v1", "Ingress", "ingresses", true, &["ing"]),
    known("networking.k8s.io", "v1", "IngressClass", "ingressclasses", false, &[]),
    known(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        true,
        &["netpol"],
    ),
    known(
        "policy.networking.k8s.io",
        "v1alpha2",
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
        false,
        &["cnp"],
    ),
    known("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true, &[]),
    known("storage.k8s.io", "v1", "StorageClass", "storageclasses", false, &["sc"]),
    known("storage.k8s.io", "v1", "CSINode", "csinodes", false, &[]),
    known("storage.k8s.io", "v1", "CSIDriver", "csidrivers", false, &[]),
    known(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
        false,
        &["pc"],
    ),
    known("rbac.authorization.k8s.io", "v1", "Role", "roles", true, &[]),
    known(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRole",
        "clusterroles",
        false,
        &[],
    ),
    known(
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
        "rolebindings",
        true,
        &[],
    ),
    known(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        false,
        &[],
    ),
    known("apiregistration.k8s.io", "v1", "APIService", "apiservices", false, &[]),
    known(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        false,
        &["crd", "crds"],
    ),
    known(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        false,
        &[],
    ),
    known(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        false,
        &[],
    ),
];

/// A kind by any of its names: `Pod`, `pods`, `po`, `deployments.apps`.
pub fn kind(name: &str) -> Option<&'static Known> {
    let name = name.to_lowercase();
    KINDS.iter().find(|k| {
        let plural = &k.id.plural;
        k.id.kind.to_lowercase() == name
            || *plural == name
            || k.short.contains(&name.as_str())
            || format!("{plural}.{}", k.id.group) == name
    })
}
