//! What is known of claims on this node: which pods use them, what drivers made of them, and whether that is still to be
//! done. No I/O; upstream's rules and words.

use crate::pods;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use keelson_devices::dra;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A device of a claim, as its driver says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    pub pool: String,
    pub device: String,
    pub share: Option<String>,
    /// The requests that it is for; empty: all.
    pub requests: Vec<String>,
    pub cdi: Vec<String>,
}

impl Device {
    pub fn new(d: dra::Device) -> Self {
        Device {
            pool: d.pool_name,
            device: d.device_name,
            share: d.share_id,
            requests: d.request_names,
            cdi: d.cdi_device_ids,
        }
    }

    /// Whether it is for a request; an empty one means all.
    pub fn is_for(&self, request: &str) -> bool {
        request.is_empty() || self.requests.is_empty() || self.requests.iter().any(|r| r == request)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub pods: BTreeSet<String>,
    /// Devices by driver; a driver that isn't asked yet has none.
    pub drivers: BTreeMap<String, Vec<Device>>,
    /// By this kubelet: an earlier one's work is asked for again, which drivers have to stand.
    #[serde(skip)]
    pub prepared: bool,
    #[serde(skip)]
    pub unpreparing: bool,
}

impl Info {
    /// The claim as drivers are told of it.
    pub fn claim(&self) -> dra::Claim {
        dra::Claim {
            namespace: self.namespace.clone(),
            uid: self.uid.clone(),
            name: self.name.clone(),
        }
    }

    /// What is known of a claim before any driver was asked. Fails where a pod may not use it.
    pub fn of(pod: &Pod, claim: &ResourceClaim, owned: bool) -> Result<Info, String> {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let (name, namespace, uid) = (
            text(&claim.metadata.name),
            text(&claim.metadata.namespace),
            text(&claim.metadata.uid),
        );
        let (pod_name, pod_namespace, pod_uid) = (pods::name(pod), pods::namespace(pod), pods::uid(pod));
        let mut owners = claim.metadata.owner_references.iter().flatten();
        if owned && !owners.any(|o| o.controller == Some(true) && o.uid == pod_uid) {
            return Err(format!(
                "ResourceClaim {namespace}/{name} was not created for Pod {pod_namespace}/{pod_name} (Pod is not owner)"
            ));
        }
        let status = claim.status.as_ref();
        let mut reserved = status.and_then(|s| s.reserved_for.as_ref()).into_iter().flatten();
        if !reserved.any(|r| r.uid == pod_uid) {
            return Err(format!(
                "pod {pod_name} ({pod_uid}) is not allowed to use ResourceClaim {name} ({uid})"
            ));
        }
        let Some(allocation) = status.and_then(|s| s.allocation.as_ref()) else {
            return Err(format!("ResourceClaim {name}: not allocated"));
        };
        let results = allocation.devices.as_ref().and_then(|d| d.results.as_ref());
        let results = results.map(Vec::as_slice).unwrap_or_default();
        // Behind a gate that is off in 1.37.
        if results
            .iter()
            .any(|r| r.skip_node_operations.as_ref().is_some_and(|s| !s.is_empty()))
        {
            return Err(format!(
                "ResourceClaim {name}: DRAOptionalNodeOperations feature gate is disabled on kubelet"
            ));
        }
        let drivers = results.iter().map(|r| (r.driver.clone(), Vec::new()));
        Ok(Info {
            uid,
            name,
            namespace,
            drivers: drivers.collect(),
            ..Info::default()
        })
    }
}

/// A claim that a pod uses.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub claim: String,
    /// It was made for the pod, and has to be its own.
    pub owned: bool,
}

/// The claim by a name that the pod has for it. `None`: there is none to be made.
fn claim_of(pod: &Pod, name: &str) -> Result<Option<Named>, String> {
    let mut all = pods::spec(pod).resource_claims.iter().flatten();
    let (pod_name, ns) = (pods::name(pod), pods::namespace(pod));
    let Some(of_pod) = all.find(|c| c.name == name) else {
        return Ok(None);
    };
    if let Some(claim) = &of_pod.resource_claim_name {
        let (claim, owned) = (claim.clone(), false);
        return Ok(Some(Named { claim, owned }));
    }
    if of_pod.resource_claim_template_name.is_none() {
        return Err(format!(
            "pod \"{ns}/{pod_name}\", spec.resourceClaim \"{name}\": none of the supported fields are set"
        ));
    }
    let mut made = pods::status(pod).resource_claim_statuses.iter().flatten();
    let Some(made) = made.find(|s| s.name == name) else {
        return Err(format!("pod \"{ns}/{pod_name}\": ResourceClaim not created yet"));
    };
    let claim = made.resource_claim_name.clone();
    Ok(claim.map(|claim| Named { claim, owned: true }))
}

/// All claims of a pod, the one of its extended resources among them.
pub fn claims_of(pod: &Pod) -> Result<Vec<Named>, String> {
    let mut all = Vec::new();
    for c in pods::spec(pod).resource_claims.iter().flatten() {
        all.extend(claim_of(pod, &c.name)?);
    }
    if let Some(extended) = &pods::status(pod).extended_resource_claim_status {
        let (claim, owned) = (extended.resource_claim_name.clone(), false);
        all.push(Named { claim, owned });
    }
    Ok(all)
}

