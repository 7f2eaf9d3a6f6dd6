//! The nodes, and what their kubelets and a scheduler would do with pods, the same way every time.
//!
//! A pod is bound to the node that its annotation `play/node` or its affinity names, or to `n0`, and is then `Running` and ready.
//! Annotations say otherwise: `play/bind: "no"`, `play/phase`, `play/ready`, `play/exit` (a code), `play/failing` (completion
//! indexes that fail), `play/ending: slow` (a deleted pod stays until a step says that it is gone).

use crate::controllers::api::Api;
use crate::controllers::seen::Seen;
use anyhow::{Result, ensure};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::broadcast::error::RecvError;

const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// Between two renewals of nodes' leases.
const BEAT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub struct Player {
    api: Api,
    nodes: Arc<Mutex<BTreeSet<String>>>,
    silent: Arc<Mutex<HashSet<String>>>,
    address: Arc<AtomicU32>,
}

/// What a kubelet would say of a pod.
#[derive(Clone, Debug)]
pub struct Report {
    pub phase: String,
    pub ready: bool,
    pub exit: i64,
}

impl Player {
    pub fn new(api: Api) -> Player {
        Player {
            api,
            nodes: Arc::default(),
            silent: Arc::default(),
            address: Arc::new(AtomicU32::new(1)),
        }
    }

    /// Makes the nodes that every scenario has.
    pub async fn nodes(&self) -> Result<()> {
        for name in ["n0", "n1", "n2"] {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
            let (code, body) = self
                .api
                .ask("POST", "/api/v1/nodes", "", Some(&node), "kubelet")
                .await?;
            ensure!(code < 400 || code == 409, "{body}");
        }
        Ok(())
    }

