//! Scenarios that are drawn: clusters of a few nodes, and pods that want this and that. Which node a pod gets is certain: profile
//! `sharp` counts a preference of nodes' names less than anything else, and every pod prefers each name by another amount.

use crate::scheduler::scenario::Scenario;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

/// How many.
pub const COUNT: u64 = 30;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
const APPS: &[&str] = &["web", "db", "cache"];
const CLASSES: &[&str] = &["negative", "low", "middle", "high", "patient"];

struct Draw(StdRng);

pub fn scenario(seed: u64) -> Scenario {
    let mut draw = Draw(StdRng::seed_from_u64(seed));
    let mut nodes = Map::new();
    for n in 0..draw.0.random_range(2..9) {
        nodes.insert(format!("n{n}"), draw.node());
    }
    let names: Vec<String> = nodes.keys().cloned().collect();
    let mut there = Vec::new();
    for node in &names {
        for _ in 0..draw.0.random_range(0..4) {
            let mut pod = draw.resident();
            pod["name"] = format!("old-{}", there.len()).into();
            pod["on"] = node.clone().into();
            there.push(pod);
        }
    }
    let pods = (0..6).map(|n| {
        let mut pod = draw.newcomer(&names);
        pod["name"] = format!("new-{n}").into();
        pod["schedulerName"] = "sharp".into();
        pod
    });
    Scenario {
        name: format!("random-{seed}"),
        pods: pods.collect(),
        nodes,
        there,
        apart: true,
        ..Scenario::default()
    }
}

impl Draw {
    fn chance(&mut self, percent: u32) -> bool {
        self.0.random_range(0..100) < percent
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.0.random_range(0..all.len())]
    }

    fn node(&mut self) -> Value {
        let room = json!({"cpu": self.of(&["1", "2", "4"]), "memory": self.of(&["2Gi", "4Gi", "8Gi"]), "pods": self.of(&["3", "6", "110"])});
        let mut node = json!({"labels": {"disk": self.of(&["ssd", "hdd"])}, "room": room});
        if self.chance(85) {
            node["zone"] = self.of(&["a", "b", "c"]).into();
        }
        if self.chance(25) {
            let effect = self.of(&["NoSchedule", "PreferNoSchedule", "NoExecute"]);
            node["taints"] = json!([{"key": "only", "value": self.of(&["x", "y"]), "effect": effect}]);
        }
        if self.chance(8) {
            node["unschedulable"] = true.into();
        }
        node
    }

    /// What every pod may have.
    fn resident(&mut self) -> Value {
        let mut pod = json!({
            "cpu": self.of(&["100m", "250m", "500m", "1", "1500m"]), "memory": self.of(&["64Mi", "500Mi", "1Gi", "2Gi"]),
            "labels": {"app": self.of(APPS), "rev": self.of(&["1", "2"])},
        });
        if self.chance(70) {
            pod["class"] = self.of(CLASSES).into();
        }
        if self.chance(12) {
            pod["ports"] = json!([{"containerPort": 80, "hostPort": 8080}]);
        }
        for sort in ["podAffinity", "podAntiAffinity"] {
            if self.chance(12) {
                pod["affinity"][sort]["requiredDuringSchedulingIgnoredDuringExecution"] = json!([self.term()]);
            }
            if self.chance(20) {
                let weighted = json!({"weight": self.0.random_range(1..101), "podAffinityTerm": self.term()});
                pod["affinity"][sort]["preferredDuringSchedulingIgnoredDuringExecution"] = json!([weighted]);
            }
        }
        pod
    }

    fn term(&mut self) -> Value {
        let mut term =
            json!({"topologyKey": self.of(&[ZONE, HOST]), "labelSelector": {"matchLabels": {"app": self.of(APPS)}}});
        if self.chance(20) {
            term[self.of(&["matchLabelKeys", "mismatchLabelKeys"])] = json!(["rev"]);
        }
        term
    }

    fn newcomer(&mut self, nodes: &[String]) -> Value {
        let mut pod = self.resident();
        if self.chance(30) {
            let operator = self.of(&["Exists", "Equal"]);
            pod["tolerations"] = json!([{"key": "only", "operator": operator}]);
            if operator == "Equal" {
                pod["tolerations"][0]["value"] = self.of(&["x", "y"]).into();
            }
            if self.chance(50) {
                pod["tolerations"][0]["effect"] = self.of(&["NoSchedule", "NoExecute"]).into();
            }
        }
        if self.chance(15) {
            pod["nodeSelector"] = json!({"disk": self.of(&["ssd", "hdd"])});
        }
        if self.chance(15) {
            let operator = self.of(&["In", "NotIn", "Exists", "DoesNotExist"]);
            let mut wants = json!({"key": ZONE, "operator": operator});
            if operator.ends_with("In") {
                wants["values"] = json!([self.of(&["a", "b"]), "c"]);
            }
            pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!({"nodeSelectorTerms": [{"matchExpressions": [wants]}]});
        }
        if self.chance(40) {
            let count = self.0.random_range(1..3);
            let keys = [ZONE, HOST];
            let spread: Vec<Value> = keys[..count].iter().map(|key| self.spread(key)).collect();
            pod["topologySpreadConstraints"] = spread.into();
        }
        pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = self.likes(nodes);
        pod
    }

    fn spread(&mut self, key: &str) -> Value {
        let when = self.of(&["DoNotSchedule", "ScheduleAnyway"]);
        let mut constraint = json!({"topologyKey": key, "whenUnsatisfiable": when, "maxSkew": self.0.random_range(1..3),
            "labelSelector": {"matchLabels": {"app": self.of(APPS)}}});
        if when == "DoNotSchedule" && self.chance(30) {
            constraint["minDomains"] = self.0.random_range(1..5i64).into();
        }
        if self.chance(30) {
            constraint["nodeAffinityPolicy"] = self.of(&["Honor", "Ignore"]).into();
        }
        if self.chance(30) {
            constraint["nodeTaintsPolicy"] = self.of(&["Honor", "Ignore"]).into();
        }
        if self.chance(20) {
            constraint["matchLabelKeys"] = json!(["rev"]);
        }
        constraint
    }

    /// Every name by another amount.
    fn likes(&mut self, nodes: &[String]) -> Value {
        let mut nodes = nodes.to_vec();
        nodes.shuffle(&mut self.0);
        let term = |(n, name): (usize, &String)| json!({"weight": 100 - 10 * n, "preference": {"matchExpressions": [{"key": HOST, "operator": "In", "values": [name]}]}});
        nodes.iter().enumerate().map(term).collect()
    }
}
