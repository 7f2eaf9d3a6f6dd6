//! Certificates from the cluster's own signers: a CertificateSigningRequest, and the wait for what is decided about it.

use anyhow::{Context, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_client::{ApiObject, Informer, InformerOptions, ResourceId};
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const REQUESTS: ResourceId = ResourceId::fixed(
    "certificates.k8s.io",
    "v1",
    "CertificateSigningRequest",
    "certificatesigningrequests",
    false,
);

/// What kind of certificate is asked for.
pub struct Asked {
    /// How the request's name begins.
    pub prefix: &'static str,
    pub signer: &'static str,
    pub usages: [&'static str; 2],
    /// How long it is to be good; `None`: as long as the signer likes.
    pub seconds: Option<i32>,
}

/// Asks; the request's name.
pub async fn submit(rest: &Rest, asked: &Asked, request_pem: String) -> anyhow::Result<String> {
    let request = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(asked.prefix.into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request_pem.into_bytes()),
            signer_name: asked.signer.into(),
            usages: Some(asked.usages.map(String::from).into()),
            expiration_seconds: asked.seconds,
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = Objects::<CertificateSigningRequest>::new(rest).create(&request).await;
    Ok(made.context("the request for a certificate")?.name().to_string())
}

/// Approves a request, for whoever may.
pub async fn approve(rest: &Rest, name: &str, why: &str) -> anyhow::Result<()> {
    let condition = CertificateSigningRequestCondition {
        type_: "Approved".into(),
        status: "True".into(),
        reason: Some("KeelsonUser".into()),
        message: Some(why.into()),
        ..CertificateSigningRequestCondition::default()
    };
    let patch = json!({"status": {"conditions": [condition]}});
    rest.patch_raw(
        &REQUESTS,
        "",
        name,
        "approval",
        &keelson_client::Patch::Strategic(&patch),
    )
    .await
    .context("the request for a certificate can't be approved")?;
    Ok(())
}

/// Waits for the decision.
pub async fn decided(rest: &Rest, name: &str, patience: Duration) -> anyhow::Result<String> {
    let stop = CancellationToken::new();
    let _done = stop.clone().drop_guard();
    let options = InformerOptions {
        fields: format!("metadata.name={name}"),
        ..InformerOptions::default()
    };
    let informer: Informer<CertificateSigningRequest> = Informer::start(rest, options, &stop);
    let mut changes = informer.store().changes();
    let decided = async {
        loop {
            if let Some(found) = informer.store().get("", name)
                && let Some(decision) = decision(&found)
            {
                return decision;
            }
            changes
                .changed()
                .await
                .context("the watch on a certificate request ended")?;
        }
    };
    match tokio::time::timeout(patience, decided).await {
        Ok(decision) => decision,
        Err(_) => bail!("nobody decided on certificate request {name} within {patience:?} (kubectl get csr)"),
    }
}

fn decision(found: &CertificateSigningRequest) -> Option<anyhow::Result<String>> {
    let status = found.status.as_ref()?;
    for condition in status.conditions.iter().flatten() {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") {
            let message = condition.message.clone().unwrap_or_default();
            let reason = condition.reason.clone().unwrap_or_default();
            return Some(Err(anyhow::Error::new(Refused(format!("{message} ({reason})")))));
        }
    }
    let certificate = status.certificate.as_ref().filter(|c| !c.0.is_empty())?;
    Some(String::from_utf8(certificate.0.clone()).context("a certificate that is no text"))
}

/// The cluster decided against it: asking again changes nothing.
#[derive(Debug)]
pub struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "the cluster refused the certificate: {}", self.0)
    }
}
impl std::error::Error for Refused {}
