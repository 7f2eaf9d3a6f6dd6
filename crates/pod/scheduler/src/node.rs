//! A node with the pods on it, and what they leave free.

use crate::pod::{HostPort, PodInfo};
use crate::resources::{self, Resources};
use k8s_openapi::api::core::v1::Node;
use keelson_client::ApiObject;
use keelson_client::labels::Labels;
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// `None`: pods are known to be here, but the node isn't known (yet, or any more).
    node: Option<Arc<Node>>,
    pods: Vec<Arc<PodInfo>>,
    pub requested: Resources,
    /// For scoring: milli CPU and memory, with assumed amounts.
    pub assumed: (i64, i64),
    pub allocatable: Resources,
    pub allowed_pods: usize,
    /// Bytes, by name.
    pub images: HashMap<String, i64>,
}

static NO_NODE: std::sync::LazyLock<Node> = std::sync::LazyLock::new(Node::default);

impl NodeInfo {
    pub fn of(node: Arc<Node>) -> NodeInfo {
        let mut info = NodeInfo::default();
        info.set_node(Some(node));
        info
    }

    pub fn set_node(&mut self, node: Option<Arc<Node>>) {
        let status = node.as_ref().and_then(|n| n.status.as_ref());
        let allocatable = status.and_then(|s| s.allocatable.clone()).unwrap_or_default();
        self.allocatable = Resources::of(&allocatable);
        self.allowed_pods = resources::pod_count(&allocatable);
        let images = status.and_then(|s| s.images.as_ref()).into_iter().flatten();
        let named = images.flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        self.images = named.collect();
        self.node = node;
    }

    pub fn is_known(&self) -> bool {
        self.node.is_some()
    }
    pub fn node(&self) -> &Node {
        self.node.as_deref().unwrap_or(&NO_NODE)
    }
    pub fn name(&self) -> &str {
        self.node().name()
    }
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }
    pub fn labels(&self) -> Option<&Labels> {
        self.node().metadata.labels.as_ref()
    }
    pub fn pods(&self) -> &[Arc<PodInfo>] {
        &self.pods
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.assumed.0 = self.assumed.0.wrapping_add(pod.assumed.0);
        self.assumed.1 = self.assumed.1.wrapping_add(pod.assumed.1);
        self.pods.push(pod);
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|p| p.uid() == uid)?;
        let pod = self.pods.remove(at);
        self.requested.sub(&pod.requests);
        self.assumed.0 = self.assumed.0.wrapping_sub(pod.assumed.0);
        self.assumed.1 = self.assumed.1.wrapping_sub(pod.assumed.1);
        Some(pod)
    }

    /// Whether a pod here has the port already; an unspecified address has it on all.
    pub fn is_taken(&self, wanted: &HostPort) -> bool {
        self.pods
            .iter()
            .flat_map(|p| &p.ports)
            .any(|taken| conflict(taken, wanted))
    }
}

pub fn conflict(a: &HostPort, b: &HostPort) -> bool {
    let any = "0.0.0.0";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || a.ip == any || b.ip == any)
}
