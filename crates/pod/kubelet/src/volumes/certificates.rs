//! Certificates for pods (`podCertificate` projections): a key is made here and never leaves the node; a request goes to
//! the API, somebody signs it, and the pair is shown to the pod. It is renewed when the signer says so.

use super::trust::pem;
use crate::pods;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection, ServiceAccount, Volume};
use keelson_client::{Informer, InformerOptions, Kind, Objects, Rest};
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

type Wake = Arc<dyn Fn(&str) + Send + Sync>;

/// Pod uid, volume and place among its sources.
type Key = (String, String, usize);

/// A request that isn't answered yet.
#[derive(Clone)]
struct Pending {
    request: String,
    key: String,
    made: Timestamp,
}

/// What the pod is shown: private key and certificate chain, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    pub key: String,
    pub chain: String,
    refresh: Timestamp,
}

#[derive(Clone, Default)]
struct Record {
    bundle: Option<Bundle>,
    pending: Option<Pending>,
    /// Denied or failed: that is final.
    refused: Option<String>,
}

/// A request that nobody can find after this long has been deleted.
const LOST: SignedDuration = SignedDuration::from_mins(10);

/// Who asks: the node's name and uid.
pub struct Asker<'a> {
    pub node: &'a str,
    pub node_uid: String,
}

pub struct PodCertificates {
    rest: Rest,
    stop: CancellationToken,
    wake: Wake,
    informer: Mutex<Option<Informer<PodCertificateRequest>>>,
    records: Mutex<HashMap<Key, Record>>,
}

/// What a request has come to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Waiting,
    Refused(String),
    Issued { chain: String, refresh: Option<Timestamp> },
}

fn outcome(r: &PodCertificateRequest) -> Outcome {
    let status = r.status.clone().unwrap_or_default();
    for c in status.conditions.iter().flatten() {
        match c.type_.as_str() {
            "Denied" => {
                return Outcome::Refused(format!(
                    "PodCertificateRequest was permanently denied: reason=\"{}\" message=\"{}\"",
                    c.reason, c.message
                ));
            }
            "Failed" => {
                return Outcome::Refused(format!(
                    "PodCertificateRequest was permanently failed: reason=\"{}\" message=\"{}\"",
                    c.reason, c.message
                ));
            }
            "Issued" => {
                let chain = status.certificate_chain.clone().unwrap_or_default();
                return Outcome::Issued {
                    chain,
                    refresh: status.begin_refresh_at.as_ref().map(|t| t.0),
                };
            }
            _ => {}
        }
    }
    Outcome::Waiting
}

impl PodCertificates {
    pub fn new(rest: Rest, stop: CancellationToken, wake: Wake) -> Self {
        PodCertificates {
            rest,
            stop,
            wake,
            informer: Mutex::default(),
            records: Mutex::default(),
        }
    }

    /// The bundle that was made ready for this projection.
    pub fn bundle(&self, pod: &Pod, volume: &str, index: usize) -> Option<Bundle> {
        self.records
            .lock()
            .get(&(pods::uid(pod).to_owned(), volume.to_owned(), index))?
            .bundle
            .clone()
    }

    /// Makes sure that every certificate of the volume is there; returns when the first is to be renewed.
    pub async fn ensure(
        &self,
        pod: &Pod,
        volume: &Volume,
        asker: &Asker<'_>,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, String> {
        let mut first: Option<Timestamp> = None;
        for (i, source) in volume
            .projected
            .iter()
            .flat_map(|p| p.sources.iter().flatten())
            .enumerate()
        {
            let Some(p) = &source.pod_certificate else { continue };
            let key = (pods::uid(pod).to_owned(), volume.name.clone(), i);
            let next = self.one(pod, p, key, asker, now).await?;
            first = first.into_iter().chain([next]).min();
        }
        Ok(first)
    }

    async fn one(
        &self,
        pod: &Pod,
        p: &PodCertificateProjection,
        key: Key,
        asker: &Asker<'_>,
        now: Timestamp,
    ) -> Result<Timestamp, String> {
        let mut record = self.records.lock().get(&key).cloned().unwrap_or_default();
        if let Some(pending) = record.pending.clone() {
            let informer = self.informer(asker.node);
            tokio::time::timeout(Duration::from_secs(30), informer.synced())
                .await
                .map_err(|_| "the certificate requests of this node could not be read".to_owned())?;
            match informer.store().get(pods::namespace(pod), &pending.request) {
                None if now.duration_since(pending.made) > LOST => record.pending = None,
                None => {}
                Some(found) => match outcome(&found) {
                    Outcome::Waiting => {}
                    Outcome::Refused(why) => (record.pending, record.refused) = (None, Some(why)),
                    Outcome::Issued { chain, refresh } => {
                        let refresh = refresh.unwrap_or(now + SignedDuration::from_hours(12));
                        record = Record {
                            bundle: Some(Bundle {
                                key: pending.key,
                                chain,
                                refresh,
                            }),
                            ..Record::default()
                        };
                    }
                },
            }
        }
        let stale = record.bundle.as_ref().is_none_or(|b| b.refresh <= now);
        if stale && record.pending.is_none() && record.refused.is_none() {
            record.pending = Some(self.request(pod, p, asker, now).await?);
        }
        let result = match (&record.bundle, &record.refused) {
            (Some(b), _) => Ok(b.refresh.max(now + SignedDuration::from_secs(1))),
            (None, Some(why)) => Err(why.clone()),
            (None, None) => Err("credential bundle is not issued yet".to_owned()),
        };
        self.records.lock().insert(key, record);
        result
    }

