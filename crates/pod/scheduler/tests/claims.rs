//! Claims of devices in decisions: what pods name, how long they take, and what is freed for them.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Pod;
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::plan::{Plan, Turn, Why, plan};
use keelson_scheduler::plugins::dynamic_resources::{DynamicResources, NAME};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::Profile;
use keelson_scheduler::world::Fixed;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn read<T: DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// Nodes, each with so many devices.
struct Lab {
    cluster: Cluster,
    world: Fixed,
    profile: Profile,
}

fn lab(nodes: usize, devices: usize) -> Lab {
    let (mut cluster, world) = (Cluster::default(), Fixed::default());
    world
        .devices
        .class_seen(&read(json!({"metadata": {"name": "class"}, "spec": {}})));
    for n in 0..nodes {
        let name = format!("node-{n}");
        let status = json!({"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}});
        cluster.set_node(read(json!({"metadata": {"name": name}, "spec": {}, "status": status})));
        let devices: Vec<_> = (0..devices).map(|n| json!({"name": format!("device-{n}")})).collect();
        world
            .devices
            .slice_seen(&read(json!({"metadata": {"name": name}, "spec": {
                "driver": "driver", "nodeName": name, "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
                "devices": devices,
            }})));
    }
    Lab {
        cluster,
        world,
        profile: Profile::default(),
    }
}

impl Lab {
    fn configure(&mut self, f: impl FnOnce(&mut DynamicResources)) {
        f(&mut self.profile.devices);
        let mut plugins = self.profile.plugins.iter_mut();
        let enabled = plugins.find(|enabled| enabled.plugin.name() == NAME).unwrap();
        enabled.plugin = Arc::new(self.profile.devices);
    }
    fn claim(&self, count: usize, status: Value) {
        let exactly = json!({"deviceClassName": "class", "allocationMode": "ExactCount", "count": count});
        self.world.devices.claim_seen(&read(json!({
            "metadata": {"name": "claim", "namespace": "default", "uid": "claim", "resourceVersion": "1"},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": exactly}]}},
            "status": status,
        })));
    }
    fn plan(&self, names: usize) -> Plan {
        let claims: Vec<_> = (0..names)
            .map(|n| json!({"name": format!("name-{n}"), "resourceClaimName": "claim"}))
            .collect();
        let pod: Arc<Pod> = read(json!({
            "metadata": {"name": "pod", "namespace": "default", "uid": "pod"},
            "spec": {"containers": [{"name": "c", "image": "i"}], "resourceClaims": claims},
        }));
        let snapshot = self.cluster.snapshot(Arc::new(self.world.clone()));
        let mut turn = Turn::new(StdRng::seed_from_u64(1));
        plan(&self.profile, &PodInfo::of(pod), &snapshot, &mut turn)
    }
    fn why(&self, names: usize) -> Why {
        match self.plan(names) {
            Plan::Bind { node, .. } => panic!("it goes to {node}"),
            Plan::Wait(why) => why,
        }
    }
}

#[test]
fn a_claim_of_two_names_is_allocated_once() {
    let lab = lab(1, 2);
    lab.claim(1, json!({}));
    let Plan::Bind { devices, .. } = lab.plan(2) else {
        panic!("it has a node");
    };
    assert_eq!(devices.claims.len(), 1);
}

#[test]
fn who_names_too_many_claims_is_told() {
    let lab = lab(1, 1);
    lab.claim(1, json!({}));
    assert!(matches!(lab.plan(256), Plan::Bind { .. }));
    let message = lab.why(20_000).message();
    assert!(message.contains("names more than 256 resource claims"), "{message}");
}

#[test]
fn the_time_of_a_decision_is_for_all_nodes_together() {
    let mut lab = lab(30, 31);
    lab.configure(|devices| devices.filter_within = Some(Duration::from_millis(200)));
    lab.claim(32, json!({}));
    let start = Instant::now();
    let message = lab.why(1).message();
    assert!(message.contains("timed out trying to allocate devices"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn a_claim_is_freed_when_its_devices_arent_ready_in_the_time_that_is_configured() {
    let mut lab = lab(1, 1);
    let since = keelson_clock::now() - jiff::SignedDuration::from_secs(60);
    let result = json!({
        "request": "r", "driver": "driver", "pool": "node-0", "device": "device-0", "bindingConditions": ["ready"],
    });
    let allocation = json!({"allocationTimestamp": since.to_string(), "devices": {"results": [result]}});
    lab.claim(1, json!({"allocation": allocation}));
    assert!(matches!(lab.plan(1), Plan::Bind { .. }));
    lab.configure(|devices| devices.binding_within = Duration::from_secs(30));
    assert!(lab.why(1).to_free.is_some());
}

#[test]
fn a_class_stands_for_an_extended_resource_where_no_plug_in_has_it() {
    let mut lab = lab(1, 2);
    let asking = |name: &str, count: &str| {
        let pod: Arc<Pod> = read(json!({
            "metadata": {"name": "pod", "namespace": "default", "uid": "pod"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {name: count}, "limits": {name: count}}}]},
        }));
        PodInfo::of(pod)
    };
    let planned = |lab: &Lab, pod: &PodInfo| {
        let snapshot = lab.cluster.snapshot(Arc::new(lab.world.clone()));
        plan(&lab.profile, pod, &snapshot, &mut Turn::new(StdRng::seed_from_u64(1)))
    };
    let refused = |lab: &Lab, pod: &PodInfo| match planned(lab, pod) {
        Plan::Bind { node, .. } => panic!("it goes to {node}"),
        Plan::Wait(why) => why.message(),
    };
    let unknown = refused(&lab, &asking("x.io/gpu", "2"));
    assert!(unknown.contains("1 Insufficient x.io/gpu"), "{unknown}");
    lab.world.devices.class_seen(&read(
        json!({"metadata": {"name": "gpus"}, "spec": {"extendedResourceName": "x.io/gpu"}}),
    ));
    for name in ["x.io/gpu", "deviceclass.resource.kubernetes.io/gpus"] {
        let Plan::Bind { devices, .. } = planned(&lab, &asking(name, "2")) else {
            panic!("{name} fits nowhere");
        };
        let extended = devices.extended.expect(name);
        let results = extended.allocation.devices.and_then(|d| d.results).unwrap();
        assert_eq!(results.len(), 2);
        assert!(results.iter().all(|r| r.request == "container-0-request-0"));
        let mapping = &extended.mappings[0];
        assert_eq!(
            (mapping.container_name.as_str(), mapping.resource_name.as_str()),
            ("c", name)
        );
    }
    let many = refused(&lab, &asking("x.io/gpu", "3"));
    assert!(many.contains("1 cannot allocate all claims"), "{many}");

    // The node's own come first, and are counted as ever.
    let status = json!({"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110", "x.io/gpu": "1"}});
    lab.cluster.set_node(read(
        json!({"metadata": {"name": "node-0"}, "spec": {}, "status": status}),
    ));
    let Plan::Bind { devices, .. } = planned(&lab, &asking("x.io/gpu", "1")) else {
        panic!("the plug-in's fit nowhere");
    };
    assert!(devices.is_empty());
    let many = refused(&lab, &asking("x.io/gpu", "2"));
    assert!(many.contains("1 Insufficient x.io/gpu"), "{many}");
}

#[test]
fn a_claim_of_an_earlier_try_is_to_go_first() {
    let lab = lab(1, 1);
    let class = json!({"metadata": {"name": "gpus"}, "spec": {"extendedResourceName": "x.io/gpu"}});
    lab.world.devices.class_seen(&read(class));
    lab.world.devices.claim_seen(&read(json!({
        "metadata": {"name": "pod-extended-resources-x", "namespace": "default", "uid": "old", "resourceVersion": "1",
            "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "pod", "uid": "pod", "controller": true}]},
        "spec": {}, "status": {},
    })));
    let requests = json!({"requests": {"x.io/gpu": "1"}, "limits": {"x.io/gpu": "1"}});
    let pod: Arc<Pod> = read(json!({
        "metadata": {"name": "pod", "namespace": "default", "uid": "pod"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": requests}]},
    }));
    let snapshot = lab.cluster.snapshot(Arc::new(lab.world.clone()));
    let mut turn = Turn::new(StdRng::seed_from_u64(1));
    match plan(&lab.profile, &PodInfo::of(pod), &snapshot, &mut turn) {
        Plan::Bind { node, .. } => panic!("it goes to {node}"),
        Plan::Wait(why) => assert_eq!(why.to_free.unwrap().metadata.uid.as_deref(), Some("old")),
    }
}
