//! What plug-ins say of their devices, and who has which: a picture of the node, kept in memory. No I/O.

use super::choose::Ids;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_devices::{HEALTHY, plugin};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// How long a resource is told without a plug-in: it may only be starting anew.
pub const GRACE: Duration = Duration::from_secs(5 * 60);

/// A device, as its plug-in says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub healthy: bool,
    /// Which memory it is near; empty: not told.
    pub numa: Vec<i64>,
}

#[derive(Clone, Debug, Default)]
struct Resource {
    devices: BTreeMap<String, Device>,
    /// The devices that can be used now.
    healthy: Ids,
    /// Since when no plug-in is there.
    alone: Option<Instant>,
}

/// What a container was given of one resource. It counts from when it is decided; what comes with it the plug-in says after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grant {
    pub ids: Ids,
    /// Which memory each device is near.
    pub numa: BTreeMap<String, Vec<i64>>,
    pub comes: Option<Comes>,
}

/// What comes with devices, as the plug-in says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Comes {
    pub env: BTreeMap<String, String>,
    /// Path in the container, path on the node, read-only.
    pub mounts: Vec<(String, String, bool)>,
    /// Path in the container, path on the node, permissions.
    pub devices: Vec<(String, String, String)>,
    pub annotations: BTreeMap<String, String>,
    pub cdi: Vec<String>,
}

/// By container and resource.
pub type OfPod = BTreeMap<String, BTreeMap<String, Grant>>;

#[derive(Default)]
pub struct Ledger {
    resources: BTreeMap<String, Resource>,
    grants: BTreeMap<String, OfPod>,
    /// Resources that had a plug-in and have none any more: the node tells that there are none.
    gone: BTreeSet<String>,
    /// Pods whose record can't be read: nobody knows which devices they have.
    unknown: BTreeSet<String>,
}

impl Ledger {
    /// A resource that had a plug-in when this kubelet was started.
    pub fn expect(&mut self, resource: &str, now: Instant) {
        self.resources.entry(resource.to_owned()).or_default().alone = Some(now);
    }

    pub fn connected(&mut self, resource: &str) {
        self.gone.remove(resource);
        self.resources.entry(resource.to_owned()).or_default().alone = None;
    }

    /// The last plug-in of a resource has gone.
    pub fn disconnected(&mut self, resource: &str, now: Instant) {
        if let Some(r) = self.resources.get_mut(resource) {
            r.alone = Some(now);
            r.healthy.clear();
        }
    }

