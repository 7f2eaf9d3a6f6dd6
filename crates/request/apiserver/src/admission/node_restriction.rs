//! NodeRestriction: a kubelet changes its own node, its own pods, and what belongs to them.

mod audiences;

use super::{Phase, Plugin, Review, references};
use crate::authz::Attributes;
use crate::request::user::LOCAL_STORAGE;
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Map, Object, Value};
use keelson_registry::Operation;
use keelson_registry::strategy::same;

pub struct NodeRestriction;

const MIRROR: &str = "kubernetes.io/config.mirror";

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating]
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        let user = review.cx.user.clone();
        if user.in_group(LOCAL_STORAGE) {
            return super::local_storage::check(review, new.as_deref(), old).await;
        }
        let Some(node) = user.node_name() else { return Ok(()) };
        let new = new.as_deref();
        let def = &review.cx.def;
        let sub = review.cx.subresource.as_str();
        match (def.gvr.group.as_str(), def.gvr.resource.as_str()) {
            ("", "pods") => match sub {
                "" => pod(review, node, new, old).await,
                "status" => pod_status(review, node, new, old),
                "eviction" => own_pod(review, node, &review.cx.name, "evict").await,
                // Streams come here with their options; the node authoriser has decided on them.
                _ if review.op == Operation::Connect => Ok(()),
                other => Err(review.forbidden(
                    new,
                    format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"),
                )),
            },
            ("", "nodes") => own_node(review, node, new, old),
            ("", "persistentvolumeclaims") if sub != "status" => {
                Err(review.forbidden(new, "may only update PVC status"))
            }
            ("", "persistentvolumeclaims") => claim_status(review, node, new, old),
            ("", "serviceaccounts") if sub == "token" => token(review, node, new).await,
            ("certificates.k8s.io", "certificatesigningrequests") => request(review, node, new),
            ("certificates.k8s.io", "podcertificaterequests") => pod_certificate(review, node, new).await,
            ("coordination.k8s.io", "leases") => lease(review, node, new),
            ("storage.k8s.io", "csinodes") => named_after(review, node, new, "CSINode"),
            ("resource.k8s.io", "resourceslices") => slice(review, node, new, old),
            _ => Ok(()),
        }
    }
}

/// Of the two signers that make nodes known, a node gets certificates only in its own name.
fn request(review: &Review<'_>, node: &str, new: Option<&Object>) -> ApiResult<()> {
    let Some(csr) = new.filter(|_| review.op == Operation::Create) else {
        return Ok(());
    };
    let signer = csr.str_at(&["spec", "signerName"]).unwrap_or_default();
    if !matches!(
        signer,
        "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet"
    ) {
        return Ok(());
    }
    match super::certificates::request(csr) {
        Err(e) => Err(review.forbidden(new, format!("unable to parse csr: {e}"))),
        Ok(asked) if asked.subject.common_name != format!("system:node:{node}") => {
            Err(review.forbidden(new, format!("can only create a node CSR with CN=system:node:{node}")))
        }
        Ok(_) => Ok(()),
    }
}

fn node_of(pod: &Object) -> &str {
    pod.str_at(&["spec", "nodeName"]).unwrap_or_default()
}

async fn pod(review: &Review<'_>, node: &str, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
    match (review.op, new, old) {
        (Operation::Create, Some(pod), _) => mirror_pod(review, node, pod).await,
        (Operation::Delete, _, Some(pod)) if node_of(pod) == node => Ok(()),
        (Operation::Delete, ..) => Err(review.forbidden(
            old,
            format!("node {node:?} can only delete pods with spec.nodeName set to itself"),
        )),
        (op, ..) => Err(review.forbidden(
            new,
            format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                op.as_str()
            ),
        )),
    }
}

