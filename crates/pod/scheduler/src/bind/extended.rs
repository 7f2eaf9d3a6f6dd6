//! The claim of a pod's extended resources: made when its node is known, told in the pod's status, and taken back when the pod
//! isn't bound after all.

use super::devices::FINALIZER;
use super::{Binder, Writes};
use crate::plugins::dynamic_resources::Extended;
use crate::pod::PodInfo;
use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use keelson_client::{ApiObject, Patch, delete_options, is_conflict, is_not_found};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// A watch that is further behind has lost its server: the claim is given up. Upstream waits as long.
const PATIENCE: Duration = Duration::from_secs(120);

impl Binder {
    pub(super) async fn bind_extended(
        &self,
        pod: &PodInfo,
        extended: &Extended,
        writes: &Writes,
    ) -> anyhow::Result<Arc<ResourceClaim>> {
        let mut wanted = extended.claim.as_ref().clone();
        wanted.metadata.name = None;
        wanted.metadata.uid = None;
        let place = writes.place().await;
        let made = self.objects::<ResourceClaim>().create(&wanted).await;
        drop(place);
        let made = Arc::new(made.context("create claim for extended resources")?);
        self.ledger.hand_over(&extended.claim, &made);
        let written = async {
            // Until the watch has it, its answers aren't heeded, and what it gets would count as free. Whoever waits for that holds no place.
            let seen = tokio::time::timeout(PATIENCE, self.is_seen(&made)).await;
            seen.context("the claim for extended resources isn't seen")?;
            let _place = writes.place().await;
            let written = self.reserve(pod, &made, Some(&extended.allocation)).await?;
            let told = json!({"metadata": {"uid": pod.uid()}, "status": {"extendedResourceClaimStatus": {
                "resourceClaimName": made.name(), "requestMappings": extended.mappings,
            }}});
            let (namespace, name) = (&pod.key.namespace, &pod.key.name);
            let pods = self.objects::<Pod>();
            let told = pods.patch_status(namespace, name, Patch::Strategic(&told)).await;
            told.context("tell the claim of extended resources in the pod's status")?;
            anyhow::Ok(written)
        };
        let written = written.await;
        if written.is_err() {
            self.remove(&made).await;
        }
        self.ledger.release(&made);
        written
    }

    async fn is_seen(&self, claim: &ResourceClaim) {
        loop {
            let changed = self.ledger.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.ledger.claim(claim.namespace(), claim.name()).is_some() {
                return;
            }
            changed.await;
        }
    }

    /// Takes the claim back. What isn't done now, another try of the pod does, or the collector when the pod has gone.
    pub(super) async fn remove(&self, claim: &ResourceClaim) {
        let claims = self.objects::<ResourceClaim>();
        let removed = async {
            let Some(now) = claims.find(claim.namespace(), claim.name()).await? else {
                return Ok(());
            };
            if now.uid() != claim.uid() {
                return Ok(());
            }
            let finalizers = now.metadata.finalizers.as_deref().unwrap_or_default();
            let rest: Vec<&String> = finalizers.iter().filter(|f| *f != FINALIZER).collect();
            if rest.len() != finalizers.len() {
                let metadata =
                    json!({"uid": now.uid(), "resourceVersion": now.metadata.resource_version, "finalizers": rest});
                let body = json!({"metadata": metadata});
                claims.patch(now.namespace(), now.name(), Patch::Merge(&body)).await?;
            }
            let options = delete_options(None, Some(now.uid()), None);
            claims.delete(now.namespace(), now.name(), &options).await
        };
        match removed.await {
            Ok(()) => {}
            Err(error) if is_conflict(&error) || is_not_found(&error) => {}
            Err(error) => tracing::warn!(claim = %claim.key(), %error, "a claim of extended resources stays"),
        }
    }
}
