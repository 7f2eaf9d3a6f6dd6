//! What the fields of the built-in types mean, in words: from the schemas that the k8s-openapi crate carries.
//!
//! Only descriptions are taken from there; names, types and extensions come from the server's own schema table.

use k8s_openapi::schemars::SchemaGenerator;
use std::collections::HashMap;

/// Descriptions by type name, and by field within it.
#[derive(Default)]
pub struct Descriptions(HashMap<String, serde_json::Value>);

macro_rules! kinds {
    ($generator:ident: $($($module:ident)::+ { $($kind:ident)+ })+) => {
        $({
            use k8s_openapi::$($module)::+ as kinds;
            $( $generator.subschema_for::<kinds::$kind>(); )+
        })+
    };
}

impl Descriptions {
    /// All descriptions. They are a few megabytes: use them and let them go.
    pub fn gather() -> Self {
        let mut generator = SchemaGenerator::default();
        kinds! { generator:
            api::admissionregistration::v1 { MutatingAdmissionPolicy MutatingAdmissionPolicyBinding MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration }
            api::apps::v1 { ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet }
            api::authentication::v1 { SelfSubjectReview TokenRequest TokenReview }
            api::authorization::v1 { LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview }
            api::autoscaling::v1 { HorizontalPodAutoscaler Scale }
            api::autoscaling::v2 { HorizontalPodAutoscaler }
            api::batch::v1 { CronJob Job }
            api::certificates::v1 { CertificateSigningRequest ClusterTrustBundle PodCertificateRequest }
            api::coordination::v1 { Lease }
            api::core::v1 { Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount }
            api::discovery::v1 { EndpointSlice }
            api::events::v1 { Event }
            api::flowcontrol::v1 { FlowSchema PriorityLevelConfiguration }
            api::networking::v1 { IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR }
            api::node::v1 { RuntimeClass }
            api::policy::v1 { Eviction PodDisruptionBudget }
            api::rbac::v1 { ClusterRole ClusterRoleBinding Role RoleBinding }
            api::resource::v1 { DeviceClass DeviceTaintRule ResourceClaim ResourceClaimTemplate ResourceSlice }
            api::scheduling::v1 { PriorityClass }
            api::storage::v1 { CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment VolumeAttributesClass }
            api::storagemigration::v1 { StorageVersionMigration }
            apiextensions_apiserver::pkg::apis::apiextensions::v1 { CustomResourceDefinition }
            apimachinery::pkg::apis::meta::v1 { APIGroup APIGroupList APIResourceList APIVersions DeleteOptions Status }
            kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
        }
        let definitions = generator.take_definitions(true);
        Descriptions(definitions.into_iter().collect())
    }

    pub fn of_type(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.get("description")?.as_str()
    }
    pub fn of_field(&self, name: &str, field: &str) -> Option<&str> {
        self.0
            .get(name)?
            .get("properties")?
            .get(field)?
            .get("description")?
            .as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_fields_are_described() {
        let d = Descriptions::gather();
        assert!(d.of_type("io.k8s.api.core.v1.PodSpec").is_some());
        let image = d.of_field("io.k8s.api.core.v1.Container", "image").unwrap();
        assert!(image.contains("image"), "{image}");
    }
}