    /// What a plug-in says of its devices. Returns the pods that have one whose health is another than before.
    pub fn told(&mut self, resource: &str, devices: Vec<plugin::Device>) -> BTreeSet<String> {
        let now: BTreeMap<String, Device> = devices
            .into_iter()
            .map(|d| {
                let numa = d.topology.map(|t| t.nodes.into_iter().map(|n| n.id).collect());
                let device = Device {
                    healthy: d.health == HEALTHY,
                    numa: numa.unwrap_or_default(),
                };
                (d.id, device)
            })
            .collect();
        let r = self.resources.entry(resource.to_owned()).or_default();
        let changed: Ids = now
            .iter()
            .filter(|(id, d)| r.devices.get(*id).is_none_or(|old| old.healthy != d.healthy))
            .map(|(id, _)| id.clone())
            .collect();
        r.healthy = now
            .iter()
            .filter(|(_, d)| d.healthy)
            .map(|(id, _)| id.clone())
            .collect();
        r.devices = now;
        let has = |of_pod: &OfPod| {
            let mut of_resource = of_pod.values().filter_map(|c| c.get(resource));
            of_resource.any(|g| !g.ids.is_disjoint(&changed))
        };
        self.grants
            .iter()
            .filter(|(_, p)| has(p))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    /// Capacity and allocatable of each resource. One that had no plug-in for too long has none from now on.
    pub fn amounts(&mut self, now: Instant) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
        let over: Vec<String> = self
            .resources
            .iter()
            .filter(|(_, r)| r.alone.is_some_and(|since| now.duration_since(since) > GRACE))
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            self.resources.remove(&name);
            self.gone.insert(name);
        }
        let count = |n: usize| Quantity(n.to_string());
        let all = |of: fn(&Resource) -> usize| {
            let there = self.resources.iter().map(move |(name, r)| (name.clone(), count(of(r))));
            there
                .chain(self.gone.iter().map(|name| (name.clone(), count(0))))
                .collect()
        };
        (all(|r| r.devices.len()), all(|r| r.healthy.len()))
    }

    /// The resources that have a plug-in, or had one a moment ago.
    pub fn registered(&self) -> BTreeSet<String> {
        self.resources.keys().cloned().collect()
    }

    /// How many other resources have or had a plug-in.
    pub fn others(&self, resource: &str) -> usize {
        let all = self.resources.keys().chain(&self.gone);
        all.filter(|name| *name != resource).count()
    }

    /// Whether a resource is one of plug-ins.
    pub fn manages(&self, resource: &str) -> bool {
        let granted = |p: &OfPod| p.values().any(|c| c.contains_key(resource));
        self.resources.contains_key(resource) || self.grants.values().any(granted)
    }

    /// The devices of a resource that its plug-in has told of.
    pub fn devices(&self, resource: &str) -> Option<&BTreeMap<String, Device>> {
        self.resources.get(resource).map(|r| &r.devices)
    }

    pub fn healthy(&self, resource: &str) -> Option<&Ids> {
        self.resources.get(resource).map(|r| &r.healthy)
    }

    /// What containers of this node have of a resource.
    pub fn taken(&self, resource: &str) -> Ids {
        let all = self.grants.values().flat_map(BTreeMap::values);
        all.filter_map(|c| c.get(resource))
            .flat_map(|g| g.ids.iter().cloned())
            .collect()
    }

    pub fn of_pod(&self, uid: &str) -> Option<&OfPod> {
        self.grants.get(uid)
    }

    pub fn grant(&self, uid: &str, container: &str, resource: &str) -> Option<&Grant> {
        self.grants.get(uid)?.get(container)?.get(resource)
    }

    /// Gives devices to a container. From now on nobody else gets them.
    pub fn give(&mut self, uid: &str, container: &str, resource: &str, ids: Ids) {
        let known = self.resources.get(resource);
        let numa = |id: &String| Some((id.clone(), known?.devices.get(id)?.numa.clone()));
        let grant = Grant {
            numa: ids
                .iter()
                .filter_map(numa)
                .filter(|(_, nodes)| !nodes.is_empty())
                .collect(),
            ids,
            comes: None,
        };
        let of_pod = self.grants.entry(uid.to_owned()).or_default();
        of_pod
            .entry(container.to_owned())
            .or_default()
            .insert(resource.to_owned(), grant);
    }

    /// What the plug-in said: what comes with the devices, or (`None`) that they can't be had.
    pub fn answered(&mut self, uid: &str, container: &str, resource: &str, comes: Option<Comes>) {
        let Some(of_pod) = self.grants.get_mut(uid) else { return };
        let Some(of_container) = of_pod.get_mut(container) else {
            return;
        };
        match comes {
            Some(comes) => {
                if let Some(grant) = of_container.get_mut(resource) {
                    grant.comes = Some(comes);
                }
            }
            None => {
                of_container.remove(resource);
            }
        }
        of_pod.retain(|_, c| !c.is_empty());
        if of_pod.is_empty() {
            self.grants.remove(uid);
        }
    }

    /// What a pod has as its record says; `None`: it can't be read.
    pub fn restore(&mut self, uid: &str, of_pod: Option<OfPod>) {
        match of_pod {
            Some(mut of_pod) => {
                // Decided, but never asked for.
                of_pod.values_mut().for_each(|c| c.retain(|_, g| g.comes.is_some()));
                of_pod.retain(|_, c| !c.is_empty());
                if !of_pod.is_empty() {
                    self.grants.insert(uid.to_owned(), of_pod);
                }
            }
            None => {
                self.unknown.insert(uid.to_owned());
            }
        }
    }

    /// A pod that has devices which nobody knows.
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.first().map(String::as_str)
    }

    pub fn release(&mut self, uid: &str) {
        self.grants.remove(uid);
        self.unknown.remove(uid);
    }

    /// Whether a device that a pod has can be used. One that its plug-in doesn't name is not known to be bad.
    pub fn is_healthy(&self, resource: &str, id: &str) -> bool {
        let known = self.resources.get(resource).and_then(|r| r.devices.get(id));
        known.is_none_or(|d| d.healthy)
    }

    /// The devices that can be used, each with what it is near.
    pub fn usable(&self) -> impl Iterator<Item = (&str, &str, &[i64])> {
        self.resources.iter().flat_map(|(name, r)| {
            let healthy = r.devices.iter().filter(|(id, _)| r.healthy.contains(*id));
            healthy.map(move |(id, d)| (name.as_str(), id.as_str(), d.numa.as_slice()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str, health: &str) -> plugin::Device {
        plugin::Device {
            id: id.into(),
            health: health.into(),
            topology: None,
        }
    }

    fn amounts(ledger: &mut Ledger, now: Instant) -> (String, String) {
        let (capacity, allocatable) = ledger.amounts(now);
        let of = |l: BTreeMap<String, Quantity>| l.get("r").map_or("none".into(), |q| q.0.clone());
        (of(capacity), of(allocatable))
    }

    #[test]
    fn a_resource_is_told_for_a_while_after_its_plug_in() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        assert_eq!(amounts(&mut ledger, start), ("none".into(), "none".into()));
        ledger.connected("r");
        ledger.told("r", vec![device("a", "Healthy"), device("b", "Unhealthy")]);
        assert_eq!(amounts(&mut ledger, start), ("2".into(), "1".into()));
        ledger.disconnected("r", start);
        assert_eq!(amounts(&mut ledger, start + GRACE), ("2".into(), "0".into()));
        let late = start + GRACE + Duration::from_secs(1);
        assert_eq!(amounts(&mut ledger, late), ("0".into(), "0".into()));
        assert!(!ledger.manages("r"));
        assert_eq!((ledger.others("r"), ledger.others("s")), (0, 1), "it is remembered");
        ledger.connected("r");
        ledger.told("r", vec![device("a", "Healthy")]);
        assert_eq!(amounts(&mut ledger, late), ("1".into(), "1".into()));
    }

    #[test]
    fn what_one_has_nobody_else_gets_until_it_is_given_back() {
        let mut ledger = Ledger::default();
        ledger.connected("r");
        ledger.told("r", vec![device("a", "Healthy"), device("b", "Healthy")]);
        ledger.give("p", "c", "r", Ids::from(["a".to_owned()]));
        assert_eq!(ledger.taken("r"), Ids::from(["a".to_owned()]));
        let changed = ledger.told("r", vec![device("a", "Unhealthy"), device("b", "Unhealthy")]);
        assert_eq!(changed, BTreeSet::from(["p".to_owned()]));
        assert!(!ledger.is_healthy("r", "a"));
        ledger.answered("p", "c", "r", None);
        assert!(ledger.taken("r").is_empty() && ledger.of_pod("p").is_none());
    }

    #[test]
    fn records_are_read_back() {
        let mut ledger = Ledger::default();
        ledger.give("p", "c", "r", Ids::from(["a".to_owned()]));
        ledger.give("p", "d", "r", Ids::from(["b".to_owned()]));
        ledger.answered("p", "c", "r", Some(Comes::default()));
        let text = serde_json::to_vec(ledger.of_pod("p").unwrap()).unwrap();
        let mut again = Ledger::default();
        again.restore("p", Some(serde_json::from_slice(&text).unwrap()));
        assert_eq!(
            again.taken("r"),
            Ids::from(["a".to_owned()]),
            "the other was never asked for"
        );
        again.restore("q", None);
        assert_eq!(again.unknown(), Some("q"));
        again.release("q");
        assert_eq!(again.unknown(), None);
    }
}
