//! What monitoring reads of a node: its pages, as upstream's kubelet has them.

use crate::support::Node;
use keelson_client::Telling;
use keelson_kubelet::server::metrics::{self, cadvisor, resource};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A page without what differs from run to run.
fn settled(page: &str, pod: &Value) -> String {
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap();
    let id = id.strip_prefix("fake://").unwrap();
    let lines = page.replace(uid, "UID").replace(id, "CONTAINER");
    let timeless = lines.lines().map(|l| match l.strip_prefix('#') {
        Some(_) => format!("{l}\n"),
        // The number, and the time in milliseconds.
        None => {
            let (sample, rest) = l
                .rsplit_once('}')
                .map_or_else(|| l.split_once(' ').unwrap(), |(s, r)| (s, r));
            let close = if l.contains('{') { "}" } else { "" };
            let time = if rest.split_whitespace().count() == 2 {
                " TIME"
            } else {
                ""
            };
            format!("{sample}{close} N{time}\n")
        }
    });
    timeless.collect()
}

async fn running() -> (Node, Value) {
    let node = Node::start().await;
    let path = node.pod(json!({"containers": [{"name": "web"}]}));
    let pod = node.ready(&path).await;
    (node, pod)
}

/// Both forms in one place: whoever changes one sees what rules and dashboards will miss.
#[tokio::test(start_paused = true)]
async fn pages_of_containers_have_upstreams_form() {
    let (node, pod) = running().await;
    let kl = node.kubelet();
    let cadvisor = settled(&cadvisor::text(&kl).await.unwrap(), &pod);
    let resource = settled(&resource::text(&kl).await, &pod);
    for (got, want) in [
        (cadvisor, include_str!("cadvisor.txt")),
        (resource, include_str!("resource.txt")),
    ] {
        assert_eq!(got, want, "the page is\n{got}");
    }
}

/// kube-prometheus' rules select containers by `image!=""`, and pods by labels that every series has.
#[tokio::test(start_paused = true)]
async fn containers_have_the_labels_that_rules_select_by() {
    let (node, pod) = running().await;
    let page = cadvisor::text(&node.kubelet()).await.unwrap();
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let line = |name: &str| {
        let of_container = |l: &&str| l.starts_with(&format!("{name}{{container=\"web\""));
        page.lines()
            .find(of_container)
            .unwrap_or_else(|| panic!("no {name} in\n{page}"))
    };
    for name in [
        "container_cpu_usage_seconds_total",
        "container_cpu_cfs_throttled_periods_total",
        "container_memory_working_set_bytes",
        "container_memory_rss",
    ] {
        let line = line(name);
        for label in [
            format!("id=\"/kubepods/besteffort/pod{uid}/"),
            "image=\"busybox:1\"".into(),
            "namespace=\"default\"".into(),
            "pod=\"p\"".into(),
        ] {
            assert!(line.contains(&label), "{label} is not in {line}");
        }
    }
    assert!(line("container_cpu_usage_seconds_total").contains("cpu=\"total\""));
}

/// Name and type, and labels, of each family on a page.
fn families(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    let mut current = String::new();
    for line in page.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            current = head.to_owned();
            all.insert(current.clone(), BTreeSet::new());
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let names = labels.split("\",").filter_map(|l| l.split_once("=\"")).map(|(n, _)| n);
            let names = names.filter(|n| *n != "le").map(str::to_owned);
            all.get_mut(&current).unwrap().extend(names);
        }
    }
    all
}

#[tokio::test(start_paused = true)]
async fn the_kubelets_own_families_are_upstreams() {
    let node = Node::start_with(|settings| {
        settings.telling = Some(Telling {
            host: "10.0.0.1:6443".into(),
            ..Telling::default()
        });
    })
    .await;
    let path = node.pod(json!({"containers": [{"name": "web"}]}));
    node.ready(&path).await;
    let kl = node.kubelet();
    // What didn't happen on this node has no sample otherwise.
    let m = &kl.metrics;
    for quiet in [
        &m.evictions,
        &m.rejections,
        &m.images_collected,
        &m.run_sandbox_errors,
        &m.operation_errors,
    ] {
        quiet.with_label_values(&["x"]);
    }
    m.started_containers_errors.with_label_values(&["container", "x"]);
    m.terminated.with_label_values(&["container", "1", "Error"]);
    m.managers.cpu_by_node.with_label_values(&["0"]);
    m.managers.aligned.with_label_values(&["pod", "numa_node"]);
    m.managers.unaligned.with_label_values(&["pod", "numa_node"]);
    let request = ["GET", "pods", "readwrite", "false"];
    m.requests.with_label_values(&request);
    m.requests_inflight.with_label_values(&request);
    m.request_durations.with_label_values(&request);
    let page = metrics::kubelet(&kl).await;
    let found = families(&page);
    for line in include_str!("kubelet.txt").lines() {
        let (family, labels) = line.split_once(" | ").unwrap_or((line, ""));
        let has = found
            .get(family)
            .unwrap_or_else(|| panic!("{family} is not in\n{page}"));
        let has: Vec<&str> = has.iter().map(String::as_str).collect();
        assert_eq!(has.join(" "), labels, "{family}");
    }
    let counted = |start: &str| page.lines().any(|l| l.starts_with(start) && !l.ends_with(" 0"));
    for start in [
        "kubelet_started_pods_total ",
        "kubelet_started_containers_total{container_type=\"container\"} ",
        "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} ",
        "kubelet_pod_start_duration_seconds_count ",
        "kubelet_running_pods ",
        "process_resident_memory_bytes ",
        "rest_client_requests_total{code=\"200\",host=\"10.0.0.1:6443\",method=\"GET\"} ",
        "rest_client_response_size_bytes_sum{host=\"10.0.0.1:6443\",verb=\"GET\"} ",
    ] {
        assert!(counted(start), "{start}is not counted in\n{page}");
    }
}

/// What work on volumes takes by plug-in, and how many are wanted and there.
#[tokio::test(start_paused = true)]
async fn volumes_are_counted_by_plug_in() {
    let node = Node::start().await;
    let path = node.pod(json!({
        "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}, {"name": "unused", "emptyDir": {}}],
        "containers": [{"name": "web", "volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/b"}]}],
    }));
    node.ready(&path).await;
    let page = metrics::kubelet(&node.kubelet()).await;
    for line in [
        "volume_manager_total_volumes{plugin_name=\"kubernetes.io/empty-dir\",state=\"actual_state_of_world\"} 2",
        "volume_manager_total_volumes{plugin_name=\"kubernetes.io/empty-dir\",state=\"desired_state_of_world\"} 2",
        "storage_operation_duration_seconds_count{migrated=\"false\",operation_name=\"volume_mount\",status=\"success\",volume_plugin=\"kubernetes.io/empty-dir\"} 2",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
}
