//! Claims of devices: what was decided is written to them, and what has to be done about the devices is waited for.

use super::{Binder, Writes};
use crate::devices::extended::is_of;
use crate::plugins::dynamic_resources::{Decision, allocation, is_overdue, readiness, results};
use crate::pod::PodInfo;
use anyhow::{Context, bail, ensure};
use k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{ApiObject, EventType, Objects, Patch, is_conflict};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Held while devices are allocated.
pub(super) const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How often a claim that others write, too, is tried; so long apart at first, and then longer.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(10);

impl Binder {
    pub fn promise_devices(&self, devices: &Decision) {
        for (claim, new) in &devices.claims {
            if let Some(new) = new {
                self.ledger.promise(claim, new.clone());
            }
        }
        if let Some(extended) = &devices.extended {
            self.ledger.promise(&extended.claim, extended.allocation.clone());
        }
    }

    /// What was promised stands in the claims now, or nobody has it. Of a pod that wasn't bound no reservation stays.
    pub async fn release_devices(&self, pod: &PodInfo, devices: &Decision, is_bound: bool, writes: &Writes) {
        let _place = match is_bound || devices.is_empty() {
            true => None,
            false => writes.place().await,
        };
        for (claim, new) in &devices.claims {
            if new.is_some() {
                if !is_bound {
                    self.look_again(claim).await;
                }
                self.ledger.release(claim);
            }
            if !is_bound && let Err(error) = self.unreserve(pod, claim).await {
                tracing::warn!(pod = %pod.key, claim = %claim.key(), error = format!("{error:#}"), "a reservation stays");
            }
        }
        let Some(extended) = &devices.extended else { return };
        self.ledger.release(&extended.claim);
        if let Some(made) = self.ledger.extended_of(&pod.key, pod.uid()).filter(|_| !is_bound) {
            self.remove(&made).await;
        }
    }

    /// A write whose answer was lost may be done all the same: what the claim says is known before its promise goes.
    async fn look_again(&self, claim: &ResourceClaim) {
        let mut pause = FIRST_PAUSE;
        for attempt in 1..=TRIES {
            let claims = self.objects::<ResourceClaim>();
            match claims.find(claim.namespace(), claim.name()).await {
                Ok(Some(found)) => return self.ledger.claim_answered(&Arc::new(found)),
                Ok(None) => return,
                Err(error) if attempt == TRIES => {
                    tracing::warn!(claim = %claim.key(), %error, "what a claim says isn't known");
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        }
    }

    pub async fn bind_devices(
        &self,
        pod: &PodInfo,
        node: &str,
        devices: &Decision,
        writes: &Writes,
    ) -> anyhow::Result<()> {
        let mut bound = Vec::new();
        let place = writes.place().await;
        for (claim, new) in &devices.claims {
            bound.push(self.reserve(pod, claim, new.as_ref()).await?);
        }
        // Whoever waits holds none.
        drop(place);
        if let Some(extended) = &devices.extended {
            bound.push(self.bind_extended(pod, extended, writes).await?);
        }
        let waits = |claim: &Arc<ResourceClaim>| {
            allocation(claim)
                .is_some_and(|a| results(a).any(|r| r.binding_conditions.iter().flatten().next().is_some()))
        };
        if bound.iter().any(waits) {
            let text = format!("waiting for binding conditions for device on node {node}");
            self.tell(
                &pod.pod,
                EventType::Normal,
                "BindingConditionsPending",
                "Scheduling",
                text,
            );
            self.are_ready(&bound).await?;
        }
        Ok(())
    }

    /// Enters the pod in the claim, with the devices that it gets.
    pub(super) async fn reserve(
        &self,
        pod: &PodInfo,
        claim: &Arc<ResourceClaim>,
        new: Option<&AllocationResult>,
    ) -> anyhow::Result<Arc<ResourceClaim>> {
        let mut claim = claim.clone();
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let error = match self.try_reserve(pod, &claim, new).await {
                Ok(written) => return Ok(written),
                Err(error) => error,
            };
            let is_conflict = error.chain().filter_map(|e| e.downcast_ref()).any(is_conflict);
            if !is_conflict || attempt >= TRIES {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
            let now = self
                .objects::<ResourceClaim>()
                .get(claim.namespace(), claim.name())
                .await;
            let now = now.with_context(|| format!("get updated claim {} after conflict", claim.key()))?;
            ensure!(
                now.uid() == claim.uid(),
                "claim {} got deleted in the meantime",
                claim.key()
            );
            claim = Arc::new(now);
        }
        bail!("claim {} can't be written", claim.key())
    }

    async fn try_reserve(
        &self,
        pod: &PodInfo,
        claim: &Arc<ResourceClaim>,
        new: Option<&AllocationResult>,
    ) -> anyhow::Result<Arc<ResourceClaim>> {
        let key = claim.key();
        let mut users = users(claim);
        if users.iter().any(|user| user.uid == pod.uid()) {
            return Ok(claim.clone());
        }
        ensure!(!claim.is_deleting(), "claim {key} got deleted in the meantime");
        let mut revision = claim.metadata.resource_version.clone();
        let mut wanted = match (new, allocation(claim)) {
            (Some(_), Some(_)) => bail!("claim {key} got allocated elsewhere in the meantime"),
            (None, None) => bail!("claim {key} got deallocated elsewhere in the meantime"),
            (Some(one), None) | (None, Some(one)) => one.clone(),
        };
        let finalizers = claim.metadata.finalizers.as_deref().unwrap_or_default();
        if new.is_some() && !finalizers.iter().any(|f| f == FINALIZER) {
            let all: Vec<_> = finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
            let body = json!({"metadata": {"uid": claim.uid(), "resourceVersion": revision, "finalizers": all}});
            let written = self.objects::<ResourceClaim>();
            let written = written
                .patch(claim.namespace(), claim.name(), Patch::Merge(&body))
                .await;
            revision = written
                .with_context(|| format!("add finalizer to claim {key}"))?
                .metadata
                .resource_version;
        }
        let now = || Time(keelson_clock::now());
        wanted.allocation_timestamp.get_or_insert_with(now);
        users.push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".into(),
            name: pod.key.name.clone(),
            uid: pod.uid().into(),
        });
        let body = json!({
            "metadata": {"uid": claim.uid(), "resourceVersion": revision},
            "status": {"allocation": wanted, "reservedFor": users},
        });
        let what = if new.is_some() {
            "allocation and reservation"
        } else {
            "reservation"
        };
        let written = self.write_status(claim, &body).await;
        let written = Arc::new(written.with_context(|| format!("add {what} to claim {key}"))?);
        self.ledger.claim_answered(&written);
        Ok(written)
    }

