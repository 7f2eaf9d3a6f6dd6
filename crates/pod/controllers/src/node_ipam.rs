//! Gives each node its share of the pods' address range: the lowest that is free.

mod taken;

use crate::context::Context;
use crate::wire;
use anyhow::Context as _;
use async_trait::async_trait;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use keelson_client::events::EventType::Normal;
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, Recorder,
    is_not_found,
};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;
use taken::Taken;

pub fn start(context: &Context) {
    let config = &context.config;
    if !config.allocate_node_cidrs {
        return;
    }
    let mut ranges = Vec::new();
    for text in &config.cluster_cidrs {
        match text.parse::<IpNet>() {
            Ok(range) => ranges.push((
                range,
                if range.addr().is_ipv4() {
                    config.node_mask_v4
                } else {
                    config.node_mask_v6
                },
            )),
            Err(error) => {
                tracing::error!(range = text, %error, "not an address range like 10.244.0.0/16: nodes get no pod addresses");
                return;
            }
        }
    }
    if ranges.is_empty() {
        return;
    }
    let nodes = context.informer::<Node>();
    // One at a time: each choice depends on all before.
    let controller = Controller::new("node-ipam")
        .input(&nodes)
        .output(Node::RESOURCE)
        .workers(1);
    let taken: Arc<Mutex<Taken>> = Arc::default();
    let told = taken.clone();
    nodes.on_change(move |change| {
        let node = change.object();
        let has = if change.is_deleted() { Vec::new() } else { shares(node) };
        told.lock().set(node.name(), has);
    });
    wire::own(&nodes, &controller.queue());
    let rest = context.rest("node-controller");
    let recorder = context.recorder(&rest, "cidrAllocator");
    context.run(
        controller,
        Allocator {
            nodes,
            taken,
            ranges,
            objects: Objects::new(&rest),
            recorder,
            written: Expectations::default(),
        },
    );
}

struct Allocator {
    nodes: Informer<Node>,
    taken: Arc<Mutex<Taken>>,
    ranges: Vec<(IpNet, u8)>,
    objects: Objects<Node>,
    recorder: Recorder,
    written: Expectations,
}

fn shares(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|text| text.parse().ok()).collect()
}

#[async_trait]
impl Reconcile for Allocator {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let all = ObjectKey::default();
        self.written.settle(&all, self.nodes.store()).await?;
        let Some(node) = self.nodes.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        if !shares(&node).is_empty() || node.is_deleting() {
            return Ok(Outcome::Done);
        }
        let mut new = Vec::new();
        for (range, mask) in &self.ranges {
            let Some(share) = self.taken.lock().lowest_free(*range, *mask) else {
                self.recorder.event(
                    &*node,
                    Normal,
                    "CIDRNotAvailable",
                    format!("Node {} status is now: CIDRNotAvailable", node.name()),
                );
                anyhow::bail!("{range} has no free /{mask} left for the node {}", node.name());
            };
            new.push(share.to_string());
        }
        let body = json!({"metadata": {"uid": node.uid()}, "spec": {"podCIDR": new.first(), "podCIDRs": new}});
        match self.objects.patch("", node.name(), Patch::Strategic(&body)).await {
            Ok(written) => self.written.wrote(&all, written.meta()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error).context("giving the node its addresses"),
        }
        Ok(Outcome::Done)
    }
}
