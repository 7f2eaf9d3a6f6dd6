//! Evicts pods from nodes whose `NoExecute` taints they don't tolerate, or not any longer.

use crate::context::{Context, now};
use crate::pods;
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use keelson_client::events::EventType::Normal;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Recorder, delete_options,
    is_conflict, is_not_found,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

pub fn start(context: &Context) {
    let nodes = context.informer::<Node>();
    let pods = context.informer::<Pod>();
    pods::index(pods.store());
    let controller = Controller::new("taint-eviction")
        .input(&nodes)
        .input(&pods)
        .output(Pod::RESOURCE);
    let queue = controller.queue();
    {
        let (queue, pods) = (queue.clone(), pods.clone());
        nodes.on_change(move |change| {
            let before = change.old().map(|old| no_execute(old));
            let after = no_execute(change.object());
            if before.as_ref().map_or(!after.is_empty(), |b| *b != after) {
                pods.store()
                    .by_index(pods::BY_NODE, change.object().name())
                    .iter()
                    .for_each(|pod| queue.add(pod.key()));
            }
        });
    }
    let known = nodes.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        let moved = change.old().is_none_or(|old| {
            pods::node(old) != pods::node(pod)
                || old.spec.as_ref().map(|s| &s.tolerations) != pod.spec.as_ref().map(|s| &s.tolerations)
        });
        let tainted = pods::node(pod)
            .and_then(|n| known.store().get("", n))
            .is_some_and(|n| !no_execute(&n).is_empty());
        if change.is_deleted() || (moved && tainted) {
            queue.add(pod.key());
        }
    });
    let rest = context.rest("node-controller");
    let recorder = context.recorder(&rest, "taint-eviction-controller");
    context.run(
        controller,
        Evictor {
            nodes,
            pods,
            objects: Objects::new(&rest),
            recorder,
            since: Mutex::default(),
        },
    );
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints
        .filter(|t| t.effect == "NoExecute")
        .map(|t| Taint {
            time_added: None,
            ..t.clone()
        })
        .collect()
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    ForEver,
    For(Duration),
}

fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Stay {
    let mut shortest: Option<u64> = None;
    for taint in taints {
        let mut tolerating = tolerations.iter().filter(|t| tolerates(t, taint)).peekable();
        if tolerating.peek().is_none() {
            return Stay::For(Duration::ZERO);
        }
        for seconds in tolerating.filter_map(|t| t.toleration_seconds) {
            let seconds = seconds.max(0) as u64;
            shortest = Some(shortest.map_or(seconds, |s| s.min(seconds)));
        }
    }
    shortest.map_or(Stay::ForEver, |seconds| Stay::For(Duration::from_secs(seconds)))
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}

struct Evictor {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    objects: Objects<Pod>,
    recorder: Recorder,
    /// Since when a pod's time runs.
    since: Mutex<HashMap<ObjectKey, (String, Instant)>>,
}

#[async_trait]
impl Reconcile for Evictor {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(pod) = self.pods.store().get_key(key) else {
            self.since.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let node = pods::node(&pod).and_then(|n| self.nodes.store().get("", n));
        let taints = node.map(|n| no_execute(&n)).unwrap_or_default();
        let tolerations = pod
            .spec
            .as_ref()
            .and_then(|s| s.tolerations.as_deref())
            .unwrap_or_default();
        let Stay::For(time) = stay(&taints, tolerations) else {
            if self.since.lock().remove(key).is_some() && !pod.is_deleting() {
                let text = format!("Cancelling deletion of Pod {key}");
                self.recorder.event(&*pod, Normal, "TaintManagerEviction", text);
            }
            return Ok(Outcome::Done);
        };
        if pod.is_deleting() {
            return Ok(Outcome::Done);
        }
        let start = {
            let mut since = self.since.lock();
            let entry = since
                .entry(key.clone())
                .or_insert_with(|| (pod.uid().to_string(), Instant::now()));
            if entry.0 != pod.uid() {
                *entry = (pod.uid().to_string(), Instant::now());
            }
            entry.1
        };
        // Longer than the clock can count is for ever.
        let Some(end) = start.checked_add(time) else {
            return Ok(Outcome::Done);
        };
        let left = end.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Ok(Outcome::After(left));
        }
        self.evict(&pod).await?;
        self.since.lock().remove(key);
        Ok(Outcome::Done)
    }
}

