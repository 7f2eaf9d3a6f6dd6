//! Keeps what each quota says is used in step with what there is.
//!
//! The server charges quotas as objects are created; this gives back what is gone, and corrects the rest. Kinds counted
//! by number alone are followed by their metadata, while some quota names them.

mod amounts;
mod extended;

pub use amounts::{read as read_amounts, requests as pod_requests};

use crate::context::{Context, now};
use crate::wire::Queue;
use amounts::Amounts;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim};
use keelson_api::Quantity;
use keelson_api::quantity::Format;
use keelson_client::discovery::preferred_resources;
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, PartialObject, Reconcile, Rest,
    is_not_found,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Changes come in bursts, and the server's charge comes before the object it is for.
const SETTLE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the first list of a kind may take; meanwhile no other quota is measured by this worker.
const FIRST_LIST: Duration = Duration::from_secs(10);
/// Kinds that quotas name without `count/`.
const PLAIN: &[&str] = &["configmaps", "secrets", "replicationcontrollers", "resourcequotas"];

pub fn start(context: &Context) {
    let quotas = context.informer::<ResourceQuota>();
    let pods = context.informer::<Pod>();
    let services = context.informer::<Service>();
    let claims = context.informer::<PersistentVolumeClaim>();
    let devices = context.informer::<ResourceClaim>();
    let classes = context.informer::<DeviceClass>();
    let controller = Controller::new("resourcequota")
        .input(&quotas)
        .input(&pods)
        .input(&services)
        .input(&claims)
        .input(&devices)
        .input(&classes)
        .output(ResourceQuota::RESOURCE);
    let queue = controller.queue();
    let charged: Charged = Arc::default();
    {
        let (queue, charged) = (queue.clone(), charged.clone());
        quotas.on_change(move |change| {
            let quota = change.object();
            if change.is_deleted() {
                charged.lock().remove(&quota.key());
            } else {
                charged.lock().insert(quota.key(), Instant::now());
            }
            if change.old().is_none_or(|old| old.spec != quota.spec) {
                queue.add(quota.key());
            }
        });
    }
    replenish(&pods, &quotas, &queue, |old, new| {
        crate::pods::is_finished(old) != crate::pods::is_finished(new)
            || old.is_deleting() != new.is_deleting()
            || old.spec != new.spec
    });
    replenish(&services, &quotas, &queue, |old, new| old.spec != new.spec);
    replenish(&claims, &quotas, &queue, |old, new| old.spec != new.spec);
    replenish(&devices, &quotas, &queue, |old, new| old.spec != new.spec);
    {
        let (queue, quotas) = (queue.clone(), quotas.clone());
        classes.on_change(move |change| {
            let name = |class: &DeviceClass| class.spec.as_ref()?.extended_resource_name.clone();
            let is_known = change.old().is_some_and(|old| name(old) == name(change.object()));
            if !is_known || change.is_deleted() {
                quotas
                    .store()
                    .list()
                    .iter()
                    .for_each(|quota| queue.add_after(quota.key(), SETTLE));
            }
        });
    }
    let rest = context.rest("resourcequota-controller");
    context.run(
        controller,
        Quotas {
            charged,
            waiting: Mutex::default(),
            quotas,
            pods,
            services,
            claims,
            devices,
            classes,
            objects: Objects::new(&rest),
            reader: context.reader(),
            stop: context.stop.clone(),
            queue,
            counted: Mutex::default(),
            own: Expectations::default(),
        },
    );
}

/// Has the quotas of a namespace looked at when something in it comes, goes or changes in what it uses.
fn replenish<K: ApiObject>(
    things: &Informer<K>,
    quotas: &Informer<ResourceQuota>,
    queue: &Queue,
    changed: fn(&K, &K) -> bool,
) {
    let (quotas, queue) = (quotas.clone(), queue.clone());
    things.on_change(move |change| {
        if change.old().is_some_and(|old| !changed(old, change.object())) {
            return;
        }
        for quota in quotas.store().list_namespace(change.object().namespace()) {
            queue.add_after(quota.key(), SETTLE);
        }
    });
}

/// When each quota last changed: mostly, when the server last charged it.
type Charged = Arc<Mutex<HashMap<ObjectKey, Instant>>>;

struct Quotas {
    charged: Charged,
    /// Since when a quota waits to be measured.
    waiting: Mutex<HashMap<ObjectKey, Instant>>,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    devices: Informer<ResourceClaim>,
    classes: Informer<DeviceClass>,
    objects: Objects<ResourceQuota>,
    reader: Rest,
    stop: CancellationToken,
    queue: Queue,
    counted: Mutex<BTreeMap<String, Informer<PartialObject>>>,
    own: Expectations,
}

#[async_trait]
impl Reconcile for Quotas {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.own.settle(key, self.quotas.store()).await?;
        let Some(quota) = self.quotas.store().get_key(key).filter(|q| !q.is_deleting()) else {
            self.own.forget(key);
            self.follow_no_others();
            return Ok(Outcome::Done);
        };
        if quota.status.is_some()
            && let Some(wait) = self.settling(key)
        {
            return Ok(Outcome::After(wait));
        }
        let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
        let mut used = self.measure(&quota);
        for name in hard.keys() {
            if let Some(kind) = counted_kind(name)
                && !used.contains_key(name)
                && !amounts::has_scopes(&quota)
                && let Some(number) = self.number(&kind, &key.namespace).await?
            {
                used.insert(name.clone(), Quantity::new(number as i64, Format::DecimalSi));
            }
        }
        let used = hard
            .keys()
            .map(|name| (name.clone(), used.get(name).copied().unwrap_or(Quantity::ZERO)))
            .collect::<Amounts>();
        let old = quota.status.clone().unwrap_or_default();
        let counts_the_same = old.hard.as_ref().unwrap_or(&BTreeMap::new()) == &hard;
        if !counts_the_same {
            self.follow_no_others();
        }
        if counts_the_same && amounts::read(old.used.as_ref()) == used {
            return Ok(Outcome::Done);
        }
        let status = ResourceQuotaStatus {
            hard: Some(hard),
            used: Some(amounts::write(&used)),
        };
        match self
            .objects
            .update_status(&ResourceQuota {
                status: Some(status),
                ..(*quota).clone()
            })
            .await
        {
            Ok(written) => self.own.wrote(key, written.meta()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Outcome::Done)
    }
}

