//! Notices nodes that fall silent, and keeps the taints that follow from nodes' conditions.
//!
//! A node is alive as long as its lease or its status changes. Ages are measured by this process' own clock from when a
//! change was seen, so clocks need not agree. One timer a node; nothing else runs while all is well. How fast silent
//! nodes are given up is [`zones`]' business.

mod plan;
mod tally;
mod zones;

use crate::context::{Context, now};
use crate::{pods, wire};
use async_trait::async_trait;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::{
    ApiObject, Controller, Informer, InformerOptions, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Recorder,
    is_not_found,
};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tally::Tally;
use tokio::time::Instant;
use zones::Turn;

const LEASES: &str = "kube-node-lease";

pub fn start(context: &Context) {
    let nodes = context.informer::<Node>();
    let pods = context.informer::<Pod>();
    pods::index(pods.store());
    let options = InformerOptions {
        namespace: LEASES.into(),
        ..Default::default()
    };
    let leases = Informer::<Lease>::start(&context.reader(), options, &context.stop);
    let controller = Controller::new("nodelifecycle")
        .input(&nodes)
        .input(&pods)
        .input(&leases)
        .output(Node::RESOURCE)
        .output(Pod::RESOURCE);
    let queue = controller.queue();
    let tally: Arc<Mutex<Tally>> = Arc::default();
    {
        // Whether anything may be evicted depends on all nodes together. They are counted before the node itself is looked at.
        let (queue, tally) = (queue.clone(), tally.clone());
        nodes.on_change(move |change| {
            let node = change.object();
            let state = (!change.is_deleted()).then(|| (zones::of(node), plan::is_ready(node)));
            let concerned = tally.lock().set(node.name(), state);
            concerned
                .into_iter()
                .for_each(|name| queue.add(ObjectKey::cluster(&name)));
        });
    }
    wire::own(&nodes, &queue);
    {
        // By its own key, which has a namespace, as no node's has.
        let queue = queue.clone();
        pods.on_change(move |change| {
            let (pod, old) = (change.object(), change.old());
            let node = pods::node(pod);
            if !change.is_deleted() && node.is_some() && old.is_none_or(|old| pods::node(old) != node) {
                queue.add(ObjectKey::of(pod.meta()));
            }
        });
    }
    let seen: Seen = Arc::default();
    {
        let seen = seen.clone();
        leases.on_change(move |change| {
            if !change.is_deleted() {
                seen.lock().insert(change.object().name().to_string(), Instant::now());
            }
        });
    }
    {
        let seen = seen.clone();
        nodes.on_change(move |change| {
            let node = change.object();
            if change.is_deleted() {
                seen.lock().remove(node.name());
            } else if change.old().is_none_or(|old| heartbeat(old) != heartbeat(node)) {
                seen.lock().insert(node.name().to_string(), Instant::now());
            }
        });
    }
    let rest = context.rest("node-controller");
    let recorder = context.recorder(&rest, "node-controller");
    {
        let recorder = recorder.clone();
        nodes.on_change(move |change| {
            let node = change.object();
            let tell = |reason: &str, text: String| {
                let about = ObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    name: node.metadata.name.clone(),
                    uid: node.metadata.uid.clone(),
                    ..Default::default()
                };
                let text = format!("Node {} event: {text}", node.name());
                recorder.event_for(&about, Normal, reason, text);
            };
            if change.is_deleted() {
                tell("RemovingNode", format!("Removing Node {} from Controller", node.name()));
            } else if change.old().is_none_or(|old| old.uid() != node.uid()) {
                tell(
                    "RegisteredNode",
                    format!("Registered Node {} in Controller", node.name()),
                );
            }
        });
    }
    let config = &context.config;
    let grace = (config.node_grace, config.node_startup_grace);
    let (objects, pod_objects) = (Objects::new(&rest), Objects::new(&rest));
    context.run(
        controller,
        Lifecycle {
            nodes,
            pods,
            leases,
            lease_objects: Objects::new(&rest),
            seen,
            answered: Mutex::default(),
            objects,
            pod_objects,
            recorder,
            grace,
            tally,
            turns: Mutex::default(),
        },
    );
}

type Seen = Arc<Mutex<HashMap<String, Instant>>>;

fn heartbeat(node: &Node) -> Option<&Time> {
    plan::condition(node, "Ready")?.last_heartbeat_time.as_ref()
}

fn renewed(lease: &Lease) -> Option<jiff::Timestamp> {
    Some(lease.spec.as_ref()?.renew_time.as_ref()?.0)
}

/// When nodes renewed their leases, as the server was asked.
type Answered = HashMap<String, jiff::Timestamp>;

/// Whether a node has renewed its lease since it was last heard of. What was answered once isn't news the next time, or a node that died
/// behind a watch that stands still would never be given up.
fn is_news(
    answered: &mut Answered,
    node: &str,
    cached: Option<jiff::Timestamp>,
    there: Option<jiff::Timestamp>,
) -> bool {
    let Some(at) = there.filter(|at| cached != Some(*at)) else {
        return false;
    };
    answered.insert(node.to_owned(), at) != Some(at)
}

