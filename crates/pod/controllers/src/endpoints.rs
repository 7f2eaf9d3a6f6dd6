//! The older form of endpoints: one object a service, with subsets by ports.

use crate::context::Context;
use crate::pod_control::message;
use crate::pods;
use crate::service_pods::{self, Family};
use crate::trigger_times::{TriggerTimes, tell};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::events::EventType::Warning;
use keelson_client::labels::Labels;
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Recorder,
    delete_options, is_not_found,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const CAPACITY: usize = 1000;

pub fn start(context: &Context) {
    let services = context.informer::<Service>();
    let pods = context.informer::<Pod>();
    let endpoints = context.informer::<Endpoints>();
    let controller = Controller::new("endpoints")
        .input(&services)
        .input(&pods)
        .input(&endpoints)
        .output(Endpoints::RESOURCE);
    let queue = controller.queue();
    let ended: Arc<Mutex<HashSet<ObjectKey>>> = Arc::default();
    {
        let (queue, ended) = (queue.clone(), ended.clone());
        services.on_change(move |change| {
            if change.is_deleted() {
                ended.lock().insert(change.object().key());
            }
            queue.add(change.object().key());
        });
    }
    service_pods::watch_pods(&pods, &services, &queue);
    // New ones, too: after a restart these may be what a service left that was deleted just before.
    endpoints.on_change(move |change| queue.add(change.object().key()));
    let rest = context.rest("endpoint-controller");
    let recorder = context.recorder(&rest, "endpoint-controller");
    context.run(
        controller,
        Maker {
            ended,
            services,
            pods,
            endpoints,
            objects: Objects::new(&rest),
            recorder,
            written: Expectations::default(),
            triggers: TriggerTimes::default(),
        },
    );
}

struct Maker {
    /// Services that were deleted and whose endpoints still have to go.
    ended: Arc<Mutex<HashSet<ObjectKey>>>,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    objects: Objects<Endpoints>,
    recorder: Recorder,
    written: Expectations,
    triggers: TriggerTimes,
}

#[async_trait]
impl Reconcile for Maker {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.written.settle(key, self.endpoints.store()).await?;
        let current = self.endpoints.store().get_key(key);
        let Some(service) = self.services.store().get_key(key) else {
            // Endpoints made by hand go with their service; those that never had one stay.
            let had_service = self.ended.lock().remove(key);
            self.triggers.forget(key);
            if let Some(current) = current.filter(|c| had_service || is_ours(c)) {
                let options = delete_options(None, Some(current.uid()), None);
                match self.objects.delete(&key.namespace, &key.name, &options).await {
                    Err(error) if !is_not_found(&error) => {
                        self.ended.lock().insert(key.clone());
                        return Err(error.into());
                    }
                    _ => self.written.forget(key),
                }
            }
            return Ok(Outcome::Done);
        };
        if !service_pods::has_selector(&service) || service.is_deleting() {
            return Ok(Outcome::Done);
        }
        let pods = service_pods::selected(&self.pods, &service);
        let trigger = self.triggers.look(key, &service, &pods);
        let Some(mut wanted) = plan(&service, &pods, current.as_deref()) else {
            return Ok(Outcome::Done);
        };
        tell(&mut wanted.metadata, trigger);
        let result = if current.is_some() {
            self.objects.update(&wanted).await
        } else {
            self.objects.create(&wanted).await
        };
        match result {
            Ok(written) => self.written.wrote(key, written.meta()),
            Err(error) if is_namespace_terminating(&error) => {}
            Err(error) => {
                let (ns, name, why) = (&key.namespace, &key.name, message(&error));
                if current.is_none() {
                    let text = format!("Failed to create endpoint for service {ns}/{name}: {why}");
                    self.recorder.event(&wanted, Warning, "FailedToCreateEndpoint", text);
                } else if !keelson_client::is_conflict(&error) {
                    let text = format!("Failed to update endpoint {ns}/{name}: {why}");
                    self.recorder.event(&wanted, Warning, "FailedToUpdateEndpoint", text);
                }
                return Err(error.into());
            }
        }
        Ok(Outcome::Done)
    }
}

/// Made by this controller, now or by an earlier version of it.
fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints
        .metadata
        .labels
        .as_ref()
        .and_then(|l| l.get(MANAGED_BY.0))
        .is_some_and(|m| m == MANAGED_BY.1)
}

