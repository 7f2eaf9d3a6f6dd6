//! Services and pools: who is to have addresses of a pool, and which. [`allocate`] decides; this reads for it what there is.

use super::allocate::{self, Given, Holders};
use super::wish::{self, User, Wish};
use super::{OURS, REASON_NODES, condition, plan};
use crate::context::Context;
use crate::wire::Queue;
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use keelson_balancing::{LoadBalancerIpPool, NODE_CLASS, Pools, Range, is_ours};
use keelson_client::{ApiObject, Informer, ObjectKey};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// The reason of a service that no pool has an address for.
pub const FAILED: &str = "AllocationFailed";
/// The reason of one that has a pool's.
pub const ALLOCATED: &str = "Allocated";

/// Services by the addresses that they have, whoever gave them.
const BY_ADDRESS: &str = "balanced-address";
/// Services of ours that wait for a pool's address: one value, the empty one.
const WAITING: &str = "awaits-address";

pub struct Pooled {
    services: Informer<Service>,
    nodes: Informer<Node>,
    /// `None`: there are no pools here.
    sources: Option<(Informer<LoadBalancerIpPool>, Informer<Namespace>)>,
    /// The ranges of pods.
    pods: Vec<Range>,
    /// As they were read last, at which revision.
    read: Mutex<(u64, Arc<Pools>)>,
}

impl Pooled {
    pub fn new(context: &Context, services: &Informer<Service>, nodes: &Informer<Node>) -> Pooled {
        let sources = context.config.pools.then(|| (context.informer(), context.informer()));
        // Who gives nodes their share of them says which is none.
        let range = |text: &String| text.parse::<Range>().ok();
        services
            .store()
            .add_index(BY_ADDRESS, |s| wish::has(s).iter().map(IpAddr::to_string).collect());

        services
            .store()
            .add_index(WAITING, |s| waits(s).then(String::new).into_iter().collect());
        Pooled {
            services: services.clone(),
            nodes: nodes.clone(),
            sources,
            pods: context.config.cluster_cidrs.iter().filter_map(range).collect(),
            read: Mutex::default(),
        }
    }

    pub fn sources(&self) -> Option<&(Informer<LoadBalancerIpPool>, Informer<Namespace>)> {
        self.sources.as_ref()
    }

    pub fn pools(&self) -> Arc<Pools> {
        let Some((pools, _)) = &self.sources else {
            return Arc::default();
        };
        let mut read = self.read.lock();
        let revision = pools.store().revision();
        if read.0 != revision || revision == 0 {
            *read = (revision, Arc::new(Pools::read(&pools.store().list(), &self.pods)));
        }
        read.1.clone()
    }

    /// Whether the service's namespace has been heard of: without that nobody knows which pools are for it.
    pub fn knows_whose(&self, service: &Service) -> bool {
        let Some((_, namespaces)) = &self.sources else {
            return true;
        };
        namespaces.store().get("", service.namespace()).is_some()
    }

    /// What the service gets of a pool, or why nothing; `None`: it is to have the nodes' addresses.
    pub fn decide(&self, service: &Service) -> Option<Result<Given, String>> {
        let pools = self.pools();
        let namespace = self.sources.as_ref();
        let namespace = namespace.and_then(|(_, namespaces)| namespaces.store().get("", service.namespace()));
        let labels = namespace.as_ref().and_then(|n| n.metadata.labels.as_ref());
        let wish = match Wish::of(service, labels) {
            Ok(wish) if is_pooled(service, &wish, &pools) => wish,
            Err(why) if wish::names_a_pool(service) => return Some(Err(why)),
            _ => return None,
        };
        let users = |ip: IpAddr| -> Vec<User> {
            let all = self.services.store().by_index(BY_ADDRESS, &ip.to_string());
            all.iter().map(|s| User::of(s)).collect()
        };
        let nodes = self.nodes.store().list();
        let nodes: BTreeSet<IpAddr> = nodes.iter().flat_map(|n| plan::place(n).addresses()).collect();
        let holders = Holders {
            users: &users,
            nodes: &nodes,
        };
        Some(allocate::allocate(&wish, &pools, &holders))
    }

    /// All are looked at again when pools or namespaces change, and those that wait when somebody gives something up.
    pub fn watch(&self, queue: &Queue) {
        let Some((pools, namespaces)) = &self.sources else {
            return;
        };
        let all = queue.clone();
        pools.on_change(move |change| {
            if change.is_deleted() || change.old().is_none_or(|old| old.spec != change.object().spec) {
                all.add(ObjectKey::default());
            }
        });
        let (all, services) = (queue.clone(), self.services.clone());
        namespaces.on_change(move |change| {
            let namespace = change.object();
            match change.old() {
                Some(old) if old.metadata.labels != namespace.metadata.labels => all.add(ObjectKey::default()),
                // Its services may have been heard of before.
                None if !change.is_deleted() => {
                    let mut there = services.store().list_namespace(namespace.name());
                    there.retain(|s| is_ours(s));
                    by_age(&there).for_each(|key| all.add(key));
                }
                _ => {}
            }
        });
        let (queue, services) = (queue.clone(), self.services.clone());
        services.clone().on_change(move |change| {
            let uses = |s: &Service| (wish::has(s), User::of(s));
            let before = change.old().unwrap_or(change.object());
            let given_up = change.is_deleted() || uses(before) != uses(change.object());
            if given_up && !wish::has(before).is_empty() {
                let waiting = services.store().by_index(WAITING, "");
                by_age(&waiting).for_each(|key| queue.add(key));
            }
        });
    }

    /// The services that get addresses from here, the oldest first.
    pub fn all(&self) -> Vec<ObjectKey> {
        by_age(&self.services.store().by_index(OURS, "")).collect()
    }
}

fn by_age(services: &[Arc<Service>]) -> impl Iterator<Item = ObjectKey> + use<> {
    let created = |s: &Service| s.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let sorted: BTreeMap<_, ObjectKey> = services.iter().map(|s| ((created(s), s.key()), s.key())).collect();
    sorted.into_values()
}

fn waits(service: &Service) -> bool {
    is_ours(service) && condition(service).is_some_and(|c| c.reason == FAILED)
}

/// Whether it is to have a pool's addresses. Without a word of the service's, one that has the nodes' keeps them.
fn is_pooled(service: &Service, wish: &Wish, pools: &Pools) -> bool {
    let class = service.spec.as_ref().and_then(|s| s.load_balancer_class.as_deref());
    if class == Some(NODE_CLASS) {
        return false;
    }
    if wish::names_a_pool(service) || wish.addresses.iter().any(|ip| pools.of(*ip).is_some()) {
        return true;
    }
    match condition(service).map(|c| c.reason.as_str()) {
        Some(REASON_NODES) if !wish.has.is_empty() => false,
        Some(ALLOCATED) if wish.has.iter().any(|ip| pools.of(*ip).is_some()) => true,
        _ => allocate::is_selected(wish, pools),
    }
}
