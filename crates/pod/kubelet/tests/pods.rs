//! The whole kubelet over a fake runtime, a fake machine and virtual time.
#![allow(clippy::unwrap_used)]

mod devices;
mod fakes;
mod images;
mod managers;
mod metrics;
mod pods_api;
mod shutdown;
mod support;
mod volumes;

use serde_json::json;
use std::time::Duration;
use support::{Node, condition};
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn the_node_registers_and_keeps_its_lease() {
    let node = Node::start().await;
    let ready = node
        .until("the node is ready", |n| {
            let node = n.api.get("nodes/n1")?;
            (condition(&node, "Ready") == "True").then_some(node)
        })
        .await;
    assert_eq!(ready["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(ready["status"]["allocatable"]["pods"], "110");
    assert_eq!(ready["status"]["nodeInfo"]["containerRuntimeVersion"], "fake://1.0");
    let lease = "coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let first = node.until("there is a lease", |n| n.api.get(lease)).await["spec"]["renewTime"].clone();
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_ne!(node.api.get(lease).unwrap()["spec"]["renewTime"], first);
}

/// Requests that wait for their rate must not make a node look dead.
#[tokio::test(start_paused = true)]
async fn the_nodes_state_is_told_at_once_however_slow_requests_may_be() {
    let node = Node::start_with(|c| {
        c.api_rate.per_second = Some(1);
        c.api_rate.burst = Some(1);
    })
    .await;
    let ready = |n: &Node| (condition(&n.api.get("nodes/n1")?, "Ready") == "True").then_some(());
    node.until("the node is ready", ready).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    for n in 0..40 {
        node.pod_with(
            json!({"name": format!("p{n}")}),
            json!({"containers": [{"name": "c", "image": "one:1"}]}),
        );
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    // As the controller writes it of a node that is silent.
    node.api.change("nodes/n1", |n| {
        let conditions = n["status"]["conditions"].as_array_mut().unwrap();
        let ready = conditions.iter_mut().find(|c| c["type"] == "Ready").unwrap();
        ready["status"] = "Unknown".into();
    });
    let began = Instant::now();
    node.until("the node is ready again", ready).await;
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}

/// Pods are told of what is left for them, and held to it; the margin of evictions is theirs.
#[tokio::test(start_paused = true)]
async fn what_is_reserved_is_kept_from_pods() {
    use keelson_kubelet::Host;
    let node = Node::start_with(|c| {
        let amounts = [("cpu", "200m"), ("memory", "64Mi"), ("pid", "100")];
        c.kube_reserved = amounts.map(|(k, v)| (k.into(), v.into())).into();
    })
    .await;
    let machine = node.host.machine().unwrap();
    let all = node.host.cgroup("/kubepods").unwrap();
    assert_eq!(all.memory, Some(machine.memory as i64 - (64 << 20)));
    assert_eq!(all.pids, Some(machine.max_pids - 100));
    let allocatable = node.api.get("nodes/n1").unwrap()["status"]["allocatable"].clone();
    let left = (machine.memory >> 20) - 64 - 100;
    assert_eq!(allocatable["memory"], format!("{left}Mi"));
    assert_eq!(allocatable["cpu"], format!("{}m", machine.cpus * 1000 - 200));
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_deleted() {
    let node = Node::start().await;
    let path = node.pod(json!({"containers": [{"name": "web", "env": [{"name": "A", "value": "b"}]}]}));
    let pod = node.ready(&path).await;
    let status = &pod["status"];
    assert_eq!(
        (status["phase"].as_str(), status["qosClass"].as_str()),
        (Some("Running"), Some("BestEffort"))
    );
    assert!(status["podIP"].as_str().unwrap().starts_with("10.244.0."));
    assert_eq!(status["podIPs"][0]["ip"], status["podIP"]);
    assert_eq!(
        (status["hostIP"].as_str(), status["observedGeneration"].as_i64()),
        (Some("192.168.0.1"), Some(1))
    );
    let container = &status["containerStatuses"][0];
    assert!(container["containerID"].as_str().unwrap().starts_with("fake://"));
    assert_eq!(
        (container["ready"].as_bool(), container["started"].as_bool()),
        (Some(true), Some(true))
    );
    for kind in [
        "PodReadyToStartContainers",
        "Initialized",
        "ContainersReady",
        "PodScheduled",
    ] {
        assert_eq!(condition(&pod, kind), "True", "{kind}");
    }
    let env: Vec<String> = node
        .runtime
        .config("web")
        .unwrap()
        .envs
        .into_iter()
        .map(|e| e.key)
        .collect();
    assert!(env.contains(&"A".into()) && env.contains(&"KUBERNETES_SERVICE_HOST".into()));
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    assert!(node.host.cgroup(&format!("/kubepods/besteffort/pod{uid}")).is_some());
    node.api.delete_pod(&path, 30);
    node.gone(&path).await;
    node.until("nothing is left in the runtime", |n| {
        (n.runtime.counts() == (0, 0)).then_some(())
    })
    .await;
    assert!(node.host.cgroup(&format!("/kubepods/besteffort/pod{uid}")).is_none());
    let reasons: Vec<String> = node.events().into_iter().map(|(r, _)| r).collect();
    for reason in ["Pulling", "Pulled", "Created", "Started", "Killing"] {
        assert!(reasons.iter().any(|r| r == reason), "{reason} in {reasons:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_runs_to_its_end_succeeds_or_fails() {
    let node = Node::start().await;
    let good = node.pod_with(
        json!({"name": "good"}),
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "command": ["sleep", "5"]}]}),
    );
    let bad = node.pod_with(
        json!({"name": "bad"}),
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "command": ["sh", "-c", "sleep 1; exit 3"]}]}),
    );
    let pod = node.phase(&good, "Succeeded").await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    let ready = pod["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Ready")
        .unwrap()
        .clone();
    assert_eq!(
        (ready["status"].as_str(), ready["reason"].as_str()),
        (Some("False"), Some("PodCompleted"))
    );
    let pod = node.phase(&bad, "Failed").await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        3
    );
}

