//! What taints the devices of claims have, and when these end a pod's stay.

use super::{BY_POOL, NO_EXECUTE};
use crate::resource_claims;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    Device, DeviceRequestAllocationResult, DeviceTaint, DeviceTaintRule, DeviceToleration, ResourceClaim, ResourceSlice,
};
use keelson_client::{ApiObject, Informer};
use std::collections::HashMap;
use std::sync::Arc;

pub struct Devices {
    pub claims: Informer<ResourceClaim>,
    pub slices: Informer<ResourceSlice>,
    pub rules: Informer<DeviceTaintRule>,
}

/// When a pod has to go, and by which rules.
pub struct Due {
    pub at: Timestamp,
    pub rules: Vec<Arc<DeviceTaintRule>>,
}

pub fn pool(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

pub fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let allocation = claim.status.as_ref().and_then(|s| s.allocation.as_ref());
    allocation
        .and_then(|a| a.devices.as_ref())
        .into_iter()
        .flat_map(|d| d.results.iter().flatten())
}

/// Without a selector a rule is about no device; what its selector leaves open is any.
fn selects(rule: &DeviceTaintRule, driver: &str, pool: &str, device: &str) -> bool {
    let Some(selector) = &rule.spec.device_selector else {
        return false;
    };
    let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    is(&selector.driver, driver) && is(&selector.pool, pool) && is(&selector.device, device)
}

pub fn applies(rule: &DeviceTaintRule, device: &DeviceRequestAllocationResult) -> bool {
    selects(rule, &device.driver, &device.pool, &device.device)
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

impl Devices {
    /// The earliest of all taints of all devices that are reserved for the pod. What `supposed` says counts as if its effect
    /// were to evict.
    pub fn due(&self, pod: &Pod, supposed: Option<&DeviceTaintRule>) -> Option<Due> {
        let names = resource_claims::claims_of(pod).into_iter();
        let claims = names.filter_map(|name| self.claims.store().get(pod.namespace(), &name));
        let ours = claims.filter(|claim| {
            let mut users = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
            users.any(|user| user.uid == pod.uid())
        });
        let mut due: Option<Due> = None;
        for claim in ours {
            for device in results(&claim) {
                let tolerations = device.tolerations.as_deref().unwrap_or_default();
                for (taint, rule) in self.taints(device, supposed) {
                    let Some(at) = end(&taint, tolerations) else {
                        continue;
                    };
                    let due = due.get_or_insert_with(|| Due { at, rules: Vec::new() });
                    due.at = due.at.min(at);
                    due.rules.extend(rule);
                }
            }
        }
        if let Some(due) = &mut due {
            due.rules.sort_by(|a, b| a.uid().cmp(b.uid()));
            due.rules.dedup_by(|a, b| a.uid() == b.uid());
        }
        due
    }

    fn taints(
        &self,
        device: &DeviceRequestAllocationResult,
        supposed: Option<&DeviceTaintRule>,
    ) -> Vec<(DeviceTaint, Option<Arc<DeviceTaintRule>>)> {
        let slices = self
            .slices
            .store()
            .by_index(BY_POOL, &pool(&device.driver, &device.pool));
        let devices = newest(&slices).flat_map(|slice| slice.spec.devices.iter().flatten());
        let own = devices
            .filter(|d| d.name == device.device)
            .flat_map(|d| d.taints.iter().flatten())
            .filter(|taint| taint.effect == NO_EXECUTE)
            .map(|taint| (taint.clone(), None));
        let evicts = |rule: &DeviceTaintRule| {
            rule.spec.taint.effect == NO_EXECUTE || supposed.is_some_and(|supposed| supposed.uid() == rule.uid())
        };
        let rules = self.rules.store().filter(|rule| evicts(rule) && applies(rule, device));
        own.chain(rules.into_iter().map(|rule| (rule.spec.taint.clone(), Some(rule))))
            .collect()
    }

    /// How many devices a rule selects: of those that drivers offer, and of those that claims have.
    pub fn selected(&self, rule: &DeviceTaintRule) -> (usize, usize) {
        let mut pools = HashMap::<String, Vec<Arc<ResourceSlice>>>::new();
        for slice in self.slices.store().list() {
            let spec = &slice.spec;
            pools
                .entry(pool(&spec.driver, &spec.pool.name))
                .or_default()
                .push(slice);
        }
        let is_offered = |slice: &ResourceSlice| {
            let devices = slice.spec.devices.iter().flatten();
            let named = |device: &&Device| selects(rule, &slice.spec.driver, &slice.spec.pool.name, &device.name);
            devices.filter(named).count()
        };
        let offered = pools
            .values()
            .map(|slices| newest(slices).map(|s| is_offered(s)).sum::<usize>())
            .sum();
        let claims = self.claims.store().list();
        let taken = claims
            .iter()
            .map(|claim| results(claim).filter(|r| applies(rule, r)).count())
            .sum();
        (offered, taken)
    }
}

fn newest(slices: &[Arc<ResourceSlice>]) -> impl Iterator<Item = &Arc<ResourceSlice>> {
    let newest = slices.iter().map(|slice| slice.spec.pool.generation).max();
    slices
        .iter()
        .filter(move |slice| Some(slice.spec.pool.generation) == newest)
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
