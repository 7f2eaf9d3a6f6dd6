//! Trust bundles for projection: followed from the first pod that needs one on. What is projected is decided by pure
//! functions: the certificates of the chosen bundles, each once, in a defined order.

use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::{Informer, InformerOptions, Rest};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

type Wake = Arc<dyn Fn(&str) + Send + Sync>;

pub struct TrustBundles {
    rest: Rest,
    stop: CancellationToken,
    wake: Wake,
    informer: Mutex<Option<Informer<ClusterTrustBundle>>>,
    /// Pods that project bundles.
    pods: Arc<Mutex<BTreeSet<String>>>,
}

impl TrustBundles {
    pub fn new(rest: Rest, stop: CancellationToken, wake: Wake) -> Self {
        TrustBundles {
            rest,
            stop,
            wake,
            informer: Mutex::default(),
            pods: Arc::default(),
        }
    }

    /// Makes the bundles known, for this pod.
    pub async fn need(&self, pod: &str) -> Result<(), String> {
        self.pods.lock().insert(pod.to_owned());
        let informer = self.informer.lock().get_or_insert_with(|| self.start()).clone();
        tokio::time::timeout(Duration::from_secs(30), informer.synced())
            .await
            .map_err(|_| "ClusterTrustBundle informer has not yet synced".to_owned())
    }

    fn start(&self) -> Informer<ClusterTrustBundle> {
        let informer = Informer::start(&self.rest, InformerOptions::default(), &self.stop);
        let (pods, wake) = (self.pods.clone(), self.wake.clone());
        informer.on_change(move |_| {
            let pods: Vec<String> = pods.lock().iter().cloned().collect();
            pods.iter().for_each(|p| wake(p));
        });
        informer
    }

    pub fn forget(&self, pod: &str) {
        self.pods.lock().remove(pod);
    }

    /// What the projection shows now; `None` when nothing matches.
    pub fn project(&self, p: &ClusterTrustBundleProjection) -> Result<Option<String>, String> {
        let Some(informer) = self.informer.lock().clone() else {
            return Err("no trust bundles are known".into());
        };
        select(p, &informer.store().list())
    }
}

fn select(p: &ClusterTrustBundleProjection, all: &[Arc<ClusterTrustBundle>]) -> Result<Option<String>, String> {
    let chosen: Vec<&ClusterTrustBundle> = if let Some(name) = &p.name {
        all.iter()
            .filter(|b| b.metadata.name.as_ref() == Some(name))
            .map(|b| &**b)
            .collect()
    } else if let Some(signer) = &p.signer_name {
        all.iter()
            .filter(|b| b.spec.signer_name.as_ref() == Some(signer))
            // No selector selects nothing, an empty one everything.
            .filter(|b| {
                p.label_selector
                    .as_ref()
                    .is_some_and(|s| matches(s, b.metadata.labels.as_ref()))
            })
            .map(|b| &**b)
            .collect()
    } else {
        return Err("ClusterTrustBundle projection requires either name or signerName to be set".into());
    };
    if chosen.is_empty() {
        return Ok(None);
    }
    let mut certificates = BTreeSet::new();
    for bundle in chosen {
        for der in CertificateDer::pem_slice_iter(bundle.spec.trust_bundle.as_bytes()) {
            certificates.insert(
                der.map_err(|e| format!("while normalizing trust anchors: {e}"))?
                    .to_vec(),
            );
        }
    }
    Ok(Some(certificates.iter().map(|der| pem("CERTIFICATE", der)).collect()))
}

fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let get = |key: &str| labels.and_then(|l| l.get(key));
    selector.match_labels.iter().flatten().all(|(k, v)| get(k) == Some(v))
        && selector.match_expressions.iter().flatten().all(|r| {
            let listed = get(&r.key).is_some_and(|v| r.values.iter().flatten().any(|w| w == v));
            match r.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => get(&r.key).is_some(),
                "DoesNotExist" => get(&r.key).is_none(),
                _ => false,
            }
        })
}

/// A PEM block with lines of 64 characters.
pub fn pem(kind: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {kind}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {kind}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bundles_are_chosen_and_each_certificate_stands_once() {
        let bundle = |name: &str, signer: &str, live: &str, certs: &[&[u8]]| {
            let text: String = certs.iter().map(|c| pem("CERTIFICATE", c)).collect();
            let v = json!({"metadata": {"name": name, "labels": {"live": live}}, "spec": {"signerName": signer, "trustBundle": text}});
            Arc::new(serde_json::from_value::<ClusterTrustBundle>(v).unwrap())
        };
        let all = [
            bundle("a", "s/1", "y", &[b"one", b"two"]),
            bundle("b", "s/1", "n", &[b"two"]),
            bundle("c", "s/2", "y", &[b"three"]),
        ];
        let project = |v: serde_json::Value| select(&serde_json::from_value(v).unwrap(), &all).unwrap();
        let count = |v| project(v).map(|t| t.matches("BEGIN").count());
        assert_eq!(count(json!({"name": "c", "path": "x"})), Some(1));
        assert_eq!(count(json!({"name": "z", "path": "x"})), None);
        assert_eq!(
            count(json!({"signerName": "s/1", "labelSelector": {}, "path": "x"})),
            Some(2)
        );
        assert_eq!(count(json!({"signerName": "s/1", "path": "x"})), None);
        assert_eq!(
            count(json!({"signerName": "s/1", "labelSelector": {"matchLabels": {"live": "n"}}, "path": "x"})),
            Some(1)
        );
    }
}
