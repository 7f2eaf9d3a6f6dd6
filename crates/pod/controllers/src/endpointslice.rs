//! Endpoint slices: the addresses behind each service with a selector; and mirrors of hand-made Endpoints.

mod fit;
mod hints;
mod mirror;

use crate::claim::Owner;
use crate::context::Context;
use crate::pod_control::message;
use crate::service_pods::{self, Family};
use crate::trigger_times::{TriggerTimes, tell};
use crate::{pods, wire};
use async_trait::async_trait;
use fit::{Changes, Frame, Group, fit};
use hints::{Mode, Topology};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::events::EventType::Warning;
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder,
    delete_options, is_not_found,
};
pub use mirror::start as start_mirroring;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const CAPACITY: usize = 100;
/// The index of slices by namespace, service and manager.
const BY_SERVICE: &str = "service";

pub fn index(slices: &Informer<EndpointSlice>) {
    slices.store().add_index(BY_SERVICE, |slice| {
        let label = |name: &str| {
            slice
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(name))
                .cloned()
                .unwrap_or_default()
        };
        vec![index_key(slice.namespace(), &label(SERVICE_NAME), &label(MANAGED_BY))]
    });
}

fn index_key(namespace: &str, service: &str, manager: &str) -> String {
    format!("{namespace}/{service}/{manager}")
}

/// Whatever happens to a manager's slice, its service is looked at again.
fn watch_slices(slices: &Informer<EndpointSlice>, queue: &wire::Queue, manager: &'static str) {
    let queue = queue.clone();
    slices.on_change(move |change| {
        for slice in [Some(change.object()), change.old()].into_iter().flatten() {
            let labels = slice.metadata.labels.as_ref();
            if labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == manager)
                && let Some(service) = labels.and_then(|l| l.get(SERVICE_NAME))
            {
                queue.add(ObjectKey::new(slice.namespace(), service.clone()));
            }
        }
    });
}

pub fn start(context: &Context) {
    let services = context.informer::<Service>();
    let pods = context.informer::<Pod>();
    let nodes = context.informer::<Node>();
    let slices = context.informer::<EndpointSlice>();
    index(&slices);
    let controller = Controller::new("endpointslice")
        .input(&services)
        .input(&pods)
        .input(&nodes)
        .input(&slices)
        .output(EndpointSlice::RESOURCE);
    let queue = controller.queue();
    wire::own(&services, &queue);
    service_pods::watch_pods(&pods, &services, &queue);
    watch_slices(&slices, &queue, MANAGER);
    let topology = Arc::new(Topology::default());
    watch_nodes(&nodes, &topology, &queue);
    let rest = context.rest("endpointslice-controller");
    let writer = Writer {
        recorder: context.recorder(&rest, "endpoint-slice-controller"),
        objects: Objects::new(&rest),
        slices,
        written: Expectations::default(),
    };
    context.run(
        controller,
        Slices {
            services,
            pods,
            nodes,
            topology,
            writer,
            triggers: TriggerTimes::default(),
        },
    );
}

/// What zones can bear follows their nodes; whom that leaves with too little is looked at again.
fn watch_nodes(nodes: &Informer<Node>, topology: &Arc<Topology>, queue: &wire::Queue) {
    let (known, topology, queue) = (nodes.clone(), topology.clone(), queue.clone());
    nodes.on_change(move |change| {
        let place = hints::place(change.object());
        if change.old().is_none_or(|old| hints::place(old) != place) {
            let overloaded = topology.nodes_changed(|| known.store().list());
            overloaded.into_iter().for_each(|key| queue.add(key));
        }
    });
}

/// Writes slices; shared with the mirror.
struct Writer {
    objects: Objects<EndpointSlice>,
    slices: Informer<EndpointSlice>,
    recorder: Recorder,
    written: Expectations,
}

