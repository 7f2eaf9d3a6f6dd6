//! What nodes are worth by their use, on upstream's own tables (`noderesources/*_test.go`), as data: strategy, what is asked
//! for, and for each node what it has, what is used, and its score. Amounts are CPUs and bytes.
#![allow(clippy::unwrap_used)]

use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_scheduler::cluster::Cluster;
use keelson_scheduler::framework::{Cycle, Plugin};
use keelson_scheduler::plugins::resources_fit::{Kind, ResourcesFit, Strategy};
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::world::Fixed;
use serde_json::{Value, json};
use std::sync::Arc;

/// CPUs and bytes.
type Amount = (i64, i64);

struct Row {
    strategy: &'static str,
    weights: (i64, i64),
    asks: &'static [Amount],
    /// What it has, what its pods ask for, its score.
    nodes: &'static [(Amount, &'static [Amount], i64)],
}

const NONE: &[Amount] = &[];
const ASKS: &[Amount] = &[(1000, 2000), (2000, 3000)];
const SMALL: Amount = (4000, 10000);
const LARGE: Amount = (6000, 10000);
const BIG: Amount = (10000, 20000);

const fn row(
    strategy: &'static str,
    asks: &'static [Amount],
    nodes: &'static [(Amount, &'static [Amount], i64)],
) -> Row {
    Row {
        strategy,
        weights: (1, 1),
        asks,
        nodes,
    }
}

const ROWS: &[Row] = &[
    row("least", NONE, &[(SMALL, NONE, 100), (SMALL, NONE, 100)]),
    row("least", ASKS, &[(SMALL, NONE, 37), (LARGE, NONE, 50)]),
    row(
        "least",
        NONE,
        &[
            (BIG, &[(3000, 0), (3000, 0)], 70),
            (BIG, &[(3000, 0), (3000, 5000)], 57),
        ],
    ),
    row("least", ASKS, &[(BIG, &[(3000, 0)], 57), (BIG, &[(3000, 5000)], 45)]),
    row(
        "least",
        ASKS,
        &[(BIG, &[(3000, 0)], 57), ((10000, 50000), &[(3000, 5000)], 60)],
    ),
    row(
        "least",
        &[(3000, 0)],
        &[(SMALL, &[(3000, 0)], 50), (SMALL, &[(3000, 5000)], 25)],
    ),
    row(
        "least",
        NONE,
        &[((0, 0), &[(3000, 0)], 0), ((0, 0), &[(3000, 5000)], 0)],
    ),
    Row {
        weights: (1, 2),
        ..row("least", ASKS, &[(SMALL, NONE, 41), (LARGE, NONE, 50)])
    },
    row("most", NONE, &[(SMALL, NONE, 0), (SMALL, NONE, 0)]),
    row("most", ASKS, &[(SMALL, NONE, 62), (LARGE, NONE, 50)]),
    row(
        "most",
        NONE,
        &[
            (BIG, &[(3000, 0), (3000, 0)], 30),
            (BIG, &[(3000, 0), (3000, 5000)], 42),
        ],
    ),
    row("most", ASKS, &[(BIG, &[(3000, 0)], 42), (BIG, &[(3000, 5000)], 55)]),
    Row {
        weights: (1, 2),
        ..row("most", ASKS, &[(SMALL, NONE, 58), (LARGE, NONE, 50)])
    },
    row("ratio", NONE, &[(SMALL, NONE, 100), (SMALL, NONE, 100)]),
    row("ratio", ASKS, &[(SMALL, NONE, 38), (LARGE, NONE, 50)]),
    row(
        "ratio",
        NONE,
        &[(SMALL, &[(3000, 5000)], 38), (LARGE, &[(3000, 5000)], 50)],
    ),
];

fn pod(name: &str, asks: &[Amount]) -> Arc<PodInfo> {
    let container = |(i, (cpu, memory)): (usize, &Amount)| -> Value {
        let requests = json!({"cpu": cpu.to_string(), "memory": memory.to_string()});
        json!({"name": format!("c{i}"), "resources": {"requests": requests}})
    };
    let containers: Vec<_> = asks.iter().enumerate().map(container).collect();
    let pod =
        json!({"metadata": {"name": name, "uid": name, "namespace": "default"}, "spec": {"containers": containers}});
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Arc::new(PodInfo::of(Arc::new(pod)))
}

fn strategy(row: &Row) -> Strategy {
    let kind = match row.strategy {
        "least" => Kind::LeastAllocated,
        "most" => Kind::MostAllocated,
        _ => Kind::RequestedToCapacityRatio(vec![(0, 10), (100, 0)]),
    };
    Strategy {
        kind,
        resources: vec![("cpu".into(), row.weights.0), ("memory".into(), row.weights.1)],
    }
}

#[test]
fn nodes_are_worth_what_upstream_says() {
    for (at, row) in ROWS.iter().enumerate() {
        let mut cluster = Cluster::default();
        for (n, ((cpu, memory), used, _)) in row.nodes.iter().enumerate() {
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": format!("node{n}")},
                "status": {"allocatable": {"cpu": cpu.to_string(), "memory": memory.to_string(), "pods": "110"}},
            }))
            .unwrap();
            cluster.set_node(Arc::new(node));
            for (i, asks) in used.iter().enumerate() {
                let other = pod(&format!("other{n}-{i}"), std::slice::from_ref(asks));
                cluster.assume(Arc::new(other.on_node(&format!("node{n}"))));
            }
        }
        let snapshot = cluster.snapshot(Arc::new(Fixed::default()));
        let plugin = ResourcesFit {
            strategy: strategy(row),
            ..ResourcesFit::default()
        };
        let asking = pod("p", row.asks);
        let cycle = Cycle {
            pod: &asking,
            snapshot: &snapshot,
        };
        let scorer = plugin.scorer(cycle, &[]).unwrap();
        for (n, (_, _, expected)) in row.nodes.iter().enumerate() {
            let node = snapshot.node(&format!("node{n}")).unwrap();
            assert_eq!(scorer.score(node), *expected, "row {at}, node {n}");
        }
    }
}
