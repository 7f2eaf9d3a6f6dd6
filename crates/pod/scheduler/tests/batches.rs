//! Equal pods in a row use what was found for the first of them. Work is counted: nodes that are filtered.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::Pod;
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::framework::{Cycle, NodeFilter, Plugin, Prepared, Reject};
use keelson_scheduler::node::NodeInfo;
use keelson_scheduler::plan::{Plan, Turn, plan};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::{Enabled, Profile};
use keelson_scheduler::snapshot::Snapshot;
use keelson_scheduler::world::Fixed;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

struct Counting(Arc<AtomicUsize>);

impl Plugin for Counting {
    fn name(&self) -> &'static str {
        "Counting"
    }
    fn prepare<'a>(&'a self, _: Cycle<'a>) -> Prepared<'a> {
        Prepared::Filter(Box::new(Shown(&self.0)))
    }
    fn is_same(&self, _: &PodInfo, _: &PodInfo) -> bool {
        true
    }
}

struct Shown<'a>(&'a AtomicUsize);

impl NodeFilter for Shown<'_> {
    fn filter(&self, _: &NodeInfo) -> Result<(), Reject> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct Scene {
    cluster: Cluster,
    snapshot: Snapshot,
    profile: Profile,
    turn: Turn<StdRng>,
    filtered: Arc<AtomicUsize>,
    pods: usize,
}

/// Without spreading by default no two pods differ in where their like are.
fn profile() -> Profile {
    let spreading = json!({"name": "PodTopologySpread", "args": {"defaultingType": "List", "defaultConstraints": []}});
    let file = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "profiles": [{"schedulerName": "default-scheduler", "pluginConfig": [spreading]}]});
    keelson_scheduler::configuration::read(file).unwrap().profiles.remove(0)
}

fn node(n: usize) -> Value {
    json!({"metadata": {"name": format!("n{n}")}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}})
}

impl Scene {
    fn new(nodes: usize, mut profile: Profile) -> Scene {
        let filtered = Arc::new(AtomicUsize::new(0));
        // The first one sees all nodes that are looked at.
        profile.plugins.insert(
            0,
            Enabled {
                plugin: Arc::new(Counting(filtered.clone())),
                filters: true,
                weight: 0,
            },
        );
        let mut cluster = Cluster::default();
        for n in 0..nodes {
            cluster.set_node(Arc::new(serde_json::from_value(node(n)).unwrap()));
        }
        let snapshot = cluster.snapshot(Arc::new(Fixed::default()));
        Scene {
            cluster,
            snapshot,
            profile,
            turn: Turn::new(StdRng::seed_from_u64(1)),
            filtered,
            pods: 0,
        }
    }

