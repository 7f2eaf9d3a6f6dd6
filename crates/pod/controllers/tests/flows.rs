//! Controllers together, in one thread and in virtual time, against a small server.

#![allow(clippy::unwrap_used)]

mod api;

use api::Api;
use keelson_controllers::Config;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn defaults(collection: &str, object: &mut Value) {
    if collection == "pods" {
        object["status"] = json!({"phase": "Pending"});
    }
}

fn start(api: &Api, names: &[&str]) -> CancellationToken {
    let stop = CancellationToken::new();
    let config = Config {
        controllers: names.iter().map(|n| n.to_string()).collect(),
        ..Default::default()
    };
    tokio::spawn(keelson_controllers::run(Arc::new(api.client()), config, stop.clone()));
    stop
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never happened: {what}");
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_string()
}

fn set_phase(api: &Api, pod: &str, phase: &str, ready: bool) {
    api.change("pods", "ns", pod, |pod| {
        let word = if ready { "True" } else { "False" };
        pod["status"] = json!({"phase": phase, "conditions": [{"type": "Ready", "status": word, "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    });
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"][0]["status"] == "True"
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_never_has_too_few_or_too_many_pods() {
    let api = Api::new(defaults);
    api.create(
        "/apis/apps/v1/namespaces/ns/deployments",
        json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": {
            "replicas": 4,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "progressDeadlineSeconds": 600,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}},
        }}),
    );
    let stop = start(&api, &["deployment", "replicaset"]);
    until("four pods", || api.all("pods").len() == 4).await;
    for pod in api.all("pods") {
        set_phase(&api, &name(&pod), "Running", true);
    }
    until("all available", || {
        api.all("deployments")[0]["status"]["availableReplicas"] == 4
    })
    .await;

    api.change("deployments", "ns", "web", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("two")
    });
    let (mut most, mut fewest) = (0, usize::MAX);
    until("all pods are new", || {
        let pods = api.all("pods");
        most = most.max(pods.len());
        fewest = fewest.min(pods.iter().filter(|p| is_ready(p)).count());
        // One pod a turn becomes ready.
        if let Some(pod) = pods.iter().find(|p| !is_ready(p)) {
            set_phase(&api, &name(pod), "Running", true);
        }
        let deployment = &api.all("deployments")[0];
        let status = &deployment["status"];
        let seen = status["observedGeneration"] == deployment["metadata"]["generation"];
        seen && status["updatedReplicas"] == 4 && status["replicas"] == 4 && status["availableReplicas"] == 4
    })
    .await;
    assert!(most <= 5, "{most} pods at once");
    assert!(fewest >= 3, "only {fewest} ready");
    let images: Vec<Value> = api
        .all("pods")
        .iter()
        .map(|p| p["spec"]["containers"][0]["image"].clone())
        .collect();
    assert_eq!(images, vec![json!("two"); 4]);
    let deployment = &api.all("deployments")[0];
    assert_eq!(
        deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "2"
    );
    until("the rollout is told complete", || {
        let conditions = api.all("deployments")[0]["status"]["conditions"].clone();
        conditions
            .as_array()
            .is_some_and(|c| c.iter().any(|c| c["reason"] == "NewReplicaSetAvailable"))
    })
    .await;
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_job_counts_every_pod_once_and_lets_all_go() {
    let api = Api::new(defaults);
    api.create(
        "/apis/batch/v1/namespaces/ns/jobs",
        json!({"metadata": {"name": "sum", "namespace": "ns"}, "spec": {
            "completions": 5, "parallelism": 2, "backoffLimit": 4,
            "selector": {"matchLabels": {"job": "sum"}},
            "template": {"metadata": {"labels": {"job": "sum"}}, "spec": {"containers": [], "restartPolicy": "Never"}},
        }}),
    );
    let stop = start(&api, &["job"]);
    let mut most = 0;
    let mut failed = false;
    until("complete", || {
        let pods = api.all("pods");
        let running: Vec<&Value> = pods.iter().filter(|p| p["status"]["phase"] == "Pending").collect();
        most = most.max(running.len());
        if let Some(pod) = running.first() {
            // The second pod fails, once.
            let phase = if !failed && pods.len() == 2 {
                "Failed"
            } else {
                "Succeeded"
            };
            failed |= phase == "Failed";
            set_phase(&api, &name(pod), phase, false);
        }
        let status = &api.all("jobs")[0]["status"];
        status["conditions"]
            .as_array()
            .is_some_and(|c| c.iter().any(|c| c["type"] == "Complete" && c["status"] == "True"))
    })
    .await;
    let status = api.all("jobs")[0]["status"].clone();
    assert!(failed && most <= 2, "{most} at once");
    assert_eq!(
        (&status["succeeded"], &status["failed"]),
        (&json!(5), &json!(1)),
        "{status}"
    );
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    let held = api
        .all("pods")
        .iter()
        .filter(|p| p["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty()))
        .count();
    assert_eq!((api.all("pods").len(), held), (6, 0));
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_stateful_set_starts_in_order_and_ends_from_the_top() {
    let api = Api::new(defaults);
    api.create(
        "/apis/apps/v1/namespaces/ns/statefulsets",
        json!({"metadata": {"name": "db", "namespace": "ns"}, "spec": {
            "replicas": 3, "serviceName": "db", "podManagementPolicy": "OrderedReady",
            "selector": {"matchLabels": {"app": "db"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        }}),
    );
    let stop = start(&api, &["statefulset"]);
    for ordinal in 0..3 {
        until("the next pod", || api.all("pods").len() == ordinal + 1).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let pods = api.all("pods");
        assert_eq!(pods.len(), ordinal + 1, "the next waits for readiness");
        assert_eq!(name(&pods[ordinal]), format!("db-{ordinal}"));
        set_phase(&api, &format!("db-{ordinal}"), "Running", true);
    }
    let claims: Vec<String> = api.all("persistentvolumeclaims").iter().map(name).collect();
    assert_eq!(claims, ["data-db-0", "data-db-1", "data-db-2"]);
    until("told ready", || {
        api.all("statefulsets")[0]["status"]["readyReplicas"] == 3
    })
    .await;

    api.change("statefulsets", "ns", "db", |s| s["spec"]["replicas"] = json!(1));
    until("one pod", || api.all("pods").len() == 1).await;
    assert_eq!(name(&api.all("pods")[0]), "db-0");
    assert_eq!(api.all("persistentvolumeclaims").len(), 3, "claims are kept");
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn balancers_that_are_switched_off_give_back_what_they_gave_and_nothing_else() {
    let finalizer = "service.kubernetes.io/load-balancer-cleanup";
    let service = |name: &str, conditions: Value| {
        json!({"metadata": {"name": name, "namespace": "ns", "finalizers": [finalizer]},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}, "conditions": conditions}})
    };
    let api = Api::new(|_, _| ());
    let ours = json!([{"type": "keelson.dev/LoadBalancer", "status": "True", "reason": "Ensured", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    api.create("/api/v1/namespaces/ns/services", service("ours", ours));
    api.create("/api/v1/namespaces/ns/services", service("theirs", json!([])));
    let before = api.all("services");
    let config = Config {
        controllers: vec!["service-lb".into()],
        load_balancer: None,
        ..Default::default()
    };
    let stop = CancellationToken::new();
    tokio::spawn(keelson_controllers::run(Arc::new(api.client()), config, stop.clone()));
    until("its own is plain", || {
        let all = api.all("services");
        all[0]["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
            && all[0]["status"]["loadBalancer"] == json!({})
    })
    .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(api.all("services")[1], before[1]);
    stop.cancel();
}