struct Lifecycle {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    leases: Informer<Lease>,
    lease_objects: Objects<Lease>,
    seen: Seen,
    answered: Mutex<Answered>,
    objects: Objects<Node>,
    pod_objects: Objects<Pod>,
    recorder: Recorder,
    grace: (Duration, Duration),
    tally: Arc<Mutex<Tally>>,
    turns: Mutex<zones::Turns>,
}

#[async_trait]
impl Reconcile for Lifecycle {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        if !key.namespace.is_empty() {
            self.assigned(key).await?;
            return Ok(Outcome::Done);
        }
        let Some(found) = self.nodes.store().get_key(key) else {
            self.answered.lock().remove(&key.name);
            return Ok(Outcome::Done);
        };
        let mut node = (*found).clone();
        let grace = if plan::condition(&node, "Ready").is_some() {
            self.grace.0
        } else {
            self.grace.1
        };
        let last = *self.seen.lock().entry(key.name.clone()).or_insert_with(Instant::now);
        let left = (last + grace).saturating_duration_since(Instant::now());
        if left.is_zero()
            && let Some(silent) = plan::silenced(&node, now())
        {
            if self.has_renewed(&key.name).await? {
                self.seen.lock().insert(key.name.clone(), Instant::now());
                return Ok(Outcome::After(grace));
            }
            let was_ready = plan::is_ready(&node);
            node = self.objects.update_status(&silent).await?;
            if was_ready {
                let text = format!("Node {} status is now: NodeNotReady", key.name);
                self.recorder.event(&node, Normal, "NodeNotReady", text);
            }
        }
        let turn = self.turn(&node);
        if let Some(taints) = plan::taints(&node, turn != Turn::Now, now()) {
            let body =
                json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
            match self.objects.patch("", &key.name, Patch::Merge(&body)).await {
                Err(error) if is_not_found(&error) => return Ok(Outcome::Done),
                result => result?,
            };
        }
        // What a kubelet says of its node it says of its pods, too.
        if plan::condition(&node, "Ready").is_some_and(|c| c.status == "Unknown") {
            self.mark_pods(&key.name).await?;
        }
        Ok(match turn {
            Turn::In(wait) => Outcome::After(wait),
            _ if left.is_zero() => Outcome::Done,
            _ => Outcome::After(left),
        })
    }
}

impl Lifecycle {
    /// Whether the server has another lease of the node than the watch has brought: then the watch is behind, not the node.
    async fn has_renewed(&self, node: &str) -> anyhow::Result<bool> {
        let cached = self.leases.store().get(LEASES, node);
        let there = self.lease_objects.find(LEASES, node).await?;
        let (cached, there) = (cached.as_deref().and_then(renewed), there.as_ref().and_then(renewed));
        Ok(is_news(&mut self.answered.lock(), node, cached, there))
    }

    /// Whether a node that isn't ready may be given up now. What changes the answer, others' readiness, wakes it.
    fn turn(&self, node: &Node) -> Turn {
        if plan::is_ready(node) {
            return Turn::Now;
        }
        let zone = zones::of(node);
        let (elsewhere, pace) = self.tally.lock().without(node.name(), &zone);
        if elsewhere == 0 {
            return Turn::Never;
        }
        if plan::is_given_up(node) || plan::condition(node, "Ready").is_none() {
            return Turn::Now;
        }
        self.turns.lock().take(&zone, pace, Instant::now())
    }

    /// A pod that came to a node which isn't ready, be it that the node itself says so, isn't ready either.
    async fn assigned(&self, key: &ObjectKey) -> anyhow::Result<()> {
        let Some(pod) = self.pods.store().get_key(key) else {
            return Ok(());
        };
        let node = pods::node(&pod).and_then(|node| self.nodes.store().get("", node));
        let ready = node.as_deref().and_then(|node| plan::condition(node, "Ready"));
        match ready.is_some_and(|c| c.status != "True") {
            true => self.mark(&pod).await,
            false => Ok(()),
        }
    }

    /// Pods on a node that isn't heard of aren't ready: services must not send to them.
    async fn mark_pods(&self, node: &str) -> anyhow::Result<()> {
        for pod in self.pods.store().by_index(pods::BY_NODE, node) {
            self.mark(&pod).await?;
        }
        Ok(())
    }

    async fn mark(&self, pod: &Pod) -> anyhow::Result<()> {
        if pods::is_finished(pod) || !pods::is_ready(pod) {
            return Ok(());
        }
        let mut changed = pod.clone();
        let conditions = changed
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default();
        for condition in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
            condition.status = "False".into();
            condition.last_transition_time = Some(Time(now()));
        }
        match self.pod_objects.update_status(&changed).await {
            Ok(_) => self.recorder.event(pod, Warning, "NodeNotReady", "Node is not ready"),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_stands_still_keeps_no_dead_node_alive() {
        let at = |second: i64| jiff::Timestamp::from_second(second).ok();
        let mut answered = Answered::new();
        assert!(is_news(&mut answered, "n", at(1), at(5)));
        assert!(!is_news(&mut answered, "n", at(1), at(5)), "nothing since");
        assert!(is_news(&mut answered, "n", at(1), at(6)));
        assert!(!is_news(&mut answered, "n", at(6), at(6)), "the watch has it");
        assert!(is_news(&mut answered, "n", at(6), at(2)), "its clock was set back");
        assert!(!is_news(&mut answered, "n", at(6), None));
    }
}
