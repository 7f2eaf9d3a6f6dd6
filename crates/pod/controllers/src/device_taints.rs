//! Evicts pods from devices whose `NoExecute` taints their claims don't tolerate, or not any longer. Taints stand at devices, in the
//! newest generation of their pool, and in rules.

mod devices;
mod status;

use crate::context::{Context, now};
use crate::taint_eviction::disrupt;
use crate::{pods, resource_claims};
use async_trait::async_trait;
use devices::{Devices, applies, pool, results};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceTaintRule, ResourceClaim, ResourceSlice};
use keelson_client::events::EventType::Normal;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder, WorkQueue, delete_options,
    is_conflict, is_not_found,
};
use parking_lot::Mutex;
use status::{Evicted, PERIOD};
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
    let devices = Arc::new(Devices { claims, slices, rules });
    let evicted = Arc::new(Evicted::default());
    let statuses = status::start(context, &rest, pods.clone(), devices.clone(), evicted.clone());
    let recorder = context.recorder(&rest, "device-taint-eviction");
    context.run(
        controller,
        Evictor {
            pods,
            devices,
            statuses,
            evicted,
            objects: Objects::new(&rest),
            recorder,
            pending: Mutex::default(),
        },
    );
}

fn tell_users<'a>(queue: &WorkQueue<ObjectKey>, claims: impl IntoIterator<Item = &'a Arc<ResourceClaim>>) {
    for claim in claims {
        let users = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
        let pods = users.filter(|u| u.resource == "pods" && u.api_group.as_deref().unwrap_or_default().is_empty());
        pods.for_each(|user| queue.add(ObjectKey::new(claim.namespace(), user.name.clone())));
    }
}

struct Evictor {
    pods: Informer<Pod>,
    devices: Arc<Devices>,
    /// Of the rules.
    statuses: Arc<WorkQueue<ObjectKey>>,
    evicted: Arc<Evicted>,
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
        let Some(due) = self.devices.due(&pod, None) else {
            if self.pending.lock().remove(key) {
                self.recorder
                    .event(&*pod, Normal, "DeviceTaintManagerEviction", "Cancelling deletion");
            }
            return Ok(Outcome::Done);
        };
        // More of its kind may come in the meantime.
        for rule in &due.rules {
            self.statuses.add_after(rule.key(), PERIOD);
        }
        if due.at > now() {
            self.pending.lock().insert(key.clone());
            return Ok(Outcome::At(due.at));
        }
        self.recorder
            .event(&*pod, Normal, "DeviceTaintManagerEviction", "Marking for deletion");
        let message = "Device Taint manager: deleting due to NoExecute taint";
        disrupt(&self.objects, &pod, "DeletionByDeviceTaintManager", message, None).await?;
        let options = delete_options(None, Some(pod.uid()), None);
        match self.objects.delete(pod.namespace(), pod.name(), &options).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => return Err(error.into()),
            Err(_) => {}
            Ok(()) => due.rules.iter().for_each(|rule| self.evicted.one_more(rule.uid())),
        }
        self.pending.lock().remove(key);
        Ok(Outcome::Done)
    }
}
