//! What an event costs doesn't grow with what there is. Work is counted, not timed: objects that components have looked at in their
//! local copies, and turns of a runtime that has other things to do.

use keelson_client::Patch;
use keelson_client::store::looked_at;
use keelson_testkit::objects::{
    ApiObject, Node, Pod, PodDisruptionBudget, ReplicaSet, Service, ServiceAccount, node_of,
};
use keelson_testkit::{Cluster, secs};
use serde_json::{Value, json};
use std::cell::Cell;

/// An object is looked at a few times by each controller that it concerns; beyond that, what is there isn't.
const SLACK: u64 = 8;

async fn create<K: keelson_client::Kind>(cluster: &Cluster, object: Value) {
    let object = K::decode(object.to_string().as_bytes()).expect("an object");
    cluster.objects().create(&object).await.expect("it is created");
}

fn pod(name: &str, app: &str, finished: bool) -> Value {
    let phase = if finished { "Succeeded" } else { "Running" };
    json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app, "tier": "all"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": phase},
    })
}

async fn say(cluster: &Cluster, name: &str, status: Value) {
    let body = json!({"status": status});
    let patched = cluster
        .objects::<Pod>()
        .patch_status("default", name, Patch::Strategic(&body))
        .await;
    patched.expect("the status is written");
}

fn ready(word: &str) -> Value {
    json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "podIP": "10.0.0.1",
        "conditions": [{"type": "Ready", "status": word}]})
}

async fn takes_pods(cluster: &Cluster) {
    let there = |_: &ServiceAccount| true;
    cluster.until("default", "default", secs(10), "is there", there).await;
}

/// What was looked at until all is quiet after a step.
async fn cost(cluster: &Cluster, step: impl Future<Output = ()>) -> u64 {
    let before = looked_at();
    step.await;
    cluster.sleep(secs(5)).await;
    looked_at() - before
}

/// The costs of one change each in a cluster with so many services, budgets, pods of other kinds, and pods of one set.
async fn costs(size: usize) -> Vec<(&'static str, u64)> {
    let cluster = Cluster::builder().without_scheduler().start().await;
    takes_pods(&cluster).await;
    for n in 0..size {
        let (app, name) = (format!("app-{n}"), format!("p{n}"));
        let meta = json!({"name": app, "namespace": "default"});
        let ports = json!([{"port": 80}]);
        create::<Service>(
            &cluster,
            json!({"metadata": meta, "spec": {"selector": {"app": app}, "ports": ports}}),
        )
        .await;
        create::<PodDisruptionBudget>(
            &cluster,
            json!({"metadata": meta, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": app}}}}),
        )
        .await;
        create::<Pod>(&cluster, pod(&name, &app, false)).await;
        create::<Pod>(&cluster, pod(&format!("done-{n}"), "done", true)).await;
        say(&cluster, &format!("done-{n}"), json!({"phase": "Succeeded"})).await;
    }
    let template =
        json!({"metadata": {"labels": {"set": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let set = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": size, "selector": {"matchLabels": {"set": "web"}}, "template": template},
    });
    create::<ReplicaSet>(&cluster, set).await;
    let count = i32::try_from(size).expect("a small number");
    let whole = |set: &ReplicaSet| set.status.as_ref().is_some_and(|s| s.replicas == count);
    cluster.until("default", "web", secs(60), "has its pods", whole).await;
    cluster.sleep(secs(5)).await;
    let pods = cluster.list::<Pod>("default").await;
    let of_set = pods.iter().find(|p| p.name().starts_with("web-")).expect("a pod");
    let mut costs = Vec::new();
    let mut note = |what, cost| costs.push((what, cost));
    note(
        "a pod of a service and a budget becomes ready",
        cost(&cluster, say(&cluster, "p1", ready("True"))).await,
    );
    note(
        "a pod of a set becomes ready",
        cost(&cluster, say(&cluster, of_set.name(), ready("True"))).await,
    );
    let seen: ReplicaSet = cluster.get("default", "web").await;
    assert_eq!(seen.status.and_then(|s| s.ready_replicas), Some(1), "it was counted");
    note(
        "a pod ends",
        cost(&cluster, say(&cluster, "p2", json!({"phase": "Succeeded"}))).await,
    );
    note(
        "a pod comes",
        cost(&cluster, create::<Pod>(&cluster, pod("late", "app-3", false))).await,
    );
    note(
        "a pod of a set goes",
        cost(&cluster, cluster.delete::<Pod>("default", of_set.name(), None)).await,
    );
    let made: ReplicaSet = cluster.get("default", "web").await;
    assert_eq!(made.status.map(|s| s.replicas), Some(count), "another took its place");
    costs
}

#[tokio::test(start_paused = true)]
async fn a_pods_change_costs_the_same_among_many() {
    let (few, many) = (costs(12).await, costs(48).await);
    for ((what, few), (_, many)) in few.iter().zip(&many) {
        println!("{what}: {few} objects among 12, {many} among 48");
    }
    for ((what, few), (_, many)) in few.iter().zip(&many) {
        assert!(
            *many <= few + SLACK,
            "{what}: {few} objects were looked at among 12, {many} among 48"
        );
    }
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "a"}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}})
}

