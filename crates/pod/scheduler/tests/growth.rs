//! What a decision costs follows what has changed since the last one and how many nodes are looked for, not how many nodes and
//! pods there are. Work is counted: nodes that are filtered, and pods whose namespace is asked for by a term.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use keelson_client::labels::Labels;
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::framework::{Cycle, NodeFilter, Plugin, Prepared, Reject};
use keelson_scheduler::ledger::Ledger;
use keelson_scheduler::node::NodeInfo;
use keelson_scheduler::plan::{Plan, Turn, plan};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::{Enabled, Profile};
use keelson_scheduler::world::{Fixed, World};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often each was asked.
#[derive(Clone, Default)]
struct Asked {
    filters: Arc<AtomicUsize>,
    namespaces: Arc<AtomicUsize>,
}

/// Counts the nodes that it is shown.
struct Counting(Arc<AtomicUsize>);

impl Plugin for Counting {
    fn name(&self) -> &'static str {
        "Counting"
    }
    fn prepare<'a>(&'a self, _: Cycle<'a>) -> Prepared<'a> {
        Prepared::Filter(Box::new(Shown(&self.0)))
    }
}

struct Shown<'a>(&'a AtomicUsize);

impl NodeFilter for Shown<'_> {
    fn filter(&self, _: &NodeInfo) -> Result<(), Reject> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A world that counts how often it is asked for a namespace: once for each pod that a term with a selector of them is held against.
struct Counted {
    world: Fixed,
    namespaces: Arc<AtomicUsize>,
}

impl World for Counted {
    fn namespace_labels(&self, name: &str) -> Option<Labels> {
        self.namespaces.fetch_add(1, Ordering::Relaxed);
        self.world.namespace_labels(name)
    }
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.world.claim(namespace, name)
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.world.volume(name)
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.world.volumes()
    }
    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.world.class(name)
    }
    fn csi_node(&self, name: &str) -> Option<Arc<CSINode>> {
        self.world.csi_node(name)
    }
    fn csi_driver(&self, name: &str) -> Option<Arc<CSIDriver>> {
        self.world.csi_driver(name)
    }
    fn capacities(&self) -> Vec<Arc<CSIStorageCapacity>> {
        self.world.capacities()
    }
    fn attachments_to(&self, node: &str) -> Vec<Arc<VolumeAttachment>> {
        self.world.attachments_to(node)
    }
    fn budgets(&self, namespace: &str) -> Vec<Arc<PodDisruptionBudget>> {
        self.world.budgets(namespace)
    }
    fn belongs_to(&self, pod: &Pod) -> Vec<LabelSelector> {
        self.world.belongs_to(pod)
    }
    fn devices(&self) -> Arc<Ledger> {
        self.world.devices()
    }
}

fn node(n: usize) -> Arc<Node> {
    let name = format!("node-{n}");
    let node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": format!("zone-{}", n % 10)}},
        "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
    });
    Arc::new(serde_json::from_value(node).unwrap())
}

/// Pods that would like to be near their like of all namespaces of a team.
fn pod(name: &str) -> Arc<PodInfo> {
    let term: Value = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"color": "blue"}},
        "namespaceSelector": {"matchLabels": {"team": "one"}}});
    let pod = json!({
        "metadata": {"name": name, "uid": name, "namespace": "perf", "labels": {"color": "blue"}},
        "spec": {
            "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}},
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "10m"}}}],
        },
    });
    Arc::new(PodInfo::of(Arc::new(serde_json::from_value(pod).unwrap())))
}

/// What one decision asks for, among so many nodes with so many pods each, after a few to begin with.
fn cost(nodes: usize, pods: usize) -> (usize, usize) {
    let asked = Asked::default();
    let mut world = Fixed::default();
    let team = Labels::from([("team".to_owned(), "one".to_owned())]);
    world.namespaces.insert("perf".into(), team);
    let world = Arc::new(Counted {
        world,
        namespaces: asked.namespaces.clone(),
    });
    let mut cluster = Cluster::default();
    (0..nodes).for_each(|n| cluster.set_node(node(n)));
    for n in 0..nodes * pods {
        cluster.assume(Arc::new(
            pod(&format!("first-{n}")).on_node(&format!("node-{}", n % nodes)),
        ));
    }
    let mut snapshot = cluster.snapshot(world);
    let mut profile = Profile::default();
    profile.plugins.push(Enabled {
        plugin: Arc::new(Counting(asked.filters.clone())),
        filters: true,
        weight: 0,
    });
    let mut turn = Turn::new(StdRng::seed_from_u64(1));
    let mut decide = |name: &str| {
        let pod = pod(name);
        cluster.update(&mut snapshot);
        match plan(&profile, &pod, &snapshot, &mut turn) {
            Plan::Bind { node, .. } => cluster.assume(Arc::new(pod.on_node(&node))),
            Plan::Wait(why) => panic!("{}", why.message()),
        }
    };
    (0..3).for_each(|n| decide(&format!("before-{n}")));
    let count = || {
        (
            asked.filters.load(Ordering::Relaxed),
            asked.namespaces.load(Ordering::Relaxed),
        )
    };
    let before = count();
    (0..10).for_each(|n| decide(&format!("p{n}")));
    let after = count();
    ((after.0 - before.0) / 10, (after.1 - before.1) / 10)
}

#[test]
fn a_decision_looks_at_as_many_nodes_as_are_enough_and_at_no_pods_that_were_there_before() {
    let (of_few, of_many) = (cost(200, 2), cost(200, 20));
    assert_eq!(
        of_few, of_many,
        "nodes filtered and pods looked at, with 400 and with 4,000 pods"
    );
    let (_, pods_looked_at) = of_many;
    assert!(
        pods_looked_at <= 4,
        "the one decided before, and the one to decide: {pods_looked_at}"
    );
    for (nodes, enough) in [(200, 100), (1000, 420), (2000, 680), (4000, 720)] {
        let (filtered, looked_at) = cost(nodes, 1);
        assert_eq!(filtered, enough, "of {nodes} nodes");
        assert_eq!(looked_at, pods_looked_at, "with {nodes} nodes");
    }
}
