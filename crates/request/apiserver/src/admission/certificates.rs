//! Who may approve and sign certificate requests, and which subjects no client certificate gets.

use super::{Phase, Plugin, Review};
use crate::authz::Attributes;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_api::{ApiError, ApiResult, Cause, Object};
use keelson_pki::x509::Request;
use keelson_registry::Operation;
use keelson_registry::strategy::same;

const GROUP: &str = "certificates.k8s.io";
const RESOURCE: &str = "certificatesigningrequests";
const POD_RESOURCE: &str = "podcertificaterequests";
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";

fn signer(csr: &Object) -> &str {
    csr.str_at(&["spec", "signerName"]).unwrap_or_default()
}

/// Whether the user may do `verb` for the signer, by its own name or by its domain's wildcard.
async fn may(review: &Review<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or(signer);
    for name in [signer.to_string(), format!("{domain}/*")] {
        let attributes = Attributes {
            user: review.cx.user.as_ref().clone(),
            verb: verb.into(),
            is_resource_request: true,
            api_group: GROUP.into(),
            api_version: "*".into(),
            resource: "signers".into(),
            name: name.into(),
            ..Attributes::default()
        };
        if review.allowed(attributes).await.is_ok() {
            return true;
        }
    }
    false
}

pub struct CertificateApproval;

#[async_trait]
impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(csr) = old.filter(|_| review.op == Operation::Update && review.is_sub(GROUP, RESOURCE, "approval"))
        else {
            return Ok(());
        };
        if may(review, "approve", signer(csr)).await {
            return Ok(());
        }
        Err(review.forbidden(
            new,
            format!(
                "user not permitted to approve requests with signerName {:?}",
                signer(csr)
            ),
        ))
    }
}

pub struct CertificateSigning;

#[async_trait]
impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        if review.is_sub(GROUP, POD_RESOURCE, "status") {
            return pod_status(review, new, old).await;
        }
        let status = review.op == Operation::Update && review.is_sub(GROUP, RESOURCE, "status");
        let (Some(new), Some(old)) = (new.filter(|_| status), old) else {
            return Ok(());
        };
        let unchanged = ["certificate", "conditions"]
            .iter()
            .all(|k| new.at(&["status", k]) == old.at(&["status", k]));
        if unchanged || may(review, "sign", signer(old)).await {
            return Ok(());
        }
        Err(review.forbidden(
            Some(new),
            format!("user not permitted to sign requests with signerName {:?}", signer(old)),
        ))
    }
}

/// The same for what kubelets request; there upstream refuses as validation does.
async fn pod_status(review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
    let (Some(new), Some(old)) = (new, old) else {
        return Ok(());
    };
    if same(new.get("status"), old.get("status")) || may(review, "sign", signer(old)).await {
        return Ok(());
    }
    let why = format!(
        "User {:?} is not permitted to \"sign\" for signer {:?}",
        review.cx.user.name.as_str(),
        signer(old)
    );
    let cause = Cause::forbidden("spec.signerName", &why);
    Err(ApiError::invalid(GROUP, &review.cx.def.kind, new.name(), vec![cause]))
}

/// Who writes a signer's trust bundle says whom to trust in its name.
pub struct ClusterTrustBundleAttest;

#[async_trait]
impl Plugin for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(new) = new.filter(|b| review.is(GROUP, "clustertrustbundles") && !signer(b).is_empty()) else {
            return Ok(());
        };
        // The garbage collector and migrations of the store go on without the right.
        let unchanged = old.is_some_and(|old| bare(new) == bare(old));
        if unchanged || may(review, "attest", signer(new)).await {
            return Ok(());
        }
        let why = format!("user not permitted to attest for signerName {:?}", signer(new));
        Err(review.forbidden(Some(new), why))
    }
}

/// Without what the garbage collector writes, and the engine.
fn bare(o: &Object) -> Object {
    let mut o = o.clone();
    for key in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
        o.meta_mut().remove(key);
    }
    o
}

pub struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Validating]
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, _old: Option<&Object>) -> ApiResult<()> {
        let create = review.op == Operation::Create && review.is(GROUP, RESOURCE);
        let Some(csr) = new.filter(|c| create && signer(c) == API_CLIENT) else {
            return Ok(());
        };
        match request(csr) {
            Err(e) => Err(review.forbidden(Some(csr), format!("failed to parse CSR: {e}"))),
            Ok(asked) if asked.subject.organization.iter().any(|o| o == "system:masters") => Err(review.forbidden(
                Some(csr),
                format!("use of {API_CLIENT} signer with system:masters group is not allowed"),
            )),
            Ok(_) => Ok(()),
        }
    }
}

/// What a request object asks for.
pub fn request(csr: &Object) -> Result<Request, String> {
    let text = csr.str_at(&["spec", "request"]).unwrap_or_default();
    let pem = STANDARD.decode(text).map_err(|e| e.to_string())?;
    Request::from_pem(&pem).map_err(|e| e.to_string())
}