async fn node_says(cluster: &Cluster, name: &str, word: &str) {
    let condition = json!({"type": "Ready", "status": word, "lastHeartbeatTime": "2030-01-01T00:00:00Z"});
    let body = json!({"status": {"conditions": [condition]}});
    let patched = cluster
        .objects::<Node>()
        .patch_status("", name, Patch::Strategic(&body))
        .await;
    patched.expect("the status is written");
}

/// What a node costs that comes and becomes ready when so many are there, a third of them silent.
async fn cost_of_a_node(size: usize) -> u64 {
    let cluster = Cluster::builder().start().await;
    for n in 0..size {
        let name = format!("n{n}");
        create::<Node>(&cluster, node(&name)).await;
        node_says(&cluster, &name, if n % 3 == 0 { "False" } else { "True" }).await;
    }
    cluster.sleep(secs(2)).await;
    let another = async {
        create::<Node>(&cluster, node("another")).await;
        node_says(&cluster, "another", "False").await;
        node_says(&cluster, "another", "True").await;
    };
    cost(&cluster, another).await
}

#[tokio::test(start_paused = true)]
async fn a_nodes_coming_costs_the_same_among_many() {
    let (few, many) = (cost_of_a_node(12).await, cost_of_a_node(48).await);
    println!("{few} objects among 12 nodes, {many} among 48");
    assert!(
        many <= few + SLACK,
        "{few} objects were looked at among 12 nodes, {many} among 48"
    );
}

/// A decision for each turn of a runtime that is busy with requests is a decision for dozens of them.
#[tokio::test(start_paused = true)]
async fn decisions_dont_wait_for_a_turn_each() {
    const PODS: usize = 300;
    let mut cluster = Cluster::builder().controllers(&["serviceaccount"]).start().await;
    takes_pods(&cluster).await;
    create::<Node>(&cluster, node("large")).await;
    let room = json!({"status": {"allocatable": {"cpu": "400", "memory": "8Gi", "pods": "1000"}}});
    let patched = cluster
        .objects::<Node>()
        .patch_status("", "large", Patch::Merge(&room))
        .await;
    patched.expect("the status is written");
    let _: Node = cluster.patch("", "large", json!({"spec": {"taints": null}})).await;
    cluster.kill_scheduler();
    for n in 0..PODS {
        create::<Pod>(&cluster, pod(&format!("p{n}"), "a", false)).await;
    }
    let turns = Cell::new(0usize);
    // Others are always busy, within bounds: should anything wait for a timer, no time passes meanwhile.
    let busy = async {
        while turns.get() < 100 * PODS {
            turns.set(turns.get() + 1);
            tokio::task::yield_now().await;
        }
    };
    cluster.start_scheduler();
    let last = format!("p{}", PODS - 1);
    let bound = |pod: &Pod| !node_of(pod).is_empty();
    let last_bound = cluster.until("default", &last, secs(60), "has a node", bound);
    tokio::select! {
        () = busy => panic!("not bound after {} turns", turns.get()),
        _ = last_bound => {}
    }
    println!("{} turns for {PODS} pods", turns.get());
    assert!(turns.get() < PODS, "{} turns for {PODS} pods", turns.get());
    // Bindings end in any order; the last decision came after all others.
    let all = |pods: &[Pod]| pods.iter().all(bound).then_some(());
    cluster.until_all("default", secs(60), "all have a node", all).await;
}
