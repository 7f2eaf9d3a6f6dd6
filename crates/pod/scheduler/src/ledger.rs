//! What is known of devices: which there are, which claims there are, and what is taken.
//!
//! A claim's devices are taken from the decision on, which the API shows later: until then they are *promised*. Of a claim the
//! newest is known, whether the API told it or the answer to a write of ours. Whoever decides takes a [`View`], which doesn't change.

use crate::devices::extended;
use crate::devices::pool::Reach;
use crate::devices::selector::Selectors;
use crate::devices::slice::Slice;
use crate::devices::state::State;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use keelson_client::store::parse_revision;
use keelson_client::{ApiObject, ObjectKey};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::Notify;

#[derive(Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
    pub selectors: Selectors,
    /// Told when a claim changes.
    pub changed: Notify,
}

#[derive(Default)]
struct Entries {
    slices: HashMap<String, (Arc<ResourceSlice>, Arc<Slice>)>,
    rules: BTreeMap<String, Arc<DeviceTaintRule>>,
    classes: BTreeMap<String, Arc<DeviceClass>>,
    claims: HashMap<ObjectKey, Arc<ResourceClaim>>,
    /// By the claim's uid.
    promised: HashMap<String, AllocationResult>,
    /// What counts as taken, by the claim's uid: what the claim says, or what it was promised.
    taken: HashMap<String, AllocationResult>,
    state: Arc<State>,
    /// Made of the slices when it is asked for.
    reach: Option<Arc<Reach>>,
}

/// What a decision is made by.
#[derive(Clone)]
pub struct View {
    pub reach: Arc<Reach>,
    pub state: Arc<State>,
}

/// What a change of a claim means for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Devices are free that weren't.
    pub is_freed: bool,
    /// It is new, or its status is another.
    pub matters: bool,
}

impl Ledger {
    pub fn slice_seen(&self, slice: &Arc<ResourceSlice>) {
        let mut entries = self.entries.lock();
        let read = entries.read(slice);
        entries.slices.insert(slice.name().to_owned(), (slice.clone(), read));
        entries.reach = None;
    }
    pub fn slice_gone(&self, name: &str) {
        let mut entries = self.entries.lock();
        entries.slices.remove(name);
        entries.reach = None;
    }

    /// A rule that taints devices is new or another (`None`: it has gone). `false`: it says what it said before.
    pub fn rule_seen(&self, name: &str, rule: Option<Arc<DeviceTaintRule>>) -> bool {
        let mut entries = self.entries.lock();
        if entries.rules.get(name).map(|known| &known.spec) == rule.as_ref().map(|rule| &rule.spec) {
            return false;
        }
        match rule {
            Some(rule) => drop(entries.rules.insert(name.to_owned(), rule)),
            None => drop(entries.rules.remove(name)),
        }
        let slices: Vec<_> = entries.slices.values().map(|(slice, _)| slice.clone()).collect();
        for slice in slices {
            let read = entries.read(&slice);
            entries.slices.insert(slice.name().to_owned(), (slice, read));
        }
        entries.reach = None;
        true
    }

