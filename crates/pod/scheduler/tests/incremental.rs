//! A picture that is kept up to date says what one made anew says, and so do decisions on it: after random events, for pods that
//! ask for everything that is counted. `SEED=N` repeats a run.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::plan::{Plan, Turn, plan};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::profile::Profile;
use keelson_scheduler::snapshot::Snapshot;
use keelson_scheduler::world::Fixed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::sync::Arc;

const ZONES: &[&str] = &["a", "b", "c"];
const APPS: &[&str] = &["web", "db", "batch"];
const NAMESPACES: &[&str] = &["one", "two"];

struct Random {
    rng: StdRng,
    made: usize,
}

impl Random {
    fn one<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.rng.random_range(0..of.len())]
    }
    fn chance(&mut self, percentage: u32) -> bool {
        self.rng.random_range(0..100) < percentage
    }

    fn node(&mut self, name: &str) -> Arc<Node> {
        let mut labels = json!({"kubernetes.io/hostname": name});
        if self.chance(85) {
            labels["topology.kubernetes.io/zone"] = json!(self.one(ZONES));
        }
        if self.chance(50) {
            labels["disk"] = json!(self.one(&["ssd", "tape"]));
        }
        let mut spec = json!({"unschedulable": self.chance(10)});
        if self.chance(30) {
            spec["taints"] = json!([{"key": "k", "effect": self.one(&["NoSchedule", "PreferNoSchedule"])}]);
        }
        let node = json!({
            "metadata": {"name": name, "labels": labels}, "spec": spec,
            "status": {
                "allocatable": {"cpu": self.one(&["2", "4"]), "memory": "8Gi", "pods": "8"},
                "images": [{"names": [self.one(&["i:1", "j:1"])], "sizeBytes": 300_000_000}],
            },
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn term(&mut self) -> Value {
        let mut term = json!({
            "topologyKey": self.one(&["kubernetes.io/hostname", "topology.kubernetes.io/zone", "disk"]),
            "labelSelector": {"matchLabels": {"app": self.one(APPS)}},
        });
        match self.rng.random_range(0..4) {
            0 => term["namespaces"] = json!(NAMESPACES),
            1 => term["namespaceSelector"] = json!({"matchLabels": {"team": self.one(&["red", "blue"])}}),
            2 => {
                term["labelSelector"] =
                    json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]})
            }
            _ => {}
        }
        term
    }

    fn affinity(&mut self) -> Value {
        let mut affinity = json!({});
        for kind in ["podAffinity", "podAntiAffinity"] {
            if self.chance(15) {
                let count = self.rng.random_range(1..3);
                let terms: Vec<_> = (0..count).map(|_| self.term()).collect();
                affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"] = json!(terms);
            }
            if self.chance(20) {
                let weighted = json!([{"weight": self.rng.random_range(1..100), "podAffinityTerm": self.term()}]);
                affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"] = weighted;
            }
        }
        affinity
    }

    fn spread(&mut self) -> Value {
        let mut constraints = Vec::new();
        for key in ["kubernetes.io/hostname", "topology.kubernetes.io/zone"] {
            if self.chance(30) {
                let mut constraint = json!({
                    "maxSkew": self.rng.random_range(1..3), "topologyKey": key,
                    "whenUnsatisfiable": self.one(&["DoNotSchedule", "ScheduleAnyway"]),
                    "labelSelector": {"matchLabels": {"app": self.one(APPS)}},
                });
                if self.chance(30) {
                    constraint["nodeTaintsPolicy"] = json!("Honor");
                }
                if self.chance(20) && constraint["whenUnsatisfiable"] == "DoNotSchedule" {
                    constraint["minDomains"] = json!(3);
                }
                constraints.push(constraint);
            }
        }
        json!(constraints)
    }

    fn pod(&mut self) -> Arc<PodInfo> {
        self.made += 1;
        let name = format!("p{}", self.made);
        let mut spec = json!({
            "priority": self.rng.random_range(0..3),
            "containers": [{"name": "c", "image": self.one(&["i:1", "j:1"]),
                "resources": {"requests": {"cpu": self.one(&["100m", "500m", "1"])}}}],
            "affinity": self.affinity(),
            "topologySpreadConstraints": self.spread(),
        });
        if self.chance(20) {
            spec["nodeSelector"] = json!({"disk": "ssd"});
        }
        if self.chance(30) {
            spec["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
        }
        if self.chance(20) {
            spec["containers"][0]["ports"] = json!([{"containerPort": 1, "hostPort": self.rng.random_range(80..83)}]);
        }
        let mut metadata = json!({
            "name": name, "uid": name, "namespace": self.one(NAMESPACES), "labels": {"app": self.one(APPS)},
        });
        if self.chance(10) {
            metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
        Arc::new(PodInfo::of(Arc::new(pod)))
    }
}

/// One thing that happens.
fn happen(random: &mut Random, cluster: &mut Cluster, placed: &mut Vec<Arc<PodInfo>>) {
    let name = format!("n{}", random.rng.random_range(0..12));
    match random.rng.random_range(0..20) {
        0..=3 => cluster.set_node(random.node(&name)),
        4 => cluster.remove_node(&name),
        5..=7 if !placed.is_empty() => {
            let at = random.rng.random_range(0..placed.len());
            cluster.remove_pod(placed.swap_remove(at).uid());
        }
        // The API shows it as it is now: with other labels, it may be.
        8..=9 if !placed.is_empty() => {
            let at = random.rng.random_range(0..placed.len());
            let old = &placed[at];
            let mut pod = (*old.pod).clone();
            pod.metadata.labels = Some([("app".to_owned(), random.one(APPS).to_owned())].into());
            pod.spec.as_mut().unwrap().node_name = old.node_name().map(str::to_owned);
            let new = Arc::new(PodInfo::of(Arc::new(pod)));
            cluster.set_pod(new.clone());
            placed[at] = new;
        }
        10 => {
            let pod = random.pod();
            cluster.nominate(pod, &name);
        }
        11 if !placed.is_empty() => cluster.forget(placed[0].uid()),
        _ => {
            let pod = Arc::new(random.pod().on_node(&name));
            cluster.assume(pod.clone());
            placed.push(pod);
        }
    }
}

fn world() -> Fixed {
    let labels = |team: &str| [("team".to_owned(), team.to_owned())].into();
    Fixed {
        namespaces: [("one".to_owned(), labels("red")), ("two".to_owned(), labels("blue"))].into(),
        selectors: vec![serde_json::from_value(json!({"matchLabels": {"app": "web"}})).unwrap()],
        ..Fixed::default()
    }
}

fn decision(pod: &PodInfo, snapshot: &Snapshot, seed: u64, start: usize) -> (String, usize) {
    let mut turn = Turn::new(StdRng::seed_from_u64(seed));
    turn.start = start;
    let plan = plan(&Profile::default(), pod, snapshot, &mut turn);
    let text = match &plan {
        Plan::Bind { node, .. } => format!("on {node}"),
        Plan::Wait(why) => format!("{} {why:?}", why.message()),
    };
    (text, turn.start)
}

#[test]
fn a_name_that_moved_to_another_place_is_found() {
    let mut random = Random {
        rng: StdRng::seed_from_u64(1),
        made: 0,
    };
    let mut cluster = Cluster::default();
    for name in ["a", "b"] {
        cluster.set_node(random.node(name));
    }
    let mut kept = cluster.snapshot(Arc::new(world()));
    cluster.remove_node("b");
    cluster.remove_node("a");
    // In a's place, while the one it had before is looked at later.
    cluster.set_node(random.node("b"));
    cluster.update(&mut kept);
    assert_eq!(kept.node("b").map(|node| node.index), Some(0));
    assert!(kept.node("a").is_none());
}

#[test]
fn what_is_kept_up_to_date_is_as_if_made_anew() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let mut random = Random {
        rng: StdRng::seed_from_u64(seed),
        made: 0,
    };
    let world = Arc::new(world());
    for _ in 0..6 {
        let (mut cluster, mut placed) = (Cluster::default(), Vec::new());
        let mut kept = cluster.snapshot(world.clone());
        let mut asking: Vec<_> = (0..12).map(|_| random.pod()).collect();
        for step in 0..60 {
            for _ in 0..random.rng.random_range(1..=10) {
                happen(&mut random, &mut cluster, &mut placed);
            }
            cluster.update(&mut kept);
            let anew = cluster.snapshot(world.clone());
            assert_eq!(kept.order(), anew.order(), "SEED={seed}, step {step}");
            for name in (0..12).map(|n| format!("n{n}")) {
                let index = |snapshot: &Snapshot| snapshot.node(&name).map(|node| (node.index, node.name().to_owned()));
                assert_eq!(index(&kept), index(&anew), "SEED={seed}, step {step}: {name}");
            }
            let at = random.rng.random_range(0..asking.len());
            asking[at] = random.pod();
            for pod in &asking {
                let (choice, start) = (random.rng.random(), random.rng.random_range(0..20));
                let (one, other) = (decision(pod, &kept, choice, start), decision(pod, &anew, choice, start));
                assert!(
                    one == other,
                    "SEED={seed}, step {step}: {:#?}\nkept: {one:?}\nanew: {other:?}",
                    pod.pod
                );
            }
        }
    }
}
