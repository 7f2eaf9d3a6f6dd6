//! A node with the pods on it, and what they leave free.

use crate::pod::{HostPort, PodInfo};
use crate::resources::{self, Resources};
use crate::select;
use k8s_openapi::api::core::v1::{ContainerImage, Node, Taint};
use keelson_client::ApiObject;
use keelson_client::labels::Labels;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// What is asked of each node in each decision stands here; the rest is in the node. A copy is cheap, for whoever shares a node
/// with a picture and changes it copies it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Its place among the nodes, for as long as it is one.
    pub index: u32,
    name: Arc<str>,
    /// `None`: pods are known to be here, but the node isn't known (yet, or any more).
    node: Option<Arc<Node>>,
    pods: Vec<Arc<PodInfo>>,
    /// Pods that wait for others to leave the node.
    pub nominated: Vec<Arc<PodInfo>>,
    pub requested: Resources,
    /// For scoring: milli CPU and memory, with assumed amounts.
    pub assumed: (i64, i64),
    pub allocatable: Resources,
    pub allowed_pods: usize,
    pub has_taints: bool,
    pub is_cordoned: bool,
    /// How many host ports are taken.
    ports: usize,
    /// Bytes, by name.
    pub images: Arc<HashMap<String, i64>>,
}

static NO_NODE: LazyLock<Node> = LazyLock::new(Node::default);

impl NodeInfo {
    pub fn new(index: u32, name: &str) -> NodeInfo {
        NodeInfo {
            index,
            name: name.into(),
            node: None,
            pods: Vec::new(),
            nominated: Vec::new(),
            requested: Resources::default(),
            assumed: (0, 0),
            allocatable: Resources::default(),
            allowed_pods: 0,
            has_taints: false,
            is_cordoned: false,
            ports: 0,
            images: Arc::default(),
        }
    }

    pub fn of(node: Arc<Node>) -> NodeInfo {
        let mut info = NodeInfo::new(0, node.name());
        info.set_node(Some(node));
        info
    }

    /// Empty, and only what it can take is known of it.
    pub fn sized(node: &Node) -> NodeInfo {
        let mut info = NodeInfo::new(0, node.name());
        info.set_size(Some(node));
        info
    }

    fn set_size(&mut self, node: Option<&Node>) {
        let status = node.and_then(|n| n.status.as_ref());
        let nothing = std::collections::BTreeMap::new();
        let allocatable = status.and_then(|s| s.allocatable.as_ref()).unwrap_or(&nothing);
        self.allocatable = Resources::of(allocatable);
        self.allowed_pods = resources::pod_count(allocatable);
    }

    pub fn set_node(&mut self, node: Option<Arc<Node>>) {
        self.set_size(node.as_deref());
        let listed = images(node.as_deref());
        if self.node.is_none() || images(self.node.as_deref()) != listed {
            let named = listed.iter().flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image.names.iter().flatten().map(move |name| (name.clone(), size))
            });
            self.images = Arc::new(named.collect());
        }
        let spec = node.as_ref().and_then(|n| n.spec.as_ref());
        self.has_taints = spec.is_some_and(|s| s.taints.as_ref().is_some_and(|t| !t.is_empty()));
        self.is_cordoned = spec.and_then(|s| s.unschedulable).unwrap_or(false);
        self.node = node;
    }

    pub fn is_known(&self) -> bool {
        self.node.is_some()
    }
    /// Nothing is known of it.
    pub fn is_empty(&self) -> bool {
        self.node.is_none() && self.pods.is_empty() && self.nominated.is_empty()
    }
    pub fn node(&self) -> &Node {
        self.node.as_deref().unwrap_or(&NO_NODE)
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }
    pub fn labels(&self) -> Option<&Labels> {
        self.node().metadata.labels.as_ref()
    }
    pub fn taints(&self) -> &[Taint] {
        if self.has_taints {
            select::taints(self.node())
        } else {
            &[]
        }
    }
    pub fn pods(&self) -> &[Arc<PodInfo>] {
        &self.pods
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.assumed.0 = self.assumed.0.wrapping_add(pod.assumed.0);
        self.assumed.1 = self.assumed.1.wrapping_add(pod.assumed.1);
        self.ports += pod.ports.len();
        self.pods.push(pod);
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|p| p.uid() == uid)?;
        let pod = self.pods.remove(at);
        self.requested.sub(&pod.requests);
        self.assumed.0 = self.assumed.0.wrapping_sub(pod.assumed.0);
        self.assumed.1 = self.assumed.1.wrapping_sub(pod.assumed.1);
        self.ports -= pod.ports.len();
        Some(pod)
    }

    /// Whether the other is the same node, with the same labels and taints: only its pods may differ, and what it can take.
    pub fn is_where(&self, other: &NodeInfo) -> bool {
        let (Some(node), Some(now)) = (&self.node, &other.node) else {
            return false;
        };
        Arc::ptr_eq(node, now)
            || (self.name == other.name
                && node.metadata.labels == now.metadata.labels
                && self.taints() == other.taints())
    }

    /// Which pods have gone, and which have come, until the node was as `now` is. Pods that came stand behind those that stayed.
    pub fn pods_until(&self, now: &NodeInfo) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
        let mut stayed = 0;
        let mut gone = Vec::new();
        for pod in &self.pods {
            match now.pods.get(stayed).is_some_and(|other| Arc::ptr_eq(other, pod)) {
                true => stayed += 1,
                false => gone.push(pod.clone()),
            }
        }
        (gone, now.pods[stayed..].to_vec())
    }

    /// Whether a pod here has the port already; an unspecified address has it on all.
    pub fn is_taken(&self, wanted: &HostPort) -> bool {
        self.ports > 0
            && self
                .pods
                .iter()
                .flat_map(|p| &p.ports)
                .any(|taken| conflict(taken, wanted))
    }
}

fn images(node: Option<&Node>) -> &[ContainerImage] {
    let images = node.and_then(|n| n.status.as_ref()?.images.as_deref());
    images.unwrap_or_default()
}

pub fn conflict(a: &HostPort, b: &HostPort) -> bool {
    let any = "0.0.0.0";
    a.port == b.port && a.protocol == b.protocol && (a.ip == b.ip || a.ip == any || b.ip == any)
}