async fn mirror_pod(review: &Review<'_>, node: &str, pod: &Object) -> ApiResult<()> {
    let refuse = |why: String| Err(review.forbidden(Some(pod), why));
    if pod.annotation(MIRROR).is_none() {
        return refuse(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if node_of(pod) != node {
        return refuse(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    let owners: Vec<&Map> = pod.owner_references().collect();
    let [owner] = owners.as_slice() else {
        return refuse(match owners.len() {
            0 => format!("node {node:?} can only create pods with an owner reference set to itself"),
            _ => format!("node {node:?} can only create pods with a single owner reference set to itself"),
        });
    };
    let is_node =
        owner.str("apiVersion") == Some("v1") && owner.str("kind") == Some("Node") && owner.str("name") == Some(node);
    if !is_node {
        return refuse(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if owner.bool("controller") != Some(true) {
        return refuse(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner.bool("blockOwnerDeletion") == Some(true) {
        return refuse(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let Some(own) = review.lookup.cached("", "nodes", "", node).await? else {
        return Err(ApiError::not_found("", "nodes", node));
    };
    let uid = owner.str("uid").unwrap_or_default();
    if uid != own.uid() {
        return refuse(format!("node {node} UID mismatch: expected {uid} got {}", own.uid()));
    }
    if let Some(resource) = references::first(pod) {
        return refuse(format!("node {node:?} can not create pods that reference {resource}"));
    }
    Ok(())
}

fn pod_status(review: &Review<'_>, node: &str, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
    let (Some(new), Some(old)) = (new, old) else {
        return Err(review.forbidden(new, format!("unexpected operation {:?}", review.op.as_str())));
    };
    if node_of(old) != node {
        return Err(review.forbidden(
            Some(new),
            format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"),
        ));
    }
    let kept = |path: &[&str]| same(new.at(path), old.at(path));
    if !kept(&["metadata", "labels"]) {
        return Err(review.forbidden(
            Some(new),
            format!("node {node:?} cannot update labels through pod status"),
        ));
    }
    if !kept(&["status", "resourceClaimStatuses"]) {
        return Err(review.forbidden(Some(new), format!("node {node:?} cannot update resource claim statues")));
    }
    if !kept(&["status", "extendedResourceClaimStatus"]) {
        return Err(review.forbidden(
            Some(new),
            format!("node {node:?} cannot update extended resource claim status"),
        ));
    }
    if !kept(&["status", "nodeAllocatableResourceClaimStatuses"]) {
        return Err(review.forbidden(
            Some(new),
            format!("node {node:?} cannot update node allocatable resource claim statuses"),
        ));
    }
    Ok(())
}

async fn own_pod(review: &Review<'_>, node: &str, name: &str, verb: &str) -> ApiResult<()> {
    let Some(pod) = review.lookup.cached("", "pods", &review.cx.namespace, name).await? else {
        return Err(review.cx.not_found(name));
    };
    if node_of(&pod) == node {
        return Ok(());
    }
    Err(review.forbidden(
        None,
        format!("node {node} can only {verb} pods with spec.nodeName set to itself"),
    ))
}

fn own_node(review: &Review<'_>, node: &str, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
    let requested = match review.cx.name.as_str() {
        "" => new.map_or("", |o| o.name()),
        name => name,
    };
    if requested != node {
        return Err(review.forbidden(
            new,
            format!("node {node:?} is not allowed to modify node {requested:?}"),
        ));
    }
    let Some(new) = new else { return Ok(()) };
    let refuse = |why: String| Err(review.forbidden(Some(new), why));
    let empty = Map::new();
    let labels = forbidden_labels(
        new.labels().unwrap_or(&empty),
        old.and_then(|o| o.labels()).unwrap_or(&empty),
    );
    let Some(old) = old else {
        if new.at(&["spec", "configSource"]).is_some() {
            return refuse(format!(
                "node {node:?} is not allowed to create pods with a non-nil configSource"
            ));
        }
        if !labels.is_empty() {
            return refuse(format!(
                "node {node:?} is not allowed to set the following labels: {}",
                labels.join(", ")
            ));
        }
        return Ok(());
    };
    if !same(new.at(&["spec", "taints"]), old.at(&["spec", "taints"])) {
        return refuse(format!("node {node:?} is not allowed to modify taints"));
    }
    if !same(
        new.at(&["metadata", "ownerReferences"]),
        old.at(&["metadata", "ownerReferences"]),
    ) {
        return refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    if !labels.is_empty() {
        return refuse(format!("is not allowed to modify labels: {}", labels.join(", ")));
    }
    Ok(())
}

/// Labels under the project's domains that a kubelet may set by itself.
const KUBELET_LABELS: [&str; 15] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "node.kubernetes.io/windows-build",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "kubernetes.io/instance-type",
];

fn forbidden_labels(new: &Map, old: &Map) -> Vec<String> {
    let mut changed: Vec<&str> = new
        .keys()
        .chain(old.keys())
        .filter(|k| new.get(k) != old.get(k))
        .map(|k| k.as_str())
        .collect();
    changed.sort_unstable();
    changed.dedup();
    let under = |domain: &str, of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    changed
        .into_iter()
        .filter(|key| {
            let domain = key.split_once('/').map_or("", |(d, _)| d);
            if under(domain, "node-restriction.kubernetes.io") {
                return true;
            }
            let kubelet_domain = under(domain, "kubelet.kubernetes.io") || under(domain, "node.kubernetes.io");
            (under(domain, "kubernetes.io") || under(domain, "k8s.io"))
                && !kubelet_domain
                && !KUBELET_LABELS.contains(key)
        })
        .map(String::from)
        .collect()
}

fn claim_status(review: &Review<'_>, node: &str, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
    let (Some(new), Some(old)) = (new, old) else {
        return Err(review.forbidden(new, format!("unexpected operation {:?}", review.op.as_str())));
    };
    let bare = |o: &Object| {
        let mut o = o.clone();
        for key in [
            "capacity",
            "conditions",
            "allocatedResourceStatuses",
            "allocatedResources",
        ] {
            o.remove_at(&["status", key]);
        }
        o.set_meta("resourceVersion", "");
        o.meta_mut().remove("managedFields");
        Value::Object(o.0)
    };
    if same(Some(&bare(new)), Some(&bare(old))) {
        return Ok(());
    }
    Err(review.forbidden(
        Some(new),
        format!("node {node:?} is not allowed to update fields other than status.quantity and status.conditions"),
    ))
}

async fn token(review: &Review<'_>, node: &str, new: Option<&Object>) -> ApiResult<()> {
    let Some(request) = new else { return Ok(()) };
    let text = |key: &str| request.str_at(&["spec", "boundObjectRef", key]).unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return Err(review.forbidden(new, "node requested token not bound to a pod"));
    }
    if text("uid").is_empty() {
        return Err(review.forbidden(new, "node requested token with a pod binding without a uid"));
    }
    let Some(pod) = review
        .lookup
        .cached("", "pods", &review.cx.namespace, text("name"))
        .await?
    else {
        return Err(ApiError::not_found("", "pods", text("name")));
    };
    if pod.uid() != text("uid") {
        return Err(review.forbidden(new, format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        )));
    }
    if node_of(&pod) != node {
        return Err(review.forbidden(new, "node requested token bound to a pod scheduled on a different node"));
    }
    let audience = audiences::check(review, request, &pod).await;
    audience.map_err(|why| review.forbidden(new, why))
}

/// A kubelet asks for certificates of the pods that run on it, and for those that the pods themselves ask for.
async fn pod_certificate(review: &Review<'_>, node: &str, new: Option<&Object>) -> ApiResult<()> {
    let (Operation::Create, Some(request)) = (review.op, new) else {
        return Err(review.forbidden(new, format!("unexpected operation {}", review.op.as_str())));
    };
    let text = |key: &str| request.str_at(&["spec", key]).unwrap_or_default();
    let refuse = |why: String| Err(review.forbidden(new, why));
    if text("nodeName") != node {
        return refuse(format!(
            "PodCertificateRequest.Spec.NodeName={:?}, which is not the requesting node {node:?}",
            text("nodeName")
        ));
    }
    let namespace = review.cx.namespace.as_str();
    let pod_name = format!("{namespace}/{}", text("podName"));
    // What isn't there or is another may only be so for now: the kubelet is to try again.
    let found = async |resource: &str, namespace: &str, what: &str, name: &str, uid: &str| {
        let object = review.lookup.cached("", resource, namespace, name).await?;
        match object {
            Some(o) if o.uid() == uid => Ok(o),
            Some(o) => Err(ApiError::internal(format!(
                "PodCertificateRequest for pod {pod_name:?} names {what} UID {uid:?}, inconsistent with {:?}",
                o.uid()
            ))),
            None => Err(ApiError::internal(format!(
                "while retrieving {what} {name:?} named in the PodCertificateRequest: not found"
            ))),
        }
    };
    found("nodes", "", "node", node, text("nodeUID")).await?;
    let pod = found("pods", namespace, "pod", text("podName"), text("podUID")).await?;
    if node_of(&pod) != node {
        return refuse(format!(
            "pod {pod_name:?} is not running on node {node:?} named in the PodCertificateRequest"
        ));
    }
    if pod.annotation(MIRROR).is_some() {
        return refuse(format!("pod {pod_name:?} is a mirror pod"));
    }
    let account = pod.str_at(&["spec", "serviceAccountName"]).unwrap_or_default();
    if text("serviceAccountName") != account {
        return refuse(format!(
            "PodCertificateRequest for pod {pod_name:?} contains serviceAccountName ({:?}) that differs from running pod ({account:?})",
            text("serviceAccountName")
        ));
    }
    let uid = text("serviceAccountUID");
    found("serviceaccounts", namespace, "service account", account, uid).await?;
    let signer = text("signerName");
    if mounts_certificate(&pod, signer) || may_request(review, signer, account).await {
        return Ok(());
    }
    refuse(format!(
        "pod {pod_name:?} does not mount a podCertificate projected volume for signer {signer:?}"
    ))
}

fn mounts_certificate(pod: &Object, signer: &str) -> bool {
    let list = |v: Option<&Value>| v.and_then(Value::as_array).cloned().unwrap_or_default();
    list(pod.at(&["spec", "volumes"]))
        .iter()
        .flat_map(|v| list(v.at(&["projected", "sources"])))
        .any(|s| s.at(&["podCertificate", "signerName"]).and_then(Value::as_str) == Some(signer))
}

/// Nodes may be given a signer for an account. RBAC knows no resources with slashes, hence the colon.
async fn may_request(review: &Review<'_>, signer: &str, account: &str) -> bool {
    let attributes = Attributes {
        user: review.cx.user.as_ref().clone(),
        verb: "request-serviceaccounts-podcertificate-signer".into(),
        is_resource_request: true,
        api_group: review.cx.def.gvr.group.clone(),
        api_version: review.cx.def.gvr.version.clone(),
        resource: signer.replace('/', ":").into(),
        namespace: review.cx.namespace.clone(),
        name: account.into(),
        ..Attributes::default()
    };
    review.allowed(attributes).await.is_ok()
}

fn lease(review: &Review<'_>, node: &str, new: Option<&Object>) -> ApiResult<()> {
    if review.cx.namespace != "kube-node-lease" {
        return Err(review.forbidden(
            new,
            "can only access leases in the \"kube-node-lease\" system namespace",
        ));
    }
    named_after(review, node, new, "lease")
}

fn named_after(review: &Review<'_>, node: &str, new: Option<&Object>, what: &str) -> ApiResult<()> {
    let name = match review.cx.name.as_str() {
        "" => new.map_or("", |o| o.name()),
        name => name,
    };
    if name == node {
        return Ok(());
    }
    Err(review.forbidden(
        new,
        format!("can only access {what} with the same name as the requesting node"),
    ))
}

fn slice(review: &Review<'_>, node: &str, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
    let own = |o: &Object| o.str_at(&["spec", "nodeName"]) == Some(node);
    match (new, old) {
        (Some(new), None) if !own(new) => Err(review.forbidden(
            Some(new),
            "can only create ResourceSlice with the same NodeName as the requesting node",
        )),
        (_, Some(old)) if !own(old) => Err(review.forbidden(
            Some(old),
            "can only access ResourceSlice with the same NodeName as the requesting node",
        )),
        _ => Ok(()),
    }
}
