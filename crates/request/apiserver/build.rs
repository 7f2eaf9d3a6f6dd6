//! Takes what the fields of the built-in types mean, in words, from the schemas that the k8s-openapi crate can make, and packs it for
//! `openapi/describe.rs`. Made here, these schemas' code is no part of the program.

use flate2::Compression;
use flate2::write::ZlibEncoder;
use k8s_openapi::schemars::SchemaGenerator;
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::{env, fs};

macro_rules! kinds {
    ($generator:ident: $($($module:ident)::+ { $($kind:ident)+ })+) => {
        $({
            use k8s_openapi::$($module)::+ as kinds;
            $( $generator.subschema_for::<kinds::$kind>(); )+
        })+
    };
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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
    let words: Map<String, Value> = generator
        .take_definitions(true)
        .into_iter()
        .map(|(name, definition)| (name, described(&definition)))
        .collect();
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    serde_json::to_writer(&mut packed, &words).expect("JSON of words");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to"));
    fs::write(out.join("descriptions"), packed.finish().expect("packed in memory")).expect("written");
}

/// The words of a type, under no name, and of its fields.
fn described(definition: &Value) -> Value {
    let fields = definition["properties"].as_object().into_iter().flatten();
    let fields = fields.filter_map(|(name, field)| Some((name.clone(), field.get("description")?.clone())));
    let own = definition
        .get("description")
        .map(|words| (String::new(), words.clone()));
    own.into_iter().chain(fields).collect::<Map<_, _>>().into()
}