    /// Where a pod goes, and how many nodes were looked at for it.
    fn decide(&mut self, cpu: &str, more: Value) -> (String, usize) {
        self.pods += 1;
        let name = format!("p{}", self.pods);
        let mut pod = json!({
            "metadata": {"name": name, "uid": name, "namespace": "default", "labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}]},
        });
        for (key, value) in more.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let pod = Arc::new(PodInfo::of(Arc::new(pod)));
        self.cluster.update(&mut self.snapshot);
        let before = self.filtered.load(Ordering::Relaxed);
        match plan(&self.profile, &pod, &self.snapshot, &mut self.turn) {
            Plan::Bind { node, .. } => {
                self.cluster.assume(Arc::new(pod.on_node(&node)));
                (node, self.filtered.load(Ordering::Relaxed) - before)
            }
            Plan::Wait(why) => (why.message(), self.filtered.load(Ordering::Relaxed) - before),
        }
    }
}

#[test]
fn one_search_serves_a_row_of_equal_pods() {
    let mut scene = Scene::new(1000, profile());
    let (_, first) = scene.decide("3", json!({}));
    assert_eq!(first, 420);
    let mut taken = BTreeMap::new();
    for _ in 0..200 {
        // The node that was taken, and the one proposed.
        let (node, looked_at) = scene.decide("3", json!({}));
        assert_eq!(looked_at, 2);
        *taken.entry(node).or_insert(0) += 1;
    }
    assert!(
        taken.values().all(|pods| *pods == 1),
        "there is room for one on each: {taken:?}"
    );
    assert_eq!(scene.turn.batched, 200);
}

#[test]
fn where_there_is_room_for_more_they_are_placed_as_one_by_one() {
    let uses = |profile: Profile, others: Value| {
        let mut scene = Scene::new(50, profile);
        let mut uses: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..150 {
            *uses.entry(scene.decide("1", others.clone()).0).or_default() += 1;
        }
        (
            uses.len(),
            uses.values().copied().max(),
            uses.values().copied().min(),
            scene.turn.batched,
        )
    };
    let (nodes, most, least, batched) = uses(profile(), json!({}));
    assert!(batched > 100, "{batched}");
    let (nodes_alone, most_alone, least_alone, none) = uses(Profile::default(), json!({}));
    assert_eq!(none, 0, "upstream's default spreads all pods, so that no two are equal");
    assert_eq!((nodes, most, least), (50, Some(3), Some(3)));
    assert_eq!((nodes_alone, most_alone, least_alone), (50, Some(3), Some(3)));
}

#[test]
fn what_comes_between_ends_the_row() {
    let equal = |scene: &mut Scene| scene.decide("3", json!({})).1;
    let mut scene = Scene::new(300, profile());
    let all = equal(&mut scene);
    assert!(all >= 100, "{all}");
    assert_eq!(equal(&mut scene), 2);
    // Another pod, by what it asks for, or tolerates, or where it may go.
    for (cpu, more) in [
        ("2", json!({})),
        ("3", json!({"tolerations": [{"key": "x", "operator": "Exists"}]})),
        ("3", json!({"nodeSelector": {"x": "y"}})),
        ("3", json!({"volumes": [{"name": "v", "hostPath": {"path": "/v"}}]})),
    ] {
        let (_, looked_at) = scene.decide(cpu, more.clone());
        assert!(looked_at > 2, "{more}: {looked_at}");
        assert!(equal(&mut scene) > 2, "after {more}");
        assert_eq!(equal(&mut scene), 2);
    }
    // Secrets are as good everywhere.
    let secret = |n: usize| json!({"volumes": [{"name": format!("v{n}"), "secret": {"secretName": format!("s{n}")}}]});
    assert_eq!(scene.decide("3", secret(1)).1, 2);
    assert_eq!(scene.decide("3", secret(2)).1, 2);
    // Time, and nodes that come.
    scene.turn.now += Duration::from_millis(501);
    assert!(equal(&mut scene) > 2);
    assert_eq!(equal(&mut scene), 2);
    scene
        .cluster
        .set_node(Arc::new(serde_json::from_value(node(1000)).unwrap()));
    assert!(equal(&mut scene) > 2);
}

#[test]
fn pods_that_go_by_others_are_never_equal() {
    let term = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "b"}}}]);
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "a"}}}]});
    for wish in [apart, spread] {
        let mut scene = Scene::new(200, profile());
        for _ in 0..5 {
            assert!(scene.decide("1", wish.clone()).1 >= 100, "{wish}");
        }
        assert_eq!(scene.turn.batched, 0);
    }
}

#[test]
fn a_proposal_that_wont_do_any_more_costs_a_search() {
    let mut scene = Scene::new(200, profile());
    scene.decide("3", json!({}));
    // All nodes but one are taken by somebody else meanwhile.
    for n in 0..199 {
        let other = json!({"metadata": {"name": format!("o{n}"), "uid": format!("o{n}"), "namespace": "x"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}});
        let other: Pod = serde_json::from_value(other).unwrap();
        scene
            .cluster
            .set_pod(Arc::new(PodInfo::of(Arc::new(other)).on_node(&format!("n{n}"))));
    }
    let (node, looked_at) = scene.decide("3", json!({}));
    assert!(looked_at > 2, "{looked_at}");
    assert!(node == "n199" || node.starts_with("0/200"), "{node}");
}
