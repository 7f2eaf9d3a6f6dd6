//! Mirrors Endpoints that somebody made by hand, for services without a selector, into slices.

use super::fit::{Changes, Frame, Group, fit};
use super::{MANAGED_BY, SERVICE_NAME, Writer, index, watch_slices};
use crate::claim::Owner;
use crate::context::Context;
use crate::service_pods::{Family, family_of};
use crate::wire;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const CAPACITY: usize = 1000;
/// Annotations that mean something for Endpoints only.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "endpoints.kubernetes.io/last-change-trigger-time",
];
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

pub fn start(context: &Context) {
    let services = context.informer::<Service>();
    let endpoints = context.informer::<Endpoints>();
    let slices = context.informer::<EndpointSlice>();
    index(&slices);
    let controller = Controller::new("endpointslice-mirroring")
        .input(&services)
        .input(&endpoints)
        .input(&slices)
        .output(EndpointSlice::RESOURCE);
    let queue = controller.queue();
    wire::own(&services, &queue);
    wire::own(&endpoints, &queue);
    watch_slices(&slices, &queue, MANAGER);
    let rest = context.rest("endpointslicemirroring-controller");
    let writer = Writer {
        recorder: context.recorder(&rest, "endpoint-slice-mirroring-controller"),
        objects: Objects::new(&rest),
        slices,
        written: Expectations::default(),
    };
    context.run(
        controller,
        Mirror {
            services,
            endpoints,
            writer,
        },
    );
}

struct Mirror {
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    writer: Writer,
}

#[async_trait]
impl Reconcile for Mirror {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.writer.written.settle(key, self.writer.slices.store()).await?;
        let existing = self.writer.existing(key, MANAGER);
        let service = self.services.store().get_key(key);
        let endpoints = self.endpoints.store().get_key(key);
        let mirrored = endpoints.as_ref().filter(|e| is_mirrored(e, service.as_deref()));
        let Some(endpoints) = mirrored else {
            let changes = Changes {
                delete: existing,
                ..Default::default()
            };
            let subject = endpoints.unwrap_or_default();
            self.writer.apply(key, &*subject, changes).await?;
            return Ok(Outcome::Done);
        };
        let mut changes = Changes::default();
        for family in [Family::V4, Family::V6] {
            let of_family: Vec<_> = existing
                .iter()
                .filter(|s| s.address_type == family.address_type())
                .cloned()
                .collect();
            let part = fit(&frame(endpoints, family), groups(endpoints, family), &of_family, false);
            changes.create.extend(part.create);
            changes.update.extend(part.update);
            changes.delete.extend(part.delete);
        }
        self.writer.apply(key, &**endpoints, changes).await?;
        Ok(Outcome::Done)
    }
}

fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let skipped = endpoints
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(SKIP))
        .is_some_and(|v| v == "true");
    let elects = endpoints
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|a| a.contains_key(LEADER));
    !skipped && !elects && service.is_some_and(|s| s.spec.as_ref().is_some_and(|s| s.selector.is_none()))
}

fn frame(endpoints: &Endpoints, family: Family) -> Frame {
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), endpoints.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    Frame {
        meta: ObjectMeta {
            generate_name: Some(format!("{}-", endpoints.name())),
            namespace: endpoints.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![Owner::of(endpoints).reference()]),
            ..Default::default()
        },
        address_type: family.address_type().into(),
        capacity: CAPACITY,
        hinted_later: false,
    }
}

fn groups(endpoints: &Endpoints, family: Family) -> Vec<Group> {
    let mut groups = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| EndpointPort {
                name: Some(p.name.clone().unwrap_or_default()),
                port: Some(p.port),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let waiting = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        let list: Vec<Endpoint> = ready
            .chain(waiting)
            .filter(|(address, _)| family_of(&address.ip) == Some(family))
            .map(|(address, ready)| endpoint(address, ready))
            .collect();
        if !list.is_empty() {
            groups.push((ports, list));
        }
    }
    merge(groups)
}

/// Subsets with the same ports are one group.
fn merge(groups: Vec<Group>) -> Vec<Group> {
    let mut merged: Vec<Group> = Vec::new();
    for (ports, list) in groups {
        match merged.iter_mut().find(|(p, _)| *p == ports) {
            Some((_, all)) => all.extend(list),
            None => merged.push((ports, list)),
        }
    }
    merged
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}
