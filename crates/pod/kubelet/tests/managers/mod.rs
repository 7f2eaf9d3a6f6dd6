//! Containers that have CPUs for themselves, and nodes of memory that all of a pod is to be near.

use crate::support::Node;
use keelson_kubelet::fake::STOP_SECONDS;
use keelson_kubelet::managers::Managers;
use keelson_kubelet::managers::cpus::{Place, Places};
use keelson_kubelet::managers::machine::{self, Nodes};
use keelson_kubelet::managers::topology::{Policy, Scope};
use keelson_kubelet::{Config, Host};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const STATE: &str = "/var/lib/kubelet/cpu_manager_state";

fn settings(c: &mut Config) {
    c.static_cpus = true;
    c.kube_reserved = [("cpu".to_owned(), "1".to_owned())].into();
}

fn asking(cpus: &str) -> Value {
    json!({"requests": {"cpu": cpus, "memory": "64Mi"}, "limits": {"cpu": cpus, "memory": "64Mi"}})
}

/// A pod of one container, both of this name.
fn pod(node: &Node, name: &str, resources: Value) -> String {
    node.pod_with(
        json!({"name": name}),
        json!({"containers": [{"name": name, "resources": resources}]}),
    )
}

async fn runs_on(node: &Node, container: &str, cpus: &str) {
    let what = format!("{container} runs on {cpus}");
    node.until(&what, |n| {
        let resources = n.runtime.resources(container)?;
        (resources.cpuset_cpus == cpus).then_some(())
    })
    .await;
}

