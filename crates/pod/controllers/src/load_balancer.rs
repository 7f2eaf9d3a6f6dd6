//! Addresses for services of type LoadBalancer, at once, with nothing to install: those of the nodes, or a pool's.
//!
//! Whose service a pool selects, or who asks for one, gets that pool's addresses ([`allocate`]): they are his alone, or shared by those
//! that agree on it. What follows is about the nodes'.
//!
//! A service gets the addresses of all nodes on which its ports are free; the proxy of each node does the rest, for an
//! address in the status is one like an external address. [`plan`] decides, purely; [`ports`] knows who holds which port. What
//! a service holds stands in its status, port by port: it keeps that until it gives it up, whoever comes later, and also over
//! restarts. One that finds no node stays without address and says why, as a condition and as an event; it is looked at again
//! when a port that it wants gets free.
//!
//! Services of another class are left alone. Where this is switched off, what it gave is taken back: a finalizer without a
//! controller would keep services from going. Where nodes' addresses are, machines and the hosts' own programs listen too:
//! of those only the ports told in [`crate::Config::load_balancer`] and the kubelet's are known.

mod allocate;
mod counts;
mod definition;
mod peer_definition;
mod peers;
mod plan;
mod pooled;
mod ports;
mod wish;

pub use definition::definition;
pub use peer_definition::definition as peer_definition;
pub use ports::{Port, Reserved};

use crate::context::{Context, now};
use crate::{pods, wire};
use allocate::Given;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{LoadBalancerStatus, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use keelson_balancing::{is_local, is_ours, nodes_with_endpoints};
use keelson_client::EventType::{Normal, Warning};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Recorder,
    is_conflict, is_not_found,
};
use plan::{Decision, Places};
use pooled::{ALLOCATED, FAILED, Pooled};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

/// Who writes the statuses of pools and peers.
const TELLER: &str = "keelson-load-balancer-pools";
/// In the status of every service that has, or waits for, an address from here.
const CONDITION: &str = "keelson.dev/LoadBalancer";
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
const SERVICE_NAME: &str = crate::endpointslice::SERVICE_NAME;

pub fn start(context: &Context) {
    let services = context.informer::<Service>();
    let nodes = context.informer::<Node>();
    let pods = context.informer::<Pod>();
    let slices = context.informer::<EndpointSlice>();
    ports::index(&services, &pods);
    services
        .store()
        .add_index(OURS, |s| is_ours(s).then(String::new).into_iter().collect());
    slices.store().add_index(BY_SERVICE, |slice| {
        let service = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME));
        service
            .map(|s| format!("{}/{s}", slice.namespace()))
            .into_iter()
            .collect()
    });
    let pooled = Arc::new(Pooled::new(context, &services, &nodes));
    counts::start(context, &services, &pooled);
    peers::start(context, &nodes);
    // One at a time: each choice depends on all before.
    let mut controller = Controller::new("service-lb")
        .input(&services)
        .input(&nodes)
        .input(&pods)
        .input(&slices)
        .output(Service::RESOURCE)
        .workers(1);
    if let Some((pools, namespaces)) = pooled.sources() {
        controller = controller.input(pools).input(namespaces);
    }
    pooled.watch(&controller.queue());
    ports::watch(&services, &pods, &controller.queue());
    {
        let queue = controller.queue();
        nodes.on_change(move |change| {
            let new = plan::place(change.object());
            if change.old().is_none_or(|old| plan::place(old) != new) {
                queue.add(ObjectKey::default());
            }
        });
    }
    {
        // Where endpoints are counts for those whose traffic stays local.
        let (queue, services) = (controller.queue(), services.clone());
        slices.on_change(move |change| {
            for slice in [Some(change.object()), change.old()].into_iter().flatten() {
                let name = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME));
                let service = name.and_then(|name| services.store().get(slice.namespace(), name));
                if let Some(service) = service.filter(|s| is_ours(s) && is_local(s)) {
                    queue.add(service.key());
                }
            }
        });
    }
    let rest = context.rest("service-controller");
    let queue = controller.queue();
    context.run(
        controller,
        Balancer {
            queue,
            pooled,
            services,
            nodes,
            pods,
            slices,
            reserved: context.config.load_balancer.clone(),
            recorder: context.recorder(&rest, "service-controller"),
            objects: Objects::new(&rest),
            written: Expectations::default(),
        },
    );
}