    fn informer(&self, node: &str) -> Informer<PodCertificateRequest> {
        let mut informer = self.informer.lock();
        informer
            .get_or_insert_with(|| {
                let options = InformerOptions {
                    fields: format!("spec.nodeName={node}"),
                    ..InformerOptions::default()
                };
                let informer = Informer::<PodCertificateRequest>::start(&self.rest, options, &self.stop);
                let wake = self.wake.clone();
                informer.on_change(move |c| wake(&c.object().spec.pod_uid));
                informer
            })
            .clone()
    }

    async fn request(
        &self,
        pod: &Pod,
        p: &PodCertificateProjection,
        asker: &Asker<'_>,
        now: Timestamp,
    ) -> Result<Pending, String> {
        let (key, csr) = make_key(&p.key_type)?;
        let ns = pods::namespace(pod);
        let account = pods::spec(pod).service_account_name.as_deref().unwrap_or("default");
        let account_uid = Objects::<ServiceAccount>::new(&self.rest)
            .get(ns, account)
            .await
            .map_err(|e| format!("while fetching service account: {}", crate::error_text(&e)))?
            .metadata
            .uid;
        use base64::Engine;
        let body = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest",
            "metadata": {"generateName": "req-", "namespace": ns,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pods::name(pod), "uid": pods::uid(pod)}]},
            "spec": {"signerName": p.signer_name, "podName": pods::name(pod), "podUID": pods::uid(pod),
                "serviceAccountName": account, "serviceAccountUID": account_uid, "nodeName": asker.node,
                "nodeUID": asker.node_uid, "maxExpirationSeconds": p.max_expiration_seconds,
                "stubPKCS10Request": base64::engine::general_purpose::STANDARD.encode(csr),
                "unverifiedUserAnnotations": p.user_annotations}});
        // Watched from before it is there, so that its answer can't be missed.
        self.informer(asker.node);
        let answer = self
            .rest
            .create_raw(&PodCertificateRequest::RESOURCE, ns, body.to_string().into_bytes())
            .await
            .map_err(|e| format!("while creating PodCertificateRequest: {}", crate::error_text(&e)))?;
        let made: Value = serde_json::from_slice(&answer).map_err(|e| e.to_string())?;
        let request = made["metadata"]["name"]
            .as_str()
            .ok_or("the new PodCertificateRequest has no name")?
            .to_owned();
        Ok(Pending {
            request,
            key,
            made: now,
        })
    }

    pub fn forget(&self, uid: &str) {
        self.records.lock().retain(|k, _| k.0 != uid);
    }
}

/// A new key in PEM, and a request that proves that we have it.
fn make_key(kind: &str) -> Result<(String, Vec<u8>), String> {
    let algorithm = match kind {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        other => return Err(format!("key type {other} is not supported on this node")),
    };
    let text = |e: rcgen::Error| format!("while generating keypair: {e}");
    let key = KeyPair::generate_for(algorithm).map_err(text)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).map_err(text)?;
    Ok((pem("PRIVATE KEY", &key.serialize_der()), csr.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_and_requests_judged() {
        let (key, csr) = make_key("ECDSAP256").unwrap();
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----") && !csr.is_empty());
        assert!(make_key("RSA3072").is_err());
        let with = |conditions: Value| -> PodCertificateRequest {
            serde_json::from_value(json!({"spec": {}, "status": {"certificateChain": "C", "beginRefreshAt": "2026-01-01T00:00:00Z", "conditions": conditions}})).unwrap()
        };
        assert_eq!(outcome(&with(json!([]))), Outcome::Waiting);
        let c = |t: &str| json!([{"type": t, "status": "True", "reason": "R", "message": "M", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        assert!(matches!(outcome(&with(c("Issued"))), Outcome::Issued { chain, .. } if chain == "C"));
        assert!(matches!(outcome(&with(c("Denied"))), Outcome::Refused(_)));
    }
}
