//! Evicts pods from devices whose `NoExecute` taints their claims don't tolerate, or not any longer. Taints stand at devices, in the
//! newest generation of their pool, and in rules.

use crate::context::{Context, now};
use crate::taint_eviction::disrupt;
use crate::{pods, resource_claims};
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceTaintRule, DeviceToleration, ResourceClaim, ResourceSlice,
};
use keelson_client::events::EventType::Normal;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder, WorkQueue, delete_options,
    is_conflict, is_not_found,
};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;

/// Claims and slices by the pools that they name: `driver/pool`.
const BY_POOL: &str = "device-pool";
const NO_EXECUTE: &str = "NoExecute";

pub fn start(context: &Context) {
    let pods = context.informer::<Pod>();
    let claims = context.informer::<ResourceClaim>();
    let slices = context.informer::<ResourceSlice>();
    let rules = context.informer::<DeviceTaintRule>();
    claims.store().add_index(BY_POOL, |claim| {
        results(claim).map(|r| pool(&r.driver, &r.pool)).collect()
    });
    slices
        .store()
        .add_index(BY_POOL, |slice| vec![pool(&slice.spec.driver, &slice.spec.pool.name)]);
    let controller = Controller::new("device-taint-eviction")
        .input(&pods)
        .input(&claims)
        .input(&slices)
        .input(&rules)
        .output(Pod::RESOURCE);
    {
        let queue = controller.queue();
        pods.on_change(move |change| {
            if resource_claims::has_claims(change.object()) {
                queue.add(change.object().key());
            }
        });
    }
    {
        let queue = controller.queue();
        claims.on_change(move |change| tell_users(&queue, [change.object(), change.old().unwrap_or(change.object())]));
    }
    {
        let (queue, claims) = (controller.queue(), claims.clone());
        slices.on_change(move |change| {
            let spec = &change.object().spec;
            let users = claims.store().by_index(BY_POOL, &pool(&spec.driver, &spec.pool.name));
            tell_users(&queue, &users);
        });
    }
    {
        let (queue, claims) = (controller.queue(), claims.clone());
        rules.on_change(move |change| {
            let concerns = |claim: &ResourceClaim| {
                let rules = [Some(change.object()), change.old()];
                rules
                    .into_iter()
                    .flatten()
                    .any(|rule| results(claim).any(|r| applies(rule, r)))
            };
            tell_users(&queue, &claims.store().filter(concerns));
        });
    }
    let rest = context.rest("device-taint-eviction-controller");
    let recorder = context.recorder(&rest, "device-taint-eviction");
    context.run(
        controller,
        Evictor {
            pods,
            claims,
            slices,
            rules,
            objects: Objects::new(&rest),
            recorder,
            pending: Mutex::default(),
        },
    );
}

fn pool(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
    allocation
        .and_then(|a| a.devices.as_ref())
        .into_iter()
        .flat_map(|d| d.results.iter().flatten())
}

fn tell_users<'a>(queue: &WorkQueue<ObjectKey>, claims: impl IntoIterator<Item = &'a Arc<ResourceClaim>>) {
    for claim in claims {
        let users = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
        let pods = users.filter(|u| u.resource == "pods" && u.api_group.as_deref().unwrap_or_default().is_empty());
        pods.for_each(|user| queue.add(ObjectKey::new(claim.namespace(), user.name.clone())));
    }
}