/// The object as it should be, or none if it is so already.
fn plan(service: &Service, pods: &[Arc<Pod>], current: Option<&Endpoints>) -> Option<Endpoints> {
    let family = service_pods::families(service).first().copied().unwrap_or(Family::V4);
    let mut subsets = subsets(service, pods, family);
    let truncated = truncate(&mut subsets);
    let mut labels: Labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service_pods::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    let mut wanted = match current {
        Some(current) => current.clone(),
        None => Endpoints {
            metadata: ObjectMeta {
                namespace: service.metadata.namespace.clone(),
                name: service.metadata.name.clone(),
                ..Default::default()
            },
            subsets: None,
        },
    };
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    wanted.metadata.labels = Some(labels);
    let mut annotations = wanted.metadata.annotations.take().unwrap_or_default();
    if truncated {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    wanted.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    (current != Some(&wanted)).then_some(wanted)
}

/// One subset for each set of ports that some addresses have in common.
fn subsets(service: &Service, pods: &[Arc<Pod>], family: Family) -> Vec<EndpointSubset> {
    let publish = service_pods::publishes_not_ready(service);
    let ports: Vec<_> = service.spec.iter().flat_map(|s| s.ports.iter().flatten()).collect();
    // By address and readiness, the ports; then by the set of ports, the addresses.
    let mut by_ports: BTreeMap<BTreeSet<PortKey>, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| service_pods::is_candidate(pod, publish)) {
        let Some(ip) = service_pods::addresses(pod, family).into_iter().next() else {
            continue;
        };
        let mut keys = BTreeSet::new();
        for port in &ports {
            if let Some(number) = service_pods::find_port(pod, port) {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
                keys.insert((number, protocol, port.name.clone(), port.app_protocol.clone()));
            }
        }
        if keys.is_empty() && !(ports.is_empty() && service_pods::is_headless(service)) {
            continue;
        }
        let (ready, waiting) = by_ports.entry(keys).or_default();
        let list = if publish || pods::is_ready(pod) { ready } else { waiting };
        list.push(address(service, pod, ip));
    }
    by_ports
        .into_iter()
        .map(|(ports, (mut ready, mut waiting))| {
            let order = |a: &EndpointAddress, b: &EndpointAddress| a.ip.cmp(&b.ip);
            ready.sort_by(order);
            waiting.sort_by(order);
            let ports: Vec<EndpointPort> = ports
                .into_iter()
                .map(|(port, protocol, name, app_protocol)| EndpointPort {
                    port,
                    protocol: Some(protocol),
                    name,
                    app_protocol,
                })
                .collect();
            EndpointSubset {
                addresses: some(ready),
                not_ready_addresses: some(waiting),
                ports: some(ports),
            }
        })
        .collect()
}

type PortKey = (i32, String, Option<String>, Option<String>);

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn address(service: &Service, pod: &Pod, ip: String) -> EndpointAddress {
    EndpointAddress {
        ip,
        hostname: service_pods::host_name(pod, service),
        node_name: pods::node(pod).map(Into::into),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        }),
    }
}

/// Keeps at most a thousand addresses, ready ones before others; says whether any had to go.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let total: usize = subsets
        .iter()
        .map(|s| count(&s.addresses) + count(&s.not_ready_addresses))
        .sum();
    if total <= CAPACITY {
        return false;
    }
    let mut room = CAPACITY;
    let mut cut = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(items) = list {
            items.truncate(room);
            room -= items.len();
        }
        *list = list.take().filter(|l| !l.is_empty());
    };
    subsets.iter_mut().for_each(|s| cut(&mut s.addresses));
    subsets.iter_mut().for_each(|s| cut(&mut s.not_ready_addresses));
    subsets.retain(|s| s.addresses.is_some() || s.not_ready_addresses.is_some());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus, ServicePort, ServiceSpec};

    fn pod(ip: &str, ready: &str) -> Arc<Pod> {
        Arc::new(Pod {
            spec: Some(Default::default()),
            status: Some(PodStatus {
                pod_ip: Some(ip.into()),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: ready.into(),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn service(publish: bool) -> Service {
        Service {
            metadata: ObjectMeta {
                name: Some("s".into()),
                labels: Some([("a".to_string(), "b".to_string())].into()),
                ..Default::default()
            },
            spec: Some(ServiceSpec {
                cluster_ip: Some("10.96.0.7".into()),
                ports: Some(vec![ServicePort {
                    port: 80,
                    name: Some("http".into()),
                    ..Default::default()
                }]),
                publish_not_ready_addresses: Some(publish),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn ready_and_waiting_addresses() {
        let pods = [
            pod("10.0.0.2", "True"),
            pod("10.0.0.1", "True"),
            pod("10.0.0.3", "False"),
            pod("fd00::1", "True"),
        ];
        let made = plan(&service(false), &pods, None).expect("new");
        let subset = &made.subsets.as_ref().expect("some")[0];
        let ips = |l: &Option<Vec<EndpointAddress>>| l.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>();
        assert_eq!(ips(&subset.addresses), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(ips(&subset.not_ready_addresses), ["10.0.0.3"]);
        assert!(
            plan(&service(false), &pods, Some(&made)).is_none(),
            "nothing to write again"
        );
        let made = plan(&service(true), &pods, None).expect("new");
        assert_eq!(made.subsets.expect("some")[0].addresses.as_ref().map(Vec::len), Some(3));
    }

    #[test]
    fn no_pods_is_an_object_without_subsets() {
        let made = plan(&service(false), &[], None).expect("new");
        assert_eq!(made.subsets, None);
        assert_eq!(made.metadata.labels.as_ref().map(|l| l.len()), Some(2));
    }
}
