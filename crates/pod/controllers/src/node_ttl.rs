//! Tells each node how long it may trust what it knows of secrets and configuration: the larger the cluster, the longer.
//!
//! Sizes overlap between steps, so that a cluster at a border doesn't change its mind with each node.

use crate::context::Context;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, is_not_found,
};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// From how many nodes, to how many, so many seconds.
const STEPS: [(usize, usize, u32); 5] = [
    (0, 100, 0),
    (90, 500, 15),
    (450, 1000, 30),
    (900, 2000, 60),
    (1800, usize::MAX, 300),
];

/// The step for so many nodes, coming from `step`.
fn next(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

pub fn start(context: &Context) {
    let nodes = context.informer::<Node>();
    let controller = Controller::new("node-ttl").input(&nodes).output(Node::RESOURCE);
    let queue = controller.queue();
    let step: Arc<Mutex<usize>> = Arc::default();
    {
        let (known, step) = (nodes.clone(), step.clone());
        nodes.on_change(move |change| {
            let mut step = step.lock();
            let new = next(*step, known.store().len());
            if new != std::mem::replace(&mut *step, new) {
                known.store().keys().into_iter().for_each(|key| queue.add(key));
            }
            queue.add(change.object().key());
        });
    }
    let objects = Objects::new(&context.rest("ttl-controller"));
    context.run(controller, NodeTtl { nodes, objects, step });
}

struct NodeTtl {
    nodes: Informer<Node>,
    objects: Objects<Node>,
    step: Arc<Mutex<usize>>,
}

#[async_trait]
impl Reconcile for NodeTtl {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(node) = self.nodes.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let wanted = STEPS[*self.step.lock()].2.to_string();
        let found = node.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION));
        if found == Some(&wanted) {
            return Ok(Outcome::Done);
        }
        let body = json!({"metadata": {"annotations": {ANNOTATION: wanted}}});
        match self.objects.patch("", &key.name, Patch::Strategic(&body)).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_overlap() {
        assert_eq!(next(0, 100), 0);
        assert_eq!(next(0, 101), 1);
        assert_eq!(next(1, 95), 1, "coming down it stays a while");
        assert_eq!(next(1, 89), 0);
        assert_eq!(next(0, 5000), 4);
        assert_eq!(next(4, 0), 0);
    }
}
