//! What is taken: devices, and parts of devices that several claims share.

use super::slice::{Amounts, DeviceId, quantity};
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceRequestAllocationResult};
use std::collections::{HashMap, HashSet};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub devices: HashSet<DeviceId>,
    /// Devices of which shares are taken, with how many and how much.
    pub shared: HashMap<DeviceId, Shared>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shared {
    pub shares: usize,
    pub taken: Amounts,
}

impl State {
    pub fn is_taken(&self, device: &DeviceId) -> bool {
        self.devices.contains(device)
    }
    /// Whether it, or a part of it, is.
    pub fn is_used(&self, device: &DeviceId) -> bool {
        self.is_taken(device) || self.shared.contains_key(device)
    }

    /// A claim's devices are taken. Whoever only looks (admin access) takes nothing.
    pub fn take(&mut self, allocation: &AllocationResult) {
        for result in results(allocation) {
            let id = id(result);
            if result.share_id.is_none() {
                self.devices.insert(id);
                continue;
            }
            let shared = self.shared.entry(id).or_default();
            shared.shares += 1;
            for (name, amount) in result.consumed_capacity.iter().flatten() {
                let taken = shared.taken.entry(name.clone()).or_default();
                taken.add(quantity(amount));
            }
        }
    }

    /// They are free again.
    pub fn give_back(&mut self, allocation: &AllocationResult) {
        for result in results(allocation) {
            let id = id(result);
            if result.share_id.is_none() {
                self.devices.remove(&id);
                continue;
            }
            let Some(shared) = self.shared.get_mut(&id) else {
                continue;
            };
            shared.shares = shared.shares.saturating_sub(1);
            for (name, amount) in result.consumed_capacity.iter().flatten() {
                if let Some(taken) = shared.taken.get_mut(name) {
                    taken.sub(quantity(amount));
                }
            }
            if shared.shares == 0 {
                self.shared.remove(&id);
            }
        }
    }
}

fn results(allocation: &AllocationResult) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    results.filter(|result| result.admin_access != Some(true))
}

pub fn id(result: &DeviceRequestAllocationResult) -> DeviceId {
    DeviceId::new(&result.driver, &result.pool, &result.device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_given_back_leaves_no_trace() {
        let allocation = |device: &str, share: Option<&str>, is_admin: bool| -> AllocationResult {
            serde_json::from_value(json!({"devices": {"results": [{
                "request": "r", "driver": "d", "pool": "p", "device": device, "shareID": share, "adminAccess": is_admin,
                "consumedCapacity": share.map(|_| json!({"memory": "1Gi"})),
            }]}}))
            .unwrap()
        };
        let all = [
            allocation("whole", None, false),
            allocation("part", Some("1"), false),
            allocation("part", Some("2"), false),
            allocation("seen", None, true),
        ];
        let mut state = State::default();
        all.iter().for_each(|a| state.take(a));
        let part = DeviceId::new("d", "p", "part");
        assert_eq!(
            state.shared[&part].taken["memory"],
            keelson_api::Quantity::parse("2Gi").unwrap()
        );
        assert!(state.is_taken(&DeviceId::new("d", "p", "whole")) && !state.is_used(&DeviceId::new("d", "p", "seen")));
        state.give_back(&all[1]);
        assert!(state.is_used(&part));
        all[2..].iter().chain(&all[..1]).for_each(|a| state.give_back(a));
        assert_eq!(state, State::default());
    }
}