#[tokio::test(start_paused = true)]
async fn a_container_that_keeps_failing_backs_off() {
    let node = Node::start().await;
    let path = node.pod(json!({"containers": [{"name": "c", "command": ["sh", "-c", "sleep 1; exit 1"]}]}));
    let begin = Instant::now();
    let mut times = Vec::new();
    for restarts in 1..=4 {
        node.until("it restarted", |n| {
            n.api
                .get(&path)
                .filter(|p| p["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(restarts))
        })
        .await;
        times.push(begin.elapsed().as_secs());
    }
    let gaps: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(
        gaps[0] >= 10 && gaps[0] <= 12 && gaps[1] >= 20 && gaps[1] <= 23 && gaps[2] >= 40 && gaps[2] <= 44,
        "{times:?}"
    );
    let pod = node
        .until("it waits", |n| {
            n.api
                .get(&path)
                .filter(|p| !p["status"]["containerStatuses"][0]["state"]["waiting"].is_null())
        })
        .await;
    let c = &pod["status"]["containerStatuses"][0];
    assert_eq!(c["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert!(
        c["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 1m20s restarting failed container=c pod=p_default("),
        "{c}"
    );
    assert_eq!(c["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(pod["status"]["phase"], "Running");
}

#[tokio::test(start_paused = true)]
async fn init_containers_and_sidecars_go_in_order() {
    let node = Node::start().await;
    let path = node.pod(json!({
        "initContainers": [{"name": "first", "command": ["sleep", "3"]}, {"name": "side", "restartPolicy": "Always"}, {"name": "second", "command": ["sleep", "2"]}],
        "containers": [{"name": "main"}]}));
    let pod = node
        .until("the first runs", |n| {
            n.api
                .get(&path)
                .filter(|p| !p["status"]["initContainerStatuses"][0]["state"]["running"].is_null())
        })
        .await;
    assert_eq!(condition(&pod, "Initialized"), "False");
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    let pod = node.ready(&path).await;
    let names: Vec<&str> = pod["status"]["initContainerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["first", "side", "second"]);
    assert_eq!(pod["status"]["initContainerStatuses"][1]["ready"], true);
    let mut running = node.runtime.running();
    running.sort();
    assert_eq!(running, ["main", "side"]);
    // A sidecar that crashes comes back; the pod stays up.
    node.runtime.crash("side", 1);
    node.until("the sidecar is back", |n| {
        n.api
            .get(&path)
            .filter(|p| p["status"]["initContainerStatuses"][1]["restartCount"] == 1)
    })
    .await;
    assert_eq!(node.api.get(&path).unwrap()["status"]["phase"], "Running");
}

#[tokio::test(start_paused = true)]
async fn probes_decide_over_readiness_and_restarts() {
    let node = Node::start().await;
    node.runtime.set_exec("check", 1);
    let path = node.pod(json!({"containers": [{"name": "c",
        "readinessProbe": {"exec": {"command": ["check"]}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 2}}]}));
    node.phase(&path, "Running").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(condition(&node.api.get(&path).unwrap(), "Ready"), "False");
    node.runtime.set_exec("check", 0);
    node.ready(&path).await;
    node.runtime.set_exec("alive", 1);
    node.until("it is restarted", |n| {
        n.api
            .get(&path)
            .filter(|p| p["status"]["containerStatuses"][0]["restartCount"] == 1)
    })
    .await;
    let events = node.events();
    assert!(
        events
            .iter()
            .any(|(r, m)| r == "Unhealthy" && m.starts_with("Readiness probe failed")),
        "{events:?}"
    );
    assert!(
        events
            .iter()
            .any(|(r, m)| r == "Killing" && m == "Container c failed liveness probe, will be restarted"),
        "{events:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn volumes_follow_their_config_map() {
    let node = Node::start().await;
    let path = node.pod(
        json!({"containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/etc/v"}]}],
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}]}),
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        node.events().iter().any(|(r, m)| r == "FailedMount"
            && m == "MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found")
    );
    let begin = Instant::now();
    node.api.create(
        "namespaces/default/configmaps",
        json!({"metadata": {"name": "cm", "namespace": "default"}, "data": {"k": "1"}}),
    );
    let pod = node.ready(&path).await;
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "the watch wakes the pod, not a timer"
    );
    let file = format!(
        "/var/lib/kubelet/pods/{}/volumes/kubernetes.io~configmap/v/k",
        pod["metadata"]["uid"].as_str().unwrap()
    );
    let read = |node: &Node| {
        use keelson_kubelet::Host;
        String::from_utf8(node.host.read(file.as_ref(), 100).unwrap()).unwrap()
    };
    assert_eq!(read(&node), "1");
    node.api
        .change("namespaces/default/configmaps/cm", |cm| cm["data"]["k"] = "2".into());
    let begin = Instant::now();
    node.until("the file is new", |n| (read(n) == "2").then_some(())).await;
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn pods_survive_a_restart_of_the_kubelet() {
    let mut node = Node::start().await;
    node.runtime.set_exec("check", 0);
    let path = node.pod(json!({"containers": [{"name": "c", "readinessProbe": {"exec": {"command": ["check"]}, "initialDelaySeconds": 60}}]}));
    let before = node.ready(&path).await;
    let doomed = node.pod_with(json!({"name": "doomed"}), json!({"containers": [{"name": "d"}]}));
    node.ready(&doomed).await;
    node.halt().await;
    // Deleted while nobody looked: its object is gone, its containers aren't.
    node.api.change(&doomed, |p| p["spec"]["nodeName"] = "elsewhere".into());
    node.resume();
    node.until("the orphan has ended", |n| (n.runtime.running() == ["c"]).then_some(()))
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = node.api.get(&path).unwrap();
    assert_eq!(
        after["status"]["containerStatuses"][0]["containerID"],
        before["status"]["containerStatuses"][0]["containerID"]
    );
    assert_eq!(condition(&after, "Ready"), "True", "what was ready stays so");
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_refused() {
    let node = Node::start().await;
    let path = node.pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "64"}}}]}));
    let pod = node.phase(&path, "Failed").await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    assert!(
        pod["status"]["message"]
            .as_str()
            .unwrap()
            .starts_with("Pod was rejected: Node didn't have enough resource: cpu")
    );
    node.api.delete_pod(&path, 30);
    node.gone(&path).await;
}

