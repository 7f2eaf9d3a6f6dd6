//! Devices of plug-ins, the older way: a plug-in registers for a resource ([`server`], or as any plug-in), says which devices
//! there are ([`plugin`]), and is asked for those that a container gets. Which these are is decided by pure rules
//! ([`choose`]) over a picture in memory ([`ledger`]).
//!
//! What a pod has stands in a file of its directory and ends with it: a restart finds it, and a pod that can't be told what
//! it has stops new devices from being given rather than having them given twice. Devices are a pod's from when they are
//! chosen; no lock is held while a plug-in is asked.

mod choose;
mod giving;
mod health;
mod ledger;
mod near;
mod plugin;
mod record;
mod server;

pub use choose::Ids;
pub use giving::Giving;
pub(crate) use health::put as put_health;
pub use ledger::{Comes, Grant, OfPod};
pub use plugin::Registry;
pub use server::start;

use crate::host::{Host, Layout};
use crate::managers::topology::Mask;
use crate::objects::Wake;
use crate::pods;
use crate::resources::quantity;
use choose::{Answer, Question, choose};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use keelson_devices::plugin as api;
use ledger::Ledger;
use parking_lot::Mutex;
use plugin::Registered;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a plug-in may take for what it is asked; upstream's for what comes before a container's start.
const CALL: Duration = Duration::from_secs(30);

pub struct Devices {
    host: Arc<dyn Host>,
    layout: Layout,
    wake: Wake,
    /// The node's status has to be told anew.
    changed: Arc<Notify>,
    stop: CancellationToken,
    ledger: Mutex<Ledger>,
    /// The plug-ins of each resource, the one that is asked last.
    plugins: Mutex<BTreeMap<String, Vec<Registered>>>,
}

