//! The fields that built-in kinds can be selected by, besides name and namespace.

use crate::def::SelectableField as F;

const POD: &[F] = &[
    F::new("spec.nodeName", &["spec", "nodeName"]),
    F::new("spec.restartPolicy", &["spec", "restartPolicy"]),
    F::new("spec.schedulerName", &["spec", "schedulerName"]),
    F::new("spec.serviceAccountName", &["spec", "serviceAccountName"]),
    F::new("spec.hostNetwork", &["spec", "hostNetwork"]).absent("false"),
    F::new("status.phase", &["status", "phase"]),
    F::new("status.podIP", &["status", "podIP"]),
    F::new("status.podIPs", &["status", "podIP"]),
    F::new("status.nominatedNodeName", &["status", "nominatedNodeName"]),
];
const EVENT: &[F] = &[
    F::new("involvedObject.kind", &["involvedObject", "kind"]),
    F::new("involvedObject.namespace", &["involvedObject", "namespace"]),
    F::new("involvedObject.name", &["involvedObject", "name"]),
    F::new("involvedObject.uid", &["involvedObject", "uid"]),
    F::new("involvedObject.apiVersion", &["involvedObject", "apiVersion"]),
    F::new("involvedObject.resourceVersion", &["involvedObject", "resourceVersion"]),
    F::new("involvedObject.fieldPath", &["involvedObject", "fieldPath"]),
    F::new("reason", &["reason"]),
    F::new("reportingComponent", &["reportingComponent"]),
    F::new("source", &["source", "component"]).or(&["reportingComponent"]),
    F::new("type", &["type"]),
];
const NODE: &[F] = &[F::new("spec.unschedulable", &["spec", "unschedulable"]).absent("false")];
const REPLICAS: &[F] = &[F::new("status.replicas", &["status", "replicas"]).absent("0")];
const PHASE: &[F] = &[F::new("status.phase", &["status", "phase"])];
const TYPE: &[F] = &[F::new("type", &["type"])];
const SERVICE: &[F] = &[
    F::new("spec.clusterIP", &["spec", "clusterIP"]),
    F::new("spec.type", &["spec", "type"]),
];
const JOB: &[F] = &[F::new("status.successful", &["status", "succeeded"]).absent("0")];
const SIGNER: &[F] = &[F::new("spec.signerName", &["spec", "signerName"])];
const POD_CERTIFICATE: &[F] = &[
    F::new("spec.signerName", &["spec", "signerName"]),
    F::new("spec.podName", &["spec", "podName"]),
    F::new("spec.nodeName", &["spec", "nodeName"]),
];
const SLICE: &[F] = &[
    F::new("spec.nodeName", &["spec", "nodeName"]),
    F::new("spec.driver", &["spec", "driver"]),
    F::new("spec.pool.name", &["spec", "pool", "name"]),
];

pub fn of(group: &str, kind: &str) -> &'static [F] {
    match (group, kind) {
        ("", "Pod") => POD,
        ("" | "events.k8s.io", "Event") => EVENT,
        ("", "Node") => NODE,
        ("", "ReplicationController") => REPLICAS,
        ("", "Namespace") => PHASE,
        ("", "Secret") => TYPE,
        ("", "Service") => SERVICE,
        ("batch", "Job") => JOB,
        ("certificates.k8s.io", "CertificateSigningRequest" | "ClusterTrustBundle") => SIGNER,
        ("certificates.k8s.io", "PodCertificateRequest") => POD_CERTIFICATE,
        ("resource.k8s.io", "ResourceSlice") => SLICE,
        _ => &[],
    }
}