#[tokio::test(start_paused = true)]
async fn limits_change_in_place() {
    let node = Node::start().await;
    let resources =
        |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"cpu": cpu, "memory": "64Mi"}});
    let path = node.pod(json!({"containers": [{"name": "c", "resources": resources("100m")}]}));
    let pod = node.ready(&path).await;
    assert_eq!(pod["status"]["containerStatuses"][0]["resources"], resources("100m"));
    let id = pod["status"]["containerStatuses"][0]["containerID"].clone();
    node.api
        .change(&path, |p| p["spec"]["containers"][0]["resources"] = resources("200m"));
    let pod = node
        .until("the resize is done", |n| {
            n.api.get(&path).filter(|p| {
                p["status"]["observedGeneration"] == 2
                    && p["status"]["containerStatuses"][0]["resources"] == resources("200m")
            })
        })
        .await;
    assert_eq!(pod["status"]["containerStatuses"][0]["containerID"], id);
    assert_eq!(condition(&pod, "PodResizeInProgress"), "");
    node.api
        .change(&path, |p| p["spec"]["containers"][0]["resources"] = resources("64"));
    let pod = node
        .until("it is infeasible", |n| {
            n.api.get(&path).filter(|p| condition(p, "PodResizePending") == "True")
        })
        .await;
    assert_eq!(pod["status"]["containerStatuses"][0]["resources"], resources("200m"));
}

