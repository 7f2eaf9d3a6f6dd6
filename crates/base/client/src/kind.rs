//! The built-in types components use, and the one place where their (de)serialisation is compiled.
//!
//! `decode` and `encode` of each type are ordinary functions of this crate. Generic code elsewhere calls them through
//! [`ApiObject`] and pays nothing for serde.

use k8s_openapi::api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::borrow::Cow;
use std::fmt;

/// A resource's address: what stands in its URLs, and the kind of its objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId {
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    pub kind: Cow<'static, str>,
    pub plural: Cow<'static, str>,
    pub namespaced: bool,
}

impl ResourceId {
    /// Definitions of custom resources, of which no type is known here.
    pub const DEFINITIONS: ResourceId = ResourceId::fixed(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        false,
    );

    pub const fn fixed(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        namespaced: bool,
    ) -> Self {
        ResourceId {
            group: Cow::Borrowed(group),
            version: Cow::Borrowed(version),
            kind: Cow::Borrowed(kind),
            plural: Cow::Borrowed(plural),
            namespaced,
        }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The collection's path; an empty namespace means all of them, or a cluster-scoped resource.
    pub fn path(&self, namespace: &str) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if self.namespaced && !namespace.is_empty() {
            format!("{root}/namespaces/{namespace}/{}", self.plural)
        } else {
            format!("{root}/{}", self.plural)
        }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.group.is_empty() {
            write!(f, "{}/{}", self.version, self.plural)
        } else {
            write!(f, "{}/{}/{}", self.group, self.version, self.plural)
        }
    }
}

/// Something with metadata that the server sends as JSON.
pub trait ApiObject: Clone + fmt::Debug + Send + Sync + 'static {
    fn meta(&self) -> &ObjectMeta;
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    fn decode(json: &[u8]) -> serde_json::Result<Self>;
    fn encode(&self) -> serde_json::Result<Vec<u8>>;

    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }
    fn uid(&self) -> &str {
        self.meta().uid.as_deref().unwrap_or_default()
    }
    fn key(&self) -> crate::ObjectKey {
        crate::ObjectKey::of(self.meta())
    }
    fn is_deleting(&self) -> bool {
        self.meta().deletion_timestamp.is_some()
    }
}

/// An [`ApiObject`] of one known resource.
pub trait Kind: ApiObject {
    const RESOURCE: ResourceId;
}

/// The same object with a date for the one field that the server writes as null although a typed object must have it:
/// the transition time of a condition that somebody set without one. `None` when that isn't what is wrong.
fn repaired(json: &[u8]) -> Option<Vec<u8>> {
    fn fill(value: &mut serde_json::Value) -> bool {
        match value {
            serde_json::Value::Object(map) => map.iter_mut().fold(false, |any, (key, v)| {
                if v.is_null() && key == "lastTransitionTime" {
                    *v = "0001-01-01T00:00:00Z".into();
                    return true;
                }
                fill(v) | any
            }),
            serde_json::Value::Array(list) => list.iter_mut().fold(false, |any, v| fill(v) | any),
            _ => false,
        }
    }
    let mut value = serde_json::from_slice(json).ok()?;
    fill(&mut value).then(|| serde_json::to_vec(&value).ok()).flatten()
}

macro_rules! kinds {
    ($($ty:ty, $group:literal, $version:literal, $kind:literal, $plural:literal, $namespaced:literal;)*) => {$(
        impl ApiObject for $ty {
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
            fn decode(json: &[u8]) -> serde_json::Result<Self> {
                serde_json::from_slice(json).or_else(|error| serde_json::from_slice(&repaired(json).ok_or(error)?))
            }
            fn encode(&self) -> serde_json::Result<Vec<u8>> {
                serde_json::to_vec(self)
            }
        }
        impl Kind for $ty {
            const RESOURCE: ResourceId = ResourceId::fixed($group, $version, $kind, $plural, $namespaced);
        }
    )*};
}

/// Kinds of custom resources: `type, group, version, kind, plural, namespaced;`. Such a type has a field `metadata` and says
/// nothing of its kind itself. Wants `k8s_openapi` and `serde_json` where it is used.
#[macro_export]
macro_rules! custom_kinds {
    ($($ty:ty, $group:expr, $version:expr, $kind:expr, $plural:literal, $namespaced:literal;)*) => {$(
        impl $crate::ApiObject for $ty {
            fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }
            fn decode(json: &[u8]) -> serde_json::Result<Self> {
                serde_json::from_slice(json)
            }
            fn encode(&self) -> serde_json::Result<Vec<u8>> {
                let resource = <Self as $crate::Kind>::RESOURCE;
                let mut value = serde_json::to_value(self)?;
                value["apiVersion"] = resource.api_version().into();
                value["kind"] = resource.kind.into();
                serde_json::to_vec(&value)
            }
        }
        impl $crate::Kind for $ty {
            const RESOURCE: $crate::ResourceId = $crate::ResourceId::fixed($group, $version, $kind, $plural, $namespaced);
        }
    )*};
}