impl Writer {
    fn existing(&self, key: &ObjectKey, manager: &str) -> Vec<Arc<EndpointSlice>> {
        let all = self
            .slices
            .store()
            .by_index(BY_SERVICE, &index_key(&key.namespace, &key.name, manager));
        all.into_iter().filter(|slice| !slice.is_deleting()).collect()
    }

    async fn apply<K: Kind>(&self, key: &ObjectKey, subject: &K, changes: Changes) -> anyhow::Result<()> {
        for slice in changes.create {
            match self.objects.create(&slice).await {
                Ok(created) => self.written.wrote(key, created.meta()),
                Err(error) if is_namespace_terminating(&error) => return Ok(()),
                Err(error) => return Err(self.fail(subject, "create", error)),
            }
        }
        for slice in changes.update {
            match self.objects.update(&slice).await {
                Ok(written) => self.written.wrote(key, written.meta()),
                Err(error) => return Err(self.fail(subject, "update", error)),
            }
        }
        for slice in changes.delete {
            match self
                .objects
                .delete(
                    slice.namespace(),
                    slice.name(),
                    &delete_options(None, Some(slice.uid()), None),
                )
                .await
            {
                Err(error) if !is_not_found(&error) => return Err(self.fail(subject, "delete", error)),
                _ => self.written.deleted(key, slice.meta()),
            }
        }
        Ok(())
    }

    fn fail<K: Kind>(&self, subject: &K, verb: &str, error: keelson_client::Error) -> anyhow::Error {
        if !keelson_client::is_conflict(&error) {
            let (ns, name) = (subject.namespace(), subject.name());
            let text = format!(
                "Error updating Endpoint Slices for Service {ns}/{name}: failed to {verb} an EndpointSlice: {}",
                message(&error)
            );
            self.recorder
                .event(subject, Warning, "FailedToUpdateEndpointSlices", text);
        }
        anyhow::Error::new(error).context(format!("failed to {verb} an endpoint slice"))
    }
}

struct Slices {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    topology: Arc<Topology>,
    writer: Writer,
    triggers: TriggerTimes,
}

#[async_trait]
impl Reconcile for Slices {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.writer.written.settle(key, self.writer.slices.store()).await?;
        let Some(service) = self.services.store().get_key(key) else {
            // The garbage collector removes the slices with their owner.
            self.writer.written.forget(key);
            self.triggers.forget(key);
            self.topology.gone(key);
            return Ok(Outcome::Done);
        };
        if !service_pods::has_selector(&service) {
            return Ok(Outcome::Done);
        }
        let pods = service_pods::selected(&self.pods, &service);
        let trigger = self.triggers.look(key, &service, &pods);
        let existing = self.writer.existing(key, MANAGER);
        let families = service_pods::families(&service);
        let mut changes = Changes::default();
        let mode = hints::mode(&service);
        let mut told = Vec::new();
        let unknown = Cell::new(false);
        for family in &families {
            let groups = groups(&service, &pods, *family, |name| {
                let node = self.nodes.store().get("", name);
                unknown.set(unknown.get() || node.is_none());
                node
            });
            let of_family: Vec<_> = existing
                .iter()
                .filter(|s| s.address_type == family.address_type())
                .cloned()
                .collect();
            let mut frame = frame(&service, *family);
            frame.hinted_later = mode == Mode::Auto;
            let mut part = fit(&frame, groups, &of_family, true);
            told.extend(match mode {
                Mode::Auto => {
                    let nodes = || self.nodes.store().list();
                    self.topology.hint(key, *family, &mut part, nodes)
                }
                _ => self.topology.forget(key, *family),
            });
            changes.create.extend(part.create);
            changes.update.extend(part.update);
            changes.delete.extend(part.delete);
        }
        let other = existing
            .into_iter()
            .filter(|s| !families.iter().any(|f| f.address_type() == s.address_type));
        changes.delete.extend(other);
        for slice in changes.create.iter_mut().chain(&mut changes.update) {
            tell(&mut slice.metadata, trigger);
        }
        self.writer.apply(key, &*service, changes).await?;
        for event in told {
            self.writer
                .recorder
                .event(&*service, event.kind, event.reason, event.message);
        }
        Ok(Outcome::Done)
    }
}