/// The index of services that want an address from here: one value, the empty one.
const OURS: &str = "balanced";
/// The index of slices by namespace and service, whoever manages them.
const BY_SERVICE: &str = "of-service";

fn condition(service: &Service) -> Option<&Condition> {
    let all = service.status.iter().flat_map(|s| s.conditions.iter().flatten());
    all.into_iter().find(|c| c.type_ == CONDITION)
}

/// Writes a pool's or peer's status, unless it has gone.
async fn tell_status<K: Kind>(
    objects: &Objects<K>,
    object: &K,
    status: &(impl Serialize + Sync),
) -> anyhow::Result<()> {
    let body = json!({
        "apiVersion": K::RESOURCE.api_version(), "kind": K::RESOURCE.kind,
        "metadata": {"name": object.name(), "uid": object.uid()}, "status": status,
    });
    let patch = Patch::Apply {
        body: &body,
        manager: TELLER,
        force: true,
    };
    match objects.patch_status("", object.name(), patch).await {
        Err(error) if !is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

struct Balancer {
    queue: wire::Queue,
    pooled: Arc<Pooled>,
    services: Informer<Service>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    slices: Informer<EndpointSlice>,
    /// `None`: switched off.
    reserved: Option<ports::Reserved>,
    recorder: Recorder,
    objects: Objects<Service>,
    written: Expectations,
}

#[async_trait]
impl Reconcile for Balancer {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        // Of every service, not of this one: a choice must know all earlier ones.
        let all = ObjectKey::default();
        if *key == all {
            // Nodes or pools changed, once for however many did.
            self.pooled.all().into_iter().for_each(|key| self.queue.add(key));
            return Ok(Outcome::Done);
        }
        self.written.settle(&all, self.services.store()).await?;
        let Some(service) = self.services.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let changed = match &self.reserved {
            Some(reserved) if is_ours(&service) && !service.is_deleting() => self.ensure(&service, reserved),
            _ if condition(&service).is_some() => Some(self.give_back(&service)),
            _ => None,
        };
        let Some(changed) = changed else {
            return Ok(Outcome::Done);
        };
        match self.objects.update_status(&changed).await {
            Ok(written) => {
                self.written.wrote(&all, written.meta());
                self.tell(&service, &written);
                Ok(Outcome::Done)
            }
            Err(error) if is_not_found(&error) => Ok(Outcome::Done),
            Err(error) => {
                if !is_conflict(&error) {
                    let why = crate::pod_control::message(&error);
                    let text = format!("Error syncing load balancer: failed to update load balancer status: {why}");
                    self.recorder.event(&*service, Warning, "SyncLoadBalancerFailed", text);
                }
                Err(error.into())
            }
        }
    }
}

impl Balancer {
    /// The service as it should be; `None`: as it is.
    fn ensure(&self, service: &Service, reserved: &ports::Reserved) -> Option<Service> {
        if !self.pooled.knows_whose(service) {
            return None;
        }
        let wanted = plan::ports(service);
        let (addresses, said) = match self.pooled.decide(service) {
            Some(given) => {
                let addresses = given.iter().flat_map(|g| &g.addresses);
                let entries: Vec<_> = addresses.map(|ip| plan::entry(*ip, &wanted)).collect();
                (entries, said_of_pool(service, given))
            }
            None => {
                let decision = self.of_nodes(service, &wanted, reserved);
                let said = said(&decision);
                (decision.ingress, said)
            }
        };
        let mut changed = service.clone();
        let finalizers = changed.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        let status = changed.status.get_or_insert_default();
        status.load_balancer = Some(LoadBalancerStatus {
            ingress: (!addresses.is_empty()).then_some(addresses),
        });
        if !condition(service).is_some_and(|old| same(old, &said)) {
            let of_kind = |c: &Condition| c.type_ == CONDITION;
            crate::util::set_condition(&mut status.conditions, of_kind, said);
        }
        (changed != *service).then_some(changed)
    }

    fn of_nodes(&self, service: &Service, wanted: &[Port], reserved: &ports::Reserved) -> Decision {
        let places = Places {
            nodes: self.nodes.store().list(),
            with_endpoints: is_local(service).then(|| self.nodes_with_endpoints(service)),
        };
        let takers = ports::takers(service, wanted, &self.services, &self.pods, reserved);
        plan::decide(service, wanted, &places, &takers)
    }

    /// The service without what it had from here.
    fn give_back(&self, service: &Service) -> Service {
        let mut changed = service.clone();
        if let Some(finalizers) = &mut changed.metadata.finalizers {
            finalizers.retain(|f| f != FINALIZER);
        }
        if let Some(status) = &mut changed.status {
            status.load_balancer = Some(LoadBalancerStatus::default());
            crate::util::drop_condition(&mut status.conditions, |c| c.type_ == CONDITION);
        }
        changed
    }

    fn nodes_with_endpoints(&self, service: &Service) -> BTreeSet<String> {
        let of_service = format!("{}/{}", service.namespace(), service.name());
        nodes_with_endpoints(&self.slices.store().by_index(BY_SERVICE, &of_service))
    }

    /// Events by upstream's reasons, for what has just been written.
    fn tell(&self, before: &Service, after: &Service) {
        let say = |kind, reason, text: &str| self.recorder.event(before, kind, reason, text);
        let addresses = |s: &Service| plan::held_addresses(s).len();
        let Some(now) = condition(after) else {
            if addresses(before) > 0 {
                say(Normal, "DeletingLoadBalancer", "Deleting load balancer");
            }
            return say(Normal, "DeletedLoadBalancer", "Deleted load balancer");
        };
        if condition(before).is_none() {
            say(Normal, "EnsuringLoadBalancer", "Ensuring load balancer");
        }
        let of_pool = |s: &Service| condition(s).is_some_and(|c| [ALLOCATED, FAILED].contains(&c.reason.as_str()));
        if of_pool(after) || of_pool(before) {
            let (had, has) = (wish::has(before), wish::has(after));
            if had.iter().any(|ip| !has.contains(ip)) {
                let why = if of_pool(after) {
                    now.message.as_str()
                } else {
                    "no pool is for it any more"
                };
                let text = format!(
                    "current IP for {:?} not allowed by config, will attempt for new IP assignment: {why}",
                    before.key().to_string()
                );
                say(Normal, "ClearAssignment", &text);
            }
            if of_pool(after) && had != has && !has.is_empty() {
                let quoted: Vec<String> = has.iter().map(IpAddr::to_string).collect();
                return say(Normal, "IPAllocated", &format!("Assigned IP {quoted:?}"));
            }
            if now.reason == FAILED && !condition(before).is_some_and(|old| same(old, now)) {
                return say(Warning, FAILED, &now.message);
            }
        }
        if of_pool(after) {
            return;
        }
        if addresses(after) > 0 {
            if addresses(before) == 0 {
                say(Normal, "EnsuredLoadBalancer", "Ensured load balancer");
            } else if plan::held_addresses(before) != plan::held_addresses(after) {
                say(Normal, "UpdatedLoadBalancer", "Updated load balancer with new hosts");
            }
        } else if !condition(before).is_some_and(|old| same(old, now)) {
            if now.reason == NO_NODES {
                return say(Warning, "UnAvailableLoadBalancer", &now.message);
            }
            let text = format!(
                "Error syncing load balancer: failed to ensure load balancer: {}",
                now.message
            );
            say(Warning, "SyncLoadBalancerFailed", &text);
        }
    }
}

const NO_NODES: &str = "NoNodes";
/// The reason of a service that has the nodes' addresses.
const REASON_NODES: &str = "Ensured";

/// The condition that tells a decision.
fn said(decision: &Decision) -> Condition {
    let (word, reason, message) = if decision.ingress.is_empty() && decision.refused.is_empty() {
        let text = "There are no available nodes for LoadBalancer";
        ("False", NO_NODES, text.to_string())
    } else if decision.ingress.is_empty() {
        ("False", "Refused", decision.refused.join("; "))
    } else {
        ("True", REASON_NODES, decision.refused.join("; "))
    };
    of(word, reason, message)
}

/// The condition that tells what a pool gave.
fn said_of_pool(service: &Service, given: Result<Given, String>) -> Condition {
    match given {
        Ok(given) => of("True", ALLOCATED, format!("Assigned from pool {}", given.pool)),
        Err(why) => {
            let key = service.key().to_string();
            of("False", FAILED, format!("Failed to allocate IP for {key:?}: {why}"))
        }
    }
}

fn of(word: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: CONDITION.into(),
        status: word.into(),
        reason: reason.into(),
        message,
        observed_generation: None,
        last_transition_time: Time(now()),
    }
}

fn same(a: &Condition, b: &Condition) -> bool {
    (&a.status, &a.reason, &a.message) == (&b.status, &b.reason, &b.message)
}