fn state(node: &Node) -> Value {
    let text = node.host.read(Path::new(STATE), 1 << 20).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[tokio::test(start_paused = true)]
async fn whole_cpus_are_a_containers_own_until_it_is_gone() {
    let mut node = Node::start_with(settings).await;
    let shared = pod(&node, "shared", json!({"requests": {"cpu": "100m"}}));
    node.ready(&shared).await;
    runs_on(&node, "shared", "0-3").await;

    let own = pod(&node, "own", asking("2"));
    let pod_own = node.ready(&own).await;
    runs_on(&node, "own", "1-2").await;
    runs_on(&node, "shared", "0,3").await;
    let resources = node.runtime.resources("own").unwrap();
    // Its CPUs are its limit; the others' limits stay.
    assert_eq!((resources.cpu_quota, resources.memory_limit_in_bytes), (-1, 64 << 20));
    let uid = pod_own["metadata"]["uid"].as_str().unwrap();
    assert_eq!(
        node.host.cgroup(&format!("/kubepods/pod{uid}")).unwrap().cpu_quota,
        None
    );
    assert_eq!(state(&node)["entries"][uid]["own"], "1-2");
    assert_eq!(state(&node)["defaultCpuSet"], "0,3");

    // A part of a CPU, and what isn't guaranteed, is shared.
    let part = pod(&node, "part", asking("500m"));
    node.ready(&part).await;
    runs_on(&node, "part", "0,3").await;

    let much = pod(&node, "much", asking("2"));
    let refused = node.phase(&much, "Failed").await;
    assert_eq!(refused["status"]["reason"], "UnexpectedAdmissionError");
    assert_eq!(
        refused["status"]["message"],
        "Pod was rejected: Allocate failed due to not enough cpus available to satisfy request: requested=2, available=1, which is \
         unexpected"
    );

    // Whoever comes after knows who has what, and disturbs nobody.
    node.halt().await;
    node.resume();
    let last = pod(&node, "last", json!({}));
    node.ready(&last).await;
    runs_on(&node, "last", "0,3").await;
    runs_on(&node, "own", "1-2").await;

    node.api.delete_pod(&own, 1);
    node.gone(&own).await;
    runs_on(&node, "shared", "0-3").await;
    assert_eq!(state(&node)["entries"], Value::Null);
    let page = node.kubelet().metrics.text();
    for line in [
        "kubelet_cpu_manager_shared_pool_size_millicores 3000",
        "kubelet_cpu_manager_exclusive_cpu_allocation_count 0",
        "kubelet_cpu_manager_allocation_per_numa{numa_node=\"0\"} 0",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
}

/// Its object went while its node was away: it runs on until it is ended, on CPUs that are nobody else's so long.
#[tokio::test(start_paused = true)]
async fn the_cpus_of_who_is_gone_are_its_own_until_it_has_ended() {
    let mut node = Node::start_with(settings).await;
    let shared = pod(&node, "shared", json!({"requests": {"cpu": "100m"}}));
    node.ready(&shared).await;
    let own = node.pod_with(
        json!({"name": "own", "annotations": {STOP_SECONDS: "5"}}),
        json!({"containers": [{"name": "own", "resources": asking("2")}]}),
    );
    node.ready(&own).await;
    runs_on(&node, "shared", "0,3").await;
    node.halt().await;
    node.api.change(&own, |p| p["spec"]["nodeName"] = "elsewhere".into());
    node.resume();
    node.until("it has ended", |n| {
        let runs = n.runtime.running().iter().any(|c| c == "own");
        if runs {
            assert_eq!(n.runtime.resources("shared").unwrap().cpuset_cpus, "0,3");
        }
        (!runs).then_some(())
    })
    .await;
    runs_on(&node, "shared", "0-3").await;
    assert_eq!(state(&node)["entries"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn another_policy_than_before_is_refused_until_the_file_is_gone() {
    let node = Node::start_with(settings).await;
    let host: Arc<dyn Host> = node.host.clone();
    let cfg = Config::default();
    let metrics = Arc::default();
    let refused = Managers::new(&host, &metrics, &cfg).err().unwrap();
    assert_eq!(
        refused,
        "could not restore state from checkpoint: configured policy \"none\" differs from state checkpoint policy \"static\", please \
         drain this node and delete the CPU manager checkpoint file \"/var/lib/kubelet/cpu_manager_state\" before restarting Kubelet"
    );
    node.host.remove_file(Path::new(STATE)).unwrap();
    assert!(Managers::new(&host, &metrics, &cfg).is_ok());
    assert_eq!(state(&node)["policyName"], "none");
}

#[tokio::test(start_paused = true)]
async fn a_guaranteed_pods_cpus_are_not_resized() {
    let node = Node::start_with(settings).await;
    let own = pod(&node, "own", asking("2"));
    node.ready(&own).await;
    node.api
        .change(&own, |p| p["spec"]["containers"][0]["resources"] = asking("3"));
    let message = node
        .until("the resize is refused", |n| {
            let conditions = n.api.get(&own)?["status"]["conditions"].as_array()?.clone();
            let pending = conditions.into_iter().find(|c| c["type"] == "PodResizePending")?;
            Some(pending["message"].as_str()?.to_owned())
        })
        .await;
    assert_eq!(
        message,
        "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\""
    );
    runs_on(&node, "own", "1-2").await;
}

#[tokio::test(start_paused = true)]
async fn whose_cpus_are_its_own_gets_no_other_limit_by_a_resize() {
    let node = Node::start_with(settings).await;
    let own = pod(&node, "own", asking("2"));
    node.ready(&own).await;
    runs_on(&node, "own", "1-2").await;
    let more = json!({"cpu": "2", "memory": "128Mi"});
    node.api.change(&own, |p| {
        p["spec"]["containers"][0]["resources"] = json!({"requests": more, "limits": more});
    });
    node.until("it has more memory", |n| {
        let resources = n.runtime.resources("own")?;
        (resources.memory_limit_in_bytes == 128 << 20).then_some(())
    })
    .await;
    assert_eq!(node.runtime.resources("own").unwrap().cpu_quota, -1);
    runs_on(&node, "own", "1-2").await;
}

/// Two nodes of memory with four CPUs each.
fn two_nodes() -> Nodes {
    let node = |id: u32| machine::Node {
        id,
        cpus: Places(
            (id * 4..id * 4 + 4)
                .map(|cpu| {
                    let place = Place {
                        core: cpu,
                        socket: id,
                        numa: id,
                        uncore: id,
                    };
                    (cpu, place)
                })
                .collect(),
        ),
        memory: 4 << 30,
        distances: vec![10, 20],
        ..machine::Node::default()
    };
    Nodes(vec![node(0), node(1)])
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_cpus_are_not_near_each_other_is_refused() {
    let node = Node::start_on(two_nodes(), |c| {
        settings(c);
        c.topology = Policy::SingleNode;
    })
    .await;
    // One of the first node's is reserved.
    let pods = [("a", "3"), ("b", "1")];
    for (name, cpus) in pods {
        node.ready(&pod(&node, name, asking(cpus))).await;
    }
    runs_on(&node, "a", "1-3").await;
    runs_on(&node, "b", "4").await;
    let page = node.kubelet().metrics.text();
    let aligned = "kubelet_container_aligned_compute_resources_count{boundary=\"numa_node\",scope=\"container\"} 2";
    assert!(page.lines().any(|l| l == aligned), "{page}");
}

#[tokio::test(start_paused = true)]
async fn what_no_node_has_is_refused_by_policies_that_want_one() {
    for (policy, scope) in [(Policy::SingleNode, Scope::Container), (Policy::Restricted, Scope::Pod)] {
        let host = keelson_kubelet::host::fake::FakeHost::small("n", crate::support::epoch());
        host.set_memory_nodes(two_nodes());
        let host: Arc<dyn Host> = Arc::new(host);
        let mut cfg = Config {
            topology: policy,
            topology_scope: scope,
            ..Config::default()
        };
        settings(&mut cfg);
        let managers = Managers::new(&host, &Arc::default(), &cfg).unwrap();
        let node = Node::start().await;
        let of = |name: &str, count: usize| -> k8s_openapi::api::core::v1::Pod {
            let containers: Vec<Value> = (0..count)
                .map(|n| json!({"name": format!("c{n}"), "resources": asking("2")}))
                .collect();
            serde_json::from_value(json!({"metadata": {"uid": name, "name": name}, "spec": {"containers": containers}}))
                .unwrap()
        };
        let devices = &node.kubelet().devices;
        // Four together are on the second node, where the pod is what counts.
        managers.admit(devices, &of("two", 2)).await.unwrap();
        let has = |c: &str| managers.cpus.exclusive("two", c).unwrap().to_string();
        match scope {
            Scope::Pod => assert_eq!([has("c0"), has("c1")], ["4-5", "6-7"]),
            Scope::Container => assert_eq!([has("c0"), has("c1")], ["1-2", "4-5"]),
        }
        let three = managers.admit(devices, &of("three", 2)).await.unwrap_err();
        assert_eq!(
            (three.reason.as_str(), three.message.as_str()),
            (
                "TopologyAffinityError",
                "Pod was rejected: Resources cannot be allocated with Topology locality"
            )
        );
        managers.release("two");
        managers.release("three");
        assert_eq!(managers.cpus.of("x", "y").unwrap().to_string(), "0-7");
    }
}

/// Of each node of memory 3 GiB are for containers.
fn memory_settings(c: &mut Config) {
    c.static_memory = true;
    c.kube_reserved = [("memory".to_owned(), "2Gi".to_owned())].into();
    c.eviction = Default::default();
    c.eviction.hard.clear();
    c.reserved_memory = [0, 1]
        .map(|node| (node, [("memory".to_owned(), "1Gi".to_owned())].into()))
        .into();
}

fn bytes(memory: &str) -> Value {
    let all = json!({"cpu": "100m", "memory": memory});
    json!({"requests": all, "limits": all})
}

async fn has_memory_of(node: &Node, container: &str, nodes: &str) {
    let what = format!("{container} has memory of {nodes:?}");
    node.until(&what, |n| {
        let resources = n.runtime.resources(container)?;
        (resources.cpuset_mems == nodes).then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn memory_is_from_nodes_that_have_it_until_its_pod_is_gone() {
    const STATE: &str = "/var/lib/kubelet/memory_manager_state";
    let mut node = Node::start_on(two_nodes(), memory_settings).await;
    let state = |node: &Node| -> Value {
        let text = node.host.read(Path::new(STATE), 1 << 20).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let shared = pod(&node, "shared", json!({"requests": {"memory": "1Gi"}}));
    node.ready(&shared).await;
    has_memory_of(&node, "shared", "").await;
    let one = pod(&node, "one", bytes("2Gi"));
    let pod_one = node.ready(&one).await;
    has_memory_of(&node, "one", "0").await;
    node.ready(&pod(&node, "two", bytes("2Gi"))).await;
    has_memory_of(&node, "two", "1").await;
    let much = pod(&node, "much", bytes("2Gi"));
    let refused = node.phase(&much, "Failed").await;
    assert_eq!(
        refused["status"]["message"],
        "Pod was rejected: Allocate failed due to [memorymanager] failed to get the default NUMA affinity, no NUMA nodes with \
         enough memory is available, which is unexpected"
    );
    let uid = pod_one["metadata"]["uid"].as_str().unwrap();
    assert_eq!(state(&node)["entries"][uid]["one"][0]["size"], 2_u64 << 30);

    // Whoever comes after knows who has what.
    node.halt().await;
    node.resume();
    node.api
        .change(&one, |p| p["spec"]["containers"][0]["resources"] = bytes("1Gi"));
    let message = node
        .until("the resize is refused", |n| {
            let conditions = n.api.get(&one)?["status"]["conditions"].as_array()?.clone();
            let pending = conditions.into_iter().find(|c| c["type"] == "PodResizePending")?;
            Some(pending["message"].as_str()?.to_owned())
        })
        .await;
    assert_eq!(
        message,
        "Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\""
    );
    node.api.delete_pod(&one, 1);
    node.gone(&one).await;
    let three = pod(&node, "three", bytes("3Gi"));
    node.ready(&three).await;
    has_memory_of(&node, "three", "0").await;
    assert_eq!(state(&node)["machineState"]["0"]["memoryMap"]["memory"]["free"], 0);
}

#[tokio::test(start_paused = true)]
async fn what_an_init_container_had_alone_is_free_when_it_is_over() {
    let node = Node::start_with(settings).await;
    let own = node.pod_with(
        json!({"name": "own"}),
        json!({
            "initContainers": [{"name": "before", "command": ["sleep", "1"], "resources": asking("3")}],
            "containers": [{"name": "own", "resources": asking("1")}],
        }),
    );
    node.ready(&own).await;
    runs_on(&node, "own", "1").await;
    node.ready(&pod(&node, "shared", json!({}))).await;
    runs_on(&node, "shared", "0,2-3").await;
}

/// Somebody may look at an init container that doesn't come to its end.
#[tokio::test(start_paused = true)]
async fn who_looks_at_an_init_container_takes_nothing_from_it() {
    let node = Node::start_with(settings).await;
    let managers = &node.kubelet().managers;
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
        "metadata": {"uid": "u", "name": "p"},
        "spec": {
            "initContainers": [{"name": "before", "resources": asking("2")}],
            "containers": [{"name": "own", "resources": asking("1")}],
            "ephemeralContainers": [{"name": "looks"}],
        },
    }))
    .unwrap();
    managers.admit(&node.kubelet().devices, &pod).await.unwrap();
    for (started, has) in [("before", true), ("looks", true), ("own", false)] {
        managers.started(&pod, started);
        assert_eq!(managers.cpus.exclusive("u", "before").is_some(), has, "{started}");
    }
}