fn frame(service: &Service, family: Family) -> Frame {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    for reserved in [SERVICE_NAME, MANAGED_BY, HEADLESS] {
        labels.remove(reserved);
    }
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    Frame {
        meta: ObjectMeta {
            generate_name: Some(format!("{}-", service.name())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![Owner::of(service).reference()]),
            ..Default::default()
        },
        address_type: family.address_type().into(),
        capacity: CAPACITY,
        hinted_later: false,
    }
}

/// The endpoints of a service, by the ports they have. A pod whose node is unknown is none, unless the service wants all of
/// its pods published.
fn groups(
    service: &Service,
    pods: &[Arc<Pod>],
    family: Family,
    node: impl Fn(&str) -> Option<Arc<Node>>,
) -> Vec<Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| service_pods::is_candidate(pod, true)) {
        let node = pods::node(pod).and_then(&node);
        if node.is_none() && !service_pods::publishes_not_ready(service) {
            continue;
        }
        let addresses = service_pods::addresses(pod, family);
        if addresses.is_empty() {
            continue;
        }
        let ports = ports(service, pod);
        let key = format!("{ports:?}");
        groups
            .entry(key)
            .or_insert_with(|| (ports, Vec::new()))
            .1
            .push(endpoint(service, pod, addresses, node.as_deref()));
    }
    groups.into_values().collect()
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(service_pods::find_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(service: &Service, pod: &Pod, addresses: Vec<String>, node: Option<&Node>) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pod.is_deleting();
    let zone = node.and_then(|n| hints::place(n).1).filter(|z| !z.is_empty());
    let mut endpoint = Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(service_pods::publishes_not_ready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: service_pods::host_name(pod, service),
        node_name: pods::node(pod).map(Into::into),
        zone: zone.cloned(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
        ..Default::default()
    };
    endpoint.hints = hints::close(hints::mode(service), &endpoint);
    endpoint
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{
        Container, ContainerPort, PodCondition, PodIP, PodSpec, PodStatus, ServicePort, ServiceSpec,
    };
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    fn pod(ip: &str, port: i32, ready: bool) -> Arc<Pod> {
        Arc::new(Pod {
            spec: Some(PodSpec {
                containers: vec![Container {
                    ports: Some(vec![ContainerPort {
                        name: Some("http".into()),
                        container_port: port,
                        ..Default::default()
                    }]),
                    ..Default::default()
                }],
                node_name: Some("n".into()),
                ..Default::default()
            }),
            status: Some(PodStatus {
                pod_ip: Some(ip.into()),
                pod_ips: Some(vec![PodIP { ip: ip.into() }]),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn pods_group_by_the_number_behind_a_port_name() {
        let service = Service {
            spec: Some(ServiceSpec {
                ports: Some(vec![ServicePort {
                    port: 80,
                    target_port: Some(IntOrString::String("http".into())),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let groups = groups(
            &service,
            &[
                pod("10.0.0.1", 8080, true),
                pod("10.0.0.2", 9090, false),
                pod("10.0.0.3", 8080, true),
                pod("fd00::1", 1, true),
            ],
            Family::V4,
            |_| Some(Arc::new(Node::default())),
        );
        let shown: Vec<(Option<i32>, Vec<(&str, Option<bool>)>)> = groups
            .iter()
            .map(|(p, e)| {
                (
                    p[0].port,
                    e.iter()
                        .map(|e| (e.addresses[0].as_str(), e.conditions.as_ref().and_then(|c| c.ready)))
                        .collect(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (Some(8080), vec![("10.0.0.1", Some(true)), ("10.0.0.3", Some(true))]),
                (Some(9090), vec![("10.0.0.2", Some(false))])
            ]
        );
    }
}