/// The claims of a container by their names, each with the request that is meant (empty: all), and with what the pod calls
/// both.
pub fn of_container(pod: &Pod, c: &Container) -> Result<Vec<(String, String, String)>, String> {
    let mut all = Vec::new();
    let claims = c.resources.as_ref().and_then(|r| r.claims.as_ref());
    for wanted in claims.into_iter().flatten() {
        let request = wanted.request.clone().unwrap_or_default();
        let shown = match request.as_str() {
            "" => format!("claim:{}", wanted.name),
            _ => format!("claim:{}/{request}", wanted.name),
        };
        if let Some(named) = claim_of(pod, &wanted.name)? {
            all.push((named.claim, request, shown));
        }
    }
    if let Some(extended) = &pods::status(pod).extended_resource_claim_status {
        for m in extended.request_mappings.iter().filter(|m| m.container_name == c.name) {
            let claim = &extended.resource_claim_name;
            let shown = format!("claim:{claim}/{}", m.request_name);
            all.push((claim.clone(), m.request_name.clone(), shown));
        }
    }
    Ok(all)
}

/// The request that one of its alternatives belongs to.
pub fn base(request: &str) -> &str {
    request.split('/').next().unwrap_or_default()
}

/// All claims of this node, by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known(BTreeMap<(String, String), Info>);

impl Known {
    pub fn from_list(list: Vec<Info>) -> Self {
        Known(
            list.into_iter()
                .map(|i| ((i.namespace.clone(), i.name.clone()), i))
                .collect(),
        )
    }

    pub fn list(&self) -> Vec<&Info> {
        self.0.values().collect()
    }

    pub fn get(&self, ns: &str, name: &str) -> Option<&Info> {
        self.0.get(&(ns.to_owned(), name.to_owned()))
    }

    fn get_mut(&mut self, ns: &str, name: &str) -> Option<&mut Info> {
        self.0.get_mut(&(ns.to_owned(), name.to_owned()))
    }

    /// Whether a pod has claims here.
    pub fn uses(&self, uid: &str) -> bool {
        self.0.values().any(|i| i.pods.contains(uid))
    }

    /// Notes that a pod uses a claim. Returns it if drivers have to be asked.
    pub fn take(&mut self, uid: &str, fresh: Info) -> Result<Option<Info>, String> {
        let key = (fresh.namespace.clone(), fresh.name.clone());
        if let Some(info) = self.0.get(&key) {
            if info.uid != fresh.uid {
                return Err(format!(
                    "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                    info.name, info.uid
                ));
            }
            if info.unpreparing {
                return Err(format!("ResourceClaim {} is being unprepared", info.name));
            }
        }
        let info = self.0.entry(key).or_insert(fresh);
        info.pods.insert(uid.to_owned());
        Ok((!info.prepared).then(|| info.clone()))
    }

    /// What a driver made of a claim.
    pub fn made(&mut self, ns: &str, name: &str, driver: &str, devices: Vec<Device>) -> Result<(), String> {
        let info = self.get_mut(ns, name).ok_or_else(|| unknown(ns, name))?;
        info.drivers.insert(driver.to_owned(), devices);
        Ok(())
    }

    pub fn prepared(&mut self, ns: &str, name: &str) -> Result<(), String> {
        self.get_mut(ns, name).ok_or_else(|| unknown(ns, name))?.prepared = true;
        Ok(())
    }

    /// A pod has ended. Returns its claims that nobody else uses: they are to be given back.
    pub fn leave(&mut self, uid: &str) -> Vec<Info> {
        let mut last = Vec::new();
        for info in self.0.values_mut().filter(|i| i.pods.contains(uid)) {
            if info.pods.len() > 1 {
                info.pods.remove(uid);
            } else {
                info.unpreparing = true;
                last.push(info.clone());
            }
        }
        last
    }

    pub fn remove(&mut self, info: &Info) {
        self.0.remove(&(info.namespace.clone(), info.name.clone()));
    }

    /// The pods that have one of these devices of a driver.
    pub fn users(&self, driver: &str, of: &BTreeSet<(String, String)>) -> BTreeSet<String> {
        let has = |i: &&Info| {
            let devices = i.drivers.get(driver);
            let mut devices = devices.into_iter().flatten();
            devices.any(|d| of.contains(&(d.pool.clone(), d.device.clone())))
        };
        self.0
            .values()
            .filter(has)
            .flat_map(|i| i.pods.iter().cloned())
            .collect()
    }

    /// The devices of a container by their names in specifications.
    pub fn cdi(&self, pod: &Pod, c: &Container) -> Result<Vec<String>, String> {
        let mut names: Vec<String> = Vec::new();
        for (claim, request, _) in of_container(pod, c)? {
            let ns = pods::namespace(pod);
            let info = self.get(ns, &claim).ok_or_else(|| unknown(ns, &claim))?;
            for d in info.drivers.values().flatten().filter(|d| d.is_for(&request)) {
                for name in &d.cdi {
                    if !names.contains(name) {
                        names.push(name.clone());
                    }
                }
            }
        }
        Ok(names)
    }
}

fn unknown(ns: &str, name: &str) -> String {
    format!("internal error: unable to get claim info for ResourceClaim {name} in namespace {ns}")
}

#[cfg(test)]
#[path = "info_tests.rs"]
mod tests;