    pub fn class_seen(&self, class: &Arc<DeviceClass>) {
        self.entries
            .lock()
            .classes
            .insert(class.name().to_owned(), class.clone());
    }
    pub fn class_gone(&self, name: &str) {
        self.entries.lock().classes.remove(name);
    }
    pub fn class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        self.entries.lock().classes.get(name).cloned()
    }

    /// The class whose devices are given for an extended resource: of several the newest, so that one can take another's place.
    pub fn class_for(&self, resource: &str) -> Option<Arc<DeviceClass>> {
        let entries = self.entries.lock();
        if let Some(name) = resource.strip_prefix(extended::IMPLICIT) {
            return entries.classes.get(name).cloned();
        }
        let is_named = |class: &&Arc<DeviceClass>| {
            let spec = class.spec.as_ref();
            spec.and_then(|s| s.extended_resource_name.as_deref()) == Some(resource)
        };
        let born = |class: &Arc<DeviceClass>| class.metadata.creation_timestamp.as_ref().map(|t| t.0);
        // By name, and the first of the newest stays.
        let classes = entries.classes.values().filter(is_named);
        classes
            .reduce(|best, class| if born(class) > born(best) { class } else { best })
            .cloned()
    }

    /// The claim that was made for a pod's extended resources.
    pub fn extended_of(&self, pod: &ObjectKey, uid: &str) -> Option<Arc<ResourceClaim>> {
        let entries = self.entries.lock();
        let mut claims = entries.claims.values();
        claims.find(|claim| extended::is_of(claim, pod, uid)).cloned()
    }

    /// The API shows the claim. What is older than what is known changes nothing.
    pub fn claim_seen(&self, claim: &Arc<ResourceClaim>) -> Effect {
        let effect = self.entries.lock().see(claim);
        self.changed.notify_waiters();
        effect
    }

    /// The API answered so. A claim that has gone meanwhile doesn't come back by it.
    pub fn claim_answered(&self, claim: &Arc<ResourceClaim>) {
        let mut entries = self.entries.lock();
        let known = entries.claims.get(&claim.key());
        if known.is_some_and(|known| known.uid() == claim.uid()) {
            entries.see(claim);
            self.changed.notify_waiters();
        }
    }

    pub fn claim_gone(&self, claim: &ResourceClaim) -> Effect {
        let mut entries = self.entries.lock();
        let key = claim.key();
        if entries.claims.get(&key).is_some_and(|known| known.uid() == claim.uid()) {
            entries.claims.remove(&key);
        }
        let was_taken = entries.taken.contains_key(claim.uid());
        entries.settle(claim.uid(), None);
        self.changed.notify_waiters();
        Effect {
            is_freed: was_taken,
            matters: true,
        }
    }

    pub fn claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        self.entries
            .lock()
            .claims
            .get(&ObjectKey::new(namespace, name))
            .cloned()
    }

    /// The claim gets these devices, which others can't have from now on.
    pub fn promise(&self, claim: &ResourceClaim, allocation: AllocationResult) {
        let mut entries = self.entries.lock();
        entries.promised.insert(claim.uid().to_owned(), allocation);
        let known = entries.claims.get(&claim.key()).cloned();
        entries.settle(claim.uid(), known.as_deref());
    }
    /// The promise is kept, or can't be: what the claim says counts.
    pub fn release(&self, claim: &ResourceClaim) {
        let mut entries = self.entries.lock();
        if entries.promised.remove(claim.uid()).is_some() {
            let known = entries.claims.get(&claim.key()).cloned();
            entries.settle(claim.uid(), known.as_deref());
        }
    }
    /// What was promised to one claim is promised to another, which takes its place.
    pub fn hand_over(&self, from: &ResourceClaim, to: &ResourceClaim) {
        let mut entries = self.entries.lock();
        let Some(allocation) = entries.promised.remove(from.uid()) else {
            return;
        };
        entries.settle(from.uid(), None);
        entries.promised.insert(to.uid().to_owned(), allocation);
        let known = entries.claims.get(&to.key()).cloned();
        entries.settle(to.uid(), known.as_deref());
    }
    pub fn is_promised(&self, uid: &str) -> bool {
        self.entries.lock().promised.contains_key(uid)
    }

    pub fn view(&self) -> View {
        let mut entries = self.entries.lock();
        let reach = match &entries.reach {
            Some(reach) => reach.clone(),
            None => {
                let slices = entries.slices.values().map(|(_, read)| read.clone());
                let made = Arc::new(Reach::of(slices));
                entries.reach = Some(made.clone());
                made
            }
        };
        View {
            reach,
            state: entries.state.clone(),
        }
    }
}

impl Entries {
    /// With the taints that rules add.
    fn read(&self, slice: &ResourceSlice) -> Arc<Slice> {
        let mut read = Slice::of(slice);
        for device in &mut read.devices {
            let rules = self.rules.values().filter(|rule| applies(rule, &device.id));
            device.taints.extend(rules.map(|rule| rule.spec.taint.clone()));
        }
        Arc::new(read)
    }

    fn see(&mut self, claim: &Arc<ResourceClaim>) -> Effect {
        let key = claim.key();
        let old = self.claims.get(&key).cloned();
        let revision =
            |claim: &ResourceClaim| parse_revision(claim.metadata.resource_version.as_deref().unwrap_or_default());
        if old
            .as_ref()
            .is_some_and(|old| old.uid() == claim.uid() && revision(old) > revision(claim))
        {
            return Effect {
                is_freed: false,
                matters: false,
            };
        }
        let is_allocated = |claim: &ResourceClaim| claim.status.as_ref().is_some_and(|s| s.allocation.is_some());
        self.claims.insert(key, claim.clone());
        if let Some(replaced) = old.as_ref().filter(|old| old.uid() != claim.uid()) {
            self.settle(replaced.uid(), None);
        }
        self.settle(claim.uid(), Some(claim));
        Effect {
            is_freed: old.as_ref().is_some_and(|old| is_allocated(old)) && !is_allocated(claim),
            matters: old.is_none_or(|old| old.status != claim.status || old.uid() != claim.uid()),
        }
    }

    /// What the claim has counts, instead of what it had.
    fn settle(&mut self, uid: &str, claim: Option<&ResourceClaim>) {
        let said = claim
            .filter(|c| c.uid() == uid)
            .and_then(|c| c.status.as_ref()?.allocation.as_ref());
        let new = said.or_else(|| self.promised.get(uid)).cloned();
        let state = Arc::make_mut(&mut self.state);
        if let Some(old) = self.taken.remove(uid) {
            state.give_back(&old);
        }
        if let Some(new) = new {
            state.take(&new);
            self.taken.insert(uid.to_owned(), new);
        }
    }
}

