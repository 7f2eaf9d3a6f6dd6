//! What a rule's status says: how many pods its taint ends or has ended; of a rule without effect, how many it would.

use super::devices::Devices;
use super::{NO_EXECUTE, pods};
use crate::context::{Context, now};
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::DeviceTaintRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Rest, WorkQueue, is_conflict,
    is_not_found,
};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// A status is written no more often.
pub const PERIOD: Duration = Duration::from_secs(10);
const IN_PROGRESS: &str = "EvictionInProgress";

/// How many pods each rule has ended since this program started, by uid.
#[derive(Default)]
pub struct Evicted(Mutex<HashMap<String, usize>>);

impl Evicted {
    pub fn one_more(&self, rule: &str) {
        *self.0.lock().entry(rule.to_owned()).or_default() += 1;
    }
    fn of(&self, rule: &str) -> usize {
        self.0.lock().get(rule).copied().unwrap_or_default()
    }
    fn forget(&self, rule: &str) {
        self.0.lock().remove(rule);
    }
}

/// Rules put into the queue are looked at.
pub fn start(
    context: &Context,
    rest: &Rest,
    pods: Informer<Pod>,
    devices: Arc<Devices>,
    evicted: Arc<Evicted>,
) -> Arc<WorkQueue<ObjectKey>> {
    let controller = Controller::new("device-taint-status")
        .input(&pods)
        .input(&devices.rules)
        .output(DeviceTaintRule::RESOURCE)
        .workers(1);
    let queue = controller.queue();
    let (rules, ended) = (queue.clone(), evicted.clone());
    devices.rules.on_change(move |change| match change.is_deleted() {
        true => ended.forget(change.object().uid()),
        false => {
            let generation = |rule: &DeviceTaintRule| rule.metadata.generation;
            if change
                .old()
                .is_none_or(|old| generation(old) != generation(change.object()))
            {
                rules.add(change.object().key());
            }
        }
    });
    let objects = Objects::new(rest);
    context.run(
        controller,
        Teller {
            pods,
            devices,
            evicted,
            objects,
        },
    );
    queue
}

struct Teller {
    pods: Informer<Pod>,
    devices: Arc<Devices>,
    evicted: Arc<Evicted>,
    objects: Objects<DeviceTaintRule>,
}