impl Devices {
    pub fn new(
        host: Arc<dyn Host>,
        layout: Layout,
        wake: Wake,
        changed: Arc<Notify>,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, String> {
        let devices = Devices {
            ledger: Mutex::new(record::restore(&*host, &layout)?),
            plugins: Mutex::default(),
            host,
            layout,
            wake,
            changed,
            stop,
        };
        Ok(Arc::new(devices))
    }

    /// Capacity and allocatable of plug-ins' resources; zero of one that has no plug-in any more.
    pub fn amounts(&self) -> (BTreeMap<String, Quantity>, BTreeMap<String, Quantity>) {
        let mut ledger = self.ledger.lock();
        let before = ledger.registered();
        let amounts = ledger.amounts(Instant::now());
        let now = ledger.registered();
        drop(ledger);
        if now != before {
            record::note(&*self.host, &self.layout, &now);
        }
        amounts
    }

    /// Begins to give a pod the devices that it asks for. What it has already it keeps.
    pub fn giving<'a>(&'a self, pod: &'a Pod) -> Giving<'a> {
        Giving {
            devices: self,
            pod,
            reuse: BTreeMap::new(),
            any: false,
        }
    }

    /// An init container that ends leaves its devices to those after it; one that stays keeps them.
    fn pass_on(&self, pod: &Pod, c: &Container, reuse: &mut BTreeMap<String, Ids>, leaves: bool) {
        let ledger = self.ledger.lock();
        let of_container = ledger.of_pod(pods::uid(pod)).and_then(|p| p.get(&c.name));
        for (resource, grant) in of_container.into_iter().flatten() {
            let ids = reuse.entry(resource.clone()).or_default();
            for id in &grant.ids {
                if leaves {
                    ids.insert(id.clone());
                } else {
                    ids.remove(id);
                }
            }
        }
    }

    fn save(&self, uid: &str) -> Result<(), String> {
        let of_pod = self.ledger.lock().of_pod(uid).cloned();
        let saved = of_pod.map(|p| record::save(&*self.host, &self.layout, uid, &p));
        saved
            .unwrap_or(Ok(()))
            .map_err(|e| format!("remembering the pod's devices: {e}"))
    }

    /// The resources of plug-ins that a container asks for.
    fn wanted(&self, pod: &Pod, c: &Container) -> BTreeMap<String, usize> {
        let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
        let ledger = self.ledger.lock();
        limits
            .into_iter()
            .flatten()
            .filter(|(name, _)| ledger.manages(name) && !is_claimed(pod, &c.name, name))
            .filter_map(|(name, q)| Some((name.clone(), usize::try_from(quantity::value(q)).ok()?)))
            .filter(|(_, n)| *n > 0)
            .collect()
    }

    /// Whether anything was given.
    async fn allocate(
        &self,
        pod: &Pod,
        c: &Container,
        reuse: &BTreeMap<String, Ids>,
        near: Option<Mask>,
    ) -> Result<bool, String> {
        let (uid, none, mut any) = (pods::uid(pod), Ids::new(), false);
        for (resource, required) in self.wanted(pod, c) {
            let reuse = reuse.get(&resource).unwrap_or(&none);
            let Some(ids) = self.decide(uid, &c.name, &resource, required, reuse, near).await? else {
                continue;
            };
            let comes = self.ask(&resource, ids).await;
            let answer = comes.as_ref().ok().cloned();
            self.ledger.lock().answered(uid, &c.name, &resource, answer);
            comes?;
            any = true;
        }
        Ok(any)
    }

    /// Chooses devices, and makes them the container's. `None`: it has what it needs.
    async fn decide(
        &self,
        uid: &str,
        container: &str,
        resource: &str,
        required: usize,
        reuse: &Ids,
        near: Option<Mask>,
    ) -> Result<Option<Ids>, String> {
        let mut preferred: Option<Ids> = None;
        loop {
            let (available, must) = {
                let plugin = self.plugin(resource);
                let mut ledger = self.ledger.lock();
                if let Some(unknown) = ledger.unknown() {
                    return Err(format!(
                        "which devices the pod {unknown} has can't be told, for its record can't be read; none of {resource} is given \
                         until it has gone"
                    ));
                }
                if ledger
                    .grant(uid, container, resource)
                    .is_some_and(|g| g.comes.is_none())
                {
                    // A try before this one was given up.
                    ledger.answered(uid, container, resource, None);
                }
                let near = near.and_then(|near| near::sorted(ledger.devices(resource)?, near));
                let answer = choose(&Question {
                    pod: uid,
                    container,
                    resource,
                    required,
                    healthy: ledger.healthy(resource),
                    had: ledger.grant(uid, container, resource).map(|g| &g.ids),
                    taken: &ledger.taken(resource),
                    reuse,
                    near: near.as_ref(),
                    asks: plugin.is_some_and(|p| p.options.get_preferred_allocation_available),
                    preferred: preferred.as_ref(),
                })?;
                match answer {
                    Answer::Has => return Ok(None),
                    Answer::Take(ids) => {
                        ledger.give(uid, container, resource, ids.clone());
                        return Ok(Some(ids));
                    }
                    Answer::Ask { available, must } => (available, must),
                }
            };
            // Once; what it prefers may be another's by then.
            preferred = Some(self.prefer(resource, available, must, required).await?);
        }
    }

    async fn prefer(&self, resource: &str, available: Ids, must: Ids, size: usize) -> Result<Ids, String> {
        let plugin = self.plugin(resource).ok_or_else(|| missing(resource))?;
        let request = api::PreferredAllocationRequest {
            container_requests: vec![api::ContainerPreferredAllocationRequest {
                available_device_i_ds: available.into_iter().collect(),
                must_include_device_i_ds: must.into_iter().collect(),
                allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
            }],
        };
        let answer = plugin.client.prefer(CALL, request).await;
        let answer = answer.map_err(|e| {
            let e = crate::rpc_text(&e);
            format!("device plugin GetPreferredAllocation rpc failed with err: {e}")
        })?;
        let first = answer.container_responses.into_iter().next();
        Ok(first.map(|r| r.device_i_ds.into_iter().collect()).unwrap_or_default())
    }

    /// Has the plug-in make devices ready, and say what comes with them.
    async fn ask(&self, resource: &str, ids: Ids) -> Result<Comes, String> {
        let plugin = self
            .plugin(resource)
            .ok_or_else(|| format!("unknown Device Plugin {resource}"))?;
        let request = api::AllocateRequest {
            container_requests: vec![api::ContainerAllocateRequest {
                devices_ids: ids.into_iter().collect(),
            }],
        };
        let answer = plugin.client.allocate(CALL, request).await;
        let answer = answer.map_err(|e| crate::rpc_text(&e))?;
        let first = answer.container_responses.into_iter().next();
        first
            .map(comes)
            .ok_or_else(|| "no containers return in allocation response".into())
    }

    /// What comes with a container's devices, which are made ready for its start.
    pub async fn for_start(&self, pod: &Pod, c: &Container) -> Result<Comes, String> {
        let uid = pods::uid(pod);
        let mut lacks = false;
        for resource in self.wanted(pod, c).into_keys() {
            let ids = self.ledger.lock().grant(uid, &c.name, &resource).map(|g| g.ids.clone());
            lacks |= ids.is_none();
            self.before_start(uid, &c.name, &resource, ids).await?;
        }
        if lacks {
            // It ran before its record was lost, or before its plug-in was known.
            self.allocate(pod, c, &BTreeMap::new(), None).await?;
            self.save(uid)?;
        }
        let ledger = self.ledger.lock();
        let of_container = ledger.of_pod(uid).and_then(|p| p.get(&c.name));
        Ok(together(of_container.into_iter().flat_map(BTreeMap::values)))
    }

    async fn before_start(&self, uid: &str, container: &str, resource: &str, ids: Option<Ids>) -> Result<(), String> {
        let Some(plugin) = self.plugin(resource) else {
            // One that is only starting anew is not waited for.
            let expected = self.ledger.lock().healthy(resource).is_some();
            return if expected { Ok(()) } else { Err(missing(resource)) };
        };
        if !plugin.options.pre_start_required {
            return Ok(());
        }
        let ids = ids.ok_or_else(|| {
            format!(
                "no devices found allocated in local cache for pod {uid}, container {container}, resource {resource}"
            )
        })?;
        let request = api::PreStartContainerRequest {
            devices_ids: ids.into_iter().collect(),
        };
        let answer = plugin.client.pre_start(CALL, request).await;
        answer.map(drop).map_err(|e| {
            let e = crate::rpc_text(&e);
            format!("device plugin PreStartContainer rpc failed with err: {e}")
        })
    }

    /// What a pod had is free: nothing of it runs any more.
    pub fn release(&self, uid: &str) {
        self.ledger.lock().release(uid);
    }

    /// What a container has, by resource.
    pub fn of_container(&self, uid: &str, container: &str) -> BTreeMap<String, Grant> {
        let ledger = self.ledger.lock();
        ledger
            .of_pod(uid)
            .and_then(|p| p.get(container))
            .cloned()
            .unwrap_or_default()
    }

    /// The devices that can be used: resource, device, and what it is near.
    pub fn usable(&self) -> Vec<(String, String, Vec<i64>)> {
        let ledger = self.ledger.lock();
        let all = ledger.usable();
        all.map(|(r, id, numa)| (r.to_owned(), id.to_owned(), numa.to_vec()))
            .collect()
    }
}

fn missing(resource: &str) -> String {
    format!("endpoint not found in cache for a registered resource: {resource}")
}

/// Whether a container's resource is had by a claim, not from a plug-in.
fn is_claimed(pod: &Pod, container: &str, resource: &str) -> bool {
    let claim = pods::status(pod).extended_resource_claim_status.as_ref();
    let mappings = claim.map(|c| c.request_mappings.as_slice()).unwrap_or_default();
    mappings
        .iter()
        .any(|m| m.container_name == container && m.resource_name == resource)
}

fn comes(answer: api::ContainerAllocateResponse) -> Comes {
    Comes {
        env: answer.envs.into_iter().collect(),
        mounts: answer
            .mounts
            .into_iter()
            .map(|m| (m.container_path, m.host_path, m.read_only))
            .collect(),
        devices: answer
            .devices
            .into_iter()
            .map(|d| (d.container_path, d.host_path, d.permissions))
            .collect(),
        annotations: answer.annotations.into_iter().collect(),
        cdi: answer.cdi_devices.into_iter().map(|d| d.name).collect(),
    }
}

/// What comes with all devices of a container; of what two bring the first counts.
fn together<'a>(grants: impl Iterator<Item = &'a Grant>) -> Comes {
    let mut all = Comes::default();
    for one in grants.filter_map(|g| g.comes.as_ref()) {
        for (name, value) in &one.env {
            let first = all.env.entry(name.clone()).or_insert_with(|| value.clone());
            if first != value {
                tracing::warn!(name, "two device plug-ins set a variable to different values");
            }
        }
        for (name, value) in &one.annotations {
            all.annotations.entry(name.clone()).or_insert_with(|| value.clone());
        }
        for m in &one.mounts {
            if !all.mounts.iter().any(|had| had.0 == m.0) {
                all.mounts.push(m.clone());
            }
        }
        for d in &one.devices {
            if !all.devices.iter().any(|had| had.0 == d.0) {
                all.devices.push(d.clone());
            }
        }
        for name in &one.cdi {
            if !all.cdi.contains(name) {
                all.cdi.push(name.clone());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_two_bring_the_first_counts() {
        let grant = |value: &str, host: &str| Grant {
            comes: Some(Comes {
                env: BTreeMap::from([("A".into(), value.into())]),
                devices: vec![("/dev/x".into(), host.into(), "rw".into())],
                cdi: vec!["v/c=d".into()],
                ..Comes::default()
            }),
            ..Grant::default()
        };
        let all = together([grant("1", "/dev/a"), grant("2", "/dev/b")].iter());
        assert_eq!(all.env["A"], "1");
        assert_eq!(
            all.devices,
            [("/dev/x".to_owned(), "/dev/a".to_owned(), "rw".to_owned())]
        );
        assert_eq!(all.cdi, ["v/c=d"]);
    }
}