/// The kind, as resource and group, that a quota counts under a name.
fn counted_kind(name: &str) -> Option<String> {
    if PLAIN.contains(&name) {
        return Some(name.to_string());
    }
    name.strip_prefix("count/").map(str::to_string)
}

fn counted_kinds(quotas: &[Arc<ResourceQuota>]) -> BTreeSet<String> {
    let hard = quotas.iter().filter_map(|q| q.spec.as_ref()?.hard.as_ref());
    hard.flat_map(|hard| hard.keys())
        .filter_map(|name| counted_kind(name))
        .collect()
}

impl Quotas {
    /// What no quota counts any more isn't followed: its definition may go.
    fn follow_no_others(&self) {
        let kinds = counted_kinds(&self.quotas.store().list());
        self.counted.lock().retain(|kind, _| kinds.contains(kind));
    }

    /// How long to wait for the object that the last charge was for: measured before it is known here, the charge would
    /// be taken back. Under constant change one doesn't wait for ever.
    fn settling(&self, key: &ObjectKey) -> Option<Duration> {
        let now = Instant::now();
        let since = *self.waiting.lock().entry(key.clone()).or_insert(now);
        let last = self.charged.lock().get(key).copied();
        let left = last
            .map(|at| (at + SETTLE).saturating_duration_since(now))
            .filter(|left| !left.is_zero());
        if left.is_none() || now.duration_since(since) > PATIENCE {
            self.waiting.lock().remove(key);
            return None;
        }
        left
    }

    fn measure(&self, quota: &ResourceQuota) -> Amounts {
        let (ns, now) = (quota.namespace(), now());
        let mut used = Amounts::new();
        for pod in self
            .pods
            .store()
            .list_namespace(ns)
            .iter()
            .filter(|p| amounts::counts_pod(quota, p))
        {
            amounts::add(&mut used, &amounts::pod(pod, now));
        }
        for claim in self
            .claims
            .store()
            .list_namespace(ns)
            .iter()
            .filter(|c| amounts::counts_claim(quota, c))
        {
            amounts::add(&mut used, &amounts::claim(claim));
        }
        if !amounts::has_scopes(quota) {
            self.services
                .store()
                .list_namespace(ns)
                .iter()
                .for_each(|s| amounts::add(&mut used, &amounts::service(s)));
            let devices = self.devices.store().list_namespace(ns);
            let names = extended::names(&self.classes.store().list());
            for claim in &devices {
                let mut of_claim = amounts::devices(claim);
                let pod = extended::owner(claim).and_then(|owner| {
                    let pod = self.pods.store().get_key(&ObjectKey::new(ns, &owner.name))?;
                    extended::is_for(claim, &pod, &devices).then_some(pod)
                });
                let of_pod = pod.map(|pod| amounts::pod(&pod, now)).unwrap_or_default();
                extended::add(&mut of_claim, &names, &of_pod);
                amounts::add(&mut used, &of_claim);
            }
        }
        used
    }

    /// How many objects of a kind there are; none if there is no such kind.
    async fn number(&self, kind: &str, namespace: &str) -> anyhow::Result<Option<usize>> {
        let known = self.counted.lock().get(kind).cloned();
        let informer = match known {
            Some(informer) => informer,
            None => {
                let all = preferred_resources(&self.reader).await?;
                let name = |r: &keelson_client::ResourceId| {
                    if r.group.is_empty() {
                        r.plural.to_string()
                    } else {
                        format!("{}.{}", r.plural, r.group)
                    }
                };
                let Some(found) = all
                    .found
                    .into_iter()
                    .find(|r| name(&r.id) == kind && r.id.namespaced && r.can("watch"))
                else {
                    return Ok(None);
                };
                let informer = Informer::metadata(
                    &self.reader,
                    found.id,
                    keelson_client::informer::strip_managed_fields,
                    &self.stop,
                );
                replenish(&informer, &self.quotas, &self.queue, |_, _| false);
                self.counted.lock().entry(kind.to_string()).or_insert(informer).clone()
            }
        };
        if tokio::time::timeout(FIRST_LIST, informer.synced()).await.is_err() {
            // The kind may be gone again; the next turn asks anew what there is.
            self.counted.lock().remove(kind);
            anyhow::bail!("the objects of {kind} could not be listed within {FIRST_LIST:?}");
        }
        Ok(Some(informer.store().list_namespace(namespace).len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_a_quota_counts_is_followed() {
        let quota =
            |hard: serde_json::Value| Arc::new(serde_json::from_value(json!({"spec": {"hard": hard}})).unwrap());
        let all = [
            quota(json!({"pods": "1", "configmaps": "1"})),
            quota(json!({"count/foos.example.com": "1", "requests.cpu": "1"})),
            Arc::default(),
        ];
        let kinds: Vec<_> = counted_kinds(&all).into_iter().collect();
        assert_eq!(kinds, ["configmaps", "foos.example.com"]);
        assert!(counted_kinds(&all[2..]).is_empty());
    }
}
