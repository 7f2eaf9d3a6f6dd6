//! What the API tells, and which services a change of it is about.

use crate::model::{self, Here, SERVICE_NAME};
use crate::plan::Planner;
use crate::told::{Changes, Told};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use keelson_client::rest::Rest;
use keelson_client::{ApiObject, Informer, InformerOptions, ObjectKey};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The index of slices by namespace and service.
const BY_SERVICE: &str = "service";

/// What changed and is yet to be looked at. Bounded by the number of services.
#[derive(Default)]
struct Pending {
    services: BTreeSet<ObjectKey>,
    node: bool,
    ranges: bool,
}

pub struct Sources {
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    node: Informer<Node>,
    ranges: Informer<ServiceCIDR>,
    node_name: String,
    /// One for each planner.
    here: Vec<Here>,
    pending: Arc<Mutex<Pending>>,
    changed: Arc<Notify>,
    told: Arc<Told>,
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.namespace(), name.clone()))
}

impl Sources {
    pub fn start(rest: &Rest, node: &str, told: &Arc<Told>, stop: &CancellationToken) -> Sources {
        let own_node = InformerOptions {
            fields: format!("metadata.name={node}"),
            ..InformerOptions::default()
        };
        let sources = Sources {
            services: Informer::start(rest, InformerOptions::default(), stop),
            slices: Informer::start(rest, InformerOptions::default(), stop),
            node: Informer::start(rest, own_node, stop),
            ranges: Informer::start(rest, InformerOptions::default(), stop),
            node_name: node.into(),
            here: Vec::new(),
            pending: Arc::default(),
            changed: Arc::default(),
            told: told.clone(),
        };
        sources.slices.store().add_index(BY_SERVICE, |slice| {
            service_of(slice).map(|key| key.to_string()).into_iter().collect()
        });
        let (services, endpoints) = (Some(&told.services), Some(&told.endpoints));
        sources.note(&sources.services, services, |pending, service| {
            pending.services.insert(service.key());
        });
        sources.note(&sources.slices, endpoints, |pending, slice| {
            pending.services.extend(service_of(slice))
        });
        sources.note(&sources.node, None, |pending, _| pending.node = true);
        sources.note(&sources.ranges, None, |pending, _| pending.ranges = true);
        sources
    }

    fn note<K: ApiObject>(&self, informer: &Informer<K>, told: Option<&Changes>, note: fn(&mut Pending, &K)) {
        let (pending, changed, told) = (self.pending.clone(), self.changed.clone(), told.cloned());
        informer.on_change(move |change| {
            let mut pending = pending.lock();
            told.iter().for_each(Changes::seen);
            note(&mut pending, change.object());
            if let Some(old) = change.old() {
                note(&mut pending, old);
            }
            changed.notify_one();
        });
    }

    pub async fn synced(&self) {
        self.services.synced().await;
        self.slices.synced().await;
        self.node.synced().await;
        self.ranges.synced().await;
    }

    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Tells the planners, one a family, all that is new; which services it changed.
    pub fn take_in(&mut self, planners: &mut [Planner]) -> Vec<ObjectKey> {
        let mut pending = {
            let mut pending = self.pending.lock();
            self.told.services.taken();
            self.told.endpoints.taken();
            std::mem::take(&mut *pending)
        };
        if pending.node || self.here.len() != planners.len() {
            let node = self.node.store().get("", &self.node_name);
            let of = |planner: &Planner| Here::of(&self.node_name, planner.family(), node.as_deref());
            let here: Vec<Here> = planners.iter().map(of).collect();
            if here != self.here {
                self.here = here;
                pending.services.extend(self.services.store().keys());
            }
        }
        if pending.ranges {
            let all = self.ranges.store().list();
            let ranges = all
                .iter()
                .flat_map(|r| r.spec.iter().flat_map(|s| s.cidrs.iter().flatten()));
            let ranges: BTreeSet<IpNet> = ranges.filter_map(|r| r.parse().ok()).collect();
            planners
                .iter_mut()
                .for_each(|planner| planner.set_ranges(ranges.clone()));
        }
        let mut changed = Vec::new();
        for key in pending.services {
            let service = self.services.store().get_key(&key);
            let slices = self.slices.store().by_index(BY_SERVICE, &key.to_string());
            let mut news = false;
            for (planner, here) in planners.iter_mut().zip(&self.here) {
                let facts = service.as_ref().map(|service| model::read(service, &slices, here));
                news |= planner.set(&key, facts.unwrap_or_default());
            }
            if news {
                changed.push(key);
            }
        }
        changed
    }
}