/// Without a selector a rule is about no device; what its selector leaves open is any.
pub fn applies(rule: &DeviceTaintRule, device: &crate::devices::slice::DeviceId) -> bool {
    let Some(selector) = &rule.spec.device_selector else {
        return false;
    };
    let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    is(&selector.driver, &device.driver) && is(&selector.pool, &device.pool) && is(&selector.device, &device.device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::slice::DeviceId;
    use serde_json::{Value, json};

    fn claim(revision: &str, device: Option<&str>) -> Arc<ResourceClaim> {
        let mut claim = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": revision}, "spec": {}, "status": {},
        });
        if let Some(device) = device {
            claim["status"]["allocation"] = allocation(device);
        }
        Arc::new(serde_json::from_value(claim).unwrap())
    }

    fn allocation(device: &str) -> Value {
        let result = json!({
            "request": "r", "driver": "d", "pool": "p", "device": device, "shareID": "1", "consumedCapacity": {"m": "1"},
        });
        json!({"devices": {"results": [result]}})
    }

    fn amount(ledger: &Ledger, device: &str) -> Option<i64> {
        let view = ledger.view();
        let shared = view.state.shared.get(&DeviceId::new("d", "p", device))?;
        Some(shared.taken["m"].value())
    }

    #[test]
    fn a_promise_counts_once() {
        let ledger = Ledger::default();
        let free = claim("1", None);
        ledger.claim_seen(&free);
        ledger.promise(&free, serde_json::from_value(allocation("a")).unwrap());
        assert_eq!(amount(&ledger, "a"), Some(1));
        assert!(ledger.is_promised("u"));
        let written = claim("3", Some("a"));
        ledger.claim_seen(&written);
        assert_eq!(amount(&ledger, "a"), Some(1), "the same devices");
        ledger.release(&free);
        assert_eq!(amount(&ledger, "a"), Some(1));
        // The watch is behind the answer.
        ledger.claim_seen(&claim("2", None));
        assert_eq!(amount(&ledger, "a"), Some(1));
        let effect = ledger.claim_seen(&claim("4", None));
        assert!(effect.is_freed && effect.matters);
        assert_eq!(amount(&ledger, "a"), None);
    }

    #[test]
    fn a_promise_that_cant_be_kept_leaves_nothing() {
        let ledger = Ledger::default();
        let free = claim("1", None);
        ledger.claim_seen(&free);
        ledger.promise(&free, serde_json::from_value(allocation("a")).unwrap());
        ledger.release(&free);
        assert_eq!(amount(&ledger, "a"), None);
        ledger.claim_seen(&claim("2", Some("b")));
        assert!(ledger.claim_gone(&claim("2", Some("b"))).is_freed);
        assert_eq!(amount(&ledger, "b"), None);
    }

    #[test]
    fn a_claim_that_is_made_takes_over_what_was_promised() {
        let ledger = Ledger::default();
        let made = claim("1", None);
        let mut planned = made.as_ref().clone();
        planned.metadata.uid = Some("planned".into());
        ledger.promise(&planned, serde_json::from_value(allocation("a")).unwrap());
        ledger.hand_over(&planned, &made);
        assert!(ledger.is_promised("u") && !ledger.is_promised("planned"));
        assert_eq!(amount(&ledger, "a"), Some(1), "it counts once");
        ledger.release(&made);
        assert_eq!(amount(&ledger, "a"), None);
    }

    #[test]
    fn an_answer_brings_no_claim_back_that_has_gone() {
        let ledger = Ledger::default();
        let written = claim("3", Some("a"));
        ledger.claim_seen(&claim("1", None));
        ledger.claim_answered(&written);
        assert_eq!(amount(&ledger, "a"), Some(1));
        ledger.claim_gone(&written);
        ledger.claim_answered(&written);
        assert!(ledger.claim("n", "c").is_none());
        assert_eq!(amount(&ledger, "a"), None);
    }

    #[test]
    fn rules_taint_what_they_select() {
        let ledger = Ledger::default();
        let slice = json!({"metadata": {"name": "s"}, "spec": {
            "driver": "d", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "a"}, {"name": "b"}],
        }});
        ledger.slice_seen(&Arc::new(serde_json::from_value(slice).unwrap()));
        let tainted = || {
            let node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
            let pools = ledger.view().reach.pools(&node);
            let devices = pools.iter().flat_map(|p| &p.slices).flat_map(|s| &s.devices);
            devices
                .filter(|d| !d.taints.is_empty())
                .map(|d| d.id.device.to_string())
                .collect::<Vec<_>>()
                .join(",")
        };
        for (selector, expected) in [
            (json!({"device": "b"}), "b"),
            (json!({"driver": "d"}), "a,b"),
            (json!({"driver": "other"}), ""),
            (json!({}), "a,b"),
            (Value::Null, ""),
        ] {
            let taint = json!({"key": "k", "effect": "NoSchedule"});
            let rule = json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": selector, "taint": taint}});
            let rule: Arc<DeviceTaintRule> = Arc::new(serde_json::from_value(rule).unwrap());
            assert!(ledger.rule_seen("r", Some(rule.clone())));
            assert!(!ledger.rule_seen("r", Some(rule)), "nothing else is said");
            assert_eq!(tainted(), expected, "{selector}");
        }
        ledger.rule_seen("r", None);
        assert_eq!(tainted(), "");
    }
}