    /// Answers what comes, until it is dropped.
    pub async fn play(self, seen: Seen) -> Result<()> {
        let mut news = seen.news();
        let mut beat = tokio::time::interval(BEAT);
        // What was done for a pod's uid.
        let mut done: HashSet<(String, &'static str)> = HashSet::new();
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    let nodes: Vec<String> = self.nodes.lock().iter().cloned().collect();
                    for node in nodes {
                        if !self.silent.lock().contains(&node) {
                            self.renew(&node).await?;
                        }
                    }
                }
                object = news.recv() => match object {
                    Ok(object) => {
                        match object["kind"] == "Node" {
                            true => self.node(&object).await?,
                            false => self.pod(&object, &mut done).await?,
                        }
                        seen.answered();
                    }
                    Err(RecvError::Lagged(n)) => anyhow::bail!("{n} pods went by unseen"),
                    Err(RecvError::Closed) => return Ok(()),
                }
            }
        }
    }

    pub fn silence(&self, node: &str) {
        self.silent.lock().insert(node.into());
    }

    pub async fn speak(&self, node: &str) -> Result<()> {
        self.silent.lock().remove(node);
        self.renew(node).await?;
        self.ready(node).await
    }

    async fn node(&self, node: &Value) -> Result<()> {
        let name = text(node, "/metadata/name");
        if text(node, "/metadata/annotations/play~1node") == "mute" || !self.nodes.lock().insert(name.into()) {
            return Ok(());
        }
        self.renew(name).await?;
        self.ready(name).await
    }

    async fn ready(&self, node: &str) -> Result<()> {
        let now = now();
        let condition = |sort: &str, status: &str, reason: &str| json!({"type": sort, "status": status, "reason": reason, "message": "so it is", "lastHeartbeatTime": now, "lastTransitionTime": now});
        let resources = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
        let status = json!({"status": {"capacity": resources, "allocatable": resources,
        "addresses": [{"type": "InternalIP", "address": "192.168.0.1"}],
        "conditions": [
            condition("Ready", "True", "KubeletReady"),
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        ]}});
        self.patch(&format!("/api/v1/nodes/{node}/status"), &status).await
    }

    async fn renew(&self, node: &str) -> Result<()> {
        let base = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let spec = json!({"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": micro()});
        let patch = json!({"spec": spec});
        let path = format!("{base}/{node}");
        let (code, body) = self
            .api
            .ask("PATCH", &path, "application/merge-patch+json", Some(&patch), "kubelet")
            .await?;
        if code != 404 {
            ensure!(code < 400, "{body}");
            return Ok(());
        }
        let lease =
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node}, "spec": spec});
        let (code, body) = self.api.ask("POST", base, "", Some(&lease), "kubelet").await?;
        ensure!(code < 400 || code == 409, "{body}");
        Ok(())
    }

    async fn pod(&self, pod: &Value, done: &mut HashSet<(String, &'static str)>) -> Result<()> {
        let mut first = |what: &'static str| done.insert((text(pod, "/metadata/uid").to_string(), what));
        let play = |what: &str| text(pod, &format!("/metadata/annotations/play~1{what}")).to_string();
        if self.silent.lock().contains(text(pod, "/spec/nodeName")) {
            return Ok(());
        }
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            if play("ending") != "slow" && first("ended") {
                self.end(pod).await?;
            }
            return Ok(());
        }
        if text(pod, "/spec/nodeName").is_empty() {
            let gated = pod.pointer("/spec/schedulingGates/0").is_some();
            if play("bind") != "no" && !gated && first("bound") {
                return self.bind(pod, &play("node")).await;
            }
            return Ok(());
        }
        if text(pod, "/status/phase") == "Pending" && first("ran") {
            let index = text(pod, "/metadata/annotations/batch.kubernetes.io~1job-completion-index");
            let fails = !index.is_empty() && play("failing").split(',').any(|n| n == index);
            let exit = play("exit").parse().unwrap_or(i64::from(fails));
            let phase = match (play("phase").as_str(), exit) {
                (_, _) if fails => "Failed".to_string(),
                ("", 0) => "Running".into(),
                ("", _) => "Failed".into(),
                (other, _) => other.into(),
            };
            let report = Report {
                phase,
                ready: play("ready") != "false",
                exit,
            };
            return self.report(pod, &report).await;
        }
        Ok(())
    }

    async fn bind(&self, pod: &Value, wish: &str) -> Result<()> {
        let affinity = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0";
        let node = [text(pod, affinity), wish, "n0"]
            .into_iter()
            .find(|n| !n.is_empty())
            .unwrap_or_default();
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod["metadata"]["name"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        let (code, body) = self
            .api
            .ask(
                "POST",
                &format!("{}/binding", path(pod)),
                "",
                Some(&body),
                "kube-scheduler",
            )
            .await?;
        ensure!(code < 400 || matches!(code, 404 | 409), "{body}");
        Ok(())
    }

    /// A deleted pod's containers have ended.
    pub async fn end(&self, pod: &Value) -> Result<()> {
        let body = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}});
        let (code, body) = self.api.ask("DELETE", &path(pod), "", Some(&body), "kubelet").await?;
        ensure!(code < 400 || matches!(code, 404 | 409), "{body}");
        Ok(())
    }

    pub async fn report(&self, pod: &Value, report: &Report) -> Result<()> {
        let now = now();
        let ended = matches!(report.phase.as_str(), "Succeeded" | "Failed");
        let ready = report.phase == "Running" && report.ready;
        let condition = |sort: &str, is: bool| {
            let mut c = json!({"type": sort, "status": if is { "True" } else { "False" }, "lastTransitionTime": now});
            if !is {
                c["reason"] = if ended {
                    "PodCompleted".into()
                } else {
                    "ContainersNotReady".into()
                };
            }
            c
        };
        let state = match report.phase.as_str() {
            "Running" => json!({"running": {"startedAt": now}}),
            _ if ended => {
                json!({"terminated": {"exitCode": report.exit, "reason": if report.exit == 0 { "Completed" } else { "Error" }, "startedAt": now, "finishedAt": now}})
            }
            _ => json!({"waiting": {"reason": "ContainerCreating"}}),
        };
        let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
        let statuses: Vec<Value> = containers.into_iter().flatten().map(|c| json!({
            "name": c["name"], "image": c["image"], "imageID": "", "ready": ready, "started": report.phase == "Running", "restartCount": 0, "state": state
        })).collect();
        let mut status = json!({"phase": report.phase, "startTime": now, "hostIP": "192.168.0.1", "containerStatuses": statuses,
            "conditions": [condition("Initialized", true), condition("ContainersReady", ready), condition("Ready", ready)]});
        if pod.pointer("/status/podIP").is_none() {
            let n = self.address.fetch_add(1, Ordering::Relaxed);
            let address = format!("10.244.{}.{}", 100 + n / 250, 1 + n % 250);
            status["podIP"] = address.clone().into();
            status["podIPs"] = json!([{"ip": address}]);
        }
        self.patch(&format!("{}/status", path(pod)), &json!({"status": status}))
            .await
    }

    /// A kubelet's patch of a status; what is gone meanwhile needs none.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<()> {
        let (code, body) = self.api.ask("PATCH", path, STRATEGIC, Some(body), "kubelet").await?;
        ensure!(code < 400 || code == 404, "PATCH {path}: {body}");
        Ok(())
    }
}

pub fn path(pod: &Value) -> String {
    format!(
        "/api/v1/namespaces/{}/pods/{}",
        text(pod, "/metadata/namespace"),
        text(pod, "/metadata/name")
    )
}

pub fn text<'a>(object: &'a Value, at: &str) -> &'a str {
    object.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn now() -> String {
    keelson_clock::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn micro() -> String {
    keelson_clock::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