impl Evictor {
    async fn evict(&self, pod: &Pod) -> anyhow::Result<()> {
        let text = format!("Marking for deletion Pod {}", pod.key());
        self.recorder.event(pod, Normal, "TaintManagerEviction", text);
        let message = "Taint manager: deleting due to NoExecute taint";
        disrupt(&self.objects, pod, "DeletionByTaintManager", message, None).await?;
        let options = delete_options(None, Some(pod.uid()), None);
        match self.objects.delete(pod.namespace(), pod.name(), &options).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Tells in a pod's status why it is about to be deleted, and with `phase` that it has ended. One request: the
/// controllers that do this may not read single pods.
pub async fn disrupt(
    objects: &Objects<Pod>,
    pod: &Pod,
    reason: &str,
    message: &str,
    phase: Option<&str>,
) -> anyhow::Result<()> {
    let Some(body) = mark(pod, reason, message, phase, now()) else {
        return Ok(());
    };
    match objects
        .patch_status(pod.namespace(), pod.name(), Patch::Strategic(&body))
        .await
    {
        // Gone, or another of that name: nobody is left to be told.
        Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

fn mark(pod: &Pod, reason: &str, message: &str, phase: Option<&str>, now: Timestamp) -> Option<Value> {
    let told = pods::condition(pod, "DisruptionTarget")
        .is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some(reason));
    let ends = phase.filter(|phase| pods::phase(pod) != *phase);
    let mut status = json!({});
    if !told {
        status["conditions"] = json!([{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "observedGeneration": pod.metadata.generation,
        }]);
    }
    if let Some(phase) = ends {
        status["phase"] = json!(phase);
    }
    (!told || ends.is_some()).then(|| json!({"metadata": {"uid": pod.uid()}, "status": status}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str) -> Taint {
        Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: "NoExecute".into(),
            time_added: None,
        }
    }

    fn toleration(key: &str, operator: &str, value: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
        }
    }

    #[test]
    fn the_shortest_toleration_counts() {
        let both = [taint("a", "1"), taint("b", "2")];
        assert_eq!(stay(&[], &[]), Stay::ForEver);
        assert_eq!(stay(&both, &[]), Stay::For(Duration::ZERO));
        assert_eq!(
            stay(&both, &[toleration("a", "Equal", "1", None)]),
            Stay::For(Duration::ZERO),
            "the other one isn't tolerated"
        );
        assert_eq!(stay(&both, &[toleration("", "Exists", "", None)]), Stay::ForEver);
        let tolerations = [
            toleration("a", "Equal", "1", Some(9)),
            toleration("b", "Exists", "", Some(5)),
        ];
        assert_eq!(stay(&both, &tolerations), Stay::For(Duration::from_secs(5)));
        assert!(!tolerates(&toleration("a", "Equal", "2", None), &taint("a", "1")));
        assert!(!tolerates(
            &Toleration {
                effect: Some("NoSchedule".into()),
                ..toleration("a", "Exists", "", None)
            },
            &taint("a", "1")
        ));
    }

    #[test]
    fn why_is_told_once() {
        let text = r#"{"metadata":{"uid":"u"},"status":{"phase":"Running","conditions":[{"type":"DisruptionTarget","status":"True","reason":"R"}]}}"#;
        let told = Pod::decode(text.as_bytes()).expect("valid");
        let now = Timestamp::UNIX_EPOCH;
        assert!(mark(&told, "R", "m", None, now).is_none());
        assert_eq!(
            mark(&told, "R", "m", Some("Failed"), now),
            Some(json!({"metadata": {"uid": "u"}, "status": {"phase": "Failed"}}))
        );
        let new = mark(&Pod::default(), "R", "m", None, now).expect("told");
        assert_eq!(
            new["status"]["conditions"][0]["lastTransitionTime"],
            "1970-01-01T00:00:00Z"
        );
    }
}