/// Without a selector a rule is about no device; what its selector leaves open is any.
fn applies(rule: &DeviceTaintRule, device: &DeviceRequestAllocationResult) -> bool {
    let Some(selector) = &rule.spec.device_selector else {
        return false;
    };
    let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    is(&selector.driver, &device.driver) && is(&selector.pool, &device.pool) && is(&selector.device, &device.device)
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let key = text(&toleration.key);
    // Other effects don't keep a pod that runs.
    if toleration.effect.as_deref() != Some(NO_EXECUTE) || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

/// When a taint of a device ends the pod's stay; `None`: never. The shortest toleration counts.
fn end(taint: &DeviceTaint, tolerations: &[DeviceToleration]) -> Option<Timestamp> {
    let since = taint.time_added.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let mut least: Option<i64> = None;
    for toleration in tolerations.iter().filter(|t| tolerates(t, taint)) {
        let seconds = toleration.toleration_seconds?.max(0);
        least = Some(least.map_or(seconds, |least| least.min(seconds)));
    }
    // Longer than dates go is for ever.
    since.checked_add(SignedDuration::from_secs(least.unwrap_or(0))).ok()
}

struct Evictor {
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    rules: Informer<DeviceTaintRule>,
    objects: Objects<Pod>,
    recorder: Recorder,
    /// Pods whose end is known.
    pending: Mutex<HashSet<ObjectKey>>,
}

#[async_trait]
impl Reconcile for Evictor {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let pod = self
            .pods
            .store()
            .get_key(key)
            .filter(|p| pods::is_active(p) && pods::node(p).is_some());
        let Some(pod) = pod else {
            self.pending.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let Some(end) = self.end(&pod) else {
            if self.pending.lock().remove(key) {
                self.recorder
                    .event(&*pod, Normal, "DeviceTaintManagerEviction", "Cancelling deletion");
            }
            return Ok(Outcome::Done);
        };
        if end > now() {
            self.pending.lock().insert(key.clone());
            return Ok(Outcome::At(end));
        }
        self.recorder
            .event(&*pod, Normal, "DeviceTaintManagerEviction", "Marking for deletion");
        let message = "Device Taint manager: deleting due to NoExecute taint";
        disrupt(&self.objects, &pod, "DeletionByDeviceTaintManager", message, None).await?;
        let options = delete_options(None, Some(pod.uid()), None);
        match self.objects.delete(pod.namespace(), pod.name(), &options).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => return Err(error.into()),
            _ => {}
        }
        self.pending.lock().remove(key);
        Ok(Outcome::Done)
    }
}

impl Evictor {
    /// The earliest of all taints of all devices that are reserved for the pod.
    fn end(&self, pod: &Pod) -> Option<Timestamp> {
        let names = resource_claims::claims_of(pod).into_iter();
        let claims = names.filter_map(|name| self.claims.store().get(pod.namespace(), &name));
        let ours = claims.filter(|claim| {
            let mut users = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
            users.any(|user| user.uid == pod.uid())
        });
        let ends = ours.flat_map(|claim| {
            let each = results(&claim).filter_map(|device| {
                let tolerations = device.tolerations.as_deref().unwrap_or_default();
                self.taints(device)
                    .iter()
                    .filter_map(|taint| end(taint, tolerations))
                    .min()
            });
            each.collect::<Vec<_>>()
        });
        ends.min()
    }

    fn taints(&self, device: &DeviceRequestAllocationResult) -> Vec<DeviceTaint> {
        let slices = self
            .slices
            .store()
            .by_index(BY_POOL, &pool(&device.driver, &device.pool));
        let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
        let current = slices.iter().filter(|slice| Some(slice.spec.pool.generation) == newest);
        let devices = current.flat_map(|slice| slice.spec.devices.iter().flatten());
        let own = devices
            .filter(|d| d.name == device.device)
            .flat_map(|d| d.taints.iter().flatten());
        let rules = self.rules.store().filter(|rule| applies(rule, device));
        let of_rules = rules.iter().map(|rule| &rule.spec.taint);
        own.chain(of_rules)
            .filter(|taint| taint.effect == NO_EXECUTE)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_shortest_toleration_ends_a_stay() {
        let taint: DeviceTaint = serde_json::from_value(json!({
            "key": "k", "value": "v", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:00Z",
        }))
        .unwrap();
        let exists = |seconds: Option<i64>| json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        for (tolerations, expected) in [
            (json!([]), Some(60)),
            (json!([exists(None)]), None),
            (json!([exists(Some(9)), exists(Some(5))]), Some(65)),
            (json!([exists(Some(-9))]), Some(60)),
            (json!([exists(Some(9)), exists(None)]), None),
            (json!([exists(Some(i64::MAX))]), None),
            (json!([{"key": "k", "value": "w", "effect": "NoExecute"}]), Some(60)),
            (json!([{"key": "k", "value": "v", "effect": "NoExecute"}]), None),
            (
                json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]),
                Some(60),
            ),
            (json!([{"key": "k", "operator": "Exists"}]), Some(60)),
        ] {
            let read: Vec<DeviceToleration> = serde_json::from_value(tolerations.clone()).unwrap();
            assert_eq!(end(&taint, &read).map(Timestamp::as_second), expected, "{tolerations}");
        }
    }
}