    async fn write_status(&self, claim: &ResourceClaim, body: &Value) -> Result<ResourceClaim, keelson_client::Error> {
        let claims: Objects<ResourceClaim> = self.objects();
        claims
            .patch_status(claim.namespace(), claim.name(), Patch::Merge(body))
            .await
    }

    /// Waits until all that the devices need is done.
    async fn are_ready(&self, claims: &[Arc<ResourceClaim>]) -> anyhow::Result<()> {
        let within = self.profile.devices.binding_within;
        let waiting = async {
            loop {
                let changed = self.ledger.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let mut is_ready = true;
                for claim in claims {
                    let now = self.ledger.claim(claim.namespace(), claim.name());
                    let Some(now) = now.filter(|now| now.uid() == claim.uid()) else {
                        bail!("resourceclaim.resource.k8s.io {:?} not found", claim.name());
                    };
                    let is_done = readiness(&now).map_err(anyhow::Error::msg)?;
                    let is_late = allocation(&now).is_some_and(|a| is_overdue(a, within, keelson_clock::now()));
                    ensure!(is_done || !is_late, "device binding timeout: claim={}", now.name());
                    is_ready &= is_done;
                }
                if is_ready {
                    return Ok(());
                }
                changed.await;
            }
        };
        match tokio::time::timeout(within, waiting).await {
            Ok(result) => result,
            Err(_) => bail!("device binding timeout: context deadline exceeded"),
        }
    }

    /// The pod isn't there, whatever the claim says. Its devices stay allocated: it will be tried where they are.
    async fn unreserve(&self, pod: &PodInfo, claim: &ResourceClaim) -> anyhow::Result<()> {
        for _ in 0..TRIES {
            let known = self.ledger.claim(claim.namespace(), claim.name());
            let Some(now) = known.filter(|now| now.uid() == claim.uid()) else {
                return Ok(());
            };
            let mut users = users(&now);
            let before = users.len();
            users.retain(|user| user.uid != pod.uid());
            if users.len() == before {
                return Ok(());
            }
            let body = json!({
                "metadata": {"uid": now.uid(), "resourceVersion": now.metadata.resource_version},
                "status": {"reservedFor": users},
            });
            match self.write_status(&now, &body).await {
                Ok(written) => self.ledger.claim_answered(&Arc::new(written)),
                Err(error) if is_conflict(&error) => {
                    let found = self
                        .objects::<ResourceClaim>()
                        .find(now.namespace(), now.name())
                        .await?;
                    let Some(found) = found else { return Ok(()) };
                    self.ledger.claim_answered(&Arc::new(found));
                }
                Err(error) => return Err(error.into()),
            }
        }
        bail!("somebody else keeps writing it")
    }

    /// A claim that is allocated where its pod can't be is free again; one that was made for the pod's extended resources goes.
    pub async fn free(&self, pod: &PodInfo, claim: &ResourceClaim) {
        if is_of(claim, &pod.key, pod.uid()) {
            return self.remove(claim).await;
        }
        let body = json!({
            "metadata": {"uid": claim.uid(), "resourceVersion": claim.metadata.resource_version},
            "status": {"allocation": null, "reservedFor": null, "devices": null},
        });
        match self.write_status(claim, &body).await {
            Ok(_) => {}
            // It has changed: another try will tell.
            Err(error) if is_conflict(&error) || keelson_client::is_not_found(&error) => {}
            Err(error) => tracing::warn!(claim = %claim.key(), %error, "a claim couldn't be freed"),
        }
    }
}

fn users(claim: &ResourceClaim) -> Vec<ResourceClaimConsumerReference> {
    let status = claim.status.as_ref();
    status.and_then(|s| s.reserved_for.clone()).unwrap_or_default()
}
