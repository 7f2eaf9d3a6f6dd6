//! Removes pods that nobody else will: whose node is gone, that were deleted before they had a node, and the oldest of too
//! many finished ones.

use crate::context::Context;
use crate::pods;
use crate::taint_eviction::disrupt;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Node, Pod};
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, delete_options, is_conflict,
    is_not_found,
};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// A node that has gone may be on its way back.
const QUARANTINE: Duration = Duration::from_secs(40);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The index of pods that have ended: one value, the empty one.
const FINISHED: &str = "finished";

/// Stands for "count the finished pods"; no pod has an empty name.
fn census() -> ObjectKey {
    ObjectKey::default()
}

pub fn start(context: &Context) {
    let nodes = context.informer::<Node>();
    let pods = context.informer::<Pod>();
    pods::index(pods.store());
    pods.store().add_index(FINISHED, |pod| match pods::is_finished(pod) {
        true => vec![String::new()],
        false => Vec::new(),
    });
    let controller = Controller::new("pod-garbage-collector")
        .input(&nodes)
        .input(&pods)
        .output(Pod::RESOURCE);
    let queue = controller.queue();
    {
        let (queue, pods) = (queue.clone(), pods.clone());
        nodes.on_change(move |change| {
            let node = change.object();
            let delay = if change.is_deleted() {
                QUARANTINE
            } else if is_out_of_service(node) {
                Duration::ZERO
            } else {
                return;
            };
            pods.store()
                .by_index(pods::BY_NODE, node.name())
                .iter()
                .for_each(|pod| queue.add_after(pod.key(), delay));
        });
    }
    let known = nodes.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        if change.is_deleted() {
            return;
        }
        match pods::node(pod).map(|node| known.store().get("", node)) {
            None if pod.is_deleting() => queue.add(pod.key()),
            Some(None) if change.old().is_none_or(|old| pods::node(old).is_none()) => {
                queue.add_after(pod.key(), QUARANTINE)
            }
            Some(Some(node)) if pod.is_deleting() && is_out_of_service(&node) => queue.add(pod.key()),
            _ => {}
        }
        if pods::is_finished(pod) && change.old().is_none_or(|old| !pods::is_finished(old)) {
            queue.add(census());
        }
    });
    let rest = context.rest("pod-garbage-collector");
    let limit = context.config.terminated_pods;
    context.run(
        controller,
        PodGc {
            nodes,
            pods,
            node_objects: Objects::new(&rest),
            objects: Objects::new(&rest),
            limit,
        },
    );
}

fn is_out_of_service(node: &Node) -> bool {
    let ready = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == "Ready" && c.status == "True");
    !ready
        && node
            .spec
            .iter()
            .flat_map(|s| s.taints.iter().flatten())
            .any(|t| t.key == OUT_OF_SERVICE)
}

struct PodGc {
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    node_objects: Objects<Node>,
    objects: Objects<Pod>,
    limit: usize,
}

#[async_trait]
impl Reconcile for PodGc {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        if *key == census() {
            let store = self.pods.store();
            if self.limit == 0 || store.count(FINISHED, "") <= self.limit {
                return Ok(Outcome::Done);
            }
            for pod in surplus(store.by_index(FINISHED, ""), self.limit) {
                self.remove(&pod, None).await?;
            }
            return Ok(Outcome::Done);
        }
        let Some(pod) = self.pods.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(name) = pods::node(&pod) else {
            if pod.is_deleting() {
                self.remove(&pod, None).await?;
            }
            return Ok(Outcome::Done);
        };
        match self.nodes.store().get("", name) {
            Some(node) if pod.is_deleting() && is_out_of_service(&node) => self.remove(&pod, None).await?,
            Some(_) => {}
            // The cache may not know the node yet: the server does.
            None if self.node_objects.find("", name).await?.is_some() => return Ok(Outcome::After(QUARANTINE)),
            None => self.remove(&pod, Some("PodGC: node no longer exists")).await?,
        }
        Ok(Outcome::Done)
    }
}

impl PodGc {
    /// Removes a pod at once; one that may still have run is marked as failed first.
    async fn remove(&self, pod: &Pod, why: Option<&str>) -> anyhow::Result<()> {
        tracing::debug!(pod = %pod.key(), why, "removing a pod");
        if let Some(why) = why {
            let phase = (!pods::is_finished(pod)).then_some("Failed");
            disrupt(&self.objects, pod, "DeletionByPodGC", why, phase).await?;
        } else if !pods::is_finished(pod) {
            self.fail(pod).await?;
        }
        let mut options = delete_options(None, Some(pod.uid()), None);
        options.grace_period_seconds = Some(0);
        match self.objects.delete(pod.namespace(), pod.name(), &options).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn fail(&self, pod: &Pod) -> anyhow::Result<()> {
        let body = json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed"}});
        match self
            .objects
            .patch_status(pod.namespace(), pod.name(), Patch::Strategic(&body))
            .await
        {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// The oldest of what is beyond the limit. A limit of 0 is none.
fn surplus(mut finished: Vec<Arc<Pod>>, limit: usize) -> Vec<Arc<Pod>> {
    if limit == 0 || finished.len() <= limit {
        return Vec::new();
    }
    finished.sort_by_key(|pod| (pod.metadata.creation_timestamp.as_ref().map(|t| t.0), pod.key()));
    finished.truncate(finished.len() - limit);
    finished
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_finished_pods_go() {
        let pod = |name: &str, born: &str| {
            let text = format!(r#"{{"metadata":{{"name":"{name}","creationTimestamp":"2026-01-01T00:00:{born}Z"}}}}"#);
            Arc::new(Pod::decode(text.as_bytes()).expect("valid"))
        };
        let all = || vec![pod("b", "20"), pod("a", "10"), pod("c", "30")];
        let names = |limit| {
            surplus(all(), limit)
                .iter()
                .map(|p| p.name().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(1), ["a", "b"]);
        assert_eq!(names(3), Vec::<String>::new());
        assert_eq!(names(0), Vec::<String>::new());
    }
}