#[tokio::test(start_paused = true)]
async fn images_that_are_not_there_are_told() {
    let node = Node::start().await;
    let path = node.pod(json!({"containers": [{"name": "c", "image": "missing/image:1"}]}));
    let waiting = |p: &serde_json::Value| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    node.until("the pull fails", |n| {
        n.api.get(&path).filter(|p| waiting(p) == "ErrImagePull")
    })
    .await;
    let pod = node
        .until("it backs off", |n| {
            n.api.get(&path).filter(|p| waiting(p) == "ImagePullBackOff")
        })
        .await;
    assert_eq!(pod["status"]["phase"], "Pending");
    let bad = node.pod_with(
        json!({"name": "bad"}),
        json!({"containers": [{"name": "c", "image": "NOT_VALID"}]}),
    );
    node.until("the name is refused", |n| {
        n.api.get(&bad).filter(|p| waiting(p) == "InvalidImageName")
    })
    .await;
    node.api.delete_pod(&path, 30);
    node.gone(&path).await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_shortens_a_longer_grace_period() {
    let node = Node::start().await;
    let slow = json!({"name": "slow", "annotations": {"simulate.keelson.dev/stop-seconds": "1000"}});
    let path = node.pod_with(
        slow,
        json!({"terminationGracePeriodSeconds": 600, "containers": [{"name": "c"}]}),
    );
    node.ready(&path).await;
    let begin = Instant::now();
    node.api.delete_pod(&path, 600);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(node.api.get(&path).is_some());
    node.api.delete_pod(&path, 5);
    node.gone(&path).await;
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_pod() {
    let node = Node::start().await;
    let slow = json!({"name": "slow", "annotations": {"simulate.keelson.dev/stop-seconds": "7"}});
    let path = node.pod_with(slow, json!({"activeDeadlineSeconds": 5, "containers": [{"name": "c"}]}));
    node.ready(&path).await;
    let began = Instant::now();
    let pod = node.phase(&path, "Failed").await;
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    // Who is told may put another in its place.
    assert!(node.runtime.running().is_empty(), "its container has ended by then");
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Quotas by the period that is said, for pods and containers, and memory kept and throttled as upstream has it.
#[tokio::test(start_paused = true)]
async fn limits_are_set_as_the_settings_say() {
    let node = Node::start_with(|c| {
        c.cpu_period = Duration::from_millis(20);
        c.memory_throttling = Some(0.5);
        c.memory_tiers = true;
    })
    .await;
    let limited = json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}});
    let path = node.pod(json!({"containers": [{"name": "c", "resources": limited}]}));
    let pod = node.ready(&path).await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let c = node.runtime.resources("c").unwrap();
    assert_eq!((c.cpu_quota, c.cpu_period), (10_000, 20_000));
    let file = |name: &str| c.unified.get(name).cloned().unwrap_or_default();
    assert_eq!(
        (file("memory.low"), file("memory.high"), file("memory.min")),
        ("67108864".into(), "100663296".into(), String::new())
    );
    let of_pod = node.host.cgroup(&format!("/kubepods/burstable/pod{uid}")).unwrap();
    assert_eq!((of_pod.cpu_quota, of_pod.cpu_period), (Some(10_000), Some(20_000)));
    assert_eq!(of_pod.unified["memory.low"], "67108864");
    let all = node.host.cgroup("/kubepods").unwrap().unified;
    assert_eq!(
        (all["memory.min"].as_str(), all["memory.low"].as_str()),
        ("67108864", "67108864")
    );
    let burstable = node.host.cgroup("/kubepods/burstable").unwrap();
    assert_eq!(burstable.unified["memory.low"], "67108864");
    // As the runtime tells it, it is what was asked for.
    let shown = &pod["status"]["containerStatuses"][0]["resources"]["limits"]["cpu"];
    assert_eq!(shown, "500m");
    node.api.delete_pod(&path, 0);
    node.gone(&path).await;
    node.until("nothing is kept any more", |n| {
        let all = n.host.cgroup("/kubepods")?.unified;
        (all["memory.min"] == "0").then_some(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_is_asked_of_the_runtime() {
    use keelson_kubelet::server::checkpoint;
    let node = Node::start().await;
    let path = node.pod(json!({"restartPolicy": "Never", "containers": [
        {"name": "c"}, {"name": "short", "command": ["sleep", "1"]}]}));
    node.until("one runs and one has ended", |n| {
        let states = n.api.get(&path)?["status"]["containerStatuses"].clone();
        let are = states[0]["state"]["running"].is_object() && states[1]["state"]["terminated"].is_object();
        are.then_some(())
    })
    .await;
    let kl = node.kubelet();
    let ask = async |pod: &str, container: &str, timeout: Option<&str>| {
        let answer = checkpoint::make(&kl, "default", pod, container, timeout).await;
        answer.map_err(|(status, why)| format!("{} {why}", status.as_u16()))
    };
    let location = ask("p", "c", Some("300")).await.unwrap();
    assert!(
        location.starts_with("/var/lib/kubelet/checkpoints/checkpoint-p_default-c-2026-01-01T"),
        "{location}"
    );
    let asked = node.runtime.checkpoints();
    assert_eq!(
        (asked.len(), asked[0].location.as_str(), asked[0].timeout),
        (1, location.as_str(), 300)
    );
    for (pod, container, timeout, why) in [
        ("none", "c", None, "404 pod does not exist"),
        ("p", "d", None, "404 container d does not exist"),
        ("p", "c", Some("soon"), "404 cannot parse value of timeout parameter"),
        (
            "p",
            "c",
            Some("-1"),
            "500 checkpointing of default/p/c failed (CheckpointContainer requires the timeout value to be > 0)",
        ),
        (
            "p",
            "short",
            None,
            "500 checkpointing of default/p/short failed (container short not found)",
        ),
    ] {
        assert_eq!(ask(pod, container, timeout).await.unwrap_err(), why);
    }
    assert_eq!(node.runtime.checkpoints().len(), 1);
}