kinds! {
    api::core::v1::Pod, "", "v1", "Pod", "pods", true;
    api::core::v1::Node, "", "v1", "Node", "nodes", false;
    api::core::v1::Service, "", "v1", "Service", "services", true;
    api::core::v1::Endpoints, "", "v1", "Endpoints", "endpoints", true;
    api::core::v1::Namespace, "", "v1", "Namespace", "namespaces", false;
    api::core::v1::ServiceAccount, "", "v1", "ServiceAccount", "serviceaccounts", true;
    api::core::v1::ConfigMap, "", "v1", "ConfigMap", "configmaps", true;
    api::core::v1::Secret, "", "v1", "Secret", "secrets", true;
    api::core::v1::Event, "", "v1", "Event", "events", true;
    api::core::v1::ReplicationController, "", "v1", "ReplicationController", "replicationcontrollers", true;
    api::core::v1::PersistentVolume, "", "v1", "PersistentVolume", "persistentvolumes", false;
    api::core::v1::PersistentVolumeClaim, "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true;
    api::core::v1::ResourceQuota, "", "v1", "ResourceQuota", "resourcequotas", true;
    api::core::v1::LimitRange, "", "v1", "LimitRange", "limitranges", true;
    api::apps::v1::Deployment, "apps", "v1", "Deployment", "deployments", true;
    api::apps::v1::ReplicaSet, "apps", "v1", "ReplicaSet", "replicasets", true;
    api::apps::v1::StatefulSet, "apps", "v1", "StatefulSet", "statefulsets", true;
    api::apps::v1::DaemonSet, "apps", "v1", "DaemonSet", "daemonsets", true;
    api::apps::v1::ControllerRevision, "apps", "v1", "ControllerRevision", "controllerrevisions", true;
    api::batch::v1::Job, "batch", "v1", "Job", "jobs", true;
    api::batch::v1::CronJob, "batch", "v1", "CronJob", "cronjobs", true;
    api::discovery::v1::EndpointSlice, "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true;
    api::coordination::v1::Lease, "coordination.k8s.io", "v1", "Lease", "leases", true;
    api::autoscaling::v2::HorizontalPodAutoscaler, "autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true;
    api::policy::v1::PodDisruptionBudget, "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true;
    api::rbac::v1::ClusterRole, "rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false;
    api::rbac::v1::ClusterRoleBinding, "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false;
    api::rbac::v1::Role, "rbac.authorization.k8s.io", "v1", "Role", "roles", true;
    api::rbac::v1::RoleBinding, "rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true;
    api::certificates::v1::CertificateSigningRequest, "certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", false;
    api::certificates::v1::ClusterTrustBundle, "certificates.k8s.io", "v1", "ClusterTrustBundle", "clustertrustbundles", false;
    api::certificates::v1::PodCertificateRequest, "certificates.k8s.io", "v1", "PodCertificateRequest", "podcertificaterequests", true;
    api::storage::v1::StorageClass, "storage.k8s.io", "v1", "StorageClass", "storageclasses", false;
    api::storage::v1::VolumeAttributesClass, "storage.k8s.io", "v1", "VolumeAttributesClass", "volumeattributesclasses", false;
    api::storage::v1::CSINode, "storage.k8s.io", "v1", "CSINode", "csinodes", false;
    api::storage::v1::CSIDriver, "storage.k8s.io", "v1", "CSIDriver", "csidrivers", false;
    api::storage::v1::VolumeAttachment, "storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", false;
    api::storage::v1::CSIStorageCapacity, "storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", true;
    api::storagemigration::v1::StorageVersionMigration, "storagemigration.k8s.io", "v1", "StorageVersionMigration", "storageversionmigrations", false;
    api::scheduling::v1::PriorityClass, "scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", false;
    api::node::v1::RuntimeClass, "node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", false;
    api::networking::v1::NetworkPolicy, "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true;
    api::networking::v1::Ingress, "networking.k8s.io", "v1", "Ingress", "ingresses", true;
    api::networking::v1::IngressClass, "networking.k8s.io", "v1", "IngressClass", "ingressclasses", false;
    api::networking::v1::ServiceCIDR, "networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", false;
    k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService, "apiregistration.k8s.io", "v1", "APIService", "apiservices", false;
    api::networking::v1::IPAddress, "networking.k8s.io", "v1", "IPAddress", "ipaddresses", false;
    api::resource::v1::ResourceClaim, "resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", true;
    api::resource::v1::ResourceClaimTemplate, "resource.k8s.io", "v1", "ResourceClaimTemplate", "resourceclaimtemplates", true;
    api::resource::v1::ResourceSlice, "resource.k8s.io", "v1", "ResourceSlice", "resourceslices", false;
    api::resource::v1::DeviceTaintRule, "resource.k8s.io", "v1", "DeviceTaintRule", "devicetaintrules", false;
    api::resource::v1::DeviceClass, "resource.k8s.io", "v1", "DeviceClass", "deviceclasses", false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_without_a_time_is_still_read() {
        let json = br#"{"metadata":{"name":"a"},"status":{"conditions":[{"type":"T","status":"True","reason":"R","message":"","lastTransitionTime":null}]}}"#;
        let service = api::core::v1::Service::decode(json).unwrap();
        assert_eq!(service.status.unwrap().conditions.unwrap()[0].type_, "T");
        assert!(api::core::v1::Service::decode(b"{\"metadata\":3}").is_err());
    }
}
