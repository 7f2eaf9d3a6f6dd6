//! Gives each node its share of the pods' address range: the lowest that is free.

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
use serde_json::json;
use std::collections::BTreeSet;

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
    wire::own(&nodes, &controller.queue());
    let rest = context.rest("node-controller");
    let recorder = context.recorder(&rest, "cidrAllocator");
    context.run(
        controller,
        Allocator {
            nodes,
            ranges,
            objects: Objects::new(&rest),
            recorder,
            written: Expectations::default(),
        },
    );
}

struct Allocator {
    nodes: Informer<Node>,
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

/// The lowest share of a range that overlaps none taken.
fn lowest_free(range: IpNet, mask: u8, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    // Most are taken as they are, and a thousand nodes have a thousand of them: these aren't compared with each other.
    let overlaps =
        |share: &IpNet| taken.contains(share) || taken.iter().any(|t| t.contains(share) || share.contains(t));
    range.subnets(mask).ok()?.find(|share| !overlaps(share))
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
        let taken: BTreeSet<IpNet> = self.nodes.store().list().iter().flat_map(|n| shares(n)).collect();
        let mut new = Vec::new();
        for (range, mask) in &self.ranges {
            let Some(share) = lowest_free(*range, *mask, &taken) else {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_share() {
        let range: IpNet = "10.244.0.0/22".parse().expect("valid");
        let taken = |list: &[&str]| list.iter().filter_map(|t| t.parse().ok()).collect::<BTreeSet<IpNet>>();
        let free = |list: &[&str]| lowest_free(range, 24, &taken(list)).map(|n| n.to_string());
        assert_eq!(free(&[]).as_deref(), Some("10.244.0.0/24"));
        assert_eq!(
            free(&["10.244.0.0/24", "10.244.2.0/24"]).as_deref(),
            Some("10.244.1.0/24")
        );
        assert_eq!(free(&["10.244.0.0/23"]).as_deref(), Some("10.244.2.0/24"));
        assert_eq!(free(&["10.244.0.0/22"]), None);
    }
}