#[async_trait]
impl Reconcile for Teller {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(rule) = self.devices.rules.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let told = rule.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let told = told.into_iter().find(|c| c.type_ == IN_PROGRESS);
        let generation = rule.metadata.generation;
        if let Some(told) = told.filter(|told| told.observed_generation == generation) {
            let next = told.last_transition_time.0 + PERIOD;
            if next > now() {
                return Ok(Outcome::At(next));
            }
        }
        let found = self.found(&rule);
        let (status, reason) = found.verdict(&rule.spec.taint.effect);
        let message = found.message(&rule.spec.taint.effect);
        let is_same = |c: &Condition| (&*c.status, &*c.reason, &*c.message) == (status, reason, &*message);
        if told.is_some_and(|told| is_same(told) && told.observed_generation == generation) {
            return Ok(Outcome::Done);
        }
        let date = Timestamp::from_second(now().as_second())?;
        let body = json!({
            "apiVersion": DeviceTaintRule::RESOURCE.api_version(),
            "kind": DeviceTaintRule::RESOURCE.kind,
            "metadata": {"name": rule.name(), "uid": rule.uid()},
            "status": {"conditions": [{
                "type": IN_PROGRESS, "status": status, "reason": reason, "message": message,
                "observedGeneration": generation, "lastTransitionTime": date.to_string(),
            }]},
        });
        let patch = Patch::Apply {
            body: &body,
            manager: "device-taint-eviction-controller",
            force: true,
        };
        match self.objects.patch_status("", rule.name(), patch).await {
            // It has gone, or another has its name.
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

impl Teller {
    fn found(&self, rule: &DeviceTaintRule) -> Found {
        let effect = &*rule.spec.taint.effect;
        let mut found = Found {
            evicted: self.evicted.of(rule.uid()),
            ..Found::default()
        };
        if effect == "None" {
            (found.offered, found.taken) = self.devices.selected(rule);
        }
        if effect == "None" || effect == NO_EXECUTE {
            let mut namespaces = HashSet::new();
            for pod in self.pods.store().list() {
                if pod.is_deleting() || pods::node(&pod).is_none() || !super::resource_claims::has_claims(&pod) {
                    continue;
                }
                let due = self.devices.due(&pod, Some(rule));
                if due.is_some_and(|due| due.rules.iter().any(|r| r.uid() == rule.uid())) {
                    found.pods += 1;
                    namespaces.insert(pod.namespace().to_owned());
                }
            }
            found.namespaces = namespaces.len();
        }
        found
    }
}

#[derive(Default)]
struct Found {
    /// Devices that drivers offer, and devices of claims.
    offered: usize,
    taken: usize,
    /// That have to go, and in how many namespaces they are.
    pods: usize,
    namespaces: usize,
    evicted: usize,
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

impl Found {
    fn verdict(&self, effect: &str) -> (&'static str, &'static str) {
        match effect {
            NO_EXECUTE if self.pods > 0 => ("True", "PodsPendingEviction"),
            NO_EXECUTE if self.evicted > 0 => ("False", "Completed"),
            NO_EXECUTE => ("False", "NotStarted"),
            "None" => ("False", "NoEffect"),
            _ => ("False", "OtherEffect"),
        }
    }

    fn message(&self, effect: &str) -> String {
        let namespaces = count(self.namespaces, "namespace", "different namespaces");
        let mut said = Vec::new();
        match effect {
            NO_EXECUTE if self.pods == 0 => {}
            NO_EXECUTE => {
                let pods = count(self.pods, "pod needs", "pods need");
                said.push(format!("{pods} to be evicted in {namespaces}."));
            }
            "None" => {
                let devices = |n, which| count(n, &format!("{which} device"), &format!("{which} devices"));
                let pods = count(self.pods, "pod", "pods");
                said.push(format!(
                    "{} selected. {} selected. {pods} would be evicted in {namespaces} if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.",
                    devices(self.offered, "published"),
                    devices(self.taken, "allocated"),
                ));
            }
            _ => said.push("Eviction only happens for the NoExecute effect.".into()),
        }
        if self.evicted > 0 {
            let pods = count(self.evicted, "pod", "pods");
            said.push(format!("{pods} evicted since starting the controller."));
        }
        said.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_upstream_says() {
        let found = |pods, namespaces, evicted| Found {
            pods,
            namespaces,
            evicted,
            offered: 1,
            taken: 2,
        };
        let said = |found: &Found, effect| {
            let (status, reason) = found.verdict(effect);
            format!("{status} {reason}: {}", found.message(effect))
        };
        for (found, effect, expected) in [
            (found(0, 0, 0), NO_EXECUTE, "False NotStarted: "),
            (
                found(1, 1, 0),
                NO_EXECUTE,
                "True PodsPendingEviction: 1 pod needs to be evicted in 1 namespace.",
            ),
            (
                found(3, 2, 1),
                NO_EXECUTE,
                "True PodsPendingEviction: 3 pods need to be evicted in 2 different namespaces. 1 pod evicted since starting the controller.",
            ),
            (
                found(0, 0, 2),
                NO_EXECUTE,
                "False Completed: 2 pods evicted since starting the controller.",
            ),
            (
                found(1, 1, 0),
                "NoSchedule",
                "False OtherEffect: Eviction only happens for the NoExecute effect.",
            ),
            (
                found(2, 1, 0),
                "None",
                "False NoEffect: 1 published device selected. 2 allocated devices selected. 2 pods would be evicted in 1 namespace if the effect was NoExecute. This information will not be updated again. Recreate the DeviceTaintRule to trigger an update.",
            ),
        ] {
            assert_eq!(said(&found, effect), expected);
        }
    }
}
